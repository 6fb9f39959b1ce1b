"""The ELBO of an example by layer: reconstruction and KL divergences."""

from functools import lru_cache

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from iwae.evaluation.examples import ExampleFn
from iwae.inference.particles import particle_keys
from iwae.models.vae import AbstractLatentModel, as_vae
from iwae.typing import Example, PRNGKey, Scalar


@lru_cache
def elbo_terms(k: int) -> ExampleFn:
    """The parts of a VAE's evidence lower bound: ELBO = reconstruction - sum(kl).

    All are averages over the same k draws z ~ q(z|x). Only the last of `kl` is an average of
    divergences. Those of lower layers, where p conditions on the layer above and q on the layer
    below, can be negative.

    Returns:
        A function of (model, x, key) whose result has, in nats, `reconstruction`, the scalar
        E_q log p(x|h_1), and `kl`, `[L]`: E_q[log q(h_l|h_{l-1}) - log p(h_l|h_{l+1})].
    """

    def fn(model: AbstractLatentModel, x: Example, key: PRNGKey) -> dict[str, Array]:
        model, x = model.condition(x)
        vae = as_vae(model)
        posterior = vae.posterior(x)

        def draw(key: PRNGKey) -> tuple[Scalar, Float[Array, " L"]]:
            z = posterior.sample(key)
            log_q = jnp.stack(posterior.layer_log_probs(z))
            return vae.log_likelihood(x, z), log_q - jnp.stack(vae.layer_log_priors(z))

        reconstruction, kl = jax.vmap(draw)(particle_keys(key, jnp.arange(k)))
        return {"reconstruction": jnp.mean(reconstruction), "kl": jnp.mean(kl, axis=0)}

    return fn
