"""Expected gradients of the estimators: by quadrature over their noise, and by many draws."""

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
"""Relative error of a gradient: above that of quadrature and float32, below that of any fault."""


@pytest.fixture
def estimator_mean(monkeypatch):
    """Return a function (objective, case, k) -> mean gradient, by quadrature over the draws of q.

    The normal numbers of a particle, at most two, are passed as the bits of its key.
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

    def estimator_mean(maximised, case, k):
        def value(model, noise):
            numbers = jnp.pad(noise.reshape(k, case.noise), ((0, 0), (0, 2 - case.noise)))
            bits = jax.lax.bitcast_convert_type(numbers, jnp.uint32)
            now["keys"] = jax.random.wrap_key_data(bits)
            return maximised(model, case.x, jax.random.key(0))

        return mean_gradient(value, case.model, k * case.noise, case.nodes)

    return estimator_mean


def bound_of_densities(reduction):
    """Return a bound as a function of log p and log q."""
    return lambda log_p, log_q: reduction(log_p - log_q)


def assert_unbiased(result, exact, case):
    assert_close(result, exact, case.model, TOLERANCE)


BOUNDS = {
    "elbo": (elbo, {}),
    "iwae": (iwae, {}),
    "ciwae": (partial(ciwae, beta=0.3), {"beta": 0.3}),
    "vr-iwae": (partial(renyi, alpha=0.4), {"alpha": 0.4}),
    "tvo": (partial(tvo, betas=tvo_schedule("log", 4)), {"temperatures": 4}),
}
CASES = {"linear": (LINEAR, 3), "curved": (CURVED, 2), "layered": (LAYERED, 2)}
ALL_CASES = quick(CASES, "linear")


def unbiased_gradients(name, model):
    """Return the gradients that should be unbiased for a bound and apply to the model."""
    others = {"stl", "dreg-alpha", *FIXED_DRAWS} - ({"stl"} if name == "elbo" else set())
    if not isinstance(model, VAE):
        others.add("gdreg")
    return [g for g in OBJECTIVES[name].gradients if g not in others]


@pytest.mark.parametrize("case_name", ALL_CASES)
@pytest.mark.parametrize("name", quick(BOUNDS, "iwae", "tvo"))
def test_unbiased_estimators_have_the_exact_mean_and_stl_does_not(estimator_mean, name, case_name):
    (case, k), (reduction, options) = CASES[case_name], BOUNDS[name]
    exact = exact_gradient(bound_of_densities(reduction), case, k)
    for g in unbiased_gradients(name, case.model):
        result = estimator_mean(objective(name, k, gradient=g, **options), case, k)
        assert_unbiased(result, exact, case)
    if name != "elbo":  # as if an estimator omitted the second derivative
        stl = estimator_mean(bound(reduction, k=k, estimator=gradient_estimators.stl()), case, k)
        with pytest.raises(AssertionError, match=r"encoder|q_"):
            assert_unbiased(stl, exact, case)


def _with_flows(model):
    """Return the model with smooth flow networks that depend on their inputs."""
    rng = np.random.default_rng(0)

    def moved(path, leaf):
        noise = rng.normal(size=leaf.shape) / np.sqrt(100)
        return leaf + jnp.float32(0.5 * noise) if "flow" in jax.tree_util.keystr(path) else leaf

    return jax.tree_util.tree_map_with_path(moved, model)


LEARNED = {
    "vamp": (Case(shallow(1, prior="vamp:2"), BITS, 1, 16), 2),
    "flow": (Case(_with_flows(shallow(posterior="flow:2")), BITS, 2, 14), 1),
    "flow with k = 2": (Case(_with_flows(shallow(posterior="flow:2")), BITS, 2, 8), 2),
}


@pytest.mark.parametrize("case_name", quick(LEARNED, "flow"))
def test_vampprior_and_flow_posterior_keep_estimators_unbiased(estimator_mean, case_name):
    """DReG and STL stop gradients through q as a density, but not as part of the prior."""
    case, k = LEARNED[case_name]
    exact = exact_gradient(bound_of_densities(elbo if k == 1 else iwae), case, k)
    for g in {"vamp": ("dreg", "gdreg"), "flow": ("stl",), "flow with k = 2": ("dreg",)}[case_name]:
        result = estimator_mean(objective("elbo" if k == 1 else "iwae", k, gradient=g), case, k)
        assert_unbiased(result, exact, case)


@pytest.mark.parametrize("case_name", ALL_CASES)
def test_wake_sleep_gradients_have_the_wake_theta_and_wake_phi_means(estimator_mean, case_name):
    case, k = CASES[case_name]
    of_iwae, wake_phi = exact_gradient(bound_of_densities(iwae), case, k), exact_wake_phi(case, k)
    awake = join_gradients(of_iwae, wake_phi, case.model)
    for g in ("score", "rws-dreg"):
        assert_unbiased(estimator_mean(objective("rws", k, gradient=g), case, k), awake, case)
    mixed = join_gradients(of_iwae, 0.7 * of_iwae + 0.3 * wake_phi, case.model)
    result = estimator_mean(objective("iwae", k, gradient="dreg-alpha", alpha=0.3), case, k)
    assert_unbiased(result, mixed, case)
    for other in (of_iwae, awake):
        with pytest.raises(AssertionError):
            assert_unbiased(result, other, case)


@pytest.mark.slow
def test_groups_maximise_the_bound_of_their_size_and_the_piwae_decoder_that_of_all(estimator_mean):
    few, many = (exact_gradient(bound_of_densities(iwae), NARROW, k) for k in (2, 4))
    for g in ("reparam", "dreg", "gdreg"):
        result = estimator_mean(objective("miwae", 2, m=2, gradient=g), NARROW, 4)
        assert_unbiased(result, few, NARROW)
    apart = join_gradients(many, few, NARROW.model)
    for g in ("reparam", "dreg"):
        result = estimator_mean(objective("piwae", 2, m=2, gradient=g), NARROW, 4)
        assert_unbiased(result, apart, NARROW)
    for other in (few, many):
        with pytest.raises(AssertionError):
            assert_unbiased(apart, other, NARROW)


def test_analytic_elbo_has_the_gradient_of_the_elbo(estimator_mean):
    exact = exact_gradient(bound_of_densities(elbo), CURVED, 2)
    assert_unbiased(estimator_mean(objective("elbo-analytic", 2), CURVED, 2), exact, CURVED)


# Penalties


def in_warm_up(name, k, **options):
    """Return the objective during its warm-up, with the divergence at 0.4 of its weight."""
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
def test_dreg_maximises_the_bound_during_a_warm_up(estimator_mean, name):
    options, case, k = WARMED[name]
    particles = k * options.get("m", 1)
    plain, result = (
        estimator_mean(in_warm_up(name, k, gradient=g, **options), case, particles)
        for g in ("reparam", "dreg")
    )
    assert_unbiased(result, plain, case)


@pytest.mark.slow
def test_dreg_with_unweighted_log_q_during_a_warm_up_is_detected(estimator_mean, monkeypatch):
    monkeypatch.setattr(Penalty, "adapted", lambda _, estimator, *__: estimator)
    with pytest.raises(AssertionError):
        test_dreg_maximises_the_bound_during_a_warm_up(estimator_mean, "iwae")


@pytest.mark.slow
def test_warm_up_of_the_analytic_elbo_has_the_gradient_of_the_elbo(estimator_mean):
    def expected(weight):
        def value(model, noise):
            q = model.posterior(BITS)
            z = transform_noise(q, noise)
            log_likelihood = model.decode(z).log_prob(BITS)
            log_w = model.log_joint(BITS, z) - q.log_prob(z)
            return log_likelihood + weight * (log_w - log_likelihood)

        return mean_gradient(value, CURVED.model, 2, 12)

    for name in ("elbo", "elbo-analytic"):
        result = estimator_mean(in_warm_up(name, 2), CURVED, 2)
        assert_unbiased(result, expected(0.4), CURVED)
        for wrong in (0.0, 0.3, 1.0):
            with pytest.raises(AssertionError):
                assert_unbiased(result, expected(wrong), CURVED)


# Planted faults


@pytest.mark.slow
def test_wrong_coefficient_is_detected(estimator_mean):
    right, exact = gradient_estimators.dreg(), exact_gradient(bound_of_densities(iwae), LINEAR, 2)

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
        result = estimator_mean(bound(iwae, k=2, estimator=estimator), LINEAR, 2)
        with pytest.raises(AssertionError, match="q_"):
            assert_unbiased(result, exact, LINEAR)
    for wrong, k in ((elbo, 2), (iwae, 3)):
        with pytest.raises(AssertionError):
            assert_unbiased(exact_gradient(bound_of_densities(wrong), LINEAR, k), exact, LINEAR)


# Draws

N = 20_000


def assert_power(draws, expected, model):
    """Assert that a gradient 20% too long in any group of parameters would be detected."""
    for name, at in parameter_indices(model).items():
        assert z_scores(1.2 * draws[:, at], expected[at]).max() > STANDARD_ERRORS, name


@pytest.mark.parametrize("case_name", ALL_CASES)
def test_sampled_gradients_have_the_mean_found_by_quadrature(case_name):
    case, _ = CASES[case_name]
    exact = exact_gradient(bound_of_densities(iwae), case, 2)
    draws = gradient_draws(objective("iwae", 2, gradient="dreg"), case.model, case.x, N)
    assert z_scores(draws, exact).max() < STANDARD_ERRORS
    assert_power(draws, exact, case.model)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(3, 2), (3, 2, 2)])
def test_gdreg_agrees_with_the_plain_gradient(sizes):
    model = deep(*sizes)
    plain, result = (
        gradient_draws(objective("iwae", 8, gradient=g), model, BITS, N)
        for g in ("reparam", "gdreg")
    )
    assert z_scores(result - plain, 0.0).max() < STANDARD_ERRORS
    for name, at in parameter_indices(model).items():
        assert z_scores((1.2 * result - plain)[:, at], 0.0).max() > STANDARD_ERRORS, name


@pytest.mark.slow
def test_gdreg_of_groups_maximises_the_bound_of_their_size():
    exact = exact_gradient(bound_of_densities(iwae), LAYERED, 2)
    maximised = objective("miwae", 2, m=3, gradient="gdreg")
    draws = gradient_draws(maximised, LAYERED.model, BITS, N)
    assert z_scores(draws, exact).max() < STANDARD_ERRORS
    assert_power(draws, exact, LAYERED.model)


@pytest.mark.slow
def test_vr_max_gradient_is_that_of_the_larger_of_two_weights():
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
        assert (
            z_scores(draws, exact_gradient(bound_of_densities(other), LINEAR, 2)).max()
            > STANDARD_ERRORS
        )


@pytest.mark.slow
def test_dais_gradient_is_that_of_its_chain():
    """Including the step sizes and the share of the momentum that is kept."""
    model, x, *_ = LINEAR
    made = objective("dais", 1, temperatures=3)
    steps = jnp.log(jnp.float32([0.5, 0.4]))  # long enough for the kept momentum to matter
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
def test_tvo_score_gradient_converges_to_that_of_its_integral():
    model, x, *_ = LINEAR
    betas = tvo_schedule("log", 4)
    grid, weights = nodes(1, 60)

    def integral(model):
        """Return the TVO with expectations under the tempered densities, on a grid."""
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
