"""What is trained: the segmentation head and the two probes. All act on channels-last vectors ``[..., channels]``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthg.features.transform import channel_dropout
from depthg.kernels.upsampling import up_sampled_scores
from depthg.runtime.device import to_device
from depthg.runtime.processes import BatchShare

CACHED_VECTORS = 3200  # 5 MB of ViT-S features


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

    def forward(self, feats: Tensor, share: BatchShare | None = None) -> Tensor:  # [N, P, C] -> [N, P, K]
        rate = self.dropout if self.training else 0.0
        linear, nonlinear = (channel_dropout(feats, rate, share=share) for _ in range(2))
        return self.linear(linear) + self.nonlinear(nonlinear)


def codes_without_grad(
    head: nn.Module, feats: Tensor, share: BatchShare | None = None
) -> Tensor:  # [N, P, C] -> [N, P, K]
    """Codes for the probes. On a CPU a few images at a time: what lies between the layers then stays in the cache.

    ``share``: the images are these rows of a larger batch, which dropout is drawn for.
    """
    share = BatchShare(0, len(feats), len(feats)) if share is None else share
    images = max(1, share.total if feats.device.type != "cpu" else CACHED_VECTORS // max(feats.shape[1], 1))
    codes: list[Tensor] = []
    with torch.no_grad():
        for first in range(0, max(share.total, 1), images):
            part = share.within(first, min(first + images, share.total))
            start = sum(map(len, codes))
            codes.append(head(feats[start : start + part.size], part))
    return torch.cat(codes)


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
    codes: Tensor,  # [N, h*w, K], or [N, M, K] at `cells`; detached
    label: Tensor,  # integer [N, H, W], -1 = void; on the CPU
    grid: tuple[int, int],  # h, w
    cells: Tensor | None = None,  # int64 [N, M], on the CPU
    average: Callable[[Tensor], Tensor] | None = None,
) -> Tensor | None:
    """Cross-entropy over all pixels, or at the pixels in the middle of some cells.

    The probe is linear, so over all pixels it runs at feature resolution and its scores are up-sampled (bilinear)
    instead of the codes: both orders give the same scores. In the middle of a cell the up-sampled code is the cell's.
    Labels are counted where they are, and chosen there by the cells, before they are sent to the device of the codes.

    Processes that share a batch pass ``average``, the mean over them: each loss is then a sum over the own pixels
    divided by the mean number of labelled pixels, and the mean of the losses is that of the whole batch.

    Returns:
        0-dim loss, or None when no pixel is labelled (the mean over nothing would be NaN).
    """
    scores = probe(codes)
    if cells is None:
        scores = up_sampled_scores(scores, grid, (label.shape[1], label.shape[2]))
    else:
        label = label_at(label, cells, grid)
    labelled = (label >= 0).sum().float()
    labelled = labelled if average is None else average(labelled)
    if not labelled > 0:
        return None
    target = to_device(label, codes.device).long().flatten()
    if average is None:
        return F.cross_entropy(scores.flatten(0, -2), target, ignore_index=-1)
    return F.cross_entropy(scores.flatten(0, -2), target, ignore_index=-1, reduction="sum") / labelled


def label_at(label: Tensor, cells: Tensor, grid: tuple[int, int]) -> Tensor:  # [N, H, W], [N, M] -> [N, M]
    """Label of the pixel in the middle of each cell (the lower right one of the middle four where sizes are even)."""
    (height, width), (h, w) = label.shape[1:], grid
    y, x = (2 * (cells // w) + 1) * height // (2 * h), (2 * (cells % w) + 1) * width // (2 * w)
    return label.flatten(1).gather(1, y * width + x)
