"""Triton kernels of NT-Xent: packed vectors, log-sum-exp of every row, then the gradient from recomputed tiles.

Channels of the packed rows (``packed_triton.py``) are taken in two parts of powers of two, K0 and K1, as 64 + 16 for
K = 70, and beyond 128 in blocks. Exponentials are powers of two.

A program owns one tile of rows and a span of columns. Where rows alone do not fill a device there are several spans.
Their results are added in a fixed order: no atomics, the same sums every time. Weights in float16 are multiplied by an
exact power of two: at 2N = 65,536 they are about 1.5e-5, below its normal numbers.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from depthg.kernels.launch_triton import architecture, cdiv, on_device, power_of_two, precision
from depthg.kernels.packed_triton import load_block, pack, products

PROGRAMS = 264  # two for each of the 132 multiprocessors of an H100
RAISE = 13  # weights times rest are at most 4: raised by 2^13 they stay below 65504


@triton.jit(do_not_specialize=["rows", "span"])
def log_sum_exp_kernel(
    p_packed, p_rest, p_lse, rows, span, scale,
    KP: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """lse[s, i] = log2 sum_{j != i in span s} 2^(scale z_i . z_j). Grid: (tiles of rows, spans of columns)."""
    i_p = tl.program_id(0) * BLOCK_P
    o_p, o_q = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_Q)
    p_a = p_packed + i_p.to(tl.int64) * KP
    if KP <= 128:
        a0 = load_block(p_a, o_p, 0, KP, K0)
        if K1 > 0:
            a1 = load_block(p_a, o_p, K0, KP, K1)
    b_rest = tl.load(p_rest + i_p + o_p) * scale
    largest = tl.full([BLOCK_P], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_P], tl.float32)
    first = tl.program_id(1) * span
    p_b = p_packed + first.to(tl.int64) * KP
    for q in range(first, tl.minimum(first + span, rows), BLOCK_Q):
        if KP <= 128:
            logit = tl.dot(a0, tl.trans(load_block(p_b, o_q, 0, KP, K0)), input_precision=PRECISION)
            if K1 > 0:
                logit = tl.dot(a1, tl.trans(load_block(p_b, o_q, K0, KP, K1)), logit, input_precision=PRECISION)
        else:
            logit = products(p_a, p_b, o_p, o_q, KP, BLOCK_P, BLOCK_Q, 64, PRECISION)
        other = (i_p + o_p[:, None] != q + o_q[None, :]) & (q + o_q < rows)[None, :]
        logit *= b_rest[:, None] * tl.load(p_rest + q + o_q)[None, :]
        logit = tl.where(other, logit, float("-inf"))
        now = tl.maximum(largest, tl.max(logit, 1))
        finite = tl.where(now == float("-inf"), 0.0, now)
        total = total * tl.exp2(largest - finite) + tl.sum(tl.exp2(logit - finite[:, None]), 1)
        largest = now
        p_b += BLOCK_Q * KP
    lse = largest + tl.log2(total)
    tl.store(p_lse + tl.program_id(1) * tl.num_programs(0) * BLOCK_P + i_p + o_p, lse)


@triton.jit(do_not_specialize=["rows", "spans"])
def row_loss_kernel(
    p_packed, p_rest, p_partial, p_lse, p_loss, rows, spans, scale,
    KP: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """lse[i], over all spans, infinite for padding, and loss[i] = lse[i] - the logit of the pair. Grid: (tiles,)."""
    o_p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    padded = tl.num_programs(0) * BLOCK_P
    largest = tl.full([BLOCK_P], float("-inf"), tl.float32)
    for s in range(0, spans):
        largest = tl.maximum(largest, tl.load(p_partial + s * padded + o_p))
    total = tl.zeros([BLOCK_P], tl.float32)
    for s in range(0, spans):
        total += tl.exp2(tl.load(p_partial + s * padded + o_p) - largest)
    lse = largest + tl.log2(total)
    tl.store(p_lse + o_p, tl.where(o_p < rows, lse, float("inf")))
    pair = tl.where(o_p < rows, (o_p + rows // 2) % rows, 0).to(tl.int64)
    positive = tl.zeros([BLOCK_P], tl.float32)
    for k in range(0, KP, BLOCK_K):
        o_k = k + tl.arange(0, BLOCK_K)
        b_a = tl.load(p_packed + o_p.to(tl.int64)[:, None] * KP + o_k[None, :]).to(tl.float32)
        positive += tl.sum(b_a * tl.load(p_packed + pair[:, None] * KP + o_k[None, :]).to(tl.float32), 1)
    positive *= tl.load(p_rest + o_p) * scale * tl.load(p_rest + pair)
    log_2 = 0.6931471805599453
    tl.store(p_loss + o_p, (lse - positive) * log_2, mask=o_p < rows)


@triton.jit(do_not_specialize=["rows", "span"])
def gradient_kernel(
    p_packed, p_rest, p_lse, p_d, rows, span, scale,
    KP: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, RAISE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """d[s, i] = 2^RAISE sum_j (softmax_ij + softmax_ji) z_j over span s without i and its pair.

    Grid: (tiles of rows, spans of columns, blocks of K0 + K1 channels). Columns of padding are zero vectors.
    """
    i_p, i_k = tl.program_id(0) * BLOCK_P, tl.program_id(2) * (K0 + K1)
    o_p, o_q = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_Q)
    p_a = p_packed + i_p.to(tl.int64) * KP
    if KP <= 128:
        a0 = load_block(p_a, o_p, 0, KP, K0)
        if K1 > 0:
            a1 = load_block(p_a, o_p, K0, KP, K1)
    b_rest, b_lse = tl.load(p_rest + i_p + o_p) * scale, tl.load(p_lse + i_p + o_p) - RAISE
    pair = (i_p + o_p + rows // 2) % rows
    d0 = tl.zeros([BLOCK_P, K0], tl.float32)
    if K1 > 0:
        d1 = tl.zeros([BLOCK_P, K1], tl.float32)
    first = tl.program_id(1) * span
    p_b = p_packed + first.to(tl.int64) * KP
    for q in range(first, tl.minimum(first + span, rows), BLOCK_Q):
        b0 = load_block(p_b, o_q, i_k, KP, K0)
        if K1 > 0:
            b1 = load_block(p_b, o_q, i_k + K0, KP, K1)
        if KP <= 128:
            logit = tl.dot(a0, tl.trans(b0), input_precision=PRECISION)
            if K1 > 0:
                logit = tl.dot(a1, tl.trans(b1), logit, input_precision=PRECISION)
        else:
            logit = products(p_a, p_b, o_p, o_q, KP, BLOCK_P, BLOCK_Q, 64, PRECISION)
        b_q_rest, b_q_lse = tl.load(p_rest + q + o_q), tl.load(p_lse + q + o_q) - RAISE
        logit *= b_rest[:, None] * b_q_rest[None, :]
        weight = tl.exp2(logit - b_lse[:, None]) + tl.exp2(logit - b_q_lse[None, :])
        column = q + o_q[None, :]
        apart = (i_p + o_p[:, None] == column) | (pair[:, None] == column) | (column >= rows)  # padding may overflow
        weight = tl.where(apart, 0.0, weight * b_q_rest[None, :]).to(b0.dtype)
        d0 = tl.dot(weight, b0, d0, input_precision=PRECISION)
        if K1 > 0:
            d1 = tl.dot(weight, b1, d1, input_precision=PRECISION)
        p_b += BLOCK_Q * KP
    row = tl.program_id(1).to(tl.int64) * tl.num_programs(0) * BLOCK_P + i_p
    p_d += row * KP + o_p[:, None] * KP + i_k
    tl.store(p_d + tl.arange(0, K0)[None, :], d0)
    if K1 > 0:
        tl.store(p_d + K0 + tl.arange(0, K1)[None, :], d1)


@triton.jit(do_not_specialize=["rows", "K", "spans"])
def finish_kernel(
    p_packed, p_rest, p_partial, p_loss, p_d, rows, K, spans, alpha, lower,
    KP: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """d[i] = alpha (lower sum_s partial[s, i] + weight_i z_pair(i)). Grid: (tiles of rows, blocks of channels).

    The weight of a pair, softmax + softmax - 2 with softmax = e^-loss, may be the small difference of large numbers.
    In the sum over columns, and in half precision, it would lose its digits and those of all others.
    """
    o_p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    m_d = (o_p < rows)[:, None] & (o_k < K)[None, :]
    pair = tl.where(o_p < rows, (o_p + rows // 2) % rows, 0).to(tl.int64)
    row = o_p.to(tl.int64)
    padded = tl.num_programs(0).to(tl.int64) * BLOCK_P
    d = tl.zeros([BLOCK_P, BLOCK_K], tl.float32)
    for s in range(0, spans):
        d += tl.load(p_partial + (s * padded + row)[:, None] * KP + o_k[None, :])
    b_loss = tl.load(p_loss + row, mask=o_p < rows, other=0.0)
    b_other = tl.load(p_loss + pair, mask=o_p < rows, other=0.0)
    weight = ((tl.exp(-b_loss) - 1.0) + (tl.exp(-b_other) - 1.0)) * tl.load(p_rest + pair)
    d = d * lower + weight[:, None] * tl.load(p_packed + pair[:, None] * KP + o_k[None, :]).to(tl.float32)
    tl.store(p_d + row[:, None] * K + o_k[None, :], d * alpha, mask=m_d)


def channel_blocks(k: int) -> tuple[int, int, int]:
    """Padded channels KP, and the two parts of a block of them."""
    if k > 128:
        padded = cdiv(k, 64) * 64
        return padded, 64, 64 if padded % 128 == 0 else 0
    padded = max(16, cdiv(k, 16) * 16)
    first = min(64, 1 << (padded.bit_length() - 1))
    second = 0 if padded == first else power_of_two(padded - first)
    return first + second, first, second


def tile_sizes(dtype: torch.dtype, arch: int) -> dict[str, int]:
    """Three TF32 products take many registers: small tiles where no other memory holds their operands."""
    if dtype != torch.float32:
        return {"BLOCK_P": 128, "BLOCK_Q": 64, "num_warps": 8, "num_stages": 3}
    if precision(dtype) == "tf32":
        return {"BLOCK_P": 64, "BLOCK_Q": 32, "num_warps": 4, "num_stages": 2}
    if arch // 10 in (9, 10):
        return {"BLOCK_P": 64, "BLOCK_Q": 32, "num_warps": 8, "num_stages": 2}
    return {"BLOCK_P": 32, "BLOCK_Q": 16, "num_warps": 4, "num_stages": 2}


def run(z: Tensor, temperature: float, need: bool) -> tuple[Tensor, Tensor | None]:
    """Loss and gradient at the unit vectors of all 2N views [2N, K]."""
    with on_device(z):
        return _run(z, temperature, need)


def _run(z: Tensor, temperature: float, need: bool) -> tuple[Tensor, Tensor | None]:
    (rows, k), (kp, k0, k1), sizes = z.shape, channel_blocks(z.shape[1]), tile_sizes(z.dtype, architecture(z.device))
    tiles = cdiv(rows, sizes["BLOCK_P"])
    padded, columns = tiles * sizes["BLOCK_P"], cdiv(rows, sizes["BLOCK_Q"])
    per_span = cdiv(columns, min(columns, max(1, PROGRAMS // tiles)))
    spans, span = cdiv(columns, per_span), per_span * sizes["BLOCK_Q"]
    scale, alpha = math.log2(math.e) / temperature, 1 / (temperature * rows)
    raised = RAISE if z.dtype == torch.float16 else 0
    small = {"KP": kp, "BLOCK_P": sizes["BLOCK_P"], "BLOCK_K": math.gcd(kp, 64)}
    options = {"KP": kp, "K0": k0, "K1": k1, "PRECISION": precision(z.dtype), **sizes}

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=z.device)

    packed = pack(z, kp, sizes["BLOCK_P"])
    partial, lse, loss = empty(spans, padded), empty(padded), empty(rows)
    log_sum_exp_kernel[(tiles, spans)](*packed, partial, rows, span, scale, **options)
    row_loss_kernel[(tiles,)](*packed, partial, lse, loss, rows, spans, scale, **small)
    if not need:
        return loss.mean(), None
    d_partial, d = empty(spans, padded, kp), empty(rows, k)
    blocks = kp // (k0 + k1)
    gradient_kernel[(tiles, spans, blocks)](*packed, lse, d_partial, rows, span, scale, RAISE=raised, **options)
    blocks = kp // small["BLOCK_K"]
    finish_kernel[(tiles, blocks)](*packed, d_partial, loss, d, rows, k, spans, alpha, 2.0**-raised, **small)
    return loss.mean(), d
