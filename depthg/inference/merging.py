"""Merged clusters: ids, scores and probabilities of the classes that a run's legend makes of its clusters."""

from __future__ import annotations

import numpy as np

from depthg.model.legend import Legend

VOID = "void"  # name of the last id, where the legend takes clusters out


class Merging:
    """Turns what is said about clusters into what is said about the ids of a legend; without one nothing changes.

    Clusters that the legend makes void become the last id, with the name ``void``.

    Attributes:
        n: number of ids.
        table: int64 [n_clusters], id of every cluster.
    """

    def __init__(self, n_clusters: int, legend: Legend | None):
        self.changes = legend is not None
        self.table = np.arange(n_clusters) if legend is None else legend.table.copy()
        self.void = bool((self.table < 0).any())
        self.n = n_clusters if legend is None else len(legend.names) + self.void
        self.table[self.table < 0] = self.n - 1
        self._small = self.table.astype(np.uint8 if self.n < 256 else np.uint16)

    def ids(self, clusters: np.ndarray) -> np.ndarray:
        """Ids of a map of clusters, uint8 (uint16 for more than 255 ids)."""
        return self._small[clusters] if self.changes else clusters

    def scores(self, scores: np.ndarray) -> np.ndarray:  # [n_clusters, ...] -> [n, ...]
        """Largest score of the clusters of each id."""
        return self._reduced(np.maximum, scores)

    def probabilities(self, probabilities: np.ndarray) -> np.ndarray:  # [n_clusters, ...] -> [n, ...]
        """Sum of the probabilities of the clusters of each id."""
        return self._reduced(np.add, probabilities)

    def counts(self, counts: np.ndarray) -> np.ndarray:  # [..., n_clusters] -> [..., n]
        """Sum of the counts of the clusters of each id."""
        return np.moveaxis(self._reduced(np.add, np.moveaxis(counts, -1, 0)), 0, -1)

    def _reduced(self, function: np.ufunc, values: np.ndarray) -> np.ndarray:
        if not self.changes:
            return values
        return np.stack([function.reduce(values[self.table == i], axis=0) for i in range(self.n)])
