"""A trained run as one network from bytes to ids, in operations that exporters of ONNX know."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthg.backbones.dino import DINO_OFFSET, published_positions
from depthg.inference.segmenter import Segmenter

CUBIC = -0.75  # of bicubic interpolation in torch


class OnnxGraph(nn.Module):
    """Backbone, feature transform, head, clusters and legend of a segmenter as one module for images of any size.

    forward: images uint8 [B, 3, H, W], RGB, H and W multiples of the backbone's
    -> ids uint8 [B, H, W] (int32 for more than 255 ids); with ``scores`` also float32 [B, n, H, W]: the up-sampled code
    times the unit centroid, the largest of the clusters of each id. Their arg-max is the id.

    Args:
        segmenter: its run and legend are taken; windows, blending and flip are not part of the graph.
        scores: give them as well.
    """

    centroids: Tensor  # [n_clusters, K]

    def __init__(self, segmenter: Segmenter, scores: bool = False):
        super().__init__()
        run = segmenter.run
        self.backbone, self.transform, self.head = run.backbone, run.transform, run.head
        self.scores, self.stride = scores, run.backbone.stride
        self.register_buffer("centroids", F.normalize(run.cluster.centroids.detach(), dim=-1))
        merging = segmenter.merging
        self.members = [torch.from_numpy((merging.table == i).nonzero()[0]) for i in range(merging.n)]
        self.merged = merging.changes

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pixels = images.to(torch.float32) / 255
        maps = self.backbone.body((pixels - self.backbone.mean) / self.backbone.std)
        size = (images.shape[2] // self.stride, images.shape[3] // self.stride)
        whole = torch.cat([maps[0], *(F.interpolate(m, size, mode="bilinear") for m in maps[1:])], 1)
        codes = self.head(self._features(whole.permute(0, 2, 3, 1).flatten(1, 2)))
        cells = (codes @ self.centroids.T).transpose(1, 2).unflatten(2, size)
        scores = F.interpolate(cells, (images.shape[2], images.shape[3]), mode="bilinear")
        if self.merged:
            scores = torch.stack([scores[:, rows].amax(1) for rows in self.members], 1)
        ids = scores.argmax(1).to(torch.uint8 if scores.shape[1] < 256 else torch.int32)
        return (ids, scores) if self.scores else (ids,)

    def _features(self, x: Tensor) -> Tensor:  # [B, h*w, C] -> [B, h*w, D], FeatureTransform.forward, nothing in place
        if self.transform.standardize:
            x = (x - self.transform.mean) * self.transform.scale
            x = torch.cat([_unit(stage) for stage in x.split(self.transform.stages, -1)], -1)
        return x @ self.transform.basis if self.transform.basis.shape[1] else x


def _unit(x: Tensor) -> Tensor:  # [..., C]
    square = (x * x).sum(-1, keepdim=True)
    return x * torch.where(square > 0, square, torch.inf).rsqrt()


@contextmanager
def any_size(body: Any) -> Iterator[None]:
    """Lets the position embedding of a ViT follow the size of the images in a graph, not that of the example.

    Raises:
        ValueError: the network interpolates its position embedding by another rule than bicubic without antialias.
    """
    owner: Any = getattr(getattr(body, "model", None), "embeddings", None)
    table = getattr(owner, "position_embeddings", None)
    if not isinstance(table, Tensor) or not hasattr(owner, "interpolate_pos_encoding"):
        yield
        return
    kept, patch = owner.interpolate_pos_encoding, body.stride
    offset = DINO_OFFSET if getattr(kept, "__func__", None) is published_positions else 0.0

    def of_size(embeddings: Tensor, height: Any, width: Any) -> Tensor:
        return positions(table, height // patch, width // patch, offset)

    _check_positions(table, kept, of_size, patch)
    replaced = vars(owner).get("interpolate_pos_encoding")
    owner.interpolate_pos_encoding = of_size
    try:
        yield
    finally:
        del owner.interpolate_pos_encoding
        if replaced is not None:
            owner.interpolate_pos_encoding = replaced


def _check_positions(table: Tensor, theirs: Any, ours: Any, patch: int) -> None:
    n = math.isqrt(table.shape[1])
    for h, w in ((n, n), (n + 1, 2 * n), (max(1, n // 2), n)):
        empty = table.new_zeros(1, table.shape[1] - n * n + h * w, table.shape[2])
        with torch.no_grad():
            expected, found = (way(empty, h * patch, w * patch) for way in (theirs, ours))
        if expected.shape != found.shape or not torch.allclose(expected, found, rtol=1e-4, atol=1e-4):
            raise ValueError(
                f"its position embedding at {h} x {w} patches is not by the bicubic rule that an ONNX graph can hold"
            )


def positions(table: Tensor, h: Any, w: Any, offset: float) -> Tensor:  # [1, p + n*n, C] -> [1, p + h*w, C]
    """Position embeddings for h x w patches: bicubic interpolation as two matrix products, for sizes known later.

    The scale is ``(h + offset) / n``; a table that has the size already is unchanged.
    """
    n = math.isqrt(table.shape[1])
    height, width = (torch.scalar_tensor(side, dtype=torch.float32, device=table.device) for side in (h, w))
    shift = torch.where((height == n) & (width == n), 0.0, offset)  # no branch: the sizes are unknown here
    before, grid = table[0, : -n * n], table[0, -n * n :].unflatten(0, (n, n))
    rows, columns = cubic(h, n, height + shift), cubic(w, n, width + shift)
    wide = torch.matmul(columns, grid)  # [n, w, C]
    found = torch.matmul(rows, wide.flatten(1))  # [h, w*C]
    return torch.cat([before, found.reshape(-1, table.shape[2])])[None]


def cubic(length: Any, n: int, scaled: Tensor) -> Tensor:  # float32 [length, n]
    """Weights of n values for each of ``length``, as torch's bicubic interpolation by ``scaled / n`` has them."""
    device = scaled.device
    at = (torch.arange(length, device=device).to(torch.float32) + 0.5) * (n / scaled) - 0.5
    cell = at.floor()
    taps = torch.arange(-1, 3, device=device)
    distance = (at - cell)[:, None] - taps  # [length, 4]
    near, far = distance.abs(), CUBIC
    inner = ((far + 2) * near - (far + 3)) * near * near + 1
    outer = ((near - 5) * near + 8) * near * far - 4 * far
    weights = torch.where(near <= 1, inner, outer)
    cells = (cell[:, None] + taps).clamp(0, n - 1)
    hit = (cells[:, :, None] == torch.arange(n, device=device)).to(torch.float32)
    return (weights[:, :, None] * hit).sum(1)
