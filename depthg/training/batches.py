"""Views that a step compares: anchors, neighbours, negatives. Pure functions of the seed and the iteration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from depthg.config.schema import Config
from depthg.features.prepared import Prepared
from depthg.runtime.processes import BatchShare
from depthg.runtime.read_ahead import read_ahead
from depthg.runtime.seeds import seed_of


def negative_pairs(batch: int, draws: int, pairing: str, generator: torch.Generator) -> Tensor:  # int64 [draws, batch]
    """Index of each image's negative: derangements, or STEGO's permutations with fixed points shifted by one."""
    rows: list[Tensor] = []
    while len(rows) < draws:
        row = torch.randperm(batch, generator=generator)
        fixed = row == torch.arange(batch)
        if pairing == "released":
            row[fixed] += 1
            rows.append(row % batch)
        elif not fixed.any():
            rows.append(row)
    return torch.stack(rows)


@dataclass
class Batch:
    """The views of one step: anchors, one neighbour each, and for ``pair=crop`` another crop of the same photo."""

    anchors: np.ndarray
    neighbours: np.ndarray
    others: np.ndarray | None

    @property
    def depth_views(self) -> np.ndarray:
        """The views whose depth the depth term compares."""
        return self.anchors if self.others is None else np.concatenate([self.anchors, self.others])

    def part(self, share: BatchShare | None) -> Batch:
        """The rows of one process."""
        if share is None:
            return self
        others = None if self.others is None else self.others[share.rows]
        return Batch(self.anchors[share.rows], self.neighbours[share.rows], others)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Random order of all views in an epoch; cached, so do not modify it."""
    return np.random.default_rng(seed_of(seed, "order", epoch)).permutation(count)


def draw_batch(config: Config, data: Prepared, iteration: int) -> Batch:
    """Draws anchors from shuffled epochs (``last_batch``: drop or keep a smaller last one), each with a neighbour.

    The neighbour is one of the ``knn.draw`` nearest; with ``loss.depth.pair=crop`` another crop of the photo is drawn.

    Raises:
        ValueError: the batch is larger than the training set.
    """
    size, count = config.batch_size, len(data.features)
    if size > count:
        raise ValueError(f"batch_size={size} exceeds the {count} training images; lower it or add images")
    epoch, position = divmod(iteration, -(-count // size) if config.last_batch == "keep" else count // size)
    order = epoch_order(config.seed, epoch, count)
    anchors = np.sort(order[position * size : (position + 1) * size])
    rng = np.random.default_rng(seed_of(config.seed, "pairs", iteration))
    choices = min(config.knn.draw, data.neighbours.shape[1])
    neighbours = data.neighbours[anchors, rng.integers(choices, size=len(anchors))]
    others = None
    if config.loss.depth.pair == "crop":
        first, stop = (np.searchsorted(data.photos, data.photos[anchors], side) for side in ("left", "right"))
        same = [np.arange(*ends) for ends in zip(first, stop, strict=True)]  # the views of a photo are contiguous
        others = np.array([rng.choice(views[views != view]) for views, view in zip(same, anchors, strict=True)])
    return Batch(anchors, neighbours, others)


def announce(batch: Batch, data: Prepared) -> None:
    """Prefetches the views of a later step from disk into memory."""
    views = np.concatenate([part for part in (batch.anchors, batch.neighbours, batch.others) if part is not None])
    data.features.announce(views)
    for array in (data.depth, data.depth_grids, data.normals):
        read_ahead(array, views)
    read_ahead(data.labels, batch.anchors)
