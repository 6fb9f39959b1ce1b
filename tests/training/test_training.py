"""The training loop: optimisers, schedules, best weights, reproducibility and failures."""

import hashlib
import math
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given

from iwae.config.experiment import TrainConfig
from iwae.errors import UserError
from iwae.evaluation.likelihood import log_likelihoods
from iwae.models.vae import VAE
from iwae.objectives.bounds import iwae
from iwae.objectives.building import objective
from iwae.objectives.objective import as_objective
from iwae.objectives.particle_objectives import bound
from iwae.runs.configured_stages import configured_schedule
from iwae.testing import LinearGaussian
from iwae.training import loop
from iwae.training.loop import NonFiniteError, Plan, init_best, training_loop, update_early_stopping
from iwae.training.memory import train
from iwae.training.optimizers import adam, authors_adam, soap
from iwae.training.schedules import (
    AUTHORS_RATES,
    PAPER_RATES,
    paper_schedule_epochs,
    staged_schedule,
)
from iwae.training.steps import Settings, init_state

GREY = np.random.default_rng(0).integers(0, 256, (205, 12), dtype=np.uint8)
HELD_OUT = (np.random.default_rng(1).integers(0, 256, (30, 12)) > 127).astype(np.uint8)
STEPS_PER_EPOCH = 20  # five examples, different each epoch, are left over
SETTINGS = Settings(objective("iwae", 2), adam(), 10, "dynamic")
FOUR_EPOCHS = Plan(4)


@pytest.fixture(scope="session")
def compilations():
    """Return the number of compilations of each function so far."""
    counts = Counter()

    def note(event, _seconds, **about):
        if event.endswith("backend_compile_duration"):
            counts[about.get("fun_name", "").removeprefix("jit(").removesuffix(")")] += 1

    jax.monitoring.register_event_duration_secs_listener(note)
    yield counts
    jax.monitoring.unregister_event_duration_listener(note)


def start(seeds=(0,), settings=SETTINGS):
    models = [VAE(12, (2,), ((5,),), key=jax.random.key(seed)) for seed in seeds]
    keys = jnp.stack([jax.random.key(100 + seed) for seed in seeds])
    return models[0], init_state(models, keys, settings)


def steps(template, state, plan=FOUR_EPOCHS, *, rate=0.01, best=None, data=GREY):
    best = init_best(state) if best is None else best
    schedule = staged_schedule([rate, rate / 2], [1, 99], STEPS_PER_EPOCH)
    return training_loop(state, best, data, schedule, template, SETTINGS, plan, HELD_OUT)


def run(seeds=(0,), plan=FOUR_EPOCHS, *, rate=0.01, state=None, best=None):
    """Train to the end of the plan; return the last state, the best weights and all reports."""
    template, first = start(seeds)
    every = list(steps(template, first if state is None else state, plan, rate=rate, best=best))
    return every[-1][0], every[-1][1], [report for *_, report in every]


def leaves(tree):
    """Yield all arrays of a tree, random keys included."""
    for leaf in jax.tree.leaves(tree):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        yield np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def digest(tree):
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves(tree))).hexdigest()


def assert_same_bits(tree, other):
    for a, b in zip(leaves(tree), leaves(other), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def of_replicate(tree, replicate):
    return jax.tree.map(lambda leaf: leaf[replicate : replicate + 1], tree)


@pytest.fixture(scope="module")
def uninterrupted(compilations):
    """Return the results of four uninterrupted epochs of one replicate, and the compilations."""
    before = compilations.copy()
    return *run(), compilations - before


# Optimisers


def gradients(n=7, shape=(3, 2)):
    scales = 10.0 ** np.random.default_rng(2).uniform(-4, 2, (n, 1, 1))
    return scales * np.random.default_rng(3).normal(size=(n, *shape))


def updates(optimizer, grads):
    """Yield the update that the optimiser subtracts at each step, per unit of learning rate."""
    params = {"w": jnp.zeros(grads.shape[1:])}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for grad in grads:
        direction, state = update({"w": jnp.float32(grad)}, state, params)
        yield np.asarray(direction["w"])


def test_adam_follows_the_paper():
    m = v = np.zeros((3, 2))
    grads = gradients()
    for t, (g, direction) in enumerate(zip(grads, updates(adam(), grads), strict=True), 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        expected = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-4)
        assert direction == pytest.approx(expected, rel=1e-4)


def test_authors_adam_follows_their_code():
    """Their code updates one weight at a time, by the gradient of the sum over the batch."""
    batch_size, grads = 20, gradients()
    result = np.stack(list(updates(authors_adam(batch_size), grads)))
    for index in np.ndindex(grads.shape[1:]):
        moment1, moment2 = 0.0, 1.0
        for n, gradient_of_mean in enumerate(grads[(slice(None), *index)]):
            alpha = math.sqrt(1 - 0.999 ** (n + 1)) / (1 - 0.99 ** (n + 1))
            expected = alpha * moment1 / (math.sqrt(moment2) + 1e-4)
            assert result[(n, *index)] == pytest.approx(expected, rel=1e-4)
            gradient = batch_size * gradient_of_mean
            moment1 += (1 - 0.99) * (gradient - moment1)
            moment2 += (1 - 0.999) * (gradient**2 - moment2)
    assert not result[0].any()  # the first step changes nothing
    assert result[1].all()


def soap_updates(grads, *, every, memory, b=0.95, eps=1e-8):
    """Yield the updates of SOAP that rotates the first, not larger, side of a matrix; float64."""
    m = v = np.zeros(grads.shape[1:])
    for t, g in enumerate(grads):
        if t == 0:
            covariance = g @ g.T
            q = np.linalg.eigh(covariance)[1]
        elif t % every == 0:
            covariance = memory * covariance + (1 - memory) * g @ g.T
            m = q @ m
            q = np.linalg.qr(covariance @ q)[0]
            m = q.T @ m
        h = q.T @ g
        m, v = b * m + (1 - b) * h, b * v + (1 - b) * h**2
        d = m / (1 - b ** (t + 1)) / (np.sqrt(v / (1 - b ** (t + 1))) + eps)
        yield q @ np.clip(d, -1, 1)


@pytest.mark.parametrize("transposed", [False, True])
def test_soap_is_adam_in_an_eigenbasis(transposed):
    grads = np.random.default_rng(6).normal(size=(7, 3, 5)) * [[[1], [3], [10]]]
    optimizer = soap(every=2, memory=0.7)
    directions = updates(optimizer, grads.transpose(0, 2, 1) if transposed else grads)
    for direction, expected in zip(
        directions, soap_updates(grads, every=2, memory=0.7), strict=True
    ):
        result = direction.T if transposed else direction
        assert result == pytest.approx(expected, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize(("shape", "largest"), [((4,), 300), ((3, 5), 2)])
def test_soap_uses_adam_for_vectors_and_large_matrices(shape, largest):
    grads = np.random.default_rng(7).normal(size=(5, *shape))
    m = v = np.zeros(shape)
    for t, (g, result) in enumerate(
        zip(grads, updates(soap(every=2, largest=largest), grads), strict=True), 1
    ):
        m, v = 0.95 * m + 0.05 * g, 0.95 * v + 0.05 * g**2
        expected = m / (1 - 0.95**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
        assert result == pytest.approx(expected, rel=1e-4)


def test_soap_takes_no_huge_step_when_the_gradients_rotate():
    """A refresh then rotates the first moments but not the second moments."""
    sides = np.array([[1, 1e-3, 0]] * 10 + [[1e3, 1e3, 1e3]] * 5)
    directions = updates(soap(), sides[:, :, None] * np.ones(4))
    assert max(np.linalg.norm(direction) for direction in directions) < np.sqrt(3 * 4)


# Steps, on an objective whose only parameter b has the gradient x - b


def quadratic_objective(model, x, key):  # noqa: ARG001
    return x @ model.bias - 0.5 * model.bias @ model.bias


def quadratic_path(data, batch_size, optimizer, rates, epochs, *, shuffle=True):
    """Yield b and the report, at the start and after each dispatch."""
    model = LinearGaussian.random(n_latent=1, n_data=data.shape[1])
    settings = Settings(as_objective(quadratic_objective), optimizer, batch_size, "none", shuffle)
    state = init_state([model], jax.random.key(0)[None], settings)
    schedule = staged_schedule(rates, [2] * len(rates), len(data) // batch_size)
    yield np.asarray(state.params.bias[0]), None
    for after, _, report in training_loop(
        state, init_best(state), data, schedule, model, settings, Plan(epochs)
    ):
        yield np.asarray(after.params.bias[0]), report


def test_step_follows_the_mean_gradient_at_the_rate_of_its_epoch():
    data = np.float32(np.random.default_rng(4).normal(size=(6, 3)))
    (b, _), *after = quadratic_path(data, 6, adam(), [0.5, 0.125], 5)
    m = v = np.zeros(3)
    for t, (result, report) in enumerate(after, 1):
        maximised = (data @ b - 0.5 * b @ b).mean()
        g = b - data.mean(axis=0)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        rate = 0.5 if t <= 2 else 0.125
        b = b - rate * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-4)
        assert result == pytest.approx(b, abs=1e-5)
        assert report.bound[0] == pytest.approx(maximised, rel=1e-4)
        assert (report.epoch, report.epoch_done, report.steps) == (t, True, 1)
    assert len(after) == 5


def visits(monkeypatch, *, shuffle):
    """The examples of each step of epochs 2 to 5, `[epoch, step, example]`."""
    monkeypatch.setattr(loop, "DISPATCH_SECONDS", 0.0)  # after the first epoch, step by step
    rate, data = 0.5, np.eye(7, dtype=np.float32)
    path = [b for b, _ in quadratic_path(data, 2, optax.identity(), [rate], 5, shuffle=shuffle)][1:]
    means = [(b - a) / rate + a for a, b in pairwise(path)]
    return np.round(2 * np.stack(means), 3).reshape(4, 3, 7)


def test_each_epoch_visits_examples_once_in_its_own_order(monkeypatch):
    seen = visits(monkeypatch, shuffle=True)
    assert set(np.unique(seen)) == {0, 1}
    assert (seen.sum(axis=2) == 2).all()
    assert (seen.sum(axis=1) <= 1).all()
    assert len({epoch.tobytes() for epoch in seen}) == 4
    assert (
        len({epoch.sum(axis=0).tobytes() for epoch in seen}) > 1
    )  # different examples are left out


def test_epochs_without_shuffling_are_identical(monkeypatch):
    seen = visits(monkeypatch, shuffle=False)
    assert (seen == seen[0]).all()
    assert (seen[0].sum(axis=0) <= 1).all()


# Schedules


def test_paper_schedule_has_3_to_the_i_epochs_at_rates_from_1e_3_to_1e_4():
    lengths = paper_schedule_epochs(3280)
    assert lengths == (1, 3, 9, 27, 81, 243, 729, 2187)
    schedule, done = staged_schedule(PAPER_RATES, lengths, 7), 0
    for i, epochs in enumerate(lengths):
        rate = 0.001 * 10 ** (-i / 7)
        assert float(schedule(jnp.int32(7 * done))) == pytest.approx(rate)
        done += epochs
        assert float(schedule(jnp.int32(7 * done - 1))) == pytest.approx(rate)
    assert float(schedule(jnp.int32(7 * done))) == pytest.approx(1e-4)  # after the last stage


def test_authors_rates_are_rounded():
    rounded = ["1", "0.72", "0.52", "0.37", "0.27", "0.19", "0.14", "0.1"]
    assert [f"{1000 * rate:.3g}" for rate in AUTHORS_RATES] == rounded
    assert pytest.approx(PAPER_RATES, rel=0.03) == AUTHORS_RATES


@given(st.integers(1, 20_000))
def test_other_lengths_scale_the_eight_stages(total):
    lengths = paper_schedule_epochs(total)
    assert sum(lengths) == total
    assert min(lengths) >= 0
    ends = np.cumsum([3**i for i in range(8)]) * total / 3280
    assert np.abs(np.cumsum(lengths) - ends).max() <= 0.5


def at(schedule, *steps):
    return [float(schedule(jnp.int32(step))) for step in steps]


@pytest.mark.parametrize("first", [0, 70])
@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("constant", [0.2, 0.2, 0.2, 0.2, 0.2]),
        ("linear", [0.2, 0.15, 0.1, 0.05, 0.2 / 40]),
        (
            "cosine",
            [0.1 * (1 + math.cos(math.pi * share)) for share in (0, 0.25, 0.5, 0.75, 39 / 40)],
        ),
        ("constant-linear", [0.2, 0.2, 0.2, 0.1, 0.2 / 20]),
    ],
)
def test_schedule_decays_from_its_rate_to_zero(name, rates, first):
    config = TrainConfig(schedule=name, learning_rate=0.2, epochs=4)
    schedule, ends = configured_schedule(config, 10, first)
    steps = [first + step for step in (0, 10, 20, 30, 39)]
    assert at(schedule, *steps) == pytest.approx(rates, rel=1e-4)
    assert ends == (4,)
    if name != "constant":
        assert at(schedule, first + 40, first + 99) == pytest.approx([0, 0], abs=1e-8)


def test_rate_that_ends_above_zero_continues_in_the_next_stage():
    halves = [
        TrainConfig(schedule="linear", epochs=3, learning_rate=0.2, lr_end=0.05),
        TrainConfig(schedule="linear", epochs=1, learning_rate=0.05),
    ]
    full, _ = configured_schedule(TrainConfig(schedule="linear", epochs=4, learning_rate=0.2), 10)
    for config, first in zip(halves, (0, 30), strict=True):
        schedule, _ = configured_schedule(config, 10, first)
        steps = range(first, first + 10 * config.epochs + 1)
        assert at(schedule, *steps) == pytest.approx(at(full, *steps), rel=1e-5)


def test_only_a_decaying_rate_accepts_lr_end():
    with pytest.raises(ValueError, match=r"lr_end needs schedule linear, cosine, .*; it is paper"):
        TrainConfig(lr_end=1e-4)


@pytest.mark.parametrize("first", [0, 70])
def test_warm_up_rises_from_zero_over_its_epochs(first):
    config = TrainConfig(schedule="linear", learning_rate=0.2, epochs=4, lr_warmup=0.5)
    schedule, _ = configured_schedule(config, 10, first)
    plain, _ = configured_schedule(config.model_copy(update={"lr_warmup": 0.0}), 10, first)
    steps = [first + step for step in range(8)]
    shares = [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1]
    expected = [share * rate for share, rate in zip(shares, at(plain, *steps), strict=True)]
    assert at(schedule, *steps) == pytest.approx(expected, rel=1e-5)
    least, _ = configured_schedule(config.model_copy(update={"lr_warmup": 0.001}), 10, first)
    assert at(least, first) == at(plain, first)


# The moving average of the weights


def averaged(path, decay):
    """Return the moving average along a path of weights, float64."""
    mean = np.float64(path[0])
    for done, b in enumerate(path[1:]):
        kept = min(decay, (1 + done) / (10 + done))
        mean = kept * mean + (1 - kept) * b
    return mean


def test_moving_average_is_validated_and_returned():
    data = np.float32(np.random.default_rng(4).normal(size=(6, 3)))
    held_out, start = data[:3] + 1, LinearGaussian.random(n_latent=1, n_data=3)
    decay, schedule = 0.3, staged_schedule([0.2], [1], 1)
    settings = Settings(as_objective(quadratic_objective), adam(), 6, ema=decay)
    first = init_state([start], jax.random.key(0)[None], settings)
    path = [np.asarray(first.params.bias[0])]
    for state, best, report in training_loop(
        first, init_best(first), data, schedule, start, settings, Plan(12), held_out
    ):
        path.append(np.asarray(state.params.bias[0]))
        b = averaged(path, decay)
        assert np.asarray(state.ema.bias[0]) == pytest.approx(b, rel=1e-4, abs=1e-5)
        expected = (held_out @ b - 0.5 * b @ b).mean()
        assert report.validation[0] == pytest.approx(expected, rel=1e-3)
        if best.epoch[0] == report.epoch:
            assert_same_bits(best.params, state.ema)
    assert np.abs(averaged(path, decay) - path[-1]).max() > 1e-3
    assert np.abs(averaged(path, decay) - averaged(path, 1.0)).max() > 1e-3  # the decay matters
    options = {"epochs": 12, "batch_size": 6, "learning_rate": schedule, "ema": decay}
    last = train(start, data, as_objective(quadratic_objective), key=jax.random.key(0), **options)
    assert np.asarray(last.model.bias) == pytest.approx(averaged(path, decay), rel=1e-4, abs=1e-5)


# The best weights


@pytest.mark.parametrize(
    ("old", "new", "threshold", "better"),
    [
        (-90.0, -89.5, 0.0, True),
        (-90.0, -90.0, 0.0, False),  # strictly
        (-90.0, -90.5, 0.0, False),
        (-90.0, -89.5, 0.4, True),
        (-90.0, -89.5, 0.5, False),
        (-90.0, -89.5, 0.6, False),
        (1.5, 2.0, 0.4, True),
        (1.5, 2.0, 0.6, False),
        (1.5, 1.0, 0.0, False),
        (-0.25, 0.25, 0.4, True),
        (-0.25, 0.25, 0.6, False),
        (-math.inf, -1e9, 5.0, True),  # the first validation always counts
        (-90.0, math.nan, 0.0, False),
    ],
)
def test_best_weights_change_on_an_improvement_above_the_threshold(old, new, threshold, better):
    before = loop.Best(
        {"w": jnp.float32([[1, 1], [2, 2]])},
        jnp.float32([old, old]),
        jnp.int32([3, 3]),
        jnp.int32([1, 1]),
    )
    params, values, active = {"w": jnp.float32([[7, 7], [8, 8]])}, [new, new], [True, False]
    best = update_early_stopping(before, params, np.float64(values), np.array(active), 9, threshold)
    assert best.value.tolist() == [new if better else old, old]
    assert best.epoch.tolist() == [9 if better else 3, 3]
    assert best.waited.tolist() == [0 if better else 2, 1]
    assert best.params["w"].tolist() == [[7, 7] if better else [1, 1], [2, 2]]


def test_best_weights_are_those_of_the_best_validation(uninterrupted):
    state, best, reports, _ = uninterrupted
    values = [report.validation[0] for report in reports if report.epoch_done]
    assert int(best.epoch[0]) == 1 + int(np.argmax(values))
    assert float(best.value[0]) == np.float32(max(values))
    if best.epoch[0] == 4:
        assert_same_bits(best.params, state.params)


def test_validation_runs_at_chosen_epochs_with_the_same_draws():
    """With a negligible learning rate the validation bound is constant."""
    *_, reports = run(plan=Plan(5, validate_every=2), rate=1e-30)
    seen = [report for report in reports if report.validation is not None]
    assert [report.epoch for report in seen] == [2, 4]
    assert seen[0].validation == seen[1].validation
    assert len({float(report.bound[0]) for report in reports if report.epoch_done}) == 5


# Results do not depend on how they are computed


@pytest.mark.parametrize("seconds", [0.0, 1e-3, 1e9])
def test_result_does_not_depend_on_the_size_of_dispatches(uninterrupted, monkeypatch, seconds):
    state, best, reports, _ = uninterrupted
    monkeypatch.setattr(loop, "DISPATCH_SECONDS", seconds)
    other, other_best, other_reports = run()
    assert_same_bits((other, other_best), (state, best))
    assert {0.0: 61, 1e9: 4}.get(seconds, len(other_reports)) == len(other_reports)
    for expected, result in zip(
        *([report for report in each if report.epoch_done] for each in (reports, other_reports)),
        strict=True,
    ):
        assert expected.bound == result.bound
        assert expected.validation == result.validation


def test_resuming_from_the_middle_of_an_epoch_gives_the_same_bits(uninterrupted, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(loop, "DISPATCH_SECONDS", 0.0)
        half, best, report = [step for step, _ in zip(steps(*start()), range(24), strict=False)][-1]
    assert report.step == 43
    assert_same_bits(run(state=half, best=best)[:2], uninterrupted[:2])


def test_each_shape_is_compiled_once(uninterrupted, compilations):
    assert uninterrupted[3]["_run_replicates"] == 1
    assert uninterrupted[3]["_map_slab"] == 1  # for the validation
    before = compilations.copy()
    run((5,), Plan(3, patience=2, threshold=0.1), rate=0.02)
    assert not {"_run_replicates", "_map_slab"} & (compilations - before).keys()


PATIENT = {"plan": Plan(9, patience=1, threshold=0.02), "rate": 0.02}


@pytest.fixture(scope="module")
def trained_separately():
    """Return the results of three seeds, each trained separately, with early stopping."""
    return [run((seed,), **PATIENT) for seed in (0, 1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("replicates", [2, 3])
def test_each_replicate_equals_its_seed_trained_separately(trained_separately, replicates):
    state, best, reports = run(range(replicates), **PATIENT)
    for replicate, (expected_state, expected_best, expected_reports) in enumerate(
        trained_separately[:replicates]
    ):
        assert_same_bits(of_replicate((state, best), replicate), (expected_state, expected_best))
        last = int(state.step[replicate])
        assert [report.active[replicate] for report in reports] == [
            report.step <= last for report in reports
        ]
        bounds = {report.step: report.bound[0] for report in expected_reports if report.epoch_done}
        assert bounds == {
            report.step: report.bound[replicate]
            for report in reports
            if report.epoch_done and not np.isnan(report.bound[replicate])
        }


@pytest.mark.slow
@pytest.mark.usefixtures("trained_separately")
def test_nothing_is_compiled_after_the_second_epoch(monkeypatch, compilations):
    """A first dispatch sharded differently from the later ones would compile again."""
    monkeypatch.setattr(loop, "DISPATCH_SECONDS", 0.0)
    counts = [compilations.copy() for *_, report in steps(*start((7, 8, 9))) if report.epoch_done]
    assert counts[1] == counts[3]
    assert not (counts[3] - counts[0])["_run_replicates"]


def test_replicates_stop_when_their_own_patience_runs_out(trained_separately):
    stops = [int(state.step[0]) // STEPS_PER_EPOCH for state, *_ in trained_separately]
    assert len(set(stops)) == 3, "this test and the one above need other settings"
    for (state, best, reports), stop in zip(trained_separately, stops, strict=True):
        values = [report.validation[0] for report in reports if report.epoch_done]
        gains = np.diff(np.maximum.accumulate(values)) > 0.02
        assert gains[:-1].all()
        assert not gains[-1]
        assert int(best.epoch[0]) == stop - 1
        assert len(values) == stop == int(state.step[0]) // STEPS_PER_EPOCH


EIGHT_DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
import test_training as t
assert jax.device_count() == 8
state, best, _ = t.run(range(9), t.Plan(2))
for seed in (0, 7, 8):
    t.assert_same_bits(t.of_replicate((state, best), seed), t.run((seed,), t.Plan(2))[:2])
print(t.digest(t.of_replicate((state, best), 0)))
"""


FOLDERS = [str(folder) for folder in Path(__file__).parents[:2]]
PATHS = os.pathsep.join([*FOLDERS, os.environ.get("PYTHONPATH", "")])


@pytest.mark.slow
def test_result_does_not_depend_on_the_number_of_devices():
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES],
        env={**os.environ, "PYTHONPATH": PATHS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest(run((0,), Plan(2))[:2])


# Values that are not finite


GAUSSIAN = Settings(bound(iwae, k=2), adam(), 10)
REAL = np.float32(np.random.default_rng(5).normal(size=(60, 3)))


def train_until_error(data, settings=GAUSSIAN, *, rate=0.01, epochs=3):
    """Train a linear-Gaussian model on `data`; return the error and the initial state."""
    model = LinearGaussian.random(q_shift=0.5)
    state = init_state([model], jax.random.key(1)[None], settings)
    schedule = staged_schedule([rate], [epochs], len(data) // settings.batch_size)
    with pytest.raises(NonFiniteError) as caught:
        list(training_loop(state, init_best(state), data, schedule, model, settings, Plan(epochs)))
    return caught.value, state


@pytest.mark.slow
def test_nan_in_the_data_is_located_and_the_state_before_it_is_kept():
    data = REAL.copy()
    data[17, 1] = np.nan
    error, start_state = train_until_error(data)
    step = int(error.state.step[0])
    assert 0 < step < 6
    assert f"stopped at step {step + 1} (epoch 1, replicate 0): the input x is not" in str(error)
    assert all(np.isfinite(leaf).all() for leaf in leaves(error.state.params))
    settings, model = GAUSSIAN, LinearGaussian.random(q_shift=0.5)
    clean = np.where(np.isnan(data), 1e4, data)  # would change the weights if it were visited
    schedule = staged_schedule([0.01], [3], 6)
    state = loop.run_compiled_steps(
        start_state, error.state.step, jnp.asarray(clean), schedule, model, settings
    )
    assert_same_bits(error.state, state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "good", "term"), [(1e30, 1, "log p(x, z)"), (math.inf, 0, "the optimiser's update")]
)
def test_too_large_steps_stop_the_run(rate, good, term):
    error, _ = train_until_error(REAL, rate=rate)
    assert int(error.state.step[0]) == good
    assert f"stopped at step {good + 1} (epoch 1, replicate 0): {term} is not" in str(error)
    assert all(np.isfinite(leaf).all() for leaf in leaves(error.state.params))


def infinite_slope(model, x, key):  # noqa: ARG001
    """A finite value whose gradient is 0 times infinity."""
    return x @ model.bias + jnp.sqrt(0 * model.log_scale)


@pytest.mark.slow
def test_non_finite_gradient_stops_the_run_before_the_update():
    """Even where the dispatch, and with it the check of the bound, ends with this step."""
    settings = GAUSSIAN._replace(objective=as_objective(infinite_slope), batch_size=60)
    error, start_state = train_until_error(REAL, settings)
    assert "step 1 (epoch 1, replicate 0): the gradient of log_scale is not" in str(error)
    assert_same_bits(error.state, start_state)


# Training in memory


def trained(key=0, **options):
    model = LinearGaussian.random(q_shift=0.5, q_scale=1.5)
    options = {"epochs": 2, "batch_size": 10, "learning_rate": 0.01, **options}
    return model, train(model, REAL, GAUSSIAN.objective, key=jax.random.key(key), **options)


def test_any_model_can_be_trained_and_the_key_determines_the_result():
    before, after = trained(epochs=8)
    assert [report.epoch for report in after.history] == list(range(1, 9))
    assert after.history[-1].bound[0] > after.history[0].bound[0] + 1
    assert digest(after.best) == digest(after.model) != digest(before)
    assert digest(trained(epochs=8)[1].model) == digest(after.model)
    assert digest(trained(1, epochs=8)[1].model) != digest(after.model)


def test_callbacks_see_every_epoch_and_can_stop_training(capsys):
    seen = []
    options = {"key": jax.random.key(1), "batch_size": 10, "validation": REAL[:20]}

    def early(report):
        seen.append(report)
        return report.epoch == 2

    def late(report):
        seen.append(report.epoch)

    callbacks = [early, late]
    model, made = LinearGaussian.random(q_shift=0.5, q_scale=1.5), GAUSSIAN.objective
    stopped = train(model, REAL, made, epochs=9, callbacks=callbacks, progress=True, **options)
    assert seen == [stopped.history[0], 1, stopped.history[1], 2]
    assert "epoch 2, " in capsys.readouterr().err
    assert_same_bits(stopped.model, train(model, REAL, made, epochs=2, **options).model)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((30, 3, 4), r"shape \[30, 3, 4\], .* takes \[n, 12\]: flatten them: examples.reshape"),
        ((30, 11), r"shape \[30, 11\], .* takes \[n, 12\]: make a model of their size"),
    ],
)
@pytest.mark.parametrize("binarization", ["none", "dynamic"])
def test_examples_of_another_shape_are_rejected(shape, message, binarization):
    options = {"key": jax.random.key(1), "epochs": 1, "binarization": binarization}
    with pytest.raises(UserError, match=message):
        train(start()[0], np.zeros(shape, np.uint8), bound(iwae, k=1), **options)


@pytest.mark.slow
def test_any_schedule_and_optimiser_are_accepted():
    before, after = trained(
        learning_rate=lambda step: jnp.where(step == 3, 0.5, 0.0), optimizer=optax.sign_sgd(1.0)
    )
    for old, new in zip(leaves(before), leaves(after.model), strict=True):
        assert np.abs(new - old) == pytest.approx(0.5)


def test_held_out_examples_choose_the_best_weights():
    """They have another distribution, on which training eventually gets worse."""
    _, result = trained(epochs=6, learning_rate=0.01, validation=REAL[:20] + 2)
    values = [report.validation[0] for report in result.history]
    best = 1 + int(np.argmax(values))
    assert 1 < best < 6, "choose other settings: the best weights should be on the way"
    assert digest(result.best) == digest(trained(epochs=best, learning_rate=0.01)[1].model)


def test_batch_larger_than_the_data_is_rejected():
    with pytest.raises(UserError, match="60 training examples do not fill one batch of 61"):
        trained(batch_size=61)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"validate_every": 0}, "validate_every is 0"),
        ({"epochs": 2**31}, "epochs is 2147483648, but steps are counted in 32 bits"),
    ],
)
def test_invalid_sizes_are_rejected(options, message):
    with pytest.raises(UserError, match=message):
        trained(**options)


@pytest.mark.parametrize("value", [0.5, 200])
def test_grey_levels_are_rejected_by_the_bernoulli_likelihood(value):
    model, key = VAE(4, (2,), ((3,),), key=jax.random.key(0)), jax.random.key(1)
    binary, grey = np.zeros((30, 4), np.uint8), np.full((30, 4), value)
    options = {"key": key, "epochs": 1, "batch_size": 10}
    for call in (
        lambda: train(model, grey, bound(iwae, k=2), **options),
        lambda: train(model, binary, bound(iwae, k=2), validation=grey, **options),
        lambda: log_likelihoods(model, grey, key, k=2),
    ):
        with pytest.raises(
            UserError, match=rf"examples: row 1, column 1 is {value}: .* takes 0 or 1; "
        ):
            call()


def test_non_finite_validation_bound_stops_the_run():
    held_out = REAL[:20].copy()
    held_out[3, 1] = 1e30  # a square beyond float32
    with pytest.raises(NonFiniteError, match=r"validation of epoch 2 .replicate 0.: .* is -inf"):
        trained(validation=held_out, validate_every=2)
