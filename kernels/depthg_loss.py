"""All terms of DepthG's loss, Eq. 7, in one operation: self, neighbour, R negatives and depth.

    total = sum_i weight_i * loss_i

Every set of vectors is normalised once, and self and depth share S. Gradients of the terms at the unit codes are kept
apart, so that the total and every single term can be differentiated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from depthg.kernels import checks, pair_pass_native, reference
from depthg.kernels.code_gradient import code_gradient
from depthg.kernels.pair_pass import Scratch, Target
from depthg.kernels.pair_terms import triton_terms
from depthg.kernels.reference import CorrelationTerm, DepthGLoss, LossSettings
from depthg.kernels.sample_points import sample_points
from depthg.kernels.terms_cpu import (
    depth_term,
    feature_term,
    identity_pairs,
    make_bank,
    mean_product,
    run_pass,
    working_dtype,
)

SELF, NEIGHBOUR, NEGATIVE, DEPTH = range(4)


def _cpu(
    feats: Tensor, codes: Tensor, feats_near: Tensor, codes_near: Tensor, negatives: Tensor, feats_far: Tensor | None,
    codes_far: Tensor | None, depth: Tensor | None, codes_depth: Tensor | None, depth_other: Tensor | None,
    shifts: Tensor, relation: str, bandwidth: float, center: bool, clamp: bool, max_similarity: float | None,
    means: Tensor | None, d_codes: Tensor | None, d_near: Tensor | None, d_far: Tensor | None, d_depth: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Losses and mean similarities of the terms; the gradient buffers (zeros, None when not wanted) are added to."""
    dtype = working_dtype(feats, codes, depth)
    scratch, shift = Scratch(dtype), shifts.tolist()
    options: dict[str, Any] = {"clamp": clamp, "max_similarity": max_similarity}
    anchor = make_bank(codes, feats, dtype)
    near = make_bank(codes_near, feats_near, dtype)
    far = anchor if codes_far is None else make_bank(codes_far, feats_far, dtype)
    at: list[Tensor | None] = [None] * 4 if d_codes is None else [*d_codes]
    mean = _split(means, len(negatives))
    target, pairs, _ = feature_term(anchor, anchor, shift[SELF], None, center, at[SELF], at[SELF], mean[SELF])
    own: list[Target] = [target]
    guide, similar = None, []
    if depth is not None:
        other = anchor if codes_depth is None else make_bank(codes_depth, None, dtype)
        d_b = at[DEPTH] if other is anchor else d_depth
        guide = depth_term(depth, depth_other, shift[DEPTH], relation, bandwidth, dtype, at[DEPTH], d_b)
        if other is anchor and depth_other is None:
            own.append(guide)
        else:
            run_pass([guide], anchor.codes, other.codes, identity_pairs(codes.shape[0]), scratch, **options)
        similar = [mean_product(anchor.codes.mean, other.codes.mean, None)]
    run_pass(own, anchor.codes, anchor.codes, pairs, scratch, symmetric=True, **options)
    losses = [target.total]
    for bank, term, index_b, d_b in (
        (near, NEIGHBOUR, None, d_near),
        (far, NEGATIVE, negatives, at[NEGATIVE] if far is anchor else d_far),
    ):
        if negatives.shape[0] == 0 and term == NEGATIVE:
            losses.append(0.0)
            continue
        target, pairs, _ = feature_term(anchor, bank, shift[term], index_b, center, at[term], d_b, mean[term])
        run_pass([target], anchor.codes, bank.codes, pairs, scratch, **options)
        losses.append(target.total)
    pair_pass_native.kept.release()
    similar = [
        mean_product(anchor.codes.mean, anchor.codes.mean, None),
        mean_product(anchor.codes.mean, near.codes.mean, None),
        mean_product(anchor.codes.mean, far.codes.mean, negatives),
        *similar,
    ]
    losses += [] if guide is None else [guide.total]
    return (
        torch.tensor(losses, dtype=dtype),
        torch.stack([s.mean() if s.numel() else s.sum() for s in similar]).to(dtype),
    )


def _split(means: Tensor | None, draws: int) -> tuple[Tensor | None, ...]:
    """Means of F of self, neighbour and negatives; None where they are to be computed."""
    return (None, None, None) if means is None else means.split([1, 1, draws])


def _buffer(like: Tensor | None, needed: bool, dtype: torch.dtype, terms: int = 1) -> Tensor | None:
    if like is None or not needed:
        return None
    return torch.zeros((terms, *like.shape), dtype=dtype, device=like.device)


@torch.library.custom_op("depthg::depthg_loss", mutates_args=())
@checks.without_autocast
def depthg_loss_op(
    feats: Tensor,
    codes: Tensor,
    feats_neighbour: Tensor,
    codes_neighbour: Tensor,
    negatives: Tensor,
    feats_negative: Tensor | None,
    codes_negative: Tensor | None,
    depth: Tensor | None,
    codes_depth: Tensor | None,
    depth_other: Tensor | None,
    shifts: Tensor,
    relation: str,
    bandwidth: float,
    center: bool,
    clamp: bool,
    max_similarity: float | None,
    needs: list[bool],
    feature_means: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """On the CPU: losses and mean similarities [T], gradients at unit codes of anchors [T, N, P, K] and other sides.

    Without a negative bank (or other crop) its gradient is part of the anchors'. Gradients not needed are empty.
    """
    dtype = working_dtype(feats, codes, depth)
    terms = 3 if depth is None else 4
    d_codes = _buffer(codes, needs[0], dtype, terms)
    d_others = [
        _buffer(x, need, dtype)
        for x, need in zip((codes_neighbour, codes_negative, codes_depth), needs[1:], strict=True)
    ]
    if codes.shape[0] * codes.shape[1] * codes_neighbour.shape[1] == 0:
        losses, similarities = codes.new_zeros(terms, dtype=dtype), codes.new_zeros(terms, dtype=dtype)
    else:
        losses, similarities = _cpu(
            feats, codes, feats_neighbour, codes_neighbour, negatives, feats_negative, codes_negative,
            depth, codes_depth, depth_other, shifts, relation, bandwidth, center, clamp, max_similarity, feature_means,
            d_codes, *(None if d is None else d[0] for d in d_others),
        )  # fmt: skip
    own, near, far, other = (codes.new_empty(0, dtype=dtype) if d is None else d for d in (d_codes, *d_others))
    return losses, similarities, own, near, far, other


@depthg_loss_op.register_fake
def _(
    feats: Tensor, codes: Tensor, feats_neighbour: Tensor, codes_neighbour: Tensor, negatives: Tensor,
    feats_negative: Tensor | None, codes_negative: Tensor | None, depth: Tensor | None, codes_depth: Tensor | None,
    depth_other: Tensor | None, shifts: Tensor, relation: str, bandwidth: float, center: bool, clamp: bool,
    max_similarity: float | None, needs: list[bool], feature_means: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    dtype = working_dtype(feats, codes, depth)
    terms = 3 if depth is None else 4
    sides = ((codes, terms), (codes_neighbour, 1), (codes_negative, 1), (codes_depth, 1))
    gradients = [
        codes.new_empty((t, *x.shape) if need and x is not None else (0,), dtype=dtype)
        for (x, t), need in zip(sides, needs, strict=True)
    ]
    return codes.new_empty(terms, dtype=dtype), codes.new_empty(terms, dtype=dtype), *gradients


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[1], inputs[3], inputs[6], inputs[8], *output[2:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, g_losses: Tensor | None, *g_rest: Tensor | None) -> tuple[Tensor | None, ...]:
    codes, codes_neighbour, codes_negative, codes_depth, *d_terms = ctx.saved_tensors
    grads: list[Tensor | None] = [None] * 18
    upstream = (g_losses, *(None if g_losses is None else g_losses[t : t + 1] for t in (NEIGHBOUR, NEGATIVE, DEPTH)))
    positions = (1, 3, 6, 8)
    for position, x, d, g in zip(
        positions, (codes, codes_neighbour, codes_negative, codes_depth), d_terms, upstream, strict=True
    ):
        if g is not None and x is not None and ctx.needs_input_grad[position]:
            grads[position] = code_gradient(x, d, g)
    return tuple(grads)


depthg_loss_op.register_autograd(_backward, setup_context=_setup_context)


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
            negative bank and the other crop stay vectors at points. On a GPU nothing is stored at the points but what
            the kernels need.
        points_neighbour: the same for the neighbours' maps, default ``points``.
        align_corners: as in ``sample_points``, for coordinates.
        impl: "auto", "triton", "cpu" or "eager".

    Returns:
        ``DepthGLoss(total, self, neighbour, negative, depth)``: 0-dim tensors, float32 for half inputs. The total and
        every term's loss are differentiable in all codes; similarities are detached.

    Raises:
        TypeError: an input is not floating point, or ``negatives`` is not int64.
        ValueError: shapes, devices or indices do not fit, features require grad, or ``impl`` cannot run here.

    DepthG Eq. 7. For ``torch.func`` transforms take ``impl="eager"``.
    """
    if points is None:
        if points_neighbour is not None:
            raise ValueError("points_neighbour needs points, which say where the anchors' maps are read")
        seen: tuple[Any, ...] = feats, codes, feats_neighbour, codes_neighbour, depth
    else:
        points_neighbour = points if points_neighbour is None else points_neighbour
        checks.check_maps(feats, codes, feats_neighbour, codes_neighbour, depth, points, points_neighbour, settings)
        at = points, points, points_neighbour, points_neighbour, points
        maps = feats, codes, feats_neighbour, codes_neighbour, depth
        seen = tuple(None if x is None else checks.Sampled(x, p) for x, p in zip(maps, at, strict=True))
        if depth is not None and settings.relation not in ("euclidean", "normals"):
            seen = (*seen[:4], checks.Sampled(depth, points, scalar=True))
    _check(seen, negatives, settings, feats_negative, codes_negative, codes_depth, depth_other, feature_means)
    sides = (feats, codes, feats_neighbour, codes_neighbour)
    bank: dict[str, Any] = {
        "feats_negative": feats_negative, "codes_negative": codes_negative, "depth": depth, "codes_depth": codes_depth,
        "depth_other": depth_other,
    }  # fmt: skip
    impl = checks.choose_impl(impl, *sides, *bank.values())
    if impl == "triton" and not checks.any_empty(*sides, *bank.values(), points, points_neighbour):
        return _on_triton(
            *sides, negatives, settings, points, points_neighbour, align_corners, feature_means=feature_means, **bank
        )
    if points is not None:
        sides, bank["depth"] = _read(sides, depth, points, points_neighbour, settings, align_corners, impl)
    if impl != "eager" and checks.any_empty(*sides, *bank.values()):  # nothing to be fast at
        given = checks.one_type(*sides, *bank.values())
        sides, bank, impl = given[:4], dict(zip(bank, given[4:], strict=True)), "eager"
    if impl == "eager":
        return reference.depthg_loss(*sides, negatives, settings, feature_means=feature_means, **bank)
    return _on_cpu(*sides, negatives, settings, feature_means=feature_means, **bank)


def _read(
    sides: tuple[Tensor, Tensor, Tensor, Tensor], depth: Tensor | None, points: Tensor, points_neighbour: Any,
    settings: LossSettings, align_corners: bool, impl: str,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor | None]:  # fmt: skip
    """Vectors of the maps at the points."""
    options: dict[str, Any] = {"align_corners": align_corners, "impl": impl}
    feats, codes = (sample_points(x, points, **options) for x in sides[:2])
    near, near_codes = (sample_points(x, points_neighbour, **options) for x in sides[2:])
    if depth is not None:
        depth = sample_points(depth, points, **options)
        depth = depth if settings.relation in ("euclidean", "normals") else depth[..., 0]
    return (feats, codes, near, near_codes), depth


def _check(
    seen: tuple[Any, ...], negatives: Tensor, settings: LossSettings, feats_negative: Tensor | None,
    codes_negative: Tensor | None, codes_depth: Tensor | None, depth_other: Tensor | None,
    feature_means: Tensor | None,
) -> None:  # fmt: skip
    """``seen`` are features and codes of anchors and neighbours, and depth, at their points."""
    feats, codes, feats_neighbour, codes_neighbour, depth = seen
    optional = (feats_negative, codes_negative, depth, codes_depth, depth_other)
    checks.check_terms(feats, codes, feats_neighbour, codes_neighbour, negatives, settings, optional)
    checks.check_limit(settings.clamp, settings.max_similarity)
    if feature_means is not None:
        checks.check_floats(feature_means=feature_means)
        checks.check_frozen(feature_means=feature_means)
    if feature_means is not None and feature_means.shape != (2 + len(negatives),):
        raise ValueError(
            f"feature_means must be [{2 + len(negatives)}] (self, neighbour, {len(negatives)} draws), got "
            f"{checks.shape(feature_means)}"
        )
    if feature_means is not None and feature_means.device != feats.device:
        raise ValueError(
            f"feature_means is on {feature_means.device} but feats is on {feats.device}; move them to one device"
        )


def _on_triton(
    feats: Tensor, codes: Tensor, feats_neighbour: Tensor, codes_neighbour: Tensor, negatives: Tensor, s: LossSettings,
    points: Tensor | None, points_neighbour: Tensor | None, align_corners: bool, *, feats_negative: Tensor | None,
    codes_negative: Tensor | None, depth: Tensor | None, codes_depth: Tensor | None, depth_other: Tensor | None,
    feature_means: Tensor | None,
) -> DepthGLoss:  # fmt: skip
    if s.relation == "centered" and points is not None and depth is not None:  # needs all depths of an image at once
        depth = sample_points(depth, points, align_corners=align_corners, impl="triton")[..., 0]
    total, losses, similarities = triton_terms(
        codes, feats, codes_neighbour, feats_neighbour, codes_negative, feats_negative, codes_depth,
        depth=depth, depth_other=depth_other, points=points, points_near=points_neighbour, index=negatives,
        means=feature_means, own=True, shifts=(s.self_shift, s.neighbour_shift, s.negative_shift, s.depth_shift),
        weights=(s.self_weight, s.neighbour_weight, s.negative_weight, s.depth_weight), relation=s.relation,
        bandwidth=s.bandwidth, center=s.center, clamp=s.clamp, max_similarity=s.max_similarity,
        align_corners=align_corners,
    )  # fmt: skip
    own, near, far, guide = map(CorrelationTerm, losses.unbind(), similarities.unbind())
    return DepthGLoss(total, own, near, far, None if depth is None else guide)


def _on_cpu(
    feats: Tensor, codes: Tensor, feats_neighbour: Tensor, codes_neighbour: Tensor, negatives: Tensor, s: LossSettings,
    *, feats_negative: Tensor | None, codes_negative: Tensor | None, depth: Tensor | None, codes_depth: Tensor | None,
    depth_other: Tensor | None, feature_means: Tensor | None,
) -> DepthGLoss:  # fmt: skip
    shifts = (s.self_shift, s.neighbour_shift, s.negative_shift, s.depth_shift)
    grad = torch.is_grad_enabled()
    needs = [grad and x is not None and x.requires_grad for x in (codes, codes_neighbour, codes_negative, codes_depth)]
    losses, similarities, *_ = depthg_loss_op(
        feats, codes, feats_neighbour, codes_neighbour, negatives, feats_negative, codes_negative,
        depth, codes_depth, depth_other, torch.stack([checks.scalar(x, codes.device) for x in shifts]),
        s.relation, s.bandwidth, s.center, s.clamp, s.max_similarity, needs, feature_means,
    )  # fmt: skip
    weights = (s.self_weight, s.neighbour_weight, s.negative_weight, s.depth_weight)
    terms = [CorrelationTerm(*pair) for pair in zip(losses.unbind(), similarities.detach().unbind(), strict=True)]
    weighted = [weight * term.loss for weight, term in zip(weights, terms, strict=False)]
    own, near, far, *guide = terms
    return DepthGLoss(sum(weighted[1:], weighted[0]), own, near, far, guide[0] if guide else None)
