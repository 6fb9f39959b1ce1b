"""Where a record comes from: versions, commit, machine and date."""

import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from iwae.results.schema import Document


def record_provenance(*packages: str) -> Document:
    """The facts about the machine, the code and further packages, for a record."""
    return {
        "dtype": "float32",
        "device": jax.local_devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "versions": {**{name: version(name) for name in ("iwae", "jax", *packages)}, **_commit()},
    }


@cache
def _commit() -> dict[str, Any]:
    """The commit of a checkout, and whether code or dependencies have changed since."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return {}

    def git(*words: str) -> str:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(root), *words],  # noqa: S607 - git as the shell finds it
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "src", "pyproject.toml", "requirements.txt")
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(changed)}
    except (OSError, subprocess.CalledProcessError):  # no git here, or not our checkout
        return {}
