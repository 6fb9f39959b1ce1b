"""Gradients of small models: single draws, many draws, and their exact means by quadrature."""

from functools import cache, partial
from itertools import product
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from iwae.evaluation.gradient_signal import gradient_groups
from iwae.models.flows import FlowDistribution
from iwae.models.vae import VAE, LayeredPosterior
from iwae.testing import LinearGaussian

BITS = jnp.float32([1, 0, 1, 1])


@cache
def shallow(latents=2, **options):
    """A VAE of four bits with one stochastic layer; nothing in it is symmetric or optimal."""
    return _moved(VAE(4, (latents,), ((3,),), **options, key=jax.random.key(1)))


@cache
def deep(*sizes, **options):
    """A VAE of four bits with several stochastic layers."""
    sizes = sizes or (3, 2)
    return _moved(VAE(4, sizes, ((3,),) * len(sizes), **options, key=jax.random.key(1)))


def _moved(model):
    """The model with non-zero biases and weights small enough for quadrature."""

    def moved(leaf):
        leaf = np.asarray(leaf)
        other = leaf + np.linspace(-0.4, 0.2, leaf.size) if leaf.ndim == 1 else 0.6 * leaf
        return jnp.float32(other)

    return jax.tree.map(moved, model)


# Draws


def gradient(objective, model, x, key=0):
    """One draw of the gradient, as a model; the key may be a seed."""
    key = jax.random.key(key) if isinstance(key, int) else key
    return eqx.filter_jit(eqx.filter_grad(objective))(model, x, key)


def gradient_draws(objective, model, x, n, seed=0):
    """n flat draws of the gradient, float64 `[n, parameters]`."""

    @eqx.filter_jit
    def all_of(model, keys):
        one = eqx.filter_grad(objective)
        return jax.lax.map(lambda key: ravel_pytree(one(model, x, key))[0], keys, batch_size=500)

    return np.float64(all_of(model, jax.random.split(jax.random.key(seed), n)))


def z_scores(draws, expected):
    """The distance of the mean of the draws from the expected value, in standard errors."""
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    distance = np.abs(draws.mean(axis=0) - expected)
    return distance / np.maximum(error, 1e-5 + 1e-4 * np.abs(expected))


# Comparisons


def size(tree):
    return float(sum(np.abs(leaf).sum() for leaf in map(np.asarray, jax.tree.leaves(tree))))


def assert_same(a, b, tolerance=2e-5):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = np.abs(np.asarray(other)).max() + 1e-3
        assert np.abs(np.asarray(one) - np.asarray(other)).max() < tolerance * scale


def parameter_indices(model):
    """The indices of each group of parameters in a flat gradient, by name."""
    leaves, structure = jax.tree.flatten(eqx.filter(model, eqx.is_inexact_array))
    ends = np.cumsum([leaf.size for leaf in leaves])
    numbers = np.split(np.arange(ends[-1]), ends[:-1])
    numbered = [at.reshape(leaf.shape) for at, leaf in zip(numbers, leaves, strict=True)]
    groups = gradient_groups(structure.unflatten(numbered), model)
    return {
        name: np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(int)
        for name, leaves in groups.items()
    }


def is_encoder(name):
    """Whether a group of `parameter_indices` belongs to q(z|x)."""
    return name.startswith(("encoder", "q_"))


def assert_close(result, exact, model, tolerance):
    """Assert the gradient of every group of parameters, with a relative tolerance."""
    for name, at in parameter_indices(model).items():
        distance = np.linalg.norm(result[at] - exact[at])
        assert distance < tolerance * np.linalg.norm(exact[at]), name


# Exact means, by quadrature over all noise


class Case(NamedTuple):
    """A model, an example, the noise dimensions of a particle, and the nodes of each dimension."""

    model: Any
    x: Any
    noise: int
    nodes: int


LINEAR = Case(
    LinearGaussian.random(1, 3, q_shift=0.4, q_scale=1.4), jnp.float32([2.0, -0.5, 0.3]), 1, 24
)
NARROW = Case(shallow(1), BITS, 1, 12)
CURVED = Case(shallow(), BITS, 2, 12)
LAYERED = Case(deep(1, 1), BITS, 2, 12)


def nodes(dimensions, count):
    """Gauss-Hermite nodes for N(0, I) and their weights."""
    x, w = np.polynomial.hermite_e.hermegauss(count)
    grid = np.array(list(product(x, repeat=dimensions)), np.float32)
    weights = np.array(list(product(w / w.sum(), repeat=dimensions))).prod(axis=1)
    keep = weights > 1e-9
    return jnp.asarray(grid[keep]), jnp.float32(weights[keep] / weights[keep].sum())


def transform_noise(q, noise):
    """The sample that `q.sample` makes of this standard normal noise."""
    if not isinstance(q, LayeredPosterior):
        return q.loc + q.scale_tril @ noise[: q.loc.size]
    z, layer = (), q.first
    for net in (*q.above, None):
        is_flow = isinstance(layer, FlowDistribution)
        size = layer.flow.size if is_flow else layer.base_dist.loc.size
        e, noise = noise[:size], noise[size:]
        h = layer.place(e) if is_flow else layer.base_dist.loc + layer.base_dist.scale * e
        z, layer = (*z, h), net(h) if net else None
    return z


def mean_gradient(value, model, dimensions, count):
    """The gradient of E[value(model, noise)], flat, float64."""
    noise, weights = nodes(dimensions, count)

    def mean(model):
        return jnp.sum(weights * jax.vmap(partial(value, model))(noise))

    return np.float64(ravel_pytree(eqx.filter_jit(eqx.filter_grad(mean))(model))[0])


def exact_gradient(of_particles, case, k):
    """The gradient of E[of_particles(log p(x, z), log q(z|x))], through k draws of q."""

    def value(model, noise):
        q = model.posterior(case.x)
        z = jax.vmap(partial(transform_noise, q))(noise.reshape(k, case.noise))
        log_p = jax.vmap(lambda z: model.log_joint(case.x, z))(z)
        return of_particles(log_p, jax.vmap(q.log_prob)(z))

    return mean_gradient(value, case.model, k * case.noise, case.nodes)


def exact_wake_phi(case, k):
    """E[sum_i w_i grad log q(z_i|x)] with normalised w and with z held fixed."""

    def value(model, noise):
        q, still = model.posterior(case.x), jax.lax.stop_gradient(model.posterior(case.x))
        z = jax.vmap(partial(transform_noise, still))(noise.reshape(k, case.noise))
        log_p = jax.vmap(lambda z: model.log_joint(case.x, z))(z)
        log_q = jax.vmap(q.log_prob)(z)
        return jnp.sum(jax.lax.stop_gradient(jax.nn.softmax(log_p - log_q)) * log_q)

    return mean_gradient(value, case.model, k * case.noise, case.nodes)


def join_gradients(decoder, encoder, model):
    """The flat gradient of p(x, z) from `decoder` and of q(z|x) from `encoder`."""
    joined = decoder.copy()
    for name, at in parameter_indices(model).items():
        if is_encoder(name):
            joined[at] = encoder[at]
    return joined
