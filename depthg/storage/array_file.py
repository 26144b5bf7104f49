"""``.npy`` files that are made at full size first and filled by ordinary writes, in any order.

A memory map would do the same until the disk is full: then it ends the process, where a write raises an error.
"""

from __future__ import annotations

import functools
import io
import math
import os
from pathlib import Path

import numpy as np


def array_bytes(shape: tuple[int, ...], dtype: np.dtype | type) -> int:
    """Bytes of an array's content."""
    return math.prod(shape) * np.dtype(dtype).itemsize


@functools.lru_cache
def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """What the file begins with."""
    file = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


def create_array(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """A file of full size without content; it takes no room yet."""
    header = _header(tuple(shape), dtype)
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + array_bytes(shape, dtype))


def write_rows(path: Path, shape: tuple[int, ...], start: int, rows: np.ndarray) -> None:
    """Writes rows ``start`` to ``start + len(rows)``, contiguous and of the array's type, in one sequential write."""
    with open(path, "rb+") as file:
        file.seek(len(_header(tuple(shape), rows.dtype)) + start * array_bytes(shape[1:], rows.dtype))
        file.write(rows.data.cast("B"))


def flush(path: Path) -> None:
    """Returns when what was written is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
