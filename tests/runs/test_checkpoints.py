"""Checkpoints and model files: exact round trips, atomic writes and detection of damage."""

import json
import shutil
import struct
from pathlib import Path

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from safetensors.numpy import load_file, save, save_file

from iwae.errors import UserError
from iwae.models.vae import VAE
from iwae.objectives.building import objective
from iwae.runs import checkpoints as checkpoint
from iwae.runs.checkpoints import (
    Checkpoint,
    DamagedCheckpointError,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from iwae.runs.model_files import copy_model_files, load_model, read_model_facts, save_model
from iwae.runs.named_arrays import write_arrays
from iwae.training.loop import init_best
from iwae.training.optimizers import adam, authors_adam, soap
from iwae.training.steps import Settings, init_state
from reference import equal

NOTES = {"dataset": {"name": "none", "sizes": [1, 2]}, "version": "0"}


def state_of(latent=3, seeds=(0, 1), optimizer=None, ema=None):
    """A state and best weights, all of whose leaves differ."""
    models = [VAE(6, (latent,), ((4,),), key=jax.random.key(seed)) for seed in seeds]
    settings = Settings(objective("iwae", 2), optimizer or adam(), ema=ema)
    keys = jax.random.split(jax.random.key(7), len(seeds))
    state = init_state(models, keys, settings)
    state = state._replace(step=state.step + jnp.arange(5, 5 + len(seeds)), bound=state.bound - 9.5)
    best = init_best(state)._replace(value=jnp.linspace(-1, 1, len(seeds)), waited=state.step + 2)
    return state, best


def bits(tree):
    for leaf in jax.tree.leaves(tree):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        raw = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        yield str(leaf.dtype), raw.shape, raw.tobytes()


# Checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("run") / "c", Checkpoint(*state_of(), NOTES))


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copy(saved, tmp_path))


def test_checkpoint_round_trips_bit_for_bit(saved):
    assert saved.name == "0000000006.safetensors"
    loaded = load_checkpoint(saved, state_of(seeds=(8, 9)))
    assert list(bits(tuple(loaded)[:2])) == list(bits(state_of()))
    assert loaded.notes == NOTES


@pytest.mark.parametrize(
    "options", [{"optimizer": authors_adam(20)}, {"optimizer": soap(), "ema": 0.9}]
)
def test_other_optimisers_and_a_weight_average_round_trip(tmp_path, options):
    expected = state_of(**options)
    path = save_checkpoint(tmp_path, Checkpoint(*expected, NOTES))
    loaded = load_checkpoint(path, state_of(seeds=(8, 9), **options))
    assert list(bits(tuple(loaded)[:2])) == list(bits(expected))


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"latent": 2}, r"loc\.weight is float32\(2, 4, 3\) there, float32\(2, 4, 2\) expected"),
        ({"seeds": (0, 1, 2)}, r"\(2,.*\) there, .*\(3,.*\) expected"),
        ({"optimizer": authors_adam(20)}, "is in only one of them"),
    ],
)
def test_checkpoint_of_another_model_is_refused(saved, like, message):
    with pytest.raises(UserError, match=f"does not fit.*{message}") as caught:
        load_checkpoint(saved, state_of(**like))
    assert not isinstance(caught.value, DamagedCheckpointError)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


def make_folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = [truncate, flip, grow, make_folder, lambda path: path.unlink()]


@pytest.mark.parametrize("damage", DAMAGE, ids=["truncate", "flip", "grow", "folder", "remove"])
def test_damaged_checkpoint_is_detected(copy, damage):
    damage(copy)
    with pytest.raises(DamagedCheckpointError, match=f"checkpoint {copy} "):
        load_checkpoint(copy, state_of())


def test_any_changed_byte_is_detected(copy):
    content, like = copy.read_bytes(), state_of()
    for at in range(0, len(content), 97):
        copy.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        with pytest.raises(DamagedCheckpointError):
            load_checkpoint(copy, like)


def test_interrupted_checkpoint_write_is_never_listed(saved, tmp_path, monkeypatch):
    folder = tmp_path / "c"
    folder.mkdir()
    first = Path(shutil.copy(saved, folder))
    state, best = state_of()
    later = Checkpoint(state._replace(step=state.step + 1), best, NOTES)

    def write_half(_, path, __):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_arrays", write_half)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(folder, later)
    assert list_checkpoints(folder) == [first]
    (folder / ".iwae-x.safetensors").write_bytes(b"half")  # as a kill leaves it
    path = save_checkpoint(folder, later)
    assert list_checkpoints(folder) == [first, path] == sorted(folder.iterdir())


def test_pruning_keeps_the_newest_and_the_named_checkpoints(tmp_path):
    numbers = ("0000000001", "0000000020", "0000000300", "0000004000", "abandoned-0000000002")
    for number in numbers:
        (tmp_path / f"{number}.safetensors").touch()
    prune_checkpoints(tmp_path, {1, 5}, keep_last=2)
    assert sorted(path.stem for path in tmp_path.iterdir()) == [
        *("0000000001", "0000000300", "0000004000", "abandoned-0000000002")
    ]


def test_checkpoints_of_version_0_1_are_refused(tmp_path):
    (tmp_path / "0000000001").mkdir()
    with pytest.raises(UserError, match=r"checkpoints of iwae 0.1 .*: resume the run with that"):
        list_checkpoints(tmp_path)


# Models

MODEL = {"n_data": 6, "latent_sizes": (3, 2), "hidden_sizes": ((5, 4), (4,))}


def make(seed=0, **options):
    return VAE(**{**MODEL, **options}, key=jax.random.key(seed))


@pytest.fixture
def folder(tmp_path):
    save_model(make(), tmp_path, epoch=3)
    return tmp_path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"observation": "gaussian", "activation": "elu"},
        {"latent_sizes": (2,), "hidden_sizes": ((5,),)},
        {"latent_sizes": (3, 2, 1), "hidden_sizes": ((5, 4), (4,), ())},
        {"latent_sizes": (3,), "hidden_sizes": ((),)},
    ],
)
def test_model_round_trips_bit_for_bit(tmp_path, options):
    save_model(make(**options), tmp_path / "new" / "folder")
    loaded = load_model(tmp_path / "new" / "folder")
    assert jax.tree.structure(loaded) == jax.tree.structure(make(**options))
    assert list(bits(loaded)) == list(bits(make(**options)))
    save_model(make(1, **options), tmp_path / "new" / "folder")
    assert list(bits(load_model(tmp_path / "new" / "folder"))) == list(bits(make(1, **options)))


def test_facts_are_stored_with_the_model(folder):
    assert read_model_facts(folder) == {"epoch": 3}


@pytest.mark.parametrize("about", [[], "text", 3, None])
def test_model_with_invalid_facts_is_refused(folder, about):
    description = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**description, "about": about}))
    assert_refused(folder, "'about' in model.json is not a table of facts")


def test_saved_model_is_two_plain_files(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    arrays = load_file(folder / "model.safetensors")
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(arrays["output.weight"], make().output.weight)


def test_arrays_are_written_as_safetensors_writes_them(tmp_path):
    named = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.uint8([1, 2, 3]),
        "number": np.ones((), np.int32),
        "none": np.zeros((0, 3), np.float32),
        'a "name" é': np.array([True, False]),
    }
    write_arrays(named, tmp_path / "file", {"notes": "one"})
    assert (tmp_path / "file").read_bytes() == save(named, {"notes": "one"})
    # Arrays in other memory layouts, some of which the library writes incorrectly.
    named = {"turned": named["b"].T, "other": named["b"].astype(">f4"), "part": named["b"][:, ::-2]}
    write_arrays(named, tmp_path / "file", {})
    for name, array in load_file(tmp_path / "file").items():
        np.testing.assert_array_equal(array, named[name])


def assert_refused(folder, match=None):
    with pytest.raises(UserError, match=match) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_missing_model_file_is_named(folder, name):
    (folder / name).unlink()
    assert_refused(folder, f"no model in .*: {name} is missing")
    (folder / name).mkdir()
    assert_refused(folder, f"no model in .*: {name} is missing")


def test_missing_folder_and_file_in_its_place_are_refused(folder):
    assert_refused(folder / "nowhere", "is missing")
    assert_refused(folder / "model.json", "is missing")


@pytest.mark.slow
@given(st.data())
def test_damaged_weights_are_refused_or_unchanged(tmp_path_factory, data):
    """Any damage gives a one-line error or leaves the weights the same."""
    folder = tmp_path_factory.mktemp("model")
    save_model(make(), folder)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "insert"])):
        case "flip":
            content[at] ^= data.draw(st.integers(1, 255))
        case "cut":
            del content[at:]
        case "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    path.write_bytes(content)
    try:
        loaded = load_model(folder)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert list(bits(loaded)) == list(bits(make()))


def test_weights_of_another_model_of_the_same_shapes_are_detected(folder, tmp_path):
    before = (folder / "model.safetensors").read_bytes()
    model = load_model(folder)
    save_model(jax.tree.map(lambda leaf: np.asarray(leaf) + 1, model), folder)
    copy_model_files(folder, tmp_path / "copy", epoch=3)
    for mixed in (folder, tmp_path / "copy"):
        load_model(mixed)
        (mixed / "model.safetensors").write_bytes(before)  # as a late writer would
        assert_refused(mixed, "has other weights than model.json beside it describes")
    description = json.loads((folder / "model.json").read_text())
    del description["weights"]  # as older versions wrote it
    (folder / "model.json").write_text(json.dumps(description))
    load_model(folder)


def test_changed_weight_is_detected(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert_refused(folder, "damaged: its checksum does not match")


def test_weights_written_by_other_tools_need_no_checksum(folder):
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    assert list(bits(load_model(folder))) == list(bits(make()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("output.bias"), "output.bias is in only one of them"),
        (lambda arrays: arrays.update(more=np.zeros(3)), "more is in only one of them"),
        (
            lambda arrays: arrays.update({"output.bias": np.zeros(7, np.float32)}),
            r"output\.bias is float32\(7,\) there, float32\(6,\) expected",
        ),
        (
            lambda arrays: arrays.update({"output.bias": np.zeros(6)}),
            r"output\.bias is float64\(6,\) there",
        ),
    ],
)
def test_weights_that_contradict_the_description_are_refused(folder, change, message):
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")
    assert_refused(folder, message)


def test_weights_of_another_model_are_refused(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    save_model(make(latent_sizes=(4, 2)), other)
    shutil.copy(other / "model.safetensors", folder)
    assert_refused(folder, "does not fit")


def test_header_claiming_more_than_the_file_holds_is_refused(folder):
    header = {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    assert_refused(folder, "cannot be read")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60))
    assert_refused(folder, "cannot be read")


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "3", "null", "{}", '"text"', '{"architecture": 3}', "\x00"),
        '{"format": 1, "architecture": null}',
        '{"format": 1, "architecture": {}}',
        "[" * 100_000,
        '{"architecture": ' + "1" * 5000 + "}",
    ],
)
def test_invalid_description_file_is_refused(folder, text):
    (folder / "model.json").write_text(text)
    assert_refused(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"n_data": -1},
        {"n_data": 10**30},
        {"n_data": 10**9},  # nothing of this size is allocated
        {"n_data": 2.5},
        {"n_data": "6"},
        {"latent_sizes": None},
        {"latent_sizes": [3, "2"]},
        {"latent_sizes": [3, 2, 1]},
        {"hidden_sizes": [5, 4]},
        {"hidden_sizes": {"a": 1}},
        {"observation": "weibull"},
        {"observation": {"name": "poisson", "rate": 2}},
        {"observation": {"name": "gaussian-fixed"}},
        {"observation": ["bernoulli"]},
        {"activation": "__import__('os')"},
        {"key": 3},
        {"unknown": 3},
    ],
    ids=str,
)
def test_description_of_an_impossible_model_is_refused(folder, change):
    description = json.loads((folder / "model.json").read_text())
    description["architecture"].update(change)
    (folder / "model.json").write_text(json.dumps(description))
    assert_refused(folder)


def test_later_format_is_refused(folder):
    description = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**description, "format": 2}))
    assert_refused(folder, "has format 2, not 1")


def test_description_that_is_not_text_is_refused(folder):
    (folder / "model.json").write_bytes(b"\xff\xfe{}")
    assert_refused(folder, "cannot be read")


def test_pickle_is_never_executed(folder):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (folder.joinpath("exploded").touch, ())

    for name in ("model.safetensors", "model.json"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
        assert_refused(folder)
    assert not (folder / "exploded").exists()


def test_saving_does_not_change_the_model(tmp_path):
    model = make()
    save_model(model, tmp_path)
    assert equal(model, make())
