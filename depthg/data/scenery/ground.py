"""Ground and sky of the procedural scenes: where the road runs, what grows beside it, and the light.

Colours are sRGB in [0, 1]; points are [3, n] metres in the world frame of primitives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from depthg.data.scenery.materials import Array, brick_lines, colours, fade, fraction, mix, noise, smooth_noise

CARRIAGEWAY, PAVEMENT, GRASS = 0, 1, 2
Rectangle = tuple[float, float, float, float]  # x0, x1, y0, y1
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Ground:
    """The plane z = 0: road along y, pavements, optional cross street, paved and green rectangles, else grass."""

    centre: float  # x of the road axis at y = 0
    bend: float  # the axis is x = centre + bend * y^2
    half_road: float  # metres
    pavement: float  # width of each pavement, 0 for none
    cross: tuple[float, float] | None  # y and half width of the cross street
    paved: tuple[Rectangle, ...]
    lawns: tuple[Rectangle, ...]
    asphalt: Colour
    paving: Colour
    grass: Colour
    straw: Colour  # dry grass and earth
    dryness: float  # 0 all green, 1 all dry
    brick_size: float  # of the paving, metres; 0 for asphalt
    line: Colour
    dashed: bool
    shift: tuple[float, float]  # offset of the noise

    def axis(self, y: Array) -> Array:
        """x of the road axis."""
        return self.centre + self.bend * y * y

    def region(self, x: Array, y: Array) -> Array:
        """CARRIAGEWAY, PAVEMENT or GRASS at points x, y [n]."""
        lateral = np.abs(x - self.axis(y))
        region = np.full(np.shape(x), GRASS, np.int8)
        region[lateral < self.half_road + self.pavement] = PAVEMENT
        for x0, x1, y0, y1 in self.paved:
            region[(x > x0) & (x < x1) & (y > y0) & (y < y1)] = PAVEMENT
        for x0, x1, y0, y1 in self.lawns:
            region[(x > x0) & (x < x1) & (y > y0) & (y < y1)] = GRASS
        if self.cross:
            away = np.abs(y - self.cross[0]) - self.cross[1]
            region[away < self.pavement] = PAVEMENT
            region[away < 0] = CARRIAGEWAY
        region[lateral < self.half_road] = CARRIAGEWAY
        return region

    def colour(self, points: Array, pixel: Array, region: Array) -> Array:
        """sRGB colours [3, n] of ground points [3, n]."""
        x, y = points[0] + np.float32(self.shift[0]), points[1] + np.float32(self.shift[1])
        wide, broad = smooth_noise("cloud", x, y, 0.35), smooth_noise("cloud", y, x, 0.05)
        grain = (noise("grain", x, y, 0.03) - 0.5) * fade(pixel, 0.15)
        out = np.empty((3, x.size), np.float32)
        for kind, paint in ((CARRIAGEWAY, self._asphalt), (PAVEMENT, self._paving), (GRASS, self._grass)):
            at = np.flatnonzero(region == kind)
            if at.size:
                values = (x.take(at) for x in (pixel, wide, broad, grain))
                painted = paint(points[:2].take(at, axis=1), *values)
                for row, colour in zip(out, painted, strict=True):
                    row[at] = colour
        return out

    def _asphalt(self, xy: Array, pixel: Array, wide: Array, broad: Array, grain: Array) -> Array:
        lateral, y = xy[0] - self.axis(xy[1]), xy[1]
        shade = 0.82 + 0.25 * wide + 0.16 * (broad - 0.5) + 0.2 * grain
        crack = (np.abs(broad - 0.5) < 0.006 + 0.1 * pixel) * fade(pixel, 0.06)
        patch = smooth_noise("cloud", np.floor(xy[0] / 1.7) * 9.3, np.floor(y / 4.1) * 7.7, 0.4) > 0.72
        out = colours(self.asphalt, shade * (1 - 0.25 * crack) * np.where(patch, 0.84, 1))
        off_cross = np.abs(y - self.cross[0]) > self.cross[1] + 0.5 if self.cross else np.ones(y.shape, bool)
        on_road = np.abs(lateral) < self.half_road
        centre_line = (np.abs(lateral) < 0.08 + 0.2 * pixel) & ((fraction(y / 6) < 0.5) | (not self.dashed))
        edge_line = np.abs(np.abs(lateral) - self.half_road + 0.35) < 0.06 + 0.2 * pixel
        painted = (centre_line | edge_line) & on_road & off_cross
        if self.cross:
            stripes = fraction(lateral) < 0.5
            away = np.abs(y - self.cross[0]) - self.cross[1]
            painted |= (away > 1.0) & (away < 3.5) & stripes & on_road
        return mix(out, self.line, painted * (0.75 + 0.5 * (wide - 0.5)))

    def _paving(self, xy: Array, pixel: Array, wide: Array, broad: Array, grain: Array) -> Array:
        out = colours(self.paving, 0.85 + 0.25 * wide + 0.12 * (broad - 0.5) + 0.2 * grain)
        if self.brick_size:
            joints = brick_lines(xy[0], xy[1], pixel, 2 * self.brick_size, self.brick_size)
            out = mix(out, (0.33, 0.32, 0.31), 0.6 * joints)
        lateral = np.abs(xy[0] - self.axis(xy[1])) - self.half_road
        return mix(out, (0.72, 0.71, 0.69), 0.8 * ((lateral > 0) & (lateral < 0.22)))

    def _grass(self, xy: Array, pixel: Array, wide: Array, broad: Array, grain: Array) -> Array:
        blades = (noise("leaf", xy[0], xy[1], 0.012) - 0.5) * fade(pixel, 0.1)
        tufts = (noise("leaf", xy[0], xy[1], 0.07) - 0.5) * fade(pixel, 0.5)
        shade = 0.78 + 0.45 * wide + 0.9 * blades + 0.35 * tufts + 0.8 * grain
        out = mix(
            colours(self.grass, shade), colours(self.straw, shade), np.clip((broad - 1 + self.dryness) * 4 + 0.5, 0, 1)
        )
        bare = np.clip((noise("cloud", xy[1], xy[0], 0.11) - 0.75) * 8, 0, 1)
        return mix(out, (0.45, 0.38, 0.29), 0.7 * bare * self.dryness)


@dataclass(frozen=True)
class Sky:
    """Gradient, sun glow and a layer of clouds; also the colour of the haze."""

    zenith: Colour
    horizon: Colour
    cloud: Colour
    cover: float  # 0 clear, 1 overcast
    cell: float  # size of the cloud noise
    shift: tuple[float, float]
    sun: Array  # [3] unit vector towards the sun

    def colour(self, rays: Array) -> Array:
        """sRGB colours [3, n] in the directions rays [3, n]."""
        rays = rays / np.sqrt((rays * rays).sum(0))
        height = np.clip(rays[2], 0, 1)
        out = mix(colours(self.horizon, np.ones_like(height)), self.zenith, np.minimum(height * 1.6, 1) ** 0.6)
        flat = 1 / (height + 0.12)
        x, y = rays[0] * flat + self.shift[0], rays[1] * flat + self.shift[1]
        puff = 0.7 * smooth_noise("cloud", x, y, self.cell) + 0.3 * smooth_noise("cloud", y, x, self.cell / 3)
        amount = np.clip((puff - 0.78 + 0.6 * self.cover) * 5, 0, 1) * np.clip(height * 8, 0.15, 1)
        body = colours(self.cloud, 0.8 + 0.35 * smooth_noise("cloud", x + 0.3, y - 0.2, self.cell))
        out = mix(out, body, amount)
        glow = np.clip(self.sun.astype(np.float32) @ rays, 0, 1)
        disc, near = np.zeros_like(glow), np.flatnonzero(glow > 0.8)
        disc[near] = glow.take(near) ** 400  # below 2e-39 elsewhere, where a power takes fifty times as long
        return mix(out, (1.0, 0.97, 0.88), np.clip((0.35 * glow**12 + 0.9 * disc) * (1.1 - self.cover), 0, 1))
