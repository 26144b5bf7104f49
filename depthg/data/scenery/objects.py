"""Builders of the things that stand on the ground of a procedural scene; each returns a list of shapes with labels.

Lengths in metres, yaw in radians (0 points along +y), colours sRGB in [0, 1]. Every builder draws from the
generator in its arguments, so that a scene depends on its seed alone.
"""

from __future__ import annotations

import numpy as np

from depthg.data.scenery.materials import Bands, CarPaint, Leaves, Plain, Wall
from depthg.data.scenery.primitives import Ellipsoid, Frustum, Material, Polytope, Primitive, across

SKY, ROAD, GRASS, BUILDING, TREE, CAR, PERSON, POLE = range(8)
Colour = tuple[float, float, float]

LEAF_COLOURS = (
    (0.24, 0.36, 0.14),
    (0.33, 0.43, 0.18),
    (0.18, 0.30, 0.14),
    (0.42, 0.44, 0.20),
    (0.55, 0.42, 0.16),
    (0.30, 0.36, 0.24),
)
WALL_COLOURS = (
    (0.56, 0.33, 0.25),
    (0.48, 0.30, 0.24),
    (0.76, 0.69, 0.56),
    (0.55, 0.55, 0.55),
    (0.85, 0.84, 0.80),
    (0.44, 0.45, 0.46),
    (0.66, 0.60, 0.48),
    (0.62, 0.55, 0.38),
    (0.50, 0.52, 0.42),
    (0.70, 0.66, 0.62),
)
CAR_COLOURS = (
    (0.85, 0.85, 0.85),
    (0.12, 0.12, 0.13),
    (0.62, 0.63, 0.65),
    (0.36, 0.37, 0.39),
    (0.62, 0.10, 0.09),
    (0.13, 0.25, 0.50),
    (0.22, 0.34, 0.18),
    (0.62, 0.55, 0.42),
    (0.38, 0.42, 0.22),
    (0.75, 0.60, 0.15),
)
CLOTHES = (
    (0.15, 0.17, 0.25),
    (0.60, 0.15, 0.15),
    (0.30, 0.30, 0.30),
    (0.20, 0.35, 0.60),
    (0.75, 0.72, 0.65),
    (0.28, 0.36, 0.20),
    (0.45, 0.30, 0.20),
    (0.80, 0.65, 0.15),
    (0.10, 0.10, 0.10),
    (0.55, 0.55, 0.58),
)
SKIN = ((0.85, 0.66, 0.54), (0.72, 0.52, 0.40), (0.48, 0.33, 0.24), (0.90, 0.74, 0.64))


def pick(rng: np.random.Generator, options: tuple, spread: float = 0.04) -> Colour:
    """One of the colours with a small random change."""
    base = options[rng.integers(len(options))]
    scale, shifts = rng.uniform(0.9, 1.1), rng.uniform(-spread, spread, 3).tolist()
    r, g, b = (min(max(value * scale + shift, 0.03), 0.97) for value, shift in zip(base, shifts, strict=True))
    return r, g, b


def solid(
    outline: np.ndarray, x: float, y: float, yaw: float, half_width: float, label: int, material: Material
) -> Polytope:
    """Prism: a convex outline [(along, z), ...] in the plane of the heading, counter-clockwise, swept over the width.

    The bottom may lie on or under the ground; a face is made for each edge of the outline and for both sides.
    """
    heading, lateral = np.array([-np.sin(yaw), np.cos(yaw), 0]), np.array([np.cos(yaw), np.sin(yaw), 0])
    base, up = np.array([x, y, 0.0]), np.array([0, 0, 1.0])
    front = base + outline[:, :1] * heading + outline[:, 1:] * up
    sides = np.array([[-half_width], [half_width]]) * lateral
    points = (front[:, None] + sides).reshape(-1, 3)
    along, high = (np.concatenate([outline[1:], outline[:1]]) - outline).T[..., None]
    planes = np.empty((2 + len(outline), 4))
    planes[:2, :3] = lateral, -lateral
    planes[:2, 3] = lateral @ base + half_width, half_width - lateral @ base
    normals = high * heading - along * up
    for plane, normal, point in zip(planes[2:], normals, front, strict=True):
        normal /= np.sqrt(normal @ normal)
        plane[:3], plane[3] = normal, normal @ point
    return Polytope(label=label, material=material, planes=planes, points=points)


def limb(start: np.ndarray, end: np.ndarray, thickness: float, label: int, material: Material) -> Ellipsoid:
    """Long ellipsoid from start to end [3], `thickness` metres across."""
    half = (end - start) / 2
    side, other = across(half)
    radius = thickness / 2
    return Ellipsoid(
        label=label,
        material=material,
        middle=(start + end) / 2,
        axes=np.stack([1.1 * half, radius * side, radius * other]),
    )


def ball(
    middle: tuple[float, float, float], radii: tuple[float, float, float], label: int, material: Material, **more
) -> Ellipsoid:
    """Ellipsoid with axes along the world axes."""
    return Ellipsoid(label=label, material=material, middle=np.array(middle), axes=np.diag(radii), **more)


def pillar(
    x: float, y: float, low: float, high: float, r0: float, r1: float, label: int, material: Material
) -> Frustum:
    """Upright cone stump from z = low to z = high."""
    ends = np.array([x, y, low]), np.array([x, y, high])
    return Frustum(label=label, material=material, start=ends[0], end=ends[1], radius_start=r0, radius_end=r1)


def tree(rng: np.random.Generator, x: float, y: float, distance: float) -> list[Primitive]:
    """Broad-leaved tree or conifer; far ones have fewer shapes."""
    height = rng.uniform(4, 11)
    colour = pick(rng, LEAF_COLOURS)
    bark = Plain(pick(rng, ((0.33, 0.26, 0.20), (0.40, 0.37, 0.34), (0.28, 0.22, 0.17))), 0.6, 0.03)
    trunk = height * rng.uniform(0.2, 0.4)
    parts: list[Primitive] = [pillar(x, y, -0.1, trunk + 1, 0.025 * height, 0.018 * height, TREE, bark)]
    if rng.random() < 0.25:
        for low, high, width in ((0.12, 0.55, 0.24), (0.36, 0.78, 0.18), (0.6, 1.05, 0.12)):
            leaves = Leaves(colour, (x, y, 0), 0.5)
            cone = pillar(x, y, low * height, high * height, width * height, 0.01, TREE, leaves)
            cone.rough, cone.holes = 0.2, 0.15
            parts.append(cone)
        return parts
    spread = height * rng.uniform(0.2, 0.34)
    count = 9 if distance < 25 else 5
    for i in range(count):
        angle, out = rng.uniform(0, 2 * np.pi), spread * rng.uniform(0.35, 0.75) * (i > 0)
        size = spread * (rng.uniform(0.45, 0.7) if i else 0.85)
        z = trunk + (height - trunk) * (rng.uniform(0.25, 0.85) if i else 0.5)
        leaves = Leaves(colour, (x, y, float(i)), rng.uniform(0.35, 0.6))
        middle = (x + out * np.cos(angle), y + out * np.sin(angle), max(z, size))
        parts.append(
            ball(middle, (size, size, size * rng.uniform(0.7, 1.0)), TREE, leaves, rough=0.25 * size, holes=0.12)
        )
    return parts


def hedge(rng: np.random.Generator, x: float, y: float, yaw: float) -> list[Primitive]:
    """Bush or a short hedge."""
    leaves = Leaves(pick(rng, LEAF_COLOURS), (x, y, 0), 0.35)
    height = rng.uniform(0.8, 2.0)
    count, step = int(rng.integers(1, 4)), rng.uniform(0.8, 1.3)
    return [
        ball(
            (x - np.sin(yaw) * i * step, y + np.cos(yaw) * i * step, height * 0.42),
            (rng.uniform(0.7, 1.1),) * 2 + (height * 0.55,),
            TREE,
            leaves,
            rough=0.12,
            holes=0.15,
        )
        for i in range(count)
    ]


def person(rng: np.random.Generator, x: float, y: float, yaw: float) -> list[Primitive]:
    """Standing or walking person."""
    height = rng.uniform(1.5, 1.9)
    top = pick(rng, CLOTHES)
    shirt: Material = Bands(top, pick(rng, CLOTHES), 0.16) if rng.random() < 0.2 else Plain(top, 0.2, 0.02)
    trousers, skin = Plain(pick(rng, CLOTHES), 0.2, 0.02), Plain(pick(rng, SKIN))
    hair = Plain(pick(rng, ((0.12, 0.09, 0.07), (0.35, 0.25, 0.15), (0.6, 0.5, 0.35), (0.2, 0.2, 0.2))))
    heading, lateral = np.array([-np.sin(yaw), np.cos(yaw), 0]), np.array([np.cos(yaw), np.sin(yaw), 0])
    base, up = np.array([x, y, 0.0]), np.array([0, 0, height])
    stride, swing = rng.uniform(0.02, 0.3), rng.uniform(0.05, 0.25)
    parts: list[Primitive] = []
    for side in (-1, 1):
        hip, foot = base + 0.09 * side * lateral + 0.5 * up, base + 0.1 * side * lateral + side * stride * heading
        parts.append(limb(foot, hip, 0.17, PERSON, trousers))
        shoulder = base + 0.21 * side * lateral + 0.8 * up
        hand = base + 0.28 * side * lateral - side * swing * heading + 0.46 * up
        parts.append(limb(shoulder, hand, 0.11, PERSON, shirt))
    chest = Ellipsoid(
        label=PERSON, material=shirt, middle=base + 0.65 * up, axes=np.stack([0.23 * lateral, 0.14 * heading, 0.2 * up])
    )
    head = ball(tuple(base + 0.925 * up), (0.1, 0.11, 0.13), PERSON, skin)
    cap = ball(tuple(base + 0.945 * up - 0.02 * heading), (0.108, 0.118, 0.125), PERSON, hair)
    return [*parts, chest, head, cap]


def car(rng: np.random.Generator, x: float, y: float, yaw: float) -> list[Primitive]:
    """Saloon, estate, van or bus."""
    kind = rng.choice(["saloon", "estate", "van", "bus"], p=[0.45, 0.32, 0.18, 0.05])
    length, width, belt, roof, panes = {
        "saloon": (4.5, 1.8, 0.92, 1.42, 2),
        "estate": (4.4, 1.85, 1.0, 1.62, 3),
        "van": (5.3, 2.0, 1.25, 2.3, 2),
        "bus": (9.5, 2.5, 1.2, 3.0, 6),
    }[str(kind)]
    half, nose = length / 2, {"saloon": 0.42, "estate": 0.44, "van": 0.72, "bus": 0.95}[str(kind)]
    tail = {"saloon": 0.62, "estate": 0.95, "van": 0.97, "bus": 0.97}[str(kind)]
    paint = CarPaint(pick(rng, CAR_COLOURS, 0.02), (x, y), yaw, (width / 2, half), belt + 0.04, roof - 0.1, panes)
    slant = 0.25 if kind == "bus" else 0.75
    low = [(-half, 0.25), (half, 0.25), (half, 0.7), (half * nose, belt), (-half * tail, belt), (-half, belt - 0.08)]
    high = [
        (-half * tail, belt - 0.02),
        (half * nose, belt - 0.02),
        (half * nose - slant, roof),
        (-half * tail + slant / 3, roof),
    ]
    parts: list[Primitive] = [solid(np.array(low), x, y, yaw, width / 2, CAR, paint)]
    parts.append(solid(np.array(high), x, y, yaw, width / 2 - 0.08, CAR, paint))
    rubber = Bands((0.07, 0.07, 0.07), (0.10, 0.10, 0.10), 0.1)
    radius = 0.33 if kind != "bus" else 0.48
    heading, lateral = np.array([-np.sin(yaw), np.cos(yaw), 0]), np.array([np.cos(yaw), np.sin(yaw), 0])
    for side in (-1, 1):
        for place in (-0.58, 0.6):
            inner = np.array([x, y, radius]) + place * half * heading + side * (width / 2 - 0.2) * lateral
            for r, depth, stuff in ((radius, 0.21, rubber), (0.55 * radius, 0.23, Plain((0.5, 0.5, 0.52)))):
                parts.append(
                    Frustum(
                        label=CAR,
                        material=stuff,
                        start=inner,
                        end=inner + side * depth * lateral,
                        radius_start=r,
                        radius_end=r,
                    )
                )
    return parts


def pole(rng: np.random.Generator, x: float, y: float, yaw: float) -> list[Primitive]:
    """Street lamp, traffic sign, traffic light, telegraph pole or bollard; `yaw` is the way an arm points."""
    kind = rng.choice(["lamp", "sign", "light", "wood", "bollard"], p=[0.32, 0.27, 0.16, 0.17, 0.08])
    arm = np.array([-np.sin(yaw), np.cos(yaw), 0])
    side = np.array([np.cos(yaw), np.sin(yaw), 0])
    metal = Plain(pick(rng, ((0.45, 0.46, 0.48), (0.25, 0.28, 0.27), (0.62, 0.63, 0.64), (0.2, 0.3, 0.22))), 0.15)
    if kind == "lamp":
        height = rng.uniform(4.5, 8)
        top = np.array([x, y, height])
        lantern = limb(top + 1.0 * arm, top + 1.9 * arm, 0.3, POLE, Plain((0.75, 0.75, 0.7)))
        return [
            pillar(x, y, 0, height, 0.14, 0.09, POLE, metal),
            limb(top - 0.1 * arm, top + 1.5 * arm, 0.16, POLE, metal),
            lantern,
        ]
    if kind == "wood":
        height, wood = rng.uniform(6, 9), Plain((0.38, 0.31, 0.25), 0.5)
        beams = [
            limb(np.array([x, y, z]) - 1.1 * side, np.array([x, y, z]) + 1.1 * side, 0.2, POLE, wood)
            for z in (height - 0.4, height - 1.2)
        ]
        return [pillar(x, y, 0, height, 0.17, 0.13, POLE, wood), *beams]
    if kind == "bollard":
        return [pillar(x, y, 0, 1.05, 0.13, 0.12, POLE, Bands((0.85, 0.85, 0.82), (0.65, 0.12, 0.10), 0.5))]
    height = rng.uniform(2.4, 3.4)
    if kind == "sign":
        colour = pick(
            rng, ((0.75, 0.10, 0.10), (0.12, 0.28, 0.62), (0.85, 0.85, 0.82), (0.85, 0.68, 0.12), (0.16, 0.42, 0.24))
        )
        size, start = rng.uniform(0.36, 0.5), np.array([x, y, height - 0.2]) + 0.1 * arm
        plate = [(start, size, Plain(colour)), (start + 0.012 * arm, 0.7 * size, Plain((0.88, 0.88, 0.86)))]
        discs = [
            Frustum(label=POLE, material=stuff, start=at, end=at + 0.03 * arm, radius_start=r, radius_end=r)
            for at, r, stuff in plate
        ]
        return [pillar(x, y, 0, height + 0.2, 0.07, 0.07, POLE, metal), *discs]
    box = np.array([(-0.2, height - 0.9), (0.2, height - 0.9), (0.2, height + 0.1), (-0.2, height + 0.1)])
    housing = solid(box, x + 0.12 * arm[0], y + 0.12 * arm[1], yaw, 0.2, POLE, Plain((0.10, 0.11, 0.10)))
    lamps = [
        ball((x + 0.32 * arm[0], y + 0.32 * arm[1], height - 0.1 - 0.3 * i), (0.11,) * 3, POLE, Plain(colour))
        for i, colour in enumerate(((0.8, 0.1, 0.08), (0.8, 0.6, 0.1), (0.15, 0.7, 0.35)))
    ]
    return [pillar(x, y, 0, height, 0.09, 0.08, POLE, metal), housing, *lamps]


def building(
    rng: np.random.Generator, x: float, y: float, yaw: float, half: tuple[float, float], storeys: int, gable: bool
) -> list[Primitive]:
    """Box with windows and a flat or gabled roof; `half` widths along its local x and y are rounded to whole bays."""
    bay, storey = rng.uniform(2.2, 3.6), rng.uniform(2.8, 3.6)
    half = (max(1, round(2 * half[0] / bay)) * bay / 2, max(1, round(2 * half[1] / bay)) * bay / 2)
    eaves = storeys * storey + 0.3
    wall = Wall(
        colour=pick(rng, WALL_COLOURS),
        pattern=str(rng.choice(["brick", "tile", "plaster", "board"], p=[0.36, 0.2, 0.32, 0.12])),
        middle=(x, y),
        half=half,
        yaw=yaw,
        eaves=eaves - 0.3,
        bay=bay,
        storey=storey,
        window=(rng.uniform(0.3, 0.7), rng.uniform(0.4, 0.62)),
        glass=pick(rng, ((0.22, 0.26, 0.30), (0.40, 0.47, 0.54), (0.14, 0.15, 0.16))),
        frame=pick(rng, ((0.88, 0.88, 0.86), (0.30, 0.26, 0.22), (0.55, 0.55, 0.55))),
        roof=pick(rng, ((0.45, 0.24, 0.18), (0.30, 0.30, 0.32), (0.40, 0.34, 0.28), (0.25, 0.22, 0.22))),
        shop=bool(rng.random() < 0.3 and not gable),
    )
    parts: list[Primitive] = []
    if gable:
        ridge = eaves + half[1] * rng.uniform(0.6, 1.0)
        outline = np.array([(-half[1], -0.5), (half[1], -0.5), (half[1], eaves), (0, ridge), (-half[1], eaves)])
        if rng.random() < 0.5:
            chimney = np.array([(-0.4, eaves), (0.4, eaves), (0.4, ridge + 0.8), (-0.4, ridge + 0.8)])
            parts.append(solid(chimney, x, y, yaw, 0.4, BUILDING, Plain(wall.colour, 0.3)))
    else:
        outline = np.array([(-half[1], -0.5), (half[1], -0.5), (half[1], eaves), (-half[1], eaves)])
    return [solid(outline, x, y, yaw, half[0], BUILDING, wall), *parts]
