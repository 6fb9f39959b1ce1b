"""The command line: parse, call one library function, print.

JAX is imported by the commands that compute, so that help and lists answer at once.
"""

import difflib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NamedTuple

from iwae.cli import classify, evaluate, impute, lists, queue, records, sharing, train
from iwae.cli.parsing import FAILURE, USAGE_ERROR
from iwae.errors import UserError


class Command(NamedTuple):
    """A command of the program.

    Attributes:
        options: what it can be told.
        run: takes the words after its name; returns the exit status.
        words: what it is for.
    """

    options: type
    run: Callable[[Sequence[str]], int]
    words: str


COMMANDS = {
    "train": Command(train.Train, train.train, "train a model, or go on with a run"),
    "evaluate": Command(
        evaluate.Evaluate,
        evaluate.evaluate,
        "log-likelihoods, bounds from both sides, active units of a run",
    ),
    "classify": Command(
        classify.Classify, classify.classify, "labels of examples, by a conditional run"
    ),
    "gradients": Command(
        records.Gradients,
        records.gradients,
        "signal, noise and bias of gradient estimators at a run's models",
    ),
    "impute": Command(impute.Impute, impute.impute, "fill the gaps of a table"),
    "compare": Command(
        records.Compare, records.compare, "runs against each other, example by example"
    ),
    "figures": Command(
        records.Figures,
        records.draw_figures,
        "samples, reconstructions, curves and filters of a run",
    ),
    "report": Command(records.ReportPage, records.report, "runs side by side on one page"),
    "export": Command(
        sharing.Export, sharing.export, "a model in a folder for others, with a card and a picture"
    ),
    "push": Command(sharing.Push, sharing.push, "an exported model onto the Hugging Face hub"),
    "reproduce": Command(
        queue.Reproduce, queue.reproduce, "published tables: ours against theirs, cell by cell"
    ),
    "sweep": Command(queue.Sweep, queue.sweep, "all combinations of an experiment file's lists"),
    "objectives": Command(
        lists.Objectives, lists.objectives, "what can be climbed, and by which gradients"
    ),
    "presets": Command(lists.Presets, lists.presets, "the published experiments"),
    "data": Command(lists.Data, lists.data, "list, fetch or verify data sets"),
}


def usage() -> str:
    """What `iwae --help` prints."""
    lines = "\n".join(f"  {name:10} {words}" for name, (_, _, words) in COMMANDS.items())
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
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # the errors it logs are raised as well
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
    return COMMANDS[name].run
