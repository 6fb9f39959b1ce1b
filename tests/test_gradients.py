"""Gradient estimators against exact gradients, against each other, and against theory."""

from functools import partial
from itertools import pairwise, product

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree

from iwae import annealed_particles, gradients
from iwae._types import UserError
from iwae.gradients import signal
from iwae.gradients.estimators import curvature
from iwae.methods import objective
from iwae.model import VAE
from iwae.objectives import (
    WAKE,
    Coefficients,
    Estimator,
    Penalty,
    bound,
    ciwae,
    elbo,
    grouped,
    iwae,
    miwae,
    renyi,
    split,
    tvo,
    tvo_schedule,
    wake,
)
from iwae.objectives.climbing import slope
from iwae.objectives.sleeping import WAKE_DECODER
from iwae.objectives.sleeping import asleep as log_q_asleep
from iwae.particles import importance_particles, log_weights
from iwae.testing import LinearGaussian
from reference import STANDARD_ERRORS

pytestmark = pytest.mark.usefixtures("quick_compilation")

BITS = jnp.float32([1, 0, 1, 1])


def shallow(key=1):
    """A VAE of four bits and two latents; nothing in it is symmetric or at its best."""
    return _moved(VAE(4, (2,), ((3,),), key=jax.random.key(key)))


def deep(layers=2, key=1):
    sizes = (3, 2, 2)[:layers]
    return _moved(VAE(4, sizes, ((3,),) * layers, key=jax.random.key(key)))


def _moved(model):
    """The model with biases that are not zero, and smooth enough for quadrature."""
    return jax.tree.map(
        lambda leaf: leaf + jnp.linspace(-0.4, 0.2, leaf.size) if leaf.ndim == 1 else 0.6 * leaf,
        model,
    )


def draws_of(objective, model, x, n, seed=0):
    """n draws of the gradient, flat, float64 `[n, parameters]`."""

    @eqx.filter_jit
    def all_of(model, keys):
        one = eqx.filter_grad(objective)
        return jax.lax.map(lambda key: ravel_pytree(one(model, x, key))[0], keys, batch_size=500)

    return np.float64(all_of(model, jax.random.split(jax.random.key(seed), n)))


def gradient(objective, model, x, seed=0):
    """One draw of the gradient, as a model."""
    return eqx.filter_jit(eqx.filter_grad(objective))(model, x, jax.random.key(seed))


def size(tree):
    return float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(tree)))


def assert_same(a, b, tolerance=2e-5):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = float(jnp.abs(other).max()) + 1e-3
        assert np.abs(np.asarray(one - other)).max() < tolerance * scale


# Exact gradients


def nodes(dimensions, count):
    """Gauss-Hermite nodes for N(0, I) and their log weights."""
    x, w = np.polynomial.hermite_e.hermegauss(count)
    grid = np.array(list(product(x, repeat=dimensions)), np.float32)
    weights = np.array(list(product(w / w.sum(), repeat=dimensions))).prod(axis=1)
    keep = weights > 1e-9
    return jnp.asarray(grid[keep]), jnp.float32(weights[keep] / weights[keep].sum())


def exact_gradient(reduction, model, x, k, latents, count):
    """The gradient of E[reduction(log w)] by quadrature over all the noise there is."""
    noise, weights = nodes(k * latents, count)

    def place(q, e):  # what q.sample does with standard normal noise
        if isinstance(model, VAE):
            base = q.first.base_dist
            return (base.loc + base.scale * e,)
        return q.loc + q.scale_tril @ e

    def value(model):
        q = model.posterior(x)

        def bound_at(e):
            z = jax.vmap(partial(place, q))(e.reshape(k, latents))
            log_w = jax.vmap(lambda z: model.log_joint(x, z) - q.log_prob(z))(z)
            return reduction(log_w)

        return jnp.sum(weights * jax.vmap(bound_at)(noise))

    return np.float64(ravel_pytree(eqx.filter_jit(eqx.filter_grad(value))(model))[0])


def z_scores(draws, expected):
    """Standard errors between the mean of the draws and what is expected; 0 where none varies."""
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    distance = np.abs(draws.mean(axis=0) - expected)
    return distance / np.maximum(error, 1e-5 + 1e-4 * np.abs(expected))


LINEAR = LinearGaussian.random(1, 3, q_shift=0.4, q_scale=1.4), jnp.float32([2.0, -0.5, 0.3]), 1
CURVED = shallow(), BITS, 2
N = 20_000

UNBIASED = {
    "elbo reparam": (elbo, objective("elbo", 2)),
    "elbo stl": (elbo, objective("elbo", 2, gradient="stl")),
    "iwae reparam": (iwae, objective("iwae", 2)),
    "iwae dreg": (iwae, objective("iwae", 2, gradient="dreg")),
    "iwae gdreg": (iwae, objective("iwae", 2, gradient="gdreg")),
    "ciwae dreg": (
        partial(ciwae, beta=0.3),
        objective("ciwae", 2, beta=0.3, gradient="dreg"),
    ),
    "vr-iwae reparam": (partial(renyi, alpha=0.4), objective("vr-iwae", 2, alpha=0.4)),
    "vr-iwae dreg": (
        partial(renyi, alpha=0.4),
        objective("vr-iwae", 2, alpha=0.4, gradient="dreg"),
    ),
    "tvo reparam": (
        partial(tvo, betas=tvo_schedule("log", 4)),
        objective("tvo", 2, temperatures=4),
    ),
    "tvo dreg": (
        partial(tvo, betas=tvo_schedule("log", 4)),
        objective("tvo", 2, temperatures=4, gradient="dreg"),
    ),
}


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, id=f"{name}-{words}")
        for name in UNBIASED
        for words, case in (("linear", LINEAR), ("curved", CURVED))
        if "gdreg" not in name or isinstance(case[0], VAE)  # gdreg is for a VAE
    ],
)
def test_the_mean_of_an_estimator_is_the_exact_gradient(name, case):
    model, x, latents = case
    reduction, climbed = UNBIASED[name]
    exact = exact_gradient(reduction, model, x, 2, latents, 30 if latents == 1 else 12)
    draws = draws_of(climbed, model, x, N)
    assert z_scores(draws, exact).max() < STANDARD_ERRORS
    error = draws.std(axis=0) / np.sqrt(N)
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(exact)


@pytest.mark.slow
@pytest.mark.parametrize("case", [LINEAR, CURVED], ids=["linear", "curved"])
def test_what_is_biased_fails_the_same_test(case):
    model, x, latents = case
    exact = exact_gradient(iwae, model, x, 2, latents, 30 if latents == 1 else 12)
    for wrong in (
        objective("iwae", 2, gradient="stl"),
        objective("iwae", 2, gradient="dreg-alpha", alpha=0.5),
        objective("elbo", 2),
        bound(iwae, k=3),
    ):
        assert z_scores(draws_of(wrong, model, x, 5 * N), exact).max() > 2 * STANDARD_ERRORS


# Against each other


def paired(one, other, model, x, n=N):
    """z-scores of the differences on the same random numbers."""
    return z_scores(draws_of(one, model, x, n) - draws_of(other, model, x, n), 0.0)


PAIRS = {
    "miwae dreg": [("miwae", 2, {"m": 3, "gradient": g}) for g in ("dreg", "reparam")],
    "piwae dreg": [("piwae", 2, {"m": 3, "gradient": g}) for g in ("dreg", "reparam")],
    "ciwae gdreg": [("ciwae", 3, {"beta": 0.4, "gradient": g}) for g in ("gdreg", "reparam")],
    "rws-dreg": [("rws", 3, {"gradient": g}) for g in ("rws-dreg", "score")],
    "both": [("rws", 3, {"phase": "both", "gradient": g}) for g in ("rws-dreg", "score")],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_estimators_of_one_thing_have_one_mean(name):
    one, other = (
        draws_of(objective(n, k, **options), deep(), BITS, N) for n, k, options in PAIRS[name]
    )
    assert z_scores(one - other, 0.0).max() < STANDARD_ERRORS
    # A path of the encoder that is a fifth too long or too short would be seen.
    learns = np.abs(one - other).max(axis=0) > 0
    assert z_scores((1.2 * one - other)[:, learns], 0.0).max() > STANDARD_ERRORS


def in_warm_up(name, k, **options):
    """The objective when the divergence has four tenths of its weight."""
    made = objective(name, k, kl_warmup_steps=10, **options)
    extra = made.init()._replace(tuned={"kl_steps": jnp.int32(4)})
    return lambda model, x, key: made.terms(model, x, key, extra)[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("iwae", {}, id="iwae"),
        pytest.param("piwae", {"m": 2}, id="piwae", marks=pytest.mark.slow),
        pytest.param("ciwae", {"beta": 0.4}, id="ciwae", marks=pytest.mark.slow),
    ],
)
def test_dreg_climbs_what_a_warm_up_leaves_of_the_bound(name, options):
    plain, ours = (
        draws_of(in_warm_up(name, 3, gradient=g, **options), deep(), BITS, 2 * N)
        for g in ("reparam", "dreg")
    )
    assert z_scores(ours - plain, 0.0).max() < STANDARD_ERRORS


def test_dreg_that_takes_log_q_for_whole_in_a_warm_up_would_be_seen(monkeypatch):
    monkeypatch.setattr(Penalty, "climbing", lambda _, estimator, *__: estimator)
    with pytest.raises(AssertionError):
        test_dreg_climbs_what_a_warm_up_leaves_of_the_bound("iwae", {})


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 3])
def test_gdreg_agrees_with_the_plain_gradient(layers):
    plain, ours = (objective("iwae", 8, gradient=g) for g in ("reparam", "gdreg"))
    assert paired(ours, plain, deep(layers), BITS).max() < STANDARD_ERRORS


@pytest.mark.slow
def test_gdreg_is_less_noisy_than_the_plain_gradient():
    model, n = jax.tree.map(lambda leaf: 0.4 * leaf, deep()), 4000  # q is not far from p(z|x)
    found = {}
    for name in ("reparam", "dreg", "gdreg"):
        draw = signal.gradient_of(objective("iwae", 32, gradient=name))
        moments = signal.moments(draw, model, BITS[None], jax.random.key(0), n)
        found[name] = signal.signals(model, moments, n)

    def better(group, one, other):
        a, b = found[one][group], found[other][group]
        return (a.snr - b.snr) / np.hypot(a.snr_stderr, b.snr_stderr)

    assert min(better(group, "gdreg", "reparam") for group in ("encoder 1", "encoder 2")) > 4
    assert better("prior 1", "gdreg", "dreg") > 4
    assert abs(better("decoder", "gdreg", "dreg")) < 4


def test_dreg_without_the_priors_part_leaves_its_noise():
    model = deep()
    dreg, gdreg = (objective("iwae", 4, gradient=g) for g in ("dreg", "gdreg"))
    a, b = (gradient(o, model, BITS) for o in (dreg, gdreg))
    assert_same(a.encoder, b.encoder)
    assert_same(a.decoder_hidden, b.decoder_hidden)
    assert size(jax.tree.map(lambda x, y: x - y, a.prior_nets, b.prior_nets)) > 0.1


@pytest.mark.slow
def test_decoder_gradients_do_not_depend_on_the_encoders_estimator():
    model = deep()
    plain = gradient(objective("iwae", 5), model, BITS)
    others = [objective("iwae", 5, gradient=g) for g in ("stl", "dreg")]
    others += [objective("iwae", 5, gradient="dreg-alpha", alpha=0.3), objective("rws", 5)]
    for other in others:
        its = gradient(other, model, BITS)
        for part in ("prior_nets", "decoder_hidden", "output"):
            assert_same(getattr(its, part), getattr(plain, part))
        assert size(jax.tree.map(lambda a, b: a - b, its.encoder, plain.encoder)) > 1e-2


def test_the_score_gradient_of_the_tvo_tends_to_that_of_its_integral():
    model, x, _ = LINEAR
    betas = tvo_schedule("log", 4)
    grid, weights = nodes(1, 60)

    def integral(model):
        """The TVO with expectations under the tempered densities themselves, on a grid."""
        q = jax.lax.stop_gradient(model.posterior(x))
        z = q.loc[None] + grid @ q.scale_tril.T
        log_q0 = jax.vmap(q.log_prob)(z)
        mine = model.posterior(x)
        log_p = jax.vmap(lambda z: model.log_joint(x, z))(z)
        log_q = jax.vmap(mine.log_prob)(z)
        b, total = jnp.float32(betas), 0.0
        for left, right in pairwise(b):
            log_f = (1 - left) * log_q + left * log_p
            w = jax.nn.softmax(jnp.log(weights) + log_f - log_q0)
            total += (right - left) * jnp.sum(w * (log_p - log_q))
        return total

    exact = np.float64(ravel_pytree(eqx.filter_jit(eqx.filter_grad(integral))(model))[0])
    climbed = objective("tvo", 2000, temperatures=4, gradient="score", chunk=2000)
    draws = draws_of(climbed, model, x, 1000)
    allowed = 0.005 * np.abs(exact).max()  # the bias of self-normalised weights
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0) - exact) < STANDARD_ERRORS * error + allowed).all()
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(exact)


# Tables


@pytest.mark.slow
@pytest.mark.parametrize(("m", "k"), [(1, 3), (3, 2)])
def test_second_derivatives_in_closed_form_are_those_of_autodiff(m, k):
    log_w = jnp.float32(np.random.default_rng(0).normal(size=m * k) * 3)
    betas = tvo_schedule("log", 4)
    for reduction in (
        *(elbo, iwae, partial(miwae, m=m), partial(ciwae, beta=0.3), partial(renyi, alpha=0.4)),
        *(partial(tvo, betas=betas), partial(tvo, betas=betas, upper=True)),
    ):
        expected = np.diag(jax.hessian(reduction)(log_w))
        assert curvature(reduction, log_w) == pytest.approx(expected, abs=2e-6)
        assert curvature(lambda w, f=reduction: f(w), log_w) == pytest.approx(expected, abs=2e-6)


def test_the_coefficients_of_dreg_are_those_of_the_papers():
    log_w, k, alpha = jnp.float32([0.3, -2.0, 1.0, 0.0]), 4, 0.3
    w, v = jax.nn.softmax(log_w), jax.nn.softmax((1 - alpha) * log_w)
    inner = jax.vmap(jax.nn.softmax)(log_w.reshape(2, 2)).ravel()
    published = {
        iwae: w**2,
        partial(renyi, alpha=alpha): alpha * v + (1 - alpha) * v**2,
        partial(ciwae, beta=0.2): 0.2 / k + 0.8 * w**2,
        partial(miwae, m=2): inner**2 / 2,
    }
    for reduction, path in published.items():
        found = gradients.dreg().coefficients(reduction, log_w).path
        assert np.asarray(found) == pytest.approx(np.asarray(path), rel=1e-4)
    found = gradients.dreg_alpha(0.3).coefficients(iwae, log_w).path
    assert np.asarray(found) == pytest.approx(np.asarray(0.3 * w + 0.4 * w**2), rel=1e-4)
    found = gradients.rws_dreg().coefficients(iwae, log_w).path
    assert np.asarray(found) == pytest.approx(np.asarray(w - w**2), rel=1e-4)


# Routing


@pytest.mark.slow
def test_the_half_that_must_not_learn_gets_exactly_nothing():
    model = deep()
    decoder_only = gradient(wake(importance_particles, k=3), model, BITS)
    assert size(decoder_only.encoder) == 0
    assert size(decoder_only.output) > 0
    asleep = bound(iwae, k=3, estimator=WAKE_DECODER)
    assert size(gradient(asleep, model, BITS).encoder) == 0
    for name, options in {"aiwae": {}, "piwae": {"m": 2}, "rws": {"phase": "sleep"}}.items():
        whole = gradient(objective(name, 3, **options), model, BITS)
        assert size(whole.encoder) > 0
        assert size(whole.output) > 0
    sleep_only = gradient(lambda model, x, key: log_q_asleep(model, key), model, BITS)  # noqa: ARG005
    assert size(sleep_only.encoder) > 0
    assert size((sleep_only.output, sleep_only.prior_nets, sleep_only.decoder_hidden)) == 0
    for part in ("decoder", "encoder"):
        other = bound(lambda log_w: 0.0 * jnp.sum(log_w), k=1)
        halves = {"decoder": other, "encoder": other, part: bound(iwae, k=3)}
        its = gradient(split(**halves), model, BITS)
        assert (size(its.encoder) > 0) == (part == "encoder")
        assert (size(its.output) > 0) == (size(its.prior_nets) > 0) == (part == "decoder")


@pytest.mark.slow
def test_the_halves_of_aiwae_climb_the_elbo_and_the_annealed_particles():
    model = deep()
    ours = gradient(objective("aiwae", 3, encoder_objective="elbo"), model, BITS)
    assert_same(ours.encoder, gradient(bound(elbo, k=1), model, BITS).encoder)
    options = {"betas": np.linspace(0, 1, 5).tolist(), "step_size": 0.1, "n_leapfrog": 5}
    decoder = gradient(wake(partial(annealed_particles, **options), k=3), model, BITS)
    assert size(decoder.encoder) == 0
    for part in ("prior_nets", "decoder_hidden", "output"):
        assert_same(getattr(ours, part), getattr(decoder, part))


def test_sleep_teaches_q_what_the_model_draws():
    model = LinearGaussian.random(q_shift=0.0)  # q is the exact posterior of every x
    draws = draws_of(objective("rws", 2, phase="sleep"), model, jnp.float32([2.0, -0.5, 0.3]), 4000)
    is_q = ravel_pytree(
        eqx.tree_at(
            lambda m: (m.q_weight, m.q_bias, m.q_tril),
            jax.tree.map(jnp.zeros_like, model),
            replace_fn=jnp.ones_like,
        )
    )[0]
    its = draws[:, np.asarray(is_q) == 1]
    assert z_scores(its, 0.0).max() < STANDARD_ERRORS  # nothing is left to learn
    assert its.std(axis=0).max() > 0.1


def test_piwae_is_the_split_of_its_two_bounds():
    model = deep()
    apart = split(decoder=bound(iwae, k=6), encoder=grouped(m=3, k=2))
    assert_same(gradient(objective("piwae", 2, m=3), model, BITS), gradient(apart, model, BITS))
    far = eqx.tree_at(lambda m: m.encoder[0].loc.bias, model, 30 * jnp.ones(3))  # weights vanish
    assert_same(gradient(objective("piwae", 2, m=3), far, BITS), gradient(apart, far, BITS), 1e-3)


@pytest.mark.slow
def test_aiwae_of_two_temperatures_without_the_last_move_is_iwae_for_the_decoder():
    model, key = deep(), jax.random.key(0)
    options = {"betas": [0.0, 1.0], "step_size": 0.1, "n_leapfrog": 1, "last_move": False}
    chains = partial(annealed_particles, **options)
    aiwae = split(decoder=wake(chains, k=4), encoder=bound(elbo, k=1))
    ours = gradient(aiwae, model, BITS)
    (z, log_w), _ = chains(model, BITS, key, 4)
    log_q = jax.vmap(model.posterior(BITS).log_prob)(z)

    def iwae_there(model):  # IWAE at the same draws of q
        return iwae(jax.vmap(lambda z: model.log_joint(BITS, z))(z) - log_q)

    its = eqx.filter_grad(iwae_there)(model)
    for part in ("prior_nets", "decoder_hidden", "output"):
        assert_same(getattr(ours, part), getattr(its, part))
    assert np.asarray(log_w) == pytest.approx(
        np.asarray(jax.vmap(lambda z: model.log_joint(BITS, z))(z) - log_q), rel=1e-5
    )
    assert_same(ours.encoder, gradient(bound(elbo, k=1), model, BITS).encoder)


# Chunks of particles


CHUNKED = {
    **{g: ("iwae", 7, {"gradient": g}) for g in ("reparam", "stl", "dreg", "gdreg")},
    "miwae": ("miwae", 3, {"m": 2, "gradient": "dreg"}),
    "piwae": ("piwae", 3, {"m": 2}),
    "rws": ("rws", 7, {}),
    "free bits": ("iwae", 7, {"free_bits": 0.2, "kl_warmup_steps": 9}),
    "dais": ("dais", 5, {"temperatures": 3}),
    "elbo-analytic": ("elbo-analytic", 5, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_of_particles_change_nothing(name):
    model = shallow() if name == "elbo-analytic" else deep()
    method, k, options = CHUNKED[name]
    whole, parts = (objective(method, k, chunk=c, **options) for c in (k * 6, 2))
    key = jax.random.key(3)
    a, b = (eqx.filter_jit(eqx.filter_value_and_grad(o))(model, BITS, key) for o in (whole, parts))
    assert a[0] == pytest.approx(float(b[0]), rel=1e-6)
    assert_same(a[1], b[1])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_particles_of_a_chunked_objective():
    model = VAE(64, (5,), ((50,),), key=jax.random.key(0))

    def memory(k, chunk):
        arrays, _ = eqx.partition(model, eqx.is_array)
        static = eqx.filter(model, eqx.is_array, inverse=True)

        def loss(arrays, x, key):
            return objective("iwae", k, chunk=chunk)(eqx.combine(arrays, static), x, key)

        step = jax.jit(jax.grad(loss))
        compiled = step.lower(arrays, jnp.ones(64), jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(5000, 50) < memory(5000, 5000) / 10
    assert memory(5000, 50) < memory(500, 50) + 5000 * 200  # what is kept is numbers, not layers


# Signal and noise


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [("reparam", -0.5), ("dreg", 0.5)])
def test_signal_to_noise_grows_with_k_as_theory_says(name, expected):
    model = LinearGaussian.random(1, 3, q_shift=0.3, q_scale=1.2)
    xs, ks, n = jnp.float32([[2.0, -0.5, 0.3]]), (4, 8, 16, 32), 10_000
    found = []
    for k in ks:
        draw = signal.gradient_of(objective("iwae", k, gradient=name))
        moments = signal.moments(draw, model, xs, jax.random.key(k), n)
        found.append(signal.signals(model, moments, n))
    for group, power in (("q_bias", expected), ("weight", 0.5)):
        ratios = [signals[group].snr for signals in found]
        errors = [signals[group].snr_stderr for signals in found]
        slope, error = signal.slope_of(ks, ratios, errors)
        assert abs(slope - power) < 3 * error + 0.05, group  # theory is of k without end
        assert 3 * error + 0.05 < 0.45, group  # a slope of zero would be seen


@pytest.mark.slow
def test_signal_noise_and_bias_are_those_of_known_gradients():
    model, xs = LinearGaussian.random(), jnp.zeros((1, 3))

    def draw(model, xs, key):  # noqa: ARG001 - gradients of mean 3 and standard deviation 2
        return jax.tree.map(
            lambda leaf: 3.0 + 2.0 * jax.random.normal(jax.random.clone(key), leaf.shape), model
        )

    found = signal.signals(model, signal.moments(draw, model, xs, jax.random.key(0), 2000), 2000)
    for name, leaves in signal.groups_of(model, model).items():
        assert found[name].snr == pytest.approx(1.5, abs=5 * found[name].snr_stderr)
        assert found[name].snr_stderr < 0.1
        assert found[name].mean_norm == pytest.approx(3 * np.sqrt(leaves[0].size), rel=0.1)
        assert found[name].variance == pytest.approx(4 * leaves[0].size, rel=0.2)

    def moved(model, xs, key):
        return jax.tree.map(lambda leaf: 1.1 * leaf, draw(model, xs, key))

    biases = signal.biases(moved, draw, model, xs, jax.random.key(1), 400)
    assert all(bias.z > signal.BIASED for bias in biases.values())
    assert biases["weight"].relative == pytest.approx(0.1, abs=0.02)
    same = signal.biases(draw, draw, model, xs, jax.random.key(1), 400)
    assert all(bias.z == 0 for bias in same.values())

    def beside(model, xs, key):  # always by as much: no error at all, and a bias
        return jax.tree.map(lambda leaf: 0.5 + leaf, draw(model, xs, key))

    constant = signal.biases(beside, draw, model, xs, jax.random.key(1), 400)
    assert all(bias.z > signal.BIASED for bias in constant.values())


@pytest.mark.slow
def test_the_paired_test_finds_the_bias_of_stl_and_none_of_dreg():
    model = shallow()
    plain, stl, dreg = (
        signal.gradient_of(objective("iwae", 4, gradient=g)) for g in ("reparam", "stl", "dreg")
    )
    key = jax.random.key(5)
    found = signal.biases(stl, plain, model, BITS[None], key, 4000)
    assert found["encoder 1"].z > signal.BIASED
    assert abs(found["decoder"].z) < signal.BIASED
    found = signal.biases(dreg, plain, model, BITS[None], jax.random.clone(key), 4000)
    assert all(abs(bias.z) < signal.BIASED for bias in found.values())


def test_too_few_draws_are_a_user_error():
    for draws in (10, 101):
        with pytest.raises(UserError, match="multiple of 10"):
            signal.check_draws(draws)


def test_gdreg_refuses_a_model_whose_prior_it_does_not_know():
    with pytest.raises(UserError, match="gdreg needs a VAE"):
        objective("iwae", 2, gradient="gdreg")(LINEAR[0], LINEAR[1], jax.random.key(0))


# Planted faults


def test_a_wrong_coefficient_would_be_seen():
    model, x, latents = LINEAR
    exact = exact_gradient(iwae, model, x, 2, latents, 30)
    right = gradients.dreg()

    def cubed(reduction, log_w):
        table = right.coefficients(reduction, log_w)
        return table._replace(path=table.path * jax.nn.softmax(log_w))

    def with_score(reduction, log_w):
        table = right.coefficients(reduction, log_w)
        return table._replace(score=table.decoder)

    faults = [
        right._replace(coefficients=cubed),
        right._replace(coefficients=with_score, score=True),
        WAKE,
    ]
    for fault in faults:
        draws = draws_of(bound(iwae, k=2, estimator=fault), model, x, N)
        assert z_scores(draws, exact).max() > STANDARD_ERRORS


def test_all_three_columns_of_a_table_count():
    model = deep()

    def as_table(reduction, log_w):
        a = jax.grad(reduction)(log_w)
        return Coefficients(a, a, 0.3 * a)

    plain, stl = (
        gradient(objective("elbo", 3, gradient=g), model, BITS) for g in ("reparam", "stl")
    )
    found = gradient(bound(elbo, k=3, estimator=Estimator(as_table)), model, BITS)
    mixed = jax.tree.map(lambda a, b: 0.3 * a + 0.7 * b, plain, stl)
    assert_same(found, mixed, 1e-4)


def test_a_particle_of_no_weight_teaches_nothing_and_breaks_nothing():
    """Where its log density is -inf too."""
    log_p, log_w = jnp.float32([1.0, -jnp.inf]), jnp.float32([0.0, -jnp.inf])

    def value(log_p):
        return slope(jax.nn.softmax(log_w), log_p)

    assert np.asarray(jax.grad(value)(log_p)).tolist() == [1.0, 0.0]
    assert value(log_p) == 0


class Coin(LinearGaussian):
    """A model whose q has no reparameterised draws."""

    def posterior(self, x):  # noqa: ARG002
        return dist.Poisson(jnp.exp(self.q_bias)).to_event(1)


def test_draws_that_are_not_reparameterised_are_refused_where_gradients_go_through_them():
    model = LinearGaussian.random(1, 3)
    coin = Coin.__new__(Coin)
    for name, value in vars(model).items():
        object.__setattr__(coin, name, value)
    for made in (objective("iwae", 2), objective("iwae", 2, gradient="dreg")):
        with pytest.raises(UserError, match=r"not reparameterised.*use wake-sleep"):
            made(coin, LINEAR[1], jax.random.key(0))


def test_log_weights_do_not_depend_on_the_estimator():
    model, key = deep(), jax.random.key(2)
    expected = float(iwae(log_weights(model, BITS, key, 5)))
    for g in ("reparam", "stl", "dreg", "gdreg"):
        value = objective("iwae", 5, gradient=g)(model, BITS, jax.random.clone(key))
        assert float(value) == pytest.approx(expected, rel=1e-5)
