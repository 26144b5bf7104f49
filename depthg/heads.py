"""What is trained: the segmentation head and the two probes. All act on channels-last vectors ``[..., channels]``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthg.kernels import sample_points


def channel_dropout(x: Tensor, rate: float, generator: torch.Generator | None = None) -> Tensor:  # [N, P, C]
    """Drops whole channels of an image (Dropout2d on channels-last points), scaled by ``1 / (1 - rate)``."""
    if rate == 0:
        return x
    keep = torch.rand(x.shape[0], 1, x.shape[2], device=x.device, generator=generator) >= rate
    return x * (keep / (1 - rate)).to(x.dtype)


class SegmentationHead(nn.Module):
    """Codes from features: ``linear(f) + linear(relu(linear(f)))``, each branch behind its own channel dropout.

    The 1 x 1 convolutions of STEGO's head, written for points, so that it can run on sampled points alone.

    Args:
        channels: feature channels C.
        dim: code channels K.
        dropout: share of channels dropped per image and branch in training.
    """

    def __init__(self, channels: int, dim: int, dropout: float = 0.1):
        super().__init__()
        self.dropout = dropout
        self.linear = nn.Linear(channels, dim)
        self.nonlinear = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, dim))

    def forward(self, feats: Tensor) -> Tensor:  # [N, P, C] -> [N, P, K]
        rate = self.dropout if self.training else 0.0
        return self.linear(channel_dropout(feats, rate)) + self.nonlinear(channel_dropout(feats, rate))


class ClusterProbe(nn.Module):
    """Cosine clusters learned on detached codes: ``loss = -mean max_k cos(code, centroid_k)``.

    Args:
        dim: code channels K.
        n_clusters: number of centroids.
    """

    def __init__(self, dim: int, n_clusters: int):
        super().__init__()
        self.centroids = nn.Parameter(torch.randn(n_clusters, dim))

    def forward(self, codes: Tensor) -> Tensor:  # [..., K] -> [..., n_clusters]
        """Dot products with the unit centroids; the arg-max equals that of the cosines."""
        return codes @ F.normalize(self.centroids, dim=-1).T

    def loss(self, codes: Tensor) -> Tensor:  # [..., K]
        return -self(F.normalize(codes, dim=-1)).amax(-1).mean()


class LinearProbe(nn.Linear):
    """Supervised read-out of the codes; trained on detached codes, so labels never reach the head."""


def linear_probe_loss(
    probe: nn.Module,
    codes: Tensor,  # [N, h*w, K], detached
    label: Tensor,  # int64 [N, H, W], -1 = void
    grid: tuple[int, int],  # h, w
    *,
    pixels: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor | None:
    """Cross-entropy at label resolution, over all pixels or over ``pixels`` random ones of each image.

    The probe is linear, so it runs at feature resolution and its scores are up-sampled (bilinear), or the codes are
    interpolated at the drawn pixels: both orders give the same scores.

    Returns:
        0-dim loss, or None when no pixel is labelled (the mean over nothing would be NaN).
    """
    n, height, width = label.shape
    maps = codes.transpose(1, 2).unflatten(2, grid)
    if pixels:
        index = torch.randint(height * width, (n, pixels), generator=generator).to(label.device)
        x, y = (index % width + 0.5) / width * 2 - 1, (index // width + 0.5) / height * 2 - 1
        points = torch.stack([x, y], dim=-1)
        scores = probe(sample_points(maps, points, align_corners=False)).flatten(0, 1)
        label = label.flatten(1).gather(1, index).flatten()
    else:
        scores = probe(codes).transpose(1, 2).unflatten(2, grid)
        scores = (
            F.interpolate(scores, (height, width), mode="bilinear", align_corners=False)
            .permute(0, 2, 3, 1)
            .flatten(0, 2)
        )
        label = label.flatten()
    if not (label >= 0).any():
        return None
    return F.cross_entropy(scores, label, ignore_index=-1)
