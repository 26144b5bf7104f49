"""CamVid: a miniature tree for every rule, and the real photos where they are."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthg.data.base import Dataset
from depthg.data.camvid import CamVid
from depthg.data.files import DataError

SHAPE = (12, 16)
REAL = Path(os.environ.get("DEPTHG_CAMVID") or Path(__file__).parents[2] / "../shared/data/camvid")


def write_tree(root, train=("b", "a", "c"), val=("v", "w")):
    """A miniature CamVid: every photo is its number, every label map goes through all ids 0..11."""
    for part, stems in (("train", train), ("val", val)):
        for folder in (part, f"{part}annot"):
            (root / folder).mkdir(parents=True)
        for number, stem in enumerate(stems):
            Image.fromarray(np.full((*SHAPE, 3), number, np.uint8)).save(root / part / f"{stem}.png")
            ids = (np.arange(SHAPE[0] * SHAPE[1]) + number) % 12
            label = Image.fromarray(ids.astype(np.uint8).reshape(SHAPE))
            label.save(root / f"{part}annot" / f"{stem}.png")
    return root


def test_splits_classes_and_labels(tmp_path):
    data = CamVid(write_tree(tmp_path))
    assert isinstance(data, Dataset) and data.name == "camvid"
    assert data.train.names == ["a", "b", "c"] and data.val.names == ["v", "w"]
    assert data.train.relative[0] == "train/a.png"
    assert len(data.classes) == 11 and data.classes[0] == "sky" and data.classes[10] == "bicyclist"
    assert data.palette.shape == (11, 3) and data.palette.dtype == np.uint8
    assert len({tuple(colour) for colour in data.palette.tolist()}) == 11
    assert data.train.image(1).shape == (*SHAPE, 3) and (data.train.image(1) == 0).all()  # b was written first
    expected = np.arange(SHAPE[0] * SHAPE[1]) % 12
    expected[expected == 11] = -1
    label = data.train.label(1)
    assert label.dtype == np.int64 and np.array_equal(label.ravel(), expected)


@pytest.mark.parametrize("id_", range(12))
def test_every_id(tmp_path, id_):
    root = write_tree(tmp_path)
    Image.fromarray(np.full(SHAPE, id_, np.uint8)).save(root / "trainannot" / "a.png")
    assert set(np.unique(CamVid(root).train.label(0))) == {id_ if id_ < 11 else -1}


def test_id_out_of_range(tmp_path):
    root = write_tree(tmp_path)
    Image.fromarray(np.full(SHAPE, 12, np.uint8)).save(root / "valannot" / "v.png")
    with pytest.raises(DataError, match=r"valannot/v\.png has the label ids 12, but .* 0\.\.11"):
        CamVid(root).val.label(0)


def test_colour_label(tmp_path):
    root = write_tree(tmp_path)
    Image.new("RGB", SHAPE[::-1], (128, 64, 128)).save(root / "valannot" / "v.png")
    with pytest.raises(DataError, match=r"valannot/v\.png.*mode 'RGB'"):
        CamVid(root).val.label(0)


def test_photo_without_label_and_label_without_photo(tmp_path):
    root = write_tree(tmp_path)
    (root / "trainannot" / "b.png").unlink()
    with pytest.raises(DataError, match=r"train/b\.png has no label map .*trainannot/b\.png"):
        CamVid(root)
    (root / "train" / "b.png").unlink()
    (root / "val" / "w.png").unlink()
    with pytest.raises(DataError, match=r"valannot/w\.png has no photo .*val/w\.\*"):
        CamVid(root)
    with pytest.warns(UserWarning, match=r"skipped 1 of 2 photos"):
        data = CamVid(root, on_error="skip")
    assert data.val.names == ["v"] and "w.png" in data.val.skipped[0]


def test_sizes_that_differ(tmp_path):
    root = write_tree(tmp_path)
    Image.fromarray(np.zeros((12, 15), np.uint8)).save(root / "trainannot" / "c.png")
    with pytest.raises(DataError, match=r"trainannot/c\.png is 12 x 15 .*train/c\.png is 12 x 16"):
        CamVid(root).train.label(2)


def test_unreadable_photos_are_skipped_on_request(tmp_path):
    root = write_tree(tmp_path)
    (root / "train" / "a.png").write_bytes(b"")
    (root / "trainannot" / "b.png").unlink()
    with pytest.warns(UserWarning, match="skipped 1 of"):
        data = CamVid(root, on_error="skip")
    assert data.train.names == ["c"] and len(data.train.skipped) == 2
    with pytest.raises(DataError):
        CamVid(root)


@pytest.mark.parametrize("folder", ["train", "trainannot", "val", "valannot"])
def test_missing_or_empty_folder_shows_the_tree(tmp_path, folder):
    root = write_tree(tmp_path)
    for path in (root / folder).iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"(?s)no images in \S*{folder}\n.*  valannot/.*found:.*trainannot/"):
        CamVid(root)
    (root / folder).rmdir()
    with pytest.raises(FileNotFoundError, match=rf"no folder \S*{folder}\n"):
        CamVid(root)


def test_missing_root(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)expected below data\.root=.*nowhere does not exist"):
        CamVid(tmp_path / "nowhere")


def test_stems_without_a_partner_at_all(tmp_path):
    root = write_tree(tmp_path, train=("a",))
    (root / "trainannot" / "a.png").rename(root / "trainannot" / "x.png")
    with pytest.raises(FileNotFoundError, match=r"no photo of \S*train has a label map"):
        CamVid(root, on_error="skip")


@pytest.mark.skipif(not (REAL / "train").is_dir(), reason=f"no CamVid at DEPTHG_CAMVID or {REAL}")
def test_real_camvid():
    data = CamVid(REAL)
    assert (len(data.train), len(data.val)) == (367, 101)
    assert data.val.size(0) == (360, 480)
    counts = np.zeros(12, np.int64)
    for index in range(0, 101, 10):
        assert data.val.image(index).shape == (360, 480, 3)
        counts += np.bincount(data.val.label(index).ravel() + 1, minlength=12)
    assert (counts > 0).all()
    shares = dict(zip(data.classes, counts[1:] / counts[1:].sum(), strict=True))
    assert shares["road"] > 0.15 and shares["building"] > 0.1 and shares["sign"] < 0.05  # street scenes
    sky = np.concatenate([np.nonzero(data.val.label(index) == 0)[0] for index in range(0, 101, 10)])
    road = np.concatenate([np.nonzero(data.val.label(index) == 3)[0] for index in range(0, 101, 10)])
    assert sky.mean() < 120 < 240 < road.mean()  # rows
