"""Bounds on log p(x): identities, known values and growth with k."""

from functools import partial
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from cases import quick
from iwae.errors import UserError
from iwae.inference.log_weights import log_weights
from iwae.inference.particles import importance_particles
from iwae.models.vae import VAE
from iwae.objectives import bounds
from iwae.objectives.bounds import elbo, iwae
from iwae.objectives.building import objective
from iwae.objectives.declaration import OBJECTIVES
from iwae.objectives.particle_objectives import analytic_elbo_objective, bound
from iwae.testing import LinearGaussian
from reference import STANDARD_ERRORS, assert_mean, distance

X = jnp.float32([2.0, -0.5, 0.3])
any_weight = st.floats(-1e4, 1e4, width=32)
finite_weights = st.one_of(  # few lengths, as each is compiled
    st.lists(any_weight, min_size=k, max_size=k) for k in (1, 2, 6)
)


def values(objective, model, x, n, seed=0):
    """Return the objective for n keys, float64."""
    keys = jax.random.split(jax.random.key(seed), n)
    return np.float64(jax.jit(jax.vmap(lambda key: objective(model, x, key)))(keys))


@pytest.fixture(scope="module")
def vae():
    model = VAE(3, (2,), ((4,),), key=jax.random.key(1))
    return eqx.tree_at(lambda m: m.encoder[0].loc.bias, model, jnp.float32([0.7, -1.0]))


# Identities


@pytest.mark.parametrize("name", quick(["elbo", "vae", "iwae"], "iwae"))
def test_every_bound_of_one_particle_is_the_log_weight(name):
    model = LinearGaussian.random(q_shift=0.5)
    expected = values(lambda *args: log_weights(*args, 1)[0], model, X, 3)
    assert values(objective(name, 1), model, X, 3) == pytest.approx(expected, rel=1e-6)


def test_analytic_elbo_is_reconstruction_minus_divergence(vae):
    x, key = np.array([1.0, 0, 1]), jax.random.key(0)
    (h,), _ = eqx.filter_jit(importance_particles)(vae, jnp.float32(x), key, 5)[0]
    mean, sd = reference.gaussian(vae.encoder[0], x)
    divergence = ((mean**2 + sd**2 - 1) / 2 - np.log(sd)).sum()
    expected = reference.log_likelihood(vae, x, h).mean() - divergence
    value = eqx.filter_jit(analytic_elbo_objective(k=5))(vae, jnp.float32(x), jax.random.clone(key))
    assert value == pytest.approx(expected, rel=1e-5)


def test_every_bound_is_the_evidence_under_the_exact_posterior():
    model = LinearGaussian.random()
    for name in ("elbo", "iwae"):
        expected = np.full(2, float(model.log_evidence(X)))
        assert values(objective(name, 4), model, X, 2) == pytest.approx(expected, rel=1e-5)


@given(finite_weights, st.floats(-1e3, 1e3, width=32))
def test_bounds_shift_with_the_weights_and_lie_between_mean_and_maximum(log_w, shift):
    log_w = jnp.float32(log_w)
    for reduction in (elbo, iwae):
        moved = float(reduction(log_w + jnp.float32(shift)))
        assert moved == pytest.approx(float(reduction(log_w)) + shift, abs=0.01)
    assert elbo(log_w) - 0.01 <= iwae(log_w) <= log_w.max() + 0.01


def test_zero_weight_counts_and_keeps_the_gradient_finite():
    log_w = jnp.float32([-1e4, -jnp.inf])
    assert iwae(log_w) == pytest.approx(-1e4 - np.log(2))
    assert jax.grad(iwae)(log_w) == pytest.approx([1.0, 0.0])
    assert elbo(log_w) == -jnp.inf


# Known values


def test_elbo_is_the_evidence_minus_the_divergence_from_the_posterior():
    shift, scale = np.array([0.4, -0.2]), 1.3
    model = LinearGaussian.random(q_shift=shift, q_scale=scale)
    covariance = np.float64(model.exact_posterior(X).covariance_matrix)
    mahalanobis = shift @ np.linalg.solve(covariance, shift)
    divergence = (2 * scale**2 + mahalanobis - 2 - 4 * np.log(scale)) / 2
    expected = float(model.log_evidence(X)) - divergence
    assert_mean(values(bound(elbo, k=4), model, X, 4000), expected, error_at_most=0.02)
    assert divergence > 0.4  # 20 such errors: omitting it would be detected


def test_analytic_elbo_has_the_same_mean_as_the_elbo(vae):
    x = jnp.float32([1, 0, 1])
    sampled, analytic = (values(objective(n, 2), vae, x, 4000) for n in ("elbo", "elbo-analytic"))
    assert_mean(sampled - analytic, 0.0, error_at_most=0.05)
    assert analytic.std() < sampled.std()


@pytest.mark.slow
def test_bound_increases_with_k_towards_the_evidence():
    model = LinearGaussian.random(q_shift=0.5, q_scale=1.5)
    # Keys are shared, so that the particles of a smaller k are among those of a larger k.
    bounds = [values(bound(iwae, k=k), model, X, 2000) for k in (1, 4, 64)]
    for lower, higher in pairwise(bounds):
        assert distance(higher - lower, 0.0) > STANDARD_ERRORS
    log_p = float(model.log_evidence(X))
    assert distance(bounds[-2], log_p) < -STANDARD_ERRORS
    assert bounds[-1].mean() == pytest.approx(log_p, abs=0.05)


def without_log_q(model, x, key, k):
    particles, info = importance_particles(model, x, key, k)
    log_q = jax.vmap(model.posterior(x).log_prob)(particles.z)
    return particles._replace(log_w=particles.log_w + log_q), info


FAULTS = {
    "mean instead of log-mean-exp": (
        *(vars(bounds), "log_mean_exp", jnp.mean),
        test_bound_increases_with_k_towards_the_evidence,
    ),
    "maximum instead of log-mean-exp": (
        *(vars(bounds), "log_mean_exp", jnp.max),
        test_bound_increases_with_k_towards_the_evidence,
    ),
    "log-mean-exp without 1/k": (
        *(vars(bounds), "log_mean_exp", jax.nn.logsumexp),
        test_every_bound_is_the_evidence_under_the_exact_posterior,
    ),
    "elbo without 1/k": (
        *(globals(), "elbo", jnp.sum),
        test_elbo_is_the_evidence_minus_the_divergence_from_the_posterior,
    ),
    "iwae instead of elbo": (
        *(globals(), "elbo", iwae),
        test_elbo_is_the_evidence_minus_the_divergence_from_the_posterior,
    ),
    "elbo without log q": (
        *(globals(), "bound", partial(bound, sampler=without_log_q)),
        test_elbo_is_the_evidence_minus_the_divergence_from_the_posterior,
    ),
    "log-mean-exp without log q": (
        *(globals(), "bound", partial(bound, sampler=without_log_q)),
        test_bound_increases_with_k_towards_the_evidence,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_detected(monkeypatch, fault):
    *place, oracle = FAULTS[fault]
    monkeypatch.setitem(*place)
    with pytest.raises(AssertionError):
        oracle()


def test_gradients_are_finite_for_very_small_weights():
    model = LinearGaussian.random(q_shift=30.0)
    for name in ("elbo", "iwae"):
        value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(objective(name, 3)))(
            model, 10 * X, jax.random.key(0)
        )
        assert value < -1000
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


# Names


def named_objective(name):
    needed = {"m": 2, "alpha": 0.3, "beta": 0.4}
    return objective(name, 3, **{o: needed[o] for o in OBJECTIVES[name].options if o in needed})


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_named_objective_is_finite(vae, name):
    assert np.isfinite(values(named_objective(name), vae, jnp.ones(3), 1)).all()


def test_named_objectives_are_cached():
    """The same object is returned, so that it is compiled once."""
    assert all(named_objective(name) is named_objective(name) for name in OBJECTIVES)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("iwea", "did you mean iwae"), ("ELBO", "did you mean elbo"), ("qqq", "known")],
)
def test_unknown_name_error_suggests_the_nearest_known_one(name, hint):
    with pytest.raises(UserError, match=f"no objective '{name}'; {hint}"):
        objective(name, 1)


def test_fewer_than_one_particle_is_a_user_error():
    with pytest.raises(UserError, match="k is 0"):
        objective("iwae", 0)
    for make in (lambda k: bound(iwae, k=k), lambda k: analytic_elbo_objective(k=k)):
        with pytest.raises(UserError, match="k is -1"):
            make(-1)


@pytest.mark.parametrize("layers", [0, 2])
def test_analytic_elbo_rejects_models_without_a_closed_form(layers):
    model = LinearGaussian.random()
    if layers:
        model = VAE(3, (2, 2), ((), ()), key=jax.random.key(0))
    with pytest.raises(UserError, match=r"one stochastic layer.*use elbo"):
        analytic_elbo_objective(k=1)(model, X, jax.random.key(0))
