"""GeoTIFFs of any size as 8-bit RGB, some rows at a time: the pixels that `files.read_image` makes of the whole."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from depthg.data.deep import bands_of, is_deep, partly_read, picked, to_rgb
from depthg.data.errors import DataError, show
from depthg.data.files import missing_pixels, read_image
from depthg.data.geotiff import CACHE, Place, environment, opened, tiff_tags, unreadable
from depthg.data.pixels import no_data, rgb_array, type_range
from depthg.data.reading import Reading
from depthg.data.tiff import BYTES_PER_PIXEL, Values, flag_of

ROWS = 128  # that are looked at together
_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _EXTRA, _FORMAT = 258, 262, 274, 277, 338, 339
_GDAL_NODATA, _FLOATS = 42113, 3
_TYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")
_PLAIN = ("L", "LA", "R", "RGB", "RGBX", "RGBXX", "RGBXXX", "RGBA")  # how Pillow's pixels lie that it only copies
_FAMILIES = (1, 2)  # grey with black as 0, and red, green and blue


@dataclasses.dataclass(frozen=True)
class Kind:
    """What `files.read_image` makes of a file: Pillow's mode, or None where the package tifffile reads it.

    ``exact``: rasterio gives the same values. It up-samples the colours of JPEG in another way, and Pillow mistakes
    bands of 16 bits that lie apart.
    """

    mode: str | None
    deep: bool
    bands: int
    alpha: bool
    partly: bool = False
    exact: bool = True

    def by_type(self, reading: Reading) -> bool:
        """Whether Pillow's own conversion to 8 bits is taken, as in `deep.photo_array`."""
        settled = self.mode is None or self.partly or reading.bands
        return not settled and (reading.limits is None or not self.deep)


def kind_of(path: str | Path) -> Kind | None:
    """The kind of a TIFF file whose values rasterio gives as the usual readers do, or nearly; None for any other."""
    tags = tiff_tags(path)
    bits = set(tags.get(_BITS, (1,)))
    if tags.get(_ORIENTATION, (1,))[0] != 1 or len(bits) > 1 or len(set(tags.get(_FORMAT, (1,)))) > 1:
        return None
    try:
        with TiffImageFile(path) as image:  # unlike Image.open not limited in size; only the header is read
            arguments = vars(image)["tile"][0][3]  # of Pillow's decoder: how the pixels are stored, and more
            stored = arguments if isinstance(arguments, str) else arguments[0]
            if stored not in _PLAIN and not stored.startswith(("RGB;16", "RGBX;16", "RGBA;16", "I;16", "I;32", "F;32")):
                return None
            exact = tags.get(_PHOTOMETRIC, (None,))[0] in _FAMILIES and not (is_deep(image) and stored == "R")
            return Kind(image.mode, is_deep(image), *bands_of(image), partly_read(image), exact)
    except Exception:  # a mode that Pillow does not know, or a damaged file
        if tags.get(_PHOTOMETRIC, (None,))[0] not in _FAMILIES:
            return None
        alpha = tags.get(_EXTRA, (0,))[-1] in (1, 2)
        if alpha and _FLOATS in tags.get(_FORMAT, ()):  # what is opaque depends on all of its values
            return None
        return Kind(None, max(bits) > 8, tags.get(_SAMPLES, (1,))[0] - alpha, alpha)


class RasterRows:
    """A GeoTIFF that is read by rows. Use it as a context manager; other files of rasterio need none beside it.

    Attributes:
        size: height and width.
        place: where it lies.

    Raises:
        DataError: it cannot be read, holds complex values, lacks a band of ``reading``, or is stored in parts that are
            too large.
    """

    def __init__(self, path: str | Path, kind: Kind, reading: Reading):
        self.path, self.kind, self.reading = path, kind, reading
        with contextlib.ExitStack() as stack:
            stack.enter_context(environment())
            self._raster = stack.enter_context(opened(path))
            self.size: tuple[int, int] = self._raster.shape
            self.place = Place.of(self._raster)
            self.flag = flag_of(tiff_tags(path).get(_GDAL_NODATA, ("",))[0])
            self._check()
            stack.enter_context(environment(max(CACHE, 2 * self._block_row)))
            self._files = stack.pop_all()

    def __enter__(self) -> RasterRows:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._files.close()

    def _check(self) -> None:
        raster, reading = self._raster, self.reading
        types = sorted(set(raster.dtypes))
        if len(types) != 1 or types[0] not in _TYPES:
            raise DataError(f"{show(self.path)} holds {', '.join(types) or 'no bands'}, expected {', '.join(_TYPES)}")
        if reading.bands and max(reading.bands) > raster.count:
            asked = f"data.bands={list(reading.bands)} asks for band {max(reading.bands)}"
            raise DataError(f"{show(self.path)}: it has {raster.count} bands, but {asked}")
        height, width = raster.block_shapes[0]
        together = raster.count if raster.interleaving is None or raster.interleaving.name == "pixel" else 1
        value = np.dtype(types[0]).itemsize
        self._block_row = height * raster.width * together * value
        part = max(height * width * together, ROWS * raster.width * raster.count) * value
        if part > BYTES_PER_PIXEL * reading.max_pixels:
            raise DataError(
                f"{show(self.path)}: its parts of {width} x {height} pixels take {part / 1e9:.1f} GB of memory; store "
                "it in tiles (gdal_translate -co TILED=YES -co COMPRESS=DEFLATE)"
            )

    @property
    def bands(self) -> tuple[int, ...]:
        """Numbers of the bands that are read: those that are shown, and the opacity that lies over them."""
        if self.reading.bands:
            return self.reading.bands
        shown = (1, 2, 3) if self.kind.bands >= 3 else (1,)
        return (*shown, self._raster.count) if self.kind.alpha else shown

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """RGB, uint8 [rows, W, 3], and pixels without data, bool [rows, W]; None for the latter if there are none."""
        values = self._values(start, stop, self.bands)
        return self._rgb(values), self._missing(values, start, stop)

    def sample(self, step: int) -> Values:
        """Every ``step``-th value of every ``step``-th row, of all bands."""
        every, parts = tuple(range(1, self._raster.count + 1)), []
        for start in range(0, self.size[0], ROWS):
            part = self._values(start, min(start + ROWS, self.size[0]), every).array
            parts.append(part[-start % step :: step, ::step].copy())
        return Values(np.concatenate(parts), self.kind.alpha, self.flag)

    def _values(self, start: int, stop: int, bands: tuple[int, ...]) -> Values:
        array = np.moveaxis(self._window(self._raster.read, list(bands), start, stop), 0, -1)
        if self.kind.mode == "I" and self.kind.bands == 1:
            array = array.astype(np.int32)  # as Pillow's
        return Values(array, self.kind.alpha and not self.reading.bands, self.flag)

    def _window(self, read: Any, bands: Any, start: int, stop: int) -> np.ndarray:
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        try:
            return read(bands, window=Window(0, start, self.size[1], stop - start))
        except RasterioError as error:
            raise unreadable(self.path, error) from error

    @property
    def _shown(self) -> Reading:
        """The reading of values that are only of the bands that are shown."""
        return dataclasses.replace(self.reading, bands=())

    def _rgb(self, values: Values) -> np.ndarray:
        array = values.array
        try:
            if not self.kind.by_type(self.reading):
                return to_rgb(values, self._shown, self._ends)
            if self.kind.deep and array.shape[2] == 1:
                grey = type_range(array[..., 0], ends=self._ends)
                return rgb_array(Image.fromarray(grey))
            if self.kind.deep:  # Pillow takes the upper byte
                array = (array >> 8).astype(np.uint8)
            return rgb_array(Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array)))
        except DataError as error:
            raise DataError(f"{show(self.path)}: {error}") from error

    @cached_property
    def _ends(self) -> tuple[float, float] | None:
        """Least and greatest value of the file, where its range depends on them."""
        if self.reading.limits is not None or self._raster.dtypes[0] in ("uint8", "uint16"):
            return None
        flag = None if self.kind.by_type(self.reading) else self.flag
        ends = []
        for start in range(0, self.size[0], ROWS):
            values = self._values(start, min(start + ROWS, self.size[0]), self.bands)
            array = picked(values, ())[0]
            holes = no_data(array, flag)
            array = array if holes is None else np.where(holes, array.dtype.type(0), array)
            ends += [array.min(), array.max()]
        return min(ends), max(ends)

    def _missing(self, values: Values, start: int, stop: int) -> np.ndarray | None:
        """Where one value of a deep file is no data, all values of an 8-bit one are, or opacity or a mask says so."""
        array, opacity = picked(values, ())
        found, missing = no_data(array, self.flag), None
        if found is not None:
            missing = np.any(found, axis=-1) if self.kind.deep else np.all(found, axis=-1)
        hidden = [] if opacity is None else [opacity == 0]
        if self._masked:
            hidden.append(self._window(self._raster.read_masks, 1, start, stop) == 0)
        for more in hidden:
            missing = more if missing is None else missing | more
        return missing if missing is not None and missing.any() else None

    @cached_property
    def _masked(self) -> bool:
        """Whether the file holds a mask beside its bands, or an opacity that is not read with them."""
        from rasterio.enums import MaskFlags

        flags = self._raster.mask_flag_enums[0]
        return MaskFlags.per_dataset in flags and (MaskFlags.alpha not in flags or bool(self.reading.bands))


class WholeRows:
    """A file of another kind, read as a whole by the usual readers; the rows of :class:`RasterRows`."""

    def __init__(self, path: str | Path, reading: Reading):
        self.path, self.reading = path, reading
        with environment(), opened(path) as raster:
            self.place = Place.of(raster)
            if any(name.startswith("complex") for name in raster.dtypes):
                raise DataError(f"{show(path)} holds complex values, expected {', '.join(_TYPES)}")
        self._image: np.ndarray | None
        self._image, self._missing = read_image(path, reading), missing_pixels(path, reading)
        self.size = self._image.shape[:2]

    def __enter__(self) -> WholeRows:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the memory."""
        self._image = self._missing = None

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """As :meth:`RasterRows.read`."""
        missing = None if self._missing is None else self._missing[start:stop]
        return self._image[start:stop], missing if missing is not None and missing.any() else None


def raster_rows(path: str | Path, reading: Reading) -> RasterRows | WholeRows:
    """The rows of a GeoTIFF: read one after another where they are those of the usual readers, or it is too large."""
    kind = kind_of(path)
    if kind is None:
        return WholeRows(path, reading)
    rows = RasterRows(path, kind, reading)
    if kind.exact or math.prod(rows.size) > reading.max_pixels:
        return rows
    with rows:
        return WholeRows(path, reading)
