"""Files that hold a run in the making, and files that hold a finished model.

A checkpoint (Orbax) is a folder `NNNNNNNNNN` named by its step, written whole or not at all, with
checksums of its files. A model (safetensors and JSON) is a folder that others can load. No file is
ever executed: reading them cannot run code.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from iwae._types import UserError, atomic_write
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
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        raw = jax.random.key_data(leaf) if is_key else leaf
        named[jax.tree_util.keystr(path)] = np.asarray(raw)
    return named


def _from_arrays(named: dict[str, np.ndarray], like: PyTree, source: Path) -> PyTree:
    """The inverse of `_to_arrays`, for a tree of the structure and shapes of `like`."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    expected = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    if named.keys() != expected.keys():
        odd = sorted(named.keys() ^ expected.keys())[0]
        raise UserError(f"{source} does not fit this configuration: {odd} is in only one of them")
    return jax.tree_util.tree_unflatten(
        treedef, [_restore_leaf(named[name], leaf, name, source) for name, leaf in expected.items()]
    )


def _restore_leaf(value: np.ndarray, like: Any, name: str, source: Path) -> jax.Array:
    is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
    raw = jax.random.key_data(like) if is_key else like
    if value.shape != raw.shape or value.dtype != raw.dtype:
        raise UserError(
            f"{source} does not fit this configuration: {name} is {value.dtype}{value.shape} "
            f"there, {raw.dtype}{raw.shape} expected"
        )
    array = jnp.asarray(value)
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like)) if is_key else array


def _digest(named: dict[str, np.ndarray], notes: str) -> str:
    total = hashlib.sha256(notes.encode())
    for name in sorted(named):
        total.update(f"{name}{named[name].dtype}{named[name].shape}".encode())
        total.update(np.ascontiguousarray(named[name]).tobytes())
    return total.hexdigest()


SUMS = "SHA256SUMS"


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint under its step's name; one that is interrupted never gets the name."""
    path = folder / f"{int(checkpoint.state.step.max()):010d}"
    if path.exists():
        return path  # the same step of the same run: the same contents
    for left_over in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left_over)
    unfinished = folder / f"{_UNFINISHED}{path.name}"
    named = _to_arrays((checkpoint.state, checkpoint.best))
    notes = json.dumps(checkpoint.notes, sort_keys=True)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            unfinished.absolute(),
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(named),
                notes=ocp.args.JsonSave({"notes": notes, "sha256": _digest(named, notes)}),
            ),
        )
    (unfinished / SUMS).write_text(_file_sums(unfinished))
    return unfinished.rename(path)


_UNFINISHED = ".unfinished-"


def _file_sums(folder: Path) -> str:
    """What `sha256sum` prints of every file in a folder, but for these sums themselves."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in files
    )


def _check_files(path: Path) -> None:
    """Raise DamagedCheckpointError if a file is not what was written."""
    try:
        wrong = set((path / SUMS).read_text().splitlines()) ^ set(_file_sums(path).splitlines())
    except FileNotFoundError:
        return  # the checksum of the contents has the last word
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedCheckpointError(
            f"checkpoint {path} cannot be read: {_reason(error)}"
        ) from error
    if wrong:
        name = min(line.partition("  ")[2] or SUMS for line in wrong)
        raise DamagedCheckpointError(
            f"checkpoint {path} is damaged: {name} is not what was written"
        )


def load_checkpoint(path: Path, like: tuple[TrainState, Best]) -> Checkpoint:
    """Read a checkpoint of a run whose state is shaped like `like`.

    Raises:
        UserError: if it is damaged (a file missing, unreadable or changed) or of another model.
    """
    _check_files(path)
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            item = checkpointer.restore(
                path.absolute(),
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardRestore(), notes=ocp.args.JsonRestore()
                ),
            )
        named = {name: np.asarray(value) for name, value in item["arrays"].items()}
        notes, expected = item["notes"]["notes"], item["notes"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
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


def list_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.name.isdigit())


def prune_checkpoints(folder: Path, keep_steps: set[int], keep_last: int = 2) -> None:
    """Remove all but the newest ones and those of the steps named."""
    for path in list_checkpoints(folder)[:-keep_last]:
        if int(path.name) not in keep_steps:
            shutil.rmtree(path)


# --- finished models ------------------------------------------------------------------------

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


def save_model(model: VAE, folder: str | Path, **about: Any) -> None:
    """Write a model as `model.safetensors` and `model.json` into a folder.

    Args:
        about: JSON-able facts to keep beside the architecture (where the model comes from).
    """
    folder = Path(folder)
    arrays = {
        name.lstrip("."): value
        for name, value in _to_arrays(eqx.filter(model, eqx.is_array)).items()
    }
    with atomic_write(folder / WEIGHTS) as path:
        save_file(arrays, path, metadata={"sha256": _digest(arrays, "")})
    description = {"format": 1, "architecture": model.architecture(), "about": about}
    with atomic_write(folder / DESCRIPTION) as path:
        path.write_text(json.dumps(description, indent=1) + "\n")


def load_model(folder: str | Path) -> VAE:
    """Read what `save_model` wrote. Never runs code from the files.

    Raises:
        UserError: if a file is missing, unreadable, damaged or does not fit the other.
    """
    folder = Path(folder)
    for name in (WEIGHTS, DESCRIPTION):
        if not (folder / name).is_file():
            raise UserError(f"no model in {folder}: {name} is missing")
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        architecture = description["architecture"]
        if not isinstance(description.get("about", {}), dict):
            raise TypeError(f"'about' in {DESCRIPTION} is no table of facts")
        arrays, expected = _read_weights(folder / WEIGHTS)
    except _UNREADABLE as error:
        raise UserError(f"the model in {folder} cannot be read: {_reason(error)}") from error
    if expected not in (None, _digest(arrays, "")):
        raise UserError(f"{folder / WEIGHTS} is damaged: its checksum does not match")
    if description.get("format") != 1:
        raise UserError(f"the model in {folder} has format {description.get('format')!r}, not 1")
    try:
        skeleton = eqx.filter_eval_shape(VAE, **architecture, key=jax.random.key(0))
    except _UNREADABLE as error:
        raise UserError(f"{folder / DESCRIPTION} describes no model: {_reason(error)}") from error
    shapes, static = eqx.partition(skeleton, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    named = {f".{name}": value for name, value in arrays.items()}
    return eqx.combine(_from_arrays(named, shapes, folder / WEIGHTS), static)


_UNREADABLE = (
    *(OSError, SafetensorError, ValueError, TypeError, KeyError),
    *(AttributeError, OverflowError, RecursionError),
)
"""What files that were not written here can raise."""


def _read_weights(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    """The arrays of a safetensors file, and the checksum that it says they have."""
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        return arrays, (file.metadata() or {}).get("sha256")


def read_about(folder: str | Path) -> dict[str, Any]:
    """What `save_model` was told about the model in a folder."""
    return json.loads((Path(folder) / DESCRIPTION).read_text()).get("about", {})
