"""Tables: columns of several kinds, grouped by kind."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, PyTree

from iwae.data import Kind
from iwae.data.kinds import column_kinds
from iwae.errors import UserError
from iwae.models.likelihoods.observation import Encoding, Observation, Rows
from iwae.typing import PRNGKey


class Part(NamedTuple):
    """The columns of one kind.

    Attributes:
        places: their indices in the table.
        observation: their `Observation`.
    """

    places: tuple[int, ...]
    observation: Observation


class Columns(dist.Distribution):
    """Independent distributions of groups of columns, as one over the whole row."""

    pytree_data_fields = ("each",)
    pytree_aux_fields = ("places",)

    def __init__(self, each: tuple[dist.Distribution, ...], places: tuple[tuple[int, ...], ...]):
        self.each, self.places = each, places
        super().__init__(event_shape=(sum(map(len, places)),))

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*d"]:
        """A row."""
        keys = jax.random.split(key, len(self.each))
        drawn = [one.sample(k, sample_shape) for one, k in zip(self.each, keys, strict=True)]
        return self.in_place(drawn)

    def log_prob(self, value: Float[Array, " d"]) -> Float[Array, ""]:
        """The sum over columns, nats."""
        pairs = zip(self.each, self.places, strict=True)
        return sum(one.log_prob(value[np.asarray(places)]) for one, places in pairs)

    @property
    def mean(self) -> Float[Array, " d"]:
        """The mean of each column; NaN for categories."""
        return self.in_place([one.mean for one in self.each])

    def averages(self) -> PyTree:
        """The averages of each distribution, all of which must be `Imputing`."""
        return tuple(one.averages() for one in self.each)

    def guess(self, averages: PyTree) -> Float[Array, " d"]:
        """One value for each column."""
        pairs = zip(self.each, averages, strict=True)
        return self.in_place([one.guess(average) for one, average in pairs])

    def fill(self, x: Float[Array, " d"], key: PRNGKey) -> Float[Array, " d"]:
        """The row with its missing values drawn."""
        keys = jax.random.split(key, len(self.each))
        each = zip(self.each, self.places, keys, strict=True)
        return self.in_place([one.fill(x[np.asarray(p)], k) for one, p, k in each])

    def in_place(self, parts: list[Float[Array, "..."]]) -> Float[Array, "*d"]:
        """Assemble a row from the values of each distribution."""
        order = np.argsort(np.concatenate(self.places))
        return jnp.concatenate(parts, axis=-1)[..., order]


def table(kind: Kind, d: int, make: Callable[[Kind, int], Observation]) -> Observation:
    """The observation of a table: the outputs of all parts, followed by their free parameters.

    Args:
        make: (kind, number of columns) -> the observation of these columns.

    Raises:
        UserError: if the numbers of kinds and columns differ.
    """
    kinds = column_kinds(kind)
    if len(kinds) != d:
        raise UserError(f"columns names {len(kinds)} kinds, but an example has {d} values")
    groups: dict[Kind, list[int]] = {}
    for place, one in enumerate(kinds):
        groups.setdefault(one, []).append(place)
    parts = [Part(tuple(places), make(one, len(places))) for one, places in groups.items()]
    outputs = [part.observation.n_outputs for part in parts]
    free = [part.observation.n_free for part in parts]
    cuts = np.cumsum([*outputs, *free])[:-1]

    def distribution(flat: Float[Array, " o"]) -> dist.Distribution:
        pieces = jnp.split(flat, cuts)
        parameters = [
            jnp.concatenate(both)
            for both in zip(pieces[: len(parts)], pieces[len(parts) :], strict=True)
        ]
        each = [part.observation.distribution(o) for part, o in zip(parts, parameters, strict=True)]
        return Columns(tuple(each), tuple(part.places for part in parts))

    def start(rows: Rows) -> np.ndarray:
        each = [part.observation.initial_output(rows[:, list(part.places)]) for part in parts]
        pieces = [np.split(one, [n]) for one, n in zip(each, outputs, strict=True)]
        return np.concatenate([first for first, _ in pieces] + [last for _, last in pieces])

    return Observation(sum(outputs), distribution, start, sum(free), _joint_encoding(parts))


def _joint_encoding(parts: list[Part]) -> Encoding:
    """The inputs of the encoder for all parts, one part after another."""
    encodings = [part.observation.encoding or _identity(len(part.places)) for part in parts]
    cuts = np.cumsum([one.n_statistics for one in encodings])[:-1]
    places = [list(part.places) for part in parts]

    def transform(x: Float[Array, " d"], statistics: Float[Array, " s"]) -> Float[Array, " i"]:
        known = jnp.split(statistics, cuts)
        each = zip(encodings, places, known, strict=True)
        return jnp.concatenate([one.transform(x[np.asarray(p)], s) for one, p, s in each])

    def statistics(rows: Rows) -> np.ndarray:
        each = zip(encodings, places, strict=True)
        return np.concatenate([one.statistics(rows[:, p]) for one, p in each])

    totals = (sum(one.n_inputs for one in encodings), sum(one.n_statistics for one in encodings))
    return Encoding(totals[0], transform, totals[1], statistics)


def _identity(d: int) -> Encoding:
    return Encoding(d, lambda x, _: x)
