"""Views in order, decoded ahead of their use, and the hash that identifies them in a cache key."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import numpy as np

from depthg.data.base import Split, Subset
from depthg.data.files import DataError, file_stamp
from depthg.data.load_worker import as_view
from depthg.data.reading import DEFAULT
from depthg.data.scenes import SceneSplit
from depthg.data.transforms import PARTS, View, Views
from depthg.runtime.progress import ProgressBar
from depthg.runtime.read_ahead import ahead
from depthg.runtime.worker_pool import ONE_THREAD, WorkerEnded, WorkerPool, array_text, available_cores
from depthg.storage.cache import Build

LOADERS = min(16, max(4, available_cores()))  # threads that decode
AHEAD = 64  # views decoded ahead


class Loader:
    """Reads views in order, decoded ahead.

    Args:
        workers: processes that decode, started at the first use and kept until :meth:`close`; 0: threads of this
            process. Both give the same views. In a worker process, the global generators of random, numpy and torch
            start at every photo from a seed that depends on ``seed`` and the photo alone, so that random numbers drawn
            by a custom split do not depend on the number of processes. Threads are not seeded, and neither are
            generators that belong to a split; every process has a copy of those.
        seed: the seed for that.

    Raises:
        ValueError: ``workers`` is below 0.
    """

    def __init__(self, workers: int = 0, seed: int = 0):
        if workers < 0:
            raise ValueError(f"data.workers={workers} must be at least 0")
        self.workers, self.seed = workers, seed
        self._pool: WorkerPool | None = None
        self._sent: list[tuple[Views, dict[str, np.ndarray]]] = []  # their place is their number in the processes

    def load(self, views: Views, numbers: Iterable[int], part: str) -> Iterator[View]:
        """One part (image, label or maps) of some views, in the given order.

        Raises:
            DataError: a photo cannot be read.
            OSError: a worker process ended, or failed otherwise.
            ValueError: the split, or a map, cannot be sent to another process.
        """
        if not self.workers:
            with ThreadPoolExecutor(LOADERS) as pool:
                yield from ahead(pool, lambda number: views.load(int(number), (part,)), numbers, AHEAD)
            return
        first = self._message(views)
        if self._pool is None:
            self._pool = WorkerPool(["depthg.data.load_worker"], self.workers, ONE_THREAD)
        photos = (list(group) for _, group in groupby(map(int, numbers), views.photo))  # a photo is decoded once
        depth = max(2 * self.workers, AHEAD // views.per_photo)
        for found in ahead(self._pool.threads, lambda photo: self._ask(first, photo, part), photos, depth):
            yield from found

    def close(self) -> None:
        """Ends the processes; the next use starts new ones."""
        if self._pool is not None:
            self._pool.__exit__()
            self._pool = None

    def _message(self, views: Views) -> tuple[int, dict[str, np.ndarray]]:
        """Number and setup message that a worker needs before it reads views."""
        for number, (sent, message) in enumerate(self._sent):
            if sent is views:
                return number, message
        try:
            pickled = pickle.dumps(views)
        except Exception as error:  # pickle raises anything
            parts = ", ".join(type(part).__name__ for part in (views.split, *views.maps.values()))
            raise ValueError(
                f"data.workers={self.workers}: what reads the photos ({parts}) cannot be sent to another process "
                f"({error}); use data.workers=0"
            ) from error
        number = len(self._sent)
        seed = np.array([self.seed])
        message = {"list": np.array([number]), "views": np.frombuffer(pickled, np.uint8), "seed": seed}
        self._sent.append((views, message))
        return number, message

    def _ask(self, first: tuple[int, dict[str, np.ndarray]], numbers: list[int], part: str) -> list[View]:
        job = {"list": np.array([first[0]]), "numbers": np.array(numbers), "part": np.array([PARTS.index(part)])}
        try:
            answer = self._pool.ask(job, first)
        except WorkerEnded as error:
            raise OSError(
                f"a process that decodes photos ended (exit code {error.args[0]}); if memory ran out, use fewer than "
                f"data.workers={self.workers}"
            ) from None
        if "error" in answer:
            kind, text = (array_text(answer[key]) for key in ("type", "error"))
            known = {"DataError": DataError, "ValueError": ValueError, "FileNotFoundError": FileNotFoundError}
            raise known[kind](text) if kind in known else OSError(f"a process that decodes photos: {kind}: {text}")
        return [as_view(answer, place) for place in range(len(numbers))]


def write_views(
    build: Build,
    text: str,
    views: Views,
    part: str,
    row: Callable[[View], dict[str, np.ndarray]],
    shard: int,
    loader: Loader,
) -> None:
    """Fills the arrays of a cache with a row per view, ``row(view)`` by name, in shards and with a progress bar."""
    with ProgressBar(text, len(views)) as bar:
        for numbers in build.shards(text, len(views), shard, bar):
            for number, view in zip(numbers, loader.load(views, numbers, part), strict=True):
                for name, values in row(view).items():
                    build.write(name, number, values[None])
                bar.advance()


def fingerprint(split: Split, missing_ok: bool = False) -> str:
    """Hash of what a split holds: its files with sizes and times, or for scenes the renderer's version and seed.

    A subset may leave out missing files; ``missing_ok`` allows them in the whole split.

    Raises:
        DataError: a file is missing.
    """
    if isinstance(split, Subset):
        parts = [fingerprint(split.split, missing_ok=True), *map(str, split.indices)]
    elif isinstance(split, SceneSplit):
        parts = [split.folder.name]
    else:
        files: Any = split  # every other split is one of files
        parts = list(getattr(files, "reading", DEFAULT).key)
        for path in [*files.images, *(files.labels or ())]:
            if path is not None:
                parts.append(path.name if missing_ok and not path.exists() else file_stamp(path))
    return hashlib.sha256("\n".join([*split.names, *parts]).encode("utf-8", "backslashreplace")).hexdigest()
