"""What `iwae` needs of a latent variable model, as checks that say what is wrong."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from iwae._types import Example, Latents, LogWeights, PRNGKey, Scalar
from iwae.model import AbstractLatentModel
from iwae.particles import (
    Particles,
    effective_sample_size,
    importance_particles,
    log_mean_exp,
    particle_keys,
)

STANDARD_ERRORS = 7.0
"""A mean this far from what it must be is a fault: by chance, once in 10^11 for normal means."""

UNLIKELY = 1e6
"""A mean of positive numbers of expectation 1 exceeds this once in 10^6 at most (Markov)."""

Model = AbstractLatentModel


def check_latent_model(model: Any, example: Example, key: PRNGKey, *, draws: int = 10_000) -> None:
    """Raise unless `model` keeps the contract of `AbstractLatentModel` at this example.

    Exact: shapes, types and finite values; a draw depends on the key and on nothing else; `vmap`
    over examples and particles gives what single calls give; `stop_gradient` on the posterior,
    which therefore is a pytree, cuts it off from every parameter; each parameter that moves
    log q moves its draws.

    Statistical, each with a chance of a false alarm below 10^-6: draws of q follow its density
    (E_q grad log q = 0, and the density integrates to one); gradients through draws of q are
    those of its expectations (they agree with score-function gradients); draws of `sample`
    follow `log_joint` (E_p grad log p = 0).

    What no such check can see is a constant missing from log p(x, z), or a wrong density of p
    that has no parameter to differentiate.

    Args:
        model: the model to check.
        example: one x, as training will present it (float32).
        key: for the draws.
        draws: of each statistical check; fewer find less.

    Raises:
        AssertionError: says which promise is broken, and what to do about it.
    """
    _require(
        isinstance(model, AbstractLatentModel),
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
            "the model cannot be compiled: its methods must be made of jax.numpy functions, "
            f"without branches on the values of arrays ({error})"
        ) from error
    moments = _moments(model, x, keys[4], draws)
    _check_draws_follow_densities(model, x, keys[5], draws, moments)
    _check_q_integrates_to_one(model, x, keys[6], draws, moments)


# --- exact ----------------------------------------------------------------------------------


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _check_scalar(value: Any, what: str) -> None:
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    _require(shape == (), f"{what} has shape {shape}, not (): sum over all dimensions")
    _require(dtype == jnp.float32, f"{what} has dtype {dtype}, not float32")
    _require(jnp.isfinite(value), f"{what} is {value}, which is not finite")


def _check_alike(tree: PyTree, other: PyTree, what: str) -> None:
    def shapes(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{jnp.shape(leaf)}", tree)

    _require(
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
        _require(floating, "latents must be floating-point arrays, to be reparameterised")
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
    """Another key, another draw."""
    one, two = jax.random.split(key)
    for name, differ in {
        "posterior(x).sample": not eqx.tree_equal(_draw_q(model, x, one), _draw_q(model, x, two)),
        "sample": not eqx.tree_equal(
            _draw_p(model, jax.random.clone(one)), _draw_p(model, jax.random.clone(two))
        ),
    }.items():
        _require(differ, f"{name} gave the same draw for two keys: draw with jax.random and key")


def _check_vmap(model: Model, x: Example, key: PRNGKey) -> None:
    """Batches of examples and particles give what single calls give."""
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
            _require(
                jnp.allclose(flat_a, flat_b, rtol=1e-3, atol=1e-2),
                f"{name} is {flat_a} alone and {flat_b} under jax.vmap for the same key: a draw "
                "must depend on its key alone, and an example not on the others of its batch",
            )


def _index(tree: PyTree, index: Any) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _check_gradients(model: Model, x: Example, key: PRNGKey) -> None:
    """`stop_gradient` cuts q off; what moves log q moves its draws; gradients are finite."""
    z_key, key = jax.random.split(key)
    through_stop, of_log_q, of_draw, of_log_w = _gradients(model, x, _draw_q(model, x, z_key), key)
    for name, gradient in through_stop:
        _require(
            not gradient.any(),
            f"stop_gradient(posterior(x)) leaves a gradient to {name}: make the posterior a "
            "NumPyro distribution or an equinox.Module that holds all its arrays as fields",
        )
    for (name, moves), (_, moved) in zip(of_log_q, of_draw, strict=True):
        _require(
            moved.any() or not moves.any(),
            f"{name} moves log q(z|x) but no gradient reaches it through a draw: {_PATH_REMEDY}",
        )
    for name, gradient in of_log_w:
        finite = jnp.isfinite(gradient).all()
        _require(finite, f"the gradient of log p(x, z) - log q(z|x) for {name} is not finite")


def _gradients(
    model: Model, x: Example, z: Latents, key: PRNGKey
) -> tuple[list[tuple[str, Array]], ...]:
    """Gradients of functions of q, by the names of the model's arrays."""
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

    return tuple(_named(tree) for tree in gradients(model))


def _named(tree: PyTree) -> list[tuple[str, Array]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [
        (f"the model's {jax.tree_util.keystr(path).lstrip('.')}", leaf) for path, leaf in leaves
    ]


# --- statistical ----------------------------------------------------------------------------


class _Moments(eqx.Module):
    """Mean and standard deviation of draws of q, flat."""

    mean: Float[Array, " m"]
    sd: Float[Array, " m"]


@eqx.filter_jit
def _moments(model: Model, x: Example, key: PRNGKey, draws: int) -> _Moments:
    flat = _flat_draws(model, x, key, draws)
    return _Moments(jnp.mean(flat, axis=0), jnp.std(flat, axis=0))


def _flat_draws(model: Model, x: Example, key: PRNGKey, draws: int) -> Float[Array, "n m"]:
    q = model.posterior(x)
    return jax.vmap(lambda key: ravel_pytree(q.sample(key))[0])(jax.random.split(key, draws))


def _check_q_integrates_to_one(
    model: Model, x: Example, key: PRNGKey, draws: int, moments: _Moments
) -> None:
    """Neither E_r[q/r] nor E_q[r/q] is above one, for Gaussians r a little wider or narrower.

    Below one says nothing: r may miss a part of q, or the draws a part of r.
    """

    @eqx.filter_jit
    def log_ratios(model: Model, key: PRNGKey) -> tuple[LogWeights, LogWeights]:
        inside_key, outside_key = jax.random.split(key)
        q = model.posterior(x)
        unravel = ravel_pytree(q.sample(jax.random.key(0)))[1]  # only the shapes matter

        def log_ratio(z: Float[Array, " m"], width: float) -> Scalar:
            """log q(z|x) - log r(z)."""
            r = dist.Normal(moments.mean, width * moments.sd).to_event(1)
            return q.log_prob(unravel(z)) - r.log_prob(z)

        inside = _flat_draws(model, x, inside_key, draws)
        noise = jax.random.normal(outside_key, inside.shape)
        outside = moments.mean[None] + 1.1 * moments.sd[None] * noise
        too_small = -jax.vmap(lambda z: log_ratio(z, 0.9))(inside)
        return too_small, jax.vmap(lambda z: log_ratio(z, 1.1))(outside)

    too_small, too_large = log_ratios(model, key)
    if jnp.isfinite(too_large).all():  # else q does not live on all of R^m, and r / q is no test
        fault = "the density posterior(x).log_prob does not integrate to one: it is too"
        _require(not _mean_is_above_one(too_small), f"{fault} small")
        _require(not _mean_is_above_one(too_large), f"{fault} large")


def _mean_is_above_one(log_w: LogWeights) -> Any:
    """Whether weights have an expectation above one, beyond doubt."""
    relative_error = jnp.sqrt(1 / effective_sample_size(log_w) - 1 / log_w.size)
    log_mean = log_mean_exp(log_w)
    least = log_mean + jnp.log(jnp.maximum(1 - STANDARD_ERRORS * relative_error, 0))
    return (least > 1e-3) | (log_mean > jnp.log(UNLIKELY))


Statistic = Callable[[Model, PRNGKey], PyTree]

_PATH_REMEDY = "posterior(x).sample must be differentiable in q's parameters, all the way"
_REMEDIES = {
    "E_q[grad log q(z|x)]": "posterior(x).sample does not draw from posterior(x).log_prob",
    "the gradient through draws of q, less the score-function gradient,": _PATH_REMEDY,
    "E_p[grad log p(x, z)]": "sample does not draw from the density log_joint",
}
"""What must have mean zero, and the fault if it has not."""


def _check_draws_follow_densities(
    model: Model, x: Example, key: PRNGKey, draws: int, moments: _Moments
) -> None:
    """Each statistic, for each array of the model, along its mean in other draws, has mean zero."""
    statistics = _statistics(x, moments)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        eqx.filter_eval_shape(statistics, model, jax.random.key(0)),
    )

    @eqx.filter_jit
    def run(model: Model, keys: Array, direction: PyTree) -> tuple[PyTree, PyTree]:
        """The sum of the statistics, and the component of each along `direction`."""

        def add(total: PyTree, key: PRNGKey) -> tuple[PyTree, PyTree]:
            value = statistics(model, key)
            along = jax.tree.map(lambda d, v: jnp.sum(d * v), direction, value)
            return jax.tree.map(jnp.add, total, value), along

        return jax.lax.scan(add, zeros, keys)

    first_key, second_key = jax.random.split(key)
    total, _ = run(model, jax.random.split(first_key, draws // 2), zeros)
    direction = jax.tree.map(lambda v: v / (jnp.linalg.norm(v.ravel()) + 1e-30), total)
    _, along = run(model, jax.random.split(second_key, draws // 2), direction)
    for (what, remedy), components in zip(_REMEDIES.items(), along, strict=True):
        for name, values in _named(components):
            _check_mean_is_zero(values, f"{what} along {name}", remedy)


def _check_mean_is_zero(values: Float[Array, " n"], what: str, remedy: str) -> None:
    mean, error = jnp.mean(values), jnp.std(values) / jnp.sqrt(float(values.size))
    rounding = 1e-3 * jnp.mean(jnp.abs(values))
    _require(
        jnp.abs(mean) <= STANDARD_ERRORS * error + rounding,
        f"{what} is {mean:.3g} +- {error:.2g}, where it must be zero: {remedy}",
    )


def _statistics(x: Example, moments: _Moments) -> Statistic:
    """One draw of each of the gradients named in `_REMEDIES`, in that order."""

    def f(z: Latents) -> Scalar:
        """Any function would do; a bounded one of mean near zero adds little noise."""
        u = (ravel_pytree(z)[0] - moments.mean) / moments.sd
        return jnp.sum(jnp.tanh(u) - jnp.exp(-(u**2) / 2) + jnp.sqrt(0.5))

    def statistics(model: Model, key: PRNGKey) -> tuple[PyTree, PyTree, PyTree]:
        q_key, p_key = jax.random.split(key)

        def through_draw(model: Model) -> tuple[Scalar, Latents]:
            z = model.posterior(x).sample(q_key)
            return f(z), z

        path, z = eqx.filter_grad(through_draw, has_aux=True)(model)
        score = eqx.filter_grad(lambda model: model.posterior(x).log_prob(z))(model)
        p_z, p_x = model.sample(p_key)
        score_of_p = eqx.filter_grad(lambda model: model.log_joint(p_x, p_z))(model)
        return score, jax.tree.map(lambda g, s: g - f(z) * s, path, score), score_of_p

    return statistics
