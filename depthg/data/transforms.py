"""Training views: windows of photos, scaled to one size, with labels and float maps that stay aligned.

A view is a window of its photo in continuous pixel coordinates (pixel i covers [i, i + 1)). Photo, label and maps are
sampled on grids over the same window, so they agree to a fraction of a pixel at any pair of sizes.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from depthg.data.base import MIN_SIDE, Split, photo_size
from depthg.data.files import DataError
from depthg.data.known import mean_of_known

CROPS = ("none", "five")
INTERPOLATIONS = ("antialias", "nearest")
PARTS = ("image", "label", "maps")

_KEPT = 4  # decoded photos

FloatMap = Callable[[int], np.ndarray]  # photo index -> float32 [H, W] or [C, H, W]


@dataclass
class View:
    """One training view; parts that were not requested are missing."""

    image: torch.Tensor | None  # uint8 [3, h, w]
    label: torch.Tensor | None  # int64 [h, w]
    maps: dict[str, torch.Tensor] = field(default_factory=dict)  # float32 [C, h', w'] each


class Views:
    """The training views of a split.

    Args:
        split: the photos.
        size: (height, width) of every view.
        crop: "none" (the whole photo) or "five" (its four corners and its centre, in this order: top left, top right,
            bottom left, bottom right, centre).
        interpolation: "antialias" (images bilinear with antialias, labels nearest, float maps area average; the
            paper's) or "nearest" (all three nearest, resized whole and then cropped, float maps then averaged over the
            cells of `map_size`; the released code's).
        crop_ratio: side of a crop of "five" over the side of the photo, in (0, 1].
        maps: float maps by name: functions of the photo's index that return float32 [H, W] or [C, H, W] at the
            photo's size, finite or NaN, which is unknown: cells are the means of what is known in them, or unknown if
            that is less than half.
        map_size: (height, width) of the maps in a view, for instance the feature grid; `size` when None.

    A crop is scaled, aspect kept, until it covers `size`, and the excess is cut off evenly on both sides. "nearest"
    rounds as `resize_then_crop`.

    Raises:
        ValueError: an impossible option, naming it.
    """

    def __init__(
        self,
        split: Split,
        size: tuple[int, int],
        crop: str = "none",
        interpolation: str = "antialias",
        crop_ratio: float = 0.5,
        *,
        maps: Mapping[str, FloatMap] | None = None,
        map_size: tuple[int, int] | None = None,
    ):
        if crop not in CROPS:
            raise ValueError(f"crop={crop!r} is not one of {', '.join(CROPS)}")
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation={interpolation!r} is not one of {', '.join(INTERPOLATIONS)}")
        if not 0 < crop_ratio <= 1:
            raise ValueError(f"crop_ratio={crop_ratio} must lie in (0, 1]: a crop cannot exceed its photo")
        for name, value in (("size", size), ("map_size", map_size or size)):
            if len(value) != 2 or min(value) < 1:
                raise ValueError(f"{name}={tuple(value)} must be a height and a width of at least 1")
        self.split, self.crop, self.interpolation, self.crop_ratio = split, crop, interpolation, crop_ratio
        self.size: tuple[int, int] = (size[0], size[1])
        self.maps = dict(maps or {})
        self.map_size: tuple[int, int] = self.size if map_size is None else (map_size[0], map_size[1])
        self._recent: dict[tuple, _Recent] = {}  # the photos read last, oldest first, for their other crops
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:  # for a worker process
        return {key: value for key, value in self.__dict__.items() if key not in ("_recent", "_lock")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _recent={}, _lock=threading.Lock())

    @property
    def per_photo(self) -> int:
        """Number of views of each photo."""
        return 5 if self.crop == "five" else 1

    def __len__(self) -> int:
        return len(self.split) * self.per_photo

    def photo(self, view: int) -> int:
        """Index of the photo that a view shows."""
        return view // self.per_photo

    @property
    def names(self) -> list[str]:
        """A unique name per view."""
        if self.crop == "none":
            return list(self.split.names)
        return [f"{name}_crop{number}" for name in self.split.names for number in range(5)]

    def crop_image(self, view: int) -> np.ndarray:  # uint8 [h, w, 3]
        """The crop that a view is made of, in the photo's own pixels."""
        photo = self._photo(self.photo(view), frozenset({"image"}))
        return self.crop_of(view, photo.image)

    def crop_of(self, view: int, values: np.ndarray) -> np.ndarray:  # [H, W, ...] -> [h, w, ...]
        """The crop that a view is made of, of an array of its photo's size."""
        height, width = values.shape[:2]
        return self._window((height, width), view % self.per_photo, self.split.names[self.photo(view)]).cut(values)

    def load(self, view: int, parts: Sequence[str] = PARTS) -> View:
        """Read one view; safe to call from several threads.

        Args:
            view: which one.
            parts: what to read of "image", "label" and "maps"; other parts are not read.

        Returns:
            a View: image uint8 [3, h, w], label int64 [h, w] or None, maps float32 [C, *map_size] by name.

        Raises:
            IndexError: no such view.
            DataError: the photo cannot be read, is too small, or its label or maps do not fit it (photo named).
        """
        if not 0 <= view < len(self):
            raise IndexError(f"view {view} of {len(self)}")
        if set(parts) - set(PARTS):
            raise ValueError(f"parts={tuple(parts)} may hold {', '.join(PARTS)}")
        index = self.photo(view)
        photo = self._photo(index, frozenset(parts))
        window, size = self._window(photo.size, view % self.per_photo, self.split.names[index]), self.size
        nearest = resize_then_crop if self.interpolation == "nearest" else resize_nearest
        image = None if photo.image is None else self._image(photo.image, window, size).transpose(2, 0, 1)
        return View(
            image=None if image is None else torch.from_numpy(np.ascontiguousarray(image)),
            label=None if photo.label is None else torch.from_numpy(nearest(photo.label, window, size)),
            maps={
                name: torch.from_numpy(self._map(values, window, self.map_size)) for name, values in photo.maps.items()
            },
        )

    def _photo(self, index: int, parts: frozenset[str]) -> "_Decoded":
        if self.per_photo == 1:
            return self._read(index, parts)
        with self._lock:
            recent = self._recent.pop((index, parts), None) or _Recent()
            self._recent[index, parts] = recent
            if len(self._recent) > _KEPT:
                del self._recent[next(iter(self._recent))]
        with recent.lock:  # threads that want the same photo wait for the first of them to decode it
            if recent.photo is None:
                recent.photo = self._read(index, parts)
            return recent.photo

    def _read(self, index: int, parts: frozenset[str]) -> "_Decoded":
        name = self.split.names[index]
        image = self.split.image(index) if "image" in parts else None
        size = photo_size(self.split, index) if image is None else image.shape[:2]
        label = self.split.label(index) if "label" in parts else None
        if label is not None:
            _check_size(label, size, name, "label map")
        maps = {}
        if "maps" in parts:
            maps = {key: _checked_map(function(index), size, name, key) for key, function in self.maps.items()}
        return _Decoded(size, image, label, maps)

    def _window(self, photo: tuple[int, int], number: int, name: str) -> "Window":
        height, width = photo
        top = left = 0
        if self.crop == "five":
            height, width = int(height * self.crop_ratio), int(width * self.crop_ratio)
            down, right = photo[0] - height, photo[1] - width
            top, left = ((0, 0), (0, right), (down, 0), (down, right), (round(down / 2), round(right / 2)))[number]
        if min(height, width) < MIN_SIDE:
            of = "" if self.crop == "none" else f"; its crops at ratio {self.crop_ratio} are {height} x {width}"
            raise DataError(
                f"the photo {name} is {photo[0]} x {photo[1]} pixels (height x width){of}, less than the {MIN_SIDE} "
                f"needed on each side: remove it, or use crop=none or a larger crop_ratio"
            )
        scale = min(height / self.size[0], width / self.size[1])  # photo pixels per view pixel
        used_height, used_width = self.size[0] * scale, self.size[1] * scale
        return Window(
            crop=(top, left, height, width),
            box=((height - used_height) / 2, (width - used_width) / 2, used_height, used_width),
        )

    def _image(self, image: np.ndarray, window: "Window", size: tuple[int, int]) -> np.ndarray:
        if self.interpolation == "nearest":
            return resize_then_crop(image, window, size)
        top, left, height, width = window.box
        box = (left, top, min(left + width, window.crop[3]), min(top + height, window.crop[2]))
        return np.asarray(Image.fromarray(window.cut(image)).resize(size[::-1], Image.Resampling.BILINEAR, box=box))

    def _map(self, values: np.ndarray, window: "Window", size: tuple[int, int]) -> np.ndarray:
        channels_last = values.transpose(1, 2, 0)
        if self.interpolation == "nearest":
            out = resize_then_crop(channels_last, window, self.size)
            return cell_means(np.ascontiguousarray(out.transpose(2, 0, 1)), size)
        return resize_area(values, window, size)


@dataclass(frozen=True)
class _Decoded:
    size: tuple[int, int]  # height, width
    image: np.ndarray | None  # uint8 [H, W, 3]
    label: np.ndarray | None  # int64 [H, W]
    maps: dict[str, np.ndarray]  # float32 [C, H, W]


class _Recent:
    def __init__(self):
        self.lock, self.photo = threading.Lock(), None


@dataclass(frozen=True)
class Window:
    """A crop in whole pixels of the photo, and the box inside it that a view covers."""

    crop: tuple[int, int, int, int]  # top, left, height, width in pixels of the photo
    box: tuple[float, float, float, float]  # top, left, height, width in pixels of the crop

    def cut(self, values: np.ndarray) -> np.ndarray:  # [H, W, ...]
        """The crop of an array."""
        top, left, height, width = self.crop
        return np.ascontiguousarray(values[top : top + height, left : left + width])


def resize_nearest(values: np.ndarray, window: Window, size: tuple[int, int]) -> np.ndarray:
    """Sample the pixel that contains the centre of each output cell: [H, W, ...] -> [*size, ...], any dtype."""
    top, left, height, width = window.box
    rows = _nearest(top, height, size[0], window.crop[2]) + window.crop[0]
    columns = _nearest(left, width, size[1], window.crop[3]) + window.crop[1]
    return values[rows[:, None], columns[None, :]]


def _nearest(start: float, length: float, n: int, limit: int) -> np.ndarray:
    return np.clip(np.floor(start + (np.arange(n) + 0.5) * (length / n)).astype(np.int64), 0, limit - 1)


def resize_then_crop(values: np.ndarray, window: Window, size: tuple[int, int]) -> np.ndarray:
    """Resize the whole crop by Pillow's nearest rule, then cut out its centre: [H, W, ...] -> [*size, ...], any dtype.

    Sizes and offsets are those of torchvision's `Resize` and `CenterCrop`: the side that limits gets its size, the
    other one is truncated to whole pixels, and half a pixel of excess rounds to even. The result differs by up to a
    pixel from `resize_nearest`, which samples the window itself.
    """
    top, left, height, width = window.crop
    if height * size[1] <= width * size[0]:
        whole = size[0], max(size[1], int(size[0] * width / height))
    else:
        whole = max(size[0], int(size[1] * height / width)), size[1]
    rows, columns = (
        _pillow_nearest(n, resized)[(start := round((resized - kept) / 2)) : start + kept]
        for n, resized, kept in zip((height, width), whole, size, strict=True)
    )
    return values[rows[:, None] + top, columns[None, :] + left]


def _pillow_nearest(n: int, resized: int) -> np.ndarray:  # int32 [resized]
    """Source pixel of every pixel along one axis; asked of Pillow, because its sums decide where centres are ties."""
    ramp = Image.fromarray(np.arange(n, dtype=np.int32)[None])
    return np.asarray(ramp.resize((resized, 1), Image.Resampling.NEAREST))[0]


def cell_means(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:  # float32 [C, H, W] -> [C, *size]
    """Mean over the known pixels of each cell, summed in float64, see `mean_of_known`.

    Cells are of unequal size where ``size`` does not divide.
    """
    if values.shape[1:] == tuple(size):
        return values

    def mean(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x.double(), size).float()

    return mean_of_known(mean, torch.from_numpy(values)).numpy()


def resize_area(values: np.ndarray, window: Window, size: tuple[int, int]) -> np.ndarray:
    """Mean over each output cell, pixels at its border weighted by the part covered: [C, H, W] -> [C, *size].

    The map is taken as constant over each pixel, and the mean over the cell is exact at any ratio (adaptive pooling
    rounds cells to whole pixels). It is that of the known pixels, see `mean_of_known`.
    """

    def mean(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(_area_means(x.numpy(), window, size))

    return mean_of_known(mean, torch.from_numpy(values)).numpy()


def _area_means(values: np.ndarray, window: Window, size: tuple[int, int]) -> np.ndarray:
    top, left, height, width = window.box
    crop_top, crop_left, crop_height, crop_width = window.crop
    cut = values[:, crop_top : crop_top + crop_height, crop_left : crop_left + crop_width]
    rows = _cell_means(cut, top, height, size[0])  # [C, h, W]
    out = _cell_means(np.ascontiguousarray(rows.swapaxes(1, 2)), left, width, size[1]).swapaxes(1, 2)
    low, high = cut.min((1, 2), keepdims=True), cut.max((1, 2), keepdims=True)
    return np.ascontiguousarray(np.clip(out, low, high))  # rounding must not leave the range of the map


def _cell_means(values: np.ndarray, start: float, length: float, n: int) -> np.ndarray:  # [C, k, m] -> [C, n, m]
    """Means over n equal cells of [start, start + length) along axis 1, from the integral up to their edges."""
    edges = np.clip(start + np.arange(n + 1) * (length / n), 0, values.shape[1])
    first = np.minimum(edges.astype(np.int64), values.shape[1] - 1)  # the pixel that holds each edge
    part = (edges - first).astype(np.float32)[:, None] * values[:, first]  # what lies before the edge in that pixel
    whole = np.add.reduceat(values, first, axis=1)[:, :-1]
    whole[:, first[1:] == first[:-1]] = 0  # reduceat gives the pixel itself for an empty range
    return (whole + part[:, 1:] - part[:, :-1]) / np.diff(edges).astype(np.float32)[:, None]


def _check_size(values: np.ndarray, photo: tuple[int, int], name: str, what: str) -> None:
    if values.shape[-2:] != tuple(photo):
        raise DataError(
            f"the {what} of {name} is {values.shape[-2]} x {values.shape[-1]} (height x width), the photo is "
            f"{photo[0]} x {photo[1]}: give it the photo's size"
        )


def _checked_map(values: np.ndarray, photo: tuple[int, int], name: str, key: str) -> np.ndarray:  # float32 [C, H, W]
    values = np.asarray(values, np.float32)
    if values.ndim not in (2, 3):
        raise DataError(f"the {key} map of {name} has shape {values.shape}; expected [H, W] or [C, H, W]")
    _check_size(values, photo, name, f"{key} map")
    if np.isinf(values).any():
        raise DataError(f"the {key} map of {name} has infinite values, which cannot be averaged: map it first")
    return values if values.ndim == 3 else values[None]


def to_float(images: torch.Tensor) -> torch.Tensor:  # uint8 [..., 3, H, W] -> float32, same shape
    """Images in [0, 1] for a network: `images / 255`, on the same device.

    Raises:
        TypeError: `images` is not uint8.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 in 0..255, got {images.dtype}")
    return images.to(torch.float32).div_(255)
