"""Kinds of files by suffix: those that are read as photos, and a line that counts the others."""

import os
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

HEIF_SUFFIXES = (".heic", ".heif")  # read by the package pillow-heif
HEIF_READ = find_spec("pillow_heif") is not None
AVIF_READ = find_spec("PIL._avif") is not None  # Pillow from 11.3 on
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".jp2",
    *((".avif",) if AVIF_READ else ()), *(HEIF_SUFFIXES if HEIF_READ else ()),
)  # fmt: skip
OTHER_PHOTOS = (  # photos that nothing here reads
    ".avif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".raw", ".psd", ".jxl",
    ".exr", ".hdr",
)  # fmt: skip
HEIF_HINT = "pip install 'depthg[heic]' reads .heic"


def suffix_of(path: str | os.PathLike) -> str:
    """The suffix in small letters."""
    return os.path.splitext(os.fspath(path))[1].lower()


def is_photo(path: str | os.PathLike) -> bool:
    """Whether a file's suffix says that it is read as a photo."""
    return suffix_of(path) in IMAGE_SUFFIXES


def not_used(paths: Iterable[Path]) -> str:
    """Files that are left out as one line: their number by suffix, and what makes photos among them readable.

    An empty text if there are none.
    """
    counts = Counter(suffix_of(path) or "without suffix" for path in paths)
    if not counts:
        return ""
    text = ", ".join(f"{number:,} {suffix}" for suffix, number in sorted(counts.items()))
    advice = [HEIF_HINT] if not HEIF_READ and any(suffix in counts for suffix in HEIF_SUFFIXES) else []
    other = [suffix for suffix in OTHER_PHOTOS if suffix in counts and suffix not in IMAGE_SUFFIXES]
    advice += [f"convert {', '.join(other)} to .jpg or .png"] if other else []
    return text + (f" ({'; '.join(advice)})" if advice else "")


def register(path: str | os.PathLike) -> None:
    """Makes Pillow read the kind of a file, where that takes another package."""
    if HEIF_READ and suffix_of(path) in HEIF_SUFFIXES:
        from pillow_heif import register_heif_opener

        register_heif_opener()
