"""Annealed importance sampling: closed forms, HMC, numerical precision and planted faults."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc import hmc, integrators
from jax.extend.core import jaxprs_in_params
from scipy.special import expit, logsumexp
from scipy.stats import norm

from cases import quick
from iwae.errors import UserError
from iwae.evaluation import bdmc
from iwae.evaluation.bdmc import bidirectional_bounds
from iwae.evaluation.examples import gather_examples, map_examples
from iwae.evaluation.likelihood import log_likelihoods
from iwae.evaluation.posterior import posterior_grid
from iwae.evaluation.standard_errors import jackknife_error_of_weights, monte_carlo_error
from iwae.inference import annealing, kernels
from iwae.inference.annealing import (
    anneal,
    annealed_particles,
    annealing_chain_keys,
    annealing_path,
    annealing_steps,
    reverse_annealed_log_weights,
    start_annealing,
)
from iwae.inference.log_weights import log_mean_exp
from iwae.inference.particles import Particles, importance_particles
from iwae.inference.temperatures import linear_schedule, sigmoid_schedule
from iwae.inference.tuning import tune_step_size
from iwae.models.vae import VAE
from iwae.testing import LinearGaussian
from reference import STANDARD_ERRORS, assert_mean, distance

# False alarms: a mean deviates by 5 standard errors once in 1.7 million (normal). This file
# tests about 150 means, so that it fails for one in 10,000 new sets of keys.

STRONG = 2 * STANDARD_ERRORS
"""Deviation required of a planted fault, so that other keys would detect it too."""

X = jnp.float32([2.0, -0.5, 0.3])
COARSE = {"betas": linear_schedule(4), "step_size": 0.9, "n_leapfrog": 3}
"""Few temperatures and large steps: 10% to 20% of the moves are rejected."""


class WithPrior(LinearGaussian):
    """The same model with a declared prior."""

    def log_prior(self, z):
        return self.prior().log_prob(z)


def wrong_q(kind=LinearGaussian, *, q_shift=(0.5, -0.4), q_scale=1.3):
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, 2)), rng.normal(1.0, 1.0, 3)
    return kind(weight, bias, 0.7, q_shift=np.asarray(q_shift), q_scale=q_scale)


@eqx.filter_jit
def closed_form(model):
    exact = model.exact_posterior(X)
    return exact.mean, exact.covariance_matrix, model.log_evidence(X)


def moments(model):
    """Return the mean and covariance of p(z|x), and log p(x)."""
    return tuple(np.float64(value) for value in closed_form(model))


def residuals(model, particles):
    """Return values whose expectation is zero if the particles are properly weighted for p(z|x)."""
    mean, covariance, log_p = moments(model)
    w = np.exp(np.float64(particles.log_w) - log_p)
    z = np.float64(particles.z) - mean
    first = [w * z[:, i] for i in range(2)]
    second = [w * (z[:, i] * z[:, j] - covariance[i, j]) for i, j in ((0, 0), (0, 1), (1, 1))]
    return [w - 1, *first, *second]


def run(model, key, k=20_000, **options):
    # A new function each time, so that it is compiled with the planted fault.
    options = COARSE | options
    return jax.jit(lambda key: annealed_particles(model, X, key, k, **options))(key)


# Particles


@pytest.mark.parametrize("start", quick(["posterior", "prior"], "posterior"))
def test_annealed_particles_are_properly_weighted(start):
    model = wrong_q(WithPrior)
    particles, info = run(model, jax.random.key(0), start=start)
    for values in residuals(model, particles):
        assert_mean(values, 0.0, error_at_most=0.02)
    assert info["acceptance"].shape == (3,)
    assert (info["acceptance"] < 0.97).all()  # some moves are rejected, which tests rejection


def test_two_temperatures_give_importance_weights_and_one_move():
    model, key = wrong_q(), jax.random.key(1)
    particles, _ = run(model, key, 5, betas=linear_schedule(2))

    @jax.jit
    def by_hand(key):
        q = model.posterior(X)
        draws = jax.vmap(q.sample)(annealing_chain_keys(key, jnp.arange(5))[0])
        return draws, jax.vmap(lambda z: model.log_joint(X, z) - q.log_prob(z))(draws)

    draws, log_w = by_hand(jax.random.clone(key))
    assert particles.log_w == pytest.approx(np.asarray(log_w), rel=1e-5)
    assert not np.allclose(particles.z, draws, atol=1e-2)


def test_every_weight_is_the_evidence_under_the_exact_posterior():
    model = wrong_q(q_shift=0.0, q_scale=1.0)

    @jax.jit
    def both(key):
        forward, backward = jax.random.split(key)
        z = jnp.float32([3.0, -3.0])
        particles, _ = annealed_particles(model, X, forward, 50, **COARSE)
        return particles.log_w, reverse_annealed_log_weights(model, X, z, backward, 50, **COARSE)[0]

    forward, backward = both(jax.random.key(2))
    assert forward == pytest.approx(np.full(50, moments(model)[2]), rel=1e-5)
    assert backward == pytest.approx(np.full(50, -moments(model)[2]), rel=1e-5)


def test_chains_do_not_depend_on_the_chunk():
    model, key = wrong_q(), jax.random.key(3)
    full, _ = run(model, key, 7)
    part, _ = run(model, key, 3, first=jnp.asarray(2))
    assert part.z == pytest.approx(np.asarray(full.z[2:5]), rel=1e-4)
    assert part.log_w == pytest.approx(np.asarray(full.log_w[2:5]), rel=1e-5)
    assert len(np.unique(full.log_w)) == 7


def test_no_gradient_flows_through_the_chains():
    def bound(model):
        return log_mean_exp(annealed_particles(model, X, jax.random.key(4), 3, **COARSE)[0].log_w)

    gradient = eqx.filter_jit(eqx.filter_grad(bound))(wrong_q())
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_zero_joint_density_gives_zero_weights():
    class Truncated(LinearGaussian):
        def log_joint(self, x, z):
            return jnp.where(z[0] > -1, super().log_joint(x, z), -jnp.inf)

    model = wrong_q(Truncated)
    log_w = run(model, jax.random.key(5))[0].log_w
    mean, covariance, log_p = moments(model)
    inside = norm.sf(-1, mean[0], np.sqrt(covariance[0, 0]))
    assert 0.05 < inside < 0.95
    assert 0.05 < np.isneginf(log_w).mean() < 0.95
    assert_mean(np.exp(np.float64(log_w) - log_p), inside, error_at_most=0.01)


# Planted faults, each detected by a test of the weights


def weigh_after_the_move(patch):
    move, add = annealing.annealing_move, annealing.update_annealing_weights

    def move_then_weigh(path, states, keys, step, n_leapfrog):
        states, acceptance = move(path, states, keys, step, n_leapfrog)
        return add(states, step.delta), acceptance

    patch(annealing, "update_annealing_weights", lambda states, delta: states)  # noqa: ARG005
    patch(annealing, "annealing_move", move_then_weigh)


def move_at_the_old_temperature(patch):
    move = annealing.annealing_move

    def move_late(path, states, keys, step, n_leapfrog):
        old = step._replace(beta=step.beta - step.delta)
        return move(path, states, keys, old, n_leapfrog)

    patch(annealing, "annealing_move", move_late)


def accept_everything(patch):
    def always(key, delta_energy, old, new):  # noqa: ARG001
        return new, (True, jnp.float32(1), None)

    proposal = partial(hmc.hmc_proposal, sample_proposal=always)
    patch(hmc, "build_kernel", partial(hmc.build_kernel, build_proposal=proposal))


def kinetic_sign(patch):
    metric = hmc.metrics.default_metric

    def negative(mass):
        right = metric(mass)
        return right._replace(kinetic_energy=lambda v, position=None: -right.kinetic_energy(v))  # noqa: ARG005

    patch(hmc.metrics, "default_metric", negative)


def missing_half_step(patch):
    patch(integrators, "velocity_verlet_coefficients", [0.5, 1.0, 0.0])


def missing_log_q(patch):
    start_density = annealing.start_density

    class Flat:
        def __init__(self, q):
            self.sample, self.log_prob = q.sample, lambda z: 0 * q.log_prob(z)

    patch(annealing, "start_density", lambda *args: Flat(start_density(*args)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        weigh_after_the_move,
        move_at_the_old_temperature,
        accept_everything,
        kinetic_sign,
        missing_half_step,
        missing_log_q,
    ],
)
def test_planted_fault_is_detected(fault, monkeypatch):
    fault(monkeypatch.setattr)
    model = wrong_q()
    particles, _ = run(model, jax.random.key(0))
    deviations = [abs(distance(values, 0.0)) for values in residuals(model, particles)]
    assert max(deviations) > STRONG


@pytest.mark.slow
def test_step_size_adaptation_during_measurement_is_detected(monkeypatch):
    move = annealing.annealing_move

    def adapt(path, states, keys, step, n_leapfrog):
        _, acceptance = move(path, states, keys, step, n_leapfrog)
        better = step.step_size * jnp.exp(jnp.mean(acceptance) - 0.65)
        return move(path, states, keys, step._replace(step_size=better), n_leapfrog)

    monkeypatch.setattr(annealing, "annealing_move", adapt)
    with pytest.raises(AssertionError):
        test_chains_do_not_depend_on_the_chunk()


def test_log_mean_exp_shifted_by_the_minimum_is_detected(monkeypatch):
    log_w = jnp.float32([-500.0, -100.0])
    fake = Particles(jnp.zeros((2, 2)), log_w), {"acceptance": jnp.ones(1)}
    monkeypatch.setattr(bdmc, "annealed_particles", lambda *_, **__: fake)
    monkeypatch.setattr(bdmc, "reverse_annealed_log_weights", lambda *_, **__: (-log_w, fake[1]))

    class Stub(LinearGaussian):
        def sample(self, key):  # noqa: ARG002
            return X[:2], X

    def bounds():
        both = bidirectional_bounds(wrong_q(Stub), jax.random.key(6), 2)
        return np.float64([both["lower"], both["upper"]])

    assert bounds() == pytest.approx([-100 - np.log(2), -(500 - np.log(2))])

    def with_minimum(log_w):
        low = jnp.min(log_w)
        return low + jnp.log(jnp.mean(jnp.exp(log_w - low)))

    monkeypatch.setattr(bdmc, "log_mean_exp", with_minimum)
    assert not np.isfinite(bounds()).any()


# Forward and reverse chains, in several dimensions


SIMULATED, CHAINS = 200, 8


def high_dimensional(n_latent, shift, scale):
    """Return a random model; q is off by `shift` posterior standard deviations and by `scale`."""
    rng = np.random.default_rng(n_latent)
    n_data = n_latent * 3 // 2
    weight, bias = rng.normal(size=(n_data, n_latent)) / np.sqrt(n_latent), rng.normal(size=n_data)
    s = rng.uniform(0.5, 1.0)
    direction = rng.normal(size=n_latent)
    covariance = np.linalg.inv(np.eye(n_latent) + weight.T @ weight / s**2)
    whitened = shift * direction / np.linalg.norm(direction)
    q_shift = np.linalg.cholesky(covariance) @ whitened
    return LinearGaussian(weight, bias, s, q_shift=q_shift, q_scale=scale)


@eqx.filter_jit
def log_weight_errors(model, keys, options):
    """Return log weights of forward and reverse chains and importance samples, minus the truth."""

    def one(key):
        keys = jax.random.split(key, 4)
        z, x = model.sample(keys[0])
        forward, _ = annealed_particles(model, x, keys[1], CHAINS, **options)
        backward, _ = reverse_annealed_log_weights(model, x, z, keys[2], CHAINS, **options)
        importance, _ = importance_particles(model, x, keys[3], 200)
        log_p = model.log_evidence(x)
        return forward.log_w - log_p, backward + log_p, importance.log_w - log_p

    return jax.vmap(one)(keys)


def simulate(model, key, n=SIMULATED, **options):
    results = log_weight_errors(model, jax.random.split(key, n), options)
    return [np.float64(result) for result in results]


@pytest.mark.slow
@pytest.mark.parametrize(("n_latent", "step_size"), [(2, 0.4), (10, 0.45), (50, 0.35)])
def test_both_bounds_agree_with_the_closed_form(n_latent, step_size):
    off = 1 / np.sqrt(n_latent)
    options = {
        "betas": jnp.asarray(sigmoid_schedule(13)),
        "step_size": jnp.float32(step_size),
        "n_leapfrog": 4,
    }
    for shift, scale in ((1.0, 1.0), (0.0, 1 + 0.6 * off), (0.0, 1 - 0.35 * off)):
        model = high_dimensional(n_latent, shift, scale)
        forward, backward, importance = simulate(model, jax.random.key(7), **options)
        for log_w in (forward, backward, importance):  # means over an example are independent
            assert_mean(np.exp(log_w).mean(axis=1), 1.0, error_at_most=0.04)
        lower, upper, bound = (
            sign * (logsumexp(log_w, axis=1) - np.log(log_w.shape[1]))
            for sign, log_w in ((1, forward), (-1, backward), (1, importance))
        )
        assert distance(lower, 0.0) < STANDARD_ERRORS
        assert distance(upper, 0.0) > -STANDARD_ERRORS
        assert distance(upper - lower, 0.0) > -STANDARD_ERRORS
        for values, log_w in ((lower, forward), (bound, importance)):
            error = monte_carlo_error(
                np.asarray(jax.vmap(jackknife_error_of_weights)(jnp.float32(log_w)))
            )
            assert error < 0.05
            assert abs(values.mean()) < STANDARD_ERRORS * error


def gap(log_w):
    """Return E[-log w] of weights with E[w] = 1, which serves as a control variate."""
    return (np.expm1(log_w) - log_w).mean()


def rates():
    """Return the slopes of log gap against log T of single chains, forward and reverse."""
    temperatures, options = (4, 64), {"step_size": 0.5, "n_leapfrog": 3}
    model = wrong_q()

    def gaps(t):
        betas, keys = linear_schedule(t + 1), jax.random.split(jax.random.key(8), 300)

        def one(key):
            keys = jax.random.split(key, 3)
            z, x = model.sample(keys[0])
            forward, _ = annealed_particles(model, x, keys[1], CHAINS, betas=betas, **options)
            backward, _ = reverse_annealed_log_weights(
                model, x, z, keys[2], CHAINS, betas=betas, **options
            )
            log_p = model.log_evidence(x)
            return forward.log_w - log_p, backward + log_p

        return [gap(np.float64(log_w)) for log_w in jax.jit(jax.vmap(one))(keys)]

    few, many = (np.log(gaps(t)) for t in temperatures)
    return (many - few) / np.log(temperatures[1] / temperatures[0])


@pytest.mark.slow
def test_both_gaps_decrease_as_one_over_the_number_of_temperatures(monkeypatch):
    assert rates() == pytest.approx([-1, -1], abs=0.1)

    def stay(path, states, keys, step, n_leapfrog):  # noqa: ARG001
        return states, jnp.ones(CHAINS)

    monkeypatch.setattr(annealing, "annealing_move", stay)
    assert abs(rates()[0]) < 0.1  # power: without moves the gap does not decrease


# HMC


def small_path():
    model = VAE(4, (3,), ((5,),), key=jax.random.key(0))
    model = eqx.tree_at(lambda m: m.output.weight, model, replace_fn=lambda w: 5 * w)
    return annealing_path(model, jnp.float32([1, 0, 1, 1]), "posterior")


def flow(path, beta=0.6, step_size=0.4, n_leapfrog=3):
    """Return the map of (z, v) `[6]` by the leapfrog integrator."""

    def kinetic(v):
        return 0.5 * jnp.sum(v**2)

    step = kernels.leapfrog(jnp.float32(beta), n_leapfrog)(path.evaluate, kinetic)

    def run(phase):
        z, v = jnp.split(phase, 2)
        point = path.evaluate(z)
        log_f = point.log_f(jnp.float32(beta))
        state = integrators.IntegratorState(z, v, log_f, point)
        state = step(state, jnp.float32(step_size))
        return jnp.concatenate([state.position, state.momentum])

    return jax.jit(run)


PHASE = jnp.float32([0.3, -1.0, 0.5, 1.2, -0.7, 0.4])
FLIP = jnp.float32([1, 1, 1, -1, -1, -1])


@pytest.mark.slow
def test_leapfrog_is_reversible_and_preserves_volume():
    go = flow(small_path())
    there = go(PHASE)
    assert np.abs(there - PHASE).max() > 0.5
    assert go(there * FLIP) * FLIP == pytest.approx(np.asarray(PHASE), abs=1e-5)
    assert np.linalg.det(jax.jit(jax.jacfwd(go))(PHASE)) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_leapfrog_without_a_half_step_is_not_reversible(monkeypatch):
    missing_half_step(monkeypatch.setattr)
    go = flow(small_path())
    back = go(go(PHASE) * FLIP) * FLIP
    assert np.abs(back - PHASE).max() > 0.1


def moves_from_the_posterior():
    """Return exact posterior draws before and after one HMC move at beta = 1, standardised."""
    model, n = wrong_q(), 20_000
    path = annealing_path(model, X, "posterior")
    z_keys, keys = annealing_chain_keys(jax.random.key(9), jnp.arange(n))

    @jax.jit
    def run(z, keys):
        options = {"beta": jnp.float32(1), "step_size": jnp.float32(0.9), "n_leapfrog": 3}
        return jax.vmap(
            lambda z, key: kernels.move(key, z, path.evaluate(z), path.evaluate, **options)[::2]
        )(z, keys)

    before = jax.jit(jax.vmap(lambda key: model.exact_posterior(X).sample(key)))(z_keys)
    after, acceptance = run(before, keys)
    mean, covariance, _ = moments(model)
    scale = np.sqrt(np.diag(covariance))
    return (np.float64(before) - mean) / scale, (np.float64(after) - mean) / scale, acceptance


def test_hmc_leaves_the_exact_posterior_invariant_and_is_reversible():
    before, after, acceptance = moves_from_the_posterior()
    assert 0.5 < acceptance.mean() < 0.95
    for f in (lambda z: z[:, 0], lambda z: z[:, 1] ** 2, lambda z: z[:, 0] * z[:, 1]):
        assert_mean(f(after) - f(before), 0.0, error_at_most=0.03)
        # Reversible: each pair is as likely in either order.
        forwards, backwards = f(before) * after[:, 0] ** 3, f(after) * before[:, 0] ** 3
        assert_mean(forwards - backwards, 0.0, error_at_most=0.1)
    assert np.corrcoef(before[:, 0], after[:, 0])[0, 1] < 0.7  # and the chains do move


@pytest.mark.slow
def test_accepting_every_move_breaks_invariance(monkeypatch):
    accept_everything(monkeypatch.setattr)
    before, after, _ = moves_from_the_posterior()
    shifts = after[:, 0] ** 2 - before[:, 0] ** 2, after[:, 1] ** 2 - before[:, 1] ** 2
    assert max(abs(distance(shift, 0.0)) for shift in shifts) > STRONG


# Cost, precision, memory


def count_calls(jaxpr, name):
    """Count the executions of a primitive, loop iterations included."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == name
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jaxprs_in_params(equation.params):
            total += times * count_calls(inner, name)
    return total


def test_encoder_runs_once_and_decoder_once_per_leapfrog_step():
    class Marked(LinearGaussian):
        def posterior(self, x):
            return super().posterior(jnp.sinh(x))

        def log_joint(self, x, z):
            return super().log_joint(x, jnp.tan(z))

    model, options = wrong_q(Marked), {**COARSE, "betas": linear_schedule(6), "n_leapfrog": 4}
    jaxpr = jax.make_jaxpr(lambda key: annealed_particles(model, X, key, 2, **options)[0])(
        jax.random.key(0)
    )
    assert count_calls(jaxpr.jaxpr, "sinh") == 1
    assert count_calls(jaxpr.jaxpr, "tan") == 1 + 5 * 4


@pytest.fixture
def full_compilation():
    """Enable compiler optimisations, which must not undo compensated sums."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def increments(n):
    """Return n weight increments, as of a chain of n temperatures, summing to about -550 nats."""
    noise = 0.01 * np.random.default_rng(0).normal(size=(n, 3))
    return np.float32((-550 + noise) / n)


def add_up(terms):
    zero = jnp.zeros(terms.shape[1])

    def add(total, term):
        return total.add(term), None

    return np.float64(
        jax.jit(lambda t: jax.lax.scan(add, annealing.Total(zero, zero), t)[0].value)(terms)
    )


@pytest.mark.usefixtures("full_compilation")
def test_ten_thousand_increments_sum_accurately_in_float32(monkeypatch):
    terms = increments(10_000)
    exact = np.float64(terms).sum(axis=0)
    assert np.abs(add_up(terms) - exact).max() <= 0.5001 * np.spacing(np.float32(550))

    def plain(total, term):
        return annealing.Total(total.value + term, total.excess)

    monkeypatch.setattr(annealing.Total, "add", plain)
    assert np.abs(add_up(terms) - exact).max() > 5e-4  # a printed digit is lost


@pytest.mark.slow
@pytest.mark.usefixtures("full_compilation")
def test_chain_of_ten_thousand_temperatures_agrees_with_float64():
    model, x = wrong_q(), 8 * X  # log p(x) is about -100 nats
    betas = sigmoid_schedule(10_000)
    steps = annealing_steps(betas, 0.5, 1)

    @jax.jit
    def run(key):
        path = annealing_path(model, x, "posterior")
        start_keys, keys = annealing_chain_keys(key, jnp.arange(2))
        begun = start_annealing(path, start_keys)

        def ratio(states, step):  # noqa: ARG001
            return {"ratio": jax.vmap(kernels.Point.log_ratio)(states.point)}

        end, info = anneal(path, begun, keys, steps, 1, ratio)
        return end.log_w.value, ratio(begun, None)["ratio"], info["ratio"]

    log_w, first, others = (np.float64(value) for value in run(jax.random.key(10)))
    ratios = np.concatenate([first[None], others[:-1]])
    exact = (np.diff(np.float64(betas))[:, None] * ratios).sum(axis=0)
    assert (exact < -60).all()
    assert log_w == pytest.approx(exact, abs=1e-4)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_temperatures():
    model = wrong_q()

    def temporary_bytes(temperatures):
        options = {**COARSE, "betas": linear_schedule(temperatures)}
        run = jax.jit(lambda key: annealed_particles(model, X, key, 100, **options)[0])
        return run.lower(jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary_bytes(10), temporary_bytes(1000)
    assert many - few < 1000 * 4 * 8  # the temperatures, but not the states of the chains


# Other models and evaluation


@pytest.mark.slow
def test_likelihoods_of_all_binary_examples_sum_to_one():
    model = VAE(3, (1, 1), ((3,), (2,)), key=jax.random.key(1))
    model = eqx.tree_at(lambda m: m.output.weight, model, replace_fn=lambda w: 6 * w)
    xs = np.array([[i & 1, i >> 1 & 1, i >> 2] for i in range(8)], np.float32)
    options = {"betas": linear_schedule(6), "step_size": 0.7, "n_leapfrog": 3, "start": "prior"}
    sampler = partial(annealed_particles, **options)

    def weights(model, x, key):
        return sampler(model, x, key, 2000)[0].log_w

    log_w = gather_examples(map_examples(weights, model, xs, jax.random.key(11), batch_size=4))
    assert_mean(np.exp(log_w).sum(axis=0), 1.0, error_at_most=0.01)
    for x, values in zip(xs, log_w, strict=True):
        limits = ((-7.0, 7.0), (-7.0, 7.0))
        grid = posterior_grid(model, jnp.asarray(x), jax.random.key(0), limits=limits)
        assert_mean(np.exp(values - grid.log_evidence), 1.0, error_at_most=0.02)


@pytest.mark.slow
def test_log_likelihoods_accept_annealed_particles():
    model = wrong_q()
    xs = np.stack([X, -X, 0 * X])
    sampler = partial(annealed_particles, **{**COARSE, "betas": linear_schedule(9)})
    values = log_likelihoods(model, xs, jax.random.key(12), k=600, chunk_size=200, sampler=sampler)
    exact = jax.jit(jax.vmap(model.log_evidence))(xs)
    assert values == pytest.approx(np.asarray(exact), abs=0.15)


# Step sizes


@pytest.mark.slow
def test_tuned_step_sizes_reach_the_target_on_held_out_examples():
    model = high_dimensional(10, 1.0, 1.2)
    options, target = {"betas": sigmoid_schedule(12), "n_leapfrog": 4}, 0.7
    draw = jax.jit(jax.vmap(lambda key: model.sample(key)[1]))
    pilot, others = np.split(np.asarray(draw(jax.random.split(jax.random.key(13), 40))), 2)
    key = jax.random.key(14)
    sizes = tune_step_size(model, pilot, key, target=target, initial=5.0, chains=8, **options)
    assert sizes.shape == (11,)

    @jax.jit
    def acceptance(xs):
        def one(x):
            particles = annealed_particles(
                model, x, jax.random.key(15), 40, step_size=sizes, **options
            )
            return particles[1]["acceptance"]

        return jax.vmap(one)(xs).mean(axis=0)

    reached = np.asarray(acceptance(jnp.asarray(others)))
    assert reached == pytest.approx(np.full(11, target), abs=0.1)
    assert reached.mean() == pytest.approx(target, abs=0.04)


# Schedules and errors


def test_schedules_match_their_formulas():
    assert linear_schedule(5) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    t = np.arange(11)
    raw = expit(4 * (2 * t / 10 - 1))
    expected = (raw - raw[0]) / (raw[-1] - raw[0])
    assert sigmoid_schedule(11) == pytest.approx(expected, abs=1e-6)
    assert sigmoid_schedule(11, delta=1e-3) == pytest.approx(linear_schedule(11), abs=1e-6)
    many = sigmoid_schedule(10_000)
    assert (many[0], many[-1]) == (0, 1)
    assert (np.diff(many) > 0).all()


def invalid_call(**options):
    return lambda: annealed_particles(wrong_q(), X, jax.random.key(0), 2, **{**COARSE, **options})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (invalid_call(betas=[0.0]), "at least two temperatures"),
        (invalid_call(betas=[0.1, 1.0]), "go from 0.1 to 1; they must go from 0 to 1"),
        (invalid_call(betas=[0.0, 0.5]), "go from 0 to 0.5"),
        (invalid_call(betas=[0.0, 0.5, 0.5, 1.0]), "temperature 2 is 0.5 after 0.5"),
        (
            invalid_call(step_size=[0.1, 0.1]),
            "for each temperature after the first, of which there are 3",
        ),
        (invalid_call(step_size=0.0), "positive"),
        (invalid_call(step_size=np.nan), "positive"),
        (invalid_call(n_leapfrog=0), "n_leapfrog is 0"),
        (invalid_call(start="middle"), "no start 'middle'; known: posterior, prior"),
        (invalid_call(start="prior"), r"a method log_prior\(z\)"),
        (lambda: linear_schedule(1), "1 temperatures; a schedule needs at least two"),
        (lambda: sigmoid_schedule(5, delta=0.0), "delta is 0"),
    ],
)
def test_invalid_arguments_raise_user_errors(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": np.zeros((0, 3))}, "needs examples"),
        ({"target": 1.0}, "target is 1.0"),
        ({"initial": -1.0}, "positive"),
    ],
)
def test_tuning_rejects_invalid_options(options, message):
    usual = {"examples": np.asarray(X)[None], "betas": linear_schedule(3), "n_leapfrog": 2}
    with pytest.raises(UserError, match=message):
        tune_step_size(wrong_q(), key=jax.random.key(0), **(usual | options))
