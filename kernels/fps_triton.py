"""Triton kernels of farthest point sampling, for CUDA tensors where the compiled CUDA code is missing.

A cloud is written to scratch memory once, as float32 rows of one coordinate each. Up to 65,536 points one program
samples one cloud, all picks in one launch:

    held      N <= 8,192, D <= 3: points and minima stay in registers
    halves    N <= 16,384: minima stay in registers; points are read again, from L1 where they fit
    tiles     N <= 65,536: points and minima are read again, 4 (D + 2) bytes a point and pick by one multiprocessor

Programs that share a larger cloud need a barrier, and Triton has no safe form of it:

    sweeps    a launch for every pick; its programs first read what the launch before found in every part

Arithmetic and what a minimum is: ``fps_points_triton.py``.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from depthg.kernels.fps_points_triton import (
    INFINITY,
    NO_INDEX,
    TAKEN,
    extent,
    farthest,
    length_of,
    shorten,
    squared_distance,
    unpack,
)
from depthg.kernels.launch_triton import on_device

HELD_POINTS, HALVES_POINTS = 8192, 16384  # of which three coordinates and minima, or minima fit in the registers
TILES_POINTS = 65536  # one multiprocessor takes about as long for these as a launch does
TILE = 4096  # points that "tiles" reads at once
PART = 1024  # points that the others read or write at once
MOST_PARTS = 1024  # programs of a launch that share clouds
MAX_WARPS = 32


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


@triton.jit
def spread(
    p_data, s_b, s_n, s_d, p_focals, focal, p_points, i_b, length, N, W, row, first, step,
    DIMS: tl.constexpr, DEPTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes every ``step`` / BLOCK-th tile of a cloud from ``first`` on to scratch memory, minima to row DIMS."""
    for tile in range(first, length, step):
        o_n = tile + tl.arange(0, BLOCK)
        unpack(p_data, s_b, s_n, s_d, p_focals, focal, p_points, i_b, length, N, W, row, o_n, DIMS, DEPTH)
        nearest = tl.where(o_n < length, INFINITY, TAKEN)
        tl.store(p_points + DIMS * row + o_n, nearest.to(tl.float32, bitcast=True))


@triton.jit
def pass_over(p_points, row, first, length, step, pick, DIMS: tl.constexpr, BLOCK: tl.constexpr):
    """Updates the minima of these tiles after a pick; the largest of each place in a tile, and their indices."""
    best, index = tl.full([BLOCK], TAKEN, tl.int32), first + tl.arange(0, BLOCK)
    for tile in range(first, length, step):
        o_n = tile + tl.arange(0, BLOCK)
        p_nearest = p_points + DIMS * row + o_n
        nearest = tl.load(p_nearest).to(tl.int32, bitcast=True)
        nearest = shorten(nearest, squared_distance(p_points, row, o_n, pick, DIMS), o_n, pick)
        tl.store(p_nearest, nearest.to(tl.float32, bitcast=True))
        index = tl.where(nearest > best, o_n, index)
        best = tl.maximum(best, nearest)
    return best, index


@triton.jit(do_not_specialize=PER_CALL)
def tiles_kernel(
    p_data, s_b, s_n, s_d, p_focals, focal, p_lengths, p_starts, start, p_points, p_picks, N, W, k, row,
    DIMS: tl.constexpr, DEPTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Samples one cloud of any size. Grid: (B,). ``row``: N rounded up to whole tiles."""
    i_b = tl.program_id(0).to(tl.int64)
    row = row.to(tl.int64)
    p_points += i_b * (DIMS + 1) * row
    p_picks += i_b * k
    length, pick = extent(p_lengths, p_starts, start, i_b, N)
    spread(
        p_data, s_b, s_n, s_d, p_focals, focal, p_points, i_b, length, N, W, row, 0, BLOCK, DIMS, DEPTH, BLOCK
    )  # fmt: skip
    tl.store(p_picks, pick.to(tl.int64))
    for j in range(1, k):
        tl.debug_barrier()  # threads read what others wrote
        best, index = pass_over(p_points, row, 0, length, BLOCK, pick, DIMS, BLOCK)
        pick = farthest(best, index)
        tl.store(p_picks + j, pick.to(tl.int64))


@triton.jit(do_not_specialize=(*PER_CALL, "parts"))
def spread_kernel(
    p_data, s_b, s_n, s_d, p_focals, focal, p_lengths, p_starts, start, p_points, p_keys, N, W, row, parts,
    DIMS: tl.constexpr, DEPTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes one part of a cloud to scratch memory. Grid: (B parts,)."""
    i_b, i_g = (tl.program_id(0) // parts).to(tl.int64), tl.program_id(0) % parts
    row = row.to(tl.int64)
    p_points += i_b * (DIMS + 1) * row
    length, pick = extent(p_lengths, p_starts, start, i_b, N)
    spread(
        p_data, s_b, s_n, s_d, p_focals, focal, p_points, i_b, length, N, W, row, i_g * BLOCK, parts * BLOCK,
        DIMS, DEPTH, BLOCK,
    )  # fmt: skip
    tl.store(p_keys + 2 * (i_b * parts + i_g), INFINITY)
    tl.store(p_keys + 2 * (i_b * parts + i_g) + 1, pick)


@triton.jit(do_not_specialize=(*PER_CALL, "parts", "s"))
def sweep_kernel(
    p_lengths, p_points, p_keys, p_picks, N, k, row, parts, s,
    DIMS: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Pick ``s``, and what it changes in one part of a cloud. Grid: (B parts,).

    Keys [2, B, parts, 2]: the largest minimum of a part and its index, for even and for odd picks.
    """
    i_b, i_g = (tl.program_id(0) // parts).to(tl.int64), tl.program_id(0) % parts
    half = tl.num_programs(0).to(tl.int64) * 2
    o_g = tl.arange(0, KEYS)
    p_before = p_keys + (s % 2) * half + i_b * parts * 2 + o_g * 2
    value = tl.load(p_before, mask=o_g < parts, other=TAKEN)
    pick = farthest(value, tl.load(p_before + 1, mask=o_g < parts, other=NO_INDEX))
    if i_g == 0:
        tl.store(p_picks + i_b * k + s, pick.to(tl.int64))
    if s + 1 < k:
        wide_row = row.to(tl.int64)
        p_cloud = p_points + i_b * (DIMS + 1) * wide_row
        length = length_of(p_lengths, i_b, N)
        best, index = pass_over(p_cloud, wide_row, i_g * BLOCK, length, parts * BLOCK, pick, DIMS, BLOCK)
        p_after = p_keys + ((s + 1) % 2) * half + (i_b * parts + i_g) * 2
        tl.store(p_after, tl.max(best, 0))
        tl.store(p_after + 1, farthest(best, index))


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
    cloud = x, *x.stride(), focals, focal, lengths, starts, start
    constants = {"DIMS": dims, "enable_fp_fusion": False}
    if points <= HALVES_POINTS:
        row = max(triton.next_power_of_2(points), 256)
    else:
        row = triton.cdiv(points, TILE) * TILE
    scratch = torch.empty((clouds, dims + (points > HALVES_POINTS), row), dtype=torch.float32, device=x.device)
    with on_device(x):
        if points <= HALVES_POINTS:
            kernel = held_kernel if dims <= 3 and points <= HELD_POINTS else halves_kernel
            kernel[(clouds,)](
                *cloud, scratch, picks, points, max(width, 1), k, DEPTH=width > 0, TILE=min(row, PART), ROW=row,
                **constants, num_warps=min(row // 256, MAX_WARPS),
            )  # fmt: skip
        elif points <= TILES_POINTS:
            tiles_kernel[(clouds,)](
                *cloud, scratch, picks, points, max(width, 1), k, row, DEPTH=width > 0, BLOCK=TILE,
                **constants, num_warps=MAX_WARPS,
            )  # fmt: skip
        else:
            _sweep(cloud, scratch, picks, points, width, constants)
    return picks


def _sweep(
    cloud: tuple[Any, ...], scratch: Tensor, picks: Tensor, points: int, width: int, constants: dict[str, Any]
) -> None:
    """A launch that writes scratch memory, and one for every pick."""
    (clouds, k), row = picks.shape, scratch.shape[2]
    parts = min(triton.cdiv(points, PART), max(MOST_PARTS // clouds, 1))
    keys = torch.empty((2, clouds, parts, 2), dtype=torch.int32, device=picks.device)
    constants = {**constants, "BLOCK": PART, "num_warps": PART // 128}
    spread_kernel[(clouds * parts,)](
        *cloud, scratch, keys, points, max(width, 1), row, parts, DEPTH=width > 0, **constants
    )
    for s in range(k):
        sweep_kernel[(clouds * parts,)](
            cloud[6], scratch, keys, picks, points, k, row, parts, s, KEYS=MOST_PARTS, **constants
        )
