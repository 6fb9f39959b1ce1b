"""Bernoulli and categorical latents, checked exactly by enumeration."""

from functools import partial
from itertools import combinations_with_replacement, product

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from expectations import BITS, assert_close, join_gradients
from iwae.errors import UserError
from iwae.evaluation.bdmc import bidirectional_bounds
from iwae.evaluation.posterior import posterior_grid
from iwae.evaluation.pruning import prune
from iwae.evaluation.units import active_units
from iwae.inference.annealing import annealed_particles, annealing_path
from iwae.inference.log_weights import log_share_of_others
from iwae.inference.particles import importance_particles
from iwae.inference.temperatures import linear_schedule
from iwae.inference.tuning import tune_step_size
from iwae.models.conditional import ConditionalVAE
from iwae.models.vae import VAE, LayeredPosterior
from iwae.objectives import particle_objectives, score_function
from iwae.objectives.bounds import elbo, iwae, renyi
from iwae.objectives.building import build_gradient_estimator, build_reduction, objective
from iwae.objectives.compatibility import check_compatibility, compatible_gradients
from iwae.objectives.declaration import Declaration
from iwae.objectives.particle_objectives import bound
from iwae.objectives.score_function import score_function_signal
from iwae.testing import check_latent_model
from reference import STANDARD_ERRORS

TOLERANCE = 1e-3
"""Relative error of a parameter group's gradient: rounding only."""


def model_of(latents, sizes, hidden=()):
    """Return a model of four bits that is neither symmetric nor at an optimum."""
    made = VAE(4, sizes, (hidden,) * len(sizes), latents=latents, key=jax.random.key(1))
    return jax.tree.map(
        lambda leaf: leaf + jnp.linspace(-0.7, 0.5, leaf.size) if leaf.ndim == 1 else 1.5 * leaf,
        made,
    )


BELIEF = model_of("bernoulli", (3, 3, 3))
SMALL = model_of(("categorical:3", "bernoulli", "bernoulli"), (1, 1, 1))
DEEP = model_of("bernoulli", (2, 1), hidden=(3,))


def every_z(model):
    """Return all values of z, a leaf `[N, width]` for each layer."""
    layers = []
    for kind, units in zip(model.latents, model.latent_sizes, strict=True):
        values = np.eye(kind.categories) if kind.categories else np.array([[0.0], [1.0]])
        layers.append([np.concatenate(one) for one in product(values, repeat=units)])
    return tuple(jnp.float32(np.stack(leaf)) for leaf in zip(*product(*layers), strict=True))


@eqx.filter_jit
def densities(model, z, x=BITS):
    """log p(x, z) and log q(z|x) of each z, `[N]`."""
    q = model.posterior(x)
    return jax.vmap(partial(model.log_joint, x))(z), jax.vmap(q.log_prob)(z)


def log_evidence(model):
    return float(jax.nn.logsumexp(densities(model, every_z(model))[0]))


# Models


@pytest.mark.parametrize("model", [BELIEF, SMALL, DEEP])
def test_densities_sum_to_one(model):
    z = every_z(model)
    assert jnp.exp(densities(model, z)[1]).sum() == pytest.approx(1, abs=1e-5)
    xs = jnp.float32(list(product([0, 1], repeat=4)))
    log_joint = jnp.stack([densities(model, z, x)[0] for x in xs])
    assert jnp.exp(log_joint).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model", [SMALL, model_of(("bernoulli", "normal"), (2, 2), hidden=(3,))])
def test_discrete_models_satisfy_the_contract(model):
    check_latent_model(model, BITS, jax.random.key(0), draws=4000)


def test_draw_frequencies_match_the_density():
    z, n = every_z(SMALL), 20_000
    keys = jax.random.split(jax.random.key(0), n)
    drawn = jax.jit(jax.vmap(SMALL.posterior(BITS).sample))(keys)
    hits = jnp.all(flatten(drawn)[:, None] == flatten(z)[None], axis=2)
    assert_frequencies(hits.mean(axis=0), jnp.exp(densities(SMALL, z)[1]), n)


def flatten(z):
    return jnp.concatenate(z, axis=1)


def assert_frequencies(frequencies, probabilities, n):
    probabilities = np.float64(probabilities) / np.float64(probabilities).sum()
    error = np.sqrt(probabilities * (1 - probabilities) / n)
    assert (np.abs(np.float64(frequencies) - probabilities) < STANDARD_ERRORS * error).all()


# Gradients: expectations over all draws


@pytest.fixture
def estimator_mean(monkeypatch):
    """Return a function (objective, model, k) -> mean gradient over all draws of k particles."""
    now = {}

    def sample(_, key):
        return jax.tree.map(lambda leaf: leaf[jax.random.key_data(key)[1]], now["z"])

    monkeypatch.setattr(LayeredPosterior, "sample", sample)
    monkeypatch.setattr(particle_objectives, "particle_keys", lambda *_: now["keys"])

    def estimator_mean(maximised, model, k):
        now["z"] = every_z(model)
        draws = gradient_draws(model, k)
        probabilities = jnp.exp(densities(model, now["z"])[1][draws].sum(axis=1))

        def value(model, index):
            data = jnp.stack([jnp.zeros_like(index), index], axis=1).astype(jnp.uint32)
            now["keys"] = jax.random.wrap_key_data(data)
            return maximised(model, BITS, jax.random.key(0))

        def mean(model):
            return jnp.sum(probabilities * jax.vmap(partial(value, model))(draws))

        return flat_gradient(mean, model)

    return estimator_mean


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["sleep", "both"])
def test_sleep_phase_gradient_is_exact(estimator_mean, monkeypatch, phase):
    """The expectation runs over all z and x that the model generates."""
    z, k, now = every_z(DEEP), 2, {}
    xs = jnp.float32(list(product([0, 1], repeat=4)))
    monkeypatch.setattr(VAE, "sample", lambda *_: now["dream"])

    def over_dreams(f):
        def mean(model):
            log_p = jnp.stack([densities(DEEP, z, x)[0] for x in xs])
            each = jnp.stack([jax.vmap(partial(f, model, x))(z) for x in xs])
            return jnp.sum(jnp.exp(log_p) * each)

        return mean

    def dreamt(model, x, key):
        def value(model, seen, one):
            now["dream"] = one, seen
            return objective("rws", k, phase=phase)(model, x, jax.random.clone(key))

        return over_dreams(value)(model)

    def log_q(model, x, one):
        return model.posterior(x).log_prob(one)

    asleep = flat_gradient(over_dreams(log_q), DEEP)
    awake = wake_phi(DEEP, k) if phase == "both" else asleep
    expected = join_gradients(
        exact_gradient(bound_of_densities(iwae), DEEP, k), (asleep + awake) / 2, DEEP
    )
    assert_close(estimator_mean(dreamt, DEEP, k), expected, DEEP, TOLERANCE)


def gradient_draws(model, k):
    """Return all draws of k particles as indices into `every_z`, `[N^k, k]`."""
    n = len(every_z(model)[0])
    return jnp.asarray(list(product(range(n), repeat=k)))


def flat_gradient(f, model):
    return np.float64(ravel_pytree(eqx.filter_jit(eqx.filter_grad(f))(model))[0])


def exact_gradient(f, model, k):
    """Return the gradient of E[f(log p, log q)] over k draws of q, their probabilities included."""
    z, draws = every_z(model), gradient_draws(model, k)

    def mean(model):
        log_p, log_q = densities(model, z)
        values = jax.vmap(f)(log_p[draws], log_q[draws])
        return jnp.sum(jnp.exp(log_q[draws].sum(axis=1)) * values)

    return flat_gradient(mean, model)


def bound_of_densities(reduction):
    return lambda log_p, log_q: reduction(log_p - log_q)


def wake_phi(model, k):
    """E[sum_i w_i grad log q(z_i|x)] over all draws, which are held fixed."""
    z, draws = every_z(model), gradient_draws(model, k)
    log_p, log_q = (density[draws] for density in densities(model, z))
    weights = jnp.exp(log_q.sum(axis=1))[:, None] * jax.nn.softmax(log_p - log_q, axis=1)

    def mean(model):
        return jnp.sum(weights * densities(model, z)[1][draws])

    return flat_gradient(mean, model)


@pytest.mark.parametrize(
    ("model", "k"),
    [pytest.param(SMALL, 3, marks=pytest.mark.slow), pytest.param(DEEP, 2)],
    ids=["linear", "hidden"],
)
def test_vimco_and_ovis_gradients_are_exact(estimator_mean, model, k):
    iwae_gradient, phi = exact_gradient(bound_of_densities(iwae), model, k), wake_phi(model, k)
    for gradient in ("vimco", "vimco-arithmetic", "vimco-star"):
        result = estimator_mean(objective("iwae", k, gradient=gradient), model, k)
        assert_close(result, iwae_gradient, model, TOLERANCE)
    result = estimator_mean(objective("iwae", k, gradient="ovis", gamma=0.3), model, k)
    mixed = join_gradients(iwae_gradient, iwae_gradient + 0.3 * phi, model)
    assert_close(result, mixed, model, TOLERANCE)
    with pytest.raises(AssertionError):
        assert_close(mixed, iwae_gradient, model, TOLERANCE)
    awake = join_gradients(iwae_gradient, phi, model)
    assert_close(estimator_mean(objective("rws", k), model, k), awake, model, TOLERANCE)


@pytest.mark.slow
def test_vimco_gradient_is_exact_in_a_three_layer_belief_network(estimator_mean):
    expected = exact_gradient(bound_of_densities(iwae), BELIEF, 2)
    result = estimator_mean(objective("iwae", 2, gradient="vimco"), BELIEF, 2)
    assert_close(result, expected, BELIEF, TOLERANCE)


OTHERS = {
    "elbo": ({"gradient": "reinforce"}, elbo),
    "ciwae": ({"gradient": "vimco", "beta": 0.3}, lambda w: 0.3 * elbo(w) + 0.7 * iwae(w)),
    "vr-iwae": ({"gradient": "vimco", "alpha": 0.4}, partial(renyi, alpha=0.4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["elbo", "ciwae", "vr-iwae"])
def test_gradients_of_other_bounds_are_exact(estimator_mean, name):
    options, reduction = OTHERS[name]
    expected = exact_gradient(bound_of_densities(reduction), SMALL, 3)
    assert_close(
        estimator_mean(objective(name, 3, **options), SMALL, 3), expected, SMALL, TOLERANCE
    )


@pytest.mark.slow
def test_gradients_of_grouped_bounds_are_exact(estimator_mean):
    few, many = (exact_gradient(bound_of_densities(iwae), DEEP, k) for k in (2, 4))
    result = estimator_mean(objective("miwae", 2, m=2, gradient="vimco"), DEEP, 4)
    assert_close(result, few, DEEP, TOLERANCE)
    result = estimator_mean(objective("piwae", 2, m=2, gradient="vimco-arithmetic"), DEEP, 4)
    assert_close(result, join_gradients(many, few, DEEP), DEEP, TOLERANCE)


ESTIMATORS = (
    Declaration("iwae", gradient="vimco"),
    Declaration("iwae", gradient="vimco-arithmetic"),
    Declaration("iwae", gradient="vimco-star"),
    Declaration("iwae", gradient="ovis", gamma=0.3),
    Declaration("ciwae", gradient="vimco", beta=0.3),
    Declaration("vr-iwae", gradient="vimco", alpha=0.4),
    Declaration("elbo", gradient="reinforce"),
)


@pytest.mark.slow
@pytest.mark.parametrize("declared", ESTIMATORS, ids=lambda d: f"{d.objective}-{d.gradient}")
@pytest.mark.parametrize("k", [2, 3])
def test_every_estimator_is_exact_in_a_three_layer_belief_network(k, declared):
    """Average each particle's coefficients over all draws of the other particles."""
    z = every_z(BELIEF)
    log_p, log_q = densities(BELIEF, z)
    probabilities = k * jnp.exp(log_q)

    def gradient(of_p, of_q):
        def weighted(model):
            parts = zip((of_p, of_q), densities(model, z), strict=True)
            return sum(jnp.sum(probabilities * of * log_density) for of, log_density in parts)

        return flat_gradient(weighted, BELIEF)

    result = mean_over_others(partial(coefficients, declared), log_p - log_q, log_q, k)
    value, a, weight, decoder, score = result
    expected = gradient(a, value - a + (declared.gamma or 0.0) * weight)
    assert_close(gradient(decoder, -score), expected, BELIEF, TOLERANCE)
    with pytest.raises(AssertionError, match="encoder"):
        assert_close(gradient(decoder, -0.98 * score), expected, BELIEF, TOLERANCE)


def coefficients(declared, log_w):
    """Return the bound, the first particle's derivative and weight, and its coefficients."""
    reduction = build_reduction(declared)
    decoder, _, score = build_gradient_estimator(declared).coefficients(reduction, log_w)
    value, a = jax.value_and_grad(reduction)(log_w)
    return value, a[0], jax.nn.softmax(log_w)[0], decoder[0], score[0]


def mean_over_others(f, log_w, log_q, k):
    """E[f(log weights of k draws)] for each z as the first draw, over all draws of the others."""
    others = jnp.asarray(list(combinations_with_replacement(range(len(log_w)), k - 1)))
    orders = 1 + jnp.sum(jnp.diff(others) > 0, axis=1)  # for at most two others
    probabilities = jnp.float32(orders) * jnp.exp(log_q[others].sum(axis=1))

    @jax.jit
    def of_first(first):
        drawn = jnp.concatenate([jnp.full((len(others), 1), first), log_w[others]], axis=1)
        return jax.tree.map(lambda values: probabilities @ values, jax.vmap(f)(drawn))

    return jax.tree.map(lambda *each: jnp.stack(each), *(of_first(first) for first in log_w))


FAULTS = {
    "index of the left-out particle": (
        "log_sum_of_other_weights",
        lambda right: lambda log_w: jnp.roll(right(log_w), 1),
    ),
    "baseline over all particles": (
        "log_sum_of_other_weights",
        lambda _: lambda log_w: jnp.full_like(log_w, jax.nn.logsumexp(log_w)),
    ),
    "mean over all particles": (
        "mean_of_others",
        lambda _: lambda log_w, _: jnp.full_like(log_w, log_w.mean()),
    ),
    "sign of the signal": ("score_function_signal", lambda right: lambda *args: -right(*args)),
    "no correction for the particle's weight": (
        "score_function_signal",
        lambda right: lambda f, log_w, mean: right(f, log_w, mean) + jax.grad(f)(log_w),
    ),
}


QUICK = "index of the left-out particle"


@pytest.mark.parametrize(
    "fault",
    [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS],
)
def test_planted_signal_fault_is_detected(estimator_mean, monkeypatch, fault):
    expected = exact_gradient(bound_of_densities(iwae), DEEP, 2)
    name, plant = FAULTS[fault]
    monkeypatch.setattr(score_function, name, plant(getattr(score_function, name)))
    result = estimator_mean(bound(iwae, k=2, estimator=score_function.vimco()), DEEP, 2)
    with pytest.raises(AssertionError, match="encoder"):
        assert_close(result, expected, DEEP, TOLERANCE)


# Learning signals


@pytest.mark.parametrize(
    "log_w", [[-100.0, -103.0, -90.0, -101.5], [-5.0, -900.0, -2000.0, -800.0]]
)
def test_signal_replaces_one_weight_at_a_time(log_w):
    w = np.float64(log_w)
    for mean in ("geometric", "arithmetic"):
        expected = []
        for i in range(4):
            others = np.delete(w, i)
            arithmetic = np.logaddexp.reduce(others) - np.log(3)
            middle = others.mean() if mean == "geometric" else arithmetic
            replaced = np.append(others, middle)
            expected.append(np.logaddexp.reduce(w) - np.logaddexp.reduce(replaced))
        assert score_function_signal(iwae, jnp.float32(log_w), mean) == pytest.approx(
            expected, rel=1e-4, abs=1e-4
        )


def test_share_of_others_is_accurate_for_small_and_large_weights():
    log_w = np.random.default_rng(0).normal(-300, 2, 1000)
    log_w[:2] = -250, -400
    w = np.exp(log_w - np.logaddexp.reduce(log_w))
    result = np.float64(log_share_of_others(jnp.float32(log_w)))
    others = [np.logaddexp.reduce(np.delete(log_w, i)) for i in range(3)]
    assert result[:3] == pytest.approx(np.array(others) - np.logaddexp.reduce(log_w), rel=1e-4)
    assert result[3:] == pytest.approx(np.log1p(-w[3:]), rel=1e-3)


def test_custom_bound_has_the_signal_of_its_definition():
    log_w = jnp.float32([-3, -1, 0.5, -2])
    result = score_function_signal(jax.nn.logsumexp, log_w, "geometric")
    assert result == pytest.approx(
        np.asarray(score_function_signal(iwae, log_w, "geometric")), abs=1e-5
    )


def test_zero_weight_makes_the_geometric_mean_of_others_zero():
    log_w = jnp.float32([-3, -jnp.inf, -1])
    result = score_function_signal(iwae, log_w, "geometric")
    assert result[0] == pytest.approx(np.logaddexp(-3, -1) + 1, abs=1e-5)
    assert np.isfinite(result).all()


@pytest.mark.slow
def test_memory_is_linear_in_k():
    def temporary_bytes(k):
        f = jax.jit(lambda w: score_function_signal(iwae, w, "geometric"))
        return f.lower(jnp.zeros(k)).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(4000) < 8 * max(temporary_bytes(1000), 4000)


# Errors


def test_reparameterised_gradients_are_rejected_with_alternatives():
    for gradient in ("reparam", "stl", "dreg", "dreg-alpha", "gdreg"):
        alpha = 0.5 if gradient == "dreg-alpha" else None
        with pytest.raises(UserError, match="no gradient: use iwae with vimco"):
            check_compatibility(Declaration("iwae", 5, gradient, alpha=alpha), 3, discrete=True)
    for name in ("elbo-analytic", "dais", "aiwae", "vr-max"):
        with pytest.raises(UserError, match="bernoulli and categorical latents do not have: use"):
            check_compatibility(Declaration(name, 5), 1, discrete=True)
    assert check_compatibility(Declaration("iwae", 5), 3, discrete=True).gradient == "vimco"
    assert check_compatibility(Declaration("iwae", 5), 3).gradient == "reparam"
    assert compatible_gradients("rws", discrete=True) == ("score",)
    for maximised in (
        bound(iwae, k=2),
        objective("iwae", 2, gradient="gdreg"),
        objective("dais", 2),
    ):
        with pytest.raises(UserError, match="not reparameterised"):
            maximised(SMALL, BITS, jax.random.key(0))


def test_inapplicable_options_are_rejected():
    for given, message in (
        (Declaration("iwae", 1, "vimco"), "k of at least 2"),
        (Declaration("iwae", 5, "ovis"), "needs gamma"),
        (Declaration("iwae", 5, "ovis", gamma=2.0), "between 0 and 1"),
        (Declaration("iwae", 5, "vimco", gamma=0.5), "gamma does not apply"),
        (Declaration("iwae", 5, "vimco", backward=2), "backward does not work"),
        (Declaration("elbo", 5, "vimco"), "reinforce"),
        (Declaration("ciwae", 5, "ovis", beta=0.5, gamma=0.5), "iwae only"),
    ):
        with pytest.raises(UserError, match=message):
            check_compatibility(given)
    with pytest.raises(UserError, match="iwae only"):
        bound(elbo, k=2, estimator=score_function.ovis(1.0))(SMALL, BITS, jax.random.key(0))


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        ("bits", "no kind of latents 'bits'; known: normal, bernoulli, categorical:C"),
        ("categorical", "number of categories"),
        ("categorical:1", "at least 2"),
        ("bernoulli:3", "no kind"),
        (("bernoulli", "normal", "normal"), "names 3 kinds, but there are 2"),
    ],
)
def test_unknown_latent_kinds_are_rejected(latents, message):
    with pytest.raises(UserError, match=message):
        VAE(4, (2, 2), ((), ()), latents=latents, key=jax.random.key(0))


def test_posterior_grid_is_rejected_and_active_units_are_counted():
    with pytest.raises(UserError, match="continuous latents"):
        posterior_grid(model_of("bernoulli", (2,)), BITS, jax.random.key(0))
    data = np.uint8(list(product([0, 1], repeat=4)))
    result = active_units(SMALL, data, jax.random.key(0))
    means = np.stack([np.asarray(SMALL.posterior(jnp.float32(x)).first.mean) for x in data])
    assert [len(one) for one in result.variances] == [1, 1, 1]
    assert result.means[0] == pytest.approx(means.mean(axis=0), rel=1e-4)
    assert result.variances[0] == pytest.approx(means.var(axis=0).max(), rel=1e-4)


KEPT = {
    "some units": ([[1, 0, 1], [0, 1], [1, 0]], 3),
    "no unit at the top": ([[1, 0, 1], [0, 1], [0, 0]], 2),
}


@pytest.mark.parametrize("case", KEPT)
def test_pruning_fixes_units_at_their_means_and_drops_their_factors(case):
    """Densities are linear in a unit, so they are defined at its mean too."""
    model = model_of(("bernoulli", "categorical:3", "bernoulli"), (3, 2, 2), hidden=(3,))
    masks, n = KEPT[case]
    keep = [np.array(mask, bool) for mask in masks]
    wide = [np.repeat(mask, one.width) for mask, one in zip(keep, model.latents, strict=True)]
    rng = np.random.default_rng(0)
    means = [rng.uniform(0.1, 0.9, mask.size) for mask in wide]
    small = prune(model, keep, means)
    z = tuple(jnp.float32(rng.integers(0, 2, mask.sum())) for mask in wide)
    pairs = zip(z, wide, means, strict=True)
    full = tuple(jnp.float32(mean).at[mask].set(h) for h, mask, mean in pairs)

    def kept_log_density(layers):
        """Return the log density of the kept units of the remaining layers."""
        total = 0.0
        for p, h, mask in list(zip(layers, full, wide, strict=True))[:n]:
            logits = p.logits.ravel() if hasattr(p, "logits") else p.base_dist.logits
            terms = h * logits - (0.0 if hasattr(p, "logits") else jnp.logaddexp(0.0, logits))
            total += jnp.sum(jnp.where(mask, terms, 0.0))
        return float(total)

    expected = float(model.log_likelihood(BITS, full)) + kept_log_density(model.priors(full))
    assert float(small.log_joint(BITS, z[:n])) == pytest.approx(expected, rel=1e-4)
    result = small.posterior(BITS).log_prob(z[:n])
    assert float(result) == pytest.approx(
        kept_log_density(model.posterior(BITS).layers(full)), rel=1e-4
    )
    assert small.latent_sizes == tuple(int(mask.sum()) for mask in keep[:n])
    with pytest.raises(UserError, match="fixed at their means, which layer 1 needs with shape"):
        prune(model, keep)
    labelled = ConditionalVAE(model, 2, learned_prior=True)
    labelled = eqx.tree_at(lambda m: m.tops, labelled, jnp.float32([[0, 1], [2, 3]]))
    both = prune(labelled, keep, means)
    for y in jnp.eye(2):
        one, other = both.given(y), prune(labelled.given(y), keep, means)
        assert one.log_joint(BITS, z[:n]) == pytest.approx(float(other.log_joint(BITS, z[:n])))


def test_discrete_top_layer_has_a_prior_per_label():
    model = ConditionalVAE(SMALL, 3, learned_prior=True)
    assert model.tops.shape == (3, 1)
    model = eqx.tree_at(lambda m: m.tops, model, jnp.float32([[0], [1], [2]]))
    for label, y in enumerate(jnp.eye(3)):
        assert model.given(y).prior().mean == pytest.approx(1 / (1 + np.exp(-label)))


# Likelihoods


def test_importance_weights_of_a_belief_network_are_unbiased():
    run = jax.jit(lambda key: importance_particles(BELIEF, BITS, key, 20_000)[0].log_w)
    assert_unbiased(run(jax.random.key(0)), BELIEF)


def assert_unbiased(log_w, model):
    """Assert that the mean of w / p(x) is one within its standard error, which is small."""
    ratios = np.exp(np.float64(log_w) - log_evidence(model))
    error = ratios.std() / np.sqrt(len(ratios))
    assert error < 0.05
    assert abs(ratios.mean() - 1) < STANDARD_ERRORS * error


SCHEDULE = {"betas": linear_schedule(6), "step_size": 0.8, "n_leapfrog": 2}


@pytest.mark.slow
@pytest.mark.parametrize("start", ["posterior", "prior"])
def test_annealed_weights_of_a_belief_network_are_unbiased_and_less_variable(start):
    run = jax.jit(lambda key: annealed_particles(BELIEF, BITS, key, 4000, **SCHEDULE, start=start))
    particles, info = run(jax.random.key(1))
    assert_unbiased(particles.log_w, BELIEF)
    assert particles.log_w.std() < 0.9 * info["start_log_w"].std()
    assert ((info["acceptance"] > 0.1) & (info["acceptance"] < 0.999)).all()
    at_ends = jnp.all(flatten(particles.z)[:, None] == flatten(every_z(BELIEF))[None], axis=2)
    assert at_ends.any(axis=1).all()  # moves keep bits binary


@pytest.mark.parametrize(
    "model",
    [pytest.param(DEEP, marks=pytest.mark.slow), pytest.param(SMALL)],
    ids=["bits", "categories"],
)
def test_moves_leave_the_density_invariant(model):
    z, n, beta = every_z(model), 20_000, jnp.float32(0.6)
    log_p, log_q = densities(model, z)
    log_f = (1 - beta) * log_q + beta * log_p
    start = jax.random.categorical(jax.random.key(0), log_f, shape=(n,))
    moved, acceptance = _moves(model, flatten(z)[start], beta)
    hits = jnp.all(moved[:, None] == flatten(z)[None], axis=2)
    assert_frequencies(hits.mean(axis=0), jnp.exp(log_f - log_f.max()), n)
    assert 0.2 < acceptance < 0.99
    assert (moved != flatten(z)[start]).any(axis=1).mean() > 0.1


@eqx.filter_jit
def _moves(model, z, beta):
    path = annealing_path(model, BITS, "posterior")

    def one(z, key):
        options = {"beta": beta, "step_size": jnp.float32(1.0), "n_leapfrog": 1}
        return path.move(key, z, path.evaluate(z), path.evaluate, **options)

    keys = jax.random.split(jax.random.key(1), len(z))
    moved, _, acceptance = jax.vmap(one)(z, keys)
    return moved, acceptance.mean()


@pytest.mark.slow
def test_moves_with_a_normal_layer_leave_moments_invariant():
    model, n = model_of(("bernoulli", "normal"), (2, 1), hidden=(3,)), 20_000
    drawn = jax.vmap(model.sample)(jax.random.split(jax.random.key(0), n))

    def one(z, x, key):
        path = annealing_path(model, x, "posterior")
        flat = jnp.concatenate(z)
        options = {"beta": jnp.float32(1), "step_size": jnp.float32(1.0), "n_leapfrog": 2}
        return path.move(key, flat, path.evaluate(flat), path.evaluate, **options)[::2]

    keys = jax.random.split(jax.random.key(1), n)
    moved, acceptance = jax.jit(jax.vmap(one))(*drawn, keys)
    before = jax.vmap(jnp.concatenate)(drawn[0])
    assert 0.2 < acceptance.mean() < 0.99
    for f in (lambda z: z, lambda z: z**2, lambda z: z[:, :1] * z[:, 2:]):
        change = np.float64(f(moved) - f(before))
        error = change.std(axis=0) / np.sqrt(n)
        assert (np.abs(change.mean(axis=0)) < STANDARD_ERRORS * error).all()
        assert (change.std(axis=0) > 0.05).all()


@pytest.mark.slow
def test_bidirectional_bounds_enclose_the_likelihood():
    sizes = tune_step_size(
        SMALL,
        np.uint8(list(product([0, 1], repeat=4))),
        jax.random.key(0),
        betas=SCHEDULE["betas"],
        n_leapfrog=2,
        chains=4,
    )
    assert np.isfinite(sizes).all()
    options = {**SCHEDULE, "step_size": sizes}
    run = jax.jit(jax.vmap(lambda key: bidirectional_bounds(SMALL, key, 16, **options)))
    result = run(jax.random.split(jax.random.key(2), 200))
    gap = np.float64(result["upper"] - result["lower"])
    assert gap.mean() > 0
    assert gap.mean() < 0.2
