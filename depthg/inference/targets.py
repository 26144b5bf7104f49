"""Photos and the names of their output files; overlays."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from depthg.data.base import unique_names
from depthg.data.files import show
from depthg.data.geotiff import is_geotiff
from depthg.inference.overlays import labelled_overlay, plain_overlay
from depthg.storage.whole_files import write_whole

OVERLAYS = {"jpg": "JPEG", "png": "PNG", "none": None}


@dataclass(frozen=True)
class Target:
    """A photo and its output files; None for files that are not requested."""

    photo: Path
    name: str
    ids: Path
    overlay: Path | None
    probabilities: Path | None
    relative: str  # path of the photo as it was given

    @property
    def raster(self) -> bool:
        """Whether the ids are a GeoTIFF."""
        return self.ids.suffix == ".tif"

    @property
    def files(self) -> list[Path]:
        return [path for path in (self.ids, self.overlay, self.probabilities) if path is not None]


def plan(photos: Sequence[tuple[Path, str]], out: Path, overlay: str, probabilities: bool) -> list[Target]:
    """Chooses the output files of all photos.

    Names are the photos' relative paths; photos whose names would be equal get a path from their common folder.

    Raises:
        ValueError: an output would replace one of the photos.
    """
    counts = Counter(os.path.splitext(relative)[0].casefold() for _, relative in photos)
    clashing = [path for path, relative in photos if counts[os.path.splitext(relative)[0].casefold()] > 1]
    base = os.path.commonpath([path.absolute().parent for path in clashing]) if clashing else ""
    relative = [os.path.relpath(p.absolute(), base) if p in clashing else r for p, r in photos]
    targets = [
        Target(
            path,
            name,
            out / "ids" / f"{name}{'.tif' if is_geotiff(path) else '.png'}",
            None if OVERLAYS[overlay] is None else out / "overlay" / f"{name}.{overlay}",
            out / "probabilities" / f"{name}.npz" if probabilities else None,
            Path(place).as_posix(),
        )
        for (path, _), place, name in zip(photos, relative, unique_names(relative), strict=True)
    ]
    inputs = {os.path.realpath(path) for path, _ in photos}  # Path.resolve raises on a link to itself
    for file in (file for target in targets for file in target.files):
        if os.path.realpath(file) in inputs:
            raise ValueError(f"{show(file)} is one of the photos and would be replaced; choose another --out")
    return targets


def write_overlay(
    target: Target,
    image: np.ndarray,  # uint8 [H, W, 3]
    ids: np.ndarray,  # [H, W]
    colours: np.ndarray,  # uint8 [n, 3], or [n + 1, 3] with a colour of pixels without data
    names: Sequence[str],
    plain: bool,
) -> None:
    """Writes the overlay of a photo, whole or not at all, if one is wanted; ``plain``: as in ``plain_overlay``."""
    if target.overlay is None:
        return
    kind = OVERLAYS[target.overlay.suffix[1:]]
    drawn = plain_overlay(image, ids, colours) if plain else labelled_overlay(image, ids, colours, names)
    write_whole(target.overlay, lambda partial: drawn.save(partial, format=kind, quality=90), flush=False)
