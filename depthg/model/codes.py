"""Codes of cached features, and random feature vectors or codes for k-means and for the linear probe."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthg.features.reading import Features
from depthg.model.heads import label_at
from depthg.runtime.device import to_device

SAMPLE_IMAGES = 1024  # maximum number of images to draw vectors from: streamed features need a forward pass for each
SAMPLE_BLOCK = 64  # images read at a time
FIT_VIEWS, FIT_CELLS = 4096, 100_000  # maximum that the linear probe is fitted to


def sent(features: np.ndarray, device: torch.device) -> Tensor:  # [B, h*w, C]
    """Cached feature maps in float32 on a device."""
    return to_device(torch.from_numpy(np.array(features)), device).float()


def codes_of(head: torch.nn.Module, features: np.ndarray | Tensor, device: torch.device) -> Tensor:  # [B, h*w, K]
    """Codes of feature maps (a cached array, or a tensor on the device), in evaluation mode and without gradient."""
    training = head.training
    head.eval()
    with torch.no_grad():
        codes = head(features if isinstance(features, Tensor) else sent(features, device))
    head.train(training)
    return codes


def sample_rows(features: Features | np.ndarray, count: int, seed: int) -> Tensor:  # [V, h*w, C] -> [about count, C]
    """Random feature vectors, equally many from each of at most ``SAMPLE_IMAGES`` evenly spaced images.

    Their number is ``count`` rounded up to a multiple of the number of images, or less if the images have fewer cells.
    Cells without data are left out (``Features.valid``).
    """
    valid = getattr(features, "valid", None)
    images, cells, _ = features.shape
    chosen = np.arange(images) if images <= SAMPLE_IMAGES else np.arange(SAMPLE_IMAGES) * images // SAMPLE_IMAGES
    each = min(cells, max(1, -(-count // len(chosen))))
    generator = np.random.default_rng(seed)
    places = [np.sort(generator.choice(cells, each, replace=False)) for _ in chosen]
    if not isinstance(features, Features):
        return torch.from_numpy(np.concatenate([features[i, at] for i, at in zip(chosen, places, strict=True)])).float()
    kept: Any = slice(None)
    if valid is not None:
        places = [_places_with_data(generator, valid[view], each) for view in chosen]
        kept = torch.from_numpy(np.concatenate([valid[i, at] for i, at in zip(chosen, places, strict=True)]))
    places = torch.from_numpy(np.stack(places)).split(SAMPLE_BLOCK)
    blocks = np.split(chosen, range(SAMPLE_BLOCK, len(chosen), SAMPLE_BLOCK))
    return torch.cat([features.at(some, at) for some, at in zip(blocks, places, strict=True)]).flatten(0, 1)[kept]


def _places_with_data(generator: np.random.Generator, valid: np.ndarray, count: int) -> np.ndarray:  # int64 [count]
    """Random cells of an image with data, and others where those do not suffice."""
    order = generator.permutation(len(valid))
    return np.sort(order[np.argsort(~valid[order], kind="stable")][:count])


def training_codes(
    head: torch.nn.Module, features: Features | np.ndarray, count: int, seed: int, device: torch.device
) -> Tensor:
    """Codes ``[about count, K]`` of random training vectors (see :func:`sample_rows`), on the device.

    The head acts on single vectors, so only the sampled ones are computed.
    """
    rows = sample_rows(features, count, seed)
    return codes_of(head, rows[None].numpy(), device)[0]


def labelled_codes(
    head: torch.nn.Module,
    features: Features,  # [V, h*w, C]
    labels: np.ndarray,  # int16 [V, H, W], -1 = void
    grid: tuple[int, int],
    seed: int,
    device: torch.device,
    count: int = FIT_CELLS,
) -> tuple[Tensor, Tensor]:
    """Codes and classes of labelled cells of the training views, float32 ``[N, K]`` and int64 ``[N]`` on the CPU.

    The class of a cell is that of its centre pixel, as in training. Equally many random cells come from each of at most
    ``FIT_VIEWS`` evenly spaced views, together at most ``count``, and fewer from views with fewer labelled cells.
    """
    views, cells = len(features), grid[0] * grid[1]
    chosen = np.arange(views) if views <= FIT_VIEWS else np.arange(FIT_VIEWS) * views // FIT_VIEWS
    each = max(1, min(cells, count // len(chosen)))
    generator = torch.Generator().manual_seed(seed)
    codes, classes = [], []
    for start in range(0, len(chosen), SAMPLE_BLOCK):
        some = chosen[start : start + SAMPLE_BLOCK]
        every = label_at(torch.from_numpy(np.asarray(labels[some])), torch.arange(cells).expand(len(some), -1), grid)
        void_last = torch.rand(every.shape, generator=generator) + (every < 0).float()
        at = void_last.argsort(1)[:, :each]
        found = every.gather(1, at)
        if not (used := (found >= 0).any(1)).any():
            continue  # streamed features are expensive
        labelled = found[used] >= 0
        vectors = features.at(some[used.numpy()], at[used], device)
        codes.append(codes_of(head, vectors, device).cpu()[labelled].float())
        classes.append(found[used][labelled].long())
    if not codes:
        return torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
    return torch.cat(codes), torch.cat(classes)
