"""Shared by all stages of the preparation: the data set, its views, the backbone, and a record of the caches."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from depthg.backbones import Backbone, load_backbone
from depthg.config.schema import Config
from depthg.data import load_dataset
from depthg.data.base import Split
from depthg.data.files import cache_root
from depthg.data.loading import Loader, fingerprint
from depthg.data.reading import DEFAULT, Reading
from depthg.data.transforms import Views, to_float
from depthg.features.summary import CacheUse
from depthg.features.transform import Maps
from depthg.runtime.device import to_device
from depthg.runtime.processes import main_first
from depthg.storage.cache import (
    Arrays,
    Build,
    cache_key,
    cached,
    check_room,
    folder_bytes,
    is_whole,
    missing_bytes,
    rows_per_shard,
)


@dataclass(frozen=True)
class CachePlan:
    """Description of a cache that a stage needs; see :func:`depthg.storage.cache.cached`."""

    name: str  # shown to the user
    kind: str
    settings: dict
    arrays: Arrays
    temporary: Arrays = field(default_factory=dict)


class Caches:
    """The data set, views, backbone and caches of one configuration.

    Args:
        train_needed: False: a data set without training photos will do.

    Attributes:
        config: the settings, with the range of these photos for ``data.range=auto``.
        uses: caches made or found so far.
        root: folder of all caches.
        loader: reads views.

    Raises:
        ValueError: ``cache.dir`` is inside ``data.root``, or the data set lacks the split ``data.eval_split``.
    """

    def __init__(self, config: Config, device: torch.device, train_needed: bool = True):
        self.config, self.device = config, device
        self.root = cache_root(config.cache.dir)
        data = config.data
        if data.root and self.root.resolve().is_relative_to(Path(data.root).expanduser().resolve()):
            raise ValueError(
                f"cache.dir={self.root} lies inside data.root={data.root}, where nothing is written; move it"
            )
        own = data.name == "folder" or train_needed  # else a run's settings, and another data set to evaluate it on
        reading = Reading.of(data) if own else DEFAULT
        with main_first():  # the main process renders scenes; the others find them
            self.dataset = load_dataset(
                data.name, root=data.root, on_error=data.on_error, cache_dir=self.root, seed=data.scene_seed,
                n_train=data.n_train, n_val=data.n_val, n_test=data.n_test,
                list_train=data.list_train, list_val=data.list_val, labels=data.labels, classes=data.classes,
                unlabelled=data.unlabelled, train_needed=train_needed,
                held_out=data.held_out, reading=reading,
            )  # fmt: skip
        found = getattr(self.dataset.train, "reading", DEFAULT).range
        if own and data.range == "auto" != found:  # the range of these photos belongs to the run
            self.config = dataclasses.replace(config, data=dataclasses.replace(data, range=found))
        self.evaluation_split = getattr(self.dataset, data.eval_split, None)
        if self.evaluation_split is None:
            raise ValueError(f"data={data.name} has no split {data.eval_split!r}; use data.eval_split=val")
        self.train_views = self.views(self.dataset.train, data.size, data.crop)
        self.evaluation_views = self.views(self.evaluation_split, data.eval_size)
        self.uses: list[CacheUse] = []
        self.loader = Loader(data.workers, config.seed)
        self._backbone: Backbone | None = None
        self._fingerprints: dict[int, str] = {}

    def views(self, split: Split, size: Sequence[int], crop: str = "none", **maps) -> Views:
        data = self.config.data
        height, width = size
        return Views(split, (height, width), crop, data.interpolation, data.crop_ratio, **maps)

    @property
    def backbone(self) -> Backbone:
        if self._backbone is None:
            part = self.config.backbone
            self._backbone = load_backbone(part.name, weights=part.weights, device=self.device)
        return self._backbone

    @backbone.setter
    def backbone(self, network: Backbone) -> None:
        """Sets a backbone that is already loaded."""
        self._backbone = network

    def describe(self, views: Views) -> dict:
        """The entries of a cache key that identify a list of views."""
        data, split = self.config.data, views.split
        if id(split) not in self._fingerprints:  # looks at every file
            self._fingerprints[id(split)] = fingerprint(split)
        return {
            "photos": self._fingerprints[id(split)], "count": len(views), "size": list(views.size),
            "crop": views.crop, "crop_ratio": data.crop_ratio if views.crop == "five" else None,
            "interpolation": "nearest, then cropped" if data.interpolation == "nearest" else data.interpolation,
        }  # fmt: skip

    def make(self, plan: CachePlan, build: Callable[[Build], None]) -> Path:
        """Finds or builds a stage's cache, records it in ``uses``, and returns its folder."""
        made = not is_whole(self.root / plan.kind / cache_key(plan.settings))
        started = time.perf_counter()
        folder = cached(self.root, plan.kind, plan.settings, build, plan.arrays, plan.temporary)
        seconds, count = time.perf_counter() - started, next(iter(plan.arrays.values()))[0][0]
        self.uses.append(CacheUse(plan.name, count, folder_bytes(folder), seconds, made, folder))
        return folder

    def check_room(self, plans: Sequence[CachePlan]) -> None:
        """Raises OSError (ENOSPC) if the missing caches together do not fit on the disk."""
        missing = {
            plan.name: missing_bytes(self.root / plan.kind / cache_key(plan.settings), plan.arrays, plan.temporary)
            for plan in plans
        }
        largest = max(missing, key=missing.get)
        hint = "; features.cache=off keeps none" if largest.startswith("features") else ""
        check_room(self.root, sum(missing.values()), f"most of it for {largest}{hint}")

    def rows_per_shard(self, row_bytes: int, multiple: int = 1) -> int:
        """Views per shard of about ``cache.shard_mb``, a multiple of ``multiple``."""
        return rows_per_shard(row_bytes, self.config.cache.shard_mb, multiple)

    def maps(self, views: Views) -> Maps:
        """Function of view indices and a batch size that yields backbone output ``[batch, C, h, w]`` in order."""

        def run(numbers: Sequence[int] | np.ndarray, batch: int) -> Iterator[torch.Tensor]:
            images = []
            for place, view in enumerate(self.loader.load(views, numbers, "image"), 1):
                images.append(view.image)
                if len(images) == batch or place == len(numbers):
                    yield self.backbone(to_float(to_device(torch.stack(images), self.device)))
                    images = []

        return run

    def grid(self, views: Views) -> tuple[int, int]:
        """Cells (h, w) of a view.

        Raises:
            ValueError: the size of the view is not a multiple of ``backbone.multiple``.
        """
        multiple = self.backbone.multiple
        if any(side % multiple for side in views.size):
            key = "data.size" if views is self.train_views else "data.eval_size"
            near = [max(multiple, round(side / multiple) * multiple) for side in views.size]
            raise ValueError(
                f"{key}={list(views.size)} must be multiples of {multiple} for {self.backbone.name}: {near}"
            )
        height, width = (side // self.backbone.stride for side in views.size)
        return height, width
