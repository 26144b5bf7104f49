"""TIFF files that Pillow does not read, or reads in part: many bands, deep colours, doubles (the package tifffile)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from depthg.data.errors import DataError
from depthg.data.pixels import turned

TIFF_SUFFIXES = (".tif", ".tiff")
TIFF_READ = find_spec("tifffile") is not None
HINT = "pip install 'depthg[tiff]' reads this kind of TIFF"
BYTES_PER_PIXEL = 12  # of data.max_pixels: what the values of all bands together may take
_ORIENTATION, _GDAL_NODATA = 274, 42113
_DEFLATE = (8, 32946)
_ALPHA = (1, 2)  # ExtraSamples


@dataclass(frozen=True)
class Values:
    """The stored values of a photo, upright.

    Attributes:
        array: [H, W, B], the file's own dtype.
        alpha: the last band says how opaque a pixel is.
        flag: the value that means no data, None if the file names none.
    """

    array: np.ndarray
    alpha: bool = False
    flag: float | None = None


def tiff_values(path: str | Path, limit: int) -> Values:
    """Reads all bands of the first image of a TIFF file.

    Args:
        path: the file.
        limit: largest number of pixels.

    Raises:
        DataError: tifffile is missing, or the file holds no numbers.
        Exception: whatever tifffile raises on damaged files.
    """
    with _page(path, limit) as page:
        try:
            array = page.asarray(maxworkers=1)
        except ValueError as error:
            if "imagecodecs" in str(error):
                name = getattr(page.compression, "name", page.compression)
                raise DataError(f"its compression {name} needs another package: pip install imagecodecs") from error
            raise
        array = np.moveaxis(array, 0, -1) if page.axes == "SYX" else array.reshape(*array.shape[:2], -1)
        turn, flag = page.tags.valueof(_ORIENTATION, default=1), flag_of(page.tags.valueof(_GDAL_NODATA))
        return Values(turned(array, turn), _has_alpha(page), flag)


def tiff_layout(path: str | Path, limit: int) -> tuple[bool, int, bool]:
    """As `files.read_layout`. Raises as :func:`tiff_values`."""
    with _page(path, limit) as page:
        alpha = _has_alpha(page)
        return page.dtype.itemsize > 1, page.samplesperpixel - alpha, alpha


def _has_alpha(page: Any) -> bool:
    return bool(page.extrasamples) and int(page.extrasamples[-1]) in _ALPHA


def tiff_header(path: str | Path, limit: int) -> tuple[tuple[int, int], int]:
    """As `files.image_header`. Raises as :func:`tiff_values`."""
    with _page(path, limit) as page:
        height, width, turn = page.imagelength, page.imagewidth, page.tags.valueof(_ORIENTATION, default=1)
        return ((width, height) if turn >= 5 else (height, width)), turn


def flag_of(text: object) -> float | None:
    """The value that a file names as no data (GDAL's tag), None if it names none."""
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None


@contextmanager
def _page(path: str | Path, limit: int) -> Iterator[Any]:
    """The first image of a TIFF file, once its size is known to fit."""
    if not TIFF_READ:
        raise DataError(f"Pillow does not read it; {HINT}")
    import tifffile

    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        height, width, bands = page.imagelength, page.imagewidth, page.samplesperpixel
        numbers = page.dtype is not None and page.dtype.kind in "fiu"
        if not numbers or page.imagedepth != 1 or page.axes not in ("YX", "YXS", "SYX"):
            raise DataError(f"it holds {page.dtype} in axes {page.axes}; expected numbers, height x width x bands")
        part = int(np.prod(page.chunks, dtype=object)) * page.dtype.itemsize
        size = max(height * width * bands * page.dtype.itemsize, part)
        if height * width > limit or size > BYTES_PER_PIXEL * limit:
            raise Image.DecompressionBombError(f"{width} x {height} pixels, {bands} bands of {page.dtype}")
        _check_segments(page, file.filehandle, part)
        yield page


def _check_segments(page: Any, file: Any, part: int) -> None:
    """Raises OSError if parts of the image lie outside its file or unfold to more than `part` bytes."""
    ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)]
    if not ends or max(ends) > file.size or min(page.dataoffsets) < 0:
        raise OSError("parts of the image lie outside the file")
    if page.compression in _DEFLATE:
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            file.seek(offset)
            if len(zlib.decompressobj().decompress(file.read(count), part + 1)) > part:
                raise OSError("a part of the image unfolds to more than its size")
