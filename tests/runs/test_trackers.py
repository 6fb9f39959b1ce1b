"""Trackers receive each number of metrics.jsonl exactly once, despite stops and failures."""

import json
import logging
import signal
import sys
from types import SimpleNamespace

import pytest

import small
from iwae.cli import main
from iwae.errors import UserError
from iwae.runs import trackers
from iwae.runs.metrics import read_metrics, scalars
from iwae.runs.start_and_resume import resume_run, start_run
from iwae.runs.stopping import Stopped
from iwae.runs.trackers import TRACKERS, Tracked, tracking


class Board:
    """A tracker that stores what it receives by the run ids that it assigns."""

    def __init__(self):
        self.sent, self.opened, self.closed, self.fails_from = {}, [], [], None

    def __call__(self, _run, _config, known):
        self.opened.append(known)
        run_id = known or f"id-{len(self.opened)}"
        rows = self.sent.setdefault(run_id, [])

        def write(step, scalars):
            if self.fails_from is not None and step >= self.fails_from:
                raise ConnectionError("no route\nto host")
            rows.append((step, dict(scalars)))

        return Tracked(run_id, write, self.closed.append)


@pytest.fixture
def board():
    return Board()


def expected_rows(run):
    return [(row["step"], dict(scalars(row))) for row in read_metrics(run)]


@pytest.mark.slow
def test_tracker_receives_every_logged_epoch(board, tmp_path):
    list(start_run(small.config(replicates=2), tmp_path / "run", track={"board": board}))
    assert board.sent == {"id-1": expected_rows(tmp_path / "run")}
    names = board.sent["id-1"][0][1].keys()
    assert {"learning_rate", "train_bound/replicate_1", "kl/replicate_0/layer_1"} <= names
    assert (board.opened, board.closed) == ([None], [True])


def test_scalars_name_every_number_of_a_row():
    row = {
        "epoch": 2,
        "step": 60,
        "learning_rate": 0.1,
        "train_bound": [-1.0, -2.0],
        "validation": [None, -3.0],
        "kl": [[1.0, 2.0], [3.0, None]],
    }
    assert dict(scalars(row)) == {
        "learning_rate": 0.1,
        "train_bound/replicate_0": -1.0,
        "train_bound/replicate_1": -2.0,
        "validation/replicate_1": -3.0,
        "kl/replicate_0/layer_1": 1.0,
        "kl/replicate_0/layer_2": 2.0,
        "kl/replicate_1/layer_1": 3.0,
    }


@pytest.mark.slow
def test_tracking_does_not_change_the_run(board, tmp_path):
    list(start_run(small.config(), tmp_path / "run", track={"board": board}))
    assert small.outcome(tmp_path / "run") == small.outcome(small.finished())


def stop_after(reports, epochs):
    for report in reports:
        if report.epoch_done and report.epoch == epochs:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
def test_resumed_run_keeps_its_tracker_id_and_sends_nothing_twice(board, tmp_path):
    run, track = tmp_path / "run", {"board": board}
    with pytest.raises(Stopped):
        stop_after(start_run(small.config(), run, track=track), 2)
    assert board.closed == [False]
    # The last checkpoint is lost, so that an epoch is trained and logged again.
    newest = sorted((run / "checkpoints").iterdir())[-1]
    if len(list((run / "checkpoints").iterdir())) > 1:
        newest.unlink()
    list(resume_run(run, track=track))
    assert board.opened == [None, "id-1"]
    assert board.closed == [False, True]
    assert board.sent == {"id-1": expected_rows(run)}
    list(resume_run(run, track=track))  # nothing is left to do
    assert board.sent == {"id-1": expected_rows(run)}


def test_retrained_steps_are_not_sent_again(board, tmp_path):
    with tracking({"board": board}, tmp_path, small.config()) as log:
        for step in (1, 2, 3, 2, 3, 4):
            log(step, {"a": 1.0})
    with tracking({"board": board}, tmp_path, small.config()) as log:
        for step in (3, 4, 5):
            log(step, {"a": 1.0})
    assert [step for step, _ in board.sent["id-1"]] == [1, 2, 3, 4, 5]


def test_tracker_added_later_receives_earlier_epochs(board, tmp_path):
    run = small.unmeasured(small.finished(), tmp_path / "run")
    list(resume_run(run, track={"board": board}))
    assert board.sent == {"id-1": expected_rows(run)}


def test_failing_tracker_warns_once_and_does_not_affect_the_run(board, tmp_path, caplog):
    board.fails_from = 40
    run, other = tmp_path / "run", Board()
    list(start_run(small.config(), run, track={"board": board, "other": other}))
    (warning,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert warning.getMessage() == (
        f"board failed and receives no more of this run: no route; training continues, and "
        f"`iwae train --resume {run} --track board` sends the rest"
    )
    assert small.outcome(run) == small.outcome(small.finished())
    assert other.sent == {"id-1": expected_rows(run)}
    assert board.sent["id-1"] == expected_rows(run)[:1]
    board.fails_from = None
    list(resume_run(run, track={"board": board}))
    assert board.sent["id-1"] == expected_rows(run)


def test_tracker_that_fails_to_close_warns(board, tmp_path, caplog):
    def tracker(*arguments):
        return board(*arguments)._replace(close=lambda _: 1 / 0)

    with tracking({"board": tracker}, tmp_path, small.config()) as log:
        log(1, {"a": 1.0})
    assert "board failed and receives no more of this run: division by zero" in caplog.text


def test_tracker_that_cannot_be_opened_prevents_training(board, tmp_path):
    def tracker(*_):
        raise ConnectionError("no such server")

    run = tmp_path / "run"
    message = "^broken cannot be used: no such server; leave out --track broken to train without it"
    with pytest.raises(UserError, match=message):
        list(start_run(small.config(), run, track={"board": board, "broken": tracker}))
    assert board.closed == [False]
    assert not (run / "config.toml").exists()
    list(start_run(small.config(), run, track={"board": board}))  # the folder can still be used
    assert board.opened == [None, None]
    assert board.sent["id-2"] == expected_rows(run)


def test_truncated_note_loses_one_line(board, tmp_path):
    with tracking({"board": board}, tmp_path, small.config()) as log:
        log(1, {"a": 1.0})
        log(2, {"a": 2.0})
    notes = tmp_path / "trackers" / "board.jsonl"
    notes.write_text(notes.read_text()[:-4])
    for _ in range(2):
        with tracking({"board": board}, tmp_path, small.config()) as log:
            for step in (1, 2, 3):
                log(step, {"a": 1.0})
    assert board.opened == [None, "id-1", "id-1"]
    assert [step for step, _ in board.sent["id-1"]] == [1, 2, 2, 3]


# Named trackers


@pytest.mark.parametrize("name", TRACKERS)
def test_missing_tracker_package_names_its_extra(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    small.write_config(tmp_path / "experiment.toml")
    arguments = ["train", tmp_path / "experiment.toml", "--track", name, "--out", tmp_path / "run"]
    assert main([str(argument) for argument in arguments]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"iwae: --track {name} needs {name}: pip install 'iwae[{name}]'"
    )
    assert not (tmp_path / "run" / "config.toml").exists()


def test_unknown_tracker_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "--dataset", "digits", "--track", "neptune", "--out", str(tmp_path)])
    assert caught.value.code == 2
    assert "mlflow" in capsys.readouterr().err


class FakeWandb:
    """The part of Weights & Biases that the tracker uses."""

    def __init__(self):
        self.started, self.logged, self.finished = [], [], []
        self.Settings = lambda **given: given

    def init(self, **given):
        self.started.append(given)
        return SimpleNamespace(
            id=given["id"] or "abc",
            log=lambda data, step: self.logged.append((step, data)),
            finish=self._finish,
        )

    def _finish(self, exit_code):
        self.finished.append(exit_code)


def test_weights_and_biases_receives_the_configuration_and_scalars(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    run = small.unmeasured(small.finished(), tmp_path / "name")
    for _ in range(2):
        list(resume_run(run, track={"wandb": trackers.wandb}))
    first, second = fake.started
    given = {"project", "name", "id", "resume", "dir", "config", "settings"}
    assert set(first) == given  # the mode is left to WANDB_MODE
    assert first["settings"] == {"console": "off"}
    assert (first["project"], first["name"], first["id"]) == ("mine", "name", None)
    assert first["config"]["k"] == 2
    assert first["config"]["dataset"] == "pictures.npz"  # without its folder
    assert (second["id"], second["resume"]) == ("abc", "allow")
    assert fake.logged == expected_rows(run)
    assert fake.finished == [0, 0]


class FakeMlflow:
    """The part of MLflow that the tracker uses."""

    def __init__(self):
        self.names, self.calls, self.metrics, self.params, self.sizes = {}, [], [], {}, []
        self.MlflowClient = lambda: self
        self.entities = SimpleNamespace(
            Metric=lambda *given: given, Param=lambda key, value: (key, value)
        )

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=self.names[name]) if name in self.names else None

    def create_experiment(self, name):
        return self.names.setdefault(name, "7")

    def create_run(self, experiment, run_name):
        self.calls.append(("create", experiment, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="xyz"))

    def update_run(self, run_id, status):
        self.calls.append(("update", run_id, status))

    def set_terminated(self, run_id, status):
        self.calls.append(("end", run_id, status))

    def log_batch(self, run_id, metrics=(), params=()):
        assert run_id == "xyz"
        self.metrics += metrics
        self.sizes.append(len(metrics))
        self.params |= dict(params)


@pytest.fixture
def mlflow(monkeypatch):
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", fake.entities)
    return fake


def test_mlflow_receives_the_configuration_and_scalars(mlflow, tmp_path):
    run = small.unmeasured(small.finished(), tmp_path / "name")
    for _ in range(2):
        list(resume_run(run, track={"mlflow": trackers.mlflow}))
    assert mlflow.names == {"iwae": "7"}
    assert mlflow.calls == [
        *(("create", "7", "name"), ("end", "xyz", "FINISHED")),
        *(("update", "xyz", "RUNNING"), ("end", "xyz", "FINISHED")),
    ]
    assert (mlflow.params["k"], mlflow.params["dataset"]) == ("2", "pictures.npz")
    logged = [(step, name, value) for name, value, _, step in mlflow.metrics]
    assert logged == [(step, *item) for step, row in expected_rows(run) for item in row.items()]


def test_mlflow_batches_stay_within_its_limit(mlflow, tmp_path):
    tracked = trackers.mlflow(tmp_path, small.config(), "xyz")
    tracked.write(3, {f"kl/{i}": 1.0 for i in range(2500)})
    assert mlflow.sizes == [1000, 1000, 500]


@pytest.mark.slow
def test_weights_and_biases_works_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = small.unmeasured(small.finished(), tmp_path / "run")
    for _ in range(2):
        list(resume_run(run, track={"wandb": trackers.wandb}))
    lines = (run / "trackers" / "wandb.jsonl").read_text().splitlines()
    (name,) = [json.loads(line)["id"] for line in lines if "id" in line]
    files = list((run / "trackers" / "wandb").glob(f"offline-run-*/run-{name}.wandb"))
    assert files
    assert b"train_bound/replicate_0" in b"".join(file.read_bytes() for file in files)


@pytest.mark.slow
def test_mlflow_works_with_a_local_folder(tmp_path, monkeypatch):
    module = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = small.unmeasured(small.finished(), tmp_path / "run")
    for _ in range(2):
        list(resume_run(run, track={"mlflow": trackers.mlflow}))
    client = module.MlflowClient()
    experiment = client.get_experiment_by_name("iwae").experiment_id
    (tracked,) = client.search_runs([experiment])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["k"] == "2"
    for name, value in expected_rows(run)[-1][1].items():
        assert tracked.data.metrics[name] == pytest.approx(value)
    history = client.get_metric_history(tracked.info.run_id, "train_bound/replicate_0")
    assert [one.step for one in history] == [step for step, _ in expected_rows(run)]
