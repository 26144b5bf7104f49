"""Ray caster of the procedural scenes: RGB, metric depth and class label of one picture, in single-threaded numpy.

Columns of [3, n] arrays are read by ``take`` and written row by row: indexing with an array is several times as slow.

`render(seed, index, size)` depends on its arguments alone. Rays are half a pixel apart: label and depth are those
of the ray through the pixel centre, the colour is the tent-weighted mean [1 2 1]/4 x [1 2 1]/4 of the nine rays
around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from depthg.data.scenery.ground import CARRIAGEWAY, GRASS, PAVEMENT
from depthg.data.scenery.layout import Scene, compose
from depthg.data.scenery.materials import noise, wrap
from depthg.data.scenery.objects import GRASS as GRASS_LABEL
from depthg.data.scenery.objects import ROAD, TREE
from depthg.data.scenery.objects import SKY as SKY_LABEL
from depthg.data.scenery.primitives import NEAR, Box, Camera, Ellipsoid, Primitive, View, across

CHUNK = 16384  # rays: what is computed of them stays in the cache
FAR = 3000.0  # metres: the ground ends here, behind it is sky
REGION_LABEL = np.zeros(3, np.uint8)
REGION_LABEL[[CARRIAGEWAY, PAVEMENT, GRASS]] = ROAD, ROAD, GRASS_LABEL


@dataclass(frozen=True)
class Picture:
    """One rendered scene."""

    image: np.ndarray  # [size, size, 3] uint8 sRGB
    label: np.ndarray  # [size, size] uint8
    depth: np.ndarray  # [size, size] float32 z-depth in metres, inf for sky
    camera: Camera


@dataclass
class Buffers:
    """What each ray sees; flat over the grid of rays."""

    depth: np.ndarray  # [n] float32
    label: np.ndarray  # [n] uint8
    colour: np.ndarray  # [3, n] float32, linear reflectance
    normal: np.ndarray  # [3, n] float32


def render(seed: int, index: int, size: int = 224) -> Picture:
    """Render picture `index` of the series `seed`, `size` x `size` pixels."""
    scene, rng = compose(seed, index)
    view = View(scene.camera, size)
    buffers = _draw_scene(scene, view)
    radiance = _shade(scene, view, buffers)
    centre = np.s_[1::2, 1::2]
    label, depth = (x.reshape(view.grid, view.grid)[centre].copy() for x in (buffers.label, buffers.depth))
    return Picture(_develop(radiance, scene, view, rng), label, depth, scene.camera)


def render_scene(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear radiance [3, grid, grid], depth and label [grid, grid] of a scene given by hand."""
    view = View(scene.camera, size)
    buffers = _draw_scene(scene, view)
    shape = (view.grid, view.grid)
    return _shade(scene, view, buffers).reshape(3, *shape), buffers.depth.reshape(shape), buffers.label.reshape(shape)


def _draw_scene(scene: Scene, view: View) -> Buffers:
    buffers, region = _draw_ground(scene, view)
    for primitive, seen in zip(scene.primitives, _each(scene.primitives, view.seen), strict=True):
        _draw(primitive, view, seen, buffers)
    _paint_ground(scene, view, buffers, region)
    return buffers


def _draw_ground(scene: Scene, view: View) -> tuple[Buffers, np.ndarray]:
    """Depth and label of the ground, and its region at every ray."""
    count = view.grid**2
    buffers = Buffers(
        np.full(count, np.inf, np.float32),
        np.full(count, SKY_LABEL, np.uint8),
        np.zeros((3, count), np.float32),
        np.zeros((3, count), np.float32),
    )
    down = view.dot(np.array([0, 0, -1.0]), (0, view.grid, 0, view.grid)).ravel()
    at = np.flatnonzero(down > view.origin[2] / FAR)
    depth = (view.origin[2] / down[at]).astype(np.float32)
    points = view.points(at, depth)
    found = scene.ground.region(points[0], points[1])
    buffers.depth[at], buffers.label[at] = depth, REGION_LABEL.take(found)
    region = np.zeros(count, found.dtype)
    region[at] = found
    return buffers, region


def _paint_ground(scene: Scene, view: View, buffers: Buffers, region: np.ndarray) -> None:
    """Colour and normal of the ground where nothing stands before it."""
    for at in _chunks(np.flatnonzero((buffers.label == ROAD) | (buffers.label == GRASS_LABEL))):
        depth = buffers.depth.take(at)
        points = view.points(at, depth)
        points[2] = 0
        pixel = depth / view.focal * np.sqrt(np.maximum(depth / view.origin[2], 1)).astype(np.float32)
        colour = np.maximum(scene.ground.colour(points, pixel, region.take(at)), 0)
        _put(buffers.colour, at, colour * colour)
        buffers.normal[2, at] = 1


def _chunks(at: np.ndarray) -> list[np.ndarray]:
    return [at[start : start + CHUNK] for start in range(0, len(at), CHUNK)]


def _put(rows: np.ndarray, at: np.ndarray, values: np.ndarray) -> None:  # [3, n], [m], [3, m]
    for row, value in zip(rows, values, strict=True):
        row[at] = value


def _each(primitives: list[Primitive], change: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """``change(corners)`` of every shape [V, 3], by one call for all of them."""
    if not primitives:
        return []
    ends = np.cumsum([len(primitive.corners) for primitive in primitives])
    return np.split(change(np.concatenate([primitive.corners for primitive in primitives])), ends[:-1])


def _draw(primitive: Primitive, view: View, seen: np.ndarray, buffers: Buffers) -> None:
    box = view.seen_box(seen)
    if box is None or _hidden(seen, view, box, buffers):
        return
    rows, cols, depth, aux = primitive.hit(view, box)
    at = rows * view.grid + cols
    keep = np.flatnonzero((depth < buffers.depth.take(at)) & (depth > NEAR))
    if keep.size == 0:
        return
    at, depth = at.take(keep), depth.take(keep)
    aux = None if aux is None else aux.take(keep)
    points = view.points(at, depth)
    normals = primitive.normals(points, aux)
    pixel = depth / np.float32(view.focal)
    if primitive.rough:
        # the relief of foliage: leaves stand out or lie deeper, and some of the silhouette is missing
        cell = primitive.rough / 6
        across, up = wrap(points, normals)
        relief = noise("leaf", across, up, cell)
        facing = -(normals * view.rays.take(at, axis=1)).sum(0)
        solid = np.flatnonzero(relief > primitive.holes * (1.25 - 0.8 * np.clip(facing, 0, 1)) + 0.12)
        depth = depth + (0.5 - relief) * np.float32(primitive.rough)
        solid = solid[depth.take(solid) < buffers.depth.take(at.take(solid))]
        at, depth, pixel, across, up = (x.take(solid) for x in (at, depth, pixel, across, up))
        points, normals = points.take(solid, axis=1), normals.take(solid, axis=1)
        bump = noise("leaf", across + 7, up + 3, 2 * cell) - 0.5
        normals = normals + 0.9 * bump * np.array([[0.6], [-0.6], [0.8]], np.float32)
    colour = np.maximum(primitive.material(points, normals, pixel), 0)
    buffers.depth[at], buffers.label[at] = depth, primitive.label
    _put(buffers.colour, at, colour * colour)
    _put(buffers.normal, at, normals)


def _hidden(corners: np.ndarray, view: View, box: Box, buffers: Buffers) -> bool:
    """True if everything in the box is nearer than every corner, with a margin for rounding; the relief comes later."""
    row0, row1, col0, col1 = box
    drawn = buffers.depth.reshape(view.grid, view.grid)[row0:row1, col0:col1]
    return bool(0.999 * corners[:, 2].min() > drawn.max())


def _shade(scene: Scene, view: View, buffers: Buffers) -> np.ndarray:
    """Linear radiance [3, n]: sunlight where no shadow falls, light from the sky, haze; the sky itself elsewhere."""
    out = np.empty_like(buffers.colour)
    is_sky = ~np.isfinite(buffers.depth)
    for sky in _chunks(np.flatnonzero(is_sky)):
        _put(out, sky, scene.sky.colour(view.rays.take(sky, axis=1)) ** 2)
    at = np.flatnonzero(~is_sky)
    depth = buffers.depth.take(at)
    normals = buffers.normal.take(at, axis=1)
    cosine = np.maximum(scene.sun.astype(np.float32) @ normals, 0)
    lit = np.flatnonzero(cosine > 0.02)
    far = depth.take(lit)
    start = normals.take(lit, axis=1)
    start *= 0.02 + 0.002 * far
    start += view.points(at.take(lit), far)
    cosine[lit] *= 1 - shadows(start, scene.primitives, scene.sun, far)
    sun, ambient = scene.sun_colour.astype(np.float32), scene.ambient.astype(np.float32)
    air = 0.9 * np.asarray(scene.sky.horizon, np.float32) ** 2
    for first in range(0, len(at), CHUNK):
        part = slice(first, first + CHUNK)
        openness = 0.62 + 0.38 * normals[2, part]
        haze = np.exp(-depth[part] / np.float32(scene.haze))
        for channel in range(3):
            light = sun[channel] * cosine[part] + ambient[channel] * openness
            light *= buffers.colour[channel].take(at[part])
            light -= air[channel]
            light *= haze
            light += air[channel]
            out[channel][at[part]] = light
    return out


def shadows(points: np.ndarray, primitives: list[Primitive], sun: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Share of the sun that is blocked at points [3, n], float32 [n]; foliage lets spots of light through.

    Points are sorted along one axis across the sunlight: each shape is tested against those in its band only.
    """
    blocked = np.zeros(points.shape[1], np.float32)
    if blocked.size == 0:
        return blocked
    frame = np.stack([*across(sun), sun])
    p, q, s = frame.astype(np.float32) @ points
    near = np.flatnonzero(depth < 150)
    band = np.floor(np.clip(p.take(near) * 16, -32000, 32000)).astype(np.int16)  # 16 bits: numpy sorts them by radix
    by_band = np.argsort(band, kind="stable")
    order = near.take(by_band)
    band, p, q, s = band.take(by_band), p.take(order), q.take(order), s.take(order)
    throwing = [primitive for primitive in primitives if primitive.shadow]
    if not throwing:
        return blocked
    seen = _each(throwing, lambda corners: (corners @ frame.T).astype(np.float32))
    bounds = np.array([_bounds(*pair) for pair in zip(throwing, seen, strict=True)])  # float32 [shapes, 2, 3]
    ends = np.clip(bounds[:, :, 0] * 16 + np.array([-1, 1], np.float32), -32001, 32001).astype(np.int16)
    for primitive, (low, high), (first, last) in zip(throwing, bounds, np.searchsorted(band, ends), strict=True):
        part = slice(first, last)
        inside = np.flatnonzero((q[part] > low[1]) & (q[part] < high[1]) & (s[part] < high[2]))
        if inside.size == 0:
            continue
        inside += first
        at = order.take(inside)
        hit = primitive.occludes(points.take(at, axis=1), sun)
        if primitive.label == TREE and primitive.holes:
            hit = hit & (noise("leaf", p.take(inside), q.take(inside), 0.035) > 0.3)
        blocked[at[hit]] = 1
    return blocked


def _bounds(primitive: Primitive, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest coordinates, each [3], of a shape whose corners have the coordinates [V, 3]."""
    low, high = seen.min(0), seen.max(0)
    if isinstance(primitive, Ellipsoid):
        middle = seen.mean(0)
        low, high = np.maximum(low, middle - primitive.radius), np.minimum(high, middle + primitive.radius)
    return low, high


def _develop(radiance: np.ndarray, scene: Scene, view: View, rng: np.random.Generator) -> np.ndarray:
    """Camera: tent filter, exposure, soft shoulder, square root for sRGB, noise; uint8 [size, size, 3]."""
    grid = np.minimum(radiance.reshape(3, view.grid, view.grid), 2.0)
    rows = 0.25 * grid[:, :-2:2] + 0.5 * grid[:, 1:-1:2] + 0.25 * grid[:, 2::2]
    pixels = 0.25 * rows[:, :, :-2:2] + 0.5 * rows[:, :, 1:-1:2] + 0.25 * rows[:, :, 2::2]
    balance = np.array([rng.uniform(0.95, 1.05), 1.0, rng.uniform(0.95, 1.05)], np.float32)[:, None, None]
    pixels = pixels * balance
    pixels *= np.float32(scene.exposure)
    shoulder = 0.18 * pixels
    shoulder *= pixels
    shoulder += 1
    np.sqrt(np.divide(pixels, shoulder, out=pixels), out=pixels)
    pixels += rng.normal(0, rng.uniform(0.003, 0.012), pixels.shape).astype(np.float32)
    return np.ascontiguousarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0))
