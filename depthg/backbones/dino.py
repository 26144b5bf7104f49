"""DINO ViT-S and ViT-B at patch 8 and 16: from the hub, a transformers folder or the original state dict.

Published DINO interpolates its position embedding with a scale factor of (n + 0.1) / n; transformers passes the output
size instead, which reads slightly other positions. The published rule is used here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from depthg.backbones.vit import (
    Source,
    VisionTransformer,
    find_source,
    from_pretrained,
    import_transformers,
    patch_size,
    read_config,
)
from depthg.backbones.weights import read_state_dict

HEAD_DIM = 64  # channels per attention head in every published DINO model
LAYER_NORM_EPS = 1e-6
DINO_OFFSET = 0.1  # added to the patches along an axis where the position embedding is interpolated
MARKER = "patch_embed.proj.weight"  # found once in every network of a DINO checkpoint


@dataclass(frozen=True)
class DinoSpec:
    """Dimensions and sources of one published DINO model."""

    hub_id: str | None  # None: the file alone is published
    url: str
    embed_dim: int
    patch_size: int
    layers: int = 12

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


_URL = "https://dl.fbaipublicfiles.com/dino/{0}/{0}.pth"
DINO = {
    "dino_vits8": DinoSpec("facebook/dino-vits8", _URL.format("dino_deitsmall8_pretrain"), 384, 8),
    # The ViT-S/8 of STEGO, DepthG, HP, EAGLE and SmooSeg: other weights than those of the hub.
    "dino_vits8_300ep": DinoSpec(None, _URL.format("dino_deitsmall8_300ep_pretrain"), 384, 8),
    "dino_vitb8": DinoSpec("facebook/dino-vitb8", _URL.format("dino_vitbase8_pretrain"), 768, 8),
    "dino_vits16": DinoSpec("facebook/dino-vits16", _URL.format("dino_deitsmall16_pretrain"), 384, 16),
    "dino_vitb16": DinoSpec("facebook/dino-vitb16", _URL.format("dino_vitbase16_pretrain"), 768, 16),
}


def load_dino(name: str, weights: Path | None = None) -> VisionTransformer:
    """A DINO ViT in float32 on the CPU.

    Args: name: a key of `DINO`; weights: the original `.pth`, or a transformers folder; None takes the hub's, or for a
        network that the hub lacks the file in torch's download folder.
    Raises: FileNotFoundError (no weights; says what to download), ValueError (weights of another architecture),
        ImportError (no transformers).
    """
    transformers = import_transformers(name)
    if DINO[name].hub_id is None:
        weights = _published_file(name, weights)
    if weights is not None and weights.is_file():
        state = select_network(read_state_dict(weights), weights)
        config = _config_of_state(state, weights)
        source = Source(None, str(weights), {"state_dict": to_transformers_names(state)})
    else:
        source = find_source(weights or DINO[name].hub_id or name, name, f" or {DINO[name].url}")
        config = read_config(source)
        if config.model_type != "vit":
            raise ValueError(f"{source.label} holds a {config.model_type} model where {name} needs a vit model")
    _check_dimensions(name, source.label, config)
    config.layer_norm_eps = LAYER_NORM_EPS  # DINO was trained with it; transformers' default is 1e-12
    model = from_pretrained(
        transformers.ViTModel, source, strict=source.path is None, config=config, add_pooling_layer=False
    )
    model.embeddings.interpolate_pos_encoding = MethodType(published_positions, model.embeddings)
    return VisionTransformer(model)


def _published_file(name: str, weights: Path | None) -> Path:
    """Weights of a network that the hub lacks: those given, or the file in torch's download folder.

    Raises: FileNotFoundError (neither), ValueError (another published checkpoint is given).
    """
    spec = DINO[name]
    if weights is None:
        weights = Path(torch.hub.get_dir()) / "checkpoints" / spec.file
        if not weights.is_file():
            raise FileNotFoundError(
                f"{name} needs the file {spec.file} of DINO (Facebook Research), which is not on the hub: download "
                f"{spec.url} and pass backbone.weights=FILE, or save it as {weights}"
            )
    for other, known in DINO.items():
        own = {known.file, f"models--{known.hub_id}".replace("/", "--")}  # the second: its folder in the hub's cache
        if other != name and own.intersection(weights.resolve().parts):
            raise ValueError(f"backbone.weights={weights} holds {other}; {name} needs {spec.file} from {spec.url}")
    return weights


def position_embedding(table: Tensor, h: int, w: int) -> Tensor:
    """Position embedding of DINO for h x w patches.

    Expression: bicubic(grid, scale_factor=((h + 0.1) / n, (w + 0.1) / n)), unchanged for h = w = n.
    Args: table: [1, 1 + n*n, C], class token first.
    Returns: [1, 1 + h*w, C].
    """
    n = math.isqrt(table.shape[1] - 1)
    if h == w == n:
        return table
    grid = table[:, 1:].unflatten(1, (n, n)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=((h + DINO_OFFSET) / n, (w + DINO_OFFSET) / n), mode="bicubic")
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def published_positions(self: Any, embeddings: Tensor, height: int, width: int) -> Tensor:
    """Replaces the method of this name of transformers' ViTEmbeddings."""
    patch = self.patch_embeddings.projection.kernel_size[0]
    return position_embedding(self.position_embeddings, height // patch, width // patch)


def _check_dimensions(name: str, source: str, config) -> None:
    spec = DINO[name]
    for what, found, needed in (
        ("embed dim", config.hidden_size, spec.embed_dim),
        ("patch size", patch_size(config), spec.patch_size),
        ("number of layers", config.num_hidden_layers, spec.layers),
        ("number of attention heads", config.num_attention_heads, spec.embed_dim // HEAD_DIM),
    ):
        if found != needed:
            raise ValueError(f"{source} has {what} {found} where {name} needs {needed}")


def select_network(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """State dict of one ViT in a DINO checkpoint, without prefix and head; the teacher if there are several."""
    prefixes = sorted((k.removesuffix(MARKER) for k in state if k.endswith(MARKER)), key=lambda p: "teacher" not in p)
    if not prefixes:
        hint = "; pass its folder with config.json" if any("patch_embeddings." in k for k in state) else ""
        raise ValueError(f"{path} is not a DINO ViT state dict: {MARKER} is missing{hint}")
    network = {k.removeprefix(prefixes[0]): v for k, v in state.items() if k.startswith(prefixes[0])}
    parts = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
    return {k: v for k, v in network.items() if k.startswith(parts)}


def _config_of_state(state: dict[str, Tensor], path: Path):
    """ViTConfig with the dimensions of a state dict with DINO's names."""
    from transformers import ViTConfig

    for key in ("cls_token", "pos_embed", "blocks.0.mlp.fc1.weight"):
        if key not in state:
            raise ValueError(f"{path} is not a DINO ViT state dict: {key} is missing")
    width, patch = state["cls_token"].shape[-1], state[MARKER].shape[-1]
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=len({k.split(".")[1] for k in state if k.startswith("blocks.")}),
        num_attention_heads=max(1, width // HEAD_DIM),
        intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
        image_size=math.isqrt(state["pos_embed"].shape[1] - 1) * patch,
        patch_size=patch,
    )


def to_transformers_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINO's parameter names -> those of ViT checkpoints on the hub; the joint qkv projection is split in three."""
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
        "attn.proj": "attention.output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    result = {}
    for key, value in state.items():
        part, _, suffix = key.rpartition(".") if "." in key else (key, "", "")
        layer, suffix = "", suffix and f".{suffix}"
        if part.startswith("blocks."):
            _, i, part = part.split(".", 2)
            layer = f"encoder.layer.{i}."
        if part == "attn.qkv":
            for role, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                result[f"{layer}attention.attention.{role}{suffix}"] = third.contiguous()
        else:
            result[f"{layer}{names.get(part, part)}{suffix}"] = value
    return result
