"""``python -m depthg.prepare``: what is computed once before training (depth, labels, features, neighbours).

Every stage is a cache of its own (see ``cache.py``): found when nothing that it depends on has changed, and else built
in shards, so that a killed preparation goes on where it was and several processes share the work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file

from depthg import processes
from depthg.cache import Build, cache_key
from depthg.cli import run_command
from depthg.config import Config
from depthg.data.base import Dataset, Split
from depthg.data.transforms import FloatMap, View, Views
from depthg.depth import MappedDepth, Normals, depth_source
from depthg.depth_cache import Crops
from depthg.depth_sources import DepthSource
from depthg.depth_units import check_unit
from depthg.device import pick_device
from depthg.feature_cache import TRANSFORM, FeatureWriter
from depthg.features import DTYPES, Features, FeatureTransform, StoredFeatures, StreamedFeatures
from depthg.knn import allowed_k
from depthg.knn_cache import NeighbourWriter
from depthg.loading import Loader, write_views
from depthg.prepare_summary import PARTS, SUMMARY, print_summary
from depthg.scoring import EvaluationSet
from depthg.stages import Plan, Stages
from depthg.stopping import terminate_as_interrupt


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


class Preparation(Stages):
    """Builds or finds the caches of one configuration."""

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
        folders = [self._write_features(*part) for part in self.feature_plans]
        both = (self.train_views, folders[0]), (self.evaluation_views, folders[-1])
        training, evaluation = (self._open_features(*part) for part in both)
        return self.transform, training, evaluation, folders[0]

    @cached_property
    def transform(self) -> FeatureTransform:
        """What follows the backbone; fitted when the features are there."""
        part = self.config.backbone
        return FeatureTransform(self.backbone.stages, part.pca, part.standardize).to(self.device)

    @cached_property
    def feature_plans(self) -> list[tuple[Plan, Views, FeatureWriter]]:
        """Features of training and evaluation, or the means alone (``features.cache=off``)."""
        keep, settings = self.config.features.cache == "on", self.feature_settings
        kind = "features" if keep else "means"
        parts = [("training", self.train_views, settings)]
        if keep:
            evaluation = {**settings, "evaluation": self.describe(self.evaluation_views)}
            parts.append(("evaluation", self.evaluation_views, evaluation))
        found = []
        for name, views, described in parts:
            h, w = self.grid(views)
            writer = FeatureWriter(
                len(views), h * w, self.transform, DTYPES[self.config.features.dtype], keep=keep,
                fit=name == "training" and not self.transform.is_identity,
                batch=self.config.backbone.batch_size, shard_mb=self.config.cache.shard_mb,
            )  # fmt: skip
            plan = Plan(f"{kind}, {name}", kind, described, writer.arrays, writer.temporary)
            found.append((plan, views, writer))
        return found

    def _write_features(self, plan: Plan, views: Views, writer: FeatureWriter) -> Path:
        folder = self.make(plan, lambda build: writer.write(build, self.maps(views), plan.name))
        if writer.fit:  # for the evaluation views, and for whoever found the features made
            self.transform.load_state_dict(load_file(folder / TRANSFORM))
        return folder

    def _open_features(self, views: Views, folder: Path) -> Features:
        dtype = DTYPES[self.config.features.dtype]
        if self.config.features.cache == "on":
            return StoredFeatures(folder / "features.npy", dtype)
        h, w = self.grid(views)
        shape = (len(views), h * w, self.transform.channels)
        return StreamedFeatures(shape, dtype, self.transform, self.maps(views), self.config.backbone.batch_size)

    def label_plan(self, views: Views) -> Plan:
        """Labels of training or evaluation views."""
        table = getattr(views.split, "table", None)
        settings = {
            **self.describe(views), "classes": list(self.dataset.classes),
            "table": None if table is None else table.tolist(),
        }  # fmt: skip
        name = "labels, evaluation" if views is self.evaluation_views else "labels, training"
        return Plan(name, "labels", settings, {"labels": ((len(views), *views.size), np.int16)})

    def labels(self, views: Views) -> np.ndarray | None:
        """Labels of every view, or None when the data set has none."""
        if not self.dataset.classes:
            return None

        def row(view: View) -> dict[str, np.ndarray]:
            return {"labels": view.label.numpy().astype(np.int16)}

        plan, shard = self.label_plan(views), self.rows_per_shard(2 * views.size[0] * views.size[1])
        folder = self.make(plan, lambda build: write_views(build, plan.name, views, "label", row, shard, self.loader))
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
        maps: dict[str, FloatMap] = {"depth": self.mapped_depth(split, source)}
        maps |= {"normals": Normals(split, source, part.fov_deg)} if surfaces else {}
        with_maps = self.views(split, views.size, crop, maps=maps, map_size=grid)

        cells = grid[0] * grid[1]
        loader = Loader() if part.source == "model" else self.loader  # a network stays in this process

        def row(view: View) -> dict[str, np.ndarray]:
            found = {"depth": view.maps["depth"].flatten()}
            found |= {"normals": view.maps["normals"].flatten(1).T} if surfaces else {}
            return {field: values.numpy().astype(np.float16) for field, values in found.items()}

        def build(build: Build) -> None:
            source.prepare(split)
            write_views(build, "depth", with_maps, "maps", row, self.rows_per_shard(2 * cells), loader)

        settings = {
            "depth": {key: value for key, value in asdict(part).items() if key not in ("model", "batch_size")},
            "grid": list(grid), "views": self.describe(views), "source": source.describe(split), "normals": surfaces,
        }  # fmt: skip
        arrays: dict[str, tuple[tuple[int, ...], type]] = {"depth": ((len(views), cells), np.float16)}
        arrays |= {"normals": ((len(views), cells, 4), np.float16)} if surfaces else {}
        folder = self.make(Plan("depth", "depth", settings, arrays), build)
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
        folder = self.make(Plan("neighbours", "neighbours", settings, writer.arrays, writer.temporary), writer.write)
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
        labelled = (self.train_views, views) if self.dataset.classes else ()
        self.check_room([*(plan for plan, *_ in self.feature_plans), *map(self.label_plan, labelled)])
        depth, normals = self.depth(self.train_views, grid)
        labels, evaluation_labels = self.labels(self.train_views), self.labels(views)
        transform, features, evaluation, folder = self.features()
        if self.config.features.cache == "on":  # or training goes on reading photos
            self.loader.close()
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
            evaluation=EvaluationSet(evaluation, evaluation_labels, self.grid(views), views.size),
            evaluation_split=self.evaluation_split,
            example=self.example,
        )


def _map(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def prepare(config: Config) -> Preparation:
    """Finds or builds everything that a configuration needs, and prints a summary."""
    with terminate_as_interrupt():
        try:
            preparation = Preparation(config, pick_device(config.device))
            preparation.run()
        except KeyboardInterrupt:
            if processes.is_main():
                print("stopped; finished shards are kept, and the same command goes on from them", file=sys.stderr)
            raise
    if processes.is_main():
        print_summary(preparation.stages, preparation.root, Console(width=None if sys.stdout.isatty() else 140))
    return preparation


def main() -> None:
    """``python -m depthg.prepare``."""
    run_command(prepare, "depthg.prepare", SUMMARY, PARTS)


if __name__ == "__main__":
    main()
