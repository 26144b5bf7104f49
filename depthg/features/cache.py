"""The feature cache: projected backbone output of every view, and its means for the nearest neighbours."""

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

FIT_VIEWS = 2048  # maximum number of views, evenly spaced, that the transform is fitted on
TRANSFORM = "transform.safetensors"


class FeatureWriter:
    """Writes features of views and their means over the cells to a cache; with ``fit``, fits the transform first.

    Arrays: ``features`` ``[V, h*w, D]`` (with ``keep``) and ``means`` float32 ``[V, D]``. With ``fit`` also the file
    ``transform.safetensors`` and the temporary array ``raw`` ``[<= FIT_VIEWS, h*w, C]``, the backbone output that the
    transform is fitted on.

    Args:
        count: number of views V.
        cells: number of cells h*w per view.
        transform: fitted in place with ``fit``, otherwise used unchanged.
        dtype: dtype of the stored features.
        fit: True to fit the transform on these views.
        keep: True to store the features, False to store only their means.
        batch: views per forward pass; a batch never crosses a shard boundary.
        shard_mb: size of a shard in MiB.
        valid: bool [V, h*w]; the fit and the means leave out the other cells. None: all count.
    """

    def __init__(
        self, count: int, cells: int, transform: FeatureTransform, dtype: torch.dtype, *,
        fit: bool, keep: bool, batch: int, shard_mb: float, valid: np.ndarray | None = None,
    ):  # fmt: skip
        self.valid = valid
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
        in_raw = self.fit and self.count <= FIT_VIEWS  # the backbone has already seen every view
        with ProgressBar(f"{text}, projected" if in_raw else text, self.count) as bar:
            for rows in build.shards("features", self.count, self._shard(), bar):
                at = rows.start
                for raw in self._raw_parts(build, rows) if in_raw else self._rounded(maps(rows, self.batch)):
                    part = transform_stored(raw, self.transform)
                    if self.keep:
                        build.write("features", at, to_disk(part))
                    build.write("means", at, self._means(part, at).cpu().numpy())
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
            self.transform.fit(lambda: self._rows(views, self._raw_parts(build, everything, size)))
            build.file(TRANSFORM, self._save_transform)
        self.transform.load_state_dict(load_file(build.folder / TRANSFORM))

    def _means(self, part: Tensor, first: int) -> Tensor:  # [B, h*w, D] of views `first` on -> float32 [B, D]
        if self.valid is None:
            return part.float().mean(1)
        valid = to_device(torch.from_numpy(self.valid[first : first + len(part)]), part.device)[..., None]
        return (part.float() * valid).sum(1) / valid.sum(1)

    def _rows(self, views: np.ndarray, parts: Iterator[Tensor]) -> Iterator[Tensor]:  # [B, h*w, C] -> [rows, C]
        """Vectors that the transform is fitted on, of consecutive parts of `views`."""
        at = 0
        for raw in parts:
            rows, own = raw.flatten(0, 1), views[at : at + len(raw)]
            at += len(raw)
            if self.valid is not None:
                rows = rows[to_device(torch.from_numpy(np.flatnonzero(self.valid[own])), rows.device)]
            yield rows

    def _save_transform(self, path: str | Path) -> None:
        Path(path).write_bytes(save({name: value.cpu() for name, value in self.transform.state_dict().items()}))

    def _rounded(self, maps: Iterator[Tensor]) -> Iterator[Tensor]:
        return (round_maps(part, self.dtype) for part in maps)

    def _shard(self) -> int:
        row = self.cells * max(self.channels_in if self.fit else 0, self.transform.channels) * self.dtype.itemsize
        return rows_per_shard(row, self.shard_mb, self.batch)

    def _raw_parts(self, build: Build, rows: range, size: int | None = None) -> Iterator[Tensor]:
        """Yields parts of the stored backbone output, on the device of the transform."""
        array, size, device = build.read("raw"), size or self.batch, self.transform.mean.device
        for start in range(rows.start, rows.stop, size):
            yield to_device(from_disk(np.array(array[start : min(start + size, rows.stop)]), self.dtype), device)
