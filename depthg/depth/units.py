"""What the values of depth maps mean: metres, or relative depth; stated beside the maps, and checked before use.

NaN is unknown depth, inf is sky. In metres, 0 and negative values are no depths but what sensors write where they
measured nothing: sources turn them into NaN. In [0, 1] a 0 is the nearest depth, and only NaN is unknown.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from depthg.data.files import DataError, show
from depthg.storage.whole_files import write_text

NEED_METRES = ("normals", "inclination", "euclidean")  # relations
METRIC_EXAMPLE = "Intel/zoedepth-nyu-kitti"
UNIT_FILE = "depth.json"  # beside the maps of `python -m depthg.depth`


def check_unit(source, mapping: str, relation: str) -> None:
    """Raise ValueError if mapping or relation cannot use the unit of a depth source; an unknown unit passes.

    Relative depth has neither scale nor offset, so it has no surfaces and no distances: only relations that compare the
    mapped values themselves can use it.
    """
    if source.metric is False and relation in NEED_METRES:
        also = "" if mapping == "none" else " with depth.mapping=none"
        raise ValueError(
            f"loss.depth.relation={relation} needs depth in metres, but {source.name} gives relative depth, without "
            f"scale: take a metric source (the network {METRIC_EXAMPLE}), or loss.depth.relation=product, centered or "
            f"gaussian{also}"
        )
    if source.metric is False and mapping not in ("none", "minmax"):
        raise ValueError(
            f"depth.mapping={mapping} needs metres, but {source.name} gives relative depth, without scale: pass "
            f"depth.mapping=none, which takes it as it is, each photo in [0, 1], near 0 and far 1, or minmax"
        )
    if source.metric and mapping == "none":
        raise ValueError(
            f"depth.mapping=none expects values in [0, 1], but {source.name} gives metres: pass "
            f"depth.mapping=saturating, log or linear"
        )


def read_unit(root: Path) -> tuple[bool, float | None]:
    """Whether the maps of a folder are metres, and metres per step of integer ones, from its `depth.json`.

    Raises:
        DataError: the file is damaged.
    """
    try:
        stored = json.loads((root / UNIT_FILE).read_text(encoding="utf-8"))
        metric, step = stored["metric"], stored["metres_per_unit"]
        if not isinstance(metric, bool) or not (step is None or 0 < step < math.inf):
            raise ValueError(f"metric={metric!r} metres_per_unit={step!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{show(root / UNIT_FILE)} is damaged ({type(error).__name__}: {error}): make the maps again with "
            f"python -m depthg.depth, or remove it and pass depth.metres_per_unit"
        ) from error
    return metric, step


def write_unit(root: Path, metric: bool, metres_per_unit: float | None, made_by: dict) -> None:
    """Writes `depth.json`: the unit of the maps in a folder, and what made them (any JSON object)."""
    write_text(
        root / UNIT_FILE,
        json.dumps({"metric": metric, "metres_per_unit": metres_per_unit, "made_by": made_by}, indent=1) + "\n",
    )


def read_made_by(root: Path) -> dict | None:
    """What made the maps of a folder; None if its `depth.json` does not say so."""
    try:
        return json.loads((root / UNIT_FILE).read_text(encoding="utf-8"))["made_by"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def without_measurement(depth: np.ndarray) -> np.ndarray:  # float32 [H, W], metres
    """Depth in metres with NaN wherever nothing was measured: 0, negative and NaN."""
    measured = depth > 0
    return depth if measured.all() else np.where(measured, depth, np.float32(np.nan))


def check_depth(depth: np.ndarray, name: str) -> None:
    """Raise DataError if any depth is negative; NaN is unknown depth."""
    lowest = np.fmin.reduce(depth, axis=None, initial=np.inf)
    if lowest < 0:
        raise DataError(
            f"{name} has negative depth ({float(lowest):g}); depth must be at least 0, with inf where there is no "
            f"surface (sky) and NaN where it is unknown"
        )
