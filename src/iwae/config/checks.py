"""Settings of a run that contradict each other."""

from typing import TYPE_CHECKING

from pydantic import ValidationError

from iwae.config.setting_errors import first_setting_error
from iwae.config.types import DECAYING
from iwae.errors import UserError
from iwae.models.named_densities import (
    check_named_density,
    named_coupling_layers,
    parse_named_posterior,
    parse_named_prior,
)
from iwae.objectives.declaration import declaration_entry

if TYPE_CHECKING:
    from iwae.config.experiment import TrainConfig


def check_config(config: "TrainConfig") -> None:
    """Raise ValueError, with the remedy, for settings that contradict each other."""
    _check_sizes(config)
    _check_densities(config)
    if config.label_prior and not config.conditional:
        raise ValueError("label_prior needs conditional")
    if config.label and not config.conditional:
        raise ValueError(
            "label needs conditional; for a column that only colours latents.png, give id instead"
        )
    if config.hide and config.missing != "at-random":
        raise ValueError("hide needs missing 'at-random', since it hides values at random")
    if config.channels is not None and config.network != "conv":
        raise ValueError("channels needs network 'conv'")
    if config.folds is not None:
        _check_folds(config)
    for name in ("patience", "threshold"):
        if getattr(config, name) and config.validation == 0 and config.folds is None:
            raise ValueError(f"{name} needs held-out examples: set validation")
    if config.keep_optimizer and config.init_from is None:
        raise ValueError("keep_optimizer needs init_from")
    config.kind()
    if config.stages is not None:
        _check_stages(config)
        return
    for name in ("kl_warmup", "lr_warmup"):
        if getattr(config, name) > config.epochs:
            raise ValueError(
                f"{name} is {getattr(config, name)}, but epochs is {config.epochs}: reduce it"
            )
    if config.lr_end and config.schedule not in DECAYING:
        raise ValueError(f"lr_end needs schedule {', '.join(DECAYING)}; it is {config.schedule}")
    config.declaration()


def _check_folds(config: "TrainConfig") -> None:
    """Raise ValueError for settings that do not go with cross-validation."""
    if config.stages is not None:
        raise ValueError("folds chooses the epochs of a run without stages: leave one out")
    if config.init_from is not None:
        raise ValueError(
            "folds needs models that have not seen the rows held out: leave out folds or init_from"
        )
    if config.folds == "auto":
        return
    if config.validation:
        raise ValueError("folds holds every training row out once: leave out validation")
    if config.schedule != "constant":
        raise ValueError(
            "folds needs schedule 'constant': another depends on the number of epochs, which "
            "is still to be chosen"
        )


def _check_sizes(config: "TrainConfig") -> None:
    """Raise ValueError for sizes of layers that contradict each other."""
    if config.latent_sizes is not None:
        if config.layers not in (None, len(config.latent_sizes)):
            raise ValueError(
                f"layers is {config.layers} but latent_sizes names {len(config.latent_sizes)} "
                "layers; give one of the two"
            )
        if config.hidden_sizes is None or len(config.hidden_sizes) != len(config.latent_sizes):
            raise ValueError(
                f"latent_sizes names {len(config.latent_sizes)} layers, so hidden_sizes must "
                "have as many lists, such as 200,200, or none for a linear layer"
            )
    elif config.hidden_sizes is not None:
        raise ValueError("hidden_sizes needs latent_sizes")


def _check_densities(config: "TrainConfig") -> None:
    """Raise ValueError for a prior or posterior that does not exist, or does not fit."""
    prior, posterior = parse_named_prior(config.prior), parse_named_posterior(config.posterior)
    sizes, kinds = config.sizes()[0], config.kinds()
    check_named_density("prior", prior, kinds[-1])
    flows = named_coupling_layers(posterior, kinds)
    if config.label_prior and prior.name != "normal":
        raise ValueError(
            f"label_prior learns a Gaussian p(z|y) for each label, which excludes prior "
            f"{config.prior!r}: leave one of the two out"
        )
    parts = (config, *(config.stages or ()))
    closed = [
        name
        for name in ("objective", "encoder_objective")
        if any(getattr(part, name) == "elbo-analytic" for part in parts)
    ]
    if closed and (prior.name, posterior.name) != ("normal", "normal"):
        raise ValueError(
            f"{closed[0]} elbo-analytic has a closed form for prior and posterior 'normal' "
            "only: use elbo"
        )
    flows = (*flows[:-1], flows[-1] or int(prior.name == "flow"))
    if any(flow and size < 2 for flow, size in zip(flows, sizes, strict=True)):
        raise ValueError(
            "a flow couples units with each other, so its layers need at least 2 units: use more "
            "latents, or no flow"
        )


def _check_stages(config: "TrainConfig") -> None:
    """Raise ValueError for an invalid stage, with its number."""
    if not config.stages:
        raise ValueError("stages is empty: leave it out, or name at least one")
    for name in ("kl_warmup", "lr_warmup", "lr_end"):
        if getattr(config, name):
            raise ValueError(f"{name} of a run with stages belongs to a stage: give it there")
    if config.stages[0].fresh is not None:
        raise ValueError("fresh is for later stages: the first has no optimiser to reset")
    declaration_entry(config.objective)
    for i, epochs in enumerate(config.stage_epochs()):
        try:
            config.stage(i, epochs or config.stages[i].epochs)
        except (UserError, ValidationError) as error:
            reason = first_setting_error(error) if isinstance(error, ValidationError) else error
            raise ValueError(f"stage {i + 1}: {reason}") from error
