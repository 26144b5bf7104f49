"""The correlation losses as one operator: any of the terms self, neighbour, negatives and depth.

``correlation_loss``, ``depth_correlation_loss`` and ``depthg_loss`` call ``pair_terms`` with the terms that they have.
It runs in Triton (``terms_triton.py``) or in C++ (``terms_cpu.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from depthg.kernels import checks, terms_cpu

TENSORS = 14  # of Inputs, the first arguments of the operator
SHIFTS, WEIGHTS, ALIGN_CORNERS, NEEDS, IMPL, ARGUMENTS = 15, 16, 22, 23, 24, 25  # places of others; how many there are
CODES = (0, 2, 4, 6)  # which of them are codes of the anchors, neighbours, negatives and the other crop
PLAN_NEEDS = slice(12, 16)  # of plan_triton.Sizes: which codes get gradients


class Inputs(NamedTuple):
    """Tensors of a call: vectors ``[N, P, C]``, or maps ``[N, C, H, W]`` where points say where they are read."""

    codes: Tensor
    feats: Tensor | None = None
    codes_near: Tensor | None = None
    feats_near: Tensor | None = None
    codes_far: Tensor | None = None
    feats_far: Tensor | None = None
    codes_other: Tensor | None = None
    depth: Tensor | None = None  # [N, P] or [N, P, D], or a map [N, D, H, W] with ``points``
    depth_other: Tensor | None = None
    points: Tensor | None = None  # [N, P] int64 cells, or [N, P, 2] coordinates; Triton alone
    points_near: Tensor | None = None
    negatives: Tensor | None = None  # [R, N] int64
    shifts: Tensor | None = None  # [4], in place of the numbers
    means: Tensor | None = None  # [2 + R]


class Options(NamedTuple):
    own: bool = False  # self term
    relation: str = "product"
    bandwidth: float = 0.1
    center: bool = True
    clamp: bool = True
    max_similarity: float | None = None
    align_corners: bool = True


class Outcome(NamedTuple):
    """What an implementation gives: the last three are all that its backward pass needs."""

    total: Tensor  # []
    losses: Tensor  # [4] of self, neighbour, negatives and depth; 0 for a term that is not asked for
    similarities: Tensor  # [4]
    rows: Tensor  # gradients of the terms at the unit codes
    codes: Tensor  # Triton: unit codes
    inverse: Tensor  # Triton: inverse lengths of the codes


def run(
    x: Inputs, options: Options, shifts: list[float], weights: list[float], needs: list[bool], impl: str
) -> Outcome:
    """``needs``: whether codes of anchors, neighbours, negatives and the other crop get gradients."""
    if impl == "cpp":
        return Outcome(*terms_cpu.forward(x, options, shifts, weights, needs))
    from depthg.kernels import terms_triton

    total, losses, similarities, saved = terms_triton.forward(
        x, terms_triton.sizes_of(x, options.own, needs), options, shifts, weights
    )
    return Outcome(total, losses, similarities, *saved)


def key_of(x: Inputs, options: Options, needs: list[bool], impl: str) -> list[int]:
    """The numbers by which the backward pass knows the call."""
    if impl == "cpp":
        return [int(flag) for flag in (*terms_cpu.terms_of(x, options), *needs)]
    from depthg.kernels import terms_triton

    return [int(n) for n in terms_triton.sizes_of(x, options.own, needs)]


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
    negatives: Tensor | None,
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
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``Outcome`` of ``Inputs`` and ``Options``, one by one."""
    inputs = Inputs(
        codes, feats, codes_near, feats_near, codes_far, feats_far, codes_other, depth, depth_other, points,
        points_near, negatives, shift_tensor, means,
    )  # fmt: skip
    options = Options(own, relation, bandwidth, center, clamp, max_similarity, align_corners)
    return run(inputs, options, shifts, weights, needs, impl)


def _parts(arguments: Sequence[Any]) -> tuple[Inputs, Options, list[bool], str]:
    """The arguments of the operator as ``run`` takes them, without shifts and weights."""
    own, options = arguments[TENSORS], arguments[WEIGHTS + 1 : ALIGN_CORNERS + 1]
    return Inputs(*arguments[:TENSORS]), Options(own, *options), arguments[NEEDS], arguments[IMPL]


@pair_terms_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    x, options, needs, impl = _parts(arguments)
    if impl == "cpp":
        dtype, size = terms_cpu.dtype_of(x), terms_cpu.gradient_size(x, options, needs)
        return tuple(x.codes.new_empty(shape, dtype=dtype) for shape in ((), (4,), (4,), (size,), (0,), (0,)))
    from depthg.kernels import plan_triton, terms_triton

    plan = plan_triton.make_plan(terms_triton.sizes_of(x, options.own, needs))
    floats = [x.codes.new_empty(shape, dtype=torch.float32) for shape in ((), (4,), (4,))]
    rows = x.codes.new_empty((plan.slots if plan.sizes.grad else 0, plan.width_k), dtype=torch.float32)
    unit = x.codes.new_empty((plan.rows, plan.width_k))
    return *floats, rows, unit, x.codes.new_empty(plan.rows, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, options, needs, impl = _parts(inputs)
    ctx.save_for_backward(*output[3:], x.points, x.points_near, *(inputs[i] for i in CODES))
    ctx.rest = key_of(x, options, needs, impl), inputs[WEIGHTS], options.align_corners, impl
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, d_total: Tensor | None, d_losses: Tensor | None, *rest: Tensor | None
) -> tuple[Tensor | None, ...]:
    grads: list[Tensor | None] = [None] * ARGUMENTS
    if d_total is not None or d_losses is not None:
        found = pair_terms_backward(d_total, d_losses, *ctx.saved_tensors, *ctx.rest)
        for place, gradient in zip(CODES, found, strict=True):
            grads[place] = gradient if ctx.needs_input_grad[place] else None
    return tuple(grads)


pair_terms_op.register_autograd(_backward, setup_context=_setup_context)


def run_backward(
    d_total: Tensor | None, d_losses: Tensor | None, rows: Tensor, unit: Tensor, inverse: Tensor,
    points: Tensor | None, points_near: Tensor | None, codes: Tensor, codes_near: Tensor | None,
    codes_far: Tensor | None, codes_other: Tensor | None, key: list[int], weights: list[float], align_corners: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the four codes, in their shapes; empty for those that are not given or get none."""
    banks = [codes, codes_near, codes_far, codes_other]
    if impl == "cpp":
        found = terms_cpu.backward(rows, key, d_total, d_losses, banks, weights)
    else:
        from depthg.kernels import plan_triton, terms_triton

        found = terms_triton.backward(
            terms_triton.Saved(rows, unit, inverse), plan_triton.Sizes._make(key), d_total, d_losses, banks,
            [points, points_near], weights, align_corners,
        )  # fmt: skip
    return found[0], found[1], found[2], found[3]


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
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return run_backward(
        d_total, d_losses, rows, unit, inverse, points, points_near, codes, codes_near, codes_far, codes_other, key,
        weights, align_corners, impl,
    )  # fmt: skip


@pair_terms_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    rows, codes, key, impl = arguments[2], arguments[7:11], arguments[11], arguments[14]
    needs = key[4:] if impl == "cpp" else key[PLAN_NEEDS]
    return tuple(
        rows.new_empty(0) if z is None or not need else torch.empty_like(z) if z.ndim == 4 else z.new_empty(z.shape)
        for z, need in zip(codes, needs, strict=True)
    )


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> NoReturn:
    raise RuntimeError("the losses of depthg.kernels have no second derivative; use impl='eager' for double backward")


pair_terms_backward.register_autograd(_no_second_derivative)


class PairTerms(torch.autograd.Function):
    """The operator without the dispatcher, which takes several times as long as all launches of Triton."""

    @staticmethod
    def forward(
        ctx: Any, codes: Tensor, codes_near: Tensor | None, codes_far: Tensor | None, codes_other: Tensor | None,
        inputs: Inputs, options: Options, shifts: list[float], weights: list[float], needs: list[bool], impl: str,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        found = run(inputs, options, shifts, weights, needs, impl)
        ctx.save_for_backward(
            *found[3:], inputs.points, inputs.points_near, codes, codes_near, codes_far, codes_other
        )  # fmt: skip
        ctx.rest = key_of(inputs, options, needs, impl), weights, options.align_corners, impl
        ctx.mark_non_differentiable(found.similarities)
        ctx.set_materialize_grads(False)
        return found.total, found.losses, found.similarities

    @staticmethod
    def backward(
        ctx: Any, d_total: Tensor | None, d_losses: Tensor | None, d_similarities: None
    ) -> tuple[Tensor | None, ...]:
        grads: tuple[Tensor | None, ...] = (None,) * 4
        if d_total is not None or d_losses is not None:
            # With create_graph=True the operator says that there is no second derivative.
            function = pair_terms_backward if torch.is_grad_enabled() else run_backward
            found = function(d_total, d_losses, *ctx.saved_tensors, *ctx.rest)
            grads = tuple(d if need else None for d, need in zip(found, ctx.needs_input_grad[:4], strict=True))
        return (*grads, *[None] * 6)


def pair_terms(
    x: Inputs,
    options: Options,
    *,
    shifts: Sequence[float | Tensor],
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted total, losses [4] and mean similarities [4] (detached) of self, neighbour, negatives and depth.

    Terms that are not given are 0. Sides of unlike types are computed in the wider one.

    Args:
        x: the tensors, see ``Inputs``; ``shifts`` is filled in here.
        options: see ``Options``.
        shifts: of the four terms, numbers or 0-dim tensors.
        weights: of the four terms in the total.
        impl: "triton" or "cpp".
    """
    codes = checks.one_type(x.codes, x.codes_near, x.codes_far, x.codes_other)
    feats = checks.one_type(x.feats, x.feats_near, x.feats_far)
    tensor = None
    if any(isinstance(shift, Tensor) for shift in shifts):  # then no value of it is read by the host
        tensor = torch.stack([checks.scalar(shift, x.codes.device) for shift in shifts])
        tensor = tensor.float() if impl == "triton" else tensor
    grad = torch.is_grad_enabled()
    needs = [grad and z is not None and z.requires_grad for z in codes]
    numbers = [0.0 if tensor is not None else float(shift) for shift in shifts]
    given = Inputs(codes[0], feats[0], codes[1], feats[1], codes[2], feats[2], codes[3], *x[7:12], tensor, x.means)
    factors = [float(weight) for weight in weights]
    if torch.compiler.is_compiling() or type(x.codes) not in (Tensor, torch.nn.Parameter):
        total, losses, similarities, *_ = pair_terms_op(
            *given, options.own, numbers, factors, *options[1:], needs, impl
        )  # fmt: skip
        return total, losses, similarities.detach()
    if not any(needs):
        return run(given, options, numbers, factors, needs, impl)[:3]
    found: tuple[Tensor, Tensor, Tensor] = PairTerms.apply(  # type: ignore[no-untyped-call]
        *codes, given, options, numbers, factors, needs, impl
    )
    return found
