"""A user's own file: how its numbers are interpreted, and which files are refused."""

import io
import re
import struct
import zipfile
from functools import partial
from pathlib import Path

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from iwae.data import arrays, cells, choose, layout
from iwae.data import load_dataset as load_standardised
from iwae.data.parquet_files import refusing_parquet_damage
from iwae.data.summary import summarise_dataset
from iwae.data.tables import read_table
from iwae.data.writers import write_table
from iwae.errors import UserError
from iwae.files import file_content_sha256

load_dataset = partial(load_standardised, standardize=False)

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(50, 6))
UNIT = RNG.random((50, 6))
BYTES = RNG.integers(0, 256, (50, 6), dtype=np.uint8)
BITS = RNG.integers(0, 2, (50, 6))


@pytest.fixture
def save(tmp_path):
    """A function that writes one array to an .npy file, or arrays by name to an .npz file."""

    def save(array=None, **arrays):
        path = tmp_path / ("mine.npy" if array is not None else "mine.npz")
        if array is not None:
            np.save(path, array)
        else:
            np.savez_compressed(path, **arrays)
        return path

    return save


@pytest.mark.parametrize(
    ("array", "values", "observation", "binarization", "dtype"),
    [
        (BITS, "binary", "bernoulli", "none", np.uint8),
        (BITS.astype(bool), "binary", "bernoulli", "none", np.uint8),
        (BITS.astype(np.uint8), "binary", "bernoulli", "none", np.uint8),
        (BITS.astype(np.float64), "binary", "bernoulli", "none", np.uint8),
        (BYTES, "grey", "bernoulli", "dynamic", np.uint8),
        (BITS.astype(np.uint8) * 255, "grey", "bernoulli", "dynamic", np.uint8),
        (UNIT, "grey", "bernoulli", "dynamic", np.float32),
        (BYTES / 255, "grey", "bernoulli", "dynamic", np.uint8),
        (REAL, "real", "gaussian", "none", np.float32),
        (-BYTES.astype(np.int64), "real", "gaussian", "none", np.float32),
        (BYTES * 2.0, "real", "gaussian", "none", np.float32),
        (BYTES / 2, "real", "gaussian", "none", np.float32),
        (UNIT + 0.5, "real", "gaussian", "none", np.float32),
        (UNIT - 0.5, "real", "gaussian", "none", np.float32),
    ],
)
def test_kind_of_values_is_inferred(save, array, values, observation, binarization, dtype):
    data = load_dataset(save(array))
    assert data.identity["values"] == values
    assert values.split()[0] in data.identity["values_rule"]
    assert (data.observation, data.binarization) == (observation, binarization)
    assert data.train.dtype == dtype
    assert (len(data.train), len(data.test)) == (40, 10)
    if values == "grey":
        assert set(np.unique(data.test)) == {0, 1}


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.uint16])
def test_integers_that_could_be_bytes_are_not_guessed(save, dtype):
    path = save(BYTES.astype(dtype))
    with pytest.raises(UserError, match=r"mine\.npy holds whole numbers within 0\.\.255, but not"):
        load_dataset(path)
    data = load_dataset(path, observation="gaussian")
    assert (data.identity["values"], data.train.max()) == ("real", BYTES.max())
    with pytest.raises(UserError, match="divide by 255"):
        load_dataset(path, observation="bernoulli")


def test_single_array_is_split_by_a_fixed_shuffle(save):
    path = save(np.arange(100.0).reshape(50, 2) - 50)
    data = load_dataset(path)
    rows = choose(50, 10, seed=0, stream=4)
    np.testing.assert_array_equal(data.test[:, 0], 2 * rows - 50)
    assert sorted([*data.train[:, 0], *data.test[:, 0]]) == list(np.arange(-50, 50, 2))
    assert "10 of 50 rows" in data.identity["split"]
    assert load_dataset(path, seed=1).identity == data.identity
    assert data.name == "mine.npy"
    assert data.identity["files"][0]["sha256"] == file_content_sha256(path.read_bytes())


def test_options_override_the_inferred_kind(save):
    data = load_dataset(save(UNIT), observation="gaussian")
    assert (data.binarization, data.train.dtype) == ("none", np.float32)
    rows = choose(50, 10, seed=0, stream=4)
    np.testing.assert_array_equal(data.test, UNIT[rows].astype(np.float32))
    data = load_dataset(save(UNIT), binarization="threshold")
    np.testing.assert_array_equal(data.test, UNIT[rows] > 0.5)
    data = load_dataset(save(BITS), observation="gaussian")
    assert data.train.dtype == np.float32
    for array, choice, reason in (
        (REAL, {"observation": "bernoulli"}, "not bernoulli"),
        (BYTES.astype(int), {"observation": "bernoulli"}, "divide by 255"),
        (REAL, {"binarization": "dynamic"}, "contradicts"),
        (UNIT, {"binarization": "none"}, "not a density"),
        (BITS, {"binarization": "dynamic"}, "already binary"),
    ):
        with pytest.raises(UserError, match=reason):
            load_dataset(save(array), **choice)


def test_images_keep_their_shape(save):
    data = load_dataset(save(BYTES.reshape(50, 2, 3)))
    assert data.shape == (2, 3)
    assert data.train.shape == (40, 6)
    assert load_dataset(save(BYTES), shape=(3, 2)).shape == (3, 2)


def test_npz_splits_are_kept(save):
    data = load_dataset(save(train=REAL, test=REAL[:5], validation=REAL[:3]))
    np.testing.assert_array_equal(data.train, REAL.astype(np.float32))
    np.testing.assert_array_equal(data.test, REAL[:5].astype(np.float32))
    np.testing.assert_array_equal(data.validation, REAL[:3].astype(np.float32))
    assert data.identity["split"] == "as given in the file"
    with pytest.raises(UserError, match="validation set of its own"):
        load_dataset(save(train=REAL, test=REAL, validation=REAL), validation=5)
    data = load_dataset(save(train=REAL, test=REAL[:5]), validation=7)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [43, 7, 5]
    assert len(load_dataset(save(pixels=REAL)).train) == 40


def test_kind_of_values_is_inferred_from_all_splits(save):
    """A training set of two extreme values beside a grey test set is grey."""
    data = load_dataset(save(train=BITS.astype(np.uint8) * 255, test=BYTES))
    assert data.identity["values"] == "grey"
    data = load_dataset(save(train=BITS.astype(np.float64), test=UNIT))
    assert data.identity["values"] == "grey"
    data = load_dataset(save(train=UNIT, test=UNIT + 1))
    assert data.identity["values"] == "real"
    with pytest.raises(UserError, match="mixes bytes with other numbers"):
        load_dataset(save(train=BYTES, test=UNIT))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"train": REAL}, None),
        ({"x": REAL, "y": REAL}, "holds the arrays x, y: name them train and test"),
        ({"train": REAL, "validation": REAL}, "holds the arrays train, validation"),
        ({"train": REAL, "test": REAL, "labels": REAL}, "labels"),
        ({"train": REAL, "test": REAL[:, :5]}, "different shapes: train [6], test [5]"),
        ({"train": REAL, "test": REAL[:0]}, "'test' has shape (0, 6): it holds no numbers"),
    ],
)
def test_npz_array_names_are_checked(save, arrays, reason):
    if reason is None:
        assert len(load_dataset(save(**arrays)).train) == 40
        return
    with pytest.raises(UserError, match=re.escape(reason)):
        load_dataset(save(**arrays))


def with_value(value, dtype=np.float64):
    array = REAL.astype(dtype)
    array[12, 5] = value
    return array


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (REAL[:9], "has 9 examples: give at least 10, of which a fifth is the test set"),
        (REAL[:0], "holds no numbers"),
        (REAL[:, :0], "holds no numbers"),
        (REAL[:, 0], "reshape to [n, 1]"),
        (np.float64(3.0), "has shape ()"),
        (np.array([["a", "b"]] * 3), "has dtype <U1: examples must be real numbers"),
        (REAL + 0j, "has dtype complex128"),
        (np.zeros(3, [("a", "f4")]), "has dtype"),
        (REAL.astype("M8[s]"), "has dtype"),
        (
            with_value(np.nan),
            "array 'data': row 13, column 6 is not a number; if it is a missing value",
        ),
        (with_value(-np.inf), "row 13, column 6 is infinite (-inf): correct it, or remove its row"),
        (with_value(np.nan, np.float16), "row 13, column 6 is not a number"),
        (with_value(1e300), "row 13, column 6 is 1e+300, too large for single precision"),
        (with_value(np.inf).reshape(50, 2, 3), "example 13, at [1, 2], is infinite"),
        (
            with_value(2**53 + 1, np.int64),
            "row 13, column 6 is 9007199254740993, a whole number beyond",
        ),
        (np.full((12, 2), 2**63 + 1, np.uint64), "9223372036854775809, a whole number beyond 2^53"),
        (
            REAL * 1e-300,
            "mine.npy, column 1: its values are too small to be standardised: multiply",
        ),
        (
            with_value(1e30)[[12, *range(12), *range(13, 50)]],
            "column 6: float32 merges 38 of 40 distinct values: remove extreme",
        ),
    ],
)
def test_unusable_arrays_are_refused(save, array, reason):
    path = save(array)
    with pytest.raises(UserError, match=re.escape(reason)) as caught:
        load_standardised(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickles_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "boom",))

    path = tmp_path / "mine.npy"
    np.save(path, np.array([Bomb(), Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="does not hold arrays of numbers"):
        load_dataset(path)
    np.savez(tmp_path / "mine.npz", np.array([Bomb(), Bomb()], dtype=object))
    with pytest.raises(UserError, match="does not hold arrays of numbers"):
        load_dataset(tmp_path / "mine.npz")
    assert not (tmp_path / "boom").exists()


def test_npz_member_that_is_not_an_array_is_refused(save):
    path = save(train=REAL, test=REAL)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "where these are from")
    with pytest.raises(UserError, match=r"mine\.npz holds 'notes\.txt', which is not an array"):
        load_dataset(path)


def test_npy_header_claiming_too_much_memory_is_refused(save):
    path = save(REAL)
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 5 * 10**6)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(UserError, match=r"mine\.npy is truncated, corrupt"):
        load_dataset(path)


def test_npz_member_claiming_too_much_memory_is_refused(save, monkeypatch):
    path, packed = save(train=REAL), io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 5 * 10**6)}
    np.lib.format.write_array_header_1_0(packed, header)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("test.npy", packed.getvalue())
    with pytest.raises(UserError, match=r"corrupt.*: it claims to hold 40,000,000,000,000 bytes"):
        load_dataset(path)
    monkeypatch.setattr(arrays, "MOST_RATIO", 10**12)  # as if the file were that large
    with pytest.raises(MemoryError):
        load_dataset(path)


@pytest.mark.parametrize("size", [10**6, 10**15])
def test_out_of_memory_is_not_reported_as_damage(tmp_path, size):
    path = tmp_path / "mine.parquet"
    path.touch()
    wrong = pa.lib.ArrowMemoryError(f"malloc of size {size} failed")
    with pytest.raises(UserError if size > 10**9 else MemoryError), refusing_parquet_damage(path):
        raise wrong


def test_archive_exceeding_the_unpacked_limit_is_refused(save, monkeypatch):
    path = save(train=np.zeros((100, 1000)), test=np.ones((2, 1000)))
    assert load_dataset(path).shape == (1000,)
    monkeypatch.setattr(arrays, "MOST_UNPACKED", 800_000)
    with pytest.raises(UserError, match=r"has [\d,]+ bytes but unpacks to 816,\d+, so it is not"):
        load_dataset(path)
    np.savez(path, train=np.zeros((100, 1000)), test=np.ones((2, 1000)))  # nothing to unpack
    assert load_dataset(path).shape == (1000,)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1" + 30 * "0" + ", 2)}",
        "{'descr': (), 'fortran_order': False, 'shape': (6, 2)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (True, 2)}",
        '{1: """',
        "{1: 2, 'a': 3}",
        3000 * "(",
        "  x\n y\n\tz",
    ],
)
def test_invalid_npy_headers_are_refused(tmp_path, header):
    path, text = tmp_path / "mine.npy", header.encode() + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(96))
    with pytest.raises(UserError, match=r"mine\.npy is truncated, corrupt"):
        load_dataset(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archive_loads_with_any_compression_and_damage_is_refused(tmp_path, method):
    path, packed = tmp_path / "mine.npz", io.BytesIO()
    np.save(packed, REAL)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("data.npy", packed.getvalue())
    assert len(load_dataset(path).train) == 40
    content = path.read_bytes()
    central = content.index(b"PK\1\2")
    for place, other, value in ((60, 60, 0xFF), (6, central + 8, 1), (8, central + 10, 99)):
        damaged = bytearray(content)  # data; encryption flag; unknown method
        damaged[place] ^= value
        if other != place:
            damaged[other] ^= value
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"mine\.npz is truncated, corrupt"):
            load_dataset(path)


@pytest.mark.parametrize("dtype", [">f8", ">f4", "f2", "g", ">i4", "i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_dtype_and_memory_layout_do_not_change_the_numbers(save, dtype, order):
    integers = np.rint(REAL * 3) - 1  # exact in every dtype
    rows = load_dataset(save(integers.astype(dtype, order=order))).train
    expected = load_dataset(save(integers)).train
    np.testing.assert_array_equal(rows, expected)
    assert rows.dtype == np.float32


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path)])
def test_path_that_is_not_a_file_is_refused(tmp_path, make):
    make(tmp_path / "mine.csv")
    with pytest.raises(UserError, match=r"mine\.csv cannot be read: [A-Z]"):
        load_dataset(tmp_path / "mine.csv")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_garbage_and_truncated_numpy_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    (np.save if suffix == ".npy" else np.savez_compressed)(path, REAL)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    damaged = [content[:-9], content[: len(content) // 2], content[:4], b"garbage" * 50]
    if suffix == ".npz":
        damaged.append(bytes(flipped))
    for bad in damaged:
        path.write_bytes(bad)
        with pytest.raises(UserError, match=re.escape(str(path))):
            load_dataset(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        load_dataset(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.npy cannot be read: No such file"):
        load_dataset(tmp_path / "nothing.npy")


@pytest.mark.parametrize("header", ["", "a,b,c,d,e,f\n", '"a, b",b,c,d,e,f\n'])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_csv_is_read_with_or_without_a_header(tmp_path, header, newline, bom):
    path = tmp_path / "mine.csv"
    lines = "".join(",".join(map(repr, row)) + "\n" for row in REAL.tolist())
    path.write_bytes((bom + header + lines).replace("\n", newline).encode())
    data = load_dataset(path)
    assert (data.observation, data.shape) == ("gaussian", (6,))
    rows = choose(50, 10, seed=0, stream=4)
    np.testing.assert_array_equal(data.test, REAL[rows].astype(np.float32))
    np.testing.assert_array_equal(data.train, np.delete(REAL, rows, 0).astype(np.float32))


def test_csv_of_one_column_and_csv_of_bits_are_read(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("x\n" + "1.5\n2.5\n-3.5\n" * 4 + "\n")
    assert load_dataset(path).shape == (1,)
    path.write_text('0,1,1\n1,"0",1\n0,0,1\n' * 4)
    data = load_dataset(path)
    assert (data.binarization, data.train.dtype) == ("none", np.uint8)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1,2\n3,x\n5,6\n", "line 2, column 2: 'x' is not a number, as others in column '2' are"),
        ("a,b\n1,2\n3,\n", "line 3, column 2: '' is not a number or a word; if it is a missing"),
        ("a,2\n1,2\n", "line 1, column 1: 'a' is not a number"),
        ("1,2\n\n3,4,5\n", "line 3 has 3 columns, but the lines above have 2"),
        ("1,2\n3\n", "line 2 has 1 columns"),
        ("1,2\n# 3,4\n5,6\n", "line 2, column 1: '# 3' is not a number"),
        ("a,b\n", "holds no lines of values"),
        ("\n\n", "holds no lines of values"),
        ("1,2\n3,nan\n5,6\n", "line 2, column 2: 'nan' is not a number or a word; if it is a miss"),
        ("1,2\n3,inf\n5,6\n", r"line 2, column 2: 'inf' is infinite \(inf\): correct it"),
        ("1,2\n", "has 1 example: give at least 10"),
        (
            "a\n9007199254740993\n1\n",
            r"'a' holds 9007199254740993, a whole number .*\(--id a\), sub",
        ),
        ("1\n\n3\n4\n", "line 2, column 1: '' is not a number or a word; if it is a missing"),
        ("x\n\n3\n4\n", "line 2, column 1: '' is not a number"),
        ("1_000\n900\n800\n", "line 1, column 1: '1_000' is not a number; write numbers like"),
        ("900\n1_000\n800\n", "line 2, column 1: '1_000' is not a number; write numbers like"),
        ('"1,000"\n900\n800\n', "line 1, column 1: '1,000' is not a number; write numbers like"),
        ("0x10\n900\n800\n", "line 1, column 1: '0x10' is not a number"),
        ("5%\n6\n7\n", "line 1, column 1: '5%' is not a number"),
        ("$5\n6\n7\n", "line 1, column 1: '.5' is not a number"),
        ("1 000\n6\n7\n", "line 1, column 1: '1 000' is not a number"),
        ("a;b\n1.234,5;0,5\n2;3\n", r"line 2, column 1: '1.234,5' .* \(without '\.', if it sep"),
        (
            "1\u202f234.5\n6\n7\n",
            r"line 1, column 1: .* \(without the space, if it separates thous",
        ),
        ("x\n5 €\n6\n7\n", "line 2, column 1: '5 €' is not a number; write numbers like"),
        ("1d5\n6\n7\n", "line 1, column 1: '1d5' is not a number"),
        ("3,4\n\u0661,\u0662\n5,6\n", "line 2, column 1: '\u0661' is not a number"),
        ("\u0661,\u0662\n3,4\n5,6\n", "line 1, column 1: '\u0661' is not a number"),
        ("1;2\n3;4;5\n", "line 2 has 3 columns, but the lines above have 2"),
        ("1,5;2,5\n3,5;4.5\n", "line 1, column 2: '2,5' is not a number; write numbers like"),
        ("a;b\n1,5;2,5\n3,5;x\n", "line 2, column 2: '2,5' is not a number; write numbers"),
        ("a;b\n1,5;2.5\n3,5;4.5\n", "decimal points and others with decimal commas: use one mark"),
        ("NA,NA\n1,2\n3,4\n", "line 1, column 1: 'NA' is not a number or a word; if it is a miss"),
        ("0,1,2\n5,6,7\n8,9,9\n", "line 1 counts up from 0: if it numbers the columns"),
        (",0,1,2\n0,5,6,7\n1,8,9,9\n", "line 1 counts up from 0"),
        ("1,2\n3,\x004\n", "not UTF-8 text .it holds zero bytes.: save it as UTF-8"),
        ('a,b\n"1,2\n' + "3,4\n" * 40_000, "line .*; is a quotation mark not closed"),
        ('a,b\n1,2\n"3,4\n5,6\n', "line 4 has 1 columns.*a quotation mark not closed"),
        (
            "x\n0,126\n-0,536\n",
            "line 1 names 1 columns, but line 2 has 2 cells: write decimals",
        ),
        ("a,b\n1,2,3\n4,5,6\n", "line 1 names 2 columns, but line 2 has 3 cells: name each once"),
        ("x,y,\n1,2\n3,4\n", "line 1 names 3 columns, but line 2 has 2 cells"),
        (",b\n0,2\n1,4\n2,7\n", r"column '1' has no name and counts the rows: .*\(--drop 1\)"),
        ("a,b\n1,2\n3,4,5\n", "line 3 has 3 columns, but the lines above have 2"),
        ("12:30\n12:45\n", "its lines have 2 cells separated by ':': separate columns by commas"),
        ("a:b\nu:2\nu\n", "its lines have 1 or 2 cells separated by ':': separate columns by"),
        ("a b\n1 2\n3  4\n", "its lines have 2 or 3 cells separated by ' ': separate columns by"),
        ("1 2\n3 4\n", "or name them in the first line and give each line"),
        ("big n\n1 000\n2 000\n", "line 2, column 1: '1 000' is not a number; write numbers"),
        ("a,a\n1,2\n3,4\n", "several columns called 'a': rename all but one"),
        ("a,b\nred,x\na,y\nred,y\n", "'a' in the first line is also a value of its column"),
    ],
)
@pytest.mark.parametrize("missing", [False, True])
def test_invalid_csv_is_refused(tmp_path, text, reason, missing):
    if missing and ("or a word" in reason or "''" in reason):
        return
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        load_dataset(path, missing=missing)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "separator"),
    [("a,b\n1,2\n3,4\n", ","), ("1.5;2\n3;4\n", ";"), ("x,y|b\n1|2\n", "|"), ("a:b\n1:2\n", ":")],
)
def test_tsv_without_tabs_names_its_separator(tmp_path, text, separator):
    path = tmp_path / "mine.tsv"
    path.write_text(text)
    with pytest.raises(UserError, match=f"columns are separated by '{re.escape(separator)}', not"):
        read_table(path)


def test_tsv_of_one_column_is_read(tmp_path):
    path = tmp_path / "mine.tsv"
    for text in ("x\n1,5\n2,5\n", "1,5\n2,5\n"):
        path.write_text(text)
        np.testing.assert_array_equal(read_table(path).columns, [[1.5, 2.5]])


@pytest.mark.parametrize(
    ("cells", "remark"),
    [
        (["1,234", "-5,678", "9"], "column 'a': 1,234 is taken as 1.234, not as 1234"),
        (["900", "", "1.234"], "column 'a': 1.234 is taken as 1.234, not as 1234"),
        (["1,234", "5,67", "9"], None),
        (["0,234", "0,678", "9"], None),
        (["1234", "5678", "9"], None),
    ],
)
def test_ambiguous_thousands_separators_are_reported(tmp_path, cells, remark):
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(["a;b", *(f"{cell};{i}" for i, cell in enumerate(4 * cells))]))
    data = load_dataset(path, missing=True, drop=["b"])
    assert data.remarks == (() if remark is None else (remark,))
    assert all(line in summarise_dataset(data).splitlines() for line in data.remarks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": ["w"], "ids": [" w"]}, "'w' is named by both drop and id, but it is either left"),
        ({"drop": ["w"], "labels": "w"}, "'w' is named by both drop and label"),
        ({"ids": ["w"], "columns": {"w": "categorical"}}, "'w' is named by both id and columns"),
        ({"drop": ["w"], "columns": {"w": "categorical"}}, "'w' is named by both drop and columns"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_column_cannot_have_two_roles(tmp_path, options, message, suffix):
    path = tmp_path / f"mine{suffix}"
    write_table(path, {"w": np.arange(20) % 3, "x": np.arange(20) + 0.5})
    with pytest.raises(UserError, match=message):
        load_dataset(path, **options)
    if suffix == ".parquet" and "labels" not in options:
        with pytest.raises(UserError, match=message):
            load_dataset(path, stream=True, **options)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1,2\r3,4\r", ("1", "2")),
        ("\n\na,b\n1,2\n\n3,4\n\n\n", ("a", "b")),
        ('"a\nb",c\r\n 1 , +2.\r\n"3",.4e1\r\n', ("a\nb", "c")),
        ("2020-01,12:30\n1,2\n3,4\n", ("2020-01", "12:30")),
        (",b\n1,2\n3,4\n", ("1", "b")),
        ("1st,3d\n1E0,2\n3,4\u2028\n", ("1st", "3d")),
        ("\ufeffa;b\r\n1,0;2,0e0\r\n3;4\r\n", ("a", "b")),
        ("1;2\n3;4", ("1", "2")),
        ("1,;2,\n3,0;4,0\n", ("1", "2")),
        ("a\tb, c\n1\t2\n3\t4\n", ("a", "b, c")),
        ("a|b;c\n1|2\n3|4\n", ("a", "b;c")),
        ("a;x,b\n1,2\n3,4\n", ("a;x", "b")),
        ("a:b\n1:2\n3:4\n", ("a", "b")),
        ('"a b" c\n1,0 2\n3 4\n', ("a b", "c")),
        ("a^b\n1^2,0\n3^4\n", ("a", "b")),
    ],
)
def test_csv_layouts_are_detected(tmp_path, text, names):
    path = tmp_path / "mine.csv"
    path.write_bytes(text.encode())
    table = read_table(path)
    assert table.names == names
    np.testing.assert_array_equal(table.columns, [[1.0, 3.0], [2.0, 4.0]])


def test_words_with_spaces_or_colons_stay_in_one_column(tmp_path):
    path = tmp_path / "mine.csv"
    for text in ("the fruit\nred apple\nred pear\n", "level\n1: low\n2: high\n"):
        path.write_text(text)
        assert len(read_table(path).names) == 1


def test_first_line_of_missing_values_is_an_example(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(",?\n1,2\n3,4\n")
    table = read_table(path)
    assert not table.named
    assert all(np.isnan(column[0]) for column in table.columns)


@given(
    rows=hnp.arrays(
        np.float64,
        st.tuples(st.integers(2, 5), st.integers(1, 3)),
        elements=st.floats(-1e30, 1e30) | st.just(np.nan),
    ),
    word=st.sampled_from(cells.MISSING_WORDS),
    header=st.booleans(),
    ends=st.sampled_from(["\n", "\r\n", "\r"]),
    separator=st.sampled_from(layout.SEPARATORS),
)
def test_csv_keeps_every_row(tmp_path_factory, rows, word, header, ends, separator):
    rows[-1, -1] = 5.0  # a trailing empty line is not a row
    names = tuple("abc"[: rows.shape[1]] if header else "123"[: rows.shape[1]])
    lines = [[word if np.isnan(one) else repr(float(one)) for one in row] for row in rows]
    text = "".join(separator.join(line) + ends for line in [names, *lines][not header :])
    path = tmp_path_factory.mktemp("table") / "a.csv"
    path.write_bytes(text.encode())
    table = read_table(path)
    assert table.names == names
    np.testing.assert_array_equal(np.stack(table.columns, axis=1), rows)


def test_csv_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes("1,2\n3,4\n".encode("utf-16"))
    with pytest.raises(UserError, match="not UTF-8 text"):
        load_dataset(path)
