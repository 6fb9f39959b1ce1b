"""`iwae evaluate`."""

import contextlib
import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

import iwae
from iwae.cli import parsing
from iwae.errors import UserError
from iwae.results.text import describe

Method = Literal["is", "ais", "bdmc", "rate-distortion", "information"]

_SUBSET, _CHAINS = ("split", "examples"), ("temperatures", "chains", "leapfrog")
_PATH = (*_CHAINS, "schedule", "start")

METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "is": ("evaluate_run", (*_SUBSET, "k")),
    "ais": ("anneal_run", (*_SUBSET, *_PATH, "tolerance")),
    "bdmc": ("bdmc_run", ("examples", "k", *_PATH)),
    "rate-distortion": ("rate_distortion_run", (*_SUBSET, *_CHAINS)),
    "information": ("information_run", (*_SUBSET, "k")),
}
"""The function of `iwae` for each method, and the options that only some methods take."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure the models of a run. Writes a record and the per-example values to RUN/evaluations.

    What each method measures:
    - is: log-likelihoods by importance sampling, and active units
    - ais: log-likelihoods by annealed importance sampling at two lengths, with a verdict
    - bdmc: lower and upper bounds, on examples simulated from the model
    - rate-distortion: the curve from the prior to the posterior and beyond
    - information: KL, bounds on the mutual information, and a decomposition of the ELBO's gap

    To resume an evaluation that was stopped, repeat the command.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    method: Method = "is"
    """Method to measure with; see above."""
    split: Literal["train", "validation", "test"] | None = None
    """Split to measure (default: test)."""
    weights: Literal["final", "best"] = "final"
    """The final weights, or those with the best validation bound."""
    k: tuple[int, ...] | None = None
    """is, bdmc, information: samples per example; is takes several (default: 5000, 5000, 16)."""
    temperatures: int | None = None
    """ais, bdmc, rate-distortion: number of temperatures; cost is proportional (default: 500)."""
    chains: int | None = None
    """ais, bdmc, rate-distortion: chains per example (default: 16)."""
    leapfrog: int | None = None
    """ais, bdmc, rate-distortion: leapfrog steps per move (default: 10)."""
    schedule: str | None = None
    """ais, bdmc: sigmoid, linear, or a text file of temperatures from 0 to 1 (default: sigmoid)."""
    start: Literal["posterior", "prior"] | None = None
    """ais, bdmc: start chains from q(z|x) or from the prior (default: posterior)."""
    tolerance: float | None = None
    """ais: maximum acceptable error, in nats, for the verdict `converged` (default: 0.5)."""
    examples: int | None = None
    """Size of a seeded random subset (default: all); bdmc: examples to simulate (default: 100)."""
    pruned: bool = False
    """Measure the models with their inactive units removed."""
    seed: int = 0
    """Random seed of samples, chains and the subset."""
    batch_size: int | None = None
    """Examples per batch; affects speed, not results (default: automatic)."""
    data_dir: Path | None = None
    """Folder to search first for data files (default: $IWAE_DATA)."""
    json: bool = False
    """Print exactly one JSON object to standard output."""
    quiet: bool = False
    """Show no progress."""


def evaluate(arguments: Sequence[str]) -> int:
    """`iwae evaluate`."""
    options = parsing.parse(Evaluate, "evaluate", arguments)
    function, chosen = _method_options(options)
    parsing.set_up_jax()
    if options.method in ("ais", "bdmc"):
        path = {name: chosen.pop(name) for name in _PATH if name in chosen}
        chosen["annealing"] = _annealing(path)
    from iwae.runs.progress import tracker

    measured = partial(
        getattr(iwae, function),
        options.run,
        weights=options.weights,
        pruned=options.pruned,
        seed=options.seed,
        batch_size=options.batch_size,
        data_dir=options.data_dir,
        track=tracker(quiet=options.quiet),
        **chosen,
    )
    return print_measured(measured, as_json=options.json)


def print_measured(measure: Callable[[], dict[str, Any]], *, as_json: bool) -> int:
    """Print a measurement's record and return the exit status; a stop keeps finished work."""
    try:
        with sigterm_as_ctrl_c():
            record = measure()
    except KeyboardInterrupt as stopped:
        number = signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT
        print(f"stopped by {number.name}; repeat the command to resume", file=sys.stderr)
        return 128 + number
    print(json.dumps(record, allow_nan=False) if as_json else describe(record))
    return 0


def _method_options(options: Evaluate) -> tuple[str, dict[str, Any]]:
    """Return the function of a method and the options given for it."""
    function, allowed = METHODS[options.method]
    specific = {name for _, names in METHODS.values() for name in names}
    given = {name: value for name in specific if (value := getattr(options, name)) is not None}
    for name in given:
        if name not in allowed:
            takers = [method for method, (_, names) in METHODS.items() if name in names]
            raise UserError(
                f"--{name} does not apply to --method {options.method}; it applies to "
                f"{', '.join(takers)}"
            )
    if options.method == "is" and "k" in given:
        given["ks"] = given.pop("k")
    elif "k" in given:
        if len(given["k"]) != 1:
            raise UserError(f"--method {options.method} takes one --k")
        (given["k"],) = given["k"]
    return function, given


def _annealing(given: dict[str, Any]) -> Any:
    """Build the annealing settings; a schedule without a known name is a file."""
    from iwae.results.annealed import SCHEDULES, Annealing

    if given.get("schedule", "sigmoid") not in SCHEDULES:
        given["schedule"] = betas = _temperatures(given["schedule"], SCHEDULES)
        given.setdefault("temperatures", len(betas))
    return Annealing(**given)


def _temperatures(name: str, known: Iterable[str]) -> tuple[float, ...]:
    """Read temperatures from a text file."""
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"unknown schedule {name!r}: give {', '.join(known)}, or a file of temperatures"
        )
    try:
        return tuple(float(word) for word in path.read_text().replace(",", " ").split())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a list of numbers: {error}") from error


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end an evaluation as Ctrl-C does: finished work is kept."""

    def stop(*_: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Terminated(KeyboardInterrupt):
    """SIGTERM as an exception."""
