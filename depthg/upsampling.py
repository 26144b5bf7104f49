"""Arg-max of score maps at the size of a photo, without the up-sampled scores. On the CPU, in numpy: it runs beside the
network, in threads of its own, and must not start teams of threads there.
"""

from __future__ import annotations

import numpy as np

BLOCK = 2**18  # scores interpolated at a time: they stay in cache
WIDE = 2**22  # scores up-sampled along the rows at a time


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
    band = max(1, WIDE // (n * size[1]))
    for first in range(0, h, band):
        cells = scores[:, first : min(first + band + 1, h)]
        wide = np.take(cells, x0, 2) + np.take(np.take(cells, right, 2) - cells, x0, 2) * fx  # [n, rows of cells, W]
        steps = wide[:, 1:] - wide[:, :-1]
        for row in range(first, min(first + band, h)):
            columns = np.flatnonzero(mixed[row, x0])
            if len(columns) and starts[row] < starts[row + 1]:
                flat = row + 1 == h  # nothing lies below the last row
                tops = np.take(wide[:, row - first], columns, 1)
                step = None if flat else np.take(steps[:, row - first], columns, 1)
                _fill(ids, columns, (starts[row], starts[row + 1]), tops, step, fy, order)
    return ids


def _fill(
    ids: np.ndarray,
    columns: np.ndarray,  # [P]
    rows: tuple[int, int],
    tops: np.ndarray,  # [n, P]
    step: np.ndarray | None,  # [n, P]
    fy: np.ndarray,
    order: np.ndarray,
) -> None:
    """Arg-max of ``tops + fy * step`` at some columns of the rows between two rows of cells."""
    n = len(tops)
    block = max(1, BLOCK // tops.size)
    for start in range(*rows, block):
        stop = min(start + block, rows[1])
        values = tops[:, None]
        if step is not None:
            values = step[:, None] * fy[start:stop, None]
            values += tops[:, None]
        won = (values >= values.max(0)).view(np.uint8) * order
        ids[start:stop, columns] = n - won.max(0)


def taps(cells: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """The lower of the two cells that every pixel lies between, and the share of the upper one: each ``[pixels]``."""
    at = np.maximum((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5, 0)
    low = np.minimum(at.astype(np.int64), cells - 1)
    return low, (at - low).astype(np.float32)
