"""Pack the records of a results folder: `python docs/tools/pack.py [FOLDER]`."""

import sys
from pathlib import Path

import tyro

from iwae.errors import UserError
from iwae.results.record_files import check_packed_records, pack

APART = {"models", "benchmarks"}
"""Folders whose JSON files are not records of measurements."""


def main(root: tyro.conf.Positional[Path] = Path("results")) -> None:
    """Pack all folders of records in or below a folder, and check the packed files."""
    for folder in sorted({path.parent for path in root.rglob("[!.]*.json")}):
        if not APART & set(folder.relative_to(root).parts):
            removed = pack(folder)
            print(f"{folder}: {check_packed_records(folder)} records, {len(removed)} files removed")


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except UserError as error:
        sys.exit(f"pack.py: {error}")
