"""Triton kernel of the streaming histogram: tiles of F, counted where they are computed.

Counts go to memory with integer atomics, which are exact in any order, into one of several copies, so that programs
that run at the same time rarely meet. Nothing grows with the number of bins but those copies.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from depthg.kernels.launch_triton import cdiv, on_device, precision
from depthg.kernels.packed_triton import load_block, pack, products
from depthg.kernels.terms_cpu import mean_product

COPIES = 32
TILE = 64


@triton.jit(do_not_specialize=["N", "P", "Q", "bins"])
def histogram_kernel(
    p_f, p_g, p_f_rest, p_g_rest, p_mean, p_constant, p_index, p_count, N, P, Q, bins, low, scale,
    CENTER: tl.constexpr, COPIES: tl.constexpr, CP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Counts of one pair and one tile of rows, added to count[copy]. Grid: (R N, tiles of P).

    value = f_p . g_q - f_p . mean_j + constant[r], the last two with centring only.
    """
    i_e, i_p = tl.program_id(0), tl.program_id(1) * BLOCK_P
    j = tl.load(p_index + i_e)
    o_p, o_q = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_Q)
    row = (i_e % N).to(tl.int64) * P + i_p
    p_f += row * CP
    b_f_rest = tl.load(p_f_rest + row + o_p)
    b_bias = tl.zeros([BLOCK_P], tl.float32)
    if CENTER:
        for c in range(0, CP, BLOCK_C):
            b_mean = tl.load(p_mean + j * CP + c + tl.arange(0, BLOCK_C))
            b_bias -= tl.sum(load_block(p_f, o_p, c, CP, BLOCK_C).to(tl.float32) * b_mean[None, :], 1)
        b_bias = b_bias * b_f_rest + tl.load(p_constant + i_e // N)
    copy = (i_e * tl.num_programs(1) + tl.program_id(1)) % COPIES
    p_count += copy.to(tl.int64) * bins
    p_g += j * Q * CP
    p_g_rest += j * Q
    one = tl.full([BLOCK_P, BLOCK_Q], 1, tl.int64)
    for q in range(0, Q, BLOCK_Q):
        value = products(p_f, p_g, o_p, o_q, CP, BLOCK_P, BLOCK_Q, BLOCK_C, PRECISION)
        value = value * (b_f_rest[:, None] * tl.load(p_g_rest + q + o_q)[None, :]) + b_bias[:, None]
        place = tl.floor((value - low) * scale)
        place = tl.minimum(tl.minimum(tl.maximum(place, 0.0), 2147483520.0).to(tl.int32), bins - 1)
        inside = (i_p + o_p < P)[:, None] & (q + o_q < Q)[None, :]
        tl.atomic_add(p_count + place, one, mask=inside, sem="relaxed")
        p_g += BLOCK_Q * CP


def padded_channels(c: int) -> int:
    return 16 if c <= 16 else 32 if c <= 32 else cdiv(c, 64) * 64


def padded_mean(packed: Tensor, rest: Tensor, shape: torch.Size) -> Tensor:  # [N, CP]
    """Mean of the vectors of every image, in float32."""
    images, points = shape[:2]
    rows = images * points
    x = packed[:rows].view(images, points, -1).float()
    return (x * rest[:rows].view(images, points, 1)).mean(1)


def count(
    a: Tensor, b: Tensor, bins: int, low: float, high: float, center: bool, index: Tensor, cosine: bool
) -> Tensor:
    """Counts [bins] int64 of the correlations of the pairs ``index`` [R, N]."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    with on_device(a):
        return _count(a.to(dtype), b.to(dtype), bins, low, high, center, index, cosine)


def _count(
    a: Tensor, b: Tensor, bins: int, low: float, high: float, center: bool, index: Tensor, cosine: bool
) -> Tensor:
    (draws, n), (p, c), q = index.shape, a.shape[1:], b.shape[1]
    channels = padded_channels(c)
    # A tile may reach beyond an image, into the next one or into spare rows: such values are not counted.
    side_a, side_b = (pack(x.reshape(-1, c), channels, TILE, normalize=cosine, spare=TILE) for x in (a, b))
    mean = constant = side_a[1]
    if center:
        mean = padded_mean(*side_b, b.shape)
        constant = mean_product(padded_mean(*side_a, a.shape), mean, index).float()
    counts = torch.zeros((COPIES, bins), dtype=torch.int64, device=a.device)
    histogram_kernel[(draws * n, cdiv(p, TILE))](
        side_a[0], side_b[0], side_a[1], side_b[1], mean, constant, index.contiguous(), counts,
        n, p, q, bins, low, bins / (high - low),
        CENTER=center, COPIES=COPIES, CP=channels, PRECISION=precision(a.dtype),
        BLOCK_P=TILE, BLOCK_Q=TILE, BLOCK_C=min(channels, 32 if a.dtype == torch.float32 else 64),
    )  # fmt: skip
    return counts.sum(0)
