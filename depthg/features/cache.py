"""The feature cache: backbone output of every view, projected, with means for the nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from depthg.features.transform import (
    FIT_VALUES,
    FeatureTransform,
    Maps,
    disk_dtype,
    from_disk,
    round_maps,
    to_disk,
    transform_stored,
)
from depthg.runtime.device import to_device
from depthg.runtime.progress import ProgressBar
from depthg.storage.cache import Arrays, Build, rows_per_shard

FIT_VIEWS = 2048  # the transform is fitted on at most so many views, evenly spread
TRANSFORM = "transform.safetensors"


class FeatureWriter:
    """Fills a cache with features of views and their means over the cells, fitting the transform first if need be.

    Arrays: ``features`` ``[V, h*w, D]`` (with ``keep``), ``means`` float32 ``[V, D]``, the file
    ``transform.safetensors``, and temporarily ``raw`` ``[<= FIT_VIEWS, h*w, C]``, the backbone output that the
    transform is fitted on.

    Args:
        count: views V.
        cells: cells h*w of a view.
        transform: fitted in place with ``fit``, else used as it is.
        dtype: of the stored features.
        fit: whether the transform is to be fitted on these views.
        keep: whether the features are kept, or only their means.
        batch: views per forward pass; forward passes never straddle shards.
        shard_mb: MiB of a shard.
    """

    def __init__(
        self, count: int, cells: int, transform: FeatureTransform, dtype: torch.dtype, *,
        fit: bool, keep: bool, batch: int, shard_mb: float,
    ):  # fmt: skip
        self.count, self.cells, self.transform, self.dtype = count, cells, transform, dtype
        self.fit, self.keep, self.batch, self.shard_mb = fit, keep, batch, shard_mb
        self.channels_in = len(transform.mean)

    @property
    def arrays(self) -> Arrays:
        found = {"means": ((self.count, self.transform.channels), np.dtype(np.float32))}
        shape = (self.count, self.cells, self.transform.channels)
        return found | ({"features": (shape, disk_dtype(self.dtype))} if self.keep else {})

    @property
    def temporary(self) -> Arrays:
        shape = (min(self.count, FIT_VIEWS), self.cells, self.channels_in)
        return {"raw": (shape, disk_dtype(self.dtype))} if self.fit else {}

    def write(self, build: Build, maps: Maps, text: str) -> None:
        """Runs the backbone over the views; ``maps(views, batch)`` yields its output ``[batch, C, h, w]`` in order."""
        if self.fit:
            self._fit(build, maps, text)
        in_raw = self.fit and self.count <= FIT_VIEWS  # every view went through the backbone already
        with ProgressBar(f"{text}, projected" if in_raw else text, self.count) as bar:
            for rows in build.shards("features", self.count, self._shard(), bar):
                at = rows.start
                for raw in self._raw_parts(build, rows) if in_raw else self._rounded(maps(rows, self.batch)):
                    part = transform_stored(raw, self.transform)
                    if self.keep:
                        build.write("features", at, to_disk(part))
                    build.write("means", at, part.float().mean(1).cpu().numpy())
                    at += len(part)
                    bar.advance(len(part))
                if at != rows.stop:
                    raise ValueError(f"{at - rows.start} of {len(rows)} images reached the feature cache")

    def _fit(self, build: Build, maps: Maps, text: str) -> None:
        views = np.arange(min(self.count, FIT_VIEWS)) * self.count // min(self.count, FIT_VIEWS)
        with ProgressBar(text if self.count <= FIT_VIEWS else f"{text}, sample", len(views)) as bar:
            for rows in build.shards("raw", len(views), self._shard(), bar):
                at = rows.start
                for batch in maps(views[rows.start : rows.stop], self.batch):
                    build.write("raw", at, to_disk(round_maps(batch, self.dtype)))
                    at += len(batch)
                    bar.advance(len(batch))
        everything, size = range(len(views)), max(1, min(16, FIT_VALUES // (self.cells * self.channels_in)))
        for _ in build.once("fit"):
            self.transform.fit(lambda: (raw.flatten(0, 1) for raw in self._raw_parts(build, everything, size)))
            build.file(TRANSFORM, self._save_transform)
        self.transform.load_state_dict(load_file(build.folder / TRANSFORM))

    def _save_transform(self, path: str | Path) -> None:
        Path(path).write_bytes(save({name: value.cpu() for name, value in self.transform.state_dict().items()}))

    def _rounded(self, maps: Iterator[Tensor]) -> Iterator[Tensor]:
        return (round_maps(part, self.dtype) for part in maps)

    def _shard(self) -> int:
        row = self.cells * max(self.channels_in if self.fit else 0, self.transform.channels) * self.dtype.itemsize
        return rows_per_shard(row, self.shard_mb, self.batch)

    def _raw_parts(self, build: Build, rows: range, size: int | None = None) -> Iterator[Tensor]:
        """Parts of what the backbone gave, on the device of the transform."""
        array, size, device = build.read("raw"), size or self.batch, self.transform.mean.device
        for start in range(rows.start, rows.stop, size):
            yield to_device(from_disk(np.array(array[start : min(start + size, rows.stop)]), self.dtype), device)
