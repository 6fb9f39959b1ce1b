"""What is climbed, and how: bounds, gradient estimators, and combinators that make the methods.

A gradient estimator is a table of coefficients. On particles z_i ~ q(z|x) it is

    sum_i  decoder_i  grad_theta log p(x, z_i)
         + path_i     (d log w_i / d z_i) (d z_i / d phi)
         - score_i    grad_phi log q(z_i|x), at fixed z_i

and everything from the plain gradient to wake-sleep is a choice of the three.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree
from numpyro.distributions import Distribution, kl_divergence

from iwae._types import Example, Latents, LogWeights, PRNGKey, Scalar, UserError
from iwae.model import VAE, AbstractLatentModel, LayeredPosterior, Posterior
from iwae.objectives.penalties import Penalty, Terms, plain_terms
from iwae.objectives.reductions import Reduction, ciwae, iwae, miwae
from iwae.particles import Info, particle_keys

Tree = TypeVar("Tree")


class Extra(NamedTuple):
    """What an objective has beside the model's parameters.

    Attributes:
        learned: arrays that climb the objective together with the model's.
        tuned: arrays that `Objective.tune` changes after every step.
    """

    learned: PyTree = ()
    tuned: PyTree = ()


def _same(tuned: PyTree, info: Info) -> PyTree:  # noqa: ARG001
    return tuned


@dataclass(frozen=True, eq=False)
class Objective:
    """A bound and the way to climb it: maximised, of one example at a time, nats.

    Called with (model, x, key) it is a number: the bound, whose gradient is the estimator.

    Attributes:
        terms: (model, x, key, extra) -> that number, and an info.
        init: what it starts with beside the model's parameters.
        tune: (tuned, the info averaged over the batch) -> tuned, after every step.
        shown: the entries of the info, all scalars, that a loss curve shows beside the bound.
    """

    terms: Callable[[AbstractLatentModel, Example, PRNGKey, Extra], tuple[Scalar, Info]]
    init: Callable[[], Extra] = Extra
    tune: Callable[[PyTree, Info], PyTree] = _same
    shown: tuple[str, ...] = ("iwae",)

    def __call__(self, model: AbstractLatentModel, x: Example, key: PRNGKey) -> Scalar:
        """The bound as it is before anything is learned or tuned beside the model, nats."""
        return self.terms(model, x, key, self.init())[0]


def as_objective(function: Callable[[AbstractLatentModel, Example, PRNGKey], Scalar]) -> Objective:
    """An objective from a function (model, x, key) -> nats, climbed by its own gradient."""
    if isinstance(function, Objective):
        return function
    return Objective(lambda model, x, key, _: (function(model, x, key), {}), shown=())


# --- gradient estimators --------------------------------------------------------------------


class Coefficients(NamedTuple):
    """What each particle contributes to the gradient; see the top of this file."""

    decoder: LogWeights
    path: LogWeights
    score: LogWeights


class Estimator(NamedTuple):
    """How to climb a bound of importance samples.

    Attributes:
        coefficients: (bound, log weights) -> the table; None for the bound's own gradient, of
            which `path` and `score` say what is left out.
        path: gradients flow through the draws of q; otherwise that column does not count.
        score: gradients flow through log q(z|x) at fixed z; otherwise that column does not count.
    """

    coefficients: Callable[[Reduction, LogWeights], Coefficients] | None = None
    path: bool = True
    score: bool = True


REPARAM = Estimator()
"""The gradient of the bound through reparameterised draws (Kingma & Welling 2014)."""


def frozen(tree: Tree) -> Tree:
    """The same, and no gradient reaches its arrays."""
    arrays, static = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), static)


@jax.custom_vjp
def tagged(z: Latents) -> tuple[Latents, Scalar]:
    """z, and a tag: what arrives backwards at the tag multiplies the gradient that reaches z.

    The factor depends on all weights, which exist only after every particle was evaluated. It
    travels back along the tag, so that a single backward pass serves decoder and encoder, whose
    coefficients differ.
    """
    return z, blank_tag(z)


def blank_tag(z: Latents) -> Scalar:
    """Zero, computed from z so that under `vmap` every particle of every example has its own."""
    return 0 * jax.tree.leaves(z)[0].ravel()[0]


def _tagged_back(_: None, cotangents: tuple[Latents, Scalar]) -> tuple[Latents]:
    z_bar, factor = cotangents
    return (jax.tree.map(lambda leaf: factor * leaf, z_bar),)


tagged.defvjp(lambda z: (tagged(z), None), _tagged_back)


@jax.custom_vjp
def deliver(factors: Float[Array, " k"], tags: Float[Array, " k"]) -> Scalar:
    """Zero; sends the factors back along the tags, whatever the scale of the loss."""
    del factors, tags
    return jnp.float32(0)


def _deliver_back(factors: Array, _: Scalar) -> tuple[Array, Array]:
    return jnp.zeros_like(factors), factors


deliver.defvjp(lambda factors, tags: (deliver(factors, tags), factors), _deliver_back)

FLOOR = 1e-20
"""Coefficients that others are divided by are at least this, which is far below rounding."""


def floored(coefficients: LogWeights) -> LogWeights:
    """The same coefficients but for rounding, none of them zero."""
    return jnp.where(jnp.abs(coefficients) < FLOOR, FLOOR, coefficients)


def slope(coefficients: LogWeights, log_density: LogWeights) -> Scalar:
    """Zero, whose gradient is sum_i c_i grad log_density_i; what is infinite has none."""
    finite = jnp.isfinite(log_density)
    zero = jnp.where(finite, log_density, 0.0) - jax.lax.stop_gradient(
        jnp.where(finite, log_density, 0.0)
    )
    return jnp.sum(jax.lax.stop_gradient(coefficients) * zero)


class Tags(NamedTuple):
    """Of the z in log p(x, z), and of the z in log q(z|x)."""

    joint: Float[Array, "*k"]
    q: Float[Array, "*k"]


def climb(
    reduction: Reduction, estimator: Estimator, log_p: LogWeights, log_q: LogWeights, tags: Tags
) -> Scalar:
    """The bound, with the estimator for its gradient."""
    if estimator.coefficients is None:
        return reduction(log_p - log_q)
    log_w = jax.lax.stop_gradient(log_p - log_q)
    c = estimator.coefficients(reduction, log_w)
    decoder = floored(c.decoder)
    value = reduction(log_w) + slope(decoder, log_p)
    if estimator.path:
        value += deliver(jax.lax.stop_gradient(c.path / decoder), tags.joint)
    if not estimator.score:
        return value - slope(c.path, log_q)
    score = floored(c.score)
    if estimator.path:
        value += deliver(jax.lax.stop_gradient(c.path / score), tags.q)
    return value - slope(score, log_q)


# --- bounds of importance samples -----------------------------------------------------------


def over_particles(
    function: Callable[[PyTree], Tree], keys: PyTree[Key[Array, " k"]], chunk: int | None
) -> Tree:
    """The function of each particle's key or keys, `chunk` particles at a time.

    A chunk keeps nothing for the backward pass, which computes it again: memory does not grow
    with k, and values and gradients are the same.
    """
    if chunk is None or chunk >= len(jax.tree.leaves(keys)[0]):
        return jax.vmap(function)(keys)
    return jax.lax.map(jax.checkpoint(function), keys, batch_size=chunk)


def bound(
    reduction: Reduction,
    *,
    k: int,
    sampler: Callable | None = None,
    estimator: Estimator = REPARAM,
    penalty: Penalty | None = None,
    chunk: int | None = None,
) -> Objective:
    """The objective `reduction(log w)` of k particles.

    Args:
        reduction: log weights -> nats.
        k: particles.
        sampler: makes the particles; importance sampling from q(z|x) if None. Any other is
            climbed by the gradient of its own weights, which annealed ones do not have: `wake`
            teaches the decoder from those.
        estimator: how to climb the bound; see `iwae.gradients`.
        penalty: a change of the weights, such as a warm-up of the KL divergence.
        chunk: particles at a time; bounds memory, changes nothing else.

    Raises:
        UserError: if k or chunk is not positive, or an option does not go with a sampler.
    """
    _check_particles(k, chunk)
    if sampler is not None:
        if estimator is not REPARAM or penalty is not None or chunk is not None:
            raise UserError("estimator, penalty and chunk are for importance samples only")
        return _bound_of(sampler, reduction, k)

    def terms(
        model: AbstractLatentModel, x: Example, key: PRNGKey, extra: Extra
    ) -> tuple[Scalar, Info]:
        q = model.posterior(x)
        _check_draws(q, estimator)
        of_particle = penalty.terms if penalty else plain_terms
        particle = partial(weigh, model, q, x, estimator=estimator, terms=of_particle)
        parts, tags = over_particles(particle, particle_keys(key, jnp.arange(k)), chunk)
        log_p, log_q = penalty.combine(parts, extra.tuned) if penalty else parts
        value = climb(reduction, estimator, log_p, log_q, tags)
        return value, {"iwae": _iwae_of(penalty.plain(parts) if penalty else parts)}

    if penalty is None:
        return Objective(terms)
    return Objective(terms, lambda: Extra((), penalty.init()), penalty.tune)


def weigh(
    model: AbstractLatentModel,
    q: Posterior,
    x: Example,
    key: PRNGKey,
    *,
    estimator: Estimator,
    terms: Callable[..., Terms],
) -> tuple[Terms, Tags]:
    """The densities of one particle, with the paths that the estimator differentiates along."""
    z = q.sample(key)
    if not estimator.path:
        z = jax.lax.stop_gradient(z)
    scored = q if estimator.score else frozen(q)
    if estimator.coefficients is None or not estimator.path:
        none = jnp.float32(0)
        return terms(model, scored, x, z, z), Tags(none, none)
    (to_joint, joint), (to_q, of_q) = tagged(z), tagged(z)
    return terms(model, scored, x, to_joint, to_q if estimator.score else z), Tags(joint, of_q)


def _check_draws(q: Posterior, estimator: Estimator) -> None:
    """Raise UserError if gradients are to flow through draws through which none do."""
    if estimator.path and isinstance(q, Distribution) and not q.has_rsample:
        raise UserError(
            f"the draws of q(z|x), a {type(q).__name__}, are not reparameterised, and the gradient "
            "goes through them: use wake-sleep (rws), which holds them fixed"
        )


def _iwae_of(parts: Terms) -> Scalar:
    """IWAE-k of the particles, for the eye only."""
    log_p, log_q = jax.lax.stop_gradient(parts)
    return iwae(log_p - log_q)


def _bound_of(sampler: Callable, reduction: Reduction, k: int) -> Objective:
    def terms(
        model: AbstractLatentModel, x: Example, key: PRNGKey, _: Extra
    ) -> tuple[Scalar, Info]:
        return reduction(sampler(model, x, key, k)[0].log_w), {}

    return Objective(terms, shown=())


def grouped(
    reduction: Callable[..., Scalar] = miwae, *, m: int, k: int, **options: Any
) -> Objective:
    """The objective of m groups of k importance samples; options are those of `bound`.

    Raises:
        UserError: if m or k is not positive.
    """
    _check_particles(m, None)
    _check_particles(k, None)
    return bound(partial(reduction, m=m), k=m * k, **options)


def learned_ciwae(make: Callable[[Reduction], Objective], *, start: float = 0.5) -> Objective:
    """CIWAE whose beta climbs with the model (Rainforth et al. 2018, sec. 6), from `start`.

    As IWAE is the larger of the two bounds, beta goes to zero in time.

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


def analytic_elbo(*, k: int, penalty: Penalty | None = None, chunk: int | None = None) -> Objective:
    """E_q log p(x|z) by k samples, minus KL(q(z|x) || p(z)) in closed form.

    The evidence lower bound of a VAE with one stochastic layer (Kingma & Welling 2014, eq. 10).

    Raises:
        UserError: if k is not positive; when the objective is first evaluated, for any other
            model, whose divergence has no closed form.
    """
    _check_particles(k, chunk)

    def terms(
        model: AbstractLatentModel, x: Example, key: PRNGKey, extra: Extra
    ) -> tuple[Scalar, Info]:
        if not isinstance(model, VAE) or len(model.latent_sizes) > 1:
            raise UserError(
                "elbo-analytic needs a VAE with one stochastic layer: of other models the "
                "divergence KL(q || p) has no closed form; use elbo"
            )
        posterior: LayeredPosterior = model.posterior(x)

        def particle(key: PRNGKey) -> tuple[Scalar, Scalar]:
            z = posterior.sample(key)
            log_likelihood = model.decode(z).log_prob(x)
            ratio = sum(model.layer_log_priors(z)) - posterior.log_prob(z)
            return log_likelihood, jax.lax.stop_gradient(log_likelihood + ratio)

        keys = particle_keys(key, jnp.arange(k))
        reconstruction, log_w = over_particles(particle, keys, chunk)
        if penalty:
            units = kl_divergence(posterior.first.base_dist, model.prior().base_dist)
            divergence = penalty.of_divergence(units, extra.tuned)
        else:
            divergence = kl_divergence(posterior.first, model.prior())
        return jnp.mean(reconstruction) - divergence, {"iwae": iwae(log_w)}

    if penalty is None:
        return Objective(terms)
    return Objective(terms, lambda: Extra((), penalty.init()), penalty.tune)


# --- two halves -----------------------------------------------------------------------------


class Halves(AbstractLatentModel):
    """p(x, z) of one model and q(z|x) of another."""

    generative: AbstractLatentModel
    recognition: AbstractLatentModel

    def posterior(self, x: Example) -> Posterior:
        """q(z|x)."""
        return self.recognition.posterior(x)

    def log_joint(self, x: Example, z: Latents) -> Scalar:
        """log p(x, z), nats."""
        return self.generative.log_joint(x, z)

    def sample(self, key: PRNGKey) -> tuple[Latents, Example]:
        """(z, x) ~ p."""
        return self.generative.sample(key)


def halves(
    generative: AbstractLatentModel, recognition: AbstractLatentModel
) -> AbstractLatentModel:
    """The decoder of one model with the encoder of another; a VAE if both are."""
    if isinstance(generative, VAE) and isinstance(recognition, VAE):
        return eqx.tree_at(lambda model: model.encoder, generative, recognition.encoder)
    return Halves(generative, recognition)


def split(*, decoder: Objective, encoder: Objective) -> Objective:
    """One objective for p(x, z) and another for q(z|x), each with the other half held fixed.

    Both get the same key, and so the same importance samples. The value is the decoder's.
    """

    def terms(
        model: AbstractLatentModel, x: Example, key: PRNGKey, extra: Extra
    ) -> tuple[Scalar, Info]:
        still, (learned, tuned) = frozen(model), extra
        of_p, of_q = (Extra(*pair) for pair in zip(learned, tuned, strict=True))
        key, same = jax.random.clone(key), jax.random.clone(key)
        value, info = decoder.terms(halves(model, still), x, key, of_p)
        climbed, about = encoder.terms(halves(still, model), x, same, of_q)
        value += climbed - jax.lax.stop_gradient(climbed)
        return value, {**info, "encoder": about}

    def init() -> Extra:
        pairs = decoder.init(), encoder.init()
        return Extra(tuple(e.learned for e in pairs), tuple(e.tuned for e in pairs))

    def tune(tuned: PyTree, info: Info) -> PyTree:
        return decoder.tune(tuned[0], info), encoder.tune(tuned[1], info["encoder"])

    return Objective(terms, init, tune, decoder.shown)


def _check_particles(k: int, chunk: int | None) -> None:
    if k < 1:
        raise UserError(f"k is {k}; an objective needs at least 1 particle")
    if chunk is not None and chunk < 1:
        raise UserError(f"chunk is {chunk}; it is at least 1 particle at a time")
