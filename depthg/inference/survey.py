"""What a person needs to name clusters: pixels, typical and doubtful crops, and which clusters may be one class."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from depthg.inference.clear_crops import ClearCrops, doubtful_places

FEWEST_BORDER = 0.05  # share of a cluster's border below which a pair of clusters is not suggested
LEAST_COSINE = 0.3  # of two centroids, below which a pair is not suggested


class Suggestion(NamedTuple):
    """Two clusters that may be one class: cosine of their centroids, and the part of the border that they share."""

    one: int
    other: int
    cosine: float
    border: float


class Survey:
    """Collects, photo by photo, how much of each cluster there is, what it looks like, and what it borders on.

    Threads may share it.

    Args:
        colours: uint8 [n, 3], of the clusters.
    """

    def __init__(self, colours: np.ndarray):
        n = len(colours)
        self.pixels, self.borders = np.zeros(n, np.int64), np.zeros((n, n), np.int64)
        self.typical, self.doubtful = ClearCrops(colours), ClearCrops(colours, doubtful_places)
        self._lock = threading.Lock()

    def offer(
        self,
        photo: str,
        scores: np.ndarray,  # float [n, h, w]
        ids: np.ndarray,  # [H, W] below n
        read: Callable[[], tuple[np.ndarray, np.ndarray]],  # photo uint8 [H, W, 3], ids [H, W]
    ) -> None:
        """Counts a photo and takes the crops that it has to offer."""
        pixels, borders = np.bincount(ids.ravel(), minlength=len(self.pixels)), border_lengths(ids, len(self.pixels))
        with self._lock:
            self.pixels += pixels
            self.borders += borders
        self.typical.offer(photo, scores, read)
        self.doubtful.offer(photo, scores, read)

    @property
    def shares(self) -> np.ndarray:  # float64 [n], of 1
        """Share of the pixels of every cluster."""
        return self.pixels / max(1, self.pixels.sum())


def border_lengths(ids: np.ndarray, n: int) -> np.ndarray:  # [H, W] below n -> int64 [n, n]
    """Number of neighbouring pixels (above and below, side by side) of every pair of clusters; 0 on the diagonal."""
    found = np.zeros(n * n, np.int64)
    for one, other in ((ids[:, :-1], ids[:, 1:]), (ids[:-1], ids[1:])):
        differ = one != other
        found += np.bincount(one[differ].astype(np.int64) * n + other[differ], minlength=n * n)
    pairs = found.reshape(n, n)
    return pairs + pairs.T


def suggested_merges(
    centroids: np.ndarray,  # float [n, K]
    borders: np.ndarray,  # int [n, n], of border_lengths
    most: int = 10,
) -> list[Suggestion]:
    """Pairs of clusters that may be one class, the likeliest first: similar centroids that lie beside each other.

    Pairs are ordered by the mean of the cosine of their centroids and the part of the border of one that lies along the
    other (the larger of both parts). Left out are pairs with a cosine below ``LEAST_COSINE`` or a part below
    ``FEWEST_BORDER``.
    """
    unit = centroids / np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    cosines = unit @ unit.T
    parts = borders / np.maximum(borders.sum(1, keepdims=True), 1)
    parts = np.maximum(parts, parts.T)
    found = [
        Suggestion(i, j, float(cosines[i, j]), float(parts[i, j]))
        for i in range(len(unit))
        for j in range(i + 1, len(unit))
        if cosines[i, j] >= LEAST_COSINE and parts[i, j] >= FEWEST_BORDER
    ]
    return sorted(found, key=lambda pair: (-(pair.cosine + pair.border), pair.one, pair.other))[:most]
