"""CPU path of the correlation losses: image pairs in cache-sized chunks of batched matrix products.

For a pair of images (i, j) every term has the form, with unit codes a = codes[i], b = codes[j] and S = a b^T,

    value = alpha * sum_pq W_pq * V(S_pq),      V = S, clamped to at least 0 and at most ``max_similarity``
    d_a = alpha * (W * V') b,  d_b = alpha * (W * V')^T a

where V' is 0 or 1. Without the upper clamp V = S V', so ``value = sum(d_a * a)``: the loss costs no pass of its own.
Only W (a ``Target``) differs between the terms. A chunk holds one block of W and one of S, reused from chunk to chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 1 << 18  # elements of a block of W or S: 1 MiB of float32, so that W, S and their operands stay in L2


class Pairs(NamedTuple):
    """Image pairs, ordered so that consecutive chunks read consecutive anchors where possible.

    ``weights`` put a feature target together: ``W = scale F - row mean_q F - column mean_p F + constant``, the means
    over the points of the pair's images.
    """

    i: Tensor  # [E] int64
    j: Tensor  # [E] int64
    weights: Tensor | None = None  # [E, 4]: scale, row, column, constant


def inverse_length(x: Tensor) -> Tensor:  # [..., C] -> [...]
    """1 / |x|, 0 for a zero vector as in ``reference.normalize``."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return norm.reciprocal().masked_fill_(norm.square() == 0, 0)


class Vectors:
    """Vectors of a set of images, and what is made of them on demand: unit vectors, their mean, packed panels."""

    def __init__(self, x: Tensor, dtype: torch.dtype, normalized: bool = True) -> None:
        self.x = x.to(dtype).contiguous()  # [N, P, C]
        self.normalized = normalized  # False: taken as they are
        self.panels: Tensor | None = None  # see csrc/pairs.h
        self.rows: Tensor | None = None
        self.packed_mean: Tensor | None = None

    @cached_property
    def unit(self) -> Tensor:  # [N, P, C]
        return self.x * inverse_length(self.x)[:, :, None] if self.normalized else self.x

    @cached_property
    def mean(self) -> Tensor:  # [N, C]
        return self.unit.mean(1) if self.packed_mean is None else self.packed_mean


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
    a: Vectors = field(kw_only=True)  # [N, P, C] what side a is compared by: features, or factors of depth
    b: Vectors = field(kw_only=True)  # [M, Q, C]
    shift: float = field(default=0.0, kw_only=True)  # of depth; that of features is part of their pairs' weights
    total: float = field(default=0.0, init=False)
    chunk_d_b: Tensor = field(init=False, repr=False)  # [B, Q, K] gradient of side b in the open chunk

    def open(self, scratch: Scratch, pairs: Pairs, i: list[int], j: list[int], where: slice) -> None:
        """Prepares a chunk of pairs."""
        raise NotImplementedError

    def fill(self, out: Tensor, rows: slice) -> None:  # [B, rows, Q]
        """Writes W for some rows of the open chunk."""
        raise NotImplementedError


class FeatureTarget(Target):
    """W from feature vectors and the weights of the pairs."""

    def open(self, scratch: Scratch, pairs: Pairs, i: list[int], j: list[int], where: slice) -> None:
        assert pairs.weights is not None
        self.chunk_a = scratch.rows("feats_a", self.a.unit, i)
        self.chunk_b = scratch.rows("feats_b", self.b.unit, j)
        scale, row, column, self.offset = pairs.weights[where].view(-1, 1, 1, 4).unbind(-1)  # [B, 1, 1] each
        self.scale = None if bool((scale == 1).all()) else scale
        self.row = self.b.mean[j][:, None] * row if bool((row != 0).any()) else None  # [B, 1, C]
        if bool((column != 0).any()):
            self.offset = self.offset - torch.bmm(self.a.mean[i][:, None] * column, self.chunk_b.transpose(1, 2))

    def fill(self, out: Tensor, rows: slice) -> None:
        a = self.chunk_a[:, rows]
        if self.row is None:
            out.copy_(self.offset.expand_as(out))
        else:  # as [1, C] x [C, rows], which BLAS does far faster than [rows, C] x [C, 1]
            out.copy_((self.offset - torch.bmm(self.row, a.transpose(1, 2)).transpose(1, 2)).expand_as(out))
        out.baddbmm_(a if self.scale is None else a * self.scale, self.chunk_b.transpose(1, 2))


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
    targets: Sequence[Target],
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


def _block(
    targets: Sequence[Target], scratch: Scratch, i: list[int], a: Tensor, b: Tensor, block: slice,
    symmetric: bool, clamp: bool, max_similarity: float | None,
) -> None:  # fmt: skip
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
