"""Eager definitions of every operation: pure torch, any floating dtype, no cleverness.

These functions are the specification. The fast ones carry the same names and signatures (plus ``impl``) and are tested
against these in float64. They may hold P x Q matrices; nothing else in the package does.

Shape letters: N, M images; P, Q points; C feature channels; K code channels; R draws of negatives; see README.md here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

RELATIONS = ("product", "unit", "centered", "gaussian", "euclidean", "normals")


class CorrelationTerm(NamedTuple):
    """One term of the loss: ``loss`` (0-dim, differentiable in the codes) and the mean similarity (0-dim, detached)."""

    loss: Tensor
    similarity: Tensor


@dataclass(frozen=True)
class LossSettings:
    """Weights and shifts of Eq. 7. Shifts are floats or 0-dim tensors (a tensor needs no host sync)."""

    self_weight: float = 0.67
    self_shift: float | Tensor = 0.08
    neighbour_weight: float = 0.25
    neighbour_shift: float | Tensor = 0.02
    negative_weight: float = 0.63
    negative_shift: float | Tensor = 0.66
    depth_weight: float = 0.0
    depth_shift: float | Tensor = 0.0
    relation: str = "product"
    bandwidth: float = 0.1
    center: bool = True
    clamp: bool = True
    max_similarity: float | None = None


class DepthGLoss(NamedTuple):
    """Eq. 7: the weighted total and its terms; ``depth`` is None when no depth was given."""

    total: Tensor
    self: CorrelationTerm
    neighbour: CorrelationTerm
    negative: CorrelationTerm
    depth: CorrelationTerm | None


def normalize(x: Tensor) -> Tensor:
    """Unit vectors along the last axis; a zero vector (squared length 0 in its type) is zero and passes no gradient."""
    square = (x * x).sum(-1, keepdim=True)
    positive = square > 0
    return torch.where(positive, x * torch.where(positive, square, 1.0).rsqrt(), 0.0)


def correlation(
    a: Tensor,  # [N, P, C]
    b: Tensor,  # [M, Q, C]
    *,
    index_b: Tensor | None = None,  # [R, N] int64
    center: bool = False,
    cosine: bool = True,
    mean: Tensor | None = None,  # [R]
) -> Tensor:  # [R, N, P, Q]
    """Correlation tensor, Eq. 1: ``F[r, n, p, q] = cos(a[n, p], b[index_b[r, n], q])``.

    ``index_b`` defaults to the identity (R = 1). ``center`` subtracts the mean over q from every row and adds the mean
    of the whole draw r: ``F - mean_q F + mean_npq F``; ``mean`` takes the place of the last one where the images are
    only some of the draw's. Without ``cosine`` the vectors are taken as they are: depth ``[N, P, 1]`` gives Eq. 5.
    """
    index_b = torch.arange(a.shape[0], device=a.device)[None] if index_b is None else index_b
    a, b = (normalize(a), normalize(b)) if cosine else (a, b)
    value = torch.einsum("npc,rnqc->rnpq", a, b[index_b])
    if center and value.numel():
        whole = value.mean((1, 2, 3)) if mean is None else mean.to(value.dtype)
        value = value - value.mean(3, keepdim=True) + whole[:, None, None, None]
    return value


def feature_means(
    feats: Tensor,  # [N, P, C] anchors
    feats_neighbour: Tensor,  # [N, Q, C]
    negatives: Tensor,  # [R, N] int64, rows of the negative bank
    feats_negative: Tensor | None = None,  # [M, Q', C], default the anchors
) -> Tensor:  # [2 + R]
    """Means of F over images and both axes, which centring adds: self, neighbour, and every draw of negatives."""
    bank = feats if feats_negative is None else feats_negative
    pairs = (feats, None), (feats_neighbour, None), (bank, negatives)
    return torch.cat([correlation(feats, other, index_b=index).mean((1, 2, 3)) for other, index in pairs])


def _weighted_similarity(
    target: Tensor, similarity: Tensor, shift: float | Tensor, clamp: bool, max_similarity: float | None
) -> CorrelationTerm:
    """``-mean (target - shift) * max(similarity, 0)``.

    Without ``clamp`` negative similarities stay; ``max_similarity`` clamps from above (STEGO's ``stabalize``).
    """
    if similarity.numel() == 0:
        zero = similarity.sum()
        return CorrelationTerm(zero, zero.detach())
    weight = similarity.clamp(min=0) if clamp else similarity
    weight = weight if max_similarity is None else weight.clamp(max=max_similarity)
    return CorrelationTerm(-((target - shift) * weight).mean(), similarity.detach().mean())


def correlation_loss(
    feats_a: Tensor,  # [N, P, C]
    feats_b: Tensor,  # [M, Q, C]
    codes_a: Tensor,  # [N, P, K]
    codes_b: Tensor,  # [M, Q, K]
    shift: float | Tensor,
    *,
    index_b: Tensor | None = None,  # [R, N] int64
    center: bool = True,
    clamp: bool = True,
    max_similarity: float | None = None,
) -> CorrelationTerm:
    """Feature correlation loss, Eq. 2: ``-mean (F - shift) * max(S, 0)``, the mean over draws, images and both axes."""
    with torch.no_grad():
        target = correlation(feats_a, feats_b, index_b=index_b, center=center)
    return _weighted_similarity(target, correlation(codes_a, codes_b, index_b=index_b), shift, clamp, max_similarity)


def depth_relation(depth_a: Tensor, depth_b: Tensor, relation: str = "product", bandwidth: float = 0.1) -> Tensor:
    """Depth correlation tensor D ``[N, P, Q]`` of depths u ``[N, P]`` and v ``[N, Q]`` in [0, 1].

    ``product``: u v (Eq. 5). ``unit``: 1 where both depths are positive, else 0 (what L2-normalising a one-channel
    depth amounts to). ``centered``: product of mean-free depths, each scaled by its image's largest magnitude.
    ``gaussian``: ``exp(-((u - v) / bandwidth)^2)``. ``euclidean``: ``exp(-|p - q|^2 / bandwidth^2)`` for points
    ``[N, P, 3]``. ``normals``: cosine of vectors ``[N, P, D]``, normals with an optional fourth channel for sky.
    """
    if relation == "product":
        return depth_a[:, :, None] * depth_b[:, None, :]
    if relation == "unit":
        return ((depth_a > 0)[:, :, None] & (depth_b > 0)[:, None, :]).to(depth_a.dtype)
    if relation == "centered":
        return _scaled_deviation(depth_a)[:, :, None] * _scaled_deviation(depth_b)[:, None, :]
    if relation == "gaussian":
        return torch.exp(-(((depth_a[:, :, None] - depth_b[:, None, :]) / bandwidth) ** 2))
    if relation == "euclidean":
        square = ((depth_a[:, :, None, :] - depth_b[:, None, :, :]) ** 2).sum(-1)
        return torch.exp(-square / bandwidth**2)
    if relation == "normals":
        return torch.einsum("npd,nqd->npq", normalize(depth_a), normalize(depth_b))
    raise ValueError(f"unknown relation {relation!r}; choose one of {', '.join(RELATIONS)}")


def _scaled_deviation(depth: Tensor) -> Tensor:  # [N, P] -> [N, P] in [-1, 1]
    if depth.numel() == 0:
        return depth
    deviation = depth - depth.mean(1, keepdim=True)
    largest = deviation.abs().amax(1, keepdim=True)
    return torch.where(largest > 0, deviation / torch.where(largest > 0, largest, 1.0), 0.0)


def depth_correlation_loss(
    codes_a: Tensor,  # [N, P, K]
    codes_b: Tensor,  # [N, Q, K]
    depth_a: Tensor,  # [N, P] in [0, 1], or [N, P, D] for euclidean and normals
    depth_b: Tensor,  # [N, Q], likewise
    shift: float | Tensor,
    *,
    relation: str = "product",
    bandwidth: float = 0.1,
    clamp: bool = True,
    max_similarity: float | None = None,
) -> CorrelationTerm:
    """Depth-feature correlation loss, Eq. 6: ``-mean (D - shift) * max(S, 0)``."""
    with torch.no_grad():
        target = depth_relation(depth_a, depth_b, relation, bandwidth)
    return _weighted_similarity(target, correlation(codes_a, codes_b)[0], shift, clamp, max_similarity)


def depthg_loss(
    feats: Tensor,  # [N, P, C] anchors
    codes: Tensor,  # [N, P, K]
    feats_neighbour: Tensor,  # [N, Q, C]
    codes_neighbour: Tensor,  # [N, Q, K]
    negatives: Tensor,  # [R, N] int64, rows of the negative bank
    settings: LossSettings,
    *,
    feats_negative: Tensor | None = None,  # [M, Q', C], default the anchors
    codes_negative: Tensor | None = None,  # [M, Q', K]
    depth: Tensor | None = None,  # [N, P] or [N, P, D]
    codes_depth: Tensor | None = None,  # [N, Q'', K], the other crop; default the anchors
    depth_other: Tensor | None = None,  # [N, Q''] or [N, Q'', D]
    feature_means: Tensor | None = None,  # [2 + R]
    points: Tensor | None = None,  # [N, P] int64 cells, or [N, P, 2] coordinates
    points_neighbour: Tensor | None = None,  # default ``points``
    align_corners: bool = True,
) -> DepthGLoss:
    """All terms of Eq. 7 in one call: ``sum_i weight_i * loss_i`` over self, neighbour, negatives and depth.

    ``feature_means`` are what centring adds, see the function of that name; default those of the given images. With
    ``points`` features, codes and depth of anchors and neighbours are maps, read there by ``sample_points``.
    """
    s = settings
    if points is not None:
        at = points if points_neighbour is None else points_neighbour
        feats, codes = (sample_points(x, points, align_corners=align_corners) for x in (feats, codes))
        feats_neighbour, codes_neighbour = (
            sample_points(x, at, align_corners=align_corners) for x in (feats_neighbour, codes_neighbour)
        )
        if depth is not None:
            depth = sample_points(depth, points, align_corners=align_corners)
            depth = depth if s.relation in ("euclidean", "normals") else depth[..., 0]
    feats_negative = feats if feats_negative is None else feats_negative
    codes_negative = codes if codes_negative is None else codes_negative
    means = (None,) * 3 if feature_means is None else feature_means.split([1, 1, len(negatives)])

    def term(
        other: Tensor, other_codes: Tensor, shift: float | Tensor, mean: Tensor | None, index_b: Tensor | None = None
    ) -> CorrelationTerm:
        with torch.no_grad():
            target = correlation(feats, other, index_b=index_b, center=s.center, mean=mean)
        similarity = correlation(codes, other_codes, index_b=index_b)
        return _weighted_similarity(target, similarity, shift, s.clamp, s.max_similarity)

    own = term(feats, codes, s.self_shift, means[0])
    near = term(feats_neighbour, codes_neighbour, s.neighbour_shift, means[1])
    far = term(feats_negative, codes_negative, s.negative_shift, means[2], negatives)
    total = s.self_weight * own.loss + s.neighbour_weight * near.loss + s.negative_weight * far.loss
    guide = None
    if depth is not None:
        codes_depth = codes if codes_depth is None else codes_depth
        depth_other = depth if depth_other is None else depth_other
        guide = depth_correlation_loss(
            codes, codes_depth, depth, depth_other, s.depth_shift,
            relation=s.relation, bandwidth=s.bandwidth, clamp=s.clamp, max_similarity=s.max_similarity,
        )  # fmt: skip
        total = total + s.depth_weight * guide.loss
    return DepthGLoss(total, own, near, far, guide)


def sample_points(
    maps: Tensor,  # [N, C, H, W]
    points: Tensor,  # [N, P] int64 flat cells, or [N, P, 2] coordinates (x, y) in [-1, 1]
    *,
    align_corners: bool = True,
) -> Tensor:  # [N, P, C]
    """Map vectors at points: exact gather at integer cells, bilinear with border clamping at coordinates."""
    if points.ndim == 2:
        channels = maps.shape[1]
        return maps.flatten(2).gather(2, points[:, None].expand(-1, channels, -1)).transpose(1, 2)
    wide = torch.promote_types(maps.dtype, torch.float32)  # coordinates in half precision are off by up to 0.05 cells
    sampled = torch.nn.functional.grid_sample(
        maps.to(wide), points[:, :, None].to(wide), mode="bilinear", padding_mode="border", align_corners=align_corners
    )
    return sampled[..., 0].transpose(1, 2).to(maps.dtype)


def correlation_histogram(
    a: Tensor,  # [N, P, C]
    b: Tensor,  # [M, Q, C]
    bins: int,
    *,
    range: tuple[float, float] = (-1.0, 1.0),
    center: bool = False,
    index_b: Tensor | None = None,  # [R, N] int64
    cosine: bool = True,
) -> Tensor:  # [bins] int64
    """Counts of ``correlation(a, b)`` in equal bins over ``range``; values outside go to the outermost bins."""
    low, high = range
    value = correlation(a, b, index_b=index_b, center=center, cosine=cosine)
    position = ((value - low) * (bins / (high - low))).floor().long().clamp(0, bins - 1)
    return torch.bincount(position.flatten(), minlength=bins)


def nt_xent_loss(z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:  # [N, K], [N, K] -> 0-dim
    """Contrastive objective of Sec. 3.3 over the 2N views: mean of ``-log softmax(cos / temperature)`` at the pair."""
    n = z_a.shape[0]
    if n == 0:
        return (z_a.sum() + z_b.sum()) * 0
    z = normalize(torch.cat([z_a, z_b]))
    logits = (z @ z.T / temperature).fill_diagonal_(-math.inf)
    pair = torch.arange(2 * n, device=z.device).roll(n)
    return (logits.logsumexp(1) - logits.gather(1, pair[:, None])[:, 0]).mean()


# Farthest point sampling. Letters: B clouds, N points (N maps in the depth variant), D coordinates.


def farthest_point_sample(
    points: Tensor,  # [B, N, D]
    k: int,
    *,
    start: int | Tensor | str = 0,  # [B] int64
    lengths: Tensor | None = None,  # [B] int64
    generator: torch.Generator | None = None,
) -> Tensor:  # [B, k] int64
    """Each pick is the point farthest from all earlier picks; of equally far points the one with the lowest index.

    ``picks[:, 0] = start;  picks[:, j] = argmax_i min_{l < j} |points[:, i] - points[:, picks[:, l]]|^2``

    over the points that are not picked yet: the minimum of a picked point is -1, like that of entries beyond a cloud's
    length. So the picks differ as long as there are points, also where points coincide; then follow zeros. Points are
    rounded to float32; squared distances are summed coordinate by coordinate in float32, each operation rounded on its
    own, which is what makes equal indices possible everywhere (the contract stands in ``csrc/fps.h``).
    """
    clouds, n, dims = points.shape
    points = points.detach().float()
    nearest = points.new_full((clouds, n), math.inf)
    if lengths is not None:
        lengths = lengths.clamp(1, n)
        beyond = torch.arange(n, device=points.device) >= lengths[:, None]
        nearest = nearest.masked_fill(beyond, -1.0)
    pick = first_pick(start, clouds, n, lengths, points.device, generator).clamp(0, n - 1)
    if lengths is not None:
        pick = torch.minimum(pick, lengths - 1)
    picks = []
    for _ in range(k):
        picks.append(pick)
        nearest.scatter_(1, pick[:, None], -1.0)
        offset = points - points.gather(1, pick[:, None, None].expand(-1, 1, dims))
        distance = offset[..., 0] * offset[..., 0]
        for d in range(1, dims):
            distance = distance + offset[..., d] * offset[..., d]
        nearest = torch.fmin(nearest, distance)  # a distance to NaN counts as none
        pick = nearest.argmax(1)
    return torch.stack(picks, 1)


def first_pick(
    start: int | Tensor | str,
    clouds: int,
    n: int,
    lengths: Tensor | None,
    device: torch.device,
    generator: torch.Generator | None,
) -> Tensor:  # [B] int64
    """The start of every cloud as a tensor; ``"random"`` draws it uniformly below the cloud's length."""
    if isinstance(start, Tensor):
        return start
    if start != "random":
        return torch.full((clouds,), int(start), dtype=torch.int64, device=device)
    source = device if generator is None else generator.device
    draw = torch.rand(clouds, dtype=torch.float64, device=source, generator=generator).to(device)
    size = n if lengths is None else lengths
    return torch.minimum((draw * size).long(), torch.as_tensor(size, device=device) - 1)


def focal_length(fov_deg: float | Tensor, width: int) -> float | Tensor:
    """Focal length in cells of a pinhole camera whose image of ``width`` cells spans ``fov_deg`` degrees."""
    if isinstance(fov_deg, Tensor):
        return (width / 2 / torch.tan(torch.deg2rad(fov_deg.double()) / 2)).float()
    return width / 2 / math.tan(math.radians(fov_deg) / 2)


def unproject(depth: Tensor, fov_deg: float | Tensor = 90.0) -> Tensor:  # [N, H, W], [N] -> [N, H*W, 3] float32
    """Points seen by a pinhole camera with square pixels, at cell centres, in raster order: x right, y down, z = depth.

    ``x = (column + 1/2 - W/2) / f * z;  y = (row + 1/2 - H/2) / f * z;  f = W/2 / tan(fov/2)``, in float32
    """
    return unproject_focal(depth, focal_length(fov_deg, depth.shape[2]))


def unproject_focal(depth: Tensor, focal: float | Tensor) -> Tensor:  # [N, H, W], [N] -> [N, H*W, 3] float32
    """``unproject`` with the focal length in cells; a true division by it, which a Python number would not give."""
    maps, height, width = depth.shape
    z = depth.float()
    if not isinstance(focal, Tensor):
        focal = torch.full((1,), focal, dtype=torch.float32, device=depth.device)
    column = torch.arange(width, dtype=torch.float32, device=depth.device)
    row = torch.arange(height, dtype=torch.float32, device=depth.device)
    x = ((column + 0.5 - width / 2) / focal[:, None])[:, None, :] * z
    y = ((row + 0.5 - height / 2) / focal[:, None])[:, :, None] * z
    return torch.stack([x, y, z], -1).reshape(maps, height * width, 3)


def farthest_point_sample_depth(
    depth: Tensor,  # [N, H, W]
    k: int,
    *,
    fov_deg: float | Tensor = 90.0,  # [N]
    start: int | Tensor | str = 0,  # [N] int64
    generator: torch.Generator | None = None,
) -> Tensor:  # [N, k] int64
    """``farthest_point_sample(unproject(depth, fov_deg), k)``: flat cell indices ``row * W + column``."""
    return farthest_point_sample(unproject(depth, fov_deg), k, start=start, generator=generator)
