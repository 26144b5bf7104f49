"""Sizes, windows and blending of photos of any shape; kinds of images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from depthg.inference.windows import LONGEST, NARROWEST, OVERLAP, as_rgb, blend, cut, layout, scaled

SIDES = st.integers(1, 3000)


@settings(max_examples=200, deadline=None)
@given(st.tuples(SIDES, SIDES), st.none() | st.integers(32, 700), st.sampled_from([(8, 32), (8, 8), (14, 14)]))
def test_windows_cover_every_cell_and_fit_the_network(photo, window, step):
    stride, multiple = step
    plan = layout(photo, (224, 320), window, stride, multiple)
    assert all(n % multiple == 0 and 0 < n <= side for n, side in zip(plan.window, plan.size, strict=True))
    covered = np.zeros([n // stride for n in plan.size], int)
    assert all(n % stride == 0 for n in plan.size)
    for top, left in plan.corners:
        assert top % stride == 0 and left % stride == 0
        assert top + plan.window[0] <= plan.size[0] and left + plan.window[1] <= plan.size[1]
        covered[top // stride :, left // stride :][: plan.window[0] // stride, : plan.window[1] // stride] += 1
    assert covered.min() >= 1
    for axis in (0, 1):
        starts = sorted({corner[axis] for corner in plan.corners})
        gaps = np.diff(starts)
        assert (gaps <= plan.window[axis] * (1 - OVERLAP) + stride).all(), "neighbours overlap"


def test_resizing_covers_the_evaluation_size_and_keeps_the_aspect():
    plan = layout((720, 960), (224, 224), None, 8, 32)
    assert (plan.size, plan.window, plan.corners) == ((224, 288), (224, 288), ((0, 0),))
    assert layout((480, 480), (320, 320), None, 8, 8).size == (320, 320)
    assert layout((50, 40), (320, 320), None, 8, 8).size == (400, 320), "small photos are enlarged"


def test_panoramas_are_cut_and_degenerate_photos_stay_small():
    plan = layout((200, 4000), (224, 224), None, 8, 32)
    assert plan.size == (224, 4480) and plan.window == (224, LONGEST * 224) and len(plan.corners) == 9
    plan = layout((1, 5000), (224, 224), None, 8, 32)
    assert plan.size == (32, NARROWEST * 224)


def test_windows_keep_the_resolution_of_the_photo():
    plan = layout((720, 960), (224, 224), 230, 8, 32)
    assert plan.size == (720, 960) and plan.window == (224, 224)
    assert layout((100, 960), (224, 224), 230, 8, 32).size == (96, 960), "a short side is one window"
    assert layout((721, 963), (224, 224), 10_000, 8, 32).corners == ((0, 0),)


def test_blending_of_agreeing_windows_changes_nothing():
    whole = torch.randn(3, 20, 31)
    corners = [(top, left) for top in (0, 4, 8) for left in (0, 9, 19)]
    parts = torch.stack([whole[:, top : top + 12, left : left + 12] for top, left in corners])
    torch.testing.assert_close(blend(parts, corners, (20, 31)), whole)
    assert blend(parts[:1], corners[:1], (12, 12)) is not None


def test_blending_weighs_the_middle_of_a_window_more_than_its_edge():
    parts = torch.stack([torch.zeros(1, 1, 4), torch.ones(1, 1, 4)])
    assert blend(parts, [(0, 0), (0, 2)], (1, 6))[0, 0].tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1])


def test_cutting_gives_views():
    plan = layout((300, 400), (224, 224), 128, 8, 32)
    image = np.arange(plan.size[0] * plan.size[1] * 3, dtype=np.int64).reshape(*plan.size, 3)
    windows = cut(image, plan)
    assert len(windows) == len(plan.corners) and all(np.shares_memory(window, image) for window in windows)
    top, left = plan.corners[-1]
    assert (windows[-1] == image[top:, left:]).all() and windows[-1].shape == (*plan.window, 3)


def test_scaling():
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 20:] = 200
    assert scaled(image, (40, 40), "antialias") is image
    assert set(np.unique(scaled(image, (7, 7), "nearest"))) == {0, 200}
    assert 0 < scaled(image, (7, 7), "antialias")[0, 3, 0] < 200


@pytest.mark.parametrize(
    "size, to", [((90, 121), (32, 64)), ((20, 30), (64, 96)), ((300, 7), (96, 32)), ((1, 1), (32, 32))]
)
def test_scaling_is_pillows_up_to_a_level(size, to):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(to[::-1], Image.Resampling.BILINEAR))
    image.flags.writeable = False
    flipped = np.ascontiguousarray(image[::-1])[::-1]
    for array in (image, flipped):
        found = scaled(array, to, "antialias")
        assert found.shape == (*to, 3) and found.dtype == np.uint8 and found.flags.c_contiguous
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_all_kinds_of_images_give_the_same_pixels(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for image in (
        tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(array), Image.open(tmp_path / "a.png"), array,
        tensor, tensor.float() / 255, tensor.double() / 255,
    ):  # fmt: skip
        assert (as_rgb(image) == array).all()


def test_pillow_images_of_any_mode_and_rotation():
    grey = Image.fromarray(np.array([[0, 255]], np.uint8))
    assert as_rgb(grey).tolist() == [[[0] * 3, [255] * 3]]
    assert as_rgb(Image.new("RGBA", (2, 1), (255, 0, 0, 0))).tolist() == [[[255] * 3] * 2], "transparent is white"
    assert as_rgb(Image.fromarray(np.array([[65535, 0]], np.uint16))).tolist() == [[[255] * 3, [0] * 3]]
    turned = Image.new("RGB", (5, 2))
    turned.getexif()[0x0112] = 6
    assert as_rgb(turned).shape == (5, 2, 3)


@pytest.mark.parametrize(
    "image, error",
    [
        (np.zeros((4, 4), np.uint8), ValueError), (np.zeros((4, 4, 4), np.uint8), ValueError),
        (np.zeros((0, 4, 3), np.uint8), ValueError), (np.zeros((4, 4, 3)), TypeError),
        (torch.zeros(4, 4, 3), ValueError), (torch.full((3, 4, 4), 1.5), ValueError),
        (torch.full((3, 4, 4), float("nan")), ValueError), (torch.zeros(3, 4, 4, dtype=torch.int64), TypeError),
        ([1, 2], TypeError), (None, TypeError),
    ],
)  # fmt: skip
def test_what_is_no_image(image, error):
    with pytest.raises(error):
        as_rgb(image)
