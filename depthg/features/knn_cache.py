"""Neighbour lists on disk, computed for one pair of strips at a time by any number of processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from depthg.features.knn import DTYPES, STRIP, StripPair, TopK, strip_pairs, strips, tile_count, tile_of, unit_vectors
from depthg.runtime.device import to_device
from depthg.runtime.progress import ProgressBar
from depthg.storage.cache import Arrays, Build


class NeighbourWriter:
    """Writes ``neighbours``, int32 ``[V, k]``, to a cache from mean features on disk; holds two strips in memory.

    Each pair of strips stores the best neighbours of its rows and of its columns. At the end, those of each strip are
    merged.

    Args:
        means: ``means.npy``, float32 [V, C].
        photos: int64 [V]; views of one photo are never paired.
        k: neighbours per view, at most what :func:`depthg.features.knn.allowed_k` returns.
        dropout, seed, dtype: see :func:`depthg.features.knn.unit_vectors`.
        device: device that computes the similarities.
        strip, tile: rows of a strip and of a tile (tile None: the default of the device).
    """

    def __init__(
        self, means: Path, photos: np.ndarray, k: int, *, dropout: float = 0.0, seed: int = 0, dtype: str = "float32",
        device: torch.device | str = "cpu", strip: int = STRIP, tile: int | None = None,
    ):  # fmt: skip
        self.means, self.photos, self.k = np.load(means, mmap_mode="r"), torch.from_numpy(photos), k
        self.dropout, self.seed, self.dtype, self.device = dropout, seed, DTYPES[dtype], torch.device(device)
        self.strips, self.strip, self.tile = strips(len(photos), strip), strip, tile or tile_of(self.device)
        self.pairs = strip_pairs(len(photos), strip)

    @property
    def arrays(self) -> Arrays:
        return {"neighbours": ((len(self.photos), self.k), np.dtype(np.int32))}

    @property
    def temporary(self) -> Arrays:
        """The best neighbours of every pair of strips: those of its rows, then those of its columns."""
        shape = (2 * len(self.pairs), min(self.strip, len(self.photos)), self.k)
        return {"pair-values": (shape, np.dtype(np.float32)), "pair-ids": (shape, np.dtype(np.int32))}

    def write(self, build: Build) -> None:
        """Computes all missing parts of the cache."""
        with ProgressBar("neighbours", sum(map(self._tiles, range(len(self.pairs))))) as bar:
            for shard in build.shards("pairs", len(self.pairs), 1, bar, lambda shard: self._tiles(shard.start)):
                self._pair(build, shard.start, bar)
        for shard in build.shards("merge", len(self.strips), 1):
            self._merge(build, shard.start)

    def _tiles(self, pair: int) -> int:
        a, b = self.pairs[pair]
        return tile_count(self.strips[a], self.strips[b], self.tile)

    def _vectors(self, rows: range) -> torch.Tensor:
        means = torch.from_numpy(np.array(self.means[rows.start : rows.stop]))
        return to_device(unit_vectors(means, self.dropout, self.seed, self.dtype, rows.start), self.device)

    def _pair(self, build: Build, number: int, bar: ProgressBar) -> None:
        a, b = self.pairs[number]
        rows, columns = self.strips[a], self.strips[b]
        x = self._vectors(rows)
        pair = StripPair(x, x if a == b else self._vectors(columns), rows, columns, self.photos)
        found = [TopK.empty(len(part), self.k, self.device) for part in (rows, columns)]
        found = found if a != b else [found[0], found[0]]
        pair.run(found[0], found[1], self.tile, "auto", bar.advance)
        for side, best in enumerate(found if a != b else found[:1]):
            for name, part in (("pair-values", best.values), ("pair-ids", best.ids)):
                whole = np.zeros((1, *self.temporary[name][0][1:]), self.temporary[name][1])
                whole[0, : len(part)] = part.cpu().numpy()
                build.write(name, number * 2 + side, whole)

    def _merge(self, build: Build, strip: int) -> None:
        rows = self.strips[strip]
        best = TopK.empty(len(rows), self.k)
        for number, pair in enumerate(self.pairs):
            if strip in pair:
                at = number * 2 + pair.index(strip), slice(len(rows))
                best.add(*(torch.from_numpy(np.array(build.read(name)[at])) for name in ("pair-values", "pair-ids")))
        build.write("neighbours", rows.start, best.ids.numpy())
