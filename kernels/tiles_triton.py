"""Triton kernels of the correlation losses: P x Q in tiles, nothing larger than a tile in memory.

For a pair e = (image of side a, image of side b) and unit vectors a, b the tiles hold

    S_pq = a_p . b_q (codes),   W_pq = f_p . g_q + bias[e, p] (features)   or   D_pq - shift (depth)
    value = alpha * sum_pq W_pq V(S_pq),   d_a = alpha * (W V') b,   d_b = alpha * (W V')^T a

Vectors are read as they are and scaled by their inverse lengths, so no normalised copy is written. ``bias`` carries the
centring and the shift. A program owns one tile of points of one image and walks over all its pairs, so every gradient
row has one writer: no atomics, and the order of summation is fixed.
"""

from __future__ import annotations

import triton
import triton.language as tl

BIAS_ROWS, BIAS_COLUMNS, BIAS_BOTH = 0, 1, 2  # which axis of the tile holds the points of side a; both: half each


@triton.jit
def inverse_length_kernel(p_x, p_out, s_n, s_p, s_c, P, C, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """out[n, p] = 1 / |x[n, p]|, 0 for a zero vector. Grid: (N, tiles of P)."""
    i_n = tl.program_id(0).to(tl.int64)
    o_p = tl.program_id(1).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = o_p < P
    square = tl.zeros([BLOCK_P], tl.float32)
    for c in range(0, C, BLOCK_C):
        o_c = c + tl.arange(0, BLOCK_C)
        m_x = m_p[:, None] & (o_c < C)[None, :]
        b_x = tl.load(p_x + i_n * s_n + o_p[:, None] * s_p + o_c[None, :] * s_c, mask=m_x, other=0.0).to(tl.float32)
        square += tl.sum(b_x * b_x, 1)
    inverse = tl.where(square > 0, 1.0 / tl.sqrt(tl.where(square > 0, square, 1.0)), 0.0)
    tl.store(p_out + i_n * P + o_p, inverse, mask=m_p)


@triton.jit
def mean_vector_kernel(p_x, p_inverse, p_out, s_n, s_p, s_c, P, C, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """out[n, c] = mean_p x[n, p, c] / |x[n, p]|. Grid: (N, tiles of C)."""
    i_n = tl.program_id(0).to(tl.int64)
    o_c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    total = tl.zeros([BLOCK_C], tl.float32)
    for p in range(0, P, BLOCK_P):
        o_p = p + tl.arange(0, BLOCK_P)
        m_p = o_p < P
        m_x = m_p[:, None] & m_c[None, :]
        b_x = tl.load(p_x + i_n * s_n + o_p[:, None] * s_p + o_c[None, :] * s_c, mask=m_x, other=0.0).to(tl.float32)
        b_inverse = tl.load(p_inverse + i_n * P + o_p, mask=m_p, other=0.0)
        total += tl.sum(b_x * b_inverse[:, None], 0)
    tl.store(p_out + i_n * C + o_c, total / P, mask=m_c)


@triton.jit
def bias_kernel(
    p_x, p_inverse, p_mean, p_index, p_constant, p_out, s_n, s_p, s_c, N, P, C,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[e, p] = constant[r] - a_p . mean_b[index[e]], e = r N + n: centring and shift. Grid: (R N, tiles of P)."""
    i_e = tl.program_id(0).to(tl.int64)
    i_n = i_e % N
    j_b = tl.load(p_index + i_e)
    o_p = tl.program_id(1).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = o_p < P
    row = tl.zeros([BLOCK_P], tl.float32)
    for c in range(0, C, BLOCK_C):
        o_c = c + tl.arange(0, BLOCK_C)
        m_c = o_c < C
        m_x = m_p[:, None] & m_c[None, :]
        b_x = tl.load(p_x + i_n * s_n + o_p[:, None] * s_p + o_c[None, :] * s_c, mask=m_x, other=0.0).to(tl.float32)
        b_mean = tl.load(p_mean + j_b * C + o_c, mask=m_c, other=0.0)
        row += tl.sum(b_x * b_mean[None, :], 1)
    b_inverse = tl.load(p_inverse + i_n * P + o_p, mask=m_p, other=0.0)
    tl.store(p_out + i_e * P + o_p, tl.load(p_constant + i_e // N) - row * b_inverse, mask=m_p)


@triton.jit
def dot_tile(
    p_x, p_y, o_p, m_p, o_q, m_q, s_xp, s_xc, s_yq, s_yc, C,
    BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x y^T of one tile, accumulated in float32; p_x and p_y point at the images."""
    tile = tl.zeros([BLOCK_P, BLOCK_Q], tl.float32)
    for c in range(0, C, BLOCK_C):
        o_c = c + tl.arange(0, BLOCK_C)
        m_c = o_c < C
        b_x = tl.load(p_x + o_p[:, None] * s_xp + o_c[None, :] * s_xc, mask=m_p[:, None] & m_c[None, :], other=0.0)
        b_y = tl.load(p_y + o_q[None, :] * s_yq + o_c[:, None] * s_yc, mask=m_q[None, :] & m_c[:, None], other=0.0)
        tile = tl.dot(b_x, b_y, tile, input_precision=PRECISION)
    return tile


@triton.jit
def depth_tile(
    p_u, p_v, o_p, m_p, o_q, m_q, D, scale,
    BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, EXPONENTIAL: tl.constexpr,
):  # fmt: skip
    """u . v of few channels, or exp(-scale |u - v|^2); p_u and p_v point at contiguous [points, D]."""
    tile = tl.zeros([BLOCK_P, BLOCK_Q], tl.float32)
    for d in range(0, D):
        b_u = tl.load(p_u + o_p * D + d, mask=m_p, other=0.0)
        b_v = tl.load(p_v + o_q * D + d, mask=m_q, other=0.0)
        if EXPONENTIAL:
            difference = b_u[:, None] - b_v[None, :]
            tile += difference * difference
        else:
            tile += b_u[:, None] * b_v[None, :]
    if EXPONENTIAL:
        tile = tl.exp(-scale * tile)
    return tile


@triton.jit
def clamp_tile(similarity, limit, CLAMP: tl.constexpr, LIMIT: tl.constexpr):
    """V(S) and, as 0 or 1, V'(S)."""
    value, slope = similarity, tl.full(similarity.shape, 1.0, tl.float32)
    if CLAMP:
        slope = tl.where(similarity >= 0, slope, 0.0)
        value = tl.maximum(value, 0.0)
    if LIMIT:
        slope = tl.where(similarity <= limit, slope, 0.0)
        value = tl.minimum(value, limit)
    return value, slope


def pair_rows(
    # features of the rows and columns [., ., C], inverse lengths, strides; bias [E, points of side a]
    p_f, p_g, p_f_inverse, p_g_inverse, s_fn, s_fp, s_fc, s_gn, s_gq, s_gc, p_bias,
    # codes of the rows and columns [., ., K], inverse lengths, strides
    p_a, p_b, p_a_inverse, p_b_inverse, s_an, s_ap, s_ak, s_bn, s_bq, s_bk,
    # depth factors [., ., D], shift (0-dim) and 1 / bandwidth^2
    p_u, p_v, p_shift, depth_scale,
    # pairs: index of side b [E]; for rows on side b the pairs sorted by it and where each image starts
    p_index, p_order, p_start,
    # results: gradients at the unit codes [., P, K] of the feature and depth terms, partial sums [., tiles]
    p_d, p_d_depth, p_sum, p_sum_depth,
    N, R, P, Q, C, K, D, alpha, alpha_depth, limit,
    FEATURE: tl.constexpr, DEPTH: tl.constexpr, EXPONENTIAL: tl.constexpr, ON_B: tl.constexpr, BIAS: tl.constexpr,
    GRAD: tl.constexpr, ADD: tl.constexpr, VALUE: tl.constexpr, CLAMP: tl.constexpr, LIMIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Values and gradients of one tile of rows over all its pairs. Grid: (images, tiles of P, blocks of K).

    ``ON_B``: the rows are points of side b, whose pairs come from ``p_order``. ``BIAS`` says which axis holds side a.
    Longer than our usual functions because a jit kernel cannot be split along its loops without passing every pointer.
    """
    i_n, i_p, i_k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    o_p = i_p * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = o_p < P
    o_k = i_k * BLOCK_K + tl.arange(0, BLOCK_K)
    m_k = o_k < K
    b_a_inverse = tl.load(p_a_inverse + i_n * P + o_p, mask=m_p, other=0.0)
    if FEATURE:
        b_f_inverse = tl.load(p_f_inverse + i_n * P + o_p, mask=m_p, other=0.0)
        d_rows = tl.zeros([BLOCK_P, BLOCK_K], tl.float32)
        total = tl.zeros([BLOCK_P], tl.float32)
    if DEPTH:
        d_rows_depth = tl.zeros([BLOCK_P, BLOCK_K], tl.float32)
        total_depth = tl.zeros([BLOCK_P], tl.float32)
        shift = tl.load(p_shift)
    if ON_B:
        first, last = tl.load(p_start + i_n), tl.load(p_start + i_n + 1)
    else:
        first, last = i_n * 0, i_n * 0 + R
    for t in range(first, last):
        if ON_B:
            i_e = tl.load(p_order + t)
            j = i_e % N
        else:
            i_e = t * N + i_n
            j = tl.load(p_index + i_e)
        for q in range(0, Q, BLOCK_Q):
            o_q = q + tl.arange(0, BLOCK_Q).to(tl.int64)
            m_q = o_q < Q
            m_tile = m_p[:, None] & m_q[None, :]
            b_b_inverse = tl.load(p_b_inverse + j * Q + o_q, mask=m_q, other=0.0)
            similarity = dot_tile(
                p_a + i_n * s_an, p_b + j * s_bn, o_p, m_p, o_q, m_q, s_ap, s_ak, s_bq, s_bk, K,
                BLOCK_P, BLOCK_Q, BLOCK_K, PRECISION,
            )  # fmt: skip
            value, slope = clamp_tile(similarity * b_a_inverse[:, None] * b_b_inverse[None, :], limit, CLAMP, LIMIT)
            if GRAD:
                b_b = tl.load(
                    p_b + j * s_bn + o_q[:, None] * s_bq + o_k[None, :] * s_bk,
                    mask=m_q[:, None] & m_k[None, :], other=0.0,
                )  # fmt: skip
                unit_b = (b_b.to(tl.float32) * b_b_inverse[:, None]).to(b_b.dtype)
            if FEATURE:
                weight = dot_tile(
                    p_f + i_n * s_fn, p_g + j * s_gn, o_p, m_p, o_q, m_q, s_fp, s_fc, s_gq, s_gc, C,
                    BLOCK_P, BLOCK_Q, BLOCK_C, PRECISION,
                )  # fmt: skip
                b_g_inverse = tl.load(p_g_inverse + j * Q + o_q, mask=m_q, other=0.0)
                weight = weight * b_f_inverse[:, None] * b_g_inverse[None, :]
                if BIAS == 0:
                    weight += tl.load(p_bias + i_e * P + o_p, mask=m_p, other=0.0)[:, None]
                elif BIAS == 1:
                    weight += tl.load(p_bias + i_e * Q + o_q, mask=m_q, other=0.0)[None, :]
                else:
                    weight += 0.5 * tl.load(p_bias + i_e * P + o_p, mask=m_p, other=0.0)[:, None]
                    weight += 0.5 * tl.load(p_bias + i_e * Q + o_q, mask=m_q, other=0.0)[None, :]
                weight = tl.where(m_tile, weight, 0.0)
                if VALUE:
                    total += tl.sum(weight * value, 1)
                if GRAD:
                    d_rows = tl.dot((weight * slope).to(b_b.dtype), unit_b, d_rows, input_precision=PRECISION)
            if DEPTH:
                weight = depth_tile(
                    p_u + i_n * P * D, p_v + j * Q * D, o_p, m_p, o_q, m_q, D, depth_scale,
                    BLOCK_P, BLOCK_Q, EXPONENTIAL,
                )  # fmt: skip
                weight = tl.where(m_tile, weight - shift, 0.0)
                if VALUE:
                    total_depth += tl.sum(weight * value, 1)
                if GRAD:
                    d_rows_depth = tl.dot(
                        (weight * slope).to(b_b.dtype), unit_b, d_rows_depth, input_precision=PRECISION
                    )
    m_d = m_p[:, None] & m_k[None, :]
    o_d = (i_n * P + o_p[:, None]) * K + o_k[None, :]
    i_sum = i_n * tl.num_programs(1) + i_p
    if FEATURE:
        if GRAD:
            d_rows *= alpha
            if ADD:
                d_rows += tl.load(p_d + o_d, mask=m_d, other=0.0)
            tl.store(p_d + o_d, d_rows, mask=m_d)
        if VALUE:
            tl.store(p_sum + i_sum, tl.sum(total, 0), mask=i_k == 0)
    if DEPTH:
        if GRAD:
            d_rows_depth *= alpha_depth
            if ADD:
                d_rows_depth += tl.load(p_d_depth + o_d, mask=m_d, other=0.0)
            tl.store(p_d_depth + o_d, d_rows_depth, mask=m_d)
        if VALUE:
            tl.store(p_sum_depth + i_sum, tl.sum(total_depth, 0), mask=i_k == 0)


pair_rows_kernel = triton.jit(pair_rows)
