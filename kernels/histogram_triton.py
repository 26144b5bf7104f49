"""Triton kernel of the streaming histogram: tiles of F, counted where they are computed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from depthg.kernels import terms_triton
from depthg.kernels.tiles_triton import dot_tile
from torch import Tensor


@triton.jit
def histogram_kernel(
    p_x, p_y, p_x_inverse, p_y_inverse, s_xn, s_xp, s_xc, s_yn, s_yq, s_yc, p_bias, p_index, p_count,
    N, P, Q, C, low, scale, bins,
    PRECISION: tl.constexpr, BINS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Adds the counts of one pair and one tile of rows. Grid: (R N, tiles of P). The atomics are integer: exact."""
    i_e = tl.program_id(0).to(tl.int64)
    i_n = i_e % N
    j = tl.load(p_index + i_e)
    o_p = tl.program_id(1).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = o_p < P
    b_x_inverse = tl.load(p_x_inverse + i_n * P + o_p, mask=m_p, other=0.0)
    b_bias = tl.load(p_bias + i_e * P + o_p, mask=m_p, other=0.0)
    counts = tl.zeros([BINS], tl.int32)
    for q in range(0, Q, BLOCK_Q):
        o_q = q + tl.arange(0, BLOCK_Q).to(tl.int64)
        m_q = o_q < Q
        value = dot_tile(
            p_x + i_n * s_xn, p_y + j * s_yn, o_p, m_p, o_q, m_q, s_xp, s_xc, s_yq, s_yc, C,
            BLOCK_P, BLOCK_Q, BLOCK_C, PRECISION,
        )  # fmt: skip
        b_y_inverse = tl.load(p_y_inverse + j * Q + o_q, mask=m_q, other=0.0)
        value = value * b_x_inverse[:, None] * b_y_inverse[None, :] + b_bias[:, None]
        place = tl.floor((value - low) * scale)
        place = tl.minimum(tl.maximum(place, 0.0), bins - 1.0).to(tl.int32)
        place = tl.where(m_p[:, None] & m_q[None, :], place, bins)  # what lies outside is counted in a spare bin
        counts += tl.histogram(tl.reshape(place, [BLOCK_P * BLOCK_Q]), BINS)
    o_bin = tl.arange(0, BINS)
    tl.atomic_add(p_count + o_bin, counts.to(tl.int64), mask=o_bin < bins)


def count(
    a: Tensor, b: Tensor, bins: int, low: float, high: float, center: bool, index: Tensor, cosine: bool
) -> Tensor:
    """Counts [bins] int64 of the correlations of the pairs ``index`` [R, N]."""
    vectors = []
    for x in (a, b):
        bank = terms_triton.make_vectors(x)
        if not cosine:
            bank = terms_triton.Vectors(x, torch.ones_like(bank.inverse), x.float().mean(1))
        vectors.append(terms_triton.Bank(bank, bank))
    side_a, side_b = vectors
    (draws, n), (p, c), q = index.shape, a.shape[1:], b.shape[1]
    bias = terms_triton.feature_bias(side_a, side_b, torch.zeros((), device=a.device), index, center)
    out = torch.zeros(bins, dtype=torch.int64, device=a.device)
    size = 32 if bins <= 1024 else 64
    histogram_kernel[(draws * n, triton.cdiv(p, size))](
        a, b, side_a.codes.inverse, side_b.codes.inverse, *a.stride(), *b.stride(), bias, index.contiguous(), out,
        n, p, q, c, low, bins / (high - low), bins,
        PRECISION=terms_triton.precision(a.dtype), BINS=triton.next_power_of_2(bins + 1),
        BLOCK_P=size, BLOCK_Q=size, BLOCK_C=32,
    )  # fmt: skip
    return out
