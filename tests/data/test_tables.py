"""Tables, data frames and image folders: inferred column kinds, and decoding to cells."""

import datetime as dt
import json
import re
import tracemalloc

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from PIL import Image
from pyarrow import parquet

from iwae import TrainConfig, start_run
from iwae.config.column_option import parse_column_option
from iwae.config.experiment import make_config
from iwae.data import load_dataset
from iwae.data.arrays import read_arrays
from iwae.data.coding import decode_cells, to_values
from iwae.data.columns import Column, choose_columns, columns_as_json, columns_from_json
from iwae.data.delimited import parse_delimited
from iwae.data.own import read_own
from iwae.data.splits import Options
from iwae.data.summary import summarise_dataset
from iwae.data.tables import read_table, table_from_frame
from iwae.data.writers import write_table
from iwae.errors import UserError
from iwae.runs.jobs import load_job_dataset, resolve

N = 60


def people(n=N):
    """A frame with ids, words, bits, counts, categories in numbers, and real values."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": [f"p{i:03d}" for i in range(n)],
            "age": rng.normal(40, 10, n).round(2),
            "city": rng.choice(["Oslo", "Bergen", "Å"], n),
            "member": rng.random(n) > 0.5,
            "visits": np.arange(n) % 17,
            "size": rng.choice([1, 2, 5], n),
        }
    )


KINDS = ["gaussian", "categorical:3", "bernoulli", "negative-binomial", "categorical:3"]


def table(name, cells, path):
    lines = [f"{name};b", *(f"{cell};{i % 2}" for i, cell in enumerate(cells))]
    path.write_text("\n".join(lines))
    return read_table(path)


# --- inferring kinds --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["x", "y", "", "x", "y"], ("categorical:2", ("x", "y"), False)),
        (["True", "False", "True"], ("bernoulli", ("False", "True"), False)),
        (["TRUE", "", "TRUE"], ("bernoulli", ("FALSE", "TRUE"), False)),
        (["one", "one", "one"], ("bernoulli", ("one",), False)),
        (["0", "1", "1"], ("bernoulli", (), True)),
        (["0", "0", "0"], ("bernoulli", (), True)),
        (["7", "7", "7.0"], ("gaussian", (), True)),
        (["0", "1", "2"], ("categorical:3", (), True)),
        (["1", "2", "3"], ("categorical:3", ("1", "2", "3"), True)),
        (["-1", "5", "5"], ("categorical:2", ("-1", "5"), True)),
        (list(range(10)), ("categorical:10", (), True)),
        (list(range(11)), ("negative-binomial", (), True)),
        ([*range(1, 12), 2**24], ("negative-binomial", (), True)),
        ([*range(1, 12), 2**24 + 1], ("gaussian", (), True)),
        (list(range(2, 13)), ("gaussian", (), True)),
        (["0.5", "1", "0"], ("gaussian", (), False)),
        (["0,5", "1", "0"], ("gaussian", (), False)),
    ],
)
def test_column_kind_is_inferred_from_its_cells(tmp_path, cells, expected):
    found = choose_columns(table("a", cells, tmp_path / "a.csv"))[0]
    assert (found.kind, found.levels, found.whole) == expected
    assert found.why
    constant = len({str(cell) for cell in cells} - {""}) == 1 or cells[0] == "7"
    assert constant == ("constant" in found.why)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            ["2024-01-31", "2024-02-01"],
            r"line 2, column 1: '2024-01-31' in column 'a'; it holds da",
        ),
        (["31.01.2024", "1.2.24"], "dates or times: leave it out .--drop a., carry it through"),
        (["12:30", "13:05:10"], "dates or times"),
        (["2024-01-31 12:00", ""], "dates or times"),
        (["1", "2", "x"], "line 4, column 1: 'x' is not a number, as others in column 'a' are"),
        (["x", "y", "5%"], "line 4, column 1: '5%' is not a number; write numbers like 1234.5"),
        ([f"w{i}" for i in range(20)], r"20 different words in 20 rows, .*--id a\), or insist"),
        ([f"w{i % 51}" for i in range(200)], "51 different words in 200 rows, too many"),
    ],
)
def test_ambiguous_columns_are_refused(tmp_path, cells, message):
    found = table("a", cells, tmp_path / "a.csv")
    with pytest.raises(UserError, match=message) as caught:
        choose_columns(found)
    assert "\n" not in str(caught.value)
    if "dates" not in message:
        chosen = choose_columns(found, {"a": "categorical"})[0]
        assert chosen.kind == f"categorical:{len(set(cells))}"


def test_named_kinds_override_the_inferred_ones(tmp_path):
    found = table("a", [3, 4, 4, 0], tmp_path / "a.csv")
    for option, kind, levels in (
        ("gaussian", "gaussian", ()),
        ("poisson", "poisson", ()),
        ("categorical:5", "categorical:5", ()),  # codes
        ("categorical:3", "categorical:3", ("0", "3", "4")),
        ("categorical", "categorical:3", ("0", "3", "4")),
    ):
        column = choose_columns(found, {"a": option})[0]
        assert (column.kind, column.levels) == (kind, levels)
    for columns, message in (
        ({"c": "gaussian"}, "has no column 'c'; it has 'a', 'b'"),
        ({"a": "weibull"}, "no kind 'weibull'"),
    ):
        with pytest.raises(UserError, match=message):
            choose_columns(found, columns)
    found = table("a", ["x", "y", "z", "x"], tmp_path / "a.csv")
    for kind, message in (
        ("gaussian", "'x' is not a number"),
        ("categorical:2", "has 3 different"),
    ):
        with pytest.raises(UserError, match=message):
            choose_columns(found, {"a": kind})


def test_columns_option_is_parsed():
    assert parse_column_option(["gaussian", "categorical:3"]) == {}
    options = ["age=gaussian, home town=categorical,x, y=gaussian-fixed:0.1", "b = poisson"]
    options += ['"a=b, ""c"""=bernoulli, "d"=poisson']
    expected = {
        "age": "gaussian",
        "home town": "categorical",
        "x, y": "gaussian-fixed:0.1",
        "b": "poisson",
        'a=b, "c"': "bernoulli",
        "d": "poisson",
    }
    assert parse_column_option(options) == expected
    for options in (["a=gaussian", "poisson"], ["a=gaussian,a=poisson"], ["a="]):
        with pytest.raises(UserError, match=r"columns: .*such as"):
            make_config({"columns": options}, "here")


def test_kind_of_a_wide_table_of_bytes_is_not_guessed(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (20, 64))
    names = ",".join(f"p{i}" for i in range(64))
    np.savetxt(tmp_path / "a.csv", rows, "%d", ",", header=names, comments="")
    with pytest.raises(UserError, match=r"whole numbers within 0\.\.255 in 64 columns"):
        load_dataset(tmp_path / "a.csv")
    assert load_dataset(tmp_path / "a.csv", observation="poisson").columns[0].kind == "poisson"


def test_empty_column_of_a_wide_table_is_reported(tmp_path):
    """The range of such a column is NaN, with a warning from NumPy."""
    rows = np.random.default_rng(0).integers(0, 999, (20, 64)).astype(str)
    names = ",".join(f"p{i}" for i in range(65))
    lines = [names, *(",".join([*row, ""]) for row in rows)]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"column 65 \('p64'\) has no value in any training row"):
        load_dataset(tmp_path / "a.csv", missing=True)


def test_long_line_is_split_into_cells(tmp_path):
    names = ",".join(f"column{i}" for i in range(20_000))
    row = ",".join(["0.123456"] * 20_000)
    (tmp_path / "a.csv").write_text("\n".join([names, row, row]))
    assert parse_delimited(tmp_path / "a.csv")[0].width == 20_000


# --- values and cells -------------------------------------------------------------------------


def test_every_source_gives_the_same_table(tmp_path):
    frame = people()
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_csv(tmp_path / "b.csv", index=False, sep=";", decimal=",")
    frame.to_parquet(tmp_path / "a.parquet")
    files = [tmp_path / name for name in ("a.csv", "a.tsv", "b.csv", "a.parquet")]
    one, *others = (
        load_dataset(source, ids=["id"], standardize=False)
        for source in (frame, pl.from_pandas(frame), pa.Table.from_pandas(frame), *files)
    )
    assert [column.kind for column in one.columns] == KINDS
    assert one.identity["ids"] == ["id"]
    json.dumps(one.identity)
    for other in others:
        assert other.columns == one.columns
        assert other.identity["columns"] == one.identity["columns"]
        np.testing.assert_array_equal(other.train, one.train)
    cells = decode_cells(one.train, one.columns)
    train = frame.drop(index=[i for i in range(N) if i not in train_row_indices(one, frame)])
    for name, column in cells.items():
        expected = train[name].to_numpy()
        if name == "age":
            np.testing.assert_array_equal(column, np.float32(expected))
        else:
            assert column.tolist() == expected.tolist()
            assert column.dtype == {"city": object, "member": bool}.get(name, np.int64)


def train_row_indices(data, frame):
    """The indices of the frame's rows in the training split."""
    ages = np.float32(frame["age"])
    return [int(np.flatnonzero(ages == age)[0]) for age in data.train[:, 0]]


def test_missing_values_of_every_source_are_read(tmp_path):
    frame = people().drop(columns="id").astype({"city": "category", "visits": "Int64"})
    frame["member"] = frame["member"].astype("boolean")
    for i, name in enumerate(frame.columns):
        frame.loc[i, name] = None
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    sources = (frame, pl.from_pandas(frame), tmp_path / "a.csv", tmp_path / "a.parquet")
    for source in sources:
        found = table_from_frame(source) if source is sources[0] or source is sources[1] else None
        found = found or read_table(source)
        columns = choose_columns(found)
        assert [column.kind for column in columns] == KINDS
        values = to_values(found, columns)
        np.testing.assert_array_equal(np.argwhere(np.isnan(values)), [[i, i] for i in range(5)])
        cells = decode_cells(values, columns)
        assert cells["city"][1] is None
        assert np.isnan(cells["visits"][3])
        assert [cells["member"][i] for i in (0, 2)] == [frame["member"][0], None]
        assert load_dataset(source, missing="at-random").identity["missing"]["train"] > 0
    with pytest.raises(UserError, match="row 1, column 'age' is not a number or a word"):
        load_dataset(frame)
    with pytest.raises(UserError, match="unknown missing 'often'; known: at-random, "):
        load_dataset(frame, missing="often")


def test_new_rows_are_matched_by_column_name_and_level():
    columns = choose_columns(table_from_frame(people(), ids=["id"]))
    swapped = people()[["size", "city", "id", "member", "age", "visits"]]
    values = to_values(table_from_frame(swapped, ids=["id"]), columns)
    np.testing.assert_array_equal(
        values, to_values(table_from_frame(people(), ids=["id"]), through_json(columns))
    )
    with pytest.raises(UserError, match=r"lacks the columns 'age', 'member', .* which have 'age'"):
        to_values(table_from_frame(people()[["city"]]), columns)
    with pytest.raises(UserError, match="has the columns 'id', but the data only 'age'"):
        to_values(table_from_frame(people()), columns)
    other = people().drop(columns="id")
    other.loc[4, "city"] = "Paris"
    other.loc[5, "size"] = 3
    with pytest.raises(UserError, match=r"row 5.*'city' has no level 'Paris'; known: Bergen, Oslo"):
        to_values(table_from_frame(other), columns)
    values = to_values(table_from_frame(other), columns, unknown="missing")
    assert np.argwhere(np.isnan(values)).tolist() == [[4, 1], [5, 4]]
    other = people().drop(columns="id").astype({"member": str})
    other["member"] = other["member"].str.lower()
    np.testing.assert_array_equal(
        to_values(table_from_frame(other), columns)[:, 2], people()["member"]
    )
    other["age"] = "old"
    with pytest.raises(UserError, match="'old' is not a number"):
        to_values(table_from_frame(other), columns)


def through_json(columns):
    stored = json.loads(json.dumps(columns_as_json(columns)))
    restored = columns_from_json(stored)
    assert restored == tuple(column._replace(why="") for column in columns)
    return restored


def test_columns_can_be_reused_for_other_data(tmp_path):
    people().to_csv(tmp_path / "a.csv", index=False)
    first = load_dataset(tmp_path / "a.csv", ids=["id"])
    people()[:20].replace("Bergen", "Oslo").to_csv(tmp_path / "b.csv", index=False)
    second = load_dataset(tmp_path / "b.csv", ids=["id"], columns=first.columns)
    assert second.kind == first.kind
    assert set(second.train[:, 1]) <= {1, 2}


def test_stored_configuration_reads_the_same_data(tmp_path):
    """The inferred kinds are stored by name, and give the same levels."""
    odd = 'a = "size", in cm'
    people().rename(columns={"size": odd}).to_csv(tmp_path / "a.csv", index=False)
    values = {"dataset": str(tmp_path / "a.csv"), "id": ["id"], "columns": ["age=gaussian-shared"]}
    config = make_config(values | {"latent_sizes": [2], "hidden_sizes": [[3]]}, "here")
    data = load_job_dataset(config)
    stored = resolve(config, data)
    assert stored.columns == (
        "age=gaussian-shared",
        *map("=".join, zip((*NAMES, '"a = ""size"", in cm"'), KINDS[1:], strict=True)),
    )
    again = load_job_dataset(stored)
    assert again.identity == data.identity
    assert resolve(stored, again) == stored
    clash = config.model_copy(update={"observation": "gaussian"})
    with pytest.raises(UserError, match="'gaussian' contradicts the kinds of the columns"):
        load_job_dataset(clash)


NAMES = ("city", "member", "visits")
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")


@settings(max_examples=40)
@given(
    words=st.lists(st.text(LETTERS, max_size=5), min_size=2, max_size=8),
    suffix=st.sampled_from([".csv", ".tsv"]),
)
def test_words_round_trip_through_a_file(tmp_path_factory, words, suffix):
    words = ["w" + word.strip() for word in words] + ["v"]
    path = tmp_path_factory.mktemp("table") / f"a{suffix}"
    write_table(path, {"n": np.arange(len(words)) + 0.5, "a": np.array(words, object)})
    found = read_table(path)
    columns = choose_columns(found, {"a": "categorical"})
    assert decode_cells(to_values(found, columns), columns)["a"].tolist() == words


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".CSV"])
def test_table_round_trips_through_a_file(tmp_path, suffix):
    cells = {
        "id": np.array(["a", "b,c", 'd"e\n'], object),
        "x": np.array([1 / 3, np.nan, -1e-30]),
        "y": np.float32([0.1, 2, np.nan]),
        "n": np.array([3, -4, 2**40]),
        "w": np.array(["x", None, "Å"], object),
    }
    write_table(tmp_path / f"a{suffix}", cells)
    found = read_table(tmp_path / f"a{suffix}", ids=["id"])
    assert found.names == ("x", "y", "n", "w")
    assert [word.strip() for word in found.ids["id"]] == [one.strip() for one in cells["id"]]
    np.testing.assert_array_equal(found.columns[0], cells["x"])
    np.testing.assert_array_equal(np.float32(found.columns[1]), cells["y"])
    np.testing.assert_array_equal(found.columns[2], cells["n"])
    assert found.columns[3].tolist() == ["x", None, "Å"]
    assert len(list(tmp_path.iterdir())) == 1


def test_arrays_are_written_alone_or_as_columns(tmp_path):
    write_table(tmp_path / "a.npy", {"z": np.zeros((3, 2))})
    assert np.load(tmp_path / "a.npy").shape == (3, 2)
    write_table(tmp_path / "a.npy", {"x": np.zeros(3), "y": np.ones(3)})
    assert np.load(tmp_path / "a.npy").tolist() == [[0, 1]] * 3
    write_table(tmp_path / "a.npz", {"x": np.zeros(3), "y": np.ones(2)})
    assert np.load(tmp_path / "a.npz")["y"].tolist() == [1, 1]
    for name, message in (("a.npy", "cannot hold words"), ("a.xlsx", "one of the suffixes")):
        with pytest.raises(UserError, match=message):
            write_table(tmp_path / name, {"w": np.array(["x"], object)})


def test_parquet_column_whose_name_prefixes_another_is_read(tmp_path):
    """Asked for a, PyArrow also reads a.b, since a could be a struct."""
    cells = {"a.b": [1.5, 2.5], "a": [0.5, None], "i": ["x", "y"]}
    parquet.write_table(pa.table(cells), tmp_path / "a.parquet")
    found = read_table(tmp_path / "a.parquet", ids=["i"])
    assert found.names == ("a.b", "a")
    np.testing.assert_array_equal(found.columns, [[1.5, 2.5], [0.5, np.nan]])
    assert found.ids["i"].tolist() == ["x", "y"]


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            pd.DataFrame({"t": pd.to_datetime(["2024-01-31"] * 4)}),
            "column 't' holds dates or times",
        ),
        (pd.DataFrame({"t": [dt.date(2024, 1, 31)] * 4}), "column 't' holds dates or times"),
        (pl.DataFrame({"t": [dt.timedelta(1)] * 4}), "column 't' holds dates or times"),
        (pd.DataFrame({"a": ["1", "2"] * 4}), r"'a' holds numbers as text: convert it \(astype"),
        (pl.DataFrame({"a": ["1", "x", "x", "1"]}), "'x' is not a number, as others in column"),
        (pd.DataFrame(np.zeros((4, 2)), columns=["a", "a"]), "several columns of one name|called"),
        (pa.table([[1, 2], [3, 4]], names=["a", "a"]), "several columns of one name|called"),
        (
            pd.DataFrame({"a": [[1], [2]] * 2}),
            "column 'a' holds list objects, not numbers or words",
        ),
        (pd.DataFrame({"a": [1j, 2j] * 2}), "column 'a' holds complex objects"),
        (np.zeros((4, 2)), "a ndarray is neither a data frame"),
        (
            pl.DataFrame({"a": [1.5] * 4}).lazy(),
            r"a LazyFrame, which has no rows yet: collect\(\) it",
        ),
        (
            pd.DataFrame({"a": pd.cut([1, 2, 3, 4], 2)}),
            r"column 'a' holds Interval objects, .* or make them words, as .astype\(str\) does",
        ),
        (pd.DataFrame({"Unnamed: 0": range(4), "a": [1.5] * 4}), "has no name and counts the rows"),
    ],
)
def test_unsuitable_frames_are_refused(frame, message):
    with pytest.raises(UserError, match=message) as caught:
        load_dataset(frame)
    assert "\n" not in str(caught.value)


def test_columns_are_dropped_or_kept_as_ids_by_name_or_number(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(",b,c\n0,x,1.5\n1,y,2.5\n2,z,0.5\n")
    found = read_table(path, drop=["1", "b"])
    assert found.names == ("c",)
    found = read_table(path, ids=["b", "1"])
    assert {name: column.tolist() for name, column in found.ids.items()} == {
        "b": ["x", "y", "z"],
        "1": ["0", "1", "2"],
    }
    path.write_text("a,1\nb,2\nc,3\n")
    assert read_table(path, ids=["1"]).columns[0].tolist() == [1, 2, 3]
    with pytest.raises(UserError, match="nor a column 'x'; give a number from 1 to 2"):
        read_table(path, drop=["x"])
    with pytest.raises(UserError, match="has no column of values"):
        load_dataset(path, ids=["1", "2"])
    np.save(tmp_path / "a.npy", np.zeros((3, 2)))
    for source in (tmp_path / "a.npy", "digits"):
        with pytest.raises(UserError, match="drop"):
            load_dataset(source, drop=["a"])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"bad\.parquet cannot be read"):
        load_dataset(tmp_path / "bad.parquet")


# --- numbers ----------------------------------------------------------------------------------


def test_splits_keep_nine_digits(tmp_path):
    numbers = 123_456_789 + np.arange(40.0)[:, None] + np.array([0, 0.5])
    np.savetxt(tmp_path / "a.csv", numbers, "%.1f", ",", header="a,b", comments="")
    np.save(tmp_path / "a.npy", numbers)
    for name in ("a.csv", "a.npy"):
        raw, _ = read_own(tmp_path / name, Options())
        found = np.concatenate([raw.splits["train"], raw.splits["test"]])
        np.testing.assert_array_equal(np.sort(found, axis=0), numbers)


def test_values_slightly_outside_the_unit_interval_are_reported(tmp_path):
    rows = np.random.default_rng(0).random((100, 100))
    rows[0, :3] = -1e-8, 1 + 1e-7, 1 + 2e-7
    np.save(tmp_path / "a.npy", rows)
    data = load_dataset(tmp_path / "a.npy")
    assert data.observation == "gaussian"
    assert "3 of 10,000 lie outside [0, 1] by less than 1e-06; clip" in summarise_dataset(data)
    rows[0, 0] = 2
    np.save(tmp_path / "a.npy", rows)
    assert "lie outside" not in summarise_dataset(load_dataset(tmp_path / "a.npy"))


def test_large_array_is_copied_once(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (60_000, 400), np.uint8))
    assert isinstance(read_arrays(tmp_path / "a.npy")["data"], np.memmap)
    tracemalloc.start()
    data = load_dataset(tmp_path / "a.npy", observation="discretised-gaussian")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = data.train.nbytes + data.test.nbytes
    assert size == 60_000 * 400
    # The copy, and the masks of the checks on blocks of 2^22 values.
    assert peak < size + 2**22 * 9


# --- images -----------------------------------------------------------------------------------


def draw(path, size=(6, 4), mode="L", seed=0):
    """Save a picture of `size` (height, width) with random pixels, and return the pixels."""
    channels = () if mode == "L" else (3,)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, *channels), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def test_image_folder_has_the_labels_of_its_subfolders(tmp_path):
    pixels = {
        f"{kind}/{i}.png": draw(tmp_path / "p" / kind / f"{i}.png", seed=10 * j + i)
        for j, kind in enumerate(("cat", "dog"))
        for i in range(10)
    }
    data = load_dataset(tmp_path / "p", labels=True)
    assert (data.shape, data.classes, data.binarization) == ((6, 4), ("cat", "dog"), "dynamic")
    known = {one.tobytes(): name.partition("/")[0] for name, one in pixels.items()}
    for row, y in zip(data.train[:, :24], data.labels("train"), strict=True):
        assert known[row.tobytes()] == data.classes[y]
    assert load_dataset(tmp_path / "p", resize=(3, 2)).shape == (3, 2)
    assert load_dataset(tmp_path / "p", resize=5).shape == (5, 5)
    before = data.identity["files"][0]["sha256"]
    draw(tmp_path / "p/cat/3.png", seed=99)
    assert load_dataset(tmp_path / "p").identity["files"][0]["sha256"] != before
    assert make_config({"dataset": str(tmp_path / "p"), "resize": [5]}, "here").resize == (5,)


def test_colour_images_keep_their_levels_unless_binarised(tmp_path):
    pixels = np.stack([draw(tmp_path / f"p/{i}.png", mode="RGB", seed=i) for i in range(10)])
    data = load_dataset(tmp_path / "p")
    assert (data.observation, data.binarization, data.shape) == (
        "logistic-mixture",
        "none",
        (6, 4, 3),
    )
    draw(tmp_path / "p/9.png", seed=9)  # a grey one among them
    assert load_dataset(tmp_path / "p").shape == (6, 4, 3)
    np.save(tmp_path / "a.npy", pixels)
    assert load_dataset(tmp_path / "a.npy").observation == "logistic-mixture"
    assert load_dataset(tmp_path / "a.npy", binarization="dynamic").observation == "bernoulli"


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("flat", [False, True])
def test_image_shape_determines_the_observation_model(tmp_path, dtype, flat):
    def load(*shape, **options):
        array = np.random.default_rng(0).random((10, *shape))
        if dtype != np.float64:  # float32: levels / 255
            array = (255 * array).astype(np.uint8) / dtype(1 if dtype == np.uint8 else 255)
            array = array.astype(dtype)
        np.save(tmp_path / "a.npy", array.reshape(10, -1) if flat else array)
        return load_dataset(tmp_path / "a.npy", **({"shape": shape} if flat else {}), **options)

    colour, levels = load(4, 5, 3), "logistic-mixture" if dtype == np.uint8 else "gaussian"
    assert (colour.shape, colour.observation, colour.binarization) == ((4, 5, 3), levels, "none")
    assert (colour.outwards(colour.train).max() > 1) == (dtype == np.uint8)
    assert load(4, 5, 3, binarization="dynamic").observation == "bernoulli"
    for shape in ((4, 5), (4, 5, 1)):
        grey = load(*shape)
        assert (grey.shape, grey.observation, grey.binarization) == ((4, 5), "bernoulli", "dynamic")
    for shape, remedy in (
        ((3, 4, 5), "move the channels last"),
        ((1, 4, 5), "move the channels last"),
        ((4, 5, 4), r"leave out transparency \(array\[..., :3\]\)"),
        ((2, 4, 5), r"rows \[n, d\]"),
        ((2, 2, 4, 3), r"rows \[n, d\]"),
    ):
        for options in ({}, {"observation": "gaussian"}):
            with pytest.raises(
                UserError, match=rf"a\.npy has .* \[{', '.join(map(str, shape))}\].*{remedy}"
            ):
                load(*shape, **options)


@pytest.mark.parametrize(
    ("modes", "shape", "remark"),
    [
        (
            "LLLLLRRRRR",
            (3, 2, 3),
            "5 are grey (such as 0.png), 5 are in colour (such as 5.png); all",
        ),
        ("PPPPPPPPPP", (3, 2, 3), "10 have a palette (such as 0.png); all are read as colour"),
        ("L111111111", (3, 2), "1 are grey (such as 0.png), 9 are black and white (such as 1.png)"),
        ("RRRRRRRRRR", (3, 2, 3), None),
        ("LLLLLLLLLL", (3, 2), None),
    ],
)
def test_conversions_of_image_modes_are_reported(tmp_path, modes, shape, remark):
    for i, mode in enumerate(modes):
        pixels = np.random.default_rng(i).integers(0, 256, (3, 2, 3), np.uint8)
        image = Image.fromarray(pixels).convert({"R": "RGB"}.get(mode, mode))
        image.save(tmp_path / f"{i}.png")
    data = load_dataset(tmp_path)
    assert data.shape == shape
    assert (f"images: {remark}" in summarise_dataset(data)) if remark else data.remarks == ()
    image.convert("L").save(tmp_path / "9.png", transparency=0)
    with pytest.raises(UserError, match=r"9\.png has transparency: save grey or colour images"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_exif_orientation_is_applied(tmp_path, orientation, turns, channels):
    upright = np.zeros((24, 16, *channels), np.uint8)  # a light top left corner
    upright[:8, :8] = 240
    exif = Image.Exif()
    exif[0x0112] = orientation
    for i in range(10):  # the camera stores rotated pixels, 6: anticlockwise
        stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright, -turns)))
        stored.save(tmp_path / f"{i}.jpg", quality=100, subsampling=0, exif=exif)
    data = load_dataset(tmp_path, observation="logistic-mixture")
    assert data.shape == upright.shape
    assert np.abs(data.train.reshape(-1, *upright.shape) - upright.astype(float)).max() < 8


def test_unsuitable_image_folders_are_refused(tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    for make, message in (
        (lambda: None, r"holds no images \(\.png, \.jpg, \.jpeg\)"),
        (lambda: draw(folder / "b.png"), "has 1 example: give at least 10"),
        (lambda: draw(folder / "c.png", (6, 5)), r"c\.png has 6 x 5 pixels, but b\.png 6 x 4"),
        (lambda: (folder / "c.png").write_bytes(b"GIF"), r"c\.png cannot be read as an image"),
        (lambda: draw(folder / "cat/d.png"), "images beside sub-folders"),
    ):
        make()
        with pytest.raises(UserError, match=message):
            load_dataset(folder)
    with pytest.raises(UserError, match="resize must be one or two positive"):
        load_dataset(folder, resize=(1, 2, 3))


# --- the summary ------------------------------------------------------------------------------


def test_summary_describes_the_kind_of_each_column():
    frame = people().assign(same=5.5, code=range(1000, 1000 + N), time=1.7e9 + np.arange(N) / 4)
    frame.loc[:5, "city"] = None
    summary = summarise_dataset(load_dataset(frame, drop=["id"], missing=True, validation=4))
    for part in (
        "frame: 60 rows of 8 columns, taken as a table",
        "numbers from 1700000000 to 1700000014.75",
        "city    categorical:3      3 words: Bergen, Oslo, Å; 10.0% missing",
        "visits  negative-binomial  whole numbers from 0 to 16",
        "all different (if they name the rows, --id code)",
        "same    gaussian           constant: 5.5 in every row",
        "constant in the training rows: 1 of 8 (same)",
        "splits: 44 to train, 4 to validate, 12 to test",
    ):
        assert part in summary
    assert Column("a", "gaussian").why == ""


def test_summary_groups_many_columns(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({f"c{i}": rng.normal(size=60) for i in range(40)})
    frame = frame.mask(rng.random(frame.shape) < 0.2)
    frame = frame.assign(w=rng.choice(["a", "b"], 60), same=5.5)
    frame.to_csv(tmp_path / "wide.csv", index=False)
    lines = summarise_dataset(load_dataset(tmp_path / "wide.csv", missing=True)).splitlines()
    assert lines[1:5] == [
        "  40 columns: gaussian, numbers (c0, c1, c2 and 37 more)",
        "  1 column: categorical:2, 2 words (w)",
        "  1 column: gaussian, constant (same)",
        "  each column: columns.txt in the run's folder",
    ]
    gaps = frame.isna().to_numpy().mean()
    shares = [float(one) for one in re.findall(r"([\d.]+)% of (?:train|test)", lines[5])]
    assert lines[5].startswith("missing: ")
    assert abs(np.dot(shares, [0.8, 0.2]) - 100 * gaps) < 0.1
    assert lines[6] == "constant in the training rows: 1 of 42 (same)"
    config = TrainConfig(
        dataset=str(tmp_path / "wide.csv"),
        missing="at-random",
        latent_sizes=(1,),
        hidden_sizes=((2,),),
        epochs=1,
    )
    list(start_run(config, tmp_path / "run"))
    listed = (tmp_path / "run" / "columns.txt").read_text().splitlines()
    assert len(listed) == 42
    assert re.match(r"  c7 +gaussian +numbers from .*% missing", listed[7])
