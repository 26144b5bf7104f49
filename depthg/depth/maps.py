"""Depth as the training sees it: mapped to [0, 1], and as surface normals.

A depth source (`depth.sources`) gives depth along the optical axis, in metres with inf for the sky, or values in [0, 1]
(near 0, far 1) for `mapping=none`, and NaN where it is unknown. `MappedDepth` and `Normals` turn a source into float
maps for `data.transforms.Views`. `python -m depthg.depth IMAGES --out DIR` makes depth maps of photos
(`depth/__main__.py`).

Why the default mapping saturates: cells are compared by their mapped depth, and farthest point sampling spreads over
it. Divided by the far clip, street scenes put everything of interest below 0.2 and the sky at 1, so the sampling spends
most points on what is far (a feasibility study: 61 instead of 75 cluster accuracy). `z / (z + scale)` has its steepest
part where the objects are, reaches 1 at infinity without a clip, and gives one half at `scale` metres.
"""

import math
from dataclasses import dataclass

import numpy as np

from depthg.data.base import Split
from depthg.data.files import DataError
from depthg.depth.sources import DepthSource, depth_source, focal_pixels, horizontal_fov
from depthg.depth.units import check_depth

__all__ = ["MAPPINGS", "MappedDepth", "Normals", "depth_source", "map_depth", "surface_normals"]

MAPPINGS = ("saturating", "log", "linear", "minmax", "none")


# ---- mapping


def map_depth(
    depth_metres: np.ndarray,  # float [H, W]
    mapping: str = "saturating",
    scale: float = 5.0,
    far: float = 80.0,
    name: str = "the depth map",
) -> np.ndarray:  # float32 [H, W]
    """Map depth to [0, 1], near 0, far 1; unknown depth stays NaN.

    saturating: `z / (z + scale)`; log: `log1p(z / scale) / log1p(far / scale)`, clipped at far; linear: `z / far`,
    clipped at far; minmax: `floor(255 (z - min) / (max - min)) / 255` over the photo, in float32, sky 1, a photo of one
    depth 0 (the released code); none: the values are in [0, 1] already and are only checked.

    Args:
        depth_metres: depth along the optical axis in metres, inf = sky; in any unit for minmax, in [0, 1] for none; NaN
            = unknown.
        mapping: one of the five above.
        scale: metres at which the saturating mapping gives one half; depths well below it keep their spacing.
        far: metres that log and linear map to 1.
        name: the file or photo, for messages.

    Raises:
        DataError: negative depth, or values above 1 with mapping none.
        ValueError: unknown mapping, or scale or far not above 0.
    """
    if mapping not in MAPPINGS:
        raise ValueError(f"depth.mapping={mapping!r} is not one of {', '.join(MAPPINGS)}")
    if not (0 < scale < math.inf and 0 < far < math.inf):
        raise ValueError(f"depth.scale={scale} and far={far} must be above 0 and finite")
    depth = np.asarray(depth_metres, np.float32)
    check_depth(depth, name)
    if mapping == "saturating":
        return 1 - np.float32(scale) / (depth + np.float32(scale))
    if mapping == "log":
        clipped = np.minimum(depth.astype(np.float64), far)  # in float32 the quotient can pass 1
        return (np.log1p(clipped / scale) / np.log1p(far / scale)).astype(np.float32)
    if mapping == "linear":
        return np.minimum(depth, far) / np.float32(far)
    if mapping == "minmax":
        return _levels(depth) / np.float32(255)
    top = float(np.fmax.reduce(depth, axis=None, initial=0))
    if top > 1:
        hint = f" (divide by {255 if top <= 255 else 65535}?)" if top <= 65535 and top == round(top) else ""
        raise DataError(
            f"{name} has values up to {top:g}, but depth.mapping=none expects [0, 1], near 0 and far 1{hint}; "
            f"for metres pass depth.mapping=saturating"
        )
    return depth


def _levels(depth: np.ndarray) -> np.ndarray:  # float32 [H, W], whole numbers in 0..255, or NaN
    """Depth from the nearest to the farthest surface of a photo, rounded down to 8 bits as the released code does."""
    surface, unknown = np.isfinite(depth), np.isnan(depth)
    if unknown.any():
        return np.where(unknown, np.float32(np.nan), _levels(np.where(unknown, np.float32(np.inf), depth)))
    low, high = depth.min(where=surface, initial=np.inf), depth.max(where=surface, initial=-np.inf)
    if not low < high:
        return np.where(surface, np.float32(0), np.float32(255))
    return np.floor((np.where(surface, depth, high) - low) / (high - low) * np.float32(255))


# ---- normals


def surface_normals(
    depth_metres: np.ndarray,  # float [H, W]
    fov_deg: float,
    far: float = math.inf,
    name: str = "the depth map",
) -> np.ndarray:  # float32 [4, H, W]
    """Unit surface normals of the unprojected depth, facing the camera, and a sky flag; NaN where depth is unknown.

    On a plane `n . P = 1` with `P = z (u, v, 1)` the inverse depth is affine in the image, `1 / z = n . (u, v, 1)`, so
    `n = (w_u, w_v, w - u w_u - v w_v)` with `w = 1 / z`: exact on planes, and sky has w = 0. Along each axis the
    smaller of the forward and the backward difference is taken, so that normals do not lean over depth edges. Only
    neighbours of known depth count.

    Args:
        depth_metres: depth along the optical axis, above 0, inf = sky, NaN = unknown.
        fov_deg: horizontal field of view; square pixels, principal point in the middle.
        far: depth from which on a pixel counts as sky.
        name: the file or photo, for messages.

    Returns:
        channels 0 to 2: the normal (x right, y down, z forward), 0 for sky; channel 3: 1 for sky, else 0. All four are
        NaN where depth is unknown.

    Raises:
        DataError: zero or negative depth.
    """
    depth = np.asarray(depth_metres, np.float32)
    if not np.fmin.reduce(depth, axis=None, initial=np.inf) > 0:
        check_depth(depth, name)
        raise DataError(f"{name} has pixels of depth 0: no surface lies in the camera; fill them, or use inf for sky")
    height, width = depth.shape
    focal = np.float32(focal_pixels(width, fov_deg))
    sky = depth >= far if math.isfinite(far) else np.isinf(depth)
    unknown = np.isnan(depth)
    empty = sky | unknown
    w = np.where(empty, np.float32(0), 1 / depth)
    u = (np.arange(width, dtype=np.float32) + np.float32(0.5 - width / 2)) / focal
    v = (np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5 - height / 2)) / focal
    w_u = _slope(w, empty) * focal
    w_v = _slope(w.T, empty.T).T * focal
    normal = np.stack([w_u, w_v, w - u * w_u - v * w_v])
    length = np.sqrt((normal * normal).sum(0))
    normal *= np.where(sky, np.float32(0), -1 / np.maximum(length, np.finfo(np.float32).tiny))
    found = np.concatenate([normal, sky[None].astype(np.float32)])
    found[:, unknown] = np.nan
    return found


def _slope(values: np.ndarray, empty: np.ndarray) -> np.ndarray:  # [H, W] -> [H, W]
    """Smaller of the two one-sided differences along the last axis; one to an empty pixel counts only as 0."""
    step = np.full((values.shape[0], values.shape[1] + 1), np.inf, np.float32)  # step[:, i]: from pixel i - 1 to i
    step[:, 1:-1] = np.where(empty[:, 1:] | empty[:, :-1], np.float32(np.inf), values[:, 1:] - values[:, :-1])
    backward, forward = step[:, :-1], step[:, 1:]
    slope = np.where(np.abs(forward) < np.abs(backward), forward, backward)
    slope[np.isinf(slope)] = 0  # no neighbour on either side: as if facing the camera along this axis
    return slope


# ---- maps for views


@dataclass(frozen=True)
class MappedDepth:
    """Float map for Views: the mapped depth of a photo, float32 [H, W] in [0, 1] or NaN.

    `truncate` casts it to whole numbers, as the released code does to its Potsdam maps: everything below 1 becomes 0.
    """

    split: Split
    source: DepthSource
    mapping: str = "saturating"
    scale: float = 5.0
    far: float = 80.0
    truncate: bool = False

    def __call__(self, index: int) -> np.ndarray:
        name = f"the depth of {self.split.names[index]}"
        depth = map_depth(self.source(self.split, index), self.mapping, self.scale, self.far, name)
        return np.trunc(depth) if self.truncate else depth


@dataclass(frozen=True)
class Normals:
    """Float map for Views: surface normals and sky flag of a photo, float32 [4, H, W]; the source must be in metres."""

    split: Split
    source: DepthSource
    fov_deg: float = 60.0  # where the data set does not state one
    far: float = math.inf

    def __call__(self, index: int) -> np.ndarray:
        fov_deg = horizontal_fov(self.split, index, self.fov_deg)
        name = f"the depth of {self.split.names[index]}"
        return surface_normals(self.source(self.split, index), fov_deg, self.far, name)
