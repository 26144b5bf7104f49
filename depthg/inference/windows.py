"""Layout of a photo for the network: its scaled size, overlapping windows, and their blending."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from depthg.data.files import read_image, rgb_array
from depthg.data.reading import DEFAULT, Reading

OVERLAP = 0.25  # minimum overlap of neighbouring windows, as a fraction of a window
LONGEST = 3  # a scaled photo is cut if a side exceeds this many times the longer evaluation side ...
NARROWEST = 32  # ... and is scaled down until no side exceeds this many times that side


@dataclass(frozen=True)
class Layout:
    """Scaled size, window size and window corners of a photo, in pixels at network resolution.

    Sizes are (height, width); ``corners`` holds (top, left) of every window.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    corners: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class NetworkPhoto:
    """A decoded and scaled photo; ``source`` is the caller's argument."""

    source: object
    image: np.ndarray  # uint8 [H, W, 3]
    pixels: np.ndarray  # uint8 [h, w, 3], at network resolution
    plan: Layout


def layout(photo: tuple[int, int], evaluation: Sequence[int], window: int | None, stride: int, multiple: int) -> Layout:
    """Computes the scaled size and the windows of a photo.

    Args:
        photo: height and width of the photo.
        evaluation: height and width of evaluation views; without `window`, photos are scaled to cover them.
        window: side of the windows in pixels of the photo, which then keeps its size; None: one window for the whole
            photo, several only along the length of a panorama.
        stride: pixels per feature cell. Windows start at cell borders, so that blending is a mean over cells.
        multiple: sides of windows are multiples of this.
    """
    if window is None:
        scale = max(n / side for n, side in zip(evaluation, photo, strict=True))
        scale = min(scale, NARROWEST * max(evaluation) / max(photo))
        limit = -(-LONGEST * max(evaluation) // multiple) * multiple
    else:
        scale, limit = 1.0, max(multiple, round(window / multiple) * multiple)
    sizes, windows, starts = zip(*(_axis(side * scale, limit, stride, multiple) for side in photo), strict=True)
    return Layout(sizes, windows, tuple((top, left) for top in starts[0] for left in starts[1]))


def _axis(length: float, limit: int, stride: int, multiple: int) -> tuple[int, int, list[int]]:
    """Size, window and starts along one axis."""
    if length <= limit:
        size = max(multiple, round(length / multiple) * multiple)
        return size, size, [0]
    size = max(limit, round(length / stride) * stride)
    steps = math.ceil((size - limit) / (limit * (1 - OVERLAP)))
    return size, limit, sorted({round(i * (size - limit) / max(1, steps) / stride) * stride for i in range(steps + 1)})


def blend(parts: Tensor, corners: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:  # -> [K, h, w]
    """Weighted mean of overlapping maps; weights fall off linearly towards the edges of a window.

    Args:
        parts: ``[windows, K, h', w']``.
        corners: (top, left) of every window in cells, row by row.
        size: height and width of the result in cells.
    """
    strips = list(blend_strips(parts, corners, size))
    return torch.cat(strips, 1) if len(strips) > 1 else strips[0]


def blend_strips(
    parts: Iterable[Tensor],  # [K, h', w'] each
    corners: Sequence[tuple[int, int]],
    size: tuple[int, int],
) -> Iterator[Tensor]:  # [K, rows, w]
    """:func:`blend` as strips from top to bottom, as soon as no later window reaches them; holds one row of windows."""
    if len(corners) == 1:
        yield next(iter(parts))
        return
    total = weight = weights = None
    first = 0
    for part, (top, left) in zip(parts, corners, strict=True):
        if total is None:
            weight = torch.outer(*(_ramp(n, part.device) for n in part.shape[1:]))
            total, weights = part.new_zeros(len(part), len(weight), size[1]), part.new_zeros(len(weight), size[1])
        if top != first:
            done = top - first
            yield total[:, :done] / weights[:done]
            total = torch.cat([total[:, done:], torch.zeros_like(total[:, :done])], 1)
            weights = torch.cat([weights[done:], torch.zeros_like(weights[:done])])
            first = top
        columns = slice(left, left + part.shape[2])
        total[:, :, columns] += part * weight
        weights[:, columns] += weight
    yield total / weights


def _ramp(n: int, device: torch.device) -> Tensor:
    at = torch.arange(n, device=device, dtype=torch.float32)
    return torch.minimum(at + 1, n - at)


def cut(image: np.ndarray, plan: Layout) -> list[np.ndarray]:
    """The windows of an image ``[h, w, 3]`` that has the size of the plan, as numpy views."""
    return [image[top : top + plan.window[0], left : left + plan.window[1]] for top, left in plan.corners]


def cut_rows(blocks: Iterable[np.ndarray], plan: Layout) -> Iterator[np.ndarray]:
    """:func:`cut` of an image that comes as blocks of rows; holds the rows of one row of windows and a block."""
    blocks, first = iter(blocks), 0
    band = next(blocks)
    for top, left in plan.corners:
        if top > first or len(band) < plan.window[0]:
            band, first = band[top - first :], top
            parts = [band]
            while sum(map(len, parts)) < plan.window[0]:
                parts.append(next(blocks))
            band = np.concatenate(parts)
        yield band[: plan.window[0], left : left + plan.window[1]]


def scaled(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:  # uint8 [h, w, 3]
    """Scales an image: bilinear with antialias, or the pixel at the centre (``nearest``).

    Bilinear scaling is torch's, several times as fast as Pillow's, which training uses; results differ by at most 1.
    """
    if image.shape[:2] == size:
        return image
    if interpolation == "nearest":
        return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.NEAREST))
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)[None]
    return F.interpolate(pixels, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).contiguous().numpy()


def as_rgb(image, reading: Reading = DEFAULT) -> np.ndarray:
    """Converts any kind of image that ``Segmenter.predict`` takes to uint8 [H, W, 3]; files as ``reading`` says.

    Raises:
        TypeError, ValueError: an unsupported type or shape, or values out of range.
    """
    if hasattr(image, "read_rgb"):  # a raster_files.SmallRaster
        return image.read_rgb(reading)
    if isinstance(image, (str, PathLike)):
        return read_image(Path(image).expanduser(), reading)
    if isinstance(image, Image.Image):
        return rgb_array(image)
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(f"an image tensor must be [3, H, W], got {list(image.shape)}")
        if image.is_floating_point():
            low, high = (float(x) for x in image.detach().aminmax())
            if not 0 <= low <= high <= 1:
                raise ValueError(f"a floating-point image must lie in [0, 1], found {low:g} to {high:g}")
            image = (image * 255).round().to(torch.uint8)
        image = image.detach().cpu().permute(1, 2, 0).contiguous().numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image is a path, a Pillow image, an array or a tensor, not {type(image).__name__}")
    if image.dtype != np.uint8:
        raise TypeError(f"an image array must be uint8 (0 to 255), got {image.dtype}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image array must be [H, W, 3], got {list(image.shape)}")
    return image
