"""Triton kernels before the tiles: vectors at their points, normalised and packed; mean vectors; bias and constants.

    unit[row] = x[row] / |x[row]|,   mean[image] = mean_p unit[image, p]
    bias[e, p] = -f_p . mean_g,      constant[draw] = mean_n mean_f . mean_g - shift   (Eq. 2's centring and shift)

Packed rows are padded with zeros to a width that keeps every row aligned. Rows of all banks (anchors, neighbours,
negatives, other crop) lie behind each other, so one launch of ``means_kernel`` and ``bias_kernel`` serves all terms.
"""

from __future__ import annotations

import triton
import triton.language as tl

BANKS, BANK_FIELDS = 4, 8
# fields of a bank: first image, points, first tile of sums, tiles of an image, first row, rows, first tile of gradients
ROWS_GIVEN, CELLS, COORDINATES = range(3)  # what says where vectors are read
PLAIN, POSITIVE, UNIT = 1, 2, 3  # what becomes of depth: as it is, 1 where above 0, a unit vector


@triton.jit
def corner(p_at, i_n, o_p, m_p, P, H, W, which: tl.constexpr, MODE: tl.constexpr, ALIGN: tl.constexpr):
    """Row, column and weight of one of the four cells around each point; the only cell when none is interpolated."""
    if MODE == 0:
        return o_p * 0, o_p, tl.where(m_p, 1.0, 0.0)
    elif MODE == 1:
        cell = tl.load(p_at + i_n * P + o_p, mask=m_p, other=0)
        return cell // W, cell % W, tl.where(m_p, 1.0, 0.0)
    else:
        x = tl.load(p_at + (i_n * P + o_p) * 2, mask=m_p, other=0.0).to(tl.float32)
        y = tl.load(p_at + (i_n * P + o_p) * 2 + 1, mask=m_p, other=0.0).to(tl.float32)
        if ALIGN:
            x, y = (x + 1.0) / 2.0 * (W - 1), (y + 1.0) / 2.0 * (H - 1)
        else:
            x, y = ((x + 1.0) * W - 1.0) / 2.0, ((y + 1.0) * H - 1.0) / 2.0
        x, y = tl.minimum(tl.maximum(x, 0.0), W - 1.0), tl.minimum(tl.maximum(y, 0.0), H - 1.0)
        low_x, low_y = tl.floor(x), tl.floor(y)
        share_x, share_y = x - low_x, y - low_y
        if which % 2 == 0:
            column, weight = low_x, 1.0 - share_x
        else:
            column, weight = tl.minimum(low_x + 1.0, W - 1.0), share_x
        if which // 2 == 0:
            row, weight = low_y, weight * (1.0 - share_y)
        else:
            row, weight = tl.minimum(low_y + 1.0, H - 1.0), weight * share_y
        return row.to(tl.int32), column.to(tl.int32), tl.where(m_p, weight, 0.0)


@triton.jit
def read_corner(p_x, o_c, m_x, s_c, s_h, s_w, row, column, weight):
    """weight x[:, row, column] of one image as a tile [points, channels]; 64-bit offsets, for strides of any size."""
    place = row.to(tl.int64) * s_h + column.to(tl.int64) * s_w
    value = tl.load(p_x + place[:, None] + o_c.to(tl.int64)[None, :] * s_c, mask=m_x, other=0.0)
    return value.to(tl.float32) * weight[:, None]


@triton.jit
def read_vectors(
    p_x, p_at, i_n, o_p, m_p, o_c, m_c, s_c, s_h, s_w, P, H, W, MODE: tl.constexpr, ALIGN: tl.constexpr
):  # fmt: skip
    """Vectors at the points as a float32 tile [points, channels]; p_x points at the image."""
    m_x = m_p[:, None] & m_c[None, :]
    row, column, weight = corner(p_at, i_n, o_p, m_p, P, H, W, 0, MODE, ALIGN)
    value = read_corner(p_x, o_c, m_x, s_c, s_h, s_w, row, column, weight)
    if MODE == 2:
        row, column, weight = corner(p_at, i_n, o_p, m_p, P, H, W, 1, MODE, ALIGN)
        value += read_corner(p_x, o_c, m_x, s_c, s_h, s_w, row, column, weight)
        row, column, weight = corner(p_at, i_n, o_p, m_p, P, H, W, 2, MODE, ALIGN)
        value += read_corner(p_x, o_c, m_x, s_c, s_h, s_w, row, column, weight)
        row, column, weight = corner(p_at, i_n, o_p, m_p, P, H, W, 3, MODE, ALIGN)
        value += read_corner(p_x, o_c, m_x, s_c, s_h, s_w, row, column, weight)
    return value


@triton.jit
def inverse_length(square):
    """1 / sqrt(square), 0 where it is 0; division and root round correctly."""
    one = tl.full(square.shape, 1.0, tl.float32)
    return tl.where(square > 0, tl.div_rn(one, tl.sqrt_rn(tl.where(square > 0, square, one))), 0.0)


@triton.jit
def pack(
    p_x, p_at, p_out, p_sum, i_n, o_p, m_p, s_c, s_h, s_w, P, H, W, C, width,
    MODE: tl.constexpr, ALIGN: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Unit vectors of a tile of points to p_out [points, width], their sum to p_sum [width]; the inverse lengths.

    ``WHOLE``: a block holds all channels, so the vectors are read once; they are read again for every block otherwise.
    """
    if WHOLE:
        o_c = tl.arange(0, BLOCK_C)
        value = read_vectors(p_x, p_at, i_n, o_p, m_p, o_c, o_c < C, s_c, s_h, s_w, P, H, W, MODE, ALIGN)
        inverse = inverse_length(tl.sum(value * value, 1))
        store_unit(p_out, p_sum, value * inverse[:, None], o_p, m_p, o_c, width)
    else:
        square = o_p.to(tl.float32) * 0.0
        for c in range(0, C, BLOCK_C):
            o_c = c + tl.arange(0, BLOCK_C)
            value = read_vectors(p_x, p_at, i_n, o_p, m_p, o_c, o_c < C, s_c, s_h, s_w, P, H, W, MODE, ALIGN)
            square += tl.sum(value * value, 1)
        inverse = inverse_length(square)
        for c in range(0, width, BLOCK_C):
            o_c = c + tl.arange(0, BLOCK_C)
            value = read_vectors(p_x, p_at, i_n, o_p, m_p, o_c, o_c < C, s_c, s_h, s_w, P, H, W, MODE, ALIGN)
            store_unit(p_out, p_sum, value * inverse[:, None], o_p, m_p, o_c, width)
    return inverse


@triton.jit
def store_unit(p_out, p_sum, value, o_p, m_p, o_c, width):
    tl.store(p_sum + o_c, tl.sum(value, 0), mask=o_c < width)
    p_to = p_out + o_p[:, None].to(tl.int64) * width + o_c[None, :]
    tl.store(p_to, value, mask=m_p[:, None] & (o_c < width)[None, :])


@triton.jit(
    do_not_specialize=[
        "s_fn", "s_fc", "s_fh", "s_fw", "fh", "fw", "s_cn", "s_cc", "s_ch", "s_cw", "ch", "cw", "s_dn", "s_dc", "s_dh",
        "s_dw", "dh", "dw", "images", "row0", "tile0", "depth0", "P", "C", "K", "D", "width_c",
    ]
)  # fmt: skip
def prepare_kernel(
    p_feats, p_feats_1, s_fn, s_fc, s_fh, s_fw, fh, fw,  # features of one or two banks [N, C, fh, fw]
    p_codes, p_codes_1, s_cn, s_cc, s_ch, s_cw, ch, cw,  # codes [N, K, ch, cw]
    p_depth, s_dn, s_dc, s_dh, s_dw, dh, dw,  # depth [N, D, dh, dw]
    p_at, p_at_1,  # cells [N, P] int64 or coordinates [N, P, 2]
    p_feats_out, p_codes_out, p_depth_out,  # packed rows [., width_c], [., WIDTH_K], [., D]
    p_inverse, p_sum,  # inverse lengths of the codes [rows], sums of unit vectors [tiles, width_c + WIDTH_K]
    images, row0, tile0, depth0, P, C, K, D, width_c,
    FEATURES: tl.constexpr, CODES: tl.constexpr, DEPTH: tl.constexpr, MODE: tl.constexpr, ALIGN: tl.constexpr,
    WHOLE: tl.constexpr, WIDTH_K: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Packs one tile of points of one image. Grid: (banks N, tiles of P); a second bank's rows follow the first's."""
    i_image, i_p = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i_n, second = i_image, i_image >= images
    if second:
        i_n, p_feats, p_codes, p_at = i_image - images, p_feats_1, p_codes_1, p_at_1
    o_p = i_p * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = o_p < P
    row = row0 + i_image * P
    sums = p_sum + (tile0 + i_image * tl.num_programs(1) + i_p) * (width_c + WIDTH_K)
    if FEATURES:
        pack(
            p_feats + i_n * s_fn, p_at, p_feats_out + row * width_c, sums, i_n, o_p, m_p,
            s_fc, s_fh, s_fw, P, fh, fw, C, width_c, MODE, ALIGN, BLOCK_C, WHOLE,
        )  # fmt: skip
    if CODES:
        inverse = pack(
            p_codes + i_n * s_cn, p_at, p_codes_out + row * WIDTH_K, sums + width_c, i_n, o_p, m_p,
            s_cc, s_ch, s_cw, P, ch, cw, K, WIDTH_K, MODE, ALIGN, BLOCK_K, BLOCK_K >= WIDTH_K,
        )  # fmt: skip
        tl.store(p_inverse + row + o_p, inverse, mask=m_p)
    if DEPTH != 0:  # of the first bank
        o_d = tl.arange(0, BLOCK_D)
        m_p = m_p & (i_image < images)
        value = read_vectors(
            p_depth + i_n * s_dn, p_at, i_n, o_p, m_p, o_d, o_d < D, s_dc, s_dh, s_dw, P, dh, dw, MODE, ALIGN
        )  # fmt: skip
        if DEPTH == 2:
            value = tl.where(value > 0, 1.0, 0.0)
        if DEPTH == 3:
            value *= inverse_length(tl.sum(value * value, 1))[:, None]
        p_to = p_depth_out + (depth0 + i_n * P + o_p)[:, None] * D + o_d[None, :]
        tl.store(p_to, value, mask=m_p[:, None] & (o_d < D)[None, :])


@triton.jit(do_not_specialize=["images", "feature_images", "draws", "anchors", "width_c", "programs", "banks"])
def means_kernel(
    p_sum, p_mean,  # sums of unit vectors [tiles, width], means [images, width], width = width_c + WIDTH_K
    p_banks, p_index, p_order, p_start,
    images, feature_images, draws, anchors, width_c, programs, banks,
    WIDTH_K: tl.constexpr, BANKS: tl.constexpr, BANK_FIELDS: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Mean vectors, and for the negatives the pairs of every image of side b. Grid: (both kinds of programs,).

    The first ``programs`` write means. The others sort the draws by index, stably and by counting: entry e of index
    [draws, anchors] goes to place #{e': index' < index, or equal and e' < e} of ``order``; ``start[j]`` counts the
    entries below j, for j up to ``banks``, the images of side b.
    """
    i_program = tl.program_id(0)
    if i_program < programs:
        width = width_c + WIDTH_K
        blocks = (width + BLOCK_C - 1) // BLOCK_C
        i_image = i_program // blocks
        o_b = tl.arange(0, BANKS)
        p_bank = p_banks + BANK_FIELDS * (tl.sum((tl.load(p_banks + o_b * BANK_FIELDS) <= i_image).to(tl.int32)) - 1)
        tiles = tl.load(p_bank + 3).to(tl.int32)
        first = tl.load(p_bank + 2) + (i_image - tl.load(p_bank)) * tiles
        o_c = (i_program % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
        m_c = (o_c < width) & ((o_c >= width_c) | (i_image < feature_images))
        total = tl.zeros([BLOCK_C], tl.float32)
        for t in range(0, tiles, BLOCK_T):
            o_t = t + tl.arange(0, BLOCK_T)
            p_from = p_sum + (first + o_t)[:, None] * width + o_c[None, :]
            total += tl.sum(tl.load(p_from, mask=(o_t < tiles)[:, None] & m_c[None, :], other=0.0), 0)
        total = total / tl.load(p_bank + 1).to(tl.float32)
        tl.store(p_mean + i_image.to(tl.int64) * width + o_c, total, mask=o_c < width)
    else:
        entries = draws * anchors
        blocks = (entries + BLOCK_E - 1) // BLOCK_E
        i_block = i_program - programs
        o_e = i_block * BLOCK_E + tl.arange(0, BLOCK_E)
        key = tl.load(p_index + o_e, mask=o_e < entries, other=0)
        if i_block >= blocks:  # where each image starts: as if an entry stood before all of its index
            key = ((i_block - blocks) * BLOCK_E + tl.arange(0, BLOCK_E)).to(tl.int64)
            o_e = o_e * 0 - 1
        place = tl.zeros([BLOCK_E], tl.int32)
        for e in range(0, entries, BLOCK_E):
            o_x = e + tl.arange(0, BLOCK_E)
            other = tl.load(p_index + o_x, mask=o_x < entries, other=2**62)
            equal = (other[None, :] == key[:, None]) & (o_x[None, :] < o_e[:, None])
            before = (other[None, :] < key[:, None]) | equal
            place += tl.sum(before.to(tl.int32), 1)
        if i_block >= blocks:
            tl.store(p_start + key, place.to(tl.int64), mask=key <= banks)
        else:
            tl.store(p_order + place, o_e.to(tl.int64), mask=o_e < entries)


@triton.jit
def mean_image(p_index, x, n, m_n, anchors, own, near, image_near, image_far):
    """Mean vector that anchor n meets in draw x: its own, its neighbour's, or a negative's."""
    image = n.to(tl.int64)
    if x >= own:
        image += image_near
    if x >= own + near:
        image = image_far + tl.load(p_index + (x - own - near) * anchors + n, mask=m_n, other=0)
    return image


@triton.jit(
    do_not_specialize=[
        "shift_own", "shift_near", "shift_far", "shift_depth", "anchors", "draws", "own", "near", "image_near",
        "image_far", "image_depth", "P", "width_c", "programs",
    ]
)  # fmt: skip
def bias_kernel(
    p_feats, p_mean, p_index, p_shift, p_given,  # features [rows, width_c], means, shifts [4], given means [draws]
    p_bias, p_constant, p_similar,  # [draws, N, P], [draws], [draws]
    shift_own, shift_near, shift_far, shift_depth,
    anchors, draws, own, near, image_near, image_far, image_depth, P, width_c, programs,
    CENTER: tl.constexpr, SHIFTS: tl.constexpr, GIVEN: tl.constexpr, WIDTH_K: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Bias of every draw and point of the anchors, constant and mean similarity of every draw.

    Draws are numbered: self (if ``own``), neighbour (if ``near``), negatives, and last the depth term (without bias).
    Grid: (``programs`` of the bias, then one for each of the ``draws``).
    """
    i_program = tl.program_id(0)
    width = width_c + WIDTH_K
    if i_program < programs:
        tiles = (P + BLOCK_P - 1) // BLOCK_P
        i_n, x = (i_program // tiles) % anchors, i_program // tiles // anchors
        o_p = (i_program % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
        m_p = o_p < P
        image = mean_image(p_index, x, i_n, i_n >= 0, anchors, own, near, image_near, image_far)
        p_x = p_feats + i_n.to(tl.int64) * P * width_c
        row = tl.zeros([BLOCK_P], tl.float32)
        for c in range(0, width_c, BLOCK_C):
            o_c = c + tl.arange(0, BLOCK_C)
            b_x = tl.load(
                p_x + o_p[:, None] * width_c + o_c[None, :], mask=m_p[:, None] & (o_c < width_c)[None, :], other=0.0
            ).to(tl.float32)  # fmt: skip
            row += tl.sum(b_x * tl.load(p_mean + image * width + o_c, mask=o_c < width_c, other=0.0)[None, :], 1)
        tl.store(p_bias + (x.to(tl.int64) * anchors + i_n) * P + o_p, -row, mask=m_p)
    else:
        x = i_program - programs
        guide = x == draws  # the draw of the depth term
        feature = tl.zeros([BLOCK_C], tl.float32)
        similar = tl.zeros([BLOCK_C], tl.float32)
        for n in range(0, anchors, BLOCK_N):
            o_n = n + tl.arange(0, BLOCK_N)
            m_n = o_n < anchors
            image = mean_image(p_index, x, o_n, m_n & (x < draws), anchors, own, near, image_near, image_far)
            image = tl.where(guide, image_depth + o_n, image)
            for c in range(0, width, BLOCK_C):
                o_c = c + tl.arange(0, BLOCK_C)
                m_x = m_n[:, None] & (o_c < width)[None, :]
                b_x = tl.load(p_mean + o_n.to(tl.int64)[:, None] * width + o_c[None, :], mask=m_x, other=0.0)
                b_y = tl.load(p_mean + image[:, None] * width + o_c[None, :], mask=m_x, other=0.0)
                product = tl.sum(b_x * b_y, 0)
                feature += tl.where(o_c < width_c, product, 0.0)
                similar += tl.where(o_c >= width_c, product, 0.0)
        shift = tl.where(x < own, shift_own, tl.where(x < own + near, shift_near, shift_far))
        shift = tl.where(guide, shift_depth, shift)
        if SHIFTS:
            term = tl.where(guide, 3, tl.where(x < own, 0, tl.where(x < own + near, 1, 2)))
            shift = tl.load(p_shift + term)
        constant = -shift
        if CENTER:
            mean = tl.sum(feature, 0) / anchors
            if GIVEN:
                mean = tl.load(p_given + x, mask=x < draws, other=0.0).to(tl.float32)
            constant += tl.where(guide, 0.0, mean)
        tl.store(p_constant + x, constant)
        tl.store(p_similar + x, tl.sum(similar, 0) / anchors)
