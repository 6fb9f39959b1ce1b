"""Signal, noise and bias of gradient estimators: known values, theory and false alarms."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom
from scipy.stats import t as student

import small
from cases import quick_rows
from expectations import BITS, deep, shallow
from iwae import gradients_run
from iwae.errors import UserError
from iwae.evaluation import gradient_signal
from iwae.evaluation.gradient_signal import (
    check_gradient_draws,
    gradient_bias_threshold,
    gradient_biases,
    gradient_groups,
    gradient_moments,
    gradient_signal_sample,
    gradient_signal_slope,
    gradient_signals,
)
from iwae.models.vae import VAE
from iwae.objectives.bounds import iwae
from iwae.objectives.building import build_gradient_estimator, objective
from iwae.objectives.compatibility import check_compatibility
from iwae.objectives.declaration import Declaration
from iwae.results.description import gradients_description
from iwae.testing import LinearGaussian
from reference import STANDARD_ERRORS

KEY = jax.random.key(0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [("reparam", -0.5), ("dreg", 0.5)])
def test_signal_to_noise_ratio_scales_with_k_as_in_theory(name, expected):
    model = LinearGaussian.random(1, 3, q_shift=0.3, q_scale=1.2)
    xs, ks, n = jnp.float32([[2.0, -0.5, 0.3]]), (4, 8, 16, 32, 64), 64_000
    result = []
    for k in ks:
        draw = gradient_signal_sample(objective("iwae", k, gradient=name))
        moments = gradient_moments(draw, model, xs, jax.random.key(k), n)
        result.append(gradient_signals(model, moments, n))
    for group, power in (("q_bias", expected), ("weight", 0.5)):
        ratios = [signals[group].snr for signals in result]
        errors = [signals[group].snr_stderr for signals in result]
        slope, error = gradient_signal_slope(ks, ratios, errors)
        assert abs(slope - power) < 3 * error + 0.05, group  # theory is asymptotic in k
        assert 3 * error + 0.05 < 0.15, group


@pytest.mark.slow
def test_signal_noise_and_bias_match_known_gradients():
    model, xs = LinearGaussian.random(), jnp.zeros((1, 3))

    def draw(model, xs, key):  # noqa: ARG001 - gradients of mean 3 and standard deviation 2
        return jax.tree.map(
            lambda leaf: 3.0 + 2.0 * jax.random.normal(jax.random.clone(key), leaf.shape), model
        )

    moments = gradient_moments(draw, model, xs, jax.random.key(0), 2000)
    result = gradient_signals(model, moments, 2000)
    for name, leaves in gradient_groups(model, model).items():
        assert result[name].snr == pytest.approx(1.5, abs=5 * result[name].snr_stderr)
        assert result[name].snr_stderr < 0.1
        assert result[name].mean_norm == pytest.approx(3 * np.sqrt(leaves[0].size), rel=0.1)
        assert result[name].variance == pytest.approx(4 * leaves[0].size, rel=0.2)

    def moved(model, xs, key):
        return jax.tree.map(lambda leaf: 1.1 * leaf, draw(model, xs, key))

    limit = gradient_bias_threshold(400)
    biases = gradient_biases(moved, draw, model, xs, jax.random.key(1), 400)
    assert all(bias.z > limit for bias in biases.values())
    assert biases["weight"].relative == pytest.approx(0.1, abs=0.02)
    same = gradient_biases(draw, draw, model, xs, jax.random.key(1), 400)
    assert all(bias.z == 0 for bias in same.values())

    def beside(model, xs, key):  # a constant offset: a bias without error
        return jax.tree.map(lambda leaf: 0.5 + leaf, draw(model, xs, key))

    constant = gradient_biases(beside, draw, model, xs, jax.random.key(1), 400)
    assert all(bias.z > limit for bias in constant.values())


@pytest.mark.slow
def test_paired_test_detects_the_bias_of_stl_and_none_of_dreg():
    model, limit = shallow(), gradient_bias_threshold(4000)
    plain, stl, dreg = (
        gradient_signal_sample(objective("iwae", 4, gradient=g)) for g in ("reparam", "stl", "dreg")
    )
    key = jax.random.key(5)
    result = gradient_biases(stl, plain, model, BITS[None], key, 4000)
    assert result["encoder 1"].z > limit
    assert abs(result["decoder"].z) < limit
    result = gradient_biases(dreg, plain, model, BITS[None], jax.random.clone(key), 4000)
    assert all(abs(bias.z) < limit for bias in result.values())


@pytest.mark.parametrize("draws", [20, 100, 4000])
def test_bias_threshold_has_its_stated_false_alarm_rate(draws):
    looked_at = draws // 2
    rate = 2 * student.sf(gradient_bias_threshold(draws), looked_at - 1)
    assert rate == pytest.approx(gradient_signal.FALSE_ALARM, rel=1e-6)


@pytest.mark.slow
def test_unbiased_estimators_raise_false_alarms_at_the_stated_rate(monkeypatch):
    rate = 0.01
    monkeypatch.setattr(gradient_signal, "FALSE_ALARM", rate)
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
        for bias in gradient_biases(one, other, model, xs, jax.random.key(seed), draws).values()
    ]
    alarms = np.abs(z) > gradient_bias_threshold(draws)
    assert abs(alarms.mean() - rate) < STANDARD_ERRORS * np.sqrt(rate / len(z))
    assert (np.abs(z) > student.isf(rate / 2, np.inf)).mean() > 2 * rate  # normal quantiles fail


def simulated(fit, runs=1000):
    """Return slopes and errors fitted to ratios that fall as k^(-1/2), with noise of known size."""
    rng, k = np.random.default_rng(0), np.array([1.0, 10.0, 100.0, 1000.0])
    ratios = k**-0.5 + 0.05 * rng.normal(size=(runs, 4))
    errors = np.where(ratios > 0, 0.05, 0.0)  # a signal of zero has no error
    pairs = zip(np.maximum(ratios, 0).tolist(), errors.tolist(), strict=True)
    return np.array([fit(k.astype(int).tolist(), *pair) for pair in pairs]).T


@pytest.mark.slow
def test_slope_is_unbiased_when_ratios_fall_below_the_noise():
    slopes, errors = simulated(gradient_signal_slope)
    z = (slopes + 0.5) / errors
    assert abs(z.mean()) < 0.25  # in units of the error of one slope
    assert 0.9 < z.std() < 1.1

    def fit_to_clear_logarithms(*points):
        k, ratio, error = np.array(points)
        clear = ratio > 2 * error
        k, ratio, error = k[clear], ratio[clear], error[clear]
        weights = ratio / error
        line, covariance = np.polyfit(np.log(k), np.log(ratio), 1, w=weights, cov="unscaled")
        return line[0], np.sqrt(covariance[0, 0])

    slopes, errors = simulated(fit_to_clear_logarithms)
    assert ((slopes + 0.5) / errors).mean() > 0.5


def planted(rng, ks, power, shared, *, draws=200, parameters=5):
    """Return signals of gradients whose ratios grow as k^power, with noise shared by the ks."""
    size = gradient_signal.BLOCKS, draws // gradient_signal.BLOCKS, parameters
    common, result = rng.normal(size=size), []
    for k in ks:
        own = rng.normal(size=size)
        noise = np.sqrt(shared) * common + np.sqrt(1 - shared) * own
        each = 0.4 * k**power + noise
        moments = (each.mean(axis=1), each.var(axis=1, ddof=1))
        mean, variance = (jnp.asarray(one, jnp.float32) for one in moments)
        result.append(gradient_signal._signal([mean], [variance], draws))
    return result


@pytest.mark.parametrize(("power", "shared"), quick_rows([(0.5, 0.0), (0.5, 0.9), (-0.25, 0.9)], 1))
def test_planted_power_is_recovered_with_correlated_errors(power, shared):
    rng, ks, together, apart = np.random.default_rng(1), (1, 2, 4, 8), [], []
    for _ in range(200):
        result = planted(rng, ks, power, shared)
        points = ks, [one.snr for one in result], [one.snr_stderr for one in result]
        for z, without in ((apart, None), (together, [one.snr_without for one in result])):
            slope, error = gradient_signal_slope(*points, without)
            z.append((slope - power) / error)
    assert abs(np.mean(together)) < 0.35
    assert 0.85 < np.std(together) < 1.4  # Student's t of nine degrees of freedom: 1.13
    assert shared == 0 or np.std(apart) < 0.8  # as if independent: too large an error


@pytest.mark.slow
def test_signal_of_one_bit_matches_enumeration():
    """With one bit, a draw of k particles is described by its number of ones."""
    model = VAE(2, (1,), ((),), latents="bernoulli", key=jax.random.key(3))
    model = jax.tree.map(lambda leaf: 2 * leaf, model)  # q is far enough from p(z|x)
    x, n = jnp.float32([1, 1]), 4000
    values = (jnp.float32([[0.0], [1.0]]),)
    log_q = jax.vmap(model.posterior(x).log_prob)(values)
    log_w = jax.vmap(lambda z: model.log_joint(x, z))(values) - log_q
    one = float(jnp.exp(log_q[1]))

    def exact(gradient, k):
        declared = check_compatibility(Declaration("iwae", k, gradient), 1, discrete=True)

        def of_count(ones):
            z = (jnp.arange(k) < ones).astype(jnp.float32)
            table = build_gradient_estimator(declared).coefficients(
                iwae, jnp.where(z > 0, *log_w[::-1])
            )
            return -jnp.sum(table.score * (z - one))

        each = np.float64(jax.lax.map(of_count, jnp.arange(k + 1)))
        chances = binom.pmf(np.arange(k + 1), k, one)
        mean = chances @ each
        return abs(mean) / np.sqrt(chances @ (each - mean) ** 2)

    for gradient, power in (("vimco", -0.5), ("vimco-star", 0.5)):
        draw = gradient_signal_sample(objective("iwae", 8, gradient=gradient))
        moments = gradient_moments(draw, model, x[None], KEY, n)
        result = gradient_signals(model, moments, n)["encoder 1"]
        assert result.snr_stderr < 0.1 * result.snr
        assert abs(result.snr - exact(gradient, 8)) < STANDARD_ERRORS * result.snr_stderr
        ratio = exact(gradient, 800) / exact(gradient, 200)
        assert np.log(ratio) / np.log(4) == pytest.approx(power, abs=0.05)


def test_slope_needs_at_least_two_clear_ratios():
    ks, errors = (1, 10, 100), (0.01, 0.01, 0.01)
    slope, error = gradient_signal_slope(ks, (1.0, 10**-0.5, 0.1), errors)
    assert slope == pytest.approx(-0.5, abs=1e-6)
    assert 0 < error < 0.1
    assert gradient_signal_slope(ks, (1.0, 0.01, np.inf), errors) is None
    assert gradient_signal_slope(ks, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)) is None


def test_invalid_number_of_draws_is_a_user_error():
    for draws in (10, 101):
        with pytest.raises(UserError, match="multiple of 10"):
            check_gradient_draws(draws)


@pytest.mark.slow
def test_gdreg_is_less_noisy_than_the_plain_gradient():
    model, n = jax.tree.map(lambda leaf: 0.4 * leaf, deep()), 4000  # q is not far from p(z|x)
    result = {}
    for name in ("reparam", "dreg", "gdreg"):
        draw = gradient_signal_sample(objective("iwae", 32, gradient=name))
        moments = gradient_moments(draw, model, BITS[None], jax.random.key(0), n)
        result[name] = gradient_signals(model, moments, n)

    def better(group, one, other):
        a, b = result[one][group], result[other][group]
        return (a.snr - b.snr) / np.hypot(a.snr_stderr, b.snr_stderr)

    assert min(better(group, "gdreg", "reparam") for group in ("encoder 1", "encoder 2")) > 4
    assert better("prior 1", "gdreg", "dreg") > 4
    assert abs(better("decoder", "gdreg", "dreg")) < 4


# Gradients through a few particles


@pytest.mark.slow
def test_backward_particles_add_variance_but_no_bias():
    model, xs, n = LinearGaussian.random(1, 3, q_shift=0.3, q_scale=1.2), jnp.ones((1, 3)), 8000
    full, few = (
        gradient_signal_sample(objective("iwae", 16, gradient="dreg", backward=s))
        for s in (None, 2)
    )
    key = jax.random.key(1)

    def added(key):
        again = jax.random.clone(key)
        parts = jax.tree.map(
            lambda a, b: jnp.sum((a - b) ** 2), full(model, xs, key), few(model, xs, again)
        )
        return jnp.stack(jax.tree.leaves(parts)).sum()

    each = np.float64(jax.lax.map(added, jax.random.split(jax.random.key(2), n)))
    noise = [
        [one.variance for one in gradient_signals(model, moments, n).values()]
        for draw in (full, few)
        for moments in [gradient_moments(draw, model, xs, jax.random.clone(key), n)]
    ]
    more = sum(noise[1]) - sum(noise[0])
    assert more == pytest.approx(each.mean(), rel=0.15)
    assert each.mean() > 0.3 * sum(noise[0])  # otherwise the difference would be too small to test
    result = gradient_biases(few, full, model, xs, jax.random.key(3), n)
    assert all(abs(bias.z) < gradient_bias_threshold(n) for bias in result.values())


@pytest.mark.slow
def test_run_lists_estimators_with_and_without_backward_particles(tmp_path):
    run = small.unmeasured(small.finished(), tmp_path / "run")
    options = {"ks": (1, 4), "gradients": ("reparam", "gdreg"), "draws": 20, "examples": 3}
    plain = gradients_run(run, **options)
    record = gradients_run(run, **options, backward=(3, 1))
    assert [(row["k"], row["gradient"], row["backward"]) for row in record["rows"]] == [
        (1, "reparam", None),
        (1, "gdreg", None),
        (4, "reparam", None),
        (4, "reparam", 1),
        (4, "reparam", 3),
        (4, "gdreg", None),  # gdreg has no coefficients
    ]
    full = [row for row in record["rows"] if row["backward"] is None]
    assert [row["groups"] for row in full] == [row["groups"] for row in plain["rows"]]
    few = record["rows"][3]
    assert few["seconds_per_draw"] > 0
    assert few["groups"]["decoder"]["variance"] > record["rows"][2]["groups"]["decoder"]["variance"]
    assert abs(few["groups"]["decoder"]["bias"]["z"]) < record["biased_above"]
    assert "\n  k = 4, reparam, backward 1: " in gradients_description(record)
    assert all("backward" in one for one in record["slopes"])
    names = {path.stem for path in (run / "evaluations").iterdir()}
    assert names == {"train-final-gradients-k4-n3", "train-final-gradients-k4-backward3-n3"}
    with np.load(run / "evaluations" / "train-final-gradients-k4-backward3-n3.npz") as arrays:
        assert np.isfinite(arrays["reparam, backward 1, decoder"]).tolist() == [False, True]
        assert "gdreg, backward 1, decoder" not in arrays


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"backward": (0, 2)}, "backward is 0; a gradient needs at least 1 particle"),
        ({"backward": (2, 4)}, "backward is 4, and there are 4 particles: give a smaller"),
        ({"backward": (2,), "objective": "tvo"}, "backward does not work with tvo, whose "),
        ({"backward": (2,), "gradients": ("gdreg",)}, "does not work with the gradient gdreg"),
    ],
)
def test_backward_particles_that_fit_no_estimator_are_rejected(options, reason, tmp_path):
    run = small.unmeasured(small.finished(), tmp_path / "run")
    with pytest.raises(UserError, match=reason):
        gradients_run(run, ks=(1, 4), draws=20, examples=3, **options)
    assert not list((run / "evaluations").iterdir())


def test_older_record_reads_as_one_of_full_gradients():
    folder = Path(__file__).parents[2] / "results" / "table1" / "mnist" / "1l" / "vae-k1" / "seed-0"
    old = small.record_of(folder, "train-final-gradients-k256-n20")
    rows, slopes = old["rows"], old["slopes"]
    assert not any("backward" in row for row in (*rows, *slopes))
    description = gradients_description(old)
    assert "backward" not in description
    new = {**old, "rows": [{**row, "backward": None} for row in rows]}
    new["slopes"] = [{**one, "backward": None} for one in slopes]
    assert gradients_description(new) == description
    new["rows"][0]["backward"] = 8
    assert f"k = {rows[0]['k']}, {rows[0]['gradient']}, backward 8: " in gradients_description(new)
