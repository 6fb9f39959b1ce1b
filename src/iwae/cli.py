"""The command line: parse, call one library function, print.

JAX is imported by the commands that compute, so that help and lists answer at once.
"""

import dataclasses
import difflib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import ValidationError

from iwae._types import UserError
from iwae.config import TrainConfig, explain, read_config
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
    _set_up_jax()
    from iwae.runs import Stopped, resume_run, start_run
    from iwae.training import NonFiniteError

    if options.resume is not None:
        if options.out is not None or options.config != TrainConfig():
            raise UserError("--resume takes its configuration from the run: give no other options")
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


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure the models of a run: log-likelihoods by importance sampling, active units.

    Writes a record and the per-example values to RUN/evaluations.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    split: Literal["train", "validation", "test"] = "test"
    """What to measure on."""
    weights: Literal["final", "best"] = "final"
    """The last weights, or those of the best validation bound."""
    k: tuple[int, ...] = (5000,)
    """Importance samples per example; several may be given."""
    examples: int | None = None
    """A seeded random subset of so many examples instead of all."""
    pruned: bool = False
    """Measure the models with their inactive units removed."""
    seed: int = 0
    """Seed of the importance samples and of the subset."""
    batch_size: int | None = None
    """Examples at a time; changes the speed, not the numbers."""
    data_dir: Path | None = None
    """Where the data files are looked for first; also IWAE_DATA."""
    json: bool = False
    """Print exactly one JSON object on standard output."""
    quiet: bool = False
    """No progress bar."""


def evaluate(arguments: Sequence[str]) -> int:
    """`iwae evaluate`."""
    options = _parse(Evaluate, "evaluate", arguments)
    _set_up_jax()
    from iwae.measure import evaluate_run
    from iwae.progress import tracker

    record = evaluate_run(
        options.run,
        split=options.split,
        weights=options.weights,
        ks=options.k,
        examples=options.examples,
        pruned=options.pruned,
        seed=options.seed,
        batch_size=options.batch_size,
        data_dir=options.data_dir,
        track=tracker(quiet=options.quiet),
    )
    print(json.dumps(record) if options.json else _describe(record))
    return 0


def _describe(record: dict[str, Any]) -> str:
    """A record in words."""
    each = record.get("replicates", [record])
    what = f"{record['dataset']} {record['split']}, {record['n']} examples"
    pruned = ", pruned" if record["pruned"] else ""
    lines = [f"{what}, {record['weights']} weights{pruned}; nats per example"]
    for one in each:
        name = f"replicate {one['replicate']} " if len(each) > 1 else ""
        lines += [
            f"  {name}L_{row['k']} = {_with_error(row)}"
            f"  (effective sample size {row['ess_mean']:.1f})"
            for row in one["by_k"]
        ]
        units = "+".join(map(str, one["active_units"]))
        authors = "+".join(map(str, one["active_units_authors"]))
        lines.append(f"  {name}active units {units} (authors' definition: {authors})")
    if record.get("between_replicates_sd") is not None:
        lines.append(
            f"  mean L_{record['k']} = {record['log_likelihood']:.3f}, standard deviation between "
            f"replicates {record['between_replicates_sd']:.3f}"
        )
    return "\n".join(lines)


def _with_error(row: dict[str, Any]) -> str:
    """A mean and its standard error, as far as they exist."""
    value, error = row["log_likelihood"], row["stderr"]
    if value is None:
        return "not finite"
    return f"{value:.3f}" if error is None else f"{value:.3f} +- {error:.3f}"


# --- the rest -------------------------------------------------------------------------------


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
    from fnmatch import fnmatch

    options = _parse(Presets, "presets", arguments)
    names = [name for name in PRESETS if fnmatch(name, options.pattern)]
    if not names:
        raise UserError(f"no preset matches {options.pattern!r}; all: `iwae presets`")
    for name in names:
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
        for path in fetch(options.name, options.data_dir):
            print(path)
        return 0
    rows = verify(options.name, options.data_dir)
    for name, right, words in rows:
        print(f"{'ok ' if right else 'BAD'} {name}: {words}")
    return 0 if all(right for _, right, _ in rows) else FAILURE


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "train a model, or go on with a run"),
    "evaluate": (evaluate, "log-likelihoods and active units of a trained run"),
    "figures": (draw_figures, "samples, reconstructions, curves and filters of a run"),
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
    except (FloatingPointError, OSError) as error:  # a result that is nan, a full disk, ...
        print(f"iwae: {error}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


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
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(platformdirs.user_cache_dir("iwae")) / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _cores() -> int:
    """CPU cores that this process may use, where the system says."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
