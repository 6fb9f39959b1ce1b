"""Tests that draws follow their densities, and gradients the draws."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from iwae.inference.log_weights import effective_sample_size, log_mean_exp
from iwae.models.posteriors import is_reparameterised_posterior
from iwae.models.vae import AbstractLatentModel as Model
from iwae.typing import Example, Latents, LogWeights, PRNGKey, Scalar

STANDARD_ERRORS = 7.0
"""The error of a mean, in standard errors, that is a fault; by chance, once in 10^11 if normal."""

UNLIKELY = 1e6
"""A mean of positive numbers with expectation 1 is larger once in 10^6 at most (Markov)."""

WIDER, NARROWER = 1.1, 0.9
"""Scales of the Gaussians that q is compared with, in units of its standard deviations."""


def require(condition: Any, message: str) -> None:
    """Raise AssertionError with the message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def named(tree: PyTree) -> list[tuple[str, Array]]:
    """The arrays of a pytree with the structure of a model or of z, with their names."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    return [
        (f"the model's {name[1:]}" if name.startswith(".") else f"z{name}", leaf)
        for name, (_, leaf) in zip(names, leaves, strict=True)
    ]


class Bulk(eqx.Module):
    """Mean and standard deviation of draws of q, as flat vectors.

    `everywhere` states whether densities are also finite around the draws. If not, the support of
    the latents is not R^m, and identities that require this are not checked.
    """

    mean: Float[Array, " m"]
    sd: Float[Array, " m"]
    everywhere: Bool[Array, ""]

    def outside(self, key: PRNGKey, n: int) -> Float[Array, "n m"]:
        """Draws of a Gaussian a little wider than q."""
        noise = jax.random.normal(key, (n, self.mean.size))
        return self.mean[None] + WIDER * self.sd[None] * noise


@eqx.filter_jit
def density_bulk(model: Model, x: Example, key: PRNGKey, draws: int) -> Bulk:
    """Estimate the bulk of q from draws, and evaluate both densities a little outside it."""
    key, outside_key = jax.random.split(key)
    q, flat = model.posterior(x), _flat_draws(model, x, key, draws)
    bulk = Bulk(jnp.mean(flat, axis=0), jnp.std(flat, axis=0), jnp.array(True))

    def log_densities(z: Float[Array, " m"]) -> Scalar:
        z = _unravel(model, x, z)
        return q.log_prob(z) + model.log_joint(x, z)

    finite = jnp.isfinite(jax.vmap(log_densities)(bulk.outside(outside_key, 1000)))
    # Bits and categories take a few values only.
    everywhere = finite.all() & is_reparameterised_posterior(q)
    return eqx.tree_at(lambda b: b.everywhere, bulk, everywhere)


def _unravel(model: Model, x: Example, flat: Float[Array, " m"]) -> Latents:
    z = model.posterior(x).sample(jax.random.key(0))  # only the shapes matter
    return ravel_pytree(z)[1](flat)


def _flat_draws(model: Model, x: Example, key: PRNGKey, draws: int) -> Float[Array, "n m"]:
    q = model.posterior(x)
    return jax.vmap(lambda key: ravel_pytree(q.sample(key))[0])(jax.random.split(key, draws))


def check_density_integrates_to_one(
    model: Model, x: Example, key: PRNGKey, draws: int, bulk: Bulk
) -> None:
    """Require E_r[q/r] and E_q[r/q] at most one, for Gaussians r a little wider or narrower.

    A value below one proves nothing: r may miss a part of q, or the draws a part of r.
    """

    @eqx.filter_jit
    def log_ratios(model: Model, key: PRNGKey) -> tuple[LogWeights, LogWeights]:
        inside_key, outside_key = jax.random.split(key)
        q = model.posterior(x)

        def log_ratio(z: Float[Array, " m"], width: float) -> Scalar:
            """log q(z|x) - log r(z)."""
            r = dist.Normal(bulk.mean, width * bulk.sd).to_event(1)
            return q.log_prob(_unravel(model, x, z)) - r.log_prob(z)

        inside = _flat_draws(model, x, inside_key, draws)
        outside = bulk.outside(outside_key, draws)
        too_small = -jax.vmap(lambda z: log_ratio(z, NARROWER))(inside)
        return too_small, jax.vmap(lambda z: log_ratio(z, WIDER))(outside)

    if bulk.everywhere:
        too_small, too_large = log_ratios(model, key)
        fault = "the density posterior(x).log_prob does not integrate to one: it is too"
        require(not _mean_is_above_one(too_small), f"{fault} small")
        require(not _mean_is_above_one(too_large), f"{fault} large")


def _mean_is_above_one(log_w: LogWeights) -> Any:
    """Whether the expectation of the weights is above one, beyond doubt."""
    relative_error = jnp.sqrt(1 / effective_sample_size(log_w) - 1 / log_w.size)
    log_mean = log_mean_exp(log_w)
    least = log_mean + jnp.log(jnp.maximum(1 - STANDARD_ERRORS * relative_error, 0))
    return (least > 1e-3) | (log_mean > jnp.log(UNLIKELY))


Statistic = Callable[[Model, PRNGKey], PyTree]

PATH_REMEDY = "posterior(x).sample must be differentiable in all parameters of q, at every step"
_REMEDIES = {
    "E_q[grad log q(z|x)]": "posterior(x).sample does not draw from posterior(x).log_prob",
    "the gradient through draws of q, minus the score-function gradient,": PATH_REMEDY,
    "E_p[grad log p(x, z)]": "sample does not draw from the density log_joint",
    "E_p[z d/dz log p(x, z) + 1]": "sample does not draw from the density log_joint",
}
"""Statistics that must have mean zero, and the fault if not; the last only on all of R^m."""


def check_draws_follow_densities(
    model: Model, x: Example, key: PRNGKey, draws: int, bulk: Bulk
) -> None:
    """Require that each statistic, for each array, has mean zero along its mean in other draws."""
    statistics = _statistics(x, bulk)
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
    sound = along if bulk.everywhere else along[:-1]
    for (what, remedy), components in zip(_REMEDIES.items(), sound, strict=False):
        for name, values in named(components):
            _check_mean_is_zero(values, f"{what} along {name}", remedy)


def _check_mean_is_zero(values: Float[Array, " n"], what: str, remedy: str) -> None:
    mean, error = jnp.mean(values), jnp.std(values) / jnp.sqrt(float(values.size))
    rounding = 1e-3 * jnp.mean(jnp.abs(values))
    require(
        jnp.abs(mean) <= STANDARD_ERRORS * error + rounding,
        f"{what} is {mean:.3g} +- {error:.2g}, but must be zero: {remedy}",
    )


def _statistics(x: Example, bulk: Bulk) -> Statistic:
    """One draw of each gradient named in `_REMEDIES`, in that order."""

    def f(z: Latents) -> Scalar:
        """A test function: any would do, but a bounded one of mean near zero adds little noise."""
        u = (ravel_pytree(z)[0] - bulk.mean) / bulk.sd
        return jnp.sum(jnp.tanh(u) - jnp.exp(-(u**2) / 2) + jnp.sqrt(0.5))

    def statistics(model: Model, key: PRNGKey) -> tuple[PyTree, ...]:
        q_key, p_key = jax.random.split(key)

        def through_draw(model: Model) -> tuple[Scalar, Latents]:
            z = model.posterior(x).sample(q_key)
            return f(z), z

        path, z = eqx.filter_grad(through_draw, has_aux=True)(model)
        score = eqx.filter_grad(lambda model: model.posterior(x).log_prob(z))(model)
        p_z, p_x = model.sample(p_key)
        of_model, of_z = eqx.filter_grad(lambda args: args[0].log_joint(p_x, args[1]))((model, p_z))
        has_path = is_reparameterised_posterior(model.posterior(x))
        path_less_score = jax.tree.map(
            lambda g, s: g - f(z) * s if has_path else jnp.zeros_like(s), path, score
        )
        return score, path_less_score, of_model, jax.tree.map(lambda h, g: h * g + 1, p_z, of_z)

    return statistics
