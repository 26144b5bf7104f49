"""Frames: the whole photo at sides that fit the backbone, and everything aligned."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthg.data import Frames, Views
from depthg.data.frames import frame_size
from depthg.data.transforms import Window, resize_area, resize_nearest

PHOTOS = [(40, 60), (61, 43), (50, 50), (33, 200), (9, 8)]


class ArraySplit:
    """Photos, labels and maps whose pixels hold their own coordinates."""

    def __init__(self, shapes):
        self.shapes, self.names = shapes, [f"photo{i}" for i in range(len(shapes))]

    def __len__(self):
        return len(self.shapes)

    def image(self, index):
        height, width = self.shapes[index]
        rows, columns = np.indices((height, width))
        return np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)

    def size(self, index):
        return self.shapes[index]

    def label(self, index):
        return np.indices(self.shapes[index])[0].astype(np.int64)

    def map(self, index):
        return (np.indices(self.shapes[index]) + 0.5).astype(np.float32)


@given(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.none() | st.integers(1, 600), st.sampled_from([1, 8, 14])
)
def test_sides_are_the_nearest_multiples(photo, side, multiple):
    scale = 1 if side is None else side / min(photo)
    for got, given_side in zip(frame_size(photo, side, multiple), photo, strict=True):
        assert got % multiple == 0 and got >= multiple
        assert got == multiple or abs(got - given_side * scale) <= multiple / 2 + 1e-6


def test_sizes_people_expect():
    assert frame_size((1024, 2048), 320, 8) == (320, 640)
    assert frame_size((480, 640), 320, 16) == (320, 432)
    assert frame_size((360, 480), None, 8) == (360, 480)
    assert frame_size((375, 500), None, 14) == (378, 504)
    assert frame_size((2, 3), None, 8) == (8, 8)


@pytest.mark.parametrize("side", [None, 24, 64])
@pytest.mark.parametrize("index", range(len(PHOTOS)))
def test_image_label_and_map_show_the_whole_photo(index, side):
    split = ArraySplit(PHOTOS)
    frames = Frames(split, side, 8, maps={"where": split.map}, map_stride=4)
    size, photo = frames.frame_size(index), PHOTOS[index]
    view = frames.load(index)
    assert view.image.shape == (3, *size) and view.label.shape == size
    assert view.maps["where"].shape == (2, size[0] // 4, size[1] // 4)
    for axis in (0, 1):
        shape = (-1, 1) if axis == 0 else (1, -1)
        step = photo[axis] / size[axis]
        centres = ((np.arange(size[axis]) + 0.5) * step).reshape(shape)
        inner = slice(1, -1)  # antialias has less to average at the border
        error = view.image[axis].numpy() + 0.5 - np.broadcast_to(centres, size)
        assert np.abs(error[inner, inner]).max() <= 0.51 + step / 2
        if axis == 0:
            assert np.array_equal(view.label.numpy(), np.broadcast_to(np.floor(centres + 1e-9), size))
        cells = ((np.arange(size[axis] // 4) + 0.5) * 4 * step).reshape(shape)
        where = view.maps["where"][axis].numpy()
        assert np.abs(where - cells).max() <= 0.5 / max(4 * step, 1) + 1e-3


def test_a_photo_that_fits_is_untouched():
    split = ArraySplit([(16, 24)])
    for interpolation in ("antialias", "nearest"):
        view = Frames(split, None, 8, interpolation, maps={"where": split.map}).load(0)
        assert np.array_equal(view.image.numpy(), split.image(0).transpose(2, 0, 1))
        assert np.array_equal(view.label.numpy(), split.label(0))
        assert np.allclose(view.maps["where"].numpy(), split.map(0))


def test_interpolation_is_that_of_views():
    split = ArraySplit([(61, 43)])
    window = Window((0, 0, 61, 43), (0, 0, 61, 43))
    smooth = Frames(split, 24, 8, maps={"where": split.map}).load(0)
    picked = Frames(split, 24, 8, "nearest", maps={"where": split.map}).load(0)
    assert np.array_equal(picked.image.numpy(), resize_nearest(split.image(0), window, (32, 24)).transpose(2, 0, 1))
    assert np.allclose(smooth.maps["where"].numpy(), resize_area(split.map(0), window, (32, 24)))
    assert not torch.equal(smooth.image, picked.image) and torch.equal(smooth.label, picked.label)


def test_frame_and_view_agree_where_the_shape_does():
    split = ArraySplit([(48, 80)])
    frame, view = Frames(split, 24, 8).load(0), Views(split, (24, 40)).load(0)
    assert torch.equal(frame.image, view.image) and torch.equal(frame.label, view.label)


def test_list_of_frames():
    frames = Frames(ArraySplit(PHOTOS), 24, 8)
    assert len(frames) == len(PHOTOS) and frames.photo(3) == 3 and frames.names == frames.split.names
    assert len({frames.load(view).image.shape for view in range(len(PHOTOS))}) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 0}, "side=0"),
        ({"multiple": 0}, "multiple=0"),
        ({"map_stride": 3}, "multiple=8 .* map_stride=3"),
        ({"interpolation": "cubic"}, "interpolation='cubic'"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        Frames(ArraySplit(PHOTOS), **{"side": 24, "multiple": 8} | options)
