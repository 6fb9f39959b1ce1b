"""Files that hold a run in the making, and files that hold a finished model.

A checkpoint is a safetensors file named by its step. A model is a folder that others can load: a
safetensors file of weights and JSON that describes them. Reading either cannot run code.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from iwae._types import UserError, atomic_write
from iwae.conditional import ConditionalVAE, Model, check_frequencies
from iwae.model import VAE
from iwae.training import Best, TrainState


class Checkpoint(NamedTuple):
    """What a run needs to go on."""

    state: TrainState
    best: Best
    notes: dict[str, Any]  # JSON: position in the schedule, wall time, names of parts


def _to_arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """Every leaf under its path, random keys as their data."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        named[jax.tree_util.keystr(path)] = np.asarray(_raw(leaf))
    return named


def _from_arrays(named: dict[str, np.ndarray], like: PyTree, source: Path) -> PyTree:
    """The inverse of `_to_arrays`, for a tree of the structure and shapes of `like`."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    expected = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    raw = {name: _raw(leaf) for name, leaf in expected.items()}
    _check_fit(_signatures(named), _signatures(raw), source)
    return jax.tree_util.tree_unflatten(
        treedef, [_restore_leaf(named[name], leaf) for name, leaf in expected.items()]
    )


def _raw(leaf: Any) -> Any:
    """The data of a random key; any other leaf itself."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _restore_leaf(value: np.ndarray, like: Any) -> jax.Array:
    is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
    array = jax.device_put(value)  # compiles nothing, as `jnp.asarray` does
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like)) if is_key else array


def _signatures(named: Mapping[str, Any]) -> dict[str, str]:
    """Dtype and shape of each array, such as `float32(6, 4)`."""
    return {name: f"{leaf.dtype}{tuple(leaf.shape)}" for name, leaf in named.items()}


def _check_fit(found: Mapping[str, str], expected: Mapping[str, str], source: Path) -> None:
    """Raise UserError unless both have the same arrays, of the same signatures."""
    if found.keys() != expected.keys():
        odd = sorted(found.keys() ^ expected.keys())[0][:200]
        raise UserError(f"{source} does not fit this configuration: {odd} is in only one of them")
    for name, signature in expected.items():
        if found[name] != signature:
            raise UserError(
                f"{source} does not fit this configuration: {name} is {found[name][:200]} there, "
                f"{signature} expected"
            )


def _digest(named: dict[str, np.ndarray], notes: str) -> str:
    total = hashlib.sha256(notes.encode())
    for name in sorted(named):
        total.update(f"{name}{named[name].dtype}{named[name].shape}".encode())
        total.update(np.ascontiguousarray(named[name]).tobytes())
    return total.hexdigest()


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint as a file named by its step; an interrupted write leaves no such file."""
    path = folder / f"{int(np.asarray(checkpoint.state.step).max()):010d}{CHECKPOINT}"
    if path.exists():
        return path  # the same step of the same run: the same contents
    for left_over in folder.glob(f".*{CHECKPOINT}"):  # of a write that was killed
        left_over.unlink()
    named = _to_arrays((checkpoint.state, checkpoint.best))
    notes = json.dumps(checkpoint.notes, sort_keys=True)
    with atomic_write(path) as temporary:
        save_file(named, temporary, metadata={"notes": notes, "sha256": _digest(named, notes)})
    return path


def load_checkpoint(path: Path, like: tuple[TrainState, Best]) -> Checkpoint:
    """Read a checkpoint of a run whose state is shaped like `like`.

    Raises:
        UserError: if it is damaged (unreadable or changed) or of another model.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            named = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            notes, expected = (file.metadata()[name] for name in ("notes", "sha256"))
    except _UNREADABLE as error:
        raise DamagedCheckpointError(
            f"checkpoint {path} cannot be read: {_reason(error)}"
        ) from error
    if _digest(named, notes) != expected:
        raise DamagedCheckpointError(f"checkpoint {path} is damaged: its checksum does not match")
    state, best = _from_arrays(named, like, path)
    return Checkpoint(state, best, json.loads(notes))


def _reason(error: Exception) -> str:
    """What a library says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


class DamagedCheckpointError(UserError):
    """A checkpoint whose files are not what was written."""


CHECKPOINT = ".safetensors"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first.

    Raises:
        UserError: if the only ones are of version 0.1, which wrote them in another format.
    """
    found = [path for path in sorted(folder.glob("[0-9]*")) if path.stem.isdigit()]
    files = [path for path in found if path.suffix == CHECKPOINT]
    if found and not files:
        raise UserError(
            f"{folder} holds checkpoints of iwae 0.1 (Orbax): resume the run with that version; "
            "its finished models can be used with this one"
        )
    return files


def prune_checkpoints(folder: Path, keep_steps: set[int], keep_last: int = 2) -> None:
    """Remove all checkpoints but the newest ones and those of the steps named."""
    for path in list_checkpoints(folder)[:-keep_last]:
        if int(path.stem) not in keep_steps:
            path.unlink()


# --- finished models ------------------------------------------------------------------------

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"

LARGEST_WEIGHTS, LARGEST_TEXT = 2**32, 2**24
"""Bytes of a file of weights, and of a description or a header of weights: more are not read."""

LIMITS = {WEIGHTS: LARGEST_WEIGHTS, DESCRIPTION: LARGEST_TEXT}
"""The files of a model, and the most bytes of each."""

MOST_SIZES = 1000
"""Numbers in the description of an architecture."""


def save_model(model: Model, folder: str | Path, **about: Any) -> None:
    """Write a model as `model.safetensors` and `model.json` into a folder.

    Args:
        about: JSON-able facts to keep beside the architecture (where the model comes from).
    """
    folder, arrays = Path(folder), _named(model)
    digest = _digest(arrays, "")
    with atomic_write(folder / WEIGHTS) as path:
        save_file(arrays, path, metadata={"sha256": digest})
    _write_description(folder, model.architecture(), digest, about)


def _named(model: Model) -> dict[str, np.ndarray]:
    """The arrays of a model by the names that they have in a file."""
    arrays = _to_arrays(eqx.filter(model, eqx.is_array))
    return {name.lstrip("."): value for name, value in arrays.items()}


def _write_description(
    folder: Path, architecture: Any, digest: str | None, about: Mapping[str, Any]
) -> None:
    """Write `model.json`, with the digest of the arrays that it is beside."""
    known = {} if digest is None else {"weights": digest}
    description = {"format": 1, "architecture": architecture, **known, "about": about}
    with atomic_write(folder / DESCRIPTION) as path:
        path.write_text(json.dumps(description, indent=1) + "\n")


def copy_model(source: Path, folder: Path, **about: Any) -> None:
    """Put a model into another folder, with other facts beside it and the same bytes of weights."""
    said = _read_description(source / DESCRIPTION)
    with atomic_write(folder / WEIGHTS) as path:
        shutil.copyfile(source / WEIGHTS, path)
    _write_description(folder, said["architecture"], said.get("weights"), about)


def load_model(folder: str | Path, like: Model | None = None) -> Any:
    """Read what `save_model` or `export_run` wrote. Never runs code from the files.

    What is too large, or of other shapes than the description says, is refused before it is read.

    Args:
        like: a model of the same architecture. It is needed where `VAE` was given modules of your
            own, which are code, and which no file holds; its arrays are not used.

    Raises:
        UserError: if a file is missing, a link, too large, unreadable, damaged, does not fit the
            other or `like`, or holds numbers that are not finite.
    """
    folder = Path(folder)
    for name in (WEIGHTS, DESCRIPTION):
        if not (folder / name).is_file():
            raise UserError(f"no model in {folder}: {name} is missing")
        if (folder / name).is_symlink():
            raise UserError(f"{folder / name} is a link: put the file itself in its place")
    return read_model(folder / WEIGHTS, folder / DESCRIPTION, like=like)


def is_one_model(folder: Path) -> bool:
    """Whether weights and description are of one moment, as far as the weights' header tells.

    One that cannot be read tells nothing; `load_model` says what is wrong with it.
    """
    described = _read_description(folder / DESCRIPTION).get("weights")
    try:
        _check_header(folder / WEIGHTS)
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            stated = (file.metadata() or {}).get("sha256")
    except (UserError, *_UNREADABLE):
        return True
    return None in (stated, described) or stated == described


def read_model(weights: Path, description: Path, *, like: Model | None = None) -> Any:
    """`load_model`, of two files that may lie anywhere."""
    said = _read_description(description)
    skeleton = _skeleton(said["architecture"], description, like)
    shapes, static = eqx.partition(skeleton, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    arrays, digest = _read_weights(weights, shapes)
    model = eqx.combine(_from_arrays(arrays, shapes, weights), static)
    if isinstance(model, ConditionalVAE):
        _check_labels(model, said.get("about", {}), weights, description)
    if said.get("weights") not in (None, digest):
        raise UserError(
            f"{weights} has other weights than {DESCRIPTION} beside it describes: its writer was "
            "cut off between the two, or two wrote at once; save or export it again, or go on with "
            "train --resume, which writes it again"
        )
    return model


def _check_labels(
    model: ConditionalVAE, about: Mapping[str, Any], weights: Path, description: Path
) -> None:
    """Raise UserError if labels have no shares, or other names than the model has labels."""
    try:
        check_frequencies(np.asarray(model.frequencies), model.n_classes)
    except UserError as error:
        raise UserError(f"{weights} is no trained model: {error}") from error
    data = about.get("dataset")
    names = data.get("classes") if isinstance(data, dict) else None
    if names is not None and not _are_names(names, model.n_classes):
        raise UserError(f"{description} has other names than those of {model.n_classes} labels")


def _are_names(names: Any, count: int) -> bool:
    """Whether these are so many words, all different."""
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return is_list and len(names) == len(set(names)) == count


_UNREADABLE = (
    *(OSError, SafetensorError, ValueError, TypeError, KeyError),
    *(AttributeError, OverflowError, RecursionError),
)
"""What files that were not written here can raise."""


def refuse_larger(what: Path | str, size: int, limit: int) -> None:
    """Raise UserError for a file, named in words or by its path, with more bytes than it may."""
    if size > limit:
        raise UserError(f"{what} has {size:,} bytes; a model has at most {limit:,}: it is not read")


def _read_description(path: Path) -> dict[str, Any]:
    """What `model.json` says, which is all that it may say."""
    refuse_larger(path, path.stat().st_size, LARGEST_TEXT)
    try:
        description = json.loads(path.read_text())
        description["architecture"]
        if not isinstance(description.get("about", {}), dict):
            raise TypeError(f"'about' in {DESCRIPTION} is no table of facts")
    except _UNREADABLE as error:
        raise UserError(f"the model in {path.parent} cannot be read: {_reason(error)}") from error
    if description.get("format") != 1:
        found = repr(description.get("format"))[:50]
        raise UserError(f"the model in {path.parent} has format {found}, not 1")
    odd = sorted(description.keys() - {"format", "architecture", "weights", "about"})
    if odd:
        raise UserError(f"{path} has the unknown key {odd[0][:50]!r}: it was not written by iwae")
    return description


def _skeleton(architecture: Any, path: Path, like: Model | None) -> Model:
    """The model without its numbers: nothing of its size is made."""
    if like is not None:
        asked = json.loads(json.dumps(like.architecture()))
        if asked != architecture:
            raise UserError(f"{path} describes another model than {asked}: make the same one")
        return eqx.filter_eval_shape(lambda: like)
    if isinstance(architecture, dict) and "own" in architecture:
        raise UserError(
            f"{path} describes a model with modules of its author's own, which are code and in no "
            "file: make the same model and give it, load_model(folder, like=model)"
        )
    try:
        leaves = list(_leaves(architecture))
        numbers = sum(isinstance(one, int | float) for one in leaves)
        words = len({one for one in leaves if isinstance(one, str)})
        if max(numbers, words) > MOST_SIZES:
            raise ValueError(f"more than {MOST_SIZES:,} sizes or different words")
        return eqx.filter_eval_shape(_made, **architecture)
    except _UNREADABLE as error:
        raise UserError(f"{path} describes no model: {_reason(error)}") from error


def _made(*, labels: Any = None, **architecture: Any) -> Model:
    """A model of an architecture."""
    vae = VAE(**architecture, key=jax.random.key(0))
    return vae if labels is None else ConditionalVAE(vae, **labels)


def _leaves(value: Any) -> Iterator[Any]:
    """Numbers and words in what JSON can hold."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _leaves(one)
    else:
        yield value


def _read_weights(path: Path, like: PyTree) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a file, once its header has those of `like`, all finite; and their digest."""
    refuse_larger(path, path.stat().st_size, LARGEST_WEIGHTS)
    leaves = jax.tree_util.tree_leaves_with_path(like)
    expected = _signatures({jax.tree_util.keystr(at): leaf for at, leaf in leaves})
    try:
        _check_header(path)
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            found = {f".{name}": _declared(file.get_slice(name)) for name in names}
            _check_fit(found, expected, path)
            arrays = {name: file.get_tensor(name) for name in names}
            stated = (file.metadata() or {}).get("sha256")
    except UserError:
        raise
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be read: {_reason(error)}") from error
    digest = _digest(arrays, "")
    if stated not in (None, digest):
        raise UserError(f"{path} is damaged: its checksum does not match")
    for name, value in arrays.items():
        if not np.isfinite(value).all():
            raise UserError(f"{path} is no trained model: {name} has numbers that are not finite")
    return {f".{name}": value for name, value in arrays.items()}, digest


def _check_header(path: Path) -> None:
    """Raise UserError if the header claims to be larger than any model's."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > LARGEST_TEXT:
        raise UserError(f"{path} cannot be read: its header claims to have {length:,} bytes")


_DTYPES = {
    "BF16": "bfloat16",
    "BOOL": "bool",
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
"""What safetensors calls the types of numbers."""


def _declared(tensor: Any) -> str:
    """The signature of a tensor that has not been read."""
    dtype = tensor.get_dtype()
    return f"{_DTYPES.get(dtype, dtype)}{tuple(tensor.get_shape())}"


def read_about(folder: str | Path) -> dict[str, Any]:
    """What `save_model` was told about the model in a folder.

    Raises:
        UserError: if its description cannot be read.
    """
    return _read_description(Path(folder) / DESCRIPTION).get("about", {})
