"""Means of maps with holes: NaN is an unknown value, which no mean counts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

HALF = 0.5 - 1e-4  # share of a cell that must be known; a half that is rounded down counts


def mean_of_known(mean: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Weighted means over the known values alone; NaN where less than half of the weight lies on known ones.

    Args:
        mean: weighted means with weights that sum to 1, linear in its argument; any shapes.
        values: floating point on the CPU, NaN = unknown. Without NaN the result is ``mean(values)``.
    """
    return mean(values) if not bool(values.isnan().any()) else mean_with_holes(mean, values)


def mean_with_holes(mean: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """``mean_of_known`` on any device, without a look at the values: the host need not wait."""
    known = ~values.isnan()
    share, total = mean(known.to(values.dtype)), mean(values.masked_fill(~known, 0))
    low, high = values.masked_fill(~known, torch.inf).amin(), values.masked_fill(~known, -torch.inf).amax()
    result = (total / share.clamp(min=HALF)).clamp(low, high)  # rounding must not leave the range of the map
    return result.masked_fill(~(share >= HALF), torch.nan)
