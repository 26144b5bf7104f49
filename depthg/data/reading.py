"""How photo files are read: the settings that a data set and a trained run share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image

MAX_PIXELS = 120_000_000  # a phone's 12,000 x 9,000 fits; decoding takes up to 6 bytes per pixel
MAP_ORDERS = ("auto", "upright", "stored")
_PILLOW_LIMIT = 1024**3 // 12  # Pillow's own, unless the program that imports this has set another


@dataclass(frozen=True)
class Reading:
    """How files become 8-bit RGB. Photos of 8 bits in up to three bands are the same under every range.

    Args:
        max_pixels: larger photos are refused, since a small file can promise any size. A limit that the program has set
            in `PIL.Image.MAX_IMAGE_PIXELS` holds too.
        range: values of deeper files that become 0 and 255: "LOW,HIGH", or "type" for 0..65535 of integers and [0, 1]
            or [0, 255] of floats; "auto": a range that `ranges.resolved` has not set yet, and read as "type".
        map_order: how label and depth maps of photos that EXIF turns lie: "upright", as the photos are shown, "stored",
            as their pixels are stored, or "auto", told by the size where it differs and else upright, with a warning.
        bands: numbers, from 1, of the bands that become red, green and blue, or one that becomes grey; empty: 1, 2, 3.
    """

    max_pixels: int = MAX_PIXELS
    range: str = "auto"
    bands: tuple[int, ...] = ()
    map_order: str = "auto"

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise ValueError(f"data.max_pixels={self.max_pixels} must be at least 1")
        check_range(self.range)
        check_bands(self.bands)
        if self.map_order not in MAP_ORDERS:
            raise ValueError(f"data.map_order={self.map_order!r} is not one of {', '.join(MAP_ORDERS)}")

    @classmethod
    def of(cls, data: Any) -> Reading:
        """The reading of the settings `data`, a `config.schema.DataConfig`."""
        return cls(max_pixels=data.max_pixels, range=data.range, bands=tuple(data.bands), map_order=data.map_order)

    @cached_property
    def limits(self) -> tuple[float, float] | None:
        """Lower and upper end of the range, None for that of the type."""
        return None if self.range in ("auto", "type") else parse_range(self.range)

    @property
    def key(self) -> list[str]:
        """What a cache key must know, empty for the usual reading: max_pixels changes no photo."""
        limits = [] if self.limits is None else [f"range {self.limits[0]!r} {self.limits[1]!r}"]
        order = [] if self.map_order == "auto" else [f"maps {self.map_order}"]
        return limits + ([f"bands {self.bands}"] if self.bands else []) + order

    def pixel_limit(self) -> int:
        """The largest number of pixels; also raises Pillow's own limit to it, which Pillow knows per process alone."""
        own = Image.MAX_IMAGE_PIXELS
        if own is not None and own < self.max_pixels:
            if own not in (_PILLOW_LIMIT, *_raised):
                return own
            _raised.add(self.max_pixels)
            Image.MAX_IMAGE_PIXELS = self.max_pixels
        return self.max_pixels


def parse_range(text: str) -> tuple[float, float]:
    """The numbers of "LOW,HIGH". Raises ValueError for any other text."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"data.range={text} is neither auto, type nor LOW,HIGH (two numbers, the lower one first)")
    return low, high


def check_range(text: str) -> None:
    """Raises ValueError unless `text` is a value of data.range."""
    if text not in ("auto", "type"):
        parse_range(text)


def check_bands(bands: Sequence[int]) -> None:
    """Raises ValueError unless `bands` is a value of data.bands."""
    if len(bands) not in (0, 1, 3) or any(band < 1 for band in bands):
        raise ValueError(f"data.bands={list(bands)} must be three band numbers (red, green, blue) or one, from 1 on")


_raised: set[int] = set()  # limits that were set here
DEFAULT = Reading()
