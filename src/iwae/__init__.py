"""Train importance weighted autoencoders, and measure how likely they make held-out data."""

import importlib
from typing import Any

_PUBLIC = {
    "UserError": "_types",
    "Dataset": "data",
    "load_dataset": "data",
    "AbstractLatentModel": "model",
    "VAE": "model",
    "ConditionalVAE": "conditional",
    "Particles": "particles",
    "effective_sample_size": "particles",
    "importance_particles": "particles",
    "log_mean_exp": "particles",
    "log_weights": "particles",
    "annealed_particles": "annealing",
    "linear_schedule": "annealing",
    "sigmoid_schedule": "annealing",
    "tune_step_size": "annealing",
    "bound": "objectives",
    "elbo": "objectives",
    "iwae": "objectives",
    "objective": "methods",
    "active_units": "evaluate",
    "class_log_likelihoods": "evaluate",
    "information": "evaluate",
    "log_likelihoods": "evaluate",
    "prune": "evaluate",
    "bdmc": "diagnostics",
    "train": "training",
    "load_model": "checkpoint",
    "save_model": "checkpoint",
    "posterior_grid": "posterior",
    "rate_distortion": "posterior",
    "sir": "posterior",
    "snis_mean": "posterior",
    "impute": "missing",
    "multiple_imputations": "missing",
    "TrainConfig": "config",
    "ImportanceWeightedAutoencoder": "estimator",
    "export_run": "sharing",
    "from_pretrained": "sharing",
    "push_to_hub": "sharing",
    "resume_run": "runs",
    "start_run": "runs",
    "anneal_run": "measure",
    "bdmc_run": "measure",
    "classify_run": "measure",
    "compare": "measure",
    "evaluate_run": "measure",
    "gradients_run": "measure",
    "information_run": "measure",
    "rate_distortion_run": "measure",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name's module when it is first used: JAX takes most of a second."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"iwae.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
