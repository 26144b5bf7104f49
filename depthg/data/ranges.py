"""The range of deep photos (more than 8 bits), chosen once for a whole set, and what is said about their bands."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from depthg.data.deep import picked, to_rgb
from depthg.data.errors import DataError
from depthg.data.files import read_layout, stored_values
from depthg.data.kinds import suffix_of
from depthg.data.pixels import no_data
from depthg.data.raster_rows import Kind, RasterRows
from depthg.data.reading import Reading
from depthg.data.tiff import TIFF_SUFFIXES, Values

_MAYBE_DEEP = (".png", *TIFF_SUFFIXES, ".pgm", ".ppm", ".jp2")
_LOOKED_AT, _SAMPLE, _PIXELS = 20_000, 32, 250_000  # headers; photos decoded; pixels of each
PERCENTILES = 0.1, 99.9
FEWEST_LEVELS = 32  # of 256: with fewer, a photo shows steps


@dataclass(frozen=True)
class Layout:
    """What a file's header says: more than 8 bits per value or not, the number of bands, and opacity beside them."""

    deep: bool
    bands: int
    alpha: bool


def resolved(
    reading: Reading, paths: Sequence[Path], where: str, rasters: Mapping[Path, Kind] = MappingProxyType({})
) -> Reading:
    """The reading with the range of a set of photos in place of "auto"; unchanged where all of them have 8 bits.

    The range holds for all photos: from the 0.1th to the 99.9th percentile of up to 32 deep ones, pixels without data
    left out, or that of the type where photos use more than half of it. Warnings say which range and which bands are
    used, and whether few grey levels are left. Files that cannot be read are passed over; reading them raises later.

    Args:
        reading: from the settings.
        paths: the photos. Of more than 20,000 that may be deep, as many are looked at, evenly spread.
        where: what the photos are called in warnings.
        rasters: those that are read by rows, whatever their size (`raster_rows.kind_of`).

    Raises:
        DataError: integers and floats in one set with data.range=auto.
    """
    maybe = _spread([path for path in paths if suffix_of(path) in _MAYBE_DEEP], _LOOKED_AT)
    layouts = {path: layout for path in maybe if (layout := _layout(path, reading, rasters)) is not None}
    _tell_bands(reading, list(layouts.values()), where)
    deep = [path for path, layout in layouts.items() if layout.deep]
    chosen = _spread(deep, _SAMPLE)
    samples = [values for path in chosen if (values := _sample(path, reading, rasters.get(path))) is not None]
    if not samples:
        return reading
    if reading.range == "auto":
        reading = dataclasses.replace(reading, range=_chosen(samples, reading, where))
        if reading.limits is not None:
            warnings.warn(
                f"{where}: {len(deep):,} of {len(paths):,} photos have more than 8 bits; their values "
                f"{reading.range.replace(',', '..')} become 0..255 (data.range=auto, from {len(samples)} of them); "
                f"data.range=type or LOW,HIGH asks for another range",
                stacklevel=3,
            )
    levels = _levels(samples, reading)
    if levels < FEWEST_LEVELS:
        warnings.warn(
            f"{where}: data.range={reading.range} leaves {levels} of 256 grey levels in {len(samples)} photos of more "
            f"than 8 bits: give data.range=auto or LOW,HIGH",
            stacklevel=3,
        )
    return reading


def _spread(paths: Sequence[Path], number: int) -> list[Path]:
    places = np.linspace(0, len(paths) - 1, min(number, len(paths))).round().astype(int)
    return [paths[place] for place in places]


def _layout(path: Path, reading: Reading, rasters: Mapping[Path, Kind]) -> Layout | None:
    if path in rasters:
        kind = rasters[path]
        return Layout(kind.deep, kind.bands, kind.alpha)
    if not path.is_file():  # to open a pipe would wait for ever
        return None
    try:
        if suffix_of(path) == ".png":
            with open(path, "rb") as file:
                head = file.read(26)
            if len(head) == 26 and head[12:16] == b"IHDR" and head[24] <= 8:
                return Layout(False, 3, False)
        return Layout(*read_layout(path, reading))
    except (DataError, OSError):
        return None


def _tell_bands(reading: Reading, layouts: Sequence[Layout], where: str) -> None:
    """Warns which bands are used of photos that have others than one or three, and no data.bands."""
    if reading.bands:
        return
    for (bands, alpha), number in sorted(Counter((layout.bands, layout.alpha) for layout in layouts).items()):
        if bands not in (1, 3):
            used = "bands 1, 2, 3 are read as red, green and blue" if bands > 3 else "band 1 is read as grey"
            opacity = " and opacity" if alpha else ""
            warnings.warn(
                f"{where}: {number:,} photos have {bands} bands{opacity}; {used}; data.bands=3,2,1 asks for others",
                stacklevel=4,
            )


def _sample(path: Path, reading: Reading, kind: Kind | None) -> Values | None:
    """Some rows and columns of all bands; None for a file that cannot be read."""
    try:
        if kind is not None:
            with RasterRows(path, kind, reading) as rows:
                return rows.sample(_step(*rows.size))
        values = stored_values(path, reading)
        picked(values, reading.bands)
    except DataError:
        return None
    array = values.array
    step = _step(*array.shape[:2])
    return dataclasses.replace(values, array=np.ascontiguousarray(array[::step, ::step]))


def _step(height: int, width: int) -> int:
    return max(1, round((height * width / _PIXELS) ** 0.5))


def _valid(values: Values, reading: Reading) -> np.ndarray:  # [n]
    """The values of a sample that are data and not transparent."""
    array, opacity = picked(values, reading.bands)
    missing = no_data(array, values.flag)
    keep = np.ones(array.shape[:2], bool) if missing is None else ~missing.any(-1)
    if opacity is not None:
        keep &= opacity > 0
    return array[keep].ravel()


def _chosen(samples: Sequence[Values], reading: Reading, where: str) -> str:
    """The value of data.range that fits the samples."""
    kinds = {values.array.dtype.kind == "f" for values in samples}
    if len(kinds) > 1:
        raise DataError(
            f"{where} holds photos of integers and of floats, which have no range in common: give data.range=LOW,HIGH "
            f"or data.range=type"
        )
    found = np.concatenate([_valid(values, reading) for values in samples]).astype(np.float64)
    if not found.size:
        return "type"
    low, high = np.percentile(found, PERCENTILES)
    tops = (1, 255) if True in kinds else (65535,)
    for top in tops:
        if found.min() >= 0 and found.max() <= top:
            if high - low > top / 2:
                return f"0,{top}" if True in kinds else "type"
            break
    if not low < high:
        low, high = found.min(), found.max()
    return f"{_short(low)},{_short(high)}" if low < high else "type"


def _short(value: float) -> str:
    return repr(round(value)) if abs(value) >= 1000 and round(value) != 0 else f"{value:.6g}"


def _levels(samples: Sequence[Values], reading: Reading) -> int:
    """Different 8-bit values in the samples."""
    seen = np.zeros(256, bool)
    for values in samples:
        try:
            rgb = to_rgb(dataclasses.replace(values, alpha=False), reading)
        except DataError:  # values that the range of their type does not hold: reading the photo says so
            return 256
        seen[np.unique(rgb)] = True
    return int(seen.sum())
