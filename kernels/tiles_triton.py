"""Triton kernel of the correlation losses: P x Q in tiles, nothing larger than a tile in memory.

For a pair of images and packed unit vectors (``prepare_triton.py``) the tiles hold

    S_pq = a_p . b_q (codes),   W_pq = f_p . g_q + bias + constant (features)   or   D_pq + constant (depth)
    value = sum_pq W_pq V(S_pq),   d_rows = (W V') b

for the rows of side a, or with the sides exchanged for the rows of side b. One launch covers all terms: a program finds
its segment (a term and a side), image, tile of rows and split in a table, walks over every ``splits``-th pair of its
image, and writes its own rows and its own sum. So every number has one writer, and sums are added in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

SEGMENTS = 8  # rows of the table
FIELDS = 16  # of a row, in the order of plan_triton.Segment; no program reaches the first of an unused row
SAME, DRAWN, INVERSE = range(3)  # KIND: image n with n; with index[r, n]; the pairs whose index is the row's image
BIAS_ROWS, BIAS_COLUMNS, BIAS_BOTH = range(3)  # which axis of the tile holds the points of side a; both: half each
NEVER = 2**62

SIZES = ["draws", "anchors", "P", "blocks_c", "blocks_k"]  # run-time sizes: their values compile nothing anew


@triton.jit
def depth_tile(p_u, p_v, o_p, m_p, o_q, m_q, scale, D: tl.constexpr, EXPONENTIAL: tl.constexpr):
    """u . v of few components, or exp(-scale |u - v|^2); p_u and p_v point at contiguous [points, D]."""
    tile = tl.load(p_u + o_p * D, mask=m_p, other=0.0)[:, None]
    b_v = tl.load(p_v + o_q * D, mask=m_q, other=0.0)[None, :]
    if EXPONENTIAL:
        tile = (tile - b_v) * (tile - b_v)
    else:
        tile = tile * b_v
    for d in tl.static_range(1, D):
        b_u = tl.load(p_u + o_p * D + d, mask=m_p, other=0.0)[:, None]
        b_v = tl.load(p_v + o_q * D + d, mask=m_q, other=0.0)[None, :]
        if EXPONENTIAL:
            tile += (b_u - b_v) * (b_u - b_v)
        else:
            tile += b_u * b_v
    if EXPONENTIAL:
        tile = tl.exp(-scale * tile)
    return tile


@triton.jit(do_not_specialize=SIZES)
def pair_rows_kernel(
    # packed unit vectors: features [rows, blocks_c BLOCK_C], codes [rows, K0 + K1 or K0 blocks_k], depth [points, D]
    p_feats, p_codes, p_depth,
    # bias [E, P] of the points of side a, constant per draw, negatives [R N] and their inverse lists
    p_bias, p_constant, p_index, p_order, p_start, p_table,
    # results: rows of gradients as wide as packed codes, one sum per program
    p_rows, p_sum,
    draws, anchors, P, blocks_c, blocks_k, depth_scale, limit,
    CENTER: tl.constexpr, D: tl.constexpr, EXPONENTIAL: tl.constexpr, GRAD: tl.constexpr, CLAMP: tl.constexpr,
    LIMIT: tl.constexpr, WIDE: tl.constexpr, FEATURE_PRECISION: tl.constexpr, CODE_PRECISION: tl.constexpr,
    K0: tl.constexpr, K1: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr,
    SEGMENTS: tl.constexpr, FIELDS: tl.constexpr,
):  # fmt: skip
    """Values and gradient rows of one item of the work list. Grid: (programs of all segments, blocks of K).

    ``WIDE``: codes of more than 128 channels, gradients of K0 of them at a time. Longer than our usual functions
    because a jit kernel cannot be split along its loops without passing every pointer.
    """
    i_program = tl.program_id(0)
    o_s = tl.arange(0, SEGMENTS)
    p_t = p_table + FIELDS * (tl.sum((tl.load(p_table + o_s * FIELDS) <= i_program).to(tl.int32)) - 1)
    local = i_program - tl.load(p_t).to(tl.int32)
    rows, images, tiles = tl.load(p_t + 2).to(tl.int32), tl.load(p_t + 3).to(tl.int32), tl.load(p_t + 4).to(tl.int32)
    columns, kind = tl.load(p_t + 7).to(tl.int32), tl.load(p_t + 8)
    i_p, i_n, i_split = local % tiles, (local // tiles) % images, local // tiles // images
    splits = tl.load(p_t + 5).to(tl.int32)
    guided = tl.load(p_t + 13)  # a depth item, which has no features
    row0 = tl.load(p_t + 1) + i_n.to(tl.int64) * rows
    o_p = i_p * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = o_p < rows
    o_k0, o_k1 = tl.arange(0, K0), K0 + tl.arange(0, K1)
    if WIDE:
        width = blocks_k * K0
        o_k0 += tl.program_id(1) * K0
    else:
        width = K0
        if K1 > 1:
            width = K0 + K1
        a0 = tl.load(p_codes + row0 * width + o_p[:, None] * width + o_k0[None, :], mask=m_p[:, None], other=0.0)
        if K1 > 1:
            a1 = tl.load(p_codes + row0 * width + o_p[:, None] * width + o_k1[None, :], mask=m_p[:, None], other=0.0)
    if GRAD:
        d0 = tl.zeros([BLOCK_P, K0], tl.float32)
        if K1 > 1:
            d1 = tl.zeros([BLOCK_P, K1], tl.float32)
    total = tl.zeros([BLOCK_P], tl.float32)
    bias_side, draw0 = tl.load(p_t + 12), tl.load(p_t + 11)
    row_share = tl.where(bias_side == 0, 1.0, tl.where(bias_side == 2, 0.5, 0.0))
    steps_c = tl.where(guided != 0, 0, blocks_c)
    if kind == 2:
        first, last = tl.load(p_start + i_n).to(tl.int32), tl.load(p_start + i_n + 1).to(tl.int32)
    else:
        first, last = i_n * 0, i_n * 0 + tl.where(kind == 1, draws, 1)
    p_f = p_feats + row0 * (blocks_c * BLOCK_C)
    for step in range(0, (last - first - i_split + splits - 1) // splits):
        at = first + i_split + step * splits
        if kind == 2:
            i_e = tl.load(p_order + at)
            j = i_e % anchors
        else:
            i_e = (at * anchors + i_n).to(tl.int64)
            j = i_n.to(tl.int64)
            if kind == 1:
                j = tl.load(p_index + i_e)
        column0 = tl.load(p_t + 6) + j * columns
        p_b, p_g = p_codes + column0 * width, p_feats + column0 * (blocks_c * BLOCK_C)
        constant = tl.load(p_constant + draw0 + i_e // anchors)
        if CENTER:
            p_e = p_bias + (draw0 * anchors + i_e) * P
        for q in range(0, columns, BLOCK_Q):
            o_q = q + tl.arange(0, BLOCK_Q)
            m_q = o_q < columns
            weight = tl.zeros([BLOCK_P, BLOCK_Q], tl.float32)
            for c in range(0, steps_c):
                o_c = c * BLOCK_C + tl.arange(0, BLOCK_C)
                b_f = tl.load(
                    p_f + o_p[:, None] * (blocks_c * BLOCK_C) + o_c[None, :], mask=m_p[:, None], other=0.0
                )  # fmt: skip
                b_g = tl.load(
                    p_g + o_q[:, None] * (blocks_c * BLOCK_C) + o_c[None, :], mask=m_q[:, None], other=0.0
                )  # fmt: skip
                weight = tl.dot(b_f, tl.trans(b_g), weight, input_precision=FEATURE_PRECISION)
            b0 = tl.load(p_b + o_q[:, None] * width + o_k0[None, :], mask=m_q[:, None], other=0.0)
            if K1 > 1:
                b1 = tl.load(p_b + o_q[:, None] * width + o_k1[None, :], mask=m_q[:, None], other=0.0)
            if WIDE:
                similarity = tl.zeros([BLOCK_P, BLOCK_Q], tl.float32)
                for k in range(0, width, 32):
                    o_k = k + tl.arange(0, 32)
                    b_x = tl.load(
                        p_codes + row0 * width + o_p[:, None] * width + o_k[None, :], mask=m_p[:, None], other=0.0
                    )  # fmt: skip
                    b_y = tl.load(p_b + o_q[:, None] * width + o_k[None, :], mask=m_q[:, None], other=0.0)
                    similarity = tl.dot(b_x, tl.trans(b_y), similarity, input_precision=CODE_PRECISION)
            else:
                similarity = tl.dot(a0, tl.trans(b0), input_precision=CODE_PRECISION)
                if K1 > 1:
                    similarity = tl.dot(a1, tl.trans(b1), similarity, input_precision=CODE_PRECISION)
            if D > 0:
                if guided != 0:
                    p_u = p_depth + (tl.load(p_t + 14) + i_n.to(tl.int64) * rows) * D
                    p_v = p_depth + (tl.load(p_t + 15) + j * columns) * D
                    weight = depth_tile(p_u, p_v, o_p, m_p, o_q, m_q, depth_scale, D, EXPONENTIAL)
            weight += constant
            if CENTER:
                m_row, m_column = m_p & (bias_side != 1) & (guided == 0), m_q & (bias_side != 0) & (guided == 0)
                column_share = tl.where(bias_side == 2, 0.5, 1.0)
                weight += (tl.load(p_e + o_p, mask=m_row, other=0.0) * row_share)[:, None]
                weight += (tl.load(p_e + o_q, mask=m_column, other=0.0) * column_share)[None, :]
            counted = m_p[:, None] & m_q[None, :]
            if CLAMP:
                counted = counted & (similarity >= 0)
            if LIMIT:
                capped = counted & (similarity > limit)
                total += tl.sum(tl.where(capped, weight * limit, 0.0), 1)
                counted = counted & (similarity <= limit)
            weight = tl.where(counted, weight, 0.0)
            total += tl.sum(weight * similarity, 1)
            if GRAD:
                weight_b = weight.to(b0.dtype)
                d0 = tl.dot(weight_b, b0, d0, input_precision=CODE_PRECISION)
                if K1 > 1:
                    d1 = tl.dot(weight_b, b1, d1, input_precision=CODE_PRECISION)
    if tl.program_id(1) == 0:
        tl.store(p_sum + i_program, tl.sum(total, 0))
    if GRAD:
        out0 = tl.load(p_t + 10) + (i_split.to(tl.int64) * images + i_n) * rows
        p_out = p_rows + out0 * width
        tl.store(p_out + o_p[:, None] * width + o_k0[None, :], d0, mask=m_p[:, None])
        if K1 > 1:
            tl.store(p_out + o_p[:, None] * width + o_k1[None, :], d1, mask=m_p[:, None])
