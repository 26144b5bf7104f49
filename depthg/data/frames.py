"""Whole photos at any aspect ratio, for evaluation and prediction on the full frame.

`Views` cuts every photo to one size, so that views can be stacked; a frame keeps all of its photo and has a size of its
own. A 320 x 320 centre crop of a Cityscapes photo shows half of it, its frame at side 320 is 320 x 640.
"""

from collections.abc import Mapping

from depthg.data.base import Split, photo_size
from depthg.data.transforms import FloatMap, Views, Window


def frame_size(photo: tuple[int, int], side: int | None, multiple: int) -> tuple[int, int]:
    """Size of a photo with the shorter side scaled to `side` (None: not scaled), in whole multiples of `multiple`.

    Both sides are rounded to the nearest multiple, at least one, so the aspect ratio changes by up to half a multiple
    on each side.

    Args:
        photo: (height, width) in pixels.
        side: pixels.
        multiple: the backbone's stride in pixels.
    """
    scale = 1.0 if side is None else side / min(photo)
    height, width = (max(1, int(n * scale / multiple + 0.5)) * multiple for n in photo)
    return height, width


class Frames(Views):
    """The photos of a split, whole, each view with the size `frame_size` gives it; `load` as in `Views`.

    Labels come at the size of the frame; `split.label(views.photo(view))` has them at the size of the photo.

    Args:
        split: the photos.
        side: pixels of the shorter side, None for photos as they are.
        multiple: sides are multiples of this, the backbone's stride.
        interpolation: as in `Views`.
        maps: float maps by name, as in `Views`.
        map_stride: maps are smaller than the frame by this factor, a divisor of `multiple`.

    Raises:
        ValueError: an impossible option, naming it.
    """

    def __init__(
        self,
        split: Split,
        side: int | None,
        multiple: int,
        interpolation: str = "antialias",
        *,
        maps: Mapping[str, FloatMap] | None = None,
        map_stride: int = 1,
    ):
        if side is not None and side < 1:
            raise ValueError(f"side={side} must be at least 1 pixel, or None for photos as they are")
        if multiple < 1 or map_stride < 1 or multiple % map_stride:
            raise ValueError(f"multiple={multiple} must be at least 1 and a multiple of map_stride={map_stride}")
        super().__init__(split, (multiple, multiple), interpolation=interpolation, maps=maps)
        self.size = self.map_size = None  # each frame has its own
        self.side, self.multiple, self.map_stride = side, multiple, map_stride

    def frame_size(self, view: int) -> tuple[int, int]:
        """(height, width) of a view, from the header of its photo."""
        return frame_size(photo_size(self.split, view), self.side, self.multiple)

    def _layout(self, photo: tuple[int, int], view: int) -> tuple[Window, tuple[int, int], tuple[int, int]]:
        height, width = frame_size(photo, self.side, self.multiple)
        window = Window(crop=(0, 0, *photo), box=(0.0, 0.0, float(photo[0]), float(photo[1])))
        return window, (height, width), (height // self.map_stride, width // self.map_stride)
