"""End-to-end runs of the command line: train, stop, resume, evaluate, draw."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal
from sklearn.datasets import load_breast_cancer, load_diabetes

from iwae.cli import main
from iwae.data import load_dataset

TRAIN = (
    *("train", "--dataset", "digits", "--validation", "97", "--objective", "iwae", "--k", "2"),
    *("--latent-sizes", "3", "2", "--hidden-sizes", "8,8", "5", "--epochs", "40"),
    *("--learning-rate", "0.003", "--replicates", "2"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that runs the command line; all calls share one compilation cache."""
    cache = tmp_path_factory.mktemp("compiled")

    def call(*arguments, status=0):
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
        command = [sys.executable, "-m", "iwae", *map(str, arguments)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done

    call.cache = cache
    return call


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(*TRAIN, "--out", folder)
    return folder


def weights(folder):
    return {
        path.parent.name: path.read_bytes()
        for path in sorted(folder.glob("models/*/model.safetensors"))
    }


@pytest.mark.slow
def test_terminated_and_resumed_run_matches_an_uninterrupted_one(run, trained, tmp_path):
    folder = tmp_path / "stopped"
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(run.cache)}
    command = [sys.executable, "-m", "iwae", *TRAIN, "--out", str(folder)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        metrics = folder / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"iwae train --resume {folder}" in errors
    rows = metrics.read_text().count("\n")
    assert rows < 40
    run("train", "--resume", folder)
    assert weights(folder) == weights(trained)
    assert metrics.read_text() == (trained / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_training_into_an_existing_run_is_refused(run, trained):
    before = weights(trained)
    assert "--resume" in run(*TRAIN, "--out", trained, status=2).stderr
    assert weights(trained) == before


@pytest.mark.slow
def test_record_is_one_json_object_with_per_example_values(run, trained):
    record = json.loads(run("evaluate", trained, "--k", "1", "20", "--json").stdout)
    assert {"log_likelihood", "stderr", "n", "k", "split", "dataset", "test_sha256"} <= set(record)
    assert (record["n"], record["k"], record["split"]) == (360, 20, "test")
    assert [len(one["active_units"]) for one in record["replicates"]] == [2, 2]
    values = np.load(trained / "evaluations" / "test-final-k20.npz")
    assert values["log_likelihood"].dtype == np.float64
    assert values["log_likelihood"].shape == (2, 2, 360)
    means = values["log_likelihood"].mean(axis=2)
    np.testing.assert_allclose(
        means[:, 1], [one["log_likelihood"] for one in record["replicates"]], rtol=1e-12
    )
    assert (means[:, 1] > means[:, 0]).all()  # L_20 above L_1, by nats
    errors = values["log_likelihood"][0, 1].std(ddof=1) / np.sqrt(360)
    np.testing.assert_allclose(record["replicates"][0]["stderr"], errors, rtol=1e-12)


@pytest.mark.slow
def test_figures_command_draws_every_figure(run, trained):
    paths = run("figures", trained).stdout.split()
    names = {path.rpartition("/")[2] for path in paths}
    assert {"samples.png", "reconstructions.png", "training_samples.gif"} <= names
    assert {"training_curves.png", "log_variances.png", "filters_first_layer.png"} <= names


def test_invalid_option_gives_an_error_and_status_2(run, tmp_path, monkeypatch):
    """Run in a separate process; `test_cli.py` covers all other errors."""
    monkeypatch.chdir(tmp_path)
    done = run("train", "--objective", "iwea", "--dataset", "digits", "--out", "x", status=2)
    assert "did you mean iwae" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "x").exists()


# A user's own file, with the defaults of the command line


@pytest.fixture
def command(capsys):
    """A function that runs a command in this process and returns what it prints."""

    def call(*arguments):
        assert main(list(map(str, arguments))) == 0
        return capsys.readouterr().out

    return call


def evaluate_l50(command, run):
    """The record of a run's L_50, and its per-example values on the test rows."""
    record = json.loads(command("evaluate", run, "--weights", "best", "--k", "50", "--json"))
    (path,) = (run / "evaluations").glob("test-best-*.npz")
    return record, np.load(path)["log_likelihood"][0, -1]


@pytest.mark.slow
def test_large_column_mean_changes_neither_likelihood_nor_imputation(command, tmp_path):
    """A time column of mean 1.7e9 and a dependent value: 1.7e9 + 10 b1 and b2, b = z + 0.1 e."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=1000)
    b = np.stack([z + 0.1 * rng.normal(size=1000) for _ in range(2)], axis=1)
    runs, values = {}, {}
    for name, mean in (("clock", 1.7e9), ("plain", 0.0)):
        file, runs[name] = tmp_path / f"{name}.csv", tmp_path / name
        lines = [f"{mean + 10 * first:.3f},{second}" for first, second in b]
        file.write_text("\n".join(["time,y", *lines]) + "\n")
        command("train", "--dataset", file, "--missing", "at-random", "--out", runs[name])
        values[name] = evaluate_l50(command, runs[name])[1]
    data = load_dataset(tmp_path / "plain.csv")
    truth = multivariate_normal([0, 0], [[101, 10], [10, 1.01]])
    exact = truth.logpdf(data.outwards(data.test))
    assert exact.mean() == pytest.approx(-3.1, abs=0.1)  # -3.19 for the distribution
    for name in runs:
        assert -0.2 < (values[name] - exact).mean() < 0.05
    assert abs((values["clock"] - values["plain"]).mean()) < 0.1

    missing, incomplete = np.random.default_rng(1).random(1000) < 0.2, tmp_path / "gaps.csv"
    lines = [
        f"{'' if is_missing else f'{1.7e9 + 10 * first:.3f}'},{second}"
        for is_missing, (first, second) in zip(missing, b, strict=True)
    ]
    incomplete.write_text("\n".join(["time,y", *lines]) + "\n")
    command("impute", runs["clock"], incomplete, "--out", tmp_path / "filled.csv")
    filled = pd.read_csv(tmp_path / "filled.csv")["time"] - 1.7e9
    error = np.sqrt(np.mean((filled - 10 * b[:, 0])[missing] ** 2))
    # The conditional standard deviation is 1.41, the column's 10; 190 rows resolve 5 %.
    assert error < 1.41 * 1.2


@pytest.mark.slow
def test_imputation_of_a_real_table_beats_column_means(command, tmp_path):
    complete = load_diabetes(as_frame=True).data.astype(float)
    missing = np.random.default_rng(0).random(complete.shape) < 0.2
    file, out = tmp_path / "holes.csv", tmp_path / "full.csv"
    complete.mask(missing).to_csv(file, index=False)
    command("train", "--dataset", file, "--missing", "at-random", "--out", tmp_path / "run")
    command("impute", tmp_path / "run", file, "--out", out)

    def error(table):
        return np.sqrt(np.mean(((table - complete) / complete.std()).to_numpy()[missing] ** 2))

    imputed = pd.read_csv(out)
    pd.testing.assert_frame_equal(imputed.mask(missing), complete.mask(missing), rtol=1e-12)
    assert error(complete.mask(missing).fillna(complete.mask(missing).mean())) > 0.95
    assert error(imputed) < 0.73  # the estimator's


@pytest.mark.slow
def test_likelihood_of_unscaled_columns_matches_manual_standardisation(command, tmp_path):
    names = [
        "fractal dimension error",
        "smoothness error",
        "mean radius",
        "mean area",
        "area error",
    ]
    table = load_breast_cancer(as_frame=True).data[names]
    table["mean area"] *= 300  # in other units
    scale = table.std()
    assert scale.min() < 3e-3
    assert scale.max() > 1e5
    results = {}
    for name, frame in (("raw", table), ("by-hand", (table - table.mean()) / scale)):
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
        command("train", "--dataset", tmp_path / f"{name}.csv", "--out", tmp_path / name)
        results[name] = evaluate_l50(command, tmp_path / name)
    (record, raw), (_, by_hand) = results["raw"], results["by-hand"]
    difference = raw + np.log(scale).sum() - by_hand
    assert abs(difference.mean()) < 0.1 + 3 * difference.std() / np.sqrt(len(raw))
    assert raw.std() / np.sqrt(len(raw)) < 1  # an unscaled column would be off by nats
    assert sum(record["active_units"]) > 0
