"""Ids of GeoTIFFs as GeoTIFFs of the same place, whatever their size: segmented by rows, written by rows of tiles."""

from __future__ import annotations

import contextlib
import errno
import math
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from depthg.data.errors import DataError
from depthg.data.geotiff import Place, environment, opened, pixels_of_tags, without_warnings
from depthg.data.raster_rows import RasterRows, WholeRows, raster_rows
from depthg.data.reading import Reading
from depthg.inference.clear_crops import ClearCrops
from depthg.inference.exports.formats import Exports
from depthg.inference.overlays import pixels_of
from depthg.inference.probability_files import ProbabilityRows, write_probabilities
from depthg.inference.segmenter import Segmenter
from depthg.inference.strips import ROWS, Picture, segment
from depthg.inference.targets import Target, write_overlay
from depthg.storage.whole_files import write_whole

PICTURE = 2**24  # pixels of an overlay; larger rasters are scaled down for it
WHOLE = 2**24  # pixels up to which a raster is read as a whole, beside others
SCORES = 2**18  # cells that the search for clear crops looks at, about
TILE = ROWS  # side of a tile of ids


def no_data_id(n: int) -> int:
    """The value of pixels without data beside n ids."""
    return 255 if n <= 255 else 65535


class Holes:
    """Pixels without data of rows that were read and whose ids are not known yet, a bit each."""

    def __init__(self, width: int):
        self.width = width
        self._parts: deque[tuple[int, int, np.ndarray | None]] = deque()  # first row, the row after the last, bits

    def put(self, start: int, stop: int, holes: np.ndarray | None) -> None:  # bool [rows, W], None: nowhere
        """Takes the next rows."""
        self._parts.append((start, stop, None if holes is None else np.packbits(holes, axis=1)))

    def take(self, start: int, stop: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Rows and holes of the parts that lie within the rows from start to stop; later calls ask for later rows."""
        while self._parts and self._parts[0][1] <= start:
            self._parts.popleft()
        for first, end, bits in self._parts:
            if first >= stop:
                break
            if bits is not None:
                rows = slice(max(first, start), min(end, stop))
                part = bits[rows.start - first : rows.stop - first]
                yield rows, np.unpackbits(part, axis=1, count=self.width).view(bool)


class RasterSource:
    """The rows of a raster for ``strips.segment``; fills a picture in which pixels without data are black."""

    def __init__(self, rows: RasterRows | WholeRows, picture: Picture):
        self.size, self.holes, self._rows, self._picture = rows.size, Holes(rows.size[1]), rows, picture

    def rows(self, start: int, stop: int) -> np.ndarray:  # uint8 [stop - start, W, 3]
        image, holes = self._rows.read(start, stop)
        self.holes.put(start, stop, holes)
        self._picture.push(image if holes is None else np.where(holes[..., None], np.uint8(0), image))
        return image

    def close(self) -> None:
        pass


class IdRows:
    """Takes blocks of ids, writes them to a file, counts them, and keeps some of them for pictures.

    Args:
        file: opened by :func:`new_raster`.
        n: number of ids.
        size: height and width.
        shown: height and width of the ids that are kept.
        holes: pixels without data.
    """

    def __init__(self, file: Any, n: int, size: tuple[int, int], shown: tuple[int, int], holes: Holes):
        self.counts = np.zeros(n, np.int64)
        self.kept = np.empty(shown, id_type(n))
        self.whole: np.ndarray | None = None  # an array that takes the ids of all pixels, as exports need them
        self.checksum = 0
        self._file, self._holes = file, holes
        self._rows, self._columns = (
            ((np.arange(new) + 0.5) * old / new).astype(np.int64) for old, new in zip(size, shown, strict=True)
        )

    def put(self, start: int, ids: np.ndarray) -> None:  # [rows, W]
        from rasterio.windows import Window

        n, stop = len(self.counts), start + len(ids)
        ids = ids.copy()
        for rows, holes in self._holes.take(start, stop):
            ids[rows.start - start : rows.stop - start][holes] = no_data_id(n)
        if self.whole is not None:
            self.whole[start:stop] = ids
        self._file.write(ids, 1, window=Window(0, start, ids.shape[1], len(ids)))
        self.checksum = zlib.crc32(ids.tobytes(), self.checksum)
        self.counts += pixels_of(ids, no_data_id(n) + 1)[:n]
        first, last = np.searchsorted(self._rows, (start, stop))
        self.kept[first:last] = np.minimum(ids[self._rows[first:last] - start][:, self._columns], n)


class ThinScores:
    """Keeps some of the scores that come in strips: every cell of small maps, and of others at most about SCORES."""

    def __init__(self, grid: tuple[int, int]):
        self._step, self._next = math.ceil(math.sqrt(max(1.0, math.prod(grid) / SCORES))), 0
        self._strips: list[np.ndarray] = []

    def put(self, strip: np.ndarray) -> None:  # [n, rows, w]
        self._strips.append(strip[:, self._next :: self._step, :: self._step].copy())
        self._next = (self._next - strip.shape[1]) % self._step

    @property
    def all(self) -> np.ndarray:
        return np.concatenate(self._strips, 1)


def id_type(n: int) -> type[np.unsignedinteger]:
    return np.uint8 if n <= 255 else np.uint16


@contextlib.contextmanager
def new_raster(path: Path, size: tuple[int, int], place: Place, colours: np.ndarray) -> Iterator[Any]:
    """Opens a GeoTIFF of ids for writing: tiles, deflate, a value of no data and a table of colours.

    Args:
        path: of the file.
        size: height and width.
        place: that of the raster the ids belong to.
        colours: uint8 [n, 3], of the ids.
    """
    import rasterio

    known = {} if place.gcps or place.transform.is_identity else {"transform": place.transform}
    with without_warnings():
        file = rasterio.open(
            path, "w", driver="GTiff", height=size[0], width=size[1], count=1, dtype=id_type(len(colours)),
            crs=None if place.gcps else place.crs, nodata=no_data_id(len(colours)), tiled=True, blockxsize=TILE,
            blockysize=TILE, compress="deflate", bigtiff="if_safer", **known,
        )  # fmt: skip
    with file:
        if place.gcps:
            file.gcps = (list(place.gcps), place.crs)
        if place.rpcs:
            file.rpcs = place.rpcs
        file.write_colormap(1, {i: tuple(colour) for i, colour in enumerate(colours.tolist())})
        yield file


def check_written(path: Path, checksum: int) -> None:
    """Reads a file of ids again: GDAL does not tell that the last blocks found no room on the disk.

    Raises:
        OSError: it is not what was written.
    """
    from rasterio.errors import RasterioError
    from rasterio.windows import Window

    found = 0
    try:
        with opened(path) as file:
            for start in range(0, file.height, ROWS):
                part = Window(0, start, file.width, min(ROWS, file.height - start))
                found = zlib.crc32(file.read(1, window=part).tobytes(), found)
    except (DataError, RasterioError) as error:
        raise OSError(errno.EIO, "the end of the file is missing") from error
    if found != checksum:
        raise OSError(errno.EIO, "parts of the file are missing")


class SmallRaster:
    """A raster that is segmented as a whole, beside others; threads may read different ones."""

    def __init__(self, path: Path):
        self.path = path
        self._holes: np.ndarray | None = None
        self._place: Place | None = None

    def read_rgb(self, reading: Reading) -> np.ndarray:  # uint8 [H, W, 3]
        """The pixels. Raises as ``raster_rows``."""
        with raster_rows(self.path, reading) as rows:
            self._place = rows.place
            image, self._holes = rows.read(0, rows.size[0])
        return image

    def write(
        self,
        segmenter: Segmenter,
        target: Target,
        image: np.ndarray,  # uint8 [H, W, 3]
        ids: np.ndarray,  # [H, W]
        probabilities: np.ndarray | None,
        plain: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Writes the files of a raster that was read; returns its ids, n without data, and its pixels per id."""
        size, holes = ids.shape, Holes(ids.shape[1])
        holes.put(0, size[0], self._holes)
        if self._holes is not None:
            image = np.where(self._holes[..., None], np.uint8(0), image)
        self._holes = None
        found: list[IdRows] = []

        def write(partial: Path) -> None:
            with environment():
                with new_raster(partial, size, self._place, segmenter.colours) as file:
                    found.append(IdRows(file, segmenter.merging.n, size, size, holes))
                    for start in range(0, size[0], ROWS):
                        found[0].put(start, ids[start : start + ROWS])
                check_written(partial, found[0].checksum)

        write_whole(target.ids, write, flush=False)
        _write_rest(segmenter, target, image, found[0].kept, probabilities, plain)
        return found[0].kept, found[0].counts


def is_small(segmenter: Segmenter, path: Path) -> bool:
    """Whether a raster is segmented as a whole."""
    return pixels_of_tags(path) <= min(WHOLE, segmenter.reading.max_pixels)


def _write_rest(
    segmenter: Segmenter,
    target: Target,
    image: np.ndarray,
    ids: np.ndarray,
    probabilities: np.ndarray | ProbabilityRows | None,
    plain: bool,
) -> None:
    """Writes the overlay and the probabilities of a raster; the id n is that of pixels without data."""
    colours = np.concatenate([segmenter.colours, np.zeros((1, 3), np.uint8)])
    write_overlay(target, image, ids, colours, segmenter.names, plain)
    if target.probabilities is not None:
        write_probabilities(target.probabilities, probabilities, segmenter.names)


def predict_raster(
    segmenter: Segmenter, target: Target, crf: bool, plain: bool, crops: ClearCrops | None, exports: Exports | None
) -> np.ndarray:  # [n ids]
    """Segments a GeoTIFF in strips, writes its files and returns the pixels per id; those without data count for none.

    Raises:
        DataError: the raster cannot be read.
        OSError: an output cannot be written.
    """
    n = segmenter.merging.n
    with contextlib.ExitStack() as files:
        rows = raster_rows(target.photo, segmenter.reading)
        files.callback(rows.close)
        share = min(1.0, math.sqrt(PICTURE / math.prod(rows.size)))
        shown = max(1, int(rows.size[0] * share)), max(1, int(rows.size[1] * share))
        picture = Picture(rows.size, shown)
        source = RasterSource(rows, picture)
        scores = ThinScores(segmenter.grid(segmenter.layout(rows.size)))
        likely = None
        if target.probabilities is not None:
            likely = files.enter_context(ProbabilityRows(target.probabilities.parent, (n, *rows.size)))
        found: list[IdRows] = []

        def write(partial: Path) -> None:
            with new_raster(partial, rows.size, rows.place, segmenter.colours) as file:
                found.append(IdRows(file, n, rows.size, shown, source.holes))
                put = None if likely is None else likely.put
                found[0].whole = np.empty(rows.size, id_type(n)) if exports is not None and exports.files else None
                segment(segmenter, source, found[0].put, crf=crf, probabilities=put, scores=scores.put)
            check_written(partial, found[0].checksum)

        write_whole(target.ids, write, flush=False)
        ids = found[0].kept
        _write_rest(segmenter, target, picture.image, ids, likely, plain)
    if crops is not None:
        crops.offer(target.name, scores.all, lambda: (picture.image, ids))
    if exports is not None and found[0].whole is not None:
        exports.add(target.photo, found[0].whole, scores.all)
    return found[0].counts
