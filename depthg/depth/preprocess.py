"""Input of depth networks made from photos, and their output at the size of the photo.

The image processors of transformers make the input; those of Pillow need no torchvision. Values come from the
checkpoint's `preprocessor_config.json`; what it leaves out, from the architecture. The way back is written here: that
of ZoeDepth in transformers needs torchvision, and that of DPT leaves the padding of the input in the depth.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from depthg.backbones.vit import IMAGENET_MEAN, IMAGENET_STD

MIN_TRANSFORMERS = "5.5"  # the first whose Pillow processors work without torchvision; pyproject.toml says the same
BORDER = 3.0  # ZoeDepth pads each side by 3 sqrt(side / 2) pixels, which keeps artefacts of the border out of the photo
PROBE = (12, 8)  # height and width of a photo that settings are tried on
# What is taken from preprocessor_config.json
KEYS = (
    "do_resize", "size", "keep_aspect_ratio", "ensure_multiple_of", "resample", "do_rescale", "rescale_factor",
    "do_normalize", "image_mean", "image_std", "do_pad", "size_divisor",
)  # fmt: skip


class Preprocessing:
    """How a photo becomes the input of a depth network.

    ZoeDepth: the photo's border is reflected, then it is resized with corner pixels as corner pixels. Depth Anything
    and DPT: it is resized as Pillow does, then filled with zeros to multiples of `size_divisor`.

    Args:
        settings: arguments of the image processor, of those in `KEYS`.
        zoedepth: whether it is that of ZoeDepth.

    Raises:
        ImportError: transformers is too old.
        ValueError: the settings are impossible.
    """

    def __init__(self, settings: dict[str, Any], zoedepth: bool = False):
        self.processor = _processor_class(zoedepth)(**settings)
        self.border = zoedepth and bool(self.processor.do_pad)
        divisor = None if zoedepth or not self.processor.do_pad else self.processor.size_divisor
        self.divisor = 1 if divisor is None else divisor
        self._check(zoedepth)

    def _check(self, zoedepth: bool) -> None:
        """Tries the settings on a small photo."""
        p = self.processor
        size = p.size.height, p.size.width
        if None in size or min(*size, p.ensure_multiple_of, self.divisor) < 1:
            raise ValueError(
                f"height and width {size}, ensure_multiple_of={p.ensure_multiple_of} or size_divisor={self.divisor} "
                "is impossible"
            )
        if zoedepth and p.do_resize and p.resample not in (2, 3):
            raise ValueError(f"resample={p.resample} is not 2 (bilinear) or 3 (bicubic), all that ZoeDepth takes")
        with np.errstate(all="ignore"):
            found = self.to_input(np.zeros((*PROBE, 3), np.uint8))
        if not found.isfinite().all():
            raise ValueError(
                f"rescale_factor={p.rescale_factor}, image_mean={p.image_mean} or image_std={p.image_std} is impossible"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The values of all `KEYS`, as JSON can hold them."""
        size = [self.processor.size.height, self.processor.size.width]
        return {**{key: getattr(self.processor, key, None) for key in KEYS}, "size": size}

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the network's input for a photo, before it is filled up.

        The rule of the image processors, but at least one multiple on each side: they fail where it gives 0.
        """
        p, (down, right) = self.processor, self._border(height, width)
        height, width = height + 2 * down, width + 2 * right
        if not p.do_resize:
            return height, width
        scales = p.size.height / height, p.size.width / width
        if p.keep_aspect_ratio:  # one scale for both sides, of the two the one nearer to 1
            scales = (scales[1],) * 2 if abs(1 - scales[1]) < abs(1 - scales[0]) else (scales[0],) * 2
        multiple = p.ensure_multiple_of
        rows, columns = round(scales[0] * height / multiple), round(scales[1] * width / multiple)
        return max(1, rows) * multiple, max(1, columns) * multiple

    def to_input(self, image: np.ndarray) -> Tensor:  # uint8 [H, W, 3] -> float32 [3, h, w]
        """The network's input for a photo; safe to call from several threads."""
        height, width = self.input_size(*image.shape[:2])
        found = self.processor(
            images=image, input_data_format="channels_last", size={"height": height, "width": width},
            keep_aspect_ratio=False,
        )  # fmt: skip
        return torch.from_numpy(np.array(found["pixel_values"][0], np.float32, order="C"))

    def trim(self, depth: Tensor, size: tuple[int, int]) -> Tensor:  # [h, w] -> [h', w']
        """Output without what was filled up; `size` is `input_size`."""
        missing = [-side % self.divisor for side in size]
        if not any(missing):
            return depth
        whole = _bicubic(depth, (size[0] + missing[0], size[1] + missing[1]))
        above, left = missing[0] // 2, missing[1] // 2
        return whole[above : above + size[0], left : left + size[1]]

    def to_photo(self, depth: Tensor, height: int, width: int) -> Tensor:  # [h, w] -> [height, width]
        """Trimmed output at the photo's size: bicubic, without the reflected border."""
        down, right = self._border(height, width)
        whole = _bicubic(depth, (height + 2 * down, width + 2 * right))
        return whole[down : down + height, right : right + width]

    def _border(self, height: int, width: int) -> tuple[int, int]:
        if not self.border:
            return 0, 0
        return int(math.sqrt(height / 2) * BORDER), int(math.sqrt(width / 2) * BORDER)


def _processor_class(zoedepth: bool) -> Any:
    """The image processor of transformers; ImportError where there is none without torchvision."""
    import transformers

    name = "ZoeDepthImageProcessorPil" if zoedepth else "DPTImageProcessorPil"
    try:
        found = getattr(transformers, name)
        found()  # before 5.5 it asks for torchvision here
    except (AttributeError, ImportError) as error:
        raise ImportError(
            f"depth networks need transformers {MIN_TRANSFORMERS} or later, but {transformers.__version__} is "
            "installed: python -m pip install -U 'depthg[transformers]'"
        ) from error
    return found


def _bicubic(depth: Tensor, size: tuple[int, int]) -> Tensor:  # [h, w] -> [*size]
    if tuple(depth.shape) == size:
        return depth
    return F.interpolate(depth[None, None].float(), size, mode="bicubic")[0, 0]


def of_architecture(config) -> dict[str, Any]:
    """Arguments of the image processor that an architecture was published with, where they are not its defaults.

    Args:
        config: a transformers configuration of ZoeDepth, Depth Anything or DPT.
    """
    backbone = getattr(config, "backbone_config", None)
    imagenet = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
    if config.model_type == "zoedepth":
        return {"ensure_multiple_of": 32}
    if config.model_type == "depth_anything":
        patch = _side(config.patch_size)
        return {"size": 37 * patch, "keep_aspect_ratio": True, "ensure_multiple_of": patch, **imagenet}
    if getattr(backbone, "model_type", "") == "dinov2":  # photos at their own size, filled up to whole patches
        return {"do_resize": False, "do_pad": True, "size_divisor": backbone.patch_size, **imagenet}
    return {"size": _side(getattr(config if needs_squares(config) else backbone, "image_size", 384))}


def needs_squares(config) -> bool:
    """Whether the network takes square inputs only: DPT that is a ViT itself."""
    return config.model_type == "dpt" and (config.is_hybrid or getattr(config, "backbone_config", None) is None)


def read_preprocessing(path: Path | None, config) -> Preprocessing:
    """The preprocessing of a checkpoint.

    Args:
        path: its `preprocessor_config.json`, or None.
        config: its transformers configuration.

    Raises:
        ImportError: transformers is too old.
        ValueError: the file is damaged or its values are impossible.
    """
    settings, zoedepth = of_architecture(config), config.model_type == "zoedepth"
    if path is None:
        return Preprocessing(settings, zoedepth)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        settings |= {key: stored.get(key) for key in KEYS if stored.get(key) is not None}
        if needs_squares(config):
            settings["keep_aspect_ratio"] = False
        found = Preprocessing(settings, zoedepth)
    except ImportError:
        raise
    except Exception as error:  # the image processors raise almost anything
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be used: {type(error).__name__}: {reason}") from error
    size = found.processor.size
    if needs_squares(config) and not (found.processor.do_resize and size.height == size.width and found.divisor == 1):
        raise ValueError(f"{path} cannot be used: this DPT takes square inputs only, not size {stored.get('size')}")
    return found


def _side(size) -> int:
    return size if isinstance(size, int) else max(size)
