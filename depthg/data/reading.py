"""How photo files are read: the settings that a data set and a trained run share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

MAX_PIXELS = 120_000_000  # a phone's 12,000 x 9,000 fits; decoding takes up to 6 bytes per pixel
_PILLOW_LIMIT = 1024**3 // 12  # Pillow's own, unless the program that imports this has set another


@dataclass(frozen=True)
class Reading:
    """How files become 8-bit RGB.

    Args:
        max_pixels: larger photos are refused, since a small file can promise any size. A limit that the program has set
            in `PIL.Image.MAX_IMAGE_PIXELS` holds too.
    """

    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise ValueError(f"data.max_pixels={self.max_pixels} must be at least 1")

    @classmethod
    def of(cls, data: Any) -> Reading:
        """The reading of the settings `data`, a `config.schema.DataConfig`."""
        return cls(max_pixels=data.max_pixels)

    def pixel_limit(self) -> int:
        """The largest number of pixels; also raises Pillow's own limit to it, which Pillow knows per process alone."""
        own = Image.MAX_IMAGE_PIXELS
        if own is not None and own < self.max_pixels:
            if own not in (_PILLOW_LIMIT, *_raised):
                return own
            _raised.add(self.max_pixels)
            Image.MAX_IMAGE_PIXELS = self.max_pixels
        return self.max_pixels


_raised: set[int] = set()  # limits that were set here
DEFAULT = Reading()
