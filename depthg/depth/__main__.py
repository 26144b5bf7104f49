"""``python -m depthg.depth IMAGES... --out DIR``: depth maps of photos, and pictures of them, by a depth network."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from depthg.data.colours import depth_colours, depth_scale
from depthg.data.files import DataError, list_files, read_image, show, without_setting
from depthg.data.photos import find_photos, real_path
from depthg.depth.cache import AHEAD, WORKERS, Job, predict, same_shape
from depthg.depth.network import DEFAULT_MODEL, OUTPUTS, DepthNetwork, check_finite
from depthg.depth.sources import DEPTH_SUFFIXES
from depthg.depth.units import UNIT_FILE, read_made_by, write_unit
from depthg.runtime import command
from depthg.runtime.device import pick_device
from depthg.runtime.progress import ProgressBar
from depthg.runtime.read_ahead import ahead
from depthg.storage.whole_files import write_whole

STEP = 1 / 256  # metres per step of 16-bit maps, up to 256 m; KITTI's
SUFFIX = {"png16": ".png", "npy": ".npy"}
PREVIEWS = "previews"  # previews are .jpg, a suffix that depth maps never have

SUMMARY = f"""Depth maps of photos, one per photo under its relative path, and pictures of them in DIR/{PREVIEWS}.
png16: 16 bits, metres in steps of 1/256 m; npy: float32 metres. Networks without scale give values in [0, 1] instead,
near 0 and far 1, each photo scaled by itself. DIR/{UNIT_FILE} says which, and training reads it:
python -m depthg.train depth.source=folder depth.root=DIR"""


@dataclass(frozen=True)
class DepthFiles:
    """A photo and where its depth goes."""

    path: Path
    map: Path
    preview: Path


# ---- inputs and outputs


def plan(photos: Sequence[tuple[Path, str]], out: Path, suffix: str) -> list[DepthFiles]:
    """Where each photo's depth goes.

    Raises:
        ValueError: `out` holds one of the photos, two photos would have one map, or a photo would be overwritten.
    """
    planned: dict[str, DepthFiles] = {}
    for path, relative in photos:
        if real_path(path).parent == real_path(out):
            raise ValueError(f"--out {show(out)} is the folder of the photo {show(path)}: choose a folder of its own")
        stem = os.path.splitext(relative)[0]
        photo = DepthFiles(path, out / (stem + suffix), out / PREVIEWS / (stem + ".jpg"))
        other = planned.setdefault(stem.casefold(), photo)
        if other is not photo:
            raise ValueError(
                f"{show(other.path)} and {show(path)} would both be written to {show(photo.map)}: rename one, or give "
                f"the folder that both are in"
            )
    inputs = {_inode(photo.path) for photo in planned.values()} - {None}
    for photo in planned.values():
        for path in (photo.map, photo.preview):
            if _inode(path) in inputs:
                raise ValueError(f"{show(path)} is a photo and would be overwritten: choose another --out")
    return list(planned.values())


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def check_output(out: Path, photos: Sequence[DepthFiles], made_by: dict, overwrite: bool) -> None:
    """Raise ValueError if the folder holds maps of other settings, or maps would be replaced without --overwrite."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {show(out)} is a file: name a folder")
    there = list_files(out, DEPTH_SUFFIXES, recursive=True) if out.is_dir() else []
    if not there or read_made_by(out) == made_by:
        return
    planned = {photo.map for photo in photos}
    foreign = next((path for path in there if path not in planned), None)
    if foreign is not None:
        raise ValueError(
            f"--out {show(out)} holds {show(foreign)}, which was not made with these settings: choose another folder"
        )
    if not overwrite:
        raise ValueError(
            f"--out {show(out)} holds depth maps made with other settings: pass --overwrite to replace them, or choose "
            f"another folder"
        )


def write_depth(photo: DepthFiles, depth: np.ndarray, metric: bool) -> None:
    """Writes the preview and then the map of a photo, each atomically; if the map exists, so does the preview."""
    colours = Image.fromarray(depth_colours(depth, depth_scale([depth], metric)))
    write_whole(photo.preview, lambda partial: colours.save(partial, format="jpeg", quality=92))
    if photo.map.suffix == ".npy":
        write_whole(photo.map, lambda partial: _save_npy(partial, depth))
    else:
        levels = np.rint(depth / STEP).clip(1, 65535) if metric else np.rint(depth * 65535)
        image = Image.fromarray(levels.astype(np.uint16))
        write_whole(photo.map, lambda partial: image.save(partial, format="png"))


def _save_npy(path: Path, depth: np.ndarray) -> None:
    with open(path, "wb") as file:  # numpy.save adds a suffix to names
        np.save(file, depth)


# ---- the command


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


def make_maps(network: DepthNetwork, photos: Sequence[DepthFiles], batch_size: int) -> list[str]:
    """Predicts and writes depth, with a progress bar; returns a line for each photo that cannot be used."""
    failed: list[str] = []

    def load(photo: DepthFiles) -> Job | None:
        try:
            image = read_image(photo.path)
        except DataError as error:
            failed.append(without_setting(error))
            return None
        return Job(photo, show(photo.path), network.prepare(image), image.shape[:2])

    def write(job: Job, prediction) -> None:
        try:
            check_finite(prediction, job.name, network.source.label)
        except DataError as error:
            failed.append(str(error))
            return
        write_depth(job.path, network.finish(prediction, job.size), prediction.metric)

    with ThreadPoolExecutor(WORKERS) as pool, ProgressBar("depth", len(photos)) as bar:

        def readable() -> Iterator[Job]:
            for job in ahead(pool, load, photos, AHEAD):
                if job is None:
                    bar.advance()
                else:
                    yield job

        for jobs in same_shape(readable(), batch_size):
            list(pool.map(write, jobs, predict(network, jobs)))
            bar.advance(len(jobs))
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; status 1 when anything failed."""
    options = parse(arguments)
    stopped = "stopped; the maps that are written are whole, and the same command goes on from here"
    return command.run(lambda: min(1, run(options)), stopped, (ValueError, OSError, ImportError))


if __name__ == "__main__":
    sys.exit(main())
