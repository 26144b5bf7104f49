"""Packed vectors for Triton kernels: rows of a constant number of channels, padded, for wide loads without masks.

Powers of two scale rows to lengths of 1/2 to 1, which changes no digit as a division would in half precision. What
remains of the inverse lengths, ``rest``, scales products: unit_i . unit_j = rest_i rest_j packed_i . packed_j.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from depthg.kernels.launch_triton import cdiv
from depthg.kernels.prepare_triton import inverse_length


@triton.jit(do_not_specialize=["rows", "C"])
def pack_kernel(
    p_x, p_packed, p_rest, rows, C,
    NORMALIZE: tl.constexpr, CP: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """rest[i] packed[i] = x[i] / |x[i]|, or x[i]; 0 for a zero vector and in padding. Grid: (tiles of padded rows,)."""
    i_p = tl.program_id(0).to(tl.int64) * BLOCK_P
    o_p = tl.arange(0, BLOCK_P)
    m_p = i_p + o_p < rows
    p_x += i_p * C
    p_packed += i_p * CP
    power = tl.full([BLOCK_P], 1.0, tl.float32)
    rest = power
    if NORMALIZE:
        square = tl.zeros([BLOCK_P], tl.float32)
        for c in range(0, CP, BLOCK_C):
            o_c = c + tl.arange(0, BLOCK_C)
            b_x = tl.load(p_x + o_p[:, None] * C + o_c[None, :], mask=m_p[:, None] & (o_c < C)[None, :], other=0.0)
            square += tl.sum(b_x.to(tl.float32) * b_x.to(tl.float32), 1)
        inverse = inverse_length(square)
        power = (inverse.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)  # without its digits
        rest = tl.where(power > 0, inverse / tl.where(power > 0, power, 1.0), 0.0)
    tl.store(p_rest + i_p + o_p, rest)
    for c in range(0, CP, BLOCK_C):
        o_c = c + tl.arange(0, BLOCK_C)
        b_x = tl.load(p_x + o_p[:, None] * C + o_c[None, :], mask=m_p[:, None] & (o_c < C)[None, :], other=0.0)
        tl.store(p_packed + o_p[:, None] * CP + o_c[None, :], b_x.to(tl.float32) * power[:, None])


@triton.jit
def load_block(p_packed, o, c, CP: tl.constexpr, SIZE: tl.constexpr):
    """Channels c to c + SIZE of the rows o of a tile; ``p_packed`` points at the tile."""
    return tl.load(p_packed + o[:, None] * CP + (c + tl.arange(0, SIZE))[None, :])


@triton.jit
def products(
    p_a, p_b, o_p, o_q,
    CP: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """a b^T of two tiles, a block of channels at a time, in float32."""
    tile = tl.zeros([BLOCK_P, BLOCK_Q], tl.float32)
    for c in range(0, CP, BLOCK_C):
        b_a, b_b = load_block(p_a, o_p, c, CP, BLOCK_C), load_block(p_b, o_q, c, CP, BLOCK_C)
        tile = tl.dot(b_a, tl.trans(b_b), tile, input_precision=PRECISION)
    return tile


def pack(x: Tensor, channels: int, tile: int, *, normalize: bool = True, spare: int = 0) -> tuple[Tensor, Tensor]:
    """Rows [rows, C] packed to ``channels``, a multiple of 16, and what remains of their inverse lengths.

    There are whole tiles of at least ``rows + spare`` rows, those beyond ``rows`` with zeros.
    """
    x = x.contiguous()
    rows, c = x.shape
    tiles = cdiv(rows + spare, tile)
    packed = torch.empty((tiles * tile, channels), dtype=x.dtype, device=x.device)
    rest = torch.empty(tiles * tile, dtype=torch.float32, device=x.device)
    sizes = {"CP": channels, "BLOCK_P": tile, "BLOCK_C": math.gcd(channels, 64)}
    pack_kernel[(tiles,)](x, packed, rest, rows, c, NORMALIZE=normalize, **sizes)
    return packed, rest
