"""The whole way, as a user goes it: train, stop, resume, measure, draw."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

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
def test_a_run_that_is_terminated_and_resumed_ends_with_the_same_bits(run, trained, tmp_path):
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
def test_a_folder_that_holds_a_run_is_left_alone(run, trained):
    before = weights(trained)
    assert "--resume" in run(*TRAIN, "--out", trained, status=2).stderr
    assert weights(trained) == before


@pytest.mark.slow
def test_the_record_is_one_json_object_with_a_value_for_every_example(run, trained):
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
def test_every_picture_is_drawn(run, trained):
    paths = run("figures", trained).stdout.split()
    names = {path.rpartition("/")[2] for path in paths}
    assert {"samples.png", "reconstructions.png", "training_samples.gif"} <= names
    assert {"training_curves.png", "log_variances.png", "filters_first_layer.png"} <= names


def test_a_mistake_gets_one_line_and_status_2(run, tmp_path, monkeypatch):
    """In a process of its own; `test_cli.py` has all other mistakes."""
    monkeypatch.chdir(tmp_path)
    done = run("train", "--objective", "iwea", "--dataset", "digits", "--out", "x", status=2)
    assert "did you mean iwae" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "x").exists()
