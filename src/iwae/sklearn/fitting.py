"""Train the model of an estimator."""

import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from iwae.data import Kind, choose
from iwae.data.sampling import PSEUDO_INPUTS
from iwae.models.likelihoods import observation
from iwae.models.named_densities import parse_named_prior
from iwae.models.vae import VAE
from iwae.objectives.building import build_objective
from iwae.objectives.compatibility import check_compatibility
from iwae.objectives.declaration import Declaration, unmodified_declaration
from iwae.sklearn.callbacks import with_tasks
from iwae.sklearn.parameters import declaration_from_parameters, hidden_sizes_parameter
from iwae.training.hiding import hidden_share
from iwae.training.loop import Best, Plan, Report, init_best, training_loop
from iwae.training.optimizers import adam
from iwae.training.progress import show_training
from iwae.training.replicates import replicate_model, weights_of_replicates
from iwae.training.schedules import StagedSchedule, staged_schedule
from iwae.training.steps import Settings, init_state
from iwae.typing import PRNGKey


def fitting_rows(
    estimator: Any, rows: np.ndarray, random: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray | None]:
    """Training rows and, with early stopping, validation rows."""
    if not estimator.early_stopping:
        return rows, None
    count = max(1, round(estimator.validation_fraction * len(rows)))
    if count >= len(rows):
        raise ValueError(
            f"validation_fraction={estimator.validation_fraction} of n_samples={len(rows)} leaves "
            "no rows to train on; give more rows, or early_stopping=False"
        )
    order = random.permutation(len(rows))
    train = rows[order[count:]]
    if (empty := np.isnan(train).all(axis=0)).any():
        raise ValueError(
            f"all values of column {empty.argmax() + 1} of X are in held-out rows; set "
            "early_stopping=False, or leave the column out"
        )
    return train, rows[order[:count]]


def fit_model(
    estimator: Any, X: Any, kind: Kind, train: np.ndarray, validation: np.ndarray | None
) -> None:
    """Train a model, and set the learnt attributes of the estimator; X is for its callbacks."""
    init_key, train_key = jax.random.split(jax.random.key(estimator._key_))
    blank = _blank_model(estimator, kind, train, init_key)
    batch_size = _batch_size(estimator.batch_size, len(train))
    declared = check_compatibility(
        declaration_from_parameters(estimator), 1, discrete=blank.has_discrete
    )
    gaps = bool(np.isnan(train).any())
    share = hidden_share(estimator.hide, estimator.missing, gaps=gaps)
    settings = _settings(declared, batch_size, share, estimator.ema)
    patience = estimator.n_iter_no_change if estimator.early_stopping else None
    plan = Plan(estimator.max_iter, patience=patience, threshold=estimator.tol)
    schedule = _schedule(estimator, len(train) // batch_size)
    first, reports = init_state([blank], train_key[None], settings), []
    state, best = first, init_best(first)

    def run() -> Iterator[Report]:
        nonlocal state, best
        start = first, best, train, schedule, blank, settings, plan, validation
        for step in training_loop(*start):
            state, best, report = step
            if report.epoch_done:
                reports.append(report)
            yield report

    def learnt() -> dict[str, Any]:
        params = best.params if estimator.early_stopping else weights_of_replicates(state)
        curves = _curves(reports, best, validation)
        return {"model_": replicate_model(blank, params, 0), **curves}

    estimator._n_features_out = blank.widths[0]
    show_training(with_tasks(estimator, X, run(), learnt), quiet=not estimator.verbose)
    for name, value in learnt().items():
        setattr(estimator, name, value)
    if validation is None or estimator.n_iter_ < estimator.max_iter:
        return
    if int(best.waited[0]) < estimator.n_iter_no_change:
        warnings.warn(
            f"the validation bound was still rising after max_iter={estimator.max_iter} passes; "
            "raise max_iter, or n_iter_no_change and tol",
            ConvergenceWarning,
            stacklevel=3,
        )


def _curves(reports: Sequence[Report], best: Best, validation: np.ndarray | None) -> dict[str, Any]:
    """The attributes that describe the course of training."""
    curves: dict[str, Any] = {
        "n_iter_": len(reports),
        "loss_curve_": [float(-report.bound[0]) for report in reports],
        "validation_scores_": None,
        "best_validation_score_": None,
    }
    if validation is not None:
        values = [report.validation for report in reports if report.validation is not None]
        curves["validation_scores_"] = [float(value[0]) for value in values]
        curves["best_validation_score_"] = float(best.value[0])
    return curves


def _batch_size(wanted: Any, n: int) -> int:
    """Rows per step of n training rows."""
    if isinstance(wanted, str):
        return min(n, max(16, min(100, n // 50)))
    if wanted > n:
        warnings.warn(
            f"Got `batch_size` larger than the {n} training rows. It is going to be clipped.",
            UserWarning,
            stacklevel=4,
        )
    return min(n, int(wanted))


def _schedule(estimator: Any, steps_per_epoch: int) -> StagedSchedule:
    """The learning rate, reduced to 0.3 and 0.1 of it after a half and three quarters."""
    ends = np.ceil(np.array([0.5, 0.75, 1.0]) * estimator.max_iter).astype(int)
    rates = [estimator.learning_rate_init * share for share in (1.0, 0.3, 0.1)]
    return staged_schedule(rates, np.diff(ends, prepend=0).tolist(), steps_per_epoch)


def _blank_model(estimator: Any, kind: Kind, train: np.ndarray, key: PRNGKey) -> VAE:
    """A model before training."""
    likelihood = observation(kind, train.shape[1], estimator.missing)
    return VAE(
        train.shape[1],
        (estimator.n_components,),
        (hidden_sizes_parameter(estimator),),
        latents=estimator.latents,
        observation=kind,
        activation=estimator.activation,
        output_bias=likelihood.initial_output(train),
        statistics=likelihood.encoding.statistics(train) if likelihood.encoding else None,
        missing=estimator.missing,
        log_scale=np.log(estimator.scale_),
        prior=estimator.prior,
        posterior=estimator.posterior,
        pseudo_inputs=_pseudo_inputs(estimator, train),
        key=key,
    )


def _pseudo_inputs(estimator: Any, train: np.ndarray) -> np.ndarray | None:
    """Random training rows at which the pseudo-inputs of a VampPrior start."""
    prior = parse_named_prior(estimator.prior)
    if prior.name != "vamp":
        return None
    if prior.size > len(train):
        raise ValueError(
            f"prior={estimator.prior!r} starts at {prior.size} training rows, of which there are "
            f"{len(train)}: choose a smaller number"
        )
    return train[choose(len(train), prior.size, seed=estimator._key_, stream=PSEUDO_INPUTS)]


@lru_cache
def _settings(
    declaration: Declaration, batch_size: int, hide: float | None, ema: float | None
) -> Settings:
    """Settings of training; cached, because programs are compiled for the object."""
    plain_bound = build_objective(unmodified_declaration(declaration), 1)
    objective, share = build_objective(declaration, 1), float(hide or 0.0)
    decay = None if ema is None else float(ema)
    return Settings(objective, adam(), batch_size, validated=plain_bound, ema=decay, hide=share)
