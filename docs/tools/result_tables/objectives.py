"""Runs that compare objectives, networks and protocols, and the reasons why numbers differ."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iwae.errors import UserError
from iwae.evaluation.differences import paired_difference
from iwae.evaluation.standard_errors import standard_error
from iwae.objectives.declaration import ALL_OPTIONS, OBJECTIVES
from iwae.results.formatting import plus_minus
from iwae.results.reading import Known
from result_tables.tables import (
    OBJECTIVES_FOLDER,
    Row,
    final_bounds,
    markdown,
    mean_and_spread,
    runs_in,
    runs_of,
)


def objectives_table(results: Path, name: str) -> str:
    """Markdown: the runs of a table of `experiments/objectives.py`, the best first."""
    folder = Path(results) / OBJECTIVES_FOLDER / name
    best_first = sorted(runs_of(folder).values(), key=lambda known: -known[-1].values.mean())
    none = f"{folder} holds no records: python experiments/objectives.py {name}"
    return markdown(map(objective_row, best_first), none)


def objective_row(known: Sequence[Known]) -> Row:
    """The row of a run, from its bounds, loosest first."""
    config = known[0].record.config
    options = [
        f"{name.replace('_', ' ')} {config[name]}"
        for name in ("k", *ALL_OPTIONS)
        if config.get(name) not in (None, 0)
    ]
    if config.get("network", "mlp") != "mlp" or config.get("blocks"):
        words = " ".join(map(str, (config["network"], *(config.get("channels") or ()))))
        options.append(f"{words}, blocks {config['blocks']}")
    if config["observation"] != "bernoulli":
        options.append(config["observation"])
    row = {
        "objective": config["objective"],
        "gradient": config.get("gradient") or OBJECTIVES[config["objective"]].gradients[0],
        "options": ", ".join(options),
        "epochs": str(config["epochs"]),
        "seeds": str(config["replicates"]),
    }
    sampled = [one for one in known if one.rank[0] == 0]
    for one in known:
        most = bool(sampled) and one is sampled[-1]
        if most or (one.rank[0] > 0 and not one.short):
            row[f"{one.estimator}, nats"] = mean_and_spread(one)
    if (bits := known[-1].record.bits_per_dimension) is not None:
        row["bits per dimension"] = f"{bits:.3f}"
    if known[-1].rank[0] > 0:
        each = known[-1].record.models
        converged = sum(one.verdict.converged for one in each)
        row["converged"] = f"{converged} of {len(each)}"
    if len(sampled) > 1:
        low, high = sampled[0], sampled[-1]
        gap = high.values.mean() - low.values.mean()
        row[f"{high.estimator} - {low.estimator}"] = f"{gap:.2f}"
    counts = known[0].record.active_units
    row["active units"] = "+".join(f"{count:.1f}" for count in counts)
    return row


def protocols_table(results: Path) -> str:
    """Markdown: the same model and objective with other training protocols than the paper's.

    Differences are paired by test example; their errors exclude the choice of the seed, which has
    its own row.
    """
    folder = Path(results) / OBJECTIVES_FOLDER / "protocols"
    known = {name: bounds[-1] for name, bounds in runs_of(folder).items()}
    if BASELINE not in known:
        raise UserError(f"{folder} has no {BASELINE}: python experiments/objectives.py protocols")
    base, rows = known.pop(BASELINE), []
    for one in (base, *known.values()):
        if (one.estimator, one.places.tolist()) != (base.estimator, base.places.tolist()):
            raise UserError(f"runs in {folder} have different bounds or examples: measure again")
        config, its = base.record.config, one.record.config
        changed = [f"{name} = {value}" for name, value in its.items() if config[name] != value]
        row = {
            "otherwise than the paper says": ", ".join(changed) or "nothing",
            "epochs": str(its["epochs"]),
            f"{one.estimator}, nats": mean_and_spread(one),
            "difference": "",
        }
        if one is not base:
            found = paired_difference(one.values[0], base.values[0])
            row["difference"] = plus_minus(*found[:2], 2, sign="+")
        row["active units"] = "+".join(str(count) for count in one.record.active_units)
        rows.append(row)
    return markdown(rows)


BASELINE = "paper"
"""The run of `protocols_table` that the others are compared with."""


def differences_table(results: Path) -> str:
    """Markdown: the effect of the estimator, examples, seed and objective on a number."""
    rows = []
    for run in runs_in(results):
        known = final_bounds(run)
        if known and known[0].record.config["replicates"] == 1:
            rows += _rows_of_estimators(known, str(run.relative_to(results)))
    rows += _rows_of_training(Path(results) / OBJECTIVES_FOLDER / "digits")
    rows.sort(key=lambda row: REASONS.index(row["reason"]))
    return markdown(rows, f"{results} holds no records from which differences could be taken")


REASONS = (
    "k in measuring",
    "annealing instead of samples",
    "which test examples",
    "which draw of their pixels",
    "objective and gradient",
    "k in training",
    "seed",
)
"""Reasons why numbers differ, in the order of the table."""


def _rows_of_estimators(known: Sequence[Known], name: str) -> list[Row]:
    """Paired differences of the bounds of one run, and the error from the choice of examples."""
    samples = list({one.estimator: one for one in known if one.rank[0] == 0}.values())
    rows: list[Row] = []
    most, longest = samples[-1], known[-1]
    pairs = [("k in measuring", low, most) for low in samples[:-1]]
    if longest.rank[0] > 0:
        pairs.append(("annealing instead of samples", most, longest))
    for reason, low, high in pairs:
        _, mine, theirs = np.intersect1d(low.places, high.places, return_indices=True)
        found = paired_difference(high.values[0][theirs], low.values[0][mine])
        what = f"{high.estimator} - {low.estimator}, {len(mine):,} examples"
        rows.append(_difference(reason, what, plus_minus(*found[:2], 2, sign="+"), name))
    for one in {len(one.places): one for one in (most, longest)}.values():
        error, n = standard_error(one.values[0]), f"{len(one.places):,} test examples"
        rows.append(_difference("which test examples", n, f"± {error:.2f}", name))
    for record in {id(one.record): one.record for one in known}.values():
        if (drawn := record.binarizations) is not None and drawn.by is None:
            what = f"{drawn.draws} draws, {record.n:,} test examples"
            rows.append(_difference(REASONS[3], what, f"± {drawn.one_draw_error:.2f}", name))
    return rows


def _rows_of_training(folder: Path) -> list[Row]:
    """The effects of the objective, k and the seed, from runs of the table of objectives."""
    known = {name: bounds[-1] for name, bounds in runs_of(folder).items()}
    means = {name: one.values.mean() for name, one in known.items()}
    spreads = [one.values.mean(axis=1).std(ddof=1) for one in known.values()]
    order, where = sorted(means, key=means.__getitem__), f"{OBJECTIVES_FOLDER}/digits"
    pairs = [("objective and gradient", order[-1], order[0])] if order else []
    pairs += [("k in training", "iwae", "iwae-k5")] if {"iwae", "iwae-k5"} <= set(known) else []
    rows = [
        _difference(reason, f"{high} - {low}", _between_seeds(known[high], known[low]), where)
        for reason, high, low in pairs
    ]
    if spreads:
        low, high = min(spreads), max(spreads)
        seeds = f"deviation between {len(known[order[0]].values)} seeds"
        rows.append(_difference("seed", seeds, f"{low:.2f} to {high:.2f}", where))
    return rows


def _between_seeds(one: Known, other: Known) -> str:
    """The difference of two means over seeds on the same examples, and its error from the seeds."""
    a, b = one.values.mean(axis=1), other.values.mean(axis=1)
    error = np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    return plus_minus(a.mean() - b.mean(), error, 2, sign="+")


def _difference(reason: str, what: str, nats: str, where: str) -> Row:
    return {"reason": reason, "what": what, "nats": nats, "records": where}
