"""Runs that were measured on the whole test set, or annealed."""

from pathlib import Path

from iwae.config.experiment import make_config
from iwae.config.same_experiment import published_nll
from iwae.errors import UserError
from iwae.reports.estimates_row import Row, estimates_row
from iwae.results.extrapolation import extrapolate_record, read_extrapolated_records
from iwae.results.formatting import MIXED_WORDS, format_errors, plus_minus
from iwae.results.reading import read_records
from iwae.results.record_files import refuse_damaged_record
from iwae.results.schema import Method, Part, Record, Weights
from result_tables.tables import markdown, runs_in


def largest_records(results: Path) -> dict[str, Record]:
    """The likelihood record with the largest k of each run, by the run's folder."""
    records: dict[str, Record] = {}
    for run in runs_in(results):
        name = str(run.relative_to(results))
        for path, record in read_records(run, (Method.IMPORTANCE,), refuse_damaged_record):
            whole = record.split == "test" and not record.pruned and record.subset is None
            if whole and (name not in records or record.k >= records[name].k):
                if record.log_likelihood is None:
                    raise UserError(f"{path}: the mean log-likelihood is not finite")
                records[name] = extrapolate_record(run, record, None)
    return records


def likelihood_row(name: str, record: Record, published: str) -> Row:
    """A row of the likelihood table: NLL is minus the mean bound, nats per example."""
    config = record.config
    final = make_config(dict(config), f"the record of {name}").final()
    models, truth = record.models, record.true_log_likelihood
    epochs = {model.epoch for model in models}
    digits = 2 if truth is None else 4
    nll, spread = -record.log_likelihood, record.between_replicates_sd
    return {
        "run": name,
        "data": record.dataset,
        "layers": str(config["layers"]),
        "objective": f"{final.objective}, k = {final.k}",
        "epochs": "/".join(str(epoch) for epoch in sorted(epochs)),
        f"NLL (L_{record.k})": plus_minus(
            nll, record.stderr, digits, spread=spread, of=f" of {len(models)} seeds"
        ),
        "NLL of the true density": "-" if truth is None else f"{-truth:.{digits}f}",
        "other errors": "; ".join(format_errors(record, digits + 1)),
        "active units": "+".join(f"{count:g}" for count in record.active_units),
        "test images": f"{record.n:,}",
        "published NLL": published,
    }


def likelihood_table(results: Path) -> str:
    """Markdown: all runs under `results` that were measured on the whole test set."""
    rows = [
        likelihood_row(name, record, published_nll(record.config))
        for name, record in largest_records(results).items()
    ]
    return markdown(rows, f"{results} holds no record of a whole test set")


def estimates_table(results: Path) -> str:
    """Markdown: all bounds of each annealed run, on the same examples.

    These are the whole test set if L_k is known there, to which annealing of a subset is carried
    over; otherwise the subset.
    """
    rows = [
        row
        for run in runs_in(results)
        if (row := estimates_row(run, str(run.relative_to(results)))) is not None
    ]
    return markdown(rows, f"{results} holds no record of annealing: iwae evaluate --method ais")


def sides_table(results: Path) -> str:
    """Markdown: two-sided bounds on real and simulated examples, of the first replicates."""
    rows = []
    for run in runs_in(results):
        for _, record in read_extrapolated_records(run, (Method.SANDWICH,), refuse_damaged_record):
            rows += _sides_rows(str(run.relative_to(results)), record, record.models[0])
    return markdown(rows, f"{results} holds no record of iwae evaluate --method sandwich")


def _sides_rows(name: str, record: Record, one: Part) -> list[Row]:
    """A row for each known pair of bounds, by method and kind of examples."""
    real, simulated = f"{record.n:,} of the {record.split} set", one.simulated
    annealed, sampled = f"AIS, T = {record.annealing.temperatures}", f"{one.importance.k:,} samples"
    known: list[tuple[str, str, Weights | None, str]] = [(annealed, real, one, "")]
    if simulated is not None:
        made = f"{simulated.n:,} simulated"
        known.append((annealed, made, simulated, ""))
        mixed = simulated if simulated.mixed_gap is not None else None
        known.append((f"{annealed}, {MIXED_WORDS}", made, mixed, "mixed_"))
    known.append((sampled, real, one.importance, ""))
    if simulated is not None:
        known.append((sampled, made, simulated.importance, ""))
    rows = []
    for method, examples, row, kind in known:
        if row is not None:
            sides = {"lower": "lower", "upper": f"{kind}upper"}
            cells = {side: plus_minus(*row.mean(name), 2) for side, name in sides.items()}
            cells["gap"] = plus_minus(*row.mean(f"{kind}gap"))
            tail = row.ratio_pareto_k
            cells["k-hat of w/c"] = "" if tail is None else f"{tail:.2f}"
            rows.append({"run": name, "by": method, "examples": examples, **cells})
    return rows
