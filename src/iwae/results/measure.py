"""The driver of all measurements: one replicate after another, resumed, summed up, written.

A method is a function of one replicate; its file says what it computes and how it is summarised.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from iwae.evaluation.examples import gather
from iwae.precision import float32
from iwae.results.completing import completed
from iwae.results.ordering import check_ordering
from iwae.results.records import Subject, Track, model_facts
from iwae.results.replicates import over_replicates
from iwae.results.schema import Document, parse
from iwae.results.store import write_record
from iwae.results.subsets import keep_choice
from iwae.results.unfinished import Slab, Unfinished


class Options(TypedDict, total=False):
    """Options of every measurement.

    Attributes:
        weights: "final" (the default), or "best" by the validation bound.
        pruned: measure the models without their inactive units.
        seed: of all random numbers, 0 by default.
        batch_size: examples at a time on each device; changes the speed, not the numbers.
        data_dir: where the data files are looked for first.
        track: wraps an iterable of slabs, its length and a label into a progress bar.
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
    """One trained model of a run, and how to measure it.

    Attributes:
        subject: the run and its examples.
        number: of the replicate, from 0.
        model: with the weights that are measured.
        unfinished: results of a call that was stopped.
    """

    subject: Subject
    number: int
    model: Any
    unfinished: Unfinished

    def slabs(
        self,
        label: str,
        make: Callable[[int], Iterator[Slab]],
        total: int | None = None,
        **settings: Any,
    ) -> Iterator[Slab]:
        """The slabs of `make(first)`, with progress, from the first example not yet measured.

        Args:
            settings: all that the numbers depend on beside model, examples and seed.
        """
        kept = self.unfinished.slabs(self.subject.settings(self.number, **settings), make)
        total = len(self.subject.data) if total is None else total
        return iter(self.subject.track(kept, total, f"replicate {self.number}, {label}"))

    def values(self, *args: Any, **options: Any) -> Slab:
        """All of `slabs` as one dictionary of `[n, ...]` float64 arrays."""
        return gather(self.slabs(*args, **options))

    def array(self, make: Callable[[], np.ndarray], **settings: Any) -> np.ndarray:
        """`make()`, or its result before an interruption."""
        return self.unfinished.array(self.subject.settings(self.number, **settings), make)


class Measured(NamedTuple):
    """One replicate's numbers.

    Attributes:
        record: its part of the record.
        values: arrays of one shape for all replicates, which are stacked.
        own: arrays by names that no other replicate uses.
    """

    record: Document
    values: Mapping[str, np.ndarray]
    own: Mapping[str, np.ndarray] = {}


@float32
def measure(
    subject: Subject,
    method: Callable[[Replicate], Measured],
    *,
    file: str,
    shared: Document,
    arrays: Mapping[str, np.ndarray],
    rows: tuple[str, str] | None = None,
) -> Document:
    """Measure every replicate of a run, and write `RUN/evaluations/FILE.json` and `FILE.npz`.

    The record of several replicates has each one's under `replicates`. A number that is not finite
    is null. Results of a call that was stopped are used.

    Args:
        file: the name of both files.
        shared: the record's part that all replicates have in common.
        arrays: what is stored beside the values of the replicates.
        rows: for a method that bounds log p(x) at several budgets: the record's list of them, and
            the column that tells them apart. `Measured.values["log_likelihood"]` is then `[m, n]`,
            and the bounds are checked to be in order with the run's others.
    """
    unfinished = Unfinished(subject.run)
    if subject.subset:
        keep_choice(unfinished, subject.choice, subject.places, subject.stratified_by)
    each, found = [], []
    for number, model in subject.models():
        begin = time.perf_counter()
        one = method(Replicate(subject, number, model, unfinished))
        seconds = time.perf_counter() - begin
        each.append({**one.record, "seconds": seconds, **model_facts(subject, number)})
        found.append(one)
    stored = dict(arrays)
    for name in found[0].values:
        stored[name] = np.stack([one.values[name] for one in found])
    for one in found:
        stored |= one.own
    if rows is None:
        record = {**(each[0] if len(each) == 1 else {"replicates": each}), **shared}
    else:
        record = over_replicates(each, shared, stored, *rows)
        record["ordering"] = check_ordering(subject.run, parse(record), stored)
    full = completed(subject.run, parse(record), stored).document()
    written = write_record(subject.run, file, full, stored)
    unfinished.forget()
    return written
