"""The correlation losses on the CPU: vectors are packed once, the image pairs run in C++ (``csrc/pairs.h``).

For a pair of images (i, j) every term has the form, with unit codes a = codes[i], b = codes[j] and S = a b^T,

    value = alpha * sum_pq W_pq * V(S_pq),      V = S, clamped to at least 0 and at most ``max_similarity``
    d_a = alpha * (W * V') b,  d_b = alpha * (W * V')^T a

where V' is 0 or 1. Only W differs between the terms. F, S and W stay in registers and in the cache.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from depthg.kernels import checks, reference
from depthg.kernels._extension import native, typed
from depthg.kernels.code_gradient import through_normalization
from depthg.kernels.image_pairs import Pairs, drawn_pairs, identity_pairs

if TYPE_CHECKING:
    from depthg.kernels.pair_terms import Inputs, Options

SELF, NEIGHBOUR, NEGATIVE, DEPTH = range(4)
KEPT_BYTES = 1 << 26  # of packed vectors that a thread keeps from call to call: fresh pages cost as much as packing


class _Kept(threading.local):
    """Buffers of the packed vectors of one call, kept for the next call of this thread unless they are large."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []
        self.used = 0

    def take(self, dtype: torch.dtype, *shape: int) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        if self.used == len(self.buffers):
            self.buffers.append(torch.empty(0, dtype=torch.uint8, device="cpu"))
        if self.buffers[self.used].numel() < size:
            self.buffers[self.used] = torch.empty(0, dtype=torch.uint8, device="cpu")  # free the old one first
            self.buffers[self.used] = torch.empty(size, dtype=torch.uint8, device="cpu")
        self.used += 1
        return self.buffers[self.used - 1][:size].view(dtype).view(shape)

    def release(self) -> None:
        """Ends a call: its buffers may be used again."""
        self.used = 0
        if sum(x.numel() for x in self.buffers) > KEPT_BYTES:
            self.buffers.clear()


kept = _Kept()


class Packed:
    """Vectors of a set of images as C++ reads them: panels of points, and what else is asked for."""

    def __init__(
        self, x: Tensor, dtype: torch.dtype, *, normalize: bool = True, rows: bool = False, mean: bool = True
    ) -> None:
        n, p, c = self.shape = x.shape
        x = x.to(dtype).contiguous()
        padded = -(-p // native.panel_points) * native.panel_points
        self.panels = kept.take(dtype, n, padded, c)
        self.rows = kept.take(dtype, n, p, -(-c // 16) * 16) if rows else None
        self.mean = torch.empty(n if mean else 0, c, dtype=dtype, device="cpu")  # [N, C] of the unit vectors
        addresses = self.panels.data_ptr(), _address(self.rows), self.mean.data_ptr() if mean else 0
        typed("pack_panels", dtype)(x.data_ptr(), n, p, c, normalize, *addresses, torch.get_num_threads())


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


class Bank:
    """Codes of a set of images and, where a feature term needs them, their features."""

    def __init__(self, codes: Tensor, feats: Tensor | None, dtype: torch.dtype) -> None:
        self.codes = Packed(codes, dtype, rows=True)
        self.feats = None if feats is None else Packed(feats, dtype)


@dataclass
class Target:
    """What S is compared with: features or depth of both sides, and where gradients of the term are added."""

    term: int
    alpha: float  # -1 / count
    a: Packed
    b: Packed
    d_a: Tensor | None = None  # [N, P, K]; None when not wanted
    d_b: Tensor | None = None  # [M, Q, K]; may be the same tensor as d_a
    shift: float = 0.0  # of depth; that of features is part of their pairs' weights
    decay: float | None = None  # 1 / bandwidth^2 of an exponential depth relation


def working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 when any input is, else float32: half inputs are accumulated in float32."""
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32


def dtype_of(x: Inputs) -> torch.dtype:
    return working_dtype(*x[:9])  # codes, features and depth


def mean_product(mean_a: Tensor, mean_b: Tensor, index_b: Tensor | None) -> Tensor:  # [R] float64
    """Mean of a b^T over images and points for every draw, from the mean vectors alone."""
    mean_b = mean_b[None] if index_b is None else mean_b[index_b]
    return (mean_a.double() * mean_b.double()).sum(2).mean(1)


def constants(
    mean_a: Tensor, mean_b: Tensor, shift: float, index_b: Tensor | None, center: bool, mean: Tensor | None
) -> Tensor:  # [R]
    """Constant added to every entry of W for a draw: the mean of F over it (given or computed), minus the shift."""
    draws = 1 if index_b is None else index_b.shape[0]
    constant = torch.full((draws,), -shift, dtype=torch.float64, device="cpu")
    if center:
        constant += mean_product(mean_a, mean_b, index_b) if mean is None else mean.double()
    return constant.to(mean_a.dtype)


def feature_target(
    term: int, a: Bank, b: Bank, shift: float, index_b: Tensor | None, options: Options, mean: Tensor | None
) -> tuple[Target, Pairs]:
    """A feature term and its pairs; ``mean`` [R] is that of F over each draw, default that of these images."""
    x, y = a.feats, b.feats
    assert x is not None and y is not None
    constant = constants(x.mean, y.mean, shift, index_b, options.center, mean)
    target = Target(term, -1 / (len(constant) * x.shape[0] * x.shape[1] * y.shape[1]), x, y)
    if index_b is not None:
        return target, drawn_pairs(index_b, y.shape[0], constant, a is b, options.center)
    half = 0.5 if a is b else 1.0  # a symmetric target takes half of its row means from either side
    weights = [1.0, half * options.center, half * options.center * (a is b), constant.item()]
    return target, identity_pairs(x.shape[0], weights, constant.dtype)


def depth_vectors(depth: Tensor, relation: str, dtype: torch.dtype) -> Packed:  # [N, P] or [N, P, D]
    """Vectors whose dot products (or squared distances) give the relation."""
    depth = depth.to(dtype)
    if relation == "unit":
        depth = (depth > 0).to(dtype)
    elif relation == "centered":
        depth = reference._scaled_deviation(depth)
    elif relation == "normals":
        depth = reference.normalize(depth)
    return Packed(depth if depth.ndim == 3 else depth[:, :, None], dtype, normalize=False, mean=False)


def depth_target(
    x: Inputs, shift: float, options: Options, dtype: torch.dtype, d_a: Tensor | None, d_b: Tensor | None
) -> Target:
    assert x.depth is not None
    a = depth_vectors(x.depth, options.relation, dtype)
    b = a if x.depth_other is None else depth_vectors(x.depth_other, options.relation, dtype)
    decay = 1 / options.bandwidth**2 if options.relation in ("gaussian", "euclidean") else None
    return Target(DEPTH, -1 / (a.shape[0] * a.shape[1] * b.shape[1]), a, b, d_a, d_b, shift, decay)


def pair_pass(
    targets: Sequence[Target], a: Packed, b: Packed, pairs: Pairs, options: Options, losses: list[float],
    symmetric: bool = False,
) -> None:  # fmt: skip
    """Adds the values and code gradients of at most one feature and one depth target, which share S, over all pairs.

    ``symmetric`` says that both sides are the same codes, i = j, and that every W is symmetric: then half of the work
    gives the sum of both gradients in ``d_a``.
    """
    dtype, limit = a.panels.dtype, options.max_similarity
    s = typed("PairPass", dtype)()
    s.pairs, s.images_a, s.images_b = len(pairs.i), a.shape[0], b.shape[0]
    s.p, s.q, s.k = a.shape[1], b.shape[1], a.shape[2]
    s.clamp, s.limited, s.limit = options.clamp, limit is not None, limit or 0.0
    s.symmetric, s.same_bank = symmetric, a is b
    values = torch.zeros(len(pairs.i), 2, dtype=torch.float64, device="cpu")
    i, j, weights = (None if x is None else x.contiguous() for x in pairs)  # alive until the pass has run
    s.i, s.j, s.values = _address(i), _address(j), values.data_ptr()
    s.codes_a, s.codes_b, s.rows_a, s.rows_b = (_address(x) for x in (a.panels, b.panels, a.rows, b.rows))
    for t in targets:
        x, y, d_a, d_b = t.a.panels.data_ptr(), t.b.panels.data_ptr(), _address(t.d_a), _address(t.d_b)
        if t.term == DEPTH:
            s.d, s.depth_a, s.depth_b, s.shift = t.a.shape[2], x, y, t.shift
            s.exponential, s.decay = t.decay is not None, t.decay or 0.0
            s.alpha_depth, s.d_a_depth, s.d_b_depth = t.alpha, d_a, 0 if symmetric else d_b
        else:
            s.c, s.feats_a, s.feats_b = t.a.shape[2], x, y
            s.mean_a, s.mean_b, s.weights = t.a.mean.data_ptr(), t.b.mean.data_ptr(), _address(weights)
            s.alpha, s.d_a, s.d_b = t.alpha, d_a, 0 if symmetric else d_b
    typed("pair_pass", dtype)(s, torch.get_num_threads())
    for t in targets:
        losses[t.term] = t.alpha * values[:, int(t.term == DEPTH)].sum().item()


def terms_of(x: Inputs, options: Options) -> tuple[bool, bool, bool, bool]:
    """Which of the terms self, neighbour, negatives and depth the call has."""
    return options.own, x.codes_near is not None, x.negatives is not None, x.depth is not None


def _sizes(terms: Sequence[int], needs: Sequence[int], codes: Sequence[Tensor | None]) -> list[int]:
    """Numbers in the gradients of the four codes: those of the anchors for every term, the others for one."""
    counts = sum(terms), 1, 1, 1
    wanted = zip(counts, needs, codes, strict=True)
    return [count * z.numel() if need and z is not None else 0 for count, need, z in wanted]


def gradient_size(x: Inputs, options: Options, needs: Sequence[bool]) -> int:
    return sum(_sizes(terms_of(x, options), needs, (x.codes, x.codes_near, x.codes_far, x.codes_other)))


def _split(rows: Tensor, terms: Sequence[int], needs: Sequence[int], codes: Sequence[Any]) -> list[Tensor | None]:
    """The gradients of the four codes as views of ``rows``, [T, N, P, K] and [1, M, Q, K]; None where not wanted."""
    parts = rows.split(_sizes(terms, needs, codes))
    return [p.view(-1, *z.shape) if p.numel() else None for p, z in zip(parts, codes, strict=True)]


def forward(
    x: Inputs, options: Options, shifts: Sequence[float], weights: Sequence[float], needs: Sequence[bool]
) -> tuple[Tensor, ...]:
    """``pair_terms.Outcome`` of vectors, in float64 when any of them is, else in float32."""
    if x.negatives is not None and x.negatives.numel():  # a compiled graph has not looked at its values
        checks.check_range("index_b", x.negatives, "codes_b", x.codes if x.codes_far is None else x.codes_far)
    dtype, terms = dtype_of(x), terms_of(x, options)
    codes = x.codes, x.codes_near, x.codes_far, x.codes_other
    rows = torch.zeros(sum(_sizes(terms, needs, codes)), dtype=dtype, device="cpu")
    own, *rest = _split(rows, terms, needs, codes)
    by_term = iter([None] * 4 if own is None else own)
    d_anchors = [next(by_term) if term else None for term in terms]
    d_others = [None if d is None else d[0] for d in rest]
    try:
        numbers = shifts if x.shifts is None else x.shifts.tolist()
        losses, similarities = _run(x, options, numbers, dtype, d_anchors, d_others)
    finally:
        kept.release()
    found = torch.tensor(losses, dtype=dtype, device="cpu")
    total = torch.zeros((), dtype=dtype, device="cpu")
    for weight, loss in zip(weights, found, strict=True):
        total = total + weight * loss
    return total, found, torch.stack(similarities).to(dtype), rows, rows.new_empty(0), rows.new_empty(0)


def _run(
    x: Inputs, options: Options, shifts: Sequence[float], dtype: torch.dtype, d_anchors: Sequence[Tensor | None],
    d_others: Sequence[Tensor | None],
) -> tuple[list[float], list[Tensor]]:  # fmt: skip
    """Losses and mean similarities [4]; gradients are those of the anchors by term, and of the other three banks."""
    losses, similarities = [0.0] * 4, [torch.zeros((), dtype=torch.float64, device="cpu")] * 4
    means = [None] * 3 if x.means is None else x.means.split([1, 1, len(x.means) - 2])
    d_near, d_far, d_other = d_others
    anchors = Bank(x.codes, x.feats, dtype)

    def add(term: int, bank: Bank, index_b: Tensor | None, d_b: Tensor | None, beside: Sequence[Target] = ()) -> None:
        target, pairs = feature_target(term, anchors, bank, shifts[term], index_b, options, means[term])
        target.d_a, target.d_b = d_anchors[term], d_b
        same = index_b is None and bank is anchors
        pair_pass([target, *beside], anchors.codes, bank.codes, pairs, options, losses, symmetric=same)
        similarities[term] = mean_product(anchors.codes.mean, bank.codes.mean, index_b).mean()

    together: list[Target] = []
    if x.depth is not None:
        other = anchors if x.codes_other is None else Bank(x.codes_other, None, dtype)
        d_b = d_anchors[DEPTH] if other is anchors else d_other
        guide = depth_target(x, shifts[DEPTH], options, dtype, d_anchors[DEPTH], d_b)
        similarities[DEPTH] = mean_product(anchors.codes.mean, other.codes.mean, None).mean()
        symmetric = other is anchors and x.depth_other is None
        if symmetric and options.own:
            together = [guide]  # shares S with the self term
        else:
            pairs = identity_pairs(len(x.codes))
            pair_pass([guide], anchors.codes, other.codes, pairs, options, losses, symmetric=symmetric)
    if options.own:
        add(SELF, anchors, None, d_anchors[SELF], together)
    if x.codes_near is not None:
        add(NEIGHBOUR, Bank(x.codes_near, x.feats_near, dtype), None, d_near)
    if x.negatives is not None and len(x.negatives):
        far = anchors if x.codes_far is None else Bank(x.codes_far, x.feats_far, dtype)
        add(NEGATIVE, far, x.negatives, d_anchors[NEGATIVE] if far is anchors else d_far)
    return losses, similarities


def backward(
    rows: Tensor,  # flat gradients of the terms at the unit codes
    key: Sequence[int],  # terms and needs
    d_total: Tensor | None,  # []
    d_losses: Tensor | None,  # [4]
    codes: Sequence[Tensor | None],  # of the four banks
    weights: Sequence[float],
) -> list[Tensor]:
    """Gradients of the codes of every bank, in their shapes; empty for a bank that is not given or gets none."""
    terms, needs = key[:4], key[4:]
    upstream = rows.new_zeros(4) if d_total is None else rows.new_tensor(weights) * d_total
    upstream = upstream if d_losses is None else upstream + d_losses
    chosen = [t for t in range(4) if terms[t]], [NEIGHBOUR], [NEGATIVE], [DEPTH]
    parts = _split(rows, terms, needs, codes)
    return [
        rows.new_empty(0) if d is None or z is None else through_normalization(z, d, upstream[places])
        for z, d, places in zip(codes, parts, chosen, strict=True)
    ]
