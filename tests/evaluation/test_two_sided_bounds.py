"""Two-sided bounds on real examples: closed forms, coverage, verdicts and runs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

import small
from cases import quick
from iwae import anneal_run, bdmc_run, evaluate_run, sandwich_run
from iwae.cli import main
from iwae.errors import UserError
from iwae.evaluation import two_sided_bounds
from iwae.evaluation.examples import gather_examples
from iwae.evaluation.tails import ratio_tail
from iwae.evaluation.two_sided_bounds import (
    annealed_two_sided_slabs,
    two_sided,
    two_sided_slabs,
    two_sided_verdict,
)
from iwae.inference.temperatures import linear_schedule
from iwae.results.ais import Annealing
from iwae.results.schema import parse
from iwae.testing import LinearGaussian
from reference import STANDARD_ERRORS, distance
from small import finished

# One example


def both_sides(log_w):
    return {name: float(value) for name, value in jax.jit(two_sided)(jnp.float32(log_w)).items()}


def by_quadrature(k, s, log_p=-3.0, nodes=40):
    """Return E[lower] and E[upper] for log w = log p - s^2/2 + s e with e ~ N(0, 1)."""
    e, weight = np.polynomial.hermite_e.hermegauss(nodes)
    grid = np.stack(np.meshgrid(*[e] * k, indexing="ij"), axis=-1).reshape(-1, k)
    weights = np.prod(np.meshgrid(*[weight / weight.sum()] * k, indexing="ij"), axis=0).ravel()
    log_w = jnp.float32(log_p - s**2 / 2 + s * grid)
    result = jax.jit(jax.vmap(two_sided))(log_w)
    return [float(weights @ np.float64(result[name])) for name in ("lower", "upper")]


def test_expected_upper_bound_has_the_closed_form():
    # k = 2: c is the other weight, so E[w/c] = E[w] E[1/w] = exp(s^2) and E[log c] = log p - s^2/2.
    s, log_p = 0.5, -3.0
    lower, upper = by_quadrature(2, s)
    assert upper == pytest.approx(np.exp(s**2) + log_p - s**2 / 2 - 1, abs=1e-5)
    assert lower < log_p < upper


def test_c_is_the_mean_of_all_other_weights():
    s, log_p = 0.5, -3.0
    e, weight = np.polynomial.hermite_e.hermegauss(40)
    a, b = np.meshgrid(*[log_p - s**2 / 2 + s * e] * 2)
    share = np.outer(weight, weight) / weight.sum() ** 2
    log_c = logsumexp([a, b], axis=0) - np.log(2)
    expected = np.sum(share * (np.exp(log_p - log_c) + log_c - 1))
    upper = by_quadrature(3, s)[1]
    assert upper == pytest.approx(expected, abs=1e-5)
    assert log_p < upper < by_quadrature(2, s)[1]  # more weights, a closer c


def test_only_equal_weights_leave_no_gap():
    assert both_sides(np.full(7, -1234.5)) == pytest.approx(
        {"lower": -1234.5, "upper": -1234.5, "ratio": 1.0}, rel=1e-6
    )
    rng = np.random.default_rng(0)
    for _ in range(20):
        log_w = rng.normal(-80, 3, size=5)
        result = both_sides(log_w)
        assert result["upper"] > result["lower"]
        again = both_sides(log_w[::-1])
        assert again == pytest.approx(result, rel=1e-5)


def test_dominant_weight_loses_no_precision():
    log_w = np.array([0.0, -30.0, -31.0])
    result = both_sides(log_w)
    others = [logsumexp(np.delete(log_w, i)) - np.log(2) for i in range(3)]
    expected = np.mean(np.exp(log_w - others) + others - 1)
    assert result["upper"] == pytest.approx(expected, rel=1e-5)


def test_upper_bound_is_infinite_if_all_other_weights_are_zero():
    one_zero = both_sides([-2.0, -2.0, -np.inf])
    assert np.isfinite(one_zero["upper"])
    assert both_sides([-2.0, -np.inf, -np.inf])["upper"] == np.inf  # some c is zero
    assert both_sides([-np.inf] * 3) == {"lower": -np.inf, "upper": np.inf, "ratio": np.inf}


# Examples with a known likelihood

WRONG = LinearGaussian.random(2, 3, q_shift=np.array([0.5, -0.4]), q_scale=1.3)
COARSE = {"chains": 3, "betas": linear_schedule(3), "step_size": 0.4, "n_leapfrog": 2}


def drawn(model, n):
    """Examples of a model, and their log p(x)."""
    draw = jax.jit(jax.vmap(lambda key: model.sample(key)[1]))
    x = draw(jax.random.split(jax.random.key(7), n))
    return np.asarray(x), np.float64(jax.jit(jax.vmap(model.log_evidence))(x))


METHODS = [partial(annealed_two_sided_slabs, **COARSE), partial(two_sided_slabs, k=3)]


@pytest.mark.parametrize("method", METHODS)
def test_both_bounds_are_the_likelihood_under_the_exact_posterior(method):
    model = LinearGaussian.random(2, 3)
    x, exact = drawn(model, 40)
    result = gather_examples(method(model, x, jax.random.key(0)))
    assert result["lower"] == pytest.approx(exact, abs=2e-5)
    assert result["upper"] == pytest.approx(exact, abs=2e-5)
    assert ratio_tail(result["ratio"], result["lower"]) == 0  # rounding has no tail


@pytest.mark.parametrize("method", quick(METHODS, METHODS[1]))
def test_true_likelihood_lies_between_the_mean_bounds(method):
    x, exact = drawn(WRONG, 2000)
    result = gather_examples(method(WRONG, x, jax.random.key(1)))
    assert distance(result["lower"] - exact, 0.0) < -STANDARD_ERRORS
    assert distance(result["upper"] - exact, 0.0) > STANDARD_ERRORS
    assert (result["upper"] >= result["lower"] - 1e-5).all()


REPEATS, MISSES = 30, 4


def count_below(differences):
    """Count the repeats whose mean is more than two standard errors below 0."""
    error = differences.std(axis=1, ddof=1) / np.sqrt(differences.shape[1])
    return np.count_nonzero(differences.mean(axis=1) < -2 * error)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_bounds_and_their_errors_cover_the_true_likelihood(method):
    x, exact = drawn(WRONG, 200)
    result = [gather_examples(method(WRONG, x, jax.random.key(i))) for i in range(REPEATS)]
    lower, upper = (np.stack([one[side] for one in result]) - exact for side in ("lower", "upper"))
    # A side of mean log p(x) misses it in 2.3% of repeats; more than 4 of 30 have probability 5e-4.
    assert count_below(upper) <= MISSES
    assert count_below(-lower) <= MISSES
    assert (
        count_below(lower) > MISSES
    )  # power: an upper side no better than the lower one is detected
    # The stated errors match those between repeats, so that examples have independent draws.
    for side in (lower, upper):
        stated = side.std(axis=1, ddof=1).mean() / np.sqrt(side.shape[1])
        assert side.mean(axis=1).std(ddof=1) < 2 * stated


def test_samples_do_not_depend_on_chunks_or_resuming(monkeypatch):
    x, _ = drawn(WRONG, 6)
    full = gather_examples(two_sided_slabs(WRONG, x, jax.random.key(2), k=30))
    monkeypatch.setattr(two_sided_bounds, "likelihood_chunk_length", lambda k: 7)  # noqa: ARG005
    part = gather_examples(
        two_sided_slabs(WRONG, x, jax.random.key(2), k=30, first=4, batch_size=1)
    )
    for name, values in part.items():
        np.testing.assert_allclose(values, full[name][4:], rtol=1e-4)


# Reliability of the upper side


def test_heavy_tail_of_the_ratios_is_detected():
    rng = np.random.default_rng(0)
    lower = np.full(1000, -90.0)
    light, heavy = 1 + rng.exponential(size=1000), 1 + rng.pareto(1.1, size=1000)
    assert ratio_tail(light, lower) < 0.4
    assert ratio_tail(heavy, lower) > 0.7
    assert ratio_tail(np.append(light, np.inf), np.append(lower, -90)) == np.inf
    assert np.isnan(ratio_tail(light[:10], lower[:10]))


@pytest.mark.parametrize(
    ("gap", "tail", "status"),
    [
        (np.linspace(0.1, 0.2, 400), 0.3, "converged"),
        (np.linspace(0.1, 0.2, 400), 0.9, "undecided"),
        (np.linspace(0.1, 0.2, 10), np.nan, "undecided"),
        (np.linspace(0.4, 0.8, 400), 0.3, "not converged"),
        (np.linspace(0.4, 0.8, 400), 0.9, "not converged"),
        (np.array([0.1, np.inf]), np.inf, "not converged"),
    ],
)
def test_verdict_depends_on_the_gap_and_the_tail(gap, tail, status):
    assert two_sided_verdict(gap, tail, 0.5).status == status


# Runs

SHORT = Annealing(temperatures=20, chains=4, leapfrog=2)
NAME = "test-final-sandwich-T20-c4-l2-sigmoid-posterior-k200-n30"
OPTIONS = {"annealing": SHORT, "k": 200, "examples": 30}


def values_of(run, name=NAME):
    with np.load(run / "evaluations" / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small.unmeasured(finished(), tmp_path_factory.mktemp("sandwich") / "run")


@pytest.fixture(scope="module")
def record(run):
    return sandwich_run(run, **OPTIONS)


def test_record_has_both_bounds_and_a_verdict(run, record):
    values = values_of(run)
    assert values["lower"].shape == values["importance_upper"].shape == (1, 30)
    gap = values["upper"][0] - values["lower"][0]
    assert (gap > 0).all()
    assert record["gap"] == pytest.approx(gap.mean())
    assert record["gap_stderr"] == pytest.approx(gap.std(ddof=1) / np.sqrt(30))
    assert record["importance"]["upper"] == pytest.approx(values["importance_upper"].mean())
    tail = ratio_tail(values["ratio"][0], values["lower"][0])
    assert record["ratio_pareto_k"] == pytest.approx(tail)
    assert record["verdict"]["word"] == two_sided_verdict(gap, tail, 0.5).status
    assert record.get("simulated") is None
    assert record["pilot"]["split"] == "train"


@pytest.mark.slow
def test_lower_bounds_match_the_likelihoods_of_the_other_methods(run, record):
    values = values_of(run)
    annealed = anneal_run(run, annealing=SHORT, examples=30)
    evaluate_run(run, ks=[200], examples=30)
    name = "test-final-ais-T20-c4-l2-sigmoid-posterior-n30"
    ais = values_of(run, name)["log_likelihood"][0, -1]
    np.testing.assert_allclose(values["lower"][0], ais, rtol=1e-5)
    l_k = values_of(run, "test-final-k200-n30")["log_likelihood"][0, 0]
    np.testing.assert_allclose(values["importance_lower"][0], l_k, rtol=1e-5)
    assert annealed["verdict"]["sandwich_gap"] == pytest.approx(record["gap"])


@pytest.mark.slow
def test_interrupted_measurement_gives_the_same_values(tmp_path):
    one, other = (small.unmeasured(finished(), tmp_path / name / "run") for name in ("a", "b"))

    def interrupted(slabs, total, label):  # noqa: ARG001
        for i, slab in enumerate(slabs):
            if "temperatures" in label and i == 1:
                raise KeyboardInterrupt
            yield slab

    sandwich_run(one, **OPTIONS, batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        sandwich_run(other, **OPTIONS, batch_size=2, track=interrupted)
    assert len(list((other / "evaluations" / "unfinished").iterdir())) == 3  # and the subset
    sandwich_run(other, **OPTIONS, batch_size=2)
    expected, result = values_of(one), values_of(other)
    for name in expected:
        np.testing.assert_array_equal(result[name], expected[name])
    assert not (other / "evaluations" / "unfinished").exists()


@pytest.mark.slow
def test_real_and_simulated_examples_are_in_one_table(run, capsys):
    made = bdmc_run(run, annealing=SHORT, examples=30, k=200)
    options = "--method sandwich --temperatures 20 --chains 4 --leapfrog 2 --k 200 --examples 30"
    assert main(["evaluate", str(run), "--quiet", *options.split()]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [line for line in lines if "simulated examples: " in line]
    assert f"gap {made['gap']:.3f} +- {made['gap_stderr']:.3f}" in named[0]
    assert f"gap {made['importance']['gap']:.3f}" in named[1]
    assert "an upper side holds in expectation" in lines[-1]


def table(path, *, gaps):
    """Save rows far from standardised, optionally with missing values; return a run's options."""
    rng = np.random.default_rng(0)
    rows = rng.normal([300.0, -3.0], [200.0, 0.01], (200, 2))
    rows[gaps & (rng.random(rows.shape) < 0.2)] = np.nan
    np.save(path, rows)
    return {"dataset": str(path), "observation": "gaussian"}


RUN_OPTIONS = {
    "standardised": lambda folder: table(folder / "a.npy", gaps=False),
    "missing": lambda folder: table(folder / "a.npy", gaps=True) | {"missing": "at-random"},
    "conditional": lambda _: {"dataset": "digits", "conditional": True, "replicates": 2},
    "discrete": lambda _: {"latents": ("bernoulli",)},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUN_OPTIONS)
def test_runs_of_every_kind_have_two_sided_bounds(kind, tmp_path):
    run = tmp_path / "run"
    small.train_in(run, epochs=1, **RUN_OPTIONS[kind](tmp_path))
    options = {"annealing": SHORT, "examples": 20}
    sides = parse(sandwich_run(run, k=50, **options))
    lower = [one.log_likelihood for one in parse(anneal_run(run, **options)).models]
    sampled = [one.log_likelihood for one in parse(evaluate_run(run, ks=[50], examples=20)).models]
    for one, annealed, l_k in zip(sides.models, lower, sampled, strict=True):
        assert one.lower == pytest.approx(annealed, rel=1e-5)
        assert one.importance.lower == pytest.approx(l_k, rel=1e-5)
        assert one.gap > 0
        assert one.importance.gap > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 1}, "k is 1; an upper bound needs at least 2 weights"),
        ({"annealing": Annealing(temperatures=20, chains=1)}, "chains is 1; an upper"),
        ({"tolerance": 0.0}, "tolerance is 0"),
    ],
)
def test_invalid_arguments_raise_user_errors(run, options, message):
    with pytest.raises(UserError, match=message):
        sandwich_run(run, **options)
