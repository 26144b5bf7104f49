"""Files of predicted depth: where each map and its picture go, and how they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from depthg.data.colours import depth_colours, depth_scale
from depthg.data.files import DataError, list_files, read_image, show, without_setting
from depthg.data.photos import real_path
from depthg.data.ranges import resolved
from depthg.data.reading import DEFAULT
from depthg.depth.cache import AHEAD, WORKERS, Job, predict, same_shape
from depthg.depth.network import DepthNetwork, check_finite
from depthg.depth.sources import DEPTH_SUFFIXES
from depthg.depth.units import read_made_by
from depthg.runtime.progress import ProgressBar
from depthg.runtime.read_ahead import ahead
from depthg.storage.whole_files import write_whole

STEP = 1 / 256  # metres per step of 16-bit maps, up to 256 m; KITTI's
SUFFIX = {"png16": ".png", "npy": ".npy"}
PREVIEWS = "previews"  # previews are .jpg, a suffix that depth maps never have


@dataclass(frozen=True)
class DepthFiles:
    """A photo and where its depth goes."""

    path: Path
    map: Path
    preview: Path


def plan(photos: Sequence[tuple[Path, str]], out: Path, suffix: str) -> list[DepthFiles]:
    """Where each photo's depth goes.

    Raises:
        ValueError: `out` holds one of the photos, two photos would have one map, or a photo would be overwritten.
    """
    planned: dict[str, DepthFiles] = {}
    for path, relative in photos:
        if real_path(path).parent == real_path(out):
            raise ValueError(f"--out {show(out)} is the folder of the photo {show(path)}: choose another folder")
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


def make_maps(network: DepthNetwork, photos: Sequence[DepthFiles], batch_size: int) -> list[str]:
    """Predicts and writes depth, with a progress bar; returns a line for each photo that cannot be used."""
    failed: list[str] = []
    reading = resolved(DEFAULT, [photo.path for photo in photos], "the photos")

    def load(photo: DepthFiles) -> Job | None:
        try:
            image = read_image(photo.path, reading)
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
