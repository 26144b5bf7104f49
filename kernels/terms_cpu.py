"""CPU terms of the losses on top of ``pair_pass``: banks of unit vectors, lists of pairs, depth targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from depthg.kernels import reference
from depthg.kernels.pair_pass import FeatureTarget, Pairs, Target, normalize
from torch import Tensor


class Bank(NamedTuple):
    """Unit vectors of a set of images and their mean over the points; ``feats`` may be absent (depth terms)."""

    codes: Tensor  # [N, P, K]
    mean_codes: Tensor  # [N, K]
    feats: Tensor | None = None  # [N, P, C]
    mean_feats: Tensor | None = None  # [N, C]


def working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 when any input is, else float32: half inputs are accumulated in float32."""
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32


def make_bank(codes: Tensor, feats: Tensor | None, dtype: torch.dtype) -> Bank:
    codes = normalize(codes, dtype)
    if feats is None:
        return Bank(codes, codes.mean(1))
    feats = normalize(feats, dtype)
    return Bank(codes, codes.mean(1), feats, feats.mean(1))


def mean_product(mean_a: Tensor, mean_b: Tensor, index_b: Tensor | None) -> Tensor:  # [R] float64
    """Mean of a b^T over images and points for every draw, from the mean vectors alone."""
    mean_b = mean_b[None] if index_b is None else mean_b[index_b]
    return (mean_a.double() * mean_b.double()).sum(2).mean(1)


def identity_pairs(count: int, symmetric: bool, center: bool, constant: Tensor, dtype: torch.dtype) -> Pairs:
    """Image i with image i. A symmetric target takes half of its row means from either side."""
    index = torch.arange(count)
    one = torch.ones(count, dtype=dtype)
    share = one * 0.5 if symmetric else one
    return Pairs(
        index, index, None, share if center else None, share if center and symmetric else None, constant.to(dtype) * one
    )


def drawn_pairs(
    index_b: Tensor,  # [R, N]
    images_b: int,
    constants: Tensor,  # [R] what each draw adds to its targets
    same_bank: bool,
    center: bool,
    dtype: torch.dtype,
) -> Pairs:
    """The distinct pairs of all draws. Within one bank (i, j) and (j, i) are one pair: F and S only transpose.

    Draws of one pair share S, so their targets add up: ``scale`` counts them, ``row`` those drawn as (i, j), ``column``
    those drawn as (j, i). Side i is chosen by parity, which spreads the pairs evenly over the anchors.
    """
    draws, n = index_b.shape
    drawn_i, drawn_j = torch.arange(n).expand(draws, n).reshape(-1), index_b.reshape(-1)
    if same_bank:
        low, high = torch.minimum(drawn_i, drawn_j), torch.maximum(drawn_i, drawn_j)
        odd = (low + high) % 2 == 1
        i, j = torch.where(odd, low, high), torch.where(odd, high, low)
    else:
        i, j = drawn_i, drawn_j
    key, member = torch.unique(i * images_b + j, return_inverse=True)
    i, j = key // images_b, key % images_b
    forward = (drawn_i == i[member]).to(dtype)
    zero = torch.zeros(len(key), dtype=dtype)
    row = zero.index_add(0, member, forward)
    column = zero.index_add(0, member, 1 - forward)
    constant = zero.index_add(0, member, constants.to(dtype)[:, None].expand(draws, n).reshape(-1))
    slot = torch.arange(len(key)) - torch.searchsorted(i, i)  # i is sorted: the pair's place among those of its anchor
    order = torch.argsort(slot * (n + 1) + i)
    row_mean, column_mean = (row[order], column[order]) if center else (None, None)
    return Pairs(i[order], j[order], (row + column)[order], row_mean, column_mean, constant[order])


def feature_term(
    a: Bank,
    b: Bank,
    shift: float,
    index_b: Tensor | None,
    center: bool,
    d_a: Tensor | None,
    d_b: Tensor | None,
) -> tuple[FeatureTarget, Pairs, bool]:
    """The target, pairs and symmetry of one feature correlation term."""
    dtype, same = a.feats.dtype, a is b
    draws = 1 if index_b is None else index_b.shape[0]
    count = draws * a.feats.shape[0] * a.feats.shape[1] * b.feats.shape[1]
    target = FeatureTarget(
        -1 / count, d_a, d_b, a=a.feats, b=b.feats, mean_a=a.mean_feats, mean_b=b.mean_feats
    )  # fmt: skip
    constants = -torch.full((draws,), shift, dtype=torch.float64)
    if center:
        constants += mean_product(a.mean_feats, b.mean_feats, index_b)
    if index_b is None:
        return target, identity_pairs(a.feats.shape[0], same, center, constants[0], dtype), same
    return target, drawn_pairs(index_b, b.feats.shape[0], constants, same, center, dtype), False


@dataclass
class DepthTarget(Target):
    """W of a depth relation minus its shift: a product of few factors, or an exponential of squared differences."""

    relation: str = "product"
    bandwidth: float = 0.1
    shift: float = 0.0
    a: Tensor = None  # [N, P, D]
    b: Tensor = None  # [N, Q, D]

    def open(self, scratch, pairs, i, j, where):
        self.chunk_a, self.chunk_b = scratch.rows("depth_a", self.a, i), scratch.rows("depth_b", self.b, j)
        self.scratch = scratch

    def fill(self, out, rows):
        a, b = self.chunk_a[:, rows], self.chunk_b
        if self.relation not in ("gaussian", "euclidean"):
            out.fill_(-self.shift).baddbmm_(a, b.transpose(1, 2))
            return
        torch.sub(a[:, :, :1], b[:, None, :, 0], out=out).mul_(out)
        for axis in range(1, a.shape[2]):
            difference = self.scratch.view("difference", *out.shape)
            torch.sub(a[:, :, axis : axis + 1], b[:, None, :, axis], out=difference)
            out.addcmul_(difference, difference)
        out.mul_(-1 / self.bandwidth**2).exp_().sub_(self.shift)


def depth_factors(depth: Tensor, relation: str, dtype: torch.dtype) -> Tensor:  # [N, P] or [N, P, D] -> [N, P, D]
    """Vectors whose dot products (or squared distances) give the relation."""
    depth = depth.to(dtype)
    if relation == "unit":
        return (depth > 0).to(dtype)[:, :, None]
    if relation == "centered":
        return reference._scaled_deviation(depth)[:, :, None]
    if relation == "normals":
        return normalize(depth, dtype)
    return depth if depth.ndim == 3 else depth[:, :, None]


def depth_term(
    depth_a: Tensor,
    depth_b: Tensor | None,  # None: the same as depth_a
    shift: float,
    relation: str,
    bandwidth: float,
    dtype: torch.dtype,
    d_a: Tensor | None,
    d_b: Tensor | None,
) -> DepthTarget:
    a = depth_factors(depth_a, relation, dtype)
    b = a if depth_b is None else depth_factors(depth_b, relation, dtype)
    alpha = -1 / (a.shape[0] * a.shape[1] * b.shape[1])
    return DepthTarget(alpha, d_a, d_b, relation=relation, bandwidth=bandwidth, shift=shift, a=a, b=b)
