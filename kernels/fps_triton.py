"""Triton kernels of farthest point sampling, for CUDA tensors where the compiled CUDA code is missing.

The contract is that of ``csrc/fps.h``: float32, each operation rounded on its own. Triton contracts ``a * b + c`` and
divides approximately unless told otherwise: every launch passes ``enable_fp_fusion=False``, and rays use ``div_rn``.

One program samples one cloud, all picks in one launch. It writes the cloud to scratch memory once, as float32 rows of
one coordinate each. Then, for every pick,

    held      N <= 8,192, D <= 3: points and minima stay in registers
    halves    N <= 16,384: minima stay in registers; points are read again, from L1 where they fit
    tiles     larger clouds: points and minima are read again. One multiprocessor moves 4 (D + 2) bytes a point and
              pick, whatever the size: programs that share a cloud need a barrier, and Triton has no safe form of it

Minima are kept as the bits of the floats, which order like them since no distance is negative. The distance to a NaN
is 0x7FFFFFFF on a GPU, above infinity, and counts as none. The minimum of a picked point, or of a place without a
point, is the lowest integer; when nothing else is left, the lowest index of those is taken, 0.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from depthg.kernels.launch_triton import on_device
from torch import Tensor

HELD_POINTS, HALVES_POINTS = 8192, 16384  # of which three coordinates and minima, or minima fit in the registers
TILE = 4096  # points of a larger cloud that are read at once
UNPACKED = 1024  # points of a smaller cloud that are written to scratch memory at once
MAX_WARPS = 32

INFINITY: tl.constexpr = tl.constexpr(0x7F800000)  # bits of a minimum before the first pick
TAKEN: tl.constexpr = tl.constexpr(-(2**31))  # bits of a minimum that no other is below
NO_INDEX: tl.constexpr = tl.constexpr(2**31 - 1)


@triton.jit
def ray(i, size, focal):
    """x / z of the ray through the centre of cell ``i`` of ``size``, for a focal length in cells."""
    return tl.div_rn((i.to(tl.float32) + 0.5) - size.to(tl.float32) * 0.5, focal)


@triton.jit
def extent(p_lengths, p_starts, start, i_b, N):
    """Length and start of a cloud, moved into [1, N] and [0, length)."""
    length = N
    if p_lengths is not None:
        length = tl.minimum(tl.maximum(tl.load(p_lengths + i_b), 1), N).to(tl.int32)
    first = start
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
            value = tl.load(p_cloud + o_n.to(tl.int64) * s_n + d * s_d, mask=m_n, other=0.0)
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


@triton.jit
def begin(
    p_data, s_b, s_n, s_d, p_focals, focal, p_lengths, p_starts, start, p_points, i_b, N, W,
    DIMS: tl.constexpr, DEPTH: tl.constexpr, TILE: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """Writes a cloud of at most ROW points to scratch memory; its length and first pick."""
    length, pick = extent(p_lengths, p_starts, start, i_b, N)
    for tile in range(0, ROW, TILE):
        o_n = tile + tl.arange(0, TILE)
        unpack(p_data, s_b, s_n, s_d, p_focals, focal, p_points, i_b, length, N, W, ROW, o_n, DIMS, DEPTH)
    tl.debug_barrier()  # threads read what others wrote
    return length, pick


PER_CALL = (  # values that must not make a new kernel
    "p_data", "s_b", "s_n", "s_d", "p_focals", "focal", "p_lengths", "p_starts", "start", "N", "W", "k"
)  # fmt: skip


@triton.jit(do_not_specialize=PER_CALL)
def held_kernel(
    p_data, s_b, s_n, s_d, p_focals, focal, p_lengths, p_starts, start, p_points, p_picks, N, W, k,
    DIMS: tl.constexpr, DEPTH: tl.constexpr, TILE: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """Samples one cloud of at most ROW points with at most 3 coordinates, all held in registers. Grid: (B,)."""
    i_b = tl.program_id(0).to(tl.int64)
    p_points += i_b * DIMS * ROW
    p_picks += i_b * k
    length, pick = begin(
        p_data, s_b, s_n, s_d, p_focals, focal, p_lengths, p_starts, start, p_points, i_b, N, W, DIMS, DEPTH, TILE, ROW
    )  # fmt: skip
    o_n = tl.arange(0, ROW)
    x = tl.load(p_points + o_n)
    y = tl.load(p_points + ROW + o_n) if DIMS > 1 else x
    z = tl.load(p_points + 2 * ROW + o_n) if DIMS > 2 else x
    nearest = tl.where(o_n < length, INFINITY, TAKEN)
    tl.store(p_picks, pick.to(tl.int64))
    for j in range(1, k):
        offset = x - tl.load(p_points + pick)
        distance = offset * offset
        if DIMS > 1:
            offset = y - tl.load(p_points + ROW + pick)
            distance = distance + offset * offset
        if DIMS > 2:
            offset = z - tl.load(p_points + 2 * ROW + pick)
            distance = distance + offset * offset
        nearest = shorten(nearest, distance, o_n, pick)
        pick = farthest(nearest, o_n)
        tl.store(p_picks + j, pick.to(tl.int64))


@triton.jit(do_not_specialize=PER_CALL)
def halves_kernel(
    p_data, s_b, s_n, s_d, p_focals, focal, p_lengths, p_starts, start, p_points, p_picks, N, W, k,
    DIMS: tl.constexpr, DEPTH: tl.constexpr, TILE: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """Samples one cloud of at most ROW points, of which only the minima are held in registers. Grid: (B,)."""
    HALF: tl.constexpr = ROW // 2
    i_b = tl.program_id(0).to(tl.int64)
    p_points += i_b * DIMS * ROW
    p_picks += i_b * k
    length, pick = begin(
        p_data, s_b, s_n, s_d, p_focals, focal, p_lengths, p_starts, start, p_points, i_b, N, W, DIMS, DEPTH, TILE, ROW
    )  # fmt: skip
    o_n = tl.arange(0, HALF)
    low, high = tl.where(o_n < length, INFINITY, TAKEN), tl.where(o_n < length - HALF, INFINITY, TAKEN)
    tl.store(p_picks, pick.to(tl.int64))
    for j in range(1, k):
        low = shorten(low, squared_distance(p_points, ROW, o_n, pick, DIMS), o_n, pick)
        tl.debug_barrier()  # keeps the loads of both halves apart, which would need more registers than there are
        high = shorten(high, squared_distance(p_points + HALF, ROW, o_n, pick - HALF, DIMS), o_n, pick - HALF)
        pick = farthest(tl.maximum(low, high), o_n + tl.where(high > low, HALF, 0))
        tl.store(p_picks + j, pick.to(tl.int64))


@triton.jit(do_not_specialize=PER_CALL)
def tiles_kernel(
    p_data, s_b, s_n, s_d, p_focals, focal, p_lengths, p_starts, start, p_points, p_picks, N, W, k, row,
    DIMS: tl.constexpr, DEPTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Samples one cloud of any size. Grid: (B,). ``row``: N rounded up to whole tiles; minima lie in row DIMS."""
    i_b = tl.program_id(0).to(tl.int64)
    row = row.to(tl.int64)
    p_points += i_b * (DIMS + 1) * row
    p_picks += i_b * k
    p_nearest = p_points + DIMS * row
    length, pick = extent(p_lengths, p_starts, start, i_b, N)
    for tile in range(0, length, BLOCK):
        o_n = tile + tl.arange(0, BLOCK)
        unpack(p_data, s_b, s_n, s_d, p_focals, focal, p_points, i_b, length, N, W, row, o_n, DIMS, DEPTH)
        nearest = tl.where(o_n < length, INFINITY, TAKEN)
        tl.store(p_nearest + o_n, nearest.to(tl.float32, bitcast=True))
    tl.store(p_picks, pick.to(tl.int64))
    for j in range(1, k):
        tl.debug_barrier()  # threads read what others wrote
        best, index = tl.full([BLOCK], TAKEN, tl.int32), tl.arange(0, BLOCK)
        for tile in range(0, length, BLOCK):
            o_n = tile + tl.arange(0, BLOCK)
            nearest = tl.load(p_nearest + o_n).to(tl.int32, bitcast=True)
            nearest = shorten(nearest, squared_distance(p_points, row, o_n, pick, DIMS), o_n, pick)
            tl.store(p_nearest + o_n, nearest.to(tl.float32, bitcast=True))
            index = tl.where(nearest > best, o_n, index)
            best = tl.maximum(best, nearest)
        pick = farthest(best, index)
        tl.store(p_picks + j, pick.to(tl.int64))


def sample(
    x: Tensor,  # [B, N, D], or [B, H, W] when width > 0
    k: int,
    *,
    points: int,
    width: int,
    focals: Tensor | None,  # [B] float32
    focal: float,
    lengths: Tensor | None,  # [B] int64
    starts: Tensor | None,  # [B] int64
    start: int,
) -> Tensor:  # [B, k] int64
    """Indices of ``k`` points of every cloud; checks nothing, and moves lengths and starts into range."""
    clouds, dims = x.shape[0], 3 if width else x.shape[2]
    picks = torch.empty((clouds, k), dtype=torch.int64, device=x.device)
    if clouds == 0:
        return picks
    focals, lengths, starts = (None if t is None else t.contiguous() for t in (focals, lengths, starts))
    arguments = x, *x.stride(), focals, focal, lengths, starts, start
    constants = {"DIMS": dims, "DEPTH": width > 0, "enable_fp_fusion": False}
    with on_device(x):
        if points > HALVES_POINTS:
            row = triton.cdiv(points, TILE) * TILE
            scratch = torch.empty((clouds, dims + 1, row), dtype=torch.float32, device=x.device)
            tiles_kernel[(clouds,)](
                *arguments, scratch, picks, points, max(width, 1), k, row, BLOCK=TILE, **constants, num_warps=MAX_WARPS
            )
            return picks
        row = max(triton.next_power_of_2(points), 256)
        scratch = torch.empty((clouds, dims, row), dtype=torch.float32, device=x.device)
        kernel = held_kernel if dims <= 3 and points <= HELD_POINTS else halves_kernel
        kernel[(clouds,)](
            *arguments, scratch, picks, points, max(width, 1), k,
            TILE=min(row, UNPACKED), ROW=row, **constants, num_warps=min(row // 256, MAX_WARPS),
        )  # fmt: skip
    return picks
