"""A linear-Gaussian model with missing values: exact densities and moments of observed values."""

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from iwae.models.likelihoods.missing import Incomplete
from iwae.models.vae import AbstractLatentModel
from iwae.testing import LinearGaussian


class IncompleteLinearGaussian(AbstractLatentModel):
    """A linear-Gaussian model in which any value may be missing; q is wider than the posterior."""

    complete: LinearGaussian
    q_scale: float = eqx.field(static=True, default=1.3)

    def posterior(self, x):
        observed = ~jnp.isnan(x)
        weight = jnp.where(observed[:, None], self.complete.weight, 0.0)
        variance = jnp.exp(2 * self.complete.log_scale)
        precision = jnp.eye(weight.shape[1]) + weight.T @ weight / variance
        residual = jnp.where(observed, x - self.complete.bias, 0.0)
        mean = jnp.linalg.solve(precision, weight.T @ residual / variance)
        return dist.MultivariateNormal(mean, precision_matrix=precision / self.q_scale**2)

    def decode(self, z):
        return Incomplete(self.complete.decode(z))

    def log_joint(self, x, z):
        return self.decode(z).log_prob(x) + self.complete.prior().log_prob(z)

    def sample(self, key):
        return self.complete.sample(key)


def moments(model):
    """Return the mean and covariance of x, float64."""
    w, b = np.float64(model.complete.weight), np.float64(model.complete.bias)
    return b, w @ w.T + np.exp(2 * np.float64(model.complete.log_scale)) * np.eye(len(b))


def log_normal(x, mean, covariance):
    residual = x - mean
    _, log_det = np.linalg.slogdet(2 * np.pi * covariance)
    return -0.5 * (residual @ np.linalg.solve(covariance, residual) + log_det)


def model_and_rows():
    """Return a linear-Gaussian model and rows with missing values; the first row has no others."""
    model, rows = _cached_model_and_rows()
    return model, rows.copy()


@cache
def _cached_model_and_rows(n=12, d=5, share=0.4, seed=3):
    model = IncompleteLinearGaussian(LinearGaussian.random(2, d, seed=1))
    keys = jax.random.split(jax.random.key(seed), n)
    x = np.array(jax.jit(jax.vmap(lambda key: model.sample(key)[1]))(keys))
    x[np.random.default_rng(seed).random((n, d)) < share] = np.nan
    x[0] = np.nan
    return model, x
