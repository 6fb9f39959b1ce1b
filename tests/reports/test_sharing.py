"""Sharing models: exported folders, model cards, untrusted files and the hub."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image
from safetensors.numpy import load_file, save_file

import small
from iwae import from_pretrained, load_model, push_to_hub
from iwae.cli import main
from iwae.config.toml import read_config
from iwae.errors import UserError
from iwae.files import atomic_folder
from iwae.reports import export, figures
from iwae.reports.export import FILES, export_run
from iwae.results.ais import Annealing, anneal_run
from iwae.results.bdmc import bdmc_run
from iwae.results.likelihood import evaluate_run
from iwae.runs.model_files import read_model_facts, save_model
from iwae.runs.trained import trained_model_folder
from shared_models import assert_refused, read_card, split_card
from small import finished


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two replicates with best weights, and records of the final ones by three methods."""
    run = small.unmeasured(finished(replicates=2), tmp_path_factory.mktemp("sharing") / "run")
    short = Annealing(temperatures=20, chains=2, leapfrog=1)
    evaluate_run(run, ks=(1, 20))
    evaluate_run(run, ks=(20,), examples=10)
    anneal_run(run, annealing=short, examples=20)
    bdmc_run(run, annealing=short, examples=4, k=10)
    return run


def record(run, name):
    return json.loads((run / "evaluations" / f"{name}.json").read_text())


# The exported folder


@pytest.mark.slow
def test_export_is_the_measured_model(measured, tmp_path):
    folder = export_run(measured, tmp_path / "shared", replicate=1)
    assert {path.name for path in folder.iterdir()} == set(FILES)
    source = trained_model_folder(measured, "final", 1)
    weights = (path / "model.safetensors" for path in (folder, source))
    assert next(weights).read_bytes() == next(weights).read_bytes()
    assert small.bits(load_model(folder)) == small.bits(load_model(source))
    about = read_model_facts(folder)
    assert (about["replicate"], about["weights"], about["epoch"]) == (1, "final", 4)
    with Image.open(folder / "samples.png") as picture:
        assert min(picture.size) > 100


@pytest.mark.slow
def test_export_reveals_no_path(measured, tmp_path):
    folder = export_run(measured, tmp_path / "shared")
    assert read_config(folder / "config.toml").dataset == "pictures.npz"
    for path in folder.iterdir():
        for place in (small.FOLDER, measured.parent, tmp_path):
            assert str(place).encode() not in path.read_bytes(), path.name


@pytest.mark.slow
def test_exported_configuration_matches_the_run(measured, tmp_path):
    folder = export_run(measured, tmp_path / "shared")
    ours, theirs = (read_config(path / "config.toml") for path in (folder, measured))
    assert ours.model_copy(update={"dataset": theirs.dataset}) == theirs


@pytest.mark.slow
def test_export_is_reproducible(measured, tmp_path):
    one, other = (export_run(measured, tmp_path / name) for name in ("one", "other"))
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


# The card


@pytest.mark.slow
def test_card_numbers_come_from_records(measured, tmp_path):
    matter, body = split_card(read_card(export_run(measured, tmp_path / "shared", replicate=1)))
    body = body.replace("\N{MINUS SIGN}", "-")
    sampled = record(measured, "test-final-k20")["replicates"][1]
    annealed = record(measured, next(_names(measured, "ais")))["replicates"][1]
    found = {one["name"].split(",")[0]: one["value"] for one in _metrics(matter)}
    assert found == {
        "L_1": sampled["by_k"][0]["log_likelihood"],
        "L_20": sampled["log_likelihood"],  # of all 50, not of the subset
        "AIS_20": annealed["by_temperatures"][-1]["whole"]["log_likelihood"],  # extrapolated
    }
    mean, error = sampled["log_likelihood"], sampled["stderr"]
    noise = f"Monte Carlo error {sampled['monte_carlo_error']:.3f}, k-hat unknown"
    row = f"| L_20 | {mean:.3f} ± {error:.3f} | {noise} | 50 | lower bound by 20 "
    assert row in body
    assert f"20 temperatures and 2 chains; {annealed['verdict']['word']} |" in body
    gap = record(measured, next(_names(measured, "bdmc")))["replicates"][1]
    assert f"{gap['mixed_gap']:.3f} ± {gap['mixed_gap_stderr']:.3f} nats apart" in body
    assert f"Active units: {sampled['active_units'][0]} of 2 " in body
    assert sampled["model_sha256"] in body
    assert "| examples | 300 to train, 50 to validate, 50 to test |" in body
    assert "| epochs | 4 of 4; the last weights |" in body
    assert "| seed | 1 |" in body
    assert record(measured, "test-final-k20")["test_sha256"] in body
    assert "Not measured" not in body


def _metrics(matter):
    return matter["model-index"][0]["results"][0]["metrics"]


def _names(run, word):
    return (path.stem for path in (run / "evaluations").glob(f"*{word}*.json"))


@pytest.mark.slow
def test_hub_reads_the_front_matter(measured, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(
        export_run(measured, tmp_path / "shared", license="mit") / "README.md"
    )
    assert (card.data.license, card.data.library_name) == ("mit", "iwae")
    assert card.data.model_name.endswith("iwae, k = 2")
    assert {one.metric_type for one in card.data.eval_results} == {"log_likelihood"}
    assert {one.dataset_split for one in card.data.eval_results} == {"test"}


@pytest.mark.slow
def test_card_names_the_command_for_missing_measurements(measured, tmp_path):
    folder = export_run(measured, tmp_path / "shared", weights="best")
    matter, body = split_card(read_card(folder))
    assert "model-index" not in matter
    assert "metrics" not in matter
    assert "license" not in matter
    assert body.count("`iwae evaluate RUN --weights best`") == 2
    for words in ("Not measured.", "Nobody has measured", "No licence was stated"):
        assert words in body


@pytest.mark.slow
def test_records_of_other_weights_are_left_out(measured, tmp_path, caplog):
    run = shutil.copytree(measured, tmp_path / "run")
    folder = trained_model_folder(run, "final", 0)
    model, about = load_model(folder), read_model_facts(folder)
    changed = eqx.tree_at(lambda m: m.output.bias, model, model.output.bias + 1.0)
    save_model(changed, folder, **about)
    assert "Not measured" in read_card(export_run(run, tmp_path / "one"))
    assert "is of other weights than these and is omitted" in caplog.text
    assert "Not measured" not in read_card(export_run(run, tmp_path / "two", replicate=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"), [("split", "validation"), ("weights", "best"), ("pruned", True)]
)
def test_records_of_other_examples_or_models_are_left_out(measured, tmp_path, name, value):
    run = shutil.copytree(measured, tmp_path / "run")
    for path in (run / "evaluations").glob("test-*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    assert "Not measured" in read_card(export_run(run, tmp_path / "shared"))


@pytest.mark.slow
def test_card_of_a_stopped_run_says_so(measured, tmp_path):
    run = shutil.copytree(measured, tmp_path / "run")
    path = trained_model_folder(run, "final", 0) / "model.json"
    description = json.loads(path.read_text())
    description["about"] |= {"finished": False, "epoch": 3}
    path.write_text(json.dumps(description))
    body = read_card(export_run(run, tmp_path / "shared"))
    assert "| epochs | 3 of 4 (not finished); the last weights |" in body
    assert "Training was stopped before its end." in body


@pytest.mark.slow
def test_foreign_dataset_name_is_escaped(measured, tmp_path):
    run = shutil.copytree(measured, tmp_path / "run")
    path = trained_model_folder(run, "final", 0) / "model.json"
    name = 'x`|"\n---\n# <script>: {{ 7 * 7 }}'
    description = json.loads(path.read_text())
    description["about"]["dataset"]["name"] = name
    path.write_text(json.dumps(description))
    matter, body = split_card(read_card(export_run(run, tmp_path / "shared")))
    assert matter["model-index"][0]["results"][0]["dataset"]["name"] == name
    assert "| data | `x'/\" --- # <script>: {{ 7 * 7 }}` |" in body


@pytest.mark.slow
def test_code_on_the_card_runs(measured, tmp_path):
    folder = export_run(measured, tmp_path / "shared")
    (code,) = re.findall(r"```python\n(.*?)```", read_card(folder), re.DOTALL)
    assert len(code.splitlines()) == 3
    namespace = {}
    exec(code.replace("PATH", str(folder)), namespace)  # noqa: S102
    assert namespace["x"].shape == (16,)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["poisson", "logistic-mixture", "gaussian"])
def test_other_observation_models_have_a_card(kind, tmp_path):
    rng = np.random.default_rng(0)
    flat = rng.poisson(3, (40, 5)).astype(np.float32)
    shaped = rng.integers(0, 256, (40, 2, 2)).astype(np.uint8)
    rows = shaped if kind == "logistic-mixture" else flat if kind == "poisson" else flat + 0.5
    np.savez(tmp_path / "rows.npz", train=rows[:30], test=rows[30:])
    run = tmp_path / "run"
    options = {"dataset": str(tmp_path / "rows.npz"), "validation": None, "epochs": 1}
    small.train_in(run, observation=kind, **options)
    evaluate_run(run, ks=(5,))
    matter, body = split_card(read_card(export_run(run, tmp_path / "shared")))
    types = [one["type"] for one in _metrics(matter)]
    levels = kind == "logistic-mixture"
    assert types == ["log_likelihood", *["bits_per_dimension"] * levels]
    assert ("pipeline_tag" in matter) == levels
    assert ("bits per dimension |" in body) == levels
    assert ("densities" if kind == "gaussian" else "probabilities") in body


def test_marginals_suit_the_type_of_each_column():
    rng = np.random.default_rng(0)
    columns = [rng.normal(size=500), rng.poisson(4, 500), np.ones(500), 1e6 * rng.random(500)]
    figure = figures.marginals(np.stack(columns, axis=1))
    bars = [len(axes.patches) for axes in figure.axes]
    assert bars == [40, np.ptp(columns[1]) + 1, 1, 40]
    heights = [sum(bar.get_height() for bar in axes.patches) for axes in figure.axes]
    assert heights == [500] * 4
    assert len(figures.marginals(rng.normal(size=(9, 30))).axes) == 12
    with_gaps = np.where(np.arange(9)[:, None] < [3, 9], np.nan, 1.0)
    drawn = figures.marginals(with_gaps, gaps=True)
    assert [sum(bar.get_height() for bar in axes.patches) for axes in drawn.axes] == [6, 0]
    with pytest.raises(UserError, match="NaN or infinite"):
        figures.marginals(with_gaps)


def test_marginals_of_samples_are_drawn_over_the_data():
    rng = np.random.default_rng(0)
    data, samples = rng.normal(size=(400, 2)), rng.normal(2, 1, (500, 2))
    data[:100, 0] = np.nan
    figure = figures.marginals(samples, data=data, gaps=True, names=("age", "height"))
    assert [axes.get_xlabel() for axes in figure.axes] == ["age", "height"]
    for axes, behind, column in zip(figure.axes, data.T, samples.T, strict=True):
        *bars, outline = axes.patches
        edges = np.array([bar.get_x() for bar in bars])
        assert edges[0] == pytest.approx(min(np.nanmin(behind), column.min()))
        width = bars[0].get_width()
        assert sum(bar.get_height() * width for bar in bars) == pytest.approx(1)
        centre = sum(bar.get_height() * width * (bar.get_x() + width / 2) for bar in bars)
        assert centre == pytest.approx(np.nanmean(behind), abs=width)
        assert outline.get_xy()[:, 0].max() == pytest.approx(max(np.nanmax(behind), column.max()))


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["at-random", "not-at-random"])
def test_card_of_a_missing_data_model_explains_its_likelihoods(missing, tmp_path):
    rng = np.random.default_rng(0)
    rows = np.where(rng.random((40, 3)) < 0.2, np.nan, rng.normal(size=(40, 3)))
    np.savez(tmp_path / "rows.npz", train=rows[:30], test=rows[30:])
    options = {"dataset": str(tmp_path / "rows.npz"), "validation": None, "epochs": 1}
    small.train_in(tmp_path / "run", observation="gaussian", missing=missing, **options)
    folder = export_run(tmp_path / "run", tmp_path / "shared")
    assert f"| missing values | {missing}: NaN in an example; each likelihood" in read_card(folder)
    assert load_model(folder).missing == missing


# Atomic writing


@pytest.mark.slow
def test_failed_export_leaves_nothing_behind(measured, tmp_path, monkeypatch):
    export_run(measured, tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}

    def fail(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(export, "model_card", fail)
    for name in ("new", "old"):
        with pytest.raises(OSError, match="No space"):
            export_run(measured, tmp_path / name, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before


def test_atomic_folder_replaces_an_existing_one(tmp_path):
    for text in ("one", "two"):
        with atomic_folder(tmp_path / "a" / "b") as folder:
            (folder / text).write_text(text)
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["b", "two"]
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "a" / "b") as folder:
        (tmp_path / "a" / "b").rmdir()
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["b", "two"]


@pytest.mark.slow
def test_non_empty_folders_are_refused(measured, tmp_path):
    (tmp_path / "empty").mkdir()
    folder = export_run(measured, tmp_path / "empty")
    with pytest.raises(UserError, match="holds a model already; --overwrite replaces it"):
        export_run(measured, folder)
    picture = (folder / "samples.png").read_bytes()
    export_run(measured, folder, replicate=1, overwrite=True)
    assert read_model_facts(folder)["replicate"] == 1
    assert (folder / "samples.png").read_bytes() != picture  # samples of this model
    (folder / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds thesis.tex, which is not part of a model"):
        export_run(measured, folder, overwrite=True)
    with pytest.raises(UserError, match="is a file; name a folder"):
        export_run(measured, folder / "thesis.tex")


@pytest.mark.slow
def test_missing_parts_of_a_run_are_refused(measured, tmp_path):
    with pytest.raises(UserError, match=r"no replicate 2: .* has 0 to 1"):
        export_run(measured, tmp_path / "new", replicate=2)
    with pytest.raises(UserError, match="holds no run"):
        export_run(tmp_path, tmp_path / "new")
    with pytest.raises(UserError, match="no best weights of replicate 0"):
        export_run(small.unvalidated(), tmp_path / "new", weights="best")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_export_command(measured, tmp_path, capsys):
    folder = tmp_path / "shared"
    arguments = ["export", str(measured), str(folder), "--replicate", "1", "--license", "mit"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert main(arguments) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


# Untrusted files


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_run(finished(), tmp_path_factory.mktemp("whole") / "shared")


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_links_are_refused(folder, name, tmp_path):
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    assert_refused(folder, f"{name} is a link: put the file itself in its place")


def test_oversized_files_are_not_read(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(2**32 + 1)  # a sparse file, which takes no space on disk
    assert_refused(folder, r"has 4,294,967,297 bytes; a model has at most .*: it is not read")
    with (folder / "model.json").open("r+b") as file:
        file.truncate(2**24 + 1)
    assert_refused(folder, r"model.json has 16,777,217 bytes")


def test_oversized_header_is_not_read(folder):
    path = folder / "model.safetensors"
    path.write_bytes((2**24 + 1).to_bytes(8, "little") + path.read_bytes()[8:])
    assert_refused(folder, "its header claims to have 16,777,217 bytes")


def test_model_larger_than_its_file_is_refused_before_allocation(folder):
    path = folder / "model.json"
    text = path.read_text().replace('"n_data": 16', '"n_data": 100000000000')
    path.write_text(text)
    assert_refused(folder, r"does not fit .* expected")


def test_excessive_numbers_of_sizes_are_refused(folder):
    path = folder / "model.json"
    description = json.loads(path.read_text())
    description["architecture"]["hidden_sizes"] = [[1] * 100_000]
    path.write_text(json.dumps(description))
    assert_refused(folder, "describes no model: more than 1,000 sizes")
    kinds = [f"categorical:{n}" for n in range(2, 1100)]
    description["architecture"]["observation"] = {"name": "table", "columns": kinds}
    description["architecture"] |= {"hidden_sizes": [[1]], "n_data": len(kinds)}
    path.write_text(json.dumps(description))
    assert_refused(folder, "describes no model: more than 1,000 sizes or different words")


def test_unknown_keys_are_refused(folder):
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "code": "import os"}))
    assert_refused(folder, "has the unknown key 'code'")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_parameters_are_refused(folder, value):
    arrays = load_file(folder / "model.safetensors")
    arrays["output.bias"][3] = value
    save_file(arrays, folder / "model.safetensors")
    assert_refused(folder, r"is not a trained model: output.bias has numbers that are not finite")


def test_other_dtypes_are_refused_without_reading_the_arrays(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__")
    half = {  # the same bytes as twice as many half-precision numbers
        name: {**one, "dtype": "BF16", "shape": [2, *one["shape"]]} for name, one in header.items()
    }
    text = json.dumps(half).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    assert_refused(folder, r"is bfloat16\(2, .* there, float32.* expected")


@pytest.mark.parametrize("dtype", ["int32", "float64", "float16"])
def test_other_dtypes_of_the_same_shape_are_refused(folder, dtype):
    path = folder / "model.safetensors"
    arrays = {name: array.astype(dtype) for name, array in load_file(path).items()}
    save_file(arrays, path)
    assert_refused(folder, rf"is {dtype}\(.* there, float32\(.* expected")


@settings(max_examples=40)
@given(st.data())
def test_damaged_files_raise_only_user_errors(exported, tmp_path_factory, data):
    folder = shutil.copytree(exported, tmp_path_factory.mktemp("fuzz") / "copy")
    path = folder / data.draw(st.sampled_from(["model.safetensors", "model.json"]))
    content = bytearray(path.read_bytes())
    beginning = st.integers(0, min(2000, len(content) - 1))  # where headers and sizes are
    for _ in range(data.draw(st.integers(1, 4))):
        at = min(data.draw(beginning | st.integers(0, len(content))), len(content) - 1)
        match data.draw(st.sampled_from(["flip", "cut", "digits", "length"])):
            case "flip":
                content[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del content[max(at, 1) :]
            case "digits":
                content[at:at] = b"9" * data.draw(st.integers(1, 40))
            case "length":
                content[:8] = data.draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
    path.write_bytes(content)
    try:
        loaded = load_model(folder)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:  # only a fact changed, or nothing
        assert small.bits(loaded) == small.bits(load_model(exported))


@settings(max_examples=40)
@given(
    st.sampled_from(["n_data", "latent_sizes", "hidden_sizes", "observation", "activation"]),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats()
        | st.sampled_from(["table", "categorical", "poisson", "tanh", "__import__", ""]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["name", "categories", "columns", "a"]), inner)
        ),
        max_leaves=6,
    ),
)
def test_arbitrary_descriptions_raise_only_user_errors(exported, tmp_path_factory, field, value):
    folder = shutil.copytree(exported, tmp_path_factory.mktemp("fuzz") / "copy")
    path = folder / "model.json"
    description = json.loads(path.read_text())
    description["architecture"][field] = value
    path.write_text(json.dumps(description))
    try:
        loaded = load_model(folder)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert small.bits(loaded) == small.bits(load_model(exported))


# The hub


def test_model_round_trips_through_the_hub(hub, folder):
    (folder / "private.csv").write_text("1,2\n")
    url = push_to_hub(folder, "me/vae", private=True, revision="v1", token="t")  # noqa: S106
    assert url == "https://hub/me/vae/commit/1"
    assert hub.calls == [
        *(("api", "t"), ("repo", "me/vae", True, True), ("branch", "me/vae", "v1", True)),
        ("upload", "v1", "Model exported by iwae"),
    ]
    assert {path.name for path in (hub.folder / "me/vae").iterdir()} == set(FILES)
    loaded = from_pretrained("me/vae", revision="v1")
    files = ("model.safetensors", "model.json")
    assert hub.calls[-1] == ("download", "v1", None, None, files)
    assert small.bits(loaded) == small.bits(load_model(folder))


def test_downloaded_models_are_checked(hub, folder):
    push_to_hub(folder, "me/vae")
    file = hub.folder / "me/vae/model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match="cannot be read"):
        from_pretrained("me/vae")


def test_foreign_repository_is_refused(hub):
    (hub.folder / "me/bert").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"me/bert is not a model of iwae: it has no model.safetensors"
    ):
        from_pretrained("me/bert")
    assert not hub.downloads()


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("model.safetensors", 2**32 + 1, "^model.safetensors of me/vae has 4,294,967,297 bytes; "),
        ("model.json", 2**24 + 1, r"^model.json of me/vae has 16,777,217 bytes; .* not read$"),
        ("model.json", None, r"^the hub does not say how large model.json of me/vae is"),
    ],
)
def test_oversized_files_are_not_downloaded(hub, folder, name, size, message):
    push_to_hub(folder, "me/vae")
    hub.sizes = {name: size, "pytorch_model.bin": 2**40}
    with pytest.raises(UserError, match=message):
        from_pretrained("me/vae")
    assert not hub.downloads()
    hub.sizes = {"model.safetensors": 2**32, "model.json": 2**24, "pytorch_model.bin": 2**40}
    from_pretrained("me/vae")
    assert len(hub.downloads()) == 1


def test_cache_is_used_when_the_hub_is_unavailable(hub, folder):
    push_to_hub(folder, "me/vae")
    from_pretrained("me/vae")
    for error in (ConnectionError, hub.errors.OfflineModeIsEnabled, hub.errors.HfHubHTTPError):
        hub.error = error("away")
        with pytest.warns(
            UserWarning, match=r"\(away\): this is the copy of me/vae that .*snapshot"
        ):
            loaded = from_pretrained("me/vae")
        assert small.bits(loaded) == small.bits(load_model(folder))
    hub.error = hub.errors.RevisionNotFoundError("gone")  # raised for a model that the hub has
    with pytest.raises(UserError, match="has no revision 'v7'"):
        from_pretrained("me/vae", revision="v7")
    for status, name in ((404, "RepositoryNotFoundError"), (403, "HfHubHTTPError")):
        hub.error = getattr(hub.errors, name)("no longer")
        hub.error.response = SimpleNamespace(status_code=status)
        with pytest.raises(UserError, match=r"not for you|the hub refuses me/vae: no longer"):
            from_pretrained("me/vae")
    hub.error.response.status_code = 503
    with pytest.warns(UserWarning, match="the copy of me/vae"):
        from_pretrained("me/vae")
    assert len(hub.downloads()) == 1


@pytest.mark.parametrize("fault", [TypeError, AttributeError, KeyError, AssertionError])
def test_programming_errors_are_not_blamed_on_the_hub(hub, folder, fault):
    hub.error = fault("no such argument")
    for call in (lambda: push_to_hub(folder, "me/vae"), lambda: from_pretrained("me/vae")):
        with pytest.raises(fault, match="no such argument"):
            call()


@pytest.mark.slow
def test_only_exports_can_be_pushed(hub, measured, folder):
    with pytest.raises(UserError, match=r"has no README.md: make it by `iwae export RUN"):
        push_to_hub(trained_model_folder(measured, "final", 0), "me/vae")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        push_to_hub(folder, "me/vae")
    assert not hub.calls


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("HFValidationError", "'me/vae' is not a name on the hub: give OWNER/NAME"),
        ("RepositoryNotFoundError", "me/vae is not on the hub, or not for you: .*hf auth login"),
        ("RevisionNotFoundError", "me/vae has no revision"),
        ("LocalTokenNotFoundError", "the hub wants to know who you are: log in by `hf auth login`"),
        ("OfflineModeIsEnabled", "the hub cannot be reached(, and me/vae is not .*)?: a$"),
        ("HTTPError", "the hub cannot be (used|reached, and me/vae is not in the cache): a$"),
        ("HfHubHTTPError", "the hub refuses me/vae: a; log in"),
        (OSError, "the hub cannot be (used|reached, and me/vae is not in the cache): a$"),
        (ValueError, "the hub cannot be (used|reached, and me/vae is not in the cache): a$"),
        (RuntimeError, "the hub cannot be (used|reached, and me/vae is not in the cache): a$"),
    ],
)
def test_hub_errors_are_one_line(hub, folder, name, message):
    hub.error = (getattr(hub.errors, name) if isinstance(name, str) else name)("a\n\nb")
    hub.error.response = SimpleNamespace(status_code=401)
    for call in (lambda: push_to_hub(folder, "me/vae"), lambda: from_pretrained("me/vae")):
        with pytest.raises(UserError, match=f"^{message}") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_missing_extra_is_named(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["push", str(folder), "me/vae"]) == 2
    assert capsys.readouterr().err == (
        "iwae: sharing needs huggingface_hub: pip install 'iwae[hub]'\n"
    )
    with pytest.raises(UserError, match="needs huggingface_hub"):
        from_pretrained("me/vae")


def test_push_command(hub, folder, capsys):
    assert main(["push", str(folder), "me/vae", "--private"]) == 0
    assert capsys.readouterr().out == "https://hub/me/vae/commit/1\n"
    assert ("repo", "me/vae", True, True) in hub.calls


def test_real_hub_library_refuses_without_network(tmp_path, folder, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^'a b/c d' is not a name on the hub"):
        from_pretrained("a b/c d", cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match=r"^the hub cannot be reached, and me/vae is not in the"):
        from_pretrained("me/vae", cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match=r"^the hub cannot be reached"):
        push_to_hub(folder, "me/vae")


def test_real_hub_library_finds_a_cached_model(tmp_path, folder, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "cache" / "models--me--vae", "0" * 40
    snapshot = repository / "snapshots" / commit
    for place in (snapshot, repository / "refs", repository / "blobs"):
        place.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for name in ("model.json", "model.safetensors"):
        shutil.copy(folder / name, repository / "blobs" / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    with pytest.warns(UserWarning, match=f"copy of me/vae that was fetched before, {commit}"):
        loaded = from_pretrained("me/vae", cache_dir=tmp_path / "cache")
    assert small.bits(loaded) == small.bits(load_model(folder))
