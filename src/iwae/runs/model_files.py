"""Model folders: weights (safetensors) and a description of the model (JSON).

Reading one never runs code.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree
from safetensors import safe_open

from iwae.errors import UserError
from iwae.files import atomic_write
from iwae.models.conditional import ConditionalVAE, Model, check_conditional_frequencies
from iwae.models.vae import VAE
from iwae.precision import float32
from iwae.runs.named_arrays import (
    DTYPES,
    UNREADABLE,
    check_named_arrays,
    digest_named_arrays,
    from_named_arrays,
    named_array_signatures,
    to_named_arrays,
    write_arrays,
)
from iwae.wording import first_error_line

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"

LARGEST_WEIGHTS, LARGEST_TEXT = 2**32, 2**24
"""Maximum bytes of a weights file, and of a description or a header; larger ones are not read."""

LIMITS = {WEIGHTS: LARGEST_WEIGHTS, DESCRIPTION: LARGEST_TEXT}
"""The files of a model -> maximum bytes of each."""

MOST_SIZES = 1000
"""Maximum count of numbers, or of different words, in the description of an architecture."""


MOST_LAYERS = 64
"""Maximum depth of a model; the time to read a description, up to seconds, grows with it."""


def check_model_file_depth(architecture: Mapping[str, Any]) -> None:
    """Raise UserError for a model with more than `MOST_LAYERS` layers between x and z."""
    hidden, network = architecture["hidden_sizes"], architecture.get("network") or {}
    channels, blocks = (), 0
    if isinstance(network, dict):
        channels, blocks = network.get("channels") or (), network.get("blocks", 0)
    depth = sum(len(layers) + 1 for layers in hidden) + len(channels)
    depth += 2 * blocks * (len(channels) or sum(map(len, hidden[:1])))
    if depth > MOST_LAYERS:
        raise UserError(f"a model of {depth:,} layers: {MOST_LAYERS} are the most")


@float32
def save_model(model: Model, folder: str | Path, **about: Any) -> None:
    """Write a model as `model.safetensors` and `model.json` into a folder.

    Args:
        about: facts to store beside the architecture, as JSON values.

    Raises:
        UserError: for a model of more than `MOST_LAYERS` layers, which could not be read again.
    """
    check_model_file_depth(model.architecture())
    folder, leaves = Path(folder), to_named_arrays(eqx.filter(model, eqx.is_array))
    arrays = {name.lstrip("."): value for name, value in leaves.items()}
    digest = digest_named_arrays(arrays, "")
    with atomic_write(folder / WEIGHTS) as path:
        write_arrays(arrays, path, {"sha256": digest})
    _write_description(folder, model.architecture(), digest, about)


def _write_description(
    folder: Path, architecture: Any, digest: str | None, about: Mapping[str, Any]
) -> None:
    """Write `model.json`, with the digest of the arrays that belong to it."""
    known = {} if digest is None else {"weights": digest}
    description = {"format": 1, "architecture": architecture, **known, "about": about}
    with atomic_write(folder / DESCRIPTION) as path:
        path.write_text(json.dumps(description, indent=1) + "\n")


def copy_model_files(source: Path, folder: Path, **about: Any) -> None:
    """Copy a model to another folder: the same bytes of weights, with other facts."""
    description = _read_description(source / DESCRIPTION)
    with atomic_write(folder / WEIGHTS) as path:
        shutil.copyfile(source / WEIGHTS, path)
    _write_description(folder, description["architecture"], description.get("weights"), about)


def load_model(folder: str | Path, like: Model | None = None) -> Any:
    """Read a model written by `save_model` or `export_run`, without running code from the files.

    Files that are too large, and weights whose shapes do not fit the description, are refused
    without being read.

    Args:
        like: a model of the same architecture, whose arrays are not used. It is needed if `VAE` was
            given modules of your own, since these are code and not stored.

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


def model_files_match(folder: Path) -> bool:
    """Whether weights and description were saved together, by the digest in the weights' header.

    True for an unreadable header; `load_model` says what is wrong with it.
    """
    described = _read_description(folder / DESCRIPTION).get("weights")
    try:
        _check_header(folder / WEIGHTS)
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            stated = (file.metadata() or {}).get("sha256")
    except (UserError, *UNREADABLE):
        return True
    return None in (stated, described) or stated == described


@float32
def read_model(weights: Path, description: Path, *, like: Model | None = None) -> Any:
    """`load_model` from two files anywhere."""
    described = _read_description(description)
    skeleton = _skeleton(described["architecture"], description, like)
    shapes, static = eqx.partition(skeleton, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    arrays, digest = _read_weights(weights, shapes)
    model = eqx.combine(from_named_arrays(arrays, shapes, weights), static)
    if isinstance(model, ConditionalVAE):
        _check_labels(model, described.get("about", {}), weights, description)
    if described.get("weights") not in (None, digest):
        raise UserError(
            f"{weights} has other weights than {DESCRIPTION} beside it describes: its writer was "
            "interrupted between the two, or two wrote at once; save or export it again, or resume "
            "its run with train --resume, which writes it again"
        )
    return model


def _check_labels(
    model: ConditionalVAE, about: Mapping[str, Any], weights: Path, description: Path
) -> None:
    """Raise UserError if the label frequencies, or the names of the labels, are invalid."""
    try:
        check_conditional_frequencies(np.asarray(model.frequencies), model.n_classes)
    except UserError as error:
        raise UserError(f"{weights} is not a trained model: {error}") from error
    data = about.get("dataset")
    names = data.get("classes") if isinstance(data, dict) else None
    if names is not None and not _are_label_names(names, model.n_classes):
        raise UserError(f"{description} does not have the names of {model.n_classes} labels")


def _are_label_names(names: Any, count: int) -> bool:
    """Whether this is a list of `count` different strings."""
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return is_list and len(names) == len(set(names)) == count


def refuse_large_model_file(what: Path | str, size: int, limit: int) -> None:
    """Raise UserError if a file has more bytes than a model may have."""
    if size > limit:
        raise UserError(f"{what} has {size:,} bytes; a model has at most {limit:,}: it is not read")


def _read_description(path: Path) -> dict[str, Any]:
    """The contents of `model.json`; UserError for unknown keys or another format."""
    refuse_large_model_file(path, path.stat().st_size, LARGEST_TEXT)
    try:
        description = json.loads(path.read_text())
        description["architecture"]
        if not isinstance(description.get("about", {}), dict):
            raise TypeError(f"'about' in {DESCRIPTION} is not a table of facts")
    except UNREADABLE as error:
        raise UserError(
            f"the model in {path.parent} cannot be read: {first_error_line(error)}"
        ) from error
    if description.get("format") != 1:
        found = repr(description.get("format"))[:50]
        raise UserError(f"the model in {path.parent} has format {found}, not 1")
    unknown = sorted(description.keys() - {"format", "architecture", "weights", "about"})
    if unknown:
        key = unknown[0][:50]
        raise UserError(f"{path} has the unknown key {key!r}: it was not written by iwae")
    return description


def _skeleton(architecture: Any, path: Path, like: Model | None) -> Model:
    """The model with shapes in place of arrays, so that no memory for these is allocated."""
    if like is not None:
        wanted = json.loads(json.dumps(like.architecture()))
        if wanted != architecture:
            raise UserError(f"{path} describes another model than {wanted}: build the same one")
        return eqx.filter_eval_shape(lambda: like)
    if isinstance(architecture, dict) and "own" in architecture:
        raise UserError(
            f"{path} describes a model with modules of its author's own, which are code and not "
            "stored: build the same model and pass it, load_model(folder, like=model)"
        )
    try:
        leaves = list(_leaves(architecture))
        numbers = sum(isinstance(one, int | float) for one in leaves)
        words = len({one for one in leaves if isinstance(one, str)})
        if max(numbers, words) > MOST_SIZES:
            raise ValueError(f"more than {MOST_SIZES:,} sizes or different words")
        check_model_file_depth(architecture)
        return eqx.filter_eval_shape(_build, **architecture)
    except UNREADABLE as error:
        raise UserError(f"{path} describes no model: {first_error_line(error)}") from error


def _build(*, labels: Any = None, **architecture: Any) -> Model:
    """A new model of an architecture."""
    vae = VAE(**architecture, key=jax.random.key(0))
    return vae if labels is None else ConditionalVAE(vae, **labels)


def _leaves(value: Any) -> Iterator[Any]:
    """The numbers and words in a JSON value."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _leaves(one)
    else:
        yield value


def _read_weights(path: Path, like: PyTree) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a file and their digest; UserError unless they fit `like` and are finite."""
    refuse_large_model_file(path, path.stat().st_size, LARGEST_WEIGHTS)
    leaves = jax.tree_util.tree_leaves_with_path(like)
    expected = named_array_signatures({jax.tree_util.keystr(at): leaf for at, leaf in leaves})
    try:
        _check_header(path)
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            found = {f".{name}": _signature(file.get_slice(name)) for name in names}
            check_named_arrays(found, expected, path)
            arrays = {name: file.get_tensor(name) for name in names}
            stated = (file.metadata() or {}).get("sha256")
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read: {first_error_line(error)}") from error
    digest = digest_named_arrays(arrays, "")
    if stated not in (None, digest):
        raise UserError(f"{path} is damaged: its checksum does not match")
    for name, value in arrays.items():
        if not np.isfinite(value).all():
            raise UserError(
                f"{path} is not a trained model: {name} has numbers that are not finite"
            )
    return {f".{name}": value for name, value in arrays.items()}, digest


def _check_header(path: Path) -> None:
    """Raise UserError if the header claims to be larger than that of any model."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > LARGEST_TEXT:
        raise UserError(f"{path} cannot be read: its header claims to have {length:,} bytes")


def _signature(tensor: Any) -> str:
    """The signature of a tensor that has not been read yet."""
    dtype = tensor.get_dtype()
    return f"{DTYPES.get(dtype, dtype)}{tuple(tensor.get_shape())}"


def read_model_facts(folder: str | Path) -> dict[str, Any]:
    """The facts that `save_model` stored about the model in a folder.

    Raises:
        UserError: if its description cannot be read.
    """
    return _read_description(Path(folder) / DESCRIPTION).get("about", {})
