"""Camera and analytic shapes of the procedural scenes, in numpy alone.

World frame: x right, y forward (along the road), z up, metres, the ground is z = 0. Rays are not normalised: their
component along the optical axis is 1, so the ray parameter t is the z-depth. A ray direction is affine in the grid
column and row, hence every dot product with it is the sum of one row and one column vector; that is what makes the
shapes cheap to intersect. Points and normals are stored as [3, n] float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

NEAR = 0.05  # metres: nothing nearer than this is drawn
SIGNS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])  # corners of a cube
Box = tuple[int, int, int, int]  # first row, end row, first column, end column
Material = Callable[
    [np.ndarray, np.ndarray, np.ndarray], np.ndarray
]  # points, normals, pixel size in metres -> sRGB [3, n]


@dataclass(frozen=True)
class Camera:
    """Pinhole camera with the optical axis through the image centre; angles in degrees, position in metres."""

    position: tuple[float, float, float]
    yaw_deg: float  # 0 looks along +y, positive turns right
    pitch_deg: float  # positive looks up
    roll_deg: float
    fov_deg: float  # horizontal; images are square

    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World directions of image right, image down and the optical axis, each [3]."""
        yaw, pitch, roll = np.radians([self.yaw_deg, self.pitch_deg, self.roll_deg])
        forward = np.array([np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), np.sin(pitch)])
        level = np.array([np.cos(yaw), -np.sin(yaw), 0.0])
        up = np.cross(level, forward)
        right = np.cos(roll) * level + np.sin(roll) * up
        return right, -np.cross(right, forward), forward

    def focal(self, size: int) -> float:
        """Focal length in pixels for an image `size` pixels wide."""
        return 0.5 * size / np.tan(np.radians(self.fov_deg) / 2)

    def unproject(self, depth: np.ndarray) -> np.ndarray:
        """World points [H, W, 3] of a z-depth map [H, W] in metres (inf stays non-finite)."""
        height, width = depth.shape
        right, down, forward = self.axes()
        x = (np.arange(width) + 0.5 - width / 2) / self.focal(width)
        y = (np.arange(height) + 0.5 - height / 2) / self.focal(width)
        rays = forward + x[None, :, None] * right + y[:, None, None] * down
        with np.errstate(invalid="ignore"):
            return np.asarray(self.position) + depth[..., None] * rays


class View:
    """Ray grid of one picture: 2 * size + 1 rays per side, half a pixel apart; odd ones pass pixel centres."""

    def __init__(self, camera: Camera, size: int):
        right, down, forward = camera.axes()
        self.focal = camera.focal(size)
        self.grid = 2 * size + 1
        self.origin = np.asarray(camera.position, dtype=np.float64)
        self.base = forward - size / (2 * self.focal) * (right + down)
        self.step_col = right / (2 * self.focal)
        self.step_row = down / (2 * self.focal)
        self.frame = np.stack([right, down, forward])
        self.index = np.arange(self.grid, dtype=np.float32)
        whole = (0, self.grid, 0, self.grid)
        self.rays = np.empty((3, self.grid**2), np.float32)
        for axis, row in zip(np.eye(3), self.rays, strict=True):
            self.dot(axis, whole, row.reshape(self.grid, self.grid))

    def dot(self, vector: np.ndarray, box: Box, out: np.ndarray | None = None) -> np.ndarray:
        """vector . ray for all rays of the box, float32 [rows, columns]."""
        row0, row1, col0, col1 = box
        along = (vector @ self.base + (vector @ self.step_col) * self.index[col0:col1]).astype(np.float32)
        down = ((vector @ self.step_row) * self.index[row0:row1]).astype(np.float32)
        return np.add(along[None, :], down[:, None], out=out)

    def points(self, at: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """World points [3, n] at these depths [n] along the rays with flat indices `at` [n]."""
        out = self.rays.take(at, axis=1)
        out *= depth
        out += self.origin[:, None].astype(np.float32)
        return out

    def box(self, corners: np.ndarray) -> Box | None:
        """Grid rectangle that holds the convex hull of the corners [V, 3]; None when it is out of sight."""
        return self.seen_box(self.seen(corners))

    def seen(self, points: np.ndarray) -> np.ndarray:
        """Points [V, 3] in the camera's frame: right, down and along the optical axis."""
        return (points - self.origin) @ self.frame.T

    def seen_box(self, seen: np.ndarray) -> Box | None:
        """:meth:`box` of corners that :meth:`seen` gave."""
        behind = seen[:, 2] < NEAR
        if behind.all():
            return None
        if behind.any():  # cut the hull at the near plane: every edge from front to back leaves one point there
            front, back = seen[~behind][:, None], seen[behind][None]
            share = (front[..., 2:] - NEAR) / (front[..., 2:] - back[..., 2:])
            seen = np.concatenate([seen[~behind], (front + share * (back - front)).reshape(-1, 3)])
        places = (self.grid - 1) / 2 + seen[:, :2] * (2 * self.focal / seen[:, 2:])
        (left, top), (right, bottom) = places.min(0).tolist(), places.max(0).tolist()
        row0, row1, col0, col1 = (int(min(max(x, 0), self.grid)) for x in (top, bottom + 1, left, right + 1))
        return None if row0 >= row1 or col0 >= col1 else (row0, row1, col0, col1)


@dataclass(kw_only=True)
class Primitive:
    """Base class of all shapes: class label, material, and the density of its surface and its shadow."""

    label: int
    material: Material
    rough: float = 0.0  # metres: depth of the surface relief
    holes: float = 0.0  # share of the surface that is cut out (leaves)
    shadow: bool = True
    corners: np.ndarray = field(init=False)  # [V, 3], the shape lies in their convex hull
    hit: ClassVar[Callable]  # methods of the shapes below
    normals: ClassVar[Callable]
    occludes: ClassVar[Callable]

    @cached_property
    def centre(self) -> np.ndarray:
        """Middle of the corners, [3]."""
        return self.corners.mean(0)

    @cached_property
    def radius(self) -> float:
        """Radius of a sphere around `centre` that holds the shape."""
        return float(np.sqrt(((self.corners - self.centre) ** 2).sum(1).max()))


@dataclass(kw_only=True)
class Ellipsoid(Primitive):
    """All points with |to_unit (p - middle)| <= 1."""

    middle: np.ndarray  # [3]
    axes: np.ndarray  # [3, 3], rows are the half axes as world vectors, mutually orthogonal

    def __post_init__(self) -> None:
        squares = (self.axes**2).sum(1, keepdims=True)
        self.to_unit = self.axes / squares
        self.corners = self.middle + SIGNS @ self.axes
        self.radius = float(np.sqrt(squares.max()))

    def hit(self, view: View, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Rows, columns and depths of the rays of the box that meet the shape, each [n]."""
        start = self.to_unit @ (view.origin - self.middle)
        c = float(start @ start - 1)
        if c <= 0:
            return _no_hit()
        b = view.dot(self.to_unit.T @ start, box)
        a = sum(view.dot(row, box) ** 2 for row in self.to_unit)
        root = b * b - a * np.float32(c)
        at = np.flatnonzero((root > 0) & (b < 0))
        t = c / (np.sqrt(root.take(at)) - b.take(at))
        return *_places(at, box), t.astype(np.float32), None

    def normals(self, points: np.ndarray, _: np.ndarray | None) -> np.ndarray:
        """Outward unit normals [3, n] at surface points [3, n]."""
        matrix = (self.to_unit.T @ self.to_unit).astype(np.float32)
        return _unit(matrix @ (points - self.middle[:, None].astype(np.float32)))

    def occludes(self, points: np.ndarray, sun: np.ndarray) -> np.ndarray:
        """Whether the way from each point [3, n] towards the sun is blocked, bool [n]."""
        local = self.to_unit.astype(np.float32) @ (points - self.middle[:, None].astype(np.float32))
        along = (self.to_unit @ sun).astype(np.float32)
        b, c = along @ local, (local * local).sum(0) - 1
        return ((b * b > (along @ along) * c) & (b < 0)) | (c < -0.05)


@dataclass(kw_only=True)
class Frustum(Primitive):
    """Cylinder or cone stump with flat ends between two points."""

    start: np.ndarray  # [3]
    end: np.ndarray  # [3]
    radius_start: float
    radius_end: float

    def __post_init__(self) -> None:
        way = self.end - self.start
        self.length = float(np.sqrt(way @ way))
        self.along = way / self.length
        self.side, self.other = across(self.along)
        self.slope = (self.radius_end - self.radius_start) / self.length
        widest = max(self.radius_start, self.radius_end)
        sides = np.array([[-widest], [widest]])
        square = ((sides * self.side)[:, None] + sides * self.other).reshape(-1, 3)
        self.corners = np.concatenate([self.start + square, self.end + square])

    def hit(self, view: View, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Rows, columns and depths of the rays that meet the mantle or the nearer end, and 1 where it is the end."""
        offset = view.origin - self.start
        o1, o2, oz = (float(offset @ axis) for axis in (self.side, self.other, self.along))
        d1, d2, dz = (view.dot(axis, box) for axis in (self.side, self.other, self.along))
        r = self.radius_start + self.slope * oz
        a = d1 * d1 + d2 * d2 - self.slope**2 * dz * dz
        b = o1 * d1 + o2 * d2 - (self.slope * r) * dz
        c = o1 * o1 + o2 * o2 - r * r
        root = b * b - a * np.float32(c)
        best = np.full(a.shape, np.inf, np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = c / (np.sqrt(root) - b)
            z = oz + t * dz
            best = np.where((t > 0) & (z >= 0) & (z <= self.length), t, best)
            is_end = np.zeros(a.shape, bool)
            if oz < 0 or oz > self.length:
                level, limit = (0.0, self.radius_start) if oz < 0 else (self.length, self.radius_end)
                t = (level - oz) / dz
                is_end = (t > 0) & ((o1 + t * d1) ** 2 + (o2 + t * d2) ** 2 <= limit**2) & (t < best)
                best = np.where(is_end, t, best)
        at = np.flatnonzero(np.isfinite(best))
        return *_places(at, box), best.take(at), is_end.take(at)

    def normals(self, points: np.ndarray, is_end: np.ndarray | None) -> np.ndarray:
        """Outward unit normals [3, n]; `is_end` [n] marks points on the flat ends."""
        local = points - self.start[:, None].astype(np.float32)
        height = self.along.astype(np.float32) @ local
        radial = _unit(local - self.along[:, None].astype(np.float32) * height)
        mantle = _unit(radial - np.float32(self.slope) * self.along[:, None].astype(np.float32))
        if is_end is None:
            return mantle
        cap = np.where(height > self.length / 2, 1, -1) * self.along[:, None]
        return np.where(is_end, cap, mantle).astype(np.float32)

    def occludes(self, points: np.ndarray, sun: np.ndarray) -> np.ndarray:
        """Whether the way from each point [3, n] towards the sun is blocked by the mantle, bool [n]."""
        frame = np.stack([self.side, self.other, self.along])
        o1, o2, oz = frame.astype(np.float32) @ (points - self.start[:, None].astype(np.float32))
        d1, d2, dz = (float(x) for x in frame @ sun)
        r = self.radius_start + self.slope * oz
        a = d1 * d1 + d2 * d2 - (self.slope * dz) ** 2
        b = o1 * d1 + o2 * d2 - self.slope * dz * r
        root = b * b - a * (o1 * o1 + o2 * o2 - r * r)
        with np.errstate(divide="ignore", invalid="ignore"):
            far = (np.sqrt(root) - b) / a
            near = (-np.sqrt(root) - b) / a
        z_near, z_far = oz + near * dz, oz + far * dz
        inside = ((near > 0) & (z_near >= 0) & (z_near <= self.length)) | ((z_far >= 0) & (z_far <= self.length))
        return (root > 0) & (far > 0) & inside


@dataclass(kw_only=True)
class Polytope(Primitive):
    """Convex solid: the intersection of the half spaces planes[:, :3] . p <= planes[:, 3]."""

    planes: np.ndarray  # [F, 4]
    points: np.ndarray  # [V, 3], its corners

    def __post_init__(self) -> None:
        self.corners = self.points

    def hit(self, view: View, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Rows, columns and depths of the rays that meet the solid, and the index of the face."""
        outside = self.planes[:, 3] - self.planes[:, :3] @ view.origin  # negative: the camera is in front of this face
        shape = (box[1] - box[0], box[3] - box[2])
        near, far = np.zeros(shape, np.float32), np.full(shape, np.inf, np.float32)
        face = np.zeros(shape, np.int8)
        with np.errstate(divide="ignore", invalid="ignore"):
            for i, plane in enumerate(self.planes):
                slant = view.dot(plane[:3], box)
                t = np.float32(outside[i]) / slant
                if outside[i] < 0:
                    np.copyto(t, np.inf, where=slant >= 0)
                    np.copyto(face, i, where=t > near)
                    np.maximum(near, t, out=near)
                else:
                    np.copyto(t, np.inf, where=slant <= 0)
                    np.minimum(far, t, out=far)
        at = np.flatnonzero((near < far) & (near > 0))
        return *_places(at, box), near.take(at), face.take(at)

    def normals(self, _: np.ndarray, face: np.ndarray | None) -> np.ndarray:
        """Outward unit normals [3, n] of the faces [n]."""
        return self.planes[:, :3].T.astype(np.float32).take(face, axis=1)

    def occludes(self, points: np.ndarray, sun: np.ndarray) -> np.ndarray:
        """Whether the way from each point [3, n] towards the sun is blocked, bool [n]."""
        near = np.zeros(points.shape[1], np.float32)
        far = np.full(points.shape[1], np.inf, np.float32)
        room = self.planes[:, 3:].astype(np.float32) - self.planes[:, :3].astype(np.float32) @ points
        for gap, slant in zip(room, self.planes[:, :3] @ sun, strict=True):
            if abs(slant) < 1e-6:
                near[gap < 0] = np.inf
            elif slant < 0:
                np.maximum(near, gap / np.float32(slant), out=near)
            else:
                np.minimum(far, gap / np.float32(slant), out=far)
        return near < far


def across(along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors [3] at right angles to `along` [3] and to each other."""
    x, y, z = along
    side = np.array([y, -x, 0.0]) if abs(z) < abs(x) + abs(y) else np.array([z, 0.0, -x])
    side /= np.sqrt(side @ side)
    other = np.array([y * side[2] - z * side[1], z * side[0] - x * side[2], x * side[1] - y * side[0]])
    return side, other / np.sqrt(other @ other)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt((vectors * vectors).sum(0) + np.float32(1e-12))


def _places(at: np.ndarray, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of flat places in a box."""
    rows, cols = np.divmod(at, box[3] - box[2])
    rows += box[0]
    cols += box[2]
    return rows, cols


def _no_hit() -> tuple[np.ndarray, np.ndarray, np.ndarray, None]:
    empty = np.zeros(0, np.int64)
    return empty, empty, np.zeros(0, np.float32), None
