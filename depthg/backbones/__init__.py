"""Frozen backbones: images in, one feature map per image out.

`load_backbone("efficientnet_lite0")` works offline; `dino_*` and `hf:*` need the package transformers and weights
(vit.py, dino.py). The features are raw; `depthg.features.transform` standardises them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthg.backbones.dino import DINO, load_dino
from depthg.backbones.efficientnet import PACKAGE, EfficientNetLite0, load_efficientnet_lite0
from depthg.backbones.vit import VisionTransformer, load_hf
from depthg.backbones.weights import hash_weights

BACKBONES = ("efficientnet_lite0", *DINO, "hf:<hub id or folder>")


class Backbone(nn.Module):
    """A frozen feature extractor with its own normalisation.

    Attributes:
        name: the name passed to `load_backbone`.
        channels: total number of feature channels C.
        stages: channels of each stage in the order in which they are concatenated, e.g. (40, 112, 320).
        stride: pixels per feature cell.
        multiple: H and W of the images must be multiples of this.
        weights_hash: 16 hexadecimal digits that change with any weight, for cache keys.
    """

    mean: Tensor  # [1, 3, 1, 1]
    std: Tensor  # [1, 3, 1, 1]

    def __init__(self, name: str, body: EfficientNetLite0 | VisionTransformer):
        super().__init__()
        self.name = name
        self.stages = tuple(body.stages)
        self.channels = sum(self.stages)
        self.stride = body.stride
        self.multiple = body.multiple
        self.weights_hash = hash_weights(body)
        self.body = body
        self.register_buffer("mean", torch.tensor(body.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(body.std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Keeps evaluation mode whatever `mode` says: a backbone is frozen."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Feature maps of a batch of images, without gradient.

        Args: images: [B, 3, H, W] floating point in [0, 1], RGB, H and W multiples of `multiple`.
        Returns: [B, C, H / stride, W / stride] float32, channels-last in memory (so that [B, h*w, C] is a view); usable
            in later autograd operations. On a GPU the body runs in bfloat16, or float16 where that is missing.
        Raises: TypeError (not floating point), ValueError (shape).
        """
        self._check(images)
        size = (images.shape[-2] // self.stride, images.shape[-1] // self.stride)
        # Allocated outside inference mode: autograd refuses to save tensors made inside it.
        features = torch.empty(
            len(images), self.channels, *size, device=images.device, memory_format=torch.channels_last
        )
        with torch.inference_mode():
            for part in self._chunks(images):
                for target, stage in zip(features[part].split(self.stages, 1), self._maps(images[part]), strict=True):
                    target.copy_(up_sampled(stage, size))
        return features

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps of every stage at its own resolution.

        Args: images: as for `forward`, at least one.
        Returns: per stage float32 [B, stage, h_s, w_s], channels-last; inference tensors, which autograd does not save.
        Raises: TypeError (not floating point), ValueError (shape, no image).
        """
        self._check(images)
        if not len(images):
            raise ValueError(f"{self.name} has no stages of no image (images {list(images.shape)})")
        with torch.inference_mode():
            parts = [self._maps(images[part]) for part in self._chunks(images)]
            return [(torch.cat(stage) if len(parts) > 1 else stage[0]).float() for stage in zip(*parts, strict=True)]

    def _chunks(self, images: Tensor) -> Iterator[slice]:
        """Number of images per forward pass of the body."""
        chunk = max(1, len(images))
        if images.device.type == "cpu":
            chunk = max(1, self.body.cpu_pixels // (images.shape[-2] * images.shape[-1]))
        return (slice(start, start + chunk) for start in range(0, len(images), chunk))

    def _maps(self, images: Tensor) -> list[Tensor]:
        x = ((images.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with _autocast(images.device):
            return self.body(x)

    def _check(self, images: Tensor) -> None:
        if not images.is_floating_point():
            raise TypeError(f"{self.name} takes float images in [0, 1], not {images.dtype}; divide by 255 first")
        shape = tuple(images.shape)
        if images.ndim != 4 or shape[1] != 3:
            raise ValueError(f"{self.name} takes images [B, 3, H, W], not {list(shape)}")
        if shape[2] % self.multiple or shape[3] % self.multiple or 0 in shape[2:]:
            h, w = (max(self.multiple, round(n / self.multiple) * self.multiple) for n in shape[2:])
            raise ValueError(
                f"{self.name} needs H and W as multiples of {self.multiple}, not {shape[2]} x {shape[3]} "
                f"(images {list(shape)}); nearest: {h} x {w}"
            )


def up_sampled(maps: Tensor, size: tuple[int, int]) -> Tensor:  # [B, C, h', w'] -> [B, C, h, w]
    """Maps of a stage at the size of the finest one, bilinear."""
    return maps if maps.shape[-2:] == size else F.interpolate(maps.float(), size, mode="bilinear")


def _autocast(device: torch.device):
    if device.type != "cuda":
        return nullcontext()
    return torch.autocast("cuda", torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)


def load_backbone(name: str, weights: str | Path | None = None, device: str | torch.device = "cpu") -> Backbone:
    """A frozen backbone by name.

    Args:
        name: "efficientnet_lite0", "dino_vits8", "dino_vits8_300ep", "dino_vitb8", "dino_vits16", "dino_vitb16", or
            "hf:" and the hub id or folder of a vision transformer.
        weights: local weights instead of the default ones: a .pth file, for transformers models also a folder.
        device: where the backbone runs.
    Returns: `Backbone`, in evaluation mode, without gradients.
    Raises: ValueError (unknown name, weights of another architecture), FileNotFoundError (missing weights; the message
        says what to download or pass), ImportError (transformers is needed and absent).
    """
    if weights is not None:
        weights = Path(weights).expanduser()
        if not weights.exists():
            raise FileNotFoundError(f"backbone.weights={weights} does not exist")
    body: EfficientNetLite0 | VisionTransformer
    if name == "efficientnet_lite0":
        body = load_efficientnet_lite0(weights)
    elif name in DINO:
        body = load_dino(name, weights)
    elif name.startswith("hf:") and name != "hf:":
        body = load_hf(name, weights)
    else:
        near = [f"hf:{name}"] if "/" in name else difflib.get_close_matches(name, BACKBONES, n=2, cutoff=0.3)
        nearest = f"nearest: {', '.join(near)}; " if near else ""
        raise ValueError(f"unknown backbone {name!r}; {nearest}all: {', '.join(BACKBONES)}")
    return Backbone(name, body).to(device)


def weights_source(name: str, weights: str | Path | None = None) -> str:
    """Where the weights of a backbone come from: name of a file or folder, hub id, or package."""
    if weights is not None:
        return Path(weights).name
    if name in DINO:
        return DINO[name].hub_id or DINO[name].file
    return PACKAGE if name == "efficientnet_lite0" else name.removeprefix("hf:")
