"""The share of a training step that waits for cached features; part of ``python bench/step.py``.

"On disk" the features of every batch are thrown out of memory before their turn, as if the data set were far larger
than memory. With read-ahead the system is told of a batch one step before, as the trainer does; without, it reads what
is touched. Waiting is all the time spent on announcing, reading and converting features.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from depthg.features import StoredFeatures
from depthg.read_ahead import ReadAhead

AVAILABLE = hasattr(os, "posix_fadvise")
CASES = {"in memory": (False, True), "on disk, read ahead": (True, True), "on disk": (True, False)}  # cold, ahead
WARM_UP = 2  # iterations of a case that are not counted


@dataclasses.dataclass(frozen=True)
class Row:
    features: str
    probes: str
    step_ms: float
    waiting_ms: float
    share: float


class FileFeatures:
    """Two files of the same features, read in turn, so that one can be dropped from memory while the other is used.

    Attributes:
        iteration: even: the first file is read and the second announced; odd: the other way round.
        waited: seconds spent on reading since it was set to 0.
    """

    def __init__(self, folder: Path, features: np.ndarray):
        self.paths = [folder / "even.npy", folder / "odd.npy"]
        for path in self.paths:
            np.save(path, features)
        self.stored = [StoredFeatures(path, torch.float16) for path in self.paths]
        self.iteration, self.waited, self.ahead = 0, 0.0, ReadAhead()

    def drop(self, number: int) -> None:
        """Throws a file out of memory. Mapped pages would stay, so the map is closed meanwhile."""
        self.ahead.wait()
        self.stored[number] = None
        file = os.open(self.paths[number], os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
        self.stored[number] = StoredFeatures(self.paths[number], torch.float16)

    def announce(self, views: np.ndarray) -> None:
        begin = time.perf_counter()
        self.ahead.start(partial(self.stored[1 - self.iteration % 2].announce, views))
        self.waited += time.perf_counter() - begin

    def at(self, views: np.ndarray, cells: torch.Tensor) -> torch.Tensor:
        begin = time.perf_counter()
        found = self.stored[self.iteration % 2].at(views, cells)
        self.waited += time.perf_counter() - begin
        return found


def measure(
    make_step: Callable[[FileFeatures], Callable[[int], None]],
    views: Callable[[int], np.ndarray],
    features: np.ndarray,  # float16 [V, h*w, C]
    steps: int,
    probes: str,
) -> list[Row]:
    """Medians of ``make_step(features)(iteration)``, whose batch reads ``views(iteration)``, in every case.

    ``probes`` says in the rows what the probes of these steps see.

    Empty where the system takes no advice about files.
    """
    rows = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("DEPTHG_CACHE")) as folder:
        found = FileFeatures(Path(folder), features)
        step = make_step(found)
        for name, (cold, ahead) in CASES.items() if AVAILABLE else ():
            samples = []
            for iteration in range(steps + WARM_UP):
                found.iteration, found.waited = iteration, 0.0
                if cold:
                    found.drop(1 - iteration % 2)
                begin = time.perf_counter()
                if ahead:
                    found.announce(views(iteration + 1))
                step(iteration)
                samples.append(((time.perf_counter() - begin) * 1e3, found.waited * 1e3))
            whole, waited = (statistics.median(column) for column in zip(*samples[WARM_UP:], strict=True))
            rows.append(Row(name, probes, whole, waited, waited / whole))
    return rows
