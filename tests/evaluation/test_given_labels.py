"""Information, rate-distortion, active units and pruning of conditional models, given y."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

import small
from cases import quick
from iwae.data import load_dataset
from iwae.evaluation.information import information
from iwae.evaluation.pruning import prune
from iwae.evaluation.rate_distortion import rate_distortion
from iwae.evaluation.units import active_units
from iwae.inference.particles import particle_keys
from iwae.models.conditional import ConditionalVAE, conditional_examples
from iwae.models.vae import VAE
from iwae.results.information import information_run
from iwae.results.likelihood import evaluate_run
from iwae.results.rate_distortion import rate_distortion_run
from reference import assert_mean
from small import perturbed_conditional, two_halves

KEY, D, M, C, N = jax.random.key(3), 3, 2, 2, 24
Y = np.arange(N) % 3 // 2  # two thirds have label 0


def linear(*, latent=(M,), hidden=((),)):
    """Return a conditional linear-Gaussian model whose prior and q depend on the label."""
    plain = VAE(D, latent, hidden, observation="gaussian", key=jax.random.key(0))
    return perturbed_conditional(ConditionalVAE(plain, C, learned_prior=True), size=0.5)


def rows(n=N):
    x = np.random.default_rng(1).normal(size=(n, D)).astype(np.float32)
    return conditional_examples(x, np.resize(Y, n), C)


def moments(distribution):
    return np.float64(distribution.mean), np.sqrt(np.float64(distribution.variance))


def q_and_p(model, xs):
    """Return means and standard deviations `[n, m]` of q(z|x, y) and of p(z|y), float64."""
    each = [model.condition(jnp.asarray(row)) for row in xs]
    q = [moments(given.posterior(x).first) for given, x in each]
    p = [moments(given.prior()) for given, _ in each]
    return np.moveaxis(np.array(q), 1, 0), np.moveaxis(np.array(p), 1, 0)


def test_rate_is_the_divergence_from_the_prior_of_the_label():
    model, xs = linear(), rows(3 * N)
    got = information(model, xs, KEY, k=2000)
    (q, s), (p, r) = q_and_p(model, xs)
    exact = (np.log(r / s) + (s**2 + (q - p) ** 2) / (2 * r**2) - 0.5).sum(axis=1)
    assert_mean((got.rate - exact) / (1 + exact), 0.0, error_at_most=0.01)
    assert np.corrcoef(got.rate, exact)[0, 1] > 0.98
    without = (np.log(1 / s) + (s**2 + q**2) / 2 - 0.5).sum(axis=1)
    assert abs((without - exact).mean()) > 0.5  # the prior without labels would be detected


def test_draw_is_compared_with_the_examples_of_its_label():
    model, xs, draws = linear(), rows(), 2
    got = information(model, xs, KEY, k=2, draws=draws)
    (q, s), _ = q_and_p(model, xs)
    for i in range(N):
        posterior = model.posterior(jnp.asarray(xs[i]))
        keys = particle_keys(jax.random.fold_in(KEY, i), jnp.arange(draws))
        z = np.float64(jax.vmap(posterior.sample)(keys)[0])
        log_q = norm.logpdf(z[:, None], q[None], s[None]).sum(axis=2)
        same_label = Y[i] == Y
        marginal = logsumexp(log_q[:, same_label], axis=1) - np.log(same_label.sum())
        assert got.log_ratio[i] == pytest.approx((log_q[:, i] - marginal).mean(), abs=2e-4)


@pytest.mark.slow
def test_information_with_one_label_is_that_of_the_model_given_it():
    model = linear()
    x = rows()[:, :D]
    got = information(model, conditional_examples(x, np.ones(N, int), C), KEY, k=3)
    alone = information(model.given(jnp.eye(C)[1]), x, KEY, k=3)
    for name in got._fields:
        np.testing.assert_allclose(getattr(got, name), getattr(alone, name), rtol=2e-5, atol=1e-5)


@pytest.mark.slow
def test_rate_distortion_curve_starts_at_the_label_prior_and_bounds_the_likelihood():
    """At beta = 0 the rate is 0; at 1, rate and distortion bound -log p(x|y) in closed form."""
    model, xs = linear(), rows(40)
    zero = (jnp.zeros(leaf.shape) for leaf in (model.vae.output.weight[:, D:],))
    model = eqx.tree_at(
        lambda m: m.vae.output.weight,
        model,
        jnp.concatenate([model.vae.output.weight[:, :D], *zero], axis=1),
    )  # a scale that does not depend on z
    betas = np.linspace(0, 1, 60)
    result = rate_distortion(model, xs, KEY, betas=betas, step_size=0.1, n_leapfrog=5, chains=64)
    np.testing.assert_allclose(result.rate[:, 0], 0, atol=1e-6)
    exact = []
    for row in xs:
        given, x = model.condition(jnp.asarray(row))
        w, (b, log_s) = (
            np.float64(given.output.weight[:, :D]),
            np.split(np.float64(given.output.bias), 2),
        )
        mean, scale = moments(given.prior())
        covariance = (w.T * scale**2) @ w + np.diag(np.exp(2 * log_s))
        off = np.float64(x) - b - mean @ w
        log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
        exact.append(-0.5 * (off @ np.linalg.solve(covariance, off) + log_det))
    total = result.rate[:, -1] + result.distortion[:, -1]
    np.testing.assert_allclose(total, -np.array(exact), atol=0.35)
    assert abs((total + np.array(exact)).mean()) < 0.05


# --- units ------------------------------------------------------------------------------------


def test_unit_at_the_prior_of_its_label_is_inactive():
    model = linear()
    loc = model.vae.encoder[0].loc
    still = loc.weight.at[:, 1].set(0.0)  # the mean of unit 2 depends on the label only
    shifts = model.shifts[0].at[:, 1].set(model.tops[:, 0, 1] - loc.bias[1])
    model = eqx.tree_at(
        lambda m: (m.vae.encoder[0].loc.weight, m.shifts[0]), model, (still, shifts)
    )
    result = active_units(model, rows(), KEY)
    (q, _), (p, r) = q_and_p(model, rows())
    assert q[:, 1].var() > 0.01
    np.testing.assert_allclose(result.variances[0], ((q - p) / r).var(axis=0), atol=1e-5)
    assert result.masks[0].tolist() == [True, False]


SHAPES = {
    "one layer": ({}, [[True, False]]),
    "hidden layer": ({"hidden": ((4,),)}, [[False, True]]),
    "two layers": (
        {"latent": (3, 2), "hidden": ((4,), (4,))},
        [[True, False, True], [True, False]],
    ),
    "no top layer": ({"latent": (3, 2), "hidden": ((), ())}, [[True, True, False], [False, False]]),
}


@pytest.mark.parametrize("name", quick(SHAPES, "two layers", "no top layer"))
def test_pruned_unit_is_fixed_at_the_prior_mean_of_its_label(name):
    shape, masks = SHAPES[name]
    model, keep = linear(**shape), [np.array(mask) for mask in masks]
    pruned = prune(model, keep)
    n_layers = len([mask for mask in keep if mask.any()])
    assert pruned.latent_sizes == tuple(mask.sum() for mask in keep)[:n_layers]

    @jax.jit
    def parts(x):
        given, values = model.condition(x)
        part = pruned.posterior(x).sample(jax.random.clone(KEY))
        fixed = [jnp.zeros(mask.size) for mask in keep[:-1]] + [given.prior().mean]
        z = tuple(
            full.at[np.flatnonzero(mask)].set(some)
            for full, mask, some in zip(fixed, keep, (*part, jnp.zeros(0)), strict=False)
        )
        first = given.posterior(values).first
        nets = [first, *(net(h) for net, h in zip(given.encoder[1:], z, strict=False))]
        result = pruned.log_joint(x, part), pruned.posterior(x).log_prob(part)
        return result, z, (given.priors(z), nets), given.log_likelihood(values, z)

    for row in rows(4):
        result, z, layers_of, log_x = parts(jnp.asarray(row))
        log_p, log_q = (
            sum(
                norm.logpdf(h, *moments(one))[mask].sum()
                for h, one, mask in zip(z, layers, keep, strict=True)
            )
            for layers in layers_of
        )
        expected = float(log_x) + log_p, log_q
        assert np.float64(result) == pytest.approx(np.float64(expected), rel=1e-5)


# --- runs -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_conditional_run_is_evaluated_by_every_method(tmp_path):
    run = tmp_path / "run"
    options = two_halves(tmp_path / "halves.npz")
    small.train_in(run, **options, label_prior=True)
    record = information_run(run, k=4)
    counts = np.bincount(load_dataset(options["dataset"], labels=True).labels.test)
    limit = (
        counts * np.log(counts)
    ).sum() / 50  # for a draw that identifies its example within the label
    assert record["mutual_information_limit"] == pytest.approx(limit)
    assert record["mutual_information_lower"] < record["mutual_information_upper"]
    curve = rate_distortion_run(run, temperatures=10, chains=2, leapfrog=2)
    assert np.isfinite(curve["log_likelihood"])
    full, pruned = (evaluate_run(run, ks=(50,), pruned=one) for one in (False, True))
    assert pruned["log_likelihood"] == pytest.approx(full["log_likelihood"], abs=1.0)
