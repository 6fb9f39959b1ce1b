"""`python -m iwae.report RESULTS FILE ...`."""

import sys

from iwae.errors import UserError
from iwae.report.blocks import main

if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"iwae.report: {error}")
