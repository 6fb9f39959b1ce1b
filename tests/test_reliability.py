"""Fault tolerance: kills, full disks, deleted folders, damaged files. See docs/reliability.md."""

import errno
import io
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import small
from cases import quick, quick_rows
from iwae import files
from iwae.cli import main
from iwae.config.toml import read_config, read_toml
from iwae.data import load_dataset, readers
from iwae.data.catalogue import DataFile
from iwae.data.dataset_files import check_dataset_file
from iwae.data.kinds import Kind
from iwae.data.parquet_files import open_parquet_file
from iwae.errors import UserError
from iwae.files import atomic_folder, atomic_write
from iwae.models.vae import VAE
from iwae.reports import gallery
from iwae.results.record_files import write_record_files
from iwae.runs import trackers
from iwae.runs.folder import folder_config
from iwae.runs.jobs import load_job_dataset
from iwae.runs.metrics import read_metrics, tensorboard_metrics
from iwae.runs.model_files import check_model_file_depth, load_model, save_model
from iwae.runs.start_and_resume import start_run
from small import finished


def file_names(folder):
    return sorted(path.name for path in folder.iterdir())


# Files being written

KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from iwae.files import atomic_folder, atomic_write

write = atomic_folder if sys.argv[1] == "folder" else atomic_write
with write(Path(sys.argv[2])) as temporary:
    (temporary / "one" if temporary.is_dir() else temporary).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file.txt", "folder"])
def test_next_write_removes_files_left_by_a_killed_writer(tmp_path, kind):
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, kind, tmp_path / kind], check=False)
    assert done.returncode == -signal.SIGKILL
    (leftover,) = file_names(tmp_path)
    assert leftover.startswith(".")
    with atomic_write(tmp_path / "other.txt") as temporary:
        assert leftover not in file_names(tmp_path)
        with atomic_folder(tmp_path / "more"), atomic_write(tmp_path / "third.txt"):
            assert temporary.exists()  # in use by a live writer
    assert file_names(tmp_path) == ["more", "other.txt", "third.txt"]


def test_temporary_file_removed_before_locking_is_recreated(tmp_path, monkeypatch):
    flock, taken = files.fcntl.flock, []

    def delayed_flock(handle, kind):
        if not taken:  # another process gets there first
            taken.extend(tmp_path.iterdir())
            taken[0].unlink()
        flock(handle, kind)

    monkeypatch.setattr(files.fcntl, "flock", delayed_flock)
    with atomic_write(tmp_path / "file") as temporary:
        assert temporary not in taken
        temporary.write_text("whole")
    assert (tmp_path / "file").read_text() == "whole"


def test_partial_frames_are_skipped_and_damaged_frames_are_reported(tmp_path):
    run = shutil.copytree(finished(), tmp_path / "run")
    dataset = load_job_dataset(read_config(run / "config.toml"))
    expected = gallery._courses(run, dataset)
    shutil.copy(run / "frames" / "000001.npz", run / "frames" / ".000001-ab.npz")
    assert len(gallery._courses(run, dataset)["samples"].epochs) == len(expected["samples"].epochs)
    for content in (b"", b"PK", (run / "frames" / "000001.npz").read_bytes()[:-30]):
        (run / "frames" / "000001.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"000001\.npz"):
            gallery._courses(run, dataset)
    np.savez(run / "frames" / "000001.npz", samples=np.zeros((16, 3)))
    with pytest.raises(UserError, match=r"000001\.npz holds no frame"):
        gallery._courses(run, dataset)
    with np.load(run / "frames" / "000000.npz") as frame:
        np.savez(run / "frames" / "000001.npz", **{name: rows[:-1] for name, rows in frame.items()})
    with pytest.raises(UserError, match=r"0000\d\d\.npz holds other images than 0000\d\d\.npz"):
        gallery._courses(run, dataset)


# A full disk


@pytest.fixture
def iwae(capsys):
    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        return status, capsys.readouterr().err

    return run


@pytest.fixture
def experiment(tmp_path):
    small.write_config(tmp_path / "experiment.toml")
    return tmp_path / "experiment.toml"


@pytest.mark.parametrize("folder", quick(["checkpoints", "final-0"], "checkpoints"))
def test_full_disk_gives_a_one_line_error_and_the_run_resumes(
    iwae, experiment, tmp_path, monkeypatch, folder
):
    write, run = Path.write_bytes, tmp_path / "run"

    def fail_if_full(path, content):
        if path.parent.name == folder:
            # It names no file, as for an open one.
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", fail_if_full)
        status, err = iwae("train", experiment, "--out", run, "--quiet")
    assert status == 1
    assert err.startswith(f"iwae: {run}/")
    assert ".safetensors: No space left on device; free some space" in err
    assert ".iwae-" not in err
    assert err.count("\n") == 1
    assert iwae("train", "--resume", run, "--quiet")[0] == 0
    assert small.outcome(run) == small.outcome(finished())


def test_tensorboard_write_failure_reaches_the_caller(tmp_path, monkeypatch):
    from tensorboardX.record_writer import RecordWriter

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with tensorboard_metrics(tmp_path, 0) as write, monkeypatch.context() as patched:
        patched.setattr(RecordWriter, "write", fail)
        with pytest.raises(OSError, match="No space left"):
            write(1, {"a": 1.0})


def test_tensorboard_file_names_are_unique_after_the_clock_is_set_back(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1e9)
    for step in (0, 30):
        with tensorboard_metrics(tmp_path, step) as write:
            write(step + 1, {"a": 1.0})
    assert len(file_names(tmp_path / "tensorboard")) == 2


# A deleted run folder


@pytest.mark.parametrize(
    ("moment", "replaced"),
    quick_rows([("epoch", False), ("epoch", True), ("end", False), ("end", True)], 0, 3),
)
def test_deleted_run_folder_ends_training_with_a_one_line_error(
    iwae, experiment, tmp_path, monkeypatch, moment, replaced
):
    from iwae.runs import start_and_resume

    run, log, save = tmp_path / "run", start_and_resume.log_metrics, start_and_resume.save_model

    def delete_run():
        shutil.rmtree(run)
        if replaced:
            run.mkdir()
            (run / ".lock").touch()

    def log_and_delete(*arguments):
        logged = log(*arguments)
        delete_run()
        return logged

    def save_and_delete(*arguments, finished, **about):
        save(*arguments, finished=finished, **about)
        if finished:
            delete_run()

    if moment == "epoch":
        monkeypatch.setattr(start_and_resume, "log_metrics", log_and_delete)
    else:
        monkeypatch.setattr(start_and_resume, "save_model", save_and_delete)
    status, err = iwae("train", experiment, "--out", run, "--quiet", "--validation", "0")
    assert (status, err.count("\n")) == (1, 1)
    assert f"iwae: {run} was removed or replaced during training" in err
    assert not (run / "models").exists()


@pytest.mark.parametrize("file", [".npz", ".json"])
def test_writing_a_record_into_a_deleted_run_raises(tmp_path, monkeypatch, file):
    def replace(self, path):
        self.rename(path)
        if path.suffix == file:
            shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(files, "_sync", lambda _: None)
    monkeypatch.setattr(Path, "replace", replace)
    path = tmp_path / "run" / "evaluations" / "record.json"
    path.parent.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"record|evaluations"):
        write_record_files(path, {"a": 1}, {"values": np.zeros(3)})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl"])
def test_folder_in_place_of_a_file_is_reported(iwae, tmp_path, name):
    run = shutil.copytree(finished(), tmp_path / "run")
    (run / name).unlink()
    (run / name).mkdir()
    status, err = iwae("train", "--resume", run)
    assert (status, err) == (
        2,
        f"iwae: {run / name} is a folder, where a file is needed: remove it\n",
    )


# Damaged files


@pytest.mark.parametrize("compress", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("old", "new"), [(b"(9000, 6)", b"(9000, 2)"), (b"<f8", b"<f4")], ids=["shape", "dtype"]
)
def test_altered_array_header_is_detected(tmp_path, compress, old, new):
    compress(tmp_path / "mine.npz", train=np.random.default_rng(0).normal(size=(9000, 6)))
    stored = np.lib.format
    with zipfile.ZipFile(tmp_path / "mine.npz") as archive:
        member, info = archive.read("train.npy"), archive.getinfo("train.npy")
    changed = member.replace(old, new, 1)
    assert changed != member
    assert stored.read_array(io.BytesIO(changed)).size  # NumPy alone would load it
    damaged = io.BytesIO()
    with zipfile.ZipFile(damaged, "w", info.compress_type) as archive:
        archive.writestr("train.npy", changed)
    crc = zipfile.crc32(changed).to_bytes(4, "little")
    content = damaged.getvalue().replace(crc, info.CRC.to_bytes(4, "little"))
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"mine\.npz .*bad checksum of 'train\.npy'"):
        load_dataset(tmp_path / "mine.npz")


def test_empty_run_configuration_is_damage_rather_than_defaults(tmp_path):
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(UserError, match=r"config\.toml is damaged: a run stores"):
        folder_config(tmp_path)


def test_array_hidden_from_the_archive_directory_is_reported(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, train=np.eye(8), test=np.eye(8))
    content = bytearray(path.read_bytes())
    first = content.index(b"PK\x01\x02")
    content[first + 32] = len(content) - 22 - content.index(b"PK\x01\x02", first + 1)  # hides it
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["train.npy"]
    with pytest.raises(UserError, match="1 of 2 arrays are listed"):
        load_dataset(path)


def test_error_messages_truncate_long_names_and_labels(tmp_path):
    labels = {"train_labels": np.array(list("abababab")), "test_labels": np.array(["z" * 5000] * 8)}
    np.savez(tmp_path / "mine.npz", train=np.eye(8), test=np.eye(8), **labels)
    with pytest.raises(UserError, match=r"the label z+ .* has no training") as caught:
        load_dataset(tmp_path / "mine.npz", labels=True)
    assert len(str(caught.value)) < 800
    (tmp_path / "mine.csv").write_text(f"a,{'b' * 5000},c\n1,2,3\n4,5,6\n7,8,9\n")
    with pytest.raises(UserError, match="'e'") as caught:
        load_dataset(tmp_path / "mine.csv", labels="e")
    assert len(str(caught.value)) < 800


def test_signalling_nan_is_a_missing_value_without_a_warning(tmp_path):
    values = np.random.default_rng(0).normal(size=(8, 4))
    values.view(np.uint64)[2, 1] = 0x7FF0_0000_0000_0001
    np.save(tmp_path / "mine.npy", values)
    with pytest.raises(UserError, match="row 3, column 2 is not a number"):
        load_dataset(tmp_path / "mine.npy")

    grey = np.full((2, 4), 0.5, np.float32)
    grey.view(np.uint32)[1, 2] = 0x7F80_0001
    assert gallery._images(grey, gallery.Layout((2, 2), Kind("gaussian")))[1, 1, 0] == 0.5


def test_undecodable_column_name_is_refused(tmp_path):
    path = tmp_path / "mine.parquet"
    pd.DataFrame({"h\u00f6he": np.arange(8.0)}).to_parquet(path)
    path.write_bytes(path.read_bytes().replace("\u00f6".encode(), b"\xeb\xeb"))
    for read in (load_dataset, open_parquet_file):
        with pytest.raises(UserError, match=r"mine\.parquet cannot be read: .* can't decode"):
            read(path)


@pytest.mark.parametrize("checksum", [{"sha256": "0" * 64}, {"md5": "0" * 32}])
def test_only_published_matlab_files_are_parsed(tmp_path, monkeypatch, checksum):
    (tmp_path / "chardata.mat").write_bytes(b"MATLAB 5.0")
    monkeypatch.setattr(readers, "_matrices", lambda *_: pytest.fail("was parsed"))
    file = DataFile("chardata.mat", readers.read_omniglot_mat, {}, **checksum)
    with pytest.raises(readers.DamagedError, match="not the published one"):
        check_dataset_file(file, tmp_path / "chardata.mat")


def test_zip_bomb_is_refused_without_unpacking(tmp_path):
    path = tmp_path / "mine.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("train.npy", "w", force_zip64=True) as member,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": (300, 2**20)}
        np.lib.format.write_array_header_1_0(member, header)
        for _ in range(300):
            member.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(UserError, match="but unpacks to 314,"):
        load_dataset(path)


@pytest.mark.parametrize(
    "text",
    [
        "k = " + 3000 * "[",
        "k = " + 4400 * "1",
        "a." * 20_000 + "b = 1",
        "a.\n" * 9 + "x = 1",
        f"objective = '{'x' * 5000}'",
        f"{'k' * 5000} = 1",
        f"dataset = ['{'x' * 5000}']",
        f"stages = '{'x' * 5000}'",
        "#" * 200_000,
    ],
    ids=itertools.count(),
)
def test_malicious_experiment_file_is_refused_quickly_with_a_short_message(tmp_path, text):
    path, start = tmp_path / "experiment.toml", time.process_time()
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 2500
    assert time.process_time() - start < 2


def test_long_unknown_dataset_name_gives_a_short_message(tmp_path):
    (tmp_path / "experiment.toml").write_text(f"dataset = '{'x' * 5000}'")
    with pytest.raises(UserError, match="xxx") as caught:
        next(start_run(read_config(tmp_path / "experiment.toml"), tmp_path / "run"))
    assert len(str(caught.value)) < 2500


def test_extreme_test_rows_are_refused_without_a_warning(tmp_path):
    train = np.random.default_rng(0).normal(size=(8, 2)) * 1e-115
    np.savez(tmp_path / "mine.npz", train=train, test=np.ones((3, 2)))
    with pytest.raises(UserError, match="too far from the training rows for float32"):
        load_dataset(tmp_path / "mine.npz")


def test_long_multiline_lists_are_parsed(tmp_path):
    rates = [0.5 + i for i in range(500)]
    (tmp_path / "sweep.toml").write_text(
        "learning_rate = [\n" + "".join(f"{rate},\n" for rate in rates) + "]"
    )
    assert read_toml(tmp_path / "sweep.toml") == {"learning_rate": rates}


VALID_ROW = {
    "epoch": 1,
    "step": 30,
    "learning_rate": 0.1,
    "train_bound": [-3.0],
    "kl": [[1.0, None]],
}


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": float("inf")},
        {"epoch": None},
        {"epoch": 1.5},
        {"step": True},
        {"learning_rate": None},
        {"learning_rate": "fast"},
        {"train_bound": None},
        {"train_bound": -3.0},
        {"kl": 3},
        {"kl": [["x"]]},
        {"kl": [10**400]},
        {"kl": [[[1.0]]]},
        {"reconstruction": [float("nan")]},
    ],
    ids=str,
)
def test_metrics_line_with_a_value_of_the_wrong_type_is_skipped(tmp_path, change):
    lines = [json.dumps(VALID_ROW), json.dumps(VALID_ROW | change).replace("Infinity", "1e999")]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    assert read_metrics(tmp_path) == [VALID_ROW]


def test_damaged_tracker_notes_are_skipped(tmp_path):
    notes = tmp_path / "notes.jsonl"
    lines = [b'{"id": "a", "step": -1}', b"\xff\xfe", b'{"step": 1e999}', b'{"id": 5}', b"[" * 9000]
    notes.write_bytes(b"\n".join([*lines, b'{"step": 3}', b""]))
    assert trackers._read_notes(notes) == ("a", 3)


def test_model_description_with_too_many_layers_is_refused_quickly(tmp_path):
    save_model(VAE(6, (3,), ((5,),), key=small.jax.random.key(0)), tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    for change in (
        {"hidden_sizes": [list(range(1, 500))]},
        {"latent_sizes": [3] * 99, "hidden_sizes": [[5]] * 99},
        {"network": {"name": "mlp", "blocks": 99}},
        {"hidden_sizes": []},
    ):
        description["architecture"].update(change)
        (tmp_path / "model.json").write_text(json.dumps(description))
        start = time.process_time()
        with pytest.raises(UserError, match="describes no model"):
            load_model(tmp_path)
        assert time.process_time() - start < 1
    check_model_file_depth({"hidden_sizes": [[5] * 31, [5] * 31]})
    with pytest.raises(UserError, match="a model of 66 layers: 64 are the most"):
        next(start_run(small.config(hidden_sizes=[[5] * 65]), tmp_path / "run"))


# Campaigns: a small count of each


def test_damaged_files_of_every_kind_load_or_give_an_error():
    import inputs

    assert inputs.read(inputs.KINDS["csv"], Path("/nowhere")).description == "refused"
    outcomes = inputs.campaign(seed=0, count=150)
    assert outcomes.total() == 150
    assert not [outcome for outcome in outcomes if outcome.endswith("WRONG")]


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)
@pytest.mark.parametrize(
    "arguments",
    [
        ("faults.py", "--count", "2", "--command", "train", "--kind", "full disk"),
        ("kills.py", "--count", "1", "--case", "plain"),
        ("memory.py", "--count", "2", "--case", "plain"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_fault_campaigns_find_no_wrong_outcome(arguments):
    program, *options = arguments
    path = Path(__file__).parent / "campaigns" / program
    arguments = [sys.executable, path, *options]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 wrong" in done.stdout.splitlines()[-1]
