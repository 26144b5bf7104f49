"""Photos of more than 8 bits or other bands than red, green and blue, as 8-bit RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from depthg.data.errors import DataError
from depthg.data.pixels import no_data, orientation, rgb_array, turned, type_range
from depthg.data.reading import Reading
from depthg.data.tiff import Values, flag_of, tiff_values

_BITS, _SAMPLES, _EXTRA, _GDAL_NODATA = 258, 277, 338, 42113
_CONVERTED = ("CMYK", "YCbCr", "LAB", "HSV")  # colours that are turned into red, green and blue
_ROWS = 1 << 20  # values that are scaled at a time


def photo_array(image: Image.Image, path: str | Path, reading: Reading) -> np.ndarray:  # uint8 [H, W, 3]
    """A photo that Pillow has opened and not yet decoded, as RGB, upright.

    Raises:
        DataError: its values cannot be turned into 8 bits, or it lacks a band.
    """
    if not reading.bands and not partly_read(image) and (reading.limits is None or not is_deep(image)):
        image.load()
        return rgb_array(image)
    return to_rgb(values_of(image, path, reading), reading)


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image, not yet decoded, holds more than 8 bits per value."""
    if image.mode == "F" or image.mode.startswith("I"):
        return True
    if image.format == "PNG":
        return ";16" in _raw_mode(image)
    return image.format == "TIFF" and max(_tag(image, _BITS, (8,))) > 8


def bands_of(image: Image.Image) -> tuple[int, bool]:
    """Number of bands of an opened image without its opacity, and whether it has one."""
    if image.mode in _CONVERTED:
        return 3, False
    if image.format != "TIFF":
        alpha = image.mode.endswith(("A", "a"))
        return len(image.getbands()) - alpha, alpha
    samples, extra = _tag(image, _SAMPLES, (1,))[0], _tag(image, _EXTRA, ())
    alpha = bool(extra and extra[-1] in (1, 2)) or image.mode in ("RGBA", "LA", "PA")
    return samples - alpha, alpha


def partly_read(image: Image.Image) -> bool:
    """Whether Pillow opens an image and leaves bands out without which it is another image."""
    return image.format == "TIFF" and len(image.getbands()) < min(3, bands_of(image)[0])


def _raw_mode(image: Image.Image) -> str:
    """How the pixels lie in the file of an image that is not decoded yet, for instance RGB;16B."""
    tiles = vars(image).get("tile")
    return str(tiles[0][3]) if tiles else ""


def _tag(image: Image.Image, number: int, default: tuple) -> tuple:
    tags = getattr(image, "tag_v2", {})
    value = tags.get(number, default)
    return value if isinstance(value, tuple) else (value,)


def values_of(image: Image.Image, path: str | Path, reading: Reading) -> Values:
    """The stored values of all bands of a photo that Pillow has opened and not yet decoded."""
    if image.format == "TIFF":
        bands, alpha = bands_of(image)
        if bands + alpha > len(image.getbands()) or (bands > 1 and is_deep(image)):
            return tiff_values(path, reading.max_pixels)
    if image.format == "PNG" and image.mode in ("RGB", "RGBA") and ";16B" in _raw_mode(image):
        array = _sixteen_bits(image, path)
    else:
        image.load()
        if image.mode not in ("L", "LA", "RGB", "RGBA", "RGBX", "F") and image.mode[0] != "I":
            image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
        array = np.array(image)
    array = array.reshape(*array.shape[:2], -1)
    turn = orientation(image)  # a PNG may say it behind the pixels
    return Values(turned(array, turn), image.mode in ("LA", "RGBA"), flag_of(_tag(image, _GDAL_NODATA, ("",))[0]))


def _sixteen_bits(image: Image.Image, path: str | Path) -> np.ndarray:  # uint16 [H, W, 3 or 4]
    """16-bit colours of a PNG: Pillow gives the upper byte of each value, and the lower one if told the other order."""
    tile = vars(image)["tile"][0]
    with Image.open(path) as again:
        vars(again)["tile"] = [type(tile)(*tile[:3], str(tile[3]).replace(";16B", ";16L"))]
        again.load()
        lower = np.array(again)
    image.load()
    return np.array(image).astype(np.uint16) << 8 | lower


def to_rgb(values: Values, reading: Reading, ends: tuple[float, float] | None = None) -> np.ndarray:  # uint8 [H, W, 3]
    """Stored values as RGB: the bands and the range of `reading`, transparent pixels over white, no data black.

    `ends`: see `pixels.type_range`, where `values` are a part of a photo.
    """
    array, opacity = picked(values, reading.bands)
    missing = no_data(array, values.flag)
    holes = None if missing is None else missing.any(-1)
    low_high = reading.limits
    if array.dtype == np.uint8:
        out = array.copy()
    elif low_high is None:
        out = type_range(array, missing, ends)
    else:
        out = scaled(array, *low_high)
    if holes is not None:
        out[holes] = 0
    if opacity is not None:
        alpha = (opacity if opacity.dtype == np.uint8 else type_range(opacity)).astype(np.float32)[..., None] / 255
        out = np.rint(out * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(out, (*out.shape[:2], 3)))


def picked(values: Values, bands: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None]:
    """The bands that are shown, [H, W, 1 or 3], and the opacity [H, W] if there is one and it counts.

    Raises:
        DataError: there is no such band.
    """
    count = values.array.shape[2]
    if bands and max(bands) > count:
        raise DataError(f"it has {count} bands, but data.bands={list(bands)} asks for band {max(bands)}")
    if bands:
        return values.array[..., [band - 1 for band in bands]], None
    colours = count - values.alpha
    return values.array[..., : 3 if colours >= 3 else 1], values.array[..., -1] if values.alpha else None


def holes_of(values: Values, bands: tuple[int, ...]) -> np.ndarray | None:  # bool [H, W]
    """Pixels without data in one of the bands that are shown, None if there are none."""
    missing = no_data(picked(values, bands)[0], values.flag)
    return None if missing is None else np.any(missing, axis=-1)


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:  # uint8, same shape
    """`255 (v - low) / (high - low)`, rounded and cut off to 0..255; NaN becomes 0."""
    out = np.empty(values.shape, np.uint8)
    dtype = np.dtype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    step = max(1, _ROWS // max(1, values[0].size))
    for start in range(0, len(values), step):  # a large photo in floating point would take four times its memory
        part = (values[start : start + step].astype(dtype) - dtype.type(low)) * dtype.type(255 / (high - low))
        out[start : start + step] = np.rint(np.clip(np.nan_to_num(part, posinf=255, neginf=0), 0, 255))
    return out
