"""The record of a measurement, typed, frozen and versioned. No other module declares its fields.

A field of these classes is a key of the JSON file `RUN/evaluations/NAME.json`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from iwae.errors import UserError

VERSION = 2
"""Version of the layout below. Records without a version are of version 1."""

REMEDY = "restore it, or remove it and its values and measure again"

Document = dict[str, Any]
"""A record as its JSON file has it."""

Number = float | None
"""A number; None if it is not finite."""


class Method(StrEnum):
    """The method of a measurement, as records name it."""

    IMPORTANCE = "importance sampling"
    ANNEALED = "annealed importance sampling"
    BIDIRECTIONAL = "bidirectional Monte Carlo"
    SANDWICH = "sandwich"
    CURVE = "rate-distortion"
    INFORMATION = "information"
    CLASSIFICATION = "classification"
    GRADIENTS = "gradients"
    CALIBRATION = "calibration"


class Mean(NamedTuple):
    """A mean and its standard error; None where they are not finite."""

    mean: Number
    stderr: Number


def record_field_names(mean: str) -> tuple[str, str]:
    """The fields that hold a mean and its standard error."""
    return mean, "stderr" if mean == "log_likelihood" else f"{mean}_stderr"


class Fields(BaseModel):
    """Fields of a record. Undeclared ones are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def mean(self, name: str = "log_likelihood") -> Mean:
        """A mean of this name and its standard error."""
        return Mean(*(getattr(self, field) for field in record_field_names(name)))

    def document(self) -> Document:
        """The given fields, as JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)


class Binarizations(Fields):
    """A log-likelihood as a mean over draws of a test set's pixels, nats per example.

    `stderr` is from the choice of examples, `draws_error` from the draws behind this mean, and
    `one_draw_error` is the error of a single draw. If the draws are those of another bound, `by`
    names it: its difference to draw 0 is added to draw 0 of this one.
    """

    draws: int
    log_likelihood: Number
    stderr: Number
    draws_error: Number
    one_draw_error: Number
    monte_carlo_error: Number = None
    by: str | None = None


class Whole(Fields):
    """A log-likelihood of a subset, extrapolated to all examples of its split, nats per example.

    The mean of another bound, `by`, over all n examples plus the mean difference to it on the
    subset. `stderr` is from the choice of the n examples, `subset_error` from that of the subset.
    """

    n: int
    by: str
    log_likelihood: Number
    stderr: Number
    subset_error: Number


class Weights(Fields):
    """A log-likelihood, nats per example, and diagnostics of the weights behind it."""

    log_likelihood: Number = None
    stderr: Number = None
    between_replicates_sd: Number = None
    bits_per_dimension: Number = None
    bits_per_dimension_stderr: Number = None
    monte_carlo_error: Number = None
    monte_carlo_batches: int | None = None
    monte_carlo_infinite: int | None = None
    ess_mean: Number = None
    ess_min: Number = None
    pareto_k_unreliable: Number = None
    pareto_k_threshold: Number = None
    ratio_pareto_k: Number = None
    ratio_pareto_k_threshold: Number = None
    acceptance_mean: Number = None
    acceptance_min: Number = None
    step_size_min: Number = None
    step_size_max: Number = None
    binarizations: Binarizations | None = None
    whole: Whole | None = None


class Row(Weights):
    """The bound at one budget."""

    log_likelihood: Number
    stderr: Number


class SampledRow(Row):
    """The bound by k samples."""

    k: int


class AnnealedRow(Row):
    """The bound by a number of temperatures."""

    temperatures: int


class Verdict(Fields):
    """Whether T and T / 10 temperatures agree, or bounds from both sides are close."""

    word: str
    reason: str = ""
    difference: Number = None
    difference_stderr: Number = None
    bdmc_gap: Number = None
    sandwich_gap: Number = None
    tolerance: Number = None

    @property
    def converged(self) -> bool:
        """Whether the likelihood is determined to within the tolerance."""
        return self.word == "converged"


class Sides(Weights):
    """Bounds from both sides, nats."""

    gap: Number
    gap_stderr: Number
    lower: Number = None
    lower_stderr: Number = None
    upper: Number = None
    upper_stderr: Number = None
    mixed_upper: Number = None
    mixed_upper_stderr: Number = None
    mixed_gap: Number = None
    mixed_gap_stderr: Number = None
    lower_whole: Whole | None = None
    upper_whole: Whole | None = None


class Samples(Sides):
    """Bounds from both sides by k importance samples."""

    k: int


class Simulated(Sides):
    """Bounds from both sides on n examples drawn from the model."""

    n: int
    importance: Samples | None = None


class Gap(Fields):
    """The gap between ELBO and log p(x), and the parts that a bound recovers and leaves, nats."""

    log_p: str
    bound: str
    n: int
    total: Number
    total_stderr: Number
    recovered: Number
    recovered_stderr: Number
    remaining: Number
    remaining_stderr: Number


class Bias(Fields):
    """The difference of an estimator's mean from the reference's."""

    relative: Number
    z: Number


class Group(Fields):
    """Signal and noise of the gradients of a group of parameters.

    `snr_without` are the ratios without each block of draws; older records lack them.
    """

    snr: Number
    snr_stderr: Number
    snr_without: tuple[Number, ...] = ()
    mean_norm: Number
    variance: Number
    bias: Bias | None = None


class Gradient(Fields):
    """One gradient estimator at one k. `backward`: particles that carry it, if not all do."""

    k: int
    gradient: str
    backward: int | None
    seconds_per_draw: float
    memory_bytes: int | None
    groups: Mapping[str, Group]


class Slope(Fields):
    """The power of k with which a ratio of signal to noise grows."""

    group: str
    gradient: str
    backward: int | None
    slope: float
    stderr: float


class Coverage(Fields):
    """The share of true latents that a central interval of this level contains."""

    level: float
    coverage: Number
    coverage_stderr: Number


class Ranks(Fields):
    """The ranks of one unit; mean 0.5 and spread 1 under exact calibration."""

    unit: int
    p_value: float
    mean_rank: float
    spread: float


class Calibration(Fields):
    """Ranks of true latents of one layer, in draws of q ("q") or weighted ones ("snis")."""

    layer: int
    of: str
    units: int
    outside: int
    coverage: tuple[Coverage, ...]
    worst: tuple[Ranks, ...]


class Part(Weights):
    """The part of a record about one model, or the means over several."""

    replicate: int | None = None
    epoch: int | None = None
    model_sha256: str | None = None
    seconds: Number = None
    k: int | None = None
    temperatures: int | None = None
    by_k: tuple[SampledRow, ...] = ()
    by_temperatures: tuple[AnnealedRow, ...] = ()
    active_units: tuple[int | float, ...] = ()
    active_units_authors: tuple[int | float, ...] = ()
    threshold: Number = None
    verdict: Verdict | None = None
    lower: Number = None
    lower_stderr: Number = None
    upper: Number = None
    upper_stderr: Number = None
    lower_whole: Whole | None = None
    upper_whole: Whole | None = None
    gap: Gap | Number = None
    gap_stderr: Number = None
    mixed_upper: Number = None
    mixed_upper_stderr: Number = None
    mixed_gap: Number = None
    mixed_gap_stderr: Number = None
    importance: Samples | None = None
    simulated: Simulated | None = None
    rate: Number = None
    rate_stderr: Number = None
    distortion: Number = None
    distortion_stderr: Number = None
    mutual_information_lower: Number = None
    mutual_information_lower_stderr: Number = None
    mutual_information_upper: Number = None
    mutual_information_upper_stderr: Number = None
    mutual_information_limit: Number = None
    marginal_kl: Number = None
    marginal_kl_stderr: Number = None
    accuracy: Number = None
    accuracy_stderr: Number = None
    label_log_probability: Number = None
    label_log_probability_stderr: Number = None
    marginal_log_likelihood: Number = None
    marginal_log_likelihood_stderr: Number = None
    auroc: Number = None
    auroc_stderr: Number = None
    others_marginal_log_likelihood: Number = None
    others_marginal_log_likelihood_stderr: Number = None
    confusion: tuple[tuple[int, ...], ...] = ()
    calibration: tuple[Calibration, ...] = ()


class Subset(Fields):
    """A seeded random subset of a split, perhaps `stratified_by` a bound of all examples."""

    examples: int
    seed: int = 0
    stratified_by: str | None = None


class Settings(Fields):
    """Settings of annealing; `schedule` is a name or the temperatures themselves."""

    temperatures: int | None = None
    chains: int
    leapfrog: int | None = None
    schedule: str | tuple[float, ...] | None = None
    start: str | None = None


class Ordering(Fields):
    """The bounds that were compared, and those out of order, in words."""

    checked: tuple[str, ...] = ()
    violations: tuple[str, ...] = ()


class Record(Part):
    """A measurement: the run, its weights, the method and its settings, numbers and provenance.

    The record of a single model is its own `Part`; `replicates` has those of several models.
    """

    version: int
    method: Method
    dataset: str
    split: str
    n: int
    weights: str
    pruned: bool
    seed: int = 0
    subset: Subset | None = None
    test_sha256: str | None = None
    examples_sha256: str | None = None
    true_log_likelihood: Number = None
    proposal: str | None = None
    annealing: Settings | None = None
    pilot: Mapping[str, Any] = {}
    ordering: Ordering = Ordering()
    replicates: tuple[Part, ...] = ()
    others: str | None = None
    others_n: int | None = None
    others_subset: bool | None = None
    others_data: Mapping[str, Any] = {}
    others_examples_sha256: str | None = None
    caution: str | None = None
    objective: str | None = None
    reference: str | None = None
    draws: int | None = None
    biased_above: Number = None
    band_level: Number = None
    rows: tuple[Gradient, ...] = ()
    slopes: tuple[Slope, ...] = ()
    slope_from: int = 1
    data: Mapping[str, Any] = {}
    config: Mapping[str, Any] = {}
    unit: str = "nats"
    dtype: str | None = None
    device: str | None = None
    devices: int | None = None
    versions: Mapping[str, Any] = {}

    @property
    def models(self) -> Sequence[Part]:
        """The part about each model."""
        return self.replicates or (self,)

    @property
    def is_drawn(self) -> bool:
        """Whether its examples are one draw of the pixels of grey images."""
        return self.split == "test" and self.data.get("binarization") == "dynamic"

    @property
    def digests(self) -> list[str | None]:
        """Digests of the models' weights."""
        return [one.model_sha256 for one in self.models]

    def only(self, replicate: int) -> "Record":
        """The record of one of its models."""
        part = self.models[replicate]
        own = {name: getattr(part, name) for name in part.model_fields_set}
        return self.model_copy(update={**own, "replicates": ()})

    @model_validator(mode="after")
    def _complete(self) -> "Record":
        """Refuse a record that lacks a field of its method."""
        means = [name for name in QUANTITIES.get(self.method, ()) if name not in MIXED]
        fields = [field for name in means for field in record_field_names(name)]
        for one in self.models:
            for name in (*fields, *_MORE[self.method]):
                if name not in self.model_fields_set | one.model_fields_set:
                    raise ValueError(f"no {name}")
        return self


MIXED = ("mixed_upper", "mixed_gap")
"""Means that older records of simulated examples lack."""

QUANTITIES: Mapping[Method, tuple[str, ...]] = {
    Method.BIDIRECTIONAL: ("lower", "upper", "gap", *MIXED),
    Method.SANDWICH: ("lower", "upper", "gap"),
    Method.CURVE: ("log_likelihood",),
    Method.INFORMATION: (
        "log_likelihood",
        "rate",
        "distortion",
        "mutual_information_lower",
        "mutual_information_upper",
        "marginal_kl",
    ),
    Method.CLASSIFICATION: (
        "log_likelihood",
        "accuracy",
        "label_log_probability",
        "marginal_log_likelihood",
    ),
}
"""Method -> means for each model, besides bounds at several budgets."""

_MORE: Mapping[Method, tuple[str, ...]] = {
    Method.IMPORTANCE: ("subset", "test_sha256", "by_k", "active_units"),
    Method.ANNEALED: (
        "subset",
        "test_sha256",
        "by_temperatures",
        "annealing",
        "verdict",
        "active_units",
    ),
    Method.BIDIRECTIONAL: ("annealing", "importance", "acceptance_mean"),
    Method.SANDWICH: ("subset", "annealing", "importance", "acceptance_mean", "verdict"),
    Method.CURVE: ("annealing", "acceptance_mean"),
    Method.INFORMATION: ("gap",),
    Method.CLASSIFICATION: ("k", "confusion"),
    Method.CALIBRATION: ("k", "calibration", "band_level"),
    Method.GRADIENTS: ("objective", "reference", "draws", "biased_above", "rows", "slopes"),
}
"""Method -> other fields without which its record is damaged."""


def _from_1(document: Document) -> Document:
    """Version 1 lacks `version`, and `backward` where all particles carry a gradient."""
    full = {**document, "version": 2}
    for name in {"rows", "slopes"} & document.keys():
        full[name] = [{"backward": None, **row} for row in document[name]]
    return full


MIGRATIONS: Mapping[int, Callable[[Document], Document]] = {1: _from_1}
"""Version of a layout -> the function that converts it to the next version."""


def parse(document: Any) -> Record:
    """The record in a JSON document of this or an older version.

    Raises:
        UserError: names the first field that is missing or of another type.
    """
    if isinstance(document, Record):
        return document
    if not isinstance(document, Mapping):
        raise UserError("it holds no fields")
    found = dict(document)
    try:
        while (version := found.get("version", 1)) in MIGRATIONS:
            found = MIGRATIONS[version](found)
        if version != VERSION:
            raise UserError(f"its version is {version}, and this iwae knows {VERSION}: update iwae")
        return Record.model_validate(found)
    except ValidationError as error:
        raise UserError(_first_mistake(error)) from None
    except TypeError as error:
        raise UserError(str(error)) from None


def _first_mistake(error: ValidationError) -> str:
    """The field with the first mistake, and the mistake."""
    found = error.errors()[0]
    name = ".".join(map(str, found["loc"]))
    if found["type"] == "missing":
        return f"no {name}"
    message = found["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message


def tighter_gap_field(each: Iterable[Part | Sides]) -> str:
    """The name of the gap to quote: that to the mixed upper bound, if all have it."""
    return "gap" if any(one.mixed_gap is None for one in each) else "mixed_gap"
