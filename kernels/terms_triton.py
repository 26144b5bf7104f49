"""Launchers of the Triton kernels: banks of vectors with inverse lengths and means, terms, tile sizes.

No host sync and no allocation that depends on values: CUDA-graph capturable. The recorded tile of each shape class is
chosen by ``tile_sizes``; ``DEPTHG_AUTOTUNE=1`` searches around it instead on first use.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
import triton
from depthg.kernels import tiles_triton as tiles
from depthg.kernels.checks import interpreting
from depthg.kernels.terms_cpu import depth_factors, mean_product
from torch import Tensor

POINTS, CHANNELS = 32, 64  # tile of the kernels that read vectors once


class Vectors(NamedTuple):
    """Vectors as given, their inverse lengths and the mean of the unit vectors."""

    x: Tensor  # [N, P, C]
    inverse: Tensor  # [N, P] float32
    mean: Tensor  # [N, C] float32


class Bank(NamedTuple):
    codes: Vectors
    feats: Vectors | None = None


def make_vectors(x: Tensor) -> Vectors:
    n, p, c = x.shape
    inverse = torch.empty((n, p), dtype=torch.float32, device=x.device)
    mean = torch.empty((n, c), dtype=torch.float32, device=x.device)
    tile = {"BLOCK_P": POINTS, "BLOCK_C": CHANNELS}
    tiles.inverse_length_kernel[(n, triton.cdiv(p, POINTS))](x, inverse, *x.stride(), p, c, **tile)
    tiles.mean_vector_kernel[(n, triton.cdiv(c, CHANNELS))](x, inverse, mean, *x.stride(), p, c, **tile)
    return Vectors(x, inverse, mean)


def make_bank(codes: Tensor, feats: Tensor | None = None) -> Bank:
    return Bank(make_vectors(codes), None if feats is None else make_vectors(feats))


def precision(dtype: torch.dtype) -> str:
    """TF32 only when the user allows it for float32 matrix products."""
    return "tf32" if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest" else "ieee"


def tile_sizes(points: int, columns: int, channels: int, code_channels: int, dtype: torch.dtype) -> dict[str, int]:
    """One tile per shape class. float32 tiles are smaller: without TF32 they run on the scalar units."""
    block_k = min(128, max(16, triton.next_power_of_2(code_channels)))
    if interpreting():
        return {"BLOCK_P": 32, "BLOCK_Q": 32, "BLOCK_C": 64, "BLOCK_K": block_k}
    full = dtype == torch.float32
    block_p = 64 if full or min(points, columns) <= 256 else 128
    return {
        "BLOCK_P": block_p, "BLOCK_Q": 64, "BLOCK_C": 32 if full else 64, "BLOCK_K": block_k,
        "num_warps": 4 if block_p == 64 else 8, "num_stages": 2 if full else 3,
    }  # fmt: skip


def _autotuned() -> Any:
    configs = [
        triton.Config({"BLOCK_P": p, "BLOCK_Q": q, "BLOCK_C": c}, num_warps=warps, num_stages=stages)
        for p, q in ((64, 64), (64, 128), (128, 64), (128, 128))
        for c in (32, 64)
        for warps, stages in ((4, 2), (4, 3), (8, 2), (8, 3))
    ]
    key = ["P", "Q", "C", "K", "GRAD", "FEATURE", "DEPTH"]
    return triton.autotune(configs, key=key, restore_value=["p_d", "p_d_depth"])(tiles.pair_rows_kernel)


_search: Any = None  # of triton, which has no type hints


def _pair_rows_kernel(sizes: dict[str, int]) -> tuple[Any, dict[str, int]]:
    """The kernel and its tile arguments, recorded or searched."""
    global _search
    if os.environ.get("DEPTHG_AUTOTUNE", "0") != "1" or interpreting():
        return tiles.pair_rows_kernel, sizes
    _search = _autotuned() if _search is None else _search
    return _search, {"BLOCK_K": sizes["BLOCK_K"]}


class Depth(NamedTuple):
    """Depth of both sides as factors, see ``depth_factors``."""

    u: Tensor  # [N, P, D] float32
    v: Tensor  # [N, Q, D] float32
    shift: Tensor  # 0-dim float32
    relation: str
    bandwidth: float


def make_depth(depth_a: Tensor, depth_b: Tensor | None, shift: Tensor, relation: str, bandwidth: float) -> Depth:
    u = depth_factors(depth_a, relation, torch.float32).contiguous()
    v = u if depth_b is None else depth_factors(depth_b, relation, torch.float32).contiguous()
    return Depth(u, v, shift.float(), relation, bandwidth)


class Term(NamedTuple):
    """One launch or two: a feature target, a depth target, or both on the same S."""

    a: Bank
    b: Bank
    pairs: Tensor  # [R, N] int64: image n of side a with image pairs[r, n] of side b
    bias: Tensor | None = None  # [R, N, P] float32: centring and shift of the feature target
    depth: Depth | None = None
    symmetric: bool = False
    clamp: bool = True
    max_similarity: float | None = None


def identity_index(n: int, device: torch.device) -> Tensor:
    return torch.arange(n, device=device)[None]


def feature_bias(a: Bank, b: Bank, shift: Tensor, index: Tensor, center: bool, mean: Tensor | None = None) -> Tensor:
    """Constant and row mean of the centred, shifted target of every pair and point of side a.

    ``mean`` ``[R]`` is that of F over each draw, where these images are not all of it.
    """
    assert a.feats is not None and b.feats is not None
    (draws, n), (p, c) = index.shape, a.feats.x.shape[1:]
    constant = -shift.float().expand(draws)
    if not center:
        return constant[:, None, None].expand(draws, n, p).contiguous()
    mean = mean_product(a.feats.mean, b.feats.mean, index) if mean is None else mean
    constant = (constant + mean.float()).contiguous()
    out = torch.empty((draws, n, p), dtype=torch.float32, device=index.device)
    x = a.feats.x
    tiles.bias_kernel[(draws * n, triton.cdiv(p, POINTS))](
        x, a.feats.inverse, b.feats.mean, index.contiguous(), constant, out, *x.stride(), n, p, c,
        BLOCK_P=POINTS, BLOCK_C=CHANNELS,
    )  # fmt: skip
    return out


def run_term(
    term: Term,
    d_a: Tensor | None,  # [N, P, K] float32
    d_b: Tensor | None,  # [M, Q, K] float32
    d_a_depth: Tensor | None = None,
    d_b_depth: Tensor | None = None,
) -> list[Tensor]:
    """Values of the feature and the depth target (those given) and their gradients, written or added to the buffers.

    Buffers that are None are left out. With one bank on both sides ``d_a`` and ``d_b`` are one buffer, and the second
    launch adds to what the first wrote.
    """
    symmetric = term.symmetric
    wanted = d_a if term.bias is not None else d_a_depth
    other = d_b if term.bias is not None else d_b_depth
    scale = 2.0 if symmetric else 1.0
    values = _launch(term, d_a, d_a_depth, on_b=False, grad=wanted is not None, add=False, scale=scale)
    if other is not None and not symmetric:
        _launch(term, d_b, d_b_depth, on_b=True, grad=True, add=term.a is term.b, scale=1.0)
    return values


def _launch(
    term: Term, d_feature: Tensor | None, d_depth: Tensor | None, *, on_b: bool, grad: bool, add: bool, scale: float
) -> list[Tensor]:
    rows, columns = (term.b, term.a) if on_b else (term.a, term.b)
    x, y = rows.codes.x, columns.codes.x
    feature, depth = term.bias is not None, term.depth
    f, g = (rows.feats, columns.feats) if feature else (rows.codes, columns.codes)
    assert f is not None and g is not None
    (draws, n), (images, p, k), q = term.pairs.shape, x.shape, y.shape[1]
    order = start = term.pairs
    if on_b:
        listed, order = term.pairs.flatten().sort(stable=True)
        start = torch.searchsorted(listed, torch.arange(images + 1, device=x.device))
    u, v = (f.inverse, f.inverse) if depth is None else ((depth.v, depth.u) if on_b else (depth.u, depth.v))
    shift = f.inverse if depth is None else depth.shift
    sizes = tile_sizes(p, q, f.x.shape[2], k, x.dtype)
    kernel, sizes = _pair_rows_kernel(sizes)

    def grid(meta: dict[str, int]) -> tuple[int, int, int]:
        return images, triton.cdiv(p, meta["BLOCK_P"]), triton.cdiv(k, meta["BLOCK_K"]) if grad else 1

    partial = [torch.zeros((images, triton.cdiv(p, 32)), dtype=torch.float32, device=x.device) for _ in range(2)]
    alpha = -1.0 / (draws * n * p * q)
    dummy = partial[0]
    kernel[grid](
        f.x, g.x, f.inverse, g.inverse, *f.x.stride(), *g.x.stride(), term.bias if feature else dummy,
        x, y, rows.codes.inverse, columns.codes.inverse, *x.stride(), *y.stride(),
        u, v, shift, 0.0 if depth is None else 1 / depth.bandwidth**2,
        term.pairs, order, start,
        dummy if d_feature is None else d_feature, dummy if d_depth is None else d_depth, partial[0], partial[1],
        n, draws, p, q, f.x.shape[2], k, u.shape[2] if depth is not None else 1, alpha * scale, alpha * scale,
        0.0 if term.max_similarity is None else term.max_similarity,
        FEATURE=feature, DEPTH=depth is not None,
        EXPONENTIAL=depth is not None and depth.relation in ("gaussian", "euclidean"),
        ON_B=on_b, BIAS=tiles.BIAS_BOTH if term.symmetric else tiles.BIAS_COLUMNS if on_b else tiles.BIAS_ROWS,
        GRAD=grad, ADD=add, VALUE=not on_b, CLAMP=term.clamp, LIMIT=term.max_similarity is not None,
        PRECISION=precision(x.dtype), **sizes,
    )  # fmt: skip
    return [part.sum() * alpha for part, used in zip(partial, (feature, depth is not None), strict=True) if used]
