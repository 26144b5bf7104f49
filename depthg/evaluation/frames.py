"""Frames to score: the network's input, the photo for the CRF, and the label, at one resolution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from depthg.data.base import Split
from depthg.data.files import DataError
from depthg.data.transforms import Views
from depthg.runtime.read_ahead import ahead

LOADERS, AHEAD = 4, 8  # threads that decode, photos decoded ahead
FULL = "full"

Resolution = tuple[int, int] | str  # (height, width) of a centre crop, or FULL


@dataclass(frozen=True)
class Frame:
    """One photo at one resolution; the label is at the size of ``image``."""

    number: int  # of the photo in its split
    resolution: Resolution
    network: Tensor  # uint8 [3, h, w], multiples of the backbone's
    image: np.ndarray  # uint8 [H, W, 3]
    label: Tensor | None  # int64 [H, W], -1 = void


class _OnePhoto:
    """A split that holds one decoded photo, so that several resolutions decode it only once."""

    def __init__(self, split: Split, number: int):
        self.names = [split.names[number]]
        self._image, self._label = split.image(number), split.label(number)

    def __len__(self) -> int:
        return 1

    def image(self, index: int) -> np.ndarray:
        return self._image

    def label(self, index: int) -> np.ndarray | None:
        return self._label

    def depth(self, index: int) -> None:
        return None

    def fov_deg(self, index: int) -> None:
        return None


def load_frames(
    split: Split, number: int, resolutions: Sequence[Resolution], multiple: int, interpolation: str
) -> list[Frame]:
    """A photo at every resolution, decoded once.

    For a centre crop, photo and label are scaled to cover (height, width) and cropped. A full frame keeps photo and
    label at their size; only the network's input is scaled, to the nearest multiples of ``multiple``.

    Raises:
        DataError: photo or label cannot be read, or their sizes differ.
    """
    photo, found = _OnePhoto(split, number), []
    for resolution in resolutions:
        if not isinstance(resolution, str):
            view = Views(photo, resolution, "none", interpolation).load(0)
            image = view.image.permute(1, 2, 0).numpy()
            found.append(Frame(number, resolution, view.image, image, view.label))
            continue
        image, label = photo.image(0), photo.label(0)
        if label is not None and label.shape != image.shape[:2]:
            raise DataError(f"the label map of {photo.names[0]} is {label.shape}, the photo {image.shape[:2]}")
        height, width = (max(multiple, round(side / multiple) * multiple) for side in image.shape[:2])
        method = Image.Resampling.NEAREST if interpolation == "nearest" else Image.Resampling.BILINEAR
        same = (height, width) == image.shape[:2]
        pixels = image if same else np.array(Image.fromarray(image).resize((width, height), method))
        network = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        found.append(Frame(number, resolution, network, image, None if label is None else torch.from_numpy(label)))
    return found


def batches(
    split: Split,
    resolutions: Sequence[Resolution],
    *,
    multiple: int,
    interpolation: str,
    pixels: int,
    numbers: Sequence[int] | None = None,
) -> Iterator[list[Frame]]:
    """Photos of a split at all resolutions, decoded ahead, in batches of frames with one size.

    Args:
        multiple: sides of the network's input are multiples of this.
        interpolation: ``antialias`` or ``nearest``.
        pixels: maximum pixels of a batch; a larger frame forms a batch alone.
        numbers: indices of the photos; None: all.
    """
    pending: dict[Resolution, list[Frame]] = {resolution: [] for resolution in resolutions}

    def load(number: int) -> list[Frame]:
        return load_frames(split, number, resolutions, multiple, interpolation)

    with ThreadPoolExecutor(LOADERS) as pool:
        for frames in ahead(pool, load, range(len(split)) if numbers is None else numbers, AHEAD):
            for frame in frames:
                waiting = pending[frame.resolution]
                same = not waiting or (waiting[0].network.shape, waiting[0].image.shape) == (
                    frame.network.shape, frame.image.shape,
                )  # fmt: skip
                if waiting and (not same or (len(waiting) + 1) * frame.network[0].numel() > pixels):
                    yield waiting
                    waiting = pending[frame.resolution] = []
                waiting.append(frame)
    yield from filter(None, pending.values())


def resolution_of(text: str) -> Resolution:
    """Parses a resolution: ``320``, ``320x416`` (height x width) or ``full``; raises ValueError for anything else."""
    if text == FULL:
        return FULL
    try:
        sides = [int(side) for side in text.split("x")]
    except ValueError:
        sides = []
    if not 1 <= len(sides) <= 2 or min(sides) < 1:
        raise ValueError(f"{text!r} is no size; give 320, 320x416 (height x width) or full")
    return sides[0], sides[-1]
