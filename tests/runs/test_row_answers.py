"""Results for rows of a file: latents, scores, conditional draws and imputed tables."""

import shutil
from decimal import Decimal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from cases import quick_rows
from iwae import (
    VAE,
    ConditionalVAE,
    TrainConfig,
    UserError,
    encode,
    encode_rows,
    impute_rows,
    load_dataset,
    outlier_p_values,
    pool,
    sample_given,
    sample_rows,
    score,
    score_rows,
    start_run,
)
from iwae.cli import main
from iwae.cli.answers import _parse_given
from iwae.data.binarisation import redraw_binarisation
from iwae.data.columns import Column
from iwae.data.kinds import make_kind
from iwae.data.tables import read_table
from iwae.evaluation.imputation import Imputed, impute, multiple_imputations
from iwae.runs.file_imputation import _fill_parquet, impute_file
from iwae.runs.parquet_filling import Piece, filled_parquet
from iwae.runs.row_answers import _value
from iwae.runs.row_reading import Fitted, Rows, read_rows, row_reading_model
from iwae.runs.text_filling import Changes, filled_text

WEIGHT, BIAS, SCALE = np.float32([[1.5, -0.5, 0.8]]), np.float32([1.0, 0.0, -2.0]), 0.5
COVARIANCE = WEIGHT.T @ WEIGHT + SCALE**2 * np.eye(3)


def key(i=0):
    return jax.random.key(i)


def linear(missing=None):
    """x = W z + b + 0.5 e, with q(z|x) = N(0, 1): both p(z|x) and p(x_mis|x_obs) are known."""
    model = VAE(3, (1,), ((),), observation="gaussian-shared", missing=missing, key=key())
    zeros = [model.encoder[0].loc, model.encoder[0].log_scale]
    where = lambda m: (  # noqa: E731
        m.output.weight,
        m.output.bias,
        m.free,
        m.encoder[0].loc.weight,
        m.encoder[0].log_scale.weight,
    )
    values = (
        jnp.asarray(WEIGHT).reshape(model.output.weight.shape),
        jnp.asarray(BIAS),
        jnp.full(3, np.log(SCALE)),
        *(jnp.zeros_like(one.weight) for one in zeros),
    )
    return eqx.tree_at(where, model, values)


def conditional_moments(known):
    """Mean and covariance of the unknown values given the known ones."""
    observed = ~np.isnan(known)
    observed_covariance, cross = (
        COVARIANCE[np.ix_(observed, observed)],
        COVARIANCE[np.ix_(~observed, observed)],
    )
    gain = cross @ np.linalg.inv(observed_covariance)
    mean = BIAS[~observed] + gain @ (known[observed] - BIAS[observed])
    return mean, COVARIANCE[np.ix_(~observed, ~observed)] - gain @ cross.T


@pytest.mark.parametrize(
    ("missing", "method", "k"),
    quick_rows([(None, "is", 20_000), ("at-random", "is", 20_000), (None, "ais", 400)], 0, 1),
)
def test_draws_given_some_values_have_the_conditional_distribution(missing, method, k):
    known = np.float32([2.0, np.nan, np.nan])
    given = sample_given(linear(missing), known, key(1), 4000, k=k, method=method)
    mean, covariance = conditional_moments(known)
    np.testing.assert_array_equal(given.rows[:, 0], 2.0)
    drawn = given.rows[:, 1:]
    error = np.sqrt(np.diag(covariance) * (1 / 4000 + 1 / given.ess))
    assert (np.abs(drawn.mean(axis=0) - mean) < 4 * error).all()
    assert (np.abs(BIAS[1:] - mean) > 8 * error).all()  # the known value matters
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.15)
    assert np.abs(COVARIANCE[1:, 1:] - covariance).max() > 0.3


GRID = np.linspace(-8, 8, 801, dtype=np.float32)[:, None]
BITS = np.float32([[0, 0], [0, 1], [1, 0], [1, 1]])


def mixed(latents, missing):
    """A real value, one of three categories and a bit, all strongly dependent on the latents."""
    kind = make_kind("table", columns=("gaussian", "categorical:3", "bernoulli"))
    n = 2 if latents == "bernoulli" else 1
    model = VAE(3, (n,), ((),), latents=latents, observation=kind, missing=missing, key=key(4))
    rng, where = np.random.default_rng(11), lambda m: (m.output.weight, m.output.bias)
    values = (1.5 * rng.normal(size=one.shape).astype(np.float32) for one in where(model))
    return eqx.tree_at(where, model, tuple(map(jnp.asarray, values)))


def category_probabilities(model, x, points):
    """p(category | other values), by summation over all latents or over a grid of them."""
    rows = np.repeat(np.float32(x)[None], 3, axis=0)
    rows[:, 1] = range(3)
    each = jax.vmap(lambda row: jax.vmap(lambda z: model.log_joint(row, (z,)))(points))(rows)
    return np.asarray(jax.nn.softmax(jax.nn.logsumexp(each, axis=1)), float)


@pytest.mark.parametrize(("latents", "points"), [("bernoulli", BITS), ("normal", GRID)])
def test_category_draws_match_enumerated_probabilities(latents, points):
    x, draws, k = np.float32([0.8, np.nan, 1.0]), 4000, 20_000
    for missing in (None, "at-random"):
        model = mixed(latents, missing)
        exact = category_probabilities(model, x, points)
        given = sample_given(model, x, key(1), draws, k=k)
        found = [(given.rows[:, 1], given.ess)]
        if missing:
            filled = multiple_imputations(model, x[None], key(2), draws=draws, k=k)[:, 0]
            found.append((filled[:, 1], given.ess))  # of as many particles from q(z|x)
            assert impute(model, x[None], key(3), k=k)[0, 1] == exact.argmax()
        for drawn, ess in found:
            share = np.bincount(drawn.astype(int), minlength=3) / draws
            error = np.sqrt(exact * (1 - exact) * (1 / draws + 1 / ess))
            assert (np.abs(share - exact) < 4 * error).all()
        wrong = category_probabilities(model, [-x[0], np.nan, 0.0], points)
        assert np.abs(exact - wrong).max() > 8 * error.max()  # the known values matter


def test_too_few_effective_particles_are_refused():
    with pytest.raises(UserError, match="of 50 particles are effective, too few"):
        sample_given(linear(), np.float32([30.0, np.nan, np.nan]), key(), 5, k=50)


def test_encoded_latents_match_the_true_posterior():
    x = np.float32([[2.0, -0.3, -1.0], [1.0, 0.0, -2.0]])
    precision = 1 + (WEIGHT**2).sum() / SCALE**2
    mean = (x - BIAS) @ WEIGHT.T / SCALE**2 / precision
    by_encoder, exact = encode(linear(), x, key()), encode(linear(), x, key(), k=20_000)
    np.testing.assert_array_equal(by_encoder.mean, 0.0)
    np.testing.assert_array_equal(by_encoder.scale, 1.0)
    np.testing.assert_allclose(exact.mean, mean, atol=0.05)
    np.testing.assert_allclose(exact.scale, precision**-0.5, atol=0.02)


def test_score_errors_cover_the_exact_likelihood():
    rng = np.random.default_rng(0)
    x = rng.multivariate_normal(BIAS, COVARIANCE, size=200).astype(np.float32)
    scores = score(linear(), x, key(), k=500)
    centred = x - BIAS
    quadratic = (centred @ np.linalg.inv(COVARIANCE) * centred).sum(axis=1)
    exact = -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * COVARIANCE)[1])
    z_scores = (scores.log_likelihood - exact) / scores.error
    assert 0.7 < z_scores[scores.pareto_k < 0.7].std() < 1.4


def test_p_values_count_reference_rows_that_are_at_most_as_likely():
    p_values = outlier_p_values(np.array([-5.0, -1.0, 0.0, 3.0]), np.array([0.0, -1.0, 2.0]))
    np.testing.assert_array_equal(p_values, [1 / 4, 2 / 4, 3 / 4, 1])


def test_pool_agrees_with_a_published_example():
    """The example of `pool.scalar` in the reference of R's package mice 3.10.3: the mean bmi of
    nhanes, n = 25, in five imputations (docs/reference/pool.scalar.html of amices/mice)."""
    estimates = np.array([26.816, 26.184, 26.692, 27.076, 26.528])
    variances = np.array([0.7888227, 0.5449227, 0.7764973, 0.6764760, 0.5379173])
    pooled = pool(estimates, variances, df=24)
    expected = {"estimate": 26.6592, "within": 0.6649272, "between": 0.1106032}
    expected |= {"error": 0.797651**0.5, "df": 16.41929, "missing_information": 0.2522468}
    for name, value in expected.items():
        assert getattr(pooled, name) == pytest.approx(value, rel=2e-6), name


def test_pool_follows_rubins_rules():
    """Compared with the rules by hand, with the degrees of freedom of Barnard & Rubin (1999)."""
    pooled = pool(np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.5, 0.5]), df=20)
    between, total = 1.0, 0.5 + 4 / 3
    share = (4 / 3) / total
    large, observed = 2 / share**2, 21 / 23 * 20 * (1 - share)
    df = large * observed / (large + observed)
    ratio = (4 / 3) / 0.5
    np.testing.assert_allclose(
        [pooled.estimate, pooled.error**2, pooled.within, pooled.between, pooled.df],
        [2.0, total, 0.5, between, df],
    )
    np.testing.assert_allclose(pooled.missing_information, (ratio + 2 / (df + 3)) / (1 + ratio))
    without_between = pool(np.ones((3, 2)), np.ones((3, 2)), df=10)
    np.testing.assert_allclose(without_between.df, 11 / 13 * 10)
    np.testing.assert_allclose(without_between.error, 1.0)
    for bad in ((np.ones(1), np.ones(1)), (np.ones(3), np.zeros(3)), (np.ones(3), np.ones(2))):
        with pytest.raises(UserError):
            pool(*bad)


TABLE = """name;age;city;paid;note
a;31,5;Oslo;True;x
b;;Paris;False;y
c;52,0;;;z
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a table with an id, words, a decimal comma and gaps."""
    folder = tmp_path_factory.mktemp("answers")
    rng = np.random.default_rng(0)
    lines = [
        f"p{i};{one:.1f};{city};{i % 2 == 0};{'xyz'[i % 3]}".replace(".", ",")
        for i, (one, city) in enumerate(
            zip(rng.normal(40, 9, 80), rng.choice(["Oslo", "Paris"], 80), strict=True)
        )
    ]
    lines[3], lines[5] = "p3;;Oslo;True;x", "p5;30,0;;;y"
    (folder / "table.csv").write_text("\n".join(["name;age;city;paid;note", *lines]) + "\n")
    config = TrainConfig(
        dataset=str(folder / "table.csv"),
        id=("name",),
        drop=("note",),
        missing="at-random",
        latent_sizes=(1,),
        hidden_sizes=((3,),),
        epochs=1,
        validation=0.2,
        k=2,
    )
    list(start_run(config, folder / "run"))
    (folder / "new.csv").write_text(TABLE)
    return folder / "run"


def test_results_keep_the_row_order_ids_and_words(run):
    file = run.parent / "new.csv"
    latents, scores = encode_rows(run, file), score_rows(run, file, k=30)
    assert list(latents) == ["name", "z1", "z1_sd"]
    assert list(latents["name"]) == ["a", "b", "c"]
    assert list(scores)[1:] == ["log_likelihood", "monte_carlo_error", "pareto_k", "p_value"]
    assert ((scores["p_value"] > 0) & (scores["p_value"] <= 1)).all()
    lines = TABLE.splitlines()
    (run.parent / "turned.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    other = run.parent / "turned.csv"
    np.testing.assert_array_equal(encode_rows(run, other)["z1"][::-1], latents["z1"])
    reordered = score_rows(run, other, k=40_000, p_values=False)["log_likelihood"][::-1]
    scored = score_rows(run, file, k=40_000, p_values=False)
    assert (scored["monte_carlo_error"][1:] < 0.1).all()  # the first row's may be larger
    np.testing.assert_allclose(reordered[1:], scored["log_likelihood"][1:], atol=0.25)


def test_imputation_keeps_observed_values(run):
    written = "\ufeff" + TABLE.replace("a;31,5", '"a";"31,50"').replace("\n", "\r\n")
    (run.parent / "written.csv").write_text(written, newline="")
    (path,) = impute_file(run, run.parent / "written.csv", run.parent / "full.csv", k=20).paths
    lines = path.read_bytes().decode().split("\r\n")
    assert lines[:2] == written.split("\r\n")[:2]
    name, age, *others = lines[2].split(";")
    assert (name, *others) == ("b", "Paris", "False", "y")
    assert 10 < float(age.replace(",", ".")) < 70
    assert "." not in age
    assert lines[3].split(";")[2] in ("Oslo", "Paris")
    assert lines[3].split(";")[3] in ("True", "False")
    rows, found = impute_rows(run, run.parent / "new.csv", draws=3, k=20)
    gaps = np.isnan(rows.values)
    assert np.std([one[gaps][0] for one in found.values]) > 0
    for one in found.values:
        np.testing.assert_array_equal(one[~gaps], rows.values[~gaps])


def test_imputation_keeps_words_and_ids_of_a_table_without_a_header(tmp_path):
    lines = [f"p{i},{['Oslo', 'Paris'][i % 2]},{i % 7 + 0.25}" for i in range(40)]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    config = TrainConfig(
        dataset=str(tmp_path / "table.csv"),
        id=("1",),
        missing="at-random",
        latent_sizes=(1,),
        hidden_sizes=((3,),),
        epochs=1,
        k=2,
    )
    list(start_run(config, tmp_path / "run"))
    file = tmp_path / "gaps.csv"
    file.write_text("p1,,0.5\np0,Oslo,\n")
    (path,) = impute_file(tmp_path / "run", file, tmp_path / "full.csv", k=20).paths
    second, first = (line.split(",") for line in path.read_text().splitlines())
    assert (first[:2], second[0], second[2]) == (["p0", "Oslo"], "p1", "0.5")
    assert second[1] in ("Oslo", "Paris")
    assert float(first[2]) > -10


def test_imputation_keeps_a_carriage_return_within_its_cell(run):
    file, out = run.parent / "returns.csv", run.parent / "returned.csv"
    file.write_text(TABLE.replace("b;;", '"b\rb";;'), newline="")
    impute_file(run, file, out, k=20)
    assert list(read_table(out, ids=["name"]).ids["name"]) == ["a", "b\rb", "c"]


@pytest.mark.parametrize(
    ("text", "rows", "names", "expected"),
    [
        (
            "\ufeff'a','n'\r\n'1.50',''\r\n\r\n2,\r\n",
            [{1: "x"}, {1: "x,y"}],
            (),
            "\ufeff'a','n'\r\n'1.50','x'\r\n\r\n2,'x,y'\r\n",
        ),
        ("a,n\r'q''s,\r\n',NA", [{1: "u'v"}], ("k", "t"), "a,n,k,t\r'q''s,\r\n','u''v',0,1"),
        ("1,\n,2\n", [{1: "7"}, {0: "8"}], None, "1,7\n8,2\n"),
    ],
)
def test_imputation_keeps_the_text_around_missing_cells(text, rows, names, expected, tmp_path):
    """Byte order mark, quotes (single ones here), line endings and empty lines."""
    (tmp_path / "in.csv").write_text(text.replace("'", '"'), newline="")
    added = [str(i) for i in range(len(names or ()))]
    changes = [
        (Changes({}, added), Changes({i: one.replace("'", '"') for i, one in row.items()}, added))
        for row in rows
    ]
    parts = filled_text(tmp_path / "in.csv", ",", 2, changes, names=names, copies=2)
    same, changed = ("".join(part).replace('"', "'") for part in zip(*parts, strict=True))
    assert changed == expected
    assert names or same == text
    with pytest.raises(UserError, match="changed while it was read"):
        list(
            filled_text(tmp_path / "in.csv", ",", 2, [*changes, changes[0]], names=names, copies=2)
        )


def test_empty_line_of_a_single_column_is_a_row(tmp_path):
    (tmp_path / "in.csv").write_text("\nx\n1\n\n\n2\n\n")
    rows = [[Changes(cells, ())] for cells in ({}, {0: "7"}, {0: "8"}, {})]
    found = filled_text(tmp_path / "in.csv", ",", 1, rows, names=())
    assert "".join(line for (line,) in found) == "\nx\n1\n7\n8\n2\n\n"


def test_imputed_parquet_files_keep_their_columns_and_types(run):
    """The dictionary lacks a category that may be imputed."""
    city = pa.array(["Oslo", None, "Oslo", "Oslo"]).dictionary_encode()
    table = pa.table(
        {
            "note": pa.array(["x", None, "y", "z"], pa.large_string()),
            "paid": [True, None, False, None],
            "city": city.cast(pa.dictionary(pa.int8(), pa.string())),
            "age": pa.array([31.5, None, 52.25, None], pa.float32()),
            "name": ["a", "b", "c", "d"],
        }
    ).replace_schema_metadata({"made": "by hand"})
    file, out = run.parent / "typed.parquet", run.parent / "typed-full.parquet"
    parquet.write_table(table, file, row_group_size=3)
    assert not impute_file(run, file, out, k=20, anneal=False, khat=True, overwrite=True).widened
    found = parquet.read_table(out)
    assert found.schema.names == [*table.schema.names, "pareto_k", "pareto_k_threshold"]
    found = found.select(table.schema.names)
    assert found.schema.equals(table.schema, check_metadata=True)
    assert found["note"].equals(table["note"])
    for old, new in zip(table.to_pylist(), found.drop_columns("note").to_pylist(), strict=True):
        assert None not in new.values()
        assert all(new[name] == old[name] for name in new if old[name] is not None)


DECIMAL, VIEW = pa.decimal128(6, 2), pa.string_view()
NARROW, WIDE = (pa.dictionary(one, pa.string()) for one in (pa.int8(), pa.int32()))
MANY = [f"w{i}" for i in range(150)]


@pytest.mark.parametrize(
    ("kind", "new", "expected", "expected_type"),
    [
        (pa.int8(), [[5, 300]], [[5, 300]], pa.int64()),
        (pa.int8(), [[5, 6], [300]], [[5, 6], [300]], pa.int64()),  # 5 was written as int8
        (pa.int32(), [[5, 0.5]], [[5, 0.5]], pa.float64()),
        (pa.float32(), [[5, 2**24 + 1]], [[5, 2**24]], pa.float32()),
        (pa.float32(), [[5, 1e39]], [[5, 1e39]], pa.float64()),
        (DECIMAL, [[5, 0.123]], [[Decimal("5.00"), Decimal("0.12")]], DECIMAL),
        (pa.null(), [["a", "b"]], [["a", "b"]], pa.string()),
        (VIEW, [["a", "b"]], [["a", "b"]], VIEW),
        (pa.bool_(), [[True, False]], [[True, False]], pa.bool_()),
        (pa.string(), [[True, False]], [["True", "False"]], pa.string()),
        (NARROW, [["a"], MANY], [["a"], MANY], WIDE),
    ],
)
def test_parquet_types_widen_only_if_necessary(kind, new, expected, expected_type, tmp_path):
    path = tmp_path / "out.parquet"
    with filled_parquet(path) as (write, lines):
        for cells in new:  # an observed cell, and missing ones
            column = pa.array([None] * (len(cells) + 1), kind)
            observed = np.arange(len(cells) + 1) == 0
            imputed = np.array(cells[:1] + cells, object if isinstance(cells[0], str) else None)
            write(pa.table({"x": column}), Piece({"x": imputed}, {"x": ~observed}, {}))
    remark = [f"column 'x' is {expected_type}: {kind} does not hold imputed values"]
    assert lines == (remark if expected_type != kind else [])
    column = parquet.read_table(path)["x"]
    assert column.type == expected_type
    assert column.to_pylist() == [one for cells in expected for one in (None, *cells)]


def test_k_hat_columns_are_added_on_request(run):
    file, out = run.parent / "new.csv", run.parent / "khat.csv"
    done = impute_file(run, file, out, k=25, khat=True, anneal=False)
    (path,), gaps = done.paths, np.isnan(read_rows(row_reading_model(run), file).values).any(axis=1)
    assert np.isnan(done.pareto_k).tolist() == (~gaps).tolist()
    header, *lines = (line.split(";") for line in path.read_text().splitlines())
    assert header == [*TABLE.splitlines()[0].split(";"), "pareto_k", "pareto_k_threshold"]
    for column, values in enumerate((done.pareto_k, np.where(gaps, done.threshold, np.nan)), -2):
        found = [line[column].replace(",", ".") for line in lines]
        assert found == ["" if np.isnan(one) else str(np.float32(one)) for one in values]
    with pytest.raises(UserError, match="has a column 'pareto_k', the name of one to add"):
        impute_file(run, path, run.parent / "twice.csv", k=25, khat=True)
    with pytest.raises(UserError, match=r"has no columns to add k-hat to: give a table"):
        impute_file(run, run.parent / "a.npy", run.parent / "b.npy", khat=True)


@pytest.mark.slow
def test_samples_have_the_units_and_words_of_the_table(run):
    cells, weighed = sample_rows(run, 50)
    assert weighed is None
    assert list(cells) == ["age", "city", "paid"]
    assert 20 < cells["age"].mean() < 60
    assert set(cells["city"]) == {"Oslo", "Paris"}
    assert cells["paid"].dtype == bool
    given, weighed = sample_rows(run, 5, given={"city": "Paris", "paid": "true"}, k=1000)
    assert list(given["city"]) == ["Paris"] * 5
    assert given["paid"].all()
    assert weighed.ess > 10
    assert -1 < weighed.pareto_k < 0.7
    for wrong, message in (
        ({"town": "x"}, "no column 'town'"),
        ({"city": "Rome"}, "no level 'Rome'"),
        ({"paid": "1"}, "no level '1'; known: False, True"),
    ):
        with pytest.raises(UserError, match=message):
            sample_rows(run, 5, given=wrong)


def test_grey_images_are_accepted_by_a_colour_model(tmp_path):
    """As in training, where grey images may appear beside colour ones."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 2), np.uint8)
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / f"{i}.png")
    model = VAE(18, (1,), ((2,),), observation="logistic-mixture", key=key())
    fit = Fitted(model, (), None, {"shape": [3, 2, 3]}, tmp_path)
    values = np.asarray(read_rows(fit, tmp_path).values)
    np.testing.assert_array_equal(values.reshape(2, 3, 2, 3), np.stack([pixels] * 3, axis=-1))


def test_images_of_another_shape_with_as_many_values_are_refused(tmp_path):
    """Read row by row, a picture on its side would get the likelihood of another picture."""
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "lying.png")
    np.save(tmp_path / "flat.npy", np.zeros((2, 6), np.uint8))
    model = VAE(6, (1,), ((2,),), observation="logistic-mixture", key=key())
    fit = Fitted(model, (), None, {"shape": [3, 2]}, tmp_path)
    with pytest.raises(UserError, match=r"has examples of 2 x 3, but .* examples of 3 x 2: turn"):
        read_rows(fit, tmp_path)
    assert read_rows(fit, tmp_path / "flat.npy").values.shape == (2, 6)


def test_subfolders_give_the_labels_of_a_conditional_model(tmp_path):
    for i, label in enumerate(["cat", "dog", "cat"]):
        (tmp_path / "in" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), i, np.uint8)).save(tmp_path / "in" / label / f"{i}.png")
    model = ConditionalVAE(VAE(4, (1,), ((2,),), observation="logistic-mixture", key=key()), 3)
    fit = Fitted(model, (), None, {"shape": [2, 2], "classes": ["ant", "dog", "cat"]}, tmp_path)
    rows = read_rows(fit, tmp_path / "in")
    assert rows.ids["file"].tolist() == ["cat/0.png", "cat/2.png", "dog/1.png"]
    np.testing.assert_array_equal(rows.examples[:, 4:], np.eye(3)[[2, 2, 1]])
    np.savez(tmp_path / "in.npz", data=rows.array, labels=np.array(["cat", "cat", "dog"]))
    np.testing.assert_array_equal(read_rows(fit, tmp_path / "in.npz").examples, rows.examples)
    np.savez(tmp_path / "few.npz", data=rows.array, labels=np.array(["cat", "dog"]))
    with pytest.raises(UserError, match=r"has 3 examples, but labels of shape \(2,\)"):
        read_rows(fit, tmp_path / "few.npz")
    with pytest.raises(UserError, match="cat has no labels: give a folder of images in sub-fold"):
        read_rows(fit, tmp_path / "in" / "cat")
    (tmp_path / "in" / "dog").rename(tmp_path / "in" / "cow")
    with pytest.raises(UserError, match=r"in has the label 'cow'; .* knows ant, dog, cat"):
        read_rows(fit, tmp_path / "in")


def test_grey_levels_are_binarised_as_in_the_run(tmp_path):
    """For the rows of a test set, these are the draws that `evaluate` uses."""
    grey = np.random.default_rng(0).integers(0, 256, (40, 2, 3), np.uint8)
    np.save(tmp_path / "grey.npy", grey)
    data = load_dataset(tmp_path / "grey.npy")
    assert data.binarization == "dynamic"
    np.save(tmp_path / "test.npy", np.asarray(data.grey_test))
    model = VAE(6, (1,), ((2,),), key=key())
    fit = Fitted(model, (), None, data.identity, tmp_path)
    for seed in (0, 1):
        rows = read_rows(fit, tmp_path / "test.npy", seed=seed)
        np.testing.assert_array_equal(rows.examples, redraw_binarisation(data, seed).test)
    np.save(tmp_path / "wrong.npy", grey.reshape(40, 6) / 100)
    with pytest.raises(UserError, match="has values beyond 0 and 1, which are no grey levels"):
        read_rows(fit, tmp_path / "wrong.npy")


def test_parquet_column_of_integers_keeps_observed_fractions(tmp_path):
    columns = (Column("age", "gaussian", whole=True), Column("kids", "gaussian", whole=True))
    table = pa.table({"id": ["a", "b"], "age": [30.5, None], "kids": [2, None]})
    parquet.write_table(table, tmp_path / "in.parquet")
    values, full = np.array([[30.5, 2], [np.nan, np.nan]]), np.array([[30.5, 2], [40.2, 3.2]])
    rows = Rows(values, values.astype(np.float32), {}, columns=columns)
    pieces = iter([Imputed(full[None, i : i + 1], *[np.array([np.nan])] * 2) for i in range(2)])
    path = tmp_path / "full.parquet"
    _fill_parquet([path], tmp_path / "in.parquet", rows, pieces, khat=False)
    expected = pa.table({"id": ["a", "b"], "age": [30.5, 40.2], "kids": [2, 3]})
    assert parquet.read_table(path).equals(expected)


def test_decimal_commas_are_detected_in_numbers_only(tmp_path):
    """Marks in words are ignored, and a column without marks follows the other columns."""
    for cell, comma in (("40.5", False), ("40,5", True)):
        (tmp_path / "in.csv").write_text(f"age;city;kids\n{cell};Oslo, St. North;1\n;;2\n")
        text = read_table(tmp_path / "in.csv").text
        assert text.commas == {"age": comma, "kids": comma}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('age=40, city = New York ,size=5"', {"age": "40", "city": "New York", "size": '5"'}),
        ('city="Oslo, ""North""", "a=b, c"=a=b', {"city": 'Oslo, "North"', "a=b, c": "a=b"}),
        (' "x"="" ', {"x": ""}),
    ],
)
def test_given_values_are_quoted_as_in_a_csv_file(text, expected):
    assert _parse_given(text) == expected
    assert _parse_given(None) == {}


@pytest.mark.parametrize("text", ["", "age", "age=", "=4", "age=1,,b=2", 'a="1, b=2', 'a="1"2'])
def test_malformed_given_values_are_refused(text):
    with pytest.raises(
        UserError, match=r"--given: .* is not NAME=VALUE, such as 'age=40, city=Oslo'"
    ):
        _parse_given(text)


@pytest.mark.parametrize("word", ["old", "nan", "inf", "1_0", "٤٠", "31,5"])
def test_given_numbers_are_parsed_strictly(word):
    """Python reads 1_0 as 10, and NaN is no condition."""
    with pytest.raises(UserError, match="age is a number, not"):
        _value(Column("age", "gaussian"), word)


def test_samples_of_a_conditional_model_include_their_labels(tmp_path, capsys):
    lines = [f"{i % 7 + 0.25},{'ab'[i % 3 == 0]}" for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["size,kind", *lines]) + "\n")
    config = TrainConfig(
        dataset=str(tmp_path / "t.csv"),
        conditional=True,
        label="kind",
        latent_sizes=(1,),
        hidden_sizes=((3,),),
        epochs=1,
        k=2,
    )
    list(start_run(config, tmp_path / "run"))
    cells, _ = sample_rows(tmp_path / "run", 20, seed=3)
    assert list(cells) == ["kind", "size"]
    model = row_reading_model(tmp_path / "run").model
    for key, kind in zip(jax.random.split(jax.random.key(3), 20), cells["kind"], strict=True):
        _, drawn = model.sample(jax.random.split(key)[0])
        assert kind == "ab"[int(drawn[1:].argmax())]
    out = tmp_path / "rows.npy"
    assert main(["sample", str(tmp_path / "run"), "--n", "4", "--out", str(out)]) == 0
    assert np.load(out).shape == (4,)
    assert "without the labels" in capsys.readouterr().out


def test_commands_do_not_create_the_output_folder(run, capsys):
    file, folder = str(run.parent / "new.csv"), run.parent / "none"
    for command in ("encode", "score", "impute"):
        assert main([command, str(run), file, "--out", str(folder / "x.csv")]) == 2
        assert f"there is no folder {folder}: create it first" in capsys.readouterr().err
    assert not folder.exists()


def test_unfinished_run_says_how_to_resume(run, caplog):
    file, copy = run.parent / "new.csv", run.parent / "unfinished"
    shutil.copytree(run, copy)
    encode_rows(copy, file)
    assert not caplog.text
    about = copy / "models" / "final-0" / "model.json"
    about.write_text(about.read_text().replace('"finished": true', '"finished": false'))
    encode_rows(copy, file)
    assert f"resume it with: iwae train --resume {copy}" in caplog.text
    shutil.rmtree(copy / "models")
    with pytest.raises(UserError, match=f"no model in .*: iwae train --resume {copy}"):
        encode_rows(copy, file)


def test_incompatible_rows_are_refused(run):
    file = run.parent / "bad.csv"
    for text, message in (
        ("name;age;city;paid\na;1,0;Rome;True\n", "no level 'Rome'"),
        ("name;age;paid\na;1,0;True\n", "lacks the columns? 'city'"),
        ("name;age;city;paid;x\na;1,0;Oslo;True;1\n", "columns? .x., but .*: remove"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            encode_rows(run, file)
    file.write_text("name;age;city;paid\na;1,0;Rome;True\n")
    assert np.isfinite(encode_rows(run, file, unknown="missing")["z1"]).all()


def test_large_tables_are_read_from_disk(run, monkeypatch):
    """With the same results; slabs of one row make it read and write in pieces."""
    frame = pd.read_csv(run.parent / "new.csv", sep=";", decimal=",")
    frame.to_parquet(run.parent / "new.parquet")
    file, full = run.parent / "new.parquet", run.parent / "full.parquet"

    def results():
        impute_file(run, file, full, k=20, overwrite=True)
        found = encode_rows(run, file), score_rows(run, file, k=30), pd.read_parquet(full)
        return [{name: list(one[name]) for name in one} for one in found]

    memory = results()
    monkeypatch.setattr("iwae.runs.row_reading.is_large_own_file", lambda _: True)
    monkeypatch.setattr("iwae.evaluation.examples.SLAB_ROWS", 1)
    assert not isinstance(read_rows(row_reading_model(run), file).values, np.ndarray)
    for one, other in zip(results(), memory, strict=True):
        assert one.keys() == other.keys()
        for name, cells in one.items():
            if isinstance(cells[0], str | bool):
                assert cells == other[name]
            else:
                np.testing.assert_allclose(cells, other[name], rtol=1e-4)
