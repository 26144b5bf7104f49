"""Reading files: every kind of image becomes uint8 RGB, and every bad file an error that names it."""

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from depthg.data.files import (
    DataError,
    cache_root,
    image_size,
    label_table,
    list_files,
    pixel_count,
    read_image,
    read_label,
    read_values,
    tree_error,
    without_setting,
)

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), np.uint8)


def save(path, array, mode=None, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm"])
def test_rgb_is_read_exactly(tmp_path, suffix):
    path = save(tmp_path / f"photo{suffix}", RGB)
    got = read_image(path)
    assert got.dtype == np.uint8 and got.flags.writeable
    assert np.array_equal(got, RGB)
    assert image_size(path) == (6, 9)


def test_grey_is_repeated(tmp_path):
    got = read_image(save(tmp_path / "grey.png", RGB[..., 0]))
    assert np.array_equal(got, np.repeat(RGB[..., :1], 3, axis=2))


def test_one_bit_image(tmp_path):
    got = read_image(save(tmp_path / "bits.png", Image.fromarray(RGB[..., 0] > 100)))
    assert np.array_equal(got[..., 1], np.where(RGB[..., 0] > 100, 255, 0))


def test_transparent_pixels_lie_over_white(tmp_path):
    alpha = np.zeros((6, 9, 1), np.uint8)
    alpha[:3] = 255
    got = read_image(save(tmp_path / "rgba.png", np.concatenate([RGB, alpha], axis=2)))
    assert np.array_equal(got[:3], RGB[:3])
    assert (got[3:] == 255).all()


def test_grey_with_alpha(tmp_path):
    alpha = np.full((6, 9), 255, np.uint8)
    alpha[0] = 0
    got = read_image(save(tmp_path / "la.png", Image.merge("LA", [Image.fromarray(x) for x in (RGB[..., 0], alpha)])))
    assert (got[0] == 255).all() and np.array_equal(got[1:, :, 2], RGB[1:, :, 0])


@pytest.mark.parametrize("transparent", [False, True])
def test_palette_colours(tmp_path, transparent):
    image = Image.frombytes("P", (2, 2), bytes([0, 1, 2, 1]))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    got = read_image(save(tmp_path / "palette.png", image, **({"transparency": 1} if transparent else {})))
    second = [255, 255, 255] if transparent else [40, 50, 60]
    assert got.tolist() == [[[10, 20, 30], second], [[70, 80, 90], second]]


def test_cmyk_jpeg_and_tiff(tmp_path):
    flat = Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK")
    for name in ("cmyk.jpg", "cmyk.tif"):
        got = read_image(save(tmp_path / name, flat))
        assert got.shape == (16, 16, 3)
        assert np.abs(got.astype(int) - [200, 40, 90]).max() <= 3


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_keep_their_range(tmp_path, suffix):
    values = np.array([[0, 257, 128 * 257, 65535], [128, 129, 65000, 1]], np.uint16)
    got = read_image(save(tmp_path / f"deep{suffix}", values))
    assert got[..., 0].tolist() == [[0, 1, 128, 255], [0, 1, 253, 0]]
    assert np.array_equal(got[..., 0], got[..., 2])


def png_of_16_bit_colours(path, values):  # uint16 [H, W, 3]
    """Pillow reads these but cannot write them."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_sixteen_bit_colours_keep_their_range(tmp_path):
    values = RGB.astype(np.uint16) * 257
    got = read_image(png_of_16_bit_colours(tmp_path / "deep.png", values))
    assert got.dtype == np.uint8 and np.array_equal(got, RGB)
    with pytest.raises(DataError, match=r"deep\.png.*one id per pixel"):
        read_label(tmp_path / "deep.png", TABLE)


@pytest.mark.parametrize(("top", "factor"), [(1.0, 255), (255.0, 1)])
def test_float_images_in_either_range(tmp_path, top, factor):
    values = np.linspace(0, top, 54, dtype=np.float32).reshape(6, 9)
    got = read_image(save(tmp_path / "float.tif", values))
    assert np.array_equal(got[..., 0], np.rint(values * factor).astype(np.uint8))


@pytest.mark.parametrize("values", [np.array([[-1.0, 2.0]], np.float32), np.array([[0, 70000]], np.int32)])
def test_a_range_without_meaning_is_an_error(tmp_path, values):
    path = save(tmp_path / "odd.tif", values)
    with pytest.raises(DataError, match=r"odd\.tif.*8-bit or 16-bit"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_of_an_animation_the_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 5), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    frames[0].save(tmp_path / f"film{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    got = read_image(tmp_path / f"film{suffix}")
    assert got.shape == (5, 8, 3) and (got == [255, 0, 0]).all()


# stored pixel (row, column) of the 2 x 3 image at upright position (row, column), by orientation; from the EXIF text
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),  # row 0 is the visual right
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),  # row 0 is the visual left
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_exif_orientation_is_honoured(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"turned{suffix}", RGB, exif=exif, **options)
    expected = UPRIGHT[orientation](RGB)
    got = read_image(path)
    assert got.shape == expected.shape and np.array_equal(got, expected)
    assert image_size(path) == expected.shape[:2]


def test_exif_orientation_of_a_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[:, None, None], 3, 2).repeat(16, 1)
    path = save(tmp_path / "phone.jpg", ramp, exif=exif, quality=95)
    assert image_size(path) == (16, 24)
    got = read_image(path)[8, :, 0].astype(int)
    assert got[0] > 220 and got[-1] < 12  # the stored first row is the visual right


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0garbage", b"Exif\0\0"])
def test_a_damaged_exif_block_does_no_harm(tmp_path, exif):
    path = save(tmp_path / "photo.jpg", np.full((16, 16, 3), 77, np.uint8), exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on corrupt EXIF
        assert read_image(path).shape == (16, 16, 3)
        assert image_size(path) == (16, 16)


def test_orientation_out_of_range_counts_as_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 77
    assert np.array_equal(read_image(save(tmp_path / "photo.png", RGB, exif=exif)), RGB)


# ---- bad files


def truncated(tmp_path, suffix):
    noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    path = save(tmp_path / f"cut{suffix}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp", ".gif"])
def test_truncated_file(tmp_path, suffix):
    path = truncated(tmp_path, suffix)
    with pytest.raises(DataError, match=r"data\.on_error=skip") as error:
        read_image(path)
    assert str(path) in str(error.value)


def test_zero_byte_file(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(DataError, match=r"empty\.jpg.*0 bytes"):
        read_image(tmp_path / "empty.jpg")


def test_text_with_an_image_name(tmp_path):
    (tmp_path / "page.png").write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"page\.png.*no image"):
        read_image(tmp_path / "page.png")


def test_damaged_png_chunk(tmp_path):
    path = save(tmp_path / "bad.png", RNG.integers(0, 256, (64, 64, 3), np.uint8))
    data = bytearray(path.read_bytes())
    start = data.index(b"IDAT")
    data[start - 4 : start] = struct.pack(">I", 5)  # the chunk claims five bytes
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"bad\.png"):
        read_image(path)


def test_missing_file_broken_link_and_loop(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "none.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"link\.png: it is a broken link to .*gone\.png"):
        read_image(tmp_path / "link.png")
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    with pytest.raises(DataError, match=r"a\.png"):
        read_image(tmp_path / "a.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name, kind in (("pipe", "a pipe, a"), ("folder", "a folder"), ("zero", "a pipe, a socket or a device")):
        with pytest.raises(DataError, match=rf"cannot read \S*{name}\.png: it is {kind}") as error:
            read_image(tmp_path / f"{name}.png")
        assert "on_error" in str(error.value) and "on_error" not in without_setting(error.value)


def test_file_without_permission(tmp_path, monkeypatch):
    path = save(tmp_path / "locked.png", RGB)

    def refuse(*_):  # permissions do not stop the super-user, who may run the tests
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    for read in (read_image, image_size, lambda path: read_label(path, TABLE)):
        with pytest.raises(DataError, match=r"cannot read \S*locked\.png: Permission denied; .*on_error=skip"):
            read(path)


@pytest.mark.parametrize("limit", [100, 40])  # Pillow warns above its limit and refuses above twice the limit
def test_decompression_bomb(tmp_path, monkeypatch, limit):
    path = save(tmp_path / "bomb.png", np.zeros((10, 11, 3), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for read in (read_image, image_size):
            with pytest.raises(DataError, match=rf"bomb\.png is larger than the limit of {limit}.*scale it down"):
                read(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert image_size(path) == (10, 11)


def test_colour_space_that_cannot_be_converted(tmp_path):
    path = save(tmp_path / "lab.tif", Image.new("LAB", (4, 4)))
    try:
        assert read_image(path).shape == (4, 4, 3)
    except DataError as error:
        assert "lab.tif" in str(error)


def test_values_are_read_as_stored(tmp_path):
    deep = np.array([[0, 300, 65535]], np.uint16)
    metres = np.array([[0.5, np.inf]], np.float32)
    assert np.array_equal(read_values(save(tmp_path / "deep.png", deep)), deep)
    assert np.array_equal(read_values(save(tmp_path / "grey.png", RGB[..., 0])), RGB[..., 0])
    assert np.array_equal(read_values(save(tmp_path / "metres.tif", metres)), metres)
    with pytest.raises(DataError, match=r"preview\.png.*mode 'RGB'"):
        read_values(save(tmp_path / "preview.png", RGB))


# ---- labels

TABLE = label_table({0: 4, 1: 3, 2: -1, 5: 0})
IDS = np.array([[0, 1, 2], [5, 5, 0]], np.uint8)
CLASSES = [[4, 3, -1], [0, 0, 4]]


@pytest.mark.parametrize("mode", ["L", "P"])
def test_ids_are_mapped_and_palettes_ignored(tmp_path, mode):
    image = Image.frombytes(mode, (3, 2), IDS.tobytes())
    if mode == "P":
        image.putpalette([255, 0, 0] * 256)  # one colour for all: only the indices tell the classes apart
    got = read_label(save(tmp_path / "label.png", image), TABLE)
    assert got.dtype == np.int64 and got.tolist() == CLASSES


def test_sixteen_bit_ids(tmp_path):
    path = save(tmp_path / "label.png", IDS.astype(np.uint16))
    assert read_label(path, TABLE).tolist() == CLASSES
    wide = label_table({1000: 2, 0: -1})
    assert read_label(save(tmp_path / "wide.png", np.array([[1000, 0]], np.uint16)), wide).tolist() == [[2, -1]]
    with pytest.raises(DataError, match="ids 60000, but"):
        read_label(save(tmp_path / "wide.png", np.array([[60000, 0]], np.uint16)), wide)


def test_unknown_ids_are_named(tmp_path):
    path = save(tmp_path / "label.png", np.array([[0, 3], [200, 1]], np.uint8))
    with pytest.raises(DataError, match=r"label\.png has the label ids 3, 200, but .* only ids 0\.\.2, 5"):
        read_label(path, TABLE)


def test_many_unknown_ids_are_cut_short(tmp_path):
    path = save(tmp_path / "label.png", np.arange(100, 130, dtype=np.uint8)[None])
    with pytest.raises(DataError, match=r"ids 100, 101.*109, \.\.\., but"):
        read_label(path, TABLE)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK"])
def test_colour_labels_are_refused(tmp_path, mode):
    path = save(tmp_path / f"label.{'tif' if mode == 'CMYK' else 'png'}", RGB, mode=mode)
    with pytest.raises(DataError, match=rf"label\.\w+.*mode '{mode}'.*convert its colours to ids"):
        read_label(path, TABLE)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_ids_in_equal_channels(tmp_path, mode):
    channels = 1 if mode == "LA" else 3
    opaque = np.full((*IDS.shape, 1), 255, np.uint8)
    pixels = np.concatenate([IDS[..., None]] * channels + [opaque] * mode.endswith("A"), -1)
    assert read_label(save(tmp_path / "label.png", pixels), TABLE).tolist() == CLASSES
    if mode.endswith("A"):
        pixels[0, :, -1] = 0
        pixels[0, :, 0] = 77  # no id, but transparent
        got = read_label(save(tmp_path / "label.png", pixels), TABLE).tolist()
        assert got == [[-1, -1, -1], CLASSES[1]]
    pixels[1, 0, :channels] = 77
    with pytest.raises(DataError, match=r"label\.png has the label ids 77"):
        read_label(save(tmp_path / "label.png", pixels), TABLE)


def test_jpeg_labels_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"label\.jpg.*without loss"):
        read_label(save(tmp_path / "label.jpg", IDS), TABLE)


# ---- folders


def test_listing_is_sorted_and_takes_any_case(tmp_path):
    for name in ("b.png", "A.JPG", "a b ü.jpeg", ".hidden.png", "notes.txt", "sub/c.png", "sub/.git/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    flat = [path.name for path in list_files(tmp_path)]
    assert flat == ["A.JPG", "a b ü.jpeg", "b.png"]
    deep = [path.relative_to(tmp_path).as_posix() for path in list_files(tmp_path, recursive=True)]
    assert deep == [*flat, "sub/c.png"]
    assert [path.name for path in list_files(tmp_path, (".txt",))] == ["notes.txt"]


def test_links_are_followed_once_and_loops_end(tmp_path):
    (tmp_path / "data" / "real").mkdir(parents=True)
    (tmp_path / "data" / "real" / "x.png").touch()
    (tmp_path / "data" / "real" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "alias").symlink_to(tmp_path / "data" / "real")
    (tmp_path / "data" / "self").symlink_to(tmp_path / "data" / "self")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "y.png").touch()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "outside")
    (tmp_path / "data" / "broken.png").symlink_to("gone.png")
    found = [path.relative_to(tmp_path / "data").as_posix() for path in list_files(tmp_path / "data", recursive=True)]
    assert found == ["broken.png", "linked/y.png", "real/x.png"]


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(folder):  # permissions do not stop the super-user, who may run the tests
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"locked \(Permission denied\).*permissions"):
        list_files(tmp_path, recursive=True)


@pytest.mark.parametrize("case", ["missing", "empty", "file", "other"])
def test_tree_error_shows_what_was_found(tmp_path, case):
    root = tmp_path / "root"
    if case == "file":
        root.touch()
    elif case != "missing":
        root.mkdir()
    if case == "other":
        for number in range(20):
            (root / f"folder{number:02}").mkdir()
    found = {
        "missing": f"{root} does not exist; its nearest existing parent {tmp_path} is empty",
        "empty": f"{root} is empty",
        "file": f"{root} is a file, not a folder",
        "other": "folder10/, folder11/ and 8 more",
    }[case]
    message = str(tree_error("no photos", root, "train/\nval/"))
    assert message.startswith(f"no photos\nexpected below data.root={root}:\n  train/\n  val/\nfound:\n")
    assert found in message


def test_cache_root(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPTHG_CACHE", str(tmp_path))
    assert cache_root() == tmp_path and cache_root(tmp_path / "x") == tmp_path / "x"
    monkeypatch.delenv("DEPTHG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "depthg"


def test_names_that_are_no_unicode_can_be_printed(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    open(path, "wb").close()
    [found] = list_files(tmp_path)
    with pytest.raises(DataError) as error:
        read_image(found)
    str(error.value).encode("utf-8")


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_large_photos_are_copied_in_parts(tmp_path, monkeypatch, mode):
    values = np.random.default_rng(0).integers(0, 256, (700, 90, 3), np.uint8)
    Image.fromarray(values).convert(mode).save(tmp_path / "a.png")
    expected = read_image(tmp_path / "a.png")
    monkeypatch.setattr("depthg.data.pixels._LARGE", 1)
    found = read_image(tmp_path / "a.png")
    assert (found == expected).all() and found.flags.c_contiguous and found.flags.writeable
    assert pixel_count(tmp_path / "a.png") == 700 * 90
    (tmp_path / "b.png").write_bytes(b"no photo")
    with pytest.raises(DataError, match=r"b\.png"):
        pixel_count(tmp_path / "b.png")
