"""Computes the inputs of training once: depth, labels, features, neighbours.

Each stage has one cache (see ``storage/cache.py``). It is reused if nothing it depends on has changed. Otherwise it is
built in shards, so that a killed preparation resumes where it stopped and several processes share the work.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from depthg.data.base import Split
from depthg.data.errors import DataError
from depthg.data.known import mean_of_known
from depthg.data.loading import Loader, write_views
from depthg.data.transforms import FloatMap, View, Views, cell_means
from depthg.depth.cache import Crops
from depthg.depth.maps import MappedDepth, Normals
from depthg.depth.sources import DepthSource, depth_source
from depthg.depth.units import check_unit
from depthg.features.cache import TRANSFORM, FeatureWriter
from depthg.features.caches import CachePlan, Caches
from depthg.features.knn import allowed_k
from depthg.features.knn_cache import NeighbourWriter
from depthg.features.no_data import WhereData, valid_cells
from depthg.features.prepared import EvaluationSet, Prepared, grid_places
from depthg.features.reading import Features, StoredFeatures, StreamedFeatures
from depthg.features.transform import DTYPES, FeatureTransform
from depthg.kernels.released import regular_grid
from depthg.storage.cache import Build, cache_key

DEPTH_FIELDS = ("depth", "depth_grids", "normals", "unknown")  # of Prepared
FEW_UNKNOWN = 0.05  # share of unknown depth above which a line tells it


class Preparation(Caches):
    """Finds or builds the caches of one configuration."""

    @cached_property
    def feature_settings(self) -> dict:
        """Settings in the cache key of the training features; evaluation features share them (fitted transform)."""
        part, network = self.config.backbone, self.backbone
        return {
            "device": self.device.type, "backbone": part.name, "weights": network.weights_hash,
            "input": [network.mean.flatten().tolist(), network.std.flatten().tolist()],
            "standardize": part.standardize, "pca": part.pca, "dtype": self.config.features.dtype,
            "train": self.describe(self.train_views), **self.valid_key,
        }  # fmt: skip

    @cached_property
    def valid(self) -> tuple[np.ndarray, str] | None:
        """Cells of training views with data and their key, see :func:`valid_cells`; None where all have data."""
        return valid_cells(self, self.train_views, self.grid(self.train_views))

    @property
    def valid_key(self) -> dict[str, str]:
        """Entry of the cache keys of what depends on the cells with data; empty where all have data."""
        return {} if self.valid is None else {"valid": self.valid[1]}

    def features(self) -> tuple[FeatureTransform, Features, Features, Path]:
        """The fitted transform, training features, evaluation features, and the folder of the training features."""
        folders = [self._write_features(*part) for part in self.feature_plans]
        both = (self.train_views, folders[0]), (self.evaluation_views, folders[-1])
        training, evaluation = (self._open_features(*part) for part in both)
        training.valid = None if self.valid is None else self.valid[0]
        return self.transform, training, evaluation, folders[0]

    @cached_property
    def transform(self) -> FeatureTransform:
        """The transform after the backbone; it is fitted once the training features are written or found."""
        part = self.config.backbone
        return FeatureTransform(self.backbone.stages, part.pca, part.standardize).to(self.device)

    @cached_property
    def feature_plans(self) -> list[tuple[CachePlan, Views, FeatureWriter]]:
        """Caches of the training and evaluation features, or of the training means alone (``features.cache=off``)."""
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
                valid=self.valid[0] if self.valid is not None and name == "training" else None,
            )  # fmt: skip
            plan = CachePlan(f"{kind}, {name}", kind, described, writer.arrays, writer.temporary)
            found.append((plan, views, writer))
        return found

    def _write_features(self, plan: CachePlan, views: Views, writer: FeatureWriter) -> Path:
        folder = self.make(plan, lambda build: writer.write(build, self.maps(views), plan.name))
        if writer.fit:  # for the evaluation views, and in case the features were found
            self.transform.load_state_dict(load_file(folder / TRANSFORM))
        return folder

    def _open_features(self, views: Views, folder: Path) -> Features:
        dtype = DTYPES[self.config.features.dtype]
        if self.config.features.cache == "on":
            return StoredFeatures(folder / "features.npy", dtype)
        h, w = self.grid(views)
        shape = (len(views), h * w, self.transform.channels)
        return StreamedFeatures(shape, dtype, self.transform, self.maps(views), self.config.backbone.batch_size)

    def label_plan(self, views: Views) -> CachePlan:
        """The label cache of training or evaluation views."""
        table = getattr(views.split, "table", None)
        settings = {
            **self.describe(views), "classes": list(self.dataset.classes),
            "table": None if table is None else table.tolist(),
        }  # fmt: skip
        colours = getattr(views.split, "colours", None)
        settings |= {} if colours is None else {"colours": colours.key}
        name = "labels, evaluation" if views is self.evaluation_views else "labels, training"
        return CachePlan(name, "labels", settings, {"labels": ((len(views), *views.size), np.int16)})

    def labels(self, views: Views) -> np.ndarray | None:
        """Labels of every view, int16 ``[V, H, W]``, or None if the data set has none.

        Raises:
            ValueError: no pixel of the evaluation views has a label.
        """
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
        """An evaluation view for pictures, with ``maps["depth"]`` ``[1, H, W]`` if depth is used."""
        maps = {}
        if self.depth_source is not None:
            maps["depth"] = self.mapped_depth(self.evaluation_split, self.depth_source)
        return self.views(self.evaluation_split, self.config.data.eval_size, maps=maps).load(view)

    def depth(self, views: Views, grid: tuple[int, int]) -> dict[str, np.ndarray | None]:
        """Depth of every view, as the fields ``DEPTH_FIELDS`` of :class:`Prepared`.

        Mapped depth ``[V, h*w]`` and normals ``[V, h*w, 4]`` are averaged over what is known in each cell of ``grid``,
        and float16; a cell is unknown (NaN) if less than half of it is known.
        Where the released code is repeated (``minmax``, ``at=grid``) depth is float32: picks depend on the last bits.

        Raises:
            DataError: no view has a known depth.
        """
        part, source = self.config.depth, self.depth_source
        if source is None:
            return dict.fromkeys(DEPTH_FIELDS)
        source = source if self.valid is None else WhereData(source)
        split, crop = (Crops(views), "none") if part.on == "crop" else (views.split, views.crop)
        surfaces = part.mapping != "none" and self.config.loss.depth.relation in ("normals", "inclination")
        sides = grid_places(self.config.sampling) if self.config.loss.depth.at == "grid" else {}
        maps: dict[str, FloatMap] = {"depth": self.mapped_depth(split, source)}
        maps |= {"normals": Normals(split, source, part.fov_deg)} if surfaces else {}
        with_maps = self.views(split, views.size, crop, maps=maps, map_size=views.size if sides else grid)

        cells, dtype = grid[0] * grid[1], np.float32 if part.mapping == "minmax" or sides else np.float16
        loader = Loader() if part.source == "model" else self.loader  # a depth network runs in this process

        def row(view: View) -> dict[str, np.ndarray]:
            depth = view.maps["depth"]
            found = {"depth": cell_means(depth.numpy(), grid).flatten().astype(dtype)}
            if surfaces:
                found["normals"] = view.maps["normals"].flatten(1).T.numpy().astype(np.float16)
            if sides:
                found["depth_grids"] = torch.cat([on_grid(depth, side) for side in sides]).numpy()
            if not source.dense:
                found["unknown"] = np.max([np.isnan(part).mean() for part in found.values()], initial=0)
            return found

        def build(build: Build) -> None:
            source.prepare(split)
            write_views(build, "depth", with_maps, "maps", row, self.rows_per_shard(4 * cells), loader)

        settings = {
            "depth": {key: value for key, value in asdict(part).items() if key not in ("model", "batch_size")},
            "grid": list(grid), "views": self.describe(views), "source": source.describe(split), "normals": surfaces,
            "sides": list(sides), **self.valid_key,
        }  # fmt: skip
        arrays: dict[str, tuple[tuple[int, ...], type]] = {"depth": ((len(views), cells), dtype)}
        arrays |= {"normals": ((len(views), cells, 4), np.float16)} if surfaces else {}
        arrays |= {"depth_grids": ((len(views), sum(side * side for side in sides)), np.float32)} if sides else {}
        arrays |= {} if source.dense else {"unknown": ((len(views),), np.float32)}
        folder = self.make(CachePlan("depth", "depth", settings, arrays), build)
        found = {field: _map(folder / f"{field}.npy") if field in arrays else None for field in DEPTH_FIELDS}
        return found | {"unknown": unknown_shares(folder / "unknown.npy", source.name)}

    def neighbours(self, means: Path) -> np.ndarray:  # int32 [V, k]
        """The nearest neighbours of every training view by the mean features in the file ``means``."""
        knn, dropout = self.config.knn, self.config.head.dropout if self.config.knn.dropout else 0.0
        photos, k = self.pairing
        writer = NeighbourWriter(
            means, photos, k, dropout=dropout, seed=self.config.seed, dtype=knn.dtype, device=self.device
        )
        settings = {
            "features": self.feature_settings, "k": k, "exclude_same_photo": knn.exclude_same_photo,
            "dropout": dropout, "seed": self.config.seed if dropout else None, "dtype": knn.dtype,
        }  # fmt: skip
        folder = self.make(
            CachePlan("neighbours", "neighbours", settings, writer.arrays, writer.temporary), writer.write
        )
        return _map(folder / "neighbours.npy")

    @property
    def photos(self) -> np.ndarray:  # int64 [V]
        """Index of the photo of each training view."""
        return np.arange(len(self.train_views)) // self.train_views.per_photo

    @property
    def pairing(self) -> tuple[np.ndarray, int]:
        """Group of each view, int64 ``[V]`` (views of one group are never paired), and neighbours per view."""
        photos = self.photos if self.config.knn.exclude_same_photo else np.arange(len(self.photos))
        return photos, allowed_k(self.config.knn.k, torch.from_numpy(photos))

    def run(self) -> Prepared:
        """Finds or builds all caches and opens them."""
        self.depth_source, self.pairing  # noqa: B018 (raises their errors before the long work)
        grid, views = self.grid(self.train_views), self.evaluation_views
        labelled = (self.train_views, views) if self.dataset.classes else ()
        self.check_room([*(plan for plan, *_ in self.feature_plans), *map(self.label_plan, labelled)])
        depth = self.depth(self.train_views, grid)
        labels, evaluation_labels = self.labels(self.train_views), self.labels(views)
        transform, features, evaluation, folder = self.features()
        if self.config.features.cache == "on":  # otherwise training still reads photos
            self.loader.close()
        return Prepared(
            dataset=self.dataset,
            features_key=cache_key(self.feature_settings),
            transform=transform,
            grid=grid,
            features=features,
            labels=labels,
            **depth,
            photos=self.photos,
            neighbours=self.neighbours(folder / "means.npy"),
            evaluation=EvaluationSet(evaluation, evaluation_labels, self.grid(views), views.size),
            evaluation_split=self.evaluation_split,
            example=self.example,
        )


def on_grid(depth: torch.Tensor, side: int) -> torch.Tensor:  # [1, H, W] -> [side * side]
    """``regular_grid`` of a depth map, between the depths that are known."""
    return mean_of_known(lambda x: regular_grid(x, side), depth)[0]


def unknown_shares(path: Path, name: str) -> np.ndarray | None:  # float32 [V]
    """Share of unknown depth in each view; None if all is known, as in caches without this file.

    A warning tells the share if it is more than a few percent, and the number of views without any known depth.

    Raises:
        DataError: no view has a known depth.
    """
    shares = np.load(path) if path.is_file() else np.zeros(1, np.float32)
    if not shares.any():
        return None
    if (shares == 1).all():
        raise DataError(
            f"{name}: no depth is known in any of the {len(shares):,} images; in metres 0, negative values and NaN "
            f"mean that nothing was measured. Check the maps, or pass depth.mapping=none for values in [0, 1], or "
            f"depth.source=none"
        )
    if shares.mean() > FEW_UNKNOWN or (shares == 1).any():
        empty = int((shares == 1).sum())
        more = f"; {empty:,} of {len(shares):,} images have none: random points, no depth term" * bool(empty)
        warnings.warn(f"{name}: depth is unknown in {shares.mean():.0%} of the cells{more}", stacklevel=3)
    return shares


def _map(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")
