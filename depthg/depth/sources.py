"""Where depth comes from: the data set, a folder of depth maps, a network, a flat-road prior, or nowhere.

A depth source is called with a split and the index of a photo and returns float32 [H, W]: depth along the optical axis,
in metres with inf for the sky, or values in [0, 1] (near 0, far 1) for `mapping=none`; NaN where it is unknown.
"""

from __future__ import annotations

import difflib
import math
import os
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from depthg.data.base import MIN_SIDE, Split, photo_size, photo_size_and_turn
from depthg.data.files import DataError, cache_root, file_stamp, read_values, show
from depthg.data.map_order import in_photo_order
from depthg.data.reading import DEFAULT, Reading
from depthg.data.transforms import Window, resize_area, resize_nearest
from depthg.depth.units import UNIT_FILE, check_depth, read_unit, without_measurement

DEPTH_SUFFIXES = (".npy", ".png", ".tif", ".tiff")
NO_ZEROS = {"zeros": "unknown"}  # in cache keys, since zeros among floats in metres once were depths


class DepthSource:
    """Depth of any photo of any split.

    Attributes:
        metric: whether it gives metres, None where only the user knows.
        dense: whether it knows the depth of every pixel.
        name: what it is called in messages.
    """

    metric: bool | None = None
    dense = False
    name = "the depth source"

    def __call__(self, split: Split, index: int) -> np.ndarray:  # float32 [H, W]
        """The depth map of a photo, of the photo's size; NaN where depth is unknown."""
        raise NotImplementedError

    def prepare(self, split: Split) -> None:
        """Computes what later calls read, where that takes long; finished work is kept if the process is killed."""

    def describe(self, split: Split) -> object:
        """What the maps depend on besides the settings and the photos, as a JSON value for cache keys."""
        return None


class DatasetDepth(DepthSource):
    """depth.source=dataset: the depth maps of the data set.

    Args:
        relative: they are values in [0, 1], not metres, so that 0 is a depth (mapping none).
    """

    name = "depth.source=dataset"

    def __init__(self, relative: bool = False):
        self.relative = relative

    def describe(self, split: Split) -> dict | None:
        return None if self.relative else NO_ZEROS

    def __call__(self, split: Split, index: int) -> np.ndarray:  # float32 [H, W]
        depth = split.depth(index)
        if depth is None:
            raise ValueError(
                f"the data set has no depth for {split.names[index]}: pass depth.source=folder, ground_plane or none"
            )
        return depth if self.relative else without_measurement(depth)


class FolderDepth(DepthSource):
    """depth.source=folder: one file per photo, by the photo's relative path or by its stem.

    Files are .npy, or one-channel .png or .tif. Floats are metres (inf = sky), or [0, 1] for mapping none. Integers are
    multiplied by `metres_per_unit` (millimetres: 0.001; KITTI: 1 / 256); without it they are divided by the largest
    value of their type, which makes [0, 1] for mapping none. NaN is unknown, and in metres 0 and negative values too.

    Args:
        root: the folder, never written to. What `python -m depthg.depth` wrote says its unit itself, in `depth.json`.
        metres_per_unit: metres per step of integer maps, or None.
        expects_metres: whether the mapping expects metres (every one but minmax and none).
        relative: floats are values in [0, 1], not metres, so that 0 is a depth (mapping none).
    """

    def __init__(
        self,
        root: str | Path,
        metres_per_unit: float | None = None,
        expects_metres: bool = True,
        relative: bool = False,
    ):
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise FileNotFoundError(f"depth.root={show(self.root)} is no folder; it must hold one depth map per photo")
        if metres_per_unit is not None and not 0 < metres_per_unit < math.inf:
            raise ValueError(f"depth.metres_per_unit={metres_per_unit} must be above 0 (0.001 for millimetres)")
        self.metres_per_unit, self.expects_metres = metres_per_unit, expects_metres
        self.name = f"depth.root={show(self.root)}"
        if metres_per_unit is None and (self.root / UNIT_FILE).is_file():
            self.metric, self.metres_per_unit = read_unit(self.root)
        self.floats_in_metres = not relative and self.metric is not False
        self._warned: set[str] = set()
        self._counted: tuple[Split, Counter] | None = None

    def describe(self, split: Split) -> dict:
        paths = [self.path(split, i) for i in range(len(split))]
        may_have_zeros = self.floats_in_metres and any(path.suffix != ".png" for path in paths)
        unit = {"files": list(map(file_stamp, paths)), "unit": self.metres_per_unit}
        return unit | (NO_ZEROS if may_have_zeros else {})

    def __call__(self, split: Split, index: int) -> np.ndarray:  # float32 [H, W]
        path = self.path(split, index)
        reading = getattr(split, "reading", DEFAULT)
        depth = self._read(path, reading)
        size, turn = photo_size_and_turn(split, index)
        depth = in_photo_order(depth, size, turn, reading.map_order, "depth maps", self._warned)
        depth = self._resized(depth, size)
        if depth.shape != size:
            raise DataError(
                f"the depth map {show(path)} is {' x '.join(map(str, depth.shape))} (height x width), the photo "
                f"{show(_relative(split)[index])} is {size[0]} x {size[1]}: resize the depth map to the photo"
            )
        return depth

    def path(self, split: Split, index: int) -> Path:
        """The depth file of a photo."""
        if self._counted is None or self._counted[0] is not split:
            stems = [os.path.splitext(relative)[0] for relative in _relative(split)]
            flat = [os.path.basename(stem) for stem in stems]
            self._counted = (split, Counter(stems) + Counter("/" + stem for stem in flat))  # "/": the flat names
        photo = _relative(split)[index]
        stem = os.path.splitext(photo)[0]
        for key, base in ((stem, stem), ("/" + os.path.basename(stem), os.path.basename(stem))):
            found = [path for suffix in DEPTH_SUFFIXES if (path := self.root / (base + suffix)).is_file()]
            if len(found) > 1:
                raise DataError(f"{show(found[0])} and {show(found[1])} are both depth maps of {show(photo)}: keep one")
            if found and self._counted[1][key] > 1:
                raise DataError(
                    f"{show(found[0])} fits {self._counted[1][key]} photos, {show(photo)} among them: store depth maps "
                    f"under the photos' relative paths and give every photo its own stem"
                )
            if found:
                return found[0]
        raise DataError(
            f"the photo {show(photo)} has no depth map: there is neither {show(self.root / stem)} nor "
            f"{show(self.root / os.path.basename(stem))} with one of {', '.join(DEPTH_SUFFIXES)}"
        )

    def _resized(self, depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """A map with the photo's aspect at the photo's size; others as they are.

        The nearest pixel, since means over an edge are depths where nothing is; of larger maps without sky, area means.
        """
        if depth.shape == size or min(depth.shape) < MIN_SIDE or not same_aspect(depth.shape, size):
            return depth
        whole = Window(crop=(0, 0, *depth.shape), box=(0, 0, *depth.shape))
        area = depth.shape[0] > size[0] and bool(np.isfinite(depth).all())
        if "size" not in self._warned:
            self._warned.add("size")
            warnings.warn(
                f"{self.name}: maps are resized to their photos, e.g. from {depth.shape[0]} x {depth.shape[1]} to "
                f"{size[0]} x {size[1]} ({'area means' if area else 'nearest pixel'})",
                stacklevel=3,
            )
        return resize_area(depth[None], whole, size)[0] if area else resize_nearest(depth, whole, size)

    def _read(self, path: Path, reading: Reading) -> np.ndarray:  # float32 [H, W]
        values = _load_npy(path) if path.suffix == ".npy" else read_values(path, reading)
        if values.ndim != 2:
            raise DataError(f"{show(path)} has shape {values.shape}; a depth map is [height, width]")
        if values.dtype.kind == "f":
            depth = values.astype(np.float32)
            depth = without_measurement(depth) if self.floats_in_metres else depth
        elif self.metres_per_unit is not None:
            depth = without_measurement(values.astype(np.float32) * np.float32(self.metres_per_unit))
        elif self.expects_metres:
            raise DataError(
                f"{show(path)} holds integers of unknown unit: pass depth.metres_per_unit (0.001 for millimetres), or "
                f"depth.mapping=none if 0 is near and the largest value far"
            )
        else:
            top = 255 if values.dtype == np.uint8 else 65535
            depth = values.astype(np.float32) / np.float32(top)
        check_depth(depth, show(path))
        return depth


class GroundPlane(DepthSource):
    """depth.source=ground_plane: a flat road seen from a level camera, nothing above the horizon.

    `z = camera_height * f / (row + 0.5 - horizon * H)` with `f = W / (2 tan(fov / 2))`.

    Args:
        camera_height: metres above the road.
        horizon: row of the horizon as a share of the photo's height, from the top.
        fov_deg: horizontal field of view where the data set does not state one.
    """

    metric, dense, name = True, True, "depth.source=ground_plane"

    def __init__(self, camera_height: float = 1.4, horizon: float = 0.45, fov_deg: float = 60.0):
        if not 0 < camera_height < math.inf:
            raise ValueError(f"depth.camera_height={camera_height} must be above 0 metres")
        if not 0 <= horizon < 1:
            raise ValueError(f"depth.horizon={horizon} must lie in [0, 1), as a share of the image height")
        self.camera_height, self.horizon, self.fov_deg = camera_height, horizon, checked_fov(fov_deg)

    def __call__(self, split: Split, index: int) -> np.ndarray:  # float32 [H, W]
        height, width = photo_size(split, index)
        focal = focal_pixels(width, horizontal_fov(split, index, self.fov_deg))
        below = np.arange(height) + 0.5 - self.horizon * height
        column = np.full(height, np.inf, np.float32)
        column[below > 0] = self.camera_height * focal / below[below > 0]
        return np.repeat(column[:, None], width, axis=1)


def depth_source(
    source: str,
    *,
    root: str | Path | None = None,
    metres_per_unit: float | None = None,
    mapping: str = "saturating",
    camera_height: float = 1.4,
    horizon: float = 0.45,
    fov_deg: float = 60.0,
    model: str | Path | None = None,
    flip: bool = False,
    output: str = "auto",
    batch_size: int = 4,
    cache: Path | None = None,
    device: str | torch.device = "cpu",
) -> DepthSource | None:
    """The depth source of the settings, None for "none": plain STEGO.

    Args:
        source: "dataset", "folder" (`root`, `metres_per_unit`), "ground_plane" (`camera_height`, `horizon`, `fov_deg`),
            "model" (`model` to `device`, see `network.DepthNetwork` and `cache.ModelDepth`), or "none".
        mapping: how its values are mapped, for checks.

    Raises:
        ValueError: unknown source, or a setting that it needs is missing or impossible.
        FileNotFoundError: no folder `root`, or a network that is not on this machine and cannot be downloaded.
    """
    if source == "none":
        return None
    if source == "dataset":
        return DatasetDepth(relative=mapping == "none")
    if source == "ground_plane":
        return GroundPlane(camera_height, horizon, fov_deg)
    if source == "folder":
        if root is None:
            raise ValueError("depth.source=folder needs depth.root=DIR: a folder with one depth map per photo")
        return FolderDepth(root, metres_per_unit, mapping not in ("minmax", "none"), relative=mapping == "none")
    if source == "model":
        from depthg.depth.cache import ModelDepth  # which builds on this module
        from depthg.depth.network import DEFAULT_MODEL, DepthNetwork

        network = DepthNetwork(model or DEFAULT_MODEL, flip=flip, output=output, device=device)
        return ModelDepth(network, cache_root(cache), batch_size)
    known = ("dataset", "folder", "model", "ground_plane", "none")
    near = difflib.get_close_matches(source, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"depth.source={source!r} is not one of {', '.join(known)}{hint}")


def same_aspect(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Whether two sizes have one aspect, up to rounding of the smaller one to whole pixels, and differ clearly."""
    small, large = sorted((first, second))
    scale = max(large[0] / small[0], large[1] / small[1])
    return scale > 1.05 and all(abs(big / scale - side) < 1 for big, side in zip(large, small, strict=True))


def _load_npy(path: Path) -> np.ndarray:
    try:
        values = np.array(np.lib.format.open_memmap(path, mode="r"))  # a map is never larger than its file
    except Exception as error:  # numpy parses the header as Python, so damaged ones raise anything
        raise DataError(f"cannot read the depth map {show(path)} ({error}): save it again with numpy.save") from error
    if values.dtype.kind not in "fiu":
        raise DataError(f"{show(path)} has dtype {values.dtype}; a depth map holds floats or integers")
    return values


def _relative(split: Split) -> list[str]:
    return getattr(split, "relative", split.names)


def horizontal_fov(split: Split, index: int, default: float) -> float:
    """The field of view of a photo in degrees, `default` where the data set does not state one."""
    known = split.fov_deg(index)
    return default if known is None else known


def focal_pixels(width: int, fov_deg: float) -> float:
    """Focal length in pixels of a photo `width` pixels wide: `W / (2 tan(fov / 2))`."""
    return width / (2 * math.tan(math.radians(checked_fov(fov_deg)) / 2))


def checked_fov(fov_deg: float) -> float:
    """`fov_deg` itself; ValueError unless a pinhole camera can have it."""
    if not 0 < fov_deg < 180:
        raise ValueError(f"fov_deg={fov_deg} must lie between 0 and 180 degrees")
    return fov_deg
