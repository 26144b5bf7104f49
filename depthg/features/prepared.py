"""The prepared inputs of training and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from depthg.config.schema import SamplingConfig
from depthg.data.base import Dataset, Split
from depthg.data.transforms import View
from depthg.features.reading import Features
from depthg.features.transform import FeatureTransform


@dataclass
class EvaluationSet:
    """Features ``[V, h*w, C]``, labels ``[V, H, W]`` (None: unlabelled), grid (h, w) and size (H, W) of a split."""

    features: Features | np.ndarray
    labels: np.ndarray | None
    grid: tuple[int, int]
    size: tuple[int, int]


def grid_places(sampling: SamplingConfig) -> dict[int, slice]:
    """Columns of ``Prepared.depth_grids`` for every number of points per side that a run uses, the smallest first."""
    sides = sorted({sampling.points, *(points for _, points in sampling.schedule)})
    ends = np.cumsum([side * side for side in sides]).tolist()
    return {side: slice(end - side * side, end) for side, end in zip(sides, ends, strict=True)}


@dataclass
class Prepared:
    """The prepared inputs of training and evaluation; arrays are memory-mapped, rows are views (photos or crops)."""

    dataset: Dataset
    features_key: str  # changes with the photos, the backbone and everything else that the features depend on
    transform: FeatureTransform
    grid: tuple[int, int]  # cells (h, w) of a training view
    features: Features  # [V, h*w, C]
    labels: np.ndarray | None  # int16 [V, H, W], -1 = void
    depth: np.ndarray | None  # float16 or float32 [V, h*w] in [0, 1]; NaN = unknown, also in the two below
    depth_grids: np.ndarray | None  # float32 [V, sum of S*S]: for every number of points S a side, see `grid_places`
    normals: np.ndarray | None  # float16 [V, h*w, 4]
    photos: np.ndarray  # int64 [V], photo of each view
    neighbours: np.ndarray  # int32 [V, k]
    evaluation: EvaluationSet
    evaluation_split: Split
    example: Callable[[int], View]  # an evaluation view with image, label and, if depth is used, maps["depth"]
    unknown: np.ndarray | None = None  # float32 [V], share of unknown depth (NaN) in each view; None: all is known
