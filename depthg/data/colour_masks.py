"""Label maps that show each class in a colour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from depthg.data.decoding import SKIP
from depthg.data.errors import DataError, show


@dataclass(frozen=True)
class MaskColours:
    """Which class each colour of a label map stands for.

    Attributes:
        codes: int32 [n], sorted: red * 65536 + green * 256 + blue.
        labels: int64 [n], class of each, -1 = void.
        palettes: maps with a palette are read by its colours too, not by their indices.
    """

    codes: np.ndarray
    labels: np.ndarray
    palettes: bool = False

    @classmethod
    def of(cls, colours: Mapping[tuple[int, int, int], int], palettes: bool = False) -> MaskColours | None:
        """From class by colour; None for an empty mapping."""
        codes = {(red << 16) + (green << 8) + blue: label for (red, green, blue), label in colours.items()}
        ordered = sorted(codes)
        if not codes:
            return None
        return cls(np.array(ordered, np.int32), np.array([codes[key] for key in ordered], np.int64), palettes)

    @property
    def key(self) -> list:
        """What a cache key must know."""
        return [self.codes.tolist(), self.labels.tolist(), self.palettes]

    def labels_of(self, rgb: np.ndarray, path: str | Path) -> np.ndarray:  # uint8 [..., 3] -> int64 [...]
        """The class of every pixel.

        Raises:
            DataError: a colour that no class has.
        """
        codes = code(rgb)
        place = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        unknown = self.codes[place] != codes
        if unknown.any():
            found, counts = np.unique(codes[unknown], return_counts=True)
            order = np.argsort(-counts)[:5]
            listed = ", ".join(f"#{found[i]:06x} ({counts[i]:,} pixels)" for i in order)
            more = ", ..." if len(found) > len(order) else ""
            raise DataError(
                f"{show(path)} has the colours {listed}{more}, which no class (or more than one) has: add them to "
                f"data.classes (the name void leaves them out), or save the map without smoothed edges{SKIP}"
            )
        return self.labels[place]

    def all_known(self, rgb: np.ndarray) -> bool:  # uint8 [..., 3]
        """Whether every colour has a class."""
        codes = code(rgb)
        place = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        return bool((self.codes[place] == codes).all())


def code(rgb: np.ndarray) -> np.ndarray:  # uint8 [..., 3] -> int32 [...]
    """Colours as numbers."""
    wide = rgb.astype(np.int32)
    return (wide[..., 0] << 16) + (wide[..., 1] << 8) + wide[..., 2]
