"""Data: formats, splits, binarisation, identities, downloads and errors."""

import gzip
import http.server
import io
import json
import math
import os
import re
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings

from iwae.data import (
    BINARIZATIONS,
    DATASETS,
    binarisation,
    choose,
    dataset_files,
    draw,
    fetch,
    list_datasets,
    load_dataset,
    readers,
    test_sha256,
    verify,
)
from iwae.data.binarisation import binarise_at_random, resolve
from iwae.data.grey_levels import grey_to_bytes
from iwae.data.readers import DamagedError
from iwae.data.sampling import TEST_DRAW, TRAIN_DRAW
from iwae.data.splits import Options, Raw, assemble_splits
from iwae.errors import UserError
from iwae.files import file_content_sha256

REAL_DATA = os.environ.get("IWAE_DATA")
SYNTHETIC = ("camel", "two-clusters", "linear-2d", "four-gaussians", "circle")
SIZES = {"train": 60, "validation": 20, "test": 30}


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    """Hide this machine's data, cache and proxy from the tests."""
    monkeypatch.delenv("IWAE_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(dataset_files, "cache_dir", lambda: tmp_path / "cache")


# ------------------------------------------------------------------ tiny files of every format


def grey(n, seed=0):
    """Random grey levels; every image has a blank and a full row of pixels."""
    images = np.random.default_rng(seed).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    images[:, 0], images[:, 1] = 0, 255
    return images


def binary(n, seed=0):
    return (grey(n, seed) > 127).astype(np.uint8)


def idx(images, magic=b"\x00\x00\x08\x03"):
    return magic + struct.pack(">iii", *images.shape) + images.tobytes()


def amat(images, cell=" ", line="\n"):
    rows = images.reshape(len(images), -1).tolist()
    return "".join(cell.join(map(str, row)) + line for row in rows).encode()


def columns(images):
    """MATLAB's layout: one image per column, its pixels in column-major order."""
    return images.transpose(0, 2, 1).reshape(len(images), -1).T


def mat(**matrices):
    stream = io.BytesIO()
    scipy.io.savemat(stream, matrices, do_compression=True)
    return stream.getvalue()


CHARDATA = mat(data=columns(grey(60, 3)) / 255, testdata=columns(grey(30, 4)) / 255)
CONTENTS = {
    "mnist": {
        "train-images-idx3-ubyte": idx(grey(60, 1)),
        "t10k-images-idx3-ubyte": idx(grey(30, 2)),
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": idx(grey(60, 5)),
        "t10k-images-idx3-ubyte": idx(grey(30, 6)),
    },
    "mnist-static": {
        "binarized_mnist_train.amat": amat(binary(60, 7)),
        "binarized_mnist_valid.amat": amat(binary(20, 8)),
        "binarized_mnist_test.amat": amat(binary(30, 9)),
    },
    "omniglot": {"chardata.mat": CHARDATA},
}


def shrink(monkeypatch, name, mirrors=(), **checksums):
    """Shrink a named data set to the tiny files above; `checksums` replace those of its files."""

    def tiny(file):
        shapes = {split: (SIZES[split], *shape[1:]) for split, shape in file.shapes.items()}
        small = replace(
            file,
            shapes=shapes,
            mirrors=tuple(f"{mirror}/{file.name}.gz" for mirror in mirrors),
            md5=None,
            archive_md5=None,
        )
        if (content := CONTENTS[name].get(file.name)) is None:
            return small
        arrays = file.read(content, shapes).values()
        values = test_sha256(*arrays) if file.values_sha256 else None
        found = {"sha256": file_content_sha256(content), "values_sha256": values}
        return replace(small, **(found | checksums))

    variants = tuple(tuple(map(tiny, variant)) for variant in DATASETS[name].variants)
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], variants=variants))


def write(folder, name, *, packed=True):
    """Write the tiny files of a data set into a folder, compressed or not."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in CONTENTS[name].items():
        path = folder / (f"{file}.gz" if packed else file)
        path.write_bytes(gzip.compress(content) if packed else content)
    return folder


@pytest.fixture
def mnist(monkeypatch, tmp_path):
    """A folder with a tiny MNIST, and the function that loads it."""
    shrink(monkeypatch, "mnist")
    write(tmp_path / "data" / "mnist", "mnist")
    return partial(load_dataset, "mnist", data_dir=tmp_path / "data", download=False)


@pytest.fixture
def static(monkeypatch, tmp_path):
    shrink(monkeypatch, "mnist-static")
    write(tmp_path / "data" / "binarized_mnist", "mnist-static")
    return partial(load_dataset, "mnist-static", data_dir=tmp_path / "data", download=False)


# ---------------------------------------------------------------------------------- import


def test_import_loads_no_heavy_packages():
    heavy = "jax", "scipy", "sklearn", "pooch", "requests", "tqdm", "matplotlib", "platformdirs"
    heavy += "pyarrow", "narwhals", "PIL", "pandas"
    code = (
        "import sys, iwae.data as data; assert data.DATASETS and data.load_dataset; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_listing_needs_no_jax():
    code = "import sys, iwae.data as data; data.list_datasets(); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_unknown_attribute_raises():
    import iwae.data

    with pytest.raises(AttributeError, match="no_such_thing"):
        iwae.data.no_such_thing  # noqa: B018


# ------------------------------------------------------------------------------ draw (device)


def test_draw_blank_and_full_pixels_are_certain():
    raw = jnp.array([0, 255], jnp.uint8)
    keys = jax.random.split(jax.random.key(0), 100_000)
    drawn = jax.jit(jax.vmap(lambda key: draw(raw, key, binarization="dynamic")))(keys)
    assert drawn.dtype == jnp.float32
    assert float(drawn[:, 0].max()) == 0
    assert float(drawn[:, 1].min()) == 1


def test_draw_handles_extreme_uniform_numbers(monkeypatch):
    """A uniform number is exactly 0 once in 8 million: a blank pixel must stay blank."""
    raw = jnp.array([0, 1, 255], jnp.uint8)
    for uniform, expected in ((0.0, [0, 1, 1]), (1 - 2**-24, [0, 0, 1])):
        monkeypatch.setattr(
            jax.random, "uniform", lambda _, shape, dtype, u=uniform: jnp.full(shape, u, dtype)
        )
        drawn = draw(raw, jax.random.key(0), binarization="dynamic")
        np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_draw_mean_matches_the_grey_levels(dtype):
    n, levels = 40_000, np.array([1, 20, 127, 128, 230, 254], np.uint8)
    probability = levels / 255
    raw = levels if dtype == np.uint8 else probability.astype(np.float32)
    keys = jax.random.split(jax.random.key(1), n)
    drawn = jax.vmap(lambda key: draw(jnp.asarray(raw), key, binarization="dynamic"))(keys)
    mean = np.asarray(drawn, np.float64).mean(0)
    error = np.sqrt(probability * (1 - probability) / n)
    assert np.all(np.abs(mean - probability) < 5 * error)
    # The test has the power to tell v / 255 from v / 250.
    assert np.max(np.abs(levels / 250 - probability) / error) > 5
    assert set(np.unique(drawn)) == {0.0, 1.0}


def test_draw_pixels_and_keys_are_independent():
    raw = jnp.full(4096, 128, jnp.uint8)
    one, two = (
        draw(raw, key, binarization="dynamic") for key in jax.random.split(jax.random.key(2))
    )
    agreement = float((one == two).mean())
    assert abs(agreement - 0.5) < 5 * 0.5 / 64
    assert abs(float((one[:-1] == one[1:]).mean()) - 0.5) < 5 * 0.5 / 64


@pytest.mark.parametrize("binarization", ["static", "threshold", "none"])
def test_draw_only_casts_unless_binarization_is_dynamic(binarization):
    bits, load_real = np.array([0, 1, 1], np.uint8), np.array([-1.5, 0.25], np.float32)
    key = jax.random.key(0)
    np.testing.assert_array_equal(draw(bits, key, binarization=binarization), [0.0, 1.0, 1.0])
    np.testing.assert_array_equal(draw(load_real, key, binarization=binarization), load_real)


def test_draw_refuses_an_unknown_binarization():
    with pytest.raises(UserError, match="dynamic, static, threshold, none"):
        draw(np.zeros(3, np.uint8), jax.random.key(0), binarization="sometimes")


# ---------------------------------------------------------------- hashes, choices, host draws


def test_sha256_depends_on_dtype_shape_and_values_but_not_memory_layout():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    same = [np.asfortranarray(array), array.astype(">f4"), np.stack([array, array], -1)[..., 0]]
    assert {test_sha256(other) for other in same} == {test_sha256(array)}
    others = [array.reshape(3, 2), array.astype(np.float64), array.view(np.int32), array + 1]
    assert len({test_sha256(other) for other in [array, *others]}) == 5


def test_sha256_value_is_stable():
    expected = "ff15ed127ed365d29634c702dfdfeda0e3d82909141599fcf4fd516820d69db6"
    assert test_sha256(np.array([[0, 1], [255, 7]], np.uint8)) == expected


@given(st.integers(1, 300), st.data(), st.integers(0, 9))
def test_choose_draws_distinct_rows(n, data, seed):
    count = data.draw(st.integers(0, n))
    rows = choose(n, count, seed=seed)
    assert len(rows) == count == len(set(rows.tolist()))
    assert np.all(np.diff(rows) > 0)
    assert count == 0 or (rows[0] >= 0 and rows[-1] < n)
    np.testing.assert_array_equal(rows, choose(n, count, seed=seed))


def test_choose_depends_on_the_seed_and_is_not_a_prefix():
    one, two = choose(1000, 100, seed=0), choose(1000, 100, seed=1)
    assert not np.array_equal(one, two)
    # Mean row of a uniform sample: 499.5 with a standard error of about 27; a prefix has 49.5.
    assert abs(one.mean() - 499.5) < 5 * 27


@settings(max_examples=50)
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 5))),
    st.data(),
    st.integers(0, 3),
)
def test_host_draws_depend_only_on_the_row_index(pixels, data, seed):
    rows = np.array(data.draw(st.lists(st.integers(0, len(pixels) - 1))), int)
    everything = binarise_at_random(pixels, seed=seed, stream=TRAIN_DRAW)
    np.testing.assert_array_equal(
        binarise_at_random(pixels[rows], rows, seed=seed, stream=TRAIN_DRAW), everything[rows]
    )
    assert np.all(everything[pixels == 0] == 0)
    assert np.all(everything[pixels == 255] == 1)


def test_host_draws_handle_extreme_uniform_numbers(monkeypatch):
    pixels = np.array([[0, 1, 255]], np.uint8)
    for uniform, expected in ((0.0, [[0, 1, 1]]), (1 - 2**-53, [[0, 0, 1]])):
        generator = SimpleNamespace(
            bit_generator=SimpleNamespace(state=0, advance=lambda _: None),
            random=lambda shape, u=uniform: np.full(shape, u),
        )
        monkeypatch.setattr(
            binarisation, "sampling_generator", lambda *_, generator=generator: generator
        )
        np.testing.assert_array_equal(
            binarise_at_random(pixels, seed=0, stream=TEST_DRAW), expected
        )


def test_host_draws_continue_across_blocks_of_rows():
    """Beyond the rows drawn at a time, the stream must continue where the last block ended."""
    pixels = np.full((2500, 3), 128, np.uint8)
    drawn = binarise_at_random(pixels, seed=0, stream=TEST_DRAW)
    uniform = np.random.Generator(np.random.PCG64([0, TEST_DRAW])).random((2500, 3))
    np.testing.assert_array_equal(drawn, uniform < 128 / 255)


def test_host_draws_have_the_right_mean_and_separate_streams():
    pixels = np.full((20_000, 2), [10, 200], np.uint8)
    one = binarise_at_random(pixels, seed=0, stream=TRAIN_DRAW)
    probability = np.array([10, 200]) / 255
    error = np.sqrt(probability * (1 - probability) / len(pixels))
    assert np.all(np.abs(one.mean(0) - probability) < 5 * error)
    for other in ({"seed": 1, "stream": TRAIN_DRAW}, {"seed": 0, "stream": TEST_DRAW}):
        assert not np.array_equal(binarise_at_random(pixels, **other), one)


# ------------------------------------------------------- options allowed for a kind of values

ALLOWED = {
    ("binary", "bernoulli"): {None: "none", "none": "none", "static": "none", "threshold": "none"},
    ("binary", "gaussian"): {None: "none", "none": "none"},
    ("grey", "bernoulli"): {
        None: "dynamic",
        "dynamic": "dynamic",
        "static": "static",
        "threshold": "threshold",
    },
    ("grey", "gaussian"): {None: "none", "none": "none"},
    ("real", "bernoulli"): {},
    ("real", "gaussian"): {None: "none", "none": "none"},
}
DEFAULT = {"binary": "bernoulli", "grey": "bernoulli", "real": "gaussian"}


@pytest.mark.parametrize(
    ("values", "observation", "binarization"),
    list(product(DEFAULT, (None, "bernoulli", "gaussian"), (None, *BINARIZATIONS))),
)
def test_observation_and_binarization_are_resolved_or_refused(values, observation, binarization):
    kind = observation or DEFAULT[values]
    if binarization in ALLOWED[values, kind]:
        expected = (kind, ALLOWED[values, kind][binarization])
        assert resolve(values, observation, binarization) == expected
    else:
        with pytest.raises(UserError, match=r"use|binarise"):
            resolve(values, observation, binarization)


def test_unknown_option_values_are_refused(mnist):
    with pytest.raises(UserError, match="unknown binarization 'dynamics'; known: dynamic, "):
        mnist(binarization="dynamics")
    with pytest.raises(UserError, match="unknown observation 'weibull'"):
        mnist(observation="weibull")


# ---------------------------------------------------------------------------- file formats

IDX_SHAPES = {"train": (4, 28, 28)}


def test_idx_images_are_read():
    images = grey(4)
    read = readers.read_idx_images(idx(images), IDX_SHAPES)
    assert list(read) == ["train"]
    np.testing.assert_array_equal(read["train"], images.reshape(4, 784))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (idx(grey(4))[:-1], "truncated: 3,135 bytes of pixels, not 3,136"),
        (idx(grey(4)) + b"\0", "too long: 3,137 bytes"),
        (idx(grey(4))[:10], "truncated: 10 bytes, less than the 16-byte header"),
        (idx(grey(5)), "holds images of shape 5 x 28 x 28, not 4 x 28 x 28"),
        (idx(grey(4)[:, :27]), "4 x 27 x 28"),
        (idx(grey(4), b"\x00\x00\x08\x01"), "labels, not of images"),
        (idx(grey(4), b"\x00\x00\x0d\x03"), "not an idx file of images: starts with 0x00000d03"),
        (b"<html>404</html>", "not an idx file"),
    ],
)
def test_invalid_idx_is_refused(content, reason):
    with pytest.raises(DamagedError, match=re.escape(reason)):
        readers.read_idx_images(content, IDX_SHAPES)


def test_unpack_detects_gzip_by_content():
    assert readers.unpack(gzip.compress(b"hello")) == b"hello"
    assert readers.unpack(b"hello") == b"hello"


@pytest.mark.parametrize("cut", [3, 9, 15, 200, -9, -4, -1])
def test_truncated_gzip_is_refused(cut):
    with pytest.raises(DamagedError, match="truncated"):
        readers.unpack(gzip.compress(idx(grey(1)))[:cut])


def test_corrupt_gzip_is_refused():
    packed = bytearray(gzip.compress(idx(grey(1))))
    for position in (2, 300, len(packed) - 6):
        damaged = packed.copy()
        damaged[position] ^= 0xFF
        with pytest.raises(DamagedError, match=r"corrupt gzip|truncated"):
            readers.unpack(bytes(damaged))
    with pytest.raises(DamagedError, match="corrupt gzip"):
        readers.unpack(bytes(packed) + b"garbage")
    with pytest.raises(DamagedError, match="empty"):
        readers.unpack(b"")


@settings(max_examples=50)
@given(
    hnp.arrays(
        np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=st.integers(0, 1)
    ),
    st.sampled_from([" ", "\t", "  "]),
    st.sampled_from(["\n", "\r\n", " \n", "\n\n"]),
    st.booleans(),
)
def test_amat_is_read_in_any_layout(rows, cell, line, ends):
    content = amat(rows, cell, line)
    content = content if ends else content.rstrip()
    read = readers.read_amat(content, {"test": (len(rows), rows.shape[1], 1)})["test"]
    np.testing.assert_array_equal(read, rows)
    assert read.dtype == np.uint8


def test_published_amat_layout_uses_the_fast_path(monkeypatch):
    monkeypatch.setattr(readers, "_amat_lines", None)
    rows = binary(5000)[:, 0]
    read = readers.read_amat(amat(rows), {"test": (5000, 28, 1)})["test"]
    np.testing.assert_array_equal(read, rows)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"0 1 0\n1 1\n", "line 2 has 2 values, not 3"),
        (b"0 1 0\n1 1 1 1\n", "line 2 has 4 values, not 3"),
        (b"0 1 0\n1 2 1\n", "line 2, value 2 is '2', not 0 or 1"),
        (b"0 1 0\n1 -1 1\n", "line 2, value 2 is '-1'"),
        (b"0 1 0\n1 0.5 1\n", "line 2, value 2 is '0.5'"),
        (b"0 1 0\n1 x 1\n", "line 2, value 2 is 'x'"),
        (b"0 1 0\n1 / 1\n", "line 2, value 2 is '/'"),
        (b"0 1 0\n1 1 \n11", "line 2 has 2 values"),
        (b"0 1 0\n", "truncated: 1 rows, not 2"),
        (b"\n", "truncated: 0 rows, not 2"),
        (b"0 1 0\n" * 3, "too long: 3 rows, not 2"),
        (b"<!DOCTYPE html>", "line 1 has 2 values"),
    ],
)
def test_invalid_amat_is_refused(content, reason):
    with pytest.raises(DamagedError, match=re.escape(reason)):
        readers.read_amat(content, {"test": (2, 3, 1)})


MAT_SHAPES = {"train": (60, 28, 28), "test": (30, 28, 28)}


def test_mat_images_are_upright_and_row_major():
    read = readers.read_omniglot_mat(CHARDATA, MAT_SHAPES)
    assert read["train"].dtype == read["test"].dtype == np.uint8
    np.testing.assert_array_equal(read["train"].reshape(60, 28, 28), grey(60, 3))
    np.testing.assert_array_equal(read["test"].reshape(30, 28, 28), grey(30, 4))


def test_mat_values_that_are_not_bytes_stay_floating_point():
    images = np.random.default_rng(0).random((60, 28, 28))
    content = mat(data=columns(images), testdata=columns(grey(30)) / 255)
    read = readers.read_omniglot_mat(content, MAT_SHAPES)
    assert read["train"].dtype == np.float32
    np.testing.assert_array_equal(read["train"].reshape(images.shape), images.astype(np.float32))
    assert read["test"].dtype == np.uint8


TEST_COLUMNS = columns(grey(30)) / 255


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (mat(testdata=TEST_COLUMNS), "has no variable 'data'"),
        (mat(data=columns(grey(60)) / 255), "has no variable 'testdata'"),
        (
            mat(data=columns(grey(59)) / 255, testdata=TEST_COLUMNS),
            "'data' is 784 x 59, not 784 x 60",
        ),
        (mat(data=columns(grey(60)).T / 255, testdata=TEST_COLUMNS), "'data' is 60 x 784"),
        (mat(data=columns(grey(60)), testdata=TEST_COLUMNS), "'data' has values outside [0, 1]"),
        (
            mat(data=columns(grey(60)) / 255 - 0.01, testdata=TEST_COLUMNS),
            "'data' has values outside",
        ),
        (
            mat(data=np.full((784, 60), np.nan), testdata=TEST_COLUMNS),
            "'data' has values outside",
        ),
        (mat(data="text", testdata=TEST_COLUMNS), "'data' is not an array of numbers"),
        (CHARDATA[:-100], "truncated, corrupt, or not a MATLAB 5 file"),
        (CHARDATA[:60], "truncated, corrupt, or not a MATLAB 5 file"),
        (b"not a matrix " * 100, "truncated, corrupt, or not a MATLAB 5 file"),
    ],
)
def test_invalid_mat_is_refused(content, reason):
    with pytest.raises(DamagedError, match=re.escape(reason)):
        readers.read_omniglot_mat(content, MAT_SHAPES)


@given(hnp.arrays(np.uint8, (3, 4)))
def test_bytes_round_trip_through_floats(levels):
    for floats in (levels / np.float32(255), (levels / 255).astype(np.float32)):
        np.testing.assert_array_equal(grey_to_bytes(floats), levels)


# ---------------------------------------------------- data sets: splits, binarisation, identity


def test_dynamic_keeps_grey_levels_and_draws_the_test_set_once(mnist):
    data = mnist()
    assert (data.name, data.observation, data.binarization) == ("mnist", "bernoulli", "dynamic")
    np.testing.assert_array_equal(data.train, grey(60, 1).reshape(60, 784))
    assert data.validation.shape == (0, 784)
    assert data.test.dtype == np.uint8
    levels = grey(30, 2).reshape(30, 784)
    assert set(np.unique(data.test)) == {0, 1}
    assert data.test[levels == 0].max() == 0
    assert data.test[levels == 255].min() == 1
    assert abs(np.corrcoef(data.test.ravel(), levels.ravel())[0, 1]) > 0.4
    assert data.train_mean.dtype == np.float64
    np.testing.assert_allclose(data.train_mean, grey(60, 1).reshape(60, 784).mean(0) / 255)
    assert data.shape == (28, 28)
    assert data.log_density is None


def test_static_draws_everything_once(mnist):
    data = mnist(binarization="static", validation=10)
    levels = grey(60, 1).reshape(60, 784)
    everything = mnist(binarization="static")
    assert everything.train.dtype == np.uint8
    assert set(np.unique(everything.train)) == {0, 1}
    assert everything.train[levels == 255].min() == 1
    assert not np.array_equal(everything.train, levels > 127)
    np.testing.assert_allclose(everything.train_mean, everything.train.mean(0))
    # The draw of an image does not depend on whether it is held out.
    rows = choose(60, 10, seed=0)
    np.testing.assert_array_equal(data.validation, everything.train[rows])
    np.testing.assert_array_equal(data.train, np.delete(everything.train, rows, axis=0))


def test_threshold_is_above_a_half(mnist):
    data = mnist(binarization="threshold", validation=5)
    levels = grey(60, 1).reshape(60, 784)
    rows = choose(60, 5, seed=0)
    np.testing.assert_array_equal(data.train, np.delete(levels, rows, axis=0) / 255 > 0.5)
    np.testing.assert_array_equal(data.validation, levels[rows] / 255 > 0.5)
    np.testing.assert_array_equal(data.test, grey(30, 2).reshape(30, 784) / 255 > 0.5)


def test_grey_levels_under_a_gaussian_are_in_the_unit_interval(mnist):
    data = mnist(observation="gaussian", validation=5)
    assert data.binarization == "none"
    for split in (data.train, data.validation, data.test):
        assert split.dtype == np.float32
        assert (split.min(), split.max()) == (0, 1)
    np.testing.assert_allclose(data.test, grey(30, 2).reshape(30, 784) / 255, rtol=1e-6)
    np.testing.assert_allclose(data.train_mean, data.train.mean(0, dtype=np.float64))
    assert mnist(binarization="none", observation="gaussian").binarization == "none"


def test_grey_levels_under_bernoulli_need_binarization(mnist):
    with pytest.raises(UserError, match="not a density"):
        mnist(binarization="none")
    with pytest.raises(UserError, match="contradicts"):
        mnist(binarization="dynamic", observation="gaussian")


def test_validation_is_a_seeded_draw_of_training_rows(mnist):
    data = mnist(validation=12, seed=3)
    rows = choose(60, 12, seed=3)
    levels = grey(60, 1).reshape(60, 784)
    np.testing.assert_array_equal(data.train, np.delete(levels, rows, axis=0))
    assert data.validation.shape == (12, 784)
    assert set(np.unique(data.validation)) == {0, 1}
    assert data.validation[levels[rows] == 255].min() == 1
    np.testing.assert_allclose(data.train_mean, data.train.mean(0) / 255)
    assert data.identity["validation"] == {
        "rule": "12 training rows chosen by numpy PCG64([seed, 3])",
        "count": 12,
        "seed": 3,
    }
    assert not np.array_equal(mnist(validation=12, seed=4).train, data.train)


@pytest.mark.parametrize("validation", [-1, 60, 61, "half", True, False])
def test_invalid_validation_is_refused(mnist, validation):
    with pytest.raises(UserError, match="validation"):
        mnist(validation=validation)


@pytest.mark.parametrize("name", ["seed", "binarization_seed"])
def test_negative_seeds_are_refused(mnist, name):
    with pytest.raises(UserError, match=f"{name} must not be negative"):
        mnist(**{name: -1})


def test_test_set_depends_only_on_the_binarization_seed(mnist):
    one = mnist()
    other = mnist(seed=5, validation=7)
    assert other.identity["test_sha256"] == one.identity["test_sha256"] == test_sha256(one.test)
    assert mnist(binarization="static").identity["test_sha256"] == test_sha256(one.test)
    assert mnist(binarization_seed=1).identity["test_sha256"] != test_sha256(one.test)
    assert mnist().identity == one.identity


def test_authors_validation_follows_the_rule_of_the_dataset(mnist, monkeypatch):
    from iwae.data.held_out import HeldOut

    last = lambda n: HeldOut(np.arange(n)[:-4], np.arange(n)[-4:], "the last 4")  # noqa: E731
    monkeypatch.setitem(DATASETS, "mnist", replace(DATASETS["mnist"], authors=last))
    data = mnist(validation="authors", binarization="threshold")
    levels = grey(60, 1).reshape(60, 784)
    np.testing.assert_array_equal(data.train, levels[:-4] > 127)
    np.testing.assert_array_equal(data.validation, levels[-4:] > 127)
    assert data.identity["validation"] == {"rule": "the last 4", "count": 4, "seed": None}
    with pytest.raises(UserError, match="validation of digits must be a number of examples, not"):
        load_dataset("digits", validation="authors")


def test_authors_rules_hold_out_the_published_rows():
    mnist = DATASETS["mnist"].authors(60_000)
    np.testing.assert_array_equal(mnist.validation, np.arange(59_600, 60_000))
    np.testing.assert_array_equal(mnist.train, np.arange(59_600))
    omniglot = DATASETS["omniglot"].authors(24_345)
    order = np.random.RandomState(seed=123).permutation(24_345)
    np.testing.assert_array_equal(omniglot.train, order[:-1345])
    np.testing.assert_array_equal(omniglot.validation, order[-1345:])


def test_identity_is_json_and_contains_no_path(mnist, tmp_path):
    identity = mnist(validation=3).identity
    assert json.loads(json.dumps(identity)) == identity
    assert str(tmp_path) not in json.dumps(identity)
    assert identity["sizes"] == {"train": 57, "validation": 3, "test": 30}
    assert identity["binarization_seed"] == 0
    names = CONTENTS["mnist"]
    assert identity["files"] == [
        {"name": name, "sha256": file_content_sha256(names[name]), "verified": "sha256"}
        for name in names
    ]


def test_identity_does_not_depend_on_compression(mnist, tmp_path):
    packed = mnist().identity
    for path in (tmp_path / "data" / "mnist").iterdir():
        path.unlink()
    write(tmp_path / "data" / "mnist", "mnist", packed=False)
    assert mnist().identity == packed


def test_arrays_are_read_only(mnist):
    data = mnist(validation=4)
    for split in (data.train, data.validation, data.test):
        with pytest.raises(ValueError, match="read-only"):
            split[0, 0] = 1


def test_shape_may_be_any_of_the_same_size(mnist):
    assert mnist(shape=[14, 56]).shape == (14, 56)
    assert mnist(shape=(14, 56)).identity["shape"] == [14, 56]
    for shape in ([28, 27], [], [-28, -28]):
        with pytest.raises(UserError, match="an example has 784 values"):
            mnist(shape=shape)


def test_static_mnist_has_its_own_validation_set(static):
    data = static()
    np.testing.assert_array_equal(data.train, binary(60, 7).reshape(60, 784))
    np.testing.assert_array_equal(data.validation, binary(20, 8).reshape(20, 784))
    np.testing.assert_array_equal(data.test, binary(30, 9).reshape(30, 784))
    assert (data.binarization, data.observation) == ("none", "bernoulli")
    assert data.identity["binarization_seed"] is None
    np.testing.assert_allclose(data.train_mean, data.train.mean(0))
    for choice in ({"validation": 20}, {"validation": "authors"}, {"binarization": "static"}):
        assert static(**choice).identity == data.identity
    for validation in (0, 10):
        with pytest.raises(UserError, match="validation set of its own"):
            static(validation=validation)
    with pytest.raises(UserError, match="already binary"):
        static(binarization="dynamic")


def test_omniglot_accepts_either_file(monkeypatch, tmp_path):
    shrink(monkeypatch, "omniglot")
    folder = tmp_path / "omniglot"
    folder.mkdir()
    load = partial(load_dataset, "omniglot", data_dir=tmp_path, download=False)
    other = mat(data=columns(grey(60, 11)) / 255, testdata=columns(grey(30, 12)) / 255)
    (folder / "omniglot28.mat").write_bytes(other)
    with pytest.raises(UserError, match=r"omniglot28\.mat cannot be used: .* not the published"):
        load()
    files = DATASETS["omniglot"].variants
    trusted = (files[0], (replace(files[1][0], sha256=file_content_sha256(other)),))
    monkeypatch.setitem(DATASETS, "omniglot", replace(DATASETS["omniglot"], variants=trusted))
    data = load()
    np.testing.assert_array_equal(data.train.reshape(60, 28, 28), grey(60, 11))
    assert data.identity["files"][0]["name"] == "omniglot28.mat"
    assert "reconstruction" in data.identity["files"][0]["note"]
    (folder / "chardata.mat").write_bytes(CHARDATA)
    data = load()
    np.testing.assert_array_equal(data.train.reshape(60, 28, 28), grey(60, 3))
    assert [file["name"] for file in data.identity["files"]] == ["chardata.mat"]


def test_omniglot_without_a_known_checksum_is_verified_by_structure(monkeypatch, tmp_path):
    shrink(monkeypatch, "omniglot", sha256=None)
    write(tmp_path / "omniglot", "omniglot")
    (file,) = load_dataset("omniglot", data_dir=tmp_path).identity["files"]
    assert file == {
        "name": "chardata.mat",
        "sha256": file_content_sha256(CHARDATA),
        "verified": "structure",
    }


def test_dynamic_draws_of_float_grey_levels_have_their_mean(monkeypatch, tmp_path):
    content = mat(data=columns(grey(60)) / 256, testdata=np.full((784, 30), 0.3))
    shrink(monkeypatch, "omniglot", sha256=None)
    (tmp_path / "chardata.mat").write_bytes(content)
    data = load_dataset("omniglot", data_dir=tmp_path)
    assert data.train.dtype == np.float32
    np.testing.assert_allclose(data.train_mean, grey(60).reshape(60, 784).mean(0) / 256, rtol=1e-6)
    assert abs(data.test.mean() - 0.3) < 5 * math.sqrt(0.21 / data.test.size)


# -------------------------------------------------------------------------- finding the files

PLACES = {
    "mnist": ("mnist", ".", "MNIST/raw"),
    "mnist-static": ("binarized_mnist", "."),
    "omniglot": ("omniglot", "."),
    "fashion-mnist": ("fashion-mnist", "FashionMNIST/raw", "."),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name, places in PLACES.items() for place in places]
)
def test_files_are_found_in_their_usual_folders(monkeypatch, tmp_path, name, place, packed):
    shrink(monkeypatch, name)
    write(tmp_path / place, name, packed=packed)
    data = load_dataset(name, data_dir=tmp_path, download=False)
    assert len(data.train) == 60
    assert all(file["verified"] == "sha256" for file in data.identity["files"])
    paths = fetch(name, data_dir=tmp_path)
    assert [path.parent.resolve() for path in paths] == [(tmp_path / place).resolve()] * len(paths)
    rows = verify(name, tmp_path)
    assert all(ok for _, ok, _ in rows)
    assert len(rows) == len(CONTENTS[name])


def test_dotted_file_names_are_found(monkeypatch, tmp_path):
    shrink(monkeypatch, "mnist")
    for name, content in CONTENTS["mnist"].items():
        (tmp_path / name.replace("-idx3", ".idx3")).write_bytes(content)
    assert len(load_dataset("mnist", data_dir=tmp_path, download=False).train) == 60


def test_iwae_data_names_the_data_folder(monkeypatch, tmp_path):
    shrink(monkeypatch, "mnist")
    write(tmp_path / "one" / "mnist", "mnist")
    monkeypatch.setenv("IWAE_DATA", str(tmp_path / "one"))
    assert len(load_dataset("mnist", download=False).train) == 60
    (tmp_path / "two").mkdir()
    with pytest.raises(UserError, match="not on this machine"):
        load_dataset("mnist", data_dir=tmp_path / "two", download=False)
    monkeypatch.setenv("IWAE_DATA", str(tmp_path / "three"))
    with pytest.raises(UserError, match=r"IWAE_DATA is .* not a folder"):
        load_dataset("mnist", download=False)


def test_cache_is_searched_second_and_completes_a_folder(monkeypatch, tmp_path):
    shrink(monkeypatch, "mnist")
    write(dataset_files.cache_dir() / "mnist", "mnist")
    assert len(load_dataset("mnist", download=False).train) == 60
    folder = write(tmp_path / "data", "mnist")
    train, test = fetch("mnist", data_dir=folder)
    assert train.parent == test.parent == folder
    test.unlink()
    train, test = fetch("mnist", data_dir=folder)
    assert (train.parent, test.parent) == (dataset_files.cache_dir() / "mnist",) * 2
    (dataset_files.cache_dir() / "mnist" / train.name).unlink()
    train, test = fetch("mnist", data_dir=folder)
    assert (train.parent, test.parent) == (folder, dataset_files.cache_dir() / "mnist")


def test_data_dir_must_be_a_folder(mnist, tmp_path):
    with pytest.raises(UserError, match=r"data_dir is .*nowhere.*not a folder"):
        mnist(data_dir=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda packed: packed[:-20], "truncated"),
        (lambda packed: packed[:500], "truncated"),
        (lambda packed: b"", "empty"),  # noqa: ARG005
        (lambda packed: gzip.compress(readers.unpack(packed)[:-1]), "truncated: 47,039 bytes"),
        (lambda packed: gzip.compress(idx(grey(60, 99))), "not the published one"),  # noqa: ARG005
        (lambda packed: gzip.compress(idx(grey(61))), "61 x 28 x 28, not 60 x 28 x 28"),  # noqa: ARG005
    ],
)
def test_damaged_files_are_refused_by_name_and_reason(mnist, tmp_path, damage, reason):
    path = tmp_path / "data" / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=reason) as caught:
        mnist()
    assert str(path) in str(caught.value)
    (_, ok, message), (_, other_ok, _) = verify("mnist", tmp_path / "data")
    assert (ok, other_ok) == (False, True)
    assert re.search(reason, message)


def test_recompressed_copy_is_accepted(mnist, tmp_path):
    path = tmp_path / "data" / "mnist" / "train-images-idx3-ubyte.gz"
    packed = gzip.compress(readers.unpack(path.read_bytes()), compresslevel=1, mtime=1)
    assert packed != path.read_bytes()
    path.write_bytes(packed)
    assert mnist().identity["files"][0]["verified"] == "sha256"


def test_amat_in_another_layout_is_verified_by_its_values(static, tmp_path):
    path = tmp_path / "data" / "binarized_mnist" / "binarized_mnist_test.amat.gz"
    path.write_bytes(amat(binary(30, 9), line="\r\n"))
    data = static()
    assert [file["verified"] for file in data.identity["files"]] == ["sha256", "sha256", "values"]
    np.testing.assert_array_equal(data.test, binary(30, 9).reshape(30, 784))
    path.write_bytes(amat(binary(30, 10), line="\r\n"))
    with pytest.raises(UserError, match="not the published one"):
        static()


def test_mnist_in_place_of_fashion_mnist_is_detected(monkeypatch, tmp_path):
    """Both use the same file names, and the content of Fashion-MNIST has no known checksum."""
    shrink(monkeypatch, "mnist")
    shrink(monkeypatch, "fashion-mnist", sha256=None)
    write(tmp_path, "mnist")
    with pytest.raises(UserError, match="file of the data set 'mnist'"):
        load_dataset("fashion-mnist", data_dir=tmp_path, download=False)


def test_published_archive_is_verified_by_its_md5(monkeypatch, tmp_path):
    import hashlib

    shrink(monkeypatch, "fashion-mnist", sha256=None)
    write(tmp_path, "fashion-mnist")
    source = DATASETS["fashion-mnist"]
    checksums = {
        file.name: hashlib.md5((tmp_path / f"{file.name}.gz").read_bytes()).hexdigest()  # noqa: S324
        for file in source.variants[0]
    }
    files = tuple(replace(file, archive_md5=checksums[file.name]) for file in source.variants[0])
    monkeypatch.setitem(DATASETS, "fashion-mnist", replace(source, variants=(files,)))
    load = partial(load_dataset, "fashion-mnist", data_dir=tmp_path, download=False)
    assert [file["verified"] for file in load().identity["files"]] == ["md5", "md5"]
    for file in files:
        (tmp_path / f"{file.name}.gz").write_bytes(CONTENTS["fashion-mnist"][file.name])
    assert [file["verified"] for file in load().identity["files"]] == ["structure", "structure"]


# ---------------------------------------------------------------------------------- download


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):  # noqa: ARG002
        self.server.requests.append(self.path)


@contextmanager
def serving(folder):
    """Serve a folder over HTTP; yields the address and the list of requests."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def mirror(tmp_path):
    folder = write(tmp_path / "mirror", "mnist")
    with serving(folder) as (address, requests):
        yield address, requests, folder


NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens


def cached_files():
    folder = dataset_files.cache_dir() / "mnist"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_download_fills_the_cache_once(monkeypatch, mirror, capsys):
    address, requests, _ = mirror
    shrink(monkeypatch, "mnist", [address])
    data = load_dataset("mnist")
    np.testing.assert_array_equal(data.train, grey(60, 1).reshape(60, 784))
    assert cached_files() == ["t10k-images-idx3-ubyte.gz", "train-images-idx3-ubyte.gz"]
    first = len(requests)
    assert load_dataset("mnist").identity == data.identity
    assert fetch("mnist") == [
        dataset_files.cache_dir() / "mnist" / f"{n}.gz" for n in CONTENTS["mnist"]
    ]
    assert len(requests) == first
    assert capsys.readouterr() == ("", "")


def test_next_mirror_is_tried_after_a_failure(monkeypatch, mirror, tmp_path):
    good, _, _ = mirror
    bad = write(tmp_path / "bad", "mnist")
    for path in bad.iterdir():
        path.write_bytes(path.read_bytes()[:-50])
    with serving(bad) as (truncated, requests):
        shrink(monkeypatch, "mnist", [NOWHERE, f"{good}/missing", truncated, good])
        assert len(fetch("mnist")) == 2
        assert any("train-images" in request for request in requests)
    assert all(ok for _, ok, _ in verify("mnist"))


def test_wrong_content_from_a_mirror_is_refused(monkeypatch, mirror):
    address, _, folder = mirror
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(grey(60, 99))))
    shrink(monkeypatch, "mnist", [address])
    with pytest.raises(UserError, match="its content is not the published one"):
        fetch("mnist")
    assert cached_files() == []


def test_download_of_unknown_content_is_refused(monkeypatch, mirror):
    """A local file may be verified by its structure, but a download may not."""
    address, _, _ = mirror
    shrink(monkeypatch, "mnist", [address], sha256=None)
    with pytest.raises(UserError, match="its content is not the published one"):
        fetch("mnist")
    assert cached_files() == []


def test_failed_download_lists_files_addresses_and_folders(monkeypatch, mirror, tmp_path):
    address, requests, _ = mirror
    shrink(monkeypatch, "mnist", [NOWHERE, f"{address}/missing"])
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError) as caught:
        load_dataset("mnist", data_dir=tmp_path / "mine")
    message = str(caught.value)
    for name in CONTENTS["mnist"]:
        assert f"{name} (plain or .gz)" in message
        assert f"{NOWHERE}/{name}.gz" in message
        assert f"{address}/missing/{name}.gz" in message
    assert "(no connection)" in message
    assert "(HTTP 404)" in message
    assert str(tmp_path / "mine" / "mnist") in message
    assert str(dataset_files.cache_dir() / "mnist") in message
    assert "IWAE_DATA" in message
    # The second file is not requested once every address of the first has failed.
    assert requests
    assert all("train-images" in request for request in requests)
    assert cached_files() == []


def test_nothing_is_downloaded_unless_allowed(monkeypatch, mirror):
    address, requests, _ = mirror
    shrink(monkeypatch, "mnist", [address])
    with pytest.raises(UserError, match=r"not on this machine\. Missing") as caught:
        load_dataset("mnist", download=False)
    assert address in str(caught.value)
    assert not requests


def test_damaged_cached_file_is_downloaded_again(monkeypatch, mirror):
    address, _, _ = mirror
    shrink(monkeypatch, "mnist", [address])
    train, _ = fetch("mnist")
    train.write_bytes(train.read_bytes()[:100])
    with pytest.raises(UserError, match=re.escape(f"{train} cannot be used: truncated")):
        load_dataset("mnist", download=False)
    load_dataset("mnist")
    assert all(ok for _, ok, _ in verify("mnist"))


def test_damaged_user_file_is_never_replaced(monkeypatch, mirror, tmp_path):
    address, requests, _ = mirror
    shrink(monkeypatch, "mnist", [address])
    folder = write(tmp_path / "mine", "mnist")
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"mine")
    with pytest.raises(UserError, match="not an idx file"):
        load_dataset("mnist", data_dir=folder)
    assert (folder / "train-images-idx3-ubyte.gz").read_bytes() == b"mine"
    assert not requests


@pytest.mark.parametrize(("terminal", "progress"), list(product([True, False], repeat=2)))
def test_progress_bar_needs_a_terminal_and_the_option(monkeypatch, mirror, terminal, progress):
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    shrink(monkeypatch, "mnist", [mirror[0]])
    fetch("mnist", progress=progress)
    assert ("train-images-idx3-ubyte" in stream.getvalue()) == (terminal and progress)


def test_verify_reports_missing_files(monkeypatch):
    shrink(monkeypatch, "mnist")
    for name, ok, message in verify("mnist"):
        assert name in CONTENTS["mnist"]
        assert not ok
        assert "iwae data fetch mnist" in message


# --------------------------------------------------------------------------- the catalogue


def test_catalogue_entries_are_consistent():
    assert {"mnist", "mnist-static", "omniglot", "fashion-mnist", "digits", *SYNTHETIC} == set(
        DATASETS
    )
    for name, source in DATASETS.items():
        assert source.name == name
        assert source.binarization == resolve(source.values, None, None)[1]
        assert source.observation == resolve(source.values, None, None)[0]
        assert source.description
        if source.generate:
            continue
        downloadable = source.variants[0]
        assert all(len(set(file.mirrors)) >= 2 for file in downloadable)
        assert all(file.sha256 or file.md5 or file.archive_md5 for file in downloadable)
        for variant in source.variants:
            shapes = {split: shape for file in variant for split, shape in file.shapes.items()}
            counts = [shapes.get(split, (0,))[0] for split in ("train", "validation", "test")]
            assert tuple(counts) == source.sizes
            assert {shape[1:] for shape in shapes.values()} == {source.shape}


def test_list_shows_which_datasets_are_present(monkeypatch, tmp_path):
    shrink(monkeypatch, "mnist")
    write(tmp_path / "mnist", "mnist")
    write(tmp_path / "fashion-mnist", "fashion-mnist")
    (tmp_path / "fashion-mnist" / "train-images-idx3-ubyte.gz").unlink()
    rows = {row.name: row for row in list_datasets(tmp_path)}
    assert list(rows) == list(DATASETS)
    assert (rows["mnist"].present, rows["mnist"].where) == (True, str(tmp_path / "mnist"))
    assert rows["mnist"].sizes == (60_000, 0, 10_000)
    assert rows["mnist"].binarization == "dynamic"
    assert not rows["omniglot"].present
    assert not rows["fashion-mnist"].present
    assert "in part" in rows["fashion-mnist"].where
    assert rows["digits"].present
    assert rows["camel"].observation == "gaussian"


@pytest.mark.parametrize(
    ("name", "near"), [("mnsit", "mnist"), ("MNIST", "mnist"), ("omni-glot", "omniglot")]
)
def test_unknown_dataset_name_suggests_the_nearest(name, near):
    for function in (load_dataset, fetch, verify):
        with pytest.raises(UserError, match=f"did you mean '{near}'.*four-gaussians.*npy"):
            function(name)


def test_built_in_datasets_need_no_fetching():
    assert fetch("camel") == []
    for name in (*SYNTHETIC, "digits"):
        ((label, ok, message),) = verify(name)
        assert (label, ok) == (name, True), message


def test_built_in_dataset_that_differs_is_reported(monkeypatch):
    monkeypatch.setitem(DATASETS, "camel", replace(DATASETS["camel"], generated_sha256="0" * 64))
    ((_, ok, message),) = verify("camel")
    assert not ok
    assert "differ from those of other machines" in message


def test_digits_split_is_fixed_and_balanced():
    data = load_dataset("digits", download=False)
    assert data.shape == (8, 8)
    assert data.train.shape == (1437, 64)
    assert data.test.shape == (360, 64)
    assert data.train.dtype == np.uint8
    assert set(np.unique(data.train)) == set(np.rint(np.arange(17) * 255 / 16).astype(int))
    from sklearn.datasets import load_digits

    rows = choose(1797, 360, seed=0, stream=4)
    levels, labels = load_digits(return_X_y=True)
    expected = np.delete(np.rint(levels * 255 / 16), rows, axis=0)
    np.testing.assert_array_equal(data.train, expected)
    # Neither a prefix nor otherwise unbalanced: every digit has its share of about 36.
    assert np.bincount(labels[rows]).min() >= 20
    assert "PCG64" in data.identity["split"]
    again = load_dataset("digits", seed=9, validation=100)
    assert again.identity["test_sha256"] == data.identity["test_sha256"]
    assert len(again.train) == 1337


# ---------------------------------------------------------------------- synthetic data sets


def grid(name, points=1201):
    """The points of a grid that covers a synthetic distribution, and the volume of its cells."""
    d = DATASETS[name].shape[0]
    axis = np.linspace(-8, 8, points if d > 1 else 200_001)
    mesh = np.stack(np.meshgrid(*[axis] * d, indexing="ij"), axis=-1).reshape(-1, d)
    return mesh, (axis[1] - axis[0]) ** d


@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_density_matches_the_examples(name):
    data = load_dataset(name)
    assert data.train.shape == (10_000, *data.shape)
    assert data.test.shape == (2_000, *data.shape)
    assert data.train.dtype == np.float32
    assert (data.observation, data.binarization) == ("gaussian", "none")
    points, cell = grid(name)
    log_p = data.log_density(points)
    p = np.exp(log_p)
    assert abs(p.sum() * cell - 1) < 1e-6
    # The examples have the density's entropy, mean and second moments.
    expected = (p * log_p).sum() * cell
    examples = np.concatenate([data.train, data.test]).astype(np.float64)
    values = data.log_density(examples)
    assert abs(values.mean() - expected) < 5 * values.std() / math.sqrt(len(values))
    for moment in (lambda x: x, lambda x: x**2, lambda x: x[:, :1] * x[:, -1:]):
        sample = moment(examples)
        error = sample.std(0) / math.sqrt(len(sample))
        assert np.all(np.abs(sample.mean(0) - p @ moment(points) * cell) < 5 * error)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_log_density_is_finite_far_away(name):
    log_density = load_dataset(name).log_density
    far = np.full((1, DATASETS[name].shape[0]), 1e4)
    assert np.isfinite(log_density(far)).all()
    assert (log_density(far) < -1e6).all()
    assert np.isfinite(log_density(np.zeros((1, len(far[0]))))).all()


def test_camel_density_matches_the_published_one():
    data = load_dataset("camel")
    points, cell = grid("camel")
    log_p = data.log_density(points)
    assert abs((np.exp(log_p) * log_p).sum() * cell - -1.3585) < 5e-5
    hump = lambda centre: np.exp(-0.5 * ((points[:, 0] - centre) / 0.5) ** 2)  # noqa: E731
    exact = 0.5 * (hump(-1) + hump(1)) / (0.5 * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(np.exp(log_p), exact, atol=1e-12)


def test_synthetic_datasets_do_not_depend_on_the_seed():
    one, two = load_dataset("circle"), load_dataset("circle", seed=1)
    assert one.identity == two.identity
    assert not np.array_equal(one.train[:2000], one.test)
    held = load_dataset("circle", seed=1, validation=500)
    assert (len(held.train), held.validation.dtype) == (9500, np.float32)


def test_synthetic_datasets_are_not_binarised():
    with pytest.raises(UserError, match="contradicts"):
        load_dataset("circle", binarization="threshold")
    with pytest.raises(UserError, match="not bernoulli"):
        load_dataset("circle", observation="bernoulli")


# --------------------------------------------------- the real files, if IWAE_DATA has them


@pytest.fixture(scope="module")
def load_real():
    def load(name, **choices):
        try:
            return load_dataset(name, data_dir=REAL_DATA, download=False, **choices)
        except UserError as error:
            if "not on this machine" in str(error):
                pytest.skip(f"{name} is not in IWAE_DATA")
            raise

    if not REAL_DATA:
        pytest.skip("IWAE_DATA is not set")
    return load


def test_real_mnist(load_real):
    data = load_real("mnist", validation="authors")
    assert data.train.shape == (59_600, 784)
    assert data.validation.shape == (400, 784)
    assert data.test.shape == (10_000, 784)
    assert abs(load_real("mnist").train_mean.mean() - 0.1306604762738429) < 1e-12
    assert all(file["verified"] == "sha256" for file in data.identity["files"])
    expected = "dfa00ac99a7204daa27d36f705f30851d503ecf37b85dfe0da12e1c467ddda76"
    assert data.identity["test_sha256"] == expected


def test_real_static_mnist_is_mnist_sorted_by_class(load_real):
    data = load_real("mnist-static")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [50_000, 10_000, 10_000]
    levels = load_real("mnist", observation="gaussian").test
    folder = Path(REAL_DATA) / "mnist" / "t10k-labels-idx1-ubyte.gz"
    if not folder.exists():
        pytest.skip("no labels")
    labels = np.frombuffer(readers.unpack(folder.read_bytes()), np.uint8, offset=8)
    ordered = levels[np.argsort(labels, kind="stable")]
    # Pixels are 0 where the grey image is blank, and 1 where it is full.
    assert data.test[ordered == 0].max() == 0
    assert data.test[ordered == 1].min() == 1


def test_real_omniglot_is_upright(load_real):
    """The images are upright, not transposed."""
    data = load_real("omniglot", binarization="threshold")
    assert data.train.shape == (24_345, 784)
    assert data.test.shape == (8_070, 784)
    authors = load_real("omniglot", validation="authors")
    assert (len(authors.train), len(authors.validation)) == (23_000, 1_345)
    assert data.identity["files"][0]["name"] in {"chardata.mat", "omniglot28.mat"}
    folder = Path(REAL_DATA) / "omniglot" / data.identity["files"][0]["name"]
    column = scipy.io.loadmat(folder, variable_names=["data"])["data"][:, 1000]
    upright = column.reshape(28, 28, order="F")
    np.testing.assert_array_equal(data.train[1000].reshape(28, 28), upright > 0.5)


def test_split_with_a_wrong_number_of_labels_is_refused():
    values = np.eye(4, dtype=np.uint8)
    labels = {"train": np.array([0, 1, 0, 1]), "test": np.array([0, 1, 0])}
    raw = Raw("here", {"train": values, "test": values}, (4,), "binary", (), "given")
    raw = raw._replace(labels=labels, classes=("a", "b"))
    with pytest.raises(UserError, match="4 examples in a split, but 3 labels"):
        assemble_splits(raw, Options(validation=1))
