"""Check the requirements of `iwae` for a latent variable model; a failure names the fault."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from iwae.inference.particles import Particles, importance_particles, particle_keys
from iwae.models.posteriors import is_reparameterised_posterior
from iwae.models.vae import AbstractLatentModel as Model
from iwae.precision import float32
from iwae.testing.densities import (
    PATH_REMEDY,
    check_density_integrates_to_one,
    check_draws_follow_densities,
    density_bulk,
    named,
    require,
)
from iwae.typing import Example, Latents, PRNGKey, Scalar


@float32
def check_latent_model(model: Any, example: Example, key: PRNGKey, *, draws: int = 10_000) -> None:
    """Raise unless `model` satisfies the contract of `AbstractLatentModel` at this example.

    Exact: shapes, types and finite values; a draw depends on the key and on nothing else; `vmap`
    over examples and particles agrees with single calls; `stop_gradient` on the posterior, which
    must therefore be a pytree, detaches it from every parameter; each parameter that affects log q
    affects its draws. Nothing is required of gradients through draws of a posterior whose
    `has_rsample` is False.

    Statistical, each with a false-alarm probability below 10^-6: draws of q follow its density
    (E_q grad log q = 0, and the density integrates to one); gradients through draws of q are
    those of its expectations (they agree with score-function gradients); draws of `sample`
    follow `log_joint` (E_p grad log p = 0 for its parameters, and Stein's identity for z).

    No such check can detect a constant missing from log p(x, z).

    Args:
        model: the model to check.
        example: one x, as training will present it (float32).
        key: for the draws.
        draws: the number of draws of each statistical check; fewer detect less.

    Raises:
        AssertionError: names the broken requirement and the remedy.
    """
    require(
        isinstance(model, Model),
        f"a {type(model).__name__} is not a model: make it a subclass of AbstractLatentModel",
    )
    x = jax.tree.map(jnp.asarray, example)
    keys = jax.random.split(key, 7)
    try:
        _check_values(model, x, keys[0])
        _check_keys(model, x, keys[1])
        _check_vmap(model, x, keys[2])
        _check_gradients(model, x, keys[3])
    except jax.errors.ConcretizationTypeError as error:
        raise AssertionError(
            "the model cannot be compiled: its methods must use jax.numpy functions, "
            f"without branches on the values of arrays ({error})"
        ) from error
    bulk = density_bulk(model, x, keys[4], draws)
    check_draws_follow_densities(model, x, keys[5], draws, bulk)
    check_density_integrates_to_one(model, x, keys[6], draws, bulk)


def _check_scalar(value: Any, what: str) -> None:
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    require(shape == (), f"{what} has shape {shape}, not (): sum over all dimensions")
    require(dtype == jnp.float32, f"{what} has dtype {dtype}, not float32")
    require(jnp.isfinite(value), f"{what} is {value}, which is not finite")


def _check_alike(tree: PyTree, other: PyTree, what: str) -> None:
    def shapes(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{jnp.shape(leaf)}", tree)

    require(
        shapes(tree) == shapes(other),
        f"{what} differ in structure, shape or type: {shapes(tree)} and {shapes(other)}",
    )


def _check_values(model: Model, x: Example, key: PRNGKey) -> None:
    """Shapes, types and finite values."""
    q_key, p_key = jax.random.split(key)
    z = _draw_q(model, x, q_key)
    p_z, p_x = _draw_p(model, p_key)
    _check_alike(z, p_z, "z of posterior(x).sample(key) and z of sample(key)")
    _check_alike(x, p_x, "the example and x of sample(key)")
    for leaf in jax.tree.leaves(z):
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        require(floating, "latents must be floating-point arrays, to be reparameterised")
    log_q, log_joint = eqx.filter_jit(_log_q), eqx.filter_jit(_log_joint)
    _check_scalar(log_q(model, x, z), "posterior(x).log_prob(z), z ~ q(z|x),")
    _check_scalar(log_joint(model, x, z), "log_joint(x, z), z ~ q(z|x),")
    _check_scalar(log_joint(model, p_x, p_z), "log_joint(x, z), (x, z) ~ p,")


@eqx.filter_jit
def _draw_q(model: Model, x: Example, key: PRNGKey) -> Latents:
    return model.posterior(x).sample(key)


@eqx.filter_jit
def _draw_p(model: Model, key: PRNGKey) -> tuple[Latents, Example]:
    return model.sample(key)


def _log_q(model: Model, x: Example, z: Latents) -> Any:
    return model.posterior(x).log_prob(z)


def _log_joint(model: Model, x: Example, z: Latents) -> Any:
    return model.log_joint(x, z)


def _check_keys(model: Model, x: Example, key: PRNGKey) -> None:
    """Different keys give different draws."""
    one, two = jax.random.split(key)
    for name, differ in {
        "posterior(x).sample": not eqx.tree_equal(_draw_q(model, x, one), _draw_q(model, x, two)),
        "sample": not eqx.tree_equal(
            _draw_p(model, jax.random.clone(one)), _draw_p(model, jax.random.clone(two))
        ),
    }.items():
        require(differ, f"{name} gave the same draw for two keys: draw with jax.random and the key")


def _check_vmap(model: Model, x: Example, key: PRNGKey) -> None:
    """Batches of examples and particles agree with single calls."""
    other_key, key = jax.random.split(key)
    _, other = _draw_p(model, other_key)
    xs = jax.tree.map(lambda *leaves: jnp.stack(leaves), x, other)

    @eqx.filter_jit
    def batch(model: Model, xs: Example) -> Particles:
        return jax.vmap(lambda x: importance_particles(model, x, key, 2)[0])(xs)

    @eqx.filter_jit
    def single(model: Model, x: Example, i: Array) -> tuple[Latents, Scalar]:
        q = model.posterior(x)
        z = q.sample(particle_keys(key, i[None])[0])
        return z, model.log_joint(x, z) - q.log_prob(z)

    particles = batch(model, xs)
    for i, j in ((0, 0), (1, 1)):
        alone = single(model, _index(xs, i), jnp.asarray(j))
        batched = _index(tuple(particles), (i, j))
        for name, a, b in zip(("z", "log p(x, z) - log q(z|x)"), alone, batched, strict=True):
            flat_a, flat_b = ravel_pytree(a)[0], ravel_pytree(b)[0]
            require(
                jnp.allclose(flat_a, flat_b, rtol=1e-3, atol=1e-2),
                f"{name} is {flat_a} alone and {flat_b} under jax.vmap for the same key: a draw "
                "must depend only on its key, and an example not on the others in its batch",
            )


def _index(tree: PyTree, index: Any) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _check_gradients(model: Model, x: Example, key: PRNGKey) -> None:
    """`stop_gradient` detaches q; parameters of log q affect its draws; gradients are finite."""
    z_key, key = jax.random.split(key)
    through_stop, of_log_q, of_draw, of_log_w = _gradients(model, x, _draw_q(model, x, z_key), key)
    if not is_reparameterised_posterior(model.posterior(x)):
        of_log_q = of_draw = []
    for name, gradient in through_stop:
        require(
            not gradient.any(),
            f"stop_gradient(posterior(x)) does not stop the gradient to {name}: make the posterior "
            "a NumPyro distribution or an equinox.Module that holds all its arrays as fields",
        )
    for (name, moves), (_, moved) in zip(of_log_q, of_draw, strict=True):
        require(
            moved.any() or not moves.any(),
            f"{name} affects log q(z|x), but no gradient reaches it through a draw: {PATH_REMEDY}",
        )
    for name, gradient in of_log_w:
        finite = jnp.isfinite(gradient).all()
        require(
            finite, f"the gradient of log p(x, z) - log q(z|x) with respect to {name} is not finite"
        )


def _gradients(
    model: Model, x: Example, z: Latents, key: PRNGKey
) -> tuple[list[tuple[str, Array]], ...]:
    """Gradients of functions of q, by the name of each array of the model."""
    stopped_key, draw_key, weight_key = jax.random.split(key, 3)

    def mixed(z: Latents) -> Scalar:
        flat = ravel_pytree(z)[0]
        return jnp.sum(flat * jnp.arange(1.0, 1.0 + flat.size))

    def stopped(model: Model) -> Scalar:
        q = jax.lax.stop_gradient(model.posterior(x))
        return q.log_prob(z) + mixed(q.sample(stopped_key))

    def log_q(model: Model) -> Scalar:
        return model.posterior(x).log_prob(z)

    def draw(model: Model) -> Scalar:
        return mixed(model.posterior(x).sample(draw_key))

    def log_w(model: Model) -> Scalar:
        return importance_particles(model, x, weight_key, 1)[0].log_w[0]

    @eqx.filter_jit
    def gradients(model: Model) -> list[PyTree]:
        return [eqx.filter_grad(f)(model) for f in (stopped, log_q, draw, log_w)]

    return tuple(named(tree) for tree in gradients(model))
