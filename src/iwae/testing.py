"""The contract of a latent variable model as a test that users run, and a model known exactly.

`check_latent_model(model, example, key)` passes for every model that `iwae` can train and
measure. `LinearGaussian` has a closed form for everything, so it can judge every estimator.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree

from iwae._types import Example, Latents, LogWeights, PRNGKey, Scalar
from iwae.model import AbstractLatentModel
from iwae.particles import (
    effective_sample_size,
    importance_particles,
    log_mean_exp,
    particle_keys,
)

STANDARD_ERRORS = 7.0
"""A mean this far from what it must be is a fault: by chance, once in 10^11 for normal means."""

UNLIKELY = 1e6
"""A mean of positive numbers of expectation 1 exceeds this once in 10^6 at most (Markov)."""


# --- a model known exactly ------------------------------------------------------------------


class LinearGaussian(AbstractLatentModel):
    """p(z) = N(0, I), p(x|z) = N(W z + b, s^2 I), with q(z|x) = N(A x + c, T T').

    q has parameters of its own. They start at the exact posterior, or at a known distance from
    it, which makes every bound, gradient and estimate something that can be worked out.

    Args:
        weight: W, `[d, m]`.
        bias: b, `[d]`.
        scale: s.
        q_shift: added to the exact posterior mean; a number, or `[m]`.
        q_scale: multiplies the exact posterior standard deviations.
    """

    weight: Float[Array, "d m"]
    bias: Float[Array, " d"]
    log_scale: Float[Array, ""]
    q_weight: Float[Array, "m d"]
    q_bias: Float[Array, " m"]
    q_tril: Float[Array, "m m"]

    def __init__(
        self,
        weight: np.ndarray,
        bias: np.ndarray,
        scale: float,
        *,
        q_shift: float | np.ndarray = 0.0,
        q_scale: float = 1.0,
    ):
        covariance = np.linalg.inv(np.eye(weight.shape[1]) + weight.T @ weight / scale**2)
        gain = covariance @ weight.T / scale**2
        self.weight, self.bias = jnp.float32(weight), jnp.float32(bias)
        self.log_scale = jnp.float32(np.log(scale))
        self.q_weight = jnp.float32(gain)
        self.q_bias = jnp.float32(q_shift - gain @ bias)
        self.q_tril = jnp.float32(q_scale * np.linalg.cholesky(covariance))

    @staticmethod
    def random(
        n_latent: int = 2,
        n_data: int = 3,
        *,
        seed: int = 0,
        q_shift: float | np.ndarray = 0.0,
        q_scale: float = 1.0,
    ) -> "LinearGaussian":
        """One with W ~ N(0, 1), b ~ N(1, 1) and s = 0.7: correlated, and nowhere symmetric."""
        rng = np.random.default_rng(seed)
        weight, bias = rng.normal(size=(n_data, n_latent)), rng.normal(1.0, 1.0, n_data)
        return LinearGaussian(weight, bias, 0.7, q_shift=q_shift, q_scale=q_scale)

    def posterior(self, x: Float[Array, " d"]) -> dist.Distribution:
        """q(z|x) = N(A x + c, T T')."""
        return dist.MultivariateNormal(self.q_weight @ x + self.q_bias, scale_tril=self.q_tril)

    def prior(self) -> dist.Distribution:
        """p(z) = N(0, I)."""
        return dist.Normal(jnp.zeros(self.weight.shape[1]), 1.0).to_event(1)

    def decode(self, z: Float[Array, " m"]) -> dist.Distribution:
        """p(x|z) = N(W z + b, s^2 I)."""
        return dist.Normal(self.weight @ z + self.bias, jnp.exp(self.log_scale)).to_event(1)

    def log_joint(self, x: Float[Array, " d"], z: Float[Array, " m"]) -> Scalar:
        """log p(x, z), nats."""
        return self.decode(z).log_prob(x) + self.prior().log_prob(z)

    def sample(self, key: PRNGKey) -> tuple[Float[Array, " m"], Float[Array, " d"]]:
        """An ancestral draw."""
        z_key, x_key = jax.random.split(key)
        z = self.prior().sample(z_key)
        return z, self.decode(z).sample(x_key)

    def exact_posterior(self, x: Float[Array, " d"]) -> dist.Distribution:
        """p(z|x), whatever q is."""
        precision = jnp.eye(self.weight.shape[1]) + self._gram() / jnp.exp(2 * self.log_scale)
        residual = self.weight.T @ (x - self.bias) / jnp.exp(2 * self.log_scale)
        mean = jnp.linalg.solve(precision, residual)
        return dist.MultivariateNormal(mean, precision_matrix=precision)

    def log_evidence(self, x: Float[Array, " d"]) -> Scalar:
        """log p(x) = log N(x; b, W W' + s^2 I), nats."""
        noise = jnp.exp(2 * self.log_scale) * jnp.eye(self.bias.size)
        covariance = self.weight @ self.weight.T + noise
        return dist.MultivariateNormal(self.bias, covariance_matrix=covariance).log_prob(x)

    def _gram(self) -> Float[Array, "m m"]:
        return self.weight.T @ self.weight


# --- the contract ---------------------------------------------------------------------------


def check_latent_model(model: Any, example: Example, key: PRNGKey, *, draws: int = 4000) -> None:
    """Raise unless `model` keeps the contract of `AbstractLatentModel` at this example.

    Exact: shapes, types and finite values; the same key gives the same draw and another key
    another one; `vmap` gives what single calls give; `stop_gradient` on the posterior, which
    therefore is a pytree, cuts it off from every parameter; each parameter that moves log q
    moves its draws.

    Statistical, each with a chance of a false alarm below 10^-6: draws of q follow its density
    (E_q grad log q = 0, and the density integrates to one); gradients through draws of q are
    those of its expectations (they agree with score-function gradients); draws of `sample`
    follow `log_joint` (E_p grad log p = 0).

    What no such test can see is a constant missing from log p(x, z), or a wrong density of p
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
    example = jax.tree.map(jnp.asarray, example)
    keys = jax.random.split(key, 8)
    _check_values(model, example, keys[0])
    _check_randomness(model, example, keys[1])
    _check_vmap(model, example, keys[2])
    _check_gradients(model, example, keys[3])
    _check_q_integrates_to_one(model, example, jax.random.split(keys[4], draws))
    q_keys, path_keys, p_keys = (jax.random.split(k, draws) for k in keys[5:])
    _check_mean_is_zero(_score_of_q(model, example), q_keys, "E_q[grad log q(z|x)]", _Q_REMEDY)
    path = _path_minus_score(model, example, path_keys[: draws // 4])
    _check_mean_is_zero(
        path,
        path_keys[draws // 4 :],
        "the gradient through draws of q less its true value",
        _PATH_REMEDY,
    )
    _check_mean_is_zero(_score_of_p(model), p_keys, "E_p[grad log p(x, z)]", _P_REMEDY)


_Q_REMEDY = "posterior(x).sample does not draw from the density posterior(x).log_prob"
_PATH_REMEDY = (
    "posterior(x).sample must be a differentiable function of q's parameters, all the way"
)
_P_REMEDY = "sample does not draw from the density log_joint"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _check_scalar(value: Any, what: str) -> None:
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    _require(shape == (), f"{what} has shape {shape}, not (): sum over all dimensions")
    _require(dtype == jnp.float32, f"{what} has dtype {dtype}, not float32")
    _require(bool(jnp.isfinite(value)), f"{what} is {value}, which is not finite")


def _check_alike(tree: PyTree, other: PyTree, what: str) -> None:
    def shapes(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: (jnp.shape(leaf), str(jnp.result_type(leaf))), tree)

    _require(
        eqx.tree_equal(shapes(tree), shapes(other)) is True,
        f"{what} differ in structure, shape or type: {shapes(tree)} and {shapes(other)}",
    )


def _check_values(model: AbstractLatentModel, x: Example, key: PRNGKey) -> None:
    """Shapes, types and finite values."""
    q_key, p_key = jax.random.split(key)
    q = model.posterior(x)
    z = q.sample(q_key)
    p_z, p_x = model.sample(p_key)
    _check_alike(z, p_z, "z of posterior(x).sample(key) and z of sample(key)")
    _check_alike(x, p_x, "the example and x of sample(key)")
    for leaf in jax.tree.leaves(z):
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        _require(floating, "latents must be floating-point arrays, to be reparameterised")
    _check_scalar(q.log_prob(z), "posterior(x).log_prob(z), z ~ q(z|x),")
    _check_scalar(model.log_joint(x, z), "log_joint(x, z), z ~ q(z|x),")
    _check_scalar(model.log_joint(p_x, p_z), "log_joint(x, z), (x, z) ~ p,")


def _check_randomness(model: AbstractLatentModel, x: Example, key: PRNGKey) -> None:
    """A draw is a function of the key."""
    draws = {"posterior(x).sample": model.posterior(x).sample, "sample": model.sample}
    for name, draw in draws.items():
        first, again = draw(jax.random.clone(key)), draw(jax.random.clone(key))
        other = draw(jax.random.fold_in(key, 1))
        same, changed = bool(eqx.tree_equal(first, again)), not eqx.tree_equal(first, other)
        _require(same, f"{name}(key) gave two draws for one key: draw with jax.random and the key")
        _require(changed, f"{name}(key) gave the same draw for two keys: draw with the key")


def _check_vmap(model: AbstractLatentModel, x: Example, key: PRNGKey) -> None:
    """Batches of examples and particles give what single calls give."""
    _, other = model.sample(jax.random.fold_in(key, 0))
    xs = jax.tree.map(lambda *leaves: jnp.stack(leaves), x, other)
    try:
        batch = jax.vmap(lambda x: importance_particles(model, x, key, 2)[0])(xs)
    except Exception as error:
        raise AssertionError(
            "the model does not work under jax.vmap; its methods must be made of jax.numpy "
            f"functions of one example, without branches on values ({error})"
        ) from error
    for i, one in enumerate((x, other)):
        q = model.posterior(one)
        for j, particle_key in enumerate(particle_keys(key, jnp.arange(2))):
            z = q.sample(particle_key)
            _check_close(ravel_pytree(z)[0], ravel_pytree(_index(batch.z, i, j))[0], "z")
            log_w = model.log_joint(one, z) - q.log_prob(z)
            _check_close(log_w, batch.log_w[i, j], "log p(x, z) - log q(z|x)")


def _index(tree: PyTree, i: int, j: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[i, j], tree)


def _check_close(single: Array, batched: Array, what: str) -> None:
    _require(
        bool(jnp.allclose(single, batched, rtol=1e-3, atol=1e-2)),
        f"{what} is {single} for one example and {batched} under jax.vmap: an example must not "
        "look at the others of its batch",
    )


def _check_gradients(model: AbstractLatentModel, x: Example, key: PRNGKey) -> None:
    """`stop_gradient` cuts q off; what moves log q moves its draws; gradients are finite."""
    z_key, key = jax.random.split(key)
    z = model.posterior(x).sample(z_key)

    def log_q(model: AbstractLatentModel) -> Scalar:
        return model.posterior(x).log_prob(z)

    def draw(model: AbstractLatentModel) -> Scalar:
        flat = ravel_pytree(model.posterior(x).sample(jax.random.clone(key)))[0]
        return jnp.sum(flat * jnp.arange(1.0, 1.0 + flat.size))

    def cut(model: AbstractLatentModel) -> Scalar:
        q = jax.lax.stop_gradient(model.posterior(x))
        return q.log_prob(z) + ravel_pytree(q.sample(jax.random.clone(key)))[0].sum()

    def log_w(model: AbstractLatentModel) -> Scalar:
        return importance_particles(model, x, jax.random.clone(key), 1)[0].log_w[0]

    moved, drawn = (eqx.filter_grad(f)(model) for f in (log_q, draw))
    for name, gradient in _named(eqx.filter_grad(cut)(model)):
        _require(
            not gradient.any(),
            f"stop_gradient(posterior(x)) leaves a gradient to {name}: make the posterior a "
            "NumPyro distribution or an equinox.Module that holds all its arrays as fields",
        )
    for (name, of_log_q), (_, of_draw) in zip(_named(moved), _named(drawn), strict=True):
        _require(
            not of_log_q.any() or bool(of_draw.any()),
            f"{name} moves log q(z|x) but no gradient reaches it through a draw: {_PATH_REMEDY}",
        )
    for name, gradient in _named(eqx.filter_grad(log_w)(model)):
        finite = bool(jnp.isfinite(gradient).all())
        _require(finite, f"the gradient of log p(x, z) - log q(z|x) for {name} is not finite")


def _named(gradients: PyTree) -> list[tuple[str, Array]]:
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    return [(f"the model's {jax.tree_util.keystr(path).lstrip('.')}", g) for path, g in leaves]


# --- statistical checks ---------------------------------------------------------------------


def _check_q_integrates_to_one(
    model: AbstractLatentModel, x: Example, keys: Key[Array, " n"]
) -> None:
    """Neither E_r[q/r] nor E_q[r/q] is above one, for Gaussians r a little wider or narrower.

    Below one says nothing: r may miss a part of q, or the draws a part of r.
    """
    q = model.posterior(x)
    unravel = ravel_pytree(q.sample(jax.random.key(0)))[1]  # only the shapes matter
    pilot, inside_keys, outside_keys = jnp.split(keys[: len(keys) // 3 * 3], 3)
    mean, sd = _moments(model, x, pilot)

    def log_ratio(z: Float[Array, " m"], width: float) -> Scalar:
        """log q(z|x) - log r(z)."""
        r = dist.Normal(mean, width * sd).to_event(1)
        return q.log_prob(unravel(z)) - r.log_prob(z)

    def inside(key: PRNGKey) -> Scalar:
        return -log_ratio(ravel_pytree(q.sample(key))[0], 0.9)

    def outside(key: PRNGKey) -> Scalar:
        return log_ratio(mean + 1.1 * sd * jax.random.normal(key, mean.shape), 1.1)

    too_small, too_large = jax.vmap(inside)(inside_keys), jax.vmap(outside)(outside_keys)
    if not jnp.isfinite(too_large).all():
        return  # q does not live on the whole of R^m, where this check is sound
    remedy = "the density posterior(x).log_prob does not integrate to one: it is too"
    _require(not _mean_above_one(too_small), f"{remedy} small")
    _require(not _mean_above_one(too_large), f"{remedy} large")


def _moments(
    model: AbstractLatentModel, x: Example, keys: Key[Array, " n"]
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Mean and standard deviation of draws of q, flat."""
    draws = jax.vmap(lambda key: ravel_pytree(model.posterior(x).sample(key))[0])(keys)
    return jnp.mean(draws, axis=0), jnp.std(draws, axis=0)


def _mean_above_one(log_w: LogWeights) -> bool:
    """Whether weights have an expectation above one, beyond doubt."""
    relative_error = jnp.sqrt(1 / effective_sample_size(log_w) - 1 / log_w.size)
    least = log_mean_exp(log_w) + jnp.log(jnp.maximum(1 - STANDARD_ERRORS * relative_error, 0))
    return bool((least > 1e-3) | (log_mean_exp(log_w) > jnp.log(UNLIKELY)))


Statistic = Callable[[PRNGKey], PyTree]


def _score_of_q(model: AbstractLatentModel, x: Example) -> Statistic:
    def statistic(key: PRNGKey) -> PyTree:
        z = model.posterior(x).sample(key)
        return eqx.filter_grad(lambda model: model.posterior(x).log_prob(z))(model)

    return statistic


def _score_of_p(model: AbstractLatentModel) -> Statistic:
    def statistic(key: PRNGKey) -> PyTree:
        z, x = model.sample(key)
        return eqx.filter_grad(lambda model: model.log_joint(x, z))(model)

    return statistic


def _path_minus_score(
    model: AbstractLatentModel, x: Example, pilot_keys: Key[Array, " n"]
) -> Statistic:
    """Two gradients of E_q f(z): through the draw, and by the score function; their difference."""
    mean, sd = _moments(model, x, pilot_keys)

    def f(z: Latents) -> Scalar:
        u = (ravel_pytree(z)[0] - mean) / sd
        return jnp.sum(u + (u**2 - 1) / 2)  # its mean is near zero, which keeps the score small

    def statistic(key: PRNGKey) -> PyTree:
        def through_draw(model: AbstractLatentModel) -> tuple[Scalar, Latents]:
            z = model.posterior(x).sample(key)
            return f(z), z

        path, z = eqx.filter_grad(through_draw, has_aux=True)(model)
        score = eqx.filter_grad(lambda model: f(z) * model.posterior(x).log_prob(z))(model)
        return jax.tree.map(jnp.subtract, path, score)

    return statistic


def _check_mean_is_zero(
    statistic: Statistic, keys: Key[Array, " n"], what: str, remedy: str
) -> None:
    """Look at each array of `statistic(key)` along its mean over the first half of the keys."""
    first, second = jnp.split(keys[: len(keys) // 2 * 2], 2)

    @eqx.filter_jit
    def projections(first: Key[Array, " h"], second: Key[Array, " h"]) -> PyTree:
        shapes = jax.eval_shape(statistic, jax.random.key(0))
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(
            lambda total, key: (jax.tree.map(jnp.add, total, statistic(key)), None), zero, first
        )
        norm = jax.tree.map(lambda leaf: jnp.linalg.norm(leaf.ravel()) + 1e-30, total)
        direction = jax.tree.map(jnp.divide, total, norm)
        return jax.lax.map(
            lambda key: jax.tree.map(lambda d, s: jnp.sum(d * s), direction, statistic(key)), second
        )

    for name, values in _named(projections(first, second)):
        mean, error = jnp.mean(values), jnp.std(values) / jnp.sqrt(float(values.size))
        rounding = 1e-3 * jnp.mean(jnp.abs(values))
        _require(
            bool(jnp.abs(mean) <= STANDARD_ERRORS * error + rounding),
            f"{what} is {mean:.3g} +- {error:.2g} along {name}, where it must be zero: {remedy}",
        )
