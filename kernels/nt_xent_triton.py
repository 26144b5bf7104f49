"""Triton kernels of NT-Xent: log-sum-exp of every row in tiles, then the gradient from recomputed tiles."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from depthg.kernels import terms_triton
from depthg.kernels.tiles_triton import dot_tile
from torch import Tensor


@triton.jit
def log_sum_exp_kernel(
    p_z, p_inverse, p_lse, p_loss, s_z, s_k, rows, K, scale,
    PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """lse[i] = log sum_{j != i} exp(z_i . z_j / T) and loss[i] = lse[i] - z_i . z_pair / T. Grid: (tiles of rows,)."""
    o_p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = o_p < rows
    pair = (o_p + rows // 2) % rows
    b_inverse = tl.load(p_inverse + o_p, mask=m_p, other=0.0) * scale
    largest = tl.full([BLOCK_P], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_P], tl.float32)
    positive = tl.zeros([BLOCK_P], tl.float32)
    for q in range(0, rows, BLOCK_Q):
        o_q = q + tl.arange(0, BLOCK_Q).to(tl.int64)
        m_q = o_q < rows
        logit = dot_tile(p_z, p_z, o_p, m_p, o_q, m_q, s_z, s_k, s_z, s_k, K, BLOCK_P, BLOCK_Q, BLOCK_K, PRECISION)
        logit = logit * b_inverse[:, None] * tl.load(p_inverse + o_q, mask=m_q, other=0.0)[None, :]
        positive += tl.sum(tl.where(o_q[None, :] == pair[:, None], logit, 0.0), 1)
        logit = tl.where((o_q[None, :] != o_p[:, None]) & m_q[None, :], logit, float("-inf"))
        now = tl.maximum(largest, tl.max(logit, 1))
        finite = tl.where(now == float("-inf"), 0.0, now)
        total = total * tl.exp(largest - finite) + tl.sum(tl.exp(logit - finite[:, None]), 1)
        largest = now
    lse = largest + tl.log(total)
    tl.store(p_lse + o_p, lse, mask=m_p)
    tl.store(p_loss + o_p, lse - positive, mask=m_p)


@triton.jit
def gradient_kernel(
    p_z, p_inverse, p_lse, p_d, s_z, s_k, rows, K, scale, alpha,
    PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """d[i] = alpha sum_j (softmax_ij + softmax_ji - 2 [j is the pair of i]) z_j. Grid: (tiles of rows, blocks of K)."""
    o_p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = o_p < rows
    pair = (o_p + rows // 2) % rows
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    m_k = o_k < K
    b_inverse = tl.load(p_inverse + o_p, mask=m_p, other=0.0) * scale
    b_lse = tl.load(p_lse + o_p, mask=m_p, other=float("inf"))
    d = tl.zeros([BLOCK_P, BLOCK_K], tl.float32)
    for q in range(0, rows, BLOCK_Q):
        o_q = q + tl.arange(0, BLOCK_Q).to(tl.int64)
        m_q = o_q < rows
        logit = dot_tile(p_z, p_z, o_p, m_p, o_q, m_q, s_z, s_k, s_z, s_k, K, BLOCK_P, BLOCK_Q, BLOCK_K, PRECISION)
        b_q_inverse = tl.load(p_inverse + o_q, mask=m_q, other=0.0)
        logit = logit * b_inverse[:, None] * b_q_inverse[None, :]
        b_q_lse = tl.load(p_lse + o_q, mask=m_q, other=float("inf"))
        weight = tl.exp(logit - b_lse[:, None]) + tl.exp(logit - b_q_lse[None, :])
        weight = tl.where(o_q[None, :] == o_p[:, None], 0.0, weight)
        weight -= tl.where(o_q[None, :] == pair[:, None], 2.0, 0.0)
        weight = tl.where(m_p[:, None] & m_q[None, :], weight, 0.0)
        b_z = tl.load(p_z + o_q[:, None] * s_z + o_k[None, :] * s_k, mask=m_q[:, None] & m_k[None, :], other=0.0)
        unit = (b_z.to(tl.float32) * b_q_inverse[:, None]).to(b_z.dtype)
        d = tl.dot(weight.to(b_z.dtype), unit, d, input_precision=PRECISION)
    tl.store(p_d + o_p[:, None] * K + o_k[None, :], d * alpha, mask=m_p[:, None] & m_k[None, :])


def run(z: Tensor, temperature: float, need: bool) -> tuple[Tensor, Tensor | None]:
    """Loss and gradient at the unit vectors of all 2N views [2N, K]."""
    rows, k = z.shape
    inverse = terms_triton.make_vectors(z[None]).inverse
    lse, loss = (torch.empty(rows, dtype=torch.float32, device=z.device) for _ in range(2))
    sizes = terms_triton.tile_sizes(rows, rows, k, k, z.dtype)
    sizes.pop("BLOCK_C")
    options = {"PRECISION": terms_triton.precision(z.dtype), **sizes}
    tiles = triton.cdiv(rows, sizes["BLOCK_P"])
    scale = 1 / temperature
    log_sum_exp_kernel[(tiles,)](z, inverse, lse, loss, *z.stride(), rows, k, scale, **options)
    if not need:
        return loss.mean(), None
    d = torch.empty((rows, k), dtype=torch.float32, device=z.device)
    blocks = triton.cdiv(k, sizes["BLOCK_K"])
    gradient_kernel[(tiles, blocks)](z, inverse, lse, d, *z.stride(), rows, k, scale, scale / rows, **options)
    return loss.mean(), d
