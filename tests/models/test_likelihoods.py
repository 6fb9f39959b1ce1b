"""Likelihoods of each kind of data: densities, draws, initial outputs and encoder inputs."""

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, gammaln, log_softmax, logit, logsumexp
from scipy.stats import bernoulli, chisquare, kstest, logistic, nbinom, norm, poisson

from iwae.data import KINDS, as_json, as_kind, make_kind
from iwae.errors import UserError
from iwae.models.likelihoods import OBSERVATIONS, observation
from iwae.models.likelihoods.bernoulli import MEAN_CLIP
from iwae.models.likelihoods.counts import LOG_SIZES
from iwae.models.likelihoods.gaussian import LEAST_SCALE
from iwae.models.likelihoods.levels import LEAST_LOG_SCALE
from iwae.models.vae import VAE
from reference import assert_mean

LOGITS = np.array([-30, -3, -0.5, 0, 0.25, 2, 30])
VALUES = np.array([0, 1, 0.3, 1, 0.7, 0, 1])


def test_bernoulli_density_is_the_cross_entropy():
    p = observation("bernoulli", 7).distribution(jnp.float32(LOGITS))
    expected = VALUES * np.log(expit(LOGITS)) + (1 - VALUES) * np.log(expit(-LOGITS))
    assert p.log_prob(jnp.float32(VALUES)) == pytest.approx(expected.sum(), rel=1e-6)


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("x", [0.0, 1.0])
def test_bernoulli_density_and_gradient_are_finite_at_any_logit(size, x):
    def log_prob(logits):
        return observation("bernoulli", 2).distribution(logits).log_prob(jnp.full(2, x))

    logits = jnp.float32([-size, size])
    value, gradient = jax.jit(jax.value_and_grad(log_prob))(logits)
    assert value == pytest.approx(-np.logaddexp(0, -size) * 2 - size, abs=1e-6 + 1e-7 * size)
    assert gradient == pytest.approx(x - expit(np.float64(logits)), abs=1e-6)


def test_bernoulli_draws_are_float32_with_the_expected_means():
    p = observation("bernoulli", 2).distribution(jnp.float32([-1.5, 2.0]))
    draws = jax.jit(jax.vmap(p.sample))(jax.random.split(jax.random.key(0), 4000))
    assert draws.dtype == jnp.float32
    assert set(np.unique(draws)) == {0.0, 1.0}
    for column, logits in zip(draws.T, [-1.5, 2.0], strict=True):
        assert_mean(column, expit(logits), error_at_most=0.01)


def test_initial_bernoulli_output_is_the_logit_of_the_clipped_means():
    mean = np.array([0.0, 0.0005, 0.13, 0.5, 1.0])
    output = observation("bernoulli", 5).initial_output(mean[None])
    assert output == pytest.approx(logit(np.clip(mean, MEAN_CLIP, 1 - MEAN_CLIP)))
    assert MEAN_CLIP == 0.001


def test_initial_gaussian_output_is_the_mean_and_the_log_floored_scale():
    rows = np.array([[0.5, -2.0], [1.5, -2.0]])
    output = observation("gaussian", 2).initial_output(rows)
    assert output == pytest.approx([1.0, -2.0, np.log(0.5), np.log(1e-3)])


def test_unknown_observation_error_lists_the_known_ones():
    with pytest.raises(UserError, match="no observation 'weibull'; known: bernoulli, gaussian"):
        observation("weibull", 1)


# --- all kinds, against SciPy in float64 ----------------------------------------------------

EDGES = np.arange(255) + 0.5
COLUMNS = ("poisson", "gaussian", "categorical:3", "poisson", "gaussian-shared", "bernoulli")


def log_difference(log_a, log_b):
    """log(a - b)."""
    return log_a + np.log1p(-np.exp(log_b - log_a))


def bin_log_prob(family, x, loc, scale):
    """Return the log probability of a level from the tails of a SciPy distribution on [-1, 1]."""
    lower, upper = (((x + half) / 127.5 - 1 - loc) / scale for half in (-0.5, 0.5))
    if x == 0:
        return family.logcdf(upper)
    if x == 255:
        return family.logsf(lower)
    if lower > 0:
        return log_difference(family.logsf(lower), family.logsf(upper))
    return log_difference(family.logcdf(upper), family.logcdf(lower))


def gaussian_log_prob(o, x):
    return norm.logpdf(x, o[0], np.exp(o[1]))


def mixture_log_prob(o, x):
    weights, loc, scale = log_softmax(o[:2]), o[2:4], np.exp(o[4:])
    each = [bin_log_prob(logistic, x, *pair) for pair in zip(loc, scale, strict=True)]
    return logsumexp(weights + each)


def negative_binomial_log_prob(o, x):
    """Return the log pmf of `scipy.stats.nbinom`, which loses precision for small means."""
    r, log_odds = np.exp(o[1]), o[0] - o[1]
    ways = gammaln(x + r) - gammaln(r) - gammaln(x + 1)
    return ways - r * np.logaddexp(0, log_odds) - x * np.logaddexp(0, -log_odds)


def test_reference_negative_binomial_matches_scipy():
    expected = nbinom.logpmf(4, np.exp(0.5), 1 / (1 + np.exp(1.0 - 0.5)))
    assert negative_binomial_log_prob([1.0, 0.5], 4) == pytest.approx(expected)


SCIPY = {
    "bernoulli": lambda o, x: bernoulli.logpmf(x, expit(o[0])),
    "gaussian": gaussian_log_prob,
    "gaussian-shared": gaussian_log_prob,
    "gaussian-fixed": lambda o, x: norm.logpdf(x, o[0], 0.3),
    "logistic-mixture": mixture_log_prob,
    "discretised-gaussian": lambda o, x: bin_log_prob(norm, x, o[0], np.exp(o[1])),
    "categorical": lambda o, x: log_softmax(o)[int(x)],
    "poisson": lambda o, x: poisson.logpmf(x, np.exp(o[0])),
    "negative-binomial": negative_binomial_log_prob,
}
"""log p(x) of one dimension, given its outputs."""

PARAMETERS = {
    "gaussian-fixed": {"scale": 0.3},
    "logistic-mixture": {"mixtures": 2},
    "categorical": {"categories": 3},
    "table": {"columns": COLUMNS},
}

CASES = {
    "bernoulli": [([-3.0], 1), ([0.7], 0)],
    "gaussian": [([0.5, 0.1], 0.0), ([-2.0, -1.0], -2.5), ([3.0, 1.5], 1e4)],
    "gaussian-shared": [([0.5, 0.1], 0.0), ([-2.0, -8.0], -2.5)],
    "gaussian-fixed": [([0.5], 0.0), ([-2.0], 40.0)],
    "logistic-mixture": [
        ([0.3, -0.4, -0.5, 0.4, -3.0, -1.0], 70),
        ([0.3, -0.4, -0.9, 0.4, -3.0, -1.0], 0),
        ([0.3, -0.4, -0.5, 1.2, -2.0, -1.0], 255),
        ([0.0, 9.0, 0.9, 0.99, -6.5, -6.0], 3),  # 240 levels off, at the smallest scale
        ([0.0, 0.0, 50.0, -1e3, -2.0, -6.0], 128),
        ([0.0, 0.0, 0.0, 0.1, 8.0, 9.0], 128),  # nearly uniform
    ],
    "discretised-gaussian": [
        ([0.1, -2.0], 200),
        ([0.1, -6.5], 141),
        ([0.1, -6.5], 140),  # within a level of the middle
        ([0.1, -6.5], 3),  # thousands of nats below the mode
        ([0.9, -5.0], 0),
        ([-0.9, -5.0], 255),
        ([0.2, 0.0], 0),
        ([30.0, -6.0], 128),
        ([-0.3, 6.0], 90),  # nearly flat
    ],
    "categorical": [([0.1, 2.0, -1.0], 2), ([1e4, 0.0, -1e4], 2)],
    "poisson": [([1.0], 0), ([1.0], 4), ([-20.0], 3), ([13.8], 1_000_000), ([8.0], 0), ([16.0], 2)],
    "negative-binomial": [
        ([1.0, 0.5], 0),
        ([1.0, 0.5], 4),
        ([3.0, -7.0], 9),  # nearly all are zero
        ([5.0, 14.0], 131),  # nearly Poisson
        ([13.8, 2.0], 1_000_000),
        ([-20.0, 1.0], 3),
        ([13.0, 1.0], 2),
    ],
}


def kind_of(name):
    return make_kind(name, **PARAMETERS.get(name, {}))


def test_every_kind_is_tested():
    assert set(OBSERVATIONS) == set(KINDS) == {*CASES, "table"} == {*SCIPY, "table"}
    assert {as_kind(as_json(kind_of(name))) for name in KINDS} == set(map(kind_of, KINDS))


@pytest.mark.parametrize("name", CASES)
def test_density_and_gradient_match_scipy(name):
    likelihood = observation(kind_of(name), 1)
    score = jax.jit(jax.value_and_grad(lambda o, x: likelihood.distribution(o).log_prob(x)))
    for given, x in CASES[name]:
        outputs = np.float64(np.float32(given))
        assert len(outputs) == likelihood.n_outputs + likelihood.n_free
        value, gradient = score(jnp.float32(outputs), jnp.full(1, x, jnp.float32))
        expected = SCIPY[name](outputs, x)
        steps = 1e-5 * np.eye(len(outputs))
        above, below = ([SCIPY[name](outputs + sign * h, x) for h in steps] for sign in (1, -1))
        slopes = (np.array(above) - below) / 2e-5
        size = np.abs(slopes).max()  # effect of rounding an output or a level
        assert value == pytest.approx(expected, rel=2e-6, abs=3e-6 + 3e-7 * size)
        assert gradient == pytest.approx(slopes, rel=2e-3, abs=2e-4 * (1 + size))


@pytest.mark.parametrize("name", CASES)
def test_density_and_gradient_are_finite_for_any_output(name):
    likelihood = observation(kind_of(name), 1)
    score = jax.jit(jax.value_and_grad(lambda o, x: likelihood.distribution(o).log_prob(x)))
    legal = [
        x
        for x in (0, 1, 2, 128, 255, 2**24)
        if KINDS[name].legal(np.array([[x]]), kind_of(name)).all()
    ]
    rng = np.random.default_rng(0)
    for size in (0.0, 1.0, 20.0, 300.0):
        for _ in range(4):
            outputs = jnp.float32(
                size * rng.choice([-1, 0, 1], likelihood.n_outputs + likelihood.n_free)
            )
            for x in legal:
                if name.startswith("gaussian") and size == 300:
                    continue  # exp(300) is beyond float32
                value, gradient = score(outputs, jnp.full(1, x, jnp.float32))
                assert np.isfinite(value)
                assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["logistic-mixture", "discretised-gaussian"])
@pytest.mark.parametrize("log_scale", [-9.0, -3.0, 5.0])
@pytest.mark.parametrize("loc", [-3.0, 0.3, 0.999])
def test_probabilities_of_256_levels_sum_to_one(name, loc, log_scale):
    outputs = {
        "logistic-mixture": [0.0, 1.0, loc, -loc, log_scale, -2.0],
        "discretised-gaussian": [loc, log_scale],
    }[name]
    probs = np.exp(np.float64(log_probs(name, outputs, 256)))
    assert probs.sum() == pytest.approx(1, abs=2e-5)
    mean = mean_of(name)(jnp.float32(outputs))
    assert mean == pytest.approx(probs @ np.arange(256), abs=5e-3)


def log_probs(name, outputs, count):
    """log p of 0, 1, ... in one dimension."""
    return log_probs_of(name)(jnp.float32(outputs), jnp.arange(count, dtype=jnp.float32)[:, None])


@cache
def log_probs_of(name):
    likelihood = observation(kind_of(name), 1)
    return jax.jit(lambda outputs, x: jax.vmap(likelihood.distribution(outputs).log_prob)(x))


@cache
def mean_of(name):
    likelihood = observation(kind_of(name), 1)
    return jax.jit(lambda outputs: likelihood.distribution(outputs).mean)


DRAWN = {
    "bernoulli": [0.4],
    "logistic-mixture": [0.3, -0.4, -0.9, 0.6, -2.0, -1.0],
    "discretised-gaussian": [0.7, -1.0],
    "categorical": [0.5, -0.5, 0.1],
    "poisson": [1.2],
    "negative-binomial": [2.0, 0.3],
}
VALUES_OF = {"bernoulli": 2, "categorical": 3}  # else 256
N = 20_000


def drawn(p):
    return np.asarray(jax.jit(jax.vmap(p.sample))(jax.random.split(jax.random.key(1), N)))


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_discrete_draws_follow_the_probabilities(name):
    """Chi-square test: a false alarm once in a million; detects an output off by 0.3."""
    p = observation(kind_of(name), 1).distribution(jnp.float32(DRAWN[name]))
    draws = drawn(p)[:, 0]
    assert draws.dtype == np.float32
    wrong = np.array(DRAWN[name])
    wrong[0] += 0.3

    def p_value(outputs):
        probs = np.exp(np.float64(log_probs(name, outputs, VALUES_OF.get(name, 256))))
        counts = np.bincount(draws.astype(int), minlength=len(probs))
        order = np.argsort(probs)
        rare = order[np.cumsum(probs[order]) * N < 10]
        often = np.setdiff1d(np.arange(len(probs)), rare)
        expected = np.append(probs[often], 1 - probs[often].sum()) * N
        observed = np.append(counts[often], N - counts[often].sum())
        keep = expected > 1e-3
        assert observed[~keep].sum() == 0
        return chisquare(
            observed[keep], expected[keep] * observed[keep].sum() / expected[keep].sum()
        ).pvalue

    assert p_value(DRAWN[name]) > 1e-6
    assert p_value(wrong) < 1e-6


@pytest.mark.parametrize("name", ["gaussian", "gaussian-shared", "gaussian-fixed"])
def test_continuous_draws_follow_the_density(name):
    outputs = [0.4, np.log(0.3)][: 1 + (name != "gaussian-fixed")]
    p = observation(kind_of(name), 1).distribution(jnp.float32(outputs))
    draws = drawn(p)[:, 0]
    assert kstest(draws, norm(0.4, 0.3).cdf).pvalue > 1e-6
    assert kstest(draws, norm(0.4, 0.33).cdf).pvalue < 1e-6


def test_count_draws_have_the_expected_moments():
    for name, outputs, variance in (
        ("poisson", [3.0], np.exp(3.0)),
        ("negative-binomial", [3.0, 1.0], np.exp(3.0) + np.exp(6.0 - 1.0)),
    ):
        p = observation(name, 1).distribution(jnp.float32(outputs))
        draws = np.float64(drawn(p))[:, 0]
        assert p.mean == pytest.approx(np.exp(3.0), rel=1e-5)
        assert_mean(draws, np.exp(3.0), error_at_most=0.1)
        assert_mean((draws - np.exp(3.0)) ** 2, variance, error_at_most=0.03 * variance)


# --- floors ---------------------------------------------------------------------------------


def test_learned_scale_has_a_floor_and_is_unchanged_above_it():
    for name in ("gaussian", "gaussian-shared"):
        likelihood = observation(name, 1)

        def score(log_scale, likelihood=likelihood):
            return likelihood.distribution(jnp.stack([jnp.float32(0), log_scale])).log_prob(
                jnp.zeros(1)
            )

        below, slope = jax.jit(jax.value_and_grad(score))(jnp.float32(-50))
        assert below == pytest.approx(norm.logpdf(0, 0, LEAST_SCALE), rel=1e-5)
        assert slope == pytest.approx(-1)
        above = likelihood.distribution(jnp.float32([0, -9.1])).base_dist.scale
        assert above == jnp.exp(jnp.float32(-9.1))
    assert LEAST_SCALE == 1e-4
    sharp = [log_probs("discretised-gaussian", [0.1, s], 256) for s in (LEAST_LOG_SCALE, -30.0)]
    assert sharp[0] == pytest.approx(sharp[1])
    mixtures = [[0.0, 0.0, 0.1, 0.1, s, s] for s in (LEAST_LOG_SCALE, -30.0)]
    sharp = [log_probs("logistic-mixture", outputs, 256) for outputs in mixtures]
    assert sharp[0] == pytest.approx(sharp[1])
    few = [log_probs("negative-binomial", [1.0, s], 9) for s in (LOG_SIZES[0], -30.0)]
    assert few[0] == pytest.approx(few[1])


# --- initial outputs ------------------------------------------------------------------------


def rows_of(name, n=400):
    rng = np.random.default_rng(3)
    two = np.where(rng.random((n, 2)) < 0.4, rng.normal(60, 9, (n, 2)), rng.normal(180, 20, (n, 2)))
    count = rng.negative_binomial(2, 0.3, (n, 2))
    real = rng.normal([1, -3], [0.5, 2], (n, 2))
    made = {
        "bernoulli": rng.random((n, 2)) < 0.3,
        "logistic-mixture": np.clip(np.rint(two), 0, 255),
        "discretised-gaussian": np.clip(np.rint(rng.normal([100, 250], [3, 20], (n, 2))), 0, 255),
        "categorical": rng.choice(3, (n, 2), p=[0.5, 0.2, 0.3]),
        "poisson": count,
        "negative-binomial": count,
        "table": np.stack(
            [count[:, 0], real[:, 0], rng.choice(3, n), count[:, 1], real[:, 1], count[:, 0] > 3],
            axis=1,
        ),
    }
    return np.float32(made.get(name, real))


def constant_model(name, rows):
    """Return a model whose decoder output does not depend on z."""
    kind, d = kind_of(name), rows.shape[1]
    likelihood = observation(kind, d)
    model = VAE(
        d,
        (2,),
        ((3,),),
        observation=kind,
        output_bias=likelihood.initial_output(rows),
        statistics=likelihood.encoding.statistics(rows) if likelihood.encoding else None,
        key=jax.random.key(0),
    )
    return eqx.tree_at(lambda m: m.output.weight, model, jnp.zeros_like(model.output.weight))


def constant_score(name, rows):
    model = constant_model(name, rows)
    score = jax.jit(jax.vmap(lambda x: model.decode((jnp.float32([0.7, -2]),)).log_prob(x)))
    return np.float64(score(jnp.asarray(rows))).mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", SCIPY)
def test_initial_output_is_the_best_constant(name):
    rows = rows_of(name)
    likelihood, best = observation(kind_of(name), 2), 0.0
    start = np.float64(likelihood.initial_output(rows)).reshape(-1, 2)
    for outputs, column in zip(start.T, rows.T, strict=True):
        values, counts = np.unique(column, return_counts=True)

        def loss(o, values=values, counts=counts):
            return -np.average([SCIPY[name](o, x) for x in values], weights=counts)

        best -= minimize(loss, outputs + 0.05, method="L-BFGS-B").fun
    assert constant_score(name, rows) == pytest.approx(best, abs=5e-4)


def test_table_likelihood_is_the_sum_over_its_columns():
    rows = rows_of("table")
    alone = 0.0
    for kind, column in zip(COLUMNS, rows.T, strict=True):
        name = kind.partition(":")[0]
        likelihood = observation(kind_of(name), 1)
        p = likelihood.distribution(jnp.float32(likelihood.initial_output(column[:, None])))
        alone += np.float64(jax.jit(jax.vmap(p.log_prob))(column[:, None])).mean()
    assert constant_score("table", rows) == pytest.approx(alone, rel=1e-5)


def test_table_draws_each_column_from_its_kind():
    rows = rows_of("table")
    model = constant_model("table", rows)
    draws = np.asarray(
        jax.jit(jax.vmap(lambda k: model.sample(k)[1]))(jax.random.split(jax.random.key(0), N))
    )
    for drawn, column in zip(draws.T, rows.T, strict=True):
        error = column.std() / np.sqrt(len(column))
        assert drawn.mean() == pytest.approx(column.mean(), abs=5 * error)
    means = np.asarray(jax.jit(lambda z: model.decode((z,)).mean)(np.zeros(2, np.float32)))
    numbers = np.array([0, 1, 3, 4, 5])
    assert means[numbers] == pytest.approx(rows.mean(axis=0)[numbers], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_constant_columns_have_a_finite_initial_output(name):
    columns = {"columns": ("gaussian", "poisson")} if name == "table" else PARAMETERS.get(name, {})
    kind = make_kind(name, **columns)
    outputs = observation(kind, 2).initial_output(np.zeros((30, 2), np.float32))
    assert np.isfinite(outputs).all()


# --- encoder inputs -------------------------------------------------------------------------


def encoder_inputs(name, rows):
    encoding = observation(kind_of(name), rows.shape[1]).encoding
    statistics = jnp.float32(encoding.statistics(rows))
    assert statistics.shape == (encoding.n_statistics,)
    result = jax.jit(jax.vmap(encoding.transform, (0, None)))(jnp.asarray(rows), statistics)
    assert result.shape == (len(rows), encoding.n_inputs)
    return np.asarray(result)


def test_encoder_inputs_are_standardised():
    assert observation("gaussian", 3).encoding is observation("bernoulli", 3).encoding is None
    levels = encoder_inputs("logistic-mixture", np.float32([[0, 255, 127.5]]))
    assert levels == pytest.approx(np.array([[-1, 1, 0]]))
    counts = encoder_inputs("poisson", rows_of("poisson"))
    assert counts.mean(axis=0) == pytest.approx(0, abs=1e-5)
    assert counts.std(axis=0) == pytest.approx(1, rel=1e-5)
    categories = encoder_inputs("categorical", np.float32([[0, 2], [1, 1]]))
    assert categories.tolist() == [[1, 0, 0, 0, 0, 1], [0, 0, 1, 1, 0, 0]]
    assert encoder_inputs("table", rows_of("table")).shape == (400, 8)


def test_statistics_are_not_trained_but_the_shared_scale_is():
    rows = rows_of("poisson")

    def gradient(name, rows):
        model = constant_model(name, rows)

        def score(model):
            x = jnp.asarray(rows[0])
            z = model.posterior(x).sample(jax.random.key(1))
            return model.log_joint(x, z)

        return eqx.filter_jit(eqx.filter_grad(score))(model)

    poisson = gradient("poisson", rows)
    assert not np.any(poisson.statistics)
    assert np.any(poisson.encoder[0].loc.weight)
    assert np.all(gradient("gaussian-shared", rows_of("gaussian-shared")).free)
    assert gradient("gaussian", rows_of("gaussian")).free is None
