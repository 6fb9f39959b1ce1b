"""Calibration of q: ranks, simultaneous bands, exact and wrong posteriors, and runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

import small
from iwae import calibrate_run
from iwae.cli import main
from iwae.errors import UserError
from iwae.evaluation.calibration import rank_coverage, rank_slabs, relative_rank
from iwae.evaluation.ecdf_bands import uniform_bands
from iwae.evaluation.examples import gather_examples
from iwae.reports import figures
from iwae.results.schema import parse
from iwae.testing import LinearGaussian

N, K = 600, 39
BANDS = uniform_bands(N)


def ranks_of(k=K, n=N, seed=0, **q):
    model = LinearGaussian.random(2, 3, **q)
    return gather_examples(rank_slabs(model, jax.random.key(seed), n_examples=n, k=k))


# Ranks


def test_tie_breaking_keeps_ranks_uniform():
    # Each member of a set is the true latent as often as any other: the ranks must tile (0, 1).
    members, v = np.float32([0, 0, 0, 1, 1, 5]), (np.arange(1000) + 0.5) / 1000
    rank = jax.jit(relative_rank)
    result = [
        rank(
            jnp.full(1000, truth),
            jnp.broadcast_to(jnp.delete(members, i)[:, None], (5, 1000)),
            jnp.full(5, 0.2),
            jnp.float32(v),
        )
        for i, truth in enumerate(members)
    ]
    counts, _ = np.histogram(np.concatenate(result), bins=12, range=(0, 1))
    assert counts == pytest.approx(np.full(12, 500), abs=6)


def test_rank_matches_a_hand_calculation():
    draws, weights = jnp.float32([[1.0], [2.0], [3.0]]), jnp.float32([0.5, 0.3, 0.2])
    rank = jax.jit(relative_rank)(jnp.float32([2.5]), draws, weights, jnp.float32([0.4]))
    assert rank == pytest.approx((3 * 0.8 + 0.4) / 4)
    rank = jax.jit(relative_rank)(jnp.float32([2.0]), draws, weights, jnp.float32([0.4]))
    assert rank == pytest.approx((3 * (0.5 + 0.4 * 0.3) + 0.4) / 4)


def test_exact_q_is_calibrated():
    result = ranks_of()
    for ranks in result.values():
        assert min(map(BANDS.p_value, BANDS.smallest_tail(ranks))) > 1e-3
        for level in (0.5, 0.95):
            covered = rank_coverage(ranks, level)
            assert covered.mean() == pytest.approx(level, abs=5 * covered.std() / np.sqrt(N))
    np.testing.assert_allclose(result["snis"], result["q"], atol=2e-3)  # its weights are equal


@pytest.mark.parametrize(
    ("q", "spread", "shift"),
    [({"q_scale": 0.7}, 1, 0), ({"q_scale": 1.5}, -1, 0), ({"q_shift": 0.3}, 0, -1)],
)
def test_wrong_q_is_detected_and_corrected_by_weights(q, spread, shift):
    result = ranks_of(k=400, **q)
    wrong, weighted = result["q"], result["snis"]
    assert (BANDS.smallest_tail(wrong) <= BANDS.critical).all()
    spreads, means = np.sqrt(12) * wrong.std(axis=0), wrong.mean(axis=0)
    assert (np.sign(np.where(abs(spreads - 1) < 0.07, 0, spreads - 1)) == spread).all()
    assert (np.sign(np.where(abs(means - 0.5) < 0.05, 0, means - 0.5)) == shift).all()
    assert min(map(BANDS.p_value, BANDS.smallest_tail(weighted))) > 1e-3


def test_ranks_do_not_depend_on_batches_or_resuming():
    model, key = LinearGaussian.random(2, 3), jax.random.key(3)
    full = gather_examples(rank_slabs(model, key, n_examples=7, k=5))
    part = gather_examples(rank_slabs(model, key, n_examples=7, k=5, batch_size=1, first=4))
    for name, values in part.items():
        np.testing.assert_allclose(values, full[name][4:], atol=1e-6)


# Bands


def test_bands_have_their_stated_simultaneous_coverage():
    bands = uniform_bands(30, 0.8, points=20)
    ranks = np.random.default_rng(0).uniform(size=(30, 20_000))
    outside = bands.smallest_tail(ranks) <= bands.critical
    expected = bands.p_value(bands.critical)
    assert 0.15 < expected <= 0.2  # counts are discrete
    assert outside.mean() == pytest.approx(expected, abs=5 * 0.4 / np.sqrt(20_000))
    p_values = np.array([bands.p_value(tail) for tail in bands.smallest_tail(ranks[:, :300])])
    assert np.mean(p_values <= 0.5) == pytest.approx(0.5, abs=0.15)


def test_band_of_one_point_is_a_binomial_interval():
    bands = uniform_bands(50, 0.9, points=2)
    low, high = 50 * bands.lower[0], 50 * bands.upper[0]
    inside = binom.cdf(high, 50, 0.5) - binom.cdf(low - 1, 50, 0.5)
    narrower = binom.cdf(high - 1, 50, 0.5) - binom.cdf(low, 50, 0.5)
    assert narrower < 0.9 <= inside


# Runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small.unmeasured(small.finished(), tmp_path_factory.mktemp("calibration") / "run")


def test_calibration_writes_a_record_its_description_and_its_figure(run, capsys):
    assert main(["calibrate", str(run), "--examples", "100", "--k", "20", "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "layer 1, weighted draws: central intervals contain the true latent, 50%: " in text
    assert "inactive units, whose q and posterior are both the prior" in text
    folder, name = run / "evaluations", "simulated-final-calibration-k20-n100"
    assert (folder / f"{name}.png").stat().st_size > 10_000
    record = parse(calibrate_run(run, examples=100, k=20))
    with np.load(folder / f"{name}.npz", allow_pickle=False) as values:
        ranks = values["q_0"]
        assert values["layers_0"].tolist() == [1, 1]
    layer = record.calibration[0]
    assert (layer.of, layer.layer, layer.units) == ("q", 1, 2)
    for interval in layer.coverage:
        inside = np.abs(ranks - 0.5) <= interval.level / 2
        assert interval.coverage == pytest.approx(inside.mean())
    assert layer.worst[0].mean_rank == pytest.approx(ranks[:, layer.worst[0].unit].mean())


@pytest.mark.slow
def test_interrupted_measurement_resumes(run, tmp_path, monkeypatch):
    monkeypatch.setattr("iwae.evaluation.examples.SLAB_ROWS", 40)
    other = small.unmeasured(small.finished(), tmp_path / "run")

    def interrupted(slabs, total, label):  # noqa: ARG001
        for i, slab in enumerate(slabs):
            if i == 2:
                raise KeyboardInterrupt
            yield slab

    with pytest.raises(KeyboardInterrupt):
        calibrate_run(other, examples=40, k=10, batch_size=2, track=interrupted)
    assert list((other / "evaluations" / "unfinished").iterdir())
    again, full = (calibrate_run(one, examples=40, k=10, batch_size=2) for one in (other, run))
    assert again["calibration"] == full["calibration"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"latents": ("categorical:3", "bernoulli"), "latent_sizes": (2, 3)},
        {"latent_sizes": (3, 2), "replicates": 2},
    ],
)
def test_layers_of_any_kind_are_ranked(changes, tmp_path):
    small.train_in(tmp_path / "run", hidden_sizes=((5,), (5,)), epochs=1, **changes)
    record = parse(calibrate_run(tmp_path / "run", examples=50, k=10))
    sizes = [6, 3] if "latents" in changes else [3, 2]
    for one in record.models:
        assert [row.units for row in one.calibration if row.of == "q"] == sizes


def test_invalid_arguments_raise_user_errors(run):
    for options, message in (({"examples": 9}, "examples is 9"), ({"k": 0}, "k is 0")):
        with pytest.raises(UserError, match=message):
            calibrate_run(run, **options)
    for ranks, message in (
        ({"a": np.full((9, 2), 0.5)}, f"9 ranks, but bands of {N}"),
        ({"a": np.full((N, 2), 1.5)}, "between 0 and 1"),
    ):
        with pytest.raises(UserError, match=message):
            figures.ecdf_differences(ranks, BANDS)
