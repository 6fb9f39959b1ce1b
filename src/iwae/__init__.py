"""Train importance weighted autoencoders and measure their likelihood on held-out data."""

import importlib
from typing import Any

_PUBLIC = {
    "UserError": "errors",
    "Dataset": "data",
    "load_dataset": "data",
    "AbstractLatentModel": "models.vae",
    "VAE": "models.vae",
    "ConditionalVAE": "models.conditional",
    "MixturePrior": "models.priors",
    "VampPrior": "models.priors",
    "FlowPrior": "models.priors",
    "Flow": "models.flows",
    "Particles": "inference.particles",
    "effective_sample_size": "inference.particles",
    "importance_particles": "inference.particles",
    "log_mean_exp": "inference.particles",
    "log_weights": "inference.particles",
    "annealed_particles": "inference.chains",
    "adaptive_schedule": "inference.adaptive",
    "linear_schedule": "inference.temperatures",
    "sigmoid_schedule": "inference.temperatures",
    "tune_step_size": "inference.step_sizes",
    "bound": "objectives.bounds",
    "elbo": "objectives.reductions",
    "iwae": "objectives.reductions",
    "objective": "objectives.catalogue",
    "ovis": "objectives.score_function",
    "vimco": "objectives.score_function",
    "active_units": "evaluation.units",
    "class_log_likelihoods": "evaluation.classes",
    "information": "evaluation.information",
    "log_likelihoods": "evaluation.likelihood",
    "prune": "evaluation.pruning",
    "bdmc": "evaluation.diagnostics",
    "two_sided": "evaluation.sandwich",
    "train": "training.memory",
    "load_model": "runs.models",
    "save_model": "runs.models",
    "posterior_grid": "evaluation.posterior",
    "rate_distortion": "evaluation.posterior",
    "sir": "evaluation.posterior",
    "snis_mean": "evaluation.posterior",
    "impute": "evaluation.imputation",
    "multiple_imputations": "evaluation.imputation",
    "pool": "evaluation.pooling",
    "encode": "evaluation.scores",
    "score": "evaluation.scores",
    "outlier_p_values": "evaluation.scores",
    "sample_given": "evaluation.conditioning",
    "TrainConfig": "config.experiment",
    "ImportanceWeightedAutoencoder": "sklearn",
    "export_run": "reports.export",
    "from_pretrained": "reports.hub",
    "push_to_hub": "reports.hub",
    "encode_rows": "runs.answers",
    "impute_rows": "runs.answers",
    "sample_rows": "runs.answers",
    "score_rows": "runs.answers",
    "resume_run": "runs.course",
    "start_run": "runs.course",
    "anneal_run": "results.annealed",
    "bdmc_run": "results.simulated",
    "calibrate_run": "results.calibration",
    "classify_run": "results.classes",
    "compare": "results.compare",
    "read_records": "results.reading",
    "evaluate_run": "results.importance",
    "gradients_run": "results.signal",
    "information_run": "results.information",
    "rate_distortion_run": "results.curves",
    "sandwich_run": "results.sandwich",
    "results_frame": "results.frame",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name's module on first use: importing JAX takes most of a second."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"iwae.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
