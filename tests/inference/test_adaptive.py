"""Adaptive temperatures: closed forms, constant progress along a Gaussian path, and runs."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import small
from cases import quick
from iwae import anneal_run, bdmc_run
from iwae.errors import UserError
from iwae.inference.adaptive import FLOOR, adaptive_schedule, adaptive_temperatures
from iwae.inference.particles import particle_keys
from iwae.inference.temperatures import as_betas, linear_schedule
from iwae.results import ais
from iwae.results.ais import PILOT_EXAMPLES, Annealing, ais_keys, freeze_ais
from iwae.results.measure import Replicate
from iwae.testing import LinearGaussian


def test_constant_variance_gives_the_closed_form_rate():
    grid = np.linspace(0, 1, 2001)
    betas = adaptive_temperatures(grid, np.full(2000, 3.0), 11).astype(np.float64)
    # The integral of 1 - beta is beta - beta^2 / 2, in total 1/2; the floor adds beta.
    reached = (1 - FLOOR) * (2 * betas - betas**2) + FLOOR * betas
    np.testing.assert_allclose(reached, np.linspace(0, 1, 11), atol=1e-6)


def test_temperatures_concentrate_where_the_variance_is():
    grid = np.linspace(0, 1, 101)
    variances = np.where(grid[1:] < 0.1, 100.0, 0.0)
    betas = adaptive_temperatures(grid, variances, 1001)
    assert np.mean(betas < 0.1) == pytest.approx(1 - FLOOR * 0.9, abs=2e-3)
    as_betas(betas)
    np.testing.assert_allclose(
        adaptive_temperatures(grid, np.zeros(100), 5), linear_schedule(5), atol=1e-6
    )
    with pytest.raises(UserError, match="not finite where some chains start"):
        adaptive_temperatures(grid, np.full(100, np.nan), 5)


def remaining_divergence(beta, q, p):
    """Return KL(f_beta || p) on the path between Gaussians q and p, given as (mean, variance)."""
    precision = (1 - beta) / q[1] + beta / p[1]
    mean = ((1 - beta) * q[0] / q[1] + beta * p[0] / p[1]) / precision
    variance = 1 / precision
    return 0.5 * (variance / p[1] + (mean - p[0]) ** 2 / p[1] - 1 - np.log(variance / p[1]))


@pytest.mark.parametrize("start", quick(["posterior", "prior"], "posterior"))
def test_divergence_decreases_by_equal_amounts(start):
    class WithPrior(LinearGaussian):
        def log_prior(self, z):
            return self.prior().log_prob(z)

    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, 1)), rng.normal(size=3)
    model = WithPrior(weight, bias, 0.3, q_shift=0.6, q_scale=1.5)
    x = np.float32([[1.0, -0.5, 0.3]])
    more = {"n_leapfrog": 4, "chains": 4000, "start": start}
    betas = adaptive_schedule(model, x, jax.random.key(0), 9, **more)
    exact, q = model.exact_posterior(jnp.asarray(x[0])), model.posterior(jnp.asarray(x[0]))
    first = (q.mean[0], q.variance[0]) if start == "posterior" else (0.0, 1.0)
    left = remaining_divergence(
        np.float64(betas), np.float64(first), np.float64([exact.mean[0], exact.variance[0]])
    )
    drops = -np.diff(left) / left[0]
    np.testing.assert_allclose(drops, 1 / 8, atol=0.02)
    linear_drops = -np.diff(
        remaining_divergence(
            linear_schedule(9), np.float64(first), np.float64([exact.mean[0], exact.variance[0]])
        )
    )
    assert linear_drops.max() > 2 * linear_drops.mean()


@pytest.mark.slow
def test_temperatures_are_tuned_on_training_examples_and_frozen(tmp_path, monkeypatch):
    run = small.unmeasured(small.finished(), tmp_path / "run")
    seen = []

    def adapt(model, examples, key, temperatures, **more):
        seen.append((len(examples), jax.random.key_data(key).tolist()))
        return adaptive_schedule(model, examples, key, temperatures, **more)

    monkeypatch.setattr(ais, "adaptive_schedule", adapt)
    short = Annealing(temperatures=20, chains=4, leapfrog=2, schedule="adaptive")
    record = anneal_run(run, annealing=short, examples=20)
    name = "test-final-ais-T20-c4-l2-adaptive-posterior-n20"
    with np.load(run / "evaluations" / f"{name}.npz", allow_pickle=False) as file:
        betas, sizes = file["betas_0_20"], file["step_sizes_0_20"]
    assert (len(betas), len(sizes), betas[0], betas[-1]) == (20, 19, 0, 1)
    assert record["annealing"]["schedule"] == "adaptive"
    assert [count for count, _ in seen] == [32, 32]
    used = {*map(str, jax.random.key_data(jnp.stack(ais_keys(0, 20))).tolist())}
    assert not used & {str(key) for _, key in seen}
    assert bdmc_run(run, annealing=short, examples=20, k=20)["gap"] > 0


def test_pilots_share_no_key(monkeypatch):
    keys = []

    def note(key, result):
        each = particle_keys(key, jnp.arange(PILOT_EXAMPLES))
        used = jax.random.key_data(jnp.concatenate([key[None], each]))
        keys.append({*map(str, used.tolist())})
        return result

    for name in ("adaptive_schedule", "tune_step_size"):
        monkeypatch.setattr(ais, name, lambda *args, **_: note(args[2], np.ones(20)))
    subject = SimpleNamespace(seed=0, settings=lambda *_, **more: more)
    kept = SimpleNamespace(array=lambda settings, make: make())  # noqa: ARG005
    one = Replicate(subject, 0, None, kept)
    with jax.debug_key_reuse(False):  # keys are read, not consumed
        freeze_ais(one, Annealing(schedule="adaptive"), 20, lambda: None)
    assert len(keys) == 2
    assert not keys[0] & keys[1]


def test_invalid_arguments_raise_user_errors():
    model = LinearGaussian.random()
    for examples, count, message in (
        (np.zeros((0, 3), np.float32), 5, "needs examples"),
        (np.zeros((1, 3), np.float32), 1, "1 temperatures"),
    ):
        with pytest.raises(UserError, match=message):
            adaptive_schedule(model, examples, jax.random.key(0), count, n_leapfrog=1)
    with pytest.raises(UserError, match="known: sigmoid, linear, adaptive"):
        Annealing(schedule="cosine").check()
