"""The correlation losses on Triton as one operator: any of the terms self, neighbour, negatives and depth.

``correlation_loss``, ``depth_correlation_loss`` and ``depthg_loss`` call it with the terms that they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from depthg.kernels import checks

TENSORS = 14  # of terms_triton.Inputs, the first arguments of the operator
PLAN_NEEDS = slice(12, 16)  # of plan_triton.Sizes: which codes get gradients
OWN, WEIGHTS, ALIGN_CORNERS, NEEDS, ARGUMENTS = 14, 16, 22, 23, 24  # places of others, and how many there are
CODES = (0, 2, 4, 6)  # which of them are codes of the anchors, neighbours, negatives and the other crop


@torch.library.custom_op("depthg::pair_terms", mutates_args=())
def pair_terms_op(
    codes: Tensor,
    feats: Tensor | None,
    codes_near: Tensor | None,
    feats_near: Tensor | None,
    codes_far: Tensor | None,
    feats_far: Tensor | None,
    codes_other: Tensor | None,
    depth: Tensor | None,
    depth_other: Tensor | None,
    points: Tensor | None,
    points_near: Tensor | None,
    index: Tensor | None,
    shift_tensor: Tensor | None,
    means: Tensor | None,
    own: bool,
    shifts: list[float],
    weights: list[float],
    relation: str,
    bandwidth: float,
    center: bool,
    clamp: bool,
    max_similarity: float | None,
    align_corners: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Total, losses [4], mean similarities [4], and what the backward pass needs (``terms_triton.Saved``)."""
    from depthg.kernels import terms_triton as triton

    inputs = triton.Inputs(
        codes, feats, codes_near, feats_near, codes_far, feats_far, codes_other, depth, depth_other, points,
        points_near, index, shift_tensor, means,
    )  # fmt: skip
    options = triton.Options(own, relation, bandwidth, center, clamp, max_similarity, align_corners)
    total, losses, similarities, saved = triton.forward(
        inputs, triton.sizes_of(inputs, own, needs), options, shifts, weights
    )
    return total, losses, similarities, *saved


@pair_terms_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    from depthg.kernels import plan_triton
    from depthg.kernels import terms_triton as triton

    inputs, (own, needs) = triton.Inputs(*arguments[:TENSORS]), (arguments[OWN], arguments[NEEDS])
    plan = plan_triton.make_plan(triton.sizes_of(inputs, own, needs))
    codes = inputs.codes
    floats = [codes.new_empty(shape, dtype=torch.float32) for shape in ((), (4,), (4,))]
    rows = codes.new_empty((plan.slots if plan.sizes.grad else 0, plan.width_k), dtype=torch.float32)
    unit = codes.new_empty((plan.rows, plan.width_k))
    return *floats, rows, unit, codes.new_empty(plan.rows, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    from depthg.kernels import terms_triton as triton

    given = triton.Inputs(*inputs[:TENSORS])
    ctx.save_for_backward(*output[3:], given.points, given.points_near, *(inputs[i] for i in CODES))
    ctx.key = [int(x) for x in triton.sizes_of(given, inputs[OWN], inputs[NEEDS])]
    ctx.weights, ctx.align_corners = inputs[WEIGHTS], inputs[ALIGN_CORNERS]
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, d_total: Tensor | None, d_losses: Tensor | None, *rest: Tensor | None
) -> tuple[Tensor | None, ...]:
    rows, unit, inverse, points, points_near, *codes = ctx.saved_tensors
    grads: list[Tensor | None] = [None] * ARGUMENTS
    if d_total is None and d_losses is None:
        return tuple(grads)
    found = pair_terms_backward(
        d_total, d_losses, rows, unit, inverse, points, points_near, *codes, ctx.key, ctx.weights, ctx.align_corners
    )
    for place, gradient in zip(CODES, found, strict=True):
        if ctx.needs_input_grad[place]:
            grads[place] = gradient
    return tuple(grads)


pair_terms_op.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("depthg::pair_terms_backward", mutates_args=())
def pair_terms_backward(
    d_total: Tensor | None,
    d_losses: Tensor | None,
    rows: Tensor,
    unit: Tensor,
    inverse: Tensor,
    points: Tensor | None,
    points_near: Tensor | None,
    codes: Tensor,
    codes_near: Tensor | None,
    codes_far: Tensor | None,
    codes_other: Tensor | None,
    key: list[int],
    weights: list[float],
    align_corners: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the four codes, in their shapes; empty for those that are not there or get none."""
    from depthg.kernels import plan_triton
    from depthg.kernels import terms_triton as triton

    found = triton.backward(
        triton.Saved(rows, unit, inverse), plan_triton.Sizes._make(key), d_total, d_losses,
        [codes, codes_near, codes_far, codes_other], [points, points_near], weights, align_corners,
    )  # fmt: skip
    return found[0], found[1], found[2], found[3]


@pair_terms_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    codes, (grad, *needs) = arguments[7:11], arguments[11][PLAN_NEEDS]
    return tuple(
        arguments[4].new_empty(0)
        if z is None or not need
        else torch.empty_like(z)
        if z.ndim == 4
        else z.new_empty(z.shape)
        for z, need in zip(codes, (grad, *needs), strict=True)
    )


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> NoReturn:
    raise RuntimeError("the losses of depthg.kernels have no second derivative; use impl='eager' for double backward")


pair_terms_backward.register_autograd(_no_second_derivative)


class PairTerms(torch.autograd.Function):
    """The operator without the dispatcher, which takes several times as long as all of its launches."""

    @staticmethod
    def forward(
        ctx: Any, codes: Tensor, codes_near: Tensor | None, codes_far: Tensor | None, codes_other: Tensor | None,
        inputs: Any, sizes: Any, options: Any, shifts: list[float], weights: list[float],
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        from depthg.kernels import terms_triton as triton

        total, losses, similarities, saved = triton.forward(inputs, sizes, options, shifts, weights)
        ctx.save_for_backward(
            *saved, inputs.points, inputs.points_near, codes, codes_near, codes_far, codes_other
        )  # fmt: skip
        ctx.rest = sizes, weights, options.align_corners
        ctx.mark_non_differentiable(similarities)
        ctx.set_materialize_grads(False)
        return total, losses, similarities

    @staticmethod
    def backward(
        ctx: Any, d_total: Tensor | None, d_losses: Tensor | None, d_similarities: None
    ) -> tuple[Tensor | None, ...]:
        from depthg.kernels import terms_triton as triton

        nothing: list[None] = [None] * 5
        if d_total is None and d_losses is None:
            return (*nothing, *nothing[:4])
        sizes, weights, align_corners = ctx.rest
        rows, unit, inverse, points, points_near, *codes = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the operator says that there is no second derivative
            found = pair_terms_backward(
                d_total, d_losses, rows, unit, inverse, points, points_near, *codes, [int(x) for x in sizes], weights,
                align_corners,
            )  # fmt: skip
        else:
            found = triton.backward(
                triton.Saved(rows, unit, inverse), sizes, d_total, d_losses, codes, [points, points_near], weights,
                align_corners,
            )  # fmt: skip
        grads = (d if need else None for d, need in zip(found, ctx.needs_input_grad[:4], strict=True))
        return (*grads, *nothing)


def triton_terms(
    codes: Tensor,
    feats: Tensor | None = None,
    codes_near: Tensor | None = None,
    feats_near: Tensor | None = None,
    codes_far: Tensor | None = None,
    feats_far: Tensor | None = None,
    codes_other: Tensor | None = None,
    *,
    depth: Tensor | None = None,
    depth_other: Tensor | None = None,
    points: Tensor | None = None,
    points_near: Tensor | None = None,
    index: Tensor | None = None,
    means: Tensor | None = None,
    own: bool = False,
    shifts: tuple[float | Tensor, float | Tensor, float | Tensor, float | Tensor],
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    relation: str = "product",
    bandwidth: float = 0.1,
    center: bool = True,
    clamp: bool = True,
    max_similarity: float | None = None,
    align_corners: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted total, losses [4] and mean similarities [4] (detached) of self, neighbour, negatives and depth.

    Terms that are not given are 0. Sides of unlike types are computed in the wider one.
    """
    codes, codes_near, codes_far, codes_other = checks.one_type(codes, codes_near, codes_far, codes_other)
    feats, feats_near, feats_far = checks.one_type(feats, feats_near, feats_far)
    shift_tensor = None
    if any(isinstance(shift, Tensor) for shift in shifts):  # then no value of it is read by the host
        shift_tensor = torch.stack([checks.scalar(shift, codes.device) for shift in shifts]).float()
    grad = torch.is_grad_enabled()
    sides = codes, codes_near, codes_far, codes_other
    needs = [grad and x is not None and x.requires_grad for x in sides]
    numbers = [0.0 if shift_tensor is not None else float(shift) for shift in shifts]
    given = (
        codes, feats, codes_near, feats_near, codes_far, feats_far, codes_other, depth, depth_other, points,
        points_near, index, shift_tensor, means,
    )  # fmt: skip
    options = relation, bandwidth, center, clamp, max_similarity, align_corners
    weights = [float(weight) for weight in weights]
    if torch.compiler.is_compiling() or type(codes) not in (Tensor, torch.nn.Parameter):
        total, losses, similarities, *_ = pair_terms_op(*given, own, numbers, weights, *options, needs)
        return total, losses, similarities.detach()
    from depthg.kernels import terms_triton as triton

    inputs = triton.Inputs(*given)
    rest = inputs, triton.sizes_of(inputs, own, needs), triton.Options(own, *options), numbers, weights
    if not any(needs):
        return triton.forward(*rest)[:3]
    found: tuple[Tensor, Tensor, Tensor] = PairTerms.apply(*sides, *rest)  # type: ignore[no-untyped-call]
    return found
