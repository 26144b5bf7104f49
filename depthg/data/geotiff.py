"""GeoTIFFs: which TIFF files say where they lie, and how the package rasterio opens and writes them."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL.TiffImagePlugin import ImageFileDirectory_v2

from depthg.data.errors import DataError, show
from depthg.data.kinds import suffix_of
from depthg.data.tiff import TIFF_SUFFIXES

GEO_READ = find_spec("rasterio") is not None
GEO_HINT = "pip install 'depthg[geo]'"
CACHE = 64 << 20  # bytes of decoded blocks that GDAL keeps
_FILTERS = threading.Lock()
_CACHE_MOST = 256 << 20  # where a row of blocks takes more than CACHE
_PLACED = (33550, 33922, 34264, 34735, 50844)  # pixel scale, tie points, transformation, keys of the CRS, RPCs


@dataclass(frozen=True)
class Place:
    """Where a raster lies: its coordinate reference system, and an affine transform or ground control points."""

    crs: Any
    transform: Any
    gcps: tuple[Any, ...]
    rpcs: Any

    @classmethod
    def of(cls, raster: Any) -> Place:
        """The place of an opened raster."""
        gcps, crs = raster.gcps
        return cls(crs if gcps else raster.crs, raster.transform, tuple(gcps), raster.rpcs)

    @property
    def known(self) -> bool:
        return bool(self.crs or self.gcps or self.rpcs) or not self.transform.is_identity


def tiff_tags(path: str | Path) -> dict[int, tuple]:
    """The tags of the first image of a TIFF file, each as a tuple; empty for other files. Reads no pixels."""
    if suffix_of(path) not in TIFF_SUFFIXES or not os.path.isfile(path):
        return {}
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                return {}
            directory = ImageFileDirectory_v2(head + (file.read(8) if b"+" in head[:4] else b""))
            file.seek(directory.next)
            directory.load(file)
        return {tag: value if isinstance(value, tuple) else (value,) for tag, value in directory.items()}
    except Exception:  # on damaged files Pillow raises almost anything; whoever reads the pixels tells what is wrong
        return {}


def pixels_of_tags(path: str | Path) -> int:
    """Number of pixels that the tags of a TIFF file tell; 0 if they tell none."""
    tags = tiff_tags(path)
    width, height = (tags.get(tag, (0,))[0] for tag in (256, 257))
    return width * height


def has_place(path: str | Path) -> bool:
    """Whether a TIFF file has tags that say where it lies; rasterio is not needed."""
    tags = tiff_tags(path)
    return any(tag in tags for tag in _PLACED)


def lost_place(path: str | Path) -> bool:
    """Whether a file is a GeoTIFF and rasterio, which would keep its georeference, is missing."""
    return not GEO_READ and has_place(path)


def is_geotiff(path: str | Path) -> bool:
    """Whether a file has a coordinate reference system or any georeference that rasterio can keep.

    True also for a file that says so and cannot be opened: reading it tells what is wrong.
    """
    if not GEO_READ or not has_place(path):
        return False
    try:
        with environment(), opened(path) as raster:
            return Place.of(raster).known
    except DataError:
        return True


def environment(cache: int = CACHE) -> AbstractContextManager:
    """The settings under which GDAL works: no files beside an image are read or written, and its memory is bounded."""
    import rasterio

    return rasterio.Env(
        GDAL_PAM_ENABLED="NO",
        GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR",
        GDAL_GEOREF_SOURCES="INTERNAL",
        GDAL_CACHEMAX=min(cache, _CACHE_MOST),
    )


@contextmanager
def without_warnings() -> Iterator[None]:
    """Nothing is said about a file without a transform; threads wait for each other, as the filters are of all."""
    from rasterio.errors import NotGeoreferencedWarning

    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def opened(path: str | Path) -> AbstractContextManager[Any]:
    """A TIFF file, opened by rasterio; call it within :func:`environment`.

    Raises:
        DataError: it is no local regular file, no TIFF, or damaged.
    """
    import rasterio
    from rasterio.errors import RasterioError

    whole = os.path.abspath(path)
    if not os.path.isfile(whole) or whole.startswith("/vsi"):  # where GDAL would look into archives or the network
        raise DataError(f"cannot read {show(path)}: it is no regular file; give the path of a local file")
    try:
        with without_warnings():
            return closing(rasterio.open(Path(whole), driver="GTiff"))
    except RasterioError as error:
        raise unreadable(path, error) from error


def unreadable(path: str | Path, error: Exception) -> DataError:
    """The error of a file that rasterio cannot read."""
    reason = " ".join(str(error.__cause__ or error).split())
    return DataError(
        f"cannot read {show(path)}: it is truncated, damaged or no TIFF ({reason}); replace or remove the file"
    )
