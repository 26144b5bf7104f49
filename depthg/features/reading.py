"""Reads features from the cache, or recomputes them from the photos (``features.cache=off``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthg.features.transform import CACHED_ROWS, FeatureTransform, Maps, from_disk, stored
from depthg.runtime.device import host_memory, to_device
from depthg.runtime.read_ahead import read_ahead


class Features:
    """Feature maps ``[V, h*w, D]`` that are read by view; has ``len``, ``shape`` and indexing like an array.

    Args:
        shape: (V, h*w, D).
        dtype: dtype of the stored or rounded features.

    Attributes:
        valid: bool [V, h*w], False in cells where the photos have no data, which training leaves out; None: all have.
    """

    valid: Any = None

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype):
        self.shape, self.dtype = tuple(shape), dtype

    def __len__(self) -> int:
        return self.shape[0]

    def with_data(self, views: np.ndarray) -> Tensor | None:  # int [N] -> bool [N, h*w]
        """Cells with data of some views, on the CPU; None if all cells of all views have data."""
        return None if self.valid is None else torch.from_numpy(np.asarray(self.valid[views]))

    def read(self, views: np.ndarray) -> Tensor:  # int [N] -> dtype [N, h*w, D]
        """Maps of some views, rounded to ``dtype``, on the CPU."""
        raise NotImplementedError

    def announce(self, views: np.ndarray) -> None:
        """Prefetches the next views from disk into memory."""

    def rows(self, views: np.ndarray, device: torch.device | str = "cpu", out: Tensor | None = None) -> Tensor:
        """Maps of some views in float32 ``[N, h*w, D]`` on a device.

        Args:
            views: int [N].
            device: device of the result.
            out: float32 [N, h*w, D] on the CPU, filled and returned if ``device`` is the CPU; allocating it may cost
                more than reading the features.
        """
        maps = self.read(views)
        if torch.device(device).type == "cpu" and out is not None:
            return out.copy_(maps)
        return to_device(maps, device).float()

    def at(
        self, views: np.ndarray, cells: Tensor, device: torch.device | str = "cpu", out: Tensor | None = None
    ) -> Tensor:
        """Vectors at the cells int64 ``[N, P]`` of each view, in float32 ``[N, P, D]`` on a device.

        Pass ``cells`` on the CPU, where features are read: cells on a GPU would make the host wait for it. ``out``:
        float32 ``[N, P, D]`` on the CPU, filled and returned if ``device`` is the CPU.
        """
        index = cells.cpu()[..., None].expand(-1, -1, self.shape[2])
        found = self.read(views).gather(1, index)
        if out is not None and torch.device(device).type == "cpu":
            return out.copy_(found)
        return to_device(found, device).float()

    def __getitem__(self, index) -> np.ndarray:
        """A float16 array (float32 for bfloat16); the first index selects views, the others index inside a view."""
        first, *rest = index if isinstance(index, tuple) else (index,)
        views = np.arange(len(self))[first]
        maps = self.read(np.atleast_1d(views))
        array = (maps.float() if self.dtype == torch.bfloat16 else maps).numpy()
        return array[(0 if np.ndim(views) == 0 else slice(None), *rest)]


class StoredFeatures(Features):
    """Memory-mapped features of a cache: only the parts that are read are loaded from disk.

    Args:
        path: ``features.npy``.
        dtype: torch dtype of the stored bits.
    """

    def __init__(self, path: Path, dtype: torch.dtype):
        self.array = np.load(path, mmap_mode="r")  # a writable map, even a private one, cannot exceed the memory
        self.maps = from_disk(self.array, dtype)
        images, cells, channels = self.maps.shape
        super().__init__((images, cells, channels), dtype)

    def read(self, views: np.ndarray) -> Tensor:
        return self.maps[torch.from_numpy(np.asarray(views, np.int64))]

    def announce(self, views: np.ndarray) -> None:
        read_ahead(self.array, views)

    def __getitem__(self, index) -> np.ndarray:
        found = np.asarray(self.array[index])  # reads only the indexed parts
        return from_disk(found, self.dtype).float().numpy() if self.dtype == torch.bfloat16 else found

    def rows(self, views: np.ndarray, device: torch.device | str = "cpu", out: Tensor | None = None) -> Tensor:
        if torch.device(device).type != "cpu":
            index = torch.from_numpy(np.asarray(views, np.int64))
            sent = host_memory(len(views), *self.shape[1:], dtype=self.dtype, device=device)
            return to_device(torch.index_select(self.maps, 0, index, out=sent), device).float()
        out = torch.empty(len(views), *self.shape[1:]) if out is None else out
        for row, view in zip(out, np.asarray(views), strict=True):  # converts while copying: no intermediate tensor
            row.copy_(self.maps[int(view)])
        return out

    def at(
        self, views: np.ndarray, cells: Tensor, device: torch.device | str = "cpu", out: Tensor | None = None
    ) -> Tensor:
        first = torch.from_numpy(np.asarray(views, np.int64))[:, None] * self.shape[1]
        index, rows = (first + cells.cpu()).flatten(), self.maps.flatten(0, 1)
        if torch.device(device).type != "cpu":
            sent = host_memory(len(index), rows.shape[1], dtype=self.dtype, device=device)
            return to_device(torch.index_select(rows, 0, index, out=sent).view(*cells.shape, -1), device).float()
        out = torch.empty(*cells.shape, rows.shape[1]) if out is None else out
        flat = out.view(-1, rows.shape[1])
        for start in range(0, len(index), CACHED_ROWS):  # the intermediate rows stay in the CPU cache
            part = slice(start, start + CACHED_ROWS)
            flat[part] = rows.index_select(0, index[part])
        return out


class StreamedFeatures(Features):
    """Features that are recomputed on every read (``features.cache=off``).

    Args:
        maps: ``maps(views, batch)`` yields the backbone's output [batch, C, h, w] for views in order.
        batch: views per forward pass.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        transform: FeatureTransform,
        maps: Maps,
        batch: int,
    ):
        super().__init__(shape, dtype)
        self.transform, self.maps, self.batch = transform, maps, batch

    def read(self, views: np.ndarray) -> Tensor:
        return torch.cat([stored(part, self.transform, self.dtype) for part in self.maps(views, self.batch)])
