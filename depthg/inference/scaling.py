"""Scaling of images that come as blocks of rows, to the same bytes as ``windows.scaled`` of the whole image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.nn import functional as F

SHARE_BITS = 15  # of a weight and its sign


class RowScaler:
    """Scales an image that is given in blocks of rows; keeps the rows that later rows of the result need.

    Bilinear scaling with antialias is that of torch for bytes: along x, rounded to bytes, then along y by integer
    weights, so the results are equal.

    Args:
        size: (height, width) of the image.
        new: (height, width) of the result.
        interpolation: ``antialias`` or ``nearest``, as ``windows.scaled``.
    """

    def __init__(self, size: tuple[int, int], new: tuple[int, int], interpolation: str):
        self.size, self.new, self.nearest = size, new, interpolation == "nearest"
        self._first = self._done = 0  # row of the image that is kept first, and rows of the result that are made
        self._kept = np.empty((0, new[1], 3), np.uint8)
        if self.nearest:
            self._starts, self._columns = (_centres(n, m) for n, m in zip(size, new, strict=True))
            self._ends = self._starts + 1
        else:
            self._starts, self._weights, self._bits = _row_weights(size[0], new[0])
            self._ends = self._starts + [len(weights) for weights in self._weights]

    def push(self, block: np.ndarray) -> np.ndarray:  # uint8 [n, W, 3] -> uint8 [m, w, 3], m may be 0
        """Takes the next rows of the image and returns the rows of the result that are finished."""
        self._kept = np.concatenate([self._kept, self._along_x(block)])
        end = int(np.searchsorted(self._ends, self._first + len(self._kept), "right"))
        out = np.empty((end - self._done, self.new[1], 3), np.uint8)
        for row in range(self._done, end):
            start = self._starts[row] - self._first
            out[row - self._done] = self._along_y(self._kept[start : start + self._ends[row] - self._starts[row]], row)
        self._done = end
        unused = min((self._starts[end] if end < len(self._starts) else self.size[0]) - self._first, len(self._kept))
        self._kept, self._first = self._kept[unused:], self._first + unused
        return out

    def _along_x(self, block: np.ndarray) -> np.ndarray:
        if self.size[1] == self.new[1]:
            return block
        if self.nearest:
            return block[:, self._columns]
        pixels = torch.from_numpy(np.require(block, requirements=["C", "W"])).permute(2, 0, 1)[None]
        wide = F.interpolate(pixels, (len(block), self.new[1]), mode="bilinear", antialias=True)
        return wide[0].permute(1, 2, 0).contiguous().numpy()

    def _along_y(self, rows: np.ndarray, row: int) -> np.ndarray:  # [taps, w, 3] -> [w, 3]
        if self.nearest or self.size[0] == self.new[0]:
            return rows[0]
        total = np.full(rows.shape[1:], 1 << (self._bits - 1), np.int32)
        for weight, values in zip(self._weights[row], rows, strict=True):
            total += values * weight
        return np.clip(total >> self._bits, 0, 255)


def scaled_blocks(
    blocks: Iterable[np.ndarray], size: tuple[int, int], new: tuple[int, int], interpolation: str
) -> Iterator[np.ndarray]:
    """Blocks of rows of an image (uint8 [n, W, 3]), scaled from ``size`` to ``new`` (height, width)."""
    if size == new:
        yield from blocks
        return
    scaler = RowScaler(size, new, interpolation)
    for block in blocks:
        scaled = scaler.push(block)
        if len(scaled):
            yield scaled


def _centres(old: int, new: int) -> np.ndarray:  # int64 [new]
    """The pixel at the centre of every new one, as Pillow's NEAREST takes it."""
    steps = np.full(new, old / new)
    steps[0] /= 2
    return np.minimum(np.add.accumulate(steps).astype(np.int64), old - 1)  # with the rounding of Pillow's sums


def _row_weights(old: int, new: int) -> tuple[np.ndarray, list[np.ndarray], int]:
    """First row, int32 weights and the bits behind the binary point, of every row of the result."""
    if old == new:
        return np.arange(new), [np.ones(1, np.int32)] * new, 1
    scale = old / new
    support, shrink = max(scale, 1.0), 1 / max(scale, 1.0)
    starts, shares = np.empty(new, np.int64), []
    for row in range(new):
        centre = scale * (row + 0.5)
        start = max(int(centre - support + 0.5), 0)
        at = np.arange(start, min(int(centre + support + 0.5), old))
        share = np.maximum(1 - np.abs((at - centre + 0.5) * shrink), 0)
        starts[row] = start
        shares.append(share / share.sum())
    largest, bits = max(share.max() for share in shares), 0
    while bits < 22 and int(0.5 + largest * (1 << (bits + 1))) < 1 << SHARE_BITS:
        bits += 1
    return starts, [(share * (1 << bits) + 0.5).astype(np.int32) for share in shares], bits
