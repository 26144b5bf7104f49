"""``python -m depthg.prepare``: what is computed once before training (depth, labels, features, neighbours).

Every stage is a cache of its own (see ``cache.py``): found when nothing that it depends on has changed, and else built
in shards, so that a killed preparation goes on where it was and several processes share the work.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file

from depthg.backbones import Backbone, load_backbone
from depthg.cache import Arrays, Build, cache_key, cached, folder_bytes, is_whole, rows_per_shard
from depthg.cli import run_command
from depthg.config import Config
from depthg.data import load_dataset
from depthg.data.base import Dataset, Split
from depthg.data.files import cache_root
from depthg.data.transforms import View, Views, to_float
from depthg.depth import MappedDepth, Normals, depth_source
from depthg.depth_cache import Crops
from depthg.depth_sources import DepthSource
from depthg.depth_units import check_unit
from depthg.device import pick_device
from depthg.evaluate import EvaluationSet
from depthg.feature_cache import TRANSFORM, FeatureWriter
from depthg.features import DTYPES, Features, FeatureTransform, StoredFeatures, StreamedFeatures
from depthg.knn import allowed_k
from depthg.knn_cache import NeighbourWriter
from depthg.loading import fingerprint, load_views, write_views
from depthg.prepare_summary import SUMMARY, Stage, print_summary


@dataclass
class Prepared:
    """What training and evaluation read; arrays are memory-mapped, rows are views (photos or crops)."""

    dataset: Dataset
    features_key: str  # changes with the photos, the backbone and whatever else the features depend on
    transform: FeatureTransform
    grid: tuple[int, int]  # cells (h, w) of a training view
    features: Features  # [V, h*w, C]
    labels: np.ndarray | None  # int16 [V, H, W], -1 = void
    depth: np.ndarray | None  # float16 [V, h*w] in [0, 1]
    normals: np.ndarray | None  # float16 [V, h*w, 4]
    photos: np.ndarray  # int64 [V], photo of each view
    neighbours: np.ndarray  # int32 [V, k]
    evaluation: EvaluationSet
    evaluation_split: Split
    example: Callable[[int], View]  # an evaluation view with image, label and, when there is depth, maps["depth"]


class Preparation:
    """Builds or finds the caches of one configuration."""

    def __init__(self, config: Config, device: torch.device):
        self.config, self.device = config, device
        self.root = cache_root(config.cache.dir)
        data = config.data
        self.dataset = load_dataset(
            data.name, root=data.root, on_error=data.on_error, cache_dir=self.root, seed=data.scene_seed,
            n_train=data.n_train, n_val=data.n_val, n_test=data.n_test,
            list_train=data.list_train, list_val=data.list_val, labels=data.labels, classes=data.classes,
        )  # fmt: skip
        self.evaluation_split = getattr(self.dataset, data.eval_split, None)
        if self.evaluation_split is None:
            raise ValueError(f"data={data.name} has no split {data.eval_split!r}; use data.eval_split=val")
        self.train_views = self.views(self.dataset.train, data.size, data.crop)
        self.evaluation_views = self.views(self.evaluation_split, data.eval_size)
        self.stages: list[Stage] = []
        self._backbone: Backbone | None = None
        self._fingerprints: dict[int, str] = {}

    def views(self, split: Split, size: Sequence[int], crop: str = "none", **maps) -> Views:
        data = self.config.data
        return Views(split, tuple(size), crop, data.interpolation, data.crop_ratio, **maps)

    @property
    def backbone(self) -> Backbone:
        if self._backbone is None:
            part = self.config.backbone
            self._backbone = load_backbone(part.name, weights=part.weights, device=self.device)
        return self._backbone

    def describe(self, views: Views) -> dict:
        """What identifies a list of views in a cache key."""
        data, split = self.config.data, views.split
        if id(split) not in self._fingerprints:  # a look at every file
            self._fingerprints[id(split)] = fingerprint(split)
        return {
            "photos": self._fingerprints[id(split)], "count": len(views), "size": list(views.size),
            "crop": views.crop, "crop_ratio": data.crop_ratio if views.crop == "five" else None,
            "interpolation": data.interpolation,
        }  # fmt: skip

    def cached(
        self, name: str, kind: str, settings: dict, build: Callable[[Build], None], arrays: Arrays,
        temporary: Arrays | None = None,
    ) -> Path:  # fmt: skip
        """The folder of a stage, which is noted for the summary."""
        made = not is_whole(self.root / kind / cache_key(settings))
        started = time.perf_counter()
        folder = cached(self.root, kind, settings, build, arrays, temporary)
        seconds, count = time.perf_counter() - started, next(iter(arrays.values()))[0][0]
        self.stages.append(Stage(name, count, folder_bytes(folder), seconds, made, folder))
        return folder

    def rows_per_shard(self, row_bytes: int, multiple: int = 1) -> int:
        return rows_per_shard(row_bytes, self.config.cache.shard_mb, multiple)

    def maps(self, views: Views) -> Callable[[Sequence[int], int], Iterator[torch.Tensor]]:
        """Function from numbers of views and a batch size to backbone output ``[batch, C, h, w]``, in order."""

        def run(numbers: Sequence[int], batch: int) -> Iterator[torch.Tensor]:
            images = []
            for place, view in enumerate(load_views(views, numbers, "image"), 1):
                images.append(view.image)
                if len(images) == batch or place == len(numbers):
                    yield self.backbone(to_float(torch.stack(images).to(self.device)))
                    images = []

        return run

    def grid(self, views: Views) -> tuple[int, int]:
        """Cells (h, w) of a view.

        Raises:
            ValueError: its size does not fit the backbone.
        """
        multiple = self.backbone.multiple
        if any(side % multiple for side in views.size):
            key = "data.size" if views is self.train_views else "data.eval_size"
            near = [max(multiple, round(side / multiple) * multiple) for side in views.size]
            raise ValueError(
                f"{key}={list(views.size)} must be multiples of {multiple} for {self.backbone.name}: {near}"
            )
        return tuple(side // self.backbone.stride for side in views.size)

    @cached_property
    def feature_settings(self) -> dict:
        """What the features of the training views depend on; those of other views also depend on these views."""
        part, network = self.config.backbone, self.backbone
        return {
            "device": self.device.type, "backbone": part.name, "weights": network.weights_hash,
            "input": [network.mean.flatten().tolist(), network.std.flatten().tolist()],
            "standardize": part.standardize, "pca": part.pca, "dtype": self.config.features.dtype,
            "train": self.describe(self.train_views),
        }  # fmt: skip

    def features(self) -> tuple[FeatureTransform, Features, Features, Path]:
        """The fitted transform, training features, evaluation features, and the folder of the training features."""
        part, keep = self.config.backbone, self.config.features.cache == "on"
        transform = FeatureTransform(self.backbone.stages, part.pca, part.standardize)
        fit = not transform.is_identity
        train = self._write_features("training", self.train_views, self.feature_settings, transform, fit, keep)
        if fit:
            transform.load_state_dict(load_file(train / TRANSFORM))
        settings = {**self.feature_settings, "evaluation": self.describe(self.evaluation_views)}
        other = None
        if keep:
            other = self._write_features("evaluation", self.evaluation_views, settings, transform, False, True)
        both = ((self.train_views, train), (self.evaluation_views, other))
        return transform, *(self._open_features(views, transform, folder) for views, folder in both), train

    def _write_features(
        self, name: str, views: Views, settings: dict, transform: FeatureTransform, fit: bool, keep: bool
    ) -> Path:
        """The cache of features, or of the mean features alone (``keep=False``)."""
        h, w = self.grid(views)
        writer = FeatureWriter(
            len(views), h * w, transform, DTYPES[self.config.features.dtype], fit=fit, keep=keep,
            batch=self.config.backbone.batch_size, shard_mb=self.config.cache.shard_mb,
        )  # fmt: skip
        maps, text = self.maps(views), f"features, {name}"
        return self.cached(
            text if keep else f"means, {name}", "features" if keep else "means", settings,
            lambda build: writer.write(build, maps, text), writer.arrays, writer.temporary,
        )  # fmt: skip

    def _open_features(self, views: Views, transform: FeatureTransform, folder: Path | None) -> Features:
        dtype = DTYPES[self.config.features.dtype]
        if self.config.features.cache == "on":
            return StoredFeatures(folder / "features.npy", dtype)
        h, w = self.grid(views)
        shape = (len(views), h * w, transform.channels)
        return StreamedFeatures(shape, dtype, transform, self.maps(views), self.config.backbone.batch_size)

    def labels(self, views: Views) -> np.ndarray | None:
        """Labels of every view, or None when the data set has none."""
        if not self.dataset.classes:
            return None
        name = "labels, evaluation" if views is self.evaluation_views else "labels, training"

        def row(view: View) -> dict[str, np.ndarray]:
            return {"labels": view.label.numpy().astype(np.int16)}

        shard = self.rows_per_shard(2 * views.size[0] * views.size[1])
        table = getattr(views.split, "table", None)
        settings = {
            **self.describe(views), "classes": list(self.dataset.classes),
            "table": None if table is None else table.tolist(),
        }  # fmt: skip
        arrays = {"labels": ((len(views), *views.size), np.int16)}
        folder = self.cached(
            name, "labels", settings, lambda build: write_views(build, name, views, "label", row, shard), arrays
        )
        array = _map(folder / "labels.npy")
        if views is self.evaluation_views and not any((array[i : i + 64] >= 0).any() for i in range(0, len(array), 64)):
            raise ValueError(f"no pixel of the {len(views)} evaluation images has a label; nothing can be scored")
        return array

    @cached_property
    def depth_source(self) -> DepthSource | None:
        part, term = self.config.depth, self.config.loss.depth
        source = depth_source(
            part.source, root=part.root, metres_per_unit=part.metres_per_unit, mapping=part.mapping,
            camera_height=part.camera_height, horizon=part.horizon, fov_deg=part.fov_deg, model=part.model,
            flip=part.flip, output=part.output, batch_size=part.batch_size, cache=self.root, device=self.device,
        )  # fmt: skip
        if source is not None:
            check_unit(source, part.mapping, term.relation if term.weight else "product")
        return source

    def mapped_depth(self, split: Split, source: DepthSource) -> MappedDepth:
        part = self.config.depth
        truncate = part.truncate in ("all", self.dataset.name)
        return MappedDepth(split, source, part.mapping, part.scale, part.far, truncate)

    def example(self, view: int) -> View:
        """An evaluation view for pictures, with ``maps["depth"]`` ``[1, H, W]`` when depth is used."""
        maps = {}
        if self.depth_source is not None:
            maps["depth"] = self.mapped_depth(self.evaluation_split, self.depth_source)
        return self.views(self.evaluation_split, self.config.data.eval_size, maps=maps).load(view)

    def depth(self, views: Views, grid: tuple[int, int]) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Mapped depth and, where the relation compares surfaces, normals, both averaged over each cell of ``grid``."""
        part, source = self.config.depth, self.depth_source
        if source is None:
            return None, None
        split, crop = (Crops(views), "none") if part.on == "crop" else (views.split, views.crop)
        surfaces = part.mapping != "none" and self.config.loss.depth.relation in ("normals", "inclination")
        maps = {"depth": self.mapped_depth(split, source)}
        maps |= {"normals": Normals(split, source, part.fov_deg)} if surfaces else {}
        with_maps = self.views(split, views.size, crop, maps=maps, map_size=grid)

        cells = grid[0] * grid[1]

        def row(view: View) -> dict[str, np.ndarray]:
            found = {"depth": view.maps["depth"].flatten()}
            found |= {"normals": view.maps["normals"].flatten(1).T} if surfaces else {}
            return {field: values.numpy().astype(np.float16) for field, values in found.items()}

        def build(build: Build) -> None:
            source.prepare(split)
            write_views(build, "depth", with_maps, "maps", row, self.rows_per_shard(2 * cells))

        settings = {
            "depth": {key: value for key, value in asdict(part).items() if key not in ("model", "batch_size")},
            "grid": list(grid), "views": self.describe(views), "source": source.describe(split), "normals": surfaces,
        }  # fmt: skip
        arrays = {"depth": ((len(views), cells), np.float16)}
        arrays |= {"normals": ((len(views), cells, 4), np.float16)} if surfaces else {}
        folder = self.cached("depth", "depth", settings, build, arrays)
        return _map(folder / "depth.npy"), _map(folder / "normals.npy") if surfaces else None

    def neighbours(self, means: Path) -> np.ndarray:  # int32 [V, k]
        """The nearest neighbours of every training view by its mean features in ``means``."""
        knn, dropout = self.config.knn, self.config.head.dropout if self.config.knn.dropout else 0.0
        photos, k = self.pairing
        writer = NeighbourWriter(
            means, photos, k, dropout=dropout, seed=self.config.seed, dtype=knn.dtype, device=self.device
        )
        settings = {
            "features": self.feature_settings, "k": k, "exclude_same_photo": knn.exclude_same_photo,
            "dropout": dropout, "seed": self.config.seed if dropout else None, "dtype": knn.dtype,
        }  # fmt: skip
        folder = self.cached("neighbours", "neighbours", settings, writer.write, writer.arrays, writer.temporary)
        return _map(folder / "neighbours.npy")

    @property
    def photos(self) -> np.ndarray:  # int64 [V]
        """The photo of each training view."""
        return np.arange(len(self.train_views)) // self.train_views.per_photo

    @property
    def pairing(self) -> tuple[np.ndarray, int]:
        """What views of one photo have in common where they are not to be paired, and neighbours of each view."""
        photos = self.photos if self.config.knn.exclude_same_photo else np.arange(len(self.photos))
        return photos, allowed_k(self.config.knn.k, torch.from_numpy(photos))

    def run(self) -> Prepared:
        """Finds or builds everything."""
        self.depth_source, self.pairing  # noqa: B018 (their errors before the long work)
        grid, views = self.grid(self.train_views), self.evaluation_views
        self.grid(views)
        depth, normals = self.depth(self.train_views, grid)
        labels, evaluation_labels = self.labels(self.train_views), self.labels(views)
        transform, features, evaluation, folder = self.features()
        return Prepared(
            dataset=self.dataset,
            features_key=cache_key(self.feature_settings),
            transform=transform,
            grid=grid,
            features=features,
            labels=labels,
            depth=depth,
            normals=normals,
            photos=self.photos,
            neighbours=self.neighbours(folder / "means.npy"),
            evaluation=EvaluationSet(evaluation, evaluation_labels, self.grid(views), tuple(views.size)),
            evaluation_split=self.evaluation_split,
            example=self.example,
        )


def _map(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def prepare(config: Config) -> Preparation:
    """Finds or builds everything that a configuration needs, and prints a summary."""
    preparation = Preparation(config, pick_device(config.device))
    preparation.run()
    console = Console(width=None if sys.stdout.isatty() else 140)
    print_summary(preparation.stages, preparation.root, console)
    return preparation


def main() -> None:
    run_command(prepare, "depthg.prepare", SUMMARY)


if __name__ == "__main__":
    main()
