"""Labels of named data sets, of a user's arrays, and from a column of a table."""

import csv
import io
import os
import struct
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings

import small
from iwae.config.experiment import make_config
from iwae.config.toml import read_config
from iwae.data import load_dataset, make_kind
from iwae.data.held_out import hold_out_fifth
from iwae.data.labels import as_labels
from iwae.data.readers import DamagedError, read_idx_labels, read_omniglot_labels
from iwae.data.tables import read_table
from iwae.errors import UserError
from iwae.results.classification import classify_run
from iwae.runs.jobs import make_job
from small import conditional_model

# --- named data sets -------------------------------------------------------------------------


def test_digits_labels_match_their_images():
    from sklearn.datasets import load_digits

    plain = load_dataset("digits", validation=100)
    data = load_dataset("digits", validation=100, labels=True)
    assert data.classes == tuple("0123456789")
    truth = {row.tobytes(): y for row, y in zip(*load_digits(return_X_y=True), strict=True)}
    for split in ("train", "validation", "test"):
        rows, values = data.examples(split), getattr(plain, split)
        np.testing.assert_array_equal(getattr(data, split), values)
        np.testing.assert_array_equal(rows[:, :64], values)
        np.testing.assert_array_equal(rows[:, 64:].argmax(axis=1), getattr(data.labels, split))
        np.testing.assert_array_equal(data.labels(split), getattr(data.labels, split))
        assert rows.dtype == values.dtype
        assert set(np.unique(rows[:, 64:])) == {0, 255 if split == "train" else 1}
    levels = np.rint(data.train / 255 * 16).astype(float)
    expected = [truth[row.tobytes()] for row in levels]
    np.testing.assert_array_equal(data.labels.train, expected)
    assert data.identity["test_sha256"] == plain.identity["test_sha256"]
    assert data.identity != plain.identity
    np.testing.assert_array_equal(data.train_mean, plain.train_mean)
    with pytest.raises(UserError, match="loaded without labels"):
        plain.labels  # noqa: B018
    np.testing.assert_array_equal(plain.examples("test"), plain.test)


def test_labels_of_user_arrays_are_read_and_checked(tmp_path):
    rows = np.random.default_rng(0).normal(size=(20, 3))
    words = np.array(["cat", "dog"])[np.arange(20) % 2]
    np.savez(tmp_path / "one.npz", data=rows, labels=words)
    data = load_dataset(tmp_path / "one.npz", labels=True, validation=4)
    assert data.classes == ("cat", "dog")
    for split in ("train", "validation", "test"):
        for row, y in zip(getattr(data, split), data.labels(split), strict=True):
            (place,) = np.flatnonzero(np.isclose(rows, data.outwards(row)).all(axis=1))
            assert words[place] == data.classes[y]
    plain = load_dataset(tmp_path / "one.npz", validation=4)  # labels that are not requested
    np.testing.assert_array_equal(plain.test, data.test)
    assert not plain.classes
    np.savez(tmp_path / "alone.npz", labels=words)
    with pytest.raises(UserError, match="array 'labels'"):
        load_dataset(tmp_path / "alone.npz")
    np.savez(
        tmp_path / "two.npz", train=rows, test=rows, train_labels=np.arange(20), test_labels=words
    )
    with pytest.raises(UserError, match="some labels are words and others are numbers"):
        load_dataset(tmp_path / "two.npz", labels=True)
    labels = {"train_labels": words == "cat", "test_labels": np.arange(20)}
    np.savez(tmp_path / "two.npz", train=rows, test=rows, **labels)
    with pytest.raises(UserError, match="the label 2 of test has no training example"):
        load_dataset(tmp_path / "two.npz", labels=True)
    np.savez(tmp_path / "three.npz", data=rows, labels=words[:5])
    with pytest.raises(UserError, match="a whole number or a word for each of the 20 examples"):
        load_dataset(tmp_path / "three.npz", labels=True)
    np.savetxt(tmp_path / "four.csv", rows, delimiter=",")
    with pytest.raises(UserError, match="name the column of its labels with --label"):
        load_dataset(tmp_path / "four.csv", labels=True)
    with pytest.raises(UserError, match="circle has no labels: use "):
        load_dataset("circle", labels=True)


def idx(labels, magic=b"\x00\x00\x08\x01"):
    return magic + struct.pack(">i", len(labels)) + bytes(labels)


def test_label_files_are_checked():
    shapes = {"train": (5,)}
    labels = [3, 0, 9, 9, 1]
    np.testing.assert_array_equal(read_idx_labels(idx(labels), shapes)["train"], labels)
    for content, message in (
        (idx(labels, b"\x00\x00\x08\x03"), "not an idx file of labels: starts with 0x00000803"),
        (idx(labels)[:-1], "holds 4 labels, not 5"),
        (idx([*labels, 1]), "holds 6 labels, not 5"),
        (idx([1, 2, 3, 4, 10]), "holds the label 10, not 0 to 9"),
        (b"", "not an idx file of labels"),
    ):
        with pytest.raises(DamagedError, match=message):
            read_idx_labels(content, shapes)


def mat(**matrices):
    """A MATLAB 5 file."""
    content = io.BytesIO()
    scipy.io.savemat(content, matrices)
    return content.getvalue()


def test_omniglot_alphabets_are_read_and_checked():
    places = {"train": np.array([3, 0, 49, 3]), "test": np.array([1, 7])}
    one_hot = {split: np.eye(50, dtype=np.uint8)[:, indices] for split, indices in places.items()}
    shapes = {"train": (4,), "test": (2,)}
    found = read_omniglot_labels(mat(target=one_hot["train"], testtarget=one_hot["test"]), shapes)
    for split, expected in places.items():
        np.testing.assert_array_equal(found[split], expected)
    two_hot = one_hot["train"].copy()
    two_hot[5, 1] = 1
    for content, message in (
        (mat(target=two_hot, testtarget=one_hot["test"]), "'target' is not one-hot for each"),
        (mat(target=0 * two_hot, testtarget=one_hot["test"]), "'target' is not one-hot for each"),
        (
            mat(target=one_hot["train"][:, :3], testtarget=one_hot["test"]),
            "'target' is 50 x 3, not 50 x",
        ),
        (mat(target=one_hot["train"]), "has no variable 'testtarget'"),
        (b"none", "not a MATLAB 5 file"),
    ):
        with pytest.raises(DamagedError, match=message):
            read_omniglot_labels(content, shapes)


@pytest.mark.slow
@pytest.mark.skipif("IWAE_DATA" not in os.environ, reason="needs the file of OMNIGLOT")
def test_omniglot_labels_are_its_alphabets():
    """The file is sorted by alphabet, and holds the names of the alphabets too."""
    data = load_dataset("omniglot", labels=True, download=False)
    plain = load_dataset("omniglot", download=False)
    np.testing.assert_array_equal(data.test[:, :784], plain.test)
    assert len(data.classes) == 50
    assert data.identity["files"] == plain.identity["files"]
    both = np.bincount(data.labels("train")) + np.bincount(data.labels("test"))
    if "omniglot28.mat" not in (file["name"] for file in data.identity["files"]):
        return
    (path,) = Path(os.environ["IWAE_DATA"]).rglob("omniglot28.mat")
    names = scipy.io.loadmat(path, variable_names=["alphabets"])["alphabets"]
    assert data.classes == tuple(str(one[0][0]) for one in names)
    for split in ("train", "test"):
        assert (np.diff(data.labels(split)) >= 0).all()
    assert both[data.classes.index("Greek")] == 24 * 20
    assert both[data.classes.index("Latin")] == 26 * 20
    assert both[data.classes.index("Glagolitic")] == 45 * 19  # without its drawer 12


@pytest.mark.skipif("IWAE_DATA" not in os.environ, reason="needs the files of MNIST")
def test_mnist_labels_have_the_published_counts():
    data = load_dataset("mnist", labels=True, validation=1000, download=False)
    assert data.examples("train").shape == (59_000, 794)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # LeCun et al. 1998
    both = np.bincount(data.labels("train")) + np.bincount(data.labels("validation"))
    np.testing.assert_array_equal(both, counts)
    assert data.labels("test")[:5].tolist() == [7, 2, 1, 0, 4]


# --- a column of a table ---------------------------------------------------------------------

N = 30


def write(path, labels, *, header="height,kind,count", gaps=False):
    """Write 30 lines of height, label and count; returns heights and counts."""
    rng = np.random.default_rng(0)
    heights, counts = rng.normal(size=N), rng.poisson(4, N)
    lines = [header] if header else []
    for i in range(N):
        height = "" if gaps and i % 7 == 1 else repr(float(heights[i]))
        lines.append(f"{height},{labels[i]},{counts[i]}")
    path.write_text("\n".join(lines) + "\n")
    return np.float32(np.stack([heights, counts], axis=1))


def alternating(*names):
    return [names[i % len(names)] for i in range(N)]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (alternating("cat", "dog", " bird "), ("bird", "cat", "dog")),
        (alternating("10", "9", "-1"), ("-1", "9", "10")),
        (alternating("2.0", "2", "3"), ("2", "3")),
        (alternating("3a", "3"), ("3", "3a")),
        (alternating("12345678901234567890", "12345678901234567891"), None),
        (alternating('"a, b"', "c"), ("a, b", "c")),
    ],
)
@pytest.mark.parametrize("column", ["kind", "2"])
def test_label_column_is_not_part_of_the_example(labels, classes, column, tmp_path):
    header = "" if column == "2" else "height,kind,count"
    rows = write(tmp_path / "table.csv", labels, header=header)
    options = {"observation": "gaussian", "standardize": False}
    data = load_dataset(tmp_path / "table.csv", labels=column, **options)
    if classes is None:
        classes = ("12345678901234567890", "12345678901234567891")
    assert (data.shape, data.classes, data.n_values) == ((2,), classes, 2)
    train, test, _ = hold_out_fifth(N)
    for split, indices in (("train", train), ("test", test)):
        np.testing.assert_array_equal(getattr(data, split)[:, :2], rows[indices])
        found = [data.classes[y] for y in data.labels(split)]
        written = [labels[i].strip().strip('"') for i in indices]
        assert found == [word if word in classes else str(int(float(word))) for word in written]
    assert data.identity["label"] == column
    assert data.identity["classes"] == list(classes)


def test_kinds_and_missing_values_apply_to_the_other_columns(tmp_path):
    rows = write(tmp_path / "table.csv", alternating("a", "b"), gaps=True)
    kind = make_kind("table", columns=("gaussian", "poisson"))
    data = load_dataset(tmp_path / "table.csv", labels="kind", missing=True, observation=kind)
    gaps = np.isnan(data.train[:, 0])
    assert 0 < gaps.sum() < len(gaps)
    train, _, _ = hold_out_fifth(N)
    np.testing.assert_array_equal(gaps, train % 7 == 1)
    np.testing.assert_array_equal(data.train[:, 1], rows[train][:, 1])
    assert data.identity["columns"] == ["height", "count"]
    np.testing.assert_array_equal(data.examples("train")[:, 2:].sum(axis=1), 1)


@pytest.mark.slow
def test_conditional_model_trains_on_and_classifies_a_labelled_table(tmp_path):
    write(tmp_path / "table.csv", alternating("a", "b", "b"), gaps=True)
    values = {
        "dataset": str(tmp_path / "table.csv"),
        "validation": None,
        "conditional": True,
        "label": "kind",
        "observation": "table",
        "columns": ("gaussian", "poisson"),
        "missing": "at-random",
    }
    job = make_job(small.config(**values))
    (model,) = job.models
    assert (model.n_classes, model.vae.n_data) == (2, 2)
    counts = np.bincount(job.dataset.labels("train"))
    np.testing.assert_allclose(model.frequencies, counts / counts.sum(), rtol=1e-6)
    assert counts[1] > 1.5 * counts[0]
    known = conditional_model(2, observation=model.vae.kind, missing="at-random")
    run = small.run_from_models(tmp_path / "run", [known], **values)
    assert read_config(run / "config.toml").label == "kind"
    record = classify_run(run, k=5)
    assert record["data"]["label"] == "kind"
    assert 0 <= record["accuracy"] <= 1


@pytest.mark.parametrize(
    ("labels", "column", "header", "message"),
    [
        (alternating("a", "b"), "sort", True, "no column 'sort'; it has 'height', 'kind', 'count'"),
        (alternating("a", "b"), "2", True, "no column '2'; it has 'height'"),
        (alternating("a", "b"), "kind", False, "nor a column 'kind'; give a number from 1 to 3"),
        (alternating("a", "b"), "4", False, "nor a column '4'; give a number from 1 to 3"),
        (alternating("a", "b"), "0", False, "nor a column '0'; give a number from 1 to 3"),
        (["a"] * 4 + [" "] + ["b"] * 25, "kind", True, r"line 6 has no label \(column 'kind'\)"),
        (["a"] * 4 + ["NaN"] + ["b"] * 25, "2", False, "line 5 has no label"),
        ([f"id{i}" for i in range(N)], "kind", True, "a different value in every line"),
        (list(map(str, range(N))), "kind", True, "a different value in every line"),
        (alternating("1", "0.5"), "kind", True, "holds 0.5, but labels must be words or whole"),
        (alternating("a", "b"), "height", True, "labels must be words or whole numbers"),
    ],
)
def test_columns_unsuitable_as_labels_are_refused(labels, column, header, message, tmp_path):
    write(tmp_path / "table.csv", labels, header="height,kind,count" if header else "")
    with pytest.raises(UserError, match=message) as caught:
        load_dataset(tmp_path / "table.csv", labels=column)
    assert "\n" not in str(caught.value)


def test_label_without_a_training_example_is_refused(tmp_path):
    train, test, _ = hold_out_fifth(N)
    labels = ["a" if i in train else "b" for i in range(N)]
    write(tmp_path / "table.csv", labels)
    with pytest.raises(UserError, match="the label 'b' has no training example once test and"):
        load_dataset(tmp_path / "table.csv", labels="kind")
    labels = alternating("a", "b")
    labels[train[0]] = "c"
    write(tmp_path / "table.csv", labels)
    assert load_dataset(tmp_path / "table.csv", labels="kind").classes == ("a", "b", "c")
    refusals = 0
    for seed in range(12):  # if the only row is held out, its label has no example
        try:
            load_dataset(tmp_path / "table.csv", labels="kind", validation=8, seed=seed)
        except UserError as error:
            assert "the label 'c' has no training example" in str(error)  # noqa: PT017
            refusals += 1
    assert 0 < refusals < 12
    assert len(test) == 6


def test_duplicate_columns_and_bad_cells_are_reported_by_position(tmp_path):
    path = tmp_path / "table.csv"
    write(path, alternating("a", "b"), header="kind,kind,count")
    with pytest.raises(UserError, match="several columns called 'kind'"):
        load_dataset(path, labels="kind")
    write(path, alternating("a", "b"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], "1.0,a,many", *lines[5:]]))
    with pytest.raises(UserError, match="line 5, column 3: 'many' is not a number"):
        load_dataset(path, labels="kind")
    path.write_text("\n".join([*lines[:4], "1.0", *lines[5:]]))
    with pytest.raises(UserError, match="line 5 has 1 columns, but the lines above have 3"):
        load_dataset(path, labels="kind")
    path.write_text("kind\na\nb\na\nb\n")
    with pytest.raises(UserError, match="has only the column of its labels"):
        load_dataset(path, labels="kind")


def test_label_column_needs_a_table(tmp_path):
    np.savez(tmp_path / "rows.npz", data=np.ones((4, 2)), labels=np.arange(4) % 2)
    for name in (tmp_path / "rows.npz", "digits"):
        with pytest.raises(UserError, match=r"label 'kind' names a column of a table"):
            load_dataset(name, labels="kind")
    with pytest.raises(UserError, match="label needs conditional"):
        make_config({"label": "kind"}, "here")


LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")


@settings(max_examples=60)
@given(
    st.lists(st.text(LETTERS, max_size=4), min_size=2, max_size=6),
    st.lists(st.integers(0, 5), min_size=2, max_size=8),
    st.integers(0, 2),
)
def test_numbers_stay_in_their_rows_for_any_labels(tmp_path_factory, words, order, place):
    """Each line keeps its numbers and its label, or a one-line error says why not."""
    labels = [words[i % len(words)] for i in order]
    written = io.StringIO()
    for i, one in enumerate(labels):
        line = [str(2.0 * i), str(2.0 * i + 1)]
        csv.writer(written, lineterminator="\n").writerow([*line[:place], one, *line[place:]])
    path = tmp_path_factory.mktemp("table") / "table.csv"
    try:
        path.write_bytes(written.getvalue().encode())
        table = read_table(path, ids=[str(place + 1)])
        found = as_labels(table, str(place + 1))
    except (UserError, UnicodeEncodeError) as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    numbers = np.stack(table.columns, axis=1)
    np.testing.assert_array_equal(numbers, np.arange(2.0 * len(labels)).reshape(-1, 2))
    if found.dtype.kind == "U":
        assert found.tolist() == [one.strip() for one in labels]
    else:
        assert found.tolist() == [float(one) for one in labels]
