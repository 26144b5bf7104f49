"""Arg-max of score maps at the size of a photo, without the up-sampled scores. On the CPU, in numpy: it runs beside the
network, in threads of its own, and must not start teams of threads there.
"""

from __future__ import annotations

import numpy as np

BLOCK = 2**19  # scores interpolated at a time: they stay in cache


def up_sampled_ids(
    scores: np.ndarray,  # float32 [n, h, w]
    size: tuple[int, int],
) -> np.ndarray:  # uint8 [H, W] (uint16 for more than 255 maps)
    """``interpolate(scores, size, mode="bilinear", align_corners=False).argmax(0)``, ties to the lowest id.

    Between four cells whose largest score belongs to the same map, so does that of every weighted mean of them: only
    pixels between cells that disagree are interpolated, a row of cells at a time.

    Args:
        scores: one map per id.
        size: height H and width W.

    Raises:
        ValueError: no map, no cell or no pixel.
    """
    n, h, w = scores.shape
    if 0 in (n, h, w, *size) or n > 65535:
        raise ValueError(f"score maps {list(scores.shape)} cannot be up-sampled to {list(size)}")
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    dtype = np.uint8 if n < 256 else np.uint16
    (y0, fy), (x0, fx) = taps(h, size[0]), taps(w, size[1])
    label = scores.argmax(0).astype(dtype)
    below, right = np.minimum(np.arange(h) + 1, h - 1), np.minimum(np.arange(w) + 1, w - 1)
    mixed = (label != label[below]) | (label != label[:, right]) | (label != label[below][:, right])
    ids = np.take(label[y0], x0, axis=1)
    starts = np.searchsorted(y0, np.arange(h + 1))
    order = np.arange(n, 0, -1, dtype=dtype)[:, None, None]  # the first of equal maps wins
    for row in np.flatnonzero(mixed.any(1)):
        columns = np.flatnonzero(mixed[row][x0])
        left, share = x0[columns], fx[columns]
        # np.take, because indexing with a list would lay the result out with the maps innermost.
        top, bottom = (
            _lerp(np.take(cells, left, 1), np.take(cells, right[left], 1), share)
            for cells in (scores[:, row], scores[:, below[row]])
        )
        step = max(1, BLOCK // max(1, n * len(columns)))
        for start in range(starts[row], starts[row + 1], step):
            rows = slice(start, min(start + step, starts[row + 1]))
            values = _lerp(top[:, None], bottom[:, None], fy[rows, None])  # [n, rows, columns]
            won = (values >= values.max(0)).view(np.uint8) * order
            ids[rows, columns] = n - won.max(0)
    return ids


def taps(cells: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """The lower of the two cells that every pixel lies between, and the share of the upper one: each ``[pixels]``."""
    at = np.maximum((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5, 0)
    low = np.minimum(at.astype(np.int64), cells - 1)
    return low, (at - low).astype(np.float32)


def _lerp(low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
    values = high - low
    values = values * share
    values += low
    return values
