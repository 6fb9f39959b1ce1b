"""The models of a run before training."""

import logging
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Int

from iwae.config.experiment import TrainConfig
from iwae.data import Dataset, choose
from iwae.data.rows import rows_in_memory
from iwae.data.sampling import PSEUDO_INPUTS, sample
from iwae.errors import UserError
from iwae.models.conditional import ConditionalVAE, Model, unconditional_model
from iwae.models.likelihoods import observation
from iwae.models.named_densities import parse_named_prior
from iwae.models.networks import Network, make_network
from iwae.models.vae import VAE
from iwae.runs.model_files import check_model_file_depth, load_model, read_model_facts
from iwae.runs.trained import is_fully_trained, trained_model_folder
from iwae.typing import PRNGKey

log = logging.getLogger("iwae")

INIT, TRAIN = 0, 1  # folded into a replicate's seed key

Seed = np.int32 | Int[Array, ""]  # an array within a compiled program


def initial_model_seeds(config: TrainConfig) -> list[Seed]:
    """The seed of each replicate, the same as in a run of that replicate alone."""
    return list(np.asarray(config.seeds(), np.int64).astype(np.int32))


def initial_model_key(seed: Seed, purpose: int) -> PRNGKey:
    """The key of one replicate."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def make_initial_models(
    config: TrainConfig, dataset: Dataset, trained_on: Dataset | None = None
) -> list[Model]:
    """The models before training, one for each replicate.

    Args:
        trained_on: the data that the first pseudo-inputs come from, if not all.
    """
    if config.init_from is not None:
        return [_load_start(config, dataset, config.init_from, r) for r in range(config.replicates)]
    latent_sizes, hidden_sizes = config.sizes()
    network = initial_model_network(config, dataset)
    check_model_file_depth({"hidden_sizes": hidden_sizes, "network": network._asdict()})
    likelihood = observation(dataset.kind, dataset.n_values, config.missing)
    rows = _reference_rows(dataset)
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
    for seed in initial_model_seeds(config):
        pseudo_inputs = _initial_model_pseudo_inputs(config, trained_on or dataset, int(seed))
        model = _first_model(seed, {**options, "pseudo_inputs": pseudo_inputs})
        models.append(_given_labels(model, config, dataset))
    return models


@eqx.filter_jit  # otherwise each array of a model takes several programs
def _first_model(seed: Seed, options: dict[str, Any]) -> VAE:
    return VAE(**options, key=initial_model_key(seed, INIT))


def _initial_model_pseudo_inputs(
    config: TrainConfig, dataset: Dataset, seed: int
) -> np.ndarray | None:
    """Random training examples in the model's units `[K, d]` for a VampPrior of K.

    Pixels that are binarised at every use are represented by their means. None for other priors.

    Raises:
        UserError: if there are fewer training examples.
    """
    prior, n = parse_named_prior(config.prior), len(dataset.train)
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


def _given_labels(model: VAE, config: TrainConfig, dataset: Dataset) -> Model:
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


def initial_model_network(config: TrainConfig, dataset: Dataset) -> Network:
    """The network of a configuration, for the examples of a data set.

    Raises:
        UserError: if the network is for images and the examples are not images.
    """
    return make_network(
        config.network, channels=config.channels, blocks=config.blocks, shape=dataset.shape
    )


def _reference_rows(dataset: Dataset) -> np.ndarray:
    """Training data for the initial outputs: all, a sample of streamed data, or mean pixels."""
    if dataset.binarization == "dynamic":
        return dataset.train_mean[None]
    return rows_in_memory(sample(dataset.train) if dataset.is_streamed else dataset.train)


def _load_start(config: TrainConfig, dataset: Dataset, run: Path, replicate: int) -> Model:
    """A trained model to start from; UserError unless it fits the configuration and the data."""
    folder = trained_model_folder(run, "final", replicate)
    loaded, about = load_model(folder), read_model_facts(folder)
    model, labels = unconditional_model(loaded), None
    if isinstance(loaded, ConditionalVAE):
        labels = loaded.n_classes, loaded.tops is not None
    wanted_labels = (len(dataset.classes), config.label_prior) if config.conditional else None
    latent_sizes, hidden_sizes = config.sizes()
    for name, found, wanted in (
        ("the number of labels and their prior", labels, wanted_labels),
        ("the size of an example", model.n_data, dataset.n_values),
        ("observation", model.kind, dataset.kind),
        ("missing", model.missing, config.missing),
        ("latent_sizes", model.latent_sizes, latent_sizes),
        ("hidden_sizes", model.hidden_sizes, hidden_sizes),
        ("latents", model.latents, config.kinds()),
        ("activation", model.activation, config.activation),
        ("network", model.network, initial_model_network(config, dataset)),
        ("standardize", model.log_scale is not None, dataset.scaling is not None),
        ("prior", str(model.prior_name), config.prior),
        ("posterior", str(model.posterior_name), config.posterior),
    ):
        if found != wanted:
            raise UserError(f"init_from: {name} of the model in {run} is {found}, here {wanted}")
    epoch, epochs = about.get("epoch"), (about.get("config") or {}).get("epochs", 0)
    if epoch is not None and not is_fully_trained(about, epochs):
        log.warning("init_from: %s is not finished: epoch %d of %d", run, epoch, epochs)
    return loaded
