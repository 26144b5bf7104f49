"""Stopping between two iterations instead of anywhere, so that a checkpoint can be saved."""

from __future__ import annotations

import signal
import threading


class StopRequest:
    """While entered, the first Ctrl-C or SIGTERM sets ``requested``; the second raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.requested = False

    def _note(self, number: int, frame) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> StopRequest:
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
