"""Ray caster of the procedural scenes: RGB, metric depth and class label of one picture, in single-threaded numpy.

`render(seed, index, size)` depends on its arguments alone. Rays are half a pixel apart: label and depth are those
of the ray through the pixel centre, the colour is the tent-weighted mean [1 2 1]/4 x [1 2 1]/4 of the nine rays
around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from depthg.data.scenery.ground import CARRIAGEWAY, GRASS, PAVEMENT
from depthg.data.scenery.layout import Scene, compose
from depthg.data.scenery.materials import noise, wrap
from depthg.data.scenery.objects import GRASS as GRASS_LABEL
from depthg.data.scenery.objects import ROAD, TREE
from depthg.data.scenery.objects import SKY as SKY_LABEL
from depthg.data.scenery.primitives import NEAR, Camera, Ellipsoid, Primitive, View, across

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
    buffers = _draw_ground(scene, view)
    for primitive in scene.primitives:
        _draw(primitive, view, buffers)
    radiance = _shade(scene, view, buffers)
    centre = np.s_[1::2, 1::2]
    label, depth = (x.reshape(view.grid, view.grid)[centre].copy() for x in (buffers.label, buffers.depth))
    return Picture(_develop(radiance, scene, view, rng), label, depth, scene.camera)


def render_scene(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear radiance [3, grid, grid], depth and label [grid, grid] of a scene given by hand."""
    view = View(scene.camera, size)
    buffers = _draw_ground(scene, view)
    for primitive in scene.primitives:
        _draw(primitive, view, buffers)
    shape = (view.grid, view.grid)
    return _shade(scene, view, buffers).reshape(3, *shape), buffers.depth.reshape(shape), buffers.label.reshape(shape)


def _draw_ground(scene: Scene, view: View) -> Buffers:
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
    points[2] = 0
    region = scene.ground.region(points[0], points[1])
    pixel = depth / view.focal * np.sqrt(np.maximum(depth / view.origin[2], 1)).astype(np.float32)
    colour = np.maximum(scene.ground.colour(points, pixel, region), 0)
    buffers.depth[at], buffers.label[at] = depth, REGION_LABEL[region]
    buffers.colour[:, at] = colour * colour
    buffers.normal[2, at] = 1
    return buffers


def _draw(primitive: Primitive, view: View, buffers: Buffers) -> None:
    box = view.box(primitive.corners)
    if box is None:
        return
    rows, cols, depth, aux = primitive.hit(view, box)
    at = rows * view.grid + cols
    keep = np.flatnonzero((depth < buffers.depth[at]) & (depth > NEAR))
    if keep.size == 0:
        return
    at, depth = at[keep], depth[keep]
    aux = None if aux is None else aux[keep]
    points = view.points(at, depth)
    normals = primitive.normals(points, aux)
    pixel = depth / np.float32(view.focal)
    if primitive.rough:
        # the relief of foliage: leaves stand out or lie deeper, and some of the silhouette is missing
        cell = primitive.rough / 6
        across, up = wrap(points, normals)
        relief = noise("leaf", across, up, cell)
        facing = -(normals * view.rays[:, at]).sum(0)
        solid = np.flatnonzero(relief > primitive.holes * (1.25 - 0.8 * np.clip(facing, 0, 1)) + 0.12)
        depth = depth + (0.5 - relief) * np.float32(primitive.rough)
        solid = solid[depth[solid] < buffers.depth[at[solid]]]
        at, depth, points, normals, pixel = at[solid], depth[solid], points[:, solid], normals[:, solid], pixel[solid]
        bump = noise("leaf", across[solid] + 7, up[solid] + 3, 2 * cell) - 0.5
        normals = normals + 0.9 * bump * np.array([[0.6], [-0.6], [0.8]], np.float32)
    colour = np.maximum(primitive.material(points, normals, pixel), 0)
    buffers.depth[at], buffers.label[at] = depth, primitive.label
    buffers.colour[:, at], buffers.normal[:, at] = colour * colour, normals


def _shade(scene: Scene, view: View, buffers: Buffers) -> np.ndarray:
    """Linear radiance [3, n]: sunlight where no shadow falls, light from the sky, haze; the sky itself elsewhere."""
    out = np.empty_like(buffers.colour)
    is_sky = ~np.isfinite(buffers.depth)
    sky = np.flatnonzero(is_sky)
    out[:, sky] = scene.sky.colour(view.rays[:, sky]) ** 2
    at = np.flatnonzero(~is_sky)
    points, normals, depth = view.points(at, buffers.depth[at]), buffers.normal[:, at], buffers.depth[at]
    cosine = np.maximum(scene.sun.astype(np.float32) @ normals, 0)
    lit = np.flatnonzero(cosine > 0.02)
    start = points[:, lit] + normals[:, lit] * (0.02 + 0.002 * depth[lit])
    cosine[lit] *= 1 - shadows(start, scene.primitives, scene.sun, depth[lit])
    openness = 0.62 + 0.38 * normals[2]
    light = scene.sun_colour.astype(np.float32)[:, None] * cosine + scene.ambient.astype(np.float32)[:, None] * openness
    haze = np.exp(-depth / np.float32(scene.haze))
    air = (0.9 * np.asarray(scene.sky.horizon, np.float32) ** 2)[:, None]
    out[:, at] = (buffers.colour[:, at] * light - air) * haze + air
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
    band = np.floor(np.clip(p[near] * 16, -32000, 32000)).astype(np.int16)  # 16 bits: numpy sorts them by radix
    order = near[np.argsort(band, kind="stable")]
    band, p, q, s = np.sort(band, kind="stable"), p[order], q[order], s[order]
    for primitive in primitives:
        if not primitive.shadow:
            continue
        seen = (primitive.corners @ frame.T).astype(np.float32)
        low, high = seen.min(0), seen.max(0)
        if isinstance(primitive, Ellipsoid):
            low, high = (
                np.maximum(low, seen.mean(0) - primitive.radius),
                np.minimum(high, seen.mean(0) + primitive.radius),
            )
        first, last = np.searchsorted(
            band, np.clip([low[0] * 16 - 1, high[0] * 16 + 1], -32001, 32001).astype(np.int16)
        )
        part = slice(first, last)
        inside = np.flatnonzero((q[part] > low[1]) & (q[part] < high[1]) & (s[part] < high[2]))
        if inside.size == 0:
            continue
        at = order[first + inside]
        hit = primitive.occludes(points[:, at], sun)
        if primitive.label == TREE and primitive.holes:
            hit = hit & (noise("leaf", p[first + inside], q[first + inside], 0.035) > 0.3)
        blocked[at[hit]] = 1
    return blocked


def _develop(radiance: np.ndarray, scene: Scene, view: View, rng: np.random.Generator) -> np.ndarray:
    """Camera: tent filter, exposure, soft shoulder, square root for sRGB, noise; uint8 [size, size, 3]."""
    grid = np.minimum(radiance.reshape(3, view.grid, view.grid), 2.0)
    rows = 0.25 * grid[:, :-2:2] + 0.5 * grid[:, 1:-1:2] + 0.25 * grid[:, 2::2]
    pixels = 0.25 * rows[:, :, :-2:2] + 0.5 * rows[:, :, 1:-1:2] + 0.25 * rows[:, :, 2::2]
    balance = np.array([rng.uniform(0.95, 1.05), 1.0, rng.uniform(0.95, 1.05)], np.float32)[:, None, None]
    pixels = pixels * balance * np.float32(scene.exposure)
    pixels = np.sqrt(pixels / (1 + 0.18 * pixels * pixels))
    pixels += rng.normal(0, rng.uniform(0.003, 0.012), pixels.shape).astype(np.float32)
    return np.ascontiguousarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0))
