"""Write the page: facts, tables and pictures of runs in one HTML file."""

import base64
import hashlib
import logging
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from iwae.errors import UserError
from iwae.files import atomic_write
from iwae.precision import float32
from iwae.reports.figures.style import MARKERS, PALETTE
from iwae.reports.gallery import gallery_figures
from iwae.reports.page import notices
from iwae.reports.page.markup import png_markup, svg_markup
from iwae.reports.page.page_runs import (
    Run,
    page_run_command,
    page_run_names,
    page_runs_by_test_set,
    read_page_run,
)
from iwae.reports.page.run_charts import (
    Picture,
    run_budgets_chart,
    run_training_chart,
    run_units_chart,
)
from iwae.reports.page.tables import (
    configuration_table,
    difference_tables,
    page_comparison_table,
    page_estimates_table,
)
from iwae.results.compare import WEIGHTS
from iwae.results.formatting import format_short_path

log = logging.getLogger(__name__)

CAPTIONS = {
    "data": ("Data", "Test examples, before any binarisation."),
    "samples": ("Samples", "Means of p(x|z) for draws z ~ p(z), and a draw x from each."),
    "reconstructions": (
        "Reconstructions",
        (
            "Test examples, their binarised pixels if the model is given these, and below them the "
            "means of p(x|z) for one draw z ~ q(z|x)."
        ),
    ),
    "density": ("Density", "The model's density, the true one, and the test examples."),
    "scatter": ("Samples", "Test examples, and as many draws from the model."),
    "marginals": ("Columns", "Draws from the model, and in grey the test examples."),
    "latents": (
        "Latents",
        "Posterior means of test examples. Colours are labels, rings mark unlikely examples.",
    ),
    "log_variances": (
        "Activity of the latent units",
        "Variance over test examples of each unit's posterior mean. Right of the line is active.",
    ),
    "posterior": ("Posteriors", "p(z|x) beside q(z|x) of a few test examples."),
    "training_curves": ("Training curves", "The bound and its parts by epoch, nats."),
    "rate_distortion": (
        "Rate and distortion",
        "The curve that annealing traces from the prior to the posterior and beyond.",
    ),
    "calibration": (
        "Calibration of q",
        (
            "Ranks of true latents among draws of q(z|x) and among weighted draws, on simulated "
            "examples: the distance of their distribution from the uniform one, by unit. Of "
            "exactly calibrated units, including inactive ones, 95% stay inside the grey band."
        ),
    ),
    "training_samples": ("Samples through training", "The same draws z, at a few epochs."),
    "training_reconstructions": (
        "Reconstructions through training",
        "Test examples above, and their reconstructions at a few epochs.",
    ),
    "filters_last_layer": (
        "Filters of the decoder",
        "Weights from its last layer to the pixels, the largest first.",
    ),
    "filters_first_layer": (
        "Filters of the encoder",
        "Weights from the pixels to its first layer, the largest first.",
    ),
}
"""Name of a figure of `gallery_figures` -> heading and caption, in the order of the page.

The chart of bounds is missing, since all runs share one.
"""

CHARTS = {
    "density",
    "marginals",
    "log_variances",
    "training_curves",
    "rate_distortion",
    "calibration",
}
"""Figures of lines and bars; all others have pixels and stay on white."""


class Shelf(NamedTuple):
    """Pictures of one kind, by run."""

    name: str
    heading: str
    caption: str
    pictures: list[tuple[int, Picture]]  # place of the run, and its picture


@float32
def write_page(
    runs: Sequence[Path], path: Path, *, weights: str = "final", data_dir: Path | None = None
) -> Path:
    """Write one HTML page that compares runs; it needs no other file and no network.

    A run without measurements has empty cells; one whose models or data are unavailable has no
    pictures, and the page says so.

    Args:
        runs: folders of the runs; differences are to the first.
        path: the file, which is written whole or not at all.
        weights: which models of each run: "final", "best", or "both" beside each other.
        data_dir: folder to search first for data files.

    Returns:
        The path.

    Raises:
        UserError: if there is no run, a folder is no run, one is named twice, or the path is a
            folder.
    """
    path = Path(path)
    if weights not in WEIGHTS:
        raise UserError(f"weights are {' or '.join(WEIGHTS)}, not {weights!r}")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file for the page, such as report.html")
    folders = [Path(run) for run in runs]
    kinds = WEIGHTS[weights]
    found = [
        read_page_run(folder, name, kind, f"{name}, {kind}" if len(kinds) > 1 else None)
        for folder, name in zip(folders, page_run_names(folders), strict=True)
        for kind in kinds
    ]
    text = _render(found, weights, data_dir, path.name)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _render(runs: Sequence[Run], weights: str, data_dir: Path | None, file: str) -> str:
    """The page as text."""
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["subscripts"] = _subscripts
    script = _source("script.js")
    shelves, undrawn = _shelves(runs, data_dir)
    names = dict.fromkeys(run.folder for run in runs)
    more = [] if weights == "final" else ["--weights", weights]
    return environment.get_template("page.html.jinja").render(
        runs=runs,
        weights=" and ".join(WEIGHTS[weights]),
        made=datetime.now(UTC),
        version=version("iwae"),
        command=shlex.join(["iwae", "report", *names, *more, "--out", file]),
        colours=len(PALETTE),
        markers=MARKERS,
        style=Markup(_source("style.css")),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        columns=page_comparison_table(runs),
        warnings=notices.warnings(runs),
        cautions=notices.cautions(runs),
        differences=difference_tables(runs),
        estimates=page_estimates_table(runs),
        charts=list(_charts(runs)),
        shelves=shelves,
        undrawn=[page_run_command("figures", run) for run in undrawn],
        configurations=configuration_table(runs),
    )


def _subscripts(text: str) -> Markup:
    """Write L_50 with a subscript."""
    return Markup(re.sub(r"\b(L|AIS)_(\d+)", r"\1<sub>\2</sub>", str(escape(text))))  # noqa: S704


def _source(name: str) -> str:
    """A file of this package."""
    return (files("iwae.reports.page") / name).read_text(encoding="utf-8")


Chart = tuple[list[tuple[int, Run]], Picture]
"""The runs in a chart, with their places on the page, and the chart."""

TRAINING = (
    "Training on {data}: the training bound of each run, and dashed its validation bound. Bounds "
    "of different objectives or k are different bounds. A steep start may be cut off."
)

BUDGETS = (
    "Bounds on log p(x) less {reference} of {run}, against their budget: importance samples "
    "(solid) or temperatures of annealing (dashed). Paired differences over the {n:,} test "
    "examples that all of these bounds share."
)

UNITS = "Active latent units through training."
LAYERED = " Layer 1, nearest the data, is solid; further layers are dashed."


def _charts(runs: Sequence[Run]) -> Iterator[Chart]:
    """The charts in which runs share axes."""
    places = {run.name: place for place, run in enumerate(runs)}
    # The final and best weights of a run share one training.
    paths = [run.path for run in runs]
    trained = {place: run for place, run in enumerate(runs) if run.path not in paths[:place]}
    for number, group in enumerate(_same_data(trained)):
        if (figure := run_training_chart(group)) is not None:
            caption = TRAINING.format(data=format_short_path(_first(group).config.dataset))
            yield _captioned(group, figure, f"training{number}", caption)
    for number, measured in enumerate(page_runs_by_test_set(runs).values()):
        known = {places[run.name]: bounds for run in measured if (bounds := run.known())}
        if (found := run_budgets_chart(known)) is not None:
            figure, reference, n = found
            group = {place: runs[place] for place in known}
            caption = BUDGETS.format(n=n, reference=reference, run=_first(group).name)
            yield _captioned(group, figure, f"budget{number}", caption)
    if (figure := run_units_chart(trained)) is not None:
        layered = any(len(run.config.sizes()[0]) > 1 for run in runs)
        yield _captioned(trained, figure, "units", UNITS + LAYERED * layered)


def _first(runs: Mapping[int, Run]) -> Run:
    return next(iter(runs.values()))


def _captioned(runs: Mapping[int, Run], figure: Figure, name: str, caption: str) -> Chart:
    """A figure of runs, by place, as a chart."""
    alt = f"{caption} Runs: {', '.join(run.name for run in runs.values())}."
    return list(runs.items()), Picture(svg_markup(figure, name, alt), caption, alt)


def _same_data(runs: Mapping[int, Run]) -> Iterable[dict[int, Run]]:
    """The runs, by place, on each data set: only bounds on the same data share an axis."""
    groups: dict[tuple[object, ...], dict[int, Run]] = {}
    for place, run in runs.items():
        key = (run.config.dataset, run.config.binarization, run.config.kind())
        groups.setdefault(key, {})[place] = run
    return groups.values()


def _shelves(runs: Sequence[Run], data_dir: Path | None) -> tuple[list[Shelf], list[Run]]:
    """The pictures of all runs by kind, and the runs of which some could not be drawn.

    The reason goes to the log alone, since it may name private folders.
    """
    undrawn = []
    found: dict[str, list[tuple[int, Picture]]] = {name: [] for name in CAPTIONS}
    for place, run in enumerate(runs):
        try:
            for name, figure in gallery_figures(run.path, weights=run.weights, data_dir=data_dir):
                if name in CAPTIONS:
                    heading, caption = CAPTIONS[name]
                    alt = f"{heading} of {run.name}: {caption}"
                    chart = svg_markup(figure, f"{name}{place}", alt) if name in CHARTS else None
                    chart = chart or png_markup(figure, alt)
                    found[name].append((place, Picture(chart, heading, alt)))
        except UserError as error:
            log.warning("%s: not all pictures are on the page: %s", run.path, error)
            undrawn.append(run)
    shelves = [Shelf(name, *CAPTIONS[name], drawn) for name, drawn in found.items() if drawn]
    return shelves, undrawn
