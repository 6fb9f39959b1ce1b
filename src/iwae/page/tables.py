"""Facts into tables and warnings. Every number is one of a record."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from iwae._types import UserError
from iwae.config import TrainConfig
from iwae.declaration import OBJECTIVES
from iwae.measure.compare import compare
from iwae.page.facts import ANNEALED, SAMPLED, Bound, Run
from iwae.report import Row, estimates_row, published_nll

UNRELIABLE = 0.1
"""The share of examples with too large a k-hat from which on the page warns."""


class Cell(NamedTuple):
    """What a table shows in one place.

    Attributes:
        text: what is shown; "" if nothing is known.
        value: what the column is sorted by.
        note: smaller, below the text.
        alarm: whether it must not be overlooked.
    """

    text: str = ""
    value: float | str | None = None
    note: str = ""
    alarm: bool = False


class Column(NamedTuple):
    """A column of the comparison: its title, what it means, and a cell for each run."""

    title: str
    hint: str
    cells: list[Cell]
    numeric: bool = True


def comparison(runs: Sequence[Run]) -> list[Column]:
    """The columns of the table of all runs; those in which nothing is known are left out."""
    columns = [
        _column("data", "", runs, _data, False),
        _column("objective", "", runs, _objective, False),
        _column("gradient", "Where it is not the objective's own.", runs, _gradient, False),
        _column("layers", "Sizes of the latent layers, nearest the data first.", runs, _layers),
        _column("epochs", "", runs, _epochs),
        _column("seeds", "", runs, _seeds),
        *_bound_columns(runs),
        _column("true log p(x)", "Of the distribution that made the data.", runs, _truth),
        _column("active units", "Of each layer; means over the seeds.", runs, _active),
        _column("published NLL", "What the paper reports of this experiment.", runs, _published),
        _column("annealing", "The verdict on the longest annealing run.", runs, _verdict, False),
        _column("k̂ too large", "Share of examples with unreliable weights.", runs, _khat),
    ]
    return [column for column in columns if any(cell.text for cell in column.cells)]


def _column(
    title: str, hint: str, runs: Sequence[Run], cell: Callable[[Run], Cell], numeric: bool = True
) -> Column:
    return Column(title, hint, [cell(run) for run in runs], numeric)


def _bound_columns(runs: Sequence[Run]) -> list[Column]:
    bounds = {name: one for run in runs for name, one in run.bounds.items()}
    hint = "Mean bound on log p(x) ± standard error, nats per example; higher is better."
    return [
        Column(name, hint, [_bound(run.bounds.get(name)) for run in runs])
        for name, one in sorted(bounds.items(), key=lambda item: item[1].rank)
    ]


def _bound(bound: Bound | None) -> Cell:
    if bound is None:
        return Cell()
    digits = 2 if bound.record.get("true_log_likelihood") is None else 4
    of = f"n = {bound.record['n']:,}" + (", a subset" if bound.record["subset"] else "")
    if bound.mean is None:
        return Cell("not finite", None, of, alarm=True)
    text = minus(f"{bound.mean:.{digits}f}")
    if bound.stderr is not None:
        text += f" ± {bound.stderr:.{digits}f}"
    if bound.spread is not None:
        of += f"\nsd of seeds {bound.spread:.{digits}f}"
    return Cell(text, bound.mean, of)


def minus(text: str) -> str:
    """Numbers with a minus sign instead of a hyphen."""
    return text.replace("-", "\N{MINUS SIGN}")


def _data(run: Run) -> Cell:
    name = short_path(run.config.dataset)
    return Cell(name, name)


def short_path(value: object) -> str:
    """The last part of an absolute path: the rest is nobody's business."""
    return Path(str(value)).name if Path(str(value)).is_absolute() else str(value)


def _layers(run: Run) -> Cell:
    sizes = run.config.sizes()[0]
    note = "of " + " + ".join(map(str, sizes))
    if run.config.network != "mlp" or run.config.blocks:
        note += f"\n{_network(run.config)}"
    return Cell(str(len(sizes)), len(sizes), note)


def _network(config: TrainConfig) -> str:
    words = " ".join([config.network, *map(str, config.channels or ())])
    return f"{words}, {config.blocks} residual blocks" if config.blocks else words


_OPTIONS = """
    m alpha beta temperatures leapfrog beta_schedule phase encoder_objective kl_warmup free_bits
""".split()  # noqa: SIM905


def _objective(run: Run) -> Cell:
    config = run.config
    options = [
        f"{name.replace('_', ' ')} {value}"
        for name in _OPTIONS
        if (value := getattr(config, name)) not in (None, 0)
    ]
    text = f"{config.objective}, k = {config.k}"
    return Cell(text, text, ", ".join(options))


def _gradient(run: Run) -> Cell:
    own = OBJECTIVES[run.config.objective].gradients[0]
    name = run.config.gradient or own
    return Cell() if name == own else Cell(name, name)


def _epochs(run: Run) -> Cell:
    trained = {one["epoch"] for record in run.records for one in _replicates(record)}
    trained = trained or {row["epoch"] for row in run.metrics[-1:]}
    if not trained:
        return Cell(note=f"of {run.config.epochs:,}")
    note = "" if trained == {run.config.epochs} else f"of {run.config.epochs:,}"
    return Cell("/".join(f"{epoch:,}" for epoch in sorted(trained)), max(trained), note)


def _seeds(run: Run) -> Cell:
    return Cell(str(run.config.replicates), run.config.replicates)


def _replicates(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return record.get("replicates", [record])


def _widest(run: Run) -> Mapping[str, Any]:
    """The record of the most examples; an empty one if there is none."""
    return max(run.records, key=lambda record: record["n"], default={})


def _truth(run: Run) -> Cell:
    truth = _widest(run).get("true_log_likelihood")
    return Cell() if truth is None else Cell(minus(f"{truth:.4f}"), truth)


def _active(run: Run) -> Cell:
    units = _widest(run).get("active_units")
    return Cell("+".join(f"{count:g}" for count in units), sum(units)) if units else Cell()


def _published(run: Run) -> Cell:
    latent, hidden = run.config.sizes()
    sizes = {"latent_sizes": list(latent), "hidden_sizes": [list(one) for one in hidden]}
    text = published_nll(run.config.model_dump(mode="json") | sizes)
    if text == "-":
        return Cell()
    number, _, active = text.partition(" ")
    return Cell(number, float(number), active.strip("()") + ", 3,280 epochs")


def _annealing(run: Run) -> Bound | None:
    best = run.best
    return best if best is not None and best.prefix == "AIS" else None


def _verdicts(bound: Bound) -> list[Mapping[str, Any]]:
    return [one["verdict"] for one in _replicates(bound.record) if "verdict" in one]


def _verdict(run: Run) -> Cell:
    bound = _annealing(run)
    found = _verdicts(bound) if bound else []
    words = " / ".join(dict.fromkeys(one["word"] for one in found))
    return Cell(words, words or None, alarm=any(one["word"] != "converged" for one in found))


def _khat_share(run: Run) -> tuple[Bound, float] | None:
    """The bound by the most samples, and the share of examples whose k-hat is too large."""
    sampled = [one for one in run.bounds.values() if one.record["method"] == SAMPLED]
    if not sampled:
        return None
    rows = [
        row["pareto_k_unreliable"]
        for one in _replicates(sampled[-1].record)
        for row in one["by_k"]
        if row["k"] == sampled[-1].number and row.get("pareto_k_unreliable") is not None
    ]
    return (sampled[-1], sum(rows) / len(rows)) if rows else None


def _khat(run: Run) -> Cell:
    found = _khat_share(run)
    if found is None:
        return Cell()
    bound, share = found
    return Cell(f"{share:.0%}", share, f"of {bound.name}", alarm=share >= UNRELIABLE)


# --- what must not be overlooked ------------------------------------------------------------


class Notice(NamedTuple):
    """Something to know before the table is read."""

    title: str
    items: list[str]


def warnings(runs: Sequence[Run]) -> list[Notice]:
    """What is wrong, or may be."""
    violations = [
        f"{run.name}: {minus_pairs(words)}"
        for run in runs
        for record in run.records
        for words in record.get("ordering", {}).get("violations", ())
    ]
    verdicts = [
        f"{run.name}: {found['word']}. {minus_pairs(found['reason'])}"
        for run in runs
        if (bound := _annealing(run)) is not None
        for found in _verdicts(bound)
        if found["word"] != "converged"
    ]
    shares = [
        f"{run.name}: {found[1]:.0%} of the examples; {found[0].name} may be too low"
        for run in runs
        if (found := _khat_share(run)) is not None and found[1] >= UNRELIABLE
    ]
    stale = [
        f"{run.name}: measure it again: {command('evaluate', run)}" for run in runs if run.stale
    ]
    return _some(
        ("The bounds are not in order", violations),
        ("Records of other models are left out: the run was trained on since", stale),
        ("Annealing has not converged", verdicts),
        ("The weights are unreliable (k̂ is too large)", shares),
    )


def _some(*notices: tuple[str, Iterable[str]]) -> list[Notice]:
    """Those that have items, each once."""
    found = [Notice(title, list(dict.fromkeys(items))) for title, items in notices]
    return [notice for notice in found if notice.items]


def minus_pairs(words: str) -> str:
    """Plus and minus as one sign."""
    return words.replace("+-", "±")


def command(name: str, run: Run) -> str:
    """A command line for a run."""
    more = "" if run.weights == "final" else f" --weights {run.weights}"
    return f"iwae {name} {shlex.quote(run.name)}{more}"


def cautions(runs: Sequence[Run]) -> list[Notice]:
    """Which numbers must not be compared, though they stand in one table."""
    subsets = {one.name for run in runs for one in run.bounds.values() if one.record["subset"]}
    whole = {one.name for run in runs for one in run.bounds.values() if not one.record["subset"]}
    mixed = (
        "Bounds marked “a subset” are means over a random part of the test set, those beside them "
        "over all of it. The tables below compare the same examples only."
    )
    unmeasured = [f"{run.name}: {command('evaluate', run)}" for run in runs if not run.bounds]
    return _some(
        ("The runs were measured on different test sets: do not compare them", _test_sets(runs)),
        ("A column holds bounds of different examples", _examples(runs)),
        ("Runs were annealed in different ways", _settings(runs)),
        ("Not all bounds are of the same examples", [mixed] if subsets and whole else []),
        ("Not measured yet", unmeasured),
    )


def _test_sets(runs: Sequence[Run]) -> list[str]:
    groups = by_test_set(runs)
    if len(groups) < 2:
        return []
    return [
        f"{', '.join(run.name for run in group)}: {_data(group[0]).text} (SHA-256 {digest[:12]}…)"
        for digest, group in groups.items()
    ]


def by_test_set(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs that were measured, by the digest of the test set; a run may be in two."""
    digests = dict.fromkeys(digest for run in runs for digest in sorted(run.test_sets))
    return {digest: [run for run in runs if digest in run.test_sets] for digest in digests}


def _examples(runs: Sequence[Run]) -> list[str]:
    """Columns whose cells are of different examples of one test set."""
    found = []
    for name in dict.fromkeys(name for run in runs for name in run.bounds):
        records = [run.bounds[name].record for run in runs if name in run.bounds]
        for test in dict.fromkeys(record["test_sha256"] for record in records):
            same = [record for record in records if record["test_sha256"] == test]
            if len({record["examples_sha256"] for record in same}) > 1:
                sizes = " and ".join(f"{n:,}" for n in sorted({record["n"] for record in same}))
                found.append(f"{name}: of {sizes} examples, which are not the same ones")
    return found


def _settings(runs: Sequence[Run]) -> list[str]:
    """Columns of annealing whose cells were not annealed alike."""
    found = []
    for name in dict.fromkeys(name for run in runs for name in run.bounds):
        ways = [
            _way(run.bounds[name].record)
            for run in runs
            if name in run.bounds and run.bounds[name].record["method"] == ANNEALED
        ]
        if len(set(ways)) > 1:
            found.append(f"{name}: " + " or ".join(dict.fromkeys(ways)))
    return found


def _way(record: Mapping[str, Any]) -> str:
    """How a run was annealed, but for the number of temperatures."""
    how = record["annealing"]
    schedule = how["schedule"] if isinstance(how["schedule"], str) else "given"
    return (
        f"{how['chains']} chains from the {how['start']}, {how['leapfrog']} leapfrog steps, "
        f"{schedule} schedule"
    )


# --- the same examples ----------------------------------------------------------------------


class Table(NamedTuple):
    """A plain table, and what it shows."""

    caption: str
    columns: list[Cell]
    rows: list[list[Cell]]


def differences(runs: Sequence[Run]) -> list[Table]:
    """Paired differences to the first run, for each test set that runs share."""
    groups = [
        [run for run in group if not run.stale and run.bounds]
        for group in by_test_set(runs).values()
    ]
    tables = (_differences(group) for group in groups if len(group) > 1)
    return [table for table in tables if table is not None]


def _differences(runs: Sequence[Run]) -> Table | None:
    first, *others = runs
    paths, weights = [run.path for run in runs], first.weights
    columns = {}
    for name in first.bounds:
        try:
            record = compare(paths, weights=weights, estimator=name)
        except UserError:
            continue  # not all have it, or not alike
        columns[Cell(name, note=f"n = {record['n']:,}")] = record["runs"][1:]
    if not columns:
        return None
    rows = [
        [Cell(run.name), *(_difference(column[i]) for column in columns.values())]
        for i, run in enumerate(others)
    ]
    return Table(f"Difference to {first.name}", [Cell("run"), *columns], rows)


def _difference(row: Mapping[str, Any]) -> Cell:
    if row["difference"] is None:
        return Cell("not finite", alarm=True)
    error = "" if row["difference_stderr"] is None else f" ± {row['difference_stderr']:.3f}"
    return Cell(
        minus(f"{row['difference']:+.3f}") + error,
        note="" if row["significant"] else "may be chance",
    )


def estimates(runs: Sequence[Run]) -> Table | None:
    """Every bound of the runs that were annealed, each row on the same examples."""
    rows = [
        row
        for run in runs
        if run.weights == "final" and not run.stale  # the only ones that it knows
        if (row := estimates_row(run.path, run.name)) is not None
    ]
    if not rows:
        return None
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return Table(
        "Nats per example, on the examples that were annealed",
        [Cell(name) for name in columns],
        [[_estimate(row, name) for name in columns] for row in rows],
    )


def _estimate(row: Row, name: str) -> Cell:
    text = row.get(name, "-")
    if name == "run" or text == "-":
        return Cell(text.removeprefix("-") if text == "-" else text)
    text, _, note = minus(text).partition(" (")  # "AIS, long" has its temperatures in brackets
    return Cell(text, note=note.removesuffix(")"))


# --- configurations -------------------------------------------------------------------------


def configurations(runs: Sequence[Run]) -> list[tuple[str, list[str], bool]]:
    """Each key, its value in each run, and whether the values differ."""
    every = [run.config.model_dump(mode="json") for run in runs]
    rows = []
    for key in TrainConfig.model_fields:
        values = [_words(config[key]) for config in every]
        if any(values):
            rows.append((key, values, len(set(values)) > 1))
    return rows


def _words(value: Any) -> str:
    """A value as the command line has it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(
            ",".join(map(str, one)) if isinstance(one, list) else str(one) for one in value
        )
    return short_path(value)
