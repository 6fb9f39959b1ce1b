"""The notices of the page: warnings, and numbers that must not be compared."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from iwae.reports.page.page_runs import (
    Run,
    page_run_annealing,
    page_run_command,
    page_run_khat_share,
    page_run_verdicts,
    page_runs_by_test_set,
)
from iwae.results.compare import compared_weights_hint
from iwae.results.formatting import UNRELIABLE, format_annealing, format_short_path
from iwae.results.schema import Record


class Notice(NamedTuple):
    """A notice above the table."""

    title: str
    items: list[str]


def warnings(runs: Sequence[Run]) -> list[Notice]:
    """Errors, and possible errors."""
    violations = [
        f"{run.name}: {_minus_pairs(words)}"
        for run in runs
        for record in run.records
        for words in record.ordering.violations
    ]
    unconverged = [
        f"{run.name}: {found.word}. {_minus_pairs(found.reason)}"
        for run in runs
        if (bound := page_run_annealing(run)) is not None
        for found in page_run_verdicts(bound)
        if not found.converged
    ]
    shares = [
        f"{run.name}: {found[1]:.0%} of the examples; {found[0].name} may be too low"
        for run in runs
        if (found := page_run_khat_share(run)) is not None and found[1] >= UNRELIABLE
    ]
    stale = [
        f"{run.name}: measure it again: {page_run_command('evaluate', run)}"
        for run in runs
        if run.stale
    ]
    return _non_empty(
        ("The bounds are not in order", violations),
        ("Records of other models are omitted: the run was trained on since", stale),
        ("Annealing has not converged", unconverged),
        ("The weights are unreliable (k̂ is too large)", shares),
    )


def _non_empty(*notices: tuple[str, Iterable[str]]) -> list[Notice]:
    """The notices that have items, without repeated items."""
    found = [Notice(title, list(dict.fromkeys(items))) for title, items in notices]
    return [notice for notice in found if notice.items]


def _minus_pairs(words: str) -> str:
    """Write "+-" as one sign."""
    return words.replace("+-", "±")


def cautions(runs: Sequence[Run]) -> list[Notice]:
    """Numbers in one table that must not be compared."""
    bounds = [bound for run in runs for bound in run.bounds.values()]
    subsets = any(bound.is_of_subset for bound in bounds)
    whole = any(not bound.is_of_subset for bound in bounds)
    mixed = (
        "Bounds marked “a subset” are means over a random part of the test set, those beside them "
        "over all of it. The tables below compare the same examples only."
    )
    present = {(run.path, run.weights) for run in runs}
    unmeasured = []
    for run in (run for run in runs if not run.bounds):
        others = [weights for weights in sorted(run.others) if (run.path, weights) not in present]
        remedies = [*map(compared_weights_hint, others), page_run_command("evaluate", run)]
        unmeasured.append(f"{run.name}: {', or '.join(remedies)}")
    return _non_empty(
        ("The runs were measured on different test sets: do not compare them", _test_sets(runs)),
        ("A column holds bounds of different examples", _different_examples(runs)),
        ("Runs were annealed in different ways", _different_annealing(runs)),
        ("Not all bounds are of the same examples", [mixed] if subsets and whole else []),
        ("Not measured yet", unmeasured),
    )


def _test_sets(runs: Sequence[Run]) -> list[str]:
    groups = page_runs_by_test_set(runs)
    if len(groups) < 2:
        return []
    return [
        f"{', '.join(run.name for run in group)}: {format_short_path(group[0].config.dataset)} "
        f"(SHA-256 {digest[:12]}…)"
        for digest, group in groups.items()
    ]


def _different_examples(runs: Sequence[Run]) -> list[str]:
    """Columns whose cells average over different examples of one test set."""
    found = []
    for name, records in _records_by_column(runs).items():
        for test in dict.fromkeys(record.test_sha256 for record in records):
            same = [record for record in records if record.test_sha256 == test]
            if len({record.examples_sha256 for record in same}) > 1:
                sizes = " and ".join(f"{n:,}" for n in sorted({record.n for record in same}))
                found.append(f"{name}: of {sizes} examples, which are not the same ones")
    return found


def _different_annealing(runs: Sequence[Run]) -> list[str]:
    """Columns whose cells were annealed with different settings."""
    found = []
    for name, records in _records_by_column(runs).items():
        settings = [record.annealing for record in records if record.annealing is not None]
        if len(different := dict.fromkeys(map(format_annealing, settings))) > 1:
            found.append(f"{name}: " + " or ".join(different))
    return found


def _records_by_column(runs: Sequence[Run]) -> dict[str, list[Record]]:
    """The records behind each column of bounds."""
    names = dict.fromkeys(name for run in runs for name in run.bounds)
    return {name: [run.bounds[name].record for run in runs if name in run.bounds] for name in names}
