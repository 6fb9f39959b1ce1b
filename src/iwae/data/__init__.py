"""Load named data sets and users' own files as checked, identified and binarised splits.

The modules follow the path of the data: `readers` (published formats), `synthetic` (known
densities), `rows` (read when they are asked for), `sampling` (random choices of them), `moments`
(of columns), `kinds` (the values that each kind of data takes), `splits` (held-out examples,
binarisation, identity), `catalogue` (the table of named sets), `store` (folder, cache, download),
`delimited` (text), `tables` (text, .parquet, data frames), `parquet` (piece by piece), `columns`
(their kinds and levels), `arrays` (.npy, .npz), `images` (folders), `own` (all of a user's own),
`load` (the entry point), `summary` (what data were taken for), `device` (`draw`). Only `draw` needs
JAX, which is imported on first use, as are PyArrow, narwhals and Pillow.
"""

from typing import TYPE_CHECKING, Any

from iwae.data.catalogue import DATASETS
from iwae.data.kinds import KINDS, Kind, as_json, as_kind, make_kind
from iwae.data.load import load_dataset
from iwae.data.sampling import choose
from iwae.data.splits import BINARIZATIONS, OBSERVATIONS, Dataset, test_sha256
from iwae.data.store import Listing, cache_dir, fetch, list_datasets, verify

if TYPE_CHECKING:
    from iwae.data.device import draw

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
        from iwae.data.device import draw

        return draw
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
