"""Crops of every cluster: where its score is farthest above those of all other clusters, and where it is nearest."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from depthg.inference.overlays import draw_outlines

MOST, SIDE = 8, 144  # crops per cluster, and their side in pixels
PART = 0.3  # side of a crop relative to the shorter side of the photo
FADED = 140  # grey that is mixed into what is not of the cluster
QUALITY = 82  # of JPEG


@dataclass(frozen=True)
class Crop:
    """A crop of a photo around a clear place of a cluster."""

    score: float  # margin of the cluster's score, mean over the crop; negated for doubtful crops
    photo: str
    jpeg: bytes


def clear_places(scores: np.ndarray) -> dict[int, tuple[float, float, float]]:  # float [n, h, w]
    """Margin, row and column (centre, relative to height and width) of the clearest window of each cluster that wins.

    The margin of a cell is the score of a cluster minus the best of the others, so it is positive where the cluster
    wins; a window is about ``PART`` of the shorter side.
    """
    if len(scores) < 2:
        return {}
    order = np.partition(scores, -2, axis=0)
    first, second, winner = order[-1], order[-2], scores.argmax(0)
    side = max(1, round(PART * min(winner.shape)))
    found = {}
    for number in np.unique(winner).tolist():
        mean = _window_means(scores[number] - np.where(winner == number, second, first), side)
        found[number] = _best(mean, side, winner.shape)
    return found


def doubtful_places(scores: np.ndarray) -> dict[int, tuple[float, float, float]]:  # float [n, h, w]
    """As ``clear_places``, where each cluster wins by the least: among the windows of which it holds at least half.

    Where it holds no half of any, the window of which it holds the most. The first number is the negated margin, mean
    over the window's cells of the cluster.
    """
    if len(scores) < 2:
        return {}
    order = np.partition(scores, -2, axis=0)
    margin, winner = order[-1] - order[-2], scores.argmax(0)
    side = max(1, round(PART * min(winner.shape)))
    found = {}
    for number in np.unique(winner).tolist():
        held = _window_means(winner == number, side)
        doubt = -_window_means(np.where(winner == number, margin, 0), side) / np.maximum(held, 1e-9)
        enough = held >= min(0.5, held.max()) - 1e-9
        found[number] = _best(np.where(enough, doubt, -np.inf), side, winner.shape)
    return found


def _best(means: np.ndarray, side: int, size: tuple[int, ...]) -> tuple[float, float, float]:
    """The largest value, and the centre of its window relative to height and width."""
    row, column = divmod(int(means.argmax()), means.shape[1])
    return float(means[row, column]), (row + side / 2) / size[0], (column + side / 2) / size[1]


def _window_means(values: np.ndarray, side: int) -> np.ndarray:  # [h, w] -> [h - side + 1, w - side + 1]
    """Mean of every window of ``side`` x ``side`` cells."""
    total = np.pad(values.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    return sums / side**2


class ClearCrops:
    """Keeps the ``MOST`` clearest crops of each cluster, at most one per photo. Threads may share it.

    Args:
        colours: uint8 [n, 3], of the clusters.
        places: which places of a photo are offered, and how high they count.
    """

    def __init__(
        self,
        colours: np.ndarray,
        places: Callable[[np.ndarray], dict[int, tuple[float, float, float]]] = clear_places,
    ):
        self.colours, self.places = colours, places
        self._kept: dict[int, list[Crop]] = {number: [] for number in range(len(colours))}
        self._lock = threading.Lock()

    def offer(
        self,
        photo: str,
        scores: np.ndarray,  # float [n, h, w]
        read: Callable[[], tuple[np.ndarray, np.ndarray]],  # uint8 [H, W, 3], ids [H, W]
    ) -> None:
        """Takes the crops of a photo that are among the clearest; ``read`` gives photo and ids, if they are needed."""
        loaded = None
        for number, (score, row, column) in self.places(scores).items():
            if not self._wanted(number, score, photo):
                continue
            loaded = loaded or read()
            crop = Crop(score, photo, crop_jpeg(*loaded, self.colours, number, row, column))
            with self._lock:
                kept = sorted([*self._kept[number], crop], key=lambda crop: (-crop.score, crop.photo))
                self._kept[number] = kept[:MOST]

    def _wanted(self, number: int, score: float, photo: str) -> bool:
        with self._lock:
            kept = self._kept[number]
            return len(kept) < MOST or (-score, photo) < (-kept[-1].score, kept[-1].photo)

    @property
    def all(self) -> list[list[Crop]]:
        """The crops of every cluster, the clearest first."""
        return list(self._kept.values())


def crop_jpeg(image: np.ndarray, ids: np.ndarray, colours: np.ndarray, number: int, row: float, column: float) -> bytes:
    """A square of the photo around a place, as JPEG: outside one cluster it is faded, inside lies its outline."""
    height, width = ids.shape
    side = max(1, round(PART * min(height, width)))
    top, left = (round(min(max(p * n - side / 2, 0), n - side)) for p, n in ((row, height), (column, width)))
    part = np.s_[top : top + side, left : left + side]
    drawn = np.array(Image.fromarray(image[part]).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    inside = (ids[part] == number).astype(np.uint8)
    inside = np.array(Image.fromarray(inside).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    line = drawn.copy()
    draw_outlines(line, inside, np.stack([colours[number]] * 2), 3)
    drawn = np.where(inside[..., None] > 0, line, drawn // 3 + FADED)
    buffer = io.BytesIO()
    Image.fromarray(drawn).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.getvalue()
