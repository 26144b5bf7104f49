"""How photo files are read: limits."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from depthg.config import load_config
from depthg.data import load_dataset
from depthg.data.files import DataError, image_size, label_table, read_image, read_label, read_values, without_setting
from depthg.data.reading import MAX_PIXELS, Reading
from depthg.depth.sources import FolderDepth


@pytest.fixture(autouse=True)
def _pillow_limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1024**3 // 12)


def write(path, size=(10, 11), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)
    return path


def test_photos_of_phones_are_read_by_default(tmp_path, recwarn):
    phone, larger = (
        write(tmp_path / "phone.png", (12_000, 9_000), "1"),
        write(tmp_path / "more.png", (12_001, 10_000), "1"),
    )
    assert image_size(phone) == (9_000, 12_000) and not recwarn.list, "Pillow warns of it, if its limit stands"
    with pytest.raises(DataError, match=r"more\.png is larger than the limit of 120000000 pixels .*data\.max_pixels=N"):
        image_size(larger)
    assert image_size(larger, Reading(max_pixels=121_000_000)) == (10_000, 12_001)
    with pytest.raises(DataError, match="limit of 100000000 pixels"):
        image_size(phone, Reading(max_pixels=100_000_000))
    assert image_size(phone, Reading(max_pixels=400_000_000)) == (9_000, 12_000)
    with pytest.raises(DataError, match="limit of 120000000 pixels"):
        image_size(larger)


def test_every_reader_holds_the_limit(tmp_path):
    path = write(tmp_path / "a.png")
    low, high = Reading(max_pixels=109), Reading(max_pixels=110)
    for read in (
        read_image,
        image_size,
        read_values,
        lambda path, reading: read_label(path, label_table({0: 0}), reading),
    ):
        read(path, high)
        with pytest.raises(DataError, match="limit of 109 pixels") as error:
            read(path, low)
    assert "data." not in without_setting(error.value)
    assert "or pass --max-pixels N" in without_setting(error.value, "--max-pixels N")


def test_a_limit_of_the_program_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="limit of 100 pixels"):
        image_size(write(tmp_path / "a.png"))
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(DataError, match="limit of 109 pixels"):
        image_size(tmp_path / "a.png", Reading(max_pixels=109))


def test_a_folder_holds_the_limit_for_photos_labels_and_depth(tmp_path):
    for name in ("photos/a.png", "photos/b.png", "labels/a.png", "labels/b.png", "depth/a.png", "depth/b.png"):
        write(tmp_path / name)
    (tmp_path / "classes.txt").write_text("road\n")
    files = {"labels": tmp_path / "labels", "classes": tmp_path / "classes.txt"}
    for pixels in (109, 110):
        data = load_dataset("folder", root=tmp_path / "photos", **files, reading=Reading(max_pixels=pixels))
        depth = FolderDepth(tmp_path / "depth", expects_metres=False)
        for split in (data.train, data.val):
            for read in (split.image, split.size, split.label, partial(depth, split)):
                if pixels == 110:
                    assert np.asarray(read(0)).size
                else:
                    with pytest.raises(DataError, match="limit of 109 pixels"):
                        read(0)
    with pytest.raises(DataError, match=r"none of the 2 photos can be used.*limit of 109"):
        load_dataset("folder", root=tmp_path / "photos", on_error="skip", reading=Reading(max_pixels=109))


def test_where_it_comes_from():
    assert Reading.of(load_config([]).data) == Reading() == Reading(max_pixels=MAX_PIXELS)
    assert Reading.of(load_config(["data.max_pixels=7"]).data).max_pixels == 7
    with pytest.raises(ValueError, match=r"data\.max_pixels=0"):
        load_config(["data.max_pixels=0"])
    with pytest.raises(ValueError, match=r"max_pixels=0 must"):
        Reading(max_pixels=0)
    with pytest.raises(ValueError, match=r"data=camvid has no use for data\.max_pixels"):
        load_dataset("camvid", root="x", reading=Reading(max_pixels=7))
