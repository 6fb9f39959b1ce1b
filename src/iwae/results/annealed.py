"""Log-likelihoods by annealed importance sampling, for a record: at two lengths, with a verdict."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from iwae.data import choose
from iwae.errors import UserError
from iwae.evaluation.diagnostics import Verdict, verdict
from iwae.evaluation.examples import check_positive, gather
from iwae.evaluation.likelihood import annealed_slabs
from iwae.inference.starts import STARTS
from iwae.inference.step_sizes import tune_step_size
from iwae.inference.temperatures import as_betas, check_leapfrog, linear_schedule, sigmoid_schedule
from iwae.models.conditional import Model
from iwae.results.ordering import check_ordering, models_of, read_records, read_values
from iwae.results.records import (
    Record,
    Subject,
    Track,
    joined,
    make_subject,
    number,
    origin,
    record_name,
    shared_record,
    unit_counts,
    untracked,
    weight_summary,
    write_record,
)
from iwae.results.unfinished import Slab, Unfinished
from iwae.runs.setup import split_examples
from iwae.typing import PRNGKey

ANNEALED = "annealed importance sampling"

SCHEDULES: dict[str, Callable[[int], np.ndarray]] = {
    "sigmoid": sigmoid_schedule,
    "linear": linear_schedule,
}

PILOT_EXAMPLES, PILOT_CHAINS = 32, 4
"""What step sizes are tuned on: training examples, and chains of each."""


@dataclass(frozen=True)
class Annealing:
    """How to anneal.

    Attributes:
        temperatures: T; the cost is proportional to it.
        chains: of each example.
        leapfrog: leapfrog steps of each HMC move.
        schedule: a name of `SCHEDULES`, or the temperatures themselves, from 0 to 1.
        start: "posterior" for q(z|x), or "prior".
    """

    temperatures: int = 500
    chains: int = 16
    leapfrog: int = 10
    schedule: str | tuple[float, ...] = "sigmoid"
    start: str = "posterior"

    def check(self) -> None:
        """Raise UserError unless this is a way to anneal, at this length and a tenth of it."""
        if self.temperatures < 20:
            raise UserError(
                f"temperatures is {self.temperatures}; a tenth of them is run as well, and needs "
                "at least 2: give 20 or more"
            )
        check_positive("chains", self.chains)
        check_leapfrog(self.leapfrog)
        if self.start not in STARTS:
            raise UserError(f"no start {self.start!r}; known: {', '.join(STARTS)}")
        if isinstance(self.schedule, str):
            if self.schedule not in SCHEDULES:
                raise UserError(f"no schedule {self.schedule!r}; known: {', '.join(SCHEDULES)}")
        elif len(self.schedule) != self.temperatures:
            raise UserError(
                f"temperatures is {self.temperatures}, but {len(self.schedule)} of them are given"
            )
        as_betas(self.betas(self.temperatures))

    def betas(self, temperatures: int) -> np.ndarray:
        """The schedule at a length; temperatures that were given are thinned out evenly."""
        if isinstance(self.schedule, str):
            return SCHEDULES[self.schedule](temperatures)
        places = np.linspace(0, self.temperatures - 1, temperatures)
        return np.interp(places, np.arange(self.temperatures), self.schedule)

    def values(self) -> Record:
        """For a record."""
        return {
            "temperatures": self.temperatures,
            "chains": self.chains,
            "leapfrog": self.leapfrog,
            "schedule": self.schedule if isinstance(self.schedule, str) else list(self.schedule),
            "start": self.start,
        }

    def words(self) -> list[str]:
        """For the name of a record."""
        return [
            f"T{self.temperatures}",
            f"c{self.chains}",
            f"l{self.leapfrog}",
            self.schedule if isinstance(self.schedule, str) else "given",
            self.start,
        ]


class Annealed(NamedTuple):
    """What one model scores at one length.

    Attributes:
        values: `log_likelihood` (nats), `ess`, `pareto_k` and `acceptance`, `[n]` float64.
        step_sizes: `[T-1]`, frozen before anything was measured.
    """

    values: dict[str, np.ndarray]
    step_sizes: np.ndarray


def anneal_run(
    run: Path,
    *,
    annealing: Annealing | None = None,
    split: str = "test",
    weights: str = "final",
    examples: int | None = None,
    pruned: bool = False,
    seed: int = 0,
    tolerance: float = 0.5,
    batch_size: int | None = None,
    data_dir: Path | None = None,
    track: Track = untracked,
) -> Record:
    """Log-likelihoods of every replicate of a run by annealed importance sampling.

    Runs T and T/10 temperatures with keys of their own, and says whether the two agree. Step sizes
    are tuned on training examples, with yet another key, before anything is measured. Writes
    `RUN/evaluations/NAME.json` (the record, which is also returned) and `NAME.npz`: for R
    replicates and n examples `temperatures [2]`, `index [n]` in the split, `log_likelihood`, `ess`
    and `acceptance` `[R, 2, n]`, and `step_sizes_R_T [T-1]`. What a stopped call had done is kept,
    and the same call goes on from there.

    Args:
        annealing: how to anneal; by default `Annealing()`.
        examples: a seeded random subset of the split instead of all of it.
        pruned: measure the models with their inactive units removed.
        seed: of all random numbers.
        tolerance: the largest acceptable error, nats; see `evaluation.diagnostics.verdict`.
        batch_size: examples at a time on each device; changes the speed, not the numbers.
        track: wraps an iterable of slabs, its length and a label into a progress bar.

    Raises:
        UserError: if the run, its weights, its data or the split are not there, or an option makes
            no sense.
    """
    annealing, run = annealing or Annealing(), Path(run)
    annealing.check()
    if not 0 < tolerance < float("inf"):
        raise UserError(f"tolerance is {tolerance}; it must be a positive number of nats")
    subject = make_subject(
        run,
        split=split,
        weights=weights,
        examples=examples,
        pruned=pruned,
        seed=seed,
        labels=True,
        data_dir=data_dir,
    )
    unfinished, lengths = Unfinished(run), (annealing.temperatures // 10, annealing.temperatures)
    each, measured = [], []
    for replicate, model in subject.models():
        begin = time.perf_counter()
        both = [
            _anneal(subject, replicate, model, annealing, length, batch_size, unfinished, track)
            for length in lengths
        ]
        rows = [_row(one, length, annealing) for one, length in zip(both, lengths, strict=True)]
        each.append(
            {
                **rows[-1],
                "k": annealing.chains,
                "by_temperatures": rows,
                "verdict": _verdict(subject, replicate, annealing, both, tolerance),
                **unit_counts(subject, model)[0],
                "seconds": time.perf_counter() - begin,
                **origin(subject, replicate),
            }
        )
        measured.append(both)
    shared = {
        **shared_record(subject, ANNEALED),
        "proposal": annealing.start,
        "annealing": annealing.values(),
        "pilot": {"split": pilot_split(subject), "examples": PILOT_EXAMPLES},
    }
    likelihoods = [[one.values["log_likelihood"] for one in both] for both in measured]
    record = joined(each, shared, likelihoods, "by_temperatures", ["temperatures"])
    record["k"] = annealing.chains
    arrays = {"temperatures": np.asarray(lengths), "index": subject.places}
    for name in ("log_likelihood", "ess", "acceptance"):
        arrays[name] = np.stack([np.stack([one.values[name] for one in both]) for both in measured])
    for replicate, both in enumerate(measured):
        for length, one in zip(lengths, both, strict=True):
            arrays[f"step_sizes_{replicate}_{length}"] = one.step_sizes
    record["ordering"] = check_ordering(run, record, arrays)
    write_record(run, record_name(subject, "ais", *annealing.words()), record, arrays)
    unfinished.forget()
    return record


def _anneal(
    subject: Subject,
    replicate: int,
    model: Model,
    annealing: Annealing,
    length: int,
    batch_size: int | None,
    unfinished: Unfinished,
    track: Track,
) -> Annealed:
    """One replicate at one length."""
    pilot_key, key = annealing_keys(subject.seed, length)
    how = {**annealing.values(), "temperatures": length}
    sizes = unfinished.array(
        subject.settings(replicate, method="step sizes", pilot=pilot_split(subject), **how),
        lambda: tune(model, pilot_examples(subject), pilot_key, annealing, length),
    )

    def slabs(first: int) -> Iterator[Slab]:
        return annealed_slabs(
            model,
            subject.data,
            key,
            chains=annealing.chains,
            betas=annealing.betas(length),
            step_size=sizes,
            n_leapfrog=annealing.leapfrog,
            start=annealing.start,
            batch_size=batch_size,
            first=first,
        )

    kept = unfinished.slabs(subject.settings(replicate, method=ANNEALED, **how), slabs)
    label = f"replicate {replicate}, {length} temperatures"
    return Annealed(gather(iter(track(kept, len(subject.data), label))), sizes)


def annealing_keys(seed: int, length: int) -> tuple[PRNGKey, PRNGKey]:
    """Keys of the pilot and of the measurement, for a schedule of `length` temperatures."""
    pilot_key, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), length))
    return pilot_key, key


def tune(
    model: Model, examples: np.ndarray, key: PRNGKey, annealing: Annealing, length: int
) -> np.ndarray:
    """Step sizes for a schedule of `length` temperatures, `[length - 1]`."""
    return tune_step_size(
        model,
        examples,
        key,
        betas=annealing.betas(length),
        n_leapfrog=annealing.leapfrog,
        chains=PILOT_CHAINS,
        start=annealing.start,
    )


def pilot_split(subject: Subject) -> str:
    """Where the pilot's examples come from; never what is measured."""
    return "train" if subject.split != "train" else "validation"


def pilot_examples(subject: Subject) -> np.ndarray:
    """Examples that will not be measured, to tune step sizes on."""
    name = pilot_split(subject)
    examples = split_examples(subject.dataset, name)
    if len(examples) == 0:
        raise UserError(
            "step sizes are tuned on examples that are not measured: to measure the training "
            "split, hold out a validation split"
        )
    return examples[np.sort(choose(len(examples), min(PILOT_EXAMPLES, len(examples))))]


def _row(one: Annealed, length: int, annealing: Annealing) -> Record:
    """What a record says of one length."""
    return {
        "temperatures": length,
        **weight_summary(one.values, annealing.chains),
        "acceptance_mean": float(one.values["acceptance"].mean()),
        "acceptance_min": float(one.values["acceptance"].min()),
        "step_size_min": float(one.step_sizes.min()),
        "step_size_max": float(one.step_sizes.max()),
    }


def _verdict(
    subject: Subject, replicate: int, annealing: Annealing, both: list[Annealed], tolerance: float
) -> Record:
    """Whether T and T/10 agree and, where bidirectional bounds are known, they are close."""
    shorter, longer = (one.values["log_likelihood"] for one in both)
    gap = simulated_gap(subject, replicate, annealing)
    return verdict_record(verdict(longer, shorter, gap, tolerance))


def verdict_record(found: Verdict) -> Record:
    """A verdict as a record has it."""
    return {
        "word": found.word,
        "reason": found.reason,
        "difference": number(found.difference.mean),
        "difference_stderr": number(found.difference.stderr),
        "bdmc_gap": None if found.gap is None else number(found.gap),
        "tolerance": found.tolerance,
    }


def simulated_gap(subject: Subject, replicate: int, annealing: Annealing) -> np.ndarray | None:
    """The gaps of bidirectional Monte Carlo by the same annealing of the same model, if known.

    Of several records the one with the most examples counts.
    """
    wanted = subject.weights, subject.pruned, annealing.values()
    mine, gaps = origin(subject, replicate)["model_sha256"], []
    for path, record in read_records(subject.run, ("bidirectional Monte Carlo",)):
        same = (record["weights"], record["pruned"], record["annealing"]) == wanted
        if same and models_of(record)[replicate] == mine:
            values = read_values(path)
            if values is not None:
                gaps.append(values["upper"][replicate] - values["lower"][replicate])
    return max(gaps, key=len, default=None)
