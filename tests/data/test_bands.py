"""Photos of other bands than red, green and blue."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from depthg.config import load_config
from depthg.config.composing import quote_text
from depthg.data import tiff
from depthg.data.files import DataError, image_size, read_image
from depthg.data.folder import Folder
from depthg.data.reading import Reading

tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
FIVE = np.random.default_rng(0).integers(0, 256, (12, 17, 5), np.uint8)


def write(path, values=FIVE, **options):
    options = {"photometric": "minisblack", "planarconfig": "contig"} | options
    stored = np.moveaxis(values, -1, 0) if options["planarconfig"] == "separate" else values
    tifffile.imwrite(path, stored, **options)
    return path


@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_five_bands(tmp_path, layout, compression, tile):
    path = write(tmp_path / "a.tif", planarconfig=layout, compression=compression, tile=tile)
    assert (read_image(path) == FIVE[..., :3]).all() and image_size(path) == (12, 17)
    assert (read_image(path, Reading(bands=(5, 3, 1))) == FIVE[..., [4, 2, 0]]).all()
    grey = read_image(path, Reading(bands=(4,)))
    assert grey.shape == (12, 17, 3) and (grey == FIVE[..., 3:4]).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64, np.int16])
def test_deep_bands_take_the_range(tmp_path, dtype):
    values = (FIVE.astype(np.float64) * 4).astype(dtype)
    path = write(tmp_path / "a.tif", values)
    assert (read_image(path, Reading(range="0,1020", bands=(2, 2, 5))) == FIVE[..., [1, 1, 4]]).all()
    with pytest.warns(UserWarning) as said:
        data = Folder(tmp_path)
    assert "1 photos have 5 bands; bands 1, 2, 3 are read as red, green and blue; data.bands=3,2,1" in str(
        said[0].message
    )
    assert "become 0..255" in str(said[1].message)
    assert np.abs(data.train.image(0).astype(int) - FIVE[..., :3]).max() <= 3


def test_a_fourth_band_is_not_dropped_silently(tmp_path, recwarn):
    write(tmp_path / "a.tif", FIVE[..., :4], photometric="rgb", extrasamples=["unspecified"])
    data = Folder(tmp_path)
    assert "1 photos have 4 bands; bands 1, 2, 3 are read" in str(recwarn.pop(UserWarning).message)
    assert (data.train.image(0) == FIVE[..., :3]).all()
    data = Folder(tmp_path, reading=Reading(bands=(4, 2, 1)))
    assert not recwarn.list and (data.train.image(0) == FIVE[..., [3, 1, 0]]).all()


def test_opacity_is_no_band_unless_asked_for(tmp_path, recwarn):
    values = FIVE[..., :4].copy()
    values[..., 3] = 255
    values[:6, :, 3] = 0
    for dtype, reading in ((np.uint8, Reading()), (np.uint16, Reading(range="0,255"))):
        stored = values.astype(dtype)
        stored[..., 3] *= 257 if dtype == np.uint16 else 1
        path = write(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=["unassalpha"])
        got = read_image(path, reading)
        assert (got[:6] == 255).all() and (got[6:] == values[6:, :, :3]).all(), "transparent pixels lie over white"
    assert (read_image(path, Reading(range="0,65535", bands=(4,)))[:6] == 0).all()


def test_colours_of_printers_are_no_bands(tmp_path, recwarn):
    Image.new("CMYK", (17, 12), (10, 20, 30, 40)).save(tmp_path / "a.tif")
    assert Folder(tmp_path).train.image(0).shape == (12, 17, 3) and not recwarn.list


def test_two_bands(tmp_path):
    for dtype in (np.uint8, np.uint16):
        write(tmp_path / "a.tif", FIVE[..., :2].astype(dtype))
        with pytest.warns(UserWarning, match="1 photos have 2 bands; band 1 is read as grey"):
            data = Folder(tmp_path, reading=Reading(range="0,255"))
        assert (data.train.image(0) == FIVE[..., :1]).all()


def test_bands_of_ordinary_photos(tmp_path):
    for name in ("a.png", "b.bmp"):
        Image.fromarray(FIVE[..., :3].copy()).save(tmp_path / name)
        assert (read_image(tmp_path / name, Reading(bands=(3, 2, 1))) == FIVE[..., 2::-1]).all()
        with pytest.raises(DataError, match=rf"{name}: it has 3 bands, but data\.bands=\[4\] asks for band 4"):
            read_image(tmp_path / name, Reading(bands=(4,)))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(FIVE[..., :3].copy()).save(tmp_path / "turned.png", exif=exif)
    turned = read_image(tmp_path / "turned.png")
    assert (read_image(tmp_path / "turned.png", Reading(bands=(3, 2, 1))) == turned[..., ::-1]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_many_bands_are_turned_upright(tmp_path, orientation):
    path = write(tmp_path / "a.tif", extratags=[(274, "H", 1, orientation, True)])
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(FIVE[..., :3].copy()).save(tmp_path / "a.png", exif=exif)
    expected = read_image(tmp_path / "a.png")
    assert (read_image(path) == expected).all() and image_size(path) == expected.shape[:2]


def test_without_tifffile_the_error_says_what_to_install(tmp_path, monkeypatch):
    write(tmp_path / "five.tif")
    monkeypatch.setattr(tiff, "TIFF_READ", False)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"five\.tif: Pillow does not read it; pip install 'depthg\[tiff\]'"):
            read(tmp_path / "five.tif")


def test_limits_hold_for_bands_too(tmp_path):
    path = write(tmp_path / "a.tif", FIVE.astype(np.float64))
    with pytest.raises(DataError, match=r"a\.tif is larger than the limit of 203 pixels"):
        read_image(path, Reading(max_pixels=12 * 17 - 1))
    with pytest.raises(DataError, match=r"5 bands of float64"):
        read_image(path, Reading(max_pixels=12 * 17))
    assert read_image(path, Reading(max_pixels=12 * 17 * 4)).shape == (12, 17, 3)


def patched(tag, value, **options):
    """A file of five bands in which the entry of a tag is another number."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, FIVE, photometric="minisblack", planarconfig="contig", **options)
    content = bytearray(buffer.getvalue())
    start = struct.unpack("<I", content[4:8])[0]
    for entry in range(start + 2, start + 2 + 12 * struct.unpack("<H", content[start : start + 2])[0], 12):
        if struct.unpack("<H", content[entry : entry + 2])[0] == tag:
            kind = struct.unpack("<H", content[entry + 2 : entry + 4])[0]
            content[entry + 8 : entry + 12] = struct.pack("<I", value) if kind == 4 else struct.pack("<HH", value, 0)
            return bytes(content)
    raise AssertionError(tag)


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize(
    ("tag", "value"),
    [(256, 60_000), (257, 60_000), (277, 60_000), (273, 2**31), (279, 2**31 - 1), (259, 5), (259, 9999)],
)
def test_damaged_and_hostile_files(tmp_path, tag, value):
    (tmp_path / "bad.tif").write_bytes(patched(tag, value))
    with pytest.raises(DataError, match=r"bad\.tif"):
        read_image(tmp_path / "bad.tif")


@pytest.mark.usefixtures("bounded_memory")
def test_parts_do_not_unfold(tmp_path):
    content = patched(259, 8, compression="zlib")
    start = len(content)
    bomb = zlib.compress(bytes(10**9), 9)
    for tag, value in ((273, start), (279, len(bomb))):
        for entry in range(8, len(content) - 12):
            if content[entry : entry + 4] == struct.pack("<HH", tag, 4):
                content = content[: entry + 8] + struct.pack("<I", value) + content[entry + 12 :]
                break
    (tmp_path / "bomb.tif").write_bytes(content + bomb)
    with pytest.raises(DataError, match=r"bomb\.tif.*unfolds to more than its size"):
        read_image(tmp_path / "bomb.tif")


@pytest.mark.parametrize("cut", [9, 100, 300, 700])
def test_truncated_files(tmp_path, cut):
    path = write(tmp_path / "cut.tif")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"cut\.tif"):
        read_image(path)


def test_settings():
    for text in ("data.bands=3,2,1", "data.bands=[3,2,1]"):
        assert load_config([text]).data.bands == [3, 2, 1]
    assert Reading.of(load_config(["data.bands=4"]).data).bands == (4,)
    for text in ("data.range=0,4095", "data.range='0,4095'", "data.range=[0,4095]"):
        assert Reading.of(load_config([text]).data).limits == (0, 4095)
    assert load_config(["data.range=-1.5,2e3"]).data.range == "-1.5,2e3"
    assert quote_text(["data.range=auto,type"], sweep=True) == ["data.range=auto,type"]
    for bad in ("data.bands=[1,2]", "data.bands=0", "data.range=4,1", "data.range=wide"):
        with pytest.raises(ValueError, match=bad.partition("=")[0]):
            load_config([bad])
