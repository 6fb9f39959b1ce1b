"""Signal, noise and bias of gradient estimators: known ones, those of theory, and false alarms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import t as student

from expectations import BITS, deep, shallow
from iwae._types import UserError
from iwae.gradients import signal
from iwae.methods import objective
from iwae.testing import LinearGaussian
from reference import STANDARD_ERRORS

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [("reparam", -0.5), ("dreg", 0.5)])
def test_signal_to_noise_grows_with_k_as_theory_says(name, expected):
    model = LinearGaussian.random(1, 3, q_shift=0.3, q_scale=1.2)
    xs, ks, n = jnp.float32([[2.0, -0.5, 0.3]]), (4, 8, 16, 32, 64), 64_000
    found = []
    for k in ks:
        draw = signal.gradient_of(objective("iwae", k, gradient=name))
        moments = signal.moments(draw, model, xs, jax.random.key(k), n)
        found.append(signal.signals(model, moments, n))
    for group, power in (("q_bias", expected), ("weight", 0.5)):
        ratios = [signals[group].snr for signals in found]
        errors = [signals[group].snr_stderr for signals in found]
        slope, error = signal.slope_of(ks, ratios, errors)
        assert abs(slope - power) < 3 * error + 0.05, group  # theory is of k without end
        assert 3 * error + 0.05 < 0.15, group


@pytest.mark.slow
def test_signal_noise_and_bias_are_those_of_known_gradients():
    model, xs = LinearGaussian.random(), jnp.zeros((1, 3))

    def draw(model, xs, key):  # noqa: ARG001 - gradients of mean 3 and standard deviation 2
        return jax.tree.map(
            lambda leaf: 3.0 + 2.0 * jax.random.normal(jax.random.clone(key), leaf.shape), model
        )

    found = signal.signals(model, signal.moments(draw, model, xs, jax.random.key(0), 2000), 2000)
    for name, leaves in signal.groups_of(model, model).items():
        assert found[name].snr == pytest.approx(1.5, abs=5 * found[name].snr_stderr)
        assert found[name].snr_stderr < 0.1
        assert found[name].mean_norm == pytest.approx(3 * np.sqrt(leaves[0].size), rel=0.1)
        assert found[name].variance == pytest.approx(4 * leaves[0].size, rel=0.2)

    def moved(model, xs, key):
        return jax.tree.map(lambda leaf: 1.1 * leaf, draw(model, xs, key))

    limit = signal.biased_above(400)
    biases = signal.biases(moved, draw, model, xs, jax.random.key(1), 400)
    assert all(bias.z > limit for bias in biases.values())
    assert biases["weight"].relative == pytest.approx(0.1, abs=0.02)
    same = signal.biases(draw, draw, model, xs, jax.random.key(1), 400)
    assert all(bias.z == 0 for bias in same.values())

    def beside(model, xs, key):  # always by as much: no error at all, and a bias
        return jax.tree.map(lambda leaf: 0.5 + leaf, draw(model, xs, key))

    constant = signal.biases(beside, draw, model, xs, jax.random.key(1), 400)
    assert all(bias.z > limit for bias in constant.values())


@pytest.mark.slow
def test_the_paired_test_finds_the_bias_of_stl_and_none_of_dreg():
    model, limit = shallow(), signal.biased_above(4000)
    plain, stl, dreg = (
        signal.gradient_of(objective("iwae", 4, gradient=g)) for g in ("reparam", "stl", "dreg")
    )
    key = jax.random.key(5)
    found = signal.biases(stl, plain, model, BITS[None], key, 4000)
    assert found["encoder 1"].z > limit
    assert abs(found["decoder"].z) < limit
    found = signal.biases(dreg, plain, model, BITS[None], jax.random.clone(key), 4000)
    assert all(abs(bias.z) < limit for bias in found.values())


@pytest.mark.parametrize("draws", [20, 100, 4000])
def test_a_bias_is_called_by_chance_as_rarely_as_it_says(draws):
    looked_at = draws // 2
    rate = 2 * student.sf(signal.biased_above(draws), looked_at - 1)
    assert rate == pytest.approx(signal.FALSE_ALARM, rel=1e-6)


@pytest.mark.slow
def test_estimators_of_one_mean_are_told_apart_as_rarely_as_they_should_be(monkeypatch):
    rate = 0.01
    monkeypatch.setattr(signal, "FALSE_ALARM", rate)
    model, xs = LinearGaussian.random(), jnp.zeros((1, 3))

    def noise(number):
        def draw(model, xs, key):  # noqa: ARG001
            key = jax.random.fold_in(key, number)
            keys = iter(jax.random.split(key, len(jax.tree.leaves(model))))
            return jax.tree.map(lambda leaf: 1 + jax.random.normal(next(keys), leaf.shape), model)

        return draw

    draws, one, other = 20, noise(0), noise(1)
    z = [
        bias.z
        for seed in range(400)
        for bias in signal.biases(one, other, model, xs, jax.random.key(seed), draws).values()
    ]
    alarms = np.abs(z) > signal.biased_above(draws)
    assert abs(alarms.mean() - rate) < STANDARD_ERRORS * np.sqrt(rate / len(z))
    assert (np.abs(z) > student.isf(rate / 2, np.inf)).mean() > 2 * rate  # normal quantiles fail


def simulated(fit, runs=1000):
    """Slopes and errors of ratios that fall as k^(-1/2) into noise of a known size."""
    rng, k = np.random.default_rng(0), np.array([1.0, 10.0, 100.0, 1000.0])
    ratios = k**-0.5 + 0.05 * rng.normal(size=(runs, 4))
    errors = np.where(ratios > 0, 0.05, 0.0)  # a signal of zero has no error of its own
    pairs = zip(np.maximum(ratios, 0).tolist(), errors.tolist(), strict=True)
    return np.array([fit(k.astype(int).tolist(), *pair) for pair in pairs]).T


def test_a_slope_does_not_depend_on_what_chance_has_raised_out_of_the_noise():
    slopes, errors = simulated(signal.slope_of)
    z = (slopes + 0.5) / errors
    assert abs(z.mean()) < 0.25  # of the error of one slope
    assert 0.9 < z.std() < 1.1

    def of_clear_logarithms(*points):
        k, ratio, error = np.array(points)
        clear = ratio > 2 * error
        k, ratio, error = k[clear], ratio[clear], error[clear]
        weights = ratio / error
        line, covariance = np.polyfit(np.log(k), np.log(ratio), 1, w=weights, cov="unscaled")
        return line[0], np.sqrt(covariance[0, 0])

    slopes, errors = simulated(of_clear_logarithms)
    assert ((slopes + 0.5) / errors).mean() > 0.5


def test_two_clear_ratios_make_a_slope_and_fewer_none():
    ks, errors = (1, 10, 100), (0.01, 0.01, 0.01)
    slope, error = signal.slope_of(ks, (1.0, 10**-0.5, 0.1), errors)
    assert slope == pytest.approx(-0.5, abs=1e-6)
    assert 0 < error < 0.1
    assert signal.slope_of(ks, (1.0, 0.01, np.inf), errors) is None
    assert signal.slope_of(ks, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)) is None


def test_too_few_draws_are_a_user_error():
    for draws in (10, 101):
        with pytest.raises(UserError, match="multiple of 10"):
            signal.check_draws(draws)


@pytest.mark.slow
def test_gdreg_is_less_noisy_than_the_plain_gradient():
    model, n = jax.tree.map(lambda leaf: 0.4 * leaf, deep()), 4000  # q is not far from p(z|x)
    found = {}
    for name in ("reparam", "dreg", "gdreg"):
        draw = signal.gradient_of(objective("iwae", 32, gradient=name))
        moments = signal.moments(draw, model, BITS[None], jax.random.key(0), n)
        found[name] = signal.signals(model, moments, n)

    def better(group, one, other):
        a, b = found[one][group], found[other][group]
        return (a.snr - b.snr) / np.hypot(a.snr_stderr, b.snr_stderr)

    assert min(better(group, "gdreg", "reparam") for group in ("encoder 1", "encoder 2")) > 4
    assert better("prior 1", "gdreg", "dreg") > 4
    assert abs(better("decoder", "gdreg", "dreg")) < 4
