"""Log-likelihoods, active units and pruning: exact values, and invariance to batching."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

import reference
from cases import quick
from iwae.errors import UserError
from iwae.evaluation import likelihood, units
from iwae.evaluation.elbo_terms import elbo_terms
from iwae.evaluation.likelihood import (
    KHAT_WEIGHTS,
    likelihood_diagnostics,
    log_likelihood_slabs,
    log_likelihoods,
    streamed_log_likelihood,
)
from iwae.evaluation.pruning import prune
from iwae.evaluation.units import active_units, authors_active_units
from iwae.inference.particles import Particles, importance_particles
from iwae.models.vae import VAE
from iwae.testing import LinearGaussian
from reference import STANDARD_ERRORS, assert_mean, equal

KEY = 7
EXAMPLES = np.float32(np.random.default_rng(0).normal(1, 1.5, (11, 3)))


def measured(examples=EXAMPLES, model=None, *, k=7, seed=KEY, **options):
    model = LinearGaussian.random(q_shift=0.5) if model is None else model
    return log_likelihoods(model, examples, jax.random.key(seed), k=k, **options)


def sampler_of_weights(log_w):
    """Return a sampler with the given log weights."""

    def sampler(model, x, key, k, *, first=0):  # noqa: ARG001
        padded = jnp.concatenate([jnp.float32(log_w), jnp.full(k, jnp.nan)])
        return Particles(jnp.zeros(k), jax.lax.dynamic_slice_in_dim(padded, first, k)), {}

    return sampler


# Log-likelihoods


def test_log_likelihood_is_the_evidence_under_the_exact_posterior():
    model = LinearGaussian.random()
    expected = jax.jit(jax.vmap(model.log_evidence))(jnp.asarray(EXAMPLES))
    values = measured(model=model)
    assert values.dtype == np.float64
    assert values == pytest.approx(np.float64(expected), rel=1e-5)


@pytest.mark.parametrize("options", [{"batch_size": 2, "chunk_size": 3}, {"batch_size": 10**9}])
def test_log_likelihoods_do_not_depend_on_batches_or_chunks(options):
    assert measured(**options) == pytest.approx(measured(), rel=1e-6)


def test_value_depends_only_on_its_example_and_index(monkeypatch):
    expected = measured()
    assert measured(EXAMPLES[:4]) == pytest.approx(expected[:4], rel=1e-6)
    others = np.where(np.arange(11)[:, None] == 5, EXAMPLES, 0)
    assert measured(others)[5] == pytest.approx(expected[5], rel=1e-6)
    assert len(np.unique(measured(np.zeros_like(EXAMPLES)))) == 11  # equal examples, own keys
    assert not np.isclose(measured(seed=KEY + 1), expected, rtol=1e-4).any()
    monkeypatch.setattr("iwae.evaluation.examples.SLAB_ROWS", 14)  # two examples per device
    assert measured(batch_size=1) == pytest.approx(expected, rel=1e-6)
    slabs = log_likelihood_slabs(
        LinearGaussian.random(q_shift=0.5), EXAMPLES, jax.random.key(KEY), k=7, batch_size=1
    )
    assert [len(slab["ess"]) for slab in slabs] == [4, 4, 3]


def test_log_likelihoods_do_not_depend_on_the_number_of_devices(monkeypatch):
    expected = measured(batch_size=2)  # so that each device gets examples
    assert jax.local_device_count() == 2
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)
    assert measured(batch_size=2) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_byte_examples_equal_float_examples():
    examples = np.uint8([[0, 1, 1], [1, 0, 1]])
    assert measured(examples).tolist() == measured(np.float32(examples)).tolist()


def test_each_shape_is_compiled_once():
    traces = []

    def sampler(*args, **options):
        traces.append(args)
        return importance_particles(*args, **options)

    for model_seed in (0, 1):
        for seed in (2, 3):
            measured(model=LinearGaussian.random(seed=model_seed), seed=seed, sampler=sampler)
    assert len(traces) == 1
    measured(k=8, sampler=sampler)
    assert len(traces) == 2


@pytest.mark.parametrize("chunk", quick([1, 250, 3000, 10_000], 250, 3000))
def test_streamed_bound_is_the_log_mean_exp_of_all_weights(chunk):
    log_w = np.float32(np.random.default_rng(1).normal(-1e4, 3.0, 10_000))
    log_w[::10] = -np.inf
    fn = eqx.filter_jit(streamed_log_likelihood(10_000, chunk, sampler_of_weights(log_w)))
    out = fn(LinearGaussian.random(), jnp.zeros(1), jax.random.key(0))
    w = np.exp(np.float64(log_w) - log_w.max())
    expected = logsumexp(np.float64(log_w)) - np.log(10_000)
    assert out["log_likelihood"] == pytest.approx(expected, abs=1e-3)  # float32 at 10^4
    assert out["ess"] == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-4)
    assert out["monte_carlo_error"] == pytest.approx(jackknife(w), rel=1e-3)


def jackknife(w):
    """Return the jackknife error of log(mean w) over 32 batches, or over fewer single weights."""
    batch = np.arange(len(w)) % 32
    left = [np.log(w[batch != j].mean()) for j in np.unique(batch)]
    return np.sqrt((len(left) - 1) * np.var(left))


@pytest.mark.parametrize("k", [2, 5, 33, 100])
def test_error_of_few_weights_is_the_jackknife_error(k):
    log_w = np.float32(np.random.default_rng(k).normal(-900, 2.0, k))
    expected = jackknife(np.exp(np.float64(log_w) - log_w.max()))
    fn = eqx.filter_jit(streamed_log_likelihood(k, 3, sampler_of_weights(log_w)))
    out = fn(LinearGaussian.random(), jnp.zeros(1), jax.random.key(0))
    assert out["monte_carlo_error"] == pytest.approx(expected, rel=1e-3)
    alone = jax.jit(likelihood_diagnostics)(log_w)["monte_carlo_error"]
    assert alone == pytest.approx(expected, rel=1e-3)


def test_undetermined_error_is_not_finite():
    error_of = jax.jit(lambda log_w: likelihood_diagnostics(log_w)["monte_carlo_error"])
    assert np.isnan(error_of(jnp.float32([0])))
    assert error_of(jnp.float32([0, -jnp.inf, -jnp.inf])) == np.inf
    assert error_of(jnp.float32([0, -80, -81])) > 30  # no cancellation


@pytest.mark.slow
def test_sum_without_rescaling_is_detected(monkeypatch):
    def faulty(sums, log_w, first):  # noqa: ARG001
        top, total, squares, batches = sums
        new_top = jnp.maximum(top, jnp.max(log_w))
        w = jnp.exp(log_w - new_top)
        return new_top, total + jnp.sum(w), squares + jnp.sum(w**2), batches

    monkeypatch.setattr(likelihood, "_add_weights", faulty)
    with pytest.raises(AssertionError):
        test_streamed_bound_is_the_log_mean_exp_of_all_weights(250)


def test_example_of_zero_weights_has_log_likelihood_minus_infinity():
    fn = streamed_log_likelihood(6, 3, sampler_of_weights(np.full(6, -np.inf)))
    out = eqx.filter_jit(fn)(LinearGaussian.random(), jnp.zeros(1), jax.random.key(0))
    assert (out["log_likelihood"], out["ess"]) == (-jnp.inf, 0.0)


@pytest.mark.slow
def test_memory_does_not_grow_with_k():
    model = LinearGaussian.random()

    def sampler(model, x, key, k, *, first):  # noqa: ARG001
        return Particles(None, jax.random.normal(jax.random.fold_in(key, first), k)), {}

    def temporary_bytes(k):
        fn = jax.jit(lambda key: streamed_log_likelihood(k, 50, sampler)(model, jnp.zeros(3), key))
        compiled = fn.lower(jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(100_000) == temporary_bytes(2 * KHAT_WEIGHTS)


@pytest.mark.slow
def test_log_likelihood_of_a_small_vae_matches_quadrature():
    model = VAE(4, (1,), ((3,),), key=jax.random.key(2))
    model = eqx.tree_at(
        lambda m: m.decoder_hidden.layers[0].weight, model, replace_fn=lambda w: 4 * w
    )
    x = np.float32([1, 0, 1, 1])
    values = measured(np.tile(x, (40, 1)), model, k=2000)
    expected = reference.log_evidence(model, x)
    # The bound is below by var(w) / (2 k p^2) < 10^-4.
    assert_mean(values, expected, error_at_most=0.004)


def test_invalid_arguments_raise_user_errors():
    for examples, options, message in [
        (EXAMPLES[:0], {}, "no examples"),
        (EXAMPLES, {"k": 0}, "k is 0"),
        (EXAMPLES, {"k": 3 * 10**9}, "k is 3000000000; .*at most 2147483398"),
        (EXAMPLES, {"batch_size": 0}, "batch_size is 0"),
        (EXAMPLES, {"chunk_size": -1}, "chunk_size is -1"),
    ]:
        with pytest.raises(UserError, match=message):
            measured(examples, **options)


def test_nan_error_names_the_example(monkeypatch):
    monkeypatch.setattr("iwae.evaluation.examples.SLAB_ROWS", 14)  # two examples per device
    examples = EXAMPLES.copy()
    examples[9, 1] = np.nan
    with pytest.raises(FloatingPointError, match="example 9 is not a number"):
        measured(examples, batch_size=1)


# Layers and units


def make(latent=(3, 2), hidden=((4,), (3,)), *, n_data=5, seed=0, **options):
    """Return a VAE with noise on every parameter."""
    model = VAE(n_data, latent, hidden, key=jax.random.key(seed), **options)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    rng = np.random.default_rng(seed)
    noisy = jax.tree.map(
        lambda p: jnp.asarray(p + np.float32(rng.normal(0, 0.4, p.shape))),
        jax.tree.map(np.asarray, params),
    )
    return eqx.combine(noisy, static)


def binary(n, d=5, seed=3):
    return np.random.default_rng(seed).integers(0, 2, (n, d)).astype(np.uint8)


def test_layer_terms_decompose_the_elbo():
    model, x, key = make(), np.float32(binary(1)[0]), jax.random.key(0)
    terms = eqx.filter_jit(elbo_terms(6))(model, x, key)
    z, log_w = eqx.filter_jit(importance_particles)(model, x, jax.random.clone(key), 6)[0]
    log_q, log_p = np.array(reference.layer_log_q(model, x, z)), reference.layer_log_p(model, z)
    reconstruction = reference.log_likelihood(model, x, z[0]).mean()
    assert terms["kl"] == pytest.approx((log_q - log_p).mean(1), rel=1e-4)
    assert terms["reconstruction"] == pytest.approx(reconstruction, rel=1e-5)
    parts = float(terms["reconstruction"] - terms["kl"].sum())
    assert log_w.mean() == pytest.approx(parts, rel=1e-5)


def linear_two_layer():
    """h_1 ~ N(A x + a, 1.5^2) and E[h_2|h_1] = B h_1 + b, so that E_q[h_2|x] is known."""
    model = make((3, 2), ((), ()))
    return eqx.tree_at(
        lambda m: (m.encoder[0].log_scale.weight, m.encoder[0].log_scale.bias),
        model,
        (jnp.zeros((5, 3)), jnp.full(3, jnp.log(1.5))),
    )


def test_variances_of_posterior_means_exclude_estimation_noise():
    model, x = linear_two_layer(), binary(3000)
    first = reference.gaussian(model.encoder[0], x)[0]
    above = reference.gaussian(model.encoder[1], first)[0]
    noise = 1.5**2 * (np.float64(model.encoder[1].loc.weight) ** 2).sum(0)  # of one draw
    result = active_units(model, x, jax.random.key(0), samples=4)
    assert (result.n, result.samples, result.threshold) == (3000, 4, 0.01)
    assert result.variances[0] == pytest.approx(first.var(0), rel=1e-5)
    # The error of a variance of n values, of which a part is noise of variance noise / 4.
    error = 2 * np.sqrt((above.var(0) + noise / 4) ** 2 / 3000)
    assert (abs(result.variances[1] - above.var(0)) < STANDARD_ERRORS * error).all()
    assert (noise / 4 > STANDARD_ERRORS * error).any()  # leaving the noise in would be detected
    authors = authors_active_units(model, x, jax.random.key(1))
    assert (authors.n, authors.samples) == (500, 1)
    assert authors.variances[0] == pytest.approx(first[:500].var(0), rel=1e-5)
    assert authors.variances[1] == pytest.approx(above[:500].var(0) + noise, rel=0.4)
    assert (authors.variances[1] > above.var(0) + noise / 2).all()


def noise_left_in(slab):
    first, square, noise = moment_sums(slab)
    return first, square, [0 * n for n in noise]


def second_moments(slab):
    first, square, noise = moment_sums(slab)
    return [0 * f for f in first], square, noise


def draws_for_means(samples, **_):  # noqa: ARG001
    def fn(model, x, key):
        z = model.posterior(x).sample(key)
        return list(z), [jnp.zeros_like(h) for h in z]

    return fn


moment_sums = units._moment_sums
FAULTS = {
    "noise left in": ("_moment_sums", noise_left_in),
    "second moments instead of variances": ("_moment_sums", second_moments),
    "draws instead of posterior means": ("_posterior_means", draws_for_means),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_variance_fault_is_detected(monkeypatch, fault):
    monkeypatch.setattr(units, *FAULTS[fault])
    with pytest.raises(AssertionError):
        test_variances_of_posterior_means_exclude_estimation_noise()


def test_units_independent_of_the_data_are_inactive(monkeypatch):
    model = linear_two_layer()
    weight = model.encoder[0].loc.weight.at[:, 1].set(0)
    model = eqx.tree_at(lambda m: m.encoder[0].loc.weight, model, weight)
    result = active_units(model, binary(50), jax.random.key(0))
    assert result.counts == (2, 2)
    assert result.variances[0][1] == 0
    assert [mask.tolist() for mask in result.masks] == [[True, False, True], [True, True]]
    monkeypatch.setattr("iwae.evaluation.examples.SLAB_ROWS", 16)  # many slabs: the sums are merged
    again = active_units(model, binary(50), jax.random.key(0), threshold=1e9)
    assert again.counts == (0, 0)
    for one, many in zip(result.variances, again.variances, strict=True):
        assert many == pytest.approx(one, rel=1e-4, abs=1e-9)


def test_models_without_layers_are_a_user_error():
    for use in (
        lambda model: active_units(model, EXAMPLES, jax.random.key(0)),
        lambda model: prune(model, [np.ones(2, bool)]),
        lambda model: elbo_terms(1)(model, jnp.asarray(EXAMPLES[0]), jax.random.key(0)),
    ):
        with pytest.raises(UserError, match=r"LinearGaussian has no stochastic layers.*iwae\.VAE"):
            use(LinearGaussian.random())


# Pruning

PRUNED = {
    "one layer": ((4,), ((3,),), ["1010"]),
    "one layer, no hidden": ((4,), ((),), ["0110"]),
    "two layers": ((4, 3), ((3,), (5,)), ["1011", "010"]),
    "three layers": ((3, 4, 2), ((3,), (), (2,)), ["101", "0110", "01"]),
    "no unit at the top": ((4, 3), ((3,), (5,)), ["1011", "000"]),
    "no unit in the middle": ((3, 4, 2), ((3,), (), (2,)), ["110", "0000", "11"]),
    "no unit above, no hidden": ((3, 2), ((), ()), ["011", "00"]),
}


def log_weight_with_units_at_zero(model, keep, x, z):
    """Return log p(x, z) - log q(z|x) with dropped units at 0 and without their factors."""
    z = [np.where(mask, h, 0.0) for mask, h in zip(keep, z, strict=True)]
    log_p = reference.log_likelihood(model, x, z[0])
    for l, (mask, net) in enumerate(zip(keep, model.encoder, strict=True)):
        q = reference.gaussian(net, x if l == 0 else z[l - 1])
        above = model.prior_nets[l : l + 1]
        p = (
            reference.gaussian(above[0], z[l + 1])
            if above
            else (np.zeros(len(mask)), np.ones(len(mask)))
        )
        log_p += reference.log_normal(z[l][mask], (p[0][mask], p[1][mask]))
        log_p -= reference.log_normal(z[l][mask], (q[0][mask], q[1][mask]))
    return log_p


@pytest.mark.parametrize("case", quick(PRUNED, "three layers", "no unit at the top"))
def test_pruned_model_is_the_model_with_units_fixed_at_zero(case):
    latent, hidden, masks = PRUNED[case]
    model, x = make(latent, hidden, seed=1), binary(1)[0]
    before = jax.tree.map(np.array, model)
    keep = [np.array([c == "1" for c in mask]) for mask in masks]
    small = prune(model, keep)
    kept = [m for l, m in enumerate(keep) if all(other.any() for other in keep[: l + 1])]
    assert small.latent_sizes == tuple(m.sum() for m in kept)
    assert small.hidden_sizes == hidden[: len(kept)]
    assert equal(model, before)

    @eqx.filter_jit
    def draw(small, x):
        q = small.posterior(x)
        z = q.sample(jax.random.key(5))
        return z, small.log_joint(x, z) - q.log_prob(z)

    z, log_w = draw(small, jnp.float32(x))
    full = [np.zeros(d) for d in latent]
    for h, mask, part in zip(full, kept, z, strict=False):
        h[mask] = part
    if len(kept) < len(keep):  # the new top layer is standardised by its prior given zeros
        top = len(kept) - 1
        mean, sd = reference.gaussian(model.prior_nets[top], np.zeros(latent[top + 1]))
        full[top] = mean + sd * full[top]
        # A layer without units has no factors, nor have the layers above it.
        keep = [*kept, *(np.zeros(d, bool) for d in latent[len(kept) :])]
    expected = log_weight_with_units_at_zero(model, keep, x, full)
    assert log_w == pytest.approx(expected, rel=1e-4)


def test_pruning_no_units_leaves_the_model_unchanged():
    model = make()
    assert equal(prune(model, [np.ones(3, bool), np.ones(2, bool)]), model)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (["111"], r"sizes \(3,\) do not fit latent sizes \(3, 2\)"),
        (["11", "11"], r"sizes \(2, 2\) do not fit"),
        (["000", "11"], "no unit of the first layer"),
    ],
)
def test_invalid_masks_raise_user_errors(masks, message):
    with pytest.raises(UserError, match=message):
        prune(make(), [np.array([c == "1" for c in mask]) for mask in masks])
