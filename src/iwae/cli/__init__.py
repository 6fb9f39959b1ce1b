"""The command line: parse, call one library function, print.

Only commands that compute import JAX, so help and lists answer at once.
"""

import difflib
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

from iwae.cli import answers, evaluate, interrupts, lists, outputs, queue, reproduce, train
from iwae.cli.parsing import FAILURE, USAGE_ERROR
from iwae.errors import OUT_OF_MEMORY, UserError, is_memory_error


class Command(NamedTuple):
    """A command of the program.

    Attributes:
        options: dataclass of its options.
        run: takes the arguments after its name; returns the exit status.
        summary: one-line description.
    """

    options: type
    run: Callable[[Sequence[str]], int]
    summary: str


COMMANDS = {
    "train": Command(train.Train, train.train_command, "train a model, or resume a run"),
    "evaluate": Command(
        evaluate.Evaluate,
        evaluate.evaluate_command,
        "measure log-likelihoods, two-sided bounds and active units of a run",
    ),
    "classify": Command(
        evaluate.Classify, evaluate.classify_command, "classify examples with a conditional run"
    ),
    "calibrate": Command(
        evaluate.Calibrate, evaluate.calibrate_command, "measure the calibration of a run's encoder"
    ),
    "gradients": Command(
        evaluate.Gradients,
        evaluate.gradients_command,
        "measure signal, noise and bias of gradient estimators on a run's models",
    ),
    "encode": Command(
        answers.Encode, answers.encode_command, "write the latents of each row of a file"
    ),
    "score": Command(
        answers.Score, answers.score_command, "write each row's log-likelihood and p-value"
    ),
    "sample": Command(answers.Sample, answers.sample_command, "write rows drawn from a model"),
    "impute": Command(
        answers.Impute, answers.impute_command, "fill in the missing values of a table"
    ),
    "compare": Command(
        evaluate.Compare, evaluate.compare_command, "compare runs, example by example"
    ),
    "figures": Command(
        outputs.Figures,
        outputs.figures_command,
        "draw samples, reconstructions, curves and filters of a run",
    ),
    "report": Command(
        outputs.ReportPage, outputs.report_command, "show runs side by side on one page"
    ),
    "export": Command(
        outputs.Export, outputs.export_command, "export a model to share, with a card and a picture"
    ),
    "push": Command(
        outputs.Push, outputs.push_command, "upload an exported model to the Hugging Face Hub"
    ),
    "reproduce": Command(
        reproduce.Reproduce, reproduce.reproduce_command, "reproduce published tables, cell by cell"
    ),
    "sweep": Command(
        queue.Sweep, queue.sweep_command, "run every combination of an experiment file's lists"
    ),
    "objectives": Command(
        lists.Objectives,
        lists.objectives_command,
        "list the objectives and their gradient estimators",
    ),
    "presets": Command(lists.Presets, lists.presets_command, "list the published experiments"),
    "data": Command(lists.Data, lists.data_command, "list, fetch or verify data sets"),
}


def _usage() -> str:
    """The text of `iwae --help`."""
    lines = "\n".join(f"  {name:10} {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: iwae COMMAND [OPTIONS]\n\n"
        "Train importance weighted autoencoders and measure their held-out log-likelihood.\n\n"
        f"commands:\n{lines}\n\n"
        "`iwae COMMAND --help` lists a command's options; `iwae --version` prints the version."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 for a user's mistake)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="iwae: %(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # it raises what it logs
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else USAGE_ERROR
    if arguments[0] == "--version":
        print(f"iwae {version('iwae')}")
        return 0
    return _run(*arguments)


def _run(name: str, *arguments: str) -> int:
    """Run a command and return its exit status; print a failure as one line."""
    lost: interrupts.Lost = []
    before, sys.unraisablehook = sys.unraisablehook, partial(interrupts.resend_interrupt, lost)
    try:
        return interrupts.interrupt_first(partial(_command(name), arguments), lost)
    except UserError as error:
        print(f"iwae: {error}", file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:  # the reader of our output closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except Exception as error:
        print(f"iwae: {_failure(error)}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt as stopped:
        print("interrupted", file=sys.stderr)
        return 143 if isinstance(stopped, interrupts.Terminated) else 130
    finally:
        sys.unraisablehook = before


def _failure(error: Exception) -> str:
    """Describe a NaN result, a full disk or exhausted memory; re-raise any other error."""
    if isinstance(error, FloatingPointError):
        return str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "; free some space, then repeat the command, or resume the run" if full else ""
        return f"{place}{error.strerror or error}{remedy}"
    if is_memory_error(error):
        return OUT_OF_MEMORY
    raise error


def _command(name: str) -> Callable[[Sequence[str]], int]:
    """The function of a command; UserError for an unknown name."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}; {hint}")
    return COMMANDS[name].run
