"""Open .parquet files and refuse damaged ones. PyArrow is imported on first use."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iwae.data.arrays import refusing_oversized_arrays
from iwae.errors import UserError
from iwae.wording import first_error_line


def open_parquet_file(path: Path) -> Any:
    """Open a .parquet file, and read its metadata alone; UserError if it is damaged."""
    from pyarrow import parquet

    with refusing_parquet_damage(path):
        found = parquet.ParquetFile(path)
        _ = found.schema_arrow.names  # decodes them
        return found


def count_parquet_cells(path: Path) -> int:
    """The number of cells of a .parquet file."""
    about = open_parquet_file(path).metadata
    return about.num_rows * about.num_columns


@contextmanager
def refusing_parquet_damage(path: Path) -> Iterator[None]:
    """Turn PyArrow's exceptions for a damaged .parquet file into UserError."""
    import pyarrow as pa

    try:
        with refusing_oversized_arrays(path):
            yield
    except MemoryError:
        raise
    except (pa.ArrowException, EOFError, OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or first_error_line(error)
        raise UserError(f"{path} cannot be read: {reason}") from None
