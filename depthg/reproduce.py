"""``python -m depthg.reproduce TABLE``: trains the rows of a table of the paper over seeds and compares the numbers."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from depthg.paper.reproduction import TABLES, reproduce
from depthg.paper.runs import PROTOCOLS
from depthg.runtime import command

ABOUT = """Runs the rows of a table of the paper over seeds and prints our numbers (mean, standard deviation, last and
best checkpoint) beside the paper's. Finished runs are kept, stopped runs resume, and a failing run does not stop the
others. On small data, the ablation of Table 4: "table4 data=scenes", "table4 data=camvid data.root=DIR". Settings
(key=value) apply to every row."""


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m depthg.reproduce", description=ABOUT)
    found.add_argument("table", help=", ".join(TABLES))
    found.add_argument("overrides", nargs="*", metavar="key=value", help="settings of every row, as for training")
    found.add_argument("--seeds", nargs="+", default=["0", "1", "2"], metavar="N", help="seeds (default 0 1 2)")
    found.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="only these rows")
    found.add_argument(
        "--protocol", choices=PROTOCOLS,
        help="test time: the paper's flip averaging and CRF, or less (default: flip-crf, on other data plain)",
    )  # fmt: skip
    found.add_argument("--split", choices=("val", "test"), help="split to score (default: data.eval_split)")
    found.add_argument("--out", type=Path, metavar="DIR", help="folder of runs and tables (default runs/TABLE-...)")
    found.add_argument("--dry-run", action="store_true", help="print the commands that would be run")
    found.add_argument("--overwrite", action="store_true", help="train and evaluate again")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m depthg.reproduce``."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_intermixed_args(given)
    line = shlex.join(["python", "-m", "depthg.reproduce", *given])
    errors = (*command.USER_ERRORS, RuntimeError)
    return command.run(
        lambda: 0 if reproduce(options, line) else 1, "stopped; the same command goes on from here", errors
    )


if __name__ == "__main__":
    sys.exit(main())
