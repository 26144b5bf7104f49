"""The depth term where depth is unknown (NaN) at sampled points: means over the pairs whose two depths are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from depthg.kernels import LossSettings, depth_correlation_loss
from depthg.kernels.reference import CorrelationTerm, DepthGLoss, depth_relation, normalize

EPS = 1e-6  # pairs: fewer than one in all processes together, where the sum is 0
Average = Callable[[Tensor], Tensor]  # mean over the processes that share a batch


def known_points(values: Tensor) -> Tensor:  # [N, P] or [N, P, D] -> bool [N, P]
    """Points whose depth, or whose vector, is known."""
    return ~(values if values.ndim == 2 else values[..., 0]).isnan()


def filled(values: Tensor) -> Tensor:  # [N, P] or [N, P, D], same shape
    """Values without NaN: the mean of the known depths of an image, which centring leaves at 0, or zero vectors."""
    if values.ndim == 3:
        return values.masked_fill(values.isnan(), 0)
    known = known_points(values)
    mean = values.masked_fill(~known, 0).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
    return torch.where(known, values, mean.to(values.dtype))


def known_pairs(depth_a: Tensor, depth_b: Tensor) -> Tensor:  # 0-dim, float32 or float64
    """Number of pairs of one image whose two depths are known; counted in integers, float64 for float64 depths."""
    counts = [known_points(values).sum(1) for values in (depth_a, depth_b)]
    return (counts[0] * counts[1]).sum().to(torch.promote_types(depth_a.dtype, torch.float32))


def known_relation(depth_a: Tensor, depth_b: Tensor, relation: str, bandwidth: float) -> Tensor:  # [pairs]
    """The depth correlation tensor D at the pairs whose two depths are known, flattened."""
    target = depth_relation(filled(depth_a), filled(depth_b), relation, bandwidth)
    return target[known_points(depth_a)[:, :, None] & known_points(depth_b)[:, None, :]]


def mean_known_relation(
    depth_a: Tensor, depth_b: Tensor, relation: str, bandwidth: float, average: Average | None = None
) -> Tensor:  # 0-dim
    """``depth_term.mean_relation`` over the known pairs of the batch; 0 where there are none."""
    a, b = (x.masked_fill(x.isnan(), 0) for x in (depth_a, depth_b))
    pairs = known_pairs(depth_a, depth_b)
    if relation == "centered":
        total = pairs * 0  # a product of mean-free factors
    elif relation in ("gaussian", "euclidean"):
        rows = zip(a.split(1), b.split(1), known_points(depth_a).split(1), known_points(depth_b).split(1), strict=True)
        total = torch.stack([(depth_relation(u, v, relation, bandwidth) * (m[:, :, None] & n[:, None])).sum()
                             for u, v, m, n in rows]).sum()  # fmt: skip
    elif relation == "normals":
        total = (normalize(a).sum(1) * normalize(b).sum(1)).sum()
    else:
        a, b = ((a > 0).to(a.dtype), (b > 0).to(b.dtype)) if relation == "unit" else (a, b)
        total = (a.sum(1) * b.sum(1)).sum()
    if average is not None:
        total, pairs = average(total), average(pairs)
    return (total / pairs.clamp(min=EPS)).to(depth_a.dtype)


def known_depth_loss(
    codes_a: Tensor,  # [N, P, K]
    codes_b: Tensor,  # [N, Q, K]
    depth_a: Tensor,  # [N, P] or [N, P, D], NaN = unknown
    depth_b: Tensor,  # [N, Q] or [N, Q, D]
    shift: float | Tensor,
    *,
    average: Average | None = None,
    **options: Any,
) -> CorrelationTerm:
    """``depth_correlation_loss`` as the mean over pairs whose two depths are known; 0 where there are none.

    Codes of unknown points are zero, so S and every gradient are 0 in their pairs. With ``average`` the mean of the
    processes' losses is the mean over the known pairs of all processes.
    """
    pairs = known_pairs(depth_a, depth_b)
    pairs = pairs if average is None else average(pairs)
    scale = (codes_a.shape[0] * codes_a.shape[1] * codes_b.shape[1]) / pairs.clamp(min=EPS)
    a = codes_a * known_points(depth_a)[..., None].to(codes_a.dtype)
    same = codes_b is codes_a and depth_b is depth_a
    b = a if same else codes_b * known_points(depth_b)[..., None].to(codes_b.dtype)
    u = filled(depth_a)
    term = depth_correlation_loss(a, b, u, u if same else filled(depth_b), shift, **options)
    return CorrelationTerm(*(value * scale.to(value.dtype) for value in term))


def with_known_depth(
    result: DepthGLoss, codes: Tensor, settings: LossSettings, average: Average | None, *,
    depth: Tensor, codes_depth: Tensor | None = None, depth_other: Tensor | None = None,
) -> DepthGLoss:  # fmt: skip
    """The result of ``depthg_loss`` without depth, and with the depth term over known pairs; arguments as there."""
    other_codes = codes if codes_depth is None else codes_depth
    guide = known_depth_loss(
        codes, other_codes, depth, depth if depth_other is None else depth_other, settings.depth_shift,
        average=average, relation=settings.relation, bandwidth=settings.bandwidth, clamp=settings.clamp,
        max_similarity=settings.max_similarity,
    )  # fmt: skip
    return result._replace(total=result.total + settings.depth_weight * guide.loss, depth=guide)
