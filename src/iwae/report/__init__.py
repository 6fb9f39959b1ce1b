"""Records into tables. No number is typed: `python -m iwae.report` rewrites the marked blocks.

A results folder holds one folder per run (configuration, models, metrics, records). A Markdown
file has blocks `<!-- results:NAME -->` ... `<!-- /results:NAME -->` that this module fills.
"""

from iwae.report.blocks import fill_blocks, main
from iwae.report.experiments import imputation_table
from iwae.report.likelihoods import (
    estimates_row,
    estimates_table,
    likelihood_row,
    likelihood_table,
    published_nll,
    read_records,
)
from iwae.report.tables import Row, markdown, runs_in

__all__ = [
    "Row",
    "estimates_row",
    "estimates_table",
    "fill_blocks",
    "imputation_table",
    "likelihood_row",
    "likelihood_table",
    "main",
    "markdown",
    "published_nll",
    "read_records",
    "runs_in",
]
