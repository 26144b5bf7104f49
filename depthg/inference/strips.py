"""Segmentation of a photo row by row: neither its codes nor its scores are ever whole in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from depthg.inference.crf import ALPHA, LEAST_PROBABILITY, cosine_rows, log_softmax
from depthg.inference.crf import ROWS as CRF_ROWS
from depthg.inference.crf_image import crf_image
from depthg.inference.scaling import RowScaler, scaled_blocks
from depthg.inference.segmenter import Segmenter, crf_size, enlarged
from depthg.inference.windows import cut_rows
from depthg.kernels.dense_crf import dense_crf, forget_memory
from depthg.kernels.upsampling import needed_cells, up_sampled_ids
from depthg.runtime.memory import give_back

ROWS = 256  # of ids at a time
READ_ROWS = 128  # of a photo at a time

Rows = Callable[[int, np.ndarray], None]  # takes the first row of a block, and the block


class Source(Protocol):
    """A photo that is read in blocks of rows."""

    size: tuple[int, int]  # height, width

    def rows(self, start: int, stop: int) -> np.ndarray:  # uint8 [stop - start, W, 3]
        """The rows from ``start`` to ``stop``."""

    def close(self) -> None:
        """All rows are read: frees their memory."""


class ArraySource:
    """A decoded photo, uint8 [H, W, 3]; with ``again`` it is let go when it is read, and ``image`` then calls that."""

    def __init__(self, image: np.ndarray, again: Callable[[], np.ndarray] | None = None):
        self._image, self._again, self.size = image, again, image.shape[:2]

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.image[start:stop]

    def close(self) -> None:
        if self._again is not None:
            self._image = None

    @property
    def image(self) -> np.ndarray:
        if self._image is None:
            self._image = self._again()
        return self._image


class Picture:
    """A photo scaled down while it is read; ``image`` is uint8 [h, w, 3] when all rows were pushed."""

    def __init__(self, size: tuple[int, int], new: tuple[int, int]):
        self.image, self._done = np.empty((*new, 3), np.uint8), 0
        self._scaler = RowScaler(size, new, "antialias")

    def push(self, block: np.ndarray) -> None:
        rows = self._scaler.push(block)
        self.image[self._done : self._done + len(rows)] = rows
        self._done += len(rows)


class RowBlocks:
    """Cuts maps that come as strips into the cells that blocks of up-sampled rows lie between.

    Args:
        cells: rows of the maps.
        pixels: rows after up-sampling.
        step: rows of a block.
    """

    def __init__(self, cells: int, pixels: int, step: int):
        self.cells, self.pixels, self.step = cells, pixels, step
        self._start = self._first = 0
        self._kept: np.ndarray | None = None

    def push(self, strip: np.ndarray) -> Iterator[tuple[np.ndarray, int, tuple[int, int]]]:  # [n, rows, w]
        """Yields cells [n, r, w], the number of their first row, and start and stop of the block, as they are ready."""
        kept = strip if self._kept is None else np.concatenate([self._kept, strip], 1)
        while self._start < self.pixels:
            rows = self._start, min(self._start + self.step, self.pixels)
            low, high = needed_cells(self.cells, self.pixels, rows)
            unused = min(low - self._first, kept.shape[1])
            kept, self._first = kept[:, unused:], self._first + unused
            if self._first + kept.shape[1] < high:
                break
            yield kept[:, : high - low], low, rows
            self._start = rows[1]
        self._kept = kept.copy()  # a view would keep the strip


def segment(
    segmenter: Segmenter,
    source: Source,
    ids: Rows,
    *,
    crf: bool = False,
    probabilities: Rows | None = None,
    scores: Callable[[np.ndarray], None] | None = None,
    pictures: Sequence[Picture] = (),
) -> None:
    """Segments a photo and passes on what is finished, from top to bottom; equal to ``Segmenter.predict``.

    Holds some rows of windows: about (window / stride + 1) W / stride codes, and with ``crf`` what the filter takes.

    Args:
        source: the photo; each row is read once.
        ids: takes blocks of ``ROWS`` rows of ids [rows, W] (the last may be smaller).
        crf: refine by the dense CRF; the ids come when all is read.
        probabilities: takes blocks of probabilities, float32 [n ids, rows, W].
        scores: takes strips of scores, float32 [n ids, rows, w], at feature resolution.
        pictures: take what is read.
    """
    size, data, merging = source.size, segmenter.run.config.data, segmenter.merging
    plan = segmenter.layout(size)
    grid = segmenter.grid(plan)
    refiner = Refiner(segmenter, size, grid[0]) if crf else None
    watching = [*pictures, *([refiner.picture] if crf else [])]
    likely = RowBlocks(grid[0], size[0], CRF_ROWS)
    found = RowBlocks(grid[0], size[0], ROWS)

    def read() -> Iterator[np.ndarray]:
        for start in range(0, size[0], READ_ROWS):
            block = source.rows(start, min(start + READ_ROWS, size[0]))
            for picture in watching:
                picture.push(block)
            yield block

    blocks = read()
    windows = cut_rows(scaled_blocks(blocks, size, plan.size, data.interpolation), plan)
    for strip in segmenter.strips(windows, plan):
        codes, own = strip.cpu().numpy(), segmenter.scores(strip).cpu().numpy()
        if scores is not None:
            scores(merging.scores(own))
        if refiner is not None:
            refiner.push(codes)
        else:
            for cells, first, rows in found.push(own):
                ids(rows[0], merging.ids(up_sampled_ids(cells, size, rows=rows, first=first, cells=grid[0])))
        for cells, first, rows in likely.push(codes) if probabilities is not None else ():
            logs = log_probabilities(segmenter, cells, size, rows, first, grid[0])
            probabilities(rows[0], merging.probabilities(np.exp(logs)))
        give_back()
    for _ in blocks:  # rows that the network does not see, but pictures show
        pass
    if refiner is not None:
        source.close()
        refined = refiner.ids()
        refiner = None
        give_back()
        for start in range(0, size[0], ROWS):
            ids(start, merging.ids(enlarged(refined, size, (start, min(start + ROWS, size[0])))))


def log_probabilities(
    segmenter: Segmenter, codes: np.ndarray, size: tuple[int, int], rows: tuple[int, int], first: int, cells: int
) -> np.ndarray:  # float32 [n_clusters, rows, W]
    """Log-softmax of twice the cosines in some rows; arguments as ``crf.cosine_rows``."""
    return log_softmax(ALPHA * cosine_rows(codes, segmenter.centroids, size, rows, first, cells))


class Refiner:
    """The dense CRF of a photo of ``size`` = (height, width), whose codes and rows come one after another."""

    def __init__(self, segmenter: Segmenter, size: tuple[int, int], cells: int):
        self.segmenter, self.small = segmenter, crf_size(size)
        self.picture = Picture(size, self.small)
        self._blocks = RowBlocks(cells, self.small[0], CRF_ROWS)
        self._unary = np.empty((segmenter.run.n_clusters, *self.small), np.float32)

    def push(self, codes: np.ndarray) -> None:  # [K, rows, w]
        least = np.float32(np.log(LEAST_PROBABILITY))
        for cells, first, rows in self._blocks.push(codes):
            logs = log_probabilities(self.segmenter, cells, self.small, rows, first, self._blocks.cells)
            np.negative(np.maximum(logs, least), out=self._unary[:, slice(*rows)])

    def ids(self) -> np.ndarray:  # at the smaller size
        image = crf_image(self.picture.image, self.segmenter.run.config.val.crf_image)
        found = dense_crf(self._unary, image, ids=True)
        forget_memory()  # files come next, and take as much
        return found.astype(np.uint8 if self.segmenter.run.n_clusters < 256 else np.uint16)
