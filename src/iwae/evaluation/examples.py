"""Map a function of one example over a split: batched, padded, sharded, slab by slab.

Example i has the key `fold_in(key, i)`, or that of its address if addresses are given. Its result
does not depend on the other examples. Slabs are yielded as they finish, so that a caller can show
progress or stop.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree, Shaped, UInt

from iwae.data.kinds import KINDS, check_kind_values
from iwae.data.rows import Examples, Rows
from iwae.errors import UserError, require_positive
from iwae.models.conditional import ConditionalVAE, Model, unconditional_model
from iwae.models.vae import VAE, AbstractLatentModel
from iwae.precision import float32
from iwae.typing import Example, PRNGKey

ROWS = 1000
"""Decoder evaluations in flight per device: enough to feed a core, few enough for its cache."""

SLAB_ROWS = 200_000
"""Decoder evaluations per dispatch and device: about a second of work on a CPU."""

SLAB_VALUES = 2**23
"""The most values of a slab of examples that are read from disk."""

CHAIN_ROWS = 250
"""Chains in flight per device: nearly as fast as `ROWS`, and slabs finish four times as often."""

ExampleFn = Callable[[Any, Example, PRNGKey], PyTree]


@float32
def map_examples(
    fn: ExampleFn,
    model: PyTree,
    examples: Examples,
    key: PRNGKey,
    *,
    batch_size: int,
    slab_size: int = 1,
    first: int = 0,
    addresses: Shaped[np.ndarray, " n"] | None = None,
) -> Iterator[PyTree]:
    """Apply `fn(model, x, fold_in(key, i))` to every example; yield NumPy results slab by slab.

    Args:
        fn: a function of one example; its result is a pytree of arrays.
        model: the first argument of the function, usually a model.
        examples: `[n, ...]`; bytes become float32 on the device. `Rows` are read slab by slab.
        batch_size: examples under one `vmap`, on each device; capped at the examples it gets.
        slab_size: examples per dispatch over all devices, rounded up to whole batches.
        first: index of the first example, to resume an interrupted measurement.
        addresses: 32-bit numbers to fold into the key instead of the examples' indices.

    Yields:
        For each slab in order, the pytree of `fn` with a leading axis over the slab's examples.

    Raises:
        UserError: if there are no examples, or `batch_size` is not positive.
    """
    if len(examples) == 0:
        raise UserError("there are no examples to evaluate: this split is empty")
    require_positive("batch_size", batch_size)
    mesh = Mesh(np.asarray(jax.local_devices()), ("example",))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axis)) for axis in ((), ("example",)))
    # A freshly trained model lies on some of the devices only.
    arrays, static = eqx.partition((model, key), eqx.is_array)
    arrays = jax.device_put(arrays, whole)
    model, key = eqx.combine(arrays, static)
    batch_size = min(batch_size, -(-len(examples) // mesh.size))  # less padding
    if isinstance(examples, Rows):
        slab_size = min(slab_size, max(1, SLAB_VALUES // math.prod(examples.shape[1:])))
    batch = mesh.size * batch_size
    slabs = -(-len(examples) // max(batch, slab_size))  # equal lengths waste the least
    slab = batch * -(-len(examples) // (slabs * batch))
    for start in range(first, len(examples), slab):
        # The last slab is padded with the last example, so that only one shape is compiled.
        index = np.minimum(np.arange(start, start + slab), len(examples) - 1)
        address = np.int32(index) if addresses is None else addresses[index]
        xs, address = jax.device_put((examples[index], address), split)
        with jax.debug_nans(False):  # nan can be a result, as for k-hat; callers refuse others
            out = _map_slab(fn, model, xs, address, key, batch_size, mesh)
        jax.block_until_ready(out)  # raises errors that NumPy's view would turn into an abort
        count = min(slab, len(examples) - start)
        yield jax.tree.map(lambda leaf, count=count: np.asarray(leaf)[:count], out)


def map_examples_by_cost(
    fn: ExampleFn,
    model: PyTree,
    examples: Examples,
    key: PRNGKey,
    *,
    rows: int,
    at_once: int | None = None,
    batch_size: int | None = None,
    first: int = 0,
) -> Iterator[PyTree]:
    """`map_examples` of a function that evaluates the decoder `rows` times for each example.

    Args:
        at_once: rows of an example that are in memory at the same time; all if None.
        batch_size: examples at a time on each device; if None, as many as suit `at_once`.
    """
    return map_examples(
        fn,
        model,
        examples,
        key,
        batch_size=max(1, ROWS // (at_once or rows)) if batch_size is None else batch_size,
        slab_size=max(1, SLAB_ROWS // rows) * jax.local_device_count(),
        first=first,
    )


def map_examples_with_chains(
    fn: ExampleFn,
    model: PyTree,
    examples: Examples,
    key: PRNGKey,
    *,
    chains: int,
    batch_size: int | None = None,
    first: int = 0,
) -> Iterator[PyTree]:
    """`map_examples` of a function that runs `chains` chains for each example.

    Args:
        batch_size: examples at a time on each device; if None, as many as suit the chains.
    """
    batch = max(1, CHAIN_ROWS // chains) if batch_size is None else batch_size
    return map_examples(fn, model, examples, key, batch_size=batch, first=first)


@eqx.filter_jit
def _map_slab(
    fn: ExampleFn,
    model: PyTree,
    xs: Shaped[Array, "n ..."],
    address: Int[Array, " n"] | UInt[Array, " n"],
    key: PRNGKey,
    batch_size: int,
    mesh: Mesh,
) -> PyTree:
    params, static = eqx.partition(model, eqx.is_array)

    def one_device(params: PyTree, xs: Array, address: Array, key: PRNGKey) -> PyTree:
        model = eqx.combine(params, static)

        def one_example(args: tuple[Array, Array]) -> PyTree:
            x, i = args
            return fn(model, x.astype(jnp.float32), jax.random.fold_in(key, i))

        return jax.lax.map(one_example, (xs, address), batch_size=batch_size)

    split, whole = PartitionSpec("example"), PartitionSpec()
    return jax.shard_map(
        one_device,
        mesh=mesh,
        in_specs=(whole, split, split, whole),
        out_specs=split,
        check_vma=False,  # the loops start from constants, which are the same on every device
    )(params, xs, address, key)


def gather_examples(slabs: Iterator[PyTree]) -> PyTree:
    """Join all slabs of `map_examples` into one pytree of `[n, ...]` arrays, floats in float64."""

    def join(*leaves: np.ndarray) -> np.ndarray:
        whole = np.concatenate(leaves)
        return whole.astype(np.float64) if np.issubdtype(whole.dtype, np.floating) else whole

    return jax.tree.map(join, *slabs)


def refuse_nan_examples(
    slabs: Iterator[dict[str, np.ndarray]],
    done: int,
    quantity: str = "log-likelihood",
    names: Sequence[str] = ("log_likelihood",),
) -> Iterator[dict[str, np.ndarray]]:
    """Pass slabs on; FloatingPointError if one of the named arrays `[n, ...]` contains nan.

    Args:
        done: index of the first example.
        quantity: description of the arrays, for the message.
    """
    for slab in slabs:
        for name in names:
            bad = np.flatnonzero(np.isnan(slab[name]).reshape(len(slab[name]), -1).any(axis=1))
            if bad.size:
                raise FloatingPointError(
                    f"the {quantity} of example {done + bad[0]} is not a number (nan): look for "
                    "a parameter of the model or a value of this example that is not finite"
                )
        done += len(slab[names[0]])
        yield slab


def placeholder_examples(n: int) -> np.ndarray:
    """Bytes in place of n examples, for a function that draws its own."""
    return np.zeros((n, 1), np.uint8)


def check_examples(model: AbstractLatentModel, examples: Examples, *, values: bool = True) -> None:
    """Raise UserError for examples of another shape, or with values outside the model's support.

    Grey values are outside that of Bernoulli pixels, for example. Models of a user's own class
    accept all examples, and kinds of a user's own all values.

    Args:
        examples: `[n, d]`; with labels, `[n, d + C]`.
        values: whether to check the values too; examples still to be binarised are not in the
            model's units.
    """
    if not isinstance(model, Model):
        return
    vae = unconditional_model(model)
    rows = examples if isinstance(examples, Rows) else np.asarray(examples)
    _check_shape(model, vae, rows.shape)
    if isinstance(rows, Rows):  # their values were checked when the file was opened
        return
    if values and vae.kind.name in KINDS:
        without = rows[:, : vae.n_data]
        check_kind_values(without, vae.kind, "examples", missing=vae.missing is not None)


def _check_shape(model: Model, vae: VAE, shape: tuple[int, ...]) -> None:
    """Raise UserError unless the model takes examples of this shape."""
    size = model.example_size
    if shape[1:] == (size,):
        return
    if len(shape) > 2 and math.prod(shape[1:]) == size:
        remedy = "flatten them: examples.reshape(len(examples), -1)"
    elif isinstance(model, ConditionalVAE) and shape[1:] == (vae.n_data,):
        remedy = f"append their labels, one-hot over {model.n_classes} classes"
    else:
        remedy = "make a model of their size"
    raise UserError(f"examples have shape {list(shape)}, but the model takes [n, {size}]: {remedy}")
