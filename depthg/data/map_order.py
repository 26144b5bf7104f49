"""Label and depth maps beside photos that EXIF turns, brought into the order of the photos as they are shown."""

from __future__ import annotations

import warnings

import numpy as np

from depthg.data.pixels import turned

SQUARE = 0.02  # sides that differ by less do not tell whether a map is turned


def in_photo_order(
    values: np.ndarray,  # [H, W]
    photo: tuple[int, int],
    turn: int,
    order: str,
    what: str,
    warned: set[str],
) -> np.ndarray:  # [H', W']
    """A map as its photo is shown.

    Args:
        values: the map as stored.
        photo: height and width of the photo as it is shown.
        turn: the photo's EXIF orientation.
        order: data.map_order.
        what: plural for the warning, "label maps".
        warned: what was warned of before; each kind of map is warned of once.
    """
    if turn == 1 or order == "upright":
        return values
    if order == "stored":
        return turned(values, turn)
    if turn >= 5 and abs(photo[0] - photo[1]) > SQUARE * max(photo):
        lying = (values.shape[0] < values.shape[1]) != (photo[0] < photo[1])
        return turned(values, turn) if lying else values
    if what not in warned:
        warned.add(what)
        warnings.warn(
            f"some photos are turned by EXIF (orientation {turn}), and the size of their {what} does not tell whether "
            f"these are turned too: they are taken as upright, as the photos are shown; data.map_order=stored turns "
            f"them, data.map_order=upright keeps them without this warning",
            stacklevel=4,
        )
    return values
