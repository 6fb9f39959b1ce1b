"""GDReG: doubly reparameterised gradients of the prior's networks too, for layered models."""

import jax
import jax.numpy as jnp

from iwae.errors import UserError
from iwae.inference.particles import Info, particle_keys
from iwae.models.vae import VAE, AbstractLatentModel
from iwae.objectives.bounds import over_particles
from iwae.objectives.gradients import curvature
from iwae.objectives.objective import Extra, Objective, frozen
from iwae.objectives.reductions import Reduction, iwae
from iwae.objectives.surrogates import blank_tag, deliver, floored, slope
from iwae.typing import Example, Latents, PRNGKey, Scalar


@jax.custom_vjp
def joined(of_q: Latents, of_p: Latents) -> tuple[Latents, Scalar, Scalar]:
    """z, which `of_q` and `of_p` both are, and a tag for the gradient that reaches each."""
    del of_p
    return of_q, blank_tag(of_q), blank_tag(of_q)


def _joined_back(_: None, cotangents: tuple[Latents, Scalar, Scalar]) -> tuple[Latents, Latents]:
    z_bar, to_q, to_p = cotangents
    return tuple(jax.tree.map(lambda leaf, f=f: f * leaf, z_bar) for f in (to_q, to_p))


joined.defvjp(lambda of_q, of_p: (joined(of_q, of_p), None), _joined_back)


def gdreg(reduction: Reduction, *, k: int, chunk: int | None = None) -> Objective:
    """A bound of k importance samples, climbed by GDReG (Bauer & Mnih 2021, sec. 5).

    The encoder's gradient is DReG (of the ELBO, STL). The networks of p(h_l|h_{l+1}) learn from
    scores at draws of q, which is replaced too: with a and c the decoder's and the path's
    coefficients,

        sum_i a_i grad_theta log p_theta(z_i)  becomes
        sum_i (a_i d log p(x|z_i)/dz - c_i d log w_i/dz) d z(noise_i; theta)/d theta

    where z(noise; theta) is the prior's own draw of z_i. It has the same expectation, and less
    noise. With one stochastic layer nothing of the prior is learned, and it is DReG.

    Raises:
        UserError: when it is first evaluated, for a model that is no VAE.
    """

    def terms(
        model: AbstractLatentModel, x: Example, key: PRNGKey, _: Extra
    ) -> tuple[Scalar, Info]:
        if not isinstance(model, VAE):
            raise UserError("gdreg needs a VAE: other models do not say how their prior draws")
        q, still = model.posterior(x), frozen(model)
        still_q = frozen(q)

        def particle(key: PRNGKey) -> tuple[Scalar, ...]:
            z = q.sample(key)
            to_data, *data_tags = joined(z, model.redraw(z))
            to_prior, *prior_tags = joined(z, model.redraw(z))
            log_likelihood = model.decode(to_data).log_prob(x)
            log_ratio = sum(still.layer_log_priors(to_prior)) - still_q.log_prob(to_prior)
            return log_likelihood, log_ratio, *data_tags, *prior_tags

        keys = particle_keys(key, jnp.arange(k))
        log_likelihood, log_ratio, *tags = over_particles(particle, keys, chunk)
        log_w = jax.lax.stop_gradient(log_likelihood + log_ratio)
        a = jax.grad(reduction)(log_w)
        share = (a - curvature(reduction, log_w)) / floored(a)
        factors = share, 1 - share, share, -share
        value = reduction(log_w) + slope(floored(a), log_likelihood) + slope(floored(a), log_ratio)
        value += sum(deliver(f, tag) for f, tag in zip(factors, tags, strict=True))
        return value, {"iwae": iwae(log_w)}

    return Objective(terms)
