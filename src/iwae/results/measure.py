"""The driver of all measurements, replicate by replicate: resume, summarise, write.

A method is a function of one replicate, in a file that says what it computes and how that is
summarised.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypedDict

import numpy as np

from iwae.evaluation.differences import reversed_differences
from iwae.evaluation.examples import gather_examples
from iwae.precision import float32
from iwae.results.extrapolation import extrapolate_record
from iwae.results.reading import bounds_from_record, read_bounds
from iwae.results.record_files import Arrays, write_record
from iwae.results.schema import Document, Method, Record, parse
from iwae.results.subjects import Subject, Track, subject_facts, subject_model_facts
from iwae.results.summaries import summarise_draws, summarise_replicates, summary_with_bits
from iwae.results.unfinished import Slab, Unfinished

log = logging.getLogger(__name__)


class Options(TypedDict, total=False):
    """Options of every measurement.

    Attributes:
        weights: "final" (the default), or "best" by the validation bound.
        pruned: measure the models without their inactive units.
        seed: of all random numbers, 0 by default.
        batch_size: examples at a time on each device; changes the speed, not the numbers.
        data_dir: folder to search first for the data files.
        track: function (slabs, total examples, label) -> slabs that shows progress.
    """

    weights: str
    pruned: bool
    seed: int
    batch_size: int | None
    data_dir: Path | None
    track: Track


class SplitOptions(Options, total=False):
    """Options of a measurement of a split.

    Attributes:
        split: "train", "validation" or "test" (the default).
        examples: a seeded random subset of the split; by default all of it.
    """

    split: str
    examples: int | None


class Replicate(NamedTuple):
    """One trained model of a run, to be measured.

    Attributes:
        subject: the run and its examples.
        number: of the replicate, from 0.
        model: with the weights to measure.
        unfinished: results of a call that was stopped.
    """

    subject: Subject
    number: int
    model: Any
    unfinished: Unfinished

    def values(
        self,
        label: str,
        slabs: Callable[..., Iterator[Slab]],
        total: int | None = None,
        **settings: Any,
    ) -> Slab:
        """All of `slabs(batch_size=..., first=...)`, resumed at the first unmeasured example.

        Args:
            label: of the progress bar.
            total: the number of examples; by default the subject's.
            settings: everything that the numbers depend on besides model, examples and seed.

        Returns:
            `[n, ...]` arrays by name, floats in float64.
        """
        subject = self.subject

        def make(first: int) -> Iterator[Slab]:
            return slabs(batch_size=subject.batch_size, first=first)

        kept = self.unfinished.slabs(subject.settings(self.number, **settings), make)
        total = len(subject.data) if total is None else total
        return gather_examples(
            iter(subject.track(kept, total, f"replicate {self.number}, {label}"))
        )

    def array(self, make: Callable[[], np.ndarray], **settings: Any) -> np.ndarray:
        """`make()`, or its result from before an interruption."""
        return self.unfinished.array(self.subject.settings(self.number, **settings), make)


class Measured(NamedTuple):
    """One replicate's numbers.

    Attributes:
        record: its part of the record.
        values: arrays of the same shape for all replicates, to be stacked.
        own: arrays by names that no other replicate uses.
    """

    record: Document
    values: Mapping[str, np.ndarray]
    own: Mapping[str, np.ndarray] = {}


@float32
def measure(
    subject: Subject,
    method: Method,
    one: Callable[[Replicate], Measured],
    *,
    file: str,
    shared: Mapping[str, Any] = MappingProxyType({}),
    arrays: Mapping[str, np.ndarray] = MappingProxyType({}),
    rows: tuple[str, str] | None = None,
) -> Document:
    """Measure every replicate of a run, and write `RUN/evaluations/FILE.json` and `FILE.npz`.

    A record of several replicates has a part for each under `replicates`. Numbers that are not
    finite are null. Results of a call that was stopped are reused.

    Args:
        one: measures a replicate.
        file: the name of both files.
        shared: facts about all replicates, besides those of `subject_facts`.
        arrays: stored beside the values of the replicates.
        rows: for a method that bounds log p(x) at several budgets, the name of the record's rows
            and of the column with the budget. `Measured.values["log_likelihood"]` is then
            `[m, n]`, and the order of these and the run's other bounds is checked.
    """
    shared = {**subject_facts(subject, method), **shared}
    unfinished = Unfinished(subject.run)
    if subject.subset:  # kept until a record has it, since its strata may change meanwhile
        by = np.full(len(subject.places), subject.stratified_by or "")
        unfinished.keep(subject.choice, {"index": subject.places, "by": by})
    each, found = [], []
    for replicate, model in subject.models():
        begin = time.perf_counter()
        found.append(one(Replicate(subject, replicate, model, unfinished)))
        seconds = time.perf_counter() - begin
        facts = subject_model_facts(subject, replicate)
        each.append({**found[-1].record, "seconds": seconds, **facts})
    stored = dict(arrays)
    for name in found[0].values:
        stored[name] = np.stack([measured.values[name] for measured in found])
    for measured in found:
        stored |= measured.own
    if rows is None:
        record = {**(each[0] if len(each) == 1 else {"replicates": each}), **shared}
    else:
        record = _over_replicates(each, shared, stored, *rows)
        record["ordering"] = _check_ordering(subject.run, parse(record), stored)
    full = extrapolate_record(subject.run, parse(record), stored).document()
    written = write_record(subject.run, file, full, stored)
    unfinished.forget()
    return written


def _check_ordering(run: Path, record: Record, arrays: Arrays) -> dict[str, list[str]]:
    """Check that L_1 <= L_50 <= L_5000 <= AIS, for a new record and the run's older ones.

    Bounds of the same models are compared on the examples that they share. The shorter of two
    annealing runs does not count: it may be looser than 5,000 samples.

    Returns:
        `checked`, the names of the compared bounds, and `violations` in words, which are also
        logged as warnings.
    """
    older = read_bounds(run, split=record.split, weights=record.weights, pruned=record.pruned)
    known = {one.estimator: one for one in older if one.record.digests == record.digests}
    known |= {one.estimator: one for one in bounds_from_record(record, arrays)}
    known = dict(sorted(known.items(), key=lambda item: item[1].rank))
    samples = [one for one in known.values() if one.rank[0] == 0]
    ordered = samples + [one for one in known.values() if one.rank[0] == 1][-1:]
    checked, violations = set(), []
    for low, high in combinations(ordered, 2):
        _, places, other_places = np.intersect1d(low.places, high.places, return_indices=True)
        if len(places) < 2:
            continue
        checked |= {low.estimator, high.estimator}
        for replicate, (a, b) in enumerate(zip(low.values, high.values, strict=True)):
            both = {low.estimator: a[places], high.estimator: b[other_places]}
            name = f"replicate {replicate}: " if len(low.values) > 1 else ""
            violations += [name + words for words in reversed_differences(both)]
    for words in violations:
        log.warning("THE BOUNDS ARE NOT IN ORDER: %s", words)
    return {
        "checked": [one.estimator for one in ordered if one.estimator in checked],
        "violations": violations,
    }


def _over_replicates(
    each: Sequence[Document],
    shared: Document,
    arrays: Mapping[str, np.ndarray],
    rows_of: str,
    column: str,
) -> Document:
    """One record for all replicates, with a part for each under `replicates`.

    Args:
        arrays: `log_likelihood [R, m, n]` for m rows, and `draws [R, m, J, n]` if any; the record
            leads with the last row.
        rows_of: the field with a replicate's rows, such as `by_k`.
        column: of the rows, the same for all replicates.
    """
    each = [summary_with_bits(one, shared["data"]) for one in each]
    if len(each) == 1:
        return {**each[0], **shared}
    common = {name: shared[name] for name in ("dataset", "split", "n", "test_sha256")}
    values = arrays["log_likelihood"]
    rows = [
        {column: each[0][rows_of][i][column], **summarise_replicates(values[:, i])}
        for i in range(values.shape[1])
    ]
    if "draws" in arrays:
        mean = arrays["draws"].mean(axis=0)
        both = zip(rows, map(summarise_draws, mean), strict=True)
        rows = [{**row, "binarizations": drawn} for row, drawn in both]
    rows = [summary_with_bits(row, shared["data"]) for row in rows]
    units = {}
    for name in ("active_units", "active_units_authors"):
        layers = zip_longest(*(one[name] for one in each), fillvalue=0)  # pruned layers
        units[name] = [float(np.mean(counts)) for counts in layers]
    return {
        **rows[-1],
        rows_of: rows,
        **units,
        **shared,
        "replicates": [{**one, **common} for one in each],
    }
