"""Composition of a procedural scene: kind of place, ground, light, camera, and where everything stands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from depthg.data.scenery import objects as things
from depthg.data.scenery.ground import CARRIAGEWAY, GRASS, PAVEMENT, Ground, Sky
from depthg.data.scenery.primitives import Camera, Primitive


@dataclass(frozen=True)
class Place:
    """Ranges and amounts for one kind of place."""

    share: float  # of all scenes
    half_road: tuple[float, float]
    pavement: tuple[float, float]
    setback: tuple[float, float]  # metres from the pavement to the house fronts
    gap: tuple[float, float]  # metres between houses
    storeys: tuple[int, int]
    gable: float  # share of gabled houses
    trees: tuple[int, int]
    hedges: tuple[int, int]
    cars: tuple[int, int]
    people: tuple[int, int]
    poles: tuple[int, int]
    stand: float  # chance that the camera stands beside the road


# fmt: off
PLACES = {  # the columns are the fields of Place
    "street": Place(0.25, (3.2, 5.0), (1.4, 2.6), (0, 1.5), (0, 5),
        (2, 7), 0.1, (2, 5), (0, 2), (2, 6), (1, 4), (1, 4), 0.4),
    "suburb": Place(0.34, (2.4, 3.6), (0, 1.2), (4, 10), (3, 14),
        (1, 3), 0.8, (3, 7), (1, 4), (2, 5), (1, 3), (1, 3), 0.6),
    "country": Place(0.20, (2.2, 3.4), (0, 0), (6, 20), (10, 40),
        (1, 3), 0.9, (3, 8), (1, 4), (1, 4), (1, 3), (1, 4), 0.6),
    "square": Place(0.08, (3.2, 5), (4, 10), (0, 3), (0, 5),
        (2, 6), 0.1, (2, 5), (0, 3), (2, 5), (3, 6), (1, 3), 0.6),
    "park": Place(0.13, (1.8, 2.6), (0, 0), (14, 30), (4, 15),
        (3, 8), 0.1, (4, 8), (2, 4), (1, 3), (2, 5), (1, 3), 0.7),
}
# fmt: on


@dataclass(frozen=True)
class Scene:
    """Everything the renderer needs."""

    place: str
    camera: Camera
    ground: Ground
    sky: Sky
    primitives: list[Primitive]
    sun: np.ndarray  # [3] unit vector towards the sun
    sun_colour: np.ndarray  # [3] linear
    ambient: np.ndarray  # [3] linear
    haze: float  # metres over which 63 % of the light is scattered
    exposure: float


def compose(seed: int, index: int) -> tuple[Scene, np.random.Generator]:
    """Draw scene `index` of the series `seed`; also returns the generator, for what follows.

    The kind of place runs through a golden-ratio sequence over the index, so that any stretch of it holds all kinds in
    nearly their shares.
    """
    rng = np.random.default_rng([seed, index])
    names = list(PLACES)
    bounds = np.cumsum([PLACES[name].share for name in names])
    name = names[int(np.searchsorted(bounds[:-1], (0.5 + index * 0.6180339887498949) % 1, side="right"))]
    place = PLACES[name]
    ground = _ground(rng, place, name)
    camera = _camera(rng, place, ground)
    sky, sun_colour, ambient, haze, exposure = _light(rng)
    layout = _Layout(rng, camera, ground)
    layout.houses(place)
    layout.horizon(name)
    layout.scatter(place.cars, (7.5, 45), 2.6, (CARRIAGEWAY,), layout.add_car)
    layout.scatter(place.trees, (10, 80), 2.2, (GRASS, PAVEMENT), layout.add_tree)
    layout.scatter(place.hedges, (7, 45), 1.4, (GRASS,), layout.add_hedge)
    layout.scatter(place.poles, (4.5, 24), 0.5, (GRASS, PAVEMENT), layout.add_pole)
    layout.scatter(place.people, (4.2, 20), 0.45, (GRASS, PAVEMENT, CARRIAGEWAY), layout.add_person)
    scene = Scene(name, camera, ground, sky, layout.primitives, sky.sun, sun_colour, ambient, haze, exposure)
    return scene, rng


def _ground(rng: np.random.Generator, place: Place, name: str) -> Ground:
    half_road, pavement = rng.uniform(*place.half_road), rng.uniform(*place.pavement)
    pavement = pavement if pavement > 0.8 else 0.0
    cross = (float(rng.uniform(14, 45)), float(rng.uniform(2.5, 5))) if rng.random() < 0.3 and name != "park" else None
    lawns = []
    for _ in range(int(rng.integers(1, 4)) if name in ("street", "square") else 0):
        x, y = rng.uniform(half_road + 1.5, 12) * rng.choice([-1, 1]), rng.uniform(2, 40)
        lawns.append((x - rng.uniform(1, 4), x + rng.uniform(1, 4), y, y + rng.uniform(4, 20)))
    paved = [(-40.0, 40.0, -30.0, 70.0)] if name == "street" and rng.random() < 0.45 else []
    grey = things.pick(
        rng, ((0.40, 0.40, 0.41), (0.50, 0.49, 0.47), (0.34, 0.35, 0.37), (0.52, 0.47, 0.41), (0.47, 0.44, 0.36)), 0.02
    )
    return Ground(
        centre=0.0,
        bend=float(rng.uniform(-0.003, 0.003)) if name in ("country", "park", "suburb") else 0.0,
        half_road=half_road,
        pavement=pavement,
        cross=cross,
        paved=tuple(paved),
        lawns=tuple(lawns),
        asphalt=grey,
        paving=things.pick(rng, ((0.60, 0.59, 0.57), (0.66, 0.61, 0.53), (0.54, 0.38, 0.31), (0.50, 0.50, 0.51)), 0.02),
        grass=things.pick(rng, ((0.36, 0.44, 0.19), (0.30, 0.38, 0.17), (0.42, 0.45, 0.24), (0.33, 0.37, 0.24)), 0.02),
        straw=things.pick(rng, ((0.58, 0.52, 0.34), (0.52, 0.46, 0.30), (0.54, 0.50, 0.38)), 0.02),
        dryness=float(rng.choice([0.15, 0.45, 0.8], p=[0.55, 0.33, 0.12])),
        brick_size=float(rng.choice([0, 0.1, 0.2, 0.4])),
        line=(0.85, 0.85, 0.82) if rng.random() < 0.75 else (0.80, 0.66, 0.22),
        dashed=bool(rng.random() < 0.7),
        shift=(float(rng.uniform(0, 200)), float(rng.uniform(0, 200))),
    )


def _camera(rng: np.random.Generator, place: Place, ground: Ground) -> Camera:
    reach = ground.half_road + (rng.uniform(1, 8) if rng.random() < place.stand else -1.0)
    x = float(rng.uniform(-reach, reach))
    height = float(rng.uniform(1.3, 2.2) if rng.random() < 0.75 else rng.uniform(2.2, 6))
    inward = -np.sign(x) * abs(rng.normal(0, 22)) if rng.random() < 0.6 else rng.normal(0, 25)
    pitch = float(np.clip(rng.normal(-2.5, 3.5) - 2.0 * (height - 1.7), -16, 6))
    return Camera(
        (x, 0.0, height), float(np.clip(inward, -70, 70)), pitch, float(rng.normal(0, 1.2)), float(rng.uniform(58, 78))
    )


def _light(rng: np.random.Generator) -> tuple[Sky, np.ndarray, np.ndarray, float, float]:
    """Sky, colour of the sun, of the light from the sky, range of the haze, exposure."""
    weather = rng.choice(["clear", "broken", "overcast"], p=[0.5, 0.36, 0.14])
    elevation, azimuth = np.radians(rng.uniform(14, 62)), rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(elevation) * np.sin(azimuth), np.cos(elevation) * np.cos(azimuth), np.sin(elevation)])
    warm = np.clip((np.radians(30) - elevation) * 2, 0, 0.6)
    cover = {"clear": rng.uniform(0, 0.25), "broken": rng.uniform(0.25, 0.45), "overcast": rng.uniform(0.8, 1.0)}[
        str(weather)
    ]
    grey = rng.uniform(0.62, 0.8)
    zenith = things.pick(rng, ((0.30, 0.48, 0.75), (0.42, 0.58, 0.78), (0.36, 0.50, 0.68)))
    horizon = things.pick(rng, ((0.75, 0.82, 0.88), (0.80, 0.82, 0.82), (0.70, 0.78, 0.86)), 0.02)
    if weather == "overcast":
        zenith, horizon = (grey * 0.92, grey * 0.95, grey), (grey * 1.08, grey * 1.08, grey * 1.08)
    sky = Sky(
        zenith=zenith,
        horizon=horizon,
        cloud=(0.92, 0.92, 0.93) if weather != "overcast" else (grey * 1.1,) * 3,
        cover=float(cover),
        cell=float(rng.uniform(0.01, 0.03)),
        shift=tuple(rng.uniform(0, 9, 2).tolist()),
        sun=sun,
    )
    strength = {"clear": rng.uniform(1.3, 1.8), "broken": rng.uniform(0.9, 1.5), "overcast": rng.uniform(0.1, 0.35)}[
        str(weather)
    ]
    ambient = np.array([0.92, 0.98, 1.08]) * {"clear": 0.5, "broken": 0.58, "overcast": 0.9}[str(weather)]
    sun_colour = strength * np.array([1.05, 1.0 - 0.25 * warm, 0.92 - 0.6 * warm])
    return (
        sky,
        sun_colour,
        ambient,
        float(np.exp(rng.uniform(np.log(180), np.log(1200)))),
        float(rng.uniform(0.85, 1.2)),
    )


class _Layout:
    """Places things where the camera can see them and where nothing else stands."""

    def __init__(self, rng: np.random.Generator, camera: Camera, ground: Ground):
        self.rng, self.camera, self.ground = rng, camera, ground
        self.primitives: list[Primitive] = []
        self.discs: list[tuple[float, float, float]] = [(camera.position[0], 0.0, 1.2)]  # x, y, radius taken

    def free(self, x: float, y: float, radius: float) -> bool:
        """Whether a disc touches no other."""
        return all((x - a) ** 2 + (y - b) ** 2 > (radius + r) ** 2 for a, b, r in self.discs)

    def scatter(
        self, amount: tuple[int, int], reach: tuple[float, float], radius: float, regions: tuple[int, ...], add
    ) -> None:
        """Try to put between amount[0] and amount[1] things at distances drawn log-uniformly from `reach` metres."""
        rng, half = self.rng, np.radians(self.camera.fov_deg / 2 + 4)
        for _ in range(int(rng.integers(amount[0], amount[1] + 1))):
            for _ in range(8):
                distance = np.exp(rng.uniform(*np.log(reach)))
                angle = np.radians(self.camera.yaw_deg) + rng.uniform(-half, half)
                x, y = self.camera.position[0] + distance * np.sin(angle), distance * np.cos(angle)
                region = int(self.ground.region(np.array([x]), np.array([y]))[0])
                if region in regions and self.free(x, y, radius):
                    add(float(x), float(y), float(distance))
                    break

    def add_car(self, x: float, y: float, distance: float) -> None:
        """Car along its lane or parked at the kerb."""
        axis = float(self.ground.axis(np.array(y)))
        lane = np.clip(x - axis, -self.ground.half_road + 1.1, self.ground.half_road - 1.1)
        on_cross = (
            self.ground.cross
            and abs(y - self.ground.cross[0]) < self.ground.cross[1]
            and abs(x - axis) > self.ground.half_road
        )
        yaw = float(self.rng.normal(0, 0.06)) - 2 * self.ground.bend * y
        if on_cross:
            yaw += np.pi / 2 * self.rng.choice([-1, 1])
        else:
            x, yaw = axis + float(lane), yaw + (np.pi if lane < 0 else 0)
        if self.free(x, y, 2.4):
            self.discs.append((x, y, 2.6))
            self.primitives += things.car(self.rng, x, y, float(yaw))

    def add_tree(self, x: float, y: float, distance: float) -> None:
        """Tree."""
        self.discs.append((x, y, 1.0))
        self.primitives += things.tree(self.rng, x, y, distance)

    def add_hedge(self, x: float, y: float, distance: float) -> None:
        """Bush or hedge."""
        self.discs.append((x, y, 1.4))
        self.primitives += things.hedge(self.rng, x, y, float(self.rng.uniform(0, np.pi)))

    def add_pole(self, x: float, y: float, distance: float) -> None:
        """Pole; a lamp's arm points to the road, a sign's face to the traffic."""
        self.discs.append((x, y, 0.5))
        yaw = np.pi + self.rng.normal(0, 0.4) if self.rng.random() < 0.6 else np.pi / 2 * np.sign(x)
        self.primitives += things.pole(self.rng, x, y, float(yaw))

    def add_person(self, x: float, y: float, distance: float) -> None:
        """One person, sometimes with company."""
        self.discs.append((x, y, 0.4))
        yaw = float(self.rng.uniform(0, 2 * np.pi))
        self.primitives += things.person(self.rng, x, y, yaw)
        if self.rng.random() < 0.35:
            dx, dy = self.rng.uniform(0.5, 0.9), self.rng.uniform(-0.5, 0.5)
            self.primitives += things.person(self.rng, x + dx, y + dy, yaw + self.rng.normal(0, 0.3))

    def houses(self, place: Place) -> None:
        """A row of houses on both sides of the road."""
        rng, ground = self.rng, self.ground
        for side in (-1, 1):
            y = float(rng.uniform(-12, 6))
            while y < 110:
                along, deep = rng.uniform(4, 9), rng.uniform(4, 7)
                middle = y + along
                away = ground.half_road + ground.pavement + rng.uniform(*place.setback) + deep + 0.3
                x = float(ground.axis(np.array(middle))) + side * away
                crossing = ground.cross and abs(middle - ground.cross[0]) < ground.cross[1] + ground.pavement + along
                clear = np.hypot(x - self.camera.position[0], middle) > np.hypot(along, deep) + 1.5
                inside = abs(self.camera.position[0] - x) < deep + 1.5 and abs(middle) < along + 1.5
                if not crossing and not inside and (clear or place.setback[0] < 1):
                    self._house(x, middle, deep, along, place)
                y = middle + along + rng.uniform(*place.gap)

    def _house(self, x: float, y: float, deep: float, along: float, place: Place) -> None:
        rng = self.rng
        storeys = int(rng.integers(place.storeys[0], place.storeys[1] + 1))
        gable = bool(rng.random() < place.gable)
        turned = gable and rng.random() < 0.5  # ridge along or across the road
        yaw = float(rng.normal(0, 0.03)) + (np.pi / 2 if turned else 0)
        half = (along, deep) if turned else (deep, along)
        self.primitives += things.building(rng, x, y, yaw, half, storeys, gable)
        for shift in (-along / 2, along / 2):
            self.discs.append((x, y + shift, deep + 0.4))

    def horizon(self, name: str) -> None:
        """Far trees, hills and blocks, which hide most of the edge of the plane."""
        rng, half = self.rng, self.camera.fov_deg / 2 + 6
        for angle in np.radians(self.camera.yaw_deg + np.arange(-half, half, rng.uniform(4, 8))):
            if rng.random() < 0.25:
                continue
            distance = rng.uniform(85, 170)
            x, y = self.camera.position[0] + distance * np.sin(angle), distance * np.cos(angle)
            if rng.random() < (0.6 if name in ("street", "square") else 0.15):
                self.primitives += things.building(
                    rng,
                    float(x),
                    float(y),
                    float(rng.uniform(0, np.pi)),
                    (rng.uniform(5, 10), rng.uniform(5, 10)),
                    int(rng.integers(1, 6)),
                    bool(rng.random() < 0.4),
                )
            else:
                leaves = things.Leaves(things.pick(rng, things.LEAF_COLOURS), (float(x), float(y), 0.0), 1.2)
                width, height = rng.uniform(5, 11), rng.uniform(3, 8)
                self.primitives.append(
                    things.ball(
                        (float(x), float(y), 0.3 * height),
                        (width, width, height),
                        things.TREE,
                        leaves,
                        rough=1.0,
                        holes=0.1,
                        shadow=False,
                    )
                )
