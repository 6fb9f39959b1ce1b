"""`iwae train`."""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from iwae.cli import parsing
from iwae.cli.jax_setup import set_up_jax
from iwae.config.defaults import defaults_for
from iwae.config.experiment import TrainConfig
from iwae.config.presets import preset
from iwae.config.stages import StageConfig, stages_from_text
from iwae.config.toml import read_config
from iwae.data.load import check_load_arguments
from iwae.data.own import is_own
from iwae.errors import UserError

if TYPE_CHECKING:
    from iwae.runs.jobs import Job
    from iwae.training.loop import Report


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a model, or resume a run.

    - iwae train --dataset mnist --objective iwae --k 50 --layers 2 --out RUN
    - iwae train FILE.toml --k 5 --out RUN
    - iwae train --preset table1/mnist/1l/iwae-k5 --out RUN
    - iwae train --resume RUN

    Options change what FILE.toml or the preset says; the value None unsets an optional one.
    """

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the run, new or empty; needed unless a run is resumed."""
    preset: str | None = None
    """Start from the configuration of a published experiment; see `iwae presets`."""
    resume: Path | None = None
    """Resume the run in this folder exactly where it stopped."""
    stage: int | None = None
    """With --resume: return to the end of this stage of the schedule (from 0)."""
    data_dir: parsing.DataDir = None
    track: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Also log every epoch's scalars to these trackers; with --resume, also those they missed."""
    quiet: bool = False
    """Print only warnings and errors."""
    verbose: bool = False
    """Print a line per epoch, even on a terminal."""


def train_command(arguments: Sequence[str]) -> int:
    """`iwae train`."""
    base, rest = _base_config(arguments)
    options = parsing.parse(Train, "train", rest, default=Train(base))
    if options.quiet and options.verbose:
        raise UserError("--quiet and --verbose contradict each other: give one")
    if options.resume is not None:
        _refuse_others(("resume", "stage", "data-dir", "track", "quiet", "verbose"), arguments)
    else:
        check_load_arguments(options.config.dataset)  # before importing JAX, to answer at once
    set_up_jax()
    from iwae.runs.planning import plan_next_steps
    from iwae.runs.stopping import Stopped
    from iwae.training.loop import NonFiniteError
    from iwae.training.progress import show_training

    run, reports = _start_or_resume(options)
    try:
        show_training(reports, quiet=options.quiet, verbose=options.verbose)
    except Stopped as stopped:
        started = (run / "config.toml").is_file()  # not during cross-validation
        remedy = f"resume with: iwae train --resume {run}" if started else "repeat the command"
        print(f"{stopped}; {remedy}", file=sys.stderr)
        return stopped.status
    except NonFiniteError as error:
        folder = run / "checkpoints"  # does not exist during cross-validation
        state = f"; the last good state is in {folder}" if folder.is_dir() else ""
        print(f"iwae: {error}{state}", file=sys.stderr)
        return parsing.FAILURE
    if not options.quiet:
        print(plan_next_steps(run))
    return 0


def _start_or_resume(options: Train) -> tuple[Path, Iterator["Report"]]:
    """Start or resume a run; returns its folder and its reports, which train it."""
    from iwae.runs.start_and_resume import resume_run, start_run
    from iwae.runs.trackers import TRACKERS

    config = options.config
    track = {str(name): TRACKERS[name] for name in options.track}
    if options.resume is not None:
        run = options.resume
        return run, resume_run(run, options.data_dir, options.stage, track=track)
    if options.stage is not None:
        raise UserError("--stage needs --resume RUN")
    if options.out is None:
        raise UserError("name a folder for the run: --out RUN")
    needs = preset(options.preset).needs if options.preset else None
    if needs and config.init_from is None:
        raise UserError(f"{options.preset} starts from a finished run of {needs}: --init-from RUN")
    show = None if options.quiet else _show_data
    return options.out, start_run(config, options.out, options.data_dir, track=track, show=show)


def _show_data(job: "Job") -> None:
    """Print how a user's own data were interpreted, and the plan of training."""
    from iwae.data.summary import summarise_dataset
    from iwae.runs.planning import describe_plan

    if is_own(job.config.dataset):
        print(summarise_dataset(job.dataset), describe_plan(job), sep="\n", file=sys.stderr)


def _refuse_others(names: Sequence[str], arguments: Sequence[str]) -> None:
    """Raise UserError if --resume comes with other options, even at their defaults."""
    given = [word for word in arguments if word.startswith("--")]
    for word in given if arguments[0].startswith("-") else arguments[:1]:
        name = word.partition("=")[0].lstrip("-").replace("_", "-").removeprefix("no-")
        if not word.startswith("--") or name not in names:
            raise UserError(f"--resume takes the configuration from the run: leave out {word}")


_PEEKED = ("preset", "stages", "epochs", "dataset", "objective", "validation", "folds")
"""Options that the defaults of others depend on."""


def _base_config(arguments: Sequence[str]) -> tuple[TrainConfig, list[str]]:
    """The configuration that the options change: a file's, a preset's or the defaults."""
    rest = list(arguments)
    file = rest.pop(0) if rest and not rest[0].startswith("-") else None
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in _PEEKED:
        peek.add_argument(f"--{option}", nargs="?")  # tyro reports one without a value
    given, _ = peek.parse_known_args(rest)
    if file is not None and given.preset is not None:
        raise UserError("give an experiment file or --preset, not both")
    if file is not None:
        base = read_config(Path(file))
    else:
        base = _from_data(given, rest) if given.preset is None else preset(given.preset).config()
    if given.stages is not None and given.epochs is None:
        # With the epochs of the base, the stages would be scaled to these.
        base = base.model_copy(update={"epochs": sum(s.epochs for s in _stages(given.stages))})
    return base, rest


def _from_data(given: argparse.Namespace, arguments: Sequence[str]) -> TrainConfig:
    """The defaults for the data set and the objective that the options name."""
    names = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    chosen = {name.removeprefix("--").replace("-", "_") for name in names}
    found = defaults_for(given.dataset, given.objective, chosen, given.validation, given.folds)
    if given.folds not in (None, "None"):
        # Until the option is parsed: without folds, patience would need a held-out part.
        found["folds"] = "auto"
    return TrainConfig(**found)


def _stages(text: str) -> tuple[StageConfig, ...]:
    try:
        return stages_from_text(text)
    except ValueError as error:
        raise UserError(f"--stages: {error}") from error
