"""Tiny depth networks with random weights, saved as real checkpoints are: configuration, preprocessing, weights."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from depthg.backbones.vit import quiet

VIT = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2)
NECK = dict(neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16)
STAGES = ["stage1", "stage2", "stage3", "stage4"]
HALF, IMAGENET = ([0.5] * 3, [0.5] * 3), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
ONE_HEAD = [{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0}]
TWO_HEADS = [{"name": "nyu", **ONE_HEAD[0]}, {"name": "kitti", **ONE_HEAD[0], "max_depth": 80.0}]


def zoedepth(folder: Path, heads=ONE_HEAD, seed=0) -> Path:
    """ZoeDepth with one metric head, or two and a classifier between them; inputs of about 64 x 96."""
    router = dict(
        num_patch_transformer_layers=4, patch_transformer_hidden_size=128, patch_transformer_intermediate_size=32,
        patch_transformer_num_attention_heads=2,
    )  # fmt: skip
    backbone = transformers.BeitConfig(
        **VIT, intermediate_size=64, patch_size=16, image_size=64, use_relative_position_bias=True,
        reshape_hidden_states=False, out_features=STAGES,
    )  # fmt: skip
    config = transformers.ZoeDepthConfig(
        backbone_config=backbone, **NECK, bottleneck_features=16, num_relative_features=8, bin_embedding_dim=16,
        num_attractors=[4, 4, 2, 1], bin_configurations=heads, **(router if len(heads) > 1 else {}),
    )  # fmt: skip
    model = _random(transformers.ZoeDepthForDepthEstimation(config), seed)
    return _save(model, folder, HALF, 32, (64, 96), 2, keep=True, pad=True)


def depth_anything(folder: Path, metric=False, seed=0) -> Path:
    """Depth Anything on DINOv2, relative or metric up to 20 m; inputs of about 56 x 56."""
    backbone = transformers.Dinov2Config(
        **VIT, mlp_ratio=2, image_size=56, patch_size=14, out_features=STAGES, reshape_hidden_states=False
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, **NECK, reassemble_hidden_size=32, head_hidden_size=8, patch_size=14,
        depth_estimation_type="metric" if metric else "relative", max_depth=20 if metric else 1,
    )  # fmt: skip
    model = _random(transformers.DepthAnythingForDepthEstimation(config), seed)
    with torch.no_grad():
        model.head.conv3.bias.fill_(0.0 if metric else 3.0)  # off the flat part of the ReLU
    return _save(model, folder, IMAGENET, 14, (56, 56), 3, keep=True)


def dpt(folder: Path, seed=0) -> Path:
    """DPT that is a ViT itself; inputs of 64 x 64."""
    config = transformers.DPTConfig(
        **VIT, intermediate_size=64, image_size=64, patch_size=16, backbone_out_indices=[0, 1, 2, 3], **NECK
    )
    model = _random(transformers.DPTForDepthEstimation(config), seed)
    with torch.no_grad():
        model.head.head[4].bias.fill_(3.0)
    return _save(model, folder, HALF, 1, (64, 64), 2, keep=False)


def _random(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 1 / max(1, parameter[0].numel() if parameter.ndim > 1 else 1) ** 0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread * 0.7)
    return model.eval()


def _save(model, folder: Path, statistics, multiple, size, resample, keep, pad=False) -> Path:
    with quiet():
        model.save_pretrained(folder)
    settings = {
        "do_resize": True, "do_rescale": True, "do_normalize": True, "do_pad": pad, "rescale_factor": 1 / 255,
        "size": {"height": size[0], "width": size[1]}, "keep_aspect_ratio": keep, "ensure_multiple_of": multiple,
        "resample": resample, "image_mean": statistics[0], "image_std": statistics[1],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:  # uint8 [height, width, 3]
    """A smooth, colourful picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
