"""Potsdam-3: tiles in MATLAB files, lists, every id, damaged files, and the released depth."""

import shutil

import numpy as np
import pytest
import torch
from miniature import settings, write_camvid
from miniature_trees import TILE, TILES, photo, through, write_potsdam3
from scipy.io import savemat

from depthg.data import load_dataset
from depthg.data.files import DataError
from depthg.data.potsdam3 import Potsdam3
from depthg.depth.maps import MappedDepth
from depthg.features.preparation import Preparation
from depthg.kernels import farthest_point_sample_depth

pytestmark = pytest.mark.filterwarnings("ignore:.*numbers are not comparable")
COARSE = {0: 0, 1: 1, 2: 2, 3: 2, 4: 0, 5: 1, 255: -1}


@pytest.fixture
def root(tmp_path):
    return write_potsdam3(tmp_path / "potsdam")


def test_splits_classes_and_tiles(root):
    data = load_dataset("potsdam3", root=root)
    assert data.name == "potsdam3" and data.test is None
    assert data.train.names == TILES["labelled_train"] and data.val.names == TILES["labelled_test"]
    assert data.classes == ("roads and cars", "buildings and clutter", "vegetation and trees")
    assert data.palette.shape == (3, 3) and data.palette.dtype == np.uint8
    image = data.train.image(2)
    assert np.array_equal(image, photo(12, TILE)) and image.flags.c_contiguous, "infrared is left out"
    assert data.train.size(2) == TILE and data.train.depth(2) is None
    assert data.note == (
        "train: labelled_train.txt, 6 photos (usually 4,545); val: labelled_test.txt, 2 photos (usually 855)"
    )


def test_every_id(root):
    data = Potsdam3(root)
    ids = through(np.arange(6), 12, TILE)
    label = data.train.label(2)
    assert label.dtype == np.int64 and np.array_equal(label, np.vectorize(COARSE.get)(ids))
    for dtype in (np.uint8, np.int32, np.float64):
        for id_ in range(256):
            savemat(data.train.labels[0], {"gt": np.full(TILE, id_, dtype)}) if id_ < 8 or id_ > 253 else None
            if id_ in COARSE:
                assert set(np.unique(data.train.label(0))) == {COARSE[id_]}
            elif id_ < 8 or id_ > 253:
                with pytest.raises(DataError, match=rf"7\.mat has the label ids {id_}, but .* only ids 0\.\.5, 255"):
                    data.train.label(0)


def test_usual_counts_are_silent(root, monkeypatch, recwarn):
    usual = {"train": ("labelled_train.txt", 6), "val": ("labelled_test.txt", 2)}
    monkeypatch.setattr("depthg.data.potsdam3.LISTS", usual)
    assert Potsdam3(root).note == "train: labelled_train.txt, 6 photos; val: labelled_test.txt, 2 photos"
    assert not recwarn.list


def test_unlabelled_tiles_train_without_labels(root):
    data = load_dataset("potsdam3", root=root, list_train="unlabelled_train.txt")
    assert data.train.names == TILES["unlabelled_train"] and "train: unlabelled_train.txt, 2 photos" in data.note
    assert (data.train.label(0) == -1).all() and data.train.label(0).shape == TILE
    mine = root.parent / "mine.txt"
    mine.write_text("2\n")
    with pytest.raises(DataError, match=r"photo \S*imgs/2\.mat has no label map \S*gt/2\.mat"):
        Potsdam3(root, list_train=mine)


@pytest.mark.parametrize("path", ["imgs", "gt", "labelled_train.txt", "labelled_test.txt"])
def test_missing_part_shows_the_tree(root, path):
    (shutil.rmtree if (root / path).is_dir() else type(root).unlink)(root / path)
    with pytest.raises(FileNotFoundError, match=r"(?s)no (folder|list) .*in the variable img.*found:\n.* holds"):
        Potsdam3(root)


@pytest.mark.parametrize("entry", ["../gt/7", "/tmp/7", "..\\7"])
def test_list_that_leaves_the_data_set(root, entry):
    (root / "labelled_train.txt").write_text(f"7\n{entry}\n")
    with pytest.raises(DataError, match=r"labelled_train\.txt, line 2: .*leads out"):
        Potsdam3(root)


def test_missing_tile(root):
    (root / "imgs" / "3.mat").unlink()
    with pytest.raises(DataError, match=r"labelled_train\.txt names 3, but there is no photo \S*imgs/3\.mat"):
        Potsdam3(root)
    with pytest.warns(UserWarning, match="skipped 1 of 6 photos"):
        data = Potsdam3(root, on_error="skip")
    assert data.train.names == ["7", "12", "5", "0", "8"] and "6 photos (usually 4,545), 5 usable" in data.note


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": np.zeros((*TILE, 4), np.uint8)}, "has no variable 'img'; it holds image"),
        ({"img": np.zeros(TILE, np.uint8)}, r"img is uint8 \(200, 200\); expected"),
        ({"img": np.zeros((*TILE, 4), np.float32)}, "img is float32"),
        ({"img": np.zeros((*TILE, 2), np.uint8)}, r"img is uint8 \(200, 200, 2\)"),
        ({"img": "text"}, "its variable 'img' holds no real numbers"),
        ({}, "has no variable 'img'; it holds nothing"),
    ],
)
def test_wrong_contents_of_a_tile(root, values, message):
    savemat(root / "imgs" / "7.mat", values)
    with pytest.raises(DataError, match=rf"7\.mat:? .*{message}"):
        Potsdam3(root).train.image(0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((*TILE, 3), np.uint8), r"gt is uint8 \(200, 200, 3\); expected whole numbers"),
        (np.full(TILE, 0.5), "gt is float64"),
        (np.full(TILE, np.nan), "gt is float64"),
        (np.zeros((100, 200), np.uint8), "is 100 x 200 .* is 200 x 200"),
    ],
)
def test_wrong_contents_of_a_label_map(root, values, message):
    savemat(root / "gt" / "7.mat", {"gt": values})
    with pytest.raises(DataError, match=rf"7\.mat.*{message}"):
        Potsdam3(root).train.label(0)


@pytest.mark.parametrize("content", [b"", b"MATLAB", b"<html>404</html>" * 40, b"\x89HDF\r\n\x1a\n" + bytes(600)])
def test_files_that_are_no_matlab_files(root, content):
    (root / "imgs" / "7.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read \S*imgs/7\.mat: .*on_error=skip"):
        Potsdam3(root).train.image(0)
    with pytest.warns(UserWarning, match="skipped 1 of 6"):
        assert len(Potsdam3(root, on_error="skip").train) == 5


# ---- depth


def test_released_depth_is_truncated_to_nothing_and_sampling_to_the_first_rows(root):
    split = Potsdam3(root).train
    ramp = np.linspace(0.2, 0.9, TILE[0] * TILE[1], dtype=np.float32).reshape(TILE)
    ramp[0, 0] = 1
    maps = [MappedDepth(split, lambda split, index: ramp, "none", truncate=truncate)(0) for truncate in (False, True)]
    assert np.array_equal(maps[0], ramp)
    assert maps[1].dtype == np.float32 and maps[1][0, 0] == 1 and (maps[1].ravel()[1:] == 0).all()
    cells = [torch.from_numpy(depth[50:150, 50:150].reshape(10, 10, 10, 10).mean((1, 3))) for depth in maps]
    picked, degenerate = (farthest_point_sample_depth(cell[None], 9)[0] // 10 for cell in cells)
    assert len(picked.unique()) > 3 and (degenerate == 0).all(), "rows of the chosen cells"


@pytest.mark.parametrize(("truncate", "on_tiles", "elsewhere"), [
    ("none", False, False), ("potsdam3", True, False), ("all", True, True),
])  # fmt: skip
def test_who_gets_truncated_depth(root, tmp_path, truncate, on_tiles, elsewhere):
    (tmp_path / "depth").mkdir()
    for tile in [tile for tiles in TILES.values() for tile in tiles]:
        np.save(tmp_path / "depth" / f"{tile}.npy", np.full(TILE, 0.5, np.float32))
    camvid = write_camvid(tmp_path / "camvid", 6, 1)
    more = ("depth.mapping=linear", "depth.far=1000", f"depth.truncate={truncate}")
    tiles = settings(root, "data=potsdam3", "data.crop=none", *more, f"depth.root={tmp_path / 'depth'}")
    for config, zero in ((tiles, on_tiles), (settings(camvid, *more), elsewhere)):
        preparation = Preparation(config, torch.device("cpu"))
        depth = preparation.depth(preparation.train_views, (8, 8))["depth"].reshape(-1, 8, 8)
        assert np.array_equal(depth[:, -1] == 0, np.full((len(depth), 8), zero)), "the row nearest to the camera"
