"""Depth-feature correlation loss, Eq. 6: ``-mean (D - shift) * max(S, 0)`` for every depth relation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from depthg.kernels import checks, pair_pass_native, reference
from depthg.kernels.code_gradient import code_gradient
from depthg.kernels.pair_pass import Scratch
from depthg.kernels.pair_terms import triton_terms
from depthg.kernels.reference import CorrelationTerm
from depthg.kernels.terms_cpu import depth_term, identity_pairs, make_bank, mean_product, run_pass, working_dtype


def _cpu(
    codes_a: Tensor, codes_b: Tensor | None, depth_a: Tensor, depth_b: Tensor | None, shift: Tensor,
    relation: str, bandwidth: float, clamp: bool, max_similarity: float | None, need_a: bool, need_b: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    dtype = working_dtype(codes_a, depth_a)
    a = make_bank(codes_a, None, dtype)
    b = a if codes_b is None else make_bank(codes_b, None, dtype)
    d_a = torch.zeros_like(a.codes.x) if need_a else None
    d_b = torch.zeros_like(b.codes.x) if need_b and b is not a else None
    symmetric = b is a and depth_b is None
    target = depth_term(
        depth_a, depth_b, float(shift), relation, bandwidth, dtype, d_a, d_a if b is a else d_b
    )  # fmt: skip
    pairs = identity_pairs(a.codes.x.shape[0])
    run_pass(
        [target], a.codes, b.codes, pairs, Scratch(dtype),
        symmetric=symmetric, clamp=clamp, max_similarity=max_similarity,
    )  # fmt: skip
    pair_pass_native.kept.release()
    similarity = mean_product(a.codes.mean, b.codes.mean, None).mean()
    return torch.tensor(target.total, dtype=dtype), similarity.to(dtype), d_a, d_b


@torch.library.custom_op("depthg::depth_correlation_loss", mutates_args=())
@checks.without_autocast
def depth_correlation_loss_op(
    codes_a: Tensor,
    codes_b: Tensor | None,
    depth_a: Tensor,
    depth_b: Tensor | None,
    shift: Tensor,
    relation: str,
    bandwidth: float,
    clamp: bool,
    max_similarity: float | None,
    need_a: bool,
    need_b: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """On the CPU: loss, mean similarity and the gradients at the unit codes, empty when not needed.

    No side b: the same as a.
    """
    dtype = working_dtype(codes_a, depth_a)
    other = codes_a if codes_b is None else codes_b
    none = codes_a.new_empty(0, dtype=dtype)
    if codes_a.shape[0] * codes_a.shape[1] * other.shape[1] == 0:
        zero = codes_a.new_zeros((), dtype=dtype)
        zeros_a = torch.zeros_like(codes_a, dtype=dtype) if need_a else none
        zeros_b = torch.zeros_like(other, dtype=dtype) if need_b and codes_b is not None else none.clone()
        return zero, zero.clone(), zeros_a, zeros_b
    loss, similarity, d_a, d_b = _cpu(
        codes_a, codes_b, depth_a, depth_b, shift, relation, bandwidth, clamp, max_similarity, need_a, need_b
    )
    return loss, similarity, none if d_a is None else d_a, none.clone() if d_b is None else d_b


@depth_correlation_loss_op.register_fake
def _(
    codes_a: Tensor, codes_b: Tensor | None, depth_a: Tensor, depth_b: Tensor | None, shift: Tensor,
    relation: str, bandwidth: float, clamp: bool, max_similarity: float | None, need_a: bool, need_b: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dtype = working_dtype(codes_a, depth_a)
    loss = codes_a.new_empty((), dtype=dtype)
    d_a = codes_a.new_empty(codes_a.shape if need_a else (0,), dtype=dtype)
    d_b = codes_a.new_empty((0,) if codes_b is None or not need_b else codes_b.shape, dtype=dtype)
    return loss, torch.empty_like(loss), d_a, d_b


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[2], output[3])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, g_loss: Tensor | None, *g_rest: Tensor | None) -> tuple[Tensor | None, ...]:
    codes_a, codes_b, d_a, d_b = ctx.saved_tensors
    grads: list[Tensor | None] = [None] * 11
    if g_loss is not None and ctx.needs_input_grad[0]:
        grads[0] = code_gradient(codes_a, d_a[None], g_loss[None])
    if g_loss is not None and codes_b is not None and ctx.needs_input_grad[1]:
        grads[1] = code_gradient(codes_b, d_b[None], g_loss[None])
    return tuple(grads)


depth_correlation_loss_op.register_autograd(_backward, setup_context=_setup_context)


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
    impl: str = "auto",
) -> CorrelationTerm:
    """Depth-feature correlation loss, without the correlation tensors.

    ``loss = -mean (D - shift) * max(S, 0)`` with ``S[n, p, q] = cos(codes_a[n, p], codes_b[n, q])`` and D the relation
    of ``depth_a[n, p]`` and ``depth_b[n, q]``.

    Args:
        codes_a: codes ``[N, P, K]``, any length, float; gradients flow to both sides.
        codes_b: codes of the other side ``[N, Q, K]``.
        depth_a: depth ``[N, P]`` in [0, 1]; points or normals ``[N, P, D]`` for "euclidean" and "normals".
        depth_b: the same for the other side, ``[N, Q]`` or ``[N, Q, D]``; no gradient flows to depth.
        shift: the shift of Eq. 6, a number or a 0-dim tensor.
        relation: "product" (Eq. 5), "unit", "centered", "gaussian", "euclidean" or "normals", see
            ``reference.depth_relation``.
        bandwidth: of "gaussian" (depth) and "euclidean" (the unit of the points).
        clamp: negative similarities count as 0.
        max_similarity: similarities above it count as this value; None for no such limit.
        impl: "auto", "triton", "cpu" or "eager".

    Returns:
        ``CorrelationTerm(loss, similarity)``: 0-dim, float32 for half inputs; ``similarity`` is mean S, detached.

    Raises:
        TypeError: an input is not floating point.
        ValueError: shapes or devices do not fit, the relation is unknown, its bandwidth is not in [1e-18, 1e18], depth
            requires grad, or ``impl`` cannot run.

    DepthG Eq. 5 and 6.
    """
    checks.check_floats(codes_a=codes_a, codes_b=codes_b, depth_a=depth_a, depth_b=depth_b)
    checks.check_frozen(depth_a=depth_a, depth_b=depth_b)
    checks.check_codes("codes_a", codes_a, "codes_b", codes_b)
    checks.check_relation("depth_a", depth_a, codes_a, relation)
    checks.check_relation("depth_b", depth_b, codes_b, relation)
    checks.check_depths("depth_a", depth_a, "depth_b", depth_b)
    checks.check_bandwidth(relation, bandwidth)
    checks.check_limit(clamp, max_similarity)
    impl = checks.choose_impl(impl, codes_a, codes_b, depth_a, depth_b)
    options: dict[str, Any] = {
        "relation": relation,
        "bandwidth": bandwidth,
        "clamp": clamp,
        "max_similarity": max_similarity,
    }
    given = codes_a, codes_b, depth_a, depth_b
    if impl != "eager" and checks.any_empty(*given):  # nothing to be fast at
        given, impl = checks.one_type(*given), "eager"
    if impl == "eager":
        return reference.depth_correlation_loss(*given, shift, **options)
    same = codes_a is codes_b
    if impl == "triton":
        total, _, similarities = triton_terms(
            codes_a, codes_other=None if same else codes_b, depth=depth_a,
            depth_other=None if same and depth_a is depth_b else depth_b, shifts=(shift,) * 4, center=False, **options,
        )  # fmt: skip
        return CorrelationTerm(total, similarities[3])
    grad = torch.is_grad_enabled()
    loss, similarity, _, _ = depth_correlation_loss_op(
        codes_a, None if same else codes_b, depth_a, None if same and depth_a is depth_b else depth_b,
        checks.scalar(shift, codes_a.device), relation, bandwidth, clamp, max_similarity,
        grad and codes_a.requires_grad, grad and codes_b.requires_grad,
    )  # fmt: skip
    return CorrelationTerm(loss, similarity.detach())
