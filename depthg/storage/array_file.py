"""``.npy`` files that are made at full size first and filled by ordinary writes, in any order.

On a full disk a write raises an error; a memory map would crash the process.
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
    """Header of the file."""
    file = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


def create_array(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """A sparse file of full size; it takes no disk space yet."""
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
    """Waits until all writes are on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
