"""Ctrl-C and SIGTERM as exceptions, including those that Python could not raise."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM as an exception."""


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end an evaluation as Ctrl-C does: finished work is kept."""
    received = []

    def stop(number: int, *_: Any) -> None:
        received.append(number)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as stopped:
        if received and not isinstance(stopped, Terminated):  # Ray raises its own exception
            raise Terminated from stopped
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


Lost = list[tuple[type[BaseException], threading.Timer]]
"""Interrupts that Python could not raise, each with the timer that sends it again."""


def interrupt_first(command: Callable[[], int], lost: Lost) -> int:
    """Run a command; an error after a lost interrupt, such as a half-done import, is its effect."""
    try:
        return command()
    except Exception as error:
        if not lost:
            raise
        raise lost[0][0] from error
    finally:  # after a normal end too, when nothing is left to interrupt
        for _, timer in lost:
            timer.cancel()


def _send(number: int, thread: int) -> None:
    """Send a signal to a thread, which ends its system call, while Python has a handler."""
    if callable(signal.getsignal(number)):  # otherwise it would kill the process
        signal.pthread_kill(thread, number)


def resend_interrupt(lost: Lost, error: "sys.UnraisableHookArgs") -> None:
    """Repeat an interrupt that Python could not raise, since it came in a callback or finaliser."""
    if not issubclass(error.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(error)
        return
    stopped = issubclass(error.exc_type, Terminated)
    number = signal.SIGTERM if stopped else signal.SIGINT
    # Python runs handlers in the main thread, which this is.
    timer = threading.Timer(0.05, _send, [number, threading.get_ident()])
    lost.append((error.exc_type, timer))
    timer.start()
