"""Log-likelihoods by annealed importance sampling, for a record: at two lengths, with a verdict."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import jax
import numpy as np

from iwae.data import choose
from iwae.errors import UserError
from iwae.evaluation.diagnostics import Verdict, verdict
from iwae.evaluation.examples import check_positive
from iwae.evaluation.jackknife import BATCHES
from iwae.evaluation.likelihood import annealed_slabs
from iwae.inference.starts import STARTS
from iwae.inference.step_sizes import tune_step_size
from iwae.inference.temperatures import as_betas, check_leapfrog, linear_schedule, sigmoid_schedule
from iwae.models.conditional import Model
from iwae.precision import float32
from iwae.results.measure import Measured, Replicate, SplitOptions, measure
from iwae.results.reading import read_records, report_damage
from iwae.results.records import (
    Subject,
    make_subject,
    model_sha256,
    number,
    record_name,
    shared_record,
    unit_counts,
    weight_summary,
)
from iwae.results.schema import Document, Method, Settings
from iwae.results.store import read_arrays
from iwae.results.unfinished import Slab
from iwae.runs.setup import split_examples
from iwae.typing import PRNGKey

SCHEDULES: dict[str, Callable[[int], np.ndarray]] = {
    "sigmoid": sigmoid_schedule,
    "linear": linear_schedule,
}

PILOT_EXAMPLES, PILOT_CHAINS = 32, 4
"""Data for tuning step sizes: training examples, and chains of each."""


@dataclass(frozen=True)
class Annealing:
    """Settings of annealed importance sampling.

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

    def path(self, length: int) -> dict[str, Any]:
        """Arguments of the functions that anneal, for a schedule of `length` temperatures."""
        return {"betas": self.betas(length), "n_leapfrog": self.leapfrog, "start": self.start}

    def values(self) -> Document:
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


@float32
def anneal_run(
    run: Path,
    *,
    annealing: Annealing | None = None,
    tolerance: float = 0.5,
    **options: Unpack[SplitOptions],
) -> Document:
    """Log-likelihoods of every replicate of a run by annealed importance sampling.

    Runs T and T/10 temperatures with keys of their own, and says whether the two agree. Step sizes
    are tuned on training examples, with yet another key, before anything is measured. Writes
    `RUN/evaluations/NAME.json` (the record, which is also returned) and `NAME.npz`: for R
    replicates and n examples `temperatures [2]`, `index [n]` in the split, `log_likelihood`, `ess`
    and `acceptance` `[R, 2, n]`, and `step_sizes_R_T [T-1]`. A call that was stopped continues when
    it is repeated.

    Args:
        annealing: temperatures, chains and moves; by default `Annealing()`.
        tolerance: the largest acceptable error, nats; see `evaluation.diagnostics.verdict`.
        options: see `SplitOptions`.

    Raises:
        UserError: if the run, its weights, its data or the split are not there, or an option makes
            no sense.
    """
    annealing = annealing or Annealing()
    annealing.check()
    if not 0 < tolerance < float("inf"):
        raise UserError(f"tolerance is {tolerance}; it must be a positive number of nats")
    subject = make_subject(Path(run), **options)
    return measure(
        subject,
        partial(_anneal, annealing=annealing, tolerance=tolerance),
        file=record_name(subject, "ais", *annealing.words()),
        shared={
            **shared_record(subject, Method.ANNEALED),
            "proposal": annealing.start,
            "annealing": annealing.values(),
            "pilot": {"split": pilot_split(subject), "examples": PILOT_EXAMPLES},
            "k": annealing.chains,
        },
        arrays={"temperatures": np.asarray(_lengths(annealing)), "index": subject.places},
        rows=("by_temperatures", "temperatures"),
    )


def _lengths(annealing: Annealing) -> tuple[int, int]:
    """T/10 and T."""
    return annealing.temperatures // 10, annealing.temperatures


def _anneal(one: Replicate, annealing: Annealing, tolerance: float) -> Measured:
    lengths = _lengths(annealing)
    both, sizes = zip(*(_at_length(one, annealing, length) for length in lengths), strict=True)
    rows = [_row(*values, annealing) for values in zip(lengths, both, sizes, strict=True)]
    shorter, longer = (values["log_likelihood"] for values in both)
    gap = simulated_gap(one.subject, one.number, annealing)
    record = {
        **rows[-1],
        "k": annealing.chains,
        "by_temperatures": rows,
        "verdict": verdict_record(verdict(longer, shorter, gap, tolerance)),
        **unit_counts(one.subject, one.model)[0],
    }
    stacked = {
        name: np.stack([values[name] for values in both])
        for name in ("log_likelihood", "monte_carlo_error", "ess", "acceptance")
    }
    own = {
        f"step_sizes_{one.number}_{length}": found
        for length, found in zip(lengths, sizes, strict=True)
    }
    return Measured(record, stacked, own)


def _at_length(
    one: Replicate, annealing: Annealing, length: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Values of each example, and step sizes `[T-1]`, frozen before anything is measured."""
    subject = one.subject
    pilot_key, key = annealing_keys(subject.seed, length)
    settings = {**annealing.values(), "temperatures": length}
    sizes = one.array(
        lambda: tune(one.model, pilot_examples(subject), pilot_key, annealing, length),
        method="step sizes",
        pilot=pilot_split(subject),
        **settings,
    )

    def slabs(first: int) -> Iterator[Slab]:
        return annealed_slabs(
            one.model,
            subject.data,
            key,
            chains=annealing.chains,
            step_size=sizes,
            **annealing.path(length),
            batch_size=subject.batch_size,
            first=first,
        )

    how = {"method": Method.ANNEALED, "batches": BATCHES, **settings}
    return one.values(f"{length} temperatures", slabs, **how), sizes


def annealing_keys(seed: int, length: int) -> tuple[PRNGKey, PRNGKey]:
    """Keys of the pilot and of the measurement, for a schedule of `length` temperatures."""
    pilot_key, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), length))
    return pilot_key, key


def tune(
    model: Model, examples: np.ndarray, key: PRNGKey, annealing: Annealing, length: int
) -> np.ndarray:
    """Step sizes for a schedule of `length` temperatures, `[length - 1]`."""
    return tune_step_size(model, examples, key, chains=PILOT_CHAINS, **annealing.path(length))


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


def _row(
    length: int, values: dict[str, np.ndarray], step_sizes: np.ndarray, annealing: Annealing
) -> Document:
    """The part of a record about one length."""
    return {
        "temperatures": length,
        **weight_summary(values, annealing.chains),
        "acceptance_mean": float(values["acceptance"].mean()),
        "acceptance_min": float(values["acceptance"].min()),
        "step_size_min": float(step_sizes.min()),
        "step_size_max": float(step_sizes.max()),
    }


def verdict_record(found: Verdict) -> Document:
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
    wanted = subject.weights, subject.pruned, Settings(**annealing.values())
    mine, gaps = model_sha256(subject.run, subject.weights, replicate), []
    for path, record in read_records(subject.run, (Method.BIDIRECTIONAL,)):
        same = (record.weights, record.pruned, record.annealing) == wanted
        if same and record.digests[replicate : replicate + 1] == [mine]:
            values = read_arrays(path, report_damage, ("lower", "upper"))
            if values is not None:
                gaps.append(values["upper"][replicate] - values["lower"][replicate])
    return max(gaps, key=len, default=None)
