"""Cityscapes: a miniature tree with every file kind, every id, and what can be wrong with it."""

import math
import shutil

import numpy as np
import pytest
from miniature_trees import CITY_SHAPE, photo, through, write_cityscapes
from PIL import Image

from depthg.data import load_dataset
from depthg.data.cityscapes import Cityscapes
from depthg.data.files import DataError

pytestmark = pytest.mark.filterwarnings("ignore:.*numbers are not comparable")
LABEL = "gtFine/train/aachen/aachen_000000_000001_gtFine_labelIds.png"
PHOTO = "leftImg8bit/train/aachen/aachen_000000_000001_leftImg8bit.png"


@pytest.fixture
def root(tmp_path):
    return write_cityscapes(tmp_path / "cityscapes")


def test_splits_classes_and_photos(root):
    data = load_dataset("cityscapes", root=root)
    assert data.name == "cityscapes" and data.test is None
    assert data.train.names == [f"aachen_000000_{n:06}" for n in range(4)] + [f"zurich_000000_{n:06}" for n in (0, 1)]
    assert data.val.names == [f"frankfurt_000000_{n:06}" for n in range(3)]
    assert data.train.relative[1] == PHOTO and data.train.labels[1] == root / LABEL
    assert len(data.classes) == 27 == len(set(data.classes))
    assert (data.classes[0], data.classes[11], data.classes[26]) == ("road", "polegroup", "bicycle")
    assert data.palette.shape == (27, 3) and tuple(data.palette[0]) == (128, 64, 128)
    assert np.array_equal(data.train.image(1), photo(1, CITY_SHAPE))
    assert data.train.size(1) == CITY_SHAPE and data.train.depth(1) is None
    assert 48 < data.val.fov_deg(0) < 49 and math.isclose(data.val.fov_deg(0), 48.7, abs_tol=0.1)


def test_every_id_of_a_map(root):
    expected = through(np.arange(34) - 7, 1, CITY_SHAPE)
    label = Cityscapes(root).train.label(1)
    assert label.dtype == np.int64 and np.array_equal(label, np.maximum(expected, -1))


def test_each_id_alone(root):
    split = Cityscapes(root).train
    for id_ in range(256):
        Image.fromarray(np.full(CITY_SHAPE, id_, np.uint8)).save(split.labels[0])
        if id_ <= 33 or id_ == 255:
            assert set(np.unique(split.label(0))) == {id_ - 7 if 7 <= id_ <= 33 else -1}
        else:
            with pytest.raises(DataError, match=rf"label ids {id_}, but the data set has only ids 0\.\.33, 255"):
                split.label(0)


def test_usual_counts_are_silent_and_others_are_said(root, monkeypatch, recwarn):
    with pytest.warns(UserWarning, match=r"leftImg8bit has 6 photos, usually 2,975"):
        data = Cityscapes(root)
    assert data.note == "train: leftImg8bit, 6 photos (usually 2,975); val: leftImg8bit, 3 photos (usually 500)"
    monkeypatch.setattr("depthg.data.cityscapes.COUNTS", {"train": 6, "val": 3})
    recwarn.clear()
    assert Cityscapes(root).note == "train: leftImg8bit, 6 photos; val: leftImg8bit, 3 photos" and not recwarn.list


@pytest.mark.parametrize("path", ["leftImg8bit", "gtFine", "leftImg8bit/val", "gtFine/train"])
def test_missing_folder_shows_the_tree(root, path):
    shutil.rmtree(root / path)
    with pytest.raises(FileNotFoundError, match=r"(?s)no folder .*labelIds\.png.*found:.*holds"):
        Cityscapes(root)


def test_wrong_kind_of_labels_shows_the_tree(root):
    for path in root.rglob("*_labelIds.png"):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    with pytest.raises(FileNotFoundError, match=r"no files \*_gtfine_labelids\.png in \S*gtFine/train"):
        Cityscapes(root)


def test_missing_members(root):
    (root / LABEL).unlink()
    with pytest.raises(DataError, match=rf"photo \S*{PHOTO} has no label map \S*{LABEL}"):
        Cityscapes(root)
    (root / PHOTO.replace("000001", "000002")).unlink()
    with pytest.warns(UserWarning, match="skipped 2 of 6 photos"):
        data = Cityscapes(root, on_error="skip")
    assert data.train.names[:2] == ["aachen_000000_000000", "aachen_000000_000003"] and len(data.train.skipped) == 2


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_in_place_of_ids(root, mode):
    Image.new(mode, CITY_SHAPE[::-1], (1, 2, 3)).save(root / LABEL)
    with pytest.raises(DataError, match=rf"labelIds\.png.*mode '{mode}'.*convert its colours"):
        Cityscapes(root).train.label(1)


def test_corrupt_members_are_named_or_skipped(root):
    (root / PHOTO).write_bytes((root / PHOTO).read_bytes()[:60])
    (root / LABEL.replace("000001", "000003")).write_bytes(b"")
    Image.new("L", (7, 9)).save(root / LABEL.replace("000001", "000002"))
    data = Cityscapes(root)
    with pytest.raises(DataError, match=PHOTO):
        data.train.image(1)
    with pytest.raises(DataError, match=r"is 9 x 7 .* is 20 x 40"):
        data.train.label(2)
    with pytest.warns(UserWarning, match="skipped 3 of 6 photos"):
        data = Cityscapes(root, on_error="skip")
    assert len(data.train) == 3 and len(data.train.skipped) == 3 and data.train.fov_deg(0) is not None


def sequences(root, folder):
    """Two frames beside every labelled photo of training, and the labelled ones again."""
    for path in sorted((root / "leftImg8bit" / "train").rglob("*.png")):
        for step in (0, 100, 200):
            city, sequence, number, _ = path.name.split("_")
            target = folder / "train" / city / f"{city}_{sequence}_{int(number) + step:06}_leftImg8bit.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo(step, CITY_SHAPE)).save(target)


@pytest.mark.parametrize("inside", [True, False])
def test_frames_without_labels_train_too(root, tmp_path, inside):
    folder = root / "leftImg8bit_sequence" if inside else tmp_path / "elsewhere"
    sequences(root, folder)
    given = "leftImg8bit_sequence" if inside else folder
    plain, data = load_dataset("cityscapes", root=root), load_dataset("cityscapes", root=root, unlabelled=given)
    assert len(plain.train) == 6 and len(data.train) == 18 and data.val.names == plain.val.names
    assert data.train.names[:6] == plain.train.names and len(set(data.train.names)) == 18
    assert all((data.train.label(n) == plain.train.label(n)).all() for n in range(6))
    assert all((data.train.image(n) == plain.train.image(n)).all() for n in range(6)), "labelled photos come once"
    assert all((data.train.label(n) == -1).all() and data.train.fov_deg(n) for n in range(6, 18))
    assert data.note.startswith(f"train: leftImg8bit and {folder.name}, 18 photos, 6 with labels; val: leftImg8bit, 3")


def test_photos_without_labels_beside_the_others(root):
    (root / LABEL).unlink()
    data = Cityscapes(root, unlabelled="leftImg8bit")
    assert (
        len(data.train) == 6
        and (data.train.label(5) == -1).all()
        and (data.train.image(5) == photo(1, CITY_SHAPE)).all()
    )
    with pytest.raises(FileNotFoundError, match=r"no folder \S*gone/train"):
        Cityscapes(root, unlabelled="gone")
    with pytest.raises(ValueError, match=r"data=camvid has no use for data\.unlabelled \(only cityscapes\)"):
        load_dataset("camvid", root=root, unlabelled="leftImg8bit")
