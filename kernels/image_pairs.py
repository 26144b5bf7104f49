"""Lists of image pairs for the losses on the CPU; draws of one pair are one entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """Image pairs, ordered so that consecutive pairs read consecutive anchors where possible.

    ``weights`` put a feature target together: ``W = scale F - row mean_q F - column mean_p F + constant``, the means
    over the points of the pair's images.
    """

    i: Tensor  # [E] int64
    j: Tensor  # [E] int64
    weights: Tensor | None = None  # [E, 4]: scale, row, column, constant


def identity_pairs(count: int, weights: Sequence[float] | None = None, dtype: torch.dtype | None = None) -> Pairs:
    """Image i with image i, all with the same four weights."""
    index = torch.arange(count, device="cpu")
    if weights is None:
        return Pairs(index, index)
    return Pairs(index, index, torch.tensor(weights, dtype=dtype, device="cpu").expand(count, 4))


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
    drawn_i, drawn_j = torch.arange(n, device="cpu").expand(draws, n).reshape(-1), index_b.reshape(-1)
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
    first = torch.searchsorted(i, i)  # i is sorted: where the pairs of the same anchor begin
    slot = torch.arange(len(key), device="cpu") - first
    order = torch.argsort(slot * (n + 1) + i)
    return Pairs(i[order], j[order], weights[order])
