"""Diagnosis of a run that broke: the step, and the first quantity that is not finite."""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree, Shaped

from iwae.inference.particles import Info, particle_keys
from iwae.models.vae import AbstractLatentModel
from iwae.objectives.objective import Extra
from iwae.training.replicates import replicate_model
from iwae.training.schedules import Schedule
from iwae.training.steps import (
    Clock,
    Settings,
    TrainState,
    run_compiled_steps,
    step_batch,
    step_example,
    step_key,
    step_loss,
    step_order,
)
from iwae.typing import PRNGKey

DIAGNOSED = 64
"""Number of particles of the step that are examined, from the first, whatever k is."""


def diagnose_training(
    state: TrainState,
    stop: Int[Array, " R"],
    data: Shaped[Array, "n ..."],
    schedule: Schedule,
    template: AbstractLatentModel,
    settings: Settings,
    clock: Clock,
) -> tuple[TrainState, str]:
    """Rerun the dispatch that broke and check every gradient.

    Returns:
        The last good state, and a message that names the step and the first broken term.
    """
    good = run_compiled_steps(state, stop, data, schedule, template, settings, clock, checked=True)
    broken = int(np.argmax(np.asarray(good.step < stop)))
    one = jax.tree.map(lambda leaf: leaf[broken], good)
    order = step_order(one, len(data), settings, clock)
    raw = step_batch(one, order, data, settings, clock)
    model = replicate_model(template, good.params, broken)
    term = _first_non_finite(model, raw, step_key(one), one.extra, settings)
    step = int(one.step)
    steps_per_epoch = settings.blocks * (len(data) // settings.batch_size)
    epoch = int(clock.epoch) + (step - int(clock.step)) // steps_per_epoch
    return good, (
        f"training stopped at step {step + 1} (epoch {epoch + 1}, replicate "
        f"{broken}): {term} is not finite; a smaller learning rate or smaller inputs usually help"
    )


def _first_non_finite(
    model: AbstractLatentModel,
    raw: Shaped[Array, "batch ..."],
    key: PRNGKey,
    extra: Extra,
    settings: Settings,
) -> str:
    """Name the first quantity of a step, in order of computation, that is not finite."""
    for name, tree in _quantities(model, raw, key, extra, settings):
        leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
        if not all(bool(jnp.isfinite(leaf).all()) for leaf in leaves):
            return name
    return "the optimiser's update"


TERMS = (
    *("the input x", "a parameter of q(z|x)", "a draw of q(z|x)"),
    *("log q(z|x)", "log p(x, z)"),
)


def _quantities(
    model: AbstractLatentModel,
    raw: Shaped[Array, "batch ..."],
    key: PRNGKey,
    extra: Extra,
    settings: Settings,
) -> Iterator[tuple[str, PyTree]]:
    yield "a parameter of the model", model
    yield from zip(TERMS, _terms(model, raw, key, settings), strict=True)
    (loss, _), grads = _loss_and_gradient((model, extra.learned), raw, key, extra, settings)
    yield "the bound", loss
    yield "an array that the objective learns or tunes", extra
    for tree in grads:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = jax.tree_util.keystr(path).lstrip(".")
            yield f"the gradient of {name or 'an array that the objective learns'}", leaf


@eqx.filter_jit  # compiled, because NumPyro eagerly refuses parameters that are not finite
def _terms(
    model: AbstractLatentModel, raw: Shaped[Array, "batch ..."], key: PRNGKey, settings: Settings
) -> tuple[PyTree, ...]:
    """The quantities named by `TERMS`, for each example of a batch."""

    def one(raw: Shaped[Array, "..."], position: Array) -> tuple[PyTree, ...]:
        given, x, latent_key = step_example(model, raw, position, key, settings)
        has_gaps = getattr(given, "missing", None) is not None  # then nan is a missing value
        seen = jnp.where(jnp.isnan(x), 0.0, x) if has_gaps else x
        q = given.posterior(x)
        z = jax.vmap(q.sample)(particle_keys(latent_key, jnp.arange(DIAGNOSED)))
        return seen, q, z, jax.vmap(q.log_prob)(z), jax.vmap(lambda z: given.log_joint(x, z))(z)

    return jax.vmap(one)(raw, jnp.arange(len(raw)))


@eqx.filter_jit
def _loss_and_gradient(
    trained: tuple[AbstractLatentModel, PyTree],
    raw: Shaped[Array, "batch ..."],
    key: PRNGKey,
    extra: Extra,
    settings: Settings,
) -> tuple[tuple[Array, Info], PyTree]:
    def loss(trained: tuple[AbstractLatentModel, PyTree]) -> tuple[Array, Info]:
        model, learned = trained
        return step_loss(model, raw, key, extra._replace(learned=learned), settings)

    return eqx.filter_value_and_grad(loss, has_aux=True)(trained)
