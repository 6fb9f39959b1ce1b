"""Reference implementation of the model in NumPy and SciPy, float64, and tests of a mean."""

import jax
import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

from iwae.models.vae import VAE

STANDARD_ERRORS = 5.0
"""A normal mean exceeds this once in 1.7 million; keys are fixed, so passing tests keep passing."""

ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0),
    "softplus": lambda a: np.logaddexp(a, 0),
}


def distance(values, expected):
    """Return the deviation of the mean of `values` from `expected`, in its own standard errors."""
    values = np.asarray(values, np.float64)
    return (values.mean() - expected) / (values.std(ddof=1) / np.sqrt(len(values)))


def assert_mean(values, expected, *, error_at_most):
    """Assert that the mean is `expected` and that its standard error is small enough to tell."""
    standard_error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert standard_error <= error_at_most
    assert abs(distance(values, expected)) < STANDARD_ERRORS


def affine(dense, x):
    return x @ np.asarray(dense.weight, np.float64) + np.asarray(dense.bias, np.float64)


def hidden(layers, activation, x):
    for layer in layers:
        x = ACTIVATIONS[activation](affine(layer, x))
    return x


def gaussian(net, x):
    h = hidden(net.hidden.layers, net.hidden.activation, np.asarray(x, np.float64))
    return affine(net.loc, h), np.exp(affine(net.log_scale, h))


def log_normal(z, parameters):
    return norm.logpdf(np.asarray(z, np.float64), *parameters).sum(-1)


def layer_log_q(model: VAE, x, z):
    """log q(h_l|h_{l-1}) for each layer."""
    return [
        log_normal(h, gaussian(n, b)) for n, b, h in zip(model.encoder, (x, *z), z, strict=False)
    ]


def layer_log_p(model: VAE, z):
    """log p(h_l|h_{l+1}) for each layer."""
    between = [
        log_normal(h, gaussian(n, a)) for n, h, a in zip(model.prior_nets, z, z[1:], strict=False)
    ]
    return [*between, log_normal(z[-1], (0.0, 1.0))]


def log_likelihood(model: VAE, x, h):
    """log p(x|h_1)."""
    h = hidden(model.decoder_hidden.layers, model.activation, np.asarray(h, np.float64))
    outputs, x = affine(model.output, h), np.asarray(x, np.float64)
    if model.observation == "bernoulli":
        return -(x * np.logaddexp(0, -outputs) + (1 - x) * np.logaddexp(0, outputs)).sum(-1)
    loc, log_scale = np.split(outputs, 2, axis=-1)
    return log_normal(x, (loc, np.exp(log_scale)))


def log_joint(model: VAE, x, z):
    return log_likelihood(model, x, z[0]) + sum(layer_log_p(model, z))


def log_evidence(model: VAE, x):
    """log p(x) of a model with one one-dimensional latent, by quadrature."""
    grid = np.linspace(-12, 12, 4001)[:, None]
    return logsumexp(log_joint(model, x, (grid,))) + np.log(grid[1, 0] - grid[0, 0])


def equal(one, other):
    """Whether two trees are equal, leaf by leaf (`eqx.tree_equal` compiles for every shape)."""
    leaves, structures = zip(*map(jax.tree.flatten, (one, other)), strict=True)
    return structures[0] == structures[1] and all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(*leaves, strict=True)
    )
