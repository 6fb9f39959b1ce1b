"""Copies of a .parquet file with imputed values in its gaps.

Columns, their order and their types stay; a type that cannot hold an imputed value is widened.
PyArrow is imported on first use.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from iwae.data.parquet_files import open_parquet_file, refusing_parquet_damage
from iwae.data.writers import Cells
from iwae.errors import UserError
from iwae.files import atomic_write, temporary_folder


class Piece(NamedTuple):
    """Consecutive rows.

    Attributes:
        cells: completed columns, by name.
        gaps: which of their cells were missing, by name, `[n]` each.
        added: columns to add, by name.
    """

    cells: Cells
    gaps: Mapping[str, Bool[np.ndarray, " n"]]
    added: Cells


Fill = Callable[[Any, Piece], None]
"""Writes rows of the file, an Arrow table, with their gaps filled."""


def parquet_rows_to_fill(path: Path) -> Callable[[int], Any]:
    """A function that reads the next n rows of a file, as an Arrow table."""
    import pyarrow as pa

    tables = _tables(path)
    left = next(tables)

    def take(n: int) -> Any:
        nonlocal left
        while len(left) < n:
            left = pa.concat_tables([left, next(tables)])
        found, left = left.slice(0, n), left.slice(n)
        return found

    return take


def _tables(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    file = open_parquet_file(path)
    with refusing_parquet_damage(path):
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(row_groups=[group]):
                yield pa.Table.from_batches([batch])


@contextmanager
def filled_parquet(path: Path) -> Iterator[tuple[Fill, list[str]]]:
    """A function that writes rows to a .parquet file, and lines about columns that were widened.

    At the end the file appears, whole or not at all, and the lines are complete. Rows written
    before a column was widened are cast.
    """
    from pyarrow import parquet

    schemas: list[Any] = []
    parts: list[Path] = []
    lines: list[str] = []
    with atomic_write(path) as temporary, temporary_folder(path.parent) as folder:
        with ExitStack() as stack:
            writers: list[Any] = []

            def write(table: Any, piece: Piece) -> None:
                found = _filled_table(table, piece, schemas[-1] if schemas else None)
                if not schemas or not found.schema.equals(schemas[-1]):
                    schemas.append(found.schema)
                    part = folder / f"{len(schemas)}.parquet"
                    parts.append(part)
                    writers.append(stack.enter_context(parquet.ParquetWriter(part, found.schema)))
                writers[-1].write_table(found)
                lines[:] = _widened(table.schema, found.schema)

            yield write, lines
        if len(parts) == 1:
            shutil.copyfile(parts[0], temporary)
        else:
            _concatenate(parts, schemas[-1], temporary)


def _concatenate(parts: list[Path], schema: Any, path: Path) -> None:
    """Write the rows of several files to one, with the types of a schema."""
    from pyarrow import parquet

    with parquet.ParquetWriter(path, schema) as writer:
        for part in parts:
            for table in _tables(part):
                writer.write_table(_filled_table(table, Piece({}, {}, {}), schema))


def _widened(old: Any, new: Any) -> list[str]:
    """A line for each column whose type has changed."""
    return [
        f"column {field.name!r} is {new.field(i).type}: {field.type} does not hold imputed values"
        for i, field in enumerate(old)
        if field.type != new.field(i).type
    ]


def _filled_table(table: Any, piece: Piece, schema: Any) -> Any:
    """The rows with their gaps filled, in the column types so far or, without any, their own."""
    import pyarrow as pa

    columns, fields = [], []
    for i, field in enumerate(table.schema):
        wanted = field.type if schema is None else schema.field(i).type
        gaps = piece.gaps.get(field.name, np.zeros(len(table), bool))
        new = piece.cells[field.name][gaps] if gaps.any() else np.zeros(0)
        columns.append(_filled_column(field.name, table.column(i), new, gaps, wanted))
        fields.append(field.with_type(columns[-1].type))
    for name, cells in piece.added.items():
        columns.append(pa.array(cells, from_pandas=True))
        fields.append(pa.field(name, columns[-1].type))
    about = dict(table.schema.metadata or {})
    if any(new.type != old.type for new, old in zip(fields, table.schema, strict=False)):
        about.pop(b"pandas", None)  # it names the types too
    return pa.table(columns, schema=pa.schema(fields, about or None))


def _filled_column(name: str, old: Any, new: np.ndarray, gaps: np.ndarray, wanted: Any) -> Any:
    """A column with new cells in its gaps, in the wanted type or the first that holds them."""
    import pyarrow as pa

    if not len(new) and old.type == wanted:
        return old
    kinds = [wanted]
    if pa.types.is_dictionary(wanted):
        kinds.append(pa.dictionary(pa.int32(), wanted.value_type, wanted.ordered))
    if len(new):
        kinds += [pa.array(new).type, pa.float64()]
    for kind in kinds:
        try:
            return _merged(old, new, gaps, kind)
        except (pa.ArrowException, OverflowError):
            continue
    raise UserError(f"column {name!r} of type {old.type} cannot hold imputed values: convert it")


def _merged(old: Any, new: np.ndarray, gaps: np.ndarray, kind: Any) -> Any:
    """The filled column in a type; ArrowException or OverflowError if that cannot hold it."""
    import pyarrow as pa

    places = np.arange(len(gaps))
    places[gaps] = len(gaps) + np.arange(gaps.sum())
    if pa.types.is_dictionary(kind):
        return _in_dictionary(old, _cast(new, kind.value_type), places, kind)
    if pa.types.is_dictionary(old.type):
        old = old.cast(old.type.value_type)
    plain = pa.string() if pa.types.is_string_view(kind) else kind  # views lack `take`
    both = pa.chunked_array([*old.cast(plain).chunks, _cast(new, plain)], plain)
    return both.take(pa.array(places)).cast(kind)


def _cast(new: np.ndarray, kind: Any) -> Any:
    """New cells as an array of a type."""
    import pyarrow as pa

    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        new = new.astype(np.float64)
    elif new.dtype == bool and not pa.types.is_boolean(kind):
        new = np.array([*map(str, new), None], object)[:-1]  # as they were written
    found = pa.array(new).cast(kind)
    if pa.types.is_floating(kind) and np.isinf(found.to_numpy(zero_copy_only=False)).any():
        raise OverflowError
    return found


def _in_dictionary(old: Any, new: Any, places: np.ndarray, kind: Any) -> Any:
    """A dictionary column, whose dictionary is extended by the new cells that it lacks."""
    import pyarrow as pa
    from pyarrow import compute as pc

    whole = old.unify_dictionaries().combine_chunks()
    lacking = new.filter(pc.invert(pc.is_in(new, value_set=whole.dictionary))).unique()
    words = pa.concat_arrays([whole.dictionary, lacking])
    indices = [whole.indices.cast(pa.int32()), pc.index_in(new, value_set=words)]
    taken = pa.concat_arrays(indices).take(pa.array(places)).cast(kind.index_type)
    return pa.DictionaryArray.from_arrays(taken, words, ordered=kind.ordered)
