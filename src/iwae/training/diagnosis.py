"""Which number broke a run, and in which step."""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree, Shaped

from iwae._types import PRNGKey
from iwae.model import AbstractLatentModel
from iwae.particles import particle_keys
from iwae.training.schedules import Schedule
from iwae.training.steps import (
    Settings,
    TrainState,
    batch,
    epoch_order,
    example,
    mean_loss,
    replicate_model,
    run_steps,
    step_key,
)

DIAGNOSED = 64
"""Particles looked at: the first ones of the step, whatever its k."""


def diagnose(
    state: TrainState,
    stop: Int[Array, " R"],
    data: Shaped[Array, "n ..."],
    schedule: Schedule,
    template: AbstractLatentModel,
    settings: Settings,
) -> tuple[TrainState, str]:
    """Run the dispatch that broke again, checking every gradient.

    Returns:
        The last good state, and a message that names the step and the first broken term.
    """
    good = run_steps(state, stop, data, schedule, template, settings, checked=True)
    broken = int(np.argmax(np.asarray(good.step < stop)))
    one = jax.tree.map(lambda leaf: leaf[broken], good)
    raw = batch(one, epoch_order(one, len(data), settings), data, settings)
    model = replicate_model(template, good.params, broken)
    term = first_non_finite(model, raw, step_key(one), settings)
    step, steps_per_epoch = int(one.step), len(data) // settings.batch_size
    return good, (
        f"training stopped at step {step + 1} (epoch {step // steps_per_epoch + 1}, replicate "
        f"{broken}): {term} is not finite; a smaller learning rate or smaller inputs usually help"
    )


def first_non_finite(
    model: AbstractLatentModel,
    raw: Shaped[Array, "batch ..."],
    key: PRNGKey,
    settings: Settings,
) -> str:
    """The first of a step's quantities, in the order of their computation, that broke."""
    for name, tree in _quantities(model, raw, key, settings):
        leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
        if not all(bool(jnp.isfinite(leaf).all()) for leaf in leaves):
            return name
    return "the optimiser's update"


def _quantities(
    model: AbstractLatentModel, raw: Shaped[Array, "batch ..."], key: PRNGKey, settings: Settings
) -> Iterator[tuple[str, PyTree]]:
    yield "a parameter of the model", model

    def terms(raw: Shaped[Array, "..."], position: Array) -> dict[str, PyTree]:
        x, latent_key = example(raw, position, key, settings)
        posterior = model.posterior(x)
        z = jax.vmap(posterior.sample)(particle_keys(latent_key, jnp.arange(DIAGNOSED)))
        return {
            "the input x": x,
            "a parameter of q(z|x)": posterior,
            "a draw of q(z|x)": z,
            "log q(z|x)": jax.vmap(posterior.log_prob)(z),
            "log p(x, z)": jax.vmap(lambda z: model.log_joint(x, z))(z),
        }

    yield from jax.vmap(terms)(raw, jnp.arange(len(raw))).items()
    params, static = eqx.partition(model, eqx.is_inexact_array)
    loss, grads = jax.value_and_grad(
        lambda params: mean_loss(eqx.combine(params, static), raw, key, settings)
    )(params)
    yield "the bound", loss
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        yield f"the gradient of {jax.tree_util.keystr(path).lstrip('.')}", leaf
