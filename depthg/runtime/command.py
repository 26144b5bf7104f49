"""How every command ends: its result, one line for a user's mistake, one line when it is stopped."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from depthg.runtime import processes
from depthg.runtime.stopping import terminate_as_interrupt

USER_ERRORS = (ValueError, TypeError, OSError, ImportError, OmegaConfBaseException)


def console() -> Console:
    """A console as wide as the terminal, or 140 columns in a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else 140)


def argument(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """``parse`` as the type of an option: argparse then shows the text of its ValueError."""

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


def report_error(error: Exception) -> int:
    """Prints one line about a mistake to stderr; returns the exit status 1."""
    print(f"error{processes.label()}: {error}", file=sys.stderr)
    return 1


def run(
    task: Callable[[], int | None], stopped: str = "stopped", errors: tuple[type[Exception], ...] = USER_ERRORS
) -> int:
    """Runs a command and returns its exit status.

    Args:
        task: the command. Its return value is the exit status; None means 0.
        stopped: printed to stderr on Ctrl-C or SIGTERM; the status is then 130.
        errors: exceptions caused by the user's input: one line on stderr and status 1, no traceback.
    """
    try:
        with terminate_as_interrupt():
            return task() or 0
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    except errors as error:
        return report_error(error)
