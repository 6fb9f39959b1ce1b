"""All numbers that follow from the records in results/, as text, to compare before and after.

`python docs/tools/all_numbers.py FILE` writes one JSON file with the output of `iwae evaluate`,
`iwae compare`, `iwae reproduce table`, the page, the card, the figures and the tables of the
Markdown pages. A change that moves no number leaves the file as it is.
"""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure

from iwae.config.presets import PRESETS
from iwae.errors import UserError
from iwae.experiments.cell_results import cell_results_table, read_cell_results
from iwae.experiments.cells import Wanted
from iwae.files import atomic_write
from iwae.reports.card import model_card
from iwae.reports.page import notices
from iwae.reports.page.page_runs import page_run_names, read_page_run
from iwae.reports.page.run_charts import run_budgets_chart
from iwae.reports.page.tables import difference_tables, page_comparison_table, page_estimates_table
from iwae.reports.recorded_figures import recorded_bounds_figure, recorded_rate_distortion_figure
from iwae.results.compare import compare
from iwae.results.description import comparison_description, describe, gradients_description
from iwae.results.reading import Method, read_bounds, read_records
from iwae.runs.model_files import load_model, read_model_facts
from result_tables.blocks import fill_blocks

RESULTS = Path("results")


def texts() -> Iterator[tuple[str, str]]:
    """The name of each text, and the text."""
    for page in (Path("README.md"), RESULTS / "README.md", *sorted(Path("docs").glob("*.md"))):
        yield f"tables of {page}", fill_blocks(page.read_text(), RESULTS)
    yield "reproduce", cell_results_table(read_cell_results(RESULTS, PRESETS, Wanted()), Wanted())
    runs = sorted(path.parent for path in RESULTS.rglob("config.toml"))
    for run in runs:
        yield from _of_run(run)
    for folder, its in groupby(runs, lambda run: run.parent):
        yield from _of_runs(folder, list(its))


def _of_run(run: Path) -> Iterator[tuple[str, str]]:
    for path, record in read_records(run, list(Method)):
        words = gradients_description if path.stem.startswith("train-final-gradients") else describe
        yield f"record {path.with_suffix('')}", words(record)
    for one in read_bounds(run, split="test", weights="final", pruned=False):
        means = one.values.mean(axis=1).tolist(), float(one.values.std()), len(one.places)
        yield f"values of {one.estimator}, {run}", repr(means)
    drawn = {"bounds": recorded_bounds_figure, "curve": recorded_rate_distortion_figure}
    for name, draw in drawn.items():
        if (figure := draw(run, "final")) is not None:
            yield f"{name} {run}", _points(figure)
    for folder in sorted((run / "models").glob("*-*")):
        weights, _, number = folder.name.partition("-")
        about = read_model_facts(folder), weights, int(number), "mit"
        yield f"card {folder}", model_card(run, load_model(folder), *about)


def _points(figure: Figure) -> str:
    """The points of a figure's lines, and its texts."""
    lines = [line.get_xydata() for axes in figure.axes for line in axes.get_lines()]
    words = [text.get_text() for axes in figure.axes for text in axes.findobj() if _is_text(text)]
    return repr(([np.asarray(line).tolist() for line in lines], words))


def _is_text(artist: object) -> bool:
    return hasattr(artist, "get_text") and isinstance(artist.get_text(), str)


def _of_runs(folder: Path, runs: list[Path]) -> Iterator[tuple[str, str]]:
    """The page of the runs in one folder, and each run compared with the first."""
    names = page_run_names(runs)
    read = [read_page_run(run, name, "final") for run, name in zip(runs, names, strict=True)]
    for make in (page_comparison_table, difference_tables, page_estimates_table):
        yield f"page, {make.__name__} {folder}", repr(make(read))
    yield f"page, notices {folder}", repr([notices.warnings(read), notices.cautions(read)])
    known = {place: run.known() for place, run in enumerate(read)}
    if (drawn := run_budgets_chart(known)) is not None:
        yield f"page, budgets {folder}", _points(drawn[0])
    for run in runs[1:]:
        for estimator in (None, *read[0].bounds):
            try:
                words = comparison_description(compare([runs[0], run], estimator=estimator))
            except UserError as error:
                words = str(error)
            yield f"compare {run} by {estimator}", words


def main(file: tyro.conf.Positional[Path]) -> None:
    """Write all numbers into a file."""
    with atomic_write(file) as path:
        path.write_text(json.dumps(dict(texts()), indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
