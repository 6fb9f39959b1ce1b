"""`iwae evaluate`, `classify`, `calibrate`, `gradients`, `compare`: measure and compare runs."""

import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import iwae
from iwae.cli import parsing
from iwae.cli.interrupts import Terminated, sigterm_as_ctrl_c
from iwae.cli.jax_setup import set_up_jax
from iwae.errors import UserError
from iwae.results.description import comparison_description, describe, gradients_description
from iwae.wording import shorten_value

Method = Literal["is", "ais", "bdmc", "sandwich", "rate-distortion", "information"]

_SUBSET, _CHAINS = ("split", "examples"), ("temperatures", "chains", "leapfrog")
_PATH = (*_CHAINS, "schedule", "start")

METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "is": ("evaluate_run", (*_SUBSET, "k", "binarizations")),
    "ais": ("anneal_run", (*_SUBSET, *_PATH, "tolerance")),
    "bdmc": ("bdmc_run", ("examples", "k", *_PATH)),
    "sandwich": ("sandwich_run", (*_SUBSET, "k", *_PATH, "tolerance")),
    "rate-distortion": ("rate_distortion_run", (*_SUBSET, *_CHAINS)),
    "information": ("information_run", (*_SUBSET, "k")),
}
"""The function of `iwae` for each method, and the options that only some methods take."""

SPECIFIC = {name for _, names in METHODS.values() for name in names}
"""All options that only some methods take."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(parsing.RunOptions):
    """Measure the models of a run. Writes a record and the per-example values to RUN/evaluations.

    What each method measures:
    - is: log-likelihoods by importance sampling, and active units
    - ais: log-likelihoods by annealed importance sampling at two lengths, with a verdict
    - bdmc: lower and upper bounds, on examples simulated from the model
    - sandwich: lower and upper bounds, on real examples
    - rate-distortion: the curve from the prior to the posterior and beyond
    - information: KL, bounds on the mutual information, and a decomposition of the ELBO's gap

    To resume an evaluation that was stopped, repeat the command.
    """

    method: Method = "is"
    """Method to measure with; see above."""
    split: Literal["train", "validation", "test"] | None = None
    """Split to measure (default: test)."""
    k: tuple[int, ...] | None = None
    """is, bdmc, sandwich, information: samples per example; is takes several (default: 5000;
    information: 16)."""
    binarizations: int | None = None
    """is: draws of the test set's pixels to measure, for the error of a single one (default: 1)."""
    temperatures: int | None = None
    """All but is, information: number of temperatures; cost is proportional (default: 500)."""
    chains: int | None = None
    """All but is, information: chains per example (default: 16)."""
    leapfrog: int | None = None
    """All but is, information: leapfrog steps per move (default: 10)."""
    schedule: str | None = None
    """ais, bdmc, sandwich: sigmoid, linear, adaptive, or a text file of temperatures from 0 to 1
    (default: sigmoid)."""
    start: Literal["posterior", "prior"] | None = None
    """ais, bdmc, sandwich: start chains from q(z|x) or from the prior (default: posterior)."""
    tolerance: float | None = None
    """ais, sandwich: maximum acceptable error, in nats, to say `converged` (default: 0.5)."""
    examples: int | None = None
    """Size of a seeded random subset (default: all); bdmc: examples to simulate (default: 100)."""
    pruned: bool = False
    """Measure the models with their inactive units removed."""
    seed: int = 0
    """Random seed of samples, chains and the subset."""
    batch_size: int | None = None
    """Examples per batch; affects speed, not results (default: automatic)."""
    data_dir: parsing.DataDir = None
    json: parsing.Json = False
    quiet: parsing.Quiet = False


def evaluate_command(arguments: Sequence[str]) -> int:
    """`iwae evaluate`."""
    options = parsing.parse(Evaluate, "evaluate", arguments)
    chosen = _method_options(options)
    set_up_jax()
    function, names = METHODS[options.method]
    if "schedule" in names:
        path = {name: chosen.pop(name) for name in _PATH if name in chosen}
        chosen["annealing"] = _annealing_settings(path)
    common = vars(options).keys() - SPECIFIC - {"method"}
    chosen |= {name: getattr(options, name) for name in common}
    return _run_measurement(getattr(iwae, function), **chosen)


def _run_measurement(
    function: Callable[..., dict[str, Any]], *, json: bool, quiet: bool, **options: Any
) -> int:
    """Measure, print the record and return the exit status; a stop keeps finished work."""
    from iwae.runs.measurement_progress import measurement_progress

    try:
        with sigterm_as_ctrl_c():
            record = function(track=measurement_progress(quiet=quiet), **options)
    except KeyboardInterrupt as stopped:
        number = signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT
        print(f"stopped by {number.name}; repeat the command to resume", file=sys.stderr)
        return 128 + number
    return _print(record, describe, as_json=json)


def _print(record: dict[str, Any], words: Callable[[dict[str, Any]], str], *, as_json: bool) -> int:
    """Print a record as JSON or in words; returns the exit status."""
    print(json.dumps(record, allow_nan=False) if as_json else words(record))
    return 0


def _method_options(options: Evaluate) -> dict[str, Any]:
    """The options given that only some methods take; UserError for one that this does not take."""
    given = {name: value for name in SPECIFIC if (value := getattr(options, name)) is not None}
    for name in given:
        takers = [method for method, (_, names) in METHODS.items() if name in names]
        if options.method not in takers:
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
    return given


def _annealing_settings(given: dict[str, Any]) -> Any:
    """Build the annealing settings; any other name of a schedule is that of a file."""
    from iwae.results.ais import ADAPTIVE, SCHEDULES, Annealing

    known = (*SCHEDULES, ADAPTIVE)
    if given.get("schedule", "sigmoid") not in known:
        given["schedule"] = betas = _temperatures(given["schedule"], known)
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
        raise UserError(f"{path} is not a list of numbers: {shorten_value(error)}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classify(parsing.RunOptions):
    """Measure how well a conditional run classifies examples and detects other data.

    Each example is scored under every label; p(y|x) follows from Bayes' rule. Writes a record and
    the per-example values to RUN/evaluations: accuracy, log p(y|x), log p(x|y), log p(x), and the
    confusion matrix.
    """

    run: tyro.conf.Positional[Path]
    """Folder of a run trained with --conditional."""
    split: Literal["train", "validation", "test"] = "test"
    """Split to classify."""
    k: int = 100
    """Importance samples per example and label."""
    against: str | None = None
    """Other data (name or file): how often an example is likelier than one of theirs (AUROC)."""
    examples: int | None = None
    """Use a seeded random subset of this size, of the other data too (default: all)."""
    seed: int = 0
    """Random seed of the importance samples and the subsets."""
    batch_size: int | None = None
    """Examples per batch; affects speed, not results (default: automatic)."""
    data_dir: parsing.DataDir = None
    json: parsing.Json = False
    quiet: parsing.Quiet = False


def classify_command(arguments: Sequence[str]) -> int:
    """`iwae classify`."""
    options = parsing.parse(Classify, "classify", arguments)
    set_up_jax()
    return _run_measurement(iwae.classify_run, **vars(options))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrate(parsing.RunOptions):
    """Measure the calibration of q(z|x) on examples simulated from the model.

    Ranks the true latents among draws of q(z|x), and among the same draws with their weights; ranks
    are uniform if q is the posterior. Writes a record with coverage and the worst units, and a
    figure with the band of exact calibration, to RUN/evaluations.
    """

    k: int = 1000
    """Draws of q(z|x) for each example."""
    examples: int = 1000
    """Examples to simulate."""
    pruned: bool = False
    """Measure the models with their inactive units removed."""
    seed: int = 0
    """Random seed of examples and draws."""
    batch_size: int | None = None
    """Examples per batch; affects speed, not results (default: automatic)."""
    data_dir: parsing.DataDir = None
    json: parsing.Json = False
    quiet: parsing.Quiet = False


def calibrate_command(arguments: Sequence[str]) -> int:
    """`iwae calibrate`."""
    options = parsing.parse(Calibrate, "calibrate", arguments)
    set_up_jax()
    from iwae.reports.recorded_figures import draw_recorded_calibration

    status = _run_measurement(iwae.calibrate_run, **vars(options))
    draw_recorded_calibration(options.run)
    return status


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gradients(parsing.RunOptions):
    """Measure signal, noise and bias of gradient estimators on the models of a run.

    For each k, estimator and group of parameters: mean, variance, signal-to-noise ratio, bias
    against a reference by a paired test, and time and memory per gradient. Writes a record and a
    figure to RUN/evaluations.
    """

    k: tuple[int, ...] = (1, 10, 100)
    """Number of particles, one or several."""
    gradients: tuple[str, ...] | None = None
    """Estimators (default: all that apply to the objective; vimco and other score-function ones
    only with discrete latents; see `iwae objectives`)."""
    backward: tuple[int, ...] = ()
    """Also measure each estimator through this many particles, where k is larger."""
    objective: str | None = None
    """Objective whose gradient to measure (default: the run's)."""
    m: int | None = None
    """miwae, piwae: number of groups of k samples (default: the run's)."""
    alpha: float | None = None
    """vr-iwae, and the gradient dreg-alpha (default: the run's)."""
    beta: float | None = None
    """ciwae: weight of the ELBO (default: the run's)."""
    gamma: float | None = None
    """The gradient ovis: 0 is unbiased, 1 adds wake-phi (default: the run's)."""
    reference: str | None = None
    """Estimator to measure biases against (default: the objective's plain one); none: no biases, in
    a third of the time."""
    slope_from: int = 1
    """Least k of the fit of signal over noise by a power of k."""
    examples: int = 20
    """Examples in the batch, a seeded random subset."""
    draws: int = 200
    """Draws of each gradient: a multiple of 10, at least 20."""
    split: Literal["train", "validation", "test"] = "train"
    """Split that the batch is drawn from."""
    seed: int = 0
    """Random seed."""
    data_dir: parsing.DataDir = None
    json: parsing.Json = False
    quiet: parsing.Quiet = False


def gradients_command(arguments: Sequence[str]) -> int:
    """`iwae gradients`."""
    options = parsing.parse(Gradients, "gradients", arguments)
    set_up_jax()
    from iwae.reports.recorded_figures import draw_recorded_gradients
    from iwae.runs.measurement_progress import measurement_progress

    chosen = dict(vars(options))
    run, as_json, quiet = (chosen.pop(name) for name in ("run", "json", "quiet"))
    track = measurement_progress(quiet=quiet)
    record = iwae.gradients_run(run, ks=chosen.pop("k"), track=track, **chosen)
    draw_recorded_gradients(run)
    return _print(record, gradients_description, as_json=as_json)


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare runs with the first one, example by example, from their records."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Folders of runs that `iwae evaluate` has measured: two or more, or one with both weights."""
    split: Literal["train", "validation", "test"] = "test"
    """Split to compare."""
    weights: parsing.SomeWeights = "final"
    pruned: bool = False
    """Compare the models with their inactive units removed."""
    estimator: str | None = None
    """Estimator, such as L_5000 or AIS_500 (default: the tightest that all runs have)."""
    csv: Path | None = None
    """Also write every number in the records of the runs to this file, a row for each."""
    json: parsing.Json = False


def compare_command(arguments: Sequence[str]) -> int:
    """`iwae compare`."""
    options = parsing.parse(Compare, "compare", arguments)
    from iwae.results.frame import write_results_csv

    chosen = dict(vars(options))
    as_json, csv = chosen.pop("json"), chosen.pop("csv")
    if csv is not None:
        write_results_csv(options.runs, csv)
    return _print(iwae.compare(**chosen), comparison_description, as_json=as_json)
