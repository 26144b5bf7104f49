"""``python -m depthg.convert CKPT --out RUN``: converts checkpoints of STEGO and DepthG to run folders."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from depthg.config import Config
from depthg.data.files import show
from depthg.model.converted import convert
from depthg.model.loaded_run import load_run
from depthg.runtime import command


def describe(run: Path, found: Config, classes: int) -> str:
    """Summary of a converted run, and the commands to use it."""
    extra = f", {found.n_classes - classes} of them extra" if classes and found.n_classes > classes else ""
    weights = "" if found.backbone.weights else "; its backbone is not in the checkpoint and will be loaded by name"
    known = found.data.name != "folder"
    data = "data.root=DIR" if known else "data=folder data.root=PHOTOS data.labels=LABELS data.classes=FILE"
    return (
        f"{show(run)}: {found.backbone.name}, {found.head.dim} code channels, {found.n_classes} clusters{extra}, "
        f"{f'linear probe of {classes} classes' if classes else 'no linear probe'}{weights}\n"
        f"next: python -m depthg.predict {show(run)} PHOTOS --out DIR\n"
        f"      python -m depthg.evaluate {show(run)} {data}"
    )


def run(options: argparse.Namespace) -> None:
    """Converts a checkpoint and prints a summary."""
    loaded = load_run(convert(options.checkpoint, options.out, options.overwrite))
    print(describe(loaded.path, loaded.config, len(loaded.classes)))


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m depthg.convert``."""
    parser = argparse.ArgumentParser(
        "python -m depthg.convert",
        description="Turns a checkpoint of STEGO or DepthG into a run folder. Nothing in the file is executed.",
    )
    parser.add_argument("checkpoint", metavar="CKPT", type=Path, help="the .ckpt file")
    parser.add_argument("--out", required=True, metavar="RUN", type=Path, help="run folder to create")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run folder")
    options = parser.parse_args(arguments)
    return command.run(lambda: run(options), f"stopped; {show(options.out)} is as it was, or complete")


if __name__ == "__main__":
    sys.exit(main())
