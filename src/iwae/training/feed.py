"""Training examples on the devices: the whole data set or, for streamed data, a block at a time.

An epoch of streamed data is a sequence of K blocks of equal size. A block consists of many short
runs of consecutive rows, drawn from the whole data set, so that a file sorted by class still yields
mixed blocks. Within a block, each replicate visits the rows in a random order of its own. The runs
of a block depend on the epoch and the block alone, the order of the rows also on the replicate's
key, so that any step can be reproduced. To the compiled program, a block is a data set: data in
memory are one block that never changes.
"""

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from iwae.data.rows import Examples, Rows
from iwae.data.sampling import BLOCK_ROWS, sampling_generator

BLOCK_BYTES = 2**26
"""Largest size of a block in bytes. Each device holds one, while the next one is read."""

RUNS = 256
"""Number of runs of consecutive rows in a block."""


class Blocks(NamedTuple):
    """The parts of an epoch.

    Attributes:
        number: blocks in an epoch; 1 for data in memory.
        rows: rows in each block. Fewer than `number` rows of an epoch are left out, different ones
            in each shuffled epoch.
        steps: full batches in each block.
    """

    number: int
    rows: int
    steps: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self.number * self.steps


def feed_blocks(data: Examples, batch_size: int) -> Blocks:
    """The blocks of training examples; for streamed data, as few as `BLOCK_BYTES` allows."""
    n, count = len(data), 1
    if isinstance(data, Rows):
        count = max(1, min(math.ceil(data.nbytes / BLOCK_BYTES), n // batch_size))
    return Blocks(count, n // count, n // count // batch_size)


def feed_rows(n: int, blocks: Blocks, epoch: int, block: int) -> np.ndarray:
    """The rows of a block of an epoch, ascending; the blocks of an epoch are disjoint.

    Args:
        n: number of rows of the data.
    """
    length = max(1, blocks.rows // RUNS)
    runs = -(-n // length)
    order = np.argsort(sampling_generator(epoch, BLOCK_ROWS).random(runs), kind="stable")
    starts = order * length
    sizes = np.minimum(starts + length, n) - starts
    ends = np.cumsum(sizes)
    first, last = block * blocks.rows, (block + 1) * blocks.rows
    mine = np.flatnonzero((ends > first) & (ends - sizes < last))
    pieces = [
        np.arange(
            starts[i] + max(0, first - (ends[i] - sizes[i])),
            starts[i] + min(sizes[i], last - (ends[i] - sizes[i])),
        )
        for i in mine
    ]
    return np.sort(np.concatenate(pieces))


class Feed:
    """The blocks of training data on the devices; the next one is read ahead."""

    def __init__(
        self, data: Examples, batch_size: int, *, shuffle: bool, reader: ThreadPoolExecutor
    ):
        self.blocks = feed_blocks(data, batch_size)
        self._data, self._shuffle, self._reader = data, shuffle, reader
        self._ahead: tuple[tuple[int, int], Future[np.ndarray]] | None = None
        self._place: tuple[int, int] | None = None
        self._here: jax.Array | None = None

    def at(self, done: int) -> jax.Array:
        """The block in use after `done` blocks since the start of the run."""
        place = divmod(done, self.blocks.number)
        if not isinstance(self._data, Rows) or self.blocks.number == 1:
            place = (0, 0)
        if self._here is None or place != self._place:
            self._here = None  # frees its memory before the next block needs it
            self._here = on_all_devices(self._read(place))
            self._place = place
            self._read_ahead(divmod(done + 1, self.blocks.number))
        return self._here

    def _read(self, place: tuple[int, int]) -> np.ndarray:
        """The rows of a block of an epoch, which may have been read ahead."""
        if not isinstance(self._data, Rows):
            return self._data
        if self._ahead is not None and self._ahead[0] == place:
            return self._ahead[1].result()
        return self._block(self._data, place)

    def _read_ahead(self, place: tuple[int, int]) -> None:
        if isinstance(self._data, Rows) and self.blocks.number > 1:
            self._ahead = place, self._reader.submit(self._block, self._data, place)

    def _block(self, data: Rows, place: tuple[int, int]) -> np.ndarray:
        epoch, block = place
        return data[feed_rows(len(data), self.blocks, epoch if self._shuffle else 0, block)]


@contextmanager
def feeding(data: Examples, batch_size: int, *, shuffle: bool) -> Iterator[Feed]:
    """A feed of training data that reads ahead in a thread, for the length of a `with` block."""
    with ThreadPoolExecutor(1, "iwae-reader") as reader:
        yield Feed(data, batch_size, shuffle=shuffle, reader=reader)


def on_all_devices(data: Shaped[Array, "n ..."] | Shaped[np.ndarray, "n ..."]) -> Array:
    """A copy of the data on each device; the data themselves if they are there already."""
    mesh = Mesh(np.asarray(jax.local_devices()), ("replicate",))
    return jax.device_put(data, NamedSharding(mesh, PartitionSpec()))
