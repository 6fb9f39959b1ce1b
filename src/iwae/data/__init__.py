"""Load named data sets and users' own files as checked, identified and binarised splits.

- Rows: `rows` (read on demand), `sampling` (random choices), `column_statistics`, `kinds` (legal
  values of each kind of data), `scaling` (standardised columns).
- Named sets: `catalogue` (their table), `readers` (published formats), `synthetic` (known
  densities), `dataset_files` (folder, cache, download).
- A user's tables: `cells` (numbers, words, gaps), `layout` and `delimited` (text), `tables` (text,
  .parquet, data frames), `columns` (kinds and levels), `coding` (cells to numbers and back),
  `parquet_files`, `streamed_tables` (piece by piece), `writers` (tables written).
- A user's other data: `arrays` (.npy, .npz), `images` (folders), `grey_levels`, `labels`, `meaning`
  (binary, grey or real), `own` (all of a user's own).
- Data sets: `held_out` (test and validation examples), `binarisation`, `splits` (assembly),
  `dataset` (the result), `load` (the entry point), `summary` (a description).

Only `draw` (`drawing`) needs JAX, which is imported on first use, as are PyArrow, narwhals and
Pillow.
"""

from typing import TYPE_CHECKING, Any

from iwae.data.binarisation import BINARIZATIONS, OBSERVATIONS
from iwae.data.catalogue import DATASETS
from iwae.data.dataset import Dataset, test_sha256
from iwae.data.dataset_files import Listing, cache_dir, fetch, list_datasets, verify
from iwae.data.kinds import KINDS, Kind, as_json, as_kind, make_kind
from iwae.data.load import load_dataset
from iwae.data.sampling import choose

if TYPE_CHECKING:
    from iwae.data.drawing import draw

__all__ = [
    "BINARIZATIONS",
    "DATASETS",
    "KINDS",
    "OBSERVATIONS",
    "Dataset",
    "Kind",
    "Listing",
    "as_json",
    "as_kind",
    "cache_dir",
    "choose",
    "draw",
    "fetch",
    "list_datasets",
    "load_dataset",
    "make_kind",
    "test_sha256",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "draw":
        from iwae.data.drawing import draw

        return draw
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
