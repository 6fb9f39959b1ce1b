"""The training configuration: frozen, typed, validated. It is also the experiment file.

Every field is an option of `iwae train` and a line of RUN/config.toml. The folders of the run and
of the data are not part of it, since they do not change the result.
"""

from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from iwae.config import types
from iwae.config.checks import check_config
from iwae.config.column_option import parse_column_option
from iwae.config.defaults import defaults_for
from iwae.config.setting_errors import first_setting_error, unknown_setting_error
from iwae.config.stages import StageConfig, StagesText, stages_from_text
from iwae.data import Kind, make_kind
from iwae.data.own import is_own
from iwae.errors import UserError
from iwae.models.latent_kinds import LatentKind, latent_kinds
from iwae.objectives import declaration as objectives
from iwae.objectives.compatibility import check_compatibility


class TrainConfig(BaseModel):
    """The configuration of a training run; `iwae presets` lists the published ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dataset: str = "mnist"
    """Name from `iwae data list`, or path of your own .csv, .tsv, .parquet, .npy or .npz file or
    folder of images."""
    binarization: Literal["dynamic", "static", "threshold", "none"] | None = None
    """Conversion of grey values to the model's input (default: the data set's own)."""
    observation: types.ObservationName | None = None
    """The decoder's distribution over the data (default: the data set's own)."""
    mixtures: Annotated[int, Field(ge=1)] | None = None
    """logistic-mixture: mixture components per value (default: 5)."""
    categories: Annotated[int, Field(ge=2)] | None = None
    """categorical: number of categories C; the data are 0, 1, ..., C - 1 (no default)."""
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """gaussian-fixed: the standard deviation (no default)."""
    columns: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    """Kinds of columns by name, e.g. "age=gaussian, city=categorical", instead of those chosen from
    the values; or of all columns in order (observation table), e.g. gaussian categorical:3
    (default: from the values)."""
    drop: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    """Columns of a table to leave out: names, or numbers from 1 of columns without a name."""
    id: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    """Columns of a table that are not modelled but copied to every output; one with few different
    values colours latents.png."""
    resize: Annotated[types.Sizes, Field(min_length=1, max_length=2)] | None = None
    """Height and width to give to the images of a folder, e.g. 28, or 28 40."""
    missing: types.Missing | None = None
    """Allow missing values: missing at random, or depending on their own values, not-at-random
    (default: refuse them)."""
    hide: Annotated[float, Field(ge=0, lt=1)] | None = None
    """With --missing at-random: probability of hiding each observed value, drawn anew at every
    visit of its row (default: 0.1 if the training rows have no gaps, else 0)."""
    standardize: bool | None = None
    """Standardise real values inside the model; likelihoods and samples keep the units of the file
    (default: for your own files)."""
    shape: types.Sizes | None = None
    """Shape of one example in your own file of flat rows, e.g. 28 28 (default: that of a row)."""
    validation: types.Validation | None = None
    """Number (or share, e.g. 0.1) of training examples to hold out for validation, or `authors` for
    the published code's choice (default: the data set's own)."""
    folds: Annotated[int, Field(ge=2)] | Literal["auto"] | None = None
    """Choose the number of epochs, up to --epochs, by cross-validation with this number of folds;
    then train on all rows for as long (default: none)."""
    stream: bool | None = None
    """Read your own .npy or .parquet file from disk block by block (default: from 2 GiB of
    values on)."""
    data_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Random seed for choosing the held-out examples."""
    binarization_seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of a binarisation drawn once; another seed gives another test set."""

    layers: Annotated[int, Field(ge=1)] | None = None
    """Number of stochastic layers with the published sizes; give --latent-sizes for others
    (default: 1)."""
    latent_sizes: Annotated[types.Sizes, Field(min_length=1)] | None = None
    """Units of each stochastic layer, nearest the data first, e.g. 100 50 (default: those of
    --layers)."""
    hidden_sizes: Annotated[tuple[types.Sizes, ...] | None, types.Lists, Field(strict=False)] = None
    """Deterministic layers before each stochastic one, e.g. 200,200 100,100, or none (default:
    those of --layers)."""
    latents: Annotated[tuple[str, ...] | None, Field(strict=False, min_length=1)] = None
    """Kind of each stochastic layer, or one for all: normal (the default), bernoulli or
    categorical:C, e.g. bernoulli."""
    activation: types.ActivationName = "tanh"
    """Nonlinearity of the deterministic layers."""
    network: Literal["mlp", "conv"] = "mlp"
    """Layers between data and first stochastic layer: dense (mlp), or convolutions too (conv)."""
    channels: Annotated[types.Sizes, Field(min_length=1)] | None = None
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
    beta_schedule: objectives.BetaSchedule | None = None
    """tvo: placement of the temperatures (default: log)."""
    phase: objectives.Phase | None = None
    """rws: train the encoder on data (wake), on samples from the model (sleep) or both (default:
    wake)."""
    encoder_objective: objectives.EncoderObjective | None = None
    """aiwae: objective of the encoder; elbo-analytic needs a KL divergence in closed form
    (default: elbo-analytic with one stochastic layer, else elbo)."""
    kl_warmup: Annotated[int, Field(ge=0)] = 0
    """Epochs over which the weight of the KL divergence from the prior rises from 0 to 1."""
    free_bits: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Minimum KL divergence of a latent unit, in nats: a smaller one counts as this value."""
    chunk: Annotated[int, Field(ge=1)] | None = None
    """Particles at a time: less memory, same result (default: all up to k = 500, else 100)."""
    backward: Annotated[int, Field(ge=1)] | None = None
    """Particles that carry the gradient, drawn from all k without bias (default: all)."""

    epochs: Annotated[int, Field(ge=1)] = 3280
    """Passes over the training data; the stages of a run are scaled to this total."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 20
    """Examples per step; auto is a fiftieth of the training examples, from 16 to 100."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    """Initial learning rate of the schedule; short runs skip its short early stages."""
    optimizer: types.OptimizerName = "adam"
    """Adam as in the paper (adam or paper) or as in its authors' published code (authors), or SOAP,
    which makes more progress per step, at a higher cost."""
    schedule: types.ScheduleName = "paper"
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
    """Epochs between records of KL, reconstruction and active units (default: epochs / 200)."""
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
    def _complete(cls, values: Any) -> Any:
        """Parse stages from a line, sum their epochs if epochs is omitted, resolve aliases."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        stages = values.get("stages")
        if isinstance(stages, str):
            stages = values["stages"] = stages_from_text(stages)
        if not isinstance(stages or (), list | tuple):
            raise ValueError('stages must be a list of tables, or a line: "k=5 epochs=9, epochs=1"')
        if values.get("optimizer") == "paper":
            values["optimizer"] = "adam"
        if stages and "epochs" not in values:
            # Without any epochs, the error is that of a stage.
            values["epochs"] = max(1, sum(_epochs_of(stage) for stage in stages))
        dataset, objective = values.get("dataset"), values.get("objective")
        validation, folds = values.get("validation"), values.get("folds")
        return {**defaults_for(dataset, objective, values.keys(), validation, folds), **values}

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        check_config(self)
        return self

    def stage(self, i: int, epochs: int) -> "TrainConfig":
        """The configuration of a run of `epochs` epochs that consists of stage `i` alone.

        A stage of another length keeps its share of warm-up.
        """
        if self.stages is None:
            return self
        given, values = self.stages[i].given(), dict(self)
        length = given["epochs"]
        if "kl_warmup" in given:
            given["kl_warmup"] = round(given["kl_warmup"] * epochs / length)
        if "lr_warmup" in given and epochs != length:
            given["lr_warmup"] = given["lr_warmup"] * epochs / length
        if given.get("objective", self.objective) != self.objective:
            values |= dict.fromkeys(("gradient", *objectives.OPTIONS))
        given.pop("fresh", None)
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
        """The kind of data with its parameters; None if it is left to the data."""
        given = {
            name: value for name in Kind._fields[1:] if (value := getattr(self, name)) is not None
        }
        if self.kinds_by_name():
            del given["columns"]
            if self.observation == "table":
                return None
        if self.observation is not None:
            return make_kind(self.observation, **given)
        if given:
            raise ValueError(f"{next(iter(given))} needs observation")
        return None

    def kinds_by_name(self) -> dict[str, str]:
        """The kinds of columns that are given by name."""
        return parse_column_option(self.columns or ())

    def declaration(self, steps_per_epoch: int = 1) -> objectives.Declaration:
        """The objective with its defaults, checked, for epochs of `steps_per_epoch` steps."""
        names = [name for name in objectives.Declaration._fields if hasattr(self, name)]
        declared = objectives.Declaration(
            **{name: getattr(self, name) for name in names},
            kl_warmup_steps=self.kl_warmup * steps_per_epoch,
        )
        discrete = any(kind.is_discrete for kind in self.kinds())
        return check_compatibility(declared, len(self.sizes()[0]), discrete=discrete)

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
        """The kind of each stochastic layer; UserError for an unknown one."""
        return latent_kinds(self.latents or "normal", len(self.sizes()[0]))


def make_config(values: dict[str, Any], source: str) -> TrainConfig:
    """Make a configuration from plain values.

    Args:
        source: name of their origin in error messages.

    Raises:
        UserError: names the first wrong key or value, and the nearest right key.
    """
    for key in values:
        if key not in TrainConfig.model_fields:
            raise UserError(f"{source}: {unknown_setting_error(key, TrainConfig.model_fields)}")
    try:
        return TrainConfig(**values)
    except ValidationError as error:
        raise UserError(f"{source}: {first_setting_error(error)}") from error


def _epochs_of(stage: Any) -> int:
    """The epochs of a stage that may not have been validated yet; 0 if it has none."""
    found = stage.get("epochs") if isinstance(stage, dict) else getattr(stage, "epochs", None)
    return found if isinstance(found, int) else 0


def stored(values: dict[str, Any]) -> dict[str, Any]:
    """The stored values of a run, with the old defaults for options that it lacks."""
    before: dict[str, Any] = {"standardize": False} if is_own(values.get("dataset", "")) else {}
    before |= {"hide": 0.0} if values.get("missing") else {}
    return {**before, **values}


def config_without_folders(config: TrainConfig) -> TrainConfig:
    """The configuration to share: files and runs by their names, without folders."""
    own = Path(config.dataset)
    return config.model_copy(
        update={
            "dataset": own.name if own.is_absolute() else config.dataset,
            "init_from": config.init_from and Path(config.init_from.name),
        }
    )
