"""Depth-feature correlation loss, Eq. 6: ``-mean (D - shift) * max(S, 0)`` for every depth relation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from depthg.kernels import checks, reference
from depthg.kernels.pair_terms import Inputs, Options, pair_terms
from depthg.kernels.reference import CorrelationTerm


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
        impl: "auto", "triton", "cpp" or "eager".

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
    given = codes_a, codes_b, depth_a, depth_b
    impl = checks.choose_impl(impl, codes_a.device, triton=checks.no_triton(*given), cpp=checks.no_cpp())
    options: dict[str, Any] = {
        "relation": relation, "bandwidth": bandwidth, "clamp": clamp, "max_similarity": max_similarity,
    }  # fmt: skip
    if impl != "eager" and checks.any_empty(*given):  # the eager definition handles empty tensors
        given, impl = checks.one_type(*given), "eager"
    if impl == "eager":
        return reference.depth_correlation_loss(*given, shift, **options)
    same = codes_a is codes_b
    sides = Inputs(
        codes_a, codes_other=None if same else codes_b, depth=depth_a,
        depth_other=None if same and depth_a is depth_b else depth_b,
    )  # fmt: skip
    total, _, similarities = pair_terms(sides, Options(center=False, **options), shifts=(shift,) * 4, impl=impl)
    return CorrelationTerm(total, similarities[3])
