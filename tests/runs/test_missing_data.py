"""Missing values: from a file to a model, its records, and an imputed file."""

import csv
import itertools
import json

import equinox as eqx
import jax
import numpy as np
import pytest

import small
from iwae import impute, load_dataset, load_model, save_model
from iwae.cli import main
from iwae.config.experiment import make_config
from iwae.config.types import Missing
from iwae.data import make_kind
from iwae.data.cells import MISSING_WORDS
from iwae.errors import UserError
from iwae.models.likelihoods import MISSING
from iwae.models.vae import VAE
from iwae.reports.gallery import draw_gallery
from iwae.results.description import describe
from iwae.results.likelihood import evaluate_run
from iwae.results.summaries import summary_with_bits
from iwae.runs.file_imputation import impute_file
from iwae.runs.jobs import make_job

MARKERS = ("", "NA", "nan", " n/a", "NULL", "?")


def values(n=60, share=0.3, seed=0):
    """Incomplete rows of three columns, two of which are dependent; no row is empty."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).round(3)
    x[:, 1] = (2 * x[:, 0] + 0.3 * x[:, 1] + 5).round(3)
    gaps = rng.random(x.shape) < share
    gaps[np.arange(n), rng.integers(0, 3, n)] = False
    return np.where(gaps, np.nan, x)


def write_csv(path, rows, markers=MARKERS, names=("a", "b b", "c")):
    """Write the rows, cycling through the markers of a missing value."""
    count = 0
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for row in rows:
            cells = []
            for value in row:
                cells.append(markers[count % len(markers)] if np.isnan(value) else f"{value}")
                count += np.isnan(value)
            writer.writerow(cells)
    return path


def vae(n_data=3, **options):
    options = {"observation": "gaussian", "missing": "at-random", **options}
    return VAE(n_data, (2,), ((4,),), key=jax.random.key(0), **options)


def run_of(model, folder):
    """A run folder with this model, as complete as imputation needs."""
    save_model(model, folder / "run/models/final-0")
    return folder / "run"


# --- reading ----------------------------------------------------------------------------------


def test_csv_may_have_missing_values(tmp_path):
    rows = values()
    path, options = write_csv(tmp_path / "a.csv", rows), {"missing": True, "standardize": False}
    data = load_dataset(path, validation=10, **options)
    assert (data.train.dtype, data.observation, data.shape) == (np.float32, "gaussian", (3,))
    loaded = np.concatenate([data.train, data.validation, data.test])
    assert sorted(map(str, np.float32(rows).tolist())) == sorted(map(str, loaded.tolist()))
    assert data.train_mean == pytest.approx(np.nanmean(data.train, axis=0))
    shares = data.identity["missing"]
    assert shares["train"] == pytest.approx(np.isnan(data.train).mean())
    assert set(shares) == {"train", "validation", "test"}
    json.dumps(data.identity, allow_nan=False)


def test_arrays_may_have_missing_values(tmp_path):
    rows = values()
    np.savez(tmp_path / "a.npz", train=rows[:40], test=rows[40:])
    data = load_dataset(tmp_path / "a.npz", missing=True, standardize=False)
    assert np.array_equal(data.test, np.float32(rows[40:]), equal_nan=True)


def test_binary_data_with_missing_values_stay_binary(tmp_path):
    np.save(tmp_path / "a.npy", np.where(np.isnan(values()), np.nan, values() > 0))
    data = load_dataset(tmp_path / "a.npy", missing=True)
    assert (data.observation, data.binarization) == ("bernoulli", "none")
    assert data.train.dtype == np.float32


def test_missing_option_changes_nothing_for_complete_data(tmp_path):
    write_csv(tmp_path / "a.csv", values(share=0))
    plain, other = (load_dataset(tmp_path / "a.csv", missing=missing) for missing in (False, True))
    for split in ("train", "validation", "test"):
        assert np.array_equal(getattr(plain, split), getattr(other, split))
    assert other.identity.pop("missing") == {"train": 0, "validation": None, "test": 0}
    assert plain.identity == other.identity


@pytest.mark.parametrize("marker", ["", "NA", "nan", "?"])
def test_missing_values_need_the_option(tmp_path, marker):
    write_csv(tmp_path / "a.csv", values(), markers=(marker,))
    with pytest.raises(UserError, match=r"if it is a missing value, use .*\(--missing at-random"):
        load_dataset(tmp_path / "a.csv")
    np.save(tmp_path / "a.npy", values())
    with pytest.raises(
        UserError, match=r"row 3, column 2 is not a number.*use missing 'at-random'"
    ):
        load_dataset(tmp_path / "a.npy")


def with_value(place, value):
    rows = values()
    rows[place] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (with_value((slice(None), 1), np.nan), {}, r"column 2 \('b b'\) has no value in any train"),
        (with_value((7, 1), np.inf), {}, "line 9, column 2: 'inf' is infinite"),
        (np.full((12, 3), np.nan), {}, "has no value"),
        (
            np.abs(values()) / 99,
            {"observation": "bernoulli"},
            "cannot be binarised: use observation",
        ),
        (np.abs(values()), {"observation": "poisson"}, "'poisson' takes whole numbers"),
    ],
    ids=["column", "infinite", "all", "grey", "kind"],
)
def test_unusable_incomplete_data_are_refused(tmp_path, rows, options, message):
    write_csv(tmp_path / "a.csv", rows, names=("a", "b b", "c")[: rows.shape[1]])
    with pytest.raises(UserError, match=message):
        load_dataset(tmp_path / "a.csv", missing=True, **options)


def test_other_words_are_not_missing_values(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,\n2,many\n")
    with pytest.raises(UserError, match=r"line 3, column 2: 'many' is not a number$"):
        load_dataset(tmp_path / "a.csv", missing=True, observation="gaussian")
    (tmp_path / "a.csv").write_text("a,b\n1,\n2\n")
    with pytest.raises(UserError, match="line 3 has 1 columns, but the lines above have 2"):
        load_dataset(tmp_path / "a.csv", missing=True)


# --- models -----------------------------------------------------------------------------------


def test_configuration_accepts_exactly_the_missingness_mechanisms():
    assert Missing.__args__ == MISSING
    with pytest.raises(UserError, match="missing"):
        make_config({"missing": "often"}, "here")


def test_statistics_use_only_observed_values(tmp_path):
    write_csv(tmp_path / "a.csv", values())
    options = {"dataset": str(tmp_path / "a.csv"), "validation": 10}
    job = make_job(small.config(missing="at-random", **options))
    model, train = job.models[0], np.float64(job.dataset.train)
    expected = np.concatenate([np.nanmean(train, axis=0), np.log(np.nanstd(train, axis=0))])
    assert np.asarray(model.statistics) == pytest.approx(expected, rel=1e-5)
    assert np.asarray(model.output.bias) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match="a missing value, use missing 'at-random'"):
        make_job(small.config(**options))


@pytest.mark.parametrize("missing", MISSING)
def test_saved_model_stores_its_missingness_mechanism(tmp_path, missing):
    model = vae(missing=missing)
    save_model(model, tmp_path)
    assert load_model(tmp_path).missing == missing
    assert jax.tree.structure(load_model(tmp_path)) == jax.tree.structure(model)
    assert "missing" not in vae(missing=None).architecture()


def test_warm_start_from_another_missingness_mechanism_is_refused(tmp_path):
    write_csv(tmp_path / "a.csv", values())
    run = run_of(VAE(3, (2,), ((5,),), observation="gaussian", key=jax.random.key(0)), tmp_path)
    options = {"dataset": str(tmp_path / "a.csv"), "validation": 10, "init_from": str(run)}
    with pytest.raises(UserError, match=r"missing of the model in .* is None, here at-random"):
        make_job(small.config(missing="at-random", **options))


def test_incomplete_levels_have_no_bits_per_dimension():
    record = {"log_likelihood": -3.0, "stderr": 0.1}
    identity = {"observation": "discretised-gaussian", "shape": [3]}
    assert "bits_per_dimension" in summary_with_bits(record, identity)
    assert summary_with_bits(record, {**identity, "missing": {"test": 0.1}}) == record


# --- end to end -------------------------------------------------------------------------------


def csv_rows(path):
    return list(csv.reader(path.read_text().splitlines()))


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["at-random", "not-at-random"])
def test_incomplete_file_is_trained_on_evaluated_and_imputed(tmp_path, missing, capsys):
    write_csv(tmp_path / "a.csv", values())
    run, out = tmp_path / "run", tmp_path / "filled.csv"
    arguments = "--latent-sizes 2 --hidden-sizes 5 --k 2 --epochs 2 --batch-size 10 --validation 10"
    dataset = ["--dataset", str(tmp_path / "a.csv"), "--missing", missing]
    assert main(["train", *dataset, *arguments.split(), "--out", str(run), "--quiet"]) == 0
    assert main(["evaluate", str(run), "--k", "20", "--json", "--quiet"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert np.isfinite(record["log_likelihood"])
    assert record["data"]["missing"]["test"] > 0
    assert main(["impute", str(run), str(tmp_path / "a.csv"), "--out", str(out), "--k", "20"]) == 0
    assert "with k below 25, no k-hat says" in capsys.readouterr().out
    before, after = csv_rows(tmp_path / "a.csv"), csv_rows(out)
    assert after[0] == ["a", "b b", "c"]
    assert len(after) == 61
    for old, new in zip(itertools.chain(*before), itertools.chain(*after), strict=True):
        assert old == new or (old.strip().lower() in MISSING_WORDS and np.isfinite(float(new)))
    again = ["impute", str(run), str(tmp_path / "a.csv"), "--k", "20", "--out"]
    assert main([*again, str(out)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main([*again, str(out), "--overwrite"]) == 0
    assert main([*again, str(tmp_path / "a.csv"), "--overwrite"]) == 2
    assert "is the input:" in capsys.readouterr().err
    swapped = [[line[1], line[0], line[2]] for line in before]
    (tmp_path / "swapped.csv").write_text("".join(f"{','.join(line)}\n" for line in swapped))
    other = tmp_path / "other.csv"
    arguments = [
        "impute",
        str(run),
        str(tmp_path / "swapped.csv"),
        "--out",
        str(other),
        "--k",
        "20",
    ]
    assert main(arguments) == 0
    imputed = np.float32([[float(cell) for cell in line] for line in after[1:]])
    reordered = np.float32([[float(cell) for cell in line] for line in csv_rows(other)[1:]])
    assert reordered[:, [1, 0, 2]] == pytest.approx(imputed, abs=1e-5)


def test_multiple_imputations_are_written_to_numbered_files(tmp_path):
    rows = np.float32(values(9, seed=4))
    np.save(tmp_path / "b.npy", rows)
    run = run_of(vae(), tmp_path)
    paths = impute_file(run, tmp_path / "b.npy", tmp_path / "c.npy", draws=2, k=5).paths
    assert [path.name for path in paths] == ["c-1.npy", "c-2.npy"]
    one, other = map(np.load, paths)
    gaps = np.isnan(rows)
    assert (one.dtype, one.shape) == (np.float32, (9, 3))
    assert (one[~gaps] == rows[~gaps]).all()
    assert (other[~gaps] == rows[~gaps]).all()
    assert (one[gaps] != other[gaps]).all()


@pytest.mark.parametrize("dtype", [">f8", "g", "f2", ">f4"])
def test_imputation_keeps_the_floating_point_type(tmp_path, dtype):
    rows = np.float16(values(9, seed=4))  # exact in every dtype
    run = run_of(vae(), tmp_path)
    np.save(tmp_path / "a.npy", rows.astype(np.float32))
    np.save(tmp_path / "b.npy", np.asfortranarray(rows.astype(dtype)))
    expected, result = (
        np.load(impute_file(run, tmp_path / name, tmp_path / f"out-{name}", k=5).paths[0])
        for name in ("a.npy", "b.npy")
    )
    assert result.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(np.float32(result), np.float32(expected.astype(dtype)))
    if dtype == "f2":
        model = vae()
        bias = model.output.bias.at[:3].set(1e6)
        run = run_of(eqx.tree_at(lambda m: m.output.bias, model, bias), tmp_path / "far")
        with pytest.raises(UserError, match="has dtype float16, too narrow for the imputed values"):
            impute_file(run, tmp_path / "b.npy", tmp_path / "far.npy", draws=2, k=5)
        assert not list(tmp_path.glob("far*.npy"))


@pytest.mark.parametrize("name", ["b.NPY", "b.CSV"])
def test_uppercase_suffixes_are_accepted(tmp_path, name):
    rows = values(5)
    if name == "b.CSV":
        write_csv(tmp_path / name, rows)
    else:
        with (tmp_path / name).open("wb") as file:
            np.save(file, rows)
    run = run_of(vae(), tmp_path)
    impute_file(run, tmp_path / name, tmp_path / f"out-{name}", k=5)
    if name == "b.NPY":
        assert np.isfinite(np.load(tmp_path / f"out-{name}")).all()
    else:
        assert len(csv_rows(tmp_path / f"out-{name}")) == 6
    assert {path.name for path in tmp_path.iterdir()} == {"run", name, f"out-{name}"}


@pytest.mark.parametrize("seed", [-1, 2**31, 10**30])
@pytest.mark.parametrize(
    "command", [("impute", "RUN", "a.csv", "--out", "b.csv"), ("evaluate", "RUN")]
)
def test_invalid_seeds_are_refused(command, seed, capsys):
    assert main([*command, f"--seed={seed}"]) == 2
    assert capsys.readouterr().err == (
        f"iwae: seed is {seed}; it must be at least 0 and below 2147483648\n"
    )


def test_every_line_of_a_single_column_is_imputed(tmp_path):
    run = run_of(vae(1), tmp_path)
    (tmp_path / "b.csv").write_bytes("Größe\n1.5\n\nNA\n2.50\n".encode())
    (path,) = impute_file(run, tmp_path / "b.csv", tmp_path / "c.csv", k=3).paths
    name, *cells = path.read_text(encoding="utf-8").splitlines()
    assert (name, cells[0], cells[3], len(cells)) == ("Größe", "1.5", "2.50", 4)
    assert np.isfinite(np.float64(cells)).all()


def test_imputed_counts_and_categories_are_integers(tmp_path):
    kind = make_kind("table", columns=("poisson", "categorical:3"))
    run = run_of(vae(2, observation=kind), tmp_path)
    (tmp_path / "b.csv").write_text("1,\n,2\n")
    (path,) = impute_file(run, tmp_path / "b.csv", tmp_path / "c.csv", draws=1, k=3).paths
    (first, category), (count, last) = csv_rows(path)
    assert (first, last) == ("1", "2")
    assert category in "012"
    assert count == str(int(count))


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("b.npy", np.zeros((2, 4)), "has 4 columns, but .* was trained on data with 3"),
        ("b.npy", np.full((2, 3), np.inf), "row 1, column 1 is infinite"),
        ("b.npz", np.zeros((2, 3)), r"must have the same suffix, \.csv or .*\.npy"),
        ("b.npy", np.zeros((2, 3), complex), "complex128: examples must be real numbers"),
        ("b.npy", np.zeros((0, 3)), "it holds no numbers"),
        ("c.npy", None, "cannot be read"),
    ],
)
def test_incompatible_table_is_refused(tmp_path, name, rows, message):
    run = run_of(vae(), tmp_path)
    if rows is not None:
        (np.save if name.endswith("y") else np.savez)(tmp_path / name, rows)
    with pytest.raises(UserError, match=message):
        impute_file(run, tmp_path / name, tmp_path / "out.npy")


def test_npz_named_npy_is_refused(tmp_path):
    run = run_of(vae(), tmp_path)
    np.savez(tmp_path / "b.npz", train=np.zeros((2, 3)), test=np.zeros((2, 3)))
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    with pytest.raises(UserError, match=r"b\.npy is an \.npz file by its content, .* save the"):
        impute_file(run, tmp_path / "b.npy", tmp_path / "out.npy")


def test_imputing_a_mixed_table_needs_a_model_for_missing_values():
    kind = make_kind("table", columns=("gaussian", "poisson", "gaussian"))
    with pytest.raises(UserError, match="was not made for missing values"):
        impute(vae(observation=kind, missing=None), values(4), jax.random.key(0))


def test_imputing_a_file_needs_a_model_for_missing_values(tmp_path):
    run = run_of(vae(missing=None), tmp_path)
    write_csv(tmp_path / "b.csv", values(4))
    with pytest.raises(UserError, match="was not made for missing values: train with --missing"):
        impute_file(run, tmp_path / "b.csv", tmp_path / "out.csv")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "missing", "drawn"),
    [((4, 4), "at-random", "reconstructions"), ((2,), "not-at-random", "scatter")],
)
def test_incomplete_data_are_drawn(tmp_path, shape, missing, drawn):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, *shape)) > 0 if len(shape) > 1 else rng.normal(size=(60, *shape))
    gaps = rng.random(rows.shape) < 0.2
    gaps.reshape(60, -1)[:, 0] = False
    np.save(tmp_path / "a.npy", np.where(gaps, np.nan, rows))
    options = {"dataset": str(tmp_path / "a.npy"), "missing": missing, "epochs": 1}
    small.train_in(tmp_path / "run", validation=10, **options)
    assert drawn in {path.stem for path in draw_gallery(tmp_path / "run")}
    record = evaluate_run(tmp_path / "run", ks=(3,))
    assert "nats per example, of the observed values" in describe(record)
