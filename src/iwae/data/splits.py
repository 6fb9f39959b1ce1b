"""Assemble a data set: split a source, convert its values and identify the result."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from iwae.data.binarisation import Conversion, resolve
from iwae.data.column_statistics import column_sums, count_column_gaps
from iwae.data.columns import Column, columns_as_json
from iwae.data.dataset import Dataset, Labels, test_sha256
from iwae.data.grey_levels import are_grey_bytes
from iwae.data.held_out import HeldOut, hold_out
from iwae.data.kinds import Kind, as_json, make_kind
from iwae.data.rows import Examples, Index, as_rows, row_subset, rows_in_memory
from iwae.data.sampling import TEST_DRAW, TRAIN_DRAW, VALIDATION_DRAW
from iwae.data.scaling import Scaling, fit_scaling, refuse_coarse_scaling, scaled_columns
from iwae.errors import UserError
from iwae.wording import shorten_value

COLOURS = 3
"""The number of channels of colour."""

BYTES = "uint8: grey levels 0..255"
"""The rule by which bytes are grey."""


class Raw(NamedTuple):
    """The content of a source before any choice is made.

    `splits` has `train`, `test` and perhaps `validation`, each `[n, d]`. `values` is the meaning of
    the numbers: `binary` (0/1 uint8), `grey` (uint8 0..255, or float32 in [0, 1]), `real` (float)
    or `stored` (uint8 or float, with the meaning that the kind of data gives them). `values_rule`
    is the rule that decided it.
    """

    name: str
    splits: Mapping[str, Examples]
    shape: tuple[int, ...]
    values: str
    files: Sequence[Mapping[str, str]]  # name, sha256 of the content, how it was verified
    split_rule: str
    values_rule: str = "as published"
    authors: Callable[[int], HeldOut] | None = None
    log_density: Callable[[np.ndarray], np.ndarray] | None = None
    columns: tuple[Column, ...] = ()  # of a table that names them
    labels: Mapping[str, np.ndarray] | None = None  # of each split, indices into `classes`
    classes: tuple[str, ...] = ()
    label: str | None = None  # the column that holds them, if a user named one
    is_own: bool = False  # a user's file: real values are standardised by default
    notes: Mapping[str, Any] = {}
    remarks: tuple[str, ...] = ()  # of `Dataset`


class Options(NamedTuple):
    """The options of `load.load_dataset`, whose `observation` is the `kind` here."""

    kind: Kind | None = None
    binarization: str | None = None
    validation: int | float | str | None = None
    seed: int = 0
    binarization_seed: int = 0
    shape: Sequence[int] | None = None
    missing: bool = False
    labels: bool | str = False
    drop: Sequence[str] = ()
    ids: Sequence[str] = ()
    columns: Mapping[str, str] | Sequence[Column] | None = None
    unknown: str = "error"
    resize: int | Sequence[int] | None = None
    standardize: bool | None = None
    stream: bool = False


def assemble_splits(raw: Raw, options: Options) -> Dataset:
    """Apply a user's choices to raw splits.

    Raises:
        UserError: for choices that contradict the data or each other.
    """
    shape = _shape(raw, options.shape)
    raw, options = _colour_defaults(raw, shape, options)
    wanted = options.kind and options.kind.name
    observation, binarization = resolve(raw.values, wanted, options.binarization)
    kind = options.kind or make_kind(observation)
    for name in ("seed", "binarization_seed"):
        if getattr(options, name) < 0:
            raise UserError(f"{name} must not be negative, not {getattr(options, name)}")
    held_out = hold_out(
        raw.name,
        len(raw.splits["train"]),
        options.validation,
        seed=options.seed,
        given=len(raw.splits["validation"]) if "validation" in raw.splits else None,
        authors=raw.authors,
    )
    scaling, remarks = _scaling(raw, kind, held_out.train, options)
    seed = options.binarization_seed
    convert = Conversion(raw.values, observation, binarization, seed, scaling)
    splits = _convert_splits(raw, held_out, convert, stream=options.stream)
    labels = _split_labels(raw, held_out, splits)
    for array in (*splits.values(), *(labels or ())):
        if isinstance(array, np.ndarray):
            array.setflags(write=False)
    drawn = are_grey_bytes(splits["train"], binarization)
    return Dataset(
        name=raw.name,
        **splits,
        shape=shape,
        observation=observation,
        binarization=binarization,
        identity=_identity(raw, options, shape, kind, held_out, convert, splits),
        train_mean=_column_means(splits["train"], scale=255 if drawn else 1),
        log_density=raw.log_density,
        kind=kind,
        classes=raw.classes,
        scaling=scaling,
        columns=raw.columns,
        given_labels=labels,
        remarks=(*raw.remarks, *remarks),
        grey_test=None if binarization == "none" else raw.splits["test"],
    )


def _convert_splits(
    raw: Raw, held_out: HeldOut, convert: Conversion, *, stream: bool
) -> dict[str, Examples]:
    """The three splits as they are measured; training rows under `dynamic` stay grey."""
    known, rows = raw.splits["train"], held_out.train
    if convert.binarization == "dynamic":
        train = row_subset(known, rows)
    else:
        train = convert(known, TRAIN_DRAW, rows)
    if "validation" in raw.splits:
        validation = convert(raw.splits["validation"], VALIDATION_DRAW)
    else:
        validation = convert(known, TRAIN_DRAW, held_out.validation)
    test = convert(raw.splits["test"], TEST_DRAW)
    splits = {"train": train, "validation": validation, "test": test}
    return {split: as_rows(one) if stream else rows_in_memory(one) for split, one in splits.items()}


def _identity(
    raw: Raw,
    options: Options,
    shape: tuple[int, ...],
    kind: Kind,
    held_out: HeldOut,
    convert: Conversion,
    splits: Mapping[str, Examples],
) -> dict[str, Any]:
    """All that the results depend on, as JSON."""
    gaps: dict[str, Any] = {}
    if options.missing:
        gaps = {"missing": _missing_shares(raw, splits, convert.binarization)}
        gaps |= {"columns": [one.name for one in raw.columns]} if raw.columns else {}
    if any(column.why or column.levels for column in raw.columns):
        gaps["columns"] = columns_as_json(raw.columns)
    is_drawn = raw.values == "grey" and convert.binarization in ("dynamic", "static")
    validation, test = splits["validation"], splits["test"]
    return {
        "name": raw.name,
        "files": [dict(file) for file in raw.files],
        "values": raw.values,
        "values_rule": raw.values_rule,
        "split": raw.split_rule,
        "validation": {"rule": held_out.rule, "count": len(validation), "seed": held_out.seed},
        "sizes": {split: len(rows) for split, rows in splits.items()},
        "shape": list(shape),
        "observation": as_json(kind),
        "binarization": convert.binarization,
        "binarization_seed": convert.seed if is_drawn else None,
        "validation_sha256": test_sha256(validation) if len(validation) else None,
        "test_sha256": test_sha256(test),
        **gaps,
        **({"scaling": convert.scaling.as_json()} if convert.scaling else {}),
        **raw.notes,
        **({"classes": list(raw.classes)} if raw.labels else {}),
        **({"label": raw.label} if raw.label is not None else {}),
    }


def _scaling(
    raw: Raw, kind: Kind, rows: Index, options: Options
) -> tuple[Scaling | None, list[str]]:
    """Fit the scaling of real values to the training rows; None if values stay as they are.

    Also returns remarks on values that float32 merges.

    Raises:
        UserError: if the user asked to standardise and there are no real values, or for values
            whose differences float32 loses.
    """
    wanted = raw.is_own if options.standardize is None else options.standardize
    train = row_subset(raw.splits["train"], rows)
    is_real = raw.values != "binary" and train.dtype.kind != "u"
    chosen = scaled_columns(kind, train.shape[1]) & wanted & is_real
    if options.standardize and not chosen.any():
        raise UserError(
            f"{raw.name} has no real values of learned scale ({kind}): leave out standardize"
        )
    names = [one.name for one in raw.columns]
    scaling = fit_scaling(train, chosen, raw.name, names) if chosen.any() else None
    remarks: list[str] = []
    for split, array in raw.splits.items() if is_real else ():
        remarks += refuse_coarse_scaling(array, scaling, names, f"{raw.name}: {split}")
    return scaling, remarks


def _split_labels(raw: Raw, held_out: HeldOut, splits: Mapping[str, Examples]) -> Labels | None:
    """The labels of the splits, if there are any."""
    if raw.labels is None:
        return None
    known = raw.labels["train"]
    labels = {
        "validation": known[held_out.validation],
        **raw.labels,
        "train": known[held_out.train],
    }
    unseen = np.setdiff1d(np.arange(len(raw.classes)), labels["train"])
    if unseen.size:
        name = shorten_value(repr(raw.classes[unseen[0]]))
        raise UserError(
            f"{raw.name}: the label {name} has no training example once test and validation "
            "examples are held out: remove its rows, or add more of them"
        )
    for split, rows in splits.items():
        if len(rows) != len(labels[split]):
            raise UserError(
                f"{raw.name} has {len(rows)} examples in a split, but {len(labels[split])} labels"
            )
    return Labels(**labels)


def _shape(raw: Raw, wanted: Sequence[int] | None) -> tuple[int, ...]:
    """The shape of an example: the user's, or that of the data."""
    shape = _image_shape(raw.name, raw.shape)
    if wanted is not None:
        shape = tuple(wanted)
    width = raw.splits["train"].shape[1]
    if math.prod(shape) != width or min(shape, default=0) < 1:
        raise UserError(
            f"shape {list(shape)} does not fit {raw.name}: an example has {width} values"
        )
    return _image_shape(raw.name, shape)


def _image_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of vectors `[d]`, of grey images `[h, w]`, or of colour images `[h, w, 3]`.

    Raises:
        UserError: for any other shape but `[h, w, 1]`, which is that of grey images.
    """
    if len(shape) < 3 or (len(shape) == 3 and shape[2] == COLOURS):
        return shape
    if len(shape) == 3 and shape[2] == 1:
        return shape[:2]
    if len(shape) == 3 and shape[2] == COLOURS + 1:
        remedy = "leave out transparency (array[..., :3])"
    elif len(shape) == 3 and shape[0] in (1, COLOURS, COLOURS + 1):
        remedy = "move the channels last (np.moveaxis(array, 1, -1))"
    else:
        remedy = "make others rows [n, d]"
    raise UserError(
        f"{name} has examples of shape {list(shape)}, but images are [h, w] or [h, w, 3]: {remedy}"
    )


def _colour_defaults(raw: Raw, shape: tuple[int, ...], options: Options) -> tuple[Raw, Options]:
    """Take colour for levels or real values, unless the user declares or binarises it."""
    declared = options.kind is not None or options.binarization not in (None, "none")
    if len(shape) < 3 or raw.values != "grey" or declared:
        return raw, options
    if raw.values_rule != BYTES:  # stored as real numbers, even if they are exact as bytes
        rule = "all within [0, 1], but in colour: real values"
        return raw._replace(values_rule=rule), options._replace(kind=make_kind("gaussian"))
    kind = make_kind("logistic-mixture")
    # These words are in checkpoints, which a resumed run compares.
    rule = f"as stored, by the user's word: {kind}"
    return raw._replace(values="stored", values_rule=rule), options._replace(kind=kind)


def _missing_shares(
    raw: Raw, splits: Mapping[str, Examples], binarization: str
) -> dict[str, float | None]:
    """The share of missing values in each split.

    Raises:
        UserError: for grey values to binarise, or a column without a value to train on.
    """
    gaps = {split: count_column_gaps(rows) for split, rows in splits.items()}
    if binarization != "none" and any(count.any() for count in gaps.values()):
        raise UserError(
            f"{raw.name} holds grey values, some of them missing, and these cannot be binarised: "
            "use observation 'gaussian', or binarise the file and keep the gaps"
        )
    empty = np.flatnonzero(gaps["train"] == len(splits["train"]))
    if empty.size:
        column = int(empty[0])
        named = f" ({raw.columns[column].name!r})" if raw.columns else ""
        raise UserError(
            f"{raw.name}: column {column + 1}{named} has no value in any training row, so "
            "nothing can be learned about it: leave it out"
        )
    sizes = {split: len(rows) * rows.shape[1] for split, rows in splits.items()}
    return {
        split: float(count.sum() / sizes[split]) if sizes[split] else None
        for split, count in gaps.items()
    }


def _column_means(train: Examples, *, scale: int) -> np.ndarray:
    """The mean of each column's observed values, float64; bytes are summed exactly."""
    with np.errstate(invalid="ignore"):  # a column without a value has no mean
        return column_sums(train) / ((len(train) - count_column_gaps(train)) * scale)
