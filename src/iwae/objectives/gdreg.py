"""GDReG: doubly reparameterised gradients, also for the prior networks of layered models."""

import jax
import jax.numpy as jnp

from iwae.errors import UserError
from iwae.inference.particles import Info, map_particles, particle_keys
from iwae.models.posteriors import is_diagonal_gaussian
from iwae.models.vae import VAE, AbstractLatentModel
from iwae.objectives.bounds import Reduction, iwae
from iwae.objectives.gradient_estimators import (
    check_gradient_path,
    second_derivatives,
    stop_gradients,
)
from iwae.objectives.objective import Extra, Objective
from iwae.objectives.surrogates import (
    REPARAM,
    blank_surrogate_tag,
    density_surrogate,
    nonzero_surrogate_coefficients,
    send_surrogate_factors,
)
from iwae.typing import Example, Latents, PRNGKey, Scalar


@jax.custom_vjp
def _tag_both(of_q: Latents, of_p: Latents) -> tuple[Latents, Scalar, Scalar]:
    """Return z, the common value of both inputs, and a tag for the gradient of each."""
    del of_p
    return of_q, blank_surrogate_tag(of_q), blank_surrogate_tag(of_q)


def _tag_both_back(_: None, cotangents: tuple[Latents, Scalar, Scalar]) -> tuple[Latents, Latents]:
    z_bar, to_q, to_p = cotangents
    return tuple(jax.tree.map(lambda leaf, f=f: f * leaf, z_bar) for f in (to_q, to_p))


_tag_both.defvjp(lambda of_q, of_p: (_tag_both(of_q, of_p), None), _tag_both_back)


def gdreg(reduction: Reduction, *, k: int, chunk: int | None = None) -> Objective:
    """A bound of k importance samples with the GDReG estimator (Bauer & Mnih 2021, sec. 5).

    The encoder's gradient is DReG (for the ELBO, STL). GDReG also replaces the scores at draws of q
    from which the networks of p(h_l|h_{l+1}) learn. With a and c the coefficients of decoder and
    path,

        sum_i a_i grad_theta log p_theta(z_i)  becomes
        sum_i (a_i d log p(x|z_i)/dz - c_i d log w_i/dz) d z(noise_i; theta)/d theta

    where z(noise; theta) reparameterises z_i by the prior. The expectation is the same and the
    variance lower. With one stochastic layer and the prior N(0, I), this is DReG. A learned prior
    p(h_L) that is not Gaussian keeps its score, as in the plain gradient.

    Raises:
        UserError: on first evaluation, if the model is not a VAE, or has discrete latents.
    """

    def terms(
        model: AbstractLatentModel, x: Example, key: PRNGKey, _: Extra
    ) -> tuple[Scalar, Info]:
        if not isinstance(model, VAE):
            raise UserError(f"gdreg needs a VAE, and this is a {type(model).__name__}: use dreg")
        model = model.settled()
        q, fixed, top = model.posterior(x), stop_gradients(model), model.prior()
        check_gradient_path(q, REPARAM)
        fixed_q, by_noise = stop_gradients(q), is_diagonal_gaussian(top)

        def particle(key: PRNGKey) -> tuple[Scalar, ...]:
            z = q.sample(key)
            to_data, *data_tags = _tag_both(z, model.redraw(z))
            to_prior, *prior_tags = _tag_both(z, model.redraw(z))
            log_likelihood = model.log_likelihood(x, to_data)
            log_ratio = fixed.log_prior(to_prior) - fixed_q.log_prob(to_prior)
            score = () if by_noise else (top.log_prob(jax.lax.stop_gradient(z[-1])),)
            return log_likelihood, log_ratio, *data_tags, *prior_tags, *score

        keys = particle_keys(key, jnp.arange(k))
        log_likelihood, log_ratio, *rest = map_particles(particle, keys, chunk)
        tags, scores = rest[:4], rest[4:]
        log_w = jax.lax.stop_gradient(log_likelihood + log_ratio)
        a = jax.grad(reduction)(log_w)
        c = nonzero_surrogate_coefficients(a)
        share = (a - second_derivatives(reduction, log_w)) / c
        factors = share, 1 - share, share, -share
        value = reduction(log_w) + density_surrogate(c, log_likelihood)
        value += density_surrogate(c, log_ratio)
        value += sum(send_surrogate_factors(f, tag) for f, tag in zip(factors, tags, strict=True))
        value += sum(density_surrogate(c, score) for score in scores)
        return value, {"iwae": iwae(log_w)}

    return Objective(terms)
