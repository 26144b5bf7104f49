"""``python -m depthg.replay``: recomputes the losses of an iteration that was kept because one was NaN or infinite."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from depthg.runtime import command
from depthg.training.kept_step import read_step, replay

__all__ = ["main", "read_step", "replay"]


def run(options: argparse.Namespace) -> None:
    """Prints the values of the step as logged and as recomputed."""
    found = replay(options.file, options.device)
    kept = json.loads(options.file.read_text(encoding="utf-8"))
    console = command.console()
    console.print(f"iteration {kept['iteration']}, {kept['term']} was not finite; anchors {kept['anchors']}")
    if (processes := kept.get("processes", 1)) != 1:
        console.print(f"then: means over {processes} processes; now: the whole batch in one")
    table = Table("value", "then", "now", box=None, pad_edge=False)
    for name, value in kept["values"].items():
        table.add_row(name, str(value), str(found.get(name)))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m depthg.replay RUN/nonfinite/iteration-N.json``."""
    parser = argparse.ArgumentParser(
        prog="python -m depthg.replay",
        description="Computes the losses of an iteration that was kept because one was NaN or infinite; the data set "
        "is not needed. From Python: step, kept = depthg.replay.read_step(FILE); step.losses(kept['iteration'] - 1).",
    )
    parser.add_argument("file", type=Path, help="RUN/nonfinite/iteration-N.json")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    options = parser.parse_args(arguments)
    return command.run(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
