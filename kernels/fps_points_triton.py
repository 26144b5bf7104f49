"""Device functions of the Triton sampler: points of any type and layout, or depth maps, as float32; the farthest one.

The contract is that of ``csrc/fps.h``: float32, each operation rounded on its own. Triton contracts ``a * b + c`` and
divides approximately unless told otherwise: launches pass ``enable_fp_fusion=False``, and rays use ``div_rn``.

Minima are kept as the bits of the floats, which order like them since no distance is negative. The distance to a NaN
is 0x7FFFFFFF on a GPU, above infinity, and counts as none. The minimum of a picked point, or of a place without a
point, is the lowest integer; when nothing else is left, the lowest index of those is taken, 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

INFINITY: tl.constexpr = tl.constexpr(0x7F800000)  # bits of a minimum before the first pick
TAKEN: tl.constexpr = tl.constexpr(-(2**31))  # bits of a minimum that no other is below
NO_INDEX: tl.constexpr = tl.constexpr(2**31 - 1)


@triton.jit
def ray(i, size, focal):
    """x / z of the ray through the centre of cell ``i`` of ``size``, for a focal length in cells."""
    return tl.div_rn((i.to(tl.float32) + 0.5) - size.to(tl.float32) * 0.5, focal)


@triton.jit
def length_of(p_lengths, i_b, N):
    """Length of a cloud, moved into [1, N]."""
    length = N
    if p_lengths is not None:
        length = tl.minimum(tl.maximum(tl.load(p_lengths + i_b), 1), N).to(tl.int32)
    return length


@triton.jit
def extent(p_lengths, p_starts, start, i_b, N):
    """Length and start of a cloud, moved into [1, N] and [0, length)."""
    length, first = length_of(p_lengths, i_b, N), start
    if p_starts is not None:
        first = tl.load(p_starts + i_b)
    return length, tl.minimum(tl.maximum(first, 0), length - 1).to(tl.int32)


@triton.jit
def unpack(
    p_data, s_b, s_n, s_d, p_focals, focal, p_points, i_b, length, N, W, row, o_n,
    DIMS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Writes points ``o_n`` of one cloud to its rows in scratch memory; zeros beyond its length."""
    m_n = o_n < length
    p_cloud = p_data + i_b * s_b
    if DEPTH:
        if p_focals is not None:
            focal = tl.load(p_focals + i_b)
        o_h, o_w = o_n // W, o_n % W
        z = tl.load(p_cloud + o_h.to(tl.int64) * s_n + o_w.to(tl.int64) * s_d, mask=m_n, other=0.0).to(tl.float32)
        tl.store(p_points + o_n, ray(o_w, W, focal) * z)
        tl.store(p_points + row + o_n, ray(o_h, N // W, focal) * z)
        tl.store(p_points + row * 2 + o_n, z)
    else:
        for d in tl.static_range(DIMS):
            value = tl.load(p_cloud + o_n.to(tl.int64) * s_n + tl.cast(s_d, tl.int64) * d, mask=m_n, other=0.0)
            tl.store(p_points + row * d + o_n, value.to(tl.float32))


@triton.jit
def squared_distance(p_points, row, o_n, pick, DIMS: tl.constexpr):
    """|point - point[pick]|^2 of the points ``o_n`` in scratch memory, coordinate by coordinate."""
    p_n, p_pick = p_points + o_n, p_points + pick
    offset = tl.load(p_n) - tl.load(p_pick)
    total = offset * offset
    for d in tl.static_range(1, DIMS):
        offset = tl.load(p_n + row * d) - tl.load(p_pick + row * d)
        total = total + offset * offset
    return total


@triton.jit
def shorten(nearest, distance, o_n, pick):
    """Bits of the minima after a pick, which is taken from now on; a distance that is NaN leaves them as they are."""
    return tl.where(o_n == pick, TAKEN, tl.minimum(nearest, distance.to(tl.int32, bitcast=True)))


@triton.jit
def farthest(nearest, o_n):
    """The lowest of the indices ``o_n`` that have the largest minimum."""
    return tl.min(tl.where(nearest == tl.max(nearest, 0), o_n, NO_INDEX), 0)
