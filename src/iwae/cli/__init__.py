"""The command line: parse, call one library function, print.

Only commands that compute import JAX, so help and lists answer at once.
"""

import difflib
import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

from iwae.cli import answers, evaluate, lists, outputs, queue, train
from iwae.cli.parsing import FAILURE, USAGE_ERROR
from iwae.errors import OUT_OF_MEMORY, UserError, is_out_of_memory


class Command(NamedTuple):
    """A command of the program.

    Attributes:
        options: dataclass of its options.
        run: takes the arguments after its name; returns the exit status.
        words: one-line description.
    """

    options: type
    run: Callable[[Sequence[str]], int]
    words: str


COMMANDS = {
    "train": Command(train.Train, train.train, "train a model, or resume a run"),
    "evaluate": Command(
        evaluate.Evaluate,
        evaluate.evaluate,
        "measure log-likelihoods, two-sided bounds and active units of a run",
    ),
    "classify": Command(
        evaluate.Classify, evaluate.classify, "classify examples with a conditional run"
    ),
    "calibrate": Command(
        evaluate.Calibrate, evaluate.calibrate, "measure the calibration of a run's encoder"
    ),
    "gradients": Command(
        evaluate.Gradients,
        evaluate.gradients,
        "measure signal, noise and bias of gradient estimators on a run's models",
    ),
    "encode": Command(answers.Encode, answers.encode, "write the latents of each row of a file"),
    "score": Command(answers.Score, answers.score, "write each row's log-likelihood and p-value"),
    "sample": Command(answers.Sample, answers.sample, "write rows drawn from a model"),
    "impute": Command(answers.Impute, answers.impute, "fill in the missing values of a table"),
    "compare": Command(evaluate.Compare, evaluate.compare, "compare runs, example by example"),
    "figures": Command(
        outputs.Figures,
        outputs.draw_figures,
        "draw samples, reconstructions, curves and filters of a run",
    ),
    "report": Command(outputs.ReportPage, outputs.report, "show runs side by side on one page"),
    "export": Command(
        outputs.Export, outputs.export, "export a model to share, with a card and a picture"
    ),
    "push": Command(outputs.Push, outputs.push, "upload an exported model to the Hugging Face Hub"),
    "reproduce": Command(
        queue.Reproduce, queue.reproduce, "reproduce published tables, cell by cell"
    ),
    "sweep": Command(
        queue.Sweep, queue.sweep, "run every combination of an experiment file's lists"
    ),
    "objectives": Command(
        lists.Objectives, lists.objectives, "list the objectives and their gradient estimators"
    ),
    "presets": Command(lists.Presets, lists.presets, "list the published experiments"),
    "data": Command(lists.Data, lists.data, "list, fetch or verify data sets"),
}


def usage() -> str:
    """The text of `iwae --help`."""
    lines = "\n".join(f"  {name:10} {words}" for name, (_, _, words) in COMMANDS.items())
    return (
        "usage: iwae COMMAND [OPTIONS]\n\n"
        "Train importance weighted autoencoders and measure their held-out log-likelihood.\n\n"
        f"commands:\n{lines}\n\n"
        "`iwae COMMAND --help` lists a command's options; `iwae --version` prints the version."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 for a user's mistake)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="iwae: %(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # it raises what it logs
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else USAGE_ERROR
    if words[0] == "--version":
        print(f"iwae {version('iwae')}")
        return 0
    return _run(words)


def _run(words: Sequence[str]) -> int:
    """Run a command and return its exit status; print a failure as one line."""
    lost: Lost = []
    before, sys.unraisablehook = sys.unraisablehook, partial(_interrupt_again, lost)
    try:
        return _interrupted_rather(partial(_command(words[0]), words[1:]), lost)
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
        return 143 if isinstance(stopped, evaluate.Terminated) else 130
    finally:
        sys.unraisablehook = before


Lost = list[tuple[type[BaseException], threading.Timer]]
"""Interrupts that Python could not raise, each with the timer that sends it again."""


def _interrupted_rather(command: Callable[[], int], lost: Lost) -> int:
    """Run a command; what fails once a Ctrl-C was lost, such as a half-done import, is that one."""
    try:
        return command()
    except Exception as error:
        if not lost:
            raise
        raise lost[0][0] from error
    finally:  # also if it ends by itself, when nothing is left to stop
        for _, timer in lost:
            timer.cancel()


def _interrupt_again(lost: Lost, error: "sys.UnraisableHookArgs") -> None:
    """Repeat a Ctrl-C that Python could not raise, since it came in a callback or a finaliser."""
    if not issubclass(error.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(error)
        return
    stopped = issubclass(error.exc_type, evaluate.Terminated)
    number = signal.SIGTERM if stopped else signal.SIGINT
    # Python runs handlers in the main thread, which this is; a signal to it ends a system call.
    timer = threading.Timer(0.05, signal.pthread_kill, [threading.get_ident(), number])
    lost.append((error.exc_type, timer))
    timer.start()


def _failure(error: Exception) -> str:
    """Describe a nan result, a full disk or exhausted memory; re-raise any other error."""
    if isinstance(error, FloatingPointError):
        return str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "; free some space, then repeat the command, or resume the run" if full else ""
        return f"{place}{error.strerror or error}{remedy}"
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    raise error


def _command(name: str) -> Callable[[Sequence[str]], int]:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}; {hint}")
    return COMMANDS[name].run
