"""Estimates, without labels, the number of clusters that the data support."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from depthg.model.clustering import assign, cosine_kmeans

THRESHOLD = 0.8  # Tibshirani and Walther: 0.8 to 0.9 separates real clusters from splits of one cluster
RESTARTS = 5


@dataclass(frozen=True)
class ClusterCount:
    """``strength`` and ``silhouette`` for each number of clusters in ``k``; ``suggested``: None if none is reliable."""

    k: tuple[int, ...]
    strength: tuple[float, ...]
    silhouette: tuple[float, ...]
    suggested: int | None


def count_clusters(
    x: Tensor,  # [V, R, C]
    k: Iterable[int] = range(2, 21),
    *,
    splits: int = 3,
    threshold: float = THRESHOLD,
    seed: int = 0,
) -> ClusterCount:
    """The largest number of clusters on which two halves of the images agree.

    The images are divided at random, each half is clustered separately (cosine k-means), and both clusterings are
    applied to the second half. For each cluster, take the fraction of its point pairs that the other half's clustering
    also puts together. The prediction strength (Tibshirani and Walther, 2005) is the lowest of these fractions. The
    suggestion is the largest k with a strength, averaged over ``splits``, of at least ``threshold``. This misses rare
    classes and classes that differ by less than the spread of others, so more clusters than suggested can be right.

    Args:
        x: R vectors of each of V images; lengths do not matter.
        k: numbers of clusters to try.
        splits: random divisions of the images.
        threshold: minimum strength, in (0, 1].
        seed: seed of divisions and k-means.

    Returns:
        Strength in [0, 1] and, for comparison, the mean silhouette in [0, 1] by cosine distance to the nearest and the
        second nearest centroid.

    Raises:
        ValueError: fewer than two images, a k below 2, or fewer vectors in a half than clusters.
    """
    ks = tuple(k)
    half = len(x) // 2
    if half < 1:
        raise ValueError(f"{len(x)} image(s) cannot be divided into two halves; two are needed at least")
    if not ks or min(ks) < 2 or half * x.shape[1] < max(ks):
        raise ValueError(f"k = {list(ks)} must lie between 2 and the {half * x.shape[1]} vectors of half the images")
    strength, silhouette = np.zeros(len(ks)), np.zeros(len(ks))
    for split in range(splits):
        order = torch.from_numpy(np.random.default_rng((seed, split)).permutation(len(x)))
        first, second = (normalize(x[part].flatten(0, 1).float(), dim=1) for part in (order[:half], order[half:]))
        for i, count in enumerate(ks):
            theirs, own = (
                cosine_kmeans(part, count, seed=seed + number, n_init=RESTARTS)
                for number, part in enumerate((first, second))
            )
            strength[i] += prediction_strength(assign(second, own), assign(second, theirs), count) / splits
            silhouette[i] += mean_silhouette(second, own) / splits
    agreed = [count for count, value in zip(ks, strength, strict=True) if value >= threshold]
    return ClusterCount(ks, tuple(strength.tolist()), tuple(silhouette.tolist()), max(agreed, default=None))


def prediction_strength(own: Tensor, other: Tensor, k: int) -> float:  # int64 [n], [n]
    """Minimum over clusters of ``own`` of the fraction of its point pairs that also share a cluster of ``other``."""
    together = torch.bincount(own * k + other, minlength=k * k).view(k, k).double()
    size = together.sum(1)
    large = size > 1  # a cluster of one point has no pair
    if not large.any():
        return 0.0
    shared = (together * (together - 1)).sum(1)[large] / (size * (size - 1))[large]
    return float(shared.min())


def mean_silhouette(x: Tensor, centroids: Tensor) -> float:  # unit [n, C], unit [k, C]
    """Mean of ``(b - a) / max(a, b)``; a and b are cosine distances to the nearest and second nearest centroid."""
    near = 1 - (x @ centroids.T).topk(2, dim=1).values
    return float(((near[:, 1] - near[:, 0]) / near[:, 1].clamp(min=1e-9)).mean())
