"""CPU terms of the losses: banks of vectors, lists of image pairs, depth targets, and the choice of the pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from depthg.kernels import pair_pass_native, reference
from depthg.kernels.pair_pass import FeatureTarget, Pairs, Scratch, Target, Vectors, make_vectors, pair_pass
from torch import Tensor


class Bank(NamedTuple):
    """Codes of a set of images and, but for depth terms, their features."""

    codes: Vectors
    feats: Vectors | None = None


def working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 when any input is, else float32: half inputs are accumulated in float32."""
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32


def make_bank(codes: Tensor, feats: Tensor | None, dtype: torch.dtype) -> Bank:
    return Bank(make_vectors(codes, dtype), None if feats is None else make_vectors(feats, dtype))


def mean_product(mean_a: Tensor, mean_b: Tensor, index_b: Tensor | None) -> Tensor:  # [R] float64
    """Mean of a b^T over images and points for every draw, from the mean vectors alone."""
    mean_b = mean_b[None] if index_b is None else mean_b[index_b]
    return (mean_a.double() * mean_b.double()).sum(2).mean(1)


def draw_bias(a: Vectors, b: Vectors, shift: float, index_b: Tensor | None, center: bool) -> Tensor:  # [R, N, P]
    """What centring and shift add to F of draw r, image n, point p: ``mean_npq F - shift - mean_q F``."""
    draws, (n, p) = 1 if index_b is None else index_b.shape[0], a.x.shape[:2]
    constant = torch.full((draws,), -shift, dtype=torch.float64)
    if not center:
        return constant.to(a.x.dtype)[:, None, None].expand(draws, n, p)
    constant += mean_product(a.mean, b.mean, index_b)
    mean_b = b.mean[None] if index_b is None else b.mean[index_b]  # [R, N, C]
    rows = torch.bmm(mean_b.transpose(0, 1), a.x.transpose(1, 2)) * a.inverse[:, None]  # [N, R, P]
    return constant.to(a.x.dtype)[:, None, None] - rows.transpose(0, 1)


def identity_pairs(count: int, bias: Tensor | None = None, symmetric: bool = False) -> Pairs:
    """Image i with image i. A symmetric target takes half of its bias from either side."""
    index = torch.arange(count)
    if bias is None:
        return Pairs(index, index)
    return Pairs(index, index, None, bias[0] / 2, bias[0] / 2) if symmetric else Pairs(index, index, None, bias[0])


def drawn_pairs(
    index_b: Tensor,  # [R, N]
    images_b: int,
    points_b: int,
    bias: Tensor,  # [R, N, P]
    same_bank: bool,
) -> Pairs:
    """The distinct pairs of all draws. Within one bank (i, j) and (j, i) are one pair: F and S only transpose.

    Draws of one pair share S, so their targets add up: ``scale`` counts them, and the bias of a draw lies on the axis
    of its anchor. Side i is chosen by parity, which spreads the pairs evenly over the anchors.
    """
    draws, n = index_b.shape
    drawn_i, drawn_j = torch.arange(n).expand(draws, n).reshape(-1), index_b.reshape(-1)
    i, j = drawn_i, drawn_j
    if same_bank:
        low, high = torch.minimum(i, j), torch.maximum(i, j)
        odd = (low + high) % 2 == 1
        i, j = torch.where(odd, low, high), torch.where(odd, high, low)
    key, member = torch.unique(i * images_b + j, return_inverse=True)
    i, j = key // images_b, key % images_b
    slot = torch.arange(len(key)) - torch.searchsorted(i, i)  # i is sorted: the pair's place among those of its anchor
    order = torch.argsort(slot * (n + 1) + i)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    member, bias = place[member], bias.reshape(draws * n, -1)
    i, j = i[order], j[order]
    scale = torch.bincount(member, minlength=len(key)).to(bias.dtype)
    forward = drawn_i == i[member]
    row = bias.new_zeros(len(key), bias.shape[1]).index_add_(0, member[forward], bias[forward])
    if not same_bank:
        return Pairs(i, j, scale, row)
    column = bias.new_zeros(len(key), points_b).index_add_(0, member[~forward], bias[~forward])
    return Pairs(i, j, scale, row, column)


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
    same, (n, p), (m, q) = a is b, a.feats.x.shape[:2], b.feats.x.shape[:2]
    draws = 1 if index_b is None else index_b.shape[0]
    target = FeatureTarget(-1 / (draws * n * p * q), d_a, d_b, a=a.feats, b=b.feats)
    bias = draw_bias(a.feats, b.feats, shift, index_b, center)
    if index_b is None:
        return target, identity_pairs(n, bias, same), same
    return target, drawn_pairs(index_b, m, q, bias, same), False


@dataclass
class DepthTarget(Target):
    """W of a depth relation minus its shift: a product of few factors, or an exponential of squared differences."""

    relation: str = "product"
    bandwidth: float = 0.1
    shift: float = 0.0
    a: Vectors = None  # [N, P, D]
    b: Vectors = None  # [N, Q, D]

    @property
    def exponential(self) -> bool:
        return self.relation in ("gaussian", "euclidean")

    def open(self, scratch, pairs, i, j, where):
        self.chunk_a, self.chunk_b = scratch.rows("depth_a", self.a.unit, i), scratch.rows("depth_b", self.b.unit, j)
        self.scratch = scratch

    def fill(self, out, rows):
        a, b = self.chunk_a[:, rows], self.chunk_b
        if not self.exponential:
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
        return reference.normalize(depth)
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
    a = make_vectors(depth_factors(depth_a, relation, dtype), dtype, normalized=False)
    b = a if depth_b is None else make_vectors(depth_factors(depth_b, relation, dtype), dtype, normalized=False)
    alpha = -1 / (a.x.shape[0] * a.x.shape[1] * b.x.shape[1])
    return DepthTarget(alpha, d_a, d_b, relation=relation, bandwidth=bandwidth, shift=shift, a=a, b=b)


def run_pass(targets: list[Target], a: Vectors, b: Vectors, pairs: Pairs, scratch: Scratch, **options) -> None:
    """The compiled pass for what it can do (float32, no exponential), batched matrix products for the rest."""
    compiled = [] if a.x.dtype != torch.float32 or not pair_pass_native.AVAILABLE else targets
    compiled = [t for t in compiled if not (isinstance(t, DepthTarget) and t.exponential)]
    if compiled:
        pair_pass_native.pair_pass(compiled, a, b, pairs, **options)
    rest = [t for t in targets if all(t is not done for done in compiled)]
    if rest:
        pair_pass(rest, a.unit, b.unit, pairs, scratch, **options)
