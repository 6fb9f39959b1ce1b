"""Gradients through a few resampled particles: exact in expectation, with the full bound."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from cases import quick, quick_rows
from expectations import assert_close, deep, gradient, shallow
from iwae.errors import UserError
from iwae.inference.particles import importance_particles, particle_keys
from iwae.inference.resampling import resample_few, resampling_probabilities, systematic
from iwae.models.conditional import ConditionalVAE
from iwae.models.vae import VAE
from iwae.objectives import building, wake_sleep
from iwae.objectives.bounds import elbo, iwae, vr_max
from iwae.objectives.building import build_objective, objective
from iwae.objectives.compatibility import check_compatibility
from iwae.objectives.declaration import Declaration, declared_particles
from iwae.objectives.particle_objectives import bound
from reference import STANDARD_ERRORS

BITS = jnp.float32([1, 0, 1, 1])
KEY = 3

# Resampling probabilities and draws

share_lists = st.lists(
    st.one_of(st.just(0.0), st.floats(2.0**-6, 2.0**6, width=32)), min_size=6, max_size=6
)
probabilities_of = jax.jit(resampling_probabilities, static_argnums=1)
draw_at = jax.jit(systematic, static_argnums=2)


@given(share_lists, st.integers(1, 5))
def test_probabilities_sum_to_the_count_and_are_proportional_below_one(shares, count):
    result = np.float64(probabilities_of(jnp.float32(shares), count))
    shares = np.float64(np.float32(shares))
    positive = shares > 0
    assert (result <= 1).all()
    assert not result[~positive].any()
    assert result.sum() == pytest.approx(min(count, positive.sum()), rel=1e-5)
    if positive.sum() > count:
        rest = positive & (result < 1 - 1e-5)
        slopes = result[rest] / shares[rest]
        assert slopes == pytest.approx(np.broadcast_to(slopes.mean(), slopes.shape), rel=1e-3)
        if rest.any():  # certain particles have shares above the threshold
            assert (shares[positive & ~rest] >= (1 - 1e-3) / slopes.mean()).all()


@pytest.mark.parametrize(
    ("shares", "count", "expected"),
    [
        ([0.4, 0.3, 0.2, 0.1], 1, [0.4, 0.3, 0.2, 0.1]),
        ([4, 3, 2, 1], 2, [0.8, 0.6, 0.4, 0.2]),
        ([4, 3, 2, 1], 3, [1, 1, 2 / 3, 1 / 3]),
        ([9, 1, 1, 1], 2, [1, 1 / 3, 1 / 3, 1 / 3]),
        ([1, 1, 1, 1], 3, [0.75, 0.75, 0.75, 0.75]),
        ([0, 0, 5, 0], 1, [0, 0, 1, 0]),
        ([0, 0, 5, 1e-9], 3, [0, 0, 1, 1]),
        ([1e-30, 3e-30, 0, 0], 1, [0.25, 0.75, 0, 0]),
    ],
)
def test_known_probabilities(shares, count, expected):
    assert resampling_probabilities(jnp.float32(shares), count) == pytest.approx(expected, rel=1e-5)


@given(share_lists, st.integers(1, 5), st.floats(2.0**-10, 1 - 2.0**-10))
def test_no_particle_is_drawn_twice_and_certain_ones_always_are(shares, count, u):
    shares = jnp.float32(shares)
    index, factor = draw_at(jnp.float32(u), shares, count)
    probabilities = np.asarray(probabilities_of(shares, count))
    drawn = np.asarray(index)[np.asarray(factor) > 0]
    assert len(set(drawn.tolist())) == len(drawn)
    assert np.asarray(factor)[np.asarray(factor) > 0] == pytest.approx(1 / probabilities[drawn])
    assert set(np.flatnonzero(probabilities == 1)) <= set(drawn.tolist())


def test_particles_are_drawn_with_their_probabilities():
    n, shares = 4000, jnp.float32([5, 0, 2, 1, 0.7, 0.3])
    index, factor = jax.jit(jax.vmap(partial(resample_few, shares=shares, count=2)))(
        jax.random.split(jax.random.key(0), n)
    )
    drawn = np.zeros((n, 6))
    np.put_along_axis(drawn, np.asarray(index), np.asarray(factor > 0), axis=1)
    probabilities = np.float64(resampling_probabilities(shares, 2))
    error = np.sqrt(probabilities * (1 - probabilities) / n)
    assert (np.abs(drawn.mean(axis=0) - probabilities) <= STANDARD_ERRORS * error).all()
    assert error.max() < 0.01


# Expectations over all draws


def weighted_draw(i):
    """Return the i-th of at most k possible draws, with its factors times its probability.

    A draw uses a single uniform number, so that k intervals of [0, 1] cover all draws.
    """

    def draw(key, shares, count):  # noqa: ARG001
        inner = jnp.mod(jnp.cumsum(resampling_probabilities(shares, count))[:-1], 1)
        cuts = jnp.sort(jnp.concatenate([jnp.float32([0, 1]), inner]))
        low, high = cuts[i], cuts[i + 1]
        index, factor = systematic((low + high) / 2, shares, count)
        return index, factor * (high - low)

    return draw


def flat_gradients(made, model, x, tuned):
    """Return the gradients in the model and in the objective's own parameters, both flat."""
    extra = made.init()
    extra = extra if tuned is None else extra._replace(tuned=tuned)

    def value(both):
        given, example = both[0].condition(x)
        key = jax.random.key(KEY)
        return made.terms(given, example, key, extra._replace(learned=both[1]))[0]

    grads = eqx.filter_grad(value)((model, extra.learned))
    # The objective's own parameters have their full gradient in every draw.
    return ravel_pytree(eqx.filter(grads[0], eqx.is_inexact_array))[0], ravel_pytree(grads[1])[0]


def weighted_and_full_gradients(monkeypatch, declaration, model, x, tuned=None):
    """Return the gradient of every draw times its probability `[k, n]`, and the full gradient."""
    now, d = {}, check_compatibility(declaration)

    def draw(*arguments):
        return weighted_draw(now["i"])(*arguments)

    def with_draw(*arguments, **options):
        return bound(*arguments, **options, draw=draw)

    for module in (building, wake_sleep):
        monkeypatch.setattr(module, "bound", with_draw)
    make = building._MAKERS.get(d.objective, building._importance)
    some, every = make(d, None), make(d._replace(backward=None), None)

    def one(i):
        now["i"] = i
        return flat_gradients(some, model, x, tuned)

    draws, learned = jax.jit(jax.vmap(one))(jnp.arange(declared_particles(d)))
    full, expected = eqx.filter_jit(flat_gradients)(every, model, x, tuned)
    assert np.asarray(learned) == pytest.approx(np.broadcast_to(expected, learned.shape), rel=1e-5)
    return np.float64(draws), np.float64(full)


def assert_exact(draws, full):
    scale = np.abs(full).max()
    assert np.abs(draws.sum(axis=0) - full).max() < 2e-5 * scale
    return scale


CASES = {
    "iwae": {"objective": "iwae"},
    "iwae stl": {"objective": "iwae", "gradient": "stl"},
    "iwae dreg": {"objective": "iwae", "gradient": "dreg"},
    "iwae dreg-alpha": {"objective": "iwae", "gradient": "dreg-alpha", "alpha": 0.3},
    "elbo": {"objective": "elbo"},
    "elbo stl": {"objective": "elbo", "gradient": "stl"},
    "miwae dreg": {"objective": "miwae", "k": 2, "m": 2, "gradient": "dreg"},
    "piwae": {"objective": "piwae", "k": 2, "m": 2},
    "piwae dreg": {"objective": "piwae", "k": 2, "m": 2, "gradient": "dreg"},
    "ciwae dreg": {"objective": "ciwae", "beta": 0.3, "gradient": "dreg"},
    "ciwae learned": {"objective": "ciwae", "beta": "learned"},
    "vr-iwae dreg": {"objective": "vr-iwae", "alpha": 0.5, "gradient": "dreg"},
    "rws": {"objective": "rws"},
    "rws-dreg": {"objective": "rws", "gradient": "rws-dreg"},
}


def declared(case, backward, **options):
    return Declaration(**{"k": 4, **CASES[case], "backward": backward, **options})


SIZES = [(case, 2) for case in CASES]
SIZES += [(case, n) for case in ("iwae", "iwae dreg", "piwae dreg") for n in (1, 3)]
FEW = [SIZES.index(size) for size in (("piwae dreg", 3), ("rws-dreg", 2))]


@pytest.mark.parametrize(("case", "backward"), quick_rows(SIZES, *FEW))
def test_expected_gradient_is_the_full_gradient(monkeypatch, case, backward):
    model = shallow() if backward == 2 else deep()
    draws, full = weighted_and_full_gradients(monkeypatch, declared(case, backward), model, BITS)
    scale = assert_exact(draws, full)
    if "elbo" not in case:  # a single draw has a different gradient
        assert np.abs(draws - full).max() > 1e-3 * scale


WARM = {"kl_steps": jnp.int32(4)}
CHANGED = {
    "warm-up": ({"kl_warmup_steps": 10}, "iwae", WARM),
    "warm-up of dreg": ({"kl_warmup_steps": 10}, "iwae dreg", WARM),
    "free bits": ({"free_bits": 0.05}, "iwae", None),
    "chunks": ({"chunk": 3}, "iwae dreg", None),
    "chunks smaller than the draw": ({"chunk": 1}, "piwae dreg", None),
}


@pytest.mark.parametrize("case", quick(CHANGED, "chunks smaller than the draw"))
def test_expected_gradient_is_unchanged_by(monkeypatch, case):
    options, base, tuned = CHANGED[case]
    declaration = declared(base, 2, **options)
    assert_exact(*weighted_and_full_gradients(monkeypatch, declaration, shallow(), BITS, tuned))


def with_missing_values():
    model = VAE(4, (2,), ((5,),), missing="at-random", key=jax.random.key(1))
    return model, jnp.float32([1, jnp.nan, 0, 1])


def with_labels():
    shape = {"latent_sizes": (2,), "hidden_sizes": ((5,),), "key": jax.random.key(1)}
    model = ConditionalVAE(VAE(4, **shape), 3, learned_prior=True)
    return model, jnp.float32([1, 0, 0, 1, 0, 0, 1])  # the last three encode the label


MODELS = {"missing values": with_missing_values, "labels": with_labels}


@pytest.mark.slow
@pytest.mark.parametrize("case", MODELS)
def test_expected_gradient_is_exact_for_models_with(monkeypatch, case):
    model, x = MODELS[case]()
    draws, full = weighted_and_full_gradients(monkeypatch, declared("iwae dreg", 2), model, x)
    assert np.isfinite(draws).all()
    assert_exact(draws, full)


# The bound and the shares of the draw


def drawn_with(reduction, backward, keys):
    """Return the key of the draw, its shares and the drawn indices, for each key."""

    def one(key):
        notes = []

        def draw(key, shares, count):
            index, factor = resample_few(key, shares, count)
            notes.append((jax.random.key_data(key), shares, index))
            return index, factor

        bound(reduction, k=4, backward=backward, draw=draw)(shallow(), BITS, key)
        return notes[0]

    return jax.jit(jax.vmap(one))(keys)


def test_particles_are_drawn_by_normalised_weights_with_a_separate_key():
    drawn_by, shares, _ = drawn_with(iwae, 2, jax.random.key(KEY)[None])
    key = jax.random.key(KEY)
    log_w = eqx.filter_jit(importance_particles)(shallow(), BITS, key, 4)[0].log_w
    assert np.asarray(shares[0]) == pytest.approx(np.asarray(jax.nn.softmax(log_w)), rel=1e-4)
    key = jax.random.key(KEY)
    others = [jax.random.key_data(key), *jax.random.key_data(particle_keys(key, jnp.arange(4)))]
    assert not any((drawn_by[0] == other).all() for other in others)


def test_draws_differ_between_keys():
    keys = jax.vmap(jax.random.key)(jnp.arange(8))
    assert len(set(np.asarray(drawn_with(elbo, 1, keys)[2]).ravel().tolist())) > 1


@pytest.mark.parametrize("case", quick(CASES, "iwae"))
def test_bound_is_that_of_all_particles(case):
    def evaluate(backward):
        made = build_objective(declared(case, backward))
        return eqx.filter_jit(made.terms)(shallow(), BITS, jax.random.key(KEY), made.init())

    (value, info), (full, full_info) = evaluate(2), evaluate(None)
    assert float(value) == pytest.approx(float(full), rel=1e-6)
    assert float(info["iwae"]) == pytest.approx(float(full_info["iwae"]), rel=1e-6)


@pytest.mark.parametrize("backward", quick([4, 9], 4))
def test_backward_through_all_particles_is_the_plain_gradient(backward):
    def evaluate(backward):
        made = build_objective(declared("piwae dreg", backward))
        return eqx.filter_jit(flat_gradients)(made, shallow(), BITS, None)[0]

    np.testing.assert_array_equal(evaluate(backward), evaluate(None))


@pytest.mark.slow
def test_vr_max_gradient_needs_one_particle():
    model = deep()
    some, full = (
        gradient(bound(vr_max, k=4, backward=backward), model, BITS, KEY) for backward in (1, None)
    )
    some, full = (np.float64(ravel_pytree(each)[0]) for each in (some, full))
    assert_close(some, full, model, 1e-5)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("tvo", {}, "whose derivatives in the log weights may be negative"),
        ("elbo-analytic", {}, "whose particles all count equally: use a smaller k"),
        ("dais", {}, "whose gradient goes through every chain"),
        ("aiwae", {}, "whose chains carry no gradient anyway"),
        ("iwae", {"gradient": "gdreg"}, "gdreg, which is not a table of coefficients: use dreg"),
    ],
)
def test_objectives_without_backward_particles_reject_them(name, options, reason):
    with pytest.raises(UserError, match=rf"backward does not work with .*{reason}"):
        objective(name, 4, backward=2, **options)
    objective(name, 4, **options)


def test_invalid_number_of_backward_particles_is_rejected():
    for make in (partial(objective, "iwae", 4), partial(bound, iwae, k=4)):
        with pytest.raises(UserError, match=r"backward is 0; a gradient needs at least 1"):
            make(backward=0)
    with pytest.raises(UserError, match="backward are for importance samples only"):
        bound(iwae, k=4, sampler=importance_particles, backward=2)


def temporary_bytes(k, **options):
    """Return the temporary memory of the gradient of ten examples."""
    made = objective("iwae", k, gradient="dreg", **options)
    model, xs = shallow(), jnp.zeros((10, 4))

    def loss(model, key):
        keys = jax.random.split(key, 10)
        return jnp.mean(jax.vmap(lambda x, key: made(model, x, key))(xs, keys))

    lowered = jax.jit(jax.grad(loss)).lower(model, jax.random.key(0))
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_particles():
    few = [temporary_bytes(k, chunk=50, backward=8) for k in (500, 5000)]
    every = [temporary_bytes(k, chunk=k) for k in (500, 5000)]
    assert every[1] > 8 * every[0]
    assert few[1] < 3 * few[0]
    assert few[1] < every[1] / 8
