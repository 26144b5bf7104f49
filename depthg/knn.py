"""Nearest neighbours of images by the cosine of their mean features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from depthg.heads import channel_dropout
from depthg.kernels.reference import normalize


def mean_features(features: np.ndarray, dropout: float = 0.0, seed: int = 0) -> Tensor:  # [V, h*w, C] -> [V, C]
    """Unit mean vector of each image; ``dropout`` masks channels first, as the released code does."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for start in range(0, len(features), 64):
        block = torch.from_numpy(np.array(features[start : start + 64])).float()
        rows.append(normalize(channel_dropout(block, dropout, generator).mean(1)))
    return torch.cat(rows)


def nearest_neighbours(
    vectors: Tensor,  # [V, C] unit
    k: int,
    photos: Tensor | None = None,  # int64 [V]; views of one photo are never paired. None: only the view itself
    block: int = 1024,
) -> Tensor:  # int64 [V, k']
    """Indices of the k most similar other images, best first, ties to the lowest index; k' = min(k, those allowed).

    Raises:
        ValueError: an image has no neighbour that may be paired with it.
    """
    count = len(vectors)
    photos = torch.arange(count) if photos is None else photos
    allowed = count - int(photos.bincount().max()) if count else 0
    if allowed < 1:
        raise ValueError(f"{count} training images of {len(photos.unique())} photos leave none to pair; add photos")
    chosen = []
    for start in range(0, count, block):
        similarity = vectors[start : start + block] @ vectors.T
        similarity[photos[start : start + block, None] == photos[None]] = -torch.inf
        chosen.append(similarity.argsort(dim=1, descending=True, stable=True)[:, : min(k, allowed)])
    return torch.cat(chosen)
