"""Posterior means, draws and grids, and the rate-distortion curve, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import reference
from iwae.errors import UserError
from iwae.evaluation.posterior import posterior_grid, snis_mean
from iwae.evaluation.rate_distortion import rate_distortion
from iwae.evaluation.scores import marginal_scores
from iwae.inference.particles import Particles, importance_particles
from iwae.inference.resampling import sir
from iwae.inference.temperatures import linear_schedule
from iwae.models.vae import VAE
from iwae.testing import LinearGaussian
from reference import STANDARD_ERRORS, assert_mean, distance

X = jnp.float32([2.0, -0.5, 0.3])


class WithPrior(LinearGaussian):
    """The same model with a declared prior."""

    def log_prior(self, z):
        return self.prior().log_prob(z)


def wrong_q(kind=LinearGaussian, n_latent=2):
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, n_latent)), rng.normal(1.0, 1.0, 3)
    return kind(weight, bias, 0.7, q_shift=0.4, q_scale=1.3)


@pytest.mark.slow
def test_marginal_scores_are_near_the_evidence():
    model = wrong_q()
    exact = [float(model.log_evidence(x)) for x in (X, -X)]
    assert marginal_scores(model, np.stack([X, -X]), k=2000) == pytest.approx(exact, abs=0.15)


# From particles


def draw_particles(model, k, seed=0):
    return jax.jit(lambda key: importance_particles(model, X, key, k)[0])(jax.random.key(seed))


def test_snis_estimates_the_posterior_mean_of_any_function():
    model, repeats = wrong_q(), 300
    exact = model.exact_posterior(X)

    @jax.jit
    @jax.vmap
    def estimates(key):
        particles, _ = importance_particles(model, X, key, 400)
        return snis_mean(particles), snis_mean(particles, lambda z: {"product": z[0] * z[1]})

    means, others = estimates(jax.random.split(jax.random.key(0), repeats))
    mean, covariance = np.float64(exact.mean), np.float64(exact.covariance_matrix)
    for i in range(2):
        assert_mean(means[:, i], mean[i], error_at_most=0.01)
        assert abs(distance(means[:, i], mean[i] + 0.4)) > 2 * STANDARD_ERRORS  # the mean of q
    product = covariance[0, 1] + mean[0] * mean[1]
    assert_mean(others["product"], product, error_at_most=0.01)


def test_sir_draws_from_the_posterior():
    model = wrong_q()
    exact, particles = model.exact_posterior(X), draw_particles(model, 50_000)
    draws = np.float64(sir(particles, jax.random.key(1), 4000))
    mean, covariance = np.float64(exact.mean), np.float64(exact.covariance_matrix)
    for i in range(2):
        centred = draws[:, i] - mean[i]
        assert_mean(centred, 0.0, error_at_most=0.02)
        assert_mean(centred**2, covariance[i, i], error_at_most=0.02)


def test_sir_never_draws_zero_weights_and_keeps_layers_together():
    z = (jnp.arange(3.0)[:, None], 10 * jnp.arange(3.0)[:, None])
    particles = Particles(z, jnp.float32([-500, -jnp.inf, -500]))
    below, above = sir(particles, jax.random.key(0), 200)
    assert set(np.unique(below)) == {0, 2}
    assert (above == 10 * below).all()
    assert snis_mean(particles)[1] == pytest.approx([10])


# Grids


def test_grid_matches_the_exact_posterior_and_q():
    model = wrong_q()
    grid = posterior_grid(model, X, jax.random.key(0), points=150, draws=50)
    points = np.stack(np.meshgrid(*grid.axes, indexing="ij"), axis=-1)
    exact, q = model.exact_posterior(X), model.posterior(X)
    for log_density, true in ((grid.log_posterior, exact), (grid.log_q, q)):
        expected = multivariate_normal.logpdf(points, true.mean, true.covariance_matrix)
        assert log_density == pytest.approx(expected, abs=0.01)
    assert grid.log_evidence == pytest.approx(float(model.log_evidence(X)), abs=1e-3)
    assert grid.draws.shape == (50, 2)
    assert grid.draws.mean(axis=0) == pytest.approx(np.asarray(exact.mean), abs=0.5)


def test_grid_of_one_latent_is_normalised():
    model = VAE(4, (1,), ((3,),), key=jax.random.key(0))
    x = jnp.float32([1, 0, 1, 1])
    grid = posterior_grid(model, x, jax.random.key(0), limits=((-15.0, 15.0),))
    assert grid.log_evidence == pytest.approx(reference.log_evidence(model, x), abs=1e-3)
    assert grid.log_posterior.shape == grid.log_q.shape == grid.axes[0].shape == (200,)
    for log_density in (grid.log_posterior, grid.log_q):
        assert np.trapezoid(np.exp(log_density), grid.axes[0]) == pytest.approx(1, abs=1e-3)


def test_grid_of_three_latents_is_rejected():
    model = VAE(4, (1, 2), ((3,), (3,)), key=jax.random.key(0))
    with pytest.raises(UserError, match="one or two latents; this model has 3"):
        posterior_grid(model, jnp.ones(4), jax.random.key(0))


# Rate and distortion


def exact_curve(model, xs, betas):
    """Return rate and distortion `[n, T]` of N(z; 0, I) N(x; Wz + b, s^2 I)^beta, float64."""
    w, b = np.float64(model.weight), np.float64(model.bias)
    noise, (d, m) = np.exp(2 * np.float64(model.log_scale)), model.weight.shape
    rate, distortion = [], []
    for beta in betas:
        covariance = np.linalg.inv(np.eye(m) + beta * w.T @ w / noise)
        means = beta * (xs - b) @ w @ covariance / noise
        squares = ((xs - b - means @ w.T) ** 2).sum(axis=1) + np.trace(w @ covariance @ w.T)
        distortion.append(0.5 * (d * np.log(2 * np.pi * noise) + squares / noise))
        log_det = np.linalg.slogdet(covariance)[1]
        rate.append(0.5 * (np.trace(covariance) + (means**2).sum(axis=1) - m - log_det))
    return np.stack(rate, axis=1), np.stack(distortion, axis=1)


def test_rate_distortion_curve_matches_the_closed_form():
    model, n = wrong_q(WithPrior), 200
    xs = np.asarray(
        jax.jit(jax.vmap(lambda key: model.sample(key)[1]))(jax.random.split(jax.random.key(0), n))
    )
    betas = np.append(linear_schedule(9), 1.5)
    options = {"betas": betas, "step_size": 0.4, "n_leapfrog": 4, "chains": 50}
    curve = rate_distortion(model, xs, jax.random.key(1), **options)
    rate, distortion = exact_curve(model, np.float64(xs), np.float64(betas))
    assert curve.rate.shape == curve.distortion.shape == (n, 10)
    assert curve.acceptance.shape == (n, 9)
    assert (curve.rate[:, 0] == 0).all()
    for t in range(10):
        assert abs(distance(curve.distortion[:, t], 0.0)) > STANDARD_ERRORS
        errors = curve.distortion[:, t] - distortion[:, t]
        assert abs(errors.mean()) < STANDARD_ERRORS * errors.std() / np.sqrt(n) + 0.02
        over = curve.rate[:, t] - rate[:, t]
        assert over.mean() < 0.1
        assert over.mean() > -STANDARD_ERRORS * over.std() / np.sqrt(n) - 1e-3
    # Power: the value of a neighbouring temperature would be detected.
    assert (np.diff(rate.mean(axis=0))[4:] > 0.05).all()
    assert (np.diff(distortion.mean(axis=0))[:5] < -0.1).all()


def test_rate_and_distortion_at_beta_one_sum_to_the_likelihood():
    model = wrong_q(WithPrior)
    rate, distortion = exact_curve(model, np.float64(X)[None], [1.0])
    assert rate + distortion == pytest.approx(-float(model.log_evidence(X)), rel=1e-5)


def test_model_without_a_prior_is_rejected():
    with pytest.raises(UserError, match="does not define its prior"):
        rate_distortion(
            wrong_q(),
            np.ones((1, 3)),
            jax.random.key(0),
            betas=[0.0, 1.0],
            step_size=0.1,
            n_leapfrog=1,
        )
