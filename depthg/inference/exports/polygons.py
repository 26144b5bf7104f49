"""Polygons around the regions of a mask, exact by the rule of pixel centres."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def polygons(mask: np.ndarray, fewest: int = 1) -> Iterator[tuple[np.ndarray, int]]:  # bool [H, W]
    """Yields a closed line around each region, float64 [points, 2] as x and y in pixels, and the region's pixels.

    A region is what is connected by edges of pixels. The corner of the first pixel is (0, 0), its centre (0.5, 0.5).
    The lines run between the centres of pixels inside and outside, so a centre is inside the polygon exactly if its
    pixel is in the region. Holes are joined to the outer line by a bridge, which is walked in both directions and runs
    along an edge of pixels, never through a centre. The first point is not repeated at the end.

    Args:
        mask: bool [H, W].
        fewest: regions of fewer pixels have no points.
    """
    from scipy import ndimage

    regions, count = ndimage.label(mask)
    pixels = np.bincount(regions.ravel(), minlength=count + 1).tolist()
    for number, box in enumerate(ndimage.find_objects(regions), 1):
        small = pixels[number] < fewest
        corner = np.array([box[1].start, box[0].start])
        yield np.zeros((0, 2)) if small else corner + _outline(regions[box] == number), pixels[number]


def _outline(region: np.ndarray) -> np.ndarray:  # bool [h, w], connected
    """The line around a region and its holes, relative to the corner of its first pixel."""
    from contourpy import contour_generator

    inside = np.pad(region, 1).astype(np.float64)
    parts: Any = contour_generator(z=inside, name="serial", fill_type="OuterOffset").filled(0.5, 2.0)
    [points], [starts] = parts  # pixels that touch at a corner alone are not joined there: one outer line
    return _joined([points[a : b - 1] - 0.5 for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)])


def _joined(rings: list[np.ndarray]) -> np.ndarray:
    """One line around the outer one and all holes, without points in the middle of a straight piece.

    Holes come from top to bottom. Straight up from the left end of a hole's first row lies the outer line or a hole
    that is joined already: there the bridge ends.
    """
    outer, starts = rings[0], []
    for hole in rings[1:]:
        upright = np.flatnonzero(hole[:, 0] == np.round(hole[:, 0]))  # points on an upright edge of a pixel
        starts.append(upright[np.lexsort((hole[upright, 0], hole[upright, 1]))[0]])
    order = sorted(range(len(starts)), key=lambda i: tuple(rings[i + 1][starts[i]][::-1].tolist()))
    for i in order:
        hole = np.roll(rings[i + 1], -starts[i], axis=0)
        outer = _bridged(outer, hole)
    return _without_middles(outer)


def _bridged(outer: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The outer line with a way to the hole, around it, and back."""
    x, y = hole[0]
    following = np.roll(outer, -1, axis=0)
    low, high = np.minimum(outer[:, 0], following[:, 0]), np.maximum(outer[:, 0], following[:, 0])
    crosses = np.flatnonzero((low <= x) & (x <= high))
    a, b = outer[crosses], following[crosses]
    width = b[:, 0] - a[:, 0]
    upright = width == 0
    share = np.where(upright, 0.0, (x - a[:, 0]) / np.where(upright, 1.0, width))
    height = np.where(upright, np.maximum(a[:, 1], b[:, 1]), a[:, 1] + share * (b[:, 1] - a[:, 1]))
    best = int(np.argmax(np.where(height < y, height, -np.inf)))
    place, meeting = int(crosses[best]) + 1, np.array([[x, height[best]]])
    return np.concatenate([outer[:place], meeting, hole, hole[:1], meeting, outer[place:]])


def _without_middles(ring: np.ndarray) -> np.ndarray:
    """The line without repeated points and those that continue in the direction in which they were reached."""
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(1)]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    back = (before * after).sum(1) < 0  # the end of a bridge
    return ring[(turns != 0) | back]
