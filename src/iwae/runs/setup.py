"""From a configuration to its data, models, objective and schedule."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Key

from iwae.config.experiment import TrainConfig, read_config
from iwae.config.columns import quoted
from iwae.config.types import DECAYING
from iwae.config.defaults import BY_FOLDS
from iwae.data import DATASETS, Dataset, choose, draw, load_dataset
from iwae.data.own import is_large, is_own
from iwae.data.rows import Examples, converted, kept
from iwae.data.sampling import PSEUDO_INPUTS, sample
from iwae.errors import UserError
from iwae.models.conditional import ConditionalVAE, Model, without_labels
from iwae.models.declaration import parse_prior
from iwae.models.likelihoods import observation
from iwae.models.networks import Network, make_network
from iwae.models.vae import VAE
from iwae.objectives.catalogue import compose
from iwae.objectives.declaration import particles, unmodified
from iwae.runs.checkpoints import list_checkpoints, load_checkpoint
from iwae.runs.folder import run_config
from iwae.runs.models import (
    DESCRIPTION,
    WEIGHTS,
    check_depth,
    is_one_model,
    load_model,
    read_about,
)
from iwae.training.feed import blocks_of
from iwae.training.hiding import hidden_share
from iwae.training.loop import Best, Plan, init_best
from iwae.training.schedules import (
    AUTHORS_RATES,
    PAPER_RATES,
    Schedule,
    adam,
    authors_adam,
    check_steps,
    decaying,
    stage_epochs,
    staged,
    warming_up,
)
from iwae.training.soap import soap
from iwae.training.stages import Stage, is_carried, stage_at
from iwae.training.steps import Clock, Settings, TrainState, init_state
from iwae.typing import PRNGKey

log = logging.getLogger("iwae")

LOGGED = 200
"""Default number of measurements of KL, reconstruction and active units in a run."""

_INIT, _TRAIN = 0, 1  # folded into a replicate's seed key


@dataclass(frozen=True)
class Job:
    """A configuration with its data, models and schedule, ready to train."""

    config: TrainConfig
    dataset: Dataset
    models: list[Model]
    stages: tuple[Stage, ...]
    stage_ends: tuple[int, ...]  # steps; those of the schedule, if the run has no stages
    plan: Plan

    def stage_of(self, step: int) -> Stage:
        """The stage of a state after `step` steps."""
        return self.stages[stage_at(self.stages, step)]

    def learning_rate(self, step: int) -> float:
        """The learning rate of the step with number `step`, from 1."""
        schedule, done = self.stage_of(step).schedule, jax.device_put(np.int32(step - 1))
        return float(eqx.filter_jit(schedule)(done))


def load_config_dataset(config: TrainConfig, data_dir: Path | None = None) -> Dataset:
    """The data set that a configuration names; in memory, unless it says that they are streamed."""
    return load_dataset(
        config.dataset,
        binarization=config.binarization,
        validation=config.validation,
        seed=config.data_seed,
        binarization_seed=config.binarization_seed,
        observation=config.kind(),
        shape=config.shape,
        missing=config.missing is not None,
        standardize=config.standardize,
        labels=config.label or config.conditional,
        columns=config.kinds_by_name() or None,
        drop=config.drop or (),
        ids=config.id or (),
        resize=config.resize,
        stream=bool(config.stream),
        data_dir=data_dir,
    )


def data_place(dataset: str) -> str:
    """The name of a data set, or the absolute path of an existing file or folder."""
    own = Path(dataset).expanduser()
    return str(own.resolve()) if is_own(dataset) and own.exists() else dataset


def resolve(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """Fill in what the configuration leaves to the data set, the defaults and the folder."""
    latent_sizes, hidden_sizes = config.sizes()
    validation = config.validation
    if validation is None or isinstance(validation, float):
        validation = len(dataset.validation)
    # Stages have their own defaults.
    declared = {} if config.stages is not None else config.declaration()._asdict()
    return config.model_copy(
        update={
            "binarization": dataset.binarization,
            "observation": dataset.observation,
            **dataset.kind.parameters(),
            **_columns_by_name(dataset),
            "dataset": data_place(config.dataset),
            "validation": validation,
            "batch_size": batch_size(config, dataset),
            "hide": hidden_share(config.hide, config.missing, gaps=_has_gaps(dataset)),
            "standardize": None if dataset.name in DATASETS else dataset.scaling is not None,
            "log_every": config.log_every or -(-config.epochs // LOGGED),
            "layers": len(latent_sizes),
            "latent_sizes": latent_sizes,
            "hidden_sizes": hidden_sizes,
            "latents": config.latents and tuple(map(str, config.kinds())),
            "channels": config_network(config, dataset).channels or None,
            "init_from": config.init_from and config.init_from.resolve(),
            **{name: value for name, value in declared.items() if hasattr(config, name)},
        }
    )


def _has_gaps(dataset: Dataset) -> bool:
    """Whether values are missing in the training rows."""
    return bool(dataset.identity.get("missing", {}).get("train"))


def _columns_by_name(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """The kinds of columns that were chosen by their values, as the option `columns`."""
    by_name = any(column.why for column in dataset.columns)
    words = tuple(f"{quoted(column.name)}={column.kind}" for column in dataset.columns)
    return {"columns": words} if by_name else {}


Seed = np.int32 | Int[Array, ""]  # an array within a compiled program


def _seeds(config: TrainConfig) -> list[Seed]:
    """The seed of each replicate, the same as in a run of that replicate alone."""
    return list(np.asarray(config.seeds(), np.int64).astype(np.int32))


def _replicate_key(seed: Seed, purpose: int) -> PRNGKey:
    """The key of one replicate."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def make_models(
    config: TrainConfig, dataset: Dataset, trained_on: Dataset | None = None
) -> list[Model]:
    """The models before training, one for each replicate.

    Args:
        trained_on: some of the data, if others must not be among the first pseudo-inputs.
    """
    if config.init_from is not None:
        return [_load_start(config, dataset, config.init_from, r) for r in _replicates(config)]
    latent_sizes, hidden_sizes = config.sizes()
    network = config_network(config, dataset)
    check_depth({"hidden_sizes": hidden_sizes, "network": network._asdict()})
    likelihood = observation(dataset.kind, dataset.n_values, config.missing)
    rows = _known_rows(dataset)
    bias = likelihood.initial_output(rows) if config.output_bias else None
    statistics = likelihood.encoding.statistics(rows) if likelihood.encoding else None

    options = {
        "n_data": dataset.n_values,
        "latent_sizes": latent_sizes,
        "hidden_sizes": hidden_sizes,
        "latents": tuple(map(str, config.kinds())),
        "observation": dataset.kind,
        "activation": config.activation,
        "network": network,
        "output_bias": bias,
        "statistics": statistics,
        "missing": config.missing,
        "log_scale": dataset.log_scale,
        "prior": config.prior,
        "posterior": config.posterior,
    }
    models = []
    for seed in _seeds(config):
        pseudo_inputs = first_pseudo_inputs(config, trained_on or dataset, int(seed))
        model = _first_model(seed, {**options, "pseudo_inputs": pseudo_inputs})
        models.append(_with_labels(model, config, dataset))
    return models


@eqx.filter_jit  # otherwise each array of a model takes several programs
def _first_model(seed: Seed, options: dict[str, Any]) -> VAE:
    return VAE(**options, key=_replicate_key(seed, _INIT))


def first_pseudo_inputs(config: TrainConfig, dataset: Dataset, seed: int) -> np.ndarray | None:
    """Random training examples in the model's units `[K, d]`, if the prior is a VampPrior of K.

    Where pixels are binarised at every use, these are their means.

    Raises:
        UserError: if there are fewer training examples.
    """
    prior, n = parse_prior(config.prior), len(dataset.train)
    if prior.name != "vamp":
        return None
    if prior.size > n:
        raise UserError(
            f"prior {config.prior} starts at {prior.size:,} training examples, but there are "
            f"{n:,}: choose a smaller number"
        )
    rows = dataset.train[choose(n, prior.size, seed=seed, stream=PSEUDO_INPUTS)]
    is_grey = dataset.binarization == "dynamic" and rows.dtype == np.uint8
    return rows[:, : dataset.n_values].astype(np.float32) / np.float32(255 if is_grey else 1)


def _with_labels(model: VAE, config: TrainConfig, dataset: Dataset) -> Model:
    """The model conditioned on labels, if the configuration is conditional."""
    if not config.conditional:
        return model
    counts = np.bincount(dataset.labels.train, minlength=len(dataset.classes))
    return ConditionalVAE(
        model,
        len(dataset.classes),
        learned_prior=config.label_prior,
        frequencies=counts / counts.sum(),
    )


def config_network(config: TrainConfig, dataset: Dataset) -> Network:
    """The network of a configuration, for the examples of a data set.

    Raises:
        UserError: if the network is for images and the examples are not images.
    """
    return make_network(
        config.network, channels=config.channels, blocks=config.blocks, shape=dataset.shape
    )


def _known_rows(dataset: Dataset) -> np.ndarray:
    """The training data in the model's units; for dynamic binarisation, the mean pixels.

    Streamed data are represented by a fixed random sample: outputs only start at its means.
    """
    if dataset.binarization == "dynamic":
        return dataset.train_mean[None]
    return kept(sample(dataset.train) if dataset.is_streamed else dataset.train)


def _load_start(config: TrainConfig, dataset: Dataset, run: Path, replicate: int) -> Model:
    """Load a trained model to start from, and check it against the configuration and the data."""
    folder = model_folder(run, "final", replicate)
    whole, about = load_model(folder), read_about(folder)
    labels = (len(dataset.classes), config.label_prior) if config.conditional else None
    model, its_labels = without_labels(whole), None
    if isinstance(whole, ConditionalVAE):
        its_labels = whole.n_classes, whole.tops is not None
    latent_sizes, hidden_sizes = config.sizes()
    for name, found, wanted in (
        ("the number of labels and their prior", its_labels, labels),
        ("the size of an example", model.n_data, dataset.n_values),
        ("observation", model.kind, dataset.kind),
        ("missing", model.missing, config.missing),
        ("latent_sizes", model.latent_sizes, latent_sizes),
        ("hidden_sizes", model.hidden_sizes, hidden_sizes),
        ("latents", model.latents, config.kinds()),
        ("activation", model.activation, config.activation),
        ("network", model.network, config_network(config, dataset)),
        ("standardize", model.log_scale is not None, dataset.scaling is not None),
        ("prior", str(model.prior_name), config.prior),
        ("posterior", str(model.posterior_name), config.posterior),
    ):
        if found != wanted:
            raise UserError(f"init_from: {name} of the model in {run} is {found}, here {wanted}")
    epoch, epochs = about.get("epoch"), (about.get("config") or {}).get("epochs", 0)
    if epoch is not None and not _is_final(about, epochs):
        log.warning("init_from: %s is not finished: epoch %d of %d", run, epoch, epochs)
    return whole


def _replicates(config: TrainConfig) -> range:
    return range(config.replicates)


_TABLES = {"paper": PAPER_RATES, "authors": AUTHORS_RATES}
"""Schedules whose rate changes from stage to stage -> the rates of the stages."""


def make_schedule(
    config: TrainConfig, steps_per_epoch: int, first: int = 0
) -> tuple[Schedule, tuple[int, ...]]:
    """The learning rates from the step `first`, and the epochs at which their stages end."""
    check_steps(config.epochs, steps_per_epoch, first)
    table = _TABLES.get(config.schedule, (1.0,))
    lengths = (config.epochs,) if len(table) == 1 else stage_epochs(config.epochs)
    if config.schedule in DECAYING:
        steps = config.epochs * steps_per_epoch
        schedule: Schedule = decaying(
            config.learning_rate,
            config.lr_end,
            turn=first + round(DECAYING[config.schedule] * steps),
            end=first + steps,
            cosine=config.schedule == "cosine",
        )
    else:
        rates = [config.learning_rate * rate / table[0] for rate in table]
        schedule = staged(rates, lengths, steps_per_epoch, first)
    if config.lr_warmup:
        steps = max(1, round(config.lr_warmup * steps_per_epoch))
        schedule = warming_up(schedule, first, steps)
    return schedule, tuple(np.cumsum(lengths).tolist())


def make_stages(config: TrainConfig, dataset: Dataset) -> tuple[tuple[Stage, ...], tuple[int, ...]]:
    """The stages of a run that have epochs, and the steps at which all its stages end.

    Raises:
        UserError: if a batch is larger than the training data, or an optimiser's state does not
            fit the stage to which it is carried over.
    """
    step = epoch = 0
    stages: list[Stage] = []
    ends: list[int] = []
    for i, epochs in enumerate(config.stage_epochs()):
        if epochs:
            try:
                stage, its_ends = _make_stage(config, i, epochs, dataset, Clock(step, epoch))
                if stages:
                    is_carried(stages[-1], stage)
            except UserError as error:
                raise UserError(f"stage {i + 1}: {error}" if config.stages else error) from error
            stages.append(stage)
            step, epoch = stage.end, epoch + epochs
        ends += [step] if config.stages else its_ends
    return tuple(stages), tuple(ends)


def _make_stage(
    config: TrainConfig, i: int, epochs: int, dataset: Dataset, clock: Clock
) -> tuple[Stage, list[int]]:
    """A stage, and the steps at which the stages of its schedule end, if it is the only one."""
    its = config.stage(i, epochs)
    steps_per_epoch = _steps_per_epoch(its, dataset)
    schedule, ends = make_schedule(its, steps_per_epoch, int(clock.step))
    stage = Stage(
        _settings(its, dataset, steps_per_epoch),
        schedule,
        epochs,
        steps_per_epoch,
        clock,
        config.stages[i].fresh if config.stages else None,
        _cost(its),
        i,
    )
    return stage, [end * steps_per_epoch for end in ends]


def _steps_per_epoch(config: TrainConfig, dataset: Dataset) -> int:
    size = batch_size(config, dataset)
    if size > len(dataset.train):
        raise UserError(
            f"batch_size is {size}, but there are {len(dataset.train)} training "
            "examples: choose a smaller batch"
        )
    return blocks_of(dataset.train, size).steps_per_epoch


def batch_size(config: TrainConfig, dataset: Dataset) -> int:
    """Examples per step."""
    if config.batch_size != "auto":
        return config.batch_size
    n = len(dataset.train)
    return min(n, max(16, min(100, n // 50)))


_OPTIMIZERS: dict[str, Callable[[int], optax.GradientTransformation]] = {
    "adam": lambda _: adam(),
    "authors": authors_adam,
    "soap": lambda _: soap(),
}
"""Name -> function from a batch size to the optimiser."""


def _settings(config: TrainConfig, dataset: Dataset, steps_per_epoch: int) -> Settings:
    declaration, layers = config.declaration(steps_per_epoch), len(config.sizes()[0])
    size = batch_size(config, dataset)
    return Settings(
        compose(declaration, layers),
        _OPTIMIZERS[config.optimizer](size),
        size,
        dataset.binarization,
        config.shuffle,
        compose(unmodified(declaration), layers),
        config.ema,
        config.hide or 0.0,
    )


def _cost(config: TrainConfig) -> float:
    """Cost per example in passes through the decoder; a third for one without a backward pass."""
    forward = particles(config.declaration())
    back = min(config.backward or forward, forward)
    moves = (config.temperatures or 1) * (config.leapfrog or 1)  # of dais and aiwae
    return 1.0 + moves * back + (0 if back == forward else forward / 3)


def make_job(config: TrainConfig, data_dir: Path | None = None, *, resumed: bool = False) -> Job:
    """Load and build everything that `config` names.

    Args:
        resumed: the weights will come from a checkpoint, so `init_from`, which may no longer
            exist, is ignored.

    Raises:
        UserError: for data that cannot be loaded or do not fit.
    """
    if config.stream is None and not resumed and not config.conditional:
        config = config.model_copy(update={"stream": is_large(config.dataset) or None})
    dataset = load_config_dataset(config, data_dir)
    if config.folds is not None:
        config = _with_folds(config, dataset)
        if config.folds is not None and len(dataset.validation):
            dataset = load_config_dataset(config, data_dir)
    config = resolve(config, dataset)
    _check_validation(config, dataset)
    stages, ends = make_stages(config, dataset)
    start = config.model_copy(update={"init_from": None}) if resumed else config
    return Job(
        config,
        dataset,
        make_models(start, dataset),
        stages,
        ends,
        Plan(config.epochs, config.validate_every, config.patience, config.threshold),
    )


FEW, FOLDS = 200, 5
"""Up to how many training rows the folds of a run are not none by default, and how many."""


def _with_folds(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """The configuration with a number of folds, or none, in place of `auto`.

    Raises:
        UserError: for a number of them that the data do not allow.
    """
    n = len(dataset.train) + len(dataset.validation)
    fits = dataset.binarization != "dynamic" and not dataset.is_streamed
    if config.folds == "auto":
        is_few = fits and FOLDS <= n <= FEW
        return config.model_copy(update={"folds": FOLDS, **BY_FOLDS} if is_few else {"folds": None})
    if not fits:
        raise UserError(
            "folds needs data in memory, whose pixels are not drawn anew in each epoch: leave it "
            "out"
        )
    if config.folds is not None and config.folds > n:
        raise UserError(f"folds is {config.folds}, but there are {n} training rows: choose fewer")
    return config


def _check_validation(config: TrainConfig, dataset: Dataset) -> None:
    """Raise UserError for settings of validation without held-out examples."""
    for name in ("patience", "threshold", "validate_every"):
        default = TrainConfig.model_fields[name].default
        by_folds = config.folds is not None and name != "validate_every"
        if getattr(config, name) != default and len(dataset.validation) == 0 and not by_folds:
            raise UserError(f"{name} needs held-out examples: set validation, e.g. 1000")
    if config.validate_every > config.epochs:
        raise UserError(
            f"validate_every is {config.validate_every}, but the run ends after {config.epochs} "
            "epochs: choose a smaller one"
        )


def blank_state(job: Job, step: int = 0) -> tuple[TrainState, Best]:
    """The state of a job's models with a new optimiser, as in the stage of a step."""
    return _first_state(job.models, _seeds(job.config), job.stage_of(step).settings)


@eqx.filter_jit
def _first_state(
    models: list[Model], seeds: list[Seed], settings: Settings
) -> tuple[TrainState, Best]:
    keys = jnp.stack([_replicate_key(seed, _TRAIN) for seed in seeds])
    state = init_state(models, keys, settings)
    return state, init_best(state)


def initial_state(job: Job) -> tuple[TrainState, Best]:
    """The state of a job before its first step."""
    state, best = blank_state(job)
    if job.config.keep_optimizer and job.config.init_from is not None:
        leaves = jax.tree.leaves(_optimizer_of(job.config.init_from, job))
        old = jax.tree.unflatten(jax.tree.structure(state.opt_state), leaves)
        state = state._replace(opt_state=old)
    return state, best


def _optimizer_of(run: Path, job: Job) -> Any:
    """The optimiser's state in the newest checkpoint of another run, whose objective may differ."""
    paths = list_checkpoints(run / "checkpoints")
    if not paths:
        raise UserError(f"{run} has no checkpoint to take the optimiser's state from")
    its = read_config(run / "config.toml").final()
    theirs = compose(its.declaration(), len(its.sizes()[0]))
    first, now = job.stages[0], job.config.stage(job.stages[0].number, job.stages[0].epochs)
    one, other = (jax.tree.leaves(o.init().learned) for o in (theirs, first.settings.objective))
    if [leaf.shape for leaf in one] != [leaf.shape for leaf in other]:
        raise UserError(
            f"keep_optimizer: {run} was trained with {its.objective}, and {now.objective} "
            "learns other arrays beside the model; leave out keep_optimizer"
        )
    if its.optimizer != now.optimizer:
        raise UserError(
            f"keep_optimizer: {run} was trained with the optimizer {its.optimizer}, here it is "
            f"{now.optimizer}; leave out keep_optimizer"
        )
    settings = first.settings._replace(objective=theirs, ema=its.ema)
    like = replace(job, stages=(first._replace(settings=settings),))
    return load_checkpoint(paths[-1], blank_state(like)).state.opt_state


def model_folder(run: Path, weights: str, replicate: int) -> Path:
    """The folder of one replicate's model in a run; `weights` is "final" or "best"."""
    return Path(run) / "models" / f"{weights}-{replicate}"


def is_finished(run: Path, config: TrainConfig) -> bool:
    """Whether all final models of a run exist and are trained to its end."""
    folders = [model_folder(run, "final", replicate) for replicate in _replicates(config)]
    return all(
        (folder / WEIGHTS).is_file()
        and (folder / DESCRIPTION).is_file()
        and _is_final(read_about(folder), config.epochs)
        and is_one_model(folder)  # otherwise a write was interrupted: keep training
        for folder in folders
    )


def warn_unfinished(run: Path) -> None:
    """Say of a run whose training has not ended that its weights are not the final ones."""
    config = run_config(run)
    if not is_finished(run, config):
        log.warning(
            "%s is not trained to its end, and its weights are those of the last checkpoint; "
            "resume it with: iwae train --resume %s",
            run,
            run,
        )


def _is_final(about: dict[str, Any], epochs: int) -> bool:
    """Whether training of a model had ended, by patience or after all epochs."""
    # The models of the last epoch are written once before the run is finished. Old ones do not say.
    return about.get("finished", about.get("epoch", 0) >= epochs)


def run_model(run: Path, weights: str, replicate: int, dataset: Dataset) -> Model:
    """A trained model of a run, for use on `dataset`.

    Raises:
        UserError: if the run has no such weights, or they do not fit the data.
    """
    model = trained_model(run, weights, replicate)
    found, wanted = dataset.examples("train").shape[1], model.example_size
    if found != wanted:
        raise UserError(
            f"the examples of {dataset.name} have {found} values, but those that {run} was "
            f"trained on have {wanted}"
        )
    return model


def trained_model(run: Path, weights: str, replicate: int) -> Model:
    """A trained model of a run; UserError if it has no such weights."""
    folder = model_folder(run, weights, replicate)
    if not folder.parent.exists():
        run_config(run)  # or the message that this is no run
        raise UserError(
            f"no model in {run}: its training was stopped before the first checkpoint, or is under "
            f"way; resume it with: iwae train --resume {run}"
        )
    if weights == "best" and not folder.exists():
        raise UserError(
            f"{run} has no best weights: nothing was held out for validation, or no validation "
            "has been reached yet; use the final weights"
        )
    return load_model(folder)


def split_examples(dataset: Dataset, split: str, count: int | None = None) -> Examples:
    """Examples of a split in the model's units; training pixels are drawn once with a fixed key.

    Args:
        count: size of a fixed random subset in memory (all examples, if there are fewer).
    """
    raw = dataset.examples(split)
    if count is not None:
        raw = raw[np.sort(choose(len(raw), count))] if count < len(raw) else kept(raw)
    if split != "train" or dataset.binarization != "dynamic":
        return raw
    if isinstance(raw, np.ndarray):
        return np.asarray(_draw_all(raw, _fixed_keys(len(raw)), dataset.binarization))
    keys = jax.random.key_data(_fixed_keys(len(raw)))

    def drawn(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        some = jax.random.wrap_key_data(keys[places])
        return np.asarray(_draw_all(rows, some, dataset.binarization))

    return converted(raw, drawn, np.uint8)


def _fixed_keys(n: int) -> Key[Array, " n"]:
    """The keys of the fixed draws of n examples, `[n]`."""
    return jax.random.split(jax.random.key(0), n)


@partial(jax.jit, static_argnums=2)
def _draw_all(raw: jax.Array, keys: Key[Array, " n"], binarization: str) -> jax.Array:
    pixels = jax.vmap(lambda row, key: draw(row, key, binarization=binarization))(raw, keys)
    return pixels.astype(jnp.uint8)
