"""The means of gradient estimators: by quadrature over all their noise, and by many draws."""

from functools import partial
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree

from cases import quick
from expectations import (
    BITS,
    CURVED,
    LAYERED,
    LINEAR,
    NARROW,
    Case,
    assert_close,
    deep,
    exact_gradient,
    exact_wake_phi,
    gradient_draws,
    join_gradients,
    mean_gradient,
    nodes,
    parameter_indices,
    shallow,
    transform_noise,
    z_scores,
)
from iwae.models.vae import VAE, LayeredPosterior
from iwae.objectives import gdreg, gradient_estimators, particle_objectives
from iwae.objectives.bounds import ciwae, elbo, iwae, renyi
from iwae.objectives.building import objective
from iwae.objectives.declaration import FIXED_DRAWS, OBJECTIVES
from iwae.objectives.objective import Extra
from iwae.objectives.particle_objectives import bound
from iwae.objectives.penalties import Penalty
from iwae.objectives.surrogates import Estimator
from iwae.objectives.tvo import tvo, tvo_schedule
from iwae.objectives.wake_sleep import WAKE
from reference import STANDARD_ERRORS

TOLERANCE = 0.01
"""Relative error of a gradient: more than quadrature and float32 are off, less than any fault."""


@pytest.fixture
def mean_of(monkeypatch):
    """(objective, case, k) -> the mean of its gradient, by quadrature over the draws of q.

    The two normal numbers at most that make a particle travel as the bits of its key.
    """
    now = {}

    def sample(q, key):
        return transform_noise(
            q, jax.lax.bitcast_convert_type(jax.random.key_data(key), jnp.float32)
        )

    for q in (LayeredPosterior, dist.MultivariateNormal):
        monkeypatch.setattr(q, "sample", sample)
    for module in (particle_objectives, gdreg):
        monkeypatch.setattr(module, "particle_keys", lambda *_: now["keys"])

    def mean_of(maximised, case, k):
        def value(model, noise):
            numbers = jnp.pad(noise.reshape(k, case.noise), ((0, 0), (0, 2 - case.noise)))
            bits = jax.lax.bitcast_convert_type(numbers, jnp.uint32)
            now["keys"] = jax.random.wrap_key_data(bits)
            return maximised(model, case.x, jax.random.key(0))

        return mean_gradient(value, case.model, k * case.noise, case.nodes)

    return mean_of


def ratios(reduction):
    """A bound as a function of log p and log q."""
    return lambda log_p, log_q: reduction(log_p - log_q)


def assert_unbiased(found, exact, case):
    assert_close(found, exact, case.model, TOLERANCE)


BOUNDS = {
    "elbo": (elbo, {}),
    "iwae": (iwae, {}),
    "ciwae": (partial(ciwae, beta=0.3), {"beta": 0.3}),
    "vr-iwae": (partial(renyi, alpha=0.4), {"alpha": 0.4}),
    "tvo": (partial(tvo, betas=tvo_schedule("log", 4)), {"temperatures": 4}),
}
CASES = {"linear": (LINEAR, 3), "curved": (CURVED, 2), "layered": (LAYERED, 2)}
ALL_CASES = quick(CASES, "linear")


def claiming(name, model):
    """The gradients that claim to be unbiased for a bound, and fit the model."""
    others = {"stl", "dreg-alpha", *FIXED_DRAWS} - ({"stl"} if name == "elbo" else set())
    if not isinstance(model, VAE):
        others.add("gdreg")
    return [g for g in OBJECTIVES[name].gradients if g not in others]


@pytest.mark.parametrize("words", ALL_CASES)
@pytest.mark.parametrize("name", quick(BOUNDS, "iwae", "tvo"))
def test_the_mean_of_an_estimator_is_the_exact_gradient_and_that_of_stl_is_not(
    mean_of, name, words
):
    (case, k), (reduction, options) = CASES[words], BOUNDS[name]
    exact = exact_gradient(ratios(reduction), case, k)
    for g in claiming(name, case.model):
        found = mean_of(objective(name, k, gradient=g, **options), case, k)
        assert_unbiased(found, exact, case)
    if name != "elbo":  # as it is if a table leaves the second derivative out
        stl = mean_of(bound(reduction, k=k, estimator=gradient_estimators.stl()), case, k)
        with pytest.raises(AssertionError, match=r"encoder|q_"):
            assert_unbiased(stl, exact, case)


def _with_flows(model):
    """The model with networks of flows that depend on their inputs, and are smooth enough."""
    rng = np.random.default_rng(0)

    def moved(path, leaf):
        noise = rng.normal(size=leaf.shape) / np.sqrt(100)
        return leaf + jnp.float32(0.5 * noise) if "flow" in jax.tree_util.keystr(path) else leaf

    return jax.tree_util.tree_map_with_path(moved, model)


LEARNED = {
    "vamp": (Case(shallow(1, prior="vamp:2"), BITS, 1, 16), 2),
    "flow": (Case(_with_flows(shallow(posterior="flow:2")), BITS, 2, 14), 1),
    "flow of k": (Case(_with_flows(shallow(posterior="flow:2")), BITS, 2, 8), 2),
}


@pytest.mark.parametrize("words", quick(LEARNED, "flow"))
def test_a_prior_made_of_the_encoder_and_a_flow_posterior_keep_the_means(mean_of, words):
    """DReG and STL freeze q where it is a density, but not where it is the prior."""
    case, k = LEARNED[words]
    exact = exact_gradient(ratios(elbo if k == 1 else iwae), case, k)
    for g in {"vamp": ("dreg", "gdreg"), "flow": ("stl",), "flow of k": ("dreg",)}[words]:
        found = mean_of(objective("elbo" if k == 1 else "iwae", k, gradient=g), case, k)
        assert_unbiased(found, exact, case)


@pytest.mark.parametrize("words", ALL_CASES)
def test_the_gradients_of_wake_sleep_have_the_means_of_wake_theta_and_wake_phi(mean_of, words):
    case, k = CASES[words]
    of_iwae, wake_phi = exact_gradient(ratios(iwae), case, k), exact_wake_phi(case, k)
    awake = join_gradients(of_iwae, wake_phi, case.model)
    for g in ("score", "rws-dreg"):
        assert_unbiased(mean_of(objective("rws", k, gradient=g), case, k), awake, case)
    mixed = join_gradients(of_iwae, 0.7 * of_iwae + 0.3 * wake_phi, case.model)
    found = mean_of(objective("iwae", k, gradient="dreg-alpha", alpha=0.3), case, k)
    assert_unbiased(found, mixed, case)
    for other in (of_iwae, awake):
        with pytest.raises(AssertionError):
            assert_unbiased(found, other, case)


@pytest.mark.slow
def test_groups_climb_the_bound_of_their_size_and_piwaes_decoder_that_of_all(mean_of):
    few, many = (exact_gradient(ratios(iwae), NARROW, k) for k in (2, 4))
    for g in ("reparam", "dreg", "gdreg"):
        found = mean_of(objective("miwae", 2, m=2, gradient=g), NARROW, 4)
        assert_unbiased(found, few, NARROW)
    apart = join_gradients(many, few, NARROW.model)
    for g in ("reparam", "dreg"):
        found = mean_of(objective("piwae", 2, m=2, gradient=g), NARROW, 4)
        assert_unbiased(found, apart, NARROW)
    for other in (few, many):
        with pytest.raises(AssertionError):
            assert_unbiased(apart, other, NARROW)


def test_the_analytic_elbo_has_the_gradient_of_the_elbo(mean_of):
    exact = exact_gradient(ratios(elbo), CURVED, 2)
    assert_unbiased(mean_of(objective("elbo-analytic", 2), CURVED, 2), exact, CURVED)


# Penalties


def in_warm_up(name, k, **options):
    """The objective when the divergence has four tenths of its weight."""
    made = objective(name, k, kl_warmup_steps=10, **options)
    extra = made.init()._replace(tuned={"kl_steps": jnp.int32(4)})
    return lambda model, x, key: made.terms(model, x, key, extra)[0]


WARMED = {
    "iwae": ({}, LAYERED, 2),
    "ciwae": ({"beta": 0.4}, LAYERED, 2),
    "piwae": ({"m": 2}, NARROW, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WARMED)
def test_dreg_climbs_what_a_warm_up_leaves_of_the_bound(mean_of, name):
    options, case, k = WARMED[name]
    particles = k * options.get("m", 1)
    plain, ours = (
        mean_of(in_warm_up(name, k, gradient=g, **options), case, particles)
        for g in ("reparam", "dreg")
    )
    assert_unbiased(ours, plain, case)


@pytest.mark.slow
def test_dreg_that_takes_log_q_for_whole_in_a_warm_up_would_be_seen(mean_of, monkeypatch):
    monkeypatch.setattr(Penalty, "adapted", lambda _, estimator, *__: estimator)
    with pytest.raises(AssertionError):
        test_dreg_climbs_what_a_warm_up_leaves_of_the_bound(mean_of, "iwae")


@pytest.mark.slow
def test_a_warm_up_of_the_analytic_elbo_is_that_of_the_elbo(mean_of):
    def expected(weight):
        def value(model, noise):
            q = model.posterior(BITS)
            z = transform_noise(q, noise)
            log_likelihood = model.decode(z).log_prob(BITS)
            log_w = model.log_joint(BITS, z) - q.log_prob(z)
            return log_likelihood + weight * (log_w - log_likelihood)

        return mean_gradient(value, CURVED.model, 2, 12)

    for name in ("elbo", "elbo-analytic"):
        found = mean_of(in_warm_up(name, 2), CURVED, 2)
        assert_unbiased(found, expected(0.4), CURVED)
        for wrong in (0.0, 0.3, 1.0):
            with pytest.raises(AssertionError):
                assert_unbiased(found, expected(wrong), CURVED)


# Planted faults


@pytest.mark.slow
def test_a_wrong_coefficient_would_be_seen(mean_of):
    right, exact = gradient_estimators.dreg(), exact_gradient(ratios(iwae), LINEAR, 2)

    def with_path(change):
        def coefficients(reduction, log_w):
            table = right.coefficients(reduction, log_w)
            return table._replace(path=change(table.path, jax.nn.softmax(log_w)))

        return right._replace(coefficients=coefficients)

    def with_score(reduction, log_w):
        table = right.coefficients(reduction, log_w)
        return table._replace(score=table.decoder)

    faults = {
        "a fiftieth too long": with_path(lambda path, _: 1.02 * path),
        "another power": with_path(lambda path, w: path * w),
        "a score": Estimator(with_score),
        "wake-sleep": WAKE,
    }
    for estimator in faults.values():
        found = mean_of(bound(iwae, k=2, estimator=estimator), LINEAR, 2)
        with pytest.raises(AssertionError, match="q_"):
            assert_unbiased(found, exact, LINEAR)
    for wrong, k in ((elbo, 2), (iwae, 3)):
        with pytest.raises(AssertionError):
            assert_unbiased(exact_gradient(ratios(wrong), LINEAR, k), exact, LINEAR)


# Draws

N = 20_000


def assert_strong(draws, expected, model):
    """A gradient of any group of parameters that is a fifth too long would be seen."""
    for name, at in parameter_indices(model).items():
        assert z_scores(1.2 * draws[:, at], expected[at]).max() > STANDARD_ERRORS, name


@pytest.mark.parametrize("words", ALL_CASES)
def test_draws_have_the_mean_that_quadrature_gives(words):
    case, _ = CASES[words]
    exact = exact_gradient(ratios(iwae), case, 2)
    draws = gradient_draws(objective("iwae", 2, gradient="dreg"), case.model, case.x, N)
    assert z_scores(draws, exact).max() < STANDARD_ERRORS
    assert_strong(draws, exact, case.model)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(3, 2), (3, 2, 2)])
def test_gdreg_agrees_with_the_plain_gradient(sizes):
    model = deep(*sizes)
    plain, ours = (
        gradient_draws(objective("iwae", 8, gradient=g), model, BITS, N)
        for g in ("reparam", "gdreg")
    )
    assert z_scores(ours - plain, 0.0).max() < STANDARD_ERRORS
    for name, at in parameter_indices(model).items():
        assert z_scores((1.2 * ours - plain)[:, at], 0.0).max() > STANDARD_ERRORS, name


@pytest.mark.slow
def test_gdreg_of_groups_climbs_the_bound_of_their_size():
    exact = exact_gradient(ratios(iwae), LAYERED, 2)
    maximised = objective("miwae", 2, m=3, gradient="gdreg")
    draws = gradient_draws(maximised, LAYERED.model, BITS, N)
    assert z_scores(draws, exact).max() < STANDARD_ERRORS
    assert_strong(draws, exact, LAYERED.model)


@pytest.mark.slow
def test_the_gradient_of_vr_max_is_that_of_the_larger_of_two_weights():
    model, x, *_ = LINEAR
    e = jnp.linspace(-6, 6, 4001)
    weights = jnp.exp(-(e**2) / 2) / jnp.sum(jnp.exp(-(e**2) / 2))

    def mean_of_the_larger(model):
        q = model.posterior(x)
        z = jax.vmap(partial(transform_noise, q))(e[:, None])
        log_w = jax.vmap(lambda z: model.log_joint(x, z) - q.log_prob(z))(z)
        order = jnp.argsort(jax.lax.stop_gradient(log_w))
        ranked = weights[order]
        below = jnp.zeros_like(weights).at[order].set(jnp.cumsum(ranked) - ranked / 2)
        return jnp.sum(2 * weights * below * log_w)  # P(the other one is smaller) = below

    exact = np.float64(ravel_pytree(eqx.filter_jit(eqx.filter_grad(mean_of_the_larger))(model))[0])
    draws = gradient_draws(objective("vr-max", 2), model, x, N)
    assert z_scores(draws, exact).max() < STANDARD_ERRORS
    assert z_scores(1.2 * draws, exact).max() > STANDARD_ERRORS
    for other in (elbo, iwae):
        assert z_scores(draws, exact_gradient(ratios(other), LINEAR, 2)).max() > STANDARD_ERRORS


@pytest.mark.slow
def test_the_gradient_of_dais_is_that_of_its_chain():
    """Also in the step sizes, and in the share of the momentum that is kept."""
    model, x, *_ = LINEAR
    made = objective("dais", 1, temperatures=3)
    steps = jnp.log(jnp.float32([0.5, 0.4]))  # long enough for what is kept to matter
    moves = made.init().learned._replace(log_step_size=steps, kept_logit=jnp.float32(0))

    def log_w(both, noise):
        model, moves = both
        q, (start, v, fresh) = model.posterior(x), noise[:, None]
        kept = jax.nn.sigmoid(moves.kept_logit)
        z = begin = transform_noise(q, start)
        ratio = jnp.float32(0)
        for beta, log_step in zip((0.5, 1.0), moves.log_step_size, strict=True):
            force = jax.grad(lambda z, b=beta: (1 - b) * q.log_prob(z) + b * model.log_joint(x, z))
            half = v + jnp.exp(log_step) / 2 * force(z)
            z = z + jnp.exp(log_step) * half
            after = half + jnp.exp(log_step) / 2 * force(z)
            ratio += jnp.sum(v**2 - after**2) / 2
            v = kept * after + jnp.sqrt(1 - kept**2) * fresh
        return model.log_joint(x, z) - q.log_prob(begin) + ratio

    exact = mean_gradient(log_w, (model, moves), 3, 14)

    def maximised(both, x, key):
        return made.terms(both[0], x, key, Extra(both[1]))[0]

    draws = gradient_draws(maximised, (model, moves), x, N)
    assert z_scores(draws, exact).max() < STANDARD_ERRORS
    steps, kept = slice(-3, -1), slice(-1, None)
    for part, scale in ((slice(-3), 1.3), (steps, 1.3), (kept, 1.8)):
        assert z_scores(scale * draws[:, part], exact[part]).max() > STANDARD_ERRORS


@pytest.mark.slow
def test_the_score_gradient_of_the_tvo_tends_to_that_of_its_integral():
    model, x, *_ = LINEAR
    betas = tvo_schedule("log", 4)
    grid, weights = nodes(1, 60)

    def integral(model):
        """The TVO with expectations under the tempered densities themselves, on a grid."""
        q = jax.lax.stop_gradient(model.posterior(x))
        z = q.loc[None] + grid @ q.scale_tril.T
        log_q0 = jax.vmap(q.log_prob)(z)
        mine = model.posterior(x)
        log_p = jax.vmap(lambda z: model.log_joint(x, z))(z)
        log_q = jax.vmap(mine.log_prob)(z)
        b, total = jnp.float32(betas), 0.0
        for left, right in pairwise(b):
            log_f = (1 - left) * log_q + left * log_p
            w = jax.nn.softmax(jnp.log(weights) + log_f - log_q0)
            total += (right - left) * jnp.sum(w * (log_p - log_q))
        return total

    exact = np.float64(ravel_pytree(eqx.filter_jit(eqx.filter_grad(integral))(model))[0])
    maximised = objective("tvo", 2000, temperatures=4, gradient="score", chunk=2000)
    draws = gradient_draws(maximised, model, x, 1000)
    allowed = 0.005 * np.abs(exact).max()  # the bias of self-normalised weights
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0) - exact) < STANDARD_ERRORS * error + allowed).all()
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(exact)
