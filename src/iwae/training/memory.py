"""Training in memory, without a folder."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import optax

from iwae.data import Dataset
from iwae.data.rows import Examples
from iwae.errors import UserError
from iwae.evaluation.examples import check_examples
from iwae.models.conditional import Model, unconditional_model
from iwae.models.vae import AbstractLatentModel
from iwae.objectives.objective import Objective, as_objective
from iwae.precision import float32
from iwae.training.loop import Plan, Report, init_best, training_loop
from iwae.training.optimizers import adam
from iwae.training.progress import show_training
from iwae.training.replicates import replicate_model, weights_of_replicates
from iwae.training.schedules import Schedule, staged_schedule
from iwae.training.steps import Settings, init_state
from iwae.typing import Example, PRNGKey, Scalar

Callback = Callable[[Report], bool | None]
"""A function of the report of an epoch; True stops training."""


class Trained(NamedTuple):
    """The result of `train`.

    Attributes:
        model: with the last weights.
        best: with the weights of the best validation bound; `model` if nothing was held out.
        history: the reports of all epochs.
    """

    model: AbstractLatentModel
    best: AbstractLatentModel
    history: list[Report]


@float32
def train(
    model: AbstractLatentModel,
    examples: Examples | Dataset,
    objective: Objective | Callable[[AbstractLatentModel, Example, PRNGKey], Scalar],
    *,
    key: PRNGKey,
    epochs: int,
    batch_size: int = 20,
    optimizer: optax.GradientTransformation | None = None,
    learning_rate: float | Schedule = 1e-3,
    binarization: str | None = None,
    shuffle: bool = True,
    validation: Examples | None = None,
    validate_every: int = 1,
    patience: int | None = None,
    threshold: float = 0.0,
    ema: float | None = None,
    hide: float = 0.0,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Trained:
    """Train a model in memory; `iwae.start_run` trains in a folder, with checkpoints.

    Args:
        model: any model that passes `iwae.testing.check_latent_model`.
        examples: `[n, ...]`, or a data set. A data set provides the training examples, their
            binarisation and the held-out validation examples; a `VAE` then has densities in the
            units of its data.
        binarization: "dynamic" binarises bytes afresh at every access; by default "none", or that
            of the data set.
        objective: maximised, e.g. `bound(iwae, k=50)`, or any function (model, x, key) -> nats.
        optimizer: an Optax transformation without its learning rate; the paper's Adam if None.
        learning_rate: a number, or a function of the step such as any Optax schedule.
        validation: `[m, ...]` held-out examples in the model's units.
        validate_every, patience, threshold: see `Plan`.
        ema: decay of a moving average of the parameters; if given, the average is validated and
            returned.
        hide: probability of hiding each observed value from a model of values missing at random,
            drawn anew at every visit of its example; see `iwae.training.hiding`.
        progress: show epoch, speed, bounds and time left on standard error.
        callbacks: functions of the report of each epoch; training stops if one returns True.

    Raises:
        UserError: if there are fewer examples than a batch holds, their shape or values are
            invalid for the model, or values are to be hidden from a model that does not take values
            missing at random.
        NonFiniteError: names the step and the first term that is not finite.
    """
    if isinstance(examples, Dataset):
        model = _in_units_of(model, examples)
        binarization = binarization or examples.binarization
        if validation is None and len(examples.validation):
            validation = examples.examples("validation")
        examples = examples.examples("train")
    for rows in (examples, validation):
        if hasattr(rows, "columns") or hasattr(rows, "collect"):
            raise UserError(
                f"train takes arrays or a data set, not a {type(rows).__name__}: give "
                "load_dataset(frame)"
            )
    binarization = binarization or "none"
    settings = Settings(
        as_objective(objective),
        optimizer or adam(),
        batch_size,
        binarization,
        shuffle,
        ema=ema,
        hide=hide,
    )
    _check_hide(hide, model)
    check_examples(model, examples, values=binarization == "none")
    if validation is not None:
        check_examples(model, validation)
    schedule = (
        learning_rate if callable(learning_rate) else staged_schedule([learning_rate], [1], 1)
    )
    plan = Plan(epochs, validate_every, patience, threshold)
    state, history = init_state([model], key[None], settings), []
    best = init_best(state)

    def reports() -> Iterator[Report]:
        nonlocal state, best
        for step in training_loop(
            state, best, examples, schedule, model, settings, plan, validation
        ):
            state, best, report = step
            yield report
            if report.epoch_done:
                history.append(report)
                if any([callback(report) for callback in callbacks]):  # noqa: C419 - call all
                    return

    show_training(reports(), quiet=not progress)
    last = replicate_model(model, weights_of_replicates(state), 0)
    found = bool(best.epoch[0] > 0)
    return Trained(last, replicate_model(model, best.params, 0) if found else last, history)


def _check_hide(share: float, model: AbstractLatentModel) -> None:
    """Raise UserError for an invalid share, or a model without values missing at random."""
    if not 0 <= share < 1:
        raise UserError(f"hide is {share}; it must be at least 0 and below 1")
    if share and isinstance(model, Model) and unconditional_model(model).missing != "at-random":
        raise UserError("hide needs a model of gaps: make it with missing='at-random'")


def _in_units_of(model: AbstractLatentModel, data: Dataset) -> AbstractLatentModel:
    """The model with the scale of standardised data, for densities in the units of the data."""
    vae = unconditional_model(model) if isinstance(model, Model) else None
    if data.log_scale is None or vae is None or vae.log_scale is not None:
        return model
    log_scale = jnp.asarray(data.log_scale, jnp.float32)
    scaled = eqx.tree_at(lambda m: m.log_scale, vae, log_scale, is_leaf=lambda one: one is None)
    return scaled if model is vae else eqx.tree_at(lambda m: m.vae, model, scaled)
