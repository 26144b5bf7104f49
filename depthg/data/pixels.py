"""An opened Pillow image as 8-bit RGB, upright."""

import numpy as np
from PIL import Image

from depthg.data.errors import DataError

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # EXIF orientation -> how to turn the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LARGE, _ROWS = 1 << 22, 256  # pixels of an image that is copied in parts, and rows of a part
_FLAGS = (-9999.0, -32768.0)  # what instruments write where they measured nothing


def rgb_array(image: Image.Image) -> np.ndarray:  # uint8 [H, W, 3]
    """An opened Pillow image as RGB, upright, by the rules of `files.read_image`.

    Raises:
        DataError: its values cannot be turned into 8 bits.
    """
    image = _upright(_to_rgb(image))
    width, height = image.size
    if width * height < _LARGE:
        return np.array(image)
    found = np.empty((height, width, 3), np.uint8)
    for start in range(0, height, _ROWS):  # Pillow would copy a large image twice on the way
        stop = min(start + _ROWS, height)
        found[start:stop] = np.asarray(image.crop((0, start, width, stop)))
    return found


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(type_range(np.array(image))).convert("RGB")
    if "A" in image.mode.upper().replace("LAB", "") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def no_data(values: np.ndarray, flag: float | None = None) -> np.ndarray | None:  # bool, same shape
    """Where values are no measurement: NaN, infinite, -9999, -32768, below -1e30, or `flag`; None if nowhere."""
    if values.dtype.kind == "f":
        found = ~np.isfinite(values) | (values < -1e30)
    elif values.dtype.kind == "i":
        found = np.zeros(values.shape, bool)
    elif flag is None:
        return None
    else:
        found = values == flag
    if values.dtype.kind in "fi":
        for known in (*_FLAGS, *(() if flag is None else (flag,))):
            found |= values == known
    return found if found.any() else None


def type_range(
    values: np.ndarray, holes: np.ndarray | None = None, ends: tuple[float, float] | None = None
) -> np.ndarray:  # uint8, same shape
    """Values to 8 bits by the range of their type: 0..65535 of integers, [0, 1] or [0, 255] of floats; holes are 0.

    ``ends``: least and greatest value of the photo, with 0 for holes, where ``values`` are a part of it.

    Raises:
        DataError: other values.
    """
    holes = no_data(values) if holes is None else holes
    if holes is not None:
        values = np.where(holes, values.dtype.type(0), values)
    low, high = ends or (values.min(), values.max())
    if values.dtype.kind == "f" and 0 <= low and high <= 255:
        return np.rint(values * (255 if high <= 1 else 1)).astype(np.uint8)
    if values.dtype.kind in "iu" and low >= 0 and high <= 65535:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    raise DataError(
        f"values from {low} to {high} cannot be turned into 8 bits; give data.range=LOW,HIGH, or save it as an 8-bit "
        f"or 16-bit image"
    )


def orientation(image: Image.Image) -> int:
    """EXIF orientation that is still to be applied to a loaded image."""
    if image.format == "TIFF":
        return 1  # Pillow turns these upright itself while loading
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block (Pillow raises many types) does not make the photo unusable
        return 1
    return value if value in _UPRIGHT else 1


def stored_orientation(image: Image.Image) -> int:
    """EXIF orientation of the stored pixels of an image that is not decoded yet."""
    if image.format != "TIFF":
        return orientation(image)
    value = getattr(image, "tag_v2", {}).get(_ORIENTATION_TAG, 1)
    return value if value in _UPRIGHT else 1


def _upright(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def turned(array: np.ndarray, value: int) -> np.ndarray:  # [H, W, ...]
    """An array of stored pixels, turned upright by an EXIF orientation."""
    if value in (3, 4, 6, 7):
        array = array[::-1]
    if value in (2, 3, 7, 8):
        array = array[:, ::-1]
    return array.swapaxes(0, 1) if value >= 5 else array
