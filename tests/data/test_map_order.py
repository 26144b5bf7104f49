"""Label and depth maps beside photos that EXIF turns: as shown, as stored, or told by their size."""

import warnings

import numpy as np
import pytest
from PIL import Image

from depthg.config import load_config
from depthg.data import load_dataset
from depthg.data.files import DataError
from depthg.data.reading import Reading
from depthg.depth.sources import FolderDepth

RAMP = np.arange(20 * 30).reshape(20, 30) % 7


def tree(tmp_path, orientation, values=RAMP, suffix=".png"):
    """A photo whose stored pixels are `values`, with label and depth maps that hold the same values as stored."""
    for name in ("photos", "labels", "depth"):
        (tmp_path / name).mkdir(exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    grey = Image.fromarray((values * 30).astype(np.uint8))
    for name in ("a", "b"):
        grey.convert("RGB").save(tmp_path / "photos" / f"{name}{suffix}", exif=exif)
        Image.fromarray(values.astype(np.uint8)).save(tmp_path / "labels" / f"{name}.png")
        np.save(tmp_path / "depth" / f"{name}.npy", values.astype(np.float32))
    (tmp_path / "classes.txt").write_text("".join(f"c{n}\n" for n in range(7)))
    return {"root": tmp_path / "photos", "labels": tmp_path / "labels", "classes": tmp_path / "classes.txt"}


def read(options, tmp_path, order):
    """Photo, label and depth in units of the ramp, and the warnings."""
    data = load_dataset("folder", **options, reading=Reading(map_order=order))
    depth = FolderDepth(tmp_path / "depth", expects_metres=False, relative=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for split in (data.train, data.val, data.train):
            found = split.image(0)[..., 0] // 30, split.label(0), depth(split, 0)
    return *found, [str(warning.message) for warning in said]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_maps_in_stored_order(tmp_path, orientation, suffix):
    options = tree(tmp_path, orientation, suffix=suffix)
    photo, label, depth, said = read(options, tmp_path, "stored")
    assert (photo == label).all() and (photo == depth).all() and not said
    if orientation >= 5:
        photo, label, depth, said = read(options, tmp_path, "auto")
        assert (photo == label).all() and (photo == depth).all() and not said, "the size tells"
        with pytest.raises(DataError, match=r"labels/\w\.png is 20 x 30 .* is 30 x 20"):
            read(options, tmp_path, "upright")
        return
    for order in ("auto", "upright"):
        photo, label, depth, said = read(options, tmp_path, order)
        assert (label == RAMP).all() and (depth == RAMP).all() and (photo == RAMP).all() == (orientation == 1)
        kinds = ["label maps", "depth maps"] if order == "auto" and orientation > 1 else []
        assert len(said) == len(kinds), "once for each kind"
        for text, kind in zip(said, kinds, strict=True):
            assert f"turned by EXIF (orientation {orientation})" in text and f"size of their {kind}" in text
            assert "data.map_order=stored" in text


@pytest.mark.parametrize("orientation", [5, 6, 8])
def test_maps_as_the_photos_are_shown(tmp_path, orientation):
    options = tree(tmp_path, orientation)
    for name in ("a", "b"):
        shown = load_dataset("folder", root=options["root"]).train.image(0)[..., 0] // 30
        Image.fromarray(shown).save(tmp_path / "labels" / f"{name}.png")
        np.save(tmp_path / "depth" / f"{name}.npy", shown.astype(np.float32))
    for order in ("auto", "upright"):
        photo, label, depth, said = read(options, tmp_path, order)
        assert (photo == label).all() and (photo == depth).all() and not said


def test_square_photos_are_warned_of(tmp_path):
    options = tree(tmp_path, 6, RAMP[:, :20])
    _, label, _, said = read(options, tmp_path, "auto")
    assert (label == RAMP[:, :20]).all() and len(said) == 2 and "orientation 6" in said[0]


def test_settings():
    assert Reading.of(load_config([]).data).map_order == "auto"
    assert Reading.of(load_config(["data.map_order=stored"]).data).key == ["maps stored"]
    with pytest.raises(ValueError, match=r"data\.map_order='up'"):
        Reading(map_order="up")
