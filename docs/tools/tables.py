"""Fill in the tables of Markdown pages: `python docs/tools/tables.py [RESULTS FILE ...]`."""

import sys

from iwae.errors import UserError
from result_tables.blocks import main

if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"tables.py: {error}")
