"""Mapping of depth, surface normals of planes and spheres, and the maps made of them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthg.data.files import DataError
from depthg.data.transforms import Views
from depthg.depth.maps import MAPPINGS, MappedDepth, Normals, map_depth, surface_normals

FOV = 70.0


def rays(height, width, fov_deg=FOV):  # float64 [3, H, W]: (u, v, 1)
    focal = width / (2 * math.tan(math.radians(fov_deg) / 2))
    v, u = np.indices((height, width)) + 0.5
    return np.stack([(u - width / 2) / focal, (v - height / 2) / focal, np.ones((height, width))])


def plane_depth(normal, distance, height=40, width=56):
    """z of the plane n . P = distance on every ray, inf where the ray does not meet it in front of the camera."""
    along = np.tensordot(np.asarray(normal, float), rays(height, width), 1)
    with np.errstate(divide="ignore"):
        z = distance / along
    return np.where(z > 0, z, np.inf)


def degrees_between(a, b):
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b, axis=0), axis=0), (a * b).sum(0)))


# ---- mapping


def test_saturating_by_hand():
    got = map_depth(np.array([[0, 2.5, 5, 20, np.inf]], np.float32))
    assert got.dtype == np.float32
    assert np.allclose(got, [[0, 1 / 3, 0.5, 0.8, 1]], atol=1e-7)
    assert np.allclose(map_depth(np.array([[2.0]]), scale=2), 0.5)


def test_log_by_hand():
    got = map_depth(np.array([[0, 5, 15, 80, 200, np.inf]]), "log", scale=5, far=80)
    top = math.log1p(16)
    assert np.allclose(got, [[0, math.log(2) / top, math.log(4) / top, 1, 1, 1]], atol=1e-6)


def test_linear_by_hand():
    assert np.allclose(map_depth(np.array([[0, 20, 80, 99, np.inf]]), "linear"), [[0, 0.25, 1, 1, 1]])


def test_minmax_is_linear_per_photo_and_rounds_down_to_eight_bits():
    """As the released depth script stores a photo's depth, and its loader reads it."""
    depth = np.random.default_rng(0).gamma(2, 3, (40, 50)).astype(np.float32)
    stored = ((depth - depth.min()) / (depth.max() - depth.min()) * 255).astype(np.uint8)
    got = map_depth(depth, "minmax")
    assert got.dtype == np.float32 and np.array_equal(got, stored.astype(np.float32) / 255)
    assert got.min() == 0 and got.max() == 1 and len(np.unique(got)) > 100
    assert np.array_equal(map_depth(depth * 1000, "minmax") * 255 // 1, stored), "in any unit"


def test_minmax_of_sky_of_one_depth_and_of_nothing():
    assert np.allclose(map_depth(np.array([[1, 2, 3, np.inf]]), "minmax"), [[0, 127 / 255, 1, 1]])
    assert (map_depth(np.full((2, 3), 7.0), "minmax") == 0).all()
    assert map_depth(np.array([[4, np.inf]]), "minmax").tolist() == [[0, 1]]
    assert map_depth(np.full((2, 3), np.inf), "minmax").tolist() == [[1] * 3] * 2
    assert map_depth(np.zeros((0, 3)), "minmax").shape == (0, 3)


def test_none_passes_values_through():
    values = np.array([[0, 0.25, 1]], np.float32)
    assert np.array_equal(map_depth(values, "none"), values)


def test_near_objects_stay_apart_when_the_sky_is_at_infinity():
    near = np.array([[2.0, 4.0, 8.0, np.inf]])
    assert np.diff(map_depth(near)).min() > 0.15
    assert np.diff(map_depth(near, "linear"))[0, 0] < 0.03  # what the default avoids


@given(
    st.lists(st.floats(0, 1e6, width=32) | st.just(math.inf), min_size=2, max_size=9),
    st.sampled_from(MAPPINGS[:4]),
    st.floats(0.01, 100),
    st.floats(1, 1000),
)
def test_mappings_stay_in_range_and_in_order(depths, mapping, scale, far):
    depth = np.sort(np.array([depths], np.float32))
    got = map_depth(depth, mapping, scale=scale, far=far)
    assert got.dtype == np.float32 and got.min() >= 0 and got.max() <= 1
    assert (np.diff(got) >= 0).all()
    assert (got[np.isinf(depth)] == 1).all()


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_impossible_depth_names_the_file(mapping):
    with pytest.raises(DataError, match=r"a/b\.npy has negative depth \(-0\.5\)"):
        map_depth(np.array([[0.5, np.nan, -0.5]]), mapping, name="a/b.npy")


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_unknown_depth_stays_unknown_and_changes_no_other_pixel(mapping):
    depth = np.random.default_rng(0).uniform(0.1, 0.9, (9, 7)).astype(np.float32)
    holes = np.random.default_rng(1).random((9, 7)) < 0.3
    holes[np.unravel_index([depth.argmin(), depth.argmax()], depth.shape)] = False  # minmax takes them
    got = map_depth(np.where(holes, np.float32(np.nan), depth), mapping)
    assert np.array_equal(np.isnan(got), holes) and np.array_equal(got[~holes], map_depth(depth, mapping)[~holes])
    assert np.isnan(map_depth(np.full((2, 2), np.nan), mapping)).all()


def test_minmax_of_a_map_with_holes_and_sky():
    assert np.allclose(map_depth(np.array([[np.nan, 1, 2, 3, np.inf]]), "minmax"), [[np.nan, 0, 127 / 255, 1, 1]],
                       equal_nan=True)  # fmt: skip
    assert np.allclose(map_depth(np.array([[np.nan, 4, np.inf]]), "minmax"), [[np.nan, 0, 1]], equal_nan=True)


@pytest.mark.parametrize(("top", "hint"), [(255, "divide by 255"), (1000, "divide by 65535"), (2.5, "for metres")])
def test_values_above_one_with_mapping_none(top, hint):
    with pytest.raises(DataError, match=rf"photo7 has values up to {top:g}.*{hint}"):
        map_depth(np.array([[0.0, top]]), "none", name="photo7")
    with pytest.raises(DataError, match=rf"up to {top:g}"):
        map_depth(np.array([[np.nan, top]]), "none")
    with pytest.raises(DataError, match="up to inf"):
        map_depth(np.array([[0.0, np.inf]]), "none")


def test_impossible_settings():
    with pytest.raises(ValueError, match="'sqrt' is not one of saturating, log, linear, minmax, none"):
        map_depth(np.ones((1, 1)), "sqrt")
    for settings in ({"scale": 0}, {"scale": math.inf}, {"far": -1}, {"scale": math.nan}):
        with pytest.raises(ValueError, match="must be above 0"):
            map_depth(np.ones((1, 1)), **settings)


# ---- normals

NORMALS = [(0, 0, 1), (0, 1, 0), (0.3, 0.2, 0.9), (-0.6, 0.1, 0.5), (0.9, 0, 0.3), (0, 1, 0.05)]


@pytest.mark.parametrize("normal", NORMALS)
@pytest.mark.parametrize("distance", [0.3, 1.5, 20])
def test_exact_on_planes(normal, distance):
    normal = np.array(normal) / np.linalg.norm(normal)
    depth = plane_depth(normal, distance)
    got = surface_normals(depth, FOV)
    seen = np.isfinite(depth)
    assert got.shape == (4, 40, 56) and got.dtype == np.float32
    assert np.array_equal(got[3], ~seen)
    assert (got[:3, ~seen] == 0).all()
    expected = -normal[:, None]  # towards the camera
    inside = seen & (depth < 200)  # further out 1 / z has lost its digits
    assert degrees_between(got[:3, inside].astype(float), np.broadcast_to(expected, (3, inside.sum()))).max() < 0.02
    assert np.abs(np.linalg.norm(got[:3, seen], axis=0) - 1).max() < 1e-6


def test_ground_normal_points_up():
    got = surface_normals(plane_depth((0, 1, 0), 1.5), FOV)  # y points down, so the ground has positive y
    ground = got[3] == 0
    assert ground[-1].all() and not ground[0].any()
    assert np.allclose(got[1, ground], -1, atol=1e-4)


def sphere_depth(centre_z=3.0, radius=1.0, size=224):
    direction = rays(size, size)
    # |t d - c|^2 = r^2 with c = (0, 0, centre_z)
    a, b = (direction**2).sum(0), -2 * centre_z
    with np.errstate(invalid="ignore"):
        t = (-b - np.sqrt(b * b - 4 * a * (centre_z**2 - radius**2))) / (2 * a)
    return np.where(np.isnan(t), np.inf, t), direction


def sphere_errors(size):
    """Angle to the true normal and the turn of the surface over one pixel, in degrees, for every pixel of a sphere."""
    depth, direction = sphere_depth(size=size)
    got = surface_normals(depth, FOV)
    seen = np.isfinite(depth)
    assert np.array_equal(got[3] == 0, seen)
    assert (got[:3] * direction).sum(0)[seen].max() < 0  # all face the camera
    points = direction[:, seen] * depth[seen]
    expected = points - np.array([0, 0, 3.0])[:, None]  # radius 1
    facing = -(expected * points).sum(0) / np.linalg.norm(points, axis=0)
    pixel = depth[seen] * 2 * math.tan(math.radians(FOV) / 2) / size
    return degrees_between(got[:3, seen].astype(float), expected), np.degrees(pixel / facing), facing


def test_close_on_spheres():
    error, turn, facing = sphere_errors(224)
    # one-sided differences tell the slope half a pixel off along each axis
    assert (error < turn)[facing > 0.3].all()
    finer, _, _ = sphere_errors(448)
    assert np.median(finer) < 0.55 * np.median(error)


def test_normals_do_not_lean_over_depth_edges():
    """A box before a wall before the sky: every pixel keeps the normal of its own plane."""
    depth = np.full((30, 30), np.inf)
    depth[5:25, 3:27] = 10
    depth[10:20, 8:20] = 2
    got = surface_normals(depth, FOV)
    assert np.allclose(got[2][depth < np.inf], -1, atol=1e-5)


def test_a_lone_pixel_faces_along_the_axis():
    depth = np.full((5, 5), np.inf)
    depth[2, 2] = 3
    got = surface_normals(depth, FOV)
    assert np.allclose(got[:, 2, 2], [0, 0, -1, 0], atol=1e-6) and got[3].sum() == 24


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
def test_thin_maps(shape):
    got = surface_normals(np.full(shape, 4.0), FOV)
    assert np.allclose(got[:3], np.array([0, 0, -1])[:, None, None], atol=0.9) and (got[3] == 0).all()
    assert np.isfinite(got).all()


@pytest.mark.parametrize("normal", NORMALS[:5])
def test_holes_leave_the_normals_of_planes_exact(normal):
    """Every known pixel with a known neighbour along both axes keeps its normal."""
    normal = np.array(normal) / np.linalg.norm(normal)
    depth = plane_depth(normal, 1.5)
    holes = np.random.default_rng(0).random(depth.shape) < 0.3
    got = surface_normals(np.where(holes, np.nan, depth), FOV)
    assert np.isnan(got[:, holes]).all() and np.isfinite(got[:, ~holes]).all()
    seen = np.isfinite(depth) & ~holes
    padded = np.pad(seen, 1)
    both = seen & (padded[1:-1, 2:] | padded[1:-1, :-2]) & (padded[2:, 1:-1] | padded[:-2, 1:-1]) & (depth < 200)
    assert both.sum() > 300
    expected = np.broadcast_to(-normal[:, None], (3, both.sum()))
    assert degrees_between(got[:3, both].astype(float), expected).max() < 0.02


def test_all_sky_and_far():
    assert np.array_equal(surface_normals(np.full((4, 4), np.inf), FOV)[3], np.ones((4, 4)))
    depth = np.full((6, 6), 5.0)
    depth[:3] = 80
    assert np.array_equal(surface_normals(depth, FOV, far=80)[3], depth == 80)
    assert surface_normals(depth, FOV)[3].sum() == 0


@pytest.mark.parametrize(("value", "found"), [(0.0, "depth 0"), (-1.0, "negative")])
def test_normals_of_impossible_depth(value, found):
    depth = np.ones((4, 4))
    depth[1, 2] = value
    with pytest.raises(DataError, match=rf"photo3 has .*{found}"):
        surface_normals(depth, FOV, name="photo3")


@pytest.mark.parametrize("fov_deg", [0, 180, -5])
def test_impossible_field_of_view(fov_deg):
    with pytest.raises(ValueError, match="between 0 and 180"):
        surface_normals(np.ones((4, 4)), fov_deg)


# ---- maps for views


class PlaneSplit:
    names = ("road",)

    def __init__(self, fov_deg):
        self.known = fov_deg

    def __len__(self):
        return 1

    def image(self, index):
        return np.zeros((40, 56, 3), np.uint8)

    def label(self, index):
        return None

    def depth(self, index):
        return plane_depth((0, 1, 0), 1.5).astype(np.float32)

    def fov_deg(self, index):
        return self.known


def test_maps_reach_the_views_at_the_size_of_the_grid():
    split = PlaneSplit(FOV)

    def source(split, index):
        return split.depth(index)

    maps = {"depth": MappedDepth(split, source), "normals": Normals(split, source, fov_deg=20)}
    view = Views(split, (40, 56), maps=maps, map_size=(5, 7)).load(0)
    mapped = map_depth(split.depth(0)).reshape(5, 8, 7, 8).mean((1, 3))
    assert np.allclose(view.maps["depth"][0].numpy(), mapped, atol=1e-6)
    assert view.maps["normals"].shape == (4, 5, 7)
    assert np.allclose(view.maps["normals"][:, -1].numpy(), np.array([0, -1, 0, 0])[:, None], atol=1e-4)


@pytest.mark.parametrize("known", [FOV, None])
def test_field_of_view_of_the_data_set_goes_first(known):
    depth = plane_depth((0.5, 0.2, 0.8), 3)
    got = Normals(PlaneSplit(known), lambda split, index: depth, fov_deg=30)(0)
    assert np.array_equal(got, surface_normals(depth, known or 30))
    assert not np.allclose(got, surface_normals(depth, 50), atol=0.01)


def test_maps_name_the_photo():
    split = PlaneSplit(FOV)
    for kind in (MappedDepth, Normals):
        with pytest.raises(DataError, match="the depth of road has negative depth"):
            kind(split, lambda split, index: np.full((40, 56), -1.0))(0)


def test_cells_of_views_are_unknown_if_most_of_their_pixels_are():
    split = PlaneSplit(FOV)
    depth = np.full((40, 56), 5.0, np.float32)
    depth[:8, :8] = np.nan
    depth[:8, 8:12] = np.nan  # half of a cell
    maps = {kind.__name__: kind(split, lambda *_: depth) for kind in (MappedDepth, Normals)}
    for interpolation in ("antialias", "nearest"):
        view = Views(split, (40, 56), interpolation=interpolation, maps=maps, map_size=(5, 7)).load(0)
        for values in view.maps.values():
            unknown = values.isnan()
            assert unknown[:, 0, 0].all() and unknown.sum() == len(values)
        assert torch.allclose(view.maps["MappedDepth"][0].flatten()[1:], torch.tensor(0.5))
