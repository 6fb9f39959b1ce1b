"""Stop a run on a signal or at its deadline."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """Training has saved its state and stopped, on a signal or at its deadline."""

    def __init__(self, signal_number: int | None):
        named = signal_number is not None and f"by {signal.Signals(signal_number).name}"
        super().__init__(f"stopped {named or 'because its time is up'}")
        self.signal_number = signal_number

    def __reduce__(self) -> tuple[type, tuple[int | None]]:
        """Pickle it for other processes."""
        return type(self), (self.signal_number,)

    @property
    def status(self) -> int:
        """The exit status of a program that stops for this reason."""
        return 0 if self.signal_number is None else 128 + self.signal_number


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM instead of ending the process; a second one interrupts it."""
    received: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    names = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = [signal.signal(name, note) for name in names]
    try:
        yield received
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)
