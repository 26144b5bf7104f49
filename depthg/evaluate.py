"""``python -m depthg.evaluate RUN``: scores of a trained run under the paper's test-time protocol, and others."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import time
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import numpy as np
from rich.console import Console

from depthg import processes
from depthg.backbones import Backbone
from depthg.cli import USER_ERRORS, stored_settings, to_config
from depthg.crf_pool import CrfPool
from depthg.data.base import Split
from depthg.evaluation_pass import FLIP, FLIP_CRF, PLAIN, EvaluationPass, Variant, probe_read_outs
from depthg.evaluation_results import (
    FOLDER,
    Evaluation,
    cluster_shares,
    note_in_metrics,
    print_evaluations,
    protocol_of,
    read_metrics,
    score_all,
    write_evaluation,
)
from depthg.frames import FULL, Resolution
from depthg.kmeans_read_outs import kmeans_read_outs
from depthg.loaded_run import CHECKPOINTS, MOVABLE, LoadedRun, load_run
from depthg.outputs import output_folder
from depthg.prepare import Preparation
from depthg.report import write_report
from depthg.results import protocol
from depthg.run_folder import environment
from depthg.scoring import READ_OUTS
from depthg.stopping import terminate_as_interrupt

MAX_CLUSTERS = 1000
ABOUT = f"""Scores a trained run: cluster probe, linear probe, and k-means on codes and on raw features as baselines,
each with a 95% interval. With no option: as at the end of training. --flip --crf is the paper's test time.
Writes RUN/{FOLDER}/*.json and *.png, and the list "evaluations" of RUN/metrics.json."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be evaluated; see the command's help."""

    split: str = "val"
    resolutions: tuple[Resolution, ...] = ()  # none: the run's data.eval_size
    variants: tuple[Variant, ...] = (PLAIN,)
    clusters: int | None = None
    kmeans: bool = True
    samples: int = 1000
    workers: int | None = None


def evaluate(run: LoadedRun, request: Request = Request()) -> list[Evaluation]:
    """Scores of a run, one :class:`Evaluation` per resolution and variant; nothing is written.

    Of several processes (``depthg.processes``) each passes over a part of the photos; all but the first return nothing.

    Raises:
        ValueError: clusters out of range, a resolution that does not fit the backbone, other classes than the run's, an
            unknown split, or no labelled pixel.
        ImportError: a CRF is asked for and pydensecrf2 is missing.
        DataError: a photo or label cannot be read.
    """
    config = run.config
    if request.clusters is not None and not 2 <= request.clusters <= MAX_CLUSTERS:
        raise ValueError(f"clusters={request.clusters} is out of range; it must be between 2 and {MAX_CLUSTERS}")
    height, width = config.data.eval_size
    resolutions: Sequence[Resolution] = request.resolutions or ((height, width),)
    _check_resolutions(resolutions, run.backbone)
    refined = any(variant.crf for variant in request.variants)
    workers = processes.own_cores() if request.workers is None else request.workers
    with CrfPool(workers) if refined else nullcontext() as pool:
        preparation = Preparation(config, run.device)
        preparation.backbone = run.backbone
        split = _split(preparation, request.split)
        classes = _classes(run, preparation)
        read_outs = {name: read for name, read in probe_read_outs(run).items() if name == "cluster" or classes}
        read_outs |= processes.from_main(
            lambda: {
                name: read.to("cpu")
                for name, read in kmeans_read_outs(run, preparation, request.clusters, baselines=request.kmeans).items()
            }
        )
        read_outs = {name: read.to(run.device) for name, read in read_outs.items()}
        passing = EvaluationPass(run, read_outs, request.variants, len(classes), pool)
        counts = passing.over(split, resolutions)
    if not processes.is_main():
        return []
    found = []
    for part in product(resolutions, request.variants):
        own = {name: counts[(*part, name)] for name in READ_OUTS if (*part, name) in counts}
        found.append(_evaluation(run, request, preparation.dataset.note, *part, own, classes))
    skipped = tuple(getattr(split, "skipped", ()))
    return [dataclasses.replace(evaluation, skipped=skipped) for evaluation in found]


def evaluation_name(run: LoadedRun, request: Request, resolution: Resolution, variant: Variant) -> str:
    """File name without ending; unlike protocols have unlike names.

    Settings of the data and of the scores that are not the run's own stand in it: the matching and the count as words,
    the others as a checksum, the root for folders of photos alone: other data sets are what they are wherever they lie.
    """
    size = FULL if resolution == FULL else "x".join(map(str, resolution))
    clusters = "" if request.clusters is None else f"k{request.clusters}"
    own, now = to_config(stored_settings(run.path)), run.config
    words = [getattr(now.val, key) for key in ("matching", "count") if getattr(now.val, key) != getattr(own.val, key)]
    keys = ("labels", "classes", "list_train", "list_val", "n_val", "n_test") + ("root",) * (now.data.name == "folder")
    other = [(key, getattr(now.data, key)) for key in keys if getattr(now.data, key) != getattr(own.data, key)]
    checksum = f"{zlib.crc32(repr(other).encode()):08x}" if other else ""
    parts = (now.data.name, request.split, size, variant.name, run.checkpoint, clusters, *words, checksum)
    return "-".join(filter(None, parts))


def _evaluation(
    run: LoadedRun,
    request: Request,
    note: str,
    resolution: Resolution,
    variant: Variant,
    counts: dict[str, np.ndarray],
    classes: tuple[str, ...],
) -> Evaluation:
    config, n = run.config, counts["cluster"].shape[2]
    matching = config.val.matching if n == len(classes) else "many_to_one"
    clusters = {"number": n, "by": "k-means on codes" if request.clusters else "cluster probe"}
    base = protocol(config, note, config.depth.source != "none", run.header.get("shifts") or ())
    base |= {"matching": matching if classes else None, "iterations": run.header.get("iteration", config.iterations)}
    described = protocol_of(base, request.split, len(counts["cluster"]), resolution, variant, clusters, run.checkpoint)
    results = score_all(counts, classes, matching, config.val.count, request.samples) if classes else {}
    shares = {} if classes else cluster_shares(counts)
    return Evaluation(evaluation_name(run, request, resolution, variant), variant, described, classes, results, shares)


def _check_resolutions(resolutions: Sequence[Resolution], backbone: Backbone) -> None:
    for size in resolutions:
        if not isinstance(size, str) and any(side < 1 or side % backbone.multiple for side in size):
            near = "x".join(str(max(1, round(side / backbone.multiple)) * backbone.multiple) for side in size)
            raise ValueError(
                f"resolution {'x'.join(map(str, size))} must be a multiple of {backbone.multiple} for {backbone.name}; "
                f"nearest: {near}"
            )


def _split(preparation: Preparation, name: str) -> Split:
    split = getattr(preparation.dataset, name, None)
    if split is None:
        raise ValueError(f"data={preparation.dataset.name} has no split {name!r}; use val or train")
    return split


def _classes(run: LoadedRun, preparation: Preparation) -> tuple[str, ...]:
    """Classes of the labels: the run's own where it had labels; a run that only numbers its classes takes the names of
    the data in their order."""
    classes, data = tuple(preparation.dataset.classes), f"data={preparation.dataset.name}"
    if not classes or not run.classes or classes == run.classes:
        return classes
    if len(classes) != len(run.classes):
        raise ValueError(
            f"the run was trained on {len(run.classes)} classes, {data} has {len(classes)}; scores need the same "
            f"classes: give other labels, or number them as the run does (data=folder data.classes=FILE)"
        )
    if run.named:
        own, other = next(pair for pair in zip(run.classes, classes, strict=True) if pair[0] != pair[1])
        raise ValueError(
            f"the run was trained on {len(run.classes)} classes, {data} has {len(classes)} (the first that differs: "
            f"{own!r}, {other!r}); scores need the same classes"
        )
    return classes


# ---- command line


def resolution_of(text: str) -> Resolution:
    """``320``, ``320x416`` (height x width) or ``full``."""
    if text == FULL:
        return FULL
    try:
        sides = [int(side) for side in text.split("x")]
    except ValueError:
        sides = []
    if not 1 <= len(sides) <= 2 or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give 320, 320x416 (height x width) or full")
    return sides[0], sides[-1]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser("python -m depthg.evaluate", description=ABOUT)
    found.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    found.add_argument("overrides", nargs="*", metavar="key=value", help=f"given anew: {', '.join(MOVABLE)}")
    found.add_argument("--split", choices=("val", "test", "train"), default="val")
    found.add_argument(
        "--resolution", type=resolution_of, metavar="320|HxW|full",
        help="centre crop of photos scaled to cover it, or whole photos at their own size (default: data.eval_size)",
    )  # fmt: skip
    both = argparse.BooleanOptionalAction
    found.add_argument("--flip", action=both, default=None, help="average the codes of photo and mirror image")
    found.add_argument("--crf", action=both, default=None, help="refine both probes by the dense CRF (no baselines)")
    found.add_argument(
        "--all", action="store_true",
        help="plain, flip and flip + CRF, on the centre crop and on full frames, in one pass (--no-crf leaves it out)",
    )  # fmt: skip
    found.add_argument(
        "--clusters", type=int, metavar="K", help="cluster the codes anew by k-means instead of the cluster probe"
    )
    found.add_argument("--checkpoint", choices=CHECKPOINTS, default="last")
    found.add_argument("--kmeans", action=both, default=True, help="the k-means baselines; they read training photos")
    found.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="draws for the intervals (0: none)")
    found.add_argument("--workers", type=int, metavar="N", help="CRF processes (default: one per core)")
    found.add_argument("--out", type=Path, metavar="DIR", help="write here and leave RUN alone")
    found.add_argument("--overwrite", action="store_true", help="replace results of the same protocol")
    return found


def request_of(options: argparse.Namespace, default: Sequence[int]) -> Request:
    """The request that the options make; ``default`` is the run's ``data.eval_size``."""
    height, width = default
    size: Resolution = options.resolution or (height, width)
    sizes: tuple[Resolution, ...]
    variants: tuple[Variant, ...]
    if options.all:
        variants = (PLAIN, FLIP) if options.crf is False else (PLAIN, FLIP, FLIP_CRF)
        sizes = ((height, width) if size == FULL else size, FULL)
    else:
        sizes, variants = (size,), (Variant(bool(options.flip), bool(options.crf)),)
    return Request(options.split, sizes, variants, options.clusters, options.kmeans, options.bootstrap, options.workers)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m depthg.evaluate``."""
    command = parser()
    options = command.parse_intermixed_args(arguments)
    if options.all and options.flip is not None:
        command.error("--all evaluates with and without flip; drop --flip")
    if options.bootstrap < 0:
        command.error(f"--bootstrap {options.bootstrap} must be 0 or more")
    try:
        with terminate_as_interrupt():
            _run(options)
    except KeyboardInterrupt:
        print("stopped; what was written is whole", file=sys.stderr)
        return 130
    except (*USER_ERRORS, RuntimeError) as error:
        print(f"error{processes.label()}: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    started, console = time.perf_counter(), Console(width=None if sys.stdout.isatty() else 140)
    overrides = [re.sub("^data=", "data.name=", override) for override in options.overrides]
    run = load_run(options.run, options.checkpoint, None, overrides)
    processes.start(run.device)
    request = request_of(options, run.config.data.eval_size)
    folder = options.out or run.path / FOLDER
    if not options.out:
        read_metrics(run.path)  # its errors before the long work
    names = [evaluation_name(run, request, *part) for part in product(request.resolutions, request.variants)]
    files = [name + ending for name in names for ending in (".json", ".png")]
    processes.from_main(lambda: output_folder(folder, files, options.overwrite))
    found = evaluate(run, request)
    if not processes.is_main():
        return
    seconds = time.perf_counter() - started
    written = {write_evaluation(folder, item, environment(), seconds): item for item in found}
    if not options.out:
        note_in_metrics(run.path, written)
        write_report(run.path)
    print_evaluations(found, console)
    for path in written:
        console.print(f"written: {path}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
