"""Run notebooks, and convert them to pages.

`python docs/tools/notebooks.py docs/notebooks/*.ipynb` runs each notebook from top to bottom and
stores the outputs of its cells in it. Outputs are never edited by hand.
"""

import ast
import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from matplotlib.figure import Figure

from iwae.files import atomic_write

DPI = 110
"""Resolution of figures: sharp at the width of a page, in small files."""

Cell = dict[str, Any]


class Page(NamedTuple):
    """A notebook as a page.

    Attributes:
        text: Markdown.
        pictures: file name -> PNG.
    """

    text: str
    pictures: dict[str, bytes]


def read(path: Path) -> dict[str, Any]:
    """A notebook (nbformat 4) as it is stored."""
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: Cell) -> str:
    """The text of a cell."""
    return "".join(cell["source"])


# --- running ----------------------------------------------------------------------------------


def run(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with the outputs of its code, run in order in one namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells, count = list(notebook["cells"]), 0
    for i, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            count += 1
            outputs = run_cell(source(cell), f"cell {count}", namespace)
            cells[i] = {**cell, "execution_count": count, "outputs": outputs}
    return {**notebook, "cells": cells}


def run_cell(code: str, name: str, namespace: dict[str, Any]) -> list[Cell]:
    """Run one cell as Jupyter does: show its printed text and the value of its last expression."""
    tree = ast.parse(code, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), namespace)  # noqa: S102 - our own notebooks
        if last is not None:
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)  # noqa: S307
    outputs: list[Cell] = []
    if printed.getvalue():
        lines = printed.getvalue().splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": lines})
    if value is not None and not code.rstrip().endswith(";"):
        outputs.append({"output_type": "display_data", "metadata": {}, "data": shown(value)})
    return outputs


def shown(value: Any) -> dict[str, Any]:
    """The stored form of a value: a PNG of a figure, otherwise text."""
    if isinstance(value, Figure):
        png = io.BytesIO()
        value.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
        return {"image/png": base64.b64encode(png.getvalue()).decode() + "\n"}
    return {"text/plain": repr(value).splitlines(keepends=True)}


def write(notebook: dict[str, Any], path: Path) -> None:
    """Store a notebook in Jupyter's format."""
    with atomic_write(path) as temporary:
        text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
        temporary.write_text(text + "\n", encoding="utf-8")


# --- pages ------------------------------------------------------------------------------------


def page(notebook: dict[str, Any], name: str) -> Page:
    """The notebook as Markdown, with its pictures beside it as `NAME-1.png`, `NAME-2.png`, ...

    The alternative text of a picture is `alt` in the metadata of its cell.
    """
    parts, pictures = [], {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(source(cell))
            continue
        parts.append(f"```python\n{source(cell)}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", [])})
            if "image/png" in data:
                file = f"{name}-{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(data["image/png"])
                parts.append(f"![{cell['metadata']['alt']}]({file})")
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    return Page("\n\n".join(parts) + "\n", pictures)


def main(*files: tyro.conf.Positional[Path]) -> None:
    """Run notebooks, and store their outputs in them."""
    for path in files:
        with contextlib.chdir(path.parent):
            done = run(read(Path(path.name)))
        write(done, path)
        print(path)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
