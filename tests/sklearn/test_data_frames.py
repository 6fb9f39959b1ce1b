"""Data frames in the estimator: how columns are interpreted, and what is returned."""

import copy
import json
from functools import cache

import numpy as np
import pytest

from iwae import ImportanceWeightedAutoencoder, UserError
from iwae.sklearn.data_frames import describe

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")
pl = pytest.importorskip("polars")
pl_testing = pytest.importorskip("polars.testing")
pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:Features .* are constant"),
    pytest.mark.filterwarnings("ignore:k-hat is too large"),
]

N = 60


def small(**parameters):
    given = {"hidden_layer_sizes": (4,), "max_iter": 1, "score_k": 10, "batch_size": 16}
    given |= {"observation": "auto", "missing": "at-random", "random_state": 0}
    given |= {"early_stopping": False}
    return ImportanceWeightedAutoencoder(2, **{**given, **parameters})


@cache
def complete_frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "city": rng.choice(["Oslo", "Rome", "Bern"], N),
            "age": rng.integers(18, 90, N),
            "member": pd.array(rng.random(N) < 0.3, "boolean"),
            "size": rng.normal(170, 10, N).astype("float32"),
            "grade": pd.Categorical(
                rng.choice(["low", "high"], N), ["low", "mid", "high"], ordered=True
            ),
            "stars": pd.Categorical(rng.choice([1, 2, 5], N)),
            "visits": pd.array(rng.integers(2, 90, N), "Int64"),  # counts take long to compile
            "small": rng.integers(-128, 128, N).astype("int8"),
        },
        index=np.arange(N) + 1000,
    )


@cache
def frame_with_gaps():
    frame = complete_frame().copy()
    for place, name in enumerate(("city", "grade", "stars", "visits", "member", "size")):
        frame.loc[1000 + place, name] = None
    return frame


@cache
def fitted():
    return small().fit(frame_with_gaps())


def test_imputation_keeps_observed_values_and_dtypes():
    filled, gaps = fitted().impute(frame_with_gaps()), frame_with_gaps().isna()
    assert not filled.isna().any(axis=None)
    assert gaps.sum(axis=None) == 6
    pd.testing.assert_frame_equal(filled.mask(gaps), frame_with_gaps(), check_exact=True)
    pd.testing.assert_series_equal(filled.dtypes, complete_frame().dtypes)


@pytest.mark.slow
def test_multiple_imputations_are_a_list_of_frames():
    for frame in fitted().impute(frame_with_gaps(), draws=2, random_state=0):
        gaps = frame_with_gaps().isna()
        assert not frame.isna().any(axis=None)
        pd.testing.assert_frame_equal(frame.mask(gaps), frame_with_gaps(), check_exact=True)


@pytest.mark.slow
def test_draws_and_means_have_the_categories_and_dtypes_of_the_data():
    drawn = fitted().sample(40, random_state=0)
    back = fitted().inverse_transform(
        pd.DataFrame(fitted().transform(complete_frame()), complete_frame().index)
    )
    assert back.index.equals(complete_frame().index)
    # Draws of a Gaussian may be beyond int8; they must not wrap around.
    assert drawn["small"].dtype == "int64"
    assert drawn["small"].abs().max() > 128
    for frame in (drawn, back):
        pd.testing.assert_series_equal(
            frame.dtypes.drop("small"), complete_frame().dtypes.drop("small"), check_names=False
        )
        assert set(frame["city"]) <= {"Oslo", "Rome", "Bern"}
    assert fitted().score_samples(drawn).shape == (40,)


def test_columns_are_matched_by_name():
    other = frame_with_gaps()[frame_with_gaps().columns[::-1]]
    for act in (fitted().transform, fitted().score_samples):
        np.testing.assert_array_equal(act(other), act(frame_with_gaps()))
    pd.testing.assert_frame_equal(fitted().impute(other), fitted().impute(frame_with_gaps()))
    assert fitted().feature_names_in_.tolist() == list(complete_frame())
    assert fitted().n_features_in_ == len(complete_frame().columns)
    assert [column.kind for column in fitted().columns_[:3]] == [
        "categorical:3",
        "gaussian",
        "bernoulli",
    ]


def test_observed_fractions_are_kept_in_a_column_of_integers():
    later = frame_with_gaps().astype({"age": "float64"})
    later.loc[1010, "age"] = 30.5
    assert fitted().impute(later).loc[1010, "age"] == 30.5


def test_loaded_estimator_knows_its_columns(tmp_path):
    fitted().save(tmp_path)
    again = ImportanceWeightedAutoencoder.load(tmp_path)
    pd.testing.assert_frame_equal(
        again.impute(frame_with_gaps()), fitted().impute(frame_with_gaps())
    )
    assert again.observation == "auto"
    assert again.feature_names_in_.tolist() == list(complete_frame())
    about = json.loads((tmp_path / "model.json").read_text())
    for change in (
        lambda frame: frame["columns"].pop(),
        lambda frame: frame["dtypes"].pop(),
        lambda frame: frame["columns"][0]["levels"].pop(),
        lambda frame: frame["columns"][0].update(name="age"),
        lambda frame: frame["columns"][1].update(kind="poisson"),
        lambda frame: frame.update(library="no_such_library"),
        lambda frame: frame.clear(),
    ):
        changed = json.loads(json.dumps(about))
        change(changed["about"]["estimator"]["learnt"]["frame"])
        (tmp_path / "model.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match="no estimator in"):
            ImportanceWeightedAutoencoder.load(tmp_path)


def test_polars_in_polars_out(tmp_path):
    types = {"grade": pl.Enum(["low", "mid", "high"]), "small": pl.Float64}
    plain = frame_with_gaps().astype({"stars": "Int64"}).reset_index(drop=True)
    source = pl.from_pandas(plain).cast(types)
    model = small().fit(source)
    model.save(tmp_path)
    filled = model.impute(source)
    assert filled.schema == source.schema
    assert filled.null_count().sum_horizontal().item() == 0
    for name in source.columns:
        kept = source[name].is_not_null()
        assert filled[name].filter(kept).equals(source[name].filter(kept))
    drawn = ImportanceWeightedAutoencoder.load(tmp_path).sample(40, random_state=0)
    assert drawn.equals(model.sample(40, random_state=0))
    assert drawn.schema == source.schema


@cache
def numbers():
    rng = np.random.default_rng(1)
    found = {
        "size": rng.normal(170, 10, N).astype("float32"),
        "age": rng.integers(18, 90, N).astype("int8"),
        "member": rng.random(N) < 0.3,
    }
    frame = pd.DataFrame(found, index=np.arange(N) + 1000)
    frame.loc[1003, "size"] = np.nan
    return frame


def _with_integer_names(frame):
    return frame.set_axis([7, 8, 9], axis=1)


@pytest.mark.parametrize(
    ("make", "check"),
    [
        (lambda frame: frame, pd.testing.assert_frame_equal),
        (_with_integer_names, pd.testing.assert_frame_equal),
        (pl.from_pandas, pl_testing.assert_frame_equal),
    ],
)
def test_numeric_frames_are_returned_for_any_observation(make, check, tmp_path):
    source = make(numbers())
    model = small(observation="gaussian").fit(source)
    filled = model.impute(source, anneal=False)
    assert type(filled) is type(source)
    for part in (slice(3), slice(4, None)):
        check(filled[part], source[part])
    assert np.isfinite(np.asarray(filled, float)).all()
    model.save(tmp_path)
    latents = model.set_output(transform="pandas").transform(source)
    for one in (model, ImportanceWeightedAutoencoder.load(tmp_path)):
        back, drawn = one.inverse_transform(latents), one.sample(5, random_state=0)
        assert type(back) is type(drawn) is type(source)
        assert list(back.columns) == list(drawn.columns) == list(source.columns)
        # Means and draws of a Gaussian are fractions, which int8 and bool do not hold.
        types = [str(dtype).lower() for dtype in drawn.dtypes]
        assert types == ["float32", "float64", "float64"]
    if isinstance(back, pd.DataFrame):
        assert back.index.equals(latents.index)


def test_fit_with_another_observation_forgets_the_frame(tmp_path):
    other = copy.copy(fitted()).set_params(observation="gaussian")
    with pytest.raises(ValueError, match="changed after fit"):
        other.save(tmp_path)
    with pytest.raises(ValueError, match="infinity"):
        other.fit(np.full((9, 2), np.inf))
    assert not hasattr(other, "columns_")


def test_unknown_category_can_count_as_missing():
    model = copy.copy(fitted()).set_params(unknown="missing")
    odd, gap = frame_with_gaps().copy(), frame_with_gaps().copy()
    odd.loc[1010, "city"], gap.loc[1010, "city"] = "Paris", None
    np.testing.assert_array_equal(model.transform(odd), fitted().transform(gap))
    assert model.impute(odd).loc[1010, "city"] in ("Bern", "Oslo", "Rome")
    for wrong, message in (
        ({"unknown": "ignore"}, "unknown == 'ignore', must be 'error' or 'missing'"),
        ({"unknown": "missing", "missing": None}, "needs observation='auto' and missing="),
        ({"unknown": "missing", "observation": "gaussian"}, "needs observation='auto' and missi"),
    ):
        with pytest.raises(ValueError, match=message):
            small(**wrong).fit(complete_frame())


def _with_dates(frame):
    return frame.assign(day=pd.Timestamp("2020-01-01"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda frame: frame.assign(city="Paris"),
            "'Paris'; known: Bern, Oslo, Rome: .*unknown='mis",
        ),
        (lambda frame: frame.drop(columns="age"), "lacks the columns 'age'"),
        (lambda frame: frame.assign(more=1), "X has the columns 'more'"),
        (lambda frame: frame.to_numpy(), "X is a ndarray, but observation='auto' takes a data fra"),
    ],
)
def test_frames_unlike_the_fitted_one_are_refused(change, message):
    for act in (fitted().transform, fitted().score_samples, fitted().impute):
        with pytest.raises(ValueError, match=message) as caught:
            act(change(frame_with_gaps()))
        assert "--" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with_dates, "'day' holds dates or times: leave it out, or write numbers"),
        (lambda frame: frame.assign(w=[f"w{i}" for i in range(N)]), "leave it out, or insist"),
        (lambda frame: frame.assign(w=list(map(str, range(N)))), "'w' holds numbers as text"),
        (lambda frame: frame.assign(w=None), "column 9 of X has no value in any row: leave it out"),
        (lambda frame: frame[:0], r"0 sample\(s\)"),
        (lambda frame: frame.rename(columns={"age": "size"}), "several columns of one name"),
        (lambda frame: frame.rename(columns={"age": 3}), "column name 3, which is not a string"),
    ],
)
def test_columns_of_unknown_kind_are_refused(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        small().fit(change(complete_frame()))
    assert "--" not in str(caught.value)


def test_possible_row_identifiers_are_flagged():
    (column, _), _ = describe(
        pd.DataFrame({"code": np.arange(2, 22), "size": np.linspace(0, 1, 20)})
    )
    assert column.why.endswith("all different (if they name the rows, leave it out)")


def test_missing_values_need_a_missing_data_model():
    with pytest.raises(ValueError, match=r"row 1, column 'city': fit with missing='at-random'"):
        small(missing=None).fit(frame_with_gaps())


@pytest.mark.parametrize("make", [lambda frame: frame, pl.from_pandas])
def test_errors_of_the_default_observation_name_the_remedy(make):
    dates = complete_frame()[["age"]].assign(
        day=np.array([np.datetime64("2020-01-01").item()] * N, object)
    )
    for frame, message in (
        (complete_frame(), "words in column 'city', such as '....': fit with observation='auto'"),
        (complete_frame()[["age"]].assign(n="12"), "words in column 'n', such as '12'"),
        (dates, "dates or times, not numbers, in column 'day'"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            small(observation="gaussian", missing=None).fit(make(frame))
        assert "\n" not in str(caught.value)


def test_pyarrow_table_matches_a_frame_of_the_same_numbers():
    frame = complete_frame()[["age", "size"]]
    arrow = pa.Table.from_pandas(frame, preserve_index=False)
    model, other = (small(observation="gaussian").fit(one) for one in (arrow, frame))
    np.testing.assert_array_equal(model.transform(arrow), other.transform(frame))
    assert model.feature_names_in_.tolist() == ["age", "size"]
    assert isinstance(model.impute(arrow), pa.Table)
    with pytest.raises(ValueError, match="feature names should match"):
        model.transform(arrow.select(["size", "age"]))


def test_frames_without_rows_or_numbers_are_refused_in_one_line():
    cut = complete_frame()[["age"]].assign(part=pd.cut(np.arange(N), 3))
    lazy = pl.from_pandas(complete_frame()).lazy()
    for observation in ("gaussian", "auto"):
        for frame, message in (
            (lazy, "a LazyFrame, which has no rows yet"),
            (cut, "Interval objects"),
        ):
            with pytest.raises(ValueError, match=message) as caught:
                small(observation=observation).fit(frame)
            assert "\n" not in str(caught.value)


def test_duplicate_column_names_are_refused_by_the_default():
    frame = pd.DataFrame(np.eye(3), columns=["a", "b", "a"])
    with pytest.raises(ValueError, match="several columns of one name"):
        small(observation="gaussian").fit(frame)
