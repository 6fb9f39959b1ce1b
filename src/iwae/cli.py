"""The command line: parse, call one library function, print.

JAX is imported by the commands that compute, so that help and lists answer at once.
"""

import contextlib
import dataclasses
import difflib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import ValidationError

from iwae._types import UserError
from iwae.config import TrainConfig, explain, read_config
from iwae.declaration import GRADIENTS, OBJECTIVES
from iwae.describe import describe, describe_comparison, describe_gradients
from iwae.presets import PRESETS, preset

USAGE_ERROR, FAILURE = 2, 1


# --- train ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a model, or go on with a run.

    - iwae train --dataset mnist --objective iwae --k 50 --layers 2 --out RUN
    - iwae train FILE.toml --k 5 --out RUN
    - iwae train --preset table1/mnist/1l/iwae-k5 --out RUN
    - iwae train --resume RUN
    """

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the run, which must be new or empty."""
    resume: Path | None = None
    """Go on with the run in this folder, exactly where it stopped."""
    stage: int | None = None
    """With --resume: go back to the end of this stage of the schedule (0 is the first)."""
    preset: str | None = None
    """Start from a published experiment; see `iwae presets`."""
    data_dir: Path | None = None
    """Where the data files are looked for first; also IWAE_DATA."""
    quiet: bool = False
    """Print nothing but warnings and errors."""
    verbose: bool = False
    """Print a line per epoch also on a terminal."""


def train(arguments: Sequence[str]) -> int:
    """`iwae train`."""
    base, rest = _base_config(arguments)
    options = _parse(Train, "train", rest, default=Train(base))
    if options.quiet and options.verbose:
        raise UserError("--quiet and --verbose contradict each other: give one")
    if options.resume is not None:
        _refuse_all_but(("resume", "stage", "data-dir", "quiet", "verbose"), arguments)
    _set_up_jax()
    from iwae.runs import Stopped, resume_run, start_run
    from iwae.training import NonFiniteError

    if options.resume is not None:
        run, reports = options.resume, resume_run(options.resume, options.data_dir, options.stage)
    elif options.stage is not None:
        raise UserError("--stage goes with --resume RUN")
    elif options.out is None:
        raise UserError("name a folder for the run: --out RUN")
    elif options.preset and preset(options.preset).needs and options.config.init_from is None:
        needs = preset(options.preset).needs
        raise UserError(f"{options.preset} starts from a finished run of {needs}: --init-from RUN")
    else:
        run, reports = options.out, start_run(options.config, options.out, options.data_dir)
    from iwae.progress import show_training

    try:
        show_training(reports, run, quiet=options.quiet, verbose=options.verbose)
    except Stopped as stopped:
        print(f"{stopped}; go on with: iwae train --resume {run}", file=sys.stderr)
        return 128 + stopped.signal_number
    except NonFiniteError as error:
        print(f"iwae: {error}; the last good state is in {run}/checkpoints", file=sys.stderr)
        return FAILURE
    if not options.quiet:
        print(f"trained models are in {run}/models; measure them with: iwae evaluate {run}")
    return 0


def _refuse_all_but(names: Sequence[str], arguments: Sequence[str]) -> None:
    """Raise UserError if a run that goes on is also told what it is, be it what it is anyway."""
    given = [word for word in arguments if word.startswith("--")]
    for word in given if arguments[0].startswith("-") else arguments[:1]:
        name = word.partition("=")[0].lstrip("-").replace("_", "-").removeprefix("no-")
        if not word.startswith("--") or name not in names:
            raise UserError(
                f"--resume takes its configuration from the run: give no other options, not {word}"
            )


def _base_config(arguments: Sequence[str]) -> tuple[TrainConfig, list[str]]:
    """The configuration that options are changes of: a file's, a preset's or the defaults."""
    rest = list(arguments)
    file = rest.pop(0) if rest and not rest[0].startswith("-") else None
    name = None
    for i, argument in enumerate(rest):
        if argument == "--preset" and i + 1 < len(rest):
            name = rest[i + 1]
        elif argument.startswith("--preset="):
            name = argument.partition("=")[2]
    if file is not None and name is not None:
        raise UserError("give an experiment file or --preset, not both")
    if file is not None:
        return read_config(Path(file)), rest
    return (preset(name).config() if name is not None else TrainConfig()), rest


# --- evaluate -------------------------------------------------------------------------------

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
"""A function of `iwae.measure` for each method, and the options that only some methods take."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure the models of a run. Writes a record and the per-example values to RUN/evaluations.

    What each method measures:

    - is: log-likelihoods by importance sampling, and active units
    - ais: log-likelihoods by annealed importance sampling at two lengths, with a verdict
    - bdmc: bounds from both sides, on examples that the model makes itself
    - rate-distortion: the curve from the prior to the posterior and beyond
    - information: KL, bounds on the mutual information, and where the gap of the ELBO goes

    An evaluation that was stopped goes on where it was if it is given again.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    method: Method = "is"
    """How to measure."""
    split: Literal["train", "validation", "test"] | None = None
    """What to measure on (default: test)."""
    weights: Literal["final", "best"] = "final"
    """The last weights, or those of the best validation bound."""
    k: tuple[int, ...] | None = None
    """is, bdmc, information: samples per example; is takes several (default: 5000, 5000, 16)."""
    temperatures: int | None = None
    """ais, bdmc, rate-distortion: the cost is proportional to them (default: 500)."""
    chains: int | None = None
    """ais, bdmc, rate-distortion: chains of each example (default: 16)."""
    leapfrog: int | None = None
    """ais, bdmc, rate-distortion: leapfrog steps of a move (default: 10)."""
    schedule: str | None = None
    """ais, bdmc: sigmoid, linear, or a text file of temperatures from 0 to 1 (default: sigmoid)."""
    start: Literal["posterior", "prior"] | None = None
    """ais, bdmc: chains start from q(z|x) or from the prior (default: posterior)."""
    tolerance: float | None = None
    """ais: the largest error, in nats, that `converged` allows for (default: 0.5)."""
    examples: int | None = None
    """A seeded random subset of so many instead of all; bdmc: how many to draw (default: 100)."""
    pruned: bool = False
    """Measure the models with their inactive units removed."""
    seed: int = 0
    """Seed of all random numbers: samples, chains and the subset."""
    batch_size: int | None = None
    """Examples at a time; changes the speed, not the numbers."""
    data_dir: Path | None = None
    """Where the data files are looked for first; also IWAE_DATA."""
    json: bool = False
    """Print exactly one JSON object on standard output."""
    quiet: bool = False
    """No progress."""


def evaluate(arguments: Sequence[str]) -> int:
    """`iwae evaluate`."""
    options = _parse(Evaluate, "evaluate", arguments)
    function, chosen = _method_options(options)
    _set_up_jax()
    if options.method in ("ais", "bdmc"):
        path = {name: chosen.pop(name) for name in _PATH if name in chosen}
        chosen["annealing"] = _annealing(path)
    from iwae import measure
    from iwae.progress import tracker

    try:
        with _sigterm_as_ctrl_c():
            record = getattr(measure, function)(
                options.run,
                weights=options.weights,
                pruned=options.pruned,
                seed=options.seed,
                batch_size=options.batch_size,
                data_dir=options.data_dir,
                track=tracker(quiet=options.quiet),
                **chosen,
            )
    except KeyboardInterrupt as stopped:
        number = signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT
        print(f"stopped by {number.name}; the same command goes on from there", file=sys.stderr)
        return 128 + number
    print(json.dumps(record, allow_nan=False) if options.json else describe(record))
    return 0


def _method_options(options: Evaluate) -> tuple[str, dict[str, Any]]:
    """The function of a method, and the options that were given for it."""
    function, allowed = METHODS[options.method]
    some = {name for _, names in METHODS.values() for name in names}
    given = {name: value for name in some if (value := getattr(options, name)) is not None}
    for name in given:
        if name not in allowed:
            takers = [method for method, (_, names) in METHODS.items() if name in names]
            raise UserError(
                f"--{name} does not go with --method {options.method}; it goes with "
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
    """How to anneal; a schedule that is no name is a file."""
    from iwae.measure import SCHEDULES, Annealing

    if given.get("schedule", "sigmoid") not in SCHEDULES:
        given["schedule"] = betas = _temperatures(given["schedule"], SCHEDULES)
        given.setdefault("temperatures", len(betas))
    return Annealing(**given)


def _temperatures(name: str, known: Iterable[str]) -> tuple[float, ...]:
    """The numbers in a text file."""
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"no schedule {name!r}: it is {', '.join(known)}, or a file of temperatures"
        )
    try:
        return tuple(float(word) for word in path.read_text().replace(",", " ").split())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no list of numbers: {error}") from error


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM ends an evaluation as Ctrl-C does: what is done is kept."""

    def stop(*_: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception."""


# --- the rest -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Compare:
    """The difference of runs to the first one, example by example, from their records."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of two or more runs that `iwae evaluate` has measured."""
    split: Literal["train", "validation", "test"] = "test"
    """Which examples."""
    weights: Literal["final", "best"] = "final"
    """The last weights, or those of the best validation bound."""
    pruned: bool = False
    """The models without their inactive units."""
    estimator: str | None = None
    """Such as L_5000 or AIS_500 (default: the tightest that all runs have)."""
    json: bool = False
    """Print exactly one JSON object on standard output."""


def compare(arguments: Sequence[str]) -> int:
    """`iwae compare`."""
    options = _parse(Compare, "compare", arguments)
    from iwae import measure

    record = measure.compare(
        options.runs,
        split=options.split,
        weights=options.weights,
        pruned=options.pruned,
        estimator=options.estimator,
    )
    print(json.dumps(record, allow_nan=False) if options.json else describe_comparison(record))
    return 0


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Signal, noise and bias of gradient estimators at the models of a run.

    For each k and estimator, and each group of parameters: mean, variance, signal-to-noise ratio,
    bias against a reference by a paired test, and time and memory of one gradient. Writes a record
    and a figure to RUN/evaluations.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    k: tuple[int, ...] = (1, 10, 100)
    """Particles, one or several."""
    gradients: tuple[str, ...] | None = None
    """Estimators (default: all that go with the objective; `iwae objectives` lists them)."""
    objective: str | None = None
    """The bound whose gradient it is (default: the run's)."""
    m: int | None = None
    """miwae, piwae: groups of k samples (default: the run's)."""
    alpha: float | None = None
    """vr-iwae, and the gradient dreg-alpha (default: the run's)."""
    beta: float | None = None
    """ciwae: the share of the elbo (default: the run's)."""
    reference: str | None = None
    """What biases are measured against (default: the objective's plain gradient)."""
    examples: int = 20
    """Examples of the batch, a seeded random subset."""
    draws: int = 200
    """Draws of each gradient."""
    split: Literal["train", "validation", "test"] = "train"
    """Where the batch is from."""
    weights: Literal["final", "best"] = "final"
    """The last weights, or those of the best validation bound."""
    seed: int = 0
    """Seed of all random numbers."""
    data_dir: Path | None = None
    """Where the data files are looked for first; also IWAE_DATA."""
    json: bool = False
    """Print exactly one JSON object on standard output."""
    quiet: bool = False
    """No progress."""


def gradients(arguments: Sequence[str]) -> int:
    """`iwae gradients`."""
    options = _parse(Gradients, "gradients", arguments)
    _set_up_jax()
    from iwae.measure import gradients_run
    from iwae.progress import tracker

    chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    run, as_json, quiet = (chosen.pop(name) for name in ("run", "json", "quiet"))
    record = gradients_run(run, ks=chosen.pop("k"), track=tracker(quiet=quiet), **chosen)
    print(json.dumps(record, allow_nan=False) if as_json else describe_gradients(record))
    return 0


def _matching(table: Iterable[str], pattern: str, kind: str) -> list[str]:
    """The names that match a pattern, or UserError if none does."""
    names = [name for name in table if fnmatch(name, pattern)]
    if not names:
        raise UserError(f"no {kind} matches {pattern!r}; all: `iwae {kind}s`")
    return names


@dataclasses.dataclass(frozen=True)
class Objectives:
    """List what can be climbed, and how."""

    pattern: tyro.conf.Positional[str] = "*"
    """Only those whose names match, e.g. '*iwae'."""


def objectives(arguments: Sequence[str]) -> int:
    """`iwae objectives`."""
    options = _parse(Objectives, "objectives", arguments)
    for name in _matching(OBJECTIVES, options.pattern, "objective"):
        entry = OBJECTIVES[name]
        print(f"{name:15} {entry.formula}")
        print(f"{'':15} bounds {entry.bounds}; {entry.source}")
        needed = [f"--{o.replace('_', '-')}" for o in ("k", *entry.options)]
        print(f"{'':15} gradients {', '.join(entry.gradients)}; options {' '.join(needed)}")
    print("\ngradients (a_i, h_i: first and second derivatives of the bound in log w_i)")
    for name, (words, unbiased, source) in GRADIENTS.items():
        print(f"{name:15} {words}; unbiased for {unbiased}; {source}")
    return 0


@dataclasses.dataclass(frozen=True)
class Figures:
    """Draw the pictures of a run into RUN/figures."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    weights: Literal["final", "best"] = "final"
    """The last weights, or those of the best validation bound."""
    data_dir: Path | None = None
    """Where the data files are looked for first; also IWAE_DATA."""


def draw_figures(arguments: Sequence[str]) -> int:
    """`iwae figures`."""
    options = _parse(Figures, "figures", arguments)
    _set_up_jax()
    from iwae.gallery import draw_run

    for path in draw_run(options.run, weights=options.weights, data_dir=options.data_dir):
        print(path)
    return 0


@dataclasses.dataclass(frozen=True)
class Presets:
    """List the published experiments that `iwae train --preset NAME` runs."""

    pattern: tyro.conf.Positional[str] = "*"
    """Only those whose names match, e.g. 'table1/mnist/*'."""


def presets(arguments: Sequence[str]) -> int:
    """`iwae presets`."""
    options = _parse(Presets, "presets", arguments)
    for name in _matching(PRESETS, options.pattern, "preset"):
        entry = PRESETS[name]
        published = "-" if entry.nll is None else f"{entry.nll:.2f}"
        active = "+".join(map(str, entry.active)) or "-"
        needs = f"; --init-from a run of {entry.needs}" if entry.needs else ""
        print(f"{name:36} NLL {published:>7}  active {active:>5}  {entry.source}{needs}")
    return 0


@dataclasses.dataclass(frozen=True)
class Data:
    """List, fetch or verify data sets."""

    action: tyro.conf.Positional[Literal["list", "fetch", "verify"]]
    """What to do."""
    name: tyro.conf.Positional[str | None] = None
    """The data set to fetch or verify."""
    data_dir: Path | None = None
    """Where the data files are looked for first; also IWAE_DATA."""


def data(arguments: Sequence[str]) -> int:
    """`iwae data`."""
    from iwae.data import fetch, list_datasets, verify

    options = _parse(Data, "data", arguments)
    if options.action == "list":
        if options.name is not None:
            raise UserError("iwae data list takes no name")
        for row in list_datasets(options.data_dir):
            sizes = "/".join(f"{size:,}" for size in row.sizes)
            print(f"{row.name:15} {sizes:>22}  {row.binarization:8} {row.description}")
            print(f"{'':15} {row.where or f'not here: iwae data fetch {row.name}'}")
        return 0
    if options.name is None:
        raise UserError(f"name the data set: iwae data {options.action} NAME")
    if options.action == "fetch":
        paths = fetch(options.name, options.data_dir)
        for path in paths:
            print(path)
        if not paths:
            print(f"{options.name} comes with iwae: there is nothing to fetch")
        return 0
    rows = verify(options.name, options.data_dir)
    for name, right, words in rows:
        print(f"{'ok ' if right else 'BAD'} {name}: {words}")
    return 0 if all(right for _, right, _ in rows) else FAILURE


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "train a model, or go on with a run"),
    "evaluate": (evaluate, "log-likelihoods, bounds from both sides, active units of a run"),
    "gradients": (gradients, "signal, noise and bias of gradient estimators at a run's models"),
    "compare": (compare, "runs against each other, example by example"),
    "figures": (draw_figures, "samples, reconstructions, curves and filters of a run"),
    "objectives": (objectives, "what can be climbed, and by which gradients"),
    "presets": (presets, "the published experiments"),
    "data": (data, "list, fetch or verify data sets"),
}


def usage() -> str:
    """What `iwae --help` prints."""
    lines = "\n".join(f"  {name:10} {words}" for name, (_, words) in COMMANDS.items())
    return (
        "usage: iwae COMMAND [OPTIONS]\n\n"
        "Train importance weighted autoencoders, and measure how likely they make held-out "
        "data.\n\n"
        f"commands:\n{lines}\n\n"
        "`iwae COMMAND --help` lists a command's options; `iwae --version` prints the version."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 for a user's mistake)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="iwae: %(message)s", level=logging.WARNING)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else USAGE_ERROR
    if words[0] == "--version":
        print(f"iwae {version('iwae')}")
        return 0
    return _run(words)


def _run(words: Sequence[str]) -> int:
    """The exit status of a command; what goes wrong in it becomes one line."""
    try:
        return _command(words[0])(words[1:])
    except UserError as error:
        print(f"iwae: {error}", file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except (FloatingPointError, OSError, RuntimeError, MemoryError) as error:
        print(f"iwae: {_failure(error)}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _failure(error: Exception) -> str:
    """A result that is nan, a full disk or memory in words; what is no such thing is raised."""
    if isinstance(error, FloatingPointError | OSError):
        return str(error)
    # JAX's error is known by its name: JAX may not have been imported.
    of_jax = type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)
    if of_jax or isinstance(error, MemoryError):
        return "out of memory: choose a smaller k, batch size or model"
    raise error


def _command(name: str) -> Callable[[Sequence[str]], int]:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(COMMANDS)}"
        raise UserError(f"no command {name!r}; {hint}")
    return COMMANDS[name][0]


def _parse(kind: type, name: str, arguments: Sequence[str], **options: Any) -> Any:
    """Options as `kind` declares them; exits with status 2 for what it does not declare."""
    try:
        return tyro.cli(
            kind,
            prog=f"iwae {name}",
            args=list(arguments),
            **options,
        )
    except ValidationError as error:
        raise UserError(explain(error)) from error


def _set_up_jax() -> None:
    """One JAX device per core on a CPU, and compiled programs kept for the next time."""
    import jax
    import platformdirs

    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", _cores())
    cache = Path(platformdirs.user_cache_dir("iwae")) / "compiled"
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and _is_writable(cache):
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _is_writable(folder: Path) -> bool:
    """Whether files can be put into a folder, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _cores() -> int:
    """CPU cores that this process may use, where the system says."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
