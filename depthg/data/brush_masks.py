"""Masks of Label Studio's brush: run lengths of RGBA values, packed bit by bit.

32 bits: the number of values; 5 bits: their width less 1; four times 4 bits: widths of lengths, less 1. Then, until
all values are there: 1 bit (one value that repeats, or different values), 2 bits (which width the length has), the
length less 1, and the value or values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WIDTHS = (3, 4, 8, 16)  # bits of lengths
HEADER, WORD = 32 + 5 + 4 * 4, 8


def encode_mask(mask: np.ndarray) -> bytes:  # bool [H, W]
    """The bytes of a mask: all four channels are 255 inside and 0 outside.

    Raises:
        ValueError: more than 2**30 - 1 pixels, whose number of values the format cannot hold.
    """
    if 4 * mask.size >= 2**32:
        raise ValueError(f"a mask of {mask.size:,} pixels is too large for Label Studio's format (2**30 - 1 pixels)")
    header = f"{4 * mask.size:032b}{WORD - 1:05b}" + "".join(f"{width - 1:04b}" for width in WIDTHS)
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1]) if flat.size else np.zeros(0, np.int64)
    lengths, values = 4 * np.diff(starts, append=flat.size), flat[starts].astype(np.int64) * 255
    most = 2 ** WIDTHS[-1]
    parts = -(-lengths // most)  # of each run, all of the largest length but the last
    last = np.cumsum(parts) - 1
    values, sizes = np.repeat(values, parts), np.full(int(parts.sum()), most, np.int64)
    sizes[last] = lengths - (parts - 1) * most
    kind = np.searchsorted([2**width for width in WIDTHS], sizes)
    width = np.array(WIDTHS)[kind]
    words = (((((1 << 2) | kind) << width) | (sizes - 1)) << WORD) | values
    count = 3 + width + WORD
    bits = np.unpackbits((words << (32 - count)).astype(">u4").view(np.uint8)).reshape(-1, 32)
    body = bits[np.arange(32) < count[:, None]]
    return np.packbits(np.concatenate([np.frombuffer(header.encode(), np.uint8) - ord("0"), body])).tobytes()


def decode_values(packed: Sequence[int] | bytes, size: tuple[int, int]) -> np.ndarray:  # -> uint8 [H, W]
    """The alpha channel of a mask, as Label Studio draws it.

    Args:
        packed: values from 0 to 255.
        size: height and width that the mask must have.

    Raises:
        ValueError: damaged, or of another size.
    """
    data = bytes(packed)
    end, place = 8 * len(data), 0

    def read(count: int) -> int:
        nonlocal place
        if place + count > end:
            raise ValueError("it ends too early")
        first, after = place // 8, -(-(place + count) // 8)
        part = int.from_bytes(data[first:after], "big") >> (8 * after - place - count)
        place += count
        return part & ((1 << count) - 1)

    total, word = read(32), read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    if total != 4 * size[0] * size[1] or word != WORD:
        raise ValueError(f"it has {total:,} values of {word} bits, not {4 * size[0] * size[1]:,} of {WORD}")
    values = np.empty(total, np.uint8)
    start = 0
    while start < total:
        repeated = read(1)
        stop = start + 1 + read(widths[read(2)])
        if stop > total:
            raise ValueError("its lengths exceed its size")
        if repeated:
            values[start:stop] = read(WORD)
        else:
            values[start:stop] = [read(WORD) for _ in range(stop - start)]
        start = stop
    return values.reshape(*size, 4)[..., 3]
