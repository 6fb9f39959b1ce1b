"""Summaries for a person: the plan of a run before training, and the next steps after it."""

import math
from pathlib import Path

import equinox as eqx
import jax
from jaxtyping import Array

from iwae.data.own import is_own
from iwae.models.conditional import unconditional_model
from iwae.runs.folder import FOLDS, folder_config
from iwae.runs.folds import has_folds
from iwae.runs.jobs import Job
from iwae.runs.metrics import late_metrics_rise, read_metrics
from iwae.training.feed import feed_blocks
from iwae.training.progress import format_progress_time
from iwae.wording import count_in_words

RISE = 0.1
"""Training ended too soon if the bound rose by over 0.1 nats in the last tenth of the epochs."""


def describe_plan(job: Job) -> str:
    """Lines about the network, the objective and the length of training."""
    config, lines = job.config, [_network_line(job)]
    if config.stages is None:
        lines.append(f"objective: {config.objective}, k = {config.k}")
    if config.hide:
        lines.append(
            f"hidden: {config.hide:.0%} of the observed values at each visit of a row, so that the "
            "encoder learns to read gaps (--hide 0 hides none)"
        )
    most, stops = "", ""
    if config.patience is not None:
        most = "at most "
        stops = f"; it stops after {config.patience} validations without a better bound"
    if config.folds is not None:
        n = len(job.dataset.train)
        lines.append(
            f"epochs: chosen by {config.folds} models, each trained without another part of the "
            f"{n:,} training rows; then a model is trained on all rows for as many epochs "
            "(--validation 0.1 holds rows out instead)"
        )
    steps = job.stages[0].steps_per_epoch
    batch = f" of {steps:,} steps with {config.batch_size} rows" if config.stages is None else ""
    lines.append(f"training: {most}{count_in_words(config.epochs, 'epoch', ',')}{batch}{stops}")
    about = format_progress_time(planned_seconds(job))
    lines.append(
        f"time: about {about} on two cores{', less if it stops early' if stops else ''}; the time "
        "left is measured as it trains"
    )
    if config.ema is not None:
        lines.append(
            f"weights: a moving average over about {1 / (1 - config.ema):,.0f} steps, which is "
            "validated and saved (--ema None for the weights themselves)"
        )
    blocks = feed_blocks(job.dataset.train, job.stages[0].settings.batch_size)
    if blocks.number > 1:
        lines.append(f"blocks: {blocks.number:,} an epoch, of {blocks.rows:,} rows, read in turn")
    return "\n".join(lines)


def _network_line(job: Job) -> str:
    config, vae = job.config, unconditional_model(job.models[0])
    constant = 0 if vae.log_scale is None else vae.log_scale.size
    count = sum(leaf.size for leaf in _parameters(job)) - constant
    sizes = [str(vae.n_data)]
    for hidden, latent in zip(config.hidden_sizes or (), config.latent_sizes or (), strict=True):
        sizes += [*map(str, hidden), f"{latent} latents"]
    return f"network: {config.network}, {' - '.join(sizes)}; {count:,} parameters"


def _parameters(job: Job) -> list[Array]:
    return jax.tree.leaves(eqx.filter(job.models[0], eqx.is_inexact_array))


def planned_seconds(job: Job) -> float:
    """A rough training time on two cores of a CPU, seconds, from the work of its steps."""
    places = math.prod(job.dataset.shape[:2]) / 8  # positions of a kernel, with strides of 2
    products = sum(leaf.size * (places if leaf.ndim == 4 else 1) for leaf in _parameters(job))
    total = START_SECONDS
    for stage in job.stages:
        # A stage's cost is in passes through the decoder, which has half of the products.
        work = 6 * stage.settings.batch_size * stage.cost * products / 2
        steps = stage.epochs * (stage.steps_per_epoch + EPOCH_STEPS)
        total += job.config.replicates * steps * (STEP_SECONDS + work / OPERATIONS)
    return total * (1 + int(job.config.folds or 0))


START_SECONDS, STEP_SECONDS, EPOCH_STEPS, OPERATIONS = 10.0, 5e-4, 10, 1.8e11
"""Start and compilation; each step; validation and logs of an epoch, in steps; operations a second.

With Adam and dense layers on two cores, the time of a step is within a half of that in
`experiments/costs.json`; with aiwae it is twice that.
"""


def plan_next_steps(run: Path) -> str:
    """Lines about the next steps with a finished run: measure, train longer, ask about rows."""
    config = folder_config(run)
    weights = " --weights best" if config.validation else ""
    lines = [f"trained models are in {run}/models; measure them with: iwae evaluate {run}{weights}"]
    if has_folds(run):
        lines.append(
            f"cross-validation chose {count_in_words(config.epochs, 'epoch', ',')}; the bounds of "
            f"all epochs are in {run}/{FOLDS}"
        )
    rise = None if config.stages else late_metrics_rise(config.epochs, read_metrics(run))
    if rise is not None and rise > RISE:
        lines.append(
            f"the validation bound was still rising, by {rise:.2f} nats over the last tenth of the "
            f"{count_in_words(config.epochs, 'epoch', ',')}: train longer, with all other settings "
            f"as they are: iwae train {run}/config.toml --epochs {2 * config.epochs} --out LONGER"
        )
    if is_own(config.dataset) and config.binarization not in ("dynamic", "static"):
        lines.append(f"ask about the rows of a file with: iwae score {run} FILE --out scores.csv")
    return "\n".join(lines)
