"""The compiled pass over image pairs (``csrc/pairs.h``), for float32: the same sums as ``pair_pass``.

Vectors are packed once per call in panels of points; F and S stay in registers, a block of W stays in the cache.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from depthg.kernels._extension import native
from depthg.kernels.pair_pass import FeatureTarget, Pairs, Target, Vectors

AVAILABLE = native is not None and hasattr(native, "pair_pass")


KEPT_BYTES = 1 << 26  # of packed vectors that a thread keeps from call to call: fresh pages cost as much as packing


class _Kept(threading.local):
    """Buffers of the packed vectors of one call, kept for the next call of this thread unless they are large."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []
        self.used = 0

    def take(self, *shape: int) -> Tensor:
        size = math.prod(shape)
        if self.used == len(self.buffers):
            self.buffers.append(torch.empty(0))
        if self.buffers[self.used].numel() < size:
            self.buffers[self.used] = torch.empty(0)  # free the old one first
            self.buffers[self.used] = torch.empty(size)
        self.used += 1
        return self.buffers[self.used - 1][:size].view(shape)

    def release(self) -> None:
        """Ends a call: its buffers may be used again."""
        self.used = 0
        if sum(x.numel() for x in self.buffers) * 4 > KEPT_BYTES:
            self.buffers.clear()


kept = _Kept()


def padded(n: int, to: int) -> int:
    return (n + to - 1) // to * to


def pack(v: Vectors, rows: bool = False, mean: bool = False) -> Vectors:
    """Fills ``panels`` with the unit vectors, once; ``rows`` and their mean where asked for."""
    if v.panels is None:
        n, p, c = v.x.shape
        v.panels = kept.take(n, padded(p, native.panel_points), c)
        v.rows = kept.take(n, p, padded(c, 16)) if rows else None
        v.packed_mean = torch.empty(n, c) if mean else None
        addresses = [0 if x is None else x.data_ptr() for x in (v.panels, v.rows, v.packed_mean)]
        native.pack_panels(v.x.data_ptr(), n, p, c, v.normalized, *addresses, torch.get_num_threads())
    return v


def pair_pass(
    targets: Sequence[Target],
    codes_a: Vectors,
    codes_b: Vectors,
    pairs: Pairs,
    *,
    symmetric: bool = False,
    clamp: bool = True,
    max_similarity: float | None = None,
) -> None:
    """As ``pair_pass.pair_pass``, for at most one feature and one depth target without exponential."""
    a, b = pack(codes_a, rows=True, mean=True), pack(codes_b, rows=True, mean=True)
    (n, p, k), (m, q) = a.x.shape, b.x.shape[:2]
    s = native.PairPass()
    s.pairs, s.images_a, s.images_b, s.p, s.q, s.k = len(pairs.i), n, m, p, q, k
    s.clamp, s.limited, s.limit = clamp, max_similarity is not None, max_similarity or 0.0
    s.symmetric, s.same_bank = symmetric, codes_a is codes_b
    values = torch.zeros(len(pairs.i), 2, dtype=torch.float64)
    keep = [values]  # what the addresses point at

    def address(x: Tensor | None) -> int:
        if x is None:
            return 0
        keep.append(x := x.contiguous())
        return x.data_ptr()

    s.i, s.j, s.values = address(pairs.i), address(pairs.j), values.data_ptr()
    s.codes_a, s.codes_b, s.rows_a, s.rows_b = (address(x) for x in (a.panels, b.panels, a.rows, b.rows))
    columns = []
    for target in targets:
        d_a, d_b = address(target.d_a), 0 if symmetric else address(target.d_b)
        x, y = pack(target.a, mean=True), pack(target.b, mean=True)
        if isinstance(target, FeatureTarget):
            columns.append(0)
            s.c, s.feats_a, s.feats_b = x.x.shape[2], address(x.panels), address(y.panels)
            s.alpha, s.d_a, s.d_b = target.alpha, d_a, d_b
            s.mean_a, s.mean_b, s.weights = address(x.mean), address(y.mean), address(pairs.weights)
        else:
            columns.append(1)
            s.d, s.depth_a, s.depth_b = x.x.shape[2], address(x.panels), address(y.panels)
            s.shift, s.alpha_depth, s.d_a_depth, s.d_b_depth = target.shift, target.alpha, d_a, d_b
    native.pair_pass(s, torch.get_num_threads())
    for column, target in zip(columns, targets, strict=True):
        target.total += target.alpha * values[:, column].sum().item()


def code_gradient(codes: Tensor, d_terms: Tensor, upstream: Tensor) -> Tensor:
    """The compiled backward of ``code_gradient`` for float32 on the CPU."""
    codes, d_terms, upstream = codes.contiguous(), d_terms.contiguous(), upstream.float().contiguous()
    out = torch.empty_like(codes)
    if codes.numel():
        native.code_gradient(
            codes.data_ptr(), d_terms.data_ptr(), upstream.data_ptr(), len(d_terms), codes[..., 0].numel(),
            codes.shape[-1], out.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
    return out
