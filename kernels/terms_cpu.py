"""CPU terms of the losses: banks of vectors, lists of image pairs, depth targets, and the choice of the pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from depthg.kernels import pair_pass_native, reference
from depthg.kernels.pair_pass import FeatureTarget, Pairs, Scratch, Target, Vectors, pair_pass


class Bank(NamedTuple):
    """Codes of a set of images and, but for depth terms, their features."""

    codes: Vectors
    feats: Vectors | None = None


def working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 when any input is, else float32: half inputs are accumulated in float32."""
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32


def make_bank(codes: Tensor, feats: Tensor | None, dtype: torch.dtype) -> Bank:
    bank = Bank(Vectors(codes, dtype), None if feats is None else Vectors(feats, dtype))
    if dtype == torch.float32 and pair_pass_native.AVAILABLE:
        pair_pass_native.pack(bank.codes, rows=True, mean=True)
        if bank.feats is not None:
            pair_pass_native.pack(bank.feats, mean=True)
    return bank


def mean_product(mean_a: Tensor, mean_b: Tensor, index_b: Tensor | None) -> Tensor:  # [R] float64
    """Mean of a b^T over images and points for every draw, from the mean vectors alone."""
    mean_b = mean_b[None] if index_b is None else mean_b[index_b]
    return (mean_a.double() * mean_b.double()).sum(2).mean(1)


def constants(
    a: Vectors, b: Vectors, shift: float, index_b: Tensor | None, center: bool, mean: Tensor | None = None
) -> Tensor:  # [R]
    """What every target of a draw is raised by: the mean of F over the draw (given or computed), minus the shift."""
    draws = 1 if index_b is None else index_b.shape[0]
    constant = torch.full((draws,), -shift, dtype=torch.float64)
    if center:
        constant += mean_product(a.mean, b.mean, index_b) if mean is None else mean.double()
    return constant.to(a.x.dtype)


def identity_pairs(count: int, weights: Sequence[float] | None = None, dtype: torch.dtype | None = None) -> Pairs:
    """Image i with image i, all with the same four weights."""
    index = torch.arange(count)
    return Pairs(index, index, None if weights is None else torch.tensor(weights, dtype=dtype).expand(count, 4))


def drawn_pairs(
    index_b: Tensor,  # [R, N]
    images_b: int,
    constant: Tensor,  # [R]
    same_bank: bool,
    center: bool,
) -> Pairs:
    """The distinct pairs of all draws. Within one bank (i, j) and (j, i) are one pair: F and S only transpose.

    Draws of one pair share S, so their targets add up: ``scale`` counts them, ``row`` those drawn as (i, j), ``column``
    those drawn as (j, i). Side i is chosen by parity, which spreads the pairs evenly over the anchors.
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
    forward = (drawn_i == i[member]).to(constant.dtype)
    raised = constant[:, None].expand(draws, n).reshape(-1)
    parts = torch.stack([torch.ones_like(forward), forward * center, (1 - forward) * center, raised], 1)
    weights = parts.new_zeros(len(key), 4).index_add_(0, member, parts)
    slot = torch.arange(len(key)) - torch.searchsorted(i, i)  # i is sorted: the pair's place among those of its anchor
    order = torch.argsort(slot * (n + 1) + i)
    return Pairs(i[order], j[order], weights[order])


def feature_term(
    a: Bank,
    b: Bank,
    shift: float,
    index_b: Tensor | None,
    center: bool,
    d_a: Tensor | None,
    d_b: Tensor | None,
    mean: Tensor | None = None,  # [R] mean of F over each draw, where these images are not all of it
) -> tuple[FeatureTarget, Pairs, bool]:
    """The target, pairs and symmetry of one feature correlation term."""
    assert a.feats is not None and b.feats is not None
    same, (n, p), (m, q) = a is b, a.feats.x.shape[:2], b.feats.x.shape[:2]
    draws = 1 if index_b is None else index_b.shape[0]
    target = FeatureTarget(-1 / (draws * n * p * q), d_a, d_b, a=a.feats, b=b.feats)
    constant = constants(a.feats, b.feats, shift, index_b, center, mean)
    if index_b is not None:
        return target, drawn_pairs(index_b, m, constant, same, center), False
    share = 0.5 if same else 1.0  # a symmetric target takes half of its row means from either side
    weights = [1.0, share * center, share * center * same, constant.item()]
    return target, identity_pairs(n, weights, constant.dtype), same


@dataclass
class DepthTarget(Target):
    """W of a depth relation minus its shift: a product of few factors, or an exponential of squared differences."""

    relation: str = "product"
    bandwidth: float = 0.1

    @property
    def exponential(self) -> bool:
        return self.relation in ("gaussian", "euclidean")

    def open(self, scratch: Scratch, pairs: Pairs, i: list[int], j: list[int], where: slice) -> None:
        self.chunk_a, self.chunk_b = scratch.rows("depth_a", self.a.unit, i), scratch.rows("depth_b", self.b.unit, j)
        self.scratch = scratch

    def fill(self, out: Tensor, rows: slice) -> None:
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
    a = Vectors(depth_factors(depth_a, relation, dtype), dtype, normalized=False)
    b = a if depth_b is None else Vectors(depth_factors(depth_b, relation, dtype), dtype, normalized=False)
    alpha = -1 / (a.x.shape[0] * a.x.shape[1] * b.x.shape[1])
    return DepthTarget(alpha, d_a, d_b, relation=relation, bandwidth=bandwidth, shift=shift, a=a, b=b)


def run_pass(
    targets: Sequence[Target], a: Vectors, b: Vectors, pairs: Pairs, scratch: Scratch,
    *, symmetric: bool = False, clamp: bool, max_similarity: float | None,
) -> None:  # fmt: skip
    """The compiled pass for what it can do (float32, no exponential), batched matrix products for the rest."""
    options: dict[str, Any] = {"symmetric": symmetric, "clamp": clamp, "max_similarity": max_similarity}
    compiled = [] if a.x.dtype != torch.float32 or not pair_pass_native.AVAILABLE else targets
    compiled = [t for t in compiled if not (isinstance(t, DepthTarget) and t.exponential)]
    if compiled:
        pair_pass_native.pair_pass(compiled, a, b, pairs, **options)
    rest = [t for t in targets if all(t is not done for done in compiled)]
    if rest:
        pair_pass(rest, a.unit, b.unit, pairs, scratch, **options)
