"""``python -m depthg.export RUN --onnx FILE``: a trained run as one ONNX graph for other programs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from depthg.data.files import show
from depthg.data.photos import find_photos
from depthg.inference.onnx_file import Written, check_packages, check_target, write_onnx
from depthg.inference.segmenter import Segmenter
from depthg.model.loaded_run import CHECKPOINTS
from depthg.runtime import command

ABOUT = """Writes a run as one ONNX file: backbone, head and clusters, from the bytes of photos to a segment number per
pixel. Names, colours and sizes are in its metadata. The run's legend.yaml is applied. If onnxruntime is installed, the
file is compared with the run before it gets its name."""


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser("python -m depthg.export", description=ABOUT)
    found.add_argument("run", metavar="RUN", help="run folder of depthg.train or depthg.convert")
    found.add_argument("--onnx", required=True, type=Path, metavar="FILE", help="the file to write")
    found.add_argument("--scores", action="store_true", help="also give float32 scores [batch, ids, height, width]")
    found.add_argument("--no-legend", action="store_true", help="clusters as they are, without the run's legend.yaml")
    found.add_argument("--check", nargs="+", default=[], metavar="PHOTOS", help="compare on these photos too")
    found.add_argument("--checkpoint", choices=CHECKPOINTS, default="last", help="weights of the run (%(default)s)")
    found.add_argument("--weights", metavar="PATH", help="path of the backbone's weights, if it has changed")
    found.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return found


def run(options: argparse.Namespace) -> None:
    """Writes the file and prints what is in it.

    Raises:
        ValueError, OSError, ImportError: the run cannot be read or exported, or the file cannot be written.
    """
    check_packages()
    check_target(options.onnx, options.overwrite)
    photos, problems = find_photos(options.check, options.onnx) if options.check else ([], [])
    if problems:
        raise ValueError("; ".join(problems))
    segmenter = Segmenter.load(
        options.run, checkpoint=options.checkpoint, device="cpu", legend=not options.no_legend, weights=options.weights
    )
    files = [path for path, _ in photos]
    print(summary(options.onnx, write_onnx(segmenter, options.onnx, scores=options.scores, photos=files)))


def summary(path: Path, written: Written) -> str:
    """What was written, in two lines."""
    about = written.metadata
    compared = (
        "not compared with the run: onnxruntime is not installed" if written.equal is None
        else f"{written.equal:.3%} of the ids are those of the run"
    )  # fmt: skip
    sides = f"sides that are multiples of {about['multiple']}"
    return (
        f"{show(path)}: {about['input']}, {sides} -> {' and '.join(about['outputs'])}, {len(about['names'])} names\n"
        f"{compared}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m depthg.export``."""
    options = parser().parse_args(arguments)
    return command.run(lambda: run(options), f"stopped; {show(options.onnx)} is as it was, or complete")


if __name__ == "__main__":
    sys.exit(main())
