"""Published tables, cell by cell: what to run, how long it takes, and what came of it."""

from iwae.reproduce.costs import hours
from iwae.reproduce.plan import Wanted, cell_folder, cell_runs, plan
from iwae.reproduce.table import FORMATS, Cell, duration, read_cell, read_cells, table

__all__ = [
    "FORMATS",
    "Cell",
    "Wanted",
    "cell_folder",
    "cell_runs",
    "duration",
    "hours",
    "plan",
    "read_cell",
    "read_cells",
    "table",
]
