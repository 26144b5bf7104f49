"""The trained modules: the segmentation head and two probes. All act on channels-last vectors ``[..., channels]``."""

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
    """Codes from features: ``linear(f) + linear(relu(linear(f)))`` with a separate channel dropout for each branch.

    Equals STEGO's head of 1 x 1 convolutions, but acts on vectors, so that it can run on sampled points alone.

    Args:
        channels: feature channels C.
        dim: code channels K.
        dropout: probability of dropping a channel, per image and branch, in training.
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
    """Codes for the probes. A CPU computes a few images at a time, so that hidden activations stay in its cache.

    ``share``: the images are these rows of a larger batch; dropout is drawn for the whole batch.
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
    """Supervised linear classifier of the codes; trained on detached codes, so labels never reach the head."""


def linear_probe_loss(
    probe: nn.Module,
    codes: Tensor,  # [N, h*w, K], or [N, M, K] at `cells`; detached
    label: Tensor,  # integer [N, H, W], -1 = void; on the CPU
    grid: tuple[int, int],  # h, w
    cells: Tensor | None = None,  # int64 [N, M], on the CPU
    average: Callable[[Tensor], Tensor] | None = None,
) -> Tensor | None:
    """Cross-entropy over all pixels, or over the centre pixels of some cells.

    The probe is linear. Over all pixels it therefore runs at feature resolution, and its scores are up-sampled
    (bilinear) instead of the codes: both orders give the same scores. At the centre of a cell the up-sampled code is
    the code of the cell. Labels are counted and selected on the CPU before they are sent to the device of the codes.

    Processes that share a batch pass ``average``, the mean over processes. Each loss is then a sum over the pixels of
    its process, divided by the mean number of labelled pixels; the mean of the losses is the loss of the whole batch.

    Returns:
        0-dim loss, or None if no pixel is labelled (the mean would be NaN).
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
    """Label of the centre pixel of each cell (with even cell sizes, the lower right of the four central pixels)."""
    (height, width), (h, w) = label.shape[1:], grid
    y, x = (2 * (cells // w) + 1) * height // (2 * h), (2 * (cells % w) + 1) * width // (2 * w)
    return label.flatten(1).gather(1, y * width + x)
