"""A photo file opened safely: every failure is a DataError that names the file and says what to do about it."""

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from PIL import Image

from depthg.data.errors import DataError, show
from depthg.data.kinds import HEIF_HINT, HEIF_READ, HEIF_SUFFIXES, IMAGE_SUFFIXES, register, suffix_of
from depthg.data.reading import Reading
from depthg.data.tiff import TIFF_SUFFIXES

SKIP = ", or pass data.on_error=skip to leave such photos out"
_MORE = ", or pass data.max_pixels=N"
_FIX = "replace or remove the file" + SKIP


def without_setting(error: DataError, larger: str = "") -> str:
    """The message without its advice about data settings, for commands that have none; `larger` allows more pixels."""
    return str(error).replace(SKIP, "").replace(_MORE, larger and f", or pass {larger}")


def decode(path: str | Path, convert: Callable, reading: Reading, load: bool = True, other: Callable | None = None):
    """`convert(image)` of an opened file; whatever Pillow raises on a bad file becomes a DataError.

    `other(limit)` is the result for a TIFF that Pillow does not know.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # to open a pipe would wait for ever
            kind = "a folder" if os.path.isdir(path) else "a pipe, a socket or a device"
            raise OSError(errno.EINVAL, f"it is {kind}")
        register(path)
        limit = reading.pixel_limit()
        with _opened(path, other is not None) as image:
            if image is None:
                return other(limit)
            width, height = image.size
            if width * height > limit:
                raise Image.DecompressionBombError(f"{width} x {height} pixels")
            if load:
                image.load()
            return convert(image)
    except DataError as error:
        raise DataError(f"{show(path)}: {error}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{show(path)} is larger than the limit of {limit} pixels ({error}): scale it down{_MORE}; {_FIX}"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # on damaged files Pillow raises almost anything, from SyntaxError to struct.error
        raise DataError(f"cannot read {show(path)}: {_reason(path, error)}; {_FIX}") from error


def _opened(path: str | Path, maybe: bool) -> AbstractContextManager[Image.Image | None]:
    """The file, opened by Pillow; with `maybe`, None for a TIFF that Pillow does not know."""
    try:
        return Image.open(path)
    except Image.UnidentifiedImageError:
        if not maybe or suffix_of(path) not in TIFF_SUFFIXES or os.path.getsize(path) < 8:
            raise
        return nullcontext()


def _reason(path: str | Path, error: Exception) -> str:
    if os.path.islink(path) and not os.path.exists(path):
        return f"it is a broken link to {show(os.readlink(path))}"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "it is empty (0 bytes)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, Image.UnidentifiedImageError):
        if suffix_of(path) in HEIF_SUFFIXES and not HEIF_READ:
            return f"Pillow does not read this format; {HEIF_HINT}"
        return f"it is no image of a format that Pillow reads ({', '.join(IMAGE_SUFFIXES)})"
    return f"it is truncated or damaged ({type(error).__name__}: {error})"
