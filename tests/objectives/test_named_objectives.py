"""Named objectives: identities, annealing, penalties, incompatible options and training."""

import re
from functools import cache, partial
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

import small
from cases import quick, quick_rows
from iwae.errors import UserError
from iwae.inference.particles import importance_particles, particle_keys
from iwae.models.vae import VAE
from iwae.objectives import dais
from iwae.objectives.aiwae import LARGEST_STEP, LEAST_STEP, adapt_aiwae_step_sizes
from iwae.objectives.bounds import ciwae, elbo, iwae, miwae, renyi, vr_max
from iwae.objectives.building import build_objective, objective
from iwae.objectives.compatibility import check_compatibility
from iwae.objectives.declaration import DEFAULTS, GRADIENTS, OBJECTIVES, Declaration
from iwae.objectives.objective import Extra
from iwae.objectives.particle_objectives import bound
from iwae.objectives.penalties import Penalty
from iwae.objectives.tvo import tvo, tvo_integrand, tvo_moment_betas, tvo_schedule
from iwae.objectives.wake_sleep import rws
from iwae.runs import start_and_resume
from iwae.runs.jobs import make_job
from iwae.runs.metrics import read_metrics
from iwae.runs.start_and_resume import resume_run, start_run
from iwae.testing import LinearGaussian
from iwae.training import loop
from iwae.training.optimizers import adam
from reference import assert_mean, equal

X = jnp.float32([2.0, -0.5, 0.3])


def weights(m, k=1, seed=0):
    return jnp.float32(np.random.default_rng(seed).normal(size=m * k) * 4)


def assert_same_bound(one, other, log_w):
    """Assert that two bounds have equal values and equal gradients in every weight."""
    a, b = (jax.jit(jax.value_and_grad(f))(log_w) for f in (one, other))
    assert float(a[0]) == pytest.approx(float(b[0]), rel=1e-5, abs=1e-5)
    assert np.asarray(a[1]) == pytest.approx(np.asarray(b[1]), abs=1e-5)


# Identities of bounds


@pytest.mark.parametrize("k", quick([1, 4], 4))
def test_special_cases_of_bounds_agree(k):
    log_w = weights(k)
    assert_same_bound(partial(miwae, m=1), iwae, log_w)
    assert_same_bound(partial(miwae, m=k), elbo, log_w)
    assert_same_bound(partial(ciwae, beta=1.0), elbo, log_w)
    assert_same_bound(partial(ciwae, beta=0.0), iwae, log_w)
    assert_same_bound(partial(renyi, alpha=0.0), iwae, log_w)
    assert_same_bound(partial(renyi, alpha=1.0), elbo, log_w)
    assert_same_bound(partial(tvo, betas=(0.0, 1.0)), elbo, log_w)
    for schedule in ("linear", "log", "moments"):
        assert_same_bound(partial(tvo, betas=tvo_schedule(schedule, 2)), elbo, log_w)
    for near in (1e-2, 1e-4, 1e-6, 1e-8):  # to first order, the variance of the log weights
        expected = float(elbo(log_w)) + near * float(jnp.var(log_w)) / 2
        value, slope = jax.jit(jax.value_and_grad(partial(renyi, alpha=1 - near)))(log_w)
        assert value == pytest.approx(expected, abs=30 * near**1.5 + 1e-5)
        assert np.asarray(slope) == pytest.approx(1 / k, abs=20 * near + 1e-5)
    assert renyi(log_w, alpha=-1e3) == pytest.approx(float(vr_max(log_w)), abs=0.05)


@pytest.mark.parametrize(("m", "k"), quick_rows([(1, 3), (3, 1), (2, 3), (3, 2)], 2))
def test_miwae_is_the_mean_of_m_bounds_of_k(m, k):
    log_w = weights(m, k)
    groups = np.float64(log_w).reshape(m, k)
    expected = np.mean(logsumexp(groups, axis=1) - np.log(k))
    assert jax.jit(partial(miwae, m=m))(log_w) == pytest.approx(expected, rel=1e-5)


def test_every_sampled_bound_of_one_particle_is_the_log_weight():
    log_w = weights(1)
    bounds = (
        *(elbo, iwae, vr_max, partial(miwae, m=1), partial(ciwae, beta=0.3)),
        *(partial(renyi, alpha=0.3), partial(tvo, betas=(0.0, 0.2, 1.0))),
    )
    for one in bounds:
        assert_same_bound(one, lambda w: w[0], log_w)


def test_bounds_are_ordered():
    @jax.jit
    def bounds(log_w):
        middle = [renyi(log_w, alpha=a) for a in (0.9, 0.5, 0.1)]
        sums = [tvo(log_w, betas=tvo_schedule("linear", 9), upper=u) for u in (False, True)]
        return [elbo(log_w), *middle, iwae(log_w), vr_max(log_w)], sums

    chain, (left, right) = bounds(weights(6))
    assert all(a < b for a, b in pairwise(chain))
    assert chain[0] < left < chain[-2] < right


def test_tvo_sums_converge_to_the_iwae_bound():
    log_w = weights(6)
    gaps, between = [], float(jax.jit(iwae)(log_w))
    for temperatures in (5, 50, 500):
        betas = tvo_schedule("linear", temperatures)
        left, right = (
            float(jax.jit(partial(tvo, betas=betas, upper=u))(log_w)) for u in (False, True)
        )
        assert left < between < right
        gaps.append(right - left)
    assert gaps[1] == pytest.approx(gaps[0] / 12, rel=0.1)  # widths are in the ratio 49 : 4
    assert gaps[2] < 0.05


def test_moment_schedule_is_equally_spaced():
    log_w = weights(6)
    betas = jax.jit(tvo_moment_betas, static_argnums=1)(log_w, 5)
    moments = np.float64(jax.jit(tvo_integrand)(log_w, betas))
    assert np.diff(moments) == pytest.approx(np.full(4, (moments[-1] - moments[0]) / 4), rel=1e-3)
    assert (betas[0], betas[-1]) == (0, 1)


def test_zero_weight_keeps_bounds_without_the_elbo_finite():
    log_w = jnp.float32([0.0, -jnp.inf, 1.0])
    for one in (iwae, vr_max, partial(renyi, alpha=0.4)):
        value, slope = jax.jit(jax.value_and_grad(one))(log_w)
        assert np.isfinite(value)
        assert np.isfinite(slope).all()
    assert tvo(log_w, betas=(0.0, 0.5, 1.0)) == -jnp.inf  # it includes the ELBO


# Identities of objectives


def deep():
    return VAE(4, (3, 2), ((5,), (4,)), key=jax.random.key(1))


BITS = jnp.float32([1, 0, 1, 1])


def value_and_gradient(made, model=None, seed=3):
    """Return the value and the gradient."""
    key = jax.random.key(seed)
    return eqx.filter_jit(eqx.filter_value_and_grad(made))(model or deep(), BITS, key)


def assert_equal(result, expected, name=""):
    """Assert equal values and equal gradients, up to rounding."""
    (value, slope), (expected_value, expected_slope) = result, expected
    assert float(value) == pytest.approx(float(expected_value), rel=1e-5), name
    for x, y in zip(jax.tree.leaves(slope), jax.tree.leaves(expected_slope), strict=True):
        assert np.asarray(x) == pytest.approx(np.asarray(y), abs=2e-4, rel=1e-4), name


def assert_same(one, other):
    assert_equal(value_and_gradient(one), value_and_gradient(other))


SAME = {
    "miwae with one group": (("miwae", 3, {"m": 1}), ("iwae", 3, {})),
    "miwae with groups of one": (("miwae", 1, {"m": 4}), ("elbo", 4, {})),
    "piwae with one group": (("piwae", 3, {"m": 1}), ("iwae", 3, {})),
    "ciwae with beta 1": (("ciwae", 3, {"beta": 1.0}), ("elbo", 3, {})),
    "ciwae with beta 0": (("ciwae", 3, {"beta": 0.0}), ("iwae", 3, {})),
    "vr-iwae with alpha 0": (("vr-iwae", 3, {"alpha": 0.0}), ("iwae", 3, {})),
    "vr-iwae with alpha 1": (("vr-iwae", 3, {"alpha": 1.0}), ("elbo", 3, {})),
    "tvo with one term": (("tvo", 3, {"temperatures": 2}), ("elbo", 3, {})),
    "dais without moves": (("dais", 3, {"temperatures": 1}), ("iwae", 3, {})),
    "dais with one chain without moves": (("dais", 1, {"temperatures": 1}), ("elbo", 1, {})),
    "dreg and stl with one particle": (
        ("iwae", 1, {"gradient": "dreg"}),
        ("iwae", 1, {"gradient": "stl"}),
    ),
    "dreg-alpha with alpha 0": (
        ("iwae", 3, {"gradient": "dreg-alpha", "alpha": 0.0}),
        ("iwae", 3, {"gradient": "dreg"}),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("k", range(1, 7))
def test_equivalent_objectives_agree_for_any_number_of_particles(k):
    plain = value_and_gradient(objective("iwae", k))
    means = value_and_gradient(objective("elbo", k))
    for name, options, expected in (
        ("miwae", {"m": 1}, plain),
        ("piwae", {"m": 1}, plain),
        ("ciwae", {"beta": 0.0}, plain),
        ("vr-iwae", {"alpha": 0.0}, plain),
        ("dais", {"temperatures": 1}, plain),
        ("ciwae", {"beta": 1.0}, means),
        ("vr-iwae", {"alpha": 1.0}, means),
        ("tvo", {"temperatures": 2}, means),
    ):
        assert_equal(value_and_gradient(objective(name, k, **options)), expected, name)
    assert_same(objective("miwae", 1, m=k), objective("elbo", k))


@pytest.mark.slow
def test_all_objectives_of_one_particle_agree():
    value, slope = value_and_gradient(objective("elbo", 1))
    for name, options in {
        **{name: {} for name in ("iwae", "vr-max", "tvo")},
        **{name: {"m": 1} for name in ("miwae", "piwae")},
        "ciwae": {"beta": 0.3},
        "vr-iwae": {"alpha": 0.3},
        "dais": {"temperatures": 1},
    }.items():
        assert_equal(value_and_gradient(objective(name, 1, **options)), (value, slope), name)
    result, gradient = value_and_gradient(rws(k=1))  # its encoder has another objective
    without = (eqx.tree_at(lambda m: m.encoder, tree, None) for tree in (gradient, slope))
    assert_equal((result, next(without)), (value, next(without)))


@cache
def named_value_and_gradient(name, k, options):
    return value_and_gradient(objective(name, k, **dict(options)))


@pytest.mark.parametrize("name", quick(SAME, "dais without moves"))
def test_equivalent_objectives_agree(name):
    assert_equal(
        *(named_value_and_gradient(n, k, tuple(options.items())) for n, k, options in SAME[name])
    )


@pytest.mark.slow
def test_default_penalty_has_no_effect():
    assert_same(bound(iwae, k=3, penalty=Penalty()), bound(iwae, k=3))


@pytest.mark.slow
def test_aiwae_uses_the_analytic_elbo_for_one_layer():
    one_layer = build_objective(Declaration("aiwae", 2), layers=1)
    model = VAE(4, (2,), ((3,),), key=jax.random.key(0))
    analytic, sampled = (
        value_and_gradient(made, model)[1].encoder
        for made in (one_layer, objective("aiwae", 2, encoder_objective="elbo"))
    )
    explicit = value_and_gradient(objective("aiwae", 2, encoder_objective="elbo-analytic"), model)[
        1
    ].encoder
    assert equal(analytic, explicit)
    assert not equal(analytic, sampled)


# IWAE-k reported beside the bound


BESIDE = {
    **{name: {} for name in ("elbo", "elbo-analytic", "vr-max", "tvo", "dais", "rws", "aiwae")},
    **{name: {"m": 3} for name in ("miwae", "piwae")},
    "ciwae": {"beta": 0.5},
    "ciwae learned": {"beta": "learned"},
    "vr-iwae": {"alpha": 0.5},
    "iwae gdreg": {"gradient": "gdreg"},
    "iwae penalised": {"free_bits": 0.5, "kl_warmup_steps": 9},
}


@pytest.mark.parametrize("case", quick(BESIDE, "rws", "ciwae learned", "iwae gdreg"))
def test_iwae_of_the_same_particles_is_reported_beside_the_bound(case):
    options, key = BESIDE[case], jax.random.key(0)
    made, k = objective(case.partition(" ")[0], 4, **options), 4 * options.get("m", 1)
    model = VAE(4, (2,), ((3,),), key=jax.random.key(0))
    model = eqx.tree_at(lambda m: m.encoder[0].loc.bias, model, jnp.float32([1.5, -1.0]))
    value, info = eqx.filter_jit(made.terms)(model, BITS, key, made.init())
    q, keys = model.posterior(BITS), particle_keys(jax.random.clone(key), jnp.arange(k))
    if case == "aiwae":  # its chains have one key for the start and one for the moves
        keys = jax.vmap(jax.random.split)(keys)[:, 0]
    z = jax.jit(jax.vmap(q.sample))(keys)
    log_w = jax.jit(jax.vmap(lambda z: model.log_joint(BITS, z) - q.log_prob(z)))(z)
    expected = float(iwae(log_w))
    assert info["iwae"] == pytest.approx(expected, rel=1e-5)
    assert "iwae" in made.metrics
    assert (
        abs(expected - elbo(log_w)) > 0.1
    )  # another bound, or the one maximised, would be detected
    assert (abs(expected - value) > 0.02) == (case not in ("rws", "iwae gdreg"))


# Annealing


def test_mean_dais_weight_is_the_evidence():
    model = LinearGaussian.random(q_shift=0.5, q_scale=1.3)
    made = dais.dais(k=1, temperatures=4, n_leapfrog=2)
    # Long steps and half of the momentum refreshed: a wrong refreshment is 25 errors off.
    moves = dais.Moves(jnp.log(jnp.float32([0.6, 0.3, 0.6])), jnp.float32(0.0))
    moved = made.init()._replace(learned=moves)
    keys = jax.random.split(jax.random.key(0), 40_000)
    log_w = jax.jit(jax.vmap(lambda key: made.terms(model, X, key, moved)[0]))(keys)
    ratios = np.exp(np.float64(log_w) - float(model.log_evidence(X)))
    assert_mean(ratios, 1.0, error_at_most=0.02)
    without = jax.jit(jax.vmap(lambda key: objective("elbo", 1)(model, X, key)))(
        jax.random.clone(keys)
    )
    gain = np.float64(log_w) - np.float64(without)
    assert gain.mean() > 0  # moves tighten the bound


def test_dais_learns_its_step_sizes_and_momentum():
    model, made = LinearGaussian.random(q_shift=0.5), objective("dais", 2, temperatures=4)

    def value(learned, key):
        return made.terms(model, X, key, Extra(learned))[0]

    slope = jax.jit(jax.grad(value))(made.init().learned, jax.random.key(0))
    assert (np.abs(slope.log_step_size) > 1e-6).all()
    assert abs(slope.kept_logit) > 1e-6


def test_step_sizes_grow_when_accepted_and_stay_within_bounds():
    sizes = adapt_aiwae_step_sizes(
        jnp.float32([0.1, 0.1, LARGEST_STEP, LEAST_STEP]), jnp.float32([0.6, 0.5, 1, 0])
    )
    assert np.asarray(sizes) == pytest.approx([0.1002, 0.0998, LARGEST_STEP, LEAST_STEP])


@pytest.mark.slow
def test_aiwae_memory_does_not_grow_with_the_number_of_temperatures():
    model = VAE(16, (4,), ((20,),), key=jax.random.key(0))
    arrays, static = eqx.partition(model, eqx.is_array)

    def memory(temperatures):
        made = objective("aiwae", 4, temperatures=temperatures)

        def loss(arrays, x, key):
            return made(eqx.combine(arrays, static), x, key)

        lowered = jax.jit(jax.grad(loss)).lower(arrays, jnp.ones(16), jax.random.key(0))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert memory(100) < 1.1 * memory(5) + 95 * 4 * 20  # a few numbers for each temperature


# Penalties


@pytest.mark.parametrize("name", quick(["elbo", "elbo-analytic"], "elbo-analytic"))
def test_warm_up_weights_the_divergence_gradually(name):
    model, key = VAE(4, (2,), ((3,),), key=jax.random.key(0)), jax.random.key(0)
    made = objective(name, 5, kl_warmup_steps=10)
    (z,), _ = eqx.filter_jit(importance_particles)(model, BITS, key, 5)[0]
    decoded = jax.jit(jax.vmap(lambda h: model.decode((h,)).log_prob(BITS)))(z)
    reconstruction = float(decoded.mean())
    plain, extra, values = (
        float(eqx.filter_jit(objective(name, 5))(model, BITS, jax.random.clone(key))),
        made.init(),
        [],
    )
    for _ in range(12):
        value, info = eqx.filter_jit(made.terms)(model, BITS, jax.random.clone(key), extra)
        values.append(float(value))
        extra = extra._replace(tuned=made.tune(extra.tuned, info))
    weight = np.minimum(np.arange(12) / 10, 1)
    assert values == pytest.approx(reconstruction + weight * (plain - reconstruction), rel=1e-4)
    assert info["iwae"] == pytest.approx(
        float(eqx.filter_jit(objective("iwae", 5))(model, BITS, jax.random.clone(key))), rel=1e-5
    )


@pytest.mark.parametrize("name", quick(["elbo-analytic", "elbo"], "elbo-analytic"))
def test_free_bits_have_their_stated_cost_and_no_gradient(name):
    model, bits = VAE(4, (3,), ((3,),), key=jax.random.key(0)), 0.2
    model = eqx.tree_at(lambda m: m.encoder[0].loc.bias, model, jnp.float32([0.0, 2.0, -1.5]))
    model = jax.tree.map(lambda leaf: 0.3 * leaf if leaf.ndim == 2 else leaf, model)
    k = 1 if name == "elbo-analytic" else 4000
    q = model.posterior(BITS).first.base_dist
    mean, sd = np.float64(q.loc), np.float64(q.scale)
    units = (mean**2 + sd**2 - 1) / 2 - np.log(sd)
    assert (units < bits).any()
    assert (units > 2 * bits).any()
    free, plain = (objective(name, k, free_bits=b, chunk=k) for b in (bits, 0.0))
    (a, slope), (b, _) = value_and_gradient(free, model), value_and_gradient(plain, model)
    assert float(b - a) == pytest.approx((bits - units[units < bits]).sum(), abs=0.02)
    below = np.flatnonzero(units < bits)
    # With so many free bits, no divergence counts.
    _, decoder_only = value_and_gradient(objective(name, k, free_bits=1e6, chunk=k), model)
    result = np.asarray(slope.encoder[0].loc.bias)[below]
    assert result == pytest.approx(np.asarray(decoder_only.encoder[0].loc.bias)[below], abs=1e-4)


DAIS_PENALTIES = {
    "free bits": {"free_bits": 0.3},
    "warm-up": {"kl_warmup_steps": 10},
    "both": {"free_bits": 0.3, "kl_warmup_steps": 10},
}


def after(steps, made):
    """Return the objective after this many steps of its warm-up."""
    extra = made.init()._replace(tuned={"kl_steps": jnp.int32(steps)})
    return lambda model, x, key: made.terms(model, x, key, extra)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", DAIS_PENALTIES)
def test_dais_without_moves_has_the_penalties_of_iwae(name):
    options = DAIS_PENALTIES[name]
    still, plain = objective("dais", 3, temperatures=1, **options), objective("iwae", 3, **options)
    assert_same(after(4, still), after(4, plain))


@pytest.mark.slow
def test_dais_warm_up_weights_all_but_the_reconstruction():
    def value(made):
        return float(eqx.filter_jit(made)(deep(), BITS, jax.random.key(3)))

    def penalised(steps, **options):
        return value(after(steps, objective("dais", 1, temperatures=2, **options)))

    plain = value(objective("dais", 1, temperatures=2))
    none, some, full = (penalised(steps, kl_warmup_steps=10) for steps in (0, 4, 10))
    assert full == pytest.approx(plain, rel=1e-5)
    assert some == pytest.approx(none + 0.4 * (plain - none), rel=1e-5)
    assert abs(plain - none) > 0.1
    free = penalised(0, free_bits=10.0)  # more than any divergence, so that none counts
    assert free == pytest.approx(none - 10.0 * sum(deep().latent_sizes), rel=1e-5)


def densities(units, h):
    """log N(h; mean, scale) of every unit, float64."""
    scale = np.float64(units.scale)
    z = (np.float64(h) - np.float64(units.loc)) / scale
    return -(z**2) / 2 - np.log(scale) - np.log(2 * np.pi) / 2


def divergences(q, p):
    """KL(q || p) of every unit, float64."""
    s, t = np.float64(q.scale), np.float64(p.scale)
    return np.log(t / s) + (s**2 + (np.float64(q.loc) - np.float64(p.loc)) ** 2) / (2 * t**2) - 0.5


def units(layers):
    return [layer.base_dist for layer in layers]


def reference_terms(model, starts, ends, ratios):
    """Return log p(x|z) per particle and, per unit, its cost and the KL at start and end."""
    q, rows = model.posterior(BITS), []
    for start, end in zip(starts, ends, strict=True):
        qs, ps = units(q.layers(start)), units(model.priors(end))
        cost = [densities(a, h) for a, h in zip(qs, start, strict=True)]
        cost = np.concatenate(cost) - ratios
        cost -= np.concatenate([densities(p, h) for p, h in zip(ps, end, strict=True)])
        known, mixed = (
            np.concatenate([divergences(a, p) for a, p in zip(qs, priors, strict=True)])
            for priors in (units(model.priors(start)), ps)
        )
        rows.append((float(model.decode(end).log_prob(BITS)), cost, known, mixed))
    return [np.array(column) for column in zip(*rows, strict=True)]


def free_bits_between_units(known):
    """Return free bits above the divergences of three units and below those of the other two."""
    return float(np.sort(known.mean(axis=0))[2:4].mean())


def draws_of(model, key, k):
    """Return the particles that an objective draws with a key, as a list."""
    particles, _ = eqx.filter_jit(importance_particles)(model, BITS, key, k)
    return [tuple(h[i] for h in particles.z) for i in range(k)]


@pytest.mark.parametrize(
    ("name", "reduction"), quick_rows([("elbo", np.mean), ("iwae", logsumexp)], 1)
)
def test_free_bits_during_a_warm_up_follow_the_formula(name, reduction):
    model, key, k, weight = deep(), jax.random.key(3), 4, 0.4
    z = draws_of(model, jax.random.clone(key), k)
    log_p, cost, known, _ = reference_terms(model, z, z, 0.0)
    free = free_bits_between_units(known)
    costs = known.mean(axis=0) > free
    assert 0 < costs.sum() < len(costs)
    log_w = log_p - weight * (cost[:, costs].sum(axis=1) + free * (~costs).sum())
    expected = reduction(log_w) - (np.log(k) if name == "iwae" else 0)
    made = after(4, objective(name, k, free_bits=free, kl_warmup_steps=10))
    assert eqx.filter_jit(made)(model, BITS, key) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gain", [10.0, -10.0], ids=["start", "chain"])
def test_unit_of_a_chain_is_free_if_neither_its_start_nor_its_moves_exceed_the_free_bits(
    monkeypatch, gain
):
    """All chains move equally, and their momenta cost or gain the same for every unit."""
    ratios = gain + 0.1 * np.arange(5)
    monkeypatch.setattr(dais, "dais_chain", lambda _, __, z, *___: (z + 0.7, jnp.float32(ratios)))
    model, key, k, weight = deep(), jax.random.key(3), 4, 0.4
    starts = draws_of(model, jax.random.clone(key), k)
    ends = [tuple(h + 0.7 for h in z) for z in starts]
    log_p, cost, known, mixed = reference_terms(model, starts, ends, ratios)
    free = free_bits_between_units(known)
    costs = np.maximum(known.mean(axis=0), cost.mean(axis=0)) > free
    if gain > 0:  # the start decides, not the end of the chain
        assert 0 < costs.sum() < len(costs)
        assert ((mixed.mean(axis=0) > free) != costs).any()
    else:
        assert costs.all()
    log_w = log_p - weight * (cost[:, costs].sum(axis=1) + free * (~costs).sum())
    made = after(4, objective("dais", k, temperatures=3, free_bits=free, kl_warmup_steps=10))
    expected = logsumexp(log_w) - np.log(k)
    assert eqx.filter_jit(made)(model, BITS, key) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_aiwae_applies_free_bits_to_its_encoder_only():
    model = VAE(4, (2,), ((3,),), key=jax.random.key(0))
    plain, free = (
        value_and_gradient(objective("aiwae", 2, encoder_objective="elbo", free_bits=b), model)[1]
        for b in (0.0, 1e3)
    )
    assert equal(plain.output, free.output)
    assert not equal(plain.encoder, free.encoder)


def test_penalties_require_a_vae():
    for options in ({"free_bits": 0.1}, {"kl_warmup_steps": 3}):
        with pytest.raises(UserError, match="need a VAE"):
            objective("iwae", 2, **options)(LinearGaussian.random(), X, jax.random.key(0))


# Incompatible options


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "iwea"}, "did you mean iwae"),
        ({"objective": "iwae", "gradient": "drag"}, "no gradient 'drag'; did you mean dreg"),
        ({"objective": "rws", "gradient": "dreg"}, "not work with rws: it needs a smooth bound"),
        ({"objective": "elbo", "gradient": "dreg"}, "for the elbo it is stl; use it with iwae"),
        ({"objective": "elbo", "gradient": "dreg"}, "or elbo with reparam, stl, gdreg"),
        ({"objective": "vr-max", "gradient": "gdreg"}, "needs one smooth bound"),
        ({"objective": "iwae", "gradient": "rws-dreg"}, "which only rws uses"),
        ({"objective": "iwae", "m": 3}, "m does not apply to iwae; it applies to miwae, piwae"),
        ({"objective": "miwae"}, "miwae needs m, e.g. m = 8"),
        ({"objective": "ciwae"}, "ciwae needs beta"),
        ({"objective": "vr-iwae"}, "vr-iwae needs alpha"),
        ({"objective": "iwae", "gradient": "dreg-alpha"}, "needs alpha"),
        ({"objective": "iwae", "alpha": 0.1}, "vr-iwae, the gradient dreg-alpha"),
        ({"objective": "vr-iwae", "alpha": 1.5}, "alpha is 1.5; it must lie between 0 and 1"),
        ({"objective": "ciwae", "beta": -0.1}, "beta is -0.1; it must lie between 0 and 1"),
        ({"objective": "aiwae", "temperatures": 1}, "aiwae needs at least 2"),
        ({"objective": "aiwae", "chunk": 5}, "chunk does not apply to aiwae"),
        (
            {"objective": "iwae", "gradient": "dreg", "free_bits": 0.1},
            "free_bits does not work with iwae",
        ),
        ({"objective": "iwae", "gradient": "gdreg", "free_bits": 0.1}, "gradients reparam, stl"),
        ({"objective": "rws", "k": 3, "kl_warmup_steps": 1}, "but rws maximises none"),
        ({"objective": "rws"}, "rws with the gradient score needs k of at least 2"),
        ({"objective": "tvo", "gradient": "score"}, "needs k of at least 2"),
        ({"objective": "rws", "phase": "sleep", "gradient": "rws-dreg"}, "belongs to the wake"),
        ({"objective": "tvo", "gradient": "dreg", "beta_schedule": "moments"}, "linear or log"),
        ({"objective": "tvo", "beta_schedule": "cubic"}, "it must be one of linear, log, moments"),
        ({"objective": "rws", "k": 2, "phase": "wakeful"}, "it must be one of wake, sleep, both"),
        ({"objective": "ciwae", "beta": "leared"}, 'it must be a number or "learned"'),
        ({"objective": "iwae", "free_bits": float("nan")}, "free_bits is nan"),
        ({"objective": "iwae", "k": 0}, "k is 0"),
    ],
)
def test_incompatible_options_are_rejected_with_the_reason(fields, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_compatibility(Declaration(**fields))


def test_closed_forms_require_one_layer():
    for declaration in (
        Declaration("elbo-analytic"),
        Declaration("aiwae", encoder_objective="elbo-analytic"),
    ):
        check_compatibility(declaration, layers=1)
        with pytest.raises(UserError, match="closed form for one stochastic layer only"):
            check_compatibility(declaration, layers=2)


def test_every_gradient_is_described_and_has_an_objective():
    used = {gradient for entry in OBJECTIVES.values() for gradient in entry.gradients}
    assert used == GRADIENTS.keys()
    assert DEFAULTS.keys() <= OBJECTIVES.keys()


# Planted faults


@pytest.mark.parametrize("m", [2, 3])
def test_swapped_group_axes_are_detected(monkeypatch, m):
    monkeypatch.setitem(globals(), "miwae", lambda log_w, *, m: miwae_of(log_w, m=log_w.size // m))
    with pytest.raises(AssertionError):
        test_miwae_is_the_mean_of_m_bounds_of_k(5 - m, m)


miwae_of = miwae


@pytest.mark.slow
def test_dais_without_momentum_densities_is_detected(monkeypatch):
    chain = dais.dais_chain

    def without(*args):
        end, ratios = chain(*args)
        return end, 0.0 * ratios

    monkeypatch.setattr(dais, "dais_chain", without)
    with pytest.raises(AssertionError):
        test_mean_dais_weight_is_the_evidence()


# Training


TRAINED = {
    "aiwae": {"objective": "aiwae", "k": 2, "temperatures": 3, "leapfrog": 2},
    "ciwae": {"objective": "ciwae", "k": 3, "beta": "learned", "gradient": "dreg"},
    "dais": {"objective": "dais", "k": 2, "temperatures": 3},
    "warm-up": {"objective": "miwae", "k": 2, "m": 3, "kl_warmup": 2, "free_bits": 0.1},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_learned_and_tuned_parameters_are_part_of_the_run(name, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "DISPATCH_SECONDS", 0.05)
    options = {**TRAINED[name], "epochs": 2, "replicates": 2, "schedule": "constant"}
    options["learning_rate"] = 0.02
    uninterrupted, interrupted = tmp_path / "whole", tmp_path / "cut"
    small.train_in(uninterrupted, **options)
    reports = start_run(small.config(**options), interrupted)
    monkeypatch.setattr(start_and_resume, "CHECKPOINT_SECONDS", -1.0)
    while next(reports).step < 40:
        pass
    reports.close()
    list(resume_run(interrupted))
    a, b = small.newest(uninterrupted)[:2], small.newest(interrupted)[:2]
    a, b = ((state._replace(key=jax.random.key_data(state.key)), best) for state, best in (a, b))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
    extra, start = a[0].extra, make_job(small.config(**options)).settings.objective.init()
    pairs = list(zip(jax.tree.leaves(extra), jax.tree.leaves(start), strict=True))
    assert pairs
    assert not any(np.array_equal(after[0], before) for after, before in pairs)
    rows = read_metrics(uninterrupted)
    assert all(row["train_iwae"] != row["train_bound"] for row in rows)
    assert rows[-1]["train_iwae"][0] > rows[0]["train_iwae"][0]
    if name == "ciwae":
        assert all(0 < beta < 0.5 for beta in rows[-1]["train_beta"])  # towards IWAE
    if name == "aiwae":
        sizes = np.asarray(jax.tree.leaves(extra)[0])
        assert sizes.shape == (2, 2)
        assert ((sizes > LEAST_STEP) & (sizes < LARGEST_STEP)).all()


def test_joint_adam_equals_separate_adams():
    rng = np.random.default_rng(0)
    params = {"decoder": jnp.zeros(3), "encoder": jnp.zeros(2)}
    both, separate = adam().init(params), {name: adam().init(p) for name, p in params.items()}
    update = jax.jit(adam().update)
    for _ in range(3):
        grads = {name: jnp.float32(rng.normal(size=p.shape)) for name, p in params.items()}
        updates, both = update(grads, both)
        for name, grad in grads.items():
            expected, separate[name] = update(grad, separate[name])
            assert np.asarray(updates[name]) == pytest.approx(np.asarray(expected), rel=1e-6)
