"""In-memory cache of sampled cells that depend on the view alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

KEPT_BYTES = 256 * 2**20  # for all views; above this limit nothing is kept


class KeptCells:
    """Cached cells of views ``[V, P]`` in picking order, so that the first p of them are the sample of p points.

    A cell takes 2 bytes, or 4 if a view has more than 32,768 cells. Memory is used only for views that were asked for.

    Args:
        views: number of views V.
        cells: number of cells per view, h * w.
        limit: maximum bytes to keep.
    """

    def __init__(self, views: int, cells: int, limit: int = KEPT_BYTES):
        self.views, self.dtype, self.limit = views, np.dtype(np.int16 if cells <= 2**15 else np.int32), limit
        self.found: Tensor = torch.empty(views, 0, dtype=torch.int64)
        self.known = np.zeros(0, np.int32)  # cells of each view

    def cells(self, views: np.ndarray, points: int, compute: Callable[[np.ndarray], Tensor]) -> Tensor:
        """The first ``points`` cells of some views, int64 ``[N, points]`` on the CPU.

        ``compute(views)`` computes the cells of views that are not cached. A larger ``points`` than before clears the
        cache.
        """
        if self.views * points * self.dtype.itemsize > self.limit:
            return compute(views).cpu()
        if points > self.found.shape[1]:
            self.found = torch.from_numpy(np.zeros((self.views, points), self.dtype))  # zeros take no memory yet
            self.known = np.zeros(self.views, np.int32)
        missing = np.unique(views[self.known[views] < points])
        if len(missing):
            self.found[torch.from_numpy(missing), :points] = compute(missing).cpu().to(self.found.dtype)
            self.known[missing] = points
        return self.found[torch.from_numpy(np.asarray(views, np.int64)), :points].long()
