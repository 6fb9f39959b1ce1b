"""Gradient estimators against each other and the papers, and the halves that they reach."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from scipy.special import softmax

from cases import quick
from expectations import (
    BITS,
    LINEAR,
    assert_same,
    deep,
    gradient,
    gradient_draws,
    is_encoder,
    parameter_indices,
    shallow,
    size,
    z_scores,
)
from iwae import annealed_particles
from iwae.errors import UserError
from iwae.inference.log_weights import log_weights
from iwae.inference.particles import importance_particles
from iwae.models.vae import VAE
from iwae.objectives import aiwae
from iwae.objectives.bounds import ciwae, elbo, iwae, miwae, renyi
from iwae.objectives.building import objective
from iwae.objectives.gradient_estimators import (
    dreg,
    dreg_alpha,
    piwae_gradient,
    rws_dreg_gradient,
    second_derivatives,
    stl,
)
from iwae.objectives.halves import split_halves
from iwae.objectives.particle_objectives import bound, grouped_importance_objective
from iwae.objectives.surrogates import Coefficients, Estimator, density_surrogate
from iwae.objectives.tvo import tvo, tvo_schedule, tvo_score
from iwae.objectives.wake_sleep import WAKE_DECODER, wake
from iwae.objectives.wake_sleep import asleep as log_q_asleep
from iwae.testing import LinearGaussian
from reference import STANDARD_ERRORS, equal

# Comparisons of estimators


@pytest.mark.parametrize(
    ("name", "encoder_estimator"),
    [pytest.param("iwae", "dreg", marks=pytest.mark.slow), ("elbo", "stl")],
)
def test_gdreg_changes_only_the_gradient_of_the_prior(name, encoder_estimator):
    model = deep()
    a, b = (
        gradient(objective(name, 4, gradient=g), model, BITS) for g in (encoder_estimator, "gdreg")
    )
    assert_same(a.encoder, b.encoder)
    assert_same(a.decoder_hidden, b.decoder_hidden)
    assert size(jax.tree.map(lambda x, y: x - y, a.prior_nets, b.prior_nets)) > 0.1


@pytest.mark.slow
def test_decoder_gradients_do_not_depend_on_the_encoder_estimator():
    model = deep()
    plain = gradient(objective("iwae", 5), model, BITS)
    others = [objective("iwae", 5, gradient=g) for g in ("stl", "dreg")]
    others += [objective("iwae", 5, gradient="dreg-alpha", alpha=0.3), objective("rws", 5)]
    for other in others:
        result = gradient(other, model, BITS)
        for part in ("prior_nets", "decoder_hidden", "output"):
            assert_same(getattr(result, part), getattr(plain, part))
        assert size(jax.tree.map(lambda a, b: a - b, result.encoder, plain.encoder)) > 1e-2


# Coefficients


@pytest.mark.slow
@pytest.mark.parametrize(("m", "k"), [(1, 3), (3, 2)])
def test_closed_form_second_derivatives_match_autodiff(m, k):
    log_w = jnp.float32(np.random.default_rng(0).normal(size=m * k) * 3)
    betas = tvo_schedule("log", 4)
    for reduction in (
        *(elbo, iwae, partial(miwae, m=m), partial(ciwae, beta=0.3), partial(renyi, alpha=0.4)),
        *(partial(tvo, betas=betas), partial(tvo, betas=betas, upper=True)),
    ):
        expected = np.diag(jax.hessian(reduction)(log_w))
        assert second_derivatives(reduction, log_w) == pytest.approx(expected, abs=2e-6)
        assert second_derivatives(lambda w, f=reduction: f(w), log_w) == pytest.approx(
            expected, abs=2e-6
        )


def test_dreg_coefficients_match_the_papers():
    log_w, k, alpha = jnp.float32([0.3, -2.0, 1.0, 0.0]), 4, 0.3
    each = np.float64(log_w)
    w, v = softmax(each), softmax((1 - alpha) * each)
    inner = softmax(each.reshape(2, 2), axis=1).ravel()

    def path_of(estimator, reduction):
        return jax.jit(lambda log_w: estimator.coefficients(reduction, log_w).path)(log_w)

    published = {
        iwae: w**2,
        partial(renyi, alpha=alpha): alpha * v + (1 - alpha) * v**2,
        partial(ciwae, beta=0.2): 0.2 / k + 0.8 * w**2,
        partial(miwae, m=2): inner**2 / 2,
    }
    for reduction, path in published.items():
        assert np.asarray(path_of(dreg(), reduction)) == pytest.approx(path, rel=1e-4)
    result = path_of(dreg_alpha(0.3), iwae)
    assert np.asarray(result) == pytest.approx(0.3 * w + 0.4 * w**2, rel=1e-4)
    result = path_of(rws_dreg_gradient(), iwae)
    assert np.asarray(result) == pytest.approx(w - w**2, rel=1e-4)


def test_tvo_covariances_are_the_gradients_of_its_weighted_sums():
    """The draws, and so their density, are held fixed (Masrani et al., eq. 13)."""
    rng = np.random.default_rng(0)
    log_p, log_q = jnp.float32(rng.normal(size=(2, 5)) * 2)
    betas = (0.0, 0.3, 0.6, 1.0)

    @jax.jit
    def slopes(log_p, log_q):
        def left_sum(log_p, log_q):
            total = 0.0
            for beta, width in zip(betas[:-1], np.diff(betas).tolist(), strict=True):
                log_f = beta * log_p + (1 - beta) * log_q
                w = jax.nn.softmax(log_f - jax.lax.stop_gradient(log_q))
                total += width * jnp.sum(w * (log_p - log_q))
            return total

        return jax.grad(left_sum, (0, 1))(log_p, log_q)

    decoder, encoder = slopes(log_p, log_q)
    made = tvo_score(betas)
    table = jax.jit(lambda log_w: made.coefficients(elbo, log_w))(log_p - log_q)
    assert np.asarray(table.decoder) == pytest.approx(np.asarray(decoder), abs=1e-5)
    assert np.asarray(table.score) == pytest.approx(-np.asarray(encoder), abs=1e-5)


# Gradients of the decoder and of the encoder


@pytest.mark.slow
def test_excluded_half_has_exactly_zero_gradient():
    model = deep()
    decoder_only = gradient(wake(importance_particles, k=3), model, BITS)
    assert size(decoder_only.encoder) == 0
    assert size(decoder_only.output) > 0
    asleep = bound(iwae, k=3, estimator=WAKE_DECODER)
    assert size(gradient(asleep, model, BITS).encoder) == 0
    for name, options in {"aiwae": {}, "piwae": {"m": 2}, "rws": {"phase": "sleep"}}.items():
        full = gradient(objective(name, 3, **options), model, BITS)
        assert size(full.encoder) > 0
        assert size(full.output) > 0
    sleep_only = gradient(lambda model, x, key: log_q_asleep(model, key), model, BITS)  # noqa: ARG005
    assert size(sleep_only.encoder) > 0
    assert size((sleep_only.output, sleep_only.prior_nets, sleep_only.decoder_hidden)) == 0
    for part in ("decoder", "encoder"):
        other = bound(lambda log_w: 0.0 * jnp.sum(log_w), k=1)
        halves = {"decoder": other, "encoder": other, part: bound(iwae, k=3)}
        result = gradient(split_halves(**halves), model, BITS)
        assert (size(result.encoder) > 0) == (part == "encoder")
        assert (size(result.output) > 0) == (size(result.prior_nets) > 0) == (part == "decoder")


@pytest.mark.slow
def test_aiwae_encoder_maximises_the_elbo_and_its_decoder_the_annealed_bound():
    model = deep()
    result = gradient(objective("aiwae", 3, encoder_objective="elbo"), model, BITS)
    assert_same(result.encoder, gradient(bound(elbo, k=1), model, BITS).encoder)
    options = {"betas": np.linspace(0, 1, 5).tolist(), "step_size": 0.1, "n_leapfrog": 5}
    decoder = gradient(wake(partial(annealed_particles, **options), k=3), model, BITS)
    assert size(decoder.encoder) == 0
    for part in ("prior_nets", "decoder_hidden", "output"):
        assert_same(getattr(result, part), getattr(decoder, part))


def expected_log_q(model, p):
    """Return E[log q(z|x)] over draws (z, x) of the linear model p, in nats, up to a constant."""
    w, noise = p.weight, jnp.exp(2 * p.log_scale)
    of_x = w @ w.T + noise * jnp.eye(len(w))
    a = model.q_weight
    covariance = jnp.eye(w.shape[1]) - a @ w - w.T @ a.T + a @ of_x @ a.T  # of z - A x - c
    mean = -a @ p.bias - model.q_bias
    tril = jnp.tril(model.q_tril)
    precision = jnp.linalg.inv(tril @ tril.T)
    spread = jnp.trace(precision @ covariance) + mean @ precision @ mean
    return -spread / 2 - jnp.sum(jnp.log(jnp.diag(tril)))


def test_sleep_gradient_fits_q_to_draws_of_the_model():
    model = LinearGaussian.random(q_shift=0.4, q_scale=0.7)
    exact = ravel_pytree(eqx.filter_jit(eqx.filter_grad(expected_log_q))(model, model))[0]
    maximised = objective("rws", 2, phase="sleep")
    one, other = (
        gradient_draws(maximised, model, jnp.float32(x), 4000) for x in ([2, 1, 0], [0, 1, 3])
    )
    for name, at in parameter_indices(model).items():
        if is_encoder(name):
            np.testing.assert_array_equal(one[:, at], other[:, at])
            assert z_scores(one[:, at], np.asarray(exact)[at]).max() < STANDARD_ERRORS
            assert z_scores(1.2 * one[:, at], np.asarray(exact)[at]).max() > STANDARD_ERRORS
        else:
            assert not np.array_equal(one[:, at], other[:, at])


@pytest.mark.slow
def test_sleep_gradient_of_the_exact_posterior_is_zero():
    model = LinearGaussian.random()
    exact = eqx.filter_grad(expected_log_q)(model, model)
    assert size((exact.q_weight, exact.q_bias, exact.q_tril)) < 1e-3
    draws = gradient_draws(objective("rws", 2, phase="sleep"), model, LINEAR.x, 4000)
    of_encoder = np.concatenate(
        [at for name, at in parameter_indices(model).items() if is_encoder(name)]
    )
    assert z_scores(draws[:, of_encoder], 0.0).max() < STANDARD_ERRORS


@pytest.mark.parametrize("name", quick(["score", "rws-dreg"], "rws-dreg"))
def test_both_phases_average_the_wake_and_sleep_gradients(name):
    model, key = deep(), jax.random.key(0)  # draws of its lower layer depend on the decoder
    wake_key, sleep_key = jax.random.split(key)
    awake = gradient(objective("rws", 3, gradient=name), model, BITS, wake_key)
    asleep = gradient(lambda model, _, key: log_q_asleep(model, key), model, BITS, sleep_key)
    both = objective("rws", 3, phase="both", gradient=name)
    result = gradient(both, model, BITS, jax.random.clone(key))
    halves = jax.tree.map(lambda a, b: (a + b) / 2, awake.encoder, asleep.encoder)
    assert_same(result.encoder, halves)
    for part in ("prior_nets", "decoder_hidden", "output"):
        assert_same(getattr(result, part), getattr(awake, part))


def test_piwae_splits_its_two_bounds_between_the_halves():
    model = shallow()
    apart = split_halves(decoder=bound(iwae, k=6), encoder=grouped_importance_objective(m=3, k=2))
    assert_same(gradient(objective("piwae", 2, m=3), model, BITS), gradient(apart, model, BITS))
    far = eqx.tree_at(lambda m: m.encoder[0].loc.bias, model, 30 * jnp.ones(2))  # weights vanish
    assert_same(gradient(objective("piwae", 2, m=3), far, BITS), gradient(apart, far, BITS), 1e-3)


@pytest.mark.slow
def test_piwae_halves_do_not_learn_from_each_others_bound():
    """The decoder's bound has no gradient in the encoder, and vice versa."""
    nothing = Estimator(lambda _, log_w: Coefficients(*3 * (jnp.zeros_like(log_w),)), score=False)

    def maximised(decoder, encoder):
        estimator = piwae_gradient(decoder, encoder)
        return gradient(bound(partial(miwae, m=3), k=6, estimator=estimator), deep(), BITS)

    decoder_only, full = (maximised(iwae, encoder) for encoder in (nothing, stl()))
    assert size(decoder_only.encoder) == 0
    assert size(full.encoder) > 0
    for part in ("prior_nets", "decoder_hidden", "output"):
        assert equal(getattr(decoder_only, part), getattr(full, part))
        assert size(getattr(full, part)) > 0
    other = maximised(elbo, stl())
    assert_same(other.encoder, full.encoder)
    assert size(jax.tree.map(lambda a, b: a - b, other.output, full.output)) > 1e-2


@pytest.mark.parametrize(
    "k", [4, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2, 3, 5, 6))]
)
def test_two_temperature_aiwae_without_moves_is_iwae_for_the_decoder(monkeypatch, k):
    still = partial(annealed_particles, last_move=False)
    monkeypatch.setattr(aiwae, "annealed_particles", still)
    model, key = shallow(), jax.random.key(0)
    made = aiwae.aiwae(k=k, temperatures=2)

    @jax.jit
    def drawn(key):
        (z, _), _ = still(model, BITS, key, k, betas=[0.0, 1.0], step_size=0.1, n_leapfrog=1)
        return z, jax.vmap(model.posterior(BITS).log_prob)(z)

    z, log_q = drawn(key)

    def iwae_at_the_draws(model, x, _):  # IWAE at the same draws of q
        return iwae(jax.vmap(lambda z: model.log_joint(x, z))(z) - log_q)

    result, iwae_gradient = gradient(made, model, BITS), gradient(iwae_at_the_draws, model, BITS)
    for part in ("decoder_hidden", "output"):
        assert_same(getattr(result, part), getattr(iwae_gradient, part))
    assert_same(result.encoder, gradient(bound(elbo, k=1), model, BITS).encoder)
    value, info = eqx.filter_jit(made.terms)(model, BITS, jax.random.clone(key), made.init())
    expected = float(eqx.filter_jit(iwae_at_the_draws)(model, BITS, None))
    assert [float(value), float(info["iwae"])] == pytest.approx([expected] * 2, rel=1e-5)


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
def test_gradients_do_not_depend_on_the_chunk_of_particles(name):
    model = shallow() if name == "elbo-analytic" else deep()
    method, k, options = CHUNKED[name]
    full, parts = (objective(method, k, chunk=c, **options) for c in (k * 6, 2))
    key = jax.random.key(3)
    a, b = (eqx.filter_jit(eqx.filter_value_and_grad(o))(model, BITS, key) for o in (full, parts))
    assert a[0] == pytest.approx(float(b[0]), rel=1e-6)
    assert_same(a[1], b[1])


@pytest.mark.slow
def test_memory_of_a_chunked_objective_does_not_grow_with_particles():
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
    assert (
        memory(5000, 50) < memory(500, 50) + 5000 * 200
    )  # scalars are kept for each particle, not layers


def test_gdreg_rejects_models_of_unknown_priors():
    with pytest.raises(UserError, match="gdreg needs a VAE"):
        objective("iwae", 2, gradient="gdreg")(LINEAR[0], LINEAR[1], jax.random.key(0))


# Planted faults


def test_all_three_coefficients_of_an_estimator_count():
    model = shallow()

    def as_table(reduction, log_w):
        a = jax.grad(reduction)(log_w)
        return Coefficients(a, a, 0.3 * a)

    plain, sticking = (
        gradient(objective("elbo", 3, gradient=g), model, BITS) for g in ("reparam", "stl")
    )
    result = gradient(bound(elbo, k=3, estimator=Estimator(as_table)), model, BITS)
    mixed = jax.tree.map(lambda a, b: 0.3 * a + 0.7 * b, plain, sticking)
    assert_same(result, mixed, 1e-4)


def test_particle_of_zero_weight_has_zero_gradient():
    """Even where its log density is -inf."""
    log_p, log_w = jnp.float32([1.0, -jnp.inf]), jnp.float32([0.0, -jnp.inf])

    def value(log_p):
        return density_surrogate(jax.nn.softmax(log_w), log_p)

    assert np.asarray(jax.grad(value)(log_p)).tolist() == [1.0, 0.0]
    assert value(log_p) == 0


class Coin(LinearGaussian):
    """A model whose q has no reparameterised draws."""

    def posterior(self, x):  # noqa: ARG002
        return dist.Poisson(jnp.exp(self.q_bias)).to_event(1)


def test_gradients_through_draws_without_reparameterisation_are_rejected():
    model = LinearGaussian.random(1, 3)
    coin = Coin.__new__(Coin)
    for name, value in vars(model).items():
        object.__setattr__(coin, name, value)
    for made in (
        *(objective("iwae", 2), objective("iwae", 2, gradient="dreg")),
        *(objective("dais", 2), objective("dais", 2, temperatures=1)),
    ):
        with pytest.raises(UserError, match=r"not reparameterised.*use wake-sleep"):
            made(coin, LINEAR[1], jax.random.key(0))


@pytest.mark.slow
def test_log_weights_do_not_depend_on_the_estimator():
    model, key = shallow(), jax.random.key(2)
    expected = float(iwae(eqx.filter_jit(log_weights)(model, BITS, key, 5)))
    for g in ("reparam", "stl", "dreg", "gdreg"):
        made = eqx.filter_jit(objective("iwae", 5, gradient=g))
        value = made(model, BITS, jax.random.clone(key))
        assert float(value) == pytest.approx(expected, rel=1e-5)
