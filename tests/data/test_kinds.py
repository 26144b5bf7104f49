"""Kinds of photos beside .jpg and .png, and the count of files that no kind fits."""

import numpy as np
import pytest
from PIL import Image

from depthg.data import decoding, kinds
from depthg.data.files import DataError, image_size, read_image
from depthg.data.kinds import IMAGE_SUFFIXES, is_photo, not_used, suffix_of
from depthg.data.photos import find_photos

RAMP = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[:, None, None], 3, 2).repeat(16, 1)  # [24, 16, 3]


def save(path, **options):
    Image.fromarray(RAMP).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(".jpe", "JPEG"), (".jfif", "JPEG"), (".JFIF", "JPEG"), (".mpo", "MPO"), (".avif", "AVIF"), (".heic", "HEIF")],
)
def test_more_kinds_of_photos(tmp_path, suffix, kind):
    path = tmp_path / f"photo{suffix}"
    if kind == "AVIF" and not kinds.AVIF_READ:
        pytest.skip("this Pillow reads no AVIF")
    if kind == "HEIF":
        pytest.importorskip("pillow_heif", reason="pillow-heif is not installed").register_heif_opener()
    save(path, format=kind, quality=95)
    assert is_photo(path)
    got = read_image(path)
    assert got.shape == RAMP.shape == (*image_size(path), 3)
    assert np.abs(got.astype(int) - RAMP).max() <= 8


@pytest.mark.skipif(not kinds.AVIF_READ, reason="this Pillow reads no AVIF")
def test_avif_is_turned_upright_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "phone.avif", exif=exif, quality=95)
    assert image_size(path) == (16, 24)
    row = read_image(path)[8, :, 0].astype(int)
    assert row[0] > 215 and row[-1] < 15, "the first stored row is the visual right"


def test_damaged_files_of_these_kinds_are_named(tmp_path):
    for suffix in IMAGE_SUFFIXES:
        path = tmp_path / f"bad{suffix}"
        path.write_bytes(b"\0\0\0\x1cftypheic" + bytes(100))
        with pytest.raises(DataError, match=rf"bad\{suffix}"):
            read_image(path)


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "HEIF_READ", False)
    monkeypatch.setattr(kinds, "HEIF_READ", False)

    def unknown(path):
        raise Image.UnidentifiedImageError("cannot identify")

    monkeypatch.setattr(Image, "open", unknown)
    (tmp_path / "a.HEIC").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.HEIC: .*pip install 'depthg\[heic\]'"):
        read_image(tmp_path / "a.HEIC")


def test_counts():
    assert not_used([]) == ""
    assert not_used(["a.txt", "b.TXT", "c", "d.json"]) == "1 .json, 2 .txt, 1 without suffix"
    assert not_used(["a.nef", "a.xmp"]) == "1 .nef, 1 .xmp (convert .nef to .jpg or .png)"
    assert suffix_of("a/b.c/D.JPG") == ".jpg"


def test_predictions_count_what_a_folder_holds_beside_photos(tmp_path, recwarn):
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.jfif", "c.jpe", "sub/d.mpo"):
        save(photos / name, format="JPEG")
    found, problems = find_photos([str(photos)], tmp_path / "out")
    assert len(found) == 4 and not problems and not recwarn.list
    (photos / "e.cr2").touch()
    (photos / "sub" / "f.cr2").touch()
    for text in (str(photos), str(photos / "**")):
        with pytest.warns(UserWarning, match=r"4 photos; not used: 2 \.cr2 \(convert \.cr2 to"):
            found, problems = find_photos([text], tmp_path / "out")
        assert len(found) == 4 and not problems
    (photos / "out").mkdir()
    (photos / "out" / "legend.json").touch()
    with pytest.warns(UserWarning, match=r"not used: 2 \.cr2"):
        find_photos([str(photos)], photos / "out")
    with pytest.warns(UserWarning, match=r"0 photos; not used: 1 \.cr2"):
        assert find_photos([str(photos / "*.cr2")], tmp_path / "out")[1]
