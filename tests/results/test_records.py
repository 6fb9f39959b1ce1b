"""Records: parsing, committed records, damage, packing and the long table."""

import json
from pathlib import Path

import numpy as np
import pytest

from iwae import UserError
from iwae.results import record_files
from iwae.results.description import describe, gradients_description
from iwae.results.formatting import plus_minus
from iwae.results.frame import Result, results, results_frame, write_results_csv
from iwae.results.reading import read_bounds, read_records
from iwae.results.record_files import (
    RECORDS,
    VALUES,
    check_packed_records,
    has_record_files,
    pack,
    read_documents,
    read_record_arrays,
    unpack,
    write_record_files,
)
from iwae.results.schema import VERSION, Fields, Method, parse

RESULTS = Path(__file__).parents[2] / "results"

SAMPLED = {
    "method": "importance sampling",
    "dataset": "digits",
    "split": "test",
    "weights": "final",
    "pruned": False,
    "n": 4,
    "subset": None,
    "test_sha256": "t",
    "active_units": [2],
    "replicate": 0,
    "by_k": [{"k": k, "log_likelihood": -8.0 - 1 / k, "stderr": 0.5} for k in (1, 50)],
}


def write_record(run, name="a", **changes):
    """Write a small record and its values, as a measurement does."""
    path = run / "evaluations" / f"{name}.json"
    run.mkdir(parents=True, exist_ok=True)
    values = np.arange(8.0).reshape(1, 2, 4) - 9
    arrays = {"k": np.array([1, 50]), "index": np.arange(4), "log_likelihood": values}
    write_record_files(path, {**SAMPLED, **changes}, arrays)
    return path


# committed records


def committed_folders():
    folders = {path.parent for path in RESULTS.rglob(RECORDS)}
    return sorted(folder for folder in folders if folder.name == "evaluations")


def test_committed_records_survive_a_round_trip():
    methods = set()
    for folder in committed_folders():
        for path, document in read_documents(folder).items():
            record = parse(document)
            again = record.document()
            assert again.pop("version") == VERSION, path
            old = {name: value for name, value in document.items() if name != "version"}
            assert record.method == Method.GRADIENTS or again == old, path
            assert not _unknown(record), path
            description = gradients_description if record.method == Method.GRADIENTS else describe
            assert description(record)
            assert parse(record.document()) == record
            methods.add(record.method)
    assert methods == set(Method)


def _unknown(fields):
    """Names of fields that no class declares, except those that replicates repeat."""
    found = set(fields.model_extra or {}) - {"dataset", "split", "n", "test_sha256"}
    for value in fields.__dict__.values():
        for one in value if isinstance(value, tuple) else (value,):
            found |= _unknown(one) if isinstance(one, Fields) else set()
    return found - {"parameters", "difference", "stderr"}


def test_committed_records_are_packed_and_intact():
    loose = [path for folder in committed_folders() for path in folder.glob("*.json")]
    assert not loose, "python docs/tools/pack.py"
    packed = sorted(path.parent for path in RESULTS.rglob(RECORDS))
    assert sum(map(check_packed_records, packed)) >= 223


# damage


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"by_k": [{"k": 1, "log_likelihood": -8.0}]}, "no by_k.0.stderr"),
        ({"by_k": [{"k": 1, "stderr": 0.5}]}, "no by_k.0.log_likelihood"),
        ({"by_k": [{"k": 1, "log_likelihood": "low", "stderr": 1.0}]}, "by_k.0.log_likelihood: "),
        ({"n": None}, "n: "),
        ({"by_k": 3}, "by_k: "),
        ({"replicates": [{"epoch": 3}, None]}, "replicates.1: "),
        ({"version": VERSION + 1}, f"its version is {VERSION + 1}.*update iwae"),
        ({"version": []}, "unhashable|version"),
        ({"rows": 3}, "not iterable|rows"),
    ],
)
def test_invalid_record_is_reported_with_its_field(tmp_path, caplog, changes, message):
    path = write_record(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as error:
        parse(json.loads(path.read_text()))
    assert "\n" not in str(error.value)
    assert list(read_records(tmp_path)) == []
    assert f"{path} cannot be read as a record" in caplog.text
    assert record_files.REMEDY in caplog.text


@pytest.mark.parametrize("name", sorted(SAMPLED.keys() - {"replicate"}))
def test_missing_required_field_is_refused(name):
    with pytest.raises(UserError, match=f"no {name}" if name != "method" else "method"):
        parse({key: value for key, value in SAMPLED.items() if key != name})


def test_damaged_values_are_reported_or_unaffected(tmp_path):
    """Eight bytes of 0xff at every position of a small file; zlib, zip and NumPy raise errors."""
    path = write_record(tmp_path)
    values = path.with_suffix(".npz")
    good, content = read_record_arrays(path), values.read_bytes()
    reported = 0
    for position in range(len(content)):
        values.write_bytes(content[:position] + b"\xff" * 8 + content[position + 8 :])
        messages = []
        arrays = read_record_arrays(path, messages.append)
        if arrays is None:
            reported += 1
            assert f"{values} cannot be read" in messages[0]
            assert "\n" not in messages[0]
        elif arrays.keys() == good.keys():  # the damage is in a field that is not read
            assert all(np.array_equal(arrays[name], good[name]) for name in good)
        else:
            assert read_bounds(tmp_path, split="test", weights="final", pruned=False) == []
    assert reported > len(content) / 2


def test_values_missing_from_a_pack_are_reported(tmp_path, caplog):
    folder = write_record(tmp_path).parent
    pack(folder)
    np.savez(folder / VALUES, **{"b/index": np.arange(4)})
    assert read_bounds(tmp_path, split="test", weights="final", pruned=False) == []
    assert f"{folder / VALUES} cannot be read (no array a/" in caplog.text


# packing


def test_packing_keeps_records_and_unpacks_to_the_same_bytes(tmp_path):
    first, second = write_record(tmp_path), write_record(tmp_path, "b", n=4, seed=1)
    texts = [path.read_text() for path in (first, second)]
    before = read_bounds(tmp_path, split="test", weights="final", pruned=False)
    folder = first.parent
    assert len(pack(folder)) == 4
    assert {path.name for path in folder.iterdir()} == {RECORDS, VALUES}
    assert pack(folder) == []
    after = read_bounds(tmp_path, split="test", weights="final", pruned=False)
    assert [one.record for one in after] == [one.record for one in before]
    assert all(np.array_equal(a.values, b.values) for a, b in zip(before, after, strict=True))
    assert has_record_files(first)
    assert not has_record_files(folder / "c.json")
    unpack(folder)
    assert [path.read_text() for path in (first, second)] == texts
    assert not (folder / RECORDS).exists()


def test_new_measurement_replaces_the_packed_one(tmp_path):
    path = write_record(tmp_path)
    write_record(tmp_path, "b")
    pack(path.parent)
    write_record(tmp_path, seed=7)
    assert [record.seed for _, record in read_records(tmp_path)] == [7, 0]
    pack(path.parent)
    assert [record.seed for _, record in read_records(tmp_path)] == [7, 0]
    assert check_packed_records(path.parent) == 2


@pytest.mark.parametrize("writes", [0, 1])
def test_kill_while_packing_loses_nothing(tmp_path, monkeypatch, writes):
    path = write_record(tmp_path)
    pack(path.parent)
    write_record(tmp_path, seed=7)
    write_record(tmp_path, "b")
    original, done = record_files.atomic_write, []

    def killed(file):
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(file)
        return original(file)

    monkeypatch.setattr(record_files, "atomic_write", killed)
    with pytest.raises(KeyboardInterrupt):
        pack(path.parent)
    monkeypatch.undo()
    assert [record.seed for _, record in read_records(tmp_path)] == [7, 0]
    assert len(read_bounds(tmp_path, split="test", weights="final", pruned=False)) == 4


def test_measurement_made_while_packing_is_kept(tmp_path, monkeypatch):
    path = write_record(tmp_path)
    original = record_files.atomic_write

    def slow(file):
        if file.name == RECORDS:
            monkeypatch.undo()
            write_record(tmp_path, seed=7)
        return original(file)

    monkeypatch.setattr(record_files, "atomic_write", slow)
    pack(path.parent)
    assert [record.seed for _, record in read_records(tmp_path)] == [7]


def test_changed_pack_is_detected(tmp_path):
    folder = write_record(tmp_path).parent
    pack(folder)
    lines = folder / RECORDS
    lines.write_text(lines.read_text().replace('"n": 4', '"n": 5'))
    with pytest.raises(UserError, match=r"a in .* is not what was packed"):
        check_packed_records(folder)
    lines.write_text(lines.read_text().replace('"n": 5', '"n": 4'))
    assert check_packed_records(folder) == 1
    with np.load(folder / VALUES) as arrays:
        changed = {name: array + (name == "a/log_likelihood") for name, array in arrays.items()}
    np.savez(folder / VALUES, **changed)
    with pytest.raises(UserError, match="values_sha256"):
        check_packed_records(folder)


# the long table


def test_long_table_has_a_row_per_model_budget_and_mean(tmp_path):
    part = {"by_k": SAMPLED["by_k"], "active_units": [2]}
    each = [{**part, "replicate": r, "model_sha256": "ab"[r]} for r in (0, 1)]
    by_k = [{**row, "between_replicates_sd": 0.25} for row in SAMPLED["by_k"]]
    write_record(tmp_path / "two", by_k=by_k, replicates=each)
    write_record(tmp_path / ".half" / "made")
    rows = list(results([tmp_path]))
    assert [(one.replicate, one.quantity, one.budget) for one in rows] == [
        (replicate, f"L_{k}", k) for replicate in (None, 0, 1) for k in (1, 50)
    ]
    assert [one.between_replicates_sd for one in rows] == [0.25, 0.25, None, None, None, None]
    assert [one.model_sha256 for one in rows[2:]] == ["a", "a", "b", "b"]
    assert {(one.mean, one.stderr, one.n) for one in rows} == {(-9.0, 0.5, 4), (-8.02, 0.5, 4)}


def test_long_table_of_the_results_has_every_method():
    frame = results_frame(RESULTS / "camel", RESULTS / "labels", RESULTS / "table1")
    assert list(frame.columns) == list(Result._fields)
    assert set(frame["method"]) == {method.value for method in Method}
    row = frame[(frame["run"].str.endswith("iwae-k20/seeds-0-3")) & (frame["quantity"] == "L_5000")]
    means = row[row["replicate"].notna()]["mean"]
    assert len(means) == 4
    assert row[row["replicate"].isna()]["mean"].iloc[0] == pytest.approx(means.mean(), abs=1e-12)


def test_long_table_is_written_as_csv_or_refused(tmp_path):
    write_record(tmp_path / "run")
    write_results_csv([tmp_path], tmp_path / "table.csv")
    head, *rows = (tmp_path / "table.csv").read_text().splitlines()
    assert head.split(",") == list(Result._fields)
    assert len(rows) == 2
    with pytest.raises(UserError, match="is a folder; name a file"):
        write_results_csv([tmp_path], tmp_path)
    with pytest.raises(UserError, match="no folder"):
        list(results([tmp_path / "none"]))


def test_plus_minus_formats_a_mean_and_its_error():
    assert plus_minus(None, 1.0) == "not finite"
    assert plus_minus(-1.25, None, 2) == "-1.25"
    assert plus_minus(1.0, 0.5, 1, sign="+") == "+1.0 ± 0.5"
    assert plus_minus(1.0, 0.5, 1, spread=0.25, of=" of seeds") == "1.0 ± 0.5 (sd of seeds 0.2)"
