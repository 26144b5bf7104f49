"""The fraction of a training step that waits for cached features; part of ``python bench/step.py``.

The steps are the trainer's (``training.step``), with the settings of a preset, on synthetic views. "On disk": the
features of every batch are dropped from memory before they are read, as if the data set were far larger than memory.
With read-ahead, the system is told of a batch one step before, as in the trainer; without it, pages are read on access.
Waiting is all the time that steps spend reading and converting features; its fraction is the ratio of the sums.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from depthg.config.composing import load_config
from depthg.config.schema import SamplingConfig
from depthg.features.prepared import grid_places
from depthg.features.reading import Features, StoredFeatures
from depthg.kernels.released import regular_grid
from depthg.training.step import Model, Step

AVAILABLE = hasattr(os, "posix_fadvise")
CASES = {"in memory": (False, True), "on disk, read ahead": (True, True), "on disk": (True, False)}  # cold, ahead
SETTINGS = {
    "paper": ("mode=paper",),
    "paper, probes at 256 cells": ("mode=paper", "probe.cells=256"),
    "released": ("mode=released", "sampling.schedule=[]"),
}
PRESET = ("experiment=cocostuff27_vits8", "data.root=.", "knn.k=7")
CLASSES = 27
WARM_UP = 2  # uncounted first iterations of a case


@dataclasses.dataclass(frozen=True)
class Row:
    settings: str
    features: str
    step_ms: float
    waiting_ms: float
    share: float


class FileFeatures(Features):
    """Two files of the same features, read in turn, so that one can be dropped from memory while the other is used.

    Attributes:
        iteration: if even, the first file is read and the second is prefetched; if odd, the reverse.
        waited: seconds spent reading since it was last reset.
    """

    def __init__(self, folder: Path, features: np.ndarray):
        super().__init__(features.shape, torch.float16)
        self.paths = [folder / "even.npy", folder / "odd.npy"]
        for path in self.paths:
            np.save(path, features)
        self.stored = [StoredFeatures(path, self.dtype) for path in self.paths]
        self.iteration, self.waited = 0, 0.0

    def drop(self, number: int) -> None:
        """Drops a file from memory. Mapped pages would stay, so the map is closed and opened again."""
        self.stored[number] = None
        file = os.open(self.paths[number], os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
        self.stored[number] = StoredFeatures(self.paths[number], self.dtype)

    def announce(self, views: np.ndarray) -> None:
        self.stored[1 - self.iteration % 2].announce(views)

    def rows(self, *given) -> torch.Tensor:
        return self._timed(self.stored[self.iteration % 2].rows, *given)

    def at(self, *given) -> torch.Tensor:
        return self._timed(self.stored[self.iteration % 2].at, *given)

    def _timed(self, read: Callable[..., torch.Tensor], *given) -> torch.Tensor:
        begin = time.perf_counter()
        found = read(*given)
        self.waited += time.perf_counter() - begin
        return found


def synthetic(features: Features, side: int, sampling: SamplingConfig) -> SimpleNamespace:
    """Synthetic inputs in the form of a preparation, with labels of 8 x 8 pixels a cell."""
    rng, count, size = np.random.default_rng(0), len(features), 8 * side
    coarse = torch.from_numpy(rng.random((count, 1, 4, 4), dtype=np.float32))
    depth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0.05, 1).flatten(1)
    labels = rng.integers(CLASSES, size=(count, size // 8, size // 8), dtype=np.int16).repeat(8, 1).repeat(8, 2)
    neighbours = np.stack([rng.choice(np.delete(np.arange(count), i), 7, replace=False) for i in range(count)])
    grids = torch.cat([regular_grid(depth.view(-1, side, side), points) for points in grid_places(sampling)], dim=1)
    return SimpleNamespace(
        features=features, grid=(side, side), depth=depth.numpy().astype(np.float16), depth_grids=grids.numpy(),
        normals=None, labels=labels, photos=np.arange(count), neighbours=neighbours, unknown=None,
    )  # fmt: skip


def measure(device: str, quick: bool) -> list[Row]:
    """Medians per step of every case; empty if the system has no ``posix_fadvise``."""
    side, channels, steps = (8, 64, 3) if quick else (28, 384, 16)
    given = (*PRESET, "batch_size=8", "sampling.points=4") if quick else PRESET
    rows = []
    for name, overrides in SETTINGS.items() if AVAILABLE else ():
        config = load_config([*given, *overrides])
        views = 8 * config.batch_size
        values = np.maximum(np.random.default_rng(0).standard_normal((views, side * side, channels)), 0)
        with tempfile.TemporaryDirectory(dir=os.environ.get("DEPTHG_CACHE")) as folder:
            features = FileFeatures(Path(folder), values.astype(np.float16))
            data = synthetic(features, side, config.sampling)
            for case, (cold, ahead) in CASES.items():
                torch.manual_seed(0)
                model = Model(channels, config.head.dim, config.head.dropout, CLASSES, CLASSES).to(device)
                adam = torch.optim.Adam(model.parameters(), lr=config.head.lr)
                step, samples = Step(config, data, model, torch.device(device), ahead), []
                for iteration in range(steps + WARM_UP):
                    begin = time.perf_counter()
                    if ahead:
                        step.ahead.wait()  # for the reads still in progress
                    features.iteration, features.waited = iteration, time.perf_counter() - begin
                    if cold:
                        features.drop(1 - iteration % 2)
                    begin = time.perf_counter() - features.waited
                    losses, _ = step.losses(iteration)
                    adam.zero_grad(set_to_none=True)
                    sum(losses.values()).backward()
                    adam.step()
                    losses["total"].item()  # waits for a GPU
                    samples.append(((time.perf_counter() - begin) * 1e3, features.waited * 1e3))
                times, waits = zip(*samples[WARM_UP:], strict=True)
                medians = statistics.median(times), statistics.median(waits)
                rows.append(Row(name, case, *medians, sum(waits) / sum(times)))
    return rows
