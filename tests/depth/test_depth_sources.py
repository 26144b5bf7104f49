"""Depth sources: the data set's own, folders of files in every format, and the flat-road prior."""

import math
import warnings

import numpy as np
import pytest
from PIL import Image

from depthg.data.base import FileSplit, Subset
from depthg.data.files import DataError
from depthg.depth.sources import DatasetDepth, FolderDepth, GroundPlane, depth_source, focal_pixels
from depthg.depth.units import check_unit, read_made_by, write_unit

SHAPE = (6, 8)
DEPTH = np.linspace(1, 9, 48, dtype=np.float32).reshape(SHAPE)


def make_split(root, names=("a.jpg", "sub/b.png")):
    photos = []
    for name in names:
        path = root / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SHAPE[::-1]).save(path)
        photos.append(path)
    (root / "depth" / "sub").mkdir(parents=True, exist_ok=True)
    return FileSplit(photos, root=root / "photos"), root / "depth"


def test_dataset_depth(tmp_path):
    split, _ = make_split(tmp_path)
    with pytest.raises(ValueError, match=r"no depth for a: pass depth\.source=folder, ground_plane or none"):
        DatasetDepth()(split, 0)
    split.depth = lambda index: DEPTH + index
    assert np.array_equal(depth_source("dataset")(split, 1), DEPTH + 1)


def test_npy_metres_by_relative_path(tmp_path):
    split, root = make_split(tmp_path)
    sky = DEPTH.copy()
    sky[0] = np.inf
    np.save(root / "a.npy", sky.astype(np.float64))
    np.save(root / "sub" / "b.npy", DEPTH.astype(np.float16))
    source = FolderDepth(root)
    assert source(split, 0).dtype == np.float32 and np.array_equal(source(split, 0), sky)
    assert np.allclose(source(split, 1), DEPTH, atol=5e-3)
    assert source(Subset(split, [1]), 0).shape == SHAPE


def test_by_stem_in_a_flat_folder(tmp_path):
    split, root = make_split(tmp_path)
    np.save(root / "b.npy", DEPTH)
    assert np.array_equal(FolderDepth(root)(split, 1), DEPTH)


def test_one_file_for_two_photos_is_refused(tmp_path):
    split, root = make_split(tmp_path, ("a.jpg", "sub/a.jpg", "sub/b.jpg", "sub/b.png"))
    np.save(root / "a.npy", DEPTH)
    assert FolderDepth(root)(Subset(split, [0]), 0).shape == SHAPE
    np.save(root / "sub" / "b.npy", DEPTH)
    source = FolderDepth(root)
    assert source(split, 0).shape == SHAPE  # its own relative path
    with pytest.raises(DataError, match=r"depth/a\.npy fits 2 photos, sub/a\.jpg among them"):
        source(split, 1)
    with pytest.raises(DataError, match=r"sub/b\.npy fits 2 photos"):
        source(split, 2)


def test_two_files_for_one_photo_are_refused(tmp_path):
    split, root = make_split(tmp_path)
    np.save(root / "a.npy", DEPTH)
    Image.fromarray(DEPTH).save(root / "a.tif")
    with pytest.raises(DataError, match=r"a\.npy and \S*a\.tif are both depth maps of a\.jpg"):
        FolderDepth(root)(split, 0)


def test_missing_map(tmp_path):
    split, root = make_split(tmp_path)
    with pytest.raises(DataError, match=r"photo sub/b\.png has no depth map: .*depth/sub/b nor \S*depth/b with"):
        FolderDepth(root)(split, 1)


def test_map_of_another_size_names_both(tmp_path):
    split, root = make_split(tmp_path)
    np.save(root / "a.npy", DEPTH[:5])
    with pytest.raises(DataError, match=r"depth/a\.npy is 5 x 8 .*photo a\.jpg is 6 x 8: resize"):
        FolderDepth(root)(split, 0)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_integers_with_a_unit(tmp_path, suffix):
    split, root = make_split(tmp_path)
    millimetres = np.rint(DEPTH * 1000).astype(np.uint16)
    Image.fromarray(millimetres).save(root / f"a{suffix}")
    assert np.allclose(FolderDepth(root, metres_per_unit=0.001)(split, 0), millimetres / 1000)
    millimetres[0, :3] = 0
    Image.fromarray(millimetres).save(root / f"a{suffix}")
    got = FolderDepth(root, metres_per_unit=0.001)(split, 0)
    assert np.isnan(got[0, :3]).all() and np.isfinite(got).sum() == got.size - 3


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_integers_without_a_unit_are_shares(tmp_path, dtype, top):
    split, root = make_split(tmp_path)
    values = np.linspace(0, top, 48).astype(dtype).reshape(SHAPE)
    Image.fromarray(values).save(root / "a.png")
    got = depth_source("folder", root=root, mapping="none")(split, 0)
    assert got.dtype == np.float32 and np.allclose(got, values / top) and got.max() == 1
    with pytest.raises(DataError, match=r"a\.png holds integers of unknown unit: pass depth\.metres_per_unit"):
        depth_source("folder", root=root, mapping="saturating")(split, 0)


def test_float_tiff(tmp_path):
    split, root = make_split(tmp_path)
    Image.fromarray(DEPTH).save(root / "a.tiff")
    assert np.array_equal(FolderDepth(root)(split, 0), DEPTH)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((6, 8, 3)), r"shape \(6, 8, 3\)"),
        (np.zeros(SHAPE, bool), "dtype bool"),
        (np.array([["a"]]), "dtype <U1"),
    ],
)
def test_bad_arrays_name_the_file(tmp_path, values, message):
    split, root = make_split(tmp_path)
    np.save(root / "a.npy", values)
    with pytest.raises(DataError, match=rf"a\.npy has .*{message}"):
        FolderDepth(root)(split, 0)


def test_damaged_files_are_named(tmp_path):
    split, root = make_split(tmp_path)
    (root / "a.npy").write_bytes(b"\x93NUMPY nonsense")
    with pytest.raises(DataError, match=r"cannot read the depth map \S*a\.npy"):
        FolderDepth(root)(split, 0)
    np.save(root / "a.npy", np.array([{"pickled": 1}], object))
    with pytest.raises(DataError, match=r"a\.npy"):
        FolderDepth(root)(split, 0)
    (root / "a.npy").unlink()
    Image.new("RGB", SHAPE[::-1]).save(root / "a.png")
    with pytest.raises(DataError, match=r"a\.png.*mode 'RGB'"):
        FolderDepth(root)(split, 0)


def test_folder_settings(tmp_path):
    with pytest.raises(ValueError, match=r"needs depth\.root=DIR"):
        depth_source("folder")
    with pytest.raises(FileNotFoundError, match=r"depth\.root=\S*nowhere is no folder"):
        depth_source("folder", root=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"metres_per_unit=0 must be above 0"):
        FolderDepth(tmp_path, metres_per_unit=0)


def test_the_unit_beside_the_maps_is_read(tmp_path):
    """Written by python -m depthg.depth; a given unit wins."""
    split, root = make_split(tmp_path)
    Image.fromarray(np.rint(DEPTH * 256).astype(np.uint16)).save(root / "a.png")
    write_unit(root, True, 1 / 256, {"network": "x"})
    source = depth_source("folder", root=root)
    assert source.metric is True and np.allclose(source(split, 0), DEPTH, atol=1 / 512)
    given = depth_source("folder", root=root, metres_per_unit=1 / 128)
    assert given.metric is None and np.allclose(given(split, 0), 2 * DEPTH, atol=1 / 256)
    write_unit(root, False, None, {})
    relative = depth_source("folder", root=root, mapping="none")
    assert relative.metric is False and relative(split, 0).max() <= 1
    assert read_made_by(root) == {} and read_made_by(tmp_path) is None


BAD_UNITS = ("{", "[]", "{}", '{"metric": 1, "metres_per_unit": null}', '{"metric": true, "metres_per_unit": 0}')


@pytest.mark.parametrize("text", BAD_UNITS)
def test_a_damaged_unit_is_named(tmp_path, text):
    _, root = make_split(tmp_path)
    (root / "depth.json").write_text(text)
    with pytest.raises(DataError, match=r"depth\.json is damaged .*make the maps again with python -m depthg\.depth"):
        FolderDepth(root)


def test_what_a_source_says_for_cache_keys(tmp_path):
    split, root = make_split(tmp_path)
    np.save(root / "a.npy", DEPTH)
    split = Subset(split, [0])
    before = FolderDepth(root).describe(split)
    assert before["files"][0].startswith("a.npy ") and before == FolderDepth(root).describe(split)
    np.save(root / "a.npy", np.pad(DEPTH, 1))
    write_unit(root, True, None, {})
    assert FolderDepth(root).describe(split) != before
    assert DatasetDepth(relative=True).describe(split) is None and GroundPlane().describe(split) is None


def test_caches_that_may_hold_zeros_as_depths_are_not_used_again(tmp_path):
    """Zeros among floats in metres were depths once; those among integers never were."""
    split, root = make_split(tmp_path, ("a.jpg",))
    Image.fromarray(np.ones(SHAPE, np.uint16)).save(root / "a.png")
    old = {"files", "unit"}
    assert FolderDepth(root, 0.001).describe(split).keys() == old
    (root / "a.png").unlink()
    np.save(root / "a.npy", DEPTH)
    assert FolderDepth(root).describe(split).keys() == old | {"zeros"}
    assert FolderDepth(root, relative=True).describe(split).keys() == old
    assert DatasetDepth().describe(split) == {"zeros": "unknown"}


NOT_MEASURED = (0.0, -1.0, -9999.0, np.nan, -np.inf)


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_what_sensors_write_where_they_measured_nothing_is_unknown(tmp_path, suffix):
    split, root = make_split(tmp_path)
    values = DEPTH.copy()
    values[0, :5], values[0, 5] = NOT_MEASURED, np.inf
    np.save(root / "a.npy", values) if suffix == ".npy" else Image.fromarray(values).save(root / f"a{suffix}")
    expected = values.copy()
    expected[0, :5] = np.nan
    for mapping in ("saturating", "minmax"):
        assert np.array_equal(depth_source("folder", root=root, mapping=mapping)(split, 0), expected, equal_nan=True)
    split.depth = lambda index: values
    assert np.array_equal(depth_source("dataset")(split, 0), expected, equal_nan=True)


def test_in_zero_to_one_only_nan_is_unknown(tmp_path):
    split, root = make_split(tmp_path)
    values = DEPTH / 10
    values[0, :2] = 0, np.nan
    np.save(root / "a.npy", values)
    split.depth = lambda index: values
    for source in ("folder", "dataset"):
        got = depth_source(source, root=root, mapping="none")(split, 0)
        assert np.array_equal(got, values, equal_nan=True) and got[0, 0] == 0
    write_unit(root, False, None, {})  # maps of python -m depthg.depth by a network without scale
    assert depth_source("folder", root=root, mapping="minmax")(split, 0)[0, 0] == 0
    values[0, 0] = -0.5
    np.save(root / "a.npy", values)
    with pytest.raises(DataError, match=r"a\.npy has negative depth \(-0\.5\)"):
        depth_source("folder", root=root, mapping="none")(split, 0)


def test_maps_with_holes_are_resized_by_the_nearest_pixel(tmp_path):
    values = np.random.default_rng(0).uniform(1, 9, (40, 60)).astype(np.float32)
    values[:4] = 0
    np.save(tmp_path / "a.npy", values)
    with pytest.warns(UserWarning, match=r"40 x 60 to 20 x 30 \(nearest pixel\)"):
        depth = FolderDepth(tmp_path)(Photos((20, 30)), 0)
    assert np.isnan(depth[:2]).all() and np.array_equal(depth[2:], values[5::2, 1::2])


def test_sources_and_what_can_use_them(tmp_path):
    _, root = make_split(tmp_path)
    unknown = FolderDepth(root)
    for mapping in ("saturating", "none"):
        check_unit(unknown, mapping, "euclidean")
        check_unit(DatasetDepth(), mapping, "product")
    check_unit(GroundPlane(), "linear", "normals")
    with pytest.raises(ValueError, match=r"expects values in \[0, 1\], but depth\.source=ground_plane gives metres"):
        check_unit(GroundPlane(), "none", "product")
    write_unit(root, False, None, {})
    for relation in ("product", "centered", "gaussian", "unit"):
        check_unit(FolderDepth(root), "none", relation)
    for relation in ("normals", "inclination", "euclidean"):
        with pytest.raises(
            ValueError, match=rf"relation={relation} needs depth in metres, but depth\.root=\S*depth gives"
        ):
            check_unit(FolderDepth(root), "none", relation)
    with pytest.raises(ValueError, match=r"depth\.mapping=log needs metres, but depth\.root=\S*depth gives relative"):
        check_unit(FolderDepth(root), "log", "product")


def test_network_source_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; the depth network takes a folder"):
        depth_source("model", model=tmp_path)


# ---- ground plane


def test_ground_plane_by_hand(tmp_path):
    split, _ = make_split(tmp_path)
    depth = depth_source("ground_plane", camera_height=1.5, horizon=0.5, fov_deg=90)(split, 0)
    # 8 pixels wide at 90 degrees: focal length 4 pixels; horizon between rows 2 and 3
    assert depth.shape == SHAPE and depth.dtype == np.float32
    assert np.isinf(depth[:3]).all()
    assert np.allclose(depth[3:], np.array([1.5 * 4 / 0.5, 1.5 * 4 / 1.5, 1.5 * 4 / 2.5])[:, None])


def test_ground_plane_is_a_plane_at_the_camera_height(tmp_path):
    split, _ = make_split(tmp_path)
    depth = GroundPlane(1.7, 0.3, 60)(split, 1)
    focal = 8 / (2 * math.tan(math.radians(30)))
    rows = np.arange(6) + 0.5 - 0.3 * 6
    below = rows > 0
    assert np.allclose(depth[below] * rows[below, None] / focal, 1.7)  # y = z * v


def test_ground_plane_takes_the_camera_of_the_data_set(tmp_path):
    split, _ = make_split(tmp_path)
    split.fov_deg = lambda index: 90.0
    assert np.allclose(GroundPlane(1.5, 0.5, 20)(split, 0)[5], 1.5 * 4 / 2.5)


def test_horizon_on_a_row_is_sky(tmp_path):
    split, _ = make_split(tmp_path)
    assert np.isinf(GroundPlane(1.5, 2.5 / 6, 60)(split, 0)[2]).all()
    assert np.isfinite(GroundPlane(1.5, 0.0, 60)(split, 0)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"camera_height": 0}, "camera_height=0"),
        ({"horizon": 1.0}, r"horizon=1\.0"),
        ({"horizon": -0.1}, r"horizon=-0\.1"),
        ({"fov_deg": 180}, "fov_deg=180"),
    ],
)
def test_impossible_ground_planes(settings, message):
    with pytest.raises(ValueError, match=message):
        depth_source("ground_plane", **settings)


def test_no_source_and_unknown_source():
    assert depth_source("none") is None
    with pytest.raises(ValueError, match=r"depth\.source='ground' is not one of .*did you mean 'ground_plane'"):
        depth_source("ground")


def test_focal_pixels():
    assert focal_pixels(100, 90) == pytest.approx(50)
    with pytest.raises(ValueError):
        focal_pixels(100, math.nan)


class Photos:
    """A split of photos of one size."""

    names = relative = ("a.png",)

    def __init__(self, size):
        self._size = size

    def __len__(self):
        return 1

    def size(self, index):
        return self._size


@pytest.mark.parametrize(
    ("photo", "shape"), [((1440, 1920), (192, 256)), ((480, 641), (240, 320)), ((13, 20), (26, 40))]
)
def test_maps_of_the_photo_s_aspect_are_resized(tmp_path, photo, shape):
    values = np.random.default_rng(0).uniform(1, 9, shape).astype(np.float32)
    values[: shape[0] // 4] = np.inf
    np.save(tmp_path / "a.npy", values)
    source = FolderDepth(tmp_path)
    with pytest.warns(UserWarning, match=rf"from {shape[0]} x {shape[1]} to {photo[0]} x {photo[1]} \(nearest"):
        depth = source(Photos(photo), 0)
    rows, columns = (((np.arange(n) + 0.5) * small / n).astype(int) for n, small in zip(photo, shape, strict=True))
    assert depth.dtype == np.float32 and (depth == values[rows[:, None], columns]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source(Photos(photo), 0)  # said once


def test_larger_maps_without_sky_become_area_means(tmp_path):
    values = np.random.default_rng(0).uniform(1, 9, (40, 60)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    with pytest.warns(UserWarning, match=r"40 x 60 to 20 x 30 \(area means\)"):
        depth = FolderDepth(tmp_path)(Photos((20, 30)), 0)
    np.testing.assert_allclose(depth, values.reshape(20, 2, 30, 2).mean((1, 3)), rtol=1e-5)


@pytest.mark.parametrize(
    ("photo", "shape"), [((20, 30), (20, 31)), ((20, 30), (30, 20)), ((200, 300), (2, 3)), ((90, 160), (30, 40))]
)
def test_maps_of_another_aspect_are_refused(tmp_path, photo, shape):
    np.save(tmp_path / "a.npy", np.ones(shape, np.float32))
    with pytest.raises(DataError, match=rf"is {shape[0]} x {shape[1]} .* is {photo[0]} x {photo[1]}"):
        FolderDepth(tmp_path)(Photos(photo), 0)
