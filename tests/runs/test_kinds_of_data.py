"""Every kind of data end to end: from a file through a run to records and figures."""

import json
import math
import tomllib
from typing import get_args

import numpy as np
import pytest

import small
from iwae.config.experiment import make_config
from iwae.config.types import ObservationName
from iwae.data import KINDS, load_dataset, make_kind
from iwae.errors import UserError
from iwae.reports.gallery import draw_gallery
from iwae.results.description import describe
from iwae.results.likelihood import evaluate_run
from iwae.runs.jobs import make_job
from iwae.runs.model_files import load_model

N = 60
RUN = {"batch_size": 8, "epochs": 2, "k": 2, "validation": 10}


def rng():
    return np.random.default_rng(5)


def levels(*shape):
    return rng().integers(0, 256, (N, *shape)).astype(np.uint8)


def counts():
    return rng().poisson(3.0, (N, 3))


def mixed():
    columns = (rng().poisson(3.0, N), rng().normal(size=N), rng().integers(0, 3, N))
    return np.stack([*columns, rng().integers(0, 2, N)], axis=1)


COLUMN_KINDS = ("poisson", "gaussian-shared", "categorical:3", "bernoulli")
CASES = {
    "bernoulli": (lambda: levels(4, 4) > 99, {}),
    "gaussian": (lambda: levels(3) / 7 - 2, {}),
    "gaussian-shared": (lambda: levels(3) / 7 - 2, {}),
    "gaussian-fixed": (lambda: levels(3) / 7 - 2, {"scale": 0.5}),
    "logistic-mixture": (lambda: levels(3, 2, 3), {"mixtures": 2}),
    "discretised-gaussian": (lambda: levels(4, 4), {}),
    "categorical": (lambda: counts().clip(0, 4), {"categories": 5}),
    "poisson": (counts, {}),
    "negative-binomial": (lambda: counts().astype(np.uint8), {}),
    "table": (mixed, {"columns": COLUMN_KINDS}),
}
PICTURES = {
    "bernoulli": {
        *("data", "samples", "reconstructions", "filters_first_layer", "filters_last_layer")
    },
    "logistic-mixture": {"data", "samples", "reconstructions"},
}
PICTURES["discretised-gaussian"] = PICTURES["bernoulli"]
ALWAYS = {"bounds", "training_curves", "log_variances", "latents", "posterior"}


def test_cases_cover_every_kind():
    assert set(CASES) == set(KINDS) == set(get_args(ObservationName))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_each_kind_is_trained_saved_evaluated_and_drawn(name, tmp_path):
    make, parameters = CASES[name]
    array = make()
    np.save(tmp_path / "mine.npy", array)
    run = tmp_path / "run"
    options = {"dataset": str(tmp_path / "mine.npy"), "observation": name, **parameters, **RUN}
    reports = small.train_in(run, **options)
    assert np.isfinite(reports[-1].bound).all()
    stored = tomllib.loads((run / "config.toml").read_text())
    assert stored["observation"] == name
    for parameter, value in parameters.items():
        assert stored[parameter] == (list(value) if isinstance(value, tuple) else value)
    kind = make_kind(name, **parameters)
    model = load_model(run / "models" / "final-0")
    assert model.kind == kind
    record = evaluate_run(run, ks=(3, 20))
    assert math.isfinite(record["log_likelihood"])
    check_bits_per_dimension(record, array[0].size, quantised=KINDS[name].quantised)
    drawn = {path.stem for path in draw_gallery(run) if not path.stem.startswith("training_s")}
    drawn.discard("training_reconstructions")
    assert drawn == ALWAYS | PICTURES.get(name, {"marginals"})


def check_bits_per_dimension(record, d, *, quantised):
    """Check that bits are nats / (d ln 2), in the record, its rows and the description."""
    rows = [record, *record["by_k"]]
    assert all(("bits_per_dimension" in row) == quantised for row in rows)
    assert ("bits per dimension" in describe(record)) == quantised
    for row in rows * quantised:
        nats = d * math.log(2)
        assert row["bits_per_dimension"] == pytest.approx(-row["log_likelihood"] / nats)
        assert row["bits_per_dimension_stderr"] == pytest.approx(row["stderr"] / nats)
        assert row["bits_per_dimension_stderr"] > 0


@pytest.mark.slow
def test_replicates_have_bits_per_dimension(tmp_path):
    np.save(tmp_path / "mine.npy", levels(4, 4))
    kind = {"observation": "discretised-gaussian", "replicates": 2}
    small.train_in(tmp_path / "run", dataset=str(tmp_path / "mine.npy"), **kind, **RUN)
    record = evaluate_run(tmp_path / "run", ks=(3,))
    check_bits_per_dimension(record, 16, quantised=True)
    assert len(record["replicates"]) == 2
    for row in [row for one in record["replicates"] for row in (one, *one["by_k"])]:
        assert row["bits_per_dimension"] == pytest.approx(-row["log_likelihood"] / 16 / math.log(2))
    assert json.loads(json.dumps(record)) is not None


def test_colour_images_keep_their_bytes(tmp_path):
    array = levels(3, 2, 3)
    np.save(tmp_path / "mine.npy", array)
    data = load_dataset(tmp_path / "mine.npy", observation="logistic-mixture")
    assert (data.shape, data.binarization, data.train.dtype) == ((3, 2, 3), "none", np.uint8)
    assert data.identity["observation"] == {"name": "logistic-mixture", "mixtures": 5}
    assert {row.tobytes() for row in data.test} <= {row.tobytes() for row in array}


@pytest.mark.slow
def test_warm_start_from_another_kind_is_refused(tmp_path):
    np.save(tmp_path / "mine.npy", counts())
    options = {"dataset": str(tmp_path / "mine.npy"), **RUN}
    run = tmp_path / "run"
    small.train_in(run, observation="categorical", categories=20, **options)
    with pytest.raises(UserError, match=r"is categorical \(categories 20\), here .*categories 21"):
        make_job(
            small.config(observation="categorical", categories=21, init_from=str(run), **options)
        )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "poisson",
            -1,
            r"array 'data': row 8, column 2 is -1: observation 'poisson' takes whole ",
        ),
        ("poisson", 2.5, r"row 8, column 2 is 2\.5: .*round counts"),
        ("negative-binomial", 1e8, "row 8, column 2 is 1e.08: .*16,777,216"),
        ("logistic-mixture", 256, r"takes whole numbers from 0 to 255; multiply grey levels"),
        ("discretised-gaussian", 0.5, r"multiply grey levels within \[0, 1\] by 255"),
        ("categorical", 7, "number the categories from 0, or raise"),
        ("table", 7, r"row 8, column 2 is 7: observation 'categorical \(categories 3\)'"),
    ],
)
def test_values_outside_the_support_of_a_kind_are_refused(tmp_path, name, value, message):
    array = np.ones((20, 2))
    array[7, 1] = value
    np.save(tmp_path / "mine.npy", array)
    parameters = {
        "categorical": {"categories": 3},
        "table": {"columns": ("poisson", "categorical:3")},
    }
    kind = make_kind(name, **parameters.get(name, {}))
    with pytest.raises(UserError, match=message):
        load_dataset(tmp_path / "mine.npy", observation=kind)
    array[7, 1] = 0
    np.save(tmp_path / "mine.npy", array)
    assert load_dataset(tmp_path / "mine.npy", observation=kind).kind == kind


def test_named_datasets_are_checked_and_never_binarised():
    assert load_dataset("digits", observation="logistic-mixture").test.max() == 255
    with pytest.raises(UserError, match=r"camel: train: row 1, column 1 is .*'poisson' takes"):
        load_dataset("camel", observation="poisson")
    with pytest.raises(UserError, match="'dynamic' contradicts observation 'discretised-gaussian'"):
        load_dataset("digits", observation="discretised-gaussian", binarization="dynamic")
    shared = load_dataset("digits", observation="gaussian-shared")
    assert (shared.train.dtype, shared.train.max()) == (np.float32, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"observation": "categorical"}, "'categorical' needs categories, such as 10"),
        ({"observation": "gaussian-fixed"}, "needs scale"),
        ({"observation": "table"}, "needs columns, such as gaussian poisson"),
        ({"observation": "poisson", "mixtures": 3}, "mixtures goes with observation 'logistic-mix"),
        ({"categories": 3}, "categories needs observation"),
        ({"observation": "gaussian-fixed", "scale": 0}, "scale"),
        ({"observation": "categorical", "categories": 1}, "categories"),
        ({"observation": "logistic-mixture", "mixtures": 0}, "mixtures"),
        ({"observation": "table", "columns": ["weibull"]}, "no kind 'weibull'; known: bernoulli"),
        ({"observation": "table", "columns": ["table:2"]}, "no kind 'table'"),
        ({"observation": "table", "columns": ["poisson:2"]}, "takes no parameter"),
        ({"observation": "table", "columns": ["categorical:x"]}, "'x' in 'categorical:x' is no"),
        ({"observation": "table", "columns": ["categorical"]}, "needs categories"),
        ({"observation": "table", "columns": []}, "at least one"),
    ],
)
def test_invalid_parameters_of_a_kind_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        make_config(values, "here")


def test_table_needs_a_kind_for_each_column(tmp_path):
    np.save(tmp_path / "mine.npy", counts())
    with pytest.raises(UserError, match="has 3 columns, but columns names 1 kinds"):
        load_dataset(tmp_path / "mine.npy", observation=make_kind("table", columns=("poisson",)))
