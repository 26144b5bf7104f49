"""Feature correlation loss, Eq. 2 with spatial centring, and the correlation tensor for those who want it.

    loss = -mean (F' - shift) * max(S, 0),  F' = F - mean_q F + mean_npq F

with F and S the cosine correlations of features and codes. Nothing here holds more than a chunk of F or S.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from depthg.kernels import checks, pair_pass_native, reference
from depthg.kernels.code_gradient import code_gradient
from depthg.kernels.pair_pass import Scratch
from depthg.kernels.pair_terms import triton_terms
from depthg.kernels.reference import CorrelationTerm
from depthg.kernels.terms_cpu import feature_term, make_bank, mean_product, run_pass, working_dtype


def _cpu(
    feats_a: Tensor, feats_b: Tensor | None, codes_a: Tensor, codes_b: Tensor | None, shift: Tensor,
    index_b: Tensor | None, center: bool, clamp: bool, max_similarity: float | None, need_a: bool, need_b: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    dtype = working_dtype(feats_a, codes_a)
    a = make_bank(codes_a, feats_a, dtype)
    b = a if codes_b is None else make_bank(codes_b, feats_b, dtype)
    d_a = torch.zeros_like(a.codes.x) if need_a else None
    d_b = torch.zeros_like(b.codes.x) if need_b and b is not a else None
    target, pairs, symmetric = feature_term(
        a, b, float(shift), index_b, center, d_a, d_a if b is a else d_b
    )  # fmt: skip
    run_pass(
        [target], a.codes, b.codes, pairs, Scratch(dtype),
        symmetric=symmetric, clamp=clamp, max_similarity=max_similarity,
    )  # fmt: skip
    pair_pass_native.kept.release()
    similarity = mean_product(a.codes.mean, b.codes.mean, index_b).mean()
    return torch.tensor(target.total, dtype=dtype), similarity.to(dtype), d_a, d_b


@torch.library.custom_op("depthg::correlation_loss", mutates_args=())
@checks.without_autocast
def correlation_loss_op(
    feats_a: Tensor,
    feats_b: Tensor | None,
    codes_a: Tensor,
    codes_b: Tensor | None,
    shift: Tensor,
    index_b: Tensor | None,
    center: bool,
    clamp: bool,
    max_similarity: float | None,
    need_a: bool,
    need_b: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """On the CPU: loss, mean similarity and the gradients at the unit codes, empty when not needed.

    No side b: the same as a.
    """
    dtype = working_dtype(feats_a, codes_a)
    other = codes_a if codes_b is None else codes_b
    draws = 1 if index_b is None else index_b.shape[0]
    none = codes_a.new_empty(0, dtype=dtype)
    if draws * codes_a.shape[0] * codes_a.shape[1] * other.shape[1] == 0:
        zero = codes_a.new_zeros((), dtype=dtype)
        zeros_a = torch.zeros_like(codes_a, dtype=dtype) if need_a else none
        zeros_b = torch.zeros_like(other, dtype=dtype) if need_b and codes_b is not None else none.clone()
        return zero, zero.clone(), zeros_a, zeros_b
    loss, similarity, d_a, d_b = _cpu(
        feats_a, feats_b, codes_a, codes_b, shift, index_b, center, clamp, max_similarity, need_a, need_b
    )
    return loss, similarity, none if d_a is None else d_a, none.clone() if d_b is None else d_b


@correlation_loss_op.register_fake
def _(
    feats_a: Tensor, feats_b: Tensor | None, codes_a: Tensor, codes_b: Tensor | None, shift: Tensor,
    index_b: Tensor | None, center: bool, clamp: bool, max_similarity: float | None, need_a: bool, need_b: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dtype = working_dtype(feats_a, codes_a)
    loss = codes_a.new_empty((), dtype=dtype)
    d_a = codes_a.new_empty(codes_a.shape if need_a else (0,), dtype=dtype)
    d_b = codes_a.new_empty((0,) if codes_b is None or not need_b else codes_b.shape, dtype=dtype)
    return loss, torch.empty_like(loss), d_a, d_b


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[2], inputs[3], output[2], output[3])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, g_loss: Tensor | None, *g_rest: Tensor | None) -> tuple[Tensor | None, ...]:
    codes_a, codes_b, d_a, d_b = ctx.saved_tensors
    grads: list[Tensor | None] = [None] * 11
    if g_loss is not None and ctx.needs_input_grad[2]:
        grads[2] = code_gradient(codes_a, d_a[None], g_loss[None])
    if g_loss is not None and codes_b is not None and ctx.needs_input_grad[3]:
        grads[3] = code_gradient(codes_b, d_b[None], g_loss[None])
    return tuple(grads)


correlation_loss_op.register_autograd(_backward, setup_context=_setup_context)


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
    impl: str = "auto",
) -> CorrelationTerm:
    """Feature correlation loss of a set of image pairs, without the correlation tensors.

    ``loss = -mean (F' - shift) * max(S, 0)`` with ``F[r, n, p, q] = cos(feats_a[n, p], feats_b[index_b[r, n], q])``,
    S the same of the codes, and ``F' = F - mean_q F + mean_npq F`` when ``center`` is on.

    Args:
        feats_a: features ``[N, P, C]``, any length (normalised here), float; they get no gradient.
        feats_b: features of the other side ``[M, Q, C]``.
        codes_a: codes at the same points ``[N, P, K]``, any length; gradients flow to both sides.
        codes_b: codes of the other side ``[M, Q, K]``.
        shift: the shift b of Eq. 2, a number or a 0-dim tensor.
        index_b: ``[R, N]`` int64 in [0, M): image n is compared with ``index_b[r, n]``; default image n with image n.
        center: spatial centring of F; the last mean runs over a whole draw r.
        clamp: negative similarities count as 0.
        max_similarity: similarities above it count as this value; None for no such limit.
        impl: "auto", "triton", "cpu" or "eager".

    Returns:
        ``CorrelationTerm(loss, similarity)``: 0-dim, float32 for half inputs; ``similarity`` is mean S, detached.

    Raises:
        TypeError: an input is not floating point, or ``index_b`` is not int64.
        ValueError: shapes, devices or indices do not fit, features require grad, or ``impl`` cannot run here.

    DepthG Eq. 1 and 2.
    """
    checks.check_floats(feats_a=feats_a, feats_b=feats_b, codes_a=codes_a, codes_b=codes_b)
    checks.check_frozen(feats_a=feats_a, feats_b=feats_b)
    checks.check_sides("feats_a", feats_a, "codes_a", codes_a)
    checks.check_sides("feats_b", feats_b, "codes_b", codes_b)
    checks.check_channels("feats_a", feats_a, "feats_b", feats_b)
    checks.check_channels("codes_a", codes_a, "codes_b", codes_b)
    checks.check_pairing("feats_a", feats_a, "feats_b", feats_b, index_b)
    checks.check_limit(clamp, max_similarity)
    impl = checks.choose_impl(impl, feats_a, feats_b, codes_a, codes_b)
    options: dict[str, Any] = {"center": center, "clamp": clamp, "max_similarity": max_similarity}
    given = feats_a, feats_b, codes_a, codes_b
    if impl != "eager" and checks.any_empty(*given, index_b):  # nothing to be fast at
        given, impl = checks.one_type(*given), "eager"
    if impl == "eager":
        return reference.correlation_loss(*given, shift, index_b=index_b, **options)
    same = feats_a is feats_b and codes_a is codes_b
    if impl == "triton":
        near = (None, None) if same or index_b is not None else (codes_b, feats_b)
        far = (None, None) if same or index_b is None else (codes_b, feats_b)
        total, _, similarities = triton_terms(
            codes_a, feats_a, *near, *far, index=index_b, own=same and index_b is None, shifts=(shift,) * 4, **options
        )
        term = 2 if index_b is not None else 0 if same else 1
        return CorrelationTerm(total, similarities[term])
    grad = torch.is_grad_enabled()
    loss, similarity, _, _ = correlation_loss_op(
        feats_a, None if same else feats_b, codes_a, None if same else codes_b, checks.scalar(shift, codes_a.device),
        index_b, center, clamp, max_similarity, grad and codes_a.requires_grad, grad and codes_b.requires_grad,
    )  # fmt: skip
    return CorrelationTerm(loss, similarity.detach())


def correlation(
    a: Tensor,  # [N, P, C]
    b: Tensor,  # [M, Q, C]
    *,
    index_b: Tensor | None = None,  # [R, N] int64
    center: bool = False,
    cosine: bool = True,
) -> Tensor:  # [R, N, P, Q]
    """The correlation tensor itself, for those who want to look at it: R N P Q numbers of memory, differentiable.

    ``F[r, n, p, q] = cos(a[n, p], b[index_b[r, n], q])``; ``center`` as in ``correlation_loss``; without ``cosine`` the
    vectors are taken as they are.

    Args:
        a: vectors ``[N, P, C]``, any length, float.
        b: vectors of the other side ``[M, Q, C]``.
        index_b: ``[R, N]`` int64 in [0, M): image n is compared with ``index_b[r, n]``; default image n with image n.
        center: spatial centring as in ``correlation_loss``.
        cosine: normalise the vectors; False takes plain dot products.

    Returns:
        ``[R, N, P, Q]`` in the dtype of the vectors; R = 1 without ``index_b``.

    Raises:
        TypeError: an input is not floating point, or ``index_b`` is not int64.
        ValueError: shapes, devices or indices do not fit.

    DepthG Eq. 1. For quantiles and shifts use ``correlation_histogram``, which never holds it.
    """
    check_pair("a", a, "b", b, index_b)
    if a.dtype != b.dtype:
        raise TypeError(f"a is {a.dtype} but b is {b.dtype}; convert one of them")
    return reference.correlation(a, b, index_b=index_b, center=center, cosine=cosine)


def check_pair(name_a: str, a: Tensor, name_b: str, b: Tensor, index_b: Tensor | None) -> None:
    checks.check_floats(**{name_a: a, name_b: b})
    checks.check_sides(name_a, a, name_a, a)
    checks.check_sides(name_b, b, name_b, b)
    checks.check_channels(name_a, a, name_b, b)
    checks.check_pairing(name_a, a, name_b, b, index_b)
