"""Stopping between two iterations, so that a checkpoint can be saved."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

REPEATED_S = 1.0  # a signal again so soon is the same one: a launcher passes on what all its processes got already


class StopRequest:
    """While entered, the first Ctrl-C or SIGTERM sets ``requested``; another, a second or more after it, raises
    KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.at: float | None = None

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        return self.at is not None

    def _note(self, number: int, frame) -> None:
        if self.at is None:
            self.at = time.monotonic()
        elif time.monotonic() > self.at + REPEATED_S:
            raise KeyboardInterrupt

    def __enter__(self) -> StopRequest:
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """While entered, SIGTERM raises KeyboardInterrupt(SIGTERM), once; Ctrl-C raises it without the number as always."""

    def interrupt(number: int, frame) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the end may take a moment
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
