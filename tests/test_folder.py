"""Anybody's photos: mixed sizes and formats, subfolders, odd names, bad files."""

import numpy as np
import pytest
from PIL import Image

from depthg.data.files import DataError
from depthg.data.folder import Folder, spread


def write(path, shape=(20, 30), mode="RGB", value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", shape[::-1], (value, value, value)).convert(mode).save(path)
    return path


def test_mixed_photos(tmp_path):
    write(tmp_path / "b.jpg", (20, 30))
    write(tmp_path / "holiday photos" / "Zürich 1.PNG", (31, 17), "P")
    write(tmp_path / "a.tif", (9, 9), "CMYK")
    write(tmp_path / "grey.webp", (12, 40))
    (tmp_path / "notes.txt").write_text("not a photo")
    data = Folder(tmp_path)
    assert data.name == "folder" and data.classes == () and data.palette.shape == (0, 3)
    assert data.train.names == ["a", "b", "grey", "holiday photos_Zürich 1"]
    assert [data.train.image(i).shape for i in range(4)] == [(9, 9, 3), (20, 30, 3), (12, 40, 3), (31, 17, 3)]
    assert all(data.train.label(i) is None and data.train.depth(i) is None for i in range(4))
    assert len(data.val) == 4
    assert Folder(tmp_path).train.relative == data.train.relative


def test_val_is_an_evenly_spread_subset(tmp_path):
    for number in range(11):
        write(tmp_path / f"{number:02}.png", value=number)
    data = Folder(tmp_path, n_val=3)
    assert data.val.names == ["00", "05", "10"]
    assert (data.val.image(1) == 5).all()


@pytest.mark.parametrize(("total", "n"), [(1, 60), (60, 60), (61, 60), (500, 60), (7, 1)])
def test_spread(total, n):
    chosen = spread(total, n)
    assert len(chosen) == min(n, total) == len(set(chosen.tolist()))
    assert chosen[0] == 0 and chosen.max() < total and (np.diff(chosen) > 0).all()
    if len(chosen) > 1:
        assert chosen[-1] == total - 1
        assert np.ptp(np.diff(chosen)) <= 1


def test_two_photos_with_one_stem_are_two_photos(tmp_path):
    for name in ("a.jpg", "a.png", "sub/a.jpg", "sub_a.jpg"):
        write(tmp_path / name)
    names = Folder(tmp_path).train.names
    assert len(set(names)) == 4 and names[:2] == ["a.jpg", "a.png"]


def test_symlink_loop(tmp_path):
    write(tmp_path / "sub" / "a.png")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    assert Folder(tmp_path).train.names == ["sub_a"]


@pytest.mark.parametrize("case", ["missing", "empty", "file", "text"])
def test_no_photos(tmp_path, case):
    root = tmp_path / "root"
    if case == "file":
        root.touch()
    elif case != "missing":
        root.mkdir()
    if case == "text":
        (root / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"(?s)no photos below .*root.*expected.*\.jpg.*found:") as error:
        Folder(root)
    assert case != "text" or "holds notes.txt" in str(error.value)


def test_formats_that_cannot_be_read_are_counted(tmp_path):
    (tmp_path / "phone.HEIC").touch()
    (tmp_path / "more.heic").touch()
    with pytest.raises(FileNotFoundError, match=r"but 2 \.heic: convert them"):
        Folder(tmp_path)
    write(tmp_path / "a.png")
    with pytest.warns(UserWarning, match=r"left out 2 \.heic"):
        assert len(Folder(tmp_path).train) == 1


def test_unreadable_photos(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:50])
    data = Folder(tmp_path)
    with pytest.raises(DataError, match=r"b\.png"):
        data.train.image(1)
    with pytest.warns(UserWarning, match="skipped 1 of 3 photos"):
        data = Folder(tmp_path, on_error="skip")
    assert data.train.names == ["a", "c"] == data.val.names
    assert "b.png" in data.train.skipped[0]


def test_n_val(tmp_path):
    with pytest.raises(ValueError, match="n_val=0"):
        Folder(tmp_path, n_val=0)
