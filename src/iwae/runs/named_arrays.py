"""Named arrays, as stored in files: a pytree to and from a dictionary, and its digest."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError

from iwae.errors import UserError


def to_named_arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """Each leaf by its path; random keys as their data."""
    jax.block_until_ready(tree)  # raises errors that would end the process within NumPy
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(_raw(leaf)) for path, leaf in leaves}


def from_named_arrays(named: dict[str, np.ndarray], like: PyTree, source: Path) -> PyTree:
    """The inverse of `to_named_arrays`, for a tree of the structure and shapes of `like`."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    expected = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    raw = {name: _raw(leaf) for name, leaf in expected.items()}
    check_named_arrays(named_array_signatures(named), named_array_signatures(raw), source)
    return jax.tree_util.tree_unflatten(
        treedef, [_restore_leaf(named[name], leaf) for name, leaf in expected.items()]
    )


def _raw(leaf: Any) -> Any:
    """The data of a random key; any other leaf unchanged."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _restore_leaf(value: np.ndarray, like: Any) -> jax.Array:
    is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
    array = jax.device_put(value)  # unlike `jnp.asarray`, compiles nothing
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like)) if is_key else array


def named_array_signatures(named: Mapping[str, Any]) -> dict[str, str]:
    """Dtype and shape of each array, e.g. `float32(6, 4)`."""
    return {name: f"{leaf.dtype}{tuple(leaf.shape)}" for name, leaf in named.items()}


def check_named_arrays(found: Mapping[str, str], expected: Mapping[str, str], source: Path) -> None:
    """Raise UserError unless both have the same arrays with the same signatures."""
    if found.keys() != expected.keys():
        extra = min(found.keys() ^ expected.keys())[:200]
        raise UserError(f"{source} does not fit this configuration: {extra} is in only one of them")
    for name, signature in expected.items():
        if found[name] != signature:
            raise UserError(
                f"{source} does not fit this configuration: {name} is {found[name][:200]} there, "
                f"{signature} expected"
            )


def digest_named_arrays(named: dict[str, np.ndarray], notes: str) -> str:
    """SHA-256 of arrays, with their names, dtypes and shapes, and of a text."""
    total = hashlib.sha256(notes.encode())
    for name in sorted(named):
        total.update(f"{name}{named[name].dtype}{named[name].shape}".encode())
        total.update(np.ascontiguousarray(named[name]).tobytes())
    return total.hexdigest()


DTYPES = {
    "BF16": "bfloat16",
    "BOOL": "bool",
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
"""Names of dtypes in safetensors -> in NumPy."""


def write_arrays(named: dict[str, np.ndarray], path: Path, metadata: dict[str, str]) -> None:
    """Write arrays to a safetensors file: a header in JSON, then the numbers, widest dtype first.

    The library's own `save_file` writes to a temporary file of its own, which a kill leaves behind,
    and gives no error number for a full disk; its `save` panics when memory is exhausted.
    """
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": metadata}
    parts: list[Any] = []
    end = 0
    for name in sorted(named, key=lambda name: (-named[name].dtype.itemsize, name)):
        array = named[name].astype(named[name].dtype.newbyteorder("<"), copy=False)
        start, end = end, end + array.nbytes
        code = codes[array.dtype.name]
        header[name] = {"dtype": code, "shape": array.shape, "data_offsets": [start, end]}
        parts.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(b"".join([len(text).to_bytes(8, "little"), text, *parts]))


UNREADABLE = (
    *(OSError, SafetensorError, ValueError, TypeError, KeyError),
    *(AttributeError, OverflowError, RecursionError),
)
"""Exceptions that reading an invalid or foreign file can raise."""
