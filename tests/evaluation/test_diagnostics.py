"""Diagnostics of log-likelihoods: k-hat, standard errors, paired differences and verdicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from iwae.errors import UserError
from iwae.evaluation.bdmc import Bidirectional, bdmc, bdmc_importance_slabs, bdmc_mixed_upper
from iwae.evaluation.convergence import convergence_verdict
from iwae.evaluation.differences import paired_difference, reversed_differences
from iwae.evaluation.examples import gather_examples
from iwae.evaluation.likelihood import likelihood_diagnostics
from iwae.evaluation.standard_errors import monte_carlo_error, standard_error
from iwae.evaluation.tails import heavy_tailed_share, pareto_threshold
from iwae.inference import kernels
from iwae.inference.temperatures import linear_schedule
from iwae.testing import LinearGaussian
from reference import STANDARD_ERRORS, distance

# Weights


def pareto_weights(shape, n):
    """Return the log quantiles of a Pareto distribution, permuted, at -300 nats."""
    log_w = -shape * np.log((np.arange(n) + 0.5) / n) - 300
    return jnp.float32(np.random.default_rng(0).permutation(log_w))


def khat(log_w):
    return float(jax.jit(likelihood_diagnostics)(log_w)["pareto_k"])


ARVIZ = {(0.2, 1000): 0.2368, (0.7, 1000): 0.6699, (1.5, 1000): 1.3631, (0.7, 100): 0.6063}
"""k-hat of `pareto_weights` by ArviZ: `arviz_stats.base.array_stats.psislw`, version 0.8.0."""


@pytest.mark.parametrize("case", ARVIZ)
def test_khat_matches_arviz(case):
    assert khat(pareto_weights(*case)) == pytest.approx(ARVIZ[case], abs=2e-3)


@pytest.mark.parametrize(("tail", "expected"), [(212, 0.1963), (213, 0.6861)])
def test_tail_of_5000_weights_has_212_values_as_in_arviz(tail, expected):
    """All other weights are lowered, which has no effect below the tail (arviz_stats 0.8.0)."""
    log_w = pareto_weights(0.7, 5000)
    low = jnp.argsort(log_w)[:-tail]
    assert khat(log_w.at[low].add(-5.0)) == pytest.approx(expected, abs=2e-3)


def test_khat_of_degenerate_weights_is_nan_zero_or_infinite():
    assert np.isnan(khat(jnp.zeros(16)))  # too few for a tail
    assert khat(jnp.zeros(100)) == 0  # all equal: no tail
    assert khat(-200 * jnp.arange(100.0)) == np.inf  # more than float32 holds
    assert khat(jnp.full(100, -jnp.inf)) == np.inf


def test_weights_that_differ_by_rounding_have_no_tail(monkeypatch):
    tails = np.random.default_rng(0).standard_t(1, 500)
    log_w = jnp.float32(-700 + 5e-3 * tails / np.ptp(tails))
    assert khat(log_w) == 0.0
    monkeypatch.setattr(kernels, "ROUNDING", 0.0)
    anew = jax.jit(lambda log_w: likelihood_diagnostics(log_w)["pareto_k"])
    assert anew(log_w) > 0.5


def test_khat_threshold_decreases_for_few_weights():
    assert pareto_threshold(2200) == pareto_threshold(5000) == 0.7
    for k, expected in {1000: 2 / 3, 100: 0.5, 32: 0.3356}.items():
        assert pareto_threshold(k) == pytest.approx(expected, abs=1e-4)
    assert np.isnan(pareto_threshold(1))
    k = np.array([0.1, 0.45, 0.55, np.nan, np.inf])
    assert heavy_tailed_share(k, 100) == 0.5
    assert np.isnan(heavy_tailed_share(np.array([np.nan]), 16))


def test_effective_sample_size_matches_a_hand_calculation():
    ess = jax.jit(likelihood_diagnostics)(jnp.log(jnp.float32([1, 1, 2])))["ess"]
    assert ess == pytest.approx(16 / 6)


def narrow_proposal(dimensions, variance, n, k):
    """Return log w of n examples for target N(0, I) and proposal N(0, variance I), with E[w] = 1.

    log w = d/2 log v + (1 - v)/2 chi2_d, so that P(w > t) falls like t^(-1/(1 - v)): the tail index
    is 1 - v. In many dimensions k weights see less of the tail than that, and k-hat is larger.
    """
    chi2 = np.random.default_rng(0).chisquare(dimensions, (n, k))
    return np.float32(dimensions / 2 * np.log(variance) + (1 - variance) / 2 * chi2)


@pytest.mark.parametrize(
    ("dimensions", "variance", "tail", "by_ess"),
    [(1, 0.7, 0.3, 1), (10, 0.5, 0.7, 0.85), (50, 0.25, 1.7, 0.45)],
)
def test_monte_carlo_error_is_the_deviation_between_repeats(dimensions, variance, tail, by_ess):
    """Over 1,200 repeats the error is within 15%; two errors of a mean of 20 cover the truth."""
    log_w = narrow_proposal(dimensions, variance, 1200, 2000)
    result = jax.tree.map(np.asarray, jax.jit(jax.vmap(likelihood_diagnostics))(log_w))
    assert np.median(result["pareto_k"]) == pytest.approx(tail, abs=0.1)
    values = logsumexp(np.float64(log_w), axis=1) - np.log(log_w.shape[1])
    actual, errors = values.std(), result["monte_carlo_error"]
    assert np.sqrt(1200) * monte_carlo_error(errors) == pytest.approx(actual, rel=0.15)
    stated = np.array([monte_carlo_error(some) for some in errors.reshape(60, 20)])
    off = values.reshape(60, 20).mean(axis=1) - values.mean()
    assert np.mean(np.abs(off) < 2 * stated) >= 0.87  # 95% in truth: fails once in 500 seeds
    delta = np.sqrt((2000 / result["ess"] - 1) / 1999)  # by the effective sample size alone
    assert np.sqrt(np.mean(delta**2)) / actual == pytest.approx(by_ess, abs=0.1)


def test_standard_error_is_that_of_a_mean():
    assert standard_error(np.array([1.0, 2.0, 3.0])) == pytest.approx(1 / np.sqrt(3))
    assert np.isnan(standard_error(np.array([1.0])))


# Differences and verdicts


def values(mean, noise, seed=0, n=400):
    return -90 + mean + noise * np.random.default_rng(seed).normal(size=n)


def test_shared_variation_cancels_in_a_paired_difference():
    shared = values(0, 20)
    difference = paired_difference(shared + values(0.5, 0.1, 1), shared + values(0, 0.1, 2))
    assert difference.mean == pytest.approx(0.5, abs=0.03)
    assert difference.stderr == pytest.approx(0.1 * np.sqrt(2 / 400), rel=0.1)
    assert difference.significant
    with pytest.raises(UserError, match="400 and 399 examples"):
        paired_difference(shared, shared[1:])


def test_rounding_is_not_a_significant_difference():
    exact = np.full(50, -700.0)
    rounded = exact - np.float64(np.spacing(np.float32(700)))
    assert not paired_difference(rounded, exact).significant
    assert paired_difference(rounded - 0.01, exact).significant
    assert reversed_differences({"L_1": exact, "L_50": rounded}) == []


def test_only_significant_violations_of_the_order_are_reported():
    shared = values(0, 20)
    bounds = {
        "L_1": shared - 3,
        "L_50": shared + values(0, 0.1, 1) + 90,
        "L_5000": shared + values(0, 0.1, 2) + 90,
        "AIS": shared + 1,
    }
    assert reversed_differences(bounds) == []
    broken = reversed_differences(bounds | {"AIS": shared - 1})
    assert len(broken) == 2
    assert broken[0].startswith("AIS is 0.9")
    assert "below L_50, but should be above it: the annealing is too short" in broken[0]
    (broken,) = reversed_differences({"L_1": shared, "L_50": shared - 1 + values(0, 0.1, 1)})
    assert "above it: something is broken" in broken


@pytest.mark.parametrize(
    ("longer", "gap", "tolerance", "status"),
    [
        (values(0.0, 0.1, 1), values(90.02, 0.1), 0.1, "converged"),
        (values(0.0, 0.1, 1), None, 0.1, "converged"),
        (values(0.1, 0.1, 1), values(90.02, 0.1), 0.1, "not converged"),
        (values(-0.1, 0.1, 1), None, 0.1, "not converged"),
        (values(0.0, 0.1, 1), values(90.2, 0.1), 0.1, "not converged"),
        (values(0.0, 0.1, 1), values(90.05, 1.0), 0.1, "not converged"),
        (values(0.0, 5.0, 1), values(90.02, 0.1), 0.1, "undecided"),
    ],
)
def test_verdict_depends_on_the_difference_the_gap_and_the_tolerance(
    longer, gap, tolerance, status
):
    given = convergence_verdict(longer, values(0.0, 0.1, 2), gap, tolerance)
    assert given.status == status
    assert (
        convergence_verdict(longer, values(0.0, 0.1, 2), None, tolerance, gap, 0.3).status == status
    )
    assert given.converged == (status == "converged")
    assert given.reason


@pytest.mark.parametrize("tail", [0.9, float("inf"), float("nan")])
def test_small_gap_with_a_heavy_or_unknown_tail_is_undecided(tail):
    real = values(90.02, 0.1)
    of = values(0.0, 0.1, 1), values(0.0, 0.1, 2), None, 0.1
    assert convergence_verdict(*of, real, 0.3).status == "converged"
    given = convergence_verdict(*of, real, tail)
    assert given.status == "undecided"
    assert "the tail of w/c" in given.reason
    wide = convergence_verdict(*of, real + 1, tail)
    assert wide.status == "not converged"  # nothing excuses a wide gap


# Two-sided bounds

MODEL = LinearGaussian.random(2, 3, q_shift=np.array([0.5, -0.4]), q_scale=1.3)


@pytest.mark.slow
def test_bidirectional_bounds_enclose_the_true_likelihood():
    options = {"n_examples": 400, "chains": 2, "step_size": 0.4, "n_leapfrog": 4}
    short = bdmc(MODEL, jax.random.key(0), betas=linear_schedule(3), **options)
    long = bdmc(MODEL, jax.random.key(0), betas=linear_schedule(30), **options)
    assert short.lower.shape == short.upper.shape == short.acceptance.shape == (400,)
    assert distance(short.gap, 0.0) > STANDARD_ERRORS
    for both in (short, long):
        assert distance(both.gap, 0.0) > 0
        assert ((both.acceptance > 0.8) & (both.acceptance <= 1)).all()
    assert long.gap.mean() < 0.3 * short.gap.mean()
    # The examples are the same, so both bounds must have moved towards the same value.
    assert distance(long.lower - short.lower, 0.0) > 0
    assert distance(short.upper - long.upper, 0.0) > 0
    middle, error = (long.lower + long.upper) / 2, np.std(long.gap) / np.sqrt(400)
    assert (
        abs(np.mean(middle - exact_log_likelihoods(jax.random.key(0), 400)))
        < STANDARD_ERRORS * error + long.gap.mean() / 2
    )


def bdmc_importance(key, **options):
    return Bidirectional(**gather_examples(bdmc_importance_slabs(MODEL, key, **options)))


def exact_log_likelihoods(key, n, split=3):
    """log p(x) of the examples that `bdmc` draws (`bdmc_importance` splits its keys in 2)."""

    @jax.jit
    @jax.vmap
    def one(i):
        model_key = jax.random.split(jax.random.fold_in(key, i), split)[0]
        return MODEL.log_evidence(MODEL.sample(model_key)[1])

    return np.float64(one(jnp.arange(n)))


def test_mixed_upper_bound_replaces_one_forward_chain_by_a_reverse_chain():
    rng = np.random.default_rng(0)
    for k in (1, 2, 5):
        forward, reverse = rng.normal(-300, 3, k), rng.normal(300, 3, k)
        each = [np.append(np.delete(forward, i), -reverse[i]) for i in range(k)]
        expected = np.mean([logsumexp(weights) for weights in each]) - np.log(k)
        result = jax.jit(bdmc_mixed_upper)(jnp.float32(forward), jnp.float32(reverse))
        assert float(result) == pytest.approx(expected, rel=1e-6)


LOG_P, SPREAD = -300.0, 0.9


def sides_by_quadrature(k, nodes=16):
    """E[lower] and E[mixed upper] for log w = log p -+ s^2/2 + s e, e ~ N(0, 1), + in reverse."""
    e, weight = np.polynomial.hermite_e.hermegauss(nodes)
    share = np.prod(np.meshgrid(*[weight / weight.sum()] * (k + 1), indexing="ij"), axis=0).ravel()
    grid = np.stack(np.meshgrid(*[e] * (k + 1), indexing="ij"), axis=-1).reshape(-1, k + 1)
    forward = LOG_P - SPREAD**2 / 2 + SPREAD * grid[:, 1:]
    reverse = np.repeat(LOG_P + SPREAD**2 / 2 + SPREAD * grid[:, :1], k, axis=1)
    upper = jax.jit(jax.vmap(bdmc_mixed_upper))(jnp.float32(forward), jnp.float32(-reverse))
    return [float(share @ side) for side in (logsumexp(forward, axis=1) - np.log(k), upper)]


def test_mixed_upper_bound_approaches_the_likelihood_with_more_chains():
    result = {k: sides_by_quadrature(k) for k in (1, 2, 3)}
    assert result[1][1] == pytest.approx(LOG_P + SPREAD**2 / 2, abs=1e-3)  # a reverse chain alone
    assert all(lower < LOG_P - 0.05 for lower, _ in result.values())
    assert result[1][1] > result[2][1] + 0.05 > result[3][1] + 0.1 > LOG_P + 0.15
    assert result[3][1] > result[1][1] - np.log(3)


CHAINS = {"chains": 4, "step_size": 0.4, "n_leapfrog": 2, "betas": linear_schedule(3)}


@pytest.mark.slow
def test_mixed_upper_bound_of_annealing_is_above_the_likelihood_and_tighter():
    result = bdmc(LinearGaussian.random(2, 3), jax.random.key(0), n_examples=2000, **CHAINS)
    assert np.abs(result.mixed_gap).max() < 1e-5  # q is the posterior
    result = bdmc(MODEL, jax.random.key(0), n_examples=2000, **CHAINS)
    exact = exact_log_likelihoods(jax.random.key(0), 2000)
    assert distance(result.lower - exact, 0.0) < -STANDARD_ERRORS
    assert distance(result.mixed_upper - exact, 0.0) > STANDARD_ERRORS
    assert distance(result.upper - result.mixed_upper, 0.0) > STANDARD_ERRORS


@pytest.mark.slow
def test_results_do_not_depend_on_the_batch():
    options = {"n_examples": 5, "chains": 3, "step_size": 0.4, "n_leapfrog": 2}
    options["betas"] = linear_schedule(3)
    one = bdmc(MODEL, jax.random.key(1), batch_size=1, **options)
    all_at_once = bdmc(MODEL, jax.random.key(1), **options)
    assert one.lower == pytest.approx(all_at_once.lower, rel=1e-5)
    assert one.upper == pytest.approx(all_at_once.upper, rel=1e-5)


@pytest.mark.slow
def test_importance_sampling_with_the_true_latent_is_an_upper_bound():
    gaps = {k: bdmc_importance(jax.random.key(2), n_examples=400, k=k).gap for k in (2, 20, 200)}
    assert all(distance(gap, 0.0) > STANDARD_ERRORS for gap in gaps.values())
    assert gaps[2].mean() > 2 * gaps[20].mean() > 8 * gaps[200].mean()
    both = bdmc_importance(jax.random.key(2), n_examples=400, k=2)
    exact = exact_log_likelihoods(jax.random.key(2), 400, split=2)
    assert distance(both.lower - exact, 0.0) < -STANDARD_ERRORS
    assert distance(both.upper - exact, 0.0) > STANDARD_ERRORS


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key, o: bdmc(MODEL, key, n_examples=0, **o), "n_examples is 0"),
        (lambda key, o: bdmc(MODEL, key, n_examples=1, chains=0, **o), "chains is 0"),
        (lambda key, o: bdmc_importance(key, n_examples=1, k=1), "k is 1"),  # noqa: ARG005
    ],
)
def test_invalid_arguments_raise_user_errors(call, message):
    with pytest.raises(UserError, match=message):
        call(jax.random.key(0), {"betas": [0.0, 1.0], "step_size": 0.1, "n_leapfrog": 1})
