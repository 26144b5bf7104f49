"""Loads a finished run: settings, head, probes, feature transform and, on first use, the backbone."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from depthg.backbones import Backbone, load_backbone
from depthg.config.composing import check_overrides, numbers_unquoted, stored_settings, to_config
from depthg.config.schema import Config
from depthg.features.transform import DTYPES, FeatureTransform
from depthg.model.checkpoints import FILE, load_modules, read_checkpoint
from depthg.model.heads import ClusterProbe, LinearProbe, SegmentationHead
from depthg.model.legend import Legend, checksum_of, read_legend
from depthg.runtime.device import pick_device

CHECKPOINTS = ("last", "best")
# Locations, and how data are read and scored. All other settings of a run are fixed.
MOVABLE = (
    "device", "cache.dir", "backbone.weights", "backbone.batch_size", "depth.root", "data.workers",
    "data.max_pixels", "data.range", "data.bands", "data.map_order",
    "data.name", "data.root", "data.on_error", "data.labels", "data.classes", "data.class_map", "data.list_train",
    "data.list_val", "data.unlabelled", "data.n_val", "data.n_test", "data.held_out", "val.matching", "val.count",
    "val.crf_image", "val.kmeans_samples",
)  # fmt: skip


@dataclass
class LoadedRun:
    """A run as loaded by ``load_run``; modules are in evaluation mode, on ``device`` and without gradients.

    Attributes:
        header: JSON header of the checkpoint: ``iteration``, ``shifts``, ``classes``, ``backbone``, ...
        classes: names of the classes that the run was trained on; empty if it had no labels.
        linear: the linear probe trained with the head; None if the run had no labels.
        fitted_linear: the one fitted to convergence after training; None without labels, in a checkpoint saved during
            training, in a converted one, and in those of older versions.
    """

    path: Path
    config: Config
    checkpoint: str
    header: dict
    classes: tuple[str, ...]
    device: torch.device
    transform: FeatureTransform
    head: SegmentationHead
    cluster: ClusterProbe
    linear: LinearProbe | None
    fitted_linear: LinearProbe | None = None

    @property
    def n_clusters(self) -> int:
        return len(self.cluster.centroids)

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen network, loaded on first use.

        Raises:
            ValueError: its weights differ from those that the head was trained on.
        """
        return _checked_backbone(self.config, self.header, self.path, self.device)

    @property
    def named(self) -> bool:
        """True if the checkpoint names its classes; a converted one may only number them."""
        return bool(self.classes) and self.header.get("classes_named", True)

    @cached_property
    def assignment(self) -> np.ndarray | None:  # int64 [n_clusters], -1 = no class
        """Class of every cluster, as matched when this checkpoint was scored; None if no matching is stored.

        The matching is that of the end of training, or else of the latest evaluation of the cluster probe.
        """
        return self._matching[0]

    @property
    def naming(self) -> np.ndarray | None:  # int64 [n_clusters], -1 = no class
        """``assignment``, where clusters without a class take their most frequent class; None without a matching.

        A cluster without a labelled pixel, and those of runs that store no frequencies, stay without a class.
        """
        if self.assignment is None:
            return None
        try:
            stored = json.loads((self.path / "metrics.json").read_text(encoding="utf-8"))
            frequent = np.array(stored["most_frequent"]["cluster"], np.int64)
            whole = stored["assignment"]["cluster"] == self.assignment.tolist()
            valid = frequent.shape == self.assignment.shape and -1 <= frequent.min() <= frequent.max() < len(
                self.classes
            )
        except (OSError, ValueError, KeyError, TypeError):
            return self.assignment
        return np.where(self.assignment < 0, frequent, self.assignment) if whole and valid else self.assignment

    @property
    def cluster_names(self) -> tuple[str, ...]:
        """Name of every cluster: its class, its most frequent class where none was left for it, or ``cluster N``."""
        assigned = [-1] * self.n_clusters if self.naming is None else self.naming
        return tuple(self.class_names[c] if c >= 0 else f"cluster {i}" for i, c in enumerate(assigned))

    @cached_property
    def legend(self) -> Legend | None:
        """The names that ``legend.yaml`` in the run folder gives to these clusters; None without it.

        Raises:
            ValueError: the file is damaged.
        """
        return read_legend(self.path, self.cluster_names, checksum_of(self.cluster.centroids))

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in ``assignment``: from the checkpoint or, if it names none, from the scored data."""
        return self._matching[1]

    @cached_property
    def _matching(self) -> tuple[np.ndarray | None, tuple[str, ...]]:
        try:
            stored = json.loads((self.path / "metrics.json").read_text(encoding="utf-8"))
            scored = [
                (stored.get("protocol", {}).get("checkpoint"), stored.get("assignment", {}).get("cluster"), None, None),
                *(
                    (entry["checkpoint"], entry.get("cluster.assignment"), entry.get("file"), entry.get("classes"))
                    for entry in reversed(stored.get("evaluations", []))
                    if entry["clusters"]["by"] == "cluster probe"
                ),
            ]
            for checkpoint, assignment, file, classes in scored:
                if not assignment or checkpoint != self.checkpoint:
                    continue
                found, names = np.array(assignment, np.int64), self.classes
                if classes:  # scored on the classes of other labels
                    names = tuple(map(str, classes))
                elif file and not self.named:
                    names = tuple(map(str, json.loads((self.path / file).read_text(encoding="utf-8"))["classes"]))
                if found.shape == (self.n_clusters,) and found.min() >= -1 and found.max() < len(names):
                    return found, names
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return None, self.classes

    def features(self, images: Tensor) -> Tensor:  # [B, 3, H, W] in [0, 1] -> [B, h*w, C]
        """Input features of the head, rounded as in the training cache (``features.dtype``)."""
        dtype = DTYPES[self.config.features.dtype]
        maps = self.backbone(images.to(self.device)).flatten(2).transpose(1, 2).to(dtype).float()
        return maps if self.transform.is_identity else self.transform(maps).to(dtype).float()

    def codes(self, features: Tensor) -> Tensor:  # [B, h*w, C] -> [B, h*w, K]
        with torch.no_grad():
            return self.head(features)


def load_run(
    path: str | os.PathLike,
    checkpoint: str = "last",
    device: torch.device | str | None = "cpu",
    overrides: Sequence[str] = (),
) -> LoadedRun:
    """Reads a run folder. It runs no code from it, writes nothing, and does not load the backbone yet.

    Args:
        path: the run folder.
        checkpoint: ``last`` or ``best``.
        device: device of the modules; None: the ``device`` of the settings.
        overrides: ``key=value`` for settings that may differ from those of training (``MOVABLE``).

    Raises:
        FileNotFoundError: no run folder, or no such checkpoint in it.
        ValueError: damaged settings or checkpoint, an override of a fixed setting, or a checkpoint whose backbone or
            number of clusters, classes or channels does not match the settings.
    """
    path = Path(path).expanduser()
    check_overrides(overrides)
    fixed = [key for key in (override.partition("=")[0] for override in overrides) if key not in MOVABLE]
    if fixed:
        raise ValueError(f"{fixed[0]} belongs to the trained run; only {', '.join(MOVABLE)} may be given anew")
    given = OmegaConf.from_dotlist([numbers_unquoted(override) for override in overrides])
    config = to_config(OmegaConf.merge(stored_settings(path), given))
    weights = config.backbone.weights
    if weights and (path / weights).exists():  # a path relative to the run folder, which may have been moved
        config.backbone.weights = str(path / weights)
    folder = path / "checkpoints" / checkpoint
    if checkpoint not in CHECKPOINTS:
        raise ValueError(f"checkpoint={checkpoint!r} is not one of {', '.join(CHECKPOINTS)}")
    if checkpoint == "best" and not (folder / FILE).is_file() and (path / "checkpoints/last" / FILE).is_file():
        raise FileNotFoundError(f"{path} kept no best checkpoint (train with checkpoint.rule=best or both); use last")
    tensors, header = read_checkpoint(folder)
    if header.get("backbone") != config.backbone.name:
        raise ValueError(
            f"{folder / FILE} was trained on features of {header.get('backbone')}, {path / 'config.yaml'} names "
            f"{config.backbone.name}; put the checkpoint and the settings of one run together"
        )
    if not isinstance(device, torch.device):
        device = pick_device(config.device if device is None else device)
    classes = tuple(header.get("classes") or ())
    modules = _modules(tensors, header, classes, config, folder / FILE, device)
    with torch.no_grad():
        load_modules(tensors, {name: module for name, module in modules.items() if module is not None}, folder / FILE)
    for module in filter(None, modules.values()):
        module.to(device).eval().requires_grad_(False)
    return LoadedRun(path, config, checkpoint, header, classes, device, **modules)


def _modules(
    tensors: dict[str, Tensor], header: dict, classes: tuple[str, ...], config: Config, file: Path, device: torch.device
) -> dict[str, Any]:
    """Creates the modules with the sizes in the settings, after comparing these with the weights."""

    def rows(name: str) -> int:
        if name not in tensors:
            raise ValueError(
                f"{file}: weight {name.removeprefix('model.')} is missing; not a checkpoint of a whole run"
            )
        return len(tensors[name])

    n_clusters, expected = rows("model.cluster.centroids"), config.n_classes or len(classes)
    if n_clusters != expected:
        raise ValueError(f"{file} holds {n_clusters} clusters, the settings of the run ask for {expected}")
    probes = {name: f"model.{name}.weight" in tensors for name in ("linear", "fitted_linear")}
    for name in (name for name, stored in probes.items() if stored):
        if (n_rows := rows(f"model.{name}.weight")) != len(classes):
            raise ValueError(f"{file} holds a linear probe of {n_rows} classes but names {len(classes)}: {classes}")
    channels = rows("model.transform.mean")
    stages = tuple(header["stages"]) if "stages" in header else (channels,)
    if "stages" not in header and config.backbone.standardize:  # written by an older version
        stages = _checked_backbone(config, header, file, device).stages
    if sum(stages) != channels:
        raise ValueError(f"{file}: the backbone has {sum(stages)} channels, the checkpoint {channels}")
    transform = FeatureTransform(stages, config.backbone.pca, config.backbone.standardize)
    dim = config.head.dim
    return {
        "transform": transform,
        "head": SegmentationHead(transform.channels, dim, config.head.dropout),
        "cluster": ClusterProbe(dim, n_clusters),
        **{name: LinearProbe(dim, len(classes)) if stored else None for name, stored in probes.items()},
    }


def _checked_backbone(config: Config, header: dict, path: Path, device: torch.device) -> Backbone:
    """Loads the backbone of the settings; raises ValueError if its weights differ from those of training."""
    part = config.backbone
    backbone = load_backbone(part.name, weights=part.weights, device=device)
    if header.get("weights", backbone.weights_hash) != backbone.weights_hash:
        source = f"backbone.weights={part.weights}" if part.weights else f"the weights of {part.name} found here"
        raise ValueError(
            f"{path} was trained on features of {part.name} with other weights than {source} "
            f"(hash {header['weights']}, not {backbone.weights_hash}); pass backbone.weights=PATH of the same ones"
        )
    return backbone
