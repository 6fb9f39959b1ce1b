"""Describe a data set in a few lines: the kinds of its values, the reasons, gaps and splits."""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from tabulate import tabulate

from iwae.data.column_statistics import count_column_gaps
from iwae.data.columns import Column
from iwae.data.dataset import Dataset
from iwae.data.rows import Examples, row_blocks
from iwae.wording import count_in_words, listed_words, shorten_value

MOST = 30
"""The most columns that are listed one by one."""

NAMED = 3
"""The columns of a kind that are named if there are more than `MOST` columns."""

LISTING = "columns.txt"
"""The file in a run's folder that lists the columns of a wide table."""


def summarise_dataset(dataset: Dataset) -> str:
    """Lines on rows, columns with kinds and reasons, gaps, constant columns and splits."""
    rows = [dataset.train, dataset.validation, dataset.test]
    n = sum(map(len, rows))
    shape = " x ".join(map(str, dataset.shape))
    taken = "a table" if dataset.kind.columns else str(dataset.kind)
    form = "columns" if len(dataset.shape) == 1 else "values"
    lines = [f"{dataset.name}: {count_in_words(n, 'row', ',')} of {shape} {form}, taken as {taken}"]
    if dataset.binarization != "none":
        lines[0] += f", binarised ({dataset.binarization})"
    is_declared = dataset.identity["values"] == "stored"
    if not is_declared and not any(column.why for column in dataset.columns):
        lines.append(f"values: {dataset.identity['values_rule']}")
    lines += dataset.remarks
    if has_wide_summary(dataset):
        lines += [*_groups(dataset.columns), f"  each column: {LISTING} in the run's folder"]
    elif dataset.columns:
        lines.append(summarise_columns(dataset))
    if missing := dataset.identity.get("missing"):
        shares = ", ".join(f"{share:.1%} of {split}" for split, share in missing.items() if share)
        lines.append(f"missing: {shares or 'none'}")
    lines += _constant(dataset, rows[0])
    if dataset.classes:
        lines.append(f"labels: {len(dataset.classes)} classes: {listed_words(dataset.classes, 10)}")
    if dataset.is_streamed:
        lines.append(
            f"streamed: {_bytes(rows)} of values stay on disk (--stream False keeps them in memory)"
        )
    sizes = ", ".join(
        f"{len(split):,} to {verb}"
        for split, verb in zip(rows, ("train", "validate", "test"), strict=True)
    )
    return "\n".join([*lines, f"splits: {sizes} ({dataset.identity['split']})"])


def has_wide_summary(dataset: Dataset) -> bool:
    """Whether a data set has too many columns to list them one by one."""
    return len(dataset.columns) > MOST


def summarise_columns(dataset: Dataset) -> str:
    """A line for each column: its kind, the reason, and its share of gaps."""
    columns, rows = dataset.columns, (dataset.train, dataset.validation, dataset.test)
    gaps = sum(map(count_column_gaps, rows)) / sum(map(len, rows))
    table = [
        (one.name, one.kind, one.why + (f"; {gap:.1%} missing" if gap else ""))
        for one, gap in zip(columns, np.broadcast_to(gaps, len(columns)), strict=True)
    ]
    plain = tabulate(table, tablefmt="plain", disable_numparse=True)
    return "\n".join(f"  {line}".rstrip() for line in plain.splitlines())


def _groups(columns: Sequence[Column]) -> list[str]:
    """A line for all columns with the same kind and reason: their number, and some names."""
    groups = defaultdict(list)
    for one in columns:
        groups[one.kind, _SPECIFIC.sub("", one.why)].append(one.name)
    return [
        f"  {count_in_words(len(names), 'column', ',')}: {kind}{f', {why}' if why else ''}"
        f" ({_first_names(names)})"
        for (kind, why), names in groups.items()
    ]


_SPECIFIC = re.compile(r": .*| from \S+ to [^ ,]+| \(if they name.*")
"""The part of a reason that is specific to a column."""


def _first_names(names: Sequence[str], most: int = NAMED) -> str:
    """The first names, and the number of others."""
    more = len(names) - most
    return ", ".join(map(shorten_value, names[:most])) + (f" and {more:,} more" if more > 0 else "")


def _constant(dataset: Dataset, train: Examples) -> list[str]:
    """A line on the values that are the same in every training row."""
    low, high = np.full(train.shape[1], np.inf), np.full(train.shape[1], -np.inf)
    for _, block in row_blocks(train):
        low, high = np.fmin(low, np.fmin.reduce(block)), np.fmax(high, np.fmax.reduce(block))
    places = np.flatnonzero(low == high)
    if not places.size:
        return []
    names = [dataset.columns[i].name if dataset.columns else str(i + 1) for i in places]
    what = f"constant in the training rows: {places.size} of {train.shape[1]}"
    return [f"{what} ({_first_names(names, 10)})"]


def _bytes(rows: list[Examples]) -> str:
    """The size of rows in memory, in words."""
    total = sum(split.nbytes for split in rows)
    return f"{total / 2**30:.1f} GiB" if total >= 2**30 else f"{total / 2**20:.1f} MiB"
