"""``python -m depthg.report RUN``: rebuilds the report of a run, or builds a page that compares two runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from depthg.reporting.comparison import result_lines, write_comparison
from depthg.reporting.report import write_report
from depthg.runtime import command


def run(options: argparse.Namespace) -> int:
    """Writes the report or comparison of the command line; prints the result of a comparison, and the path."""
    runs, lines = options.run, []
    if len(runs) > 2:
        raise ValueError(f"one run, or two to compare; got {len(runs)}")
    try:
        if len(runs) == 2:
            path = write_comparison(runs[0], runs[1], options.out, options.overwrite, not options.no_pictures)
            lines = result_lines(*runs)
        else:
            path = write_report(runs[0], options.out, options.overwrite)
    except (AttributeError, KeyError, IndexError) as error:  # JSON of other types than this package writes
        files = " or ".join(f"{run}/metrics.json" for run in runs)
        raise ValueError(f"{files} is damaged: a value is of an unexpected kind ({error}); restore it") from error
    print(*lines, path, sep="\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m depthg.report RUN``, or ``RUN_A RUN_B`` for a comparison."""
    parser = argparse.ArgumentParser(
        prog="python -m depthg.report",
        description="One run: builds its report.html again. Two runs on the same data: a page that compares them.",
    )
    parser.add_argument("run", nargs="+", type=Path, help="one or two folders of runs, such as runs/NAME")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write here (default: RUN/report.html, or beside RUN_A)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing comparison or --out")
    parser.add_argument("--no-pictures", action="store_true", help="no pictures: needs no data or checkpoints")
    options = parser.parse_args(arguments)
    return command.run(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
