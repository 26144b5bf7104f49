"""Recomputes, without the data set, a step that a run kept because a loss or gradient was NaN or infinite."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from depthg.config.composing import to_config
from depthg.features.reading import Features
from depthg.model.checkpoints import load_modules
from depthg.runtime.device import pick_device
from depthg.training.nonfinite import as_json
from depthg.training.step import Model, Step


def places(kept: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Positions of views in ``kept``, which is sorted.

    Raises:
        IndexError: a view is not in ``kept``.
    """
    found = np.searchsorted(kept, views)
    if not np.array_equal(kept[np.minimum(found, len(kept) - 1)], views):
        raise IndexError(f"only the images {kept.tolist()} of this step are kept, not {np.asarray(views).tolist()}")
    return found


class KeptRows:
    """Some rows of an array ``[V, ...]``, indexed by their row numbers in the full array.

    Args:
        views: row numbers, int64 [n], ascending.
        rows: the rows, [n, ...].
        count: number of rows V of the full array.
    """

    def __init__(self, views: np.ndarray, rows: np.ndarray, count: int):
        self.views, self.rows, self.shape = views, rows, (count, *rows.shape[1:])

    def __getitem__(self, index) -> np.ndarray:
        first, *rest = index if isinstance(index, tuple) else (index,)
        return self.rows[(places(self.views, first), *rest)]


class KeptFeatures(Features):
    """Some feature maps, indexed by their views in the full set; arguments as :class:`KeptRows`."""

    def __init__(self, views: np.ndarray, maps: Tensor, count: int):
        super().__init__((count, *maps.shape[1:]), maps.dtype)
        self.views, self.maps = views, maps

    def read(self, views: np.ndarray) -> Tensor:
        return self.maps[torch.from_numpy(places(self.views, views))]


@dataclass
class KeptData:
    """The part of :class:`depthg.features.prepared.Prepared` that a step reads."""

    grid: tuple[int, int]
    photos: np.ndarray
    features: KeptFeatures
    neighbours: KeptRows
    labels: KeptRows | None
    depth: KeptRows | None
    depth_grids: KeptRows | None
    normals: KeptRows | None
    unknown: KeptRows | None = None


def read_step(path: str | Path, device: str = "cpu") -> tuple[Step, dict]:
    """Reads a step with its weights from ``RUN/nonfinite/iteration-N.json``; also returns the content of the file.

    Raises:
        FileNotFoundError: the file, or its ``.safetensors`` file, does not exist.
        ValueError: one of them is damaged.
    """
    path = Path(path)
    beside = path.with_suffix(".safetensors")
    for file in (path, beside):
        if not file.is_file():
            raise FileNotFoundError(f"no file at {file}; give RUN/nonfinite/iteration-N.json with its .safetensors")
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(beside)
        config = to_config(kept["settings"])
        views, count = tensors["views"].numpy(), int(kept["images"])
        found = {
            name: KeptRows(views, tensors[name].numpy(), count) if name in tensors else None
            for name in ("neighbours", "labels", "depth", "depth_grids", "normals", "unknown")
        }
        features = KeptFeatures(views, tensors["features"], count)
        features.valid = KeptRows(views, tensors["valid"].numpy(), count) if "valid" in tensors else None
        data: Any = KeptData(  # stands in for a Prepared
            tuple(kept["grid"]), tensors["photos"].numpy(), features, **found
        )
        classes = len(tensors.get("model.linear.weight", ()))
        clusters = len(tensors["model.cluster.centroids"])
        model = Model(data.features.shape[2], config.head.dim, config.head.dropout, classes, clusters)
        load_modules(tensors, dict(model.named_children()), beside)
        step = Step(config, data, model.to(pick_device(device)), pick_device(device), ahead=False)
        own, near, far = map(float, kept["shifts"])
        step.shifts = (own, near, far)
        int(kept["iteration"]), kept["term"], dict(kept["values"])
    except (SafetensorError, KeyError, TypeError, AttributeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} or {beside.name} is damaged: {type(error).__name__}: {error}") from error
    return step, kept


def replay(path: str | Path, device: str = "cpu") -> dict[str, float | str]:
    """Recomputes the losses and logged values of a kept iteration; ``nan`` and ``inf`` are text."""
    step, kept = read_step(path, device)
    losses, logged = step.losses(int(kept["iteration"]) - 1)
    values = {"loss": losses["total"].detach(), **logged}
    return {name: as_json(value) for name, value in values.items()}
