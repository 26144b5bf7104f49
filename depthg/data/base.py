"""The data-set interfaces, splits made of files, and the policy for photos that cannot be read."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from rich.progress import track

from depthg.data.colour_masks import MaskColours
from depthg.data.files import DataError, image_header, missing_pixels, read_image, read_label, show
from depthg.data.kinds import suffix_of
from depthg.data.map_order import in_photo_order
from depthg.data.reading import DEFAULT, Reading
from depthg.data.tiff import TIFF_SUFFIXES
from depthg.runtime.worker_pool import available_cores

ON_ERROR = ("raise", "skip")
MIN_SIDE = 8  # pixels; a smaller crop says nothing about its content


class Split(Protocol):
    """A list of photos, lazily read."""

    names: list[str]  # unique, human-readable, usable as file names

    def __len__(self) -> int: ...

    def image(self, index: int) -> np.ndarray:  # uint8 [H, W, 3]
        """The photo as RGB."""

    def label(self, index: int) -> np.ndarray | None:  # int64 [H, W]
        """The class of every pixel, -1 = void; None when the data set has no labels."""

    def depth(self, index: int) -> np.ndarray | None:  # float32 [H, W]
        """Depth along the optical axis in metres, inf = sky; None when the data set has no depth."""

    def fov_deg(self, index: int) -> float | None:
        """Horizontal field of view in degrees; None when unknown."""


AnySplit = TypeVar("AnySplit", bound=Split)


@dataclass
class Dataset:
    """A data set: its splits, the class names in label order, and a colour per class."""

    name: str
    classes: tuple[str, ...]  # empty when there are no labels
    palette: np.ndarray  # uint8 [n_classes, 3]
    train: Split
    val: Split
    test: Split | None = None  # held out from every choice of settings
    note: str = ""  # which photos and lists were found, where that decides what a number means


class FileSplit:
    """Photos and, if given, label maps on disk, without depth.

    Args:
        images: the photo files.
        root: the folder that `relative` paths start from.
        names: one unique name per photo; made from the relative paths when None.
        labels: one label map per photo, None for a photo without (all void), or None for a data set without.
        table: label ids to classes, from `files.label_table`; needed with `labels`.
        skipped: what was left out before, a line per photo.
        fov: horizontal field of view of the camera in degrees, None when unknown.
        reading: how the photo files are read.
        colours: classes of label maps in colour.
    """

    def __init__(
        self,
        images: Sequence[Path],
        *,
        root: Path,
        names: Sequence[str] | None = None,
        labels: Sequence[Path | None] | None = None,
        table: np.ndarray | None = None,
        skipped: Sequence[str] = (),
        fov: float | None = None,
        reading: Reading = DEFAULT,
        colours: MaskColours | None = None,
    ):
        self.images = list(images)
        self.labels = None if labels is None else list(labels)
        self.table = table
        self.relative = [path.relative_to(root).as_posix() for path in self.images]
        self.names = unique_names(self.relative) if names is None else list(names)
        self.skipped = list(skipped)
        self.fov = fov
        self.warned: set[str] = set()
        self.reading = reading
        self.colours = colours

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> np.ndarray:  # uint8 [H, W, 3]
        return read_image(self.images[index], self.reading)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the photo, from the file's header."""
        return self.size_and_turn(index)[0]

    def size_and_turn(self, index: int) -> tuple[tuple[int, int], int]:
        """The size, and the EXIF orientation by which the photo was turned upright (1: not at all)."""
        return image_header(self.images[index], self.reading)

    def label(self, index: int) -> np.ndarray | None:  # int64 [H, W]
        if self.labels is None:
            return None
        path, (size, turn) = self.labels[index], self.size_and_turn(index)
        if path is None:
            return np.full(size, -1, np.int64)
        label = self.read_label(path)
        label = in_photo_order(label, size, turn, self.reading.map_order, "label maps", self.warned)
        if label.shape != size:
            raise DataError(
                f"the label map {show(path)} is {label.shape[0]} x {label.shape[1]} (height x width), "
                f"its photo {show(self.images[index])} is {size[0]} x {size[1]}: export it at the photo's size"
            )
        missing = self.missing(index)
        if missing is not None:
            label[missing] = -1
        return label

    def missing(self, index: int) -> np.ndarray | None:  # bool [H, W]
        """Pixels of the photo without data, None if there are none."""
        return missing_pixels(self.images[index], self.reading)

    def read_label(self, path: Path) -> np.ndarray:  # int64 [H, W]
        """Classes of a label map."""
        return read_label(path, self.table, self.reading, self.colours)

    def depth(self, index: int) -> np.ndarray | None:  # float32 [H, W]
        return None

    def fov_deg(self, index: int) -> float | None:
        return self.fov


class Subset:
    """Some photos of a split, in the order of `indices`."""

    def __init__(self, split: Split, indices: Iterable[int], skipped: Sequence[str] = ()):
        self.split = split
        self.indices = [int(index) for index in indices]
        self.names = [split.names[index] for index in self.indices]
        relative = getattr(split, "relative", split.names)
        self.relative = [relative[index] for index in self.indices]
        self.table = getattr(split, "table", None)
        self.colours = getattr(split, "colours", None)
        self.images = [split.images[index] for index in self.indices] if hasattr(split, "images") else []
        self.reading = getattr(split, "reading", DEFAULT)
        self.skipped = list(skipped)

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> np.ndarray:  # uint8 [H, W, 3]
        return self.split.image(self.indices[index])

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the photo."""
        return photo_size(self.split, self.indices[index])

    def size_and_turn(self, index: int) -> tuple[tuple[int, int], int]:
        """The size, and the EXIF orientation by which the photo was turned upright."""
        return photo_size_and_turn(self.split, self.indices[index])

    def label(self, index: int) -> np.ndarray | None:  # int64 [H, W]
        return self.split.label(self.indices[index])

    def missing(self, index: int) -> np.ndarray | None:  # bool [H, W]
        """Pixels of the photo without data, None if there are none or the split does not tell."""
        return missing_in(self.split, self.indices[index])

    def depth(self, index: int) -> np.ndarray | None:  # float32 [H, W]
        return self.split.depth(self.indices[index])

    def fov_deg(self, index: int) -> float | None:
        return self.split.fov_deg(self.indices[index])


def photo_size(split: Split, index: int) -> tuple[int, int]:
    """(height, width) of a photo, without decoding it where the split knows a shorter way."""
    return split.size(index) if hasattr(split, "size") else split.image(index).shape[:2]


def photo_size_and_turn(split: Split, index: int) -> tuple[tuple[int, int], int]:
    """(height, width) of a photo, and the EXIF orientation by which it was turned (1 where the split tells none)."""
    return split.size_and_turn(index) if hasattr(split, "size_and_turn") else (photo_size(split, index), 1)


def missing_in(split: Split, index: int) -> np.ndarray | None:  # bool [H, W]
    """Pixels of a photo without data, None if there are none or the split does not tell."""
    return split.missing(index) if hasattr(split, "missing") else None


def may_miss_pixels(split: Split) -> bool:
    """Whether some photo is of a kind that may have pixels without data; looks at names alone."""
    return any(suffix_of(path) in TIFF_SUFFIXES for path in getattr(split, "images", ()))


def drop_unreadable(split: AnySplit, on_error: str) -> AnySplit | Subset:
    """Apply the policy `data.on_error` to a split.

    "raise" leaves the split as it is: reading is lazy, and the first bad photo raises when it is read. "skip" reads
    every photo, label and depth map once (on all cores), leaves out those that raise DataError, and warns with their
    number, names and reasons; the returned split carries the reasons in `skipped`.

    Raises:
        DataError: every photo is unreadable.
        ValueError: unknown policy.
    """
    check_on_error(on_error)
    if on_error == "raise" or len(split) == 0:
        return split

    def reason(index: int) -> str | None:
        try:
            size = split.image(index).shape[:2]
            split.label(index), split.depth(index)
        except DataError as error:
            return str(error)
        return None if min(size) >= MIN_SIDE else f"the photo {split.names[index]} is only {size[0]} x {size[1]} pixels"

    with ThreadPoolExecutor(available_cores()) as pool:
        reasons = list(
            track(
                pool.map(reason, range(len(split))),
                "checking photos",
                total=len(split),
                transient=True,
                disable=len(split) < 1000,  # a bar for a second of work is noise
            )
        )
    bad = [text for text in reasons if text is not None]
    if len(bad) == len(split):
        raise DataError(f"none of the {len(split)} photos can be used; the first: {bad[0]}")
    if not bad:
        return split
    report_skipped(bad, len(split))
    kept = [index for index, text in enumerate(reasons) if text is None]
    return Subset(split, kept, skipped=[*getattr(split, "skipped", []), *bad])


def check_on_error(on_error: str) -> None:
    """Raise ValueError unless `on_error` is a known policy."""
    if on_error not in ON_ERROR:
        raise ValueError(f"data.on_error={on_error!r} is not one of {', '.join(ON_ERROR)}")


def report_skipped(reasons: Sequence[str], total: int, limit: int = 5) -> None:
    """Warn how many of `total` photos are left out, with the first reasons."""
    more = f"\n  ... and {len(reasons) - limit} more" if len(reasons) > limit else ""
    listed = "\n  ".join(reasons[:limit])
    warnings.warn(f"skipped {len(reasons)} of {total} photos (data.on_error=skip):\n  {listed}{more}", stacklevel=2)


def unique_names(relative: Sequence[str]) -> list[str]:
    """Names for photos by their relative paths: printable, usable as file names, unique even where case is ignored.

    The suffix is dropped unless two photos differ in nothing else; folders are joined with "_".
    """
    stems = [os.path.splitext(path)[0] for path in relative]
    counts = Counter(stem.casefold() for stem in stems)
    names, taken = [], set()
    for path, stem in zip(relative, stems, strict=True):
        text = show(stem if counts[stem.casefold()] == 1 else path)
        base = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", text)[-80:]  # file names end at 255 bytes, a letter has up to 3
        name, number = base, 2
        while name.casefold() in taken:
            name, number = f"{base}_{number}", number + 1
        taken.add(name.casefold())
        names.append(name)
    return names
