"""Log-likelihoods by annealed importance sampling at two lengths, with a verdict."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import jax
import numpy as np
from jaxtyping import Float

from iwae.data import choose
from iwae.errors import UserError, require_positive
from iwae.evaluation.convergence import Verdict, convergence_verdict
from iwae.evaluation.likelihood import annealed_log_likelihood_slabs
from iwae.evaluation.standard_errors import BATCHES
from iwae.evaluation.tails import ratio_tail
from iwae.inference.adaptive import adaptive_schedule
from iwae.inference.kernels import check_leapfrog
from iwae.inference.starts import STARTS
from iwae.inference.temperatures import as_betas, linear_schedule, sigmoid_schedule
from iwae.inference.tuning import tune_step_size
from iwae.precision import float32
from iwae.results.measure import Measured, Replicate, SplitOptions, measure
from iwae.results.reading import read_two_sided, warn_unreadable_record
from iwae.results.record_files import read_record_arrays
from iwae.results.schema import Document, Method, Settings
from iwae.results.subjects import Subject, make_subject, subject_record_name, subject_unit_counts
from iwae.results.summaries import summarise_weights, summary_number
from iwae.runs.split_examples import split_examples
from iwae.runs.trained import trained_model_sha256
from iwae.typing import PRNGKey

SCHEDULES: dict[str, Callable[[int], np.ndarray]] = {
    "sigmoid": sigmoid_schedule,
    "linear": linear_schedule,
}

ADAPTIVE = "adaptive"
"""The schedule whose temperatures, like the step sizes, come from a pilot run."""

PILOT_EXAMPLES, PILOT_CHAINS = 32, 4
"""Training examples for tuning step sizes, and chains of each."""


@dataclass(frozen=True)
class Annealing:
    """Settings of annealed importance sampling.

    Attributes:
        temperatures: T; the cost is proportional to it.
        chains: per example.
        leapfrog: leapfrog steps of each HMC move.
        schedule: a name of `SCHEDULES`, `ADAPTIVE`, or the temperatures themselves, from 0 to 1.
        start: "posterior" for q(z|x), or "prior".
    """

    temperatures: int = 500
    chains: int = 16
    leapfrog: int = 10
    schedule: str | tuple[float, ...] = "sigmoid"
    start: str = "posterior"

    def check(self) -> None:
        """Raise UserError unless these settings are valid, at this length and a tenth of it."""
        if self.temperatures < 20:
            raise UserError(
                f"temperatures is {self.temperatures}; a tenth of them is run as well, and needs "
                "at least 2: give 20 or more"
            )
        require_positive("chains", self.chains)
        check_leapfrog(self.leapfrog)
        if self.start not in STARTS:
            raise UserError(f"no start {self.start!r}; known: {', '.join(STARTS)}")
        if self.schedule == ADAPTIVE:
            return
        if isinstance(self.schedule, str):
            if self.schedule not in SCHEDULES:
                known = ", ".join((*SCHEDULES, ADAPTIVE))
                raise UserError(f"no schedule {self.schedule!r}; known: {known}")
        elif len(self.schedule) != self.temperatures:
            raise UserError(
                f"temperatures is {self.temperatures}, but {len(self.schedule)} of them are given"
            )
        as_betas(self.betas(self.temperatures))

    def betas(self, temperatures: int) -> np.ndarray:
        """A fixed schedule of this many temperatures; a given one is thinned out evenly."""
        if isinstance(self.schedule, str):
            return SCHEDULES[self.schedule](temperatures)
        places = np.linspace(0, self.temperatures - 1, temperatures)
        return np.interp(places, np.arange(self.temperatures), self.schedule)

    def moves(self, chains: int, **path: np.ndarray) -> dict[str, Any]:
        """Arguments for the functions that anneal this number of chains along a path."""
        return {"chains": chains, "n_leapfrog": self.leapfrog, "start": self.start, **path}

    def values(self) -> Document:
        """The settings, for a record."""
        return asdict(self)

    def facts(self, subject: Subject) -> Document:
        """The facts about annealing, for a record of a split."""
        pilot = ais_pilot_facts(subject)
        return {"proposal": self.start, "annealing": self.values(), "pilot": pilot}

    def words(self) -> list[str]:
        """The settings, for the name of a record."""
        schedule = self.schedule if isinstance(self.schedule, str) else "given"
        lengths = [f"T{self.temperatures}", f"c{self.chains}", f"l{self.leapfrog}"]
        return [*lengths, schedule, self.start]


@float32
def anneal_run(
    run: Path,
    *,
    annealing: Annealing | None = None,
    tolerance: float = 0.5,
    **options: Unpack[SplitOptions],
) -> Document:
    """Log-likelihoods of every replicate of a run by annealed importance sampling.

    Runs T and T/10 temperatures with different keys, and says whether the two agree. Step sizes
    (and adaptive temperatures) are tuned on training examples, with yet another key, before
    anything is measured. Writes `RUN/evaluations/NAME.json` (the record, which is also returned)
    and `NAME.npz`: for R replicates and n examples `temperatures [2]`, `index [n]` in the split,
    `log_likelihood`, `ess` and `acceptance` `[R, 2, n]`, `betas_R_T [T]` and
    `step_sizes_R_T [T-1]`. A call that was stopped continues when it is repeated.

    Args:
        annealing: temperatures, chains and moves; by default `Annealing()`.
        tolerance: the largest acceptable error, nats; see `evaluation.convergence`.
        options: see `SplitOptions`.

    Raises:
        UserError: if the run, its weights, its data or the split are not there, or an option makes
            no sense.
    """
    annealing = annealing or Annealing()
    annealing.check()
    check_ais_tolerance(tolerance)
    subject = make_subject(Path(run), **options)
    return measure(
        subject,
        Method.ANNEALED,
        partial(_measure, annealing=annealing, tolerance=tolerance),
        file=subject_record_name(subject, "ais", *annealing.words()),
        shared={**annealing.facts(subject), "k": annealing.chains},
        arrays={"temperatures": np.asarray(_lengths(annealing)), "index": subject.places},
        rows=("by_temperatures", "temperatures"),
    )


def check_ais_tolerance(tolerance: float) -> None:
    """Raise UserError unless it is a positive number of nats."""
    if not 0 < tolerance < float("inf"):
        raise UserError(f"tolerance is {tolerance}; it must be a positive number of nats")


def _lengths(annealing: Annealing) -> tuple[int, int]:
    """Numbers of temperatures: T/10 and T."""
    return annealing.temperatures // 10, annealing.temperatures


def _measure(one: Replicate, annealing: Annealing, tolerance: float) -> Measured:
    lengths = _lengths(annealing)
    both, paths = zip(*(_at_length(one, annealing, length) for length in lengths), strict=True)
    rows = [_length_row(*values, annealing) for values in zip(lengths, both, paths, strict=True)]
    shorter, longer = (values["log_likelihood"] for values in both)
    gap, *_ = _known_gap(one, annealing, Method.BIDIRECTIONAL) or (None,)
    real = _known_gap(one, annealing, Method.SANDWICH) or ()
    record = {
        **rows[-1],
        "k": annealing.chains,
        "by_temperatures": rows,
        "verdict": _verdict_fields(convergence_verdict(longer, shorter, gap, tolerance, *real)),
        **subject_unit_counts(one.subject, one.model)[0],
    }
    stacked = {
        name: np.stack([values[name] for values in both])
        for name in ("log_likelihood", "monte_carlo_error", "ess", "acceptance")
    }
    own: dict[str, np.ndarray] = {}
    for length, path in zip(lengths, paths, strict=True):
        own |= path.arrays(f"{one.number}_{length}")
    return Measured(record, stacked, own)


def _known_gap(
    one: Replicate, annealing: Annealing, method: Method
) -> tuple[Float[np.ndarray, " n"], float] | None:
    """Gaps between bounds from both sides by the same annealing of the same model, nats, if known.

    Returns:
        The gap of each example, from the record with the most, and k-hat of the ratios behind the
        upper bounds, nan where it is unknown or not needed.
    """
    found, subject, number = [], one.subject, one.number
    digest = trained_model_sha256(subject.run, subject.weights, number)
    settings = Settings(**annealing.values())
    where = subject.split, subject.weights, subject.pruned
    for path, record in read_two_sided(subject.run, method, settings, *where):
        if record.digests[number : number + 1] != [digest]:
            continue
        values = read_record_arrays(path, warn_unreadable_record, ("lower", "upper"))
        if values is not None:
            lower, upper = values["lower"][number], values.get("mixed_upper", values["upper"])
            tail = ratio_tail(values["ratio"][number], lower) if "ratio" in values else np.nan
            found.append((upper[number] - lower, tail))
    return max(found, key=lambda known: len(known[0]), default=None)


class Frozen(NamedTuple):
    """Temperatures `[T]` and step sizes `[T-1]`, frozen before anything is measured."""

    betas: np.ndarray
    step_size: np.ndarray

    def arrays(self, suffix: str) -> dict[str, np.ndarray]:
        """The path, for the values of a record."""
        return {f"betas_{suffix}": self.betas, f"step_sizes_{suffix}": self.step_size}


def freeze_ais(
    one: Replicate,
    annealing: Annealing,
    length: int,
    examples: Callable[[], np.ndarray],
    **settings: Any,
) -> Frozen:
    """Tune step sizes and adaptive temperatures on examples that are not measured.

    Args:
        length: the number of temperatures.
        settings: everything else that the results depend on, besides model, seed and annealing.
    """
    key, _ = ais_keys(one.subject.seed, length)
    settings = {**annealing.values(), "temperatures": length, **settings}

    def adapted() -> np.ndarray:
        betas_key = jax.random.fold_in(key, np.uint32(_BETAS_STREAM))
        more = annealing.moves(PILOT_CHAINS)
        return adaptive_schedule(one.model, examples(), betas_key, length, **more)

    def tuned() -> np.ndarray:
        more = annealing.moves(PILOT_CHAINS, betas=betas)
        return tune_step_size(one.model, examples(), key, **more)

    if annealing.schedule == ADAPTIVE:
        betas = one.array(adapted, method="temperatures", **settings)
    else:
        betas = annealing.betas(length)
    return Frozen(betas, one.array(tuned, method="step sizes", **settings))


# Folded into the pilot's key, which itself tunes the step sizes; counted from the end, since the
# pilot's examples fold in numbers from 0 on.
_BETAS_STREAM = 2**32 - 1


def _at_length(
    one: Replicate, annealing: Annealing, length: int
) -> tuple[dict[str, np.ndarray], Frozen]:
    """The values of each example, and the path."""
    path = freeze_split_ais(one, annealing, length)
    key = ais_keys(one.subject.seed, length)[1]
    moves = annealing.moves(annealing.chains, **path._asdict())
    slabs = partial(annealed_log_likelihood_slabs, one.model, one.subject.data, key, **moves)
    settings = {**annealing.values(), "temperatures": length, "batches": BATCHES}
    return one.values(f"{length} temperatures", slabs, method=Method.ANNEALED, **settings), path


def freeze_split_ais(one: Replicate, annealing: Annealing, length: int) -> Frozen:
    """`freeze_ais` on examples of a split that is not measured."""
    pilot = _pilot_split(one.subject)
    return freeze_ais(one, annealing, length, lambda: ais_pilot_examples(one.subject), pilot=pilot)


def ais_keys(seed: int, length: int) -> tuple[PRNGKey, PRNGKey]:
    """Keys of the pilot and of the measurement, for a schedule of `length` temperatures."""
    pilot_key, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), length))
    return pilot_key, key


def _pilot_split(subject: Subject) -> str:
    """The split of the pilot's examples, which is not the measured one."""
    return "train" if subject.split != "train" else "validation"


def ais_pilot_facts(subject: Subject) -> Document:
    """The facts about the pilot's examples, for a record."""
    return {"split": _pilot_split(subject), "examples": PILOT_EXAMPLES}


def ais_pilot_examples(subject: Subject) -> np.ndarray:
    """Examples for tuning step sizes, which are not measured."""
    examples = split_examples(subject.dataset, _pilot_split(subject))
    if len(examples) == 0:
        raise UserError(
            "step sizes are tuned on examples that are not measured: to measure the training "
            "split, hold out a validation split"
        )
    return examples[np.sort(choose(len(examples), min(PILOT_EXAMPLES, len(examples))))]


def _length_row(
    length: int, values: dict[str, np.ndarray], path: Frozen, annealing: Annealing
) -> Document:
    """The row of a record for one number of temperatures."""
    return {
        "temperatures": length,
        **summarise_weights(values, annealing.chains),
        "acceptance_mean": float(values["acceptance"].mean()),
        "acceptance_min": float(values["acceptance"].min()),
        "step_size_min": float(path.step_size.min()),
        "step_size_max": float(path.step_size.max()),
    }


def _verdict_fields(found: Verdict) -> Document:
    """The fields of a verdict, for a record."""
    return {
        "word": found.status,
        "reason": found.reason,
        "difference": summary_number(found.difference.mean),
        "difference_stderr": summary_number(found.difference.stderr),
        "bdmc_gap": summary_number(found.gap),
        "sandwich_gap": summary_number(found.sandwich_gap),
        "tolerance": found.tolerance,
    }
