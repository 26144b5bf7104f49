"""Views in order, decoded ahead of whoever uses them, and what identifies them in a cache key."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from depthg.cache import Build
from depthg.data.base import Split, Subset
from depthg.data.files import file_stamp
from depthg.data.scenes import SceneSplit
from depthg.data.transforms import View, Views
from depthg.depth_cache import ahead
from depthg.progress import StageBar

LOADERS = min(16, max(4, os.cpu_count() or 1))  # threads that decode
AHEAD = 64  # views decoded ahead


def load_views(views: Views, numbers: Iterable[int], part: str) -> Iterator[View]:
    """One part (image, label or maps) of some views, in the given order."""
    with ThreadPoolExecutor(LOADERS) as pool:
        yield from ahead(pool, lambda number: views.load(int(number), (part,)), numbers, AHEAD)


def write_views(
    build: Build, text: str, views: Views, part: str, row: Callable[[View], dict[str, np.ndarray]], shard: int
) -> None:
    """Fills the arrays of a cache with a row per view, ``row(view)`` by name, in shards and with a progress bar."""
    with StageBar(text, len(views)) as bar:
        for numbers in build.shards(text, len(views), shard, bar):
            for number, view in zip(numbers, load_views(views, numbers, part), strict=True):
                for name, values in row(view).items():
                    build.write(name, number, values[None])
                bar.advance()


def fingerprint(split: Split, missing_ok: bool = False) -> str:
    """Hash of what a split holds: its files with sizes and times, or for scenes the renderer's version and seed.

    A subset may leave out files that are not there; ``missing_ok`` says so of its whole.

    Raises:
        DataError: a file is not there.
    """
    if isinstance(split, Subset):
        parts = [fingerprint(split.split, missing_ok=True), *map(str, split.indices)]
    elif isinstance(split, SceneSplit):
        parts = [split.folder.name]
    else:
        files: Any = split  # every other split is one of files
        parts = []
        for path in [*files.images, *(files.labels or ())]:
            if path is not None:
                parts.append(path.name if missing_ok and not path.exists() else file_stamp(path))
    return hashlib.sha256("\n".join([*split.names, *parts]).encode("utf-8", "backslashreplace")).hexdigest()
