"""Triton kernels after the tiles: losses from partial sums, and gradients from the rows of all segments to the maps.

    loss_t = sum of alpha_s sum_s over the segments s of term t,   total = sum_t weight_t loss_t
    d_unit = sum_s (d_total weight_t + d_loss_t) alpha_s rows_s,   d_x = (d_unit - unit (unit . d_unit)) / |x|
    d_map[cell] = sum_p weight[p, cell] d_x[p]

Every sum has one writer and a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from depthg.kernels.prepare_triton import corner


@triton.jit(
    do_not_specialize=["programs", "segments", "draws", "own", "near", "guide", "w_own", "w_near", "w_far", "w_depth"]
)
def losses_kernel(
    p_sum, p_table, p_factor, p_similar, p_total, p_losses, p_similarities,
    programs, segments, draws, own, near, guide, w_own, w_near, w_far, w_depth,
    FIELDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Losses and mean similarities of the four terms [4], and the weighted total. Grid: (1,)."""
    o_t = tl.arange(0, 4)
    losses = tl.zeros([4], tl.float32)
    for s in range(0, segments):
        first, last = tl.load(p_table + s * FIELDS).to(tl.int32), programs
        if s + 1 < segments:
            last = tl.load(p_table + (s + 1) * FIELDS).to(tl.int32)
        part = tl.zeros([BLOCK], tl.float32)
        for i in range(first, last, BLOCK):
            o_i = i + tl.arange(0, BLOCK)
            part += tl.load(p_sum + o_i, mask=o_i < last, other=0.0)
        value = tl.sum(part, 0) * tl.load(p_factor + 2 * s)
        losses += tl.where(o_t == tl.load(p_table + s * FIELDS + 9), value, 0.0)
    weight = tl.where(o_t == 0, w_own, tl.where(o_t == 1, w_near, tl.where(o_t == 2, w_far, w_depth)))
    tl.store(p_losses + o_t, losses)
    tl.store(p_total, tl.sum(weight * losses, 0))
    far = tl.zeros([BLOCK], tl.float32)
    for x in range(0, draws - own - near, BLOCK):
        o_x = x + tl.arange(0, BLOCK)
        far += tl.load(p_similar + own + near + o_x, mask=o_x < draws - own - near, other=0.0)
    mean = tl.sum(far, 0) / tl.maximum(draws - own - near, 1)
    place = tl.where(o_t == 1, own, tl.where(o_t == 3, draws, 0))
    given = ((o_t == 0) & (own > 0)) | ((o_t == 1) & (near > 0)) | ((o_t == 3) & (guide > 0))
    similar = tl.load(p_similar + place, mask=given, other=0.0)
    tl.store(p_similarities + o_t, tl.where(o_t == 2, mean, similar))


@triton.jit
def pick(i, p_0, p_1, p_2, p_3):
    """The i-th of four pointers."""
    p = p_0
    if i == 1:
        p = p_1
    if i == 2:
        p = p_2
    if i == 3:
        p = p_3
    return p


@triton.jit(do_not_specialize=["segments", "wanted", "width", "width_out", "w_own", "w_near", "w_far", "w_depth"])
def code_gradient_kernel(
    p_rows, p_codes, p_inverse, p_table, p_banks, p_factor, p_d_total, p_d_losses, p_out_0, p_out_1, p_out_2, p_out_3,
    segments, wanted, width, width_out, w_own, w_near, w_far, w_depth,
    TOTAL: tl.constexpr, LOSSES: tl.constexpr, FIELDS: tl.constexpr, BANKS: tl.constexpr, BANK_FIELDS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradient at the codes of the ``wanted`` banks (bits): p_out [rows of a bank, width_out]. Grid: (tiles,)."""
    i_program = tl.program_id(0)
    i_bank = tl.sum((tl.load(p_banks + tl.arange(0, BANKS) * BANK_FIELDS + 6) <= i_program).to(tl.int32)) - 1
    p_bank = p_banks + i_bank * BANK_FIELDS
    o_b = (i_program - tl.load(p_bank + 6)) * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = (o_b < tl.load(p_bank + 5)) & (((wanted >> i_bank) & 1) == 1)
    o_p = o_b + tl.load(p_bank + 4)
    along = tl.zeros([BLOCK_P], tl.float32)
    for k in range(0, width, BLOCK_K):
        d, unit = unit_gradient(
            p_rows, p_codes, p_table, p_factor, p_d_total, p_d_losses, o_p, m_p, k, segments, width,
            w_own, w_near, w_far, w_depth, TOTAL, LOSSES, FIELDS, BLOCK_P, BLOCK_K,
        )  # fmt: skip
        along += tl.sum(unit * d, 1)
    inverse = tl.load(p_inverse + o_p, mask=m_p, other=0.0)
    p_out = pick(i_bank, p_out_0, p_out_1, p_out_2, p_out_3)
    for k in range(0, width_out, BLOCK_K):
        d, unit = unit_gradient(
            p_rows, p_codes, p_table, p_factor, p_d_total, p_d_losses, o_p, m_p, k, segments, width,
            w_own, w_near, w_far, w_depth, TOTAL, LOSSES, FIELDS, BLOCK_P, BLOCK_K,
        )  # fmt: skip
        o_k = k + tl.arange(0, BLOCK_K)
        d = (d - unit * along[:, None]) * inverse[:, None]
        tl.store(p_out + o_b[:, None] * width_out + o_k[None, :], d, mask=m_p[:, None] & (o_k < width_out)[None, :])


@triton.jit
def unit_gradient(
    p_rows, p_codes, p_table, p_factor, p_d_total, p_d_losses, o_p, m_p, k, segments, width,
    w_own, w_near, w_far, w_depth,
    TOTAL: tl.constexpr, LOSSES: tl.constexpr, FIELDS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of the gradient at the unit codes, all segments times what comes from above, and the unit codes."""
    o_k = k + tl.arange(0, BLOCK_K)
    m_k = m_p[:, None] & (o_k < width)[None, :]
    unit = tl.load(p_codes + o_p[:, None] * width + o_k[None, :], mask=m_k, other=0.0).to(tl.float32)
    d = tl.zeros([BLOCK_P, BLOCK_K], tl.float32)
    for s in range(0, segments):
        p_t = p_table + s * FIELDS
        term, row0, out0 = tl.load(p_t + 9), tl.load(p_t + 1), tl.load(p_t + 10)
        count = tl.load(p_t + 2) * tl.load(p_t + 3)
        upstream = tl.load(p_factor + 2 * s + 1) * 0.0
        if TOTAL:
            weight = tl.where(term == 0, w_own, tl.where(term == 1, w_near, tl.where(term == 2, w_far, w_depth)))
            upstream += tl.load(p_d_total) * weight
        if LOSSES:
            upstream += tl.load(p_d_losses + term)
        m_s = m_p & (o_p >= row0) & (o_p < row0 + count)
        part = tl.zeros([BLOCK_P, BLOCK_K], tl.float32)
        for split in range(0, tl.load(p_t + 5).to(tl.int32)):
            row = out0 + split * count + o_p - row0
            part += tl.load(p_rows + row[:, None] * width + o_k[None, :], mask=m_k & m_s[:, None], other=0.0)
        d += upstream * tl.load(p_factor + 2 * s + 1) * part
    return d, unit


@triton.jit(do_not_specialize=["s_n", "s_c", "s_h", "s_w", "H", "W", "images", "P", "K", "width"])
def scatter_kernel(
    p_d_0, p_d_1, p_at_0, p_at_1, p_out_0, p_out_1,  # of one or two banks: [N P, width], points, maps [N, K, H, W]
    s_n, s_c, s_h, s_w, H, W, images, P, K, width,
    MODE: tl.constexpr, ALIGN: tl.constexpr, BLOCK_CELLS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradient of the maps at a tile of cells: a product with the points' weights. Grid: (cells, banks N, blocks of K).

    The weights are made where they are used, so nothing is sorted and no two programs write one cell.
    """
    i_bank, i_n = tl.program_id(1) // images, (tl.program_id(1) % images).to(tl.int64)
    o_x = tl.program_id(0) * BLOCK_CELLS + tl.arange(0, BLOCK_CELLS)
    o_k = tl.program_id(2) * BLOCK_K + tl.arange(0, BLOCK_K)
    p_at = pick(i_bank, p_at_0, p_at_1, p_at_0, p_at_0)
    p_d = pick(i_bank, p_d_0, p_d_1, p_d_0, p_d_0) + i_n * P * width
    d_maps = tl.zeros([BLOCK_CELLS, BLOCK_K], tl.float32)
    for p in range(0, P, BLOCK_P):
        o_p = p + tl.arange(0, BLOCK_P)
        m_p = o_p < P
        share = cell_shares(p_at, i_n, o_p, m_p, o_x, P, H, W, 0, MODE, ALIGN)
        if MODE == 2:
            share += cell_shares(p_at, i_n, o_p, m_p, o_x, P, H, W, 1, MODE, ALIGN)
            share += cell_shares(p_at, i_n, o_p, m_p, o_x, P, H, W, 2, MODE, ALIGN)
            share += cell_shares(p_at, i_n, o_p, m_p, o_x, P, H, W, 3, MODE, ALIGN)
        b_d = tl.load(p_d + o_p[:, None] * width + o_k[None, :], mask=m_p[:, None] & (o_k < K)[None, :], other=0.0)
        d_maps = tl.dot(share, b_d, d_maps, input_precision="tf32x3")
    place = i_n * s_n + (o_x // W).to(tl.int64) * s_h + (o_x % W).to(tl.int64) * s_w
    p_out = pick(i_bank, p_out_0, p_out_1, p_out_0, p_out_0)
    p_to = p_out + place[:, None] + o_k.to(tl.int64)[None, :] * s_c
    tl.store(p_to, d_maps, mask=(o_x < H * W)[:, None] & (o_k < K)[None, :])


@triton.jit
def cell_shares(
    p_at, i_n, o_p, m_p, o_x, P, H, W, which: tl.constexpr, MODE: tl.constexpr, ALIGN: tl.constexpr
):  # fmt: skip
    """Weight of one of the four cells around each point, where that cell is of the tile: [cells, points]."""
    row, column, weight = corner(p_at, i_n, o_p, m_p, P, H, W, which, MODE, ALIGN)
    return tl.where(o_x[:, None] == (row * W + column)[None, :], weight[None, :], 0.0)
