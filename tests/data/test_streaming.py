"""Streamed data: the same as in memory, shuffled in blocks, resumable within a block."""

import jax
import numpy as np
import pandas as pd
import pytest

from iwae import UserError, load_dataset, resume_run, start_run
from iwae.config.experiment import make_config
from iwae.data import column_statistics, own, rows, streamed_tables
from iwae.data.column_statistics import column_moments, column_sums
from iwae.data.parquet_files import count_parquet_cells
from iwae.data.rows import convert_rows, row_subset, rows_in_memory, stored
from iwae.data.summary import summarise_dataset
from iwae.data.writers import table_writer, write_table
from iwae.runs import start_and_resume
from iwae.runs.jobs import make_job
from iwae.runs.metrics import read_metrics
from iwae.runs.model_files import load_model
from iwae.runs.split_examples import split_examples
from iwae.runs.trained import trained_model_folder
from iwae.training import feed, loop
from iwae.training.feed import Blocks, feed_blocks, feed_rows

N = 700


@pytest.fixture
def small_blocks(monkeypatch):
    """Shrink the blocks, so that small data have many."""
    monkeypatch.setattr(rows.row_blocks, "__defaults__", (501,))
    monkeypatch.setattr(rows, "CONVERTED", 100)
    monkeypatch.setattr(rows, "PIECE_BYTES", 3000)
    monkeypatch.setattr(rows, "GAP_BYTES", 100)
    monkeypatch.setattr(column_statistics, "LEAF", 128)
    monkeypatch.setattr(streamed_tables, "PIECE", 60)


def arrays():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(N, 5)) * [1, 2, 1e3, 1e-3, 0] + 10
    return {
        "pixels": (rng.integers(0, 256, (N, 3, 4), dtype=np.uint8), {}),
        "static": (rng.integers(0, 256, (N, 3, 4), dtype=np.uint8), {"binarization": "static"}),
        "bits": (rng.integers(0, 2, (N, 6)).astype(bool), {}),
        "grey": (rng.random((N, 6)), {}),
        "bytes as floats": (rng.integers(0, 256, (N, 6)) / 255, {}),
        "real": (real, {}),
        "swapped": (real.astype(">f4"), {}),
        "gaps": (np.where(rng.random(real.shape) < 0.2, np.nan, real), {"missing": True}),
        "counts": (rng.integers(0, 900, (N, 4)), {"observation": "poisson"}),
    }


def assert_same(memory, streamed):
    assert memory.identity == streamed.identity
    np.testing.assert_array_equal(memory.train_mean, streamed.train_mean)
    for split in ("train", "validation", "test"):
        array, lazy = getattr(memory, split), getattr(streamed, split)
        assert isinstance(array, np.ndarray)
        assert not isinstance(lazy, np.ndarray)
        assert (lazy.shape, lazy.dtype) == (array.shape, array.dtype)
        indices = np.random.default_rng(1).integers(0, len(array), 50)
        for key in (slice(None), slice(5, 90, 3), indices, 7, (indices, slice(1, 3))):
            np.testing.assert_array_equal(lazy[key], array[key])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", arrays())
def test_streamed_arrays_equal_those_in_memory(tmp_path, name):
    array, options = arrays()[name]
    np.save(tmp_path / "a.npy", array)
    options |= {"validation": 0.1}
    memory = load_dataset(tmp_path / "a.npy", **options)
    streamed = load_dataset(tmp_path / "a.npy", stream=True, **options)
    assert_same(memory, streamed)
    summary = summarise_dataset(streamed).splitlines()
    assert [line for line in summary if not line.startswith("streamed: ")] == summarise_dataset(
        memory
    ).splitlines()
    assert len(summary) == len(summarise_dataset(memory).splitlines()) + 1


def people():
    rng = np.random.default_rng(2)
    frame = pd.DataFrame(
        {
            "id": [f"p{i}" for i in range(N)],
            "age": rng.normal(50, 9, N),
            "city": rng.choice(["x", "y", "zz"], N),
            "smokes": rng.random(N) < 0.3,
            "visits": rng.poisson(4, N),
            "grade": rng.integers(0, 7, N),
            "wage": rng.integers(0, 90_000, N),
        }
    )
    frame.loc[rng.random(N) < 0.1, "age"] = np.nan
    frame.loc[rng.random(N) < 0.1, "city"] = None
    return frame


@pytest.mark.usefixtures("small_blocks")
def test_streamed_tables_equal_those_in_memory(tmp_path, monkeypatch):
    """Some columns have more distinct values than are tracked."""
    monkeypatch.setattr(streamed_tables, "MOST_LEVELS", 30)
    people().to_parquet(tmp_path / "t.parquet", row_group_size=77)
    options = {"missing": True, "ids": ["id"], "validation": 50}
    memory = load_dataset(tmp_path / "t.parquet", **options)
    streamed = load_dataset(tmp_path / "t.parquet", stream=True, **options)
    assert_same(memory, streamed)
    assert [one.kind for one in memory.columns] == [one.kind for one in streamed.columns]
    assert count_parquet_cells(tmp_path / "t.parquet") == people().size


def test_damaged_pages_of_a_streamed_table_give_a_one_line_error(tmp_path):
    """The footer of the file is intact, so opening it succeeds."""
    path = tmp_path / "t.parquet"
    people().to_parquet(path)
    content = bytearray(path.read_bytes())
    content[4:300] = bytes(296)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"t\.parquet cannot be read: [^\n]+$"):
        load_dataset(path, stream=True, missing=True, ids=["id"])
    with pytest.raises(UserError, match=r"t\.parquet cannot be read: [^\n]+$"):
        streamed_tables.streamed_cells(path, ["id"])


@pytest.mark.usefixtures("small_blocks")
def test_errors_in_a_streamed_table_are_located(tmp_path, monkeypatch):
    frame = people().drop(columns="id")
    frame.to_parquet(tmp_path / "t.parquet")
    first = int(np.flatnonzero(frame[["age", "city"]].isna().any(axis=1))[0]) + 1
    with pytest.raises(UserError, match=f"row {first}, column .* missing"):
        load_dataset(tmp_path / "t.parquet", stream=True)
    frame["city"] = frame["city"].where(np.arange(N) != 555, "2020-01-31")
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match="row 556, column 'city': '2020-01-31' in"):
        load_dataset(tmp_path / "t.parquet", stream=True, missing=True)
    frame["city"] = [f"c{i % 60}" for i in range(N)]
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match=f"60 different words in {N:,} rows"):
        load_dataset(tmp_path / "t.parquet", stream=True, missing=True)
    monkeypatch.setattr(streamed_tables, "MOST_LEVELS", 30)
    with pytest.raises(UserError, match="'wage' has more than 30 different values"):
        load_dataset(
            tmp_path / "t.parquet", stream=True, missing=True, columns={"wage": "categorical"}
        )
    monkeypatch.setattr(
        streamed_tables.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 7})
    )
    with pytest.raises(UserError, match="let TMPDIR name"):
        load_dataset(tmp_path / "t.parquet", stream=True, missing=True, drop=["city"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.csv", {}, "only .npy and .parquet"),
        ("digits", {}, "only .npy and .parquet"),
        ("a.npy", {"labels": True}, "cannot be streamed with labels"),
    ],
)
def test_data_that_cannot_be_streamed_are_refused(tmp_path, name, options, message):
    path = name if name == "digits" else tmp_path / name
    with pytest.raises(UserError, match=message):
        load_dataset(path, stream=True, **options)


def test_shrinking_file_is_detected(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((1000, 3)))
    lazy = stored(np.load(tmp_path / "a.npy", mmap_mode="r"))
    with (tmp_path / "a.npy").open("r+b") as file:
        file.truncate(5000)
    assert lazy[:10].shape == (10, 3)
    with pytest.raises(UserError, match="has become shorter"):
        lazy[990:]


def test_stored_rows_are_read_in_any_order(tmp_path):
    array = np.arange(60.0).reshape(20, 3)
    np.save(tmp_path / "a.npy", array)
    found = stored(np.load(tmp_path / "a.npy", mmap_mode="r"))
    for indices in ([5, 5, 7], [7, 5, 5], [0, 19, 3, 3, 4], [18, 19], []):
        np.testing.assert_array_equal(found[np.array(indices, int)], array[indices])


def test_conversions_receive_row_indices():
    array = np.arange(40.0).reshape(20, 2)
    subset = row_subset(row_subset(array, np.arange(19, -1, -1)), np.arange(0, 20, 3))
    converted = convert_rows(subset, lambda values, indices: values + 100 * indices[:, None], float)
    np.testing.assert_array_equal(
        rows_in_memory(converted), subset[:] + 100 * np.arange(7)[:, None]
    )
    np.testing.assert_array_equal(subset[:], array[::-1][::3])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("n", [1, 7, 128, 129, 1000, 4099, 12_345])
def test_moments_match_numpy_bit_for_bit(n):
    rng = np.random.default_rng(n)
    array = (rng.normal(size=(n, 4)) * [1, 1e6, 1e-6, 1] + [0, 1e9, 3, 7]).astype(np.float32)
    array[rng.random(n) < 0.3, 3] = np.nan
    mean, spread, varies = column_moments(array, np.arange(4))
    for j, column in enumerate(array.T.astype(np.float64)):
        values = column[~np.isnan(column)]
        if len(values):
            assert (mean[j], spread[j]) == (values.mean(), values.std())
        assert varies[j] == (len(np.unique(values)) > 1)
    assert (column_sums(array[:, :3]) == array[:, :3].sum(axis=0, dtype=np.float64)).all()


# --- blocks of an epoch ------------------------------------------------------------------------


def test_blocks_of_an_epoch_do_not_repeat_rows():
    parts = Blocks(7, 10_003 // 7, 10)
    blocks = [feed_rows(10_003, parts, 4, block) for block in range(7)]
    epoch_rows = np.concatenate(blocks)
    assert {len(one) for one in blocks} == {parts.rows}
    assert len(np.unique(epoch_rows)) == len(epoch_rows)
    assert epoch_rows.min() >= 0
    assert epoch_rows.max() < 10_003
    assert all((np.diff(one) > 0).all() for one in blocks)
    np.testing.assert_array_equal(blocks[3], feed_rows(10_003, parts, 4, 3))
    assert not np.array_equal(blocks[3], feed_rows(10_003, parts, 5, 3))
    np.testing.assert_array_equal(feed_rows(50, Blocks(1, 50, 5), 9, 0), np.arange(50))


def test_blocks_shuffle_a_sorted_file():
    """In a file sorted by class, class shares of a block vary as in a random sample of its runs."""
    n, parts = 200_000, Blocks(20, 10_000, 100)
    label = np.arange(n) * 10 // n
    shares = np.array(
        [np.bincount(label[feed_rows(n, parts, 0, b)], minlength=10) / 10_000 for b in range(20)]
    )
    error = np.sqrt(0.1 * 0.9 / feed.RUNS)
    assert np.abs(shares - 0.1).max() < 4.5 * error  # 200 shares: exceeded once in a thousand
    assert 0.7 < shares.std() / error < 1.2
    assert 4.5 * error < 0.9  # a block of consecutive rows has shares of 0, 0.5 and 1


def test_blocks_are_few_and_as_large_as_allowed(monkeypatch):
    lazy = row_subset(np.zeros((1000, 4), np.float32), np.arange(1000))
    assert feed_blocks(np.zeros((1000, 4)), 30) == (1, 1000, 33)
    assert feed_blocks(lazy, 30) == (1, 1000, 33)
    monkeypatch.setattr(feed, "BLOCK_BYTES", 4 * 4 * 300)
    assert feed_blocks(lazy, 30) == (4, 250, 8)
    assert feed_blocks(lazy, 400) == (2, 500, 1)  # a block has at least one batch


# --- training ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sorted_file(tmp_path_factory):
    """A file of real numbers, sorted by row."""
    path = tmp_path_factory.mktemp("ordered") / "rows.npy"
    rng = np.random.default_rng(0)
    np.save(path, np.sort(rng.normal(size=(N, 1)), axis=0) + 0.1 * rng.normal(size=(N, 4)))
    return path


def config_of(path, **changes):
    options = {
        "latent_sizes": (2,),
        "hidden_sizes": ((5,),),
        "k": 2,
        "objective": "iwae",
        "batch_size": 20,
        "epochs": 2,
        "validation": 0.1,
        "learning_rate": 0.05,
        "replicates": 2,
    }
    return make_config({"dataset": str(path), **options, **changes}, "test")


def weights_of(run):
    models = [load_model(trained_model_folder(run, "final", r)) for r in range(2)]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(models) if hasattr(leaf, "shape")]


def equal_arrays(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_one_block_trains_as_in_memory_and_a_run_resumes_within_a_block(
    tmp_path, sorted_file, monkeypatch
):
    list(start_run(config_of(sorted_file), tmp_path / "memory"))
    list(start_run(config_of(sorted_file, stream=True), tmp_path / "one"))
    assert equal_arrays(weights_of(tmp_path / "memory"), weights_of(tmp_path / "one"))

    monkeypatch.setattr(feed, "BLOCK_BYTES", 504 * 16 // 3)
    uninterrupted = list(start_run(config_of(sorted_file, stream=True), tmp_path / "whole"))
    assert uninterrupted[-1].step == 2 * 3 * 8
    assert [report.epoch for report in uninterrupted if report.epoch_done] == [1, 2]
    assert not equal_arrays(weights_of(tmp_path / "whole"), weights_of(tmp_path / "one"))

    monkeypatch.setattr(start_and_resume, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "DISPATCH_SECONDS", 0.0)  # a step at a time after the first
    stopped = start_run(config_of(sorted_file, stream=True), tmp_path / "stopped")
    assert [next(stopped).step for _ in range(5)][-1] % 8  # within a block
    stopped.close()
    monkeypatch.undo()
    monkeypatch.setattr(feed, "BLOCK_BYTES", 504 * 16 // 3)
    list(resume_run(tmp_path / "stopped"))
    assert equal_arrays(weights_of(tmp_path / "stopped"), weights_of(tmp_path / "whole"))
    uninterrupted, resumed = (read_metrics(tmp_path / name) for name in ("whole", "stopped"))
    assert [row["validation_bound"] for row in uninterrupted] == [
        row["validation_bound"] for row in resumed
    ]


def test_large_files_are_streamed_unless_disabled(sorted_file, monkeypatch):
    monkeypatch.setattr(own, "LARGE", sorted_file.stat().st_size - 128)
    assert make_job(config_of(sorted_file)).dataset.is_streamed
    assert make_job(config_of(sorted_file)).config.stream is True
    assert not make_job(config_of(sorted_file, stream=False)).dataset.is_streamed
    # An older run has no setting, and was trained in memory.
    assert not make_job(config_of(sorted_file), resumed=True).dataset.is_streamed
    monkeypatch.setattr(own, "LARGE", sorted_file.stat().st_size)
    assert make_job(config_of(sorted_file)).config.stream is None


@pytest.mark.usefixtures("small_blocks")
def test_fixed_draws_of_streamed_pixels_match_those_in_memory(tmp_path):
    np.save(tmp_path / "a.npy", arrays()["pixels"][0])
    memory, streamed = (load_dataset(tmp_path / "a.npy", stream=one) for one in (False, True))
    drawn = split_examples(memory, "train")
    np.testing.assert_array_equal(split_examples(streamed, "train")[100:130], drawn[100:130])


# --- writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".npy", ".npz"])
def test_writing_in_pieces_gives_the_same_file(tmp_path, suffix):
    rng = np.random.default_rng(0)
    cells = {"x": rng.normal(size=30), "y": rng.normal(size=30).astype(np.float32)}
    if suffix in (".csv", ".tsv", ".parquet"):
        cells["w"] = np.array(["a", None, "b,c"] * 10, object)
    write_table(tmp_path / f"whole{suffix}", cells)
    with table_writer(tmp_path / f"pieces{suffix}", 30) as write:
        for part in (slice(0, 11), slice(11, 12), slice(12, 30)):
            write({name: one[part] for name, one in cells.items()})
    if suffix == ".parquet":
        read = [pd.read_parquet(tmp_path / f"{name}{suffix}") for name in ("whole", "pieces")]
        pd.testing.assert_frame_equal(*read)
    else:
        whole, pieces = (tmp_path / f"{name}{suffix}" for name in ("whole", "pieces"))
        assert whole.read_bytes() == pieces.read_bytes()
