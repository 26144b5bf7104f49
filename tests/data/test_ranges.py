"""Photos of more than 8 bits: one range for a set, no data left out, and 8-bit photos untouched."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image

from depthg.data import load_dataset
from depthg.data.files import DataError, missing_pixels, read_image
from depthg.data.folder import Folder
from depthg.data.loading import fingerprint
from depthg.data.ranges import resolved
from depthg.data.reading import Reading

RAMP = np.linspace(0, 1, 64 * 48).reshape(48, 64)


def write(folder, values, n=3, suffix=".tif"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n):
        Image.fromarray(values).save(folder / f"{number}{suffix}")
    return folder


def levels(folder, value):
    """Range and photo of a folder under one data.range, and the number of grey levels."""
    data = Folder(folder, reading=Reading(range=value))
    image = data.train.image(0)
    assert (image[..., 0] == image[..., 2]).all()
    return data.train.reading.range, image[..., 0], len(np.unique(image))


SETS = {  # values, lower and upper end, levels by the range of the type
    "12 bit": ((RAMP * 4095).astype(np.uint16), 0, 4095, 17),
    "12 bit + 32768": ((RAMP * 4095 + 32768).astype(np.uint16), 32768, 36863, 16),
    "reflectance": ((RAMP * 5700).astype(np.uint16), 0, 5700, 23),
    "float 1.2": ((RAMP * 1.2).astype(np.float32), 0, 1.2, 2),
    "int32": ((RAMP * 300).astype(np.int32), 0, 300, 2),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.filterwarnings("ignore:.*data.range")
def test_auto_spreads_the_values_of_a_set(tmp_path, name):
    values, low, high, few = SETS[name]
    folder = write(tmp_path, values)
    text, image, count = levels(folder, "auto")
    found = tuple(map(float, text.split(",")))
    margin = 0.004 * (high - low)
    assert abs(found[0] - low) <= margin and abs(found[1] - high) <= margin
    assert count == 256 and (image == np.rint(255 * RAMP)).mean() > 0.5
    assert np.abs(image.astype(int) - 255 * RAMP).max() <= 2
    assert levels(folder, "type")[2] == few, "as before"
    _, given, count = levels(folder, f"{low},{high}")
    expected = np.rint(np.clip((values.astype(float) - low) * 255 / (high - low), 0, 255))
    assert (given == expected).mean() > 0.999 and np.abs(given - expected).max() <= 1 and count == 256


def test_what_is_said(tmp_path):
    folder = write(tmp_path / "photos", SETS["12 bit"][0])
    Image.new("RGB", (9, 9)).save(folder / "small.png")
    with pytest.warns(
        UserWarning, match=r"photos: 3 of 4 photos have more than 8 bits; .*4\.\.4\d+ become 0\.\.255"
    ) as said:
        Folder(folder)
    assert len(said) == 1
    with pytest.warns(UserWarning, match=r"data\.range=type leaves 17 of 256 grey levels in 3 photos") as said:
        Folder(folder, reading=Reading(range="type"))
    assert len(said) == 1
    with pytest.warns(UserWarning, match=r"data\.range=0,60000 leaves 18 of 256"):
        Folder(folder, reading=Reading(range="0,60000"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Folder(folder, reading=Reading(range="0,4095"))


@pytest.mark.parametrize("name", ["16 bit", "float 1", "float 255"])
def test_files_that_use_the_range_of_their_type_are_read_as_before(tmp_path, name, recwarn):
    values = {
        "16 bit": (RAMP * 65000).astype(np.uint16), "float 1": RAMP.astype(np.float32),
        "float 255": (RAMP * 255).astype(np.float32),
    }[name]  # fmt: skip
    text, image, _ = levels(write(tmp_path, values), "auto")
    assert (image == read_image(tmp_path / "0.tif", Reading(range="type"))[..., 0]).all()
    assert text == {"16 bit": "type", "float 1": "0,1", "float 255": "0,255"}[name]
    assert not [said for said in recwarn if "levels" in str(said.message)]


def test_a_dark_photo_is_no_exception(tmp_path):
    folder = write(tmp_path, (RAMP * 255).astype(np.float32))
    Image.fromarray((RAMP * 0.9).astype(np.float32)).save(folder / "dark.tif")
    with pytest.warns(UserWarning, match=r"0\.\.255 become 0\.\.255"):
        data = Folder(folder)
    assert data.train.image(3).max() == 1, "the same range for every photo of the set"


def test_photos_of_8_bits_are_untouched(tmp_path, recwarn):
    rng, folder = np.random.default_rng(0), tmp_path / "photos"
    folder.mkdir()
    for mode, name in (
        ("RGB", "a.jpg"),
        ("L", "b.png"),
        ("RGBA", "c.png"),
        ("P", "d.png"),
        ("L", "e.tif"),
        ("RGB", "f.tif"),
    ):
        noise = rng.integers(0, 90, (20, 30, 4), np.uint8)
        Image.fromarray(noise, "RGBA").convert(mode).save(folder / name)
    plain = Folder(folder)
    assert plain.train.reading == Reading() and not recwarn.list
    for text in ("auto", "type", "0,90"):
        data = Folder(folder, reading=Reading(range=text))
        for index, path in enumerate(data.train.split.images):
            assert (data.train.image(index) == read_image(path)).all()
        assert (fingerprint(data.train) == fingerprint(plain.train)) == (text != "0,90")
    bands = Folder(folder, on_error="skip", reading=Reading(bands=(3, 2, 1)))
    assert fingerprint(bands.train) != fingerprint(plain.train)


@pytest.mark.parametrize("flag", [np.nan, np.inf, -9999, -3.4e38])
@pytest.mark.filterwarnings("ignore:.*data.range")
def test_no_data_is_black_void_and_no_part_of_the_range(tmp_path, flag):
    values = (RAMP * 1.2).astype(np.float32)
    values[:5] = flag
    (tmp_path / "labels").mkdir()
    folder = write(tmp_path / "photos", values)
    for number in range(3):
        Image.new("L", (64, 48), 0).save(tmp_path / "labels" / f"{number}.png")
    (tmp_path / "classes.txt").write_text("rock\n")
    options = {"root": folder, "labels": tmp_path / "labels", "classes": tmp_path / "classes.txt"}
    data = load_dataset("folder", **options)
    low, high = map(float, data.train.reading.range.split(","))
    assert abs(low - values[5].min()) < 0.01 and abs(high - 1.2) < 0.01
    image, label = data.train.image(0), data.train.label(0)
    assert (image[:5] == 0).all() and image[5:].max() == 255
    assert (label[:5] == -1).all() and (label[5:] == 0).all()
    assert missing_pixels(folder / "0.tif").sum() == 5 * 64
    assert (read_image(folder / "0.tif", Reading(range="type"))[:5] == 0).all(), "and no error as before"


@pytest.mark.filterwarnings("ignore:.*data.range")
def test_a_flag_that_the_file_names(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    values = (RAMP * 900 + 100).astype(np.uint16)
    values[:5] = 60000
    for number in range(2):
        tifffile.imwrite(tmp_path / f"{number}.tif", values, extratags=[(42113, "s", 6, "60000", True)])
    data = Folder(tmp_path)
    low, high = map(float, data.train.reading.range.split(","))
    assert 170 < low < 200 and 990 < high <= 1000
    assert (data.train.image(0)[:5] == 0).all() and missing_pixels(tmp_path / "0.tif").sum() == 5 * 64
    assert missing_pixels(tmp_path / "0.tif", Reading(bands=(1,))).sum() == 5 * 64


def test_integers_and_floats_have_no_range_in_common(tmp_path):
    write(tmp_path, SETS["12 bit"][0])
    Image.fromarray(SETS["float 1.2"][0]).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"integers and of floats.*data\.range=LOW,HIGH or data\.range=type"):
        Folder(tmp_path)


def test_damaged_files_do_not_decide(tmp_path):
    folder = write(tmp_path, SETS["12 bit"][0], n=4)
    (folder / "0.tif").write_bytes((folder / "0.tif").read_bytes()[:500])
    (folder / "empty.tif").touch()
    (folder / "gone.png").symlink_to("nothing.png")
    (folder / "loop.png").symlink_to("loop.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.png")
        os.mkfifo(folder / "pipe.tif")
    with pytest.warns(UserWarning, match="become 0"):
        data = Folder(folder)
    with pytest.raises(DataError, match=r"0\.tif"):
        data.train.image(0)
    assert len(np.unique(data.train.image(1))) == 256


def test_colours_of_16_bits(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    values = np.stack([RAMP * 4095, RAMP[::-1] * 4095, RAMP * 100], -1).astype(np.uint16)
    tifffile.imwrite(tmp_path / "0.tif", values, photometric="rgb")
    got = read_image(tmp_path / "0.tif", Reading(range="0,4095"))
    assert np.abs(got - values * (255 / 4095)).max() <= 0.51
    assert (read_image(tmp_path / "0.tif", Reading(range="type")) == values >> 8).all(), (
        "Pillow's upper bytes, as before"
    )
    assert (read_image(tmp_path / "0.tif", Reading(bands=(2,), range="0,4095"))[..., 0] == got[..., 1]).all()


def test_colours_of_16_bits_in_a_png(tmp_path):
    from test_data_files import png_of_16_bit_colours

    values = np.random.default_rng(0).integers(0, 4096, (6, 9, 3), np.uint16)
    path = png_of_16_bit_colours(tmp_path / "deep.png", values)
    got = read_image(path, Reading(range="0,4095"))
    assert np.abs(got - values * (255 / 4095)).max() <= 0.51
    assert (read_image(path) == values >> 8).all()
    with pytest.warns(UserWarning, match="1 of 1 photos have more than 8 bits"):
        assert len(np.unique(Folder(tmp_path).train.image(0))) > 100


def test_a_set_has_its_range_and_a_run_keeps_it(tmp_path):
    bright = write(tmp_path / "bright", (RAMP * 4000).astype(np.uint16))
    with pytest.warns(UserWarning, match="become 0"):
        run = Folder(bright).train.reading
    dark = write(tmp_path / "dark", (RAMP * 400).astype(np.uint16))
    paths = sorted(dark.iterdir())
    with pytest.warns(UserWarning, match=r"leaves 26 of 256 grey levels"):
        assert resolved(run, paths, "the photos") == run, "other photos do not change it"


@pytest.mark.parametrize("text", ["wide", "1", "5,5", "9,1", "nan,1", "0,inf", "1,2,3", ""])
def test_what_is_no_range(text):
    with pytest.raises(ValueError, match=r"data\.range=.* is neither auto, type nor LOW,HIGH"):
        Reading(range=text)
