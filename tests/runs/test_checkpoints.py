"""Files: exact round trips, nothing half written, and damage that is told from the truth."""

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


def test_a_checkpoint_comes_back_bit_for_bit(saved):
    assert saved.name == "0000000006.safetensors"
    found = load_checkpoint(saved, state_of(seeds=(8, 9)))
    assert list(bits(tuple(found)[:2])) == list(bits(state_of()))
    assert found.notes == NOTES


@pytest.mark.parametrize(
    "options", [{"optimizer": authors_adam(20)}, {"optimizer": soap(), "ema": 0.9}]
)
def test_other_optimisers_and_an_average_come_back_too(tmp_path, options):
    expected = state_of(**options)
    path = save_checkpoint(tmp_path, Checkpoint(*expected, NOTES))
    found = load_checkpoint(path, state_of(seeds=(8, 9), **options))
    assert list(bits(tuple(found)[:2])) == list(bits(expected))


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"latent": 2}, r"loc\.weight is float32\(2, 4, 3\) there, float32\(2, 4, 2\) expected"),
        ({"seeds": (0, 1, 2)}, r"\(2,.*\) there, .*\(3,.*\) expected"),
        ({"optimizer": authors_adam(20)}, "is in only one of them"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(saved, like, message):
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
def test_damage_is_noticed(copy, damage):
    damage(copy)
    with pytest.raises(DamagedCheckpointError, match=f"checkpoint {copy} "):
        load_checkpoint(copy, state_of())


def test_a_change_of_any_byte_is_noticed(copy):
    whole, like = copy.read_bytes(), state_of()
    for at in range(0, len(whole), 97):
        copy.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(DamagedCheckpointError):
            load_checkpoint(copy, like)


def test_a_write_that_is_cut_off_never_gets_the_name(saved, tmp_path, monkeypatch):
    folder = tmp_path / "c"
    folder.mkdir()
    first = Path(shutil.copy(saved, folder))
    state, best = state_of()
    later = Checkpoint(state._replace(step=state.step + 1), best, NOTES)

    def killed(_, path, __):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_arrays", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(folder, later)
    assert list_checkpoints(folder) == [first]
    (folder / ".iwae-x.safetensors").write_bytes(b"half")  # as a kill leaves it
    path = save_checkpoint(folder, later)
    assert list_checkpoints(folder) == [first, path] == sorted(folder.iterdir())


def test_the_newest_and_the_named_checkpoints_are_kept(tmp_path):
    numbers = ("0000000001", "0000000020", "0000000300", "0000004000", "abandoned-0000000002")
    for number in numbers:
        (tmp_path / f"{number}.safetensors").touch()
    prune_checkpoints(tmp_path, {1, 5}, keep_last=2)
    assert sorted(path.stem for path in tmp_path.iterdir()) == [
        *("0000000001", "0000000300", "0000004000", "abandoned-0000000002")
    ]


def test_checkpoints_of_version_0_1_are_named(tmp_path):
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
def test_a_model_comes_back_bit_for_bit(tmp_path, options):
    save_model(make(**options), tmp_path / "new" / "folder")
    found = load_model(tmp_path / "new" / "folder")
    assert jax.tree.structure(found) == jax.tree.structure(make(**options))
    assert list(bits(found)) == list(bits(make(**options)))
    save_model(make(1, **options), tmp_path / "new" / "folder")
    assert list(bits(load_model(tmp_path / "new" / "folder"))) == list(bits(make(1, **options)))


def test_facts_are_kept_beside_the_model(folder):
    assert read_model_facts(folder) == {"epoch": 3}


@pytest.mark.parametrize("about", [[], "text", 3, None])
def test_facts_that_are_none_are_refused_with_the_model(folder, about):
    description = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**description, "about": about}))
    refused(folder, "'about' in model.json is not a table of facts")


def test_a_saved_model_is_two_plain_files(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    arrays = load_file(folder / "model.safetensors")
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(arrays["output.weight"], make().output.weight)


def test_arrays_are_written_as_the_library_writes_them(tmp_path):
    named = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.uint8([1, 2, 3]),
        "number": np.ones((), np.int32),
        "none": np.zeros((0, 3), np.float32),
        'a "name" é': np.array([True, False]),
    }
    write_arrays(named, tmp_path / "file", {"notes": "one"})
    assert (tmp_path / "file").read_bytes() == save(named, {"notes": "one"})
    # Arrays that lie otherwise in memory, some of which the library writes wrongly.
    named = {"turned": named["b"].T, "other": named["b"].astype(">f4"), "part": named["b"][:, ::-2]}
    write_arrays(named, tmp_path / "file", {})
    for name, array in load_file(tmp_path / "file").items():
        np.testing.assert_array_equal(array, named[name])


def refused(folder, match=None):
    with pytest.raises(UserError, match=match) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, f"no model in .*: {name} is missing")
    (folder / name).mkdir()
    refused(folder, f"no model in .*: {name} is missing")


def test_no_folder_and_a_file_for_a_folder_are_refused(folder):
    refused(folder / "nowhere", "is missing")
    refused(folder / "model.json", "is missing")


@pytest.mark.slow
@given(st.data())
def test_a_damaged_file_of_weights_is_refused_or_harmless(tmp_path_factory, data):
    """Whatever happens to it: refused in one line, or the same weights."""
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
        found = load_model(folder)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert list(bits(found)) == list(bits(make()))


def test_weights_of_another_model_of_the_same_shapes_are_noticed(folder, tmp_path):
    before = (folder / "model.safetensors").read_bytes()
    model = load_model(folder)
    save_model(jax.tree.map(lambda leaf: np.asarray(leaf) + 1, model), folder)
    copy_model_files(folder, tmp_path / "copy", epoch=3)
    for mixed in (folder, tmp_path / "copy"):
        load_model(mixed)
        (mixed / "model.safetensors").write_bytes(before)  # a late writer's
        refused(mixed, "has other weights than model.json beside it describes")
    description = json.loads((folder / "model.json").read_text())
    del description["weights"]  # as it was written once
    (folder / "model.json").write_text(json.dumps(description))
    load_model(folder)


def test_a_changed_weight_is_noticed(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    refused(folder, "damaged: its checksum does not match")


def test_weights_from_elsewhere_need_no_checksum(folder):
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
def test_weights_that_do_not_fit_the_description_are_refused(folder, change, message):
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")
    refused(folder, message)


def test_weights_of_another_model_are_refused(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    save_model(make(latent_sizes=(4, 2)), other)
    shutil.copy(other / "model.safetensors", folder)
    refused(folder, "does not fit")


def test_a_header_that_claims_more_than_the_file_holds_is_refused(folder):
    header = {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    refused(folder, "cannot be read")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60))
    refused(folder, "cannot be read")


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
def test_a_description_that_is_none_is_refused(folder, text):
    (folder / "model.json").write_text(text)
    refused(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"n_data": -1},
        {"n_data": 10**30},
        {"n_data": 10**9},  # nothing of this size is made
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
def test_a_description_of_no_model_is_refused(folder, change):
    description = json.loads((folder / "model.json").read_text())
    description["architecture"].update(change)
    (folder / "model.json").write_text(json.dumps(description))
    refused(folder)


def test_a_later_format_is_refused(folder):
    description = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**description, "format": 2}))
    refused(folder, "has format 2, not 1")


def test_bytes_that_are_no_text_are_refused(folder):
    (folder / "model.json").write_bytes(b"\xff\xfe{}")
    refused(folder, "cannot be read")


def test_a_pickle_is_never_executed(folder):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (folder.joinpath("exploded").touch, ())

    for name in ("model.safetensors", "model.json"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
        refused(folder)
    assert not (folder / "exploded").exists()


def test_saving_changes_nothing_in_the_model(tmp_path):
    model = make()
    save_model(model, tmp_path)
    assert equal(model, make())
