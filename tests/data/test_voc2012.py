"""VOC 2012: palette PNGs, lists, every id, and what can be wrong with them."""

import shutil

import numpy as np
import pytest
from miniature_trees import VOC, VOC_FURTHER, VOC_SHAPE, photo, through, write_voc2012
from PIL import Image

from depthg.data import load_dataset
from depthg.data.files import DataError
from depthg.data.voc2012 import Voc2012

pytestmark = pytest.mark.filterwarnings("ignore:.*numbers are not comparable")
LIST = "ImageSets/Segmentation/train.txt"


@pytest.fixture
def root(tmp_path):
    return write_voc2012(tmp_path / "VOCdevkit" / "VOC2012")


@pytest.mark.parametrize("above", [0, 1, 2])
def test_splits_classes_and_photos(root, above):
    data = load_dataset("voc2012", root=[root, *root.parents][above])
    assert data.name == "voc2012" and data.test is None
    assert data.train.names == VOC["train"] and data.val.names == VOC["val"]
    assert len(data.classes) == 21 == len(set(data.classes)) and data.palette.shape == (21, 3)
    assert (data.classes[0], data.classes[15], data.classes[20]) == ("background", "person", "tv monitor")
    assert np.abs(data.train.image(3).astype(int) - photo(3, VOC_SHAPE)).mean() < 2  # JPEG
    assert data.note == "train: train.txt, 6 photos (usually 1,464); val: val.txt, 2 photos (usually 1,449)"


def test_palette_is_the_bit_pattern_of_the_development_kit(root):
    palette = Voc2012(root).palette
    for label in range(21):
        expected = [sum((label >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
        assert palette[label].tolist() == expected


def test_every_id(root):
    data = Voc2012(root)
    expected = through([*range(21), -1], 1, VOC_SHAPE)
    label = data.val.label(1)
    assert label.dtype == np.int64 and np.array_equal(label, expected)
    for id_ in range(256):
        Image.fromarray(np.full(VOC_SHAPE, id_, np.uint8)).save(data.val.labels[0])
        if id_ <= 20 or id_ == 255:
            assert set(np.unique(data.val.label(0))) == {id_ if id_ <= 20 else -1}
        else:
            with pytest.raises(DataError, match=rf"label ids {id_}, but .* only ids 0\.\.20, 255"):
                data.val.label(0)


def test_usual_counts_are_silent(root, monkeypatch, recwarn):
    monkeypatch.setattr("depthg.data.voc2012.COUNTS", {"train": 6, "val": 2})
    assert Voc2012(root).note == "train: train.txt, 6 photos; val: val.txt, 2 photos" and not recwarn.list


def test_further_label_maps(root):
    data = load_dataset("voc2012", root=root, list_train="ImageSets/Segmentation/trainaug.txt")
    assert data.train.names == [*VOC["train"], VOC_FURTHER] and "train: trainaug.txt, 7 photos" in data.note
    assert np.array_equal(data.train.label(6), through(range(21), 0, VOC_SHAPE))
    Image.new("L", VOC_SHAPE[::-1], 20).save(root / "SegmentationClassAug" / f"{VOC['train'][0]}.png")
    assert -1 in Voc2012(root).train.label(0), "the official map comes first"


@pytest.mark.parametrize("path", ["JPEGImages", "SegmentationClass", LIST])
def test_missing_part_shows_the_tree(root, path):
    (shutil.rmtree if (root / path).is_dir() else type(root).unlink)(root / path)
    with pytest.raises(FileNotFoundError, match=r"(?s)no (folder|list) .*as palette PNG.*found:\n.* holds"):
        Voc2012(root)


def test_lists_with_paths_are_refused(root):
    (root / LIST).write_text(f"/JPEGImages/{VOC['train'][0]}.jpg /SegmentationClassAug/{VOC['train'][0]}.png\n")
    with pytest.raises(
        DataError, match=r"train\.txt, line 1: .*leads out of the data set; a list holds one photo name"
    ):
        Voc2012(root)


def test_missing_members(root):
    (root / "SegmentationClass" / f"{VOC['train'][2]}.png").unlink()
    with pytest.raises(DataError, match=r"photo \S*2007_000063\.jpg has no label map \S*SegmentationClass/2007_000063"):
        Voc2012(root)
    with pytest.warns(UserWarning, match="skipped 1 of 6 photos"):
        data = Voc2012(root, on_error="skip")
    assert len(data.train) == 5 and "2007_000063" in data.train.skipped[0]


def test_colours_in_place_of_ids(root):
    path = root / "SegmentationClass" / f"{VOC['train'][1]}.png"
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(DataError, match=r"2007_000039\.png.*mode 'RGB'.*convert its colours to ids"):
        Voc2012(root).train.label(1)
    with pytest.warns(UserWarning, match="skipped 1 of 6 photos"):
        data = Voc2012(root, on_error="skip")
    assert len(data.train) == 5 and "6 photos (usually 1,464), 5 usable" in data.note
