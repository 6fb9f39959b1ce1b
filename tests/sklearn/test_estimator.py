"""The scikit-learn estimator: its API contract, densities and handling of invalid input."""

import copy
import math
import re
import warnings
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from cases import quick
from iwae import ImportanceWeightedAutoencoder, UserError, load_model, posterior_grid, save_model
from iwae.data import Kind
from iwae.evaluation.imputation import CHAINS
from iwae.evaluation.tails import pareto_threshold
from iwae.sklearn.input_rows import input_row_addresses, input_row_standards

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:k-hat is too large"),
]

SMALL = {
    "hidden_layer_sizes": (6,),
    "max_iter": 3,
    "score_k": 20,
    "batch_size": 16,
    "random_state": 0,
}


def small(n_components=2, **parameters):
    return ImportanceWeightedAutoencoder(n_components, **{**SMALL, **parameters})


@cache
def rows(n=64, d=3):
    rng = np.random.default_rng(5)
    z = rng.normal(size=(n, 1))
    noise = rng.normal(size=(n, d))
    return z * np.arange(1, d + 1) + 0.3 * noise + 10


@cache
def fitted():
    return small().fit(rows())


@pytest.mark.slow
@pytest.mark.parametrize("missing", [None, "at-random"])
def test_estimator_passes_the_checks_of_scikit_learn(missing):
    model = small(hidden_layer_sizes=(4,), batch_size="auto", missing=missing)
    results = check_estimator(model, on_skip=None)
    passed = [result["check_name"] for result in results if result["status"] == "passed"]
    remaining = {r["check_name"] for r in results} - set(passed)
    assert remaining <= {"check_array_api_input"}  # asked for by an environment variable only
    assert len(passed) > 40


# --- densities -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("standardize", [True, False])
def test_density_of_a_column_integrates_to_one(standardize):
    data = 3000 + 200 * np.random.default_rng(0).gamma(2.0, size=(400, 1))
    if not standardize:
        data = (data - 3000) / 200
    model = small(1, max_iter=20, standardize=standardize, score_k=400).fit(data)
    low, high = data.min(), data.max()
    grid = np.linspace(2 * low - high, 2 * high - low, 640)[:, None]
    total = np.trapezoid(np.exp(model.score_samples(grid)), grid[:, 0])
    assert total == pytest.approx(1, abs=0.02)


@pytest.mark.slow
def test_change_of_units_only_shifts_log_densities():
    units = np.array([2.0, 1024.0, 0.125])  # powers of two, so that nothing is rounded
    ours, theirs = fitted(), small().fit(rows() * units)
    difference = ours.score_samples(rows()) - theirs.score_samples(rows() * units)
    np.testing.assert_allclose(difference, np.log(units).sum(), rtol=1e-5)
    np.testing.assert_allclose(ours.loss_curve_[-1], theirs.loss_curve_[-1] - np.log(units).sum())
    assert ours.best_validation_score_ == pytest.approx(
        theirs.best_validation_score_ + np.log(units).sum()
    )
    # Other units compile to another program, which rounds differently.
    ours, theirs = ours.transform(rows()), theirs.transform(rows() * units)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_validation_scores_match_score_samples():
    # Large k and half of the rows, for low noise: the same bound with other particles.
    model = small(k=200, max_iter=4, validation_fraction=0.5).fit(rows(128))
    order = _split_order(model, 128)
    held_out = rows(128)[order[:64]]
    ours = model.score_samples(held_out, k=200)
    error = np.hypot(ours.std() / 8, 0.02)
    assert abs(model.best_validation_score_ - ours.mean()) < error
    others = model.score_samples(rows(128)[order[64:]], k=200)
    assert ours.mean() != pytest.approx(others.mean(), abs=1e-3)


def test_standardisation_uses_only_training_rows():
    data = rows().copy()
    held_out = _split_order(small(), len(data))[: round(0.1 * len(data))]
    model = small(max_iter=1).fit(data)
    train = np.delete(data, held_out, axis=0)
    np.testing.assert_allclose(model.shift_, train.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(model.scale_, train.std(axis=0), rtol=1e-12)
    data[held_out] += 5.0  # large enough to show
    again = small(max_iter=1).fit(data)
    np.testing.assert_array_equal(again.transform(data[:1]), model.transform(data[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("missing", [None, "at-random"])
def test_loss_of_an_epoch_is_that_of_its_training_rows_in_their_units(missing):
    # At a rate near zero, so that every epoch has the model that score_samples uses.
    data = (rows() if missing is None else rows_with_gaps())[:60] * np.array([1.0, 1e9, 1.0])
    model = small(k=50, missing=missing, learning_rate_init=1e-12, validation_fraction=0.3)
    model.set_params(batch_size=14).fit(data)
    order = _split_order(model, 60)
    train, held_out = (model.score_samples(data[part], k=50) for part in (order[18:], order[:18]))
    assert model.loss_curve_ == pytest.approx([-train.mean()] * 3, abs=0.5)
    assert model.validation_scores_ == pytest.approx([held_out.mean()] * 3, abs=0.5)


def test_loss_curve_has_an_entry_per_epoch():
    one, more = (small(max_iter=n, n_iter_no_change=n).fit(rows()) for n in (2, 6))
    assert (one.n_iter_, more.n_iter_) == (2, 6)
    assert one.loss_curve_[0] == more.loss_curve_[0]  # at the same rate
    assert len(more.loss_curve_) == len(more.validation_scores_) == 6
    assert len(set(more.loss_curve_)) == 6


def test_each_row_has_its_own_random_numbers():
    # Nearly equal rows: with the same noise, one sample would give them the same density.
    data = rows()[:1] + 1e-5 * np.arange(16)[:, None]
    one = fitted().score_samples(data, k=1)
    assert one.std() > 0.05
    assert len(np.unique(one)) == 16
    many = fitted().transform(data, latent="snis")
    assert (many.std(axis=0) > 100 * fitted().transform(data).std(axis=0)).all()


@pytest.mark.slow
def test_weighted_latents_do_not_depend_on_the_encoder():
    # With q shifted by one standard deviation, the weights must restore the means.
    model = small(1, score_k=4000, max_iter=1, validation_fraction=0.3).fit(rows())
    layer = lambda m: m.encoder[0].loc.bias  # noqa: E731
    before = model.transform(rows()[:16], latent="snis")
    moved = copy.copy(model)
    moved.model_ = eqx.tree_at(layer, model.model_, layer(model.model_) + 0.7)
    shift = moved.transform(rows()[:16]) - model.transform(rows()[:16])
    assert (np.abs(shift) > 0.5).all()
    np.testing.assert_allclose(moved.transform(rows()[:16], latent="snis"), before, atol=0.1)


def _split_order(model, n):
    """The order of rows in which fit splits them: held-out rows first."""
    random = np.random.RandomState(model.random_state)
    random.randint(2**31 - 1)
    return random.permutation(n)


def test_result_of_a_row_does_not_depend_on_other_rows():
    model, data = fitted(), rows()
    for result_of in (model.score_samples, model.transform, snis := _snis(model)):
        all_rows = result_of(data)
        np.testing.assert_array_equal(result_of(data[::-1])[::-1], all_rows)
        np.testing.assert_array_equal(result_of(data[7:8]), all_rows[7:8])
        np.testing.assert_array_equal(
            result_of(np.repeat(data[:3], 30, axis=0))[::30], all_rows[:3]
        )
    assert not np.array_equal(snis(data), model.transform(data))


def _snis(model):
    return lambda X: model.transform(X, latent="snis")


@pytest.mark.slow
def test_bound_rises_with_k_towards_annealing():
    model, data = fitted(), rows(400)
    one, many = (model.score_samples(data, k=k) for k in (1, 2000))
    annealed = model.score_samples(data, method="ais", temperatures=50)
    assert (many - one).mean() > 3 * (many - one).std() / math.sqrt(len(data)) > 0
    error = (annealed - many).std() / math.sqrt(len(data))
    assert abs((annealed - many).mean()) < max(4 * error, 0.02)


@pytest.mark.slow
def test_weighted_latents_are_true_posterior_means():
    model = small(1, score_k=4000).fit(rows())
    latents = model.transform(rows()[:4], latent="snis")
    for x, mean in zip(rows()[:4], latents, strict=True):
        inner = jnp.float32((x - model.shift_) / model.scale_)
        grid = posterior_grid(model.model_, inner, jax.random.key(0))
        weights = np.exp(grid.log_posterior)
        exact = (weights * grid.axes[0]).sum() / weights.sum()
        assert mean[0] == pytest.approx(exact, abs=0.06)


# --- fitting ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_fit_learns_densities_and_latents():
    data = rows(200)
    model = small(max_iter=60, learning_rate_init=5e-3).fit(data)
    gaussian = small(max_iter=1, learning_rate_init=1e-9).fit(data)  # where it starts
    gain = model.score_samples(data) - gaussian.score_samples(data)
    assert gain.mean() > 1 + 5 * gain.std() / math.sqrt(len(data))
    z = model.transform(data)
    assert max(abs(np.corrcoef(z[:, j], data[:, 2])[0, 1]) for j in (0, 1)) > 0.9
    error = model.inverse_transform(z) - data
    assert (error.std(axis=0) < 0.5 * data.std(axis=0))[1:].all()
    drawn = model.sample(2000, random_state=0)
    np.testing.assert_allclose(drawn.mean(axis=0), data.mean(axis=0), atol=0.4)
    assert np.corrcoef(drawn.T)[1, 2] > 0.7


@pytest.mark.slow
def test_warm_up_does_not_affect_validation_scores():
    # At a rate near zero, so that only the validation bound can differ between epochs.
    warm = {"objective": "elbo", "k": 200, "objective_params": {"kl_warmup_steps": 1000}}
    model = small(learning_rate_init=1e-12, validation_fraction=0.3, **warm).fit(rows())
    plain = small(learning_rate_init=1e-12, validation_fraction=0.3, objective="elbo", k=200)
    expected = plain.fit(rows()).validation_scores_
    assert model.validation_scores_ == pytest.approx(expected, rel=1e-5)
    assert model.loss_curve_[0] < plain.loss_curve_[0] - 0.1  # while the objective has no KL yet


def test_random_state_determines_results():
    one, again, other = small().fit(rows()), small().fit(rows()), small(random_state=1).fit(rows())
    np.testing.assert_array_equal(one.score_samples(rows()), again.score_samples(rows()))
    assert one.score(rows()) != other.score(rows())
    drawn = [one.sample(4, random_state=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert small(random_state=np.random.RandomState(0)).fit(rows()).score(rows()) == one.score(
        rows()
    )


@pytest.mark.slow
def test_second_fit_of_the_same_shape_compiles_nothing():
    compiled = []

    def listen(event, *_, **__):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    small(3).fit(rows()).score(rows())
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        small(3, random_state=7, learning_rate_init=2e-3).fit(rows() + 1).score(rows())
        assert not compiled
        small(4).fit(rows())
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_weights_are_a_moving_average_that_soon_forgets_the_start():
    one_step = {"early_stopping": False, "max_iter": 1, "batch_size": 64}
    start = small(ema=None, learning_rate_init=1e-12, **one_step).fit(rows()).model_
    end = small(ema=None, **one_step).fit(rows()).model_
    expected = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, start, end)
    found = small(**one_step).fit(rows()).model_
    for leaf, mean in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, mean, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_early_stopping_keeps_the_best_score_and_warns_when_too_early():
    # Twelve rows are memorised, which makes the held-out ones less likely.
    data = np.random.default_rng(0).normal(size=(24, 4))
    model = small(max_iter=400, n_iter_no_change=5, validation_fraction=0.5, tol=0.01)
    model.set_params(learning_rate_init=0.02, batch_size=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        model.fit(data)
    assert model.n_iter_ < 400
    assert len(model.loss_curve_) == len(model.validation_scores_) == model.n_iter_
    best = max(model.validation_scores_[: model.n_iter_ - 5])
    assert model.best_validation_score_ == pytest.approx(best, rel=1e-6)
    with pytest.warns(ConvergenceWarning, match="still rising after max_iter=2"):
        small(max_iter=2).fit(rows())


@pytest.mark.slow
def test_best_weights_are_kept_not_the_last():
    # The same twelve rows, trained for so long that the last weights fail on held-out rows.
    data = np.random.default_rng(0).normal(size=(24, 4))
    model = small(max_iter=400, n_iter_no_change=150, validation_fraction=0.5)
    model.set_params(learning_rate_init=0.02, batch_size=6).fit(data)
    held_out = model.score_samples(data[_split_order(model, 24)[:12]], k=5).mean()
    best, last = model.best_validation_score_, np.mean(model.validation_scores_[-20:])
    assert best - last > 1
    assert abs(held_out - best) < (best - last) / 2


def test_all_rows_are_training_rows_without_early_stopping():
    model = small(early_stopping=False).fit(rows())
    assert model.n_iter_ == 3
    assert model.validation_scores_ is None
    assert model.best_validation_score_ is None
    data = rows().copy()
    data[-1] += 1  # any row counts
    assert small(early_stopping=False).fit(data).score(rows()) != model.score(rows())


class StoppingCallback:
    """A scikit-learn callback that stops after some epochs."""

    def __init__(self, last):
        self.last, self.scores, self.calls = last, [], []

    def setup(self, estimator, context):  # noqa: ARG002
        self.calls.append(("setup", context.max_subtasks))

    def teardown(self, estimator, context):  # noqa: ARG002
        self.calls.append("teardown")

    def on_fit_task_begin(self, estimator, context):  # noqa: ARG002
        self.calls.append(("begin", context.task_name, context.task_id))

    def on_fit_task_end(self, estimator, context, *, X, fitted_estimator):  # noqa: ARG002
        self.calls.append(("end", context.task_name, context.task_id))
        if context.task_name == "epoch":
            self.scores.append((fitted_estimator.n_iter_, fitted_estimator.score(X)))
        return context.task_id == self.last


def test_callbacks_see_every_epoch_and_can_stop_fit():
    pytest.importorskip("sklearn.callback", reason="scikit-learn has callbacks from 1.9 on")
    callback = StoppingCallback(last=1)
    model = small(max_iter=5, early_stopping=False).set_callbacks(callback).fit(rows())
    epochs = [(name, "epoch", i) for i in range(2) for name in ("begin", "end")]
    calls = [("begin", "fit", 0), *epochs, ("end", "fit", 0)]
    assert callback.calls == [("setup", 5), *calls, "teardown"]
    assert [n for n, _ in callback.scores] == [1, 2]
    assert (model.n_iter_, len(model.loss_curve_)) == (2, 2)
    assert callback.scores[1][1] == model.score(rows())
    assert callback.scores[0][1] != callback.scores[1][1]


def test_progress_is_shown_if_verbose(capsys):
    small(verbose=True).fit(rows())
    assert "epoch 3" in capsys.readouterr().err
    small().fit(rows())
    assert capsys.readouterr() == ("", "")


# --- kinds of data ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "draw", "wrong"),
    [
        ("bernoulli", lambda g: g.integers(0, 2, (40, 3)), 2),
        ("poisson", lambda g: g.poisson(4, (40, 3)), -1),
        ("negative-binomial", lambda g: g.negative_binomial(2, 0.3, (40, 3)), 0.5),
        ({"name": "categorical", "categories": 3}, lambda g: g.integers(0, 3, (40, 3)), 3),
        ("discretised-gaussian", lambda g: g.integers(0, 256, (40, 3)), 256),
        (["gaussian", "poisson", "categorical:3"], None, -1),
    ],
)
def test_observation_models(kind, draw, wrong):
    random = np.random.default_rng(0)
    columns = [random.normal(50, 9, 40), random.poisson(4, 40), random.integers(0, 3, 40)]
    data = (draw(random) if draw else np.stack(columns, axis=1)).astype(np.float64)
    model = small(observation=kind).fit(data)
    assert np.isfinite(model.score_samples(data)).all()
    assert model.transform(data).shape == (40, 2)
    drawn = model.sample(20, random_state=0)
    model.score_samples(drawn)  # draws are legal values
    back = model.inverse_transform(model.transform(data))
    assert back.shape == data.shape
    if isinstance(kind, list):
        train = data[_split_order(model, 40)[4:], 0]
        assert model.shift_ == pytest.approx([train.mean(), 0, 0], rel=1e-9)
        assert set(back[:, 2]) <= {0, 1, 2}
        assert abs(back[:, 0].mean() - 50) < 5
    data[3, 1] = wrong
    for act in (model.score_samples, small(observation=kind).fit):
        with pytest.raises(ValueError, match="row 4, column 2 is"):
            act(data)


@pytest.mark.slow
def test_inverse_transform_returns_the_most_likely_category():
    data = np.tile([[0.0, 2.0]], (40, 1))
    data[:8, 0] = 1
    model = small(observation={"name": "categorical", "categories": 3}).fit(data)
    assert model.inverse_transform(model.transform(data[:2])).tolist() == [[0, 2], [0, 2]]


# --- missing values --------------------------------------------------------------------------


@cache
def rows_with_gaps():
    data = rows().copy()
    data[np.random.default_rng(1).uniform(size=data.shape) < 0.2] = np.nan
    return data[~np.isnan(data).all(axis=1)]


@cache
def fitted_with_gaps():
    return small(missing="at-random", max_iter=80, learning_rate_init=5e-3).fit(rows_with_gaps())


@pytest.mark.slow
def test_imputation_fills_gaps_and_keeps_observed_values():
    model, data = fitted_with_gaps(), rows_with_gaps()
    filled, missing = model.impute(data), np.isnan(data)
    np.testing.assert_array_equal(filled[~missing], data[~missing])
    truth = rows()[: len(filled)]
    assert (truth[~missing] == data[~missing]).all()
    columns = np.broadcast_to(np.nanmean(data, axis=0), data.shape)
    ours, means = (np.sqrt(((one - truth)[missing] ** 2).mean()) for one in (filled, columns))
    assert ours < 0.6 * means
    np.testing.assert_array_equal(model.impute(data[5:6]), filled[5:6])
    draws = model.impute(data, draws=200, random_state=0)
    assert draws.shape == (200, *data.shape)
    np.testing.assert_array_equal(draws, model.impute(data, draws=200, random_state=0))
    assert (draws[:, ~missing] == data[~missing]).all()
    spread = draws.std(axis=0)[missing]
    assert (spread > 0.05).all()
    error = spread / math.sqrt(20)  # the expectation is over 20 particles
    assert (np.abs(draws.mean(axis=0) - filled)[missing] < 6 * error).all()


@pytest.mark.slow
def test_densities_of_observed_values_are_in_their_units():
    units = np.array([2.0, 1024.0, 0.125])
    ours = small(missing="at-random").fit(rows_with_gaps())
    theirs = small(missing="at-random").fit(rows_with_gaps() * units)
    difference = ours.score_samples(rows_with_gaps()) - theirs.score_samples(
        rows_with_gaps() * units
    )
    np.testing.assert_allclose(difference, ~np.isnan(rows_with_gaps()) @ np.log(units), atol=1e-5)
    held_out = small(missing="at-random", k=200, validation_fraction=0.5).fit(rows_with_gaps())
    rest = rows_with_gaps()[
        _split_order(held_out, len(rows_with_gaps()))[: round(len(rows_with_gaps()) / 2)]
    ]
    values = held_out.score_samples(rest, k=200)
    assert held_out.best_validation_score_ == pytest.approx(values.mean(), abs=0.1)


@pytest.mark.slow
def test_partly_observed_row_has_the_density_of_its_observed_part():
    # The density integrates to one over any part of a row.
    model, grid = fitted_with_gaps(), np.linspace(-10, 40, 1200)
    part = np.stack([np.full(1200, np.nan), grid, np.full(1200, np.nan)], axis=1)
    assert np.trapezoid(np.exp(model.score_samples(part, k=200)), grid) == pytest.approx(
        1, abs=0.03
    )


@pytest.mark.slow
def test_row_without_values_has_probability_one_and_imputes_the_means(monkeypatch):
    data = rows_with_gaps().copy()
    data[::8] = np.nan
    model = small(missing="at-random").fit(data)
    nothing = np.full((1, 3), np.nan)
    assert model.score_samples(nothing, k=1000) == pytest.approx(0, abs=0.05)
    drawn = model.sample(4000, random_state=0)
    error = drawn.std(axis=0) / np.sqrt(1000)  # of the imputed means; that of the draws is half
    assert (np.abs(model.impute(nothing, k=1000)[0] - drawn.mean(axis=0)) < 6 * error).all()
    filled, khat, threshold = model.impute(data, k=1000, anneal=False, return_pareto_k=True)
    assert np.isnan(khat).tolist() == (~np.isnan(data).any(axis=1)).tolist()
    assert (threshold == pareto_threshold(1000)).all()
    *_, found = model.impute(data, k=1000, return_pareto_k=True)
    assert (found == np.where(khat > threshold, pareto_threshold(CHAINS), threshold)).all()
    monkeypatch.setattr("iwae.sklearn.mapping.pareto_threshold", lambda _: -9.0)
    message = f"k-hat is too large for {np.isfinite(khat).sum()} rows, whose imputed values are unr"
    with pytest.warns(UserWarning, match=message):
        np.testing.assert_array_equal(model.impute(data, k=1000, anneal=False), filled)


def test_imputation_without_a_missing_data_model_is_refused():
    with pytest.raises(ValueError, match="fit with missing='at-random'"):
        fitted().impute(rows())
    with pytest.raises(ValueError, match="at-random"):
        small(missing="somehow").fit(rows_with_gaps())


@pytest.mark.slow
def test_values_missing_not_at_random_with_categories(tmp_path):
    data = rows().copy()
    data[:, 2] = np.random.default_rng(0).integers(0, 3, len(data))
    data[data[:, 1] > 12, 1] = np.nan
    data[::9, 2] = np.nan
    kinds = ["gaussian", "gaussian", "categorical:3"]
    model = small(missing="not-at-random-high", observation=kinds).fit(data)
    assert np.isfinite(model.sample(50, random_state=0)).all()
    filled = model.impute(data)
    assert set(filled[:, 2]) <= {0, 1, 2}
    ignored = small(missing="at-random", observation=kinds).fit(data).impute(data)
    high = np.isnan(data[:, 1])
    assert filled[high, 1].mean() > ignored[high, 1].mean()
    model.save(tmp_path)
    again = ImportanceWeightedAutoencoder.load(tmp_path)
    np.testing.assert_array_equal(again.impute(data), filled)


# --- input -----------------------------------------------------------------------------------


def test_sparse_input_and_column_names():
    pd = pytest.importorskip("pandas")
    data = rows()
    for make in (sparse.csr_matrix, sparse.coo_array):
        assert small().fit(make(data)).score(make(data)) == fitted().score(data)
    frame = pd.DataFrame(data, columns=["a", "b", "c"])
    model = small().fit(frame)
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    assert model.score(frame) == fitted().score(data)
    table = model.set_output(transform="pandas").transform(frame)
    assert list(table.columns) == [
        "importanceweightedautoencoder0",
        "importanceweightedautoencoder1",
    ]
    assert table.index.equals(frame.index)
    with pytest.raises(ValueError, match="feature names"):
        model.transform(frame[["b", "a", "c"]])


def test_unnamed_columns_must_keep_their_order(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(rows())
    model = small(max_iter=1).fit(frame)
    with pytest.raises(ValueError, match=r"another order: give them as \[0, 1, 2\]"):
        model.transform(frame[[1, 0, 2]])
    model.save(tmp_path)
    with pytest.raises(ValueError, match=r"another order: give them as \[0, 1, 2\]"):
        ImportanceWeightedAutoencoder.load(tmp_path).transform(frame[[1, 0, 2]])
    other = frame.rename(columns={0: 7})  # unknown labels say nothing about the order
    for X in (frame, other, frame.to_numpy()):
        np.testing.assert_array_equal(model.transform(X), model.transform(rows()))
    frame.columns = pd.MultiIndex.from_product([["size"], ["a", "b", "c"]])
    model.fit(frame).save(tmp_path)
    for found in (model, ImportanceWeightedAutoencoder.load(tmp_path)):
        with pytest.raises(ValueError, match=r"another order: give them as .*'size', 'b'"):
            found.transform(frame[list(frame)[::-1]])
    model.fit(rows())
    model.transform(frame[list(frame)[::-1]])  # an array has no order to keep


def test_lossy_conversions_are_refused():
    pd = pytest.importorskip("pandas")
    days = pd.DataFrame({name: pd.date_range("2020-01-01", periods=64) for name in "abc"})
    masked = np.ma.masked_array(rows(), rows() > 12)
    for bad, message in (
        (days, "X holds dates or times, not numbers"),
        (days.assign(a=1.0), "X holds dates or times"),
        (days.to_numpy(), "X holds dates or times"),
        (days - days.iloc[0], "X holds dates or times"),
        (masked, r"X is a masked array, .*: give X.filled\(np.nan\)"),
    ):
        for act in (small().fit, fitted().transform, fitted().score_samples):
            with pytest.raises(ValueError, match=message):
                act(bad)
    unmasked = np.ma.masked_array(rows(), False)
    np.testing.assert_array_equal(fitted().transform(unmasked), fitted().transform(rows()))


@pytest.mark.slow
def test_numeric_columns_of_any_dtype():
    pd = pytest.importorskip("pandas")
    data = pd.DataFrame(np.rint(rows()), columns=["a", "b", "c"])
    model = small(max_iter=1, missing="at-random").fit(data)
    expected = model.score_samples(data)
    for dtype in ("Int64", "Float64", "int16", "category", "object"):
        np.testing.assert_array_equal(model.score_samples(data.astype(dtype)), expected)
    with_gaps, plain = data.astype("Int64"), data.copy()
    with_gaps.loc[::5, "b"], plain.loc[::5, "b"] = pd.NA, np.nan
    np.testing.assert_array_equal(model.impute(with_gaps), model.impute(plain))


def test_float32_stays_float32():
    data = rows().astype(np.float32)
    model = small().fit(data)
    z = model.transform(data)
    assert z.dtype == np.float32
    assert model.inverse_transform(z).dtype == np.float32
    assert model.score_samples(data).dtype == np.float64


@pytest.mark.slow
def test_estimator_works_with_scikit_learn_tools():
    data = rows()
    assert len(cross_val_score(small(), data, cv=2)) == 2
    search = GridSearchCV(small(), {"n_components": [1, 2]}, cv=2).fit(data)
    assert search.best_params_["n_components"] in (1, 2)
    apart = GridSearchCV(small(), {"n_components": [1, 2]}, cv=2, n_jobs=2).fit(data)
    scores = "mean_test_score"
    np.testing.assert_allclose(apart.cv_results_[scores], search.cv_results_[scores], rtol=1e-6)
    pipeline = make_pipeline(StandardScaler(), small()).fit(data)
    assert pipeline.transform(data).shape == (64, 2)
    assert pipeline.score(data) == pytest.approx(np.mean(pipeline.score_samples(data)))
    copy = clone(fitted())
    assert copy.get_params() == fitted().get_params()
    with pytest.raises(NotFittedError):
        copy.score(data)


INVALID_ROWS = {
    "strings": lambda x: np.full(x.shape, "a"),
    "infinite": lambda x: _with(x, np.inf),
    "missing": lambda x: _with(x, np.nan),
    "flat": lambda x: x[:, 0],
    "no rows": lambda x: x[:0],
    "no columns": lambda x: x[:, :0],
    "complex": lambda x: x * 1j,
    "cube": lambda x: x[None],
}


def _with(x, value):
    x = x.copy()
    x[1, 1] = value
    return x


@pytest.mark.parametrize("name", INVALID_ROWS)
def test_invalid_rows_are_refused(name):
    invalid = INVALID_ROWS[name](rows())
    for act in (small().fit, fitted().transform, fitted().score_samples):
        with pytest.raises((ValueError, TypeError)) as caught:
            act(invalid)
        assert not isinstance(caught.value, FloatingPointError)
        assert len(str(caught.value)) > 20


@given(width=st.integers(1, 6).filter(lambda d: d != 3))
def test_rows_of_another_width_are_refused(width):
    for act in (fitted().transform, fitted().score_samples, fitted().score):
        with pytest.raises(ValueError, match=f"X has {width} features, but .* 3 features"):
            act(np.ones((4, width)))
    if width != 2:
        with pytest.raises(ValueError, match="latent space has 2"):
            fitted().inverse_transform(np.ones((4, width)))


NOT_FINITE = st.sampled_from([np.nan, np.inf, -np.inf])
NOT_WHOLE = st.floats(0, 1e6).filter(lambda value: value % 1)
INVALID_VALUES = {
    "gaussian": NOT_FINITE | st.floats(1e40, 1e300),
    "bernoulli": NOT_FINITE | NOT_WHOLE | st.integers(2) | st.integers(max_value=-1),
    "poisson": NOT_FINITE | NOT_WHOLE | st.integers(max_value=-1),
    "negative-binomial": NOT_FINITE | NOT_WHOLE | st.integers(max_value=-1),
    "categorical:4": NOT_FINITE | NOT_WHOLE | st.integers(4) | st.integers(max_value=-1),
    "logistic-mixture": NOT_FINITE | NOT_WHOLE | st.integers(256) | st.integers(max_value=-1),
}


@given(
    kind=st.sampled_from(sorted(INVALID_VALUES)),
    row=st.integers(0, 7),
    place=st.integers(0, 2),
    data=st.data(),
)
@settings(max_examples=30)
def test_single_invalid_value_is_refused_before_fitting(kind, row, place, data):
    bad = np.random.default_rng(0).integers(0, 2, (8, 3)).astype(float)
    bad[row, place] = float(data.draw(INVALID_VALUES[kind]))
    model = small(observation=[kind] * 3)
    with pytest.raises(ValueError, match="X"):
        model.fit(bad)
    assert not hasattr(model, "model_")


@given(
    missing=st.sampled_from(["at-random", "not-at-random"]),
    place=st.integers(0, 2),
)
def test_column_without_values_is_refused(missing, place):
    bad = np.random.default_rng(0).normal(size=(8, 3))
    bad[:, place] = np.nan
    with pytest.raises(ValueError, match=rf"column {place + 1} of X has no value"):
        small(missing=missing).fit(bad)


@given(
    count=st.one_of(st.integers(-5, 0), st.floats(), st.text(max_size=3), st.booleans(), st.none()),
    name=st.sampled_from(["n_components", "k", "max_iter", "n_iter_no_change", "score_k"]),
)
@settings(max_examples=30)
def test_invalid_counts_are_refused(count, name):
    with pytest.raises(ValueError, match=f"{name} == .*, must be a whole number of at least 1"):
        small(**{name: count}).fit(rows()) if name != "n_components" else small(count).fit(rows())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"learning_rate_init": 0.0}, "learning_rate_init == 0.0"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"ema": 1.0}, "ema == 1.0, must be a number between 0 and 1, or None"),
        ({"tol": -1.0}, "tol == -1.0"),
        ({"tol": "0"}, "tol == '0'"),
        ({"observation": 5}, "observation == 5"),
        ({"observation": [1, 2, 3]}, "observation == "),
        ({"observation": {"nme": "x"}}, "observation == "),
        ({"objective": 3}, "objective == 3"),
        ({"gradient": 1}, "gradient == 1"),
        ({"activation": ["tanh"]}, "activation == "),
        ({"standardize": "yes"}, "standardize == 'yes'"),
        ({"early_stopping": "no"}, "early_stopping == 'no'"),
        ({"hidden_layer_sizes": "6"}, "hidden_layer_sizes == '6'"),
        ({"hidden_layer_sizes": (6, 0)}, "hidden_layer_sizes == 0"),
        ({"hidden_layer_sizes": iter((6,))}, "hidden_layer_sizes == <tuple_iterator"),
        ({"hidden_layer_sizes": {6, 4}}, r"hidden_layer_sizes == \{"),
        ({"objective": "elbow"}, "elbo"),
        ({"gradient": "dregg"}, "dreg"),
        ({"activation": "tan"}, "tanh"),
        ({"observation": "gauss"}, "gaussian"),
        ({"observation": ["gaussian"]}, "columns"),
        ({"observation": {"name": "categorical"}}, "categories"),
        ({"batch_size": "all"}, "batch_size"),
    ],
)
def test_invalid_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        small(**parameters).fit(rows())


@pytest.mark.slow
def test_degenerate_rows_columns_and_options():
    with pytest.raises(ValueError, match="minimum of 2 is required"):
        small().fit(rows()[:1])
    with pytest.raises(ValueError, match="no rows to train on"):
        small(validation_fraction=0.9).fit(rows()[:2])
    data = rows().copy()
    data[:, 1] = 7
    with pytest.warns(UserWarning, match=r"Features \[1\] are constant"):
        model = small().fit(data)
    assert np.isfinite(model.score_samples(data)).all()
    with pytest.warns(UserWarning, match="batch_size"):
        small(batch_size=1000).fit(rows())
    with pytest.raises(ValueError, match="method == 'exact'"):
        fitted().score_samples(rows(), method="exact")
    with pytest.raises(ValueError, match=r"temperatures == 2\.5"):
        fitted().score_samples(rows(), method="ais", temperatures=2.5)
    for latent in (["mean"], np.array(["mean", "snis"])):
        with pytest.raises(ValueError, match="latent == "):
            fitted().transform(rows(), latent=latent)
    with pytest.raises(ValueError, match="latent == 'mode'"):
        fitted().transform(rows(), latent="mode")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_of_any_scale_are_standardised(dtype):
    data = rows() * np.array([1e-30, 1.0, 1e30])
    shift, scale = input_row_standards(data.astype(dtype), Kind("gaussian"), standardize=True)
    np.testing.assert_allclose(shift, data.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(scale, data.std(axis=0), rtol=1e-5)
    with pytest.raises(ValueError, match="X, column 2: its values are too large to be"):
        input_row_standards(
            rows() * np.array([1.0, 1e200, 1.0]), Kind("gaussian"), standardize=True
        )


def test_equal_rows_have_equal_keys():
    one = np.float32([[0.0, np.nan], [1.0, 2.0]])
    other = np.float32([[-0.0, -np.nan], [1.0, 3.0]])
    same, different = input_row_addresses(one) == input_row_addresses(other)
    assert same
    assert not different


def test_values_beyond_float32_are_refused():
    data = rows().copy()
    data[5, 2] = 1e200
    for act in (fitted().transform, fitted().score_samples):
        with pytest.raises(ValueError, match="row 6, column 3 is too far from"):
            act(data)
    with pytest.raises(ValueError, match="X holds values beyond float32"):
        fitted().inverse_transform([[1e200, 0.0]])
    data[5, 2] = 1e30  # far, but finite
    assert fitted().score_samples(data)[5] < -1e30


def test_nan_from_the_model_is_reported():
    model = small().fit(rows())
    broken = eqx.tree_at(lambda m: m.encoder[0].loc.bias, model.model_, jnp.full(2, jnp.nan))
    model.model_ = broken
    for act in (model.transform, model.score_samples):
        with pytest.raises(FloatingPointError, match="row 1 is nan"):
            act(rows())


def test_one_hidden_layer_may_be_a_number():
    assert small(hidden_layer_sizes=6).fit(rows()).score(rows()) == fitted().score(rows())


def test_failed_fit_leaves_no_partial_model():
    model = small().fit(rows())
    with pytest.raises(ValueError, match="tanh"):
        model.set_params(activation="nope").fit(1000 * rows())
    for act in (model.transform, model.score_samples, model.inverse_transform):
        with pytest.raises(NotFittedError):
            act(rows())


def test_parameters_set_after_fit_apply_to_the_next_fit():
    model = small().fit(rows())
    before = model.transform(rows())
    model.set_params(n_components=3, missing="at-random")
    np.testing.assert_array_equal(model.transform(rows()), before)
    assert model.inverse_transform(before).shape == rows().shape
    with pytest.raises(ValueError, match="NaN"):
        model.transform(_with(rows(), np.nan))
    with pytest.raises(ValueError, match="score_k == 0"):
        model.set_params(score_k=0).transform(rows(), latent="snis")


@pytest.mark.slow
def test_objective_params_are_checked():
    miwae = small(objective="miwae", objective_params={"m": np.int64(2)}).fit(rows())
    assert miwae.score(rows()) != fitted().score(rows())
    with pytest.raises(ValueError, match="m"):
        small(objective="miwae").fit(rows())
    with pytest.raises(ValueError, match="objective_params has 'n', must be among"):
        small(objective="miwae", objective_params={"n": 2}).fit(rows())
    for value in ("2", 2.5, [2], True, np.array([2])):
        with pytest.raises(ValueError, match=r"objective_params has m == .*, must be int"):
            small(objective="miwae", objective_params={"m": value}).fit(rows())


# --- files -----------------------------------------------------------------------------------


def fitted_on_mixed_kinds():
    kind = ["gaussian", "poisson", "categorical:3"]
    data = np.abs(np.rint(rows())) % 3
    return small(observation=kind).fit(data), data


SAVED = {"real values": lambda: (fitted(), rows()), "kinds": fitted_on_mixed_kinds}


@pytest.mark.parametrize("name", quick(SAVED, "real values"))
def test_loaded_estimator_matches_the_saved_one(name, tmp_path):
    model, X = SAVED[name]()
    model.save(tmp_path / "model")
    again = ImportanceWeightedAutoencoder.load(tmp_path / "model")
    np.testing.assert_array_equal(again.score_samples(X), model.score_samples(X))
    np.testing.assert_array_equal(again.transform(X), model.transform(X))
    assert again.loss_curve_ == model.loss_curve_
    assert clone(again).fit(X).score(X) == model.score(X)
    assert load_model(tmp_path / "model").n_data == 3


def test_interrupted_save_is_detected(tmp_path):
    fitted().save(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    small(random_state=1).fit(100 * rows()).save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"other weights than model\.json beside it describes"):
        ImportanceWeightedAutoencoder.load(tmp_path)


def test_files_without_an_estimator_are_refused(tmp_path):
    save_model(fitted().model_, tmp_path)
    with pytest.raises(UserError, match="no estimator in"):
        ImportanceWeightedAutoencoder.load(tmp_path)
    fitted().save(tmp_path)
    text = (tmp_path / "model.json").read_text()
    for old, new in (
        (r'"shift_": \[', '"shift_": [1, '),
        ('"n_components"', '"n_component"'),
        ('"n_components": 2', '"n_components": 3'),
        (r'("scale_": \[\s+)', r"\1-"),
        ('"_key_": ', '"_key_": -'),
        ('"score_k": 20', '"score_k": "abc"'),
        ('"missing": null', '"missing": "at-random"'),
        (r'"activation": "tanh"(,\s+"batch_size")', r'"activation": "relu"\1'),
        ('"_key_"', '"feature_names_in_": ["a", "b"], "_key_"'),
        ('"_key_"', '"feature_names_in_": "abc", "_key_"'),
        ('"_labels_": null', '"_labels_": ["a"]'),
        ('"_labels_": null', '"_labels_": ["a", 1, "c"]'),
    ):
        changed, count = re.subn(old, new, text)
        assert count == 1
        (tmp_path / "model.json").write_text(changed)
        with pytest.raises(UserError, match="no estimator in"):
            ImportanceWeightedAutoencoder.load(tmp_path)
    changed = copy.copy(fitted()).set_params(n_components=3)
    with pytest.raises(ValueError, match="were changed after fit: fit it again"):
        changed.save(tmp_path)
    with pytest.raises(ValueError, match="random_state is a generator"):
        small(random_state=np.random.RandomState(0)).fit(rows()).save(tmp_path)
    with pytest.raises(NotFittedError):
        small().save(tmp_path)


@pytest.mark.slow
def test_learned_priors_and_flow_posteriors(tmp_path):
    table = rows()
    for options in ({"prior": "vamp:4"}, {"prior": "mixture:3", "posterior": "flow:2"}):
        fit = small(**options, max_iter=3, early_stopping=False, random_state=0).fit(table)
        assert np.isfinite(fit.score_samples(table[:5])).all()
        assert fit.transform(table[:5]).shape == (5, 2)
        fit.save(tmp_path / "saved")
        same = ImportanceWeightedAutoencoder.load(tmp_path / "saved")
        assert same.prior == options["prior"]
        np.testing.assert_array_equal(same.score_samples(table[:5]), fit.score_samples(table[:5]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "vamp"}, "needs a number"),
        ({"prior": 3}, "prior == 3, must be a name"),
        ({"posterior": "vamp:3"}, "no posterior"),
        ({"prior": "vamp:65", "early_stopping": False}, "of which there are 64"),
    ],
)
def test_invalid_priors_and_posteriors_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options).fit(rows())
