"""``python -m depthg.label RUN [PHOTOS]``: names for the clusters of a run, by hand or from labelled photos."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from depthg.labelling.from_labels import name_from_labels
from depthg.labelling.opening import open_page
from depthg.model.legend import FILE
from depthg.model.loaded_run import CHECKPOINTS
from depthg.runtime import command

ABOUT = f"""Names, merges and leaves out clusters; the names are kept in RUN/{FILE}, which predict, evaluate and reports
use and which can be edited by hand. Without --from: opens a page in the browser, on this machine alone, with every
cluster's typical and least certain places (needs pip install 'depthg[app]'). With --from: takes the names from a few
labelled photos."""


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser("python -m depthg.label", description=ABOUT)
    found.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    found.add_argument("photos", nargs="?", metavar="PHOTOS", help="folder of photos (default: the run's data.root)")
    found.add_argument("--from", dest="labels", type=Path, metavar="LABELS", help="folder of label maps of PHOTOS")
    found.add_argument("--classes", type=Path, metavar="FILE", help="names of the label maps' ids or colours")
    found.add_argument(
        "--least", type=float, default=0.5, metavar="SHARE",
        help="with --from: clusters with less of their commonest class get no name (%(default)s)",
    )  # fmt: skip
    found.add_argument("--most", type=int, default=200, metavar="N", help="photos that the page looks at (%(default)s)")
    found.add_argument("--port", type=int, default=0, metavar="N", help="of the page (default: any that is free)")
    found.add_argument("--no-browser", action="store_true", help="print the address of the page, open nothing")
    found.add_argument("--checkpoint", choices=CHECKPOINTS, default="last")
    found.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    found.add_argument("--overwrite", action="store_true", help=f"with --from: replace RUN/{FILE}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m depthg.label``."""
    options = parser().parse_args(arguments)
    return command.run(lambda: (name_from_labels if options.labels else open_page)(options), "stopped; names are kept")


if __name__ == "__main__":
    sys.exit(main())
