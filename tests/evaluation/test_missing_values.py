"""Missing values: densities of observed values, imputation and missingness mechanisms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import log_ndtr, logsumexp, ndtr
from scipy.stats import kstest, norm

from cases import quick
from gaps import IncompleteLinearGaussian, log_normal, model_and_rows, moments
from iwae import (
    VAE,
    bound,
    impute,
    iwae,
    log_likelihoods,
    log_weights,
    multiple_imputations,
    score,
    snis_mean,
)
from iwae.data import KINDS, make_kind
from iwae.errors import UserError
from iwae.evaluation import imputation
from iwae.evaluation.imputation import imputed
from iwae.evaluation.tails import pareto_threshold
from iwae.inference.particles import importance_particles, particle_keys
from iwae.models.likelihoods import MISSING, observation
from iwae.models.likelihoods.masking import SelfMasked
from iwae.models.likelihoods.missing import Incomplete
from iwae.testing import check_latent_model
from reference import assert_mean
from small import perturbed


def conditional(x, mean, covariance):
    """Return the mean and covariance of the missing values given the observed ones."""
    m = np.isnan(x)
    gain = covariance[np.ix_(m, ~m)] @ np.linalg.inv(covariance[np.ix_(~m, ~m)])
    left = covariance[np.ix_(m, m)] - gain @ covariance[np.ix_(~m, m)]
    return mean[m] + gain @ (x[~m] - mean[~m]), left


@eqx.filter_jit
def log_weights_of(model, x, key):
    return log_weights(model, x, key, 5)


# --- exact results ----------------------------------------------------------------------------


def test_every_weight_is_the_observed_density_under_the_exact_posterior():
    model, rows = model_and_rows()
    exact, (mean, covariance) = IncompleteLinearGaussian(model.complete, 1.0), moments(model)
    for i, x in enumerate(rows):
        o = ~np.isnan(x)
        expected = log_normal(x[o], mean[o], covariance[np.ix_(o, o)]) if o.any() else 0.0
        log_w = log_weights_of(exact, jnp.asarray(x), jax.random.key(i))
        assert log_w == pytest.approx(np.full(5, expected), abs=1e-4)


@pytest.mark.slow
def test_log_likelihoods_are_those_of_the_observed_values():
    model, rows = model_and_rows()
    mean, covariance = moments(model)
    result = log_likelihoods(model, rows, jax.random.key(0), k=4000)
    for x, value in zip(rows, result, strict=True):
        o = ~np.isnan(x)
        expected = log_normal(x[o], mean[o], covariance[np.ix_(o, o)]) if o.any() else 0.0
        assert value == pytest.approx(expected, abs=0.05)


@pytest.mark.slow
def test_imputation_is_the_conditional_mean():
    model, rows = model_and_rows()
    copies = np.repeat(rows, 60, axis=0)
    result = impute(model, copies, jax.random.key(1), k=400).reshape(len(rows), 60, -1)
    for x, each in zip(rows, result, strict=True):
        expected, _ = conditional(x, *moments(model))
        for column, value in zip(np.flatnonzero(np.isnan(x)), expected, strict=True):
            assert_mean(each[:, column], value, error_at_most=0.02)


def test_multiple_imputations_have_the_conditional_moments():
    model, rows = model_and_rows()
    rows = rows[[0, *np.argsort(np.isnan(rows[1:]).sum(axis=1))[-2:] + 1]]
    n = 2500
    copies = np.repeat(rows, n, axis=0)
    result = multiple_imputations(model, copies, jax.random.key(2), draws=2, k=100)
    for i, x in enumerate(rows):
        mean, covariance = conditional(x, *moments(model))
        for data in result:
            off = data[i * n : (i + 1) * n, np.isnan(x)] - mean
            for a in range(len(mean)):
                assert_mean(off[:, a], 0.0, error_at_most=0.05)
                for b in range(a + 1):
                    spread = np.sqrt(covariance[a, a] * covariance[b, b])
                    assert_mean(
                        off[:, a] * off[:, b] / spread,
                        covariance[a, b] / spread,
                        error_at_most=0.05,
                    )


def test_khat_of_imputation_is_that_of_the_weights_of_incomplete_rows():
    model, rows = model_and_rows()
    rows[1], narrow = 1.0, IncompleteLinearGaussian(model.complete, 0.3)
    gaps, own = np.isnan(rows).any(axis=1), score(narrow, rows, jax.random.key(0), k=100).pareto_k
    result = imputed(narrow, rows, jax.random.key(0), k=100)
    np.testing.assert_allclose(result.pareto_k[gaps], own[gaps], rtol=1e-4)
    assert (own[gaps] > 0.7).any()
    for khat in (
        result.pareto_k,
        imputed(narrow, rows, jax.random.key(0), draws=2, k=100).pareto_k,
    ):
        assert np.isnan(khat).tolist() == (~gaps).tolist()


def test_rows_with_unreliable_weights_are_imputed_by_annealing(monkeypatch):
    """q is so narrow that its draws vary too little."""
    keys, again = [], imputation.annealed_imputations

    def noted(fn, model, examples, key, addresses):
        keys.append(jax.random.key_data(key))
        return again(fn, model, examples, key, addresses)

    monkeypatch.setattr(imputation, "annealed_imputations", noted)
    model, rows = model_and_rows()
    x, n = rows[np.isnan(rows[1:]).sum(axis=1).argmax() + 1], 400
    narrow = IncompleteLinearGaussian(model.complete, 0.3)
    mean, covariance = conditional(x, *moments(model))
    squares, bad = {}, None
    for anneal in (False, True):
        result = imputed(
            narrow, np.repeat(x[None], n, 0), jax.random.key(0), draws=1, k=50, anneal=anneal
        )
        bad = result.pareto_k > pareto_threshold(50) if bad is None else bad
        chains = np.where(anneal & bad, imputation.CHAINS, 50)
        assert result.threshold.tolist() == [pareto_threshold(int(each)) for each in chains]
        off = (result.values[0][:, np.isnan(x)] - mean) / np.sqrt(np.diag(covariance))
        squares[anneal] = (off**2).mean(axis=1)[bad]
    assert squares[False].mean() < 0.8
    assert_mean(squares[True], 1.0, error_at_most=0.1)
    _, place = np.flatnonzero(bad)[:2]
    others = np.zeros((n, len(x)), np.float32)  # as many, so that one program serves both
    others[place] = x
    alone = imputed(narrow, others, jax.random.key(0), draws=1, k=50, anneal=True)
    assert np.array_equal(alone.values[0, place], result.values[0, place])
    examples = particle_keys(jax.random.key(0), jnp.arange(n))  # keys of the examples, by index
    assert np.asarray(keys[0]).tolist() not in jax.random.key_data(examples).tolist()


def test_imputation_keeps_observed_values():
    model, rows = model_and_rows()
    rows = rows.astype(np.float64) + 1e-12
    one = impute(model, rows, jax.random.key(0), k=3)
    several = multiple_imputations(model, rows, jax.random.key(0), draws=4, k=3)
    observed = ~np.isnan(rows)
    assert (one.dtype, one.shape, several.shape) == (np.float64, rows.shape, (4, *rows.shape))
    assert not np.isnan(several).any()
    assert (one[observed] == rows[observed]).all()
    assert (several[:, observed] == rows[observed]).all()
    assert len(np.unique(several[:, ~observed])) == several[:, ~observed].size


@pytest.mark.slow
def test_imputations_do_not_depend_on_the_batch():
    model, rows = model_and_rows()
    one, other = (
        multiple_imputations(model, rows, jax.random.key(0), draws=2, k=20, batch_size=size)
        for size in (1, 5)
    )
    assert one == pytest.approx(other, abs=1e-4)


# --- every kind of data -----------------------------------------------------------------------

PARAMETERS = {
    "gaussian-fixed": {"scale": 0.7},
    "logistic-mixture": {"mixtures": 2},
    "categorical": {"categories": 3},
    "table": {"columns": ("poisson", "gaussian-shared", "categorical:3", "gaussian", "bernoulli")},
}
EXAMPLES = {
    "gaussian": [0.3, -2.0, 5.0, 0.0, 1.5],
    "bernoulli": [0, 1, 1, 0, 1],
    "levels": [0, 255, 17, 128, 254],
    "categorical": [0, 2, 1, 1, 2],
    "counts": [0, 3, 1, 12, 7],
    "table": [4, -0.7, 2, 1.3, 1],
}
LIKE = {
    "gaussian-shared": "gaussian",
    "gaussian-fixed": "gaussian",
    "logistic-mixture": "levels",
    "discretised-gaussian": "levels",
    "poisson": "counts",
    "negative-binomial": "counts",
}
MASK = [np.nan, 1, np.nan, 1, 1]


def example(name):
    return jnp.float32(EXAMPLES[LIKE.get(name, name)])


def kind_of(name):
    return make_kind(name, **PARAMETERS.get(name, {}))


def vae(name, missing="at-random", **options):
    sizes = {"latent_sizes": (2,), "hidden_sizes": ((4,),)}
    options = {**sizes, "observation": kind_of(name), "key": jax.random.key(0), **options}
    return perturbed(VAE(5, missing=missing, **options))


@eqx.filter_jit
def log_joint(model, x):
    return model.log_joint(x, (jnp.float32([0.5, -1.2]),))


@eqx.filter_jit
@eqx.filter_value_and_grad
def maximised(model, x):
    return bound(iwae, k=3)(model, x, jax.random.key(0))


@pytest.mark.parametrize("name", quick(KINDS, "logistic-mixture", "table"))
def test_density_is_the_product_over_observed_values(name):
    plain, model = (
        VAE(5, (2,), ((4,),), observation=kind_of(name), missing=missing, key=jax.random.key(0))
        for missing in (None, "at-random")
    )
    x = example(name)
    some = jnp.isnan(jnp.float32(MASK))
    nothing = log_joint(model, jnp.full(5, jnp.nan))
    assert nothing == pytest.approx(norm.logpdf([0.5, -1.2]).sum())
    complete = log_joint(model, x)
    assert complete == pytest.approx(float(log_joint(plain, x)), rel=1e-6)
    parts = [log_joint(model, jnp.where(hidden, jnp.nan, x)) for hidden in (some, ~some)]
    assert all(abs(part - nothing) > 0.1 for part in parts)
    assert sum(parts) == pytest.approx(float(complete + nothing), rel=1e-5)


@pytest.mark.parametrize("name", quick(KINDS, "table"))
def test_gradients_are_finite_with_missing_values(name):
    for hidden in (MASK, [np.nan] * 5):
        value, gradient = maximised(vae(name), example(name) * jnp.float32(hidden))
        assert jnp.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_initial_output_matches_observed_values(name):
    rng, kind = np.random.default_rng(0), kind_of(name)
    rows = rng.integers(0, 2, (40, 5)) * np.asarray(example(name))[None]
    rows[rng.random(rows.shape) < 0.3] = np.nan
    each = [*map(column_of, kind.columns)] if kind.columns else [kind] * 5
    likelihood = observation(kind, 5, "at-random")
    p = likelihood.distribution(jnp.float32(likelihood.initial_output(rows)))
    for j, one in enumerate(each):
        column = rows[~np.isnan(rows[:, j]), j : j + 1]
        alone = observation(one, 1)
        expected = alone.distribution(jnp.float32(alone.initial_output(column)))
        alone_in_rows = jnp.full((len(column), 5), jnp.nan).at[:, j].set(column[:, 0])
        result = jax.jit(jax.vmap(p.log_prob))(alone_in_rows)
        value = jax.jit(jax.vmap(expected.log_prob))(jnp.float32(column))
        # The mean is what both fits maximise. Mixtures reach it with other parameters.
        assert float(result.mean()) == pytest.approx(float(value.mean()), rel=1e-4, abs=5e-4)


def column_of(text):
    name, _, categories = text.partition(":")
    return make_kind(name, **({"categories": int(categories)} if categories else {}))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_imputed_draws_are_legal_values_of_their_kind(name):
    model, hidden = vae(name), np.float32(example(name)) * np.float32(MASK)
    rows = np.stack([hidden, np.full(5, np.nan, np.float32)])
    several = multiple_imputations(model, rows, jax.random.key(0), draws=6, k=20)
    assert KINDS[name].legal(several.reshape(12, 5), kind_of(name)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["categorical", "table"])
def test_category_is_imputed_by_the_most_probable_one(name):
    model, x, key = vae(name), example(name).at[2].set(jnp.nan), jax.random.key(0)

    @jax.jit
    def probabilities(x, key):
        particles, _ = importance_particles(model, x, key, 50)
        return snis_mean(particles, lambda z: probabilities_of_third(model.decode(z)))

    def probabilities_of_third(p):
        return p.each[2].complete.base_dist.probs[0] if name == "table" else p.averages()[2]

    p = probabilities(x, jax.random.fold_in(key, 0))
    result = impute(model, np.asarray(x)[None], jax.random.clone(key), k=50)
    assert p.shape == (3,)
    assert result[0, 2] == int(np.argmax(p))
    assert result[0, [0, 1, 3, 4]] == pytest.approx(np.asarray(x)[[0, 1, 3, 4]])


# --- the encoder ------------------------------------------------------------------------------


def test_encoder_input_has_zeros_and_the_mask():
    rows = np.array([[1.0, 10.0], [3.0, np.nan], [np.nan, 30.0]])
    encoding = observation("gaussian", 2, "at-random").encoding
    statistics = jnp.float32(encoding.statistics(rows))
    assert statistics == pytest.approx([2, 20, 0, np.log(10)])
    assert encoding.transform(jnp.float32([3, np.nan]), statistics) == pytest.approx([1, 0, 1, 0])
    assert encoding.n_inputs == 4


def test_encoder_input_has_no_category_for_a_missing_value():
    kind = make_kind("categorical", categories=3)
    encoding = observation(kind, 2, "at-random").encoding
    seen = jax.jit(encoding.transform)(jnp.float32([np.nan, 2]), np.zeros(0, np.float32))
    assert seen.tolist() == [0, 0, 0, 0, 0, 1, 0, 1]
    table = make_kind("table", columns=("categorical:3", "bernoulli", "categorical:3"))
    encoding = observation(table, 3, "at-random").encoding
    seen = jax.jit(encoding.transform)(jnp.float32([np.nan, 1, 2]), np.zeros(2, np.float32))
    assert seen.tolist() == [0, 0, 0, 0, 0, 1, 0, 1, 1, 1]


# --- not at random ----------------------------------------------------------------------------

LOC, SCALE = np.array([0.4, -1.0, 2.0]), np.array([1.3, 0.5, 0.9])
INTERCEPT, SLOPE = np.array([-0.3, 0.8, -2.0]), np.array([1.7, -0.6, 0.0])


def masked(intercept=INTERCEPT, slope=SLOPE):
    values = dist.Normal(jnp.float32(LOC), jnp.float32(SCALE)).to_event(1)
    return SelfMasked(Incomplete(values), jnp.float32(intercept), jnp.float32(slope))


def grid(j, intercept=INTERCEPT, slope=SLOPE):
    """Return values of dimension j, and the joint density of each value and its being missing."""
    x = np.linspace(LOC[j] - 12 * SCALE[j], LOC[j] + 12 * SCALE[j], 20001)
    return x, norm.pdf(x, LOC[j], SCALE[j]) * ndtr(intercept[j] + slope[j] * x)


def test_missing_values_are_integrated_out():
    x = np.array([0.2, np.nan, np.nan])
    expected = norm.logpdf(0.2, LOC[0], SCALE[0]) + log_ndtr(-INTERCEPT[0] - SLOPE[0] * 0.2)
    expected += sum(np.log(np.trapezoid(grid(j)[1], grid(j)[0])) for j in (1, 2))
    result = jax.jit(lambda x: masked().log_prob(x))(jnp.float32(x))
    assert result == pytest.approx(expected, rel=1e-5)


def test_expectation_of_a_missing_value_matches_quadrature():
    for j, result in enumerate(masked().averages()):
        x, density = grid(j)
        expected = np.trapezoid(x * density, x) / np.trapezoid(density, x)
        assert result == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("intercept", quick([0.0, -25.0, 40.0], -25.0))
def test_missing_values_are_drawn_given_that_they_are_unobserved(intercept):
    p = masked(INTERCEPT + intercept)
    fill = jax.jit(jax.vmap(lambda key: p.fill(jnp.full(3, jnp.nan), key)))
    draws = np.asarray(fill(jax.random.split(jax.random.key(3), 4000)))
    for j in range(3):
        x, _ = grid(j)
        log_density = norm.logpdf(x, LOC[j], SCALE[j])
        log_density += log_ndtr(INTERCEPT[j] + intercept + SLOPE[j] * x)
        cdf = np.cumsum(np.exp(log_density - log_density.max()))
        test = kstest(draws[:, j], lambda value, x=x, cdf=cdf: np.interp(value, x, cdf / cdf[-1]))
        assert test.pvalue > 1e-4
    assert np.isfinite(p.averages()).all()


def test_values_of_a_draw_are_missing_with_the_expected_frequency():
    draws = np.asarray(jax.vmap(masked().sample)(jax.random.split(jax.random.key(4), 4000)))
    for j in range(3):
        x, density = grid(j)
        assert_mean(np.isnan(draws[:, j]), np.trapezoid(density, x), error_at_most=0.01)


@pytest.mark.parametrize("intercept", quick([-1e4, -300.0, 300.0, 1e4], -1e4, 1e4))
def test_density_and_gradient_are_finite_far_from_the_data(intercept):
    def log_prob(parameters):
        return masked(*parameters).log_prob(jnp.float32([0.2, np.nan, 1.0]))

    parameters = jnp.full(3, intercept, jnp.float32), jnp.float32(SLOPE)
    value, gradient = jax.jit(jax.value_and_grad(log_prob))(parameters)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in gradient)


def test_density_of_values_and_mask_matches_quadrature():
    options = {"observation": "gaussian", "missing": "not-at-random", "key": jax.random.key(5)}
    model = perturbed(VAE(3, (1,), ((4,),), **options), size=0.6)
    x, z = np.array([0.7, np.nan, -0.4]), np.linspace(-9, 9, 1501)
    p = jax.jit(jax.vmap(lambda z: model.decode((z[None],))))(jnp.float32(z))
    loc, scale = (np.float64(getattr(p.values.complete.base_dist, n)) for n in ("loc", "scale"))
    b, a = np.float64(p.intercept[0]), np.float64(p.slope[0])
    assert np.abs(a).min() > 0.1  # otherwise nothing would depend on the mask
    log_p = norm.logpdf(z)
    for j in (0, 2):
        log_p += norm.logpdf(x[j], loc[:, j], scale[:, j]) + log_ndtr(-b[j] - a[j] * x[j])
    values = np.linspace(-15, 15, 2001)
    inside = norm.pdf(values, loc[:, 1:2], scale[:, 1:2]) * ndtr(b[1] + a[1] * values)
    log_p += np.log(np.trapezoid(inside, values, axis=1))
    result = jax.jit(jax.vmap(lambda z: model.log_joint(jnp.float32(x), (z[None],))))(
        jnp.float32(z)
    )
    assert result == pytest.approx(log_p, rel=1e-4, abs=1e-3)
    assert logsumexp(result) == pytest.approx(logsumexp(log_p), abs=1e-3)


@pytest.mark.parametrize(
    ("missing", "sign"), [("not-at-random-high", 1), ("not-at-random-low", -1)]
)
def test_known_sign_of_the_mechanism_is_respected(missing, sign):
    data = observation("gaussian-shared", 2, missing)
    rows = np.array([[1.0, 10.0], [3.0, np.nan], [np.nan, 30.0], [2.0, 3.0]])
    start = data.initial_output(rows)
    assert start.size == data.n_outputs + data.n_free == 2 + 2 + 4
    p = data.distribution(jnp.float32(start))
    assert (np.sign(p.slope) == sign).all()
    a, mean, scale = np.float64(p.slope), np.nanmean(rows, axis=0), np.nanstd(rows, axis=0)
    probit = (np.float64(p.intercept) + a * mean) / np.hypot(1, a * scale)
    assert ndtr(probit) == pytest.approx([1.5 / 5, 1.5 / 5], rel=1e-5)


def test_only_real_columns_of_a_table_are_missing_not_at_random():
    kind = make_kind("table", columns=("gaussian", "poisson"))
    data = observation(kind, 2, "not-at-random")
    each = data.distribution(jnp.zeros(data.n_outputs + data.n_free)).each
    assert [type(one) for one in each] == [SelfMasked, Incomplete]


# --- the contract and errors ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("missing", MISSING)
def test_model_satisfies_the_contract(missing):
    model = vae("gaussian", missing)
    check_latent_model(model, example("gaussian") * jnp.float32(MASK), jax.random.key(0))


@pytest.mark.slow
def test_incomplete_linear_gaussian_satisfies_the_contract():
    model, rows = model_and_rows()
    check_latent_model(model, jnp.asarray(rows[1]), jax.random.key(0), draws=2000)


@pytest.mark.parametrize(
    ("kind", "missing", "message"),
    [
        ("gaussian", "often", "no mechanism 'often' of missing values; known: at-random, not"),
        ("bernoulli", "not-at-random", "not-at-random must be gaussian, not bernoulli"),
        (make_kind("table", columns=("poisson",) * 5), "not-at-random", "must be gaussian"),
    ],
)
def test_invalid_arguments_raise_user_errors(kind, missing, message):
    with pytest.raises(UserError, match=message):
        VAE(5, (2,), ((4,),), observation=kind, missing=missing, key=jax.random.key(0))


def test_values_that_are_dependent_given_z_are_rejected():
    with pytest.raises(UserError, match=r"a MultivariateNormal does not declare: end it with"):
        Incomplete(dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))


def test_model_not_made_for_missing_values_cannot_impute():
    with pytest.raises(UserError, match="this VAE was not made for missing values: train one with"):
        impute(vae("gaussian", None), np.zeros((1, 5)), jax.random.key(0))
    with pytest.raises(UserError, match="draws is 0"):
        multiple_imputations(vae("gaussian"), np.zeros((1, 5)), jax.random.key(0), draws=0)


def test_nan_imputation_is_an_error():
    model = eqx.tree_at(lambda m: m.output.bias, vae("gaussian"), replace_fn=lambda b: b * jnp.nan)
    rows = np.array([[0.0] * 5, [np.nan, 0, 0, 0, 0]])
    with pytest.raises(FloatingPointError, match="row 2, column 1 cannot be imputed"):
        impute(model, rows, jax.random.key(0), k=2)


@pytest.mark.parametrize("missing", ["not-at-random", "not-at-random-high", "not-at-random-low"])
def test_initial_output_gives_each_column_its_share_of_missing_values(missing):
    # Far from zero, and in small and large units.
    rng = np.random.default_rng(0)
    rows = np.float32(rng.normal([1000.0, -3.0, 0.0], [1.0, 0.01, 50.0], (4000, 3)))
    rows[rng.uniform(size=rows.shape) < [0.1, 0.5, 0.3]] = np.nan
    likelihood = observation("gaussian", 3, missing)
    p = likelihood.distribution(jnp.float32(likelihood.initial_output(rows)))
    drawn = jax.vmap(p.sample)(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(np.isnan(drawn).mean(axis=0), np.isnan(rows).mean(axis=0), atol=0.04)
