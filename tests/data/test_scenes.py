"""Procedural scenes: geometry against marching, shadows, determinism, a cache that survives kills and damage."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from depthg.data import scenes as module
from depthg.data.scenery.ground import Ground, Sky
from depthg.data.scenery.layout import PLACES, Scene, compose
from depthg.data.scenery.materials import Plain, fraction
from depthg.data.scenery.objects import (
    BUILDING,
    CAR,
    GRASS,
    POLE,
    ROAD,
    SKY,
    TREE,
    ball,
    building,
    limb,
    pillar,
    solid,
    tree,
)
from depthg.data.scenery.primitives import Camera, Frustum, View, across
from depthg.data.scenery.renderer import render, render_scene, shadows
from depthg.data.scenery.worker import scene_file, write_scene
from depthg.data.scenes import CLASSES, PALETTE, RENDERER, SceneDataset, render_files

SIZE = 48
WHITE = Plain((1.0, 1.0, 1.0), grain=0.0)
LEVEL = Camera((0.0, 0.0, 2.0), 0.0, 0.0, 0.0, 70.0)


def plain_scene(primitives=(), camera=LEVEL, sun=(0.0, 0.0, 1.0)) -> Scene:
    """A grey road 6 m wide in grass under a high sun, no haze."""
    grey = (0.5, 0.5, 0.5)
    ground = Ground(0.0, 0.0, 3.0, 0.0, None, (), (), grey, grey, grey, grey, 0.0, 0.0, grey, False, (0.0, 0.0))
    direction = np.array(sun) / np.linalg.norm(sun)
    sky = Sky((0.3, 0.5, 0.8), (0.8, 0.8, 0.8), (0.9, 0.9, 0.9), 0.2, 0.02, (0.0, 0.0), direction)
    return Scene("test", camera, ground, sky, list(primitives), direction, np.ones(3), 0.3 * np.ones(3), 1e6, 1.0)


def centres(camera, size):
    """Rays through the pixel centres from the definition of a pinhole camera, float64 [size, size, 3]."""
    right, down, forward = camera.axes()
    focal = 0.5 * size / np.tan(np.radians(camera.fov_deg / 2))
    rays = np.empty((size, size, 3))
    for row in range(size):
        for col in range(size):
            rays[row, col] = forward + (col + 0.5 - size / 2) / focal * right + (row + 0.5 - size / 2) / focal * down
    return rays


@pytest.fixture(scope="module")
def pictures():
    return [render(0, index, 64) for index in range(16)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    return folder, SceneDataset(folder, n_train=3, n_val=2, n_test=2, size=SIZE, workers=1, progress=False)


# --- geometry -------------------------------------------------------------------------------------------------------


def test_camera_axes_are_a_right_handed_frame_and_pitch_looks_up():
    right, down, forward = axes = Camera((0, 0, 1), 30.0, 10.0, 5.0, 60.0).axes()
    np.testing.assert_allclose(np.stack(axes) @ np.stack(axes).T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.cross(right, down), forward, atol=1e-12)
    assert forward[2] == pytest.approx(np.sin(np.radians(10)))
    assert forward[0] > 0  # positive yaw turns right


def test_odd_rays_of_the_grid_pass_through_the_pixel_centres():
    camera = Camera((1, 2, 3), 20.0, -8.0, 3.0, 65.0)
    view = View(camera, 10)
    grid = view.rays.reshape(3, view.grid, view.grid)[:, 1::2, 1::2]
    np.testing.assert_allclose(grid.transpose(1, 2, 0), centres(camera, 10), atol=1e-6)


def test_unproject_inverts_projection():
    camera = Camera((1, 2, 3), 20.0, -8.0, 3.0, 65.0)
    depth = np.random.default_rng(0).uniform(1, 50, (6, 6)).astype(np.float32)
    expected = np.array(camera.position) + depth[..., None] * centres(camera, 6)
    np.testing.assert_allclose(camera.unproject(depth), expected, atol=1e-5)


def march(inside, origin, ray, far=12.0, steps=6000):
    """First t at which a point of the ray lies inside, by small steps; inf when there is none."""
    t = np.linspace(0, far, steps)
    hit = np.flatnonzero(inside(origin + t[:, None] * ray))
    return t[hit[0]] if hit.size else np.inf


def inside_limb(points):
    axis = np.array([2.0, 0.5, 1.0]) * 1.1 / 2
    middle, length = np.array([0.0, 6.25, 1.5]), np.linalg.norm(axis)
    local = points - middle
    along = local @ axis / length
    aside = np.sqrt(np.maximum((local**2).sum(1) - along**2, 0))
    return (along / length) ** 2 + (aside / 0.5) ** 2 <= 1


def inside_cone(points):
    height = points[:, 2]
    radius = 0.9 - 0.25 * height
    return (height >= 0) & (height <= 2) & (np.hypot(points[:, 0] - 0.3, points[:, 1] - 5) <= radius)


def inside_roof(points):
    yaw = 0.4
    local = points - [0.5, 7, 0]
    along = -np.sin(yaw) * local[:, 0] + np.cos(yaw) * local[:, 1]
    aside = np.cos(yaw) * local[:, 0] + np.sin(yaw) * local[:, 1]
    return (np.abs(aside) <= 1.2) & (np.abs(along) <= 1) & (points[:, 2] >= 0) & (points[:, 2] <= 3 - np.abs(along))


SHAPES = {
    "limb": (limb(np.array([-1.0, 6.0, 1.0]), np.array([1.0, 6.5, 2.0]), 1.0, CAR, WHITE), inside_limb),
    "cone": (pillar(0.3, 5, 0, 2, 0.9, 0.4, POLE, WHITE), inside_cone),
    "roof": (
        solid(np.array([(-1, 0), (1, 0), (1, 2), (0, 3), (-1, 2)]), 0.5, 7, 0.4, 1.2, BUILDING, WHITE),
        inside_roof,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("height", [1.2, 3.5])
def test_shapes_agree_with_marching_along_the_ray(name, height):
    shape, inside = SHAPES[name]
    camera = Camera((0.2, 0.0, height), 4.0, -3.0, 2.0, 60.0)
    _, depth, label = render_scene(plain_scene([shape], camera), 12)
    rays = centres(camera, 12)
    seen = 0
    for row in range(12):
        for col in range(12):
            ray, got = rays[row, col], depth[2 * row + 1, 2 * col + 1]
            ground = -height / ray[2] if ray[2] < 0 else np.inf
            expected = min(march(inside, np.array(camera.position), ray), ground if ground < 3000 else np.inf)
            drawn = label[2 * row + 1, 2 * col + 1] == shape.label
            grazing = march(inside, np.array(camera.position), ray) < np.inf and not drawn
            assert not grazing or abs(expected - got) < 0.05 or np.isinf(got)
            if drawn:
                assert got == pytest.approx(expected, abs=0.01)
                seen += 1
    assert seen >= 4


@pytest.mark.parametrize("name", SHAPES)
def test_shadow_rays_agree_with_marching(name):
    shape, inside = SHAPES[name]
    sun = np.array([0.5, -0.3, 0.6]) / np.linalg.norm([0.5, -0.3, 0.6])
    rng = np.random.default_rng(1)
    points = np.stack([rng.uniform(-4, 2, 400), rng.uniform(4, 9, 400), np.zeros(400)]).astype(np.float32)
    expected = np.array([np.isfinite(march(inside, point.astype(float), sun)) for point in points.T])
    got = shadows(points, [shape], sun, np.full(400, 5, np.float32)) > 0
    assert expected.sum() > 15
    assert (got != expected).sum() <= 3  # rays that graze the shape may fall between two steps


@pytest.mark.parametrize("name", SHAPES)
def test_normals_are_unit_vectors_that_face_the_camera(name):
    shape, _ = SHAPES[name]
    view = View(LEVEL, 24)
    rows, cols, depth, aux = shape.hit(view, view.box(shape.corners))
    at = rows * view.grid + cols
    normals = shape.normals(view.points(at, depth), aux)
    np.testing.assert_allclose((normals**2).sum(0), 1, atol=1e-4)
    assert ((normals * view.rays[:, at]).sum(0) < 1e-3).all()


def test_lying_cylinder_and_its_ends():
    wheel = Frustum(
        label=CAR,
        material=WHITE,
        start=np.array([1.0, 5, 1]),
        end=np.array([1.4, 5, 1]),
        radius_start=0.8,
        radius_end=0.8,
    )
    view = View(replace(LEVEL, position=(0.0, 0.0, 1.0)), 64)
    rows, cols, depth, is_end = wheel.hit(view, view.box(wheel.corners))
    points = view.points(rows * view.grid + cols, depth)
    assert is_end.any() and not is_end.all()
    np.testing.assert_allclose(points[0, is_end], 1.0, atol=1e-4)
    np.testing.assert_allclose(np.hypot(points[1] - 5, points[2] - 1)[~is_end], 0.8, atol=1e-4)


def test_box_on_screen_holds_every_hit_even_across_the_near_plane():
    wall = solid(
        np.array([(-20, 0), (20, 0), (20, 4), (-20, 4)]), 2.5, 0, 0.0, 1.0, BUILDING, WHITE
    )  # beside the camera
    view = View(LEVEL, 32)
    cut, whole = (wall.hit(view, box) for box in (view.box(wall.corners), (0, view.grid, 0, view.grid)))
    assert cut[0].size == whole[0].size > 100


def test_across_gives_an_orthonormal_frame():
    for along in np.vstack([np.eye(3), -np.eye(3), [[0.6, 0.0, 0.8]]]):
        frame = np.stack([along, *across(along)])
        np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)


# --- pictures -------------------------------------------------------------------------------------------------------


def test_ground_points_lie_on_the_ground_and_road_and_grass_where_the_plan_says():
    camera = Camera((0.5, 0.0, 1.8), 12.0, -6.0, 1.5, 66.0)
    scene = plain_scene(camera=camera)
    _, depth, label = render_scene(scene, 40)
    depth, label = depth[1::2, 1::2], label[1::2, 1::2]
    points = camera.unproject(depth)
    ground = np.isfinite(depth)
    assert (label[~ground] == SKY).all() and ground.any() and (~ground).any()
    near = depth < 100
    np.testing.assert_allclose(points[near][:, 2], 0, atol=1e-3)
    expected = np.where(np.abs(points[near][:, 0]) < 3.0, ROAD, GRASS)
    edge = np.abs(np.abs(points[near][:, 0]) - 3.0) < 0.01
    assert (label[near] == expected)[~edge].all()


def test_pictures_of_the_series(pictures):
    for picture in pictures:
        assert picture.image.dtype == np.uint8 and picture.image.shape == (64, 64, 3)
        assert picture.label.dtype == np.uint8 and picture.depth.dtype == np.float32
        assert (np.isinf(picture.depth) == (picture.label == SKY)).all()
        assert (picture.depth > 0).all() and picture.image.std() > 10
        assert 58 <= picture.camera.fov_deg <= 78
        flat = np.isin(picture.label, (ROAD, GRASS))
        near = flat & (picture.depth < 60)
        np.testing.assert_allclose(picture.camera.unproject(picture.depth)[near][:, 2], 0, atol=5e-3)
        above = ~flat & np.isfinite(picture.depth)
        assert (picture.camera.unproject(picture.depth)[above][:, 2] > -0.3).all()
    share = np.bincount(np.concatenate([p.label.ravel() for p in pictures]), minlength=8) / (16 * 64 * 64)
    assert (share > 0.003).all(), dict(zip(CLASSES, share, strict=True))
    assert (share < 0.5).all()
    assert len({p.camera.yaw_deg for p in pictures}) == 16


def test_a_picture_follows_from_seed_and_index_alone(pictures):
    again = render(0, 5, 64)
    for a, b in ((pictures[5].image, again.image), (pictures[5].label, again.label), (pictures[5].depth, again.depth)):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(pictures[5].image, render(1, 5, 64).image)
    assert not np.array_equal(pictures[5].image, pictures[6].image)


def test_label_and_depth_do_not_depend_on_the_resolution():
    small, large = (
        render(0, 3, 32),
        render(0, 3, 96),
    )  # every third pixel centre of the large one is one of the small one
    assert (small.label == large.label[1::3, 1::3]).mean() > 0.99
    same = np.isfinite(small.depth) & (small.label == large.label[1::3, 1::3])
    assert np.isclose(small.depth[same], large.depth[1::3, 1::3][same], rtol=1e-3).mean() > 0.99


def test_colour_is_the_tent_of_the_nine_rays_around_the_centre():
    camera = replace(LEVEL, pitch_deg=-90.0)  # straight down on a pole top: white disc on grey
    disc = Frustum(
        label=POLE, material=WHITE, start=np.zeros(3), end=np.array([0, 0, 0.1]), radius_start=0.9, radius_end=0.9
    )
    radiance, _, label = render_scene(plain_scene([disc], camera), 9)
    assert (label == POLE).sum() > 10
    tent = np.array([0.25, 0.5, 0.25])
    expected = np.empty((9, 9))
    for row in range(9):
        for col in range(9):
            expected[row, col] = tent @ radiance[1, 2 * row : 2 * row + 3, 2 * col : 2 * col + 3] @ tent
    from depthg.data.scenery.renderer import _develop

    rng = np.random.default_rng(0)
    image = _develop(radiance.reshape(3, -1), plain_scene([disc], camera), View(camera, 9), rng)[..., 1] / 255
    np.testing.assert_allclose(image, np.sqrt(expected / (1 + 0.18 * expected**2)).clip(0, 1), atol=0.06)


def test_a_block_casts_its_shadow_away_from_the_sun():
    block = solid(np.array([(-1, 0), (1, 0), (1, 2), (-1, 2)]), 0.0, 10.0, 0.0, 1.0, BUILDING, WHITE)
    camera = replace(LEVEL, position=(0.0, 0.0, 6.0), pitch_deg=-25.0)
    dark, depth, label = render_scene(plain_scene([block], camera, sun=(1.0, 0.0, 1.0)), 64)
    points = camera.unproject(depth[1::2, 1::2])
    x, y = points[..., 0], points[..., 1]
    light = dark[1, 1::2, 1::2]
    road = (label[1::2, 1::2] != BUILDING) & np.isfinite(depth[1::2, 1::2]) & (np.abs(y - 10) < 0.9)
    in_shadow = road & (x > -2.9) & (x < -1.1)  # 2 m high, sun at 45 degrees in +x: 2 m of shadow on the side of -x
    in_sun = road & (((x > 1.1) & (x < 2.9)) | (x < -3.3)) & (x > -6)
    assert in_shadow.sum() > 5 and in_sun.sum() > 5
    assert light[in_shadow].max() < 0.6 * light[in_sun].min()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fractions_have_the_bits_of_the_remainder(dtype):
    x = np.random.default_rng(0).normal(0, 50, 10_000).astype(dtype)
    x = np.concatenate([x, np.array([0, -0.0, 3, -3, -1e-30, 1e-30, 2.5e6], dtype)])
    assert (fraction(x).view(f"u{x.itemsize}") == (x % 1).view(f"u{x.itemsize}")).all()


def test_things_behind_a_wall_are_not_drawn_and_a_wall_behind_them_changes_nothing():
    wall = solid(np.array([(-0.1, -1), (0.1, -1), (0.1, 9), (-0.1, 9)]), 0, 6, 0.0, 9, BUILDING, Plain((0.5, 0.5, 0.5)))
    thing = ball((0, 12, 1.5), (1, 1, 1), TREE, Plain((0.1, 0.5, 0.1)))
    alone, *both = (render_scene(plain_scene(parts), 24) for parts in ([wall], [wall, thing], [thing, wall]))
    for found in both:
        assert all((a == b).all() for a, b in zip(alone, found, strict=True))
    assert (render_scene(plain_scene([thing]), 24)[2] == TREE).any()


def test_foliage_lets_spots_of_light_through():
    parts = tree(np.random.default_rng(0), 0.0, 10.0, 10.0)
    rng = np.random.default_rng(1)
    points = np.stack([rng.uniform(-1, 1, 2000), 10 + rng.uniform(-1, 1, 2000), np.zeros(2000)]).astype(np.float32)
    share = shadows(points, parts[1:], np.array([0.01, 0.0, 1.0]), np.full(2000, 9, np.float32)).mean()
    assert 0.3 < share < 0.999


def test_places_fill_their_shares_evenly():
    assert sum(place.share for place in PLACES.values()) == pytest.approx(1)
    drawn = [compose(0, index)[0].place for index in range(40)]
    for name, place in PLACES.items():
        assert abs(drawn.count(name) - 40 * place.share) <= 2


def test_builders_make_what_they_say():
    walls = building(np.random.default_rng(0), 0.0, 20.0, 0.3, (4.0, 5.0), 3, True)
    assert {part.label for part in walls} == {BUILDING}
    assert walls[0].corners[:, 2].max() > 3 * 2.8
    low = ball((0.0, 5.0, 1.0), (0.5, 0.5, 0.5), CAR, WHITE)
    assert low.radius == pytest.approx(0.5)


# --- data set and cache ---------------------------------------------------------------------------------------------


def test_dataset_follows_the_protocol(cache):
    _, data = cache
    assert data.classes == CLASSES and PALETTE.shape == (8, 3) and len({tuple(c) for c in PALETTE.tolist()}) == 8
    assert (len(data.train), len(data.val)) == (3, 2)
    assert data.train.names == ["train_0000", "train_0001", "train_0002"] and data.val.names[0] == "val_0000"
    for split in (data.train, data.val):
        image, label, depth = split.image(1), split.label(1), split.depth(1)
        assert image.dtype == np.uint8 and image.shape == (SIZE, SIZE, 3) and split.size(1) == (SIZE, SIZE)
        assert label.dtype == np.int64 and label.shape == (SIZE, SIZE) and label.min() >= 0 and label.max() < 8
        assert depth.dtype == np.float32 and (np.isinf(depth) == (label == SKY)).all()
        assert split.fov_deg(1) == split.camera(1).fov_deg
    np.testing.assert_array_equal(data.train.image(2), render(0, 2, SIZE).image)
    assert not np.array_equal(data.train.image(0), data.val.image(0))
    settings = json.loads((data.folder / "settings.json").read_text())
    assert settings == {"data": "scenes", "renderer": RENDERER, "seed": 0, "size": SIZE}


def test_the_name_of_the_renderer_changes_with_its_pixels():
    digest = hashlib.sha256()
    for index in (0, 1, 2, 100_000, 200_000):
        picture = render(0, index, 64)
        for array in (picture.image, picture.label, picture.depth):
            digest.update(np.ascontiguousarray(array).tobytes())
    known = {"4e75078be3ce84ed": "e1ca97bf48729e7e"}  # name of the renderer: digest of these pictures
    assert known.get(RENDERER) == digest.hexdigest()[:16], "pixels changed: give RENDERER a new value, and add it here"


def test_negative_index_is_the_end_and_a_wrong_one_raises(cache):
    _, data = cache
    np.testing.assert_array_equal(data.train.label(-1), data.train.label(2))
    with pytest.raises(IndexError):
        data.val.image(2)


def test_test_split_is_rendered_when_asked_for(cache):
    _, data = cache
    assert not scene_file(data.folder, 200_000).exists()
    test = data.test
    assert len(test) == 2 and test.names == ["test_0000", "test_0001"]
    assert scene_file(data.folder, 200_001).exists()
    assert data.test is test


def test_counts_do_not_change_the_photos_and_seed_and_size_have_their_own_cache(cache, monkeypatch):
    folder, data = cache
    monkeypatch.setattr(module, "render_files", lambda *args: pytest.fail("rendered again"))
    fewer = SceneDataset(folder, n_train=2, n_val=1, size=SIZE, progress=False)
    np.testing.assert_array_equal(fewer.train.image(1), data.train.image(1))
    assert fewer.folder == data.folder
    monkeypatch.setattr(module, "render_files", lambda *args: None)
    others = {SceneDataset(folder, seed=1, size=SIZE).folder, SceneDataset(folder, size=SIZE + 1).folder, data.folder}
    monkeypatch.setattr(module, "RENDERER", "other")
    assert len(others | {SceneDataset(folder, size=SIZE).folder}) == 4


def test_generation_continues_where_it_stopped(tmp_path, monkeypatch):
    done = []

    def stops_after_two(folder, seed, index, size):
        if len(done) == 2:
            raise KeyboardInterrupt
        write_scene(folder, seed, index, size)
        done.append(index)

    monkeypatch.setattr(module, "write_scene", stops_after_two)
    with pytest.raises(KeyboardInterrupt):
        SceneDataset(tmp_path, n_train=4, n_val=1, size=32, workers=1, progress=False)
    first, wanted = set(done), {0, 1, 2, 3, 100_000}
    rest = []
    monkeypatch.setattr(module, "write_scene", lambda *args: (rest.append(args[2]), write_scene(*args)))
    data = SceneDataset(tmp_path, n_train=4, n_val=1, size=32, workers=1, progress=False)
    assert set(rest) == wanted - first and len(rest) == 3
    assert sorted(p.name for p in data.folder.glob("*.npz")) == [
        "000000.npz",
        "000001.npz",
        "000002.npz",
        "000003.npz",
        "100000.npz",
    ]


def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        args[0].write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("depthg.data.scenery.worker.np.savez", fails)
    with pytest.raises(OSError, match="No space"):
        write_scene(tmp_path, 0, 0, 32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "flipped", "missing", "other size"])
def test_damaged_files_are_rendered_again(cache, damage):
    _, data = cache
    path = scene_file(data.folder, 0)
    good, image, depth = path.read_bytes(), data.train.image(0), data.train.depth(0)
    middle = len(good) // 2
    bad = {"truncated": good[:middle], "empty": b"", "garbage": b"no zip" * 99, "missing": None, "other size": None}
    bad["flipped"] = good[:60] + bytes(b ^ 255 for b in good[60:middle]) + good[middle:]
    if damage == "missing":
        path.unlink()
    elif damage == "other size":
        write_scene(data.folder, 0, 0, 32)
    else:
        path.write_bytes(bad[damage])
    with pytest.warns(UserWarning, match="000000.npz"):
        restored = data.train.image(0)
    np.testing.assert_array_equal(restored, image)
    np.testing.assert_array_equal(data.train.depth(0), depth)


def test_workers_render_the_same_files_as_one_process(tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    alone.mkdir(), shared.mkdir()
    render_files(alone, 7, 32, [0, 1, 2, 3], 1, lambda: None)
    advanced = []
    render_files(shared, 7, 32, [3, 1, 0, 2], 2, lambda: advanced.append(1))
    assert len(advanced) == 4
    for index in range(4):
        with np.load(scene_file(alone, index)) as a, np.load(scene_file(shared, index)) as b:
            assert set(a.files) == {"image", "label", "depth", "camera"}
            for part in a.files:
                np.testing.assert_array_equal(a[part], b[part])


def test_two_runs_on_one_cache_end_with_one_valid_cache(tmp_path):
    results = []

    def run():
        results.append(SceneDataset(tmp_path, n_train=6, n_val=2, size=32, workers=2, progress=False))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2 and len(list(tmp_path.iterdir())) == 1
    assert len(list(results[0].folder.glob("*.npz"))) == 8 and not list(results[0].folder.glob(".*"))
    for index in range(6):
        np.testing.assert_array_equal(results[0].train.image(index), render(0, index, 32).image)


def test_an_error_in_a_worker_is_an_error_here(tmp_path):
    with pytest.raises(RuntimeError, match=r"picture -[12] could not be rendered: ValueError: .*start again"):
        render_files(tmp_path, 0, 32, [-1, -2], 2, lambda: None)  # numpy refuses a negative seed
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"picture [01] could not be rendered: FileExistsError: .*file.*start again"):
        render_files(tmp_path / "file", 0, 32, [0, 1], 2, lambda: None)


def test_a_worker_that_dies_is_an_error_not_a_hang(tmp_path):
    killed = []

    def kill_one() -> None:
        children = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text().split()
        ours = [child for child in children if b"scenery.worker" in Path(f"/proc/{child}/cmdline").read_bytes()]
        if not killed:
            assert len(ours) == 2
            killed.append(os.kill(int(ours[0]), signal.SIGKILL))

    with pytest.raises(RuntimeError, match=r"stopped at picture \d+ \(exit code -9\); .*start again"):
        render_files(tmp_path, 0, 32, range(40), 2, kill_one)
    assert 0 < len(list(tmp_path.glob("*.npz"))) < 40


def test_ctrl_c_ends_the_workers_and_keeps_what_is_finished(tmp_path):
    code = f"""if True:
        import os, signal
        from pathlib import Path
        from depthg.data.scenes import render_files
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
        done = iter((lambda: print("first", flush=True), *[lambda: None] * 999))
        try:
            render_files(Path({str(tmp_path)!r}), 0, 32, range(1000), 2, lambda: next(done)())
        except KeyboardInterrupt:
            children = Path(f"/proc/{{os.getpid()}}/task/{{os.getpid()}}/children")
            print("stopped", children.read_text(), flush=True)"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "first\n"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    assert (output.split(), errors) == (["stopped"], "")  # and no child is left
    for path in (found := list(tmp_path.glob("*.npz"))):
        with np.load(path) as stored:
            assert stored["image"].shape == (32, 32, 3)
    assert 0 < len(found) < 1000


def test_the_worker_imports_no_torch():
    code = "import sys, depthg.data.scenery.worker; print(sorted({'torch', 'matplotlib', 'scipy'} & set(sys.modules)))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


def test_stale_partial_files_are_removed_and_young_ones_kept(tmp_path):
    data = SceneDataset(tmp_path, n_train=1, n_val=1, size=32, workers=1, progress=False)
    stale, young = data.folder / ".partial-00000000-7-0", data.folder / ".partial-00000000-8-0"
    stale.touch(), young.touch()
    os.utime(stale, (0, 0))
    SceneDataset(tmp_path, n_train=2, n_val=1, size=32, workers=1, progress=False)
    assert not stale.exists() and young.exists()


@pytest.mark.parametrize(
    "wrong, message",
    [({"n_train": 0}, "n_train=0"), ({"n_val": 10**6}, "n_val=1000000"), ({"n_test": -1}, "n_test=-1"),
     ({"seed": -1}, "-1"), ({"size": 8}, "size=8"), ({"workers": 0}, "workers=0")],
)  # fmt: skip
def test_impossible_settings_raise(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        SceneDataset(tmp_path, **wrong)
    assert list(tmp_path.iterdir()) == []
