"""``python -m depthg.depth IMAGES... --out DIR``: depth maps of photos, and pictures of them, by a depth network."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from depthg.data.files import show
from depthg.data.photos import find_photos
from depthg.depth.files import PREVIEWS, STEP, SUFFIX, check_output, make_maps, plan
from depthg.depth.network import DEFAULT_MODEL, OUTPUTS, DepthNetwork
from depthg.depth.units import UNIT_FILE, write_unit
from depthg.runtime import command
from depthg.runtime.device import pick_device

SUMMARY = f"""Depth maps of photos, one per photo under its relative path, and pictures of them in DIR/{PREVIEWS}.
png16: 16 bits, metres in steps of 1/256 m; npy: float32 metres. Networks without scale give values in [0, 1] instead,
near 0 and far 1, each photo scaled by itself. DIR/{UNIT_FILE} says which, and training reads it:
python -m depthg.train depth.source=folder depth.root=DIR"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m depthg.depth", description=SUMMARY, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="photos, folders of photos, or quoted patterns")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the maps")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="ID_OR_FOLDER",
        help="hub id or transformers folder of a ZoeDepth, Depth Anything or DPT network (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--format", choices=tuple(SUFFIX), default="png16", help="of the maps (%(default)s)")
    parser.add_argument("--flip", action="store_true", help="average with the prediction of the mirrored photo")
    parser.add_argument(
        "--output", choices=OUTPUTS, default="auto", help="what the network gives (%(default)s: by its kind)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="photos per forward pass (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="make maps that are there again")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    options.out = options.out.expanduser()
    return options


def run(options: argparse.Namespace) -> int:
    """Makes the maps; photos and inputs that cannot be used are named on stderr.

    Returns the number of those.

    Raises:
        ValueError, FileNotFoundError, ImportError: nothing can be done; nothing was written.
        OSError: a map cannot be written.
    """
    found, problems = find_photos(options.images, options.out)
    print(*problems, sep="\n", end="\n" * bool(problems), file=sys.stderr)
    photos = plan(found, options.out, SUFFIX[options.format])
    if not photos:
        raise ValueError("there is no photo to work on")
    network = DepthNetwork(
        options.model, flip=options.flip, output=options.output, device=pick_device(options.device),
        give="--model FOLDER",
    )  # fmt: skip
    made_by = {"network": network.name, "identity": network.identity, "format": options.format}
    check_output(options.out, photos, made_by, options.overwrite)
    todo = photos if options.overwrite else [photo for photo in photos if not photo.map.is_file()]
    if todo:
        network.model  # noqa: B018 (errors of the weights before anything is written)
        write_unit(options.out, network.metric, STEP if network.metric else None, made_by)
    failed = make_maps(network, todo, options.batch_size)
    print(*failed, sep="\n", end="\n" * bool(failed), file=sys.stderr)
    kept, mapping = len(photos) - len(todo), "" if network.metric else " depth.mapping=none"
    print(f"{len(todo) - len(failed)} depth maps written to {show(options.out)}", end="")
    print(f", {kept} were there" * bool(kept), f", {len(failed)} photos failed" * bool(failed), sep="")
    print(f"for training: depth.source=folder depth.root={show(options.out)}{mapping}")
    return len(failed) + len(problems)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; status 1 when anything failed."""
    options = parse(arguments)
    stopped = "stopped; the maps that are written are whole, and the same command goes on from here"
    return command.run(lambda: min(1, run(options)), stopped, (ValueError, OSError, ImportError))


if __name__ == "__main__":
    sys.exit(main())
