"""Codes of cached features, and random vectors of them for k-means."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from depthg.features.reading import Features
from depthg.runtime.device import to_device

SAMPLE_IMAGES = 1024  # that vectors are drawn from at most: with streamed features each is a forward pass
SAMPLE_BLOCK = 64  # images read at a time


def sent(features: np.ndarray, device: torch.device) -> Tensor:  # [B, h*w, C]
    """Cached feature maps in float32 on a device."""
    return to_device(torch.from_numpy(np.array(features)), device).float()


def codes_of(head: torch.nn.Module, features: np.ndarray | Tensor, device: torch.device) -> Tensor:  # [B, h*w, K]
    """Codes of cached feature maps, or of those that are on the device, in evaluation mode and without gradient."""
    training = head.training
    head.eval()
    with torch.no_grad():
        codes = head(features if isinstance(features, Tensor) else sent(features, device))
    head.train(training)
    return codes


def sample_rows(features: Features | np.ndarray, count: int, seed: int) -> Tensor:  # [V, h*w, C] -> [count, C]
    """Random feature vectors, evenly many from every image, or from ``SAMPLE_IMAGES`` of them, evenly spread."""
    images, cells, _ = features.shape
    chosen = np.arange(images) if images <= SAMPLE_IMAGES else np.arange(SAMPLE_IMAGES) * images // SAMPLE_IMAGES
    each = min(cells, max(1, -(-count // len(chosen))))
    generator = np.random.default_rng(seed)
    places = [np.sort(generator.choice(cells, each, replace=False)) for _ in chosen]
    if not isinstance(features, Features):
        return torch.from_numpy(np.concatenate([features[i, at] for i, at in zip(chosen, places, strict=True)])).float()
    places = torch.from_numpy(np.stack(places)).split(SAMPLE_BLOCK)
    blocks = np.split(chosen, range(SAMPLE_BLOCK, len(chosen), SAMPLE_BLOCK))
    return torch.cat([features.at(some, at) for some, at in zip(blocks, places, strict=True)]).flatten(0, 1)


def training_codes(
    head: torch.nn.Module, features: Features | np.ndarray, count: int, seed: int, device: torch.device
) -> Tensor:
    """Codes of random training vectors ``[count, K]`` on the device; the head acts on points, so only these are
    computed."""
    rows = sample_rows(features, count, seed)
    return codes_of(head, rows[None].numpy(), device)[0]
