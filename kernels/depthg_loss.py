"""All terms of DepthG's loss, Eq. 7, in one operation: self, neighbour, R negatives and depth.

    total = sum_i weight_i * loss_i

Every set of vectors is normalised once, and self and depth share S. Gradients of the terms at the unit codes are kept
apart, so that the total and every single term can be differentiated.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from depthg.kernels import checks, reference
from depthg.kernels.pair_terms import Inputs, Options, pair_terms
from depthg.kernels.reference import CorrelationTerm, DepthGLoss, LossSettings
from depthg.kernels.sample_points import sample_points

VECTORS = ("euclidean", "normals")  # relations of depth vectors [N, P, D]


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
    points: Tensor | None = None,  # [N, P] int64 cells or [N, P, 2] coordinates; then the four first and depth are maps
    points_neighbour: Tensor | None = None,  # [N, Q] or [N, Q, 2], default ``points``
    align_corners: bool = True,
    impl: str = "auto",
) -> DepthGLoss:
    """All terms of Eq. 7 in one call, without a correlation tensor in memory.

    ``total = sum_i weight_i * loss_i`` over self, neighbour, negatives and depth, the first three as
    ``correlation_loss``, the last as ``depth_correlation_loss``.

    Args:
        feats: features of the anchors ``[N, P, C]``, any length, float; features get no gradient.
        codes: codes at the same points ``[N, P, K]``.
        feats_neighbour: features of each anchor's neighbour image ``[N, Q, C]``.
        codes_neighbour: its codes ``[N, Q, K]``.
        negatives: ``[R, N]`` int64: draw r pairs anchor n with image ``negatives[r, n]`` of the negative bank.
        settings: weights, shifts and options.
        feats_negative: the negative bank ``[M, Q', C]``; default the anchors, which saves work.
        codes_negative: its codes ``[M, Q', K]``; both or neither.
        depth: depth ``[N, P]`` in [0, 1] at the anchors' points, or ``[N, P, D]`` for "euclidean" and "normals";
            None leaves the depth term out.
        codes_depth: codes of another crop of the same images ``[N, Q'', K]``; default the anchors.
        depth_other: depth at the points of that crop.
        feature_means: ``[2 + R]`` float, the means of F that centring adds to self, neighbour and every draw, where the
            images are only a part of the batch (see ``feature_means.py``); default those of the given images. Without
            ``settings.center`` nothing is added, whatever they are.
        points: where vectors are read, as in ``sample_points``. ``feats`` and ``codes`` are then maps
            ``[N, C, H, W]`` and ``[N, K, H, W]`` (of any two sizes with coordinates), ``depth`` is a map
            ``[N, D, H, W]`` (D = 1 unless the relation compares vectors), and gradients are those of the maps. The
            negative bank and the other crop stay vectors at points. On a GPU only what the kernels need is stored at
            the points.
        points_neighbour: the same for the neighbours' maps, default ``points``.
        align_corners: as in ``sample_points``, for coordinates.
        impl: "auto", "triton", "cpp" or "eager".

    Returns:
        ``DepthGLoss(total, self, neighbour, negative, depth)``: 0-dim tensors, float32 for half inputs. The total and
        every term's loss are differentiable in all codes; similarities are detached.

    Raises:
        TypeError: an input is not floating point, or ``negatives`` is not int64.
        ValueError: shapes, devices or indices do not fit, features require grad, or ``impl`` cannot run here.

    DepthG Eq. 7. For ``torch.func`` transforms take ``impl="eager"``.
    """
    x: Any = Inputs(
        codes, feats, codes_neighbour, feats_neighbour, codes_negative, feats_negative, codes_depth, depth, depth_other,
        points, points if points_neighbour is None else points_neighbour, negatives, None, feature_means,
    )  # fmt: skip
    if points is None and points_neighbour is not None:
        raise ValueError("points_neighbour needs points, which say where the anchors' maps are read")
    _check(x, settings)
    tensors = x[:9]
    impl = checks.choose_impl(impl, codes.device, triton=checks.no_triton(*tensors), cpp=checks.no_cpp())
    if points is not None:
        empty = checks.any_empty(*tensors, *x[9:11])
        if impl != "triton" or empty:
            x = _read(x, settings, align_corners, "eager" if impl == "eager" else "auto")
        elif settings.relation == "centered" and depth is not None:  # needs all depths of an image at once
            read = sample_points(depth, points, align_corners=align_corners, impl="triton")[..., 0]
            x = x._replace(depth=read)
    if impl != "eager" and checks.any_empty(*x[:9]):  # the eager definition handles empty tensors
        x, impl = Inputs(*checks.one_type(*x[:9]), *x[9:]), "eager"
    if impl == "eager":
        return reference.depthg_loss(
            x.feats, x.codes, x.feats_near, x.codes_near, negatives, settings, feats_negative=x.feats_far,
            codes_negative=x.codes_far, depth=x.depth, codes_depth=x.codes_other, depth_other=x.depth_other,
            feature_means=feature_means,
        )  # fmt: skip
    s = settings
    options = Options(True, s.relation, s.bandwidth, s.center, s.clamp, s.max_similarity, align_corners)
    total, losses, similarities = pair_terms(
        x, options, impl=impl, shifts=(s.self_shift, s.neighbour_shift, s.negative_shift, s.depth_shift),
        weights=(s.self_weight, s.neighbour_weight, s.negative_weight, s.depth_weight),
    )  # fmt: skip
    own, near, far, guide = map(CorrelationTerm, losses.unbind(), similarities.unbind())
    return DepthGLoss(total, own, near, far, None if depth is None else guide)


def _read(x: Any, settings: LossSettings, align_corners: bool, impl: str) -> Inputs:
    """``Inputs`` with the vectors of the maps at the points."""
    options: dict[str, Any] = {"align_corners": align_corners, "impl": impl}
    at, near = x.points, x.points_near
    depth = None if x.depth is None else sample_points(x.depth, at, **options)
    read: Inputs = x._replace(
        codes=sample_points(x.codes, at, **options), feats=sample_points(x.feats, at, **options),
        codes_near=sample_points(x.codes_near, near, **options),
        feats_near=sample_points(x.feats_near, near, **options),
        depth=depth if depth is None or settings.relation in VECTORS else depth[..., 0], points=None, points_near=None,
    )  # fmt: skip
    return read


def _check(x: Any, settings: LossSettings) -> None:
    """Checks ``Inputs``; what is read from maps is checked as the vectors that it will be."""
    feats, codes, feats_near, codes_near, depth = x.feats, x.codes, x.feats_near, x.codes_near, x.depth
    if x.points is not None:
        checks.check_maps(feats, codes, feats_near, codes_near, depth, x.points, x.points_near, settings)
        feats, codes = (checks.Sampled(m, x.points) for m in (feats, codes))
        feats_near, codes_near = (checks.Sampled(m, x.points_near) for m in (feats_near, codes_near))
        if depth is not None:
            depth = checks.Sampled(depth, x.points, scalar=settings.relation not in VECTORS)
    optional = (x.feats_far, x.codes_far, depth, x.codes_other, x.depth_other)
    checks.check_terms(feats, codes, feats_near, codes_near, x.negatives, settings, optional)
    checks.check_limit(settings.clamp, settings.max_similarity)
    if x.means is None:
        return
    checks.check_floats(feature_means=x.means)
    checks.check_frozen(feature_means=x.means)
    draws = len(x.negatives)
    if x.means.shape != (2 + draws,):
        raise ValueError(
            f"feature_means must be [{2 + draws}] (self, neighbour, {draws} draws), got {checks.shape(x.means)}"
        )
    if x.means.device != feats.device:
        raise ValueError(
            f"feature_means is on {x.means.device} but feats is on {feats.device}; move them to one device"
        )
