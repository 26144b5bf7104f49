"""CPU path of the correlation losses: image pairs in cache-sized chunks of batched matrix products.

For a pair of images (i, j) every term has the form, with unit codes a = codes[i], b = codes[j] and S = a b^T,

    value = alpha * sum_pq W_pq * V(S_pq),      V = S, clamped to at least 0 and at most ``max_similarity``
    d_a = alpha * (W * V') b,  d_b = alpha * (W * V')^T a

where V' is 0 or 1. Without the upper clamp V = S V', so ``value = sum(d_a * a)``: the loss costs no pass of its own.
Only W (a ``Target``) differs between the terms. A chunk holds one block of W and one of S, reused from chunk to chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 1 << 18  # elements of a block of W or S: 1 MiB of float32, so that W, S and their operands stay in L2


class Pairs(NamedTuple):
    """Image pairs, ordered so that consecutive chunks read consecutive anchors where possible.

    A feature target is ``W_pq = scale * F_pq + row_bias[p] + column_bias[q]``.
    """

    i: Tensor  # [E] int64
    j: Tensor  # [E] int64
    scale: Tensor | None = None  # [E]; None is 1
    row_bias: Tensor | None = None  # [E, P]; None is 0
    column_bias: Tensor | None = None  # [E, Q]; None is 0


def inverse_length(x: Tensor) -> Tensor:  # [..., C] -> [...]
    """1 / |x|, 0 for a zero vector."""
    norm = torch.linalg.vector_norm(x, dim=-1)
    return norm.reciprocal().masked_fill_(norm == 0, 0)


@dataclass
class Vectors:
    """Vectors of a set of images: as given, their inverse lengths, the mean of the unit vectors."""

    x: Tensor  # [N, P, C] contiguous
    inverse: Tensor  # [N, P]; ones when the vectors are taken as they are
    _mean: Tensor | None = None
    _unit: Tensor | None = None
    panels: Tensor | None = None  # packed for the compiled pass, see csrc/pairs.h
    rows: Tensor | None = None

    @property
    def mean(self) -> Tensor:  # [N, C]
        if self._mean is None:
            self._mean = torch.bmm(self.inverse[:, None] / self.x.shape[1], self.x)[:, 0]
        return self._mean

    @property
    def unit(self) -> Tensor:  # [N, P, C]
        if self._unit is None:
            self._unit = self.x * self.inverse[:, :, None]
        return self._unit


def make_vectors(x: Tensor, dtype: torch.dtype, normalized: bool = True) -> Vectors:
    x = x.to(dtype).contiguous()
    return Vectors(x, inverse_length(x) if normalized else x.new_ones(x.shape[:2]))


class Scratch:
    """Named flat buffers that grow on demand and are handed out as views."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.buffers: dict[str, Tensor] = {}

    def view(self, name: str, *shape: int) -> Tensor:
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = torch.empty(size, dtype=self.dtype)
        return self.buffers[name][:size].view(shape)

    def rows(self, name: str, x: Tensor, index: list[int]) -> Tensor:
        """``x[index]``: a view where the index is a range, else gathered into the buffer ``name``."""
        if is_range(index):
            return x[index[0] : index[0] + len(index)]
        out = self.view(name, len(index), *x.shape[1:])
        return torch.index_select(x, 0, torch.tensor(index), out=out)


def is_range(index: list[int]) -> bool:
    return index == list(range(index[0], index[0] + len(index)))


def add_rows(total: Tensor, index: list[int], values: Tensor) -> None:
    """``total[index] += values`` in index order, repeats included: deterministic."""
    if is_range(index):
        total[index[0] : index[0] + len(index)].add_(values)
    else:
        total.index_add_(0, torch.tensor(index), values)


@dataclass
class Target:
    """What S is compared with: ``fill`` writes W; the sums and gradients of one term are collected here."""

    alpha: float  # -1 / count
    d_a: Tensor | None = None  # [N, P, K], added to; None when not wanted
    d_b: Tensor | None = None  # [M, Q, K]; may be the same tensor as d_a
    total: float = field(default=0.0, init=False)

    def open(self, scratch: Scratch, pairs: Pairs, i: list[int], j: list[int], where: slice) -> None:
        """Prepares a chunk of pairs."""
        raise NotImplementedError

    def fill(self, out: Tensor, rows: slice) -> None:  # [B, rows, Q]
        """Writes W for some rows of the open chunk."""
        raise NotImplementedError


@dataclass
class FeatureTarget(Target):
    """W from feature vectors and the biases of the pairs."""

    a: Vectors = None
    b: Vectors = None

    def open(self, scratch, pairs, i, j, where):
        self.chunk_a = scratch.rows("feats_a", self.a.unit, i)
        self.chunk_b = scratch.rows("feats_b", self.b.unit, j)
        self.scale, self.row, self.column = (None if w is None else w[where] for w in pairs[2:])

    def fill(self, out, rows):
        a = self.chunk_a[:, rows]
        out.zero_() if self.row is None else out.copy_(self.row[:, rows, None].expand_as(out))
        if self.column is not None:
            out.add_(self.column[:, None, : out.shape[2]])
        out.baddbmm_(a if self.scale is None else a * self.scale[:, None, None], self.chunk_b.transpose(1, 2))


def chunks(count: int, p: int, q: int) -> tuple[int, int]:
    """Pairs and rows in a chunk. At least two pairs when rows must be split, one for each of two threads."""
    if p * q * 2 <= CHUNK:
        return min(count, CHUNK // (p * q)), p
    batch = min(count, max(2, torch.get_num_threads()))
    return batch, min(p, max(16, CHUNK // (batch * q)))


def row_blocks(p: int, rows: int) -> Iterator[slice]:
    for start in range(0, p, rows):
        yield slice(start, min(start + rows, p))


def pair_pass(
    targets: list[Target],
    codes_a: Tensor,  # [N, P, K] unit vectors
    codes_b: Tensor,  # [M, Q, K] unit vectors
    pairs: Pairs,
    scratch: Scratch,
    *,
    symmetric: bool = False,
    clamp: bool = True,
    max_similarity: float | None = None,
) -> None:
    """Adds every target's value and code gradients over all pairs; the targets share S.

    ``symmetric`` says that both sides are the same codes, i = j, and that every W is symmetric: then the two gradients
    are equal and one product, doubled, gives their sum in ``d_a``.
    """
    p, q, k = codes_a.shape[1], codes_b.shape[1], codes_a.shape[2]
    images_i, images_j = pairs.i.tolist(), pairs.j.tolist()
    batch, rows = chunks(len(images_i), p, q)
    for start in range(0, len(images_i), batch):
        i, j = images_i[start : start + batch], images_j[start : start + batch]
        a, b = scratch.rows("codes_a", codes_a, i), scratch.rows("codes_b", codes_b, j)
        for n, target in enumerate(targets):
            target.open(scratch, pairs, i, j, slice(start, start + batch))
            if target.d_b is not None and not symmetric:
                target.chunk_d_b = scratch.view(f"d_b{n}", len(i), q, k).zero_()
        for block in row_blocks(p, rows):
            _block(targets, scratch, i, a[:, block], b, block, symmetric, clamp, max_similarity)
        for target in targets:
            if target.d_b is not None and not symmetric:
                add_rows(target.d_b, j, target.chunk_d_b)


def _block(targets, scratch, i, a, b, block, symmetric, clamp, max_similarity):
    """One block of rows of a chunk: S once, then every target's W, value and gradients."""
    shape = (a.shape[0], a.shape[1], b.shape[1])
    similarity = torch.bmm(a, b.transpose(1, 2), out=scratch.view("similarity", *shape))
    tiny = torch.finfo(a.dtype).tiny  # S >= 0 as the S > -tiny that threshold_backward offers
    for target in targets:
        weight = scratch.view("weight", *shape)
        target.fill(weight, block)
        wanted = target.d_a is not None or target.d_b is not None
        if not wanted or target.d_a is None or max_similarity is not None:
            value = similarity.clamp(0.0 if clamp else None, max_similarity) if clamp or max_similarity else similarity
            target.total += target.alpha * (value * weight).sum().item()
        if not wanted:
            continue
        if clamp:
            torch.ops.aten.threshold_backward.grad_input(weight, similarity, -tiny, grad_input=weight)
        if max_similarity is not None:
            weight.masked_fill_(similarity > max_similarity, 0)
        if target.d_a is not None:
            alpha = 2 * target.alpha if symmetric else target.alpha
            d_a = scratch.view("d_a", shape[0], shape[1], b.shape[2])
            torch.baddbmm(d_a, weight, b, beta=0, alpha=alpha, out=d_a)
            add_rows(target.d_a[:, block], i, d_a)
            if max_similarity is None:
                target.total += d_a.mul_(a).sum().item() * (0.5 if symmetric else 1)
        if target.d_b is not None and not symmetric:
            target.chunk_d_b.baddbmm_(weight.transpose(1, 2), a, alpha=target.alpha)
