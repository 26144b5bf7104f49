"""Converts checkpoints of STEGO and DepthG to run folders: ``python -m depthg.convert CKPT --out RUN``.

Reading a checkpoint executes nothing in it and needs neither Lightning nor OmegaConf (`foreign.torch_file`). Sizes come
from the weights; data set, resolution and loss come from the settings in the checkpoint.
"""

from __future__ import annotations

import importlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from depthg.backbones import load_backbone
from depthg.backbones.dino import DINO, MARKER, select_network
from depthg.config.composing import preset, to_config
from depthg.config.schema import Config
from depthg.data.files import show
from depthg.features.transform import FeatureTransform
from depthg.foreign.records import UnpickleError, plain
from depthg.foreign.torch_file import read_torch_file, tensors_of
from depthg.model.checkpoints import save_checkpoint
from depthg.model.converted_settings import run_settings, steps_per_iteration
from depthg.model.heads import ClusterProbe, LinearProbe, SegmentationHead
from depthg.storage.whole_files import partial_path, write_tensors, write_text

BACKBONE_FILE = "backbone.safetensors"
TRAIN_SIZE, EVAL_SIZE = 224, 320  # pixels, in both projects
DATA = {"cocostuff27": "cocostuff27", "cityscapes": "cityscapes", "potsdam": "potsdam3", "potsdam3": "potsdam3"}
KEPT = ("epoch", "global_step", "pytorch-lightning_version", "hyper_parameters")  # entries copied to source.json
KINDS = {"vit_small": "s", "vit_base": "b"}
PUBLISHED = {"dino_vits8": "dino_vits8_300ep"}  # networks whose weights in both projects are not those of the hub
UNSUPPORTED = {  # settings that can select another network, and the supported values
    "arch": ("dino",), "dino_feat_type": ("feat",), "projection_type": ("nonlinear", "linear"),
}  # fmt: skip


@dataclass
class Converted:
    """The content of a checkpoint, in the terms of this package."""

    config: Config
    modules: dict[str, Any]
    backbone: dict[str, Tensor] | None  # weights under DINO's names; None if the checkpoint has no backbone
    header: dict
    source: dict


def read_stego(path: str | Path) -> Converted:
    """Reads a STEGO or DepthG checkpoint (`.ckpt` of Lightning, or its state dict).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged or hostile file, another network, or weights that do not fit together.
    """
    path = Path(path)
    content = read_torch_file(path)
    content = content if isinstance(content, dict) else {}
    state = tensors_of(content.get("state_dict", content))
    kept = {key: plain_setting(content[key], path) for key in KEPT if key in content}
    given = kept.get("hyper_parameters")
    given = given if isinstance(given, dict) else {}
    nested: dict = next((given[key] for key in ("cfg", "config", "hparams") if isinstance(given.get(key), dict)), {})
    settings = {**given, **nested}
    if "net.cluster1.0.weight" not in state:
        raise ValueError(
            f"{path} is no STEGO or DepthG checkpoint: net.cluster1.0.weight is missing "
            f"(found {', '.join(list(state)[:4]) or 'no tensor'})"
        )
    _check_supported(settings, path)
    name, backbone = _backbone(state, settings, path)
    channels = DINO[name].embed_dim
    modules = {"transform": FeatureTransform((channels,), standardize=False), **_modules(state, channels, path)}
    labelled = modules["linear"] is not None
    names = _class_names(settings, modules["linear"].out_features) if labelled else []
    classes = names or [f"class {number}" for number in range(modules["linear"].out_features if labelled else 0)]
    step, per = content.get("global_step"), steps_per_iteration(content.get("pytorch-lightning_version"))
    done = step // per if isinstance(step, int) and step > 0 else 0
    run, lowered = run_settings(settings, done, per)
    config = _config(settings, run, modules, name, backbone is not None)
    header = {
        "iteration": done, "best": -1.0, "backbone": name, "stages": [channels],
        "classes": classes, "classes_named": bool(names), "features": "converted",
        "seconds": {"prepare": 0.0, "train": 0.0, "evaluate": 0.0},
        "shifts": [config.loss.self.shift, config.loss.neighbour.shift, config.loss.negative.shift],
    }  # fmt: skip
    source = {"file": show(path.name), "iterations": done, "steps_per_iteration": per, "lowered": lowered, **kept}
    return Converted(config, modules, backbone, header, source)


def plain_setting(value: Any, path: Path) -> Any:
    """Converts a setting of a checkpoint to plain data (see `foreign.records.plain`).

    Raises:
        ValueError: the value is too deeply nested or too large; names the file.
    """
    try:
        return plain(value)
    except UnpickleError as error:
        raise ValueError(f"{path} cannot be converted: {error}") from error


def _check_supported(settings: dict, path: Path) -> None:
    for key, possible in UNSUPPORTED.items():
        value = settings.get(key)
        if value is not None and value not in possible:
            known = " or ".join(f"{key}={text}" for text in possible)
            raise ValueError(f"{path} was made with {key}={value}; only {known} can be converted")


def _modules(state: dict[str, Tensor], channels: int, path: Path) -> dict[str, Any]:
    """Head and probes with the weights of the checkpoint; STEGO's 1 x 1 convolutions become linear layers."""
    weights = {key: value.float() for key, value in state.items() if not key.startswith("net.model.")}

    def matrix(key: str) -> Tensor:  # [out, in, 1, 1] or [out, in] -> [out, in]
        value = weights.get(key)
        if value is None or value.ndim not in (2, 4) or value.shape[2:] not in ((), (1, 1)):
            found = "is missing" if value is None else f"has shape {list(value.shape)}"
            raise ValueError(f"{path}: {key} {found}; a 1 x 1 convolution is expected")
        return value.flatten(1)

    first = matrix("net.cluster1.0.weight")
    dim = len(first)
    if first.shape[1] != channels:  # checked before anything of that size is allocated
        raise ValueError(f"{path}: its head takes {first.shape[1]} channels, its backbone has {channels}")
    head = SegmentationHead(channels, dim)
    tensors = {"linear.weight": first, "linear.bias": weights.get("net.cluster1.0.bias")}
    if "net.cluster2.0.weight" in weights:
        for ours, theirs in (("nonlinear.0", "net.cluster2.0"), ("nonlinear.2", "net.cluster2.2")):
            tensors |= {f"{ours}.weight": matrix(f"{theirs}.weight"), f"{ours}.bias": weights.get(f"{theirs}.bias")}
    else:  # projection_type=linear: the other branch adds nothing
        tensors |= {key: value * 0 for key, value in head.state_dict().items() if key.startswith("nonlinear")}
    _load(head, tensors, "net.cluster1 and net.cluster2", path)
    clusters = weights.get("cluster_probe.clusters")
    if clusters is None or clusters.ndim != 2:
        raise ValueError(f"{path}: cluster_probe.clusters [clusters, {dim}] is missing")
    cluster, linear = ClusterProbe(dim, len(clusters)), None
    _load(cluster, {"centroids": clusters}, "cluster_probe", path)
    if "linear_probe.weight" in weights:
        rows = matrix("linear_probe.weight")
        linear = LinearProbe(dim, len(rows))
        _load(linear, {"weight": rows, "bias": weights.get("linear_probe.bias")}, "linear_probe", path)
    return {"head": head, "cluster": cluster, "linear": linear}


def _load(module: Any, tensors: dict[str, Tensor | None], name: str, path: Path) -> None:
    """Copies weights; raises ValueError, naming the part, if one is missing or has another shape."""
    for key, target in module.state_dict().items():
        value = tensors.get(key)
        if value is None or value.shape != target.shape:
            found = "is missing" if value is None else f"has shape {list(value.shape)}"
            raise ValueError(f"{path}: {key} of {name} {found}, {list(target.shape)} is expected")
        target.copy_(value)


def _backbone(state: dict[str, Tensor], settings: dict, path: Path) -> tuple[str, dict[str, Tensor] | None]:
    """Name of the DINO network and its weights, None if the checkpoint does not contain them."""
    inside = {key: value for key, value in state.items() if key.startswith("net.model.")}
    if not inside:
        name = f"dino_vit{KINDS.get(settings.get('model_type'), '?')}{settings.get('dino_patch_size')}"
        name = PUBLISHED.get(name, name)
        if name not in DINO:
            raise ValueError(f"{path} has no backbone weights (net.model.*), and its settings name no DINO network")
        return name, None
    network = select_network(inside, path)
    marker = network[MARKER]
    names = {(spec.embed_dim, spec.patch_size): PUBLISHED.get(name, name) for name, spec in DINO.items()}
    found = (marker.shape[0], marker.shape[-1])
    if found not in names:
        raise ValueError(f"{path}: its backbone of width {found[0]} and patch {found[1]} is none of {', '.join(DINO)}")
    return names[found], {key: value.contiguous().clone() for key, value in network.items()}


def _class_names(settings: dict, count: int) -> list[str]:
    """Class names of the data set in the settings; empty if it is unknown or has another number of classes."""
    ours = DATA.get(str(settings.get("dataset_name")))
    names = list(importlib.import_module(f"depthg.data.{ours}").CLASSES) if ours else []
    return names if len(names) == count else []


def _config(settings: dict, run: dict, modules: dict[str, Any], name: str, with_weights: bool) -> Config:
    """Settings of the run: those of the authors' code, of the checkpoint (`run_settings`), and of its weights."""
    res = settings.get("res", TRAIN_SIZE)
    res = int(res) if isinstance(res, (int, float)) and 8 <= res <= 4096 else TRAIN_SIZE
    values = {"sampling.method": "random", **run}
    values |= {
        "experiment": "converted", "n_classes": len(modules["cluster"].centroids), "data.size": [res, res],
        "data.name": DATA.get(str(settings.get("dataset_name")), "folder"), "data.eval_size": [EVAL_SIZE, EVAL_SIZE],
        "backbone.name": name, "head.dim": modules["head"].linear.out_features,
        "backbone.weights": BACKBONE_FILE if with_weights else None, "data.held_out": False,
    }  # fmt: skip
    node = OmegaConf.create(preset("mode", "released"))
    for key, value in values.items():
        OmegaConf.update(node, key, value)
    return to_config(node)


# ---- the run folder


def convert(checkpoint: str | Path, out: str | Path, overwrite: bool = False) -> Path:
    """Writes the run folder `out` atomically; `evaluate` and `predict` accept it.

    Raises:
        FileExistsError: `out` is not empty, or with ``overwrite`` is not a run folder.
        FileNotFoundError, ValueError: see `read_stego`.
        ImportError: the backbone needs transformers.
    """
    checkpoint, out = Path(checkpoint).expanduser(), Path(out).expanduser()
    _check_out(checkpoint, out, overwrite)
    found = read_stego(checkpoint)
    found.config.name, found.config.runs_dir = out.name, str(out.parent)
    partial = partial_path(out)
    try:
        if found.backbone is not None:
            write_tensors(partial / BACKBONE_FILE, found.backbone)
            network = load_backbone(found.config.backbone.name, weights=partial / BACKBONE_FILE)
            found.header["weights"] = network.weights_hash
        write_text(partial / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(found.config)))
        write_text(partial / "source.json", json.dumps(found.source, indent=1))
        modules = {name: module for name, module in found.modules.items() if module is not None}
        save_checkpoint(partial / "checkpoints" / "last", modules, {}, found.header)
        if out.exists():
            old = partial_path(out)
            try:
                out.rename(old)
                partial.rename(out)
            except BaseException:  # Ctrl-C too
                if old.exists() and not out.exists():
                    old.rename(out)
                raise
            shutil.rmtree(old)
        else:
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _check_out(checkpoint: Path, out: Path, overwrite: bool) -> None:
    if checkpoint.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"--out {show(out)} holds the checkpoint itself; choose another folder")
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() and not overwrite:
        raise FileExistsError(f"{show(out)} exists; pass --overwrite to replace it, or another --out")
    if out.exists() and not (out / "config.yaml").is_file():
        raise FileExistsError(f"{show(out)} is no run folder (no config.yaml), so --overwrite leaves it alone")
