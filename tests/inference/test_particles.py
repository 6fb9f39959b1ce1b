"""Particles are properly weighted, and statistics of their weights are accurate."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import reference
from iwae.inference.log_weights import effective_sample_size, log_mean_exp, log_weights
from iwae.inference.particles import importance_particles
from iwae.models.vae import VAE
from iwae.testing import LinearGaussian
from reference import STANDARD_ERRORS, assert_mean, distance

weights = eqx.filter_jit(log_weights)
particles = eqx.filter_jit(importance_particles)
X = np.array([2.0, -0.5, 0.3])
log_weight_lists = st.lists(
    st.floats(-1e4, 1e4, width=32) | st.just(-np.inf), min_size=1, max_size=8
)


def exact(model):
    """Return the mean and covariance of p(z|x), and log p(x), by SciPy in float64."""
    weight, bias = np.float64(model.weight), np.float64(model.bias)
    noise = np.exp(2 * np.float64(model.log_scale))
    covariance = weight @ weight.T + noise * np.eye(len(bias))
    posterior = np.linalg.inv(np.eye(weight.shape[1]) + weight.T @ weight / noise)
    mean = posterior @ weight.T @ (X - bias) / noise
    return mean, posterior, multivariate_normal.logpdf(X, bias, covariance)


# Weights


def test_every_weight_is_the_evidence_under_the_exact_posterior():
    model = LinearGaussian.random()
    log_w = weights(model, jnp.float32(X), jax.random.key(0), 50)
    assert log_w == pytest.approx(np.full(50, exact(model)[2]), rel=1e-5)


def test_particles_of_a_wrong_q_are_properly_weighted():
    model = LinearGaussian.random(q_shift=np.array([0.4, -0.2]), q_scale=1.3)
    mean, covariance, log_p = exact(model)
    z, log_w = particles(model, jnp.float32(X), jax.random.key(1), 40_000)[0]
    w, z = np.exp(np.float64(log_w) - log_p), np.float64(z)
    second = covariance + np.outer(mean, mean)
    assert_mean(w, 1.0, error_at_most=0.01)
    for i in range(2):
        assert_mean(w * z[:, i], mean[i], error_at_most=0.02)
        assert_mean(w * z[:, i] * z[:, 1], second[i, 1], error_at_most=0.02)
        # Power: unweighted draws would be detected.
        assert abs(distance(z[:, i], mean[i])) > 2 * STANDARD_ERRORS


def test_mean_weight_of_a_small_vae_is_its_evidence_by_quadrature():
    model = VAE(4, (1,), ((3,),), key=jax.random.key(2))
    model = eqx.tree_at(
        lambda m: m.decoder_hidden.layers[0].weight, model, replace_fn=lambda w: 4 * w
    )
    x = np.array([1.0, 0, 1, 1])
    log_w = weights(model, jnp.float32(x), jax.random.key(2), 40_000)
    w = np.exp(np.float64(log_w) - reference.log_evidence(model, x))
    assert_mean(w, 1.0, error_at_most=0.005)
    assert w.std() > 0.1  # q is not exact, so that the weights vary


def test_particles_do_not_depend_on_the_chunk():
    model, key = LinearGaussian.random(q_shift=1.0), jax.random.key(3)
    full, _ = particles(model, jnp.float32(X), key, 7)
    part, _ = particles(model, jnp.float32(X), key, 3, first=jnp.asarray(2))
    assert part.z == pytest.approx(np.asarray(full.z[2:5]))
    assert part.log_w == pytest.approx(np.asarray(full.log_w[2:5]))
    assert len(np.unique(full.log_w)) == 7


# Statistics of weights


@given(log_weight_lists)
def test_log_mean_exp_agrees_with_float64(log_w):
    expected = logsumexp(log_w) - np.log(len(log_w))
    value = log_mean_exp(jnp.float32(log_w))
    assert value == pytest.approx(expected, rel=1e-6, abs=1e-5)


@given(log_weight_lists)
def test_effective_sample_size_agrees_with_float64(log_w):
    top = max(log_w)
    w = np.exp(np.subtract(log_w, top)) if top > -np.inf else np.zeros(1)
    expected = w.sum() ** 2 / (w**2).sum() if w.any() else 0.0
    ess = effective_sample_size(jnp.float32(log_w))
    assert ess == pytest.approx(expected, rel=1e-3)


def test_gradient_of_log_mean_exp_is_the_normalised_weights():
    log_w = jnp.float32([-1e4, -1e4 + 1, -jnp.inf])
    gradient = jax.grad(log_mean_exp)(log_w)
    assert gradient == pytest.approx([1 / (1 + np.e), np.e / (1 + np.e), 0], abs=1e-6)
