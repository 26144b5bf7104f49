"""The eager baseline: an independent implementation of STEGO's losses and DepthG's training step.

Formulas and shapes follow the published code (correlations ``[N, S, S, S, S]`` by einsum, grid_sample on maps, head as
1 x 1 convolutions on whole maps, FPS in a numpy loop); nothing is slower than in the published code.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthg.kernels import LossSettings


def correlate(a: Tensor, b: Tensor) -> Tensor:  # [N, C, S, S] each -> [N, S, S, S, S]
    return torch.einsum("nchw,ncij->nhwij", F.normalize(a, dim=1), F.normalize(b, dim=1))


def term(feats_a: Tensor, feats_b: Tensor, codes_a: Tensor, codes_b: Tensor, shift: float) -> Tensor:
    """The loss of every element, with spatial centring and zero clamp."""
    with torch.no_grad():
        target = correlate(feats_a, feats_b)
        mean = target.mean()
        target = target - target.mean([3, 4], keepdim=True)
        target = target - target.mean() + mean
    return -correlate(codes_a, codes_b).clamp(0.0) * (target - shift)


def loss(feats: Tensor, codes: Tensor, near_feats: Tensor, near_codes: Tensor, negatives: Tensor, depth: Tensor,
         s: LossSettings) -> Tensor:  # fmt: skip
    """Eq. 7 on maps of sampled points ``[N, C, S, S]``, ``[N, K, S, S]``, depth ``[N, S, S]``, negatives ``[R, N]``."""
    far = ((feats[i], codes[i]) for i in negatives)
    return weighted(feats, codes, near_feats, near_codes, far, depth, s)


def loss_at(feats: Tensor, codes: Tensor, near_feats: Tensor, near_codes: Tensor, negatives: Tensor, depth: Tensor,
            at: Tensor, near_at: Tensor, s: LossSettings) -> Tensor:  # fmt: skip
    """Eq. 7 from whole maps ``[N, C, H, W]``, ``[N, K, H, W]``, ``[N, 1, H, W]``; every pair is read separately.

    Anchors and negatives are read at the points ``at`` ``[N, S, S, 2]`` of their image, neighbours at ``near_at``.
    """
    far = ((read(feats[i], at[i]), read(codes[i], at[i])) for i in negatives)
    near = read(near_feats, near_at), read(near_codes, near_at)
    return weighted(read(feats, at), read(codes, at), *near, far, read(depth, at)[:, 0], s)


def drop_in(feats: Tensor, codes: Tensor, near_feats: Tensor, near_codes: Tensor, draws: int, side: int,
            s: LossSettings) -> Tensor:  # fmt: skip
    """The loss that STEGO's training code computes: random points and pairs, three terms from whole maps, no depth."""
    n = len(feats)
    at, near_at = (torch.rand([n, side, side, 2], device=feats.device) * 2 - 1 for _ in range(2))
    a, z = read(feats, at), read(codes, at)
    own = term(a, a, z, z, s.self_shift)
    near = term(a, read(near_feats, near_at), z, read(near_codes, near_at), s.neighbour_shift)
    far = []
    for _ in range(draws):
        i = torch.randperm(n, device=feats.device)
        i[i == torch.arange(n, device=feats.device)] += 1
        i = i % n
        far.append(term(a, read(feats[i], near_at), z, read(codes[i], near_at), s.negative_shift))
    return s.self_weight * own.mean() + s.neighbour_weight * near.mean() + s.negative_weight * torch.cat(far).mean()


def weighted(feats: Tensor, codes: Tensor, near_feats: Tensor, near_codes: Tensor, far: Iterable[tuple[Tensor, Tensor]],
             depth: Tensor, s: LossSettings) -> Tensor:  # fmt: skip
    own = term(feats, feats, codes, codes, s.self_shift)
    near = term(feats, near_feats, codes, near_codes, s.neighbour_shift)
    far = torch.cat([term(feats, far_feats, codes, far_codes, s.negative_shift) for far_feats, far_codes in far])
    target = torch.einsum("nhw,nij->nhwij", depth, depth)
    guide = -correlate(codes, codes).clamp(0.0) * (target - s.depth_shift)
    return (
        s.self_weight * own.mean()
        + s.neighbour_weight * near.mean()
        + s.negative_weight * far.mean()
        + s.depth_weight * guide.mean()
    )


def farthest_points(depth: np.ndarray, count: int) -> np.ndarray:  # [H, W] -> [count] flat cells
    """FPS on the unprojected depth (pinhole, 90 degrees), one pick after the other."""
    height, width = depth.shape
    rows, columns = np.mgrid[:height, :width]
    x, y = ((columns + 0.5) / width - 0.5) * 2 * depth, ((rows + 0.5) / width - 0.5) * 2 * depth
    cloud = np.stack([x, y, depth], -1).reshape(-1, 3)
    picks = np.zeros(count, dtype=np.int64)
    nearest = np.full(len(cloud), np.inf, dtype=np.float32)
    for j in range(1, count):
        nearest = np.minimum(nearest, ((cloud - cloud[picks[j - 1]]) ** 2).sum(1))
        picks[j] = nearest.argmax()
    return picks


def coordinates(cells: np.ndarray, height: int, width: int, side: int) -> Tensor:  # [N, P] -> [N, S, S, 2] (x, y)
    row, column = cells // width, cells % width
    xy = np.stack([column / (width - 1), row / (height - 1)], -1) * 2 - 1
    return torch.from_numpy(xy.astype(np.float32)).view(-1, side, side, 2)


def read(maps: Tensor, at: Tensor) -> Tensor:  # [N, C, H, W], [N, S, S, 2] -> [N, C, S, S]
    return F.grid_sample(maps, at, padding_mode="border", align_corners=True)


class Head(nn.Module):
    """STEGO's head on whole maps."""

    def __init__(self, channels: int, dim: int, dropout: float = 0.1):
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.linear = nn.Conv2d(channels, dim, 1)
        self.nonlinear = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, dim, 1))

    def forward(self, feats: Tensor) -> tuple[Tensor, Tensor]:  # [N, C, H, W] -> features after dropout, codes
        return self.dropout(feats), self.linear(self.dropout(feats)) + self.nonlinear(self.dropout(feats))
