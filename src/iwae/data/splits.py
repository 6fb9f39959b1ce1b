"""Turn arrays into a data set: hold out validation examples, binarise, and identify the result.

Every random choice is addressed: it depends on a seed, on its purpose (the streams of `sampling`)
and on the row concerned, never on what was drawn before it.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from iwae.data.columns import Column
from iwae.data.columns import as_json as columns_json
from iwae.data.kinds import BERNOULLI, KINDS, Kind, as_json, make_kind
from iwae.data.moments import gaps_in, sums
from iwae.data.rows import (
    ALL,
    Convert,
    Examples,
    Index,
    Rows,
    as_rows,
    blocks,
    converted,
    kept,
    subset,
)
from iwae.data.sampling import (
    HOLD_OUT,
    TEST_DRAW,
    TRAIN_DRAW,
    VALIDATION_DRAW,
    choose,
    generator,
)
from iwae.data.scaling import Scaling, fit_scaling, refuse_merged, scaled_columns
from iwae.errors import UserError, shorten

BINARIZATIONS = ("dynamic", "static", "threshold", "none")
OBSERVATIONS = tuple(KINDS)


class Labels(NamedTuple):
    """The label of each example of a split, `[n]`: an index into `Dataset.classes`."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def __call__(self, split: str) -> np.ndarray:
        """The labels of a split by its name."""
        return getattr(self, split)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, split, with the pixels of its validation and test examples drawn once.

    `train` is uint8 `[n, d]`: grey 0..255 if it is binarised afresh at every access (`dynamic`),
    else 0/1; or float32: real values, or ink probabilities that bytes cannot represent exactly.
    `validation` and `test` are 0/1 (uint8) for Bernoulli observations, float32 for Gaussian ones.
    Levels, counts, categories and tables are as stored in all three, uint8 or float32. Arrays with
    missing values (NaN) are float32. `draw` turns a row of any of them into a model's input. The
    arrays are read-only. Where data are streamed, all three are `rows.Rows` instead, which read
    and convert the rows that they are asked for.

    With a `scaling`, real values are standardised in all three: `scaling.outwards` gives them in
    the units of the data, and a model needs `log_scale=data.log_scale` for densities in these.

    If labels were requested, they are in `labels`, and `examples` has both.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples
    shape: tuple[int, ...]  # of one example; d is its product
    observation: str  # the name of `kind`
    binarization: str
    identity: dict[str, Any]  # JSON-able: all that the results depend on
    train_mean: (
        np.ndarray
    )  # float64 [d], in a model's units ([0, 1] for pixels), training rows only
    log_density: Callable[[np.ndarray], np.ndarray] | None = field(default=None, repr=False)
    kind: Kind = BERNOULLI
    classes: tuple[str, ...] = ()  # names of the labels 0, 1, ...; empty if there are none
    columns: tuple[Column, ...] = ()  # of a table that names them
    scaling: Scaling | None = None  # of the values, if they are standardised
    given_labels: Labels | None = field(default=None, repr=False)
    grey_test: Examples | None = field(default=None, repr=False)  # [n, d] before binarisation
    remarks: tuple[str, ...] = ()  # on how they were read, for a person

    @property
    def log_scale(self) -> np.ndarray | None:
        """log |d data / d model| of each value, `[d]`; None if values are not standardised."""
        return None if self.scaling is None else self.scaling.log_scale

    def outwards(self, rows: np.ndarray) -> np.ndarray:
        """Rows `[..., d]` (no labels) in the units of the data, from those of a model."""
        return rows if self.scaling is None else self.scaling.outwards(rows)

    @property
    def n_values(self) -> int:
        """The number of values of an example, d, without its label."""
        return math.prod(self.shape)

    @property
    def labels(self) -> Labels:
        """The labels of the splits, such as `labels.test` `[n]`: indices into `classes`."""
        if self.given_labels is None:
            raise UserError(
                f"{self.name} was loaded without labels: use load_dataset(..., labels=True)"
            )
        return self.given_labels

    @property
    def is_streamed(self) -> bool:
        """Whether rows are read when they are needed, and not kept in memory."""
        return isinstance(self.train, Rows)

    def examples(self, split: str) -> Examples:
        """The examples of a split as a model takes them, in the units of the split.

        These are its rows `[n, d]` or, with labels, `[n, d + C]` for a conditional model: each row
        is followed by its label, one-hot over the C `classes`, with 255 for the one if the row
        holds bytes to be binarised.
        """
        rows: Examples = getattr(self, split)
        if self.given_labels is None:
            return rows
        drawn = split == "train" and _is_bytes(rows, self.binarization)
        one_hot, labels = np.eye(len(self.classes), dtype=rows.dtype), self.given_labels(split)
        one_hot *= 255 if drawn else 1
        width = rows.shape[1] + len(self.classes)

        def labelled(values: np.ndarray, places: np.ndarray) -> np.ndarray:
            return np.concatenate([values, one_hot[labels[places]]], axis=1)

        found = converted(rows, labelled, rows.dtype, row_shape=(width,))
        return found if self.is_streamed else kept(found)


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
    authors: Callable[[int], "HeldOut"] | None = None
    log_density: Callable[[np.ndarray], np.ndarray] | None = None
    columns: tuple[Column, ...] = ()  # of a table that names them
    labels: Mapping[str, np.ndarray] | None = None  # of each split, indices into `classes`
    classes: tuple[str, ...] = ()
    label: str | None = None  # the column that holds them, if a user named one
    is_own: bool = False  # a user's file: real values are standardised by default
    notes: Mapping[str, Any] = {}
    remarks: tuple[str, ...] = ()  # of `Dataset`


class HeldOut(NamedTuple):
    """Rows of the training array: those to train on, in this order, and those held out."""

    train: Index
    validation: np.ndarray
    rule: str
    seed: int | None = None


class Choices(NamedTuple):
    """A user's choices; None is the default for the data."""

    observation: Kind | None
    binarization: str | None
    validation: int | float | str | None
    seed: int
    binarization_seed: int
    shape: Sequence[int] | None
    missing: bool = False
    standardize: bool | None = None
    stream: bool = False


def test_sha256(array: Examples) -> str:
    """SHA-256 of an array's dtype, shape and values: equal if and only if the tensors are."""
    dtype = array.dtype.newbyteorder("<")
    digest = hashlib.sha256(f"{dtype.str}{array.shape}".encode())
    for _, block in blocks(array):
        digest.update(np.ascontiguousarray(block, dtype).data)
    return digest.hexdigest()


test_sha256.__test__ = False  # type: ignore[attr-defined]  # keeps pytest from collecting it


def bernoulli(
    grey: np.ndarray, rows: np.ndarray | None = None, *, seed: int, stream: int
) -> np.ndarray:
    """0/1 uint8 draws with probabilities `grey` (uint8 / 255, or float in [0, 1]), `[n, d]`.

    Pixel (row, column) has its own uniform number, whichever rows are drawn together.

    Args:
        rows: number of each row of `grey` in the whole, `[n]`; counted from 0 if None.
    """
    rows = np.arange(len(grey)) if rows is None else rows
    width = grey.shape[1]
    uniform = generator(seed, stream)
    start = uniform.bit_generator.state
    drawn = np.empty((len(rows), width), np.uint8)
    for run in _runs(rows):
        uniform.bit_generator.state = start
        uniform.bit_generator.advance(int(rows[run.start]) * width)  # type: ignore[attr-defined]
        drawn[run] = uniform.random((run.stop - run.start, width)) < _unit(grey[run])
    return drawn


def assemble(raw: Raw, choices: Choices) -> Dataset:
    """Apply a user's choices to raw splits.

    Raises `UserError` for choices that contradict the data or each other.
    """
    shape = _shape(raw, choices.shape)
    raw, choices = _in_colour(raw, shape, choices)
    wanted = choices.observation and choices.observation.name
    observation, binarization = resolve(raw.values, wanted, choices.binarization)
    what = choices.observation or make_kind(observation)
    for name in ("seed", "binarization_seed"):
        if getattr(choices, name) < 0:
            raise UserError(f"{name} must not be negative, not {getattr(choices, name)}")
    held_out = _held_out(raw, choices)
    scaling, remarks = _scaling(raw, what, held_out.train, choices)
    kind = _Drawing(observation, binarization, choices.binarization_seed, scaling)
    train = _train(raw.splits["train"], raw.values, kind, held_out.train)
    if "validation" in raw.splits:
        validation = _drawn(raw.splits["validation"], raw.values, kind, VALIDATION_DRAW)
    else:
        rows = held_out.validation
        validation = _drawn(raw.splits["train"], raw.values, kind, TRAIN_DRAW, rows)
    test = _drawn(raw.splits["test"], raw.values, kind, TEST_DRAW)
    splits = {"train": train, "validation": validation, "test": test}
    splits = {split: _as_wished(rows, choices) for split, rows in splits.items()}
    labels = _labels(raw, splits, held_out)
    for array in (*splits.values(), *(labels or ())):
        if isinstance(array, np.ndarray):
            array.setflags(write=False)
    gaps: dict[str, Any] = {}
    if choices.missing:
        gaps = {"missing": _missing(raw, splits, binarization)}
        gaps |= {"columns": [one.name for one in raw.columns]} if raw.columns else {}
    if any(column.why or column.levels for column in raw.columns):
        gaps["columns"] = columns_json(raw.columns)
    return Dataset(
        name=raw.name,
        **splits,
        shape=shape,
        observation=observation,
        binarization=binarization,
        identity={
            "name": raw.name,
            "files": [dict(file) for file in raw.files],
            "values": raw.values,
            "values_rule": raw.values_rule,
            "split": raw.split_rule,
            "validation": {
                "rule": held_out.rule,
                "count": len(validation),
                "seed": held_out.seed,
            },
            "sizes": {"train": len(train), "validation": len(validation), "test": len(test)},
            "shape": list(shape),
            "observation": as_json(what),
            "binarization": binarization,
            "binarization_seed": choices.binarization_seed if _draws(raw, binarization) else None,
            "validation_sha256": test_sha256(splits["validation"]) if len(validation) else None,
            "test_sha256": test_sha256(splits["test"]),
            **gaps,
            **({"scaling": scaling.as_json()} if scaling else {}),
            **raw.notes,
            **({"classes": list(raw.classes)} if raw.labels else {}),
            **({"label": raw.label} if raw.label is not None else {}),
        },
        train_mean=_mean(splits["train"], scale=255 if _is_bytes(train, binarization) else 1),
        log_density=raw.log_density,
        kind=what,
        classes=raw.classes,
        scaling=scaling,
        columns=raw.columns,
        given_labels=labels,
        remarks=(*raw.remarks, *remarks),
        grey_test=None if binarization == "none" else raw.splits["test"],
    )


def _scaling(
    raw: Raw, kind: Kind, rows: Index, choices: Choices
) -> tuple[Scaling | None, list[str]]:
    """The scaling of real values, from the training rows, and what float32 merges, as lines.

    None for values that are kept as they are.

    Raises:
        UserError: if there are none and the user asked for it, or for values whose differences
            float32 loses.
    """
    wanted = raw.is_own if choices.standardize is None else choices.standardize
    train = subset(raw.splits["train"], rows)
    is_real = raw.values != "binary" and train.dtype.kind != "u"
    chosen = scaled_columns(kind, train.shape[1]) & wanted & is_real
    if choices.standardize and not chosen.any():
        raise UserError(
            f"{raw.name} has no real values of learned scale ({kind}): leave out standardize"
        )
    names = [one.name for one in raw.columns]
    scaling = fit_scaling(train, chosen, raw.name, names) if chosen.any() else None
    remarks: list[str] = []
    for split, array in raw.splits.items() if is_real else ():
        remarks += refuse_merged(array, scaling, names, f"{raw.name}: {split}")
    return scaling, remarks


def _labels(raw: Raw, splits: Mapping[str, Examples], held_out: HeldOut) -> Labels | None:
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
        name = shorten(repr(raw.classes[unseen[0]]))
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


def resolve(values: str, observation: str | None, binarization: str | None) -> tuple[str, str]:
    """The observation and binarisation for a kind of values; rejects contradictory choices.

    ========  =============  =================================================
    values    observation    binarisation
    ========  =============  =================================================
    binary    bernoulli      none (static and threshold have no effect)
    grey      bernoulli      dynamic (or static, threshold)
    real      gaussian       none
    any       any other      none
    ========  =============  =================================================
    """
    for name, value, known in (
        ("observation", observation, OBSERVATIONS),
        ("binarization", binarization, BINARIZATIONS),
    ):
        if value is not None and value not in known:
            raise UserError(f"unknown {name} {value!r}; known: {', '.join(known)}")
    if values == "real" and observation == "bernoulli":
        raise UserError(
            "these data are not bernoulli: they are real values, not 0/1, bytes (uint8) or within "
            "[0, 1]: use observation 'gaussian', or rescale them (grey levels: divide by 255)"
        )
    observation = observation or ("gaussian" if values == "real" else "bernoulli")
    if observation != "bernoulli":
        if binarization not in (None, "none"):
            raise UserError(
                f"binarization {binarization!r} contradicts observation {observation!r}: use 'none'"
                + ("" if values == "real" else ", or observation 'bernoulli'")
            )
        return observation, "none"
    if values == "binary":
        if binarization == "dynamic":
            raise UserError("these data are already binary: use binarization 'none', not 'dynamic'")
        return observation, "none"
    if binarization == "none":
        raise UserError(
            "a Bernoulli likelihood of grey values is not a density: binarise them ('dynamic', "
            "'static' or 'threshold'), or use binarization 'none' with observation 'gaussian'"
        )
    return observation, binarization or "dynamic"


class _Drawing(NamedTuple):
    """The conversion of raw values to those that are measured."""

    observation: str
    binarization: str
    seed: int
    scaling: Scaling | None


def _train(array: Examples, values: str, kind: _Drawing, rows: Index) -> Examples:
    """The training rows: grey stays grey under `dynamic`; otherwise as in `_drawn`."""
    if kind.binarization == "dynamic":
        return subset(array, rows)
    return _drawn(array, values, kind, TRAIN_DRAW, rows)


def _drawn(
    array: Examples,
    values: str,
    kind: _Drawing,
    stream: int,
    rows: Index = ALL,
) -> Examples:
    """Rows as they are measured: 0/1 uint8, float32 for Gaussian kinds, or as stored."""
    convert, dtype = _conversion(array.dtype, values, kind, stream)
    return subset(array, rows) if convert is None else converted(array, convert, dtype, rows=rows)


def _conversion(
    stored: np.dtype[Any], values: str, kind: _Drawing, stream: int
) -> tuple[Convert | None, type[np.generic]]:
    """The function that makes rows as they are measured, None for none, and their dtype."""
    observation, binarization, seed, scaling = kind
    as_bytes = observation == "bernoulli" or KINDS[observation].as_stored
    if binarization in ("dynamic", "static"):
        return partial(bernoulli, seed=seed, stream=stream), np.uint8
    if binarization == "threshold":
        # Bytes from 128 up are above one half: 127 / 255 < 0.5 < 128 / 255.
        half = 127 if stored == np.uint8 else 0.5
        return lambda block, _: (block > half).astype(np.uint8), np.uint8
    if scaling is not None:
        return lambda block, _: scaling.inwards(block), np.float32
    if (stored == np.uint8 and as_bytes) or (stored == np.float32 and values != "grey"):
        return None, np.float32
    unit = _unit if values == "grey" else np.ndarray.astype
    return lambda block, _: unit(block, np.float32), np.float32


def _as_wished(rows: Examples, choices: Choices) -> Examples:
    """Rows to be read when they are needed or, by default, in memory."""
    return as_rows(rows) if choices.stream else kept(rows)


def _held_out(raw: Raw, choices: Choices) -> HeldOut:
    """The training rows to hold out and to keep."""
    wanted, n = choices.validation, len(raw.splits["train"])
    if isinstance(wanted, float) and 0 < wanted < 1:
        given = raw.splits.get("validation")
        wanted = max(1, round(wanted * n)) if given is None else len(given)
    if isinstance(wanted, bool) or not isinstance(wanted, int | np.integer | str | None):
        raise UserError(
            f"validation must be a whole number of examples, or a share of them between 0 and 1, "
            f"not {wanted!r}"
        )
    if "validation" in raw.splits:
        own = len(raw.splits["validation"])
        if wanted not in (None, "authors", own):
            raise UserError(
                f"{raw.name} has a validation set of its own ({own:,} examples): "
                f"leave `validation` unset instead of {wanted!r}"
            )
        return HeldOut(ALL, np.arange(0), "a set of its own")
    if isinstance(wanted, str):
        if wanted != "authors" or raw.authors is None:
            authors = ", or 'authors'" if raw.authors else ""
            raise UserError(
                f"validation of {raw.name} must be a number of examples{authors}, not {wanted!r}"
            )
        held_out = raw.authors(n)
    elif not wanted:
        return HeldOut(ALL, np.arange(0), "none held out")
    else:
        rows = choose(n, max(wanted, 0), seed=choices.seed)
        held_out = HeldOut(
            np.delete(np.arange(n), rows),
            rows,
            f"{wanted} training rows chosen by numpy PCG64([seed, {HOLD_OUT}])",
            choices.seed,
        )
    if not (0 < len(held_out.validation) < n):
        raise UserError(
            f"validation must hold out between 0 and {n - 1:,} of the {n:,} training examples "
            f"of {raw.name}, not {wanted!r}"
        )
    return held_out


def _shape(raw: Raw, wanted: Sequence[int] | None) -> tuple[int, ...]:
    """The shape of an example: the one that is wanted, or that of the data."""
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


COLOURS = 3
"""The number of channels of colour."""

BYTES = "uint8: grey levels 0..255"
"""The rule by which bytes are grey."""


def _in_colour(raw: Raw, shape: tuple[int, ...], choices: Choices) -> tuple[Raw, Choices]:
    """Colour as levels or real values: it is binarised only if the user says so."""
    said = choices.observation is not None or choices.binarization not in (None, "none")
    if len(shape) < 3 or raw.values != "grey" or said:
        return raw, choices
    if raw.values_rule != BYTES:  # of which bytes are made where that is exact
        rule = "all within [0, 1], but in colour: real values"
        return raw._replace(values_rule=rule), choices._replace(observation=make_kind("gaussian"))
    kind = make_kind("logistic-mixture")
    # These words are in checkpoints, which a resumed run compares.
    rule = f"as stored, by the user's word: {kind}"
    return raw._replace(values="stored", values_rule=rule), choices._replace(observation=kind)


def _missing(
    raw: Raw, splits: Mapping[str, Examples], binarization: str
) -> dict[str, float | None]:
    """The share of missing values in each split; rejects columns without a value."""
    gaps = {split: gaps_in(rows) for split, rows in splits.items()}
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


def _draws(raw: Raw, binarization: str) -> bool:
    return raw.values == "grey" and binarization in ("dynamic", "static")


def _is_bytes(train: Examples, binarization: str) -> bool:
    return train.dtype == np.uint8 and binarization == "dynamic"


def _mean(train: Examples, *, scale: int) -> np.ndarray:
    """Mean of the observed values of each column, float64, summed exactly for bytes."""
    with np.errstate(invalid="ignore"):  # a column without a value has no mean
        return sums(train) / ((len(train) - gaps_in(train)) * scale)


def _unit(grey: np.ndarray, dtype: type[np.floating] = np.float64) -> np.ndarray:
    """Ink probabilities: bytes / 255; floats are probabilities already."""
    if grey.dtype == np.uint8:
        return np.divide(grey, 255, dtype=dtype)
    return grey.astype(dtype)


def _runs(rows: np.ndarray, longest: int = 1024) -> Iterator[slice]:
    """Slices of consecutive entries of `rows`, limited in length: one generator jump for each."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for start, stop in zip([0, *breaks.tolist()], [*breaks.tolist(), len(rows)], strict=True):
        for first in range(start, stop, longest):
            yield slice(first, min(first + longest, stop))
