"""COCO-Stuff-27: both layouts, lists and their counts, every id, and what can be wrong with them."""

import shutil

import numpy as np
import pytest
from miniature_trees import COCO, COCO_SHAPE, photo, through, write_cocostuff27
from PIL import Image

from depthg.data import load_dataset
from depthg.data.cocostuff27 import CocoStuff27, coarse_table
from depthg.data.files import DataError

pytestmark = pytest.mark.filterwarnings("ignore:.*numbers are not comparable")
COARSE = """
9 11 11 11 11 11 11 11 11 8 8 8 8 8 8 7 7 7 7 7 7 7 7 7 7 6 6 6 6 6 6 6 6 10 10 10 10 10 10 10 10 10 10 5 5 5 5
5 5 5 5 2 2 2 2 2 2 2 2 2 2 3 3 3 3 3 3 3 3 3 3 0 0 0 0 0 0 1 1 1 1 1 1 4 4 4 4 4 4 4 4 17 17 22 20 20 22 15 25
16 13 12 12 17 17 23 15 15 17 15 21 15 25 13 13 13 13 13 22 26 14 14 15 22 21 21 24 20 22 15 17 16 15 22 24 21
17 25 16 21 17 22 16 21 21 25 21 26 21 24 20 17 14 21 26 15 23 20 21 24 15 24 22 25 15 20 17 17 22 14 18 18 18
18 18 18 18 26 26 19 19 24
"""  # class of each id from 0 to 181


def names(part):
    return [f"{number:012}" for number in COCO[part]]


@pytest.mark.parametrize("layout", [(".", "annotations"), ("images", "annotations"), (".", "stuffthingmaps")])
def test_splits_classes_and_photos_without_lists(tmp_path, layout):
    root = write_cocostuff27(tmp_path, *layout)
    data = load_dataset("cocostuff27", root=root)
    assert data.name == "cocostuff27" and data.test is None
    assert data.train.names == names("train") and data.val.names == names("val")
    assert len(data.classes) == 27 == len(set(data.classes))
    assert (data.classes[0], data.classes[9], data.classes[26]) == ("electronic", "person", "water")
    assert data.palette.shape == (27, 3) and len({tuple(colour) for colour in data.palette.tolist()}) == 27
    assert np.abs(data.train.image(2).astype(int) - photo(COCO["train"][2], COCO_SHAPE)).mean() < 2  # JPEG
    assert data.note == (
        "train: no list, all 6 photos of train2017 (the usual list has 97,702); "
        "val: no list, all 3 photos of val2017 (the usual list has 2,175)"
    )


def test_every_id(tmp_path):
    table = coarse_table()
    assert (table[:182] >= 0).all() and (table[182:255] == -2).all() and table[255] == -1
    assert table[:182].tolist() == list(map(int, COARSE.split()))
    data = CocoStuff27(write_cocostuff27(tmp_path))
    label = data.val.label(1)
    ids = through([*range(182), 255], COCO["val"][1], COCO_SHAPE)
    assert label.dtype == np.int64 and np.array_equal(label, table[ids]) and set(np.unique(label)) == {-1, *range(27)}


@pytest.mark.parametrize("id_", [182, 200, 254])
def test_ids_that_do_not_exist(tmp_path, id_):
    data = CocoStuff27(write_cocostuff27(tmp_path))
    Image.fromarray(np.full(COCO_SHAPE, id_, np.uint8)).save(data.train.labels[0])
    with pytest.raises(DataError, match=rf"label ids {id_}, but .* only ids 0\.\.181, 255"):
        data.train.label(0)


def test_lists_at_the_usual_place(tmp_path, monkeypatch, recwarn):
    root = write_cocostuff27(tmp_path, curated=True)
    with pytest.warns(UserWarning, match=r"Coarse\.txt has 5 photos, usually 97,702"):
        data = CocoStuff27(root)
    assert data.train.names == names("train")[:-1] and data.val.names == names("val")[:-1]
    assert "train: Coco164kFull_Stuff_Coarse.txt, 5 photos (usually 97,702)" in data.note
    usual = {"train": ("Coco164kFull_Stuff_Coarse.txt", 5), "val": ("Coco164kFull_Stuff_Coarse_7.txt", 2)}
    monkeypatch.setattr("depthg.data.cocostuff27.LISTS", usual)
    recwarn.clear()
    assert CocoStuff27(root).note == (
        "train: Coco164kFull_Stuff_Coarse.txt, 5 photos; val: Coco164kFull_Stuff_Coarse_7.txt, 2 photos"
    )
    assert not recwarn.list


def test_lists_that_are_given(tmp_path):
    root = write_cocostuff27(tmp_path / "coco", curated=True)
    mine = tmp_path / "mine.txt"
    mine.write_text("\n".join(reversed(names("val"))))
    with pytest.warns(UserWarning, match=r"mine\.txt has 3 photos, usually 2,175"):
        data = load_dataset("cocostuff27", root=root, list_val=mine)
    assert data.val.names == names("val")[::-1], "the list's order"
    assert "val: mine.txt, 3 photos (usually 2,175)" in data.note
    with pytest.raises(FileNotFoundError, match=r"data\.list_train: there is no file \S*gone\.txt"):
        load_dataset("cocostuff27", root=root, list_train=tmp_path / "gone.txt")


@pytest.mark.parametrize("entry", ["../val2017/000000000139", "/etc/passwd", "train2017/../../x"])
def test_lists_that_leave_the_data_set(tmp_path, entry):
    root = write_cocostuff27(tmp_path / "coco")
    (tmp_path / "mine.txt").write_text(f"{names('train')[0]}\n{entry}\n")
    for on_error in ("raise", "skip"):
        with pytest.raises(DataError, match=r"line 2: .*leads out of the data set"):
            CocoStuff27(root, on_error, list_train=tmp_path / "mine.txt")


def test_listed_photos_that_are_missing(tmp_path):
    root = write_cocostuff27(tmp_path, curated=True)
    (root / "train2017" / f"{names('train')[1]}.jpg").unlink()
    (root / "annotations" / "train2017" / f"{names('train')[2]}.png").unlink()
    with pytest.raises(DataError, match=r"Coarse\.txt names 000000000025, but there is no photo \S*0025\.jpg \(2 such"):
        CocoStuff27(root)
    with pytest.warns(UserWarning, match="skipped 2 of 5 photos"):
        data = CocoStuff27(root, on_error="skip")
    assert data.train.names == [names("train")[i] for i in (0, 3, 4)] and len(data.train.skipped) == 2
    assert "5 photos (usually 97,702), 3 usable" in data.note


def test_photo_without_label_map(tmp_path):
    root = write_cocostuff27(tmp_path)
    (root / "annotations" / "val2017" / f"{names('val')[1]}.png").unlink()
    with pytest.raises(DataError, match=r"photo \S*val2017/000000000285\.jpg has no label map \S*000000000285\.png"):
        CocoStuff27(root)


def test_leftovers_of_converters_are_no_label_maps(tmp_path):
    root = write_cocostuff27(tmp_path)
    for name in names("val"):
        Image.new("L", COCO_SHAPE[::-1]).save(root / "annotations" / "val2017" / f"{name}_labelTrainIds.png")
    assert CocoStuff27(root).val.names == names("val")


@pytest.mark.parametrize("path", ["train2017", "val2017", "annotations", "annotations/val2017"])
def test_missing_folder_shows_the_tree(tmp_path, path):
    root = write_cocostuff27(tmp_path)
    shutil.rmtree(root / path)
    with pytest.raises(FileNotFoundError, match=r"(?s)no folder .*curated/train2017/Coco164k.*found:\n.* holds"):
        CocoStuff27(root)


def test_corrupt_members_are_skipped(tmp_path):
    root = write_cocostuff27(tmp_path)
    (root / "train2017" / f"{names('train')[0]}.jpg").write_bytes(b"")
    Image.new("RGB", COCO_SHAPE[::-1], (0, 0, 9)).save(root / "annotations" / "train2017" / f"{names('train')[1]}.png")
    with pytest.raises(DataError, match="mode 'RGB'"):
        CocoStuff27(root).train.label(1)
    with pytest.warns(UserWarning, match="skipped 2 of 6 photos"):
        data = CocoStuff27(root, on_error="skip")
    assert data.train.names == names("train")[2:]


def test_opening_looks_at_no_file(tmp_path, monkeypatch):
    """118,000 photos are listed, not opened or asked for their size one by one."""
    root = write_cocostuff27(tmp_path, curated=True)
    for module, name in (("os", "stat"), ("os", "lstat"), ("PIL.Image", "open")):
        original = getattr(__import__(module, fromlist=[name]), name)

        def spy(path, *arguments, original=original, **keywords):
            assert not str(path).endswith((".jpg", ".png")), f"{path} was looked at"
            return original(path, *arguments, **keywords)

        monkeypatch.setattr(f"{module}.{name}", spy)
    with pytest.warns(UserWarning, match="not comparable"):
        assert len(CocoStuff27(root).train) == 5
