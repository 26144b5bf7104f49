"""Numeric arrays of MATLAB files (version 5, also compressed); all sizes are checked before they are used.

Written here because scipy.io.loadmat ends the process with a segmentation fault on some damaged files.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from depthg.data.files import DataError, show

HEADER = 128  # bytes
LARGEST = 1 << 30  # bytes that one compressed element may unfold to
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX, COMPRESSED = 14, 15
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
COMPLEX = 0x0800


class _Damaged(ValueError):
    """The file is damaged; the message says how."""


def read_mat(path: str | Path, name: str) -> np.ndarray:
    """The numeric array `name` of a MATLAB file, in its own dtype and shape.

    Raises:
        DataError: the file is missing, damaged or of another version, or has no such array.
    """
    found = []
    try:
        data = Path(path).read_bytes()
        for variable, values in _variables(data):
            if variable == name:
                return values()
            found.append(variable)
    except (OSError, _Damaged) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(
            f"cannot read {show(path)}: {reason}; replace or remove the file, or pass data.on_error=skip"
        ) from error
    raise DataError(f"{show(path)} has no variable {name!r}; it holds {show(', '.join(found)) or 'nothing'}")


def _variables(data: bytes) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Name and reader of every variable of a file."""
    order = {b"IM": "<", b"MI": ">"}.get(data[126:HEADER])
    if data[:8] == b"\x89HDF\r\n\x1a\n" or data[512:520] == b"\x89HDF\r\n\x1a\n":
        raise _Damaged("it is a MATLAB file of version 7.3; save it with -v7")
    if len(data) < HEADER or order is None or struct.unpack_from(order + "H", data, 124)[0] != 0x0100:
        raise _Damaged("it is empty (0 bytes)" if not data else "it is no MATLAB file of version 5")
    at = HEADER
    while at < len(data):
        kind, content, at = _element(data, at, order)
        if kind == COMPRESSED:
            kind, content, _ = _element(_unfold(content), 0, order)
        if kind != MATRIX:
            raise _Damaged(f"it has an element of kind {kind} where a variable should be")
        yield _matrix(content, order)


def _unfold(content: bytes) -> bytes:
    unfolding = zlib.decompressobj()
    try:
        data = unfolding.decompress(content, LARGEST)
    except zlib.error as error:
        raise _Damaged(f"its compressed data is damaged ({error})") from error
    if unfolding.unconsumed_tail:
        raise _Damaged(f"its compressed data unfolds to more than {LARGEST} bytes")
    return data


def _element(data: bytes, at: int, order: str) -> tuple[int, bytes, int]:
    """Kind and content of the element at a position, and the position after it."""
    if at + 8 > len(data):
        raise _Damaged("it ends too early")
    kind, size = struct.unpack_from(order + "II", data, at)
    if kind >> 16:  # up to four bytes are stored within the tag
        kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
    else:
        start = at + 8
        end = start + size + (0 if kind == COMPRESSED else -size % 8)
    if start + size > min(end, len(data)):
        raise _Damaged("it ends too early, or an element is longer than it can be")
    return kind, data[start : start + size], end


def _matrix(content: bytes, order: str) -> tuple[str, Callable[[], np.ndarray]]:
    """Name of a matrix, and a function that reads its values."""
    _, head, at = _element(content, 0, order)
    kind, dimensions, at = _element(content, at, order)
    _, text, at = _element(content, at, order)
    if len(head) != 8 or kind != 5 or not 8 <= len(dimensions) <= 32 * 4 or len(dimensions) % 4:
        raise _Damaged("the head of a variable is damaged")
    flags = struct.unpack_from(order + "I", head)[0]
    name = text.decode("ascii", "replace")
    shape = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)

    def values() -> np.ndarray:
        dtype = CLASSES.get(flags & 0xFF)
        if dtype is None or flags & COMPLEX:
            raise _Damaged(f"its variable {name!r} holds no real numbers")
        kind, stored, _ = _element(content, at, order)
        count = 1
        for side in shape:
            count *= max(side, 0)  # Python's integers do not overflow
        if kind not in STORED or count * np.dtype(STORED[kind]).itemsize != len(stored):
            raise _Damaged(f"its variable {name!r} does not have the values of an array {shape}")
        with np.errstate(invalid="ignore"):
            flat = np.frombuffer(stored, order + STORED[kind]).astype(dtype)  # MATLAB stores in the smallest type
        return flat.reshape(shape, order="F")

    return name, values
