"""Rate, distortion, mutual information and the parts of the gap, against closed forms."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from iwae.errors import UserError
from iwae.evaluation.elbo_terms import elbo_terms
from iwae.evaluation.examples import gather_examples, map_examples
from iwae.evaluation.information import OTHERS, _chunks, _log_ratio, information, information_kl_gap
from iwae.inference.particles import importance_particles, particle_keys
from iwae.models.vae import VAE
from iwae.testing import LinearGaussian
from reference import STANDARD_ERRORS, assert_mean, distance

KEY = jax.random.key(5)


class WithPrior(LinearGaussian):
    """The same model with a declared prior."""

    def log_prior(self, z):
        return self.prior().log_prob(z)


def linear(n_latent=2, *, q_shift=0.4, q_scale=1.3, noise=0.7):
    """Return a correlated, asymmetric model whose q is shifted and too wide."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, n_latent)), rng.normal(1.0, 1.0, 3)
    return WithPrior(weight, bias, noise, q_shift=q_shift, q_scale=q_scale)


def drawn(model, n, seed=0):
    """Examples drawn from the model, `[n, 3]`."""
    keys = jax.random.split(jax.random.key(seed), n)
    return np.asarray(jax.jit(jax.vmap(lambda key: model.sample(key)[1]))(keys))


def q_of(model, xs):
    """Means `[n, m]` and the covariance `[m, m]` of q(z|x), float64."""
    tril = np.float64(model.q_tril)
    return np.float64(xs) @ np.float64(model.q_weight).T + np.float64(model.q_bias), tril @ tril.T


def gaussian_kl(mean, covariance):
    """KL(N(mean, covariance) || N(0, I)) for each mean `[n, m]`, nats."""
    log_det = np.linalg.slogdet(covariance)[1]
    m = len(covariance)
    return 0.5 * (np.trace(covariance) + (mean**2).sum(axis=1) - m - log_det)


def exact_distortion(model, xs):
    """-E_q[log p(x|z)] of each example, nats."""
    means, covariance = q_of(model, xs)
    w, b = np.float64(model.weight), np.float64(model.bias)
    noise = np.exp(2 * np.float64(model.log_scale))
    squares = ((np.float64(xs) - b - means @ w.T) ** 2).sum(axis=1)
    squares += np.trace(w @ covariance @ w.T)
    return 0.5 * (len(b) * np.log(2 * np.pi * noise) + squares / noise)


def draws_of(model, xs, draws):
    """Return the draws that are scored, `[n, draws, m]`, with the keys `fold_in(KEY, i)`."""

    @partial(jax.vmap, in_axes=(0, 0))
    def of_example(x, i):
        keys = particle_keys(jax.random.fold_in(KEY, i), jnp.arange(draws))
        return jax.vmap(model.posterior(x).sample)(keys)

    return np.float64(jax.jit(of_example)(jnp.asarray(xs), jnp.arange(len(xs))))


def exact_log_ratio(model, xs, draws):
    """Return the log ratios from all n^2 densities in float64, at the program's draws."""
    means, covariance = q_of(model, xs)
    z = draws_of(model, xs, draws)
    log_q = multivariate_normal.logpdf(
        z[:, :, None, :] - means[None, None], np.zeros(len(covariance)), covariance
    ).reshape(len(xs), draws, len(xs))
    own = np.diagonal(log_q, axis1=0, axis2=2).T
    return (own - logsumexp(log_q, axis=2) + np.log(len(xs))).mean(axis=1)


# Rate and distortion


def test_rate_and_distortion_match_the_closed_form():
    model = linear(q_scale=0.6)
    xs = drawn(model, 400)
    got = information(model, xs, KEY, k=50)
    exact = {"rate": gaussian_kl(*q_of(model, xs)), "distortion": exact_distortion(model, xs)}
    for name, expected in exact.items():
        values = getattr(got, name)
        assert values.dtype == np.float64
        assert_mean(values - expected, 0.0, error_at_most=0.02)
        assert np.corrcoef(values, expected)[0, 1] > 0.95  # example by example
    # Power: detects the rate of the true posterior, and p(x|z) at the mean of q alone.
    right = gaussian_kl(*q_of(linear(q_shift=0.0, q_scale=1.0), xs))
    assert abs(distance(got.rate - right, 0.0)) > 2 * STANDARD_ERRORS
    loc = q_of(model, xs)[0] @ np.float64(model.weight).T + np.float64(model.bias)
    at_mean = -norm.logpdf(np.float64(xs), loc, 0.7).sum(axis=1)
    assert abs(distance(got.distortion - at_mean, 0.0)) > 2 * STANDARD_ERRORS


@pytest.mark.slow
def test_rate_and_distortion_sum_to_the_elbo_of_the_same_draws():
    model = linear()
    xs = drawn(model, 30)

    def bound(model, x, key):
        return jnp.mean(importance_particles(model, x, key, 20)[0].log_w)

    expected = gather_examples(map_examples(bound, model, xs, KEY, batch_size=10))
    got = information(model, xs, KEY, k=20)
    assert got.elbo == pytest.approx(expected, abs=2e-5)
    # With the exact posterior, every draw gives log p(x).
    exact = linear(q_shift=0.0, q_scale=1.0)
    evidence = [float(exact.log_evidence(x)) for x in jnp.asarray(xs)]
    assert information(exact, xs, KEY, k=1).elbo == pytest.approx(evidence, abs=2e-5)


@pytest.mark.slow
def test_rate_sums_over_the_layers_of_a_vae():
    model = VAE(6, (3, 2), ((4,), (3,)), key=jax.random.key(1))
    xs = np.random.default_rng(0).integers(0, 2, (9, 6)).astype(np.uint8)  # bytes, too
    terms = gather_examples(map_examples(elbo_terms(12), model, xs, KEY, batch_size=3))
    got = information(model, xs, KEY, k=12)
    assert got.rate == pytest.approx(terms["kl"].sum(axis=1), abs=1e-4)
    assert got.distortion == pytest.approx(-terms["reconstruction"], abs=1e-4)


# Mutual information


@pytest.mark.slow
@pytest.mark.parametrize(("n", "draws"), [(1, 1), (7, 3), (OTHERS, 1), (2 * OTHERS + 13, 2)])
def test_draws_are_scored_under_all_posteriors(n, draws):
    model = linear()
    xs = drawn(model, n)
    got = information(model, xs, KEY, k=4, draws=draws)
    assert got.log_ratio == pytest.approx(exact_log_ratio(model, xs, draws), abs=2e-4)


def exact_information(model):
    """I(x; z) of x from the model and z ~ q(z|x), jointly Gaussian; and KL(q(z) || N(0, I))."""
    w, b = np.float64(model.weight), np.float64(model.bias)
    a = np.float64(model.q_weight)
    of_x = w @ w.T + np.exp(2 * np.float64(model.log_scale)) * np.eye(len(b))
    mean, covariance = q_of(model, b[None])
    marginal = a @ of_x @ a.T + covariance
    apart = np.linalg.slogdet(marginal)[1] - np.linalg.slogdet(covariance)[1]
    return 0.5 * apart, gaussian_kl(mean, marginal)[0]


def test_bounds_enclose_the_mutual_information_of_gaussians():
    model = linear()
    true, marginal_kl = exact_information(model)
    got = information(model, drawn(model, 2000), KEY, k=20, draws=4)
    below, above = got.mutual_information
    assert below == (got.log_ratio.mean(), pytest.approx(got.log_ratio.std() / 2000**0.5, rel=1e-3))
    # At n = 2,000 the lower bound is close, and the upper one exceeds it by KL(q(z)||p(z)).
    assert below.stderr < 0.025
    assert abs(below.mean - true) < STANDARD_ERRORS * below.stderr
    assert abs(above.mean - true - marginal_kl) < STANDARD_ERRORS * above.stderr
    assert abs(got.marginal_kl.mean - marginal_kl) < STANDARD_ERRORS * got.marginal_kl.stderr
    assert above.mean - true > STANDARD_ERRORS * above.stderr  # the two bounds are distinguishable
    assert true > 2 * STANDARD_ERRORS * below.stderr


@pytest.mark.slow
def test_information_of_few_examples_matches_quadrature():
    """I(i; z) under the mixture of these n posteriors, not under the distribution of x."""
    model, n = linear(1, q_scale=0.8), 5
    xs = drawn(model, n)
    means, covariance = q_of(model, xs)
    z = np.linspace(-12, 12, 40_001)
    log_q = norm.logpdf(z[:, None], means[:, 0], np.sqrt(covariance[0, 0]))
    log_mean = logsumexp(log_q, axis=1) - np.log(n)
    integrand = np.exp(log_q) * (log_q - log_mean[:, None])
    expected = np.trapezoid(integrand, z, axis=0).mean()
    kl = np.trapezoid(np.exp(log_mean) * (log_mean - norm.logpdf(z)), z)
    got = information(model, xs, KEY, k=20_000, draws=20_000)
    # The draws are the noise here, not the examples: sd of one below 1, of 100,000 in all.
    assert got.mutual_information[0].mean == pytest.approx(expected, abs=STANDARD_ERRORS / 300)
    assert got.marginal_kl.mean == pytest.approx(kl, abs=STANDARD_ERRORS / 300)
    # Power: detects omitting one of the five, and the information over all possible x.
    assert abs(expected - exact_information(model)[0]) > 0.05
    assert np.log(5 / 4) > 0.05


def test_posterior_that_ignores_x_carries_no_information():
    model = linear()
    ignored = eqx.tree_at(lambda m: m.q_weight, model, jnp.zeros_like(model.q_weight))
    got = information(ignored, drawn(model, 50), KEY)
    below, above = got.mutual_information
    assert below.mean == pytest.approx(0, abs=1e-5)
    assert above.mean > 0.1
    assert got.marginal_kl.mean == pytest.approx(above.mean, abs=1e-5)


def test_lower_bound_is_at_most_log_n():
    model = linear(q_scale=1e-3)
    got = information(model, drawn(model, 50), KEY)
    below, above = got.mutual_information
    assert below.mean == pytest.approx(np.log(50), abs=1e-3)
    assert got.log_ratio.max() <= np.log(50) + 1e-4
    assert above.mean > np.log(50) + 1


def test_outlying_example_is_identified():
    """Densities of 10^-20,000 under the others neither overflow nor become nan."""
    model = linear()
    xs = drawn(model, 50) + 300 * np.eye(50, 3, -2, dtype=np.float32)[:, :1]
    got = information(model, xs, KEY)
    assert got.log_ratio[2] == pytest.approx(np.log(50), abs=1e-3)
    assert np.isfinite(got.log_ratio).all()


# Invariance


@pytest.mark.slow
def test_values_do_not_depend_on_the_batch():
    model = linear()
    xs = drawn(model, 41)
    first = information(model, xs, KEY, k=6, draws=2)
    for batch_size in (1, 7, 64):
        other = information(model, xs, KEY, k=6, draws=2, batch_size=batch_size)
        for a, b in zip(first, other, strict=True):
            assert b == pytest.approx(a, abs=1e-5)


@pytest.mark.slow
def test_rate_and_distortion_of_an_example_do_not_depend_on_the_others():
    model = linear()
    xs = drawn(model, 20)
    full, part = (information(model, some, KEY, k=6) for some in (xs, xs[:9]))
    assert part.rate == pytest.approx(full.rate[:9], abs=1e-5)
    assert part.distortion == pytest.approx(full.distortion[:9], abs=1e-5)


@pytest.mark.slow
def test_memory_is_not_quadratic_in_the_number_of_examples():
    model = linear()

    def temporary_bytes(n):
        others, xs = _chunks(np.ones((n, 3), np.float32)), jnp.ones((50, 3))
        keys = jax.vmap(jax.random.key)(jnp.arange(50))

        def fn(others, xs, keys):
            one = partial(_log_ratio, others=others, n=n, draws=1)
            return jax.vmap(lambda x, key: one(model, x, key))(xs, keys)

        return jax.jit(fn).lower(others, xs, keys).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary_bytes(OTHERS * 4), temporary_bytes(OTHERS * 400)
    assert many - few < 4 * 400 * 50  # a float for each pair of chunk and example is too much


# Parts of the gap


def test_gap_is_decomposed_per_example():
    rng = np.random.default_rng(0)
    log_p = rng.normal(-90, 20, 500)
    elbo, bound_k = log_p - rng.gamma(6.0, 0.5, 500), log_p - rng.gamma(2.0, 0.5, 500)
    got = information_kl_gap(elbo, bound_k, log_p)
    for part, values in (
        (got.gap, log_p - elbo),
        (got.recovered, bound_k - elbo),
        (got.remaining, log_p - bound_k),
    ):
        assert part == pytest.approx((values.mean(), values.std(ddof=1) / np.sqrt(500)))
        assert part.stderr < 0.1  # not that of likelihoods, which is 0.9
    assert got.gap.mean == pytest.approx(got.recovered.mean + got.remaining.mean)
    assert np.isnan(information_kl_gap(elbo[:1], bound_k[:1], log_p[:1]).gap.stderr)


def test_gap_is_the_divergence_of_q_from_the_true_posterior():
    model = linear()
    xs = drawn(model, 400)
    means, covariance = q_of(model, xs)
    exact, true_covariance = q_of(linear(q_shift=0.0, q_scale=1.0), xs)
    precision = np.linalg.inv(true_covariance)
    apart = means - exact
    kl = 0.5 * (
        np.trace(precision @ covariance)
        + np.einsum("ni,ij,nj->n", apart, precision, apart)
        - 2
        - np.linalg.slogdet(precision @ covariance)[1]
    )
    evidence = np.float64(jax.jit(jax.vmap(model.log_evidence))(jnp.asarray(xs)))
    elbo = information(model, xs, KEY, k=50).elbo
    gap = information_kl_gap(elbo, elbo, evidence)
    assert gap.recovered == (0.0, 0.0)
    assert gap.remaining == gap.gap
    assert gap.gap.stderr < 0.02
    assert abs(gap.gap.mean - kl.mean()) < STANDARD_ERRORS * gap.gap.stderr
    assert kl.mean() > 2 * STANDARD_ERRORS * gap.gap.stderr


# Errors


def test_invalid_arguments_raise_user_errors():
    model = linear()
    xs = np.ones((3, 3), np.float32)
    for examples, options, message in [
        (xs[:0], {}, "no examples"),
        (xs, {"k": 0}, "k is 0"),
        (xs, {"k": 4, "draws": 5}, "draws is 5; it must be between 1 and k, which is 4"),
        (xs, {"draws": 0}, "draws is 0"),
        (xs, {"batch_size": 0}, "batch_size is 0"),
    ]:
        with pytest.raises(UserError, match=message) as raised:
            information(model, examples, KEY, **options)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="does not define its prior"):
        information(LinearGaussian.random(), xs, KEY)
    with pytest.raises(UserError, match=r"0\.5.*binarise grey levels first"):
        information(VAE(3, (2,), ((4,),), key=KEY), 0.5 * xs, KEY)


def test_nan_in_an_example_is_an_error():
    xs = np.ones((3, 3), np.float32)
    xs[1, 0] = np.nan
    with pytest.raises(FloatingPointError, match="information of example 1 is not a number"):
        information(linear(), xs, KEY)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((np.zeros(3), np.zeros(3), np.zeros(2)), r"shapes are \(3,\), \(3,\), \(2,\)"),
        ((np.zeros(0), np.zeros(0), np.zeros(0)), "the same examples"),
        ((np.zeros((2, 2)),) * 3, "the same examples"),
        ((np.zeros(2), np.array([0, -np.inf]), np.zeros(2)), "bound_k of example 1 is -inf"),
    ],
)
def test_invalid_arguments_of_the_gap_are_rejected(arrays, message):
    with pytest.raises(UserError, match=message) as raised:
        information_kl_gap(*arrays)
    assert "\n" not in str(raised.value)
