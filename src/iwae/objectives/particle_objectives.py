"""Objectives from bounds of importance samples."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from numpyro.distributions import kl_divergence

from iwae.errors import UserError
from iwae.inference.particles import Info, Sampler, map_particles, particle_keys
from iwae.inference.resampling import Draw, resample_few
from iwae.models.posteriors import LayeredPosterior, Posterior, is_diagonal_gaussian
from iwae.models.vae import VAE, AbstractLatentModel
from iwae.objectives.bounds import Reduction, ciwae, iwae, miwae
from iwae.objectives.gradient_estimators import (
    check_gradient_path,
    gradient_coefficients,
    stop_gradients,
)
from iwae.objectives.objective import Extra, Objective
from iwae.objectives.penalties import Penalty, Terms, unpenalised_iwae, unpenalised_terms
from iwae.objectives.surrogates import (
    REPARAM,
    Estimator,
    Tags,
    bound_surrogate,
    surrogate,
    with_surrogate_tag,
)
from iwae.typing import Example, LogWeights, PRNGKey, Scalar


def _check_particles(k: int, chunk: int | None, backward: int | None = None) -> None:
    if k < 1:
        raise UserError(f"k is {k}; an objective needs at least 1 particle")
    if backward is not None and backward < 1:
        raise UserError(f"backward is {backward}; a gradient needs at least 1 particle")
    if chunk is not None and chunk < 1:
        raise UserError(f"chunk is {chunk}; it must be at least 1 particle")


def bound(
    reduction: Reduction,
    *,
    k: int,
    sampler: Sampler | None = None,
    estimator: Estimator = REPARAM,
    penalty: Penalty | None = None,
    chunk: int | None = None,
    backward: int | None = None,
    draw: Draw = resample_few,
) -> Objective:
    """The objective `reduction(log w)` of k particles.

    Args:
        reduction: log weights -> nats.
        k: particles.
        sampler: draws the particles; importance sampling from q(z|x) if None. The gradient is that
            of the sampler's weights. Annealed weights have none: train the decoder on annealed
            particles with `wake`.
        estimator: the gradient estimator; see `iwae.objectives`.
        penalty: a modification of the weights, such as KL warm-up.
        chunk: particles at a time; bounds memory, changes nothing else.
        backward: the number S of particles that the gradient goes through; all k if None or S >= k.
            The value is the bound of all k particles. S of them are drawn and differentiated such
            that the gradient keeps its expectation. With `chunk`, memory does not grow with k. The
            bound must have derivatives df/dlog w_i >= 0, unlike the TVO.
        draw: draws those particles, given the share of each in the gradient.

    Raises:
        UserError: if k, chunk or backward is not positive, or an option cannot be combined with a
            sampler; on first evaluation, if the estimator cannot differentiate through the draws of
            q(z|x).
    """
    _check_particles(k, chunk, backward)
    if sampler is not None:
        if estimator is not REPARAM or any(o is not None for o in (penalty, chunk, backward)):
            raise UserError(
                "estimator, penalty, chunk and backward are for importance samples only: leave "
                "them out, or leave out the sampler"
            )
        return _bound_of(sampler, reduction, k)

    def terms(
        model: AbstractLatentModel, x: Example, key: PRNGKey, extra: Extra
    ) -> tuple[Scalar, Info]:
        q = model.posterior(x)
        check_gradient_path(q, estimator)
        adapted = penalty.adapted(estimator, extra.tuned) if penalty else estimator
        of_particle = penalty.terms if penalty else unpenalised_terms
        particle = partial(_weigh, estimator=estimator, terms=of_particle)
        keys = particle_keys(key, jnp.arange(k))

        def densities(parts: Terms) -> tuple[LogWeights, LogWeights]:
            return penalty.combine(parts, extra.tuned) if penalty else parts

        def through_all() -> tuple[Scalar, Terms]:
            parts, tags = map_particles(partial(particle, model, q, x), keys, chunk)
            return bound_surrogate(reduction, adapted, *densities(parts), tags), parts

        def through_few(count: int) -> tuple[Scalar, Terms]:
            again = jax.random.clone(keys)
            parts, _ = map_particles(
                partial(particle, stop_gradients(model), stop_gradients(q), x), keys, chunk
            )
            log_p, log_q = jax.lax.stop_gradient(densities(parts))
            table = gradient_coefficients(reduction, adapted, log_p - log_q)
            # PIWAE has two bounds: the share of a particle is the mean over both.
            shares = (table.decoder + jax.grad(reduction)(log_p - log_q)) / 2
            drawn = draw(jax.random.fold_in(key, _DRAWN), shares, count)
            index, factor = jax.lax.stop_gradient(drawn)
            some, tags = map_particles(partial(particle, model, q, x), again[index], chunk)
            some = penalty.among(some, parts) if penalty else some
            table = jax.tree.map(lambda column: factor * column[index], table)
            zero = surrogate(table, adapted, *densities(some), tags)
            return reduction(log_p - log_q) + zero, parts

        few_only = backward is not None and backward < k
        value, parts = through_few(cast(int, backward)) if few_only else through_all()
        return value, {"iwae": unpenalised_iwae(parts, penalty)}

    return _penalised(terms, penalty)


_DRAWN = 2**32 - 2  # folded into the key of the draw; no particle has this index


def _weigh(
    model: AbstractLatentModel,
    q: Posterior,
    x: Example,
    key: PRNGKey,
    *,
    estimator: Estimator,
    terms: Callable[..., Terms],
) -> tuple[Terms, Tags]:
    """The densities of one particle, connected to the parameters as the estimator requires."""
    z = q.sample(key)
    if not estimator.path:
        z = jax.lax.stop_gradient(z)
    scored = q if estimator.score else stop_gradients(q)
    if estimator.coefficients is None or not estimator.path:
        none = jnp.float32(0)
        return terms(model, scored, x, z, z), Tags(none, none)
    (to_joint, joint), (to_q, of_q) = with_surrogate_tag(z), with_surrogate_tag(z)
    return terms(model, scored, x, to_joint, to_q if estimator.score else z), Tags(joint, of_q)


def _bound_of(sampler: Sampler, reduction: Reduction, k: int) -> Objective:
    def terms(
        model: AbstractLatentModel, x: Example, key: PRNGKey, _: Extra
    ) -> tuple[Scalar, Info]:
        return reduction(sampler(model, x, key, k)[0].log_w), {}

    return Objective(terms, metrics=())


def grouped_importance_objective(
    reduction: Callable[..., Scalar] = miwae, *, m: int, k: int, **options: Any
) -> Objective:
    """The objective of m groups of k importance samples, with the options of `bound`.

    Raises:
        UserError: if m or k is not positive.
    """
    _check_particles(m, None)
    _check_particles(k, None)
    return bound(partial(reduction, m=m), k=m * k, **options)


def learned_ciwae_objective(
    make: Callable[[Reduction], Objective], *, start: float = 0.5
) -> Objective:
    """CIWAE whose beta is learned with the model (Rainforth et al. 2018, sec. 6), from `start`.

    IWAE is the larger of the two bounds, so beta tends to zero during training.

    Args:
        make: a reduction -> an objective, e.g. `partial(bound, k=5)`.
        start: beta before the first step.
    """
    of_iwae = make(iwae)

    def terms(
        model: AbstractLatentModel, x: Example, key: PRNGKey, extra: Extra
    ) -> tuple[Scalar, Info]:
        beta = jax.nn.sigmoid(extra.learned)
        value, info = make(partial(ciwae, beta=beta)).terms(model, x, key, extra)
        return value, {**info, "beta": beta}

    def init() -> Extra:
        logit = jax.scipy.special.logit(jnp.float32(start))
        return of_iwae.init()._replace(learned=logit)

    return Objective(terms, init, of_iwae.tune, ("iwae", "beta"))


def analytic_elbo_objective(
    *, k: int, penalty: Penalty | None = None, chunk: int | None = None
) -> Objective:
    """E_q log p(x|z) from k samples, minus KL(q(z|x) || p(z)) in closed form.

    The evidence lower bound of a VAE with one stochastic layer (Kingma & Welling 2014, eq. 10).

    Raises:
        UserError: if k is not positive; on first evaluation, for any other model, whose divergence
            has no closed form.
    """
    _check_particles(k, chunk)

    def terms(
        model: AbstractLatentModel, x: Example, key: PRNGKey, extra: Extra
    ) -> tuple[Scalar, Info]:
        if not isinstance(model, VAE) or len(model.latent_sizes) > 1:
            raise UserError(
                "elbo-analytic needs a VAE with one stochastic layer: for other models the "
                "divergence KL(q || p) has no closed form; use elbo"
            )
        posterior: LayeredPosterior = model.posterior(x)
        q: Any = posterior.first
        p: Any = model.prior()
        if not (is_diagonal_gaussian(q) and is_diagonal_gaussian(p)):
            raise UserError(
                "elbo-analytic needs a Gaussian prior and posterior: otherwise the divergence "
                "KL(q || p) has no closed form; use elbo"
            )

        def particle(key: PRNGKey) -> tuple[Scalar, Scalar]:
            z = posterior.sample(key)
            log_likelihood = model.log_likelihood(x, z)
            ratio = model.log_prior(z) - posterior.log_prob(z)
            return log_likelihood, jax.lax.stop_gradient(log_likelihood + ratio)

        keys = particle_keys(key, jnp.arange(k))
        reconstruction, log_w = map_particles(particle, keys, chunk)
        if penalty:
            units = kl_divergence(q.base_dist, p.base_dist)
            divergence = penalty.of_divergence(units, extra.tuned)
        else:
            divergence = kl_divergence(q, p)
        return jnp.mean(reconstruction) - divergence, {"iwae": iwae(log_w)}

    return _penalised(terms, penalty)


def _penalised(terms: Callable[..., tuple[Scalar, Info]], penalty: Penalty | None) -> Objective:
    """The objective with these terms, and with the state of the penalty if there is one."""
    if penalty is None:
        return Objective(terms)
    return Objective(terms, lambda: Extra((), penalty.init()), penalty.tune)
