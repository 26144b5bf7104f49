"""Feature correlation loss, Eq. 2 with spatial centring, and the correlation tensor for those who want it.

    loss = -mean (F' - shift) * max(S, 0),  F' = F - mean_q F + mean_npq F

with F and S the cosine correlations of features and codes. The loss never holds F or S.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from depthg.kernels import checks, reference
from depthg.kernels.pair_terms import Inputs, Options, pair_terms
from depthg.kernels.reference import CorrelationTerm


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
        impl: "auto", "triton", "cpp" or "eager".

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
    given = feats_a, feats_b, codes_a, codes_b
    impl = checks.choose_impl(impl, feats_a.device, triton=checks.no_triton(*given), cpp=checks.no_cpp())
    options: dict[str, Any] = {"center": center, "clamp": clamp, "max_similarity": max_similarity}
    if impl != "eager" and checks.any_empty(*given, index_b):  # the eager definition handles empty tensors
        given, impl = checks.one_type(*given), "eager"
    if impl == "eager":
        return reference.correlation_loss(*given, shift, index_b=index_b, **options)
    same = feats_a is feats_b and codes_a is codes_b
    sides = Inputs(codes_a, feats_a, negatives=index_b)
    if not same and index_b is None:
        sides = sides._replace(codes_near=codes_b, feats_near=feats_b)
    elif not same:
        sides = sides._replace(codes_far=codes_b, feats_far=feats_b)
    total, _, similarities = pair_terms(
        sides, Options(own=same and index_b is None, **options), shifts=(shift,) * 4, impl=impl
    )  # fmt: skip
    return CorrelationTerm(total, similarities[2 if index_b is not None else 0 if same else 1])


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
