"""Cells of training views whose photos have no data there: NaN, -9999 and the like in deep TIFFs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from depthg.data.base import Split, may_miss_pixels, missing_in, photo_size
from depthg.data.known import HALF
from depthg.data.loading import write_views
from depthg.data.transforms import View, Views
from depthg.depth.sources import DepthSource
from depthg.features.caches import CachePlan, Caches
from depthg.storage.cache import Build, cache_key

FEW_MISSING = 0.05  # share of cells without data above which a line tells it


@dataclass(frozen=True)
class DataShare:
    """Float map for Views: 1 where a photo has data, else 0; float32 [H, W]."""

    split: Split

    def __call__(self, index: int) -> np.ndarray:
        missing = missing_in(self.split, index)
        if missing is None:
            return np.ones(photo_size(self.split, index), np.float32)
        return (~missing).astype(np.float32)


class WhereData(DepthSource):
    """A depth source whose depth is unknown (NaN) where photos have no data."""

    def __init__(self, source: DepthSource):
        self.source, self.name, self.metric = source, source.name, source.metric

    def __call__(self, split: Split, index: int) -> np.ndarray:  # float32 [H, W]
        depth, missing = self.source(split, index), missing_in(split, index)
        return depth if missing is None else np.where(missing, np.float32(np.nan), depth)

    def prepare(self, split: Split) -> None:
        self.source.prepare(split)

    def describe(self, split: Split) -> object:
        return self.source.describe(split)


def valid_cells(caches: Caches, views: Views, grid: tuple[int, int]) -> tuple[np.ndarray, str] | None:
    """Cells with data, bool ``[V, h*w]``, and a key of what they depend on; None where every cell of every view has.

    A cell has data if at least half of its pixels have. Views without any count as whole, since something must be
    sampled in them; a warning tells their number, and the share of cells that are left out. Only sets with photos that
    may miss pixels are looked at.
    """
    if not may_miss_pixels(views.split):
        return None
    maps = {"data": DataShare(views.split)}
    with_maps = caches.views(views.split, views.size, views.crop, maps=maps, map_size=grid)
    cells = grid[0] * grid[1]

    def row(view: View) -> dict[str, np.ndarray]:
        return {"valid": (view.maps["data"].numpy() >= HALF).flatten()}

    def build(build: Build) -> None:
        write_views(build, "no data", with_maps, "maps", row, caches.rows_per_shard(4 * cells), caches.loader)

    settings = {"views": caches.describe(views), "grid": list(grid)}
    folder = caches.make(CachePlan("no data", "no-data", settings, {"valid": ((len(views), cells), np.bool_)}), build)
    valid = np.load(folder / "valid.npy")
    if valid.all():
        return None
    empty = ~valid.any(1)
    share = 1 - valid[~empty].mean() if not empty.all() else 0.0
    if share > FEW_MISSING or empty.any():
        more = f"; {empty.sum():,} of {len(valid):,} images have none at all and count as whole" * bool(empty.any())
        warnings.warn(f"photos have no data in {share:.0%} of the cells, which are left out{more}", stacklevel=3)
    valid[empty] = True
    return valid, cache_key(settings)
