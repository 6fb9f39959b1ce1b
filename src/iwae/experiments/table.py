"""Results of the cells: our numbers, made from records, beside the published ones."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student
from tabulate import tabulate

from iwae.config.comparison import is_of_cell
from iwae.config.experiment import TrainConfig, config_values, read_config
from iwae.config.presets import FAST, PRESETS, Preset
from iwae.errors import UserError
from iwae.experiments.cell_errors import (
    Annealed,
    above_samples,
    mean_above,
    mean_over_draws,
    other_errors,
)
from iwae.experiments.cells import Wanted, cell_folder, cell_runs
from iwae.experiments.costs import hours
from iwae.experiments.tasks import is_trained
from iwae.results.completing import completed
from iwae.results.reading import Known, known_bounds
from iwae.results.records import known_digests
from iwae.results.schema import Binarizations, Weights
from iwae.results.store import refuse_damage
from iwae.results.text import plus_minus

FORMATS = {"markdown": "github", "latex": "latex_booktabs", "html": "html"}
"""How a table is written, and what `tabulate` calls it."""

TOLERANCE = 0.3
"""Nats by which honest implementations of one cell differ."""


class Cell(NamedTuple):
    """The results of a cell.

    Attributes:
        name: of the cell.
        entry: its preset.
        nll: mean over seeds of minus the mean L_5000 on the whole test set, nats; None if unknown.
            Where several draws of its pixels were measured by any k, as their mean.
        nll_64: the same by 64 samples, of one draw.
        stderr: its standard error from the test examples.
        draws: the draws behind it; None if the pixels were drawn once.
        others: its errors from particles and draws, in words.
        spread: standard deviation between seeds; None for one seed.
        truth: minus the mean log density of the same examples, where it is known, nats.
        active: mean active units of each layer.
        annealed: AIS minus L_5000 for all of the test set, with its error from the choice of a
            subset; None if unknown.
        seeds: how many.
        epochs: how many were trained.
        hours: of training all seeds as they were, by measured steps; None if these are unknown.
        trouble: why its runs could not be read; such a cell has no number.
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
    trouble: str = ""

    @property
    def difference(self) -> float | None:
        """Ours minus the published one, nats; negative where ours is better."""
        if self.nll is None or self.entry.nll is None:
            return None
        return self.nll - self.entry.nll

    @property
    def margin(self) -> float | None:
        """Distance from our mean within which one more seed falls in 95 of 100 cells, nats.

        None for one seed, and where several draws of the pixels leave their error unknown.

        By Student's t, for the published number is one run, of another seed, measured on another
        draw of the pixels, whose error is added if several were measured. The error of the test
        examples is omitted: both were measured on the same images, or nearly (OMNIGLOT).
        """
        if self.spread is None:
            return None
        of_seeds = student.isf(0.025, self.seeds - 1) * self.spread * np.sqrt(1 + 1 / self.seeds)
        if self.draws is None:
            return float(of_seeds)
        of_draws = self.draws.draws_error, self.draws.one_draw_error
        if None in of_draws:
            return None
        return float(np.hypot(of_seeds, 1.96 * np.hypot(*of_draws)))  # type: ignore[arg-type]

    @property
    def is_shortened(self) -> bool:
        """Whether it was trained for fewer epochs than the published schedule has."""
        return self.nll is not None and self.epochs < self.entry.config().epochs

    @property
    def verdict(self) -> str:
        """Whether ours is the published number; empty if it is unknown."""
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


def read_cells(out: Path, names: Iterable[str], wanted: Wanted) -> list[Cell]:
    """Read the records of some cells; a cell that cannot be read says why."""
    cells = []
    for name in names:
        try:
            cells.append(read_cell(out, name, wanted))
        except UserError as error:
            cells.append(Cell(name, PRESETS[name], trouble=f"{name}: {error}"))
    return cells


def read_cell(out: Path, name: str, wanted: Wanted) -> Cell:
    """Read the records of all seeds of a cell.

    Raises:
        UserError: if a run or a record cannot be read, a run is not the experiment or not the seeds
            that its folder is named after, or runs cannot be averaged.
    """
    entry = PRESETS[name]
    found: list[_Finished] = []
    trained: TrainConfig | None = None
    for run, seeds in cell_runs(out, cell_folder(name, wanted)).items():
        config = read_config(run / "config.toml")
        its = config.seeds()
        if its != seeds:
            raise UserError(f"{run} holds seeds {its[0]} to {its[-1]}: name it after them")
        if not is_of_cell(entry, config_values(config)):
            raise UserError(
                f"{run} is not the experiment {name}: remove it, or choose another --out"
            )
        if entry.needs is not None:
            _check_start(out, run, entry.needs, wanted)
        finished = _finished(run, config)
        found, trained = found + finished, config if finished else trained
    if not found or trained is None:
        return Cell(name, entry)
    _refuse_mixed(name, found)
    values = np.concatenate([one.best.values for one in found])
    density = found[0].best.record.true_log_likelihood
    looser = [-one.looser.values.mean(axis=1) for one in found if one.looser is not None]
    replicates = [each for one in found for each in one.best.record.models]
    each = values.mean(axis=1)
    rows = [(one.row, len(one.best.record.models)) for one in found]
    drawn = mean_over_draws(rows)
    mean = None if drawn is None else drawn.log_likelihood
    stderr = float(values.mean(axis=0).std(ddof=1) / np.sqrt(values.shape[1]))
    return Cell(
        name,
        entry,
        nll=-(float(each.mean()) if mean is None else mean),
        stderr=stderr if drawn is None else drawn.stderr,
        draws=drawn,
        others=other_errors(rows, found[0].best.record, _digits(density)),
        spread=float(each.std(ddof=1)) if len(each) > 1 else None,
        truth=None if density is None else -density,
        active=tuple(np.mean([one.active_units for one in replicates], axis=0).tolist()),
        annealed=mean_above([one.above for one in found if one.above is not None]),
        nll_64=float(np.concatenate(looser).mean()) if looser else None,
        seeds=len(each),
        epochs=found[0].epochs,
        hours=hours(trained.model_copy(update={"replicates": len(each)}))
        or (None if entry.is_fast else hours(entry.config(replicates=len(each)))),
    )


def _check_start(out: Path, run: Path, needs: str, wanted: Wanted) -> None:
    """Raise UserError unless a run continues from that of the cell it needs, trained to its end."""
    start = read_config(run / "config.toml").init_from
    source = cell_folder(needs, wanted) / run.name
    if start is None or start.parts[-len(source.parts) :] != source.parts:
        raise UserError(f"{run} continues from {start}, and not from the same seeds of {needs}")
    there = Path(out) / source
    if not is_trained(there):
        raise UserError(f"{run} continues from {there}, which is missing or not trained to its end")
    found = read_config(there / "config.toml")
    whole = found.epochs == wanted.epochs(PRESETS[needs])
    if not whole or not is_of_cell(PRESETS[needs], config_values(found)):
        raise UserError(f"{run} continues from {there}, which is not the experiment {needs}")


def _refuse_mixed(name: str, found: Sequence["_Finished"]) -> None:
    """Raise UserError unless the runs of a cell can be averaged."""
    first = found[0]
    for one in found[1:]:
        same = one.best.record.test_sha256 == first.best.record.test_sha256
        if not same or not np.array_equal(one.best.places, first.best.places):
            raise UserError(f"the runs of {name} were measured on different test sets")
        if one.epochs != first.epochs:
            raise UserError(f"the runs of {name} were trained for different numbers of epochs")


class _Finished(NamedTuple):
    """The bounds known of a finished run: L_5000 and L_64 on all of the test set, and AIS.

    `row` is that of L_5000, with what the run's other records add to it.
    """

    best: Known
    row: Weights
    looser: Known | None
    above: Annealed | None

    @property
    def epochs(self) -> int:
        """The epochs of its last seed."""
        return min(one.epoch or 0 for one in self.best.record.models)


def _finished(run: Path, config: TrainConfig) -> list[_Finished]:
    """The run, if it was trained for all its epochs and measured."""
    if not is_trained(run):
        return []
    digests = known_digests(run, "final", config.replicates)
    which: Any = {"split": "test", "weights": "final", "pruned": False}
    known = [
        one
        for one in known_bounds(run, **which, damaged=refuse_damage)
        if one.record.digests == digests  # others are of models that were trained on since
    ]
    for one in known:
        if None in [part.epoch for part in one.record.models]:
            refuse_damage(f"the record of {one.estimator} in {run} has no epoch")
        if (count := len(one.record.models)) != len(one.values):
            words = f"are not of {count} replicates"
            refuse_damage(f"the values of {one.estimator} in {run} {words}")
    whole = {one.estimator: one for one in known if one.record.subset is None}
    longest = [one for one in known if one.rank[0] == 1 and not one.short]
    if "L_5000" not in whole:
        return []
    best = whole["L_5000"]
    above = above_samples(longest[-1], best) if longest else None
    record = completed(run, best.record, None)
    row = next(row for row in record.by_k if row.k == best.rank[1])
    found = _Finished(best, row, whole.get("L_64"), above)
    return [found] if found.epochs >= config.epochs else []


def table(
    cells: Iterable[Cell],
    wanted: Wanted,
    style: str = "markdown",
    fast: Iterable[Cell] = (),
) -> str:
    """The cells as a table; what was not run has its hours instead of a number.

    Args:
        cells: what their records say.
        wanted: how they were run.
        style: a name of `FORMATS`.
        fast: the same cells by their fast recipes, to stand beside them.

    Raises:
        UserError: for another style.
    """
    if style not in FORMATS:
        raise UserError(f"no format {style!r}; known: {', '.join(FORMATS)}")
    beside = {cell.name.removeprefix(FAST): _row(cell, wanted) for cell in fast}
    rows = []
    for cell in cells:
        its = beside.get(cell.name, {})
        rows.append(_row(cell, wanted) | {name: its.get(of, "") for name, of in _BESIDE.items()})
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    body = [[row[name] for name in columns] for row in rows]
    text = tabulate(body, columns, FORMATS[style], disable_numparse=True, stralign="left")
    if wanted.epochs_scale < 1:
        note = f"Shortened to {wanted.epochs_scale:g} of the published epochs: no reproduction."
        note = f"<p>{note}</p>" if style == "html" else f"{note}\n"
        return f"{note}\n{text}\n"
    return f"{text}\n"


_BESIDE = {
    "fast NLL": "NLL",
    "fast active": "active units",
    "fast AIS beside L_5000": "AIS beside L_5000",
    "fast time": "time",
}
"""Columns of a cell's fast recipe -> the columns of its own line."""


def _row(cell: Cell, wanted: Wanted) -> dict[str, str]:
    """One line of the table; what is unknown is empty."""
    entry = cell.entry
    planned = entry.config(epochs=wanted.epochs(entry), replicates=wanted.seeds)
    cost = cell.hours if cell.seeds else hours(planned)
    return {
        "cell": cell.name,
        "NLL": _nll(cell),
        "published": _number(entry.nll),
        "NLL of the true density": _number(cell.truth, ".3f"),
        "difference": _number(cell.difference, "+.2f"),
        "verdict": cell.verdict,
        "-L_64": _number(cell.nll_64),
        "published -L_64": _number(entry.nll_64),
        "active units": "+".join(f"{count:.3g}" for count in cell.active),
        "published active": "+".join(map(str, entry.active)),
        "AIS beside L_5000": _beside(cell),
        "other errors": cell.others,
        "seeds": str(cell.seeds or ""),
        "epochs": f"{cell.epochs:,}" if cell.epochs else "",
        "time": "" if cost is None or cell.trouble else duration(cost),
    }


def _nll(cell: Cell) -> str:
    if cell.nll is None:
        return "cannot be read" if cell.trouble else "not run"
    return plus_minus(
        cell.nll, cell.stderr, _digits(cell.truth), spread=cell.spread, of=" of seeds"
    )


def _beside(cell: Cell) -> str:
    """AIS of all test examples, and its difference to L_5000."""
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
    """Digits of a likelihood: more mean something where the density is known."""
    return 2 if truth is None else 3


def _number(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else f"{value:{form}}"


def duration(hours: float) -> str:
    """Hours in words."""
    if 0 < hours < 1 / 60:
        return "< 1 min"
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.0f} h"
