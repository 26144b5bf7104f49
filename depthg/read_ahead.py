"""Telling the system which rows of a memory-mapped file are needed next, so that it reads them in the meantime."""

from __future__ import annotations

import os

import numpy as np

AVAILABLE = hasattr(os, "posix_fadvise")  # elsewhere files are read when they are touched


def read_ahead(array: np.ndarray | None, rows: np.ndarray) -> None:
    """Starts the reading of some rows of a map of a file and returns; does nothing for arrays in memory."""
    if not AVAILABLE or not isinstance(array, np.memmap):
        return
    size = array.nbytes // max(1, len(array))
    file = os.open(array.filename, os.O_RDONLY)
    try:
        for row in np.unique(rows).tolist():
            os.posix_fadvise(file, array.offset + row * size, size, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(file)
