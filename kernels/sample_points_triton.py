"""Triton kernels that read maps at weighted cells, and write the gradient back without atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from depthg.kernels.launch_triton import on_device

BLOCK_C = 64  # a channel per thread: nothing is read in vectors, so one kernel serves all sizes and strides


@triton.jit(do_not_specialize=["p_maps", "p_cells", "p_weights", "s_n", "s_c", "s_h", "s_w", "W", "P", "C"])
def read_kernel(p_maps, p_cells, p_weights, p_out, s_n, s_c, s_h, s_w, W, P, C, T: tl.constexpr, BLOCK_C: tl.constexpr):
    """out[n, p, c] = sum_t weights[n, p, t] maps[n, c, cells[n, p, t]]. Grid: (N P, tiles of C)."""
    i_np = tl.program_id(0).to(tl.int64)
    i_n = i_np // P
    o_c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    total = tl.zeros([BLOCK_C], tl.float32)
    for t in range(T):
        cell = tl.load(p_cells + i_np * T + t)
        b_maps = tl.load(
            p_maps + i_n * s_n + o_c * s_c + (cell // W) * s_h + (cell % W) * s_w, mask=m_c, other=0.0
        )  # fmt: skip
        total += tl.load(p_weights + i_np * T + t) * b_maps.to(tl.float32)
    tl.store(p_out + i_np * C + o_c, total, mask=m_c)


@triton.jit(do_not_specialize=["p_d_out", "p_weights", "cells", "C"])
def write_kernel(p_d_out, p_key, p_order, p_end, p_weights, p_d_maps, cells, C, T: tl.constexpr, BLOCK_C: tl.constexpr):
    """d_maps[n, c, cell] = sum of weights * d_out over the entries of that cell, in sorted order.

    Grid: (N P T, tiles of C); only the program at a cell's first entry writes.
    """
    i_s = tl.program_id(0).to(tl.int64)
    o_c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    key = tl.load(p_key + i_s)
    before = tl.load(p_key + i_s - 1, mask=i_s > 0, other=-1)
    if key != before:
        total = tl.zeros([BLOCK_C], tl.float32)
        for s in range(i_s, tl.load(p_end + i_s)):
            entry = tl.load(p_order + s)
            b_d = tl.load(p_d_out + (entry // T) * C + o_c, mask=m_c, other=0.0)
            total += tl.load(p_weights + entry) * b_d.to(tl.float32)
        tl.store(p_d_maps + ((key // cells) * C + o_c) * cells + key % cells, total, mask=m_c)


def read(maps: Tensor, cells: Tensor, weights: Tensor) -> Tensor:
    (n, c, _, w), (p, t) = maps.shape, cells.shape[1:]
    out = torch.empty((n, p, c), dtype=maps.dtype, device=maps.device)
    if out.numel():
        with on_device(maps):
            read_kernel[(n * p, triton.cdiv(c, BLOCK_C))](
                maps, cells.contiguous(), weights.contiguous(), out, *maps.stride(), w, p, c, T=t, BLOCK_C=BLOCK_C
            )
    return out


def write(d_out: Tensor, cells: Tensor, weights: Tensor, height: int, width: int) -> Tensor:
    (n, p, c), t = d_out.shape, cells.shape[2]
    d_maps = torch.zeros((n, c, height, width), dtype=d_out.dtype, device=d_out.device)
    if d_out.numel() == 0:
        return d_maps
    first = torch.arange(n, device=cells.device)[:, None, None] * (height * width)
    key, order = (cells + first).flatten().sort(stable=True)
    end = torch.searchsorted(key, key, right=True)
    with on_device(d_out):
        write_kernel[(n * p * t, triton.cdiv(c, BLOCK_C))](
            d_out.contiguous(), key, order, end, weights.contiguous(), d_maps, height * width, c, T=t, BLOCK_C=BLOCK_C
        )
    return d_maps
