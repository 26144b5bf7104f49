"""``python -m depthg.evaluate RUN``: scores a trained run under the paper's test-time protocol, or others."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from depthg.evaluation.evaluate import Request, evaluate, evaluation_name, requested
from depthg.evaluation.frames import resolution_of
from depthg.evaluation.results import FOLDER, print_evaluations, read_metrics
from depthg.model.loaded_run import CHECKPOINTS, MOVABLE, load_run
from depthg.reporting.evaluations import write_evaluations
from depthg.runtime import command, processes
from depthg.storage.outputs import output_folder

ABOUT = f"""Scores a trained run: cluster probe, linear probe, and k-means on codes and on raw features as baselines,
each with a 95% interval. With no option: as at the end of training. --flip --crf is the paper's test time.
Writes RUN/{FOLDER}/*.json and *.png, and the list "evaluations" of RUN/metrics.json."""


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser("python -m depthg.evaluate", description=ABOUT)
    found.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    found.add_argument("overrides", nargs="*", metavar="key=value", help=f"settings to override: {', '.join(MOVABLE)}")
    found.add_argument("--split", choices=("val", "test", "train"), default="val")
    found.add_argument(
        "--resolution", type=command.argument(resolution_of), metavar="320|HxW|full",
        help="centre crop of photos scaled to cover it, or whole photos at their own size (default: data.eval_size)",
    )  # fmt: skip
    both = argparse.BooleanOptionalAction
    found.add_argument("--flip", action=both, default=None, help="average the codes of photo and mirror image")
    found.add_argument("--crf", action=both, default=None, help="refine the probes by the dense CRF (no baselines)")
    found.add_argument(
        "--all", action="store_true",
        help="plain, flip and flip + CRF, on the centre crop and on full frames, in one pass (--no-crf: without CRF)",
    )  # fmt: skip
    found.add_argument(
        "--clusters", type=int, metavar="K", help="cluster the codes by k-means instead of the cluster probe"
    )
    found.add_argument("--checkpoint", choices=CHECKPOINTS, default="last")
    found.add_argument("--kmeans", action=both, default=True, help="k-means baselines, which read training photos")
    found.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="draws for the intervals (0: none)")
    found.add_argument("--out", type=Path, metavar="DIR", help="write here and leave RUN unchanged")
    found.add_argument("--overwrite", action="store_true", help="replace results of the same protocol")
    return found


def request_of(options: argparse.Namespace, default: Sequence[int]) -> Request:
    """Builds the request from the options; ``default`` is the run's ``data.eval_size``."""
    return requested(
        default, options.resolution, everything=options.all, flip=options.flip, crf=options.crf, split=options.split,
        clusters=options.clusters, kmeans=options.kmeans, samples=options.bootstrap,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m depthg.evaluate``."""
    given = parser()
    options = given.parse_intermixed_args(arguments)
    if options.all and options.flip is not None:
        given.error("--all evaluates with and without flip; drop --flip")
    if options.bootstrap < 0:
        given.error(f"--bootstrap {options.bootstrap} must be 0 or more")
    return command.run(lambda: run(options), "stopped; what was written is whole")


def run(options: argparse.Namespace) -> None:
    """Runs the evaluation of the command line, writes and prints the results."""
    started, console = time.perf_counter(), command.console()
    overrides = [re.sub("^data=", "data.name=", override) for override in options.overrides]
    trained = load_run(options.run, options.checkpoint, None, overrides)
    processes.start(trained.device)
    request = request_of(options, trained.config.data.eval_size)
    folder = options.out or trained.path / FOLDER
    if not options.out:
        read_metrics(trained.path)  # raises its errors before the long work
    names = [evaluation_name(trained, request, *part) for part in product(request.resolutions, request.variants)]
    files = [name + ending for name in names for ending in (".json", ".png")]
    processes.from_main(lambda: output_folder(folder, files, options.overwrite))
    found = evaluate(trained, request)
    if processes.is_main():
        seconds = time.perf_counter() - started
        written = write_evaluations(folder, found, seconds, None if options.out else trained.path)
        print_evaluations(found, console)
        for path in written:
            console.print(f"written: {path}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
