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
    "effective_sample_size": "inference.log_weights",
    "importance_particles": "inference.particles",
    "log_mean_exp": "inference.log_weights",
    "log_weights": "inference.log_weights",
    "annealed_particles": "inference.annealing",
    "adaptive_schedule": "inference.adaptive",
    "linear_schedule": "inference.temperatures",
    "sigmoid_schedule": "inference.temperatures",
    "tune_step_size": "inference.tuning",
    "bound": "objectives.particle_objectives",
    "elbo": "objectives.bounds",
    "iwae": "objectives.bounds",
    "objective": "objectives.building",
    "ovis": "objectives.score_function",
    "vimco": "objectives.score_function",
    "active_units": "evaluation.units",
    "class_log_likelihoods": "evaluation.classification",
    "information": "evaluation.information",
    "log_likelihoods": "evaluation.likelihood",
    "prune": "evaluation.pruning",
    "bdmc": "evaluation.bdmc",
    "two_sided": "evaluation.two_sided_bounds",
    "train": "training.memory",
    "load_model": "runs.model_files",
    "save_model": "runs.model_files",
    "posterior_grid": "evaluation.posterior",
    "rate_distortion": "evaluation.rate_distortion",
    "sir": "inference.resampling",
    "snis_mean": "evaluation.posterior",
    "impute": "evaluation.imputation",
    "multiple_imputations": "evaluation.imputation",
    "pool": "evaluation.pooling",
    "encode": "evaluation.encoding",
    "score": "evaluation.scores",
    "outlier_p_values": "evaluation.scores",
    "sample_given": "evaluation.conditional_sampling",
    "TrainConfig": "config.experiment",
    "ImportanceWeightedAutoencoder": "sklearn",
    "export_run": "reports.export",
    "from_pretrained": "reports.hub",
    "push_to_hub": "reports.hub",
    "encode_rows": "runs.row_answers",
    "impute_rows": "runs.row_answers",
    "sample_rows": "runs.row_answers",
    "score_rows": "runs.row_answers",
    "resume_run": "runs.start_and_resume",
    "start_run": "runs.start_and_resume",
    "anneal_run": "results.ais",
    "bdmc_run": "results.bdmc",
    "calibrate_run": "results.calibration",
    "classify_run": "results.classification",
    "compare": "results.compare",
    "read_records": "results.reading",
    "evaluate_run": "results.likelihood",
    "gradients_run": "results.gradient_signal",
    "information_run": "results.information",
    "rate_distortion_run": "results.rate_distortion",
    "sandwich_run": "results.two_sided_bounds",
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
