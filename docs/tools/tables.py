"""Fill in the tables of Markdown pages: `python docs/tools/tables.py [RESULTS FILE ...]`."""

import sys

import tyro

from iwae.errors import UserError
from result_tables.blocks import main

if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except UserError as error:
        sys.exit(f"tables.py: {error}")
