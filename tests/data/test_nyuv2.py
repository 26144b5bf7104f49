"""NYU Depth V2: a miniature of MATLAB's HDF5 file, all 894 ids, depth, and damaged files."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from miniature_trees import NYU, NYU_SHAPE, photo, through, write_nyuv2
from scipy.io import savemat

from depthg.data import load_dataset
from depthg.data.files import DataError
from depthg.data.nyuv2 import FURNITURE, STRUCTURE, NyuV2, fine_table
from depthg.depth.sources import depth_source

h5py = pytest.importorskip("h5py", reason="the data set is HDF5")
pytestmark = pytest.mark.filterwarnings("ignore:.*numbers are not comparable")


@pytest.fixture
def root(tmp_path):
    return write_nyuv2(tmp_path / "nyu")


def test_splits_classes_and_photos(root):
    data = load_dataset("nyuv2", root=root)
    assert data.name == "nyuv2" and data.test is None
    assert data.train.names == [f"{number:04}" for number in NYU["trainNdxs"]]
    assert data.val.names == [f"{number:04}" for number in NYU["testNdxs"]]
    assert len(data.classes) == 40 == len(set(data.classes)) and data.palette.shape == (40, 3)
    assert (data.classes[0], data.classes[1], data.classes[36]) == ("wall", "floor", "bag")
    assert data.classes[37:] == ("other structure", "other furniture", "other prop")
    for split, key in ((data.train, "trainNdxs"), (data.val, "testNdxs")):
        for index, number in enumerate(NYU[key]):
            assert np.array_equal(split.image(index), photo(number, NYU_SHAPE)), "numbers count from 1"
            assert split.size(index) == NYU_SHAPE
    assert 63 < data.train.fov_deg(0) < 64
    assert data.note == "train: splits.mat, 6 photos (usually 795); val: splits.mat, 3 photos (usually 654)"


def test_depth_in_metres_is_the_photo_s(root):
    split = NyuV2(root).train
    number = NYU["trainNdxs"][3]
    expected = np.linspace(number, number + 4, NYU_SHAPE[0] * NYU_SHAPE[1], dtype=np.float32).reshape(NYU_SHAPE)
    for depth in (split.depth(3), depth_source("dataset")(split, 3)):
        assert depth.dtype == np.float32 and np.allclose(depth, expected)


def test_every_id(root):
    table = fine_table()
    assert len(table) == 895 and table[0] == -1 and set(table[1:]) == set(range(40))
    counts = np.bincount(table[1:])
    assert (counts[:37] == 1).all() and counts[37:].tolist() == [68, 82, 707]
    known = {"wall": 21, "floor": 11, "ceiling": 4, "chair": 5, "person": 331, "bag": 55}
    names = NyuV2(root).classes
    for name, fine in known.items():
        assert names[table[fine]] == name
    assert (table[list(map(int, STRUCTURE.split()))] == 37).all()
    assert (table[list(map(int, FURNITURE.split()))] == 38).all()
    label = NyuV2(root).val.label(1)
    expected = table[through(np.arange(895), NYU["testNdxs"][1] - 1, NYU_SHAPE)]
    assert label.dtype == np.int64 and np.array_equal(label, expected) and set(np.unique(label)) == {-1, *range(40)}


def test_ids_that_do_not_exist(root):
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "r+") as file:
        file["labels"][0, 3, 3] = 895
    with pytest.raises(DataError, match=r"labeled\.mat has the label ids 895, but .* only ids 0\.\.894"):
        NyuV2(root).val.label(0)


def test_usual_counts_are_silent(root, monkeypatch, recwarn):
    monkeypatch.setattr("depthg.data.nyuv2.COUNTS", {"train": 6, "val": 3})
    assert NyuV2(root).note == "train: splits.mat, 6 photos; val: splits.mat, 3 photos" and not recwarn.list


def test_threads_read_the_right_photos(root):
    split = NyuV2(root).train
    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(lambda index: int(split.image(index)[0, 0, 0]), list(range(6)) * 10))
    assert values == NYU["trainNdxs"] * 10


@pytest.mark.parametrize("name", ["nyu_depth_v2_labeled.mat", "splits.mat"])
def test_missing_file_shows_what_is_expected(root, name):
    (root / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"(?s)no file \S*{name}.*trainNdxs \(795\).*found:\n.* holds"):
        NyuV2(root)


def test_damaged_files(root):
    path = root / "nyu_depth_v2_labeled.mat"
    whole = path.read_bytes()
    for content in (b"", b"<html>404</html>", whole[:700], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read \S*labeled\.mat"):
            NyuV2(root)


def test_a_damaged_photo_is_named_or_skipped(root):
    path = root / "nyu_depth_v2_labeled.mat"
    with h5py.File(path) as file:
        chunks = [file["images"].id.get_chunk_info(number) for number in range(file["images"].id.get_num_chunks())]
    chunk = next(chunk for chunk in chunks if chunk.chunk_offset[0] == 0)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * min(chunk.size, 40))
    with pytest.raises(DataError, match=r"cannot read \S*labeled\.mat"):
        NyuV2(root).val.image(0)  # number 1
    with pytest.warns(UserWarning, match="skipped"):
        data = NyuV2(root, on_error="skip")
    assert "0001" not in data.val.names and len(data.val) < 3


def test_contents_of_another_shape(root):
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "r+") as file:
        del file["depths"]
        file["depths"] = np.zeros((2, 3, 4))
    with pytest.raises(DataError, match=r"labeled\.mat holds .*expected images \[photos, 3, width, height\]"):
        NyuV2(root)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "r+") as file:
        del file["depths"]
    with pytest.raises(DataError, match=r"cannot read \S*labeled\.mat.*depths"):
        NyuV2(root)


@pytest.mark.parametrize("numbers", [[0, 1], [9, 10], [2, 2], []])
def test_impossible_splits(root, numbers):
    savemat(root / "splits.mat", {"trainNdxs": np.array(numbers, np.uint16), "testNdxs": np.array([1])})
    with pytest.raises(DataError, match=r"splits\.mat: trainNdxs must hold different photo numbers from 1 to 9"):
        NyuV2(root)


def test_without_h5py(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="needs h5py: python -m pip install h5py"):
        NyuV2(root)
