"""Surface colours of the procedural scenes: noise tables and one small class per material.

A material is called with points [3, n], unit normals [3, n] and the size of a pixel on the surface [n] in metres,
and returns sRGB colours [3, n]. Patterns finer than a pixel fade out instead of aliasing. Some patterns are shared
between classes on purpose (the same bricks on walls and pavements, the same grain on grass, asphalt and plaster),
so that a patch of colour or texture alone does not tell the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

TABLE = 512  # noise tables are TABLE x TABLE and repeat
Array = np.ndarray


@cache
def noise_table(kind: str) -> Array:
    """Repeating noise in [0, 1], float32 [TABLE * TABLE]: "cloud" (all scales), "grain" (fine), "leaf" (clumps)."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(TABLE), np.fft.fftfreq(TABLE))) * TABLE
    shape = {
        "cloud": 1 / np.maximum(frequency, 1) ** 1.6,
        "grain": np.exp(-((frequency / 170) ** 2)),
        "leaf": np.exp(-(((frequency - 75) / 50) ** 2)),
    }[kind]
    rng = np.random.default_rng(["cloud", "grain", "leaf"].index(kind))
    spectrum = np.fft.fft2(rng.standard_normal((TABLE, TABLE))) * shape
    spectrum[0, 0] = 0
    values = np.fft.ifft2(spectrum).real
    return np.clip(0.5 + values / (4 * values.std()), 0, 1).astype(np.float32).ravel()


def noise(kind: str, x: Array, y: Array, cell: float) -> Array:
    """Noise at points x, y [n]; one table cell is `cell` metres."""
    scale = np.float32(1 / cell)
    column = np.floor(x * scale).astype(np.int32) & (TABLE - 1)
    row = np.floor(y * scale).astype(np.int32) & (TABLE - 1)
    row *= TABLE
    row += column
    return noise_table(kind).take(row)


def smooth_noise(kind: str, x: Array, y: Array, cell: float) -> Array:
    """`noise` with bilinear interpolation, for patterns that are seen from near."""
    x, y = x * np.float32(1 / cell), y * np.float32(1 / cell)
    column, row = np.floor(x), np.floor(y)
    u, v = x - column, y - row
    column, row = column.astype(np.int32) & (TABLE - 1), row.astype(np.int32) & (TABLE - 1)
    right, below = (column + 1) & (TABLE - 1), ((row + 1) & (TABLE - 1)) * TABLE
    row *= TABLE
    table, left = noise_table(kind), 1 - u
    top = _blend(table.take(row + column), left, table.take(row + right), u)
    bottom = _blend(table.take(below + column), left, table.take(below + right), u)
    return _blend(top, 1 - v, bottom, v)


def _blend(a: Array, share: Array, b: Array, rest: Array) -> Array:
    """``a * share + b * rest``, in the memory of ``a`` and ``b`` where their dtype allows it."""
    if a.dtype != share.dtype or b.dtype != rest.dtype:
        return a * share + b * rest
    a *= share
    b *= rest
    a += b
    return a


def wrap(points: Array, normals: Array) -> tuple[Array, Array]:
    """Texture coordinates of rounded things: the two world axes that the surface faces least, each [n]."""
    size = np.abs(normals)
    flat = size[2] > np.maximum(size[0], size[1])
    along_x = size[1] > size[0]
    return np.where(flat | along_x, points[0], points[1]), np.where(flat, points[1], points[2])


def fraction(x: Array) -> Array:
    """``x % 1`` with the same bits; numpy's remainder takes several times as long."""
    return x - np.floor(x)


def fade(pixel: Array, detail: float) -> Array:
    """1 where details of this size in metres are resolved, falling to 0 where a pixel is larger."""
    return np.clip(1.5 - pixel * np.float32(1 / detail), 0, 1)


def colours(base: tuple[float, float, float] | Array, shade: Array) -> Array:
    """Base colour times shade [n] as [3, n]."""
    return np.asarray(base, np.float32)[:, None] * shade


def mix(under: Array, over: tuple[float, float, float] | Array, weight: Array) -> Array:
    """Blend one colour or a colour per point over `under` [3, n] with weight [n]."""
    over = np.asarray(over, np.float32)
    return under + ((over[:, None] if over.ndim == 1 else over) - under) * weight


def brick_lines(s: Array, z: Array, pixel: Array, length: float, height: float) -> Array:
    """1 on the joints of a brick or tile bond with this brick size in metres, 0 on the bricks, faded with distance."""
    course = np.floor(z / height)
    across = np.abs(fraction(s / length + fraction(0.5 * course)) - 0.5) * length
    along = np.abs(fraction(z / height) - 0.5) * height
    joint = 0.06 * height + 0.3 * pixel
    lines = (across > length / 2 - joint) | (along > height / 2 - joint)
    return lines * fade(pixel, 0.5 * height)


@dataclass(frozen=True)
class Plain:
    """One colour with grain and stains."""

    colour: tuple[float, float, float]
    grain: float = 0.1
    cell: float = 0.02

    def __call__(self, points: Array, normals: Array, pixel: Array) -> Array:
        x, y = points[0] + 0.7 * points[1], points[2] + 0.3 * points[1]
        shade = 1 + self.grain * (noise("grain", x, y, self.cell) - 0.5) * fade(pixel, 3 * self.cell)
        shade += self.grain * (noise("cloud", x, y, 5 * self.cell) - 0.5)
        return colours(self.colour, shade)


@dataclass(frozen=True)
class Leaves:
    """Foliage: clumps of light and dark on a body of this middle, darker below and inside."""

    colour: tuple[float, float, float]
    middle: tuple[float, float, float]
    clump: float  # metres
    contrast: float = 1.0

    def __call__(self, points: Array, normals: Array, pixel: Array) -> Array:
        x, y = wrap(points, normals)
        x, y = x + 3.1 * self.middle[0], y + 1.7 * self.middle[1] + 0.9 * self.middle[2]
        leaf = (noise("leaf", x, y, self.clump / 8) - 0.5) * (0.35 + 0.65 * fade(pixel, self.clump))
        fine = (noise("grain", x, y, self.clump / 12) - 0.5) * fade(pixel, self.clump / 3)
        shade = np.clip(0.95 + self.contrast * (1.1 * leaf + 0.5 * fine) + 0.18 * normals[2], 0.15, 2)
        out = colours(self.colour, shade)
        out[2] *= np.float32(0.9) ** (shade * 2)
        return out


@dataclass(frozen=True)
class Wall:
    """Building shell: wall with a pattern, windows in a regular grid, a ground floor and a roof."""

    colour: tuple[float, float, float]
    pattern: str  # "brick", "tile", "plaster" or "board"
    middle: tuple[float, float]  # ground plan centre
    half: tuple[float, float]  # half widths along the local x and y
    yaw: float  # radians
    eaves: float  # metres, windows stay below
    bay: float  # metres between windows
    storey: float  # metres between floors
    window: tuple[float, float]  # share of the bay and of the storey
    glass: tuple[float, float, float]
    frame: tuple[float, float, float]
    roof: tuple[float, float, float]
    shop: bool  # wide windows on the ground floor

    def __call__(self, points: Array, normals: Array, pixel: Array) -> Array:
        cos, sin = np.float32(np.cos(self.yaw)), np.float32(np.sin(self.yaw))
        x, y = points[0] - self.middle[0], points[1] - self.middle[1]
        x, y = cos * x + sin * y, cos * y - sin * x
        front = np.abs(cos * normals[1] - sin * normals[0]) > np.abs(cos * normals[0] + sin * normals[1])
        s = np.where(front, x + self.half[0], y + self.half[1]).astype(np.float32)
        z = points[2]
        out = self._shell(s, z, pixel)
        out = self._windows(out, s, z, pixel)
        roof = normals[2] > 0.2
        if roof.any():
            out[:, roof] = self._tiles(s[roof] + x[roof], z[roof] + y[roof], pixel[roof])
        return out

    def _shell(self, s: Array, z: Array, pixel: Array) -> Array:
        shade = 0.88 + 0.24 * smooth_noise("cloud", s + self.middle[0], z, 0.08)
        shade += 0.14 * (noise("grain", s, z, 0.03) - 0.5) * fade(pixel, 0.12)
        out = colours(self.colour, shade)
        if self.pattern == "brick":
            return mix(out, (0.72, 0.69, 0.64), 0.75 * brick_lines(s, z, pixel, 0.5, 0.2))
        if self.pattern == "tile":
            return mix(out, (0.35, 0.35, 0.36), 0.6 * brick_lines(s, z, pixel, 1.2, 0.6))
        if self.pattern == "board":
            return out * (1 - 0.25 * (fraction(z / 0.25) < 0.15) * fade(pixel, 0.25))
        return out

    def _windows(self, out: Array, s: Array, z: Array, pixel: Array) -> Array:
        bay, floor = np.floor(s / self.bay), np.floor(z / self.storey)
        u, v = np.abs(s / self.bay - bay - 0.5), np.abs(z / self.storey - floor - 0.55)
        wide = self.shop & (floor == 0)
        half_u, half_v = np.where(wide, 0.44, self.window[0] / 2), np.where(wide, 0.36, self.window[1] / 2)
        fits = (z < self.eaves) & (z > 0.1)
        gap_u, gap_v = 0.08 / self.bay, 0.08 / self.storey
        out = mix(out, self.frame, (fits & (u < half_u + gap_u) & (v < half_v + gap_v)).astype(np.float32))
        pane = fits & (u < half_u) & (v < half_v) & ((u > 0.012) | (pixel > 0.15))
        tint = noise("grain", bay * 3.1 + self.middle[1], floor * 5.3 + self.middle[0], 0.5)
        light = 0.55 + 0.75 * tint + 0.35 * (v * 2)
        out = mix(out, colours(self.glass, light), pane.astype(np.float32))
        door = (floor == 0) & (np.abs(bay - np.floor(self.half[0] / self.bay)) < 0.5) & (u < 0.17) & (z < 2.2)
        return mix(out, self.frame if sum(self.frame) < 1.5 else (0.3, 0.2, 0.15), door.astype(np.float32))

    def _tiles(self, s: Array, z: Array, pixel: Array) -> Array:
        shade = 0.8 + 0.4 * noise("cloud", s, z, 0.1)
        return colours(self.roof, shade * (1 - 0.3 * brick_lines(s, z, pixel, 0.4, 0.35)))


@dataclass(frozen=True)
class CarPaint:
    """Car shell: paint, glass above the belt line, dark sills, lamps and plates at both ends."""

    colour: tuple[float, float, float]
    middle: tuple[float, float]
    yaw: float  # radians, the car points along its local y
    half: tuple[float, float]  # half width, half length
    belt: float  # metres: glass between belt and roof
    roof: float
    panes: int  # side windows

    def __call__(self, points: Array, normals: Array, pixel: Array) -> Array:
        cos, sin = np.float32(np.cos(self.yaw)), np.float32(np.sin(self.yaw))
        x, y = points[0] - self.middle[0], points[1] - self.middle[1]
        x, y = cos * x + sin * y, cos * y - sin * x
        z = points[2]
        out = colours(self.colour, 0.92 + 0.1 * normals[2] + 0.06 * noise("cloud", x + y, z, 0.03))
        out = mix(out, (0.85, 0.9, 0.95), 0.22 * (normals[2] > 0.6))  # sky in the bonnet and roof
        upright = normals[2] < 0.8
        pillar = np.abs(fraction(y / self.half[1] * self.panes / 1.3) - 0.5) > 0.44
        side = np.abs(cos * normals[0] + sin * normals[1]) > 0.5
        glass = (z > self.belt) & (z < self.roof) & upright & ~(side & pillar)
        out = mix(out, colours((0.16, 0.19, 0.22), 0.7 + 1.2 * (z - self.belt)), glass.astype(np.float32))
        out = mix(out, (0.09, 0.09, 0.1), (z < 0.32).astype(np.float32))
        end = ~side & (np.abs(y) > 0.9 * self.half[1])
        lamp = end & (np.abs(z - 0.68) < 0.1) & (np.abs(x) > 0.6 * self.half[0])
        out = mix(out, (0.95, 0.95, 0.85) if np.cos(self.yaw) < 0 else (0.75, 0.08, 0.06), lamp.astype(np.float32))
        plate = end & (np.abs(z - 0.5) < 0.07) & (np.abs(x) < 0.26)
        return mix(out, (0.88, 0.88, 0.8), plate.astype(np.float32))


@dataclass(frozen=True)
class Bands:
    """Horizontal bands of two colours (sign posts, barriers, striped clothes)."""

    first: tuple[float, float, float]
    second: tuple[float, float, float]
    height: float

    def __call__(self, points: Array, normals: Array, pixel: Array) -> Array:
        band = (fraction(points[2] / self.height) < 0.5) * fade(pixel, self.height)
        return mix(colours(self.first, np.ones_like(points[2])), self.second, band.astype(np.float32))
