"""Views: geometry against coordinate images, resampling against written-out loops."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from depthg.data.files import DataError
from depthg.data.transforms import Views, Window, resize_area, resize_nearest, resize_then_crop, to_float

SIZES = [(40, 60), (61, 43), (50, 50), (33, 200), (8, 8), (17, 90)]
TARGETS = [(24, 32), (32, 24), (20, 20), (7, 50), (80, 64)]


class ArraySplit:
    """Photos held in memory; counts how often each is read."""

    def __init__(self, images, labels=None, maps=None):
        self.images, self.labels, self.maps = images, labels, maps
        self.names = [f"photo{i}" for i in range(len(images))]
        self.reads = [0] * len(images)

    def __len__(self):
        return len(self.images)

    def image(self, index):
        self.reads[index] += 1
        return self.images[index]

    def label(self, index):
        return None if self.labels is None else self.labels[index]

    def map(self, index):
        return self.maps[index]


def gain(n):
    """Grey levels per pixel of a ramp over n pixels, the more the finer a shift shows."""
    return 255 // n


def coordinate_split(height, width, axis):
    """Label and map hold index and centre of their own pixel along an axis, the image gain(n) times the index."""
    n = (height, width)[axis]
    along = np.arange(n)
    along = along[:, None] if axis == 0 else along[None, :]
    along = np.broadcast_to(along, (height, width))
    image = np.repeat((along[..., None] * gain(n)).astype(np.uint8), 3, axis=2)
    return ArraySplit([image], [along.astype(np.int64)], [along.astype(np.float32) + 0.5])


def expected_centres(photo, crop, target, axis):
    """Photo coordinates of the centres of the output cells: cover, centre, crop, written out."""
    top, left, height, width = crop
    scale = min(height / target[0], width / target[1])
    start = ((top + (height - target[0] * scale) / 2), (left + (width - target[1] * scale) / 2))[axis]
    return start + (np.arange(target[axis]) + 0.5) * scale, scale


def five_crops(height, width, ratio=0.5):
    h, w = int(height * ratio), int(width * ratio)
    down, right = height - h, width - w
    centre = (round(down / 2), round(right / 2))
    return [(0, 0, h, w), (0, right, h, w), (down, 0, h, w), (down, right, h, w), (*centre, h, w)]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("photo", SIZES)
@pytest.mark.parametrize("crop", ["none", "five"])
def test_image_label_and_map_stay_aligned(photo, target, crop):
    crops = [(0, 0, *photo)] if crop == "none" else five_crops(*photo)
    if min(crops[0][2:]) < 8:
        pytest.skip("smaller than the smallest crop")
    for axis in (0, 1):
        split = coordinate_split(*photo, axis)
        views = Views(split, target, crop, maps={"where": split.map})
        for number, window in enumerate(crops):
            centres, scale = expected_centres(photo, window, target, axis)
            view = views.load(number)
            shape = (-1, 1) if axis == 0 else (1, -1)
            grid = np.broadcast_to(centres.reshape(shape), target)
            low, high = window[axis], window[axis] + window[axis + 2]
            # label: the pixel that holds the centre
            index = view.label.numpy()
            assert (index <= grid + 1e-6).all() and (grid - 1e-6 <= index + 1).all()
            # map: the mean coordinate of a cell is its centre (up-sampled, that of the pixels it touches)
            where = view.maps["where"][0].numpy()
            slack = 1e-4 if scale >= 1 and float(scale).is_integer() else 0.5 / max(scale, 1) + 1e-4
            assert np.abs(where - grid).max() <= slack
            # image: a triangle around the centre, as wide as the scale, over the pixels of the crop
            pixels = np.arange(low, high)
            weights = np.maximum(0, 1 - np.abs(pixels + 0.5 - centres[:, None]) / max(scale, 1))
            mean = (weights * pixels).sum(1) / weights.sum(1)
            error = view.image[0].numpy() - mean.reshape(shape) * gain(photo[axis])
            assert np.abs(error).max() <= 0.51  # rounded to 8 bits
            assert torch.equal(view.image[0], view.image[2])


@pytest.mark.parametrize("photo", [(40, 60), (61, 43)])
@pytest.mark.parametrize("crop", ["none", "five"])
def test_centres_are_exact_to_a_fraction_of_a_pixel(photo, crop):
    """A map whose area average is its value at the centre (a ramp, averaged over whole pixels many times finer)."""
    fine = 16
    height, width = photo[0] * fine, photo[1] * fine
    rows = np.broadcast_to(((np.arange(height) + 0.5) / fine)[:, None], (height, width)).astype(np.float32)
    columns = np.broadcast_to(((np.arange(width) + 0.5) / fine)[None], (height, width)).astype(np.float32)
    both = np.stack([rows, columns])
    split = ArraySplit([np.zeros((height, width, 3), np.uint8)], maps=[both])
    views = Views(split, (24, 32), crop, maps={"where": split.map}, map_size=(12, 16))
    crops = [(0, 0, height, width)] if crop == "none" else five_crops(height, width)
    for number, window in enumerate(crops):
        where = views.load(number).maps["where"].numpy()
        window = tuple(value / fine for value in window)
        for axis, shape in ((0, (-1, 1)), (1, (1, -1))):
            centres, _ = expected_centres(photo, window, (12, 16), axis)
            assert np.abs(where[axis] - centres.reshape(shape)).max() < 0.01


def test_nearest_mode_reads_one_pixel_for_everything():
    for photo in SIZES:
        for axis in (0, 1):
            split = coordinate_split(*photo, axis)
            view = Views(split, (20, 24), interpolation="nearest", maps={"where": split.map}).load(0)
            centres, scale = expected_centres(photo, (0, 0, *photo), (20, 24), axis)
            shape = (-1, 1) if axis == 0 else (1, -1)
            expected = np.broadcast_to(np.floor(centres + 1e-9).reshape(shape), (20, 24))
            # The crop starts at a whole pixel of the resized photo, whose length is truncated; a centre
            # may lie on the edge of two pixels.
            assert np.abs(view.label.numpy() - expected).max() <= 1 + scale
            assert np.array_equal(view.image[1].numpy(), view.label.numpy() * gain(photo[axis]))
            assert np.array_equal(view.maps["where"][0].numpy(), view.label.numpy() + 0.5)


def resized_and_cropped(image, size):
    """Resize of the shorter side to ``size`` and centre crop, with the published rounding of both, by Pillow alone."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    long = int(size * long / short)
    image = image.resize((size, long) if width <= height else (long, size), Image.Resampling.NEAREST)
    top, left = round((image.height - size) / 2.0), round((image.width - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def odd_sizes():
    rng = np.random.default_rng(0)
    common = [(480, 640), (427, 640), (640, 428), (333, 500), (1024, 2048), (320, 320), (321, 320), (320, 323)]
    return common + [tuple(int(n) for n in rng.integers(8, 700, 2)) for _ in range(150)]


def test_nearest_is_resize_then_crop_pixel_by_pixel():
    """Every byte of photos and every label, at the sizes of both projects, of even and odd photos, tall and wide."""
    differ = 0
    for height, width in odd_sizes():
        rng = np.random.default_rng(height * width)
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        label = np.arange(height * width, dtype=np.int64).reshape(height, width)
        for size in (320, 224):
            view = Views(ArraySplit([image], [label]), (size, size), interpolation="nearest").load(0)
            expected = resized_and_cropped(Image.fromarray(image), size)
            assert np.array_equal(view.image.permute(1, 2, 0).numpy(), expected), (height, width, size)
            numbers = resized_and_cropped(Image.fromarray(label.astype(np.int32)), size)
            assert np.array_equal(view.label.numpy(), numbers), (height, width, size)
            whole = Window((0, 0, height, width), (0.0, 0.0, *expected.shape[:2]))
            assert np.array_equal(resize_then_crop(image, whole, (size, size)), expected)
            window = Views(ArraySplit([image]), (size, size))._window((height, width), 0, "photo")
            differ += not np.array_equal(resize_nearest(image, window, (size, size)), expected)
    assert differ > 100, "sampling the window itself reads other pixels"


def test_nearest_crops_of_five_are_resized_by_themselves():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (427, 641, 3), dtype=np.uint8)
    views = Views(ArraySplit([image]), (224, 224), "five", interpolation="nearest")
    for number, (top, left, height, width) in enumerate(five_crops(427, 641)):
        crop = Image.fromarray(image[top : top + height, left : left + width])
        assert np.array_equal(views.load(number).image.permute(1, 2, 0).numpy(), resized_and_cropped(crop, 224))


@pytest.mark.parametrize("size", [(320, 480), (480, 320), (96, 224)])
def test_nearest_covers_sizes_that_are_not_square(size):
    for height, width in odd_sizes()[:60]:
        image = np.zeros((height, width, 3), np.uint8)
        view = Views(ArraySplit([image]), size, interpolation="nearest").load(0)
        assert tuple(view.image.shape) == (3, *size)


def test_photo_of_the_target_size_is_untouched():
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (24, 32, 3), np.uint8), rng.integers(-1, 5, (24, 32))
    values = rng.random((3, 24, 32), np.float32)
    for interpolation in ("antialias", "nearest"):
        split = ArraySplit([image], [label], [values])
        view = Views(split, (24, 32), interpolation=interpolation, maps={"v": split.map}).load(0)
        assert view.image.dtype == torch.uint8 and view.label.dtype == torch.int64
        assert np.array_equal(view.image.numpy(), image.transpose(2, 0, 1))
        assert np.array_equal(view.label.numpy(), label)
        assert np.allclose(view.maps["v"].numpy(), values, atol=1e-6) and view.maps["v"].dtype == torch.float32


def test_antialias_averages_where_nearest_picks():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    split = ArraySplit([np.repeat(checks[..., None], 3, 2).astype(np.uint8)])
    smooth = Views(split, (16, 16)).load(0).image.float()
    picked = Views(split, (16, 16), interpolation="nearest").load(0).image.float()
    assert (smooth[:, 2:-2, 2:-2] - 127.5).abs().max() < 8
    assert set(picked.unique().tolist()) <= {0.0, 255.0}


def test_image_matches_scaling_the_whole_and_cutting():
    """The window in one step equals torch's antialiased resize and a centre crop, where that has whole pixels."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (60, 100, 3), np.uint8)
    got = Views(ArraySplit([image]), (30, 30)).load(0).image.float()
    whole = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    scaled = torch.nn.functional.interpolate(whole, (30, 50), mode="bilinear", antialias=True)[0]
    assert (got - scaled[:, :, 10:40]).abs().max() <= 1  # 8-bit rounding, twice in Pillow


# ---- resampling against loops


def area_loop(values, window, size):
    top, left, height, width = window.box
    crop = values[:, window.crop[0] : window.crop[0] + window.crop[2], window.crop[1] : window.crop[1] + window.crop[3]]
    out = np.zeros((len(values), *size))
    for i in range(size[0]):
        for j in range(size[1]):
            y0, y1 = top + i * height / size[0], top + (i + 1) * height / size[0]
            x0, x1 = left + j * width / size[1], left + (j + 1) * width / size[1]
            for y in range(int(y0), min(int(np.ceil(y1)), crop.shape[1])):
                for x in range(int(x0), min(int(np.ceil(x1)), crop.shape[2])):
                    share = (min(y1, y + 1) - max(y0, y)) * (min(x1, x + 1) - max(x0, x))
                    out[:, i, j] += crop[:, y, x].astype(np.float64) * share
    return out * size[0] * size[1] / (height * width)


WINDOWS = [
    Window((0, 0, 20, 30), (0, 0, 20, 30)),
    Window((0, 0, 20, 30), (0.3, 1.7, 18.9, 27.1)),
    Window((3, 5, 11, 13), (0, 2.25, 11, 8.5)),
    Window((9, 0, 11, 30), (1.5, 0, 8, 30)),
]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("size", [(1, 1), (4, 5), (7, 9), (20, 30), (33, 64)])
def test_area_average_is_exact(window, size):
    values = np.random.default_rng(2).random((4, 20, 30), np.float32) - 0.5
    got = resize_area(values, window, size)
    assert got.dtype == np.float32 and got.shape == (4, *size) and got.flags.c_contiguous
    assert np.abs(got - area_loop(values, window, size)).max() < 2e-6


def test_area_average_keeps_constants_range_and_mean():
    values = np.full((1, 37, 53), 1.0, np.float32)
    window = Window((0, 0, 37, 53), (0.1, 0.2, 36.7, 52.3))
    assert (resize_area(values, window, (9, 31)) == 1).all()  # not 1.0000001: the next step checks for [0, 1]
    values = np.random.default_rng(3).random((2, 37, 53), np.float32)
    whole = Window((0, 0, 37, 53), (0, 0, 37, 53))
    out = resize_area(values, whole, (8, 11))
    assert np.allclose(out.mean((1, 2)), values.mean((1, 2)), atol=1e-6)


def test_area_average_differs_from_adaptive_pooling():
    """Why it is written here: adaptive pooling rounds its cells outwards to whole pixels."""
    values = np.random.default_rng(4).random((1, 10, 10), np.float32)
    window = Window((0, 0, 10, 10), (0, 0, 10, 10))
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(values), (3, 3)).numpy()
    exact = area_loop(values, window, (3, 3))
    assert np.abs(pooled - exact).max() > 1e-3
    assert np.abs(resize_area(values, window, (3, 3)) - exact).max() < 1e-6


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("size", [(1, 1), (4, 5), (33, 64)])
def test_nearest_is_the_pixel_under_the_centre(window, size):
    values = np.arange(600).reshape(20, 30)
    got = resize_nearest(values, window, size)
    top, left, height, width = window.box
    for i in range(size[0]):
        for j in range(size[1]):
            y = window.crop[0] + int(top + (i + 0.5) * height / size[0])
            x = window.crop[1] + int(left + (j + 0.5) * width / size[1])
            assert got[i, j] == values[y, x]


# ---- the list of views


def plain_split(n=3, shape=(20, 24)):
    return ArraySplit([np.full((*shape, 3), i, np.uint8) for i in range(n)])


def test_list_of_views():
    views = Views(plain_split(), (8, 8))
    assert len(views) == 3 and [views.photo(i) for i in range(3)] == [0, 1, 2] and views.names == views.split.names
    five = Views(plain_split(), (8, 8), "five")
    assert len(five) == 15 and five.photo(4) == 0 and five.photo(5) == 1
    assert len(set(five.names)) == 15 and five.names[6] == "photo1_crop1"
    assert [int(five.load(i).image[0, 0, 0]) for i in (0, 4, 5, 14)] == [0, 0, 1, 2]
    view = views.load(1)
    assert view.image.shape == (3, 8, 8) and view.label is None and view.maps == {}


def test_order_of_the_five_crops():
    image = np.zeros((20, 40, 3), np.uint8)
    image[:10, 20:] = 1
    image[10:, :20] = 2
    image[10:, 20:] = 3
    views = Views(ArraySplit([image]), (10, 20), "five", interpolation="nearest")
    assert [views.load(i).image.unique().tolist() for i in range(5)] == [[0], [1], [2], [3], [0, 1, 2, 3]]


def test_crop_ratio():
    split = coordinate_split(40, 40, 0)
    view = Views(split, (30, 30), "five", crop_ratio=0.75).load(3)
    assert torch.equal(view.label[:, 0], torch.arange(10, 40))


def test_parts():
    split = coordinate_split(20, 30, 0)
    views = Views(split, (8, 8), "five", maps={"where": split.map})
    only_label = views.load(0, parts=("label",))
    assert only_label.image is None and only_label.maps == {} and only_label.label is not None
    only_map = views.load(0, parts=("maps",))
    assert only_map.image is None and only_map.label is None
    full = views.load(0)
    assert torch.equal(full.label, only_label.label) and torch.equal(full.maps["where"], only_map.maps["where"])
    with pytest.raises(ValueError, match="image, label, maps"):
        views.load(0, parts=("labels",))


def test_crops_of_a_photo_are_decoded_once_even_by_threads():
    split = plain_split(12, (40, 40))
    started = threading.Barrier(4, timeout=10)
    plain_image = split.image

    def slow_image(index):
        if index == 0:
            threading.Event().wait(0.05)
        return plain_image(index)

    split.image = slow_image
    views = Views(split, (8, 8), "five")

    def load(view):
        if view < 4:
            started.wait()
        return int(views.load(view).image[0, 0, 0])

    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(load, range(len(views))))
    assert values == [i // 5 for i in range(60)]
    assert split.reads[0] == 1 and sum(split.reads) < 24  # a thread that falls behind may find its photo gone


def test_map_functions_of_one_or_more_channels():
    split = plain_split(1)
    maps = {"flat": lambda i: np.ones((20, 24)), "deep": lambda i: np.ones((4, 20, 24), np.float16)}
    view = Views(split, (16, 16), maps=maps, map_size=(2, 3)).load(0)
    assert view.maps["flat"].shape == (1, 2, 3) and view.maps["deep"].shape == (4, 2, 3)
    assert all(value.dtype == torch.float32 and (value == 1).all() for value in view.maps.values())


def test_views_of_a_view_are_not_shared_memory():
    views = Views(plain_split(1), (20, 24), "five")
    views.load(0).image.fill_(9)
    assert (views.load(0).image == 0).all() and (views.split.images[0] == 0).all()
    assert pickle.loads(pickle.dumps(views.load(0))).image.shape == (3, 20, 24)


# ---- errors


def test_too_small_photo_is_named():
    split = ArraySplit([np.zeros((20, 24, 3), np.uint8), np.zeros((14, 24, 3), np.uint8)])
    assert Views(split, (8, 8)).load(1).image.shape == (3, 8, 8)
    five = Views(split, (8, 8), "five")
    five.load(0)
    with pytest.raises(DataError, match=r"photo photo1 is 14 x 24 .*ratio 0\.5 are 7 x 12, less than the 8.*crop=none"):
        five.load(5)
    tiny = ArraySplit([np.zeros((30, 7, 3), np.uint8)])
    with pytest.raises(DataError, match="photo0 is 30 x 7"):
        Views(tiny, (8, 8)).load(0)


def test_label_and_map_of_other_sizes_are_named():
    split = ArraySplit([np.zeros((20, 24, 3), np.uint8)], [np.zeros((20, 23), np.int64)])
    with pytest.raises(DataError, match=r"label map of photo0 is 20 x 23 .* photo is 20 x 24"):
        Views(split, (8, 8)).load(0)
    split = plain_split(1)
    for values, message in (
        (np.zeros((2, 19, 24)), "depth map of photo0 is 19 x 24"),
        (np.zeros(5), r"depth map of photo0 has shape \(5,\)"),
        (np.full((20, 24), np.inf), "depth map of photo0 has infinite values"),
    ):
        with pytest.raises(DataError, match=message):
            Views(split, (8, 8), maps={"depth": lambda i, values=values: values}).load(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "ten"}, "crop='ten' is not one of none, five"),
        ({"interpolation": "bicubic"}, "interpolation='bicubic'"),
        ({"crop_ratio": 0.0}, r"crop_ratio=0\.0"),
        ({"crop_ratio": 1.5}, r"crop_ratio=1\.5 .*cannot exceed"),
        ({"map_size": (0, 3)}, r"map_size=\(0, 3\)"),
        ({"size": (8,)}, r"size=\(8,\)"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        Views(plain_split(), **{"size": (8, 8)} | options)


def test_view_out_of_range():
    views = Views(plain_split(), (8, 8))
    for index in (-1, 3):
        with pytest.raises(IndexError):
            views.load(index)


def test_to_float():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    out = to_float(images)
    assert out.dtype == torch.float32 and out.shape == images.shape
    assert torch.equal(out[0, 0].flatten(), torch.arange(256) / 255)
    with pytest.raises(TypeError, match="uint8"):
        to_float(torch.zeros(3))


def test_labels_alone_do_not_decode_the_photo():
    split = coordinate_split(20, 24, 0)
    split.size = lambda index: (20, 24)
    assert Views(split, (8, 8)).load(0, parts=("label",)).label.shape == (8, 8)
    assert split.reads == [0]
