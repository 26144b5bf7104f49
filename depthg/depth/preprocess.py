"""What a depth network wants to see, and the way back from its output to the photo.

The steps are those of the image processors in transformers, written in torch because these need torchvision: padding of
the photo (ZoeDepth), resizing to a multiple of the patch, padding of the input (DPT on DINOv2), normalisation. Values
come from the checkpoint's `preprocessor_config.json`; what it leaves out, from the architecture.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from depthg.backbones.vit import IMAGENET_MEAN, IMAGENET_STD

HALF = (0.5, 0.5, 0.5)
MODES = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which configurations hold
BORDER = 3.0  # ZoeDepth pads each side by 3 sqrt(side / 2) pixels, which keeps artefacts of the border out of the photo


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes the input of a depth network.

    Attributes:
        size: height and width that the input is scaled to, None to leave the photo as it is.
        keep_aspect: one scale for both sides, of the two the one nearer to 1.
        multiple: both sides of the input are rounded to multiples of this.
        mode: "nearest", "bilinear" or "bicubic".
        align_corners: corner pixels stay corner pixels, without antialias (ZoeDepth); else half-pixel centres,
            antialias and rounding to 8 bits as Pillow does.
        border: reflect the photo's border before resizing.
        divisor: fill the input with zeros, evenly on both sides, to multiples of this; 0 for never.
        scale: factor of the 8-bit values before mean and std.
        mean, std: per channel.
    """

    size: tuple[int, int] | None
    keep_aspect: bool
    multiple: int
    mode: str
    align_corners: bool = False
    border: bool = False
    divisor: int = 0
    scale: float = 1 / 255
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the network's input for a photo, before `divisor` fills it up."""
        height, width = height + 2 * self._border(height), width + 2 * self._border(width)
        if self.size is None:
            return height, width
        scales = self.size[0] / height, self.size[1] / width
        if self.keep_aspect:
            scales = (scales[1],) * 2 if abs(1 - scales[1]) < abs(1 - scales[0]) else (scales[0],) * 2
        rows, columns = round(scales[0] * height / self.multiple), round(scales[1] * width / self.multiple)
        return max(1, rows) * self.multiple, max(1, columns) * self.multiple

    def to_input(self, image: np.ndarray) -> Tensor:  # uint8 [H, W, 3] -> float32 [3, h, w]
        """The network's input for a photo."""
        height, width = image.shape[:2]
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        down, right = self._border(height), self._border(width)
        x = F.pad(x, (right, right, down, down), mode="reflect")
        size = self.input_size(height, width)
        if size != tuple(x.shape[-2:]):
            x = self._resize(x, size)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        x = (x[0] * self.scale - mean) / std
        (above, below), (left, right) = map(self._fill, size)
        return F.pad(x, (left, right, above, below))

    def trim(self, depth: Tensor, size: tuple[int, int]) -> Tensor:  # [h, w] -> [h', w']
        """Output without what `divisor` filled; `size` is `input_size`."""
        (above, below), (left, right) = map(self._fill, size)
        if not (above or below or left or right):
            return depth
        whole = _bicubic(depth, (size[0] + above + below, size[1] + left + right))
        return whole[above : above + size[0], left : left + size[1]]

    def to_photo(self, depth: Tensor, height: int, width: int) -> Tensor:  # [h, w] -> [height, width]
        """Trimmed output at the photo's size: bicubic, without the reflected border."""
        down, right = self._border(height), self._border(width)
        whole = _bicubic(depth, (height + 2 * down, width + 2 * right))
        return whole[down : down + height, right : right + width]

    def _border(self, side: int) -> int:
        return min(int(math.sqrt(side / 2) * BORDER), side - 1) if self.border else 0

    def _fill(self, side: int) -> tuple[int, int]:
        missing = -side % self.divisor if self.divisor else 0
        return missing // 2, missing - missing // 2

    def _resize(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if self.mode == "nearest":
            return F.interpolate(x, size, mode="nearest-exact")
        if self.align_corners:
            return F.interpolate(x, size, mode=self.mode, align_corners=True)
        return F.interpolate(x.byte(), size, mode=self.mode, antialias=True).float()


def _bicubic(depth: Tensor, size: tuple[int, int]) -> Tensor:  # [h, w] -> [*size]
    if tuple(depth.shape) == size:
        return depth
    return F.interpolate(depth[None, None].float(), size, mode="bicubic")[0, 0]


def of_architecture(config) -> Preprocessing:
    """The preprocessing that an architecture was published with.

    Args:
        config: a transformers configuration of ZoeDepth, Depth Anything or DPT.
    """
    backbone = getattr(config, "backbone_config", None)
    imagenet: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if config.model_type == "zoedepth":
        return Preprocessing((384, 512), True, 32, "bilinear", align_corners=True, border=True)
    if config.model_type == "depth_anything":
        patch = _side(config.patch_size)
        return Preprocessing((37 * patch,) * 2, True, patch, "bicubic", **imagenet)
    if getattr(backbone, "model_type", "") == "dinov2":  # photos at their own size, filled up to whole patches
        return Preprocessing(
            None, False, 1, "bicubic", divisor=backbone.patch_size, mean=IMAGENET_MEAN, std=IMAGENET_STD
        )
    side = _side(getattr(config if needs_squares(config) else backbone, "image_size", 384))
    return Preprocessing((side, side), False, 1, "bicubic")


def needs_squares(config) -> bool:
    """Whether the network takes square inputs only: DPT that is a ViT itself."""
    return config.model_type == "dpt" and (config.is_hybrid or getattr(config, "backbone_config", None) is None)


def read_preprocessing(path: Path | None, config) -> Preprocessing:
    """The preprocessing of a checkpoint.

    Args:
        path: its `preprocessor_config.json`, or None.
        config: its transformers configuration.

    Raises:
        ValueError: the file is damaged or asks for what is not known here.
    """
    default = of_architecture(config)
    if path is None:
        return default
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        found = _from_settings(settings, default)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} cannot be used: {type(error).__name__}: {error}") from error
    if needs_squares(config) and found.size is not None:
        found = replace(found, keep_aspect=False)
    if needs_squares(config) and (found.size is None or found.size[0] != found.size[1] or found.divisor):
        raise ValueError(f"{path} cannot be used: this DPT takes square inputs only, not size {settings.get('size')}")
    return found


def _from_settings(settings: dict, default: Preprocessing) -> Preprocessing:
    """Values of a `preprocessor_config.json` over those of the architecture."""
    size = settings.get("size", default.size)
    if isinstance(size, dict):
        size = (size["height"], size["width"])
    size = (size, size) if isinstance(size, int) else size
    mode = settings.get("resample", next(key for key, name in MODES.items() if name == default.mode))
    if mode not in MODES:
        raise ValueError(f"resample={mode} is none of {', '.join(map(str, MODES))}")
    fills = settings.get("do_pad", bool(default.divisor or default.border))
    divisor = (settings.get("size_divisor") or default.divisor) if fills and not default.border else 0
    scale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    normalized = settings.get("do_normalize", True)
    found = Preprocessing(
        size=(int(size[0]), int(size[1])) if size is not None and settings.get("do_resize", True) else None,
        keep_aspect=bool(settings.get("keep_aspect_ratio", default.keep_aspect)),
        multiple=int(settings.get("ensure_multiple_of", default.multiple)),
        mode=MODES[mode],
        align_corners=default.align_corners,
        border=default.border and bool(fills),
        divisor=int(divisor),
        scale=float(scale),
        mean=_channels(settings.get("image_mean", default.mean)) if normalized else (0.0,) * 3,
        std=_channels(settings.get("image_std", default.std)) if normalized else (1.0,) * 3,
    )
    if found.multiple < 1 or (found.size is not None and min(found.size) < 1) or min(found.std) <= 0:
        raise ValueError(
            f"size={found.size}, ensure_multiple_of={found.multiple} or image_std={found.std} is impossible"
        )
    return found


def _channels(values) -> tuple[float, ...]:
    numbers = tuple(map(float, values)) if isinstance(values, (list, tuple)) else (float(values),) * 3
    if len(numbers) != 3:
        raise ValueError(f"{values} needs one number per channel")
    return numbers


def _side(size) -> int:
    return size if isinstance(size, int) else max(size)
