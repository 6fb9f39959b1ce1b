"""Results of cells: our numbers, from records, beside the published ones."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student
from tabulate import tabulate

from iwae.config.experiment import TrainConfig
from iwae.config.presets import FAST, PRESETS, Preset
from iwae.config.same_experiment import same_cell_experiment
from iwae.config.toml import config_toml_values, read_config
from iwae.errors import UserError
from iwae.experiments.cell_means import (
    Annealed,
    cell_mean_errors,
    cell_mean_gap,
    cell_mean_gap_of_run,
    cell_mean_over_draws,
)
from iwae.experiments.cells import Wanted, cell_folder, cell_runs
from iwae.experiments.costs import cost_hours, cost_in_words
from iwae.results.extrapolation import extrapolate_record
from iwae.results.formatting import plus_minus
from iwae.results.reading import Known, read_bounds
from iwae.results.record_files import refuse_damaged_record
from iwae.results.schema import Binarizations, Weights
from iwae.runs.trained import is_trained_run, trained_model_digests

FORMATS = {"markdown": "github", "latex": "latex_booktabs", "html": "html"}
"""Format of a table -> its name in `tabulate`."""

TOLERANCE = 0.3
"""Typical difference between sound implementations of one cell, nats."""


class Cell(NamedTuple):
    """The results of a cell.

    Attributes:
        name: name of the cell.
        entry: its preset.
        nll: mean over seeds of minus the mean L_5000 on the whole test set, nats; None if unknown.
            If several draws of the pixels were measured, for any k, the mean over draws.
        nll_64: the same with 64 samples, for one draw.
        stderr: its standard error from the choice of test examples.
        draws: the mean over draws of the pixels; None if they were drawn once.
        others: its errors from particles and draws, in words.
        spread: standard deviation between seeds; None for one seed.
        truth: minus the mean log density of the same examples, if it is known, nats.
        active: mean active units of each layer.
        annealed: AIS minus L_5000 for the whole test set, with its error from the choice of a
            subset; None if unknown.
        seeds: number of seeds.
        epochs: number of epochs trained.
        hours: training time of all seeds by measured steps; None if these are unknown.
        error: why the runs cannot be read; such a cell has no number.
    """

    name: str
    entry: Preset
    nll: float | None = None
    nll_64: float | None = None
    stderr: float | None = None
    draws: Binarizations | None = None
    others: str = ""
    spread: float | None = None
    truth: float | None = None
    active: tuple[float, ...] = ()
    annealed: Annealed | None = None
    seeds: int = 0
    epochs: int = 0
    hours: float | None = None
    error: str = ""

    @property
    def difference(self) -> float | None:
        """Ours minus the published one, nats; negative where ours is better."""
        if self.nll is None or self.entry.nll is None:
            return None
        return self.nll - self.entry.nll

    @property
    def margin(self) -> float | None:
        """Half-width of the 95% prediction interval for one more run, nats.

        None for one seed, or if the error from draws of the pixels is unknown.

        The published number is one run with another seed, so the interval is Student's t for a new
        observation. It was measured on another draw of the pixels, whose error is added if several
        draws were measured. The error from the choice of test examples is omitted: both used the
        same images, or nearly the same (OMNIGLOT).
        """
        if self.spread is None:
            return None
        seeds = student.isf(0.025, self.seeds - 1) * self.spread * np.sqrt(1 + 1 / self.seeds)
        if self.draws is None:
            return float(seeds)
        draws = self.draws.draws_error, self.draws.one_draw_error
        if None in draws:
            return None
        return float(np.hypot(seeds, 1.96 * np.hypot(*draws)))  # type: ignore[arg-type]

    @property
    def is_shortened(self) -> bool:
        """Whether it was trained for fewer epochs than the published schedule has.

        A fast recipe never counts as shortened, because no protocol fixes its length.
        """
        wanted = 0 if self.entry.is_fast else self.entry.config().epochs
        return self.nll is not None and self.epochs < wanted

    @property
    def verdict(self) -> str:
        """Comparison of our number with the published one; empty if either is unknown."""
        if self.nll is None:
            return ""
        if not np.isfinite(self.nll):
            return "not finite"
        if self.is_shortened:
            return "shortened: no reproduction"
        if self.entry.is_fast:
            return "fast recipe: not as published"
        if self.difference is None:
            return ""
        near = abs(self.difference) <= TOLERANCE
        usual = self.margin is not None and abs(self.difference) <= self.margin
        words = {
            (True, True): "reproduced",
            (True, False): f"within {TOLERANCE} nats",
            (False, True): f"within what seeds{' and draws' * (self.draws is not None)} differ by",
        }
        return words.get((near, usual), "better" if self.difference < 0 else "worse")


def read_cell_results(out: Path, names: Iterable[str], wanted: Wanted) -> list[Cell]:
    """Read the records of some cells; the `error` of a cell says why it cannot be read."""
    cells = []
    for name in names:
        try:
            cells.append(read_cell_result(out, name, wanted))
        except UserError as error:
            cells.append(Cell(name, PRESETS[name], error=f"{name}: {error}"))
    return cells


def read_cell_result(out: Path, name: str, wanted: Wanted) -> Cell:
    """Read the records of all seeds of a cell.

    Raises:
        UserError: if a run or a record cannot be read, a run is not the experiment or not the seeds
            that its folder is named after, or runs cannot be averaged.
    """
    entry = PRESETS[name]
    runs = [
        run
        for path, seeds in cell_runs(out, cell_folder(name, wanted)).items()
        if (run := _finished(path, _own_config(out, path, seeds, name, wanted))) is not None
    ]
    if not runs:
        return Cell(name, entry)
    _refuse_mixed(name, runs)
    values = np.concatenate([run.best.values for run in runs])
    means = values.mean(axis=1)
    density = runs[0].best.record.true_log_likelihood
    looser = [-run.looser.values.mean(axis=1) for run in runs if run.looser is not None]
    models = [model for run in runs for model in run.best.record.models]
    rows = [(run.row, len(run.best.record.models)) for run in runs]
    drawn = cell_mean_over_draws(rows)
    mean = None if drawn is None else drawn.log_likelihood
    stderr = float(values.mean(axis=0).std(ddof=1) / np.sqrt(values.shape[1]))
    return Cell(
        name,
        entry,
        nll=-(float(means.mean()) if mean is None else mean),
        stderr=stderr if drawn is None else drawn.stderr,
        draws=drawn,
        others=cell_mean_errors(rows, runs[0].best.record, _digits(density)),
        spread=float(means.std(ddof=1)) if len(means) > 1 else None,
        truth=None if density is None else -density,
        active=tuple(np.mean([model.active_units for model in models], axis=0).tolist()),
        annealed=cell_mean_gap([run.above for run in runs if run.above is not None]),
        nll_64=float(np.concatenate(looser).mean()) if looser else None,
        seeds=len(means),
        epochs=runs[0].epochs,
        hours=cost_hours(runs[-1].config.model_copy(update={"replicates": len(means)}))
        or (None if entry.is_fast else cost_hours(entry.config(replicates=len(means)))),
    )


def _own_config(out: Path, run: Path, seeds: range, name: str, wanted: Wanted) -> TrainConfig:
    """The configuration of a run; UserError unless it is of the cell and of these seeds."""
    config, entry = read_config(run / "config.toml"), PRESETS[name]
    found = config.seeds()
    if found != seeds:
        raise UserError(f"{run} holds seeds {found[0]} to {found[-1]}: name it after them")
    if not same_cell_experiment(entry, config_toml_values(config)):
        raise UserError(f"{run} is not the experiment {name}: remove it, or choose another --out")
    if entry.needs is not None:
        _check_start(out, run, entry.needs, wanted)
    return config


def _check_start(out: Path, run: Path, needs: str, wanted: Wanted) -> None:
    """Raise UserError unless a run continues from that of the cell it needs, trained to its end."""
    init_from = read_config(run / "config.toml").init_from
    name = cell_folder(needs, wanted) / run.name
    if init_from is None or init_from.parts[-len(name.parts) :] != name.parts:
        raise UserError(f"{run} continues from {init_from}, and not from the same seeds of {needs}")
    start = Path(out) / name
    if not is_trained_run(start):
        raise UserError(f"{run} continues from {start}, which is missing or not trained to its end")
    found = read_config(start / "config.toml")
    whole = found.epochs == wanted.epochs(PRESETS[needs])
    if not whole or not same_cell_experiment(PRESETS[needs], config_toml_values(found)):
        raise UserError(f"{run} continues from {start}, which is not the experiment {needs}")


def _refuse_mixed(name: str, runs: Sequence["_Finished"]) -> None:
    """Raise UserError unless the runs of a cell can be averaged."""
    first = runs[0]
    for run in runs[1:]:
        same = run.best.record.test_sha256 == first.best.record.test_sha256
        if not same or not np.array_equal(run.best.places, first.best.places):
            raise UserError(f"the runs of {name} were measured on different test sets")
        if run.epochs != first.epochs:
            raise UserError(f"the runs of {name} were trained for different numbers of epochs")


class _Finished(NamedTuple):
    """A finished run and its bounds: L_5000 and L_64 on the whole test set, and AIS.

    `row` is the estimate L_5000, completed from the run's other records.
    """

    config: TrainConfig
    best: Known
    row: Weights
    looser: Known | None
    above: Annealed | None

    @property
    def epochs(self) -> int:
        """The least number of epochs of any seed."""
        return min(model.epoch or 0 for model in self.best.record.models)


def _finished(run: Path, config: TrainConfig) -> _Finished | None:
    """The run, if it was trained for all its epochs and measured."""
    if not is_trained_run(run):
        return None
    digests = trained_model_digests(run, "final", config.replicates)
    bounds = read_bounds(
        run, split="test", weights="final", pruned=False, damaged=refuse_damaged_record
    )
    # Other digests are of models before further training.
    known = [one for one in bounds if one.record.digests == digests]
    for one in known:
        if None in [model.epoch for model in one.record.models]:
            refuse_damaged_record(f"the record of {one.estimator} in {run} has no epoch")
        if (count := len(one.record.models)) != len(one.values):
            words = f"the values of {one.estimator} in {run} are not of {count} replicates"
            refuse_damaged_record(words)
    whole = {one.estimator: one for one in known if one.record.subset is None}
    longest = [one for one in known if one.rank[0] == 1 and not one.short]
    if "L_5000" not in whole:
        return None
    best = whole["L_5000"]
    above = cell_mean_gap_of_run(longest[-1], best) if longest else None
    row = next(
        row for row in extrapolate_record(run, best.record, None).by_k if row.k == best.rank[1]
    )
    found = _Finished(config, best, row, whole.get("L_64"), above)
    return found if found.epochs >= config.epochs else None


def cell_results_table(
    cells: Iterable[Cell],
    wanted: Wanted,
    style: str = "markdown",
    fast: Iterable[Cell] = (),
) -> str:
    """The cells as a table; a cell that was not run has its estimated time alone.

    Args:
        cells: results of the cells.
        wanted: options that they were run with.
        style: a name in `FORMATS`.
        fast: results of the same cells with their fast recipes, for further columns.

    Raises:
        UserError: for an unknown style.
    """
    if style not in FORMATS:
        raise UserError(f"no format {style!r}; known: {', '.join(FORMATS)}")
    fast_rows = {cell.name.removeprefix(FAST): _cell_row(cell, wanted) for cell in fast}
    rows = []
    for cell in cells:
        fast_row = fast_rows.get(cell.name, {})
        more = {name: fast_row.get(column, "") for name, column in FAST_COLUMNS.items()}
        rows.append(_cell_row(cell, wanted) | more)
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    body = [[row[name] for name in columns] for row in rows]
    text = tabulate(body, columns, FORMATS[style], disable_numparse=True, stralign="left")
    if wanted.epochs_scale < 1:
        note = f"Shortened to {wanted.epochs_scale:g} of the published epochs: no reproduction."
        note = f"<p>{note}</p>" if style == "html" else f"{note}\n"
        return f"{note}\n{text}\n"
    return f"{text}\n"


FAST_COLUMNS = {
    "fast NLL": "NLL",
    "fast active": "active units",
    "fast AIS beside L_5000": "AIS beside L_5000",
    "fast time": "time",
}
"""Column of a cell with its fast recipe -> the column of the fast cell's own row."""


def _cell_row(cell: Cell, wanted: Wanted) -> dict[str, str]:
    """One row of the table; unknown values are empty."""
    entry = cell.entry
    planned = entry.config(epochs=wanted.epochs(entry), replicates=wanted.seeds)
    cost = cell.hours if cell.seeds else cost_hours(planned)
    return {
        "cell": cell.name,
        "NLL": _nll(cell),
        "published": _number_text(entry.nll),
        "NLL of the true density": _number_text(cell.truth, ".3f"),
        "difference": _number_text(cell.difference, "+.2f"),
        "verdict": cell.verdict,
        "-L_64": _number_text(cell.nll_64),
        "published -L_64": _number_text(entry.nll_64),
        "active units": "+".join(f"{count:.3g}" for count in cell.active),
        "published active": "+".join(map(str, entry.active)),
        "AIS beside L_5000": _annealing_text(cell),
        "other errors": cell.others,
        "seeds": str(cell.seeds or ""),
        "epochs": f"{cell.epochs:,}" if cell.epochs else "",
        "time": "" if cost is None or cell.error else cost_in_words(cost),
    }


def _nll(cell: Cell) -> str:
    if cell.nll is None:
        return "cannot be read" if cell.error else "not run"
    return plus_minus(
        cell.nll, cell.stderr, _digits(cell.truth), spread=cell.spread, of=" of seeds"
    )


def _annealing_text(cell: Cell) -> str:
    """The NLL by AIS on the whole test set, and its difference from that by L_5000."""
    if cell.annealed is None or cell.nll is None:
        return ""
    name, gap, error, seeds = cell.annealed
    if gap is None:
        return f"{name} not finite"
    digits = _digits(cell.truth)
    some = f"; {seeds} of {cell.seeds} seeds" if seeds < cell.seeds else ""
    difference = plus_minus(-gap, error or None, digits, sign="+")
    return f"{name} {cell.nll - gap:.{digits}f} ({difference}{some})"


def _digits(truth: float | None) -> int:
    """Digits of a likelihood: one more if the true density is known."""
    return 2 if truth is None else 3


def _number_text(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else f"{value:{form}}"
