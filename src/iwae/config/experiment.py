"""The training configuration: frozen, typed, validated. It is also the experiment file.

Every field is an option of `iwae train` and a line of RUN/config.toml. The folders of the run and
of the data are not part of it, since they do not change the result.
"""

import difflib
import re
import tomllib
from collections.abc import Container, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
import tyro
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from iwae.config.toml import read_values
from iwae.data import Kind, make_kind
from iwae.data.own import is_own
from iwae.data.tables import SUFFIXES as TABLES
from iwae.errors import UserError, shorten
from iwae.files import atomic_write
from iwae.models.declaration import check_continuous, coupling_layers, parse_posterior, parse_prior
from iwae.models.latent_kinds import LatentKind, latent_kinds
from iwae.objectives.combinations import check
from iwae.objectives.declaration import (
    OPTIONS,
    BetaSchedule,
    Declaration,
    EncoderObjective,
    Phase,
    described,
)

Size = Annotated[int, Field(ge=1)]
Sizes = Annotated[tuple[Size, ...], Field(strict=False)]  # a TOML file has lists


def _lists(arguments: list[str]) -> tuple[tuple[int, ...], ...]:
    """Parse 200,200 none as ((200, 200), ())."""
    try:
        return tuple(
            () if one == "none" else tuple(int(size) for size in one.split(","))
            for one in arguments
        )
    except ValueError:
        words = " ".join(arguments)
        raise ValueError(
            f"{words!r} must be lists of whole numbers, such as 200,200 100,100, or none for no "
            "layers"
        ) from None


ObservationName = Literal[
    "bernoulli",
    "gaussian",
    "gaussian-shared",
    "gaussian-fixed",
    "logistic-mixture",
    "discretised-gaussian",
    "categorical",
    "poisson",
    "negative-binomial",
    "table",
]

Missing = Literal["at-random", "not-at-random", "not-at-random-high", "not-at-random-low"]
"""The mechanisms of `iwae.models.likelihoods.MISSING`."""

ActivationName = Literal[
    "tanh",
    "relu",
    "leaky_relu",
    "elu",
    "celu",
    "selu",
    "gelu",
    "silu",
    "mish",
    "sigmoid",
    "softplus",
]

OptimizerName = Literal["adam", "paper", "authors", "soap"]
ScheduleName = Literal["paper", "authors", "constant", "linear", "cosine", "constant-linear"]

Validation = Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] | Literal["authors"]

DECAYING = {"linear": 0.0, "cosine": 0.0, "constant-linear": 0.5}
"""Schedules that decay to `lr_end` -> the fraction of the epochs before the decay begins."""


class StageConfig(BaseModel):
    """A stage of a run. It inherits the settings that it omits from the run.

    If it names another objective than the run, it does not inherit the options that are specific
    to an objective (`gradient`, `m`, `alpha`, ...): these are its own or the objective's defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    objective: str | None = None
    k: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    gradient: str | None = None
    backward: Annotated[int, Field(ge=1)] | None = None
    m: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    alpha: float | None = None
    beta: float | Literal["learned"] | None = None
    gamma: float | None = None
    temperatures: Annotated[int, Field(ge=1)] | None = None
    leapfrog: Annotated[int, Field(ge=1)] | None = None
    beta_schedule: BetaSchedule | None = None
    phase: Phase | None = None
    encoder_objective: EncoderObjective | None = None
    kl_warmup: Annotated[int, Field(ge=0)] | None = None
    free_bits: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    chunk: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    optimizer: OptimizerName | None = None
    fresh: bool | None = None
    """Reset the optimiser; by default, only where its state does not fit this stage."""
    schedule: ScheduleName | None = None
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    lr_end: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    lr_warmup: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    epochs: Annotated[int, Field(ge=1)]

    def given(self) -> dict[str, Any]:
        """The settings that it does not omit."""
        return self.model_dump(exclude_none=True)


def parse_stages(text: str) -> tuple[StageConfig, ...]:
    """Parse stages from a line such as `iwae k=5 epochs=100, iwae k=50 backward=8 epochs=20`.

    Raises:
        ValueError: names the first word that is not a setting of a stage, or has a wrong value.
    """
    return tuple(_parse_stage(words.split(), i) for i, words in enumerate(text.split(","), 1))


def _parse_stage(words: list[str], number: int) -> StageConfig:
    values: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.replace("-", "_")
        if not equals and not values:
            name, value = "objective", word
        elif not equals:
            raise ValueError(
                f"stage {number}: {word!r} is not a setting: give one such as epochs=10"
            )
        if name not in StageConfig.model_fields:
            raise ValueError(f"stage {number}: {_unknown(name, StageConfig)}")
        if name in values:
            raise ValueError(f"stage {number}: {name} is given twice")
        values[name] = _plain(value)
    if "epochs" not in values:
        raise ValueError(f"stage {number} needs epochs, such as epochs=10")
    try:
        return StageConfig(**values)
    except ValidationError as error:
        raise ValueError(f"stage {number}: {explain(error)}") from error


def _plain(word: str) -> Any:
    """The value of a number, true or false in TOML; any other word unchanged."""
    try:
        return tomllib.loads(f"value = {word}")["value"]
    except tomllib.TOMLDecodeError:
        return word


def stages_text(stages: tuple[StageConfig, ...]) -> str:
    """The inverse of `parse_stages`."""
    return ", ".join(_stage_text(stage) for stage in stages)


def _stage_text(stage: StageConfig) -> str:
    given = {name: str(value) for name, value in stage.given().items()}
    given |= {name: value.lower() for name, value in given.items() if name == "fresh"}
    first = [given.pop("objective")] if "objective" in given else []
    return " ".join([*first, *(f"{name}={value}" for name, value in given.items())])


StagesText = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="STAGES",
    instance_from_str=lambda words: parse_stages(words[0]),
    is_instance=lambda value: value is None or isinstance(value, tuple),
    str_from_instance=lambda stages: [stages_text(stages or ())],
)
"""The command line's parser of stages."""

Lists = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="N,N ...",
    instance_from_str=_lists,
    is_instance=lambda value: value is None or isinstance(value, tuple),
    str_from_instance=lambda lists: [",".join(map(str, sizes)) or "none" for sizes in lists or ()],
)
"""The command line's parser of lists of sizes."""


_COLUMN = re.compile(r'\s*("(?:[^"]|"")*"|[^=]+?)\s*=\s*([a-z-]+(?::[\w.+-]+)?)\s*(?:,|$)')
"""A column, perhaps in quotes, and its kind; a comma separates it from the next."""


def quoted(name: str) -> str:
    """A name as a word that `unquoted` reads, in quotes if it has an equals sign or a quote."""
    return '"' + name.replace('"', '""') + '"' if {"=", '"'} & {*name} else name


def unquoted(word: str) -> str:
    """A word without the quotes around it, which are doubled inside, as in a .csv file."""
    is_quoted = len(word) > 1 and word[0] == word[-1] == '"'
    return word[1:-1].replace('""', '"') if is_quoted else word


def parse_columns(words: Sequence[str]) -> dict[str, str]:
    """The kinds of columns by name, from words such as "age=gaussian, city=categorical".

    A name with an equals sign is in quotes. Empty if no word has such a sign; the kinds are then
    meant for all columns in order.

    Raises:
        ValueError: names the word that is not of this form, or a column that occurs twice.
    """
    found: dict[str, str] = {}
    if not any("=" in word for word in words):
        return found
    for word in words:
        rest = word
        while rest:
            match = _COLUMN.match(rest)
            name = "" if match is None else unquoted(match[1])
            if match is None or name in found:
                reason = "is no NAME=KIND" if match is None else f"names {name!r} twice"
                raise ValueError(
                    f'columns: {rest!r} {reason}: give such as "age=gaussian, city=categorical"'
                )
            found[name] = match[2]
            rest = rest[match.end() :]
    return found


class TrainConfig(BaseModel):
    """The configuration of a training run; `iwae presets` lists the published ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dataset: str = "mnist"
    """Name from `iwae data list`, or path of your own .csv, .tsv, .parquet, .npy or .npz file or
    folder of images."""
    binarization: Literal["dynamic", "static", "threshold", "none"] | None = None
    """Conversion of grey values to the model's input (default: the data set's own)."""
    observation: ObservationName | None = None
    """The decoder's distribution over the data (default: the data set's own)."""
    mixtures: Annotated[int, Field(ge=1)] | None = None
    """logistic-mixture: mixture components per value (default: 5)."""
    categories: Annotated[int, Field(ge=2)] | None = None
    """categorical: number of categories C; the data are 0, 1, ..., C - 1 (no default)."""
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """gaussian-fixed: the standard deviation (no default)."""
    columns: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    """Kinds of columns by name, e.g. "age=gaussian, city=categorical", where they are not to follow
    from the values; or of all in order (observation table), e.g. gaussian categorical:3
    (default: from the values)."""
    drop: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    """Columns of a table to leave out: names, or numbers from 1 of columns without a name."""
    id: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    """Columns of a table that are no values, and are carried through to every output; one that has
    few different values colours latents.png."""
    resize: Annotated[Sizes, Field(min_length=1, max_length=2)] | None = None
    """Height and width to give to the images of a folder, e.g. 28, or 28 40."""
    missing: Missing | None = None
    """Allow missing values: missing at random, or depending on their own values, not-at-random
    (default: refuse them)."""
    hide: Annotated[float, Field(ge=0, lt=1)] | None = None
    """With --missing at-random: probability of hiding each observed value, drawn anew whenever
    training visits its row (default: 0.1 if the training rows have no gaps, else 0)."""
    standardize: bool | None = None
    """Standardise real values inside the model; likelihoods and samples keep the units of the file
    (default: for your own files)."""
    shape: Sizes | None = None
    """Shape of one example in your own file of flat rows, e.g. 28 28 (default: that of a row)."""
    validation: Validation | None = None
    """Number (or share, e.g. 0.1) of training examples to hold out for validation, or `authors` for
    the published code's choice (default: the data set's own)."""
    folds: Annotated[int, Field(ge=2)] | Literal["auto"] | None = None
    """Choose the number of epochs, up to --epochs, by cross-validation, which holds each of so many
    parts of the training rows out once; then train on all rows for as long (default: none)."""
    stream: bool | None = None
    """Read your own .npy or .parquet file from disk block by block (default: from 2 GiB of
    values on)."""
    data_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Random seed of the choice of held-out examples."""
    binarization_seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of a binarisation drawn once; another seed also gives another test set."""

    layers: Annotated[int, Field(ge=1)] | None = None
    """Number of stochastic layers of the published sizes; for other sizes, give these instead
    (default: 1)."""
    latent_sizes: Annotated[Sizes, Field(min_length=1)] | None = None
    """Units of each stochastic layer, nearest the data first, e.g. 100 50 (default: those of
    --layers)."""
    hidden_sizes: Annotated[tuple[Sizes, ...] | None, Lists, Field(strict=False)] = None
    """Deterministic layers before each stochastic one, e.g. 200,200 100,100, or none (default:
    those of --layers)."""
    latents: Annotated[tuple[str, ...] | None, Field(strict=False, min_length=1)] = None
    """Kind of each stochastic layer, or one for all: normal (the default), bernoulli or
    categorical:C, e.g. bernoulli."""
    activation: ActivationName = "tanh"
    """Nonlinearity of the deterministic layers."""
    network: Literal["mlp", "conv"] = "mlp"
    """Layers between data and first stochastic layer: dense (mlp), or convolutions too (conv)."""
    channels: Annotated[Sizes, Field(min_length=1)] | None = None
    """conv: channels of each convolution, nearest the image first (default: 32 64)."""
    conditional: bool = False
    """Model p(x|y), for examples x with labels y."""
    label_prior: bool = False
    """With --conditional: learn a Gaussian p(z|y) for each label, instead of one p(z)."""
    label: Annotated[str, Field(min_length=1)] | None = None
    """With --conditional: name or number of the column of a table that holds the label
    (default: the data set's own labels)."""
    blocks: Annotated[int, Field(ge=0, le=100)] = 0
    """Residual blocks after each convolution (conv) or first dense layer (mlp)."""
    prior: str = "normal"
    """Prior of the top layer: normal; or learned: mixture:K (Gaussians), vamp:K (pseudo-inputs),
    flow:N (coupling layers)."""
    posterior: str = "normal"
    """Encoder's distribution of every stochastic layer: normal, or flow:N (coupling layers);
    flow-first:N has them in the first layer only."""
    output_bias: bool = True
    """Initialise the decoder's output at the training data's mean."""

    objective: str = "iwae"
    """Objective to maximise; `iwae objectives` lists them."""
    k: Annotated[int, Field(ge=1, lt=2**31)] = 1
    """Importance samples per example, or per group for an objective with groups."""
    gradient: str | None = None
    """Gradient estimator: reparam, stl, dreg, ... (default: the objective's own)."""
    m: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """miwae, piwae: number of groups of k samples (no default)."""
    alpha: float | None = None
    """vr-iwae: 0 is iwae, 1 is elbo. The gradient dreg-alpha: 0 is dreg, 1 is wake-phi
    (no default)."""
    beta: float | Literal["learned"] | None = None
    """ciwae: weight of the ELBO, or `learned` (no default)."""
    gamma: float | None = None
    """The gradient ovis: 0 is unbiased (vimco-star), 1 adds wake-phi (no default)."""
    temperatures: Annotated[int, Field(ge=1)] | None = None
    """tvo, dais, aiwae: number of temperatures from 0 to 1 (default: 6, 5, 5)."""
    leapfrog: Annotated[int, Field(ge=1)] | None = None
    """dais, aiwae: leapfrog steps per temperature (default: 1, 5)."""
    beta_schedule: BetaSchedule | None = None
    """tvo: placement of the temperatures (default: log)."""
    phase: Phase | None = None
    """rws: train the encoder on data (wake), on samples from the model (sleep) or both (default:
    wake)."""
    encoder_objective: EncoderObjective | None = None
    """aiwae: objective of the encoder; elbo-analytic needs a KL divergence in closed form
    (default: elbo-analytic with one stochastic layer, else elbo)."""
    kl_warmup: Annotated[int, Field(ge=0)] = 0
    """Epochs over which the weight of the KL divergence from the prior rises from 0 to 1."""
    free_bits: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Minimum KL divergence of a latent unit, in nats: a smaller one counts as this value."""
    chunk: Annotated[int, Field(ge=1)] | None = None
    """Particles at a time: less memory, same result (default: all up to k = 500, else 100)."""
    backward: Annotated[int, Field(ge=1)] | None = None
    """Particles that the gradient goes through, drawn from all k without bias (default: all)."""

    epochs: Annotated[int, Field(ge=1)] = 3280
    """Passes over the training data; the stages of a run are scaled to this total."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 20
    """Examples per step; auto is a fiftieth of the training examples, from 16 to 100."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    """Initial learning rate of the schedule; short runs skip its short early stages."""
    optimizer: OptimizerName = "adam"
    """Adam as in the paper (adam or paper) or as in its authors' published code (authors), or SOAP,
    which makes more progress per step, at a higher cost."""
    schedule: ScheduleName = "paper"
    """Learning rate: 8 stages of 3^i epochs with the paper's rates, or the authors' rounded ones;
    constant; or decaying to --lr-end: linearly, as a cosine, or linearly in the second half."""
    lr_end: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Final learning rate of a linear, cosine or constant-linear schedule."""
    lr_warmup: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Epochs over which the learning rate rises from 0 at the start, e.g. 0.5."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights, which becomes the model, e.g. 0.999
    (default: no average)."""
    shuffle: bool = True
    """Shuffle the examples every epoch."""
    stages: Annotated[tuple[StageConfig, ...] | None, StagesText, Field(strict=False)] = None
    """Stages of the run and their settings, e.g. "iwae k=5 epochs=40, iwae k=50 epochs=10"
    (default: one stage)."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Random seed of the first replicate; the others count up from it."""
    replicates: Annotated[int, Field(ge=1)] = 1
    """Number of independently seeded models to train at once."""

    log_every: Annotated[int, Field(ge=1)] | None = None
    """Epochs between measurements of KL, reconstruction, active units (default: epochs / 200)."""
    validate_every: Annotated[int, Field(ge=1)] = 1
    """Epochs between validations, if examples are held out."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many validations without improvement (default: never)."""
    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Minimum improvement of the validation bound that counts, in nats."""

    init_from: Annotated[Path, Field(strict=False)] | None = None
    """Finished run whose weights to start from (with --keep-optimizer, its optimiser too)."""
    keep_optimizer: bool = False
    """With --init-from: continue with that run's optimiser state."""

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, values: Any) -> Any:
        """Parse stages from a line, sum their epochs if epochs is omitted, resolve aliases."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if isinstance(values.get("stages"), str):
            values["stages"] = parse_stages(values["stages"])
        if not isinstance(values.get("stages") or (), list | tuple):
            raise ValueError('stages must be a list of tables, or a line: "k=5 epochs=9, epochs=1"')
        if values.get("optimizer") == "paper":
            values["optimizer"] = "adam"
        stages = values.get("stages")
        if stages and isinstance(stages, list | tuple) and "epochs" not in values:
            # Without any epochs, the error is that of a stage.
            values["epochs"] = max(1, sum(_epochs_of(stage) for stage in stages))
        dataset, objective = values.get("dataset"), values.get("objective")
        validation, folds = values.get("validation"), values.get("folds")
        return {**usual(dataset, objective, values.keys(), validation, folds), **values}

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        self._check_sizes()
        self._check_densities()
        if self.label_prior and not self.conditional:
            raise ValueError("label_prior needs conditional")
        if self.label and not self.conditional:
            raise ValueError(
                "label needs conditional; a column that is to colour latents.png only is carried "
                "through with id"
            )
        if self.hide and self.missing != "at-random":
            raise ValueError(
                "hide needs missing 'at-random', which is how the values that it hides are missing"
            )
        if self.channels is not None and self.network != "conv":
            raise ValueError("channels needs network 'conv'")
        if self.folds is not None:
            self._check_folds()
        for name in ("patience", "threshold"):
            if getattr(self, name) and self.validation == 0 and self.folds is None:
                raise ValueError(f"{name} needs held-out examples: set validation")
        if self.keep_optimizer and self.init_from is None:
            raise ValueError("keep_optimizer needs init_from")
        self.kind()
        if self.stages is not None:
            self._check_stages()
            return self
        for name in ("kl_warmup", "lr_warmup"):
            if getattr(self, name) > self.epochs:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but epochs is {self.epochs}: reduce it"
                )
        if self.lr_end and self.schedule not in DECAYING:
            raise ValueError(f"lr_end needs schedule {', '.join(DECAYING)}; it is {self.schedule}")
        self.declaration()
        return self

    def _check_folds(self) -> None:
        """Raise ValueError for settings that cross-validation of the epochs excludes."""
        if self.stages is not None:
            raise ValueError("folds chooses the epochs of a run without stages: leave one out")
        if self.init_from is not None:
            raise ValueError(
                "folds needs models that have not seen the rows held out: leave out folds or "
                "init_from"
            )
        if self.folds == "auto":
            return
        if self.validation:
            raise ValueError("folds holds every training row out once: leave out validation")
        if self.schedule != "constant":
            raise ValueError(
                "folds needs schedule 'constant': another depends on the number of epochs, which "
                "is still to be chosen"
            )

    def _check_sizes(self) -> None:
        """Raise ValueError for sizes of layers that contradict each other."""
        if self.latent_sizes is not None:
            if self.layers not in (None, len(self.latent_sizes)):
                raise ValueError(
                    f"layers is {self.layers} but latent_sizes names {len(self.latent_sizes)} "
                    "layers; give one of the two"
                )
            if self.hidden_sizes is None or len(self.hidden_sizes) != len(self.latent_sizes):
                raise ValueError(
                    f"latent_sizes names {len(self.latent_sizes)} layers, so hidden_sizes must "
                    "have as many lists, such as 200,200, or none for a linear layer"
                )
        elif self.hidden_sizes is not None:
            raise ValueError("hidden_sizes needs latent_sizes")

    def _check_densities(self) -> None:
        """Raise ValueError for a prior or posterior that does not exist, or does not fit."""
        prior, posterior = parse_prior(self.prior), parse_posterior(self.posterior)
        kinds = self.kinds()
        check_continuous("prior", prior, kinds[-1])
        sizes = self.sizes()[0]
        flows = coupling_layers(posterior, kinds)
        if self.label_prior and prior.name != "normal":
            raise ValueError(
                f"label_prior learns a Gaussian p(z|y) for each label, and prior {self.prior!r} is "
                "another prior: leave one of the two out"
            )
        closed = [name for name in ("objective", "encoder_objective") if self._is_analytic(name)]
        if closed and (prior.name, posterior.name) != ("normal", "normal"):
            raise ValueError(
                f"{closed[0]} elbo-analytic has a closed form for prior and posterior 'normal' "
                "only: use elbo"
            )
        flows = (*flows[:-1], flows[-1] or int(prior.name == "flow"))
        if any(flow and size < 2 for flow, size in zip(flows, sizes, strict=True)):
            raise ValueError(
                "a flow couples units with each other, so it needs layers of at least 2: use more "
                "latents, or no flow"
            )

    def _is_analytic(self, name: str) -> bool:
        """Whether an option of the run or of one of its stages needs a KL in closed form."""
        return "elbo-analytic" in {getattr(one, name) for one in (self, *(self.stages or ()))}

    def _check_stages(self) -> None:
        """Raise ValueError for an invalid stage, with its number."""
        if not self.stages:
            raise ValueError("stages is empty: leave it out, or name at least one")
        for name in ("kl_warmup", "lr_warmup", "lr_end"):
            if getattr(self, name):
                raise ValueError(f"{name} of a run with stages belongs to a stage: give it there")
        if self.stages[0].fresh is not None:
            raise ValueError("fresh is for later stages: the first has no optimiser to reset")
        described(self.objective)
        for i, epochs in enumerate(self.stage_epochs()):
            try:
                self.stage(i, epochs or self.stages[i].epochs)
            except (UserError, ValidationError) as error:
                reason = explain(error) if isinstance(error, ValidationError) else error
                raise ValueError(f"stage {i + 1}: {reason}") from error

    def stage(self, i: int, epochs: int) -> "TrainConfig":
        """The configuration of stage `i`, as if it were a run of its own with `epochs` epochs."""
        if self.stages is None:
            return self
        given = self.stages[i].given()
        values = {name: getattr(self, name) for name in TrainConfig.model_fields}
        if given.get("objective", self.objective) != self.objective:
            values |= dict.fromkeys(("gradient", *OPTIONS))
        given = {name: value for name, value in given.items() if name != "fresh"}
        return TrainConfig(**{**values, **given, "stages": None, "epochs": epochs})

    def stage_epochs(self) -> tuple[int, ...]:
        """Epochs of each stage, scaled to a total of `epochs`; the last has at least one."""
        if self.stages is None:
            return (self.epochs,)
        ends = list(accumulate(stage.epochs for stage in self.stages))
        ends = [round(end * self.epochs / ends[-1]) for end in ends]
        ends = [*(min(end, self.epochs - 1) for end in ends[:-1]), self.epochs]
        return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))

    def final(self) -> "TrainConfig":
        """The configuration of the last stage, whose objective the run is trained for."""
        lengths = self.stage_epochs()
        return self.stage(len(lengths) - 1, lengths[-1])

    def kind(self) -> Kind | None:
        """The kind of data with its parameters; None if it is not given."""
        given = {
            name: value for name in Kind._fields[1:] if (value := getattr(self, name)) is not None
        }
        if self.kinds_by_name():
            del given["columns"]
        if self.observation == "table" and self.kinds_by_name():
            return None
        if self.observation is not None:
            return make_kind(self.observation, **given)
        if given:
            raise ValueError(f"{next(iter(given))} needs observation")
        return None

    def kinds_by_name(self) -> dict[str, str]:
        """The kinds of columns that are given by name."""
        return parse_columns(self.columns or ())

    def declaration(self, steps_per_epoch: int = 1) -> Declaration:
        """The objective with its defaults, checked, for epochs of `steps_per_epoch` steps."""
        same = {name: getattr(self, name) for name in Declaration._fields if hasattr(self, name)}
        declared = Declaration(**same, kl_warmup_steps=self.kl_warmup * steps_per_epoch)
        discrete = any(kind.is_discrete for kind in self.kinds())
        return check(declared, len(self.sizes()[0]), discrete=discrete)

    def seeds(self) -> range:
        """The seed of each replicate."""
        return range(self.seed, self.seed + self.replicates)

    def sizes(self) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
        """Latent and hidden sizes: those given, or the paper's for this many layers."""
        if self.latent_sizes is not None:
            assert self.hidden_sizes is not None  # noqa: S101 - by the validator
            return self.latent_sizes, self.hidden_sizes
        layers = self.layers or 1
        return (100,) * (layers - 1) + (50,), ((200, 200),) + ((100, 100),) * (layers - 1)

    def kinds(self) -> tuple[LatentKind, ...]:
        """The kind of each stochastic layer; UserError for those that there are not."""
        return latent_kinds(self.latents or "normal", len(self.sizes()[0]))


SEVERAL = 16
"""Importance samples of an IWAE if none are given: with one it would be a VAE."""

UNTIL_CONVERGED: dict[str, Any] = {
    "epochs": 400,
    "validation": 0.1,
    "patience": 100,
    "batch_size": "auto",
    "schedule": "cosine",
    "ema": 0.99,  # few held-out rows choose lucky epochs of weights that are not averaged
    "folds": "auto",
}
"""Training on a user's own data, of any size, if no epochs are given: it stops early."""

BY_FOLDS: dict[str, Any] = {"validation": 0, "schedule": "constant"}
"""Settings of a run whose epochs are chosen by cross-validation."""

NOT_BY_FOLDS = ("validation", "validate_every", "patience", "schedule", "init_from")
"""Settings with which cross-validation is not the default."""

SMALL: dict[str, Any] = {"latent_sizes": (10,), "hidden_sizes": ((100, 100),)}
"""The network for a user's own table, if none is given."""


OWN_DEFAULTS = {
    **{
        name: f"{value} for your own files without --epochs"
        for name, value in UNTIL_CONVERGED.items()
    },
    "epochs": f"{UNTIL_CONVERGED['epochs']} for your own files, with early stopping",
    "folds": "5 for your own files of at most 200 training rows without --epochs or --validation",
    "latent_sizes": "10 for your own tables",
    "hidden_sizes": "100,100 for your own tables",
    "k": f"{SEVERAL} for your own files, and with --objective iwae",
}
"""The defaults of `usual` in words."""


def usual(
    dataset: Any,
    objective: Any,
    given: Container[str],
    validation: Any = None,
    folds: Any = None,
) -> dict[str, Any]:
    """The settings that take their default from the data and the objective.

    Args:
        given: the settings that a user has chosen, which are not among the result.
        validation: the chosen share or number; patience needs some.
        folds: the chosen number, if any.
    """
    found: dict[str, Any] = {}
    own = isinstance(dataset, str) and is_own(dataset)
    if own and "epochs" not in given and "stages" not in given:
        found |= UNTIL_CONVERGED
        if any(name in given for name in NOT_BY_FOLDS):
            del found["folds"]
    if str(folds) not in ("None", "auto"):
        found |= BY_FOLDS
    elif str(validation) in ("0", "0.0"):
        found.pop("patience", None)
    is_table = own and Path(dataset).suffix.lower() in TABLES
    if is_table and not any(name in given for name in ("layers", "network", *SMALL)):
        found |= SMALL
    if objective == "iwae" or (own and objective is None):
        found["k"] = SEVERAL
    return {name: value for name, value in found.items() if name not in given}


def make_config(values: dict[str, Any], source: str) -> TrainConfig:
    """Make a configuration from plain values.

    Args:
        source: name of their origin in error messages.

    Raises:
        UserError: names the first wrong key or value, and the nearest right key.
    """
    for key in values:
        if key not in TrainConfig.model_fields:
            raise UserError(f"{source}: {_unknown(key, TrainConfig)}")
    try:
        return TrainConfig(**values)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error)}") from error


def explain(error: ValidationError) -> str:
    """The first of pydantic's errors, in one line."""
    first = error.errors()[0]
    reason, place = first["msg"].removeprefix("Value error, "), first["loc"]
    if not place:
        return shorten(reason)
    if place[0] == "stages" and len(place) > 2:
        number, name = int(place[1]) + 1, str(place[2])
        if first["type"] == "extra_forbidden":
            return f"stage {number}: {_unknown(name, StageConfig)}"
        return f"stage {number}: {name}: {shorten(reason)}"
    return f"{first['loc'][0]}: {shorten(reason)} (given: {shorten(repr(first['input']))})"


def _unknown(key: str, kind: type[BaseModel]) -> str:
    """A message about an unknown key, with the nearest known one."""
    near = difflib.get_close_matches(key[:100].lower(), kind.model_fields, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(kind.model_fields)}"
    return f"unknown key {shorten(repr(key))}; {hint}"


def _epochs_of(stage: Any) -> int:
    """The epochs of a stage that may not have been validated yet; 0 if it has none."""
    found = stage.get("epochs") if isinstance(stage, dict) else getattr(stage, "epochs", None)
    return found if isinstance(found, int) else 0


def read_config(path: Path) -> TrainConfig:
    """Read an experiment file (TOML).

    Raises:
        UserError: if it cannot be read or is not a valid configuration.
    """
    return make_config(read_values(path), str(path))


def read_stored(path: Path) -> TrainConfig:
    """Read the configuration that a run stored; UserError as from `read_config`."""
    values = read_values(path)
    if "dataset" not in values:
        raise UserError(f"{path} is damaged: a run stores the name of its data set there")
    return make_config(stored(values), str(path))


def stored(values: dict[str, Any]) -> dict[str, Any]:
    """The values that a run stored, with what was done before there were the options for it."""
    before: dict[str, Any] = {"standardize": False} if is_own(values.get("dataset", "")) else {}
    before |= {"hide": 0.0} if values.get("missing") else {}
    return {**before, **values}


def config_values(config: TrainConfig) -> dict[str, Any]:
    """The configuration as TOML values, without those that are None."""
    return config.model_dump(mode="json", exclude_none=True)


def without_folders(config: TrainConfig) -> TrainConfig:
    """The configuration to share: it names files and runs without their folders."""
    own = Path(config.dataset)
    return config.model_copy(
        update={
            "dataset": own.name if own.is_absolute() else config.dataset,
            "init_from": config.init_from and Path(config.init_from.name),
        }
    )


def write_config(config: TrainConfig, path: Path) -> None:
    """Write an experiment file that trains the same model again."""
    with atomic_write(path) as temporary:
        temporary.write_text(tomli_w.dumps(config_values(config)))
