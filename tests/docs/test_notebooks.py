"""The notebooks of the documentation run, and reproduce their stored outputs."""

import json
import re
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
sys.path.insert(0, str(ROOT / "docs" / "tools"))
import notebooks  # noqa: E402


def output_kinds(cell):
    """The kind of each output of a cell, with its words but without its numbers."""
    for output in cell["outputs"]:
        data = output.get("data", {"text/plain": output.get("text", [])})
        for kind, content in data.items():
            words = re.sub(r"[-\d.\[\]\s]+", " ", "".join(content)) if kind == "text/plain" else ""
            yield kind, words


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_reproduces_its_outputs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored = notebooks.read(path)
    with jax.numpy_dtype_promotion("standard"):
        made = notebooks.run(stored)
    for old, new in zip(stored["cells"], made["cells"], strict=True):
        if old["cell_type"] == "code":
            assert old["execution_count"] == new["execution_count"]
            assert list(output_kinds(old)) == list(output_kinds(new)), notebooks.source(old)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_small_and_describes_every_figure(path):
    assert path.stat().st_size < 500_000
    for cell in notebooks.read(path)["cells"]:
        figures = [kind for kind, _ in output_kinds(cell)] if cell["cell_type"] == "code" else []
        assert ("image/png" in figures) == ("alt" in cell["metadata"])


def test_cells_run_as_in_jupyter():
    cells = [
        {"cell_type": "code", "metadata": {}, "source": ["x = 2\n", "print(x)\n", "x + 1"]},
        {"cell_type": "markdown", "metadata": {}, "source": ["words"]},
        {"cell_type": "code", "metadata": {}, "source": ["x;"]},
        {"cell_type": "code", "metadata": {}, "source": ["None"]},
    ]
    made = notebooks.run({"cells": cells, "nbformat": 4})["cells"]
    assert made[0]["outputs"] == [
        {"output_type": "stream", "name": "stdout", "text": ["2\n"]},
        {"output_type": "display_data", "metadata": {}, "data": {"text/plain": ["3"]}},
    ]
    assert made[1] == cells[1]
    assert (made[2]["outputs"], made[2]["execution_count"]) == ([], 2)
    assert made[3]["outputs"] == []


def test_error_in_a_cell_is_raised():
    cell = {"cell_type": "code", "metadata": {}, "source": ["1 / 0"]}
    with pytest.raises(ZeroDivisionError):
        notebooks.run({"cells": [cell]})


def test_notebook_is_written_in_the_format_of_jupyter(tmp_path):
    notebooks.write(notebooks.read(NOTEBOOKS[0]), tmp_path / "copy.ipynb")
    assert (tmp_path / "copy.ipynb").read_text() == NOTEBOOKS[0].read_text()
    stored = json.loads(NOTEBOOKS[0].read_text())
    assert (stored["nbformat"], stored["nbformat_minor"]) == (4, 5)
    names = [cell["id"] for cell in stored["cells"]]
    assert len(set(names)) == len(names)
