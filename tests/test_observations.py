"""Each kind of data has the density, the draws and the first output that it should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm

from iwae._types import UserError
from iwae.observations import MEAN_CLIP, observation
from reference import assert_mean

LOGITS = np.array([-30, -3, -0.5, 0, 0.25, 2, 30])
VALUES = np.array([0, 1, 0.3, 1, 0.7, 0, 1])


def test_bernoulli_density_is_the_cross_entropy():
    p = observation("bernoulli").distribution(jnp.float32(LOGITS))
    expected = VALUES * np.log(expit(LOGITS)) + (1 - VALUES) * np.log(expit(-LOGITS))
    assert p.log_prob(jnp.float32(VALUES)) == pytest.approx(expected.sum(), rel=1e-6)


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("x", [0.0, 1.0])
def test_bernoulli_density_and_gradient_are_finite_at_any_logit(size, x):
    def log_prob(logits):
        return observation("bernoulli").distribution(logits).log_prob(jnp.full(2, x))

    logits = jnp.float32([-size, size])
    value, gradient = jax.value_and_grad(log_prob)(logits)
    assert value == pytest.approx(-np.logaddexp(0, -size) * 2 - size, abs=1e-6 + 1e-7 * size)
    assert gradient == pytest.approx(x - expit(np.float64(logits)), abs=1e-6)


def test_bernoulli_draws_are_float32_with_the_right_means():
    p = observation("bernoulli").distribution(jnp.float32([-1.5, 2.0]))
    draws = jax.vmap(p.sample)(jax.random.split(jax.random.key(0), 4000))
    assert draws.dtype == jnp.float32
    assert set(np.unique(draws)) == {0.0, 1.0}
    for column, logits in zip(draws.T, [-1.5, 2.0], strict=True):
        assert_mean(column, expit(logits), error_at_most=0.01)


def test_gaussian_density_is_that_of_scipy():
    loc, log_scale, x = np.array([0.5, -2, 3]), np.array([0.1, -1, 1.5]), np.array([0.0, -2.5, 9])
    p = observation("gaussian").distribution(jnp.float32(np.concatenate([loc, log_scale])))
    expected = norm.logpdf(x, loc, np.exp(log_scale)).sum()
    assert p.log_prob(jnp.float32(x)) == pytest.approx(expected, rel=1e-6)


def test_the_first_bernoulli_output_is_the_logit_of_the_clipped_means():
    mean = np.array([0.0, 0.0005, 0.13, 0.5, 1.0])
    output = observation("bernoulli").initial_output(mean, np.ones(5))
    assert output == pytest.approx(logit(np.clip(mean, MEAN_CLIP, 1 - MEAN_CLIP)))
    assert MEAN_CLIP == 0.001


def test_the_first_gaussian_output_is_the_mean_and_the_log_of_the_floored_scale():
    output = observation("gaussian").initial_output(np.array([1.0, -2.0]), np.array([0.5, 0.0]))
    assert output == pytest.approx([1.0, -2.0, np.log(0.5), np.log(1e-3)])


def test_an_unknown_observation_lists_the_known_ones():
    with pytest.raises(UserError, match="no observation 'poisson'; known: bernoulli, gaussian"):
        observation("poisson")
