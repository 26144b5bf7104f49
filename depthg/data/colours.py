"""Colours: a palette for any number of classes, and depth on a perceptually uniform map."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np


@lru_cache
def class_palette(n: int) -> np.ndarray:  # uint8 [n, 3]
    """``n`` colours that stay apart, also for colour-blind readers; the first m of them are the palette for m.

    Farthest point sampling in CIELAB, joined with CIELAB as seen without the medium-wave cones. Black, white and greys
    are left to void and to unmatched clusters.
    """
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    levels = np.linspace(0.0, 1.0, 16)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = _lab(rgb)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    kept = (lab[:, 0] > 30) & (lab[:, 0] < 88) & (chroma > 28) & (chroma < 76)
    deutan = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    rgb, lab = rgb[kept], np.hstack([lab[kept], _lab((rgb[kept] @ deutan.T).clip(0, 1))])
    if n > len(rgb):
        raise ValueError(f"n = {n} colours were asked for; {len(rgb)} can be told apart")
    picks = [int(np.abs(rgb - (0.12, 0.47, 0.71)).sum(1).argmin())]
    distance = np.full(len(rgb), np.inf)
    for _ in range(1, n):
        distance = np.minimum(distance, ((lab - lab[picks[-1]]) ** 2).sum(1))
        picks.append(int(distance.argmax()))
    colours = (rgb[picks[:n]] * 255).round().astype(np.uint8)
    colours.setflags(write=False)  # the cache hands out the same array again
    return colours


def depth_colours(
    depth: np.ndarray,  # float [H, W]
    scale: tuple[float, float, bool],
) -> np.ndarray:  # uint8 [H, W, 3]
    """Near bright, far dark, on a perceptual map; unknown depth is grey (``scale``: see :func:`depth_scale`)."""
    import matplotlib  # takes a while, which most commands can do without

    near, far, metric = scale
    known = ~np.isnan(depth) & ((depth > 0) | (not metric))
    value = np.where(known, depth, far).clip(near, far)
    value = np.log(value / near) / math.log(far / near) if metric else (value - near) / (far - near)
    # The ends of the map are nearly white and nearly black: kept off, so that tiles stand out from the paper.
    colours = (matplotlib.colormaps["magma"](0.97 - 0.92 * value)[..., :3] * 255).round().astype(np.uint8)
    colours[~known] = 160
    return colours


def depth_scale(depths: list[np.ndarray], metric: bool | None) -> tuple[float, float, bool] | None:
    """Nearest and farthest value (1% and 99% quantiles over all maps) and whether they are metres."""
    if not depths:
        return None
    values = np.concatenate([d[np.isfinite(d)].astype(np.float64).ravel() for d in depths])
    metric = bool(values.size and values.max() > 1) if metric is None else metric
    values = values[values > 0] if metric else values
    if not values.size:
        return (0.0, 1.0, False)
    near, far = (float(q) for q in np.quantile(values, (0.01, 0.99)))
    return (near, far if far > near else near * 1.01 + 1e-6, metric)


def _lab(rgb: np.ndarray) -> np.ndarray:  # [n, 3] in [0, 1] -> [n, 3]
    """sRGB to CIELAB (D65)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / (0.9505, 1.0, 1.0890)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
