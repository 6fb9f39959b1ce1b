"""A model whose bounds, gradients and estimates have closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from iwae.models.vae import AbstractLatentModel
from iwae.typing import PRNGKey, Scalar


class LinearGaussian(AbstractLatentModel):
    """p(z) = N(0, I), p(x|z) = N(W z + b, s^2 I), with q(z|x) = N(A x + c, T T').

    q has its own parameters, initialised at the true posterior or at a known distance from it, so
    that every bound, gradient and estimate has a closed form.

    Args:
        weight: W, `[d, m]`.
        bias: b, `[d]`.
        scale: s.
        q_shift: added to the true posterior mean; a number, or `[m]`.
        q_scale: multiplies the true posterior standard deviations.
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
        """A model with W ~ N(0, 1), b ~ N(1, 1) and s = 0.7: correlated and asymmetric."""
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

    @eqx.filter_jit
    def exact_posterior(self, x: Float[Array, " d"]) -> dist.Distribution:
        """The true posterior p(z|x), which does not depend on q."""
        gram = self.weight.T @ self.weight
        precision = jnp.eye(len(gram)) + gram / jnp.exp(2 * self.log_scale)
        residual = self.weight.T @ (x - self.bias) / jnp.exp(2 * self.log_scale)
        mean = jnp.linalg.solve(precision, residual)
        return dist.MultivariateNormal(mean, precision_matrix=precision)

    @eqx.filter_jit
    def log_evidence(self, x: Float[Array, " d"]) -> Scalar:
        """log p(x) = log N(x; b, W W' + s^2 I), nats."""
        noise = jnp.exp(2 * self.log_scale) * jnp.eye(self.bias.size)
        covariance = self.weight @ self.weight.T + noise
        return dist.MultivariateNormal(self.bias, covariance_matrix=covariance).log_prob(x)
