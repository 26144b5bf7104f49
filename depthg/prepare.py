"""Everything that is computed once before training: features, labels, depth and neighbours, memory-mapped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from depthg.backbones import Backbone, load_backbone
from depthg.config import Config
from depthg.data import load_dataset
from depthg.data.base import Dataset, Split, Subset
from depthg.data.files import cache_root, file_stamp
from depthg.data.scenes import SceneSplit
from depthg.data.transforms import View, Views, to_float
from depthg.depth import MappedDepth, Normals, depth_source
from depthg.depth_cache import Crops
from depthg.depth_sources import DepthSource
from depthg.depth_units import check_unit
from depthg.evaluate import EvaluationSet
from depthg.features import FeatureTransform, cached, write_features
from depthg.knn import mean_features, nearest_neighbours
from depthg.progress import StageBar

BLOCK = 64  # views decoded ahead of the network


@dataclass
class Prepared:
    """What training and evaluation read; arrays are memory-mapped, rows are views (photos or crops)."""

    dataset: Dataset
    features_key: str  # changes with the photos, the backbone and whatever else the features depend on
    transform: FeatureTransform
    grid: tuple[int, int]  # cells (h, w) of a training view
    features: np.ndarray  # float16 [V, h*w, C]
    labels: np.ndarray | None  # int16 [V, H, W], -1 = void
    depth: np.ndarray | None  # float16 [V, h*w] in [0, 1]
    normals: np.ndarray | None  # float16 [V, h*w, 4]
    photos: np.ndarray  # int64 [V], photo of each view
    neighbours: np.ndarray  # int64 [V, k]
    evaluation: EvaluationSet
    evaluation_split: Split
    example: Callable[[int], View]  # an evaluation view with image, label and, when there is depth, maps["depth"]


def load_views(views: Views, text: str, part: str) -> Iterator[tuple[int, View]]:
    """One part (image, label or maps) of every view in order, decoded ahead by a few threads, with a progress bar."""
    with ThreadPoolExecutor(4) as pool, StageBar(text.strip(), len(views)) as bar:
        for start in range(0, len(views), BLOCK):
            numbers = range(start, min(start + BLOCK, len(views)))
            for number, view in zip(numbers, pool.map(lambda view: views.load(view, (part,)), numbers), strict=True):
                yield number, view
                bar.advance()


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
        self._backbone: Backbone | None = None

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
        data = self.config.data
        return {
            "photos": fingerprint(views.split), "size": list(views.size), "crop": views.crop,
            "crop_ratio": data.crop_ratio if views.crop == "five" else None, "interpolation": data.interpolation,
        }  # fmt: skip

    def _batches(self, views: Views, text: str) -> Iterator[torch.Tensor]:
        batch = []
        for number, view in load_views(views, text, "image"):
            batch.append(view.image)
            if len(batch) == self.config.backbone.batch_size or number == len(views) - 1:
                yield self.backbone(to_float(torch.stack(batch)).to(self.device))
                batch = []

    def features(self) -> tuple[FeatureTransform, np.ndarray, np.ndarray, str]:
        """The fitted transform, training features, evaluation features, and the key of the training features."""
        part = self.config.backbone
        transform = FeatureTransform(self.backbone.stages, part.pca, part.standardize)
        settings = {
            "device": self.device.type, "backbone": part.name, "weights": self.backbone.weights_hash,
            "standardize": part.standardize, "pca": part.pca,
            "train": self.describe(self.train_views),
        }  # fmt: skip

        def build(views: Views, text: str, fit: bool):
            return lambda folder: write_features(folder, self._batches(views, text), len(views), transform, fit)

        fitted = not transform.is_identity
        train = cached(self.root, "features", settings, build(self.train_views, "features, training  ", fitted))
        transform.load_state_dict(load_file(train / "transform.safetensors"))
        settings = {**settings, "evaluation": self.describe(self.evaluation_views)}
        other = cached(self.root, "features", settings, build(self.evaluation_views, "features, evaluation", False))
        return transform, _map(train / "features.npy"), _map(other / "features.npy"), train.name

    def labels(self, views: Views) -> np.ndarray | None:
        """Labels of every view, or None when the data set has none."""
        if not self.dataset.classes:
            return None

        def build(folder: Path) -> None:
            array = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.int16, (len(views), *views.size))
            for number, view in load_views(views, "labels              ", "label"):
                array[number] = view.label.numpy()
            array.flush()

        table = getattr(views.split, "table", None)
        settings = {
            **self.describe(views), "classes": list(self.dataset.classes),
            "table": None if table is None else table.tolist(),
        }  # fmt: skip
        array = _map(cached(self.root, "labels", settings, build) / "labels.npy")
        if views is self.evaluation_views and not (array >= 0).any():
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

        def build(folder: Path) -> None:
            source.prepare(split)
            depth = np.lib.format.open_memmap(folder / "depth.npy", "w+", np.float16, (len(views), *grid))
            shape = (len(views), 4, *grid)
            normals = np.lib.format.open_memmap(folder / "normals.npy", "w+", np.float16, shape) if surfaces else None
            for number, view in load_views(with_maps, "depth               ", "maps"):
                depth[number] = view.maps["depth"][0]
                if surfaces:
                    normals[number] = view.maps["normals"]

        settings = {
            "depth": {key: value for key, value in asdict(part).items() if key not in ("model", "batch_size")},
            "grid": list(grid), "views": self.describe(views), "source": source.describe(split), "normals": surfaces,
        }  # fmt: skip
        folder = cached(self.root, "depth", settings, build)
        depth = _map(folder / "depth.npy")
        normals = _map(folder / "normals.npy") if surfaces else None
        return depth, normals

    def run(self) -> Prepared:
        """Finds or builds everything."""
        self.depth_source  # noqa: B018 (its errors before the long work)
        transform, features, evaluation, key = self.features()
        stride = self.backbone.stride
        grid = tuple(side // stride for side in self.config.data.size)
        evaluation_size = tuple(self.config.data.eval_size)
        evaluation_grid = tuple(side // stride for side in evaluation_size)
        depth, normals = self.depth(self.train_views, grid)
        knn = self.config.knn
        photos = np.array([self.train_views.photo(view) for view in range(len(self.train_views))])
        vectors = mean_features(features, self.config.head.dropout if knn.dropout else 0.0, self.config.seed)
        same = torch.from_numpy(photos) if knn.exclude_same_photo else None
        return Prepared(
            dataset=self.dataset,
            features_key=key,
            transform=transform,
            grid=grid,
            features=features,
            labels=self.labels(self.train_views),
            depth=None if depth is None else depth.reshape(len(depth), -1),
            normals=None if normals is None else normals.reshape(len(normals), 4, -1).transpose(0, 2, 1),
            photos=photos,
            neighbours=nearest_neighbours(vectors, knn.k, same).numpy(),
            evaluation=EvaluationSet(evaluation, self.labels(self.evaluation_views), evaluation_grid, evaluation_size),
            evaluation_split=self.evaluation_split,
            example=self.example,
        )


def fingerprint(split: Split) -> str:
    """Hash of what a split holds: its files with sizes and times, or for scenes the renderer's version and seed."""
    if isinstance(split, Subset):
        parts = [fingerprint(split.split), *map(str, split.indices)]
    elif isinstance(split, SceneSplit):
        parts = [split.folder.name]
    else:
        parts = [file_stamp(path) for path in [*split.images, *(split.labels or ())] if path is not None]
    return hashlib.sha256("\n".join([*split.names, *parts]).encode("utf-8", "backslashreplace")).hexdigest()


def _map(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")
