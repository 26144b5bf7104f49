"""Anybody's photos: every image below a folder, of any mix of sizes and formats, without labels."""

import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from depthg.data.base import Dataset, FileSplit, Subset, drop_unreadable
from depthg.data.files import IMAGE_SUFFIXES, list_files, tree_error

NOT_READ = (".heic", ".heif", ".avif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raw", ".psd", ".jxl")
EXPECTED = f"""
photos, in subfolders if you like ({" ".join(IMAGE_SUFFIXES)})
"""


class Folder(Dataset):
    """Every photo below `root`, sorted by path; nothing is written there.

    `train` is all photos, `val` at most `n_val` of them, evenly spread: without labels nothing is scored, so the same
    photos serve for pictures.

    Args:
        root: the folder.
        n_val: largest number of photos in `val`.
        on_error: "raise", or "skip" to leave out (and report) photos that cannot be read.

    Raises:
        FileNotFoundError: the folder is missing or holds no photo.
        ValueError: n_val < 1.
    """

    def __init__(self, root: str | Path, n_val: int = 60, on_error: str = "raise"):
        if n_val < 1:
            raise ValueError(f"n_val={n_val} must be at least 1")
        root = Path(root).expanduser()
        images = list_files(root, recursive=True) if root.is_dir() else []
        other = list_files(root, NOT_READ, recursive=True) if root.is_dir() else []
        counts = ", ".join(f"{n} {suffix}" for suffix, n in sorted(Counter(p.suffix.lower() for p in other).items()))
        if not images:
            hint = f" (but {counts}: convert them to .jpg or .png)" if other else ""
            raise tree_error(f"folder: no photos below {root}{hint}", root, EXPECTED)
        if other:
            warnings.warn(f"{root}: left out {counts}; convert them to .jpg or .png to use them", stacklevel=2)
        train = drop_unreadable(FileSplit(images, root=root), on_error)
        super().__init__(
            name="folder",
            classes=(),
            palette=np.zeros((0, 3), np.uint8),
            train=train,
            val=Subset(train, spread(len(train), n_val)),
        )


def spread(total: int, n: int) -> np.ndarray:  # int64 [min(n, total)]
    """`n` indices below `total`, evenly spread from the first to the last; all of them when there are fewer."""
    return np.linspace(0, total - 1, min(n, total)).round().astype(np.int64)
