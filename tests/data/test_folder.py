"""Anybody's photos: mixed sizes and formats, subfolders, odd names, bad files, label maps, lists."""

import re

import numpy as np
import pytest
from PIL import Image

from depthg.data import kinds, load_dataset
from depthg.data.files import DataError
from depthg.data.folder import Folder, spread


def write(path, shape=(20, 30), mode="RGB", value=100, blue=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", shape[::-1], (value, value, value if blue is None else blue)).convert(mode).save(path)
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


def test_every_file_that_is_not_used_is_counted_by_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(kinds, "HEIF_READ", False)
    monkeypatch.setattr(kinds, "IMAGE_SUFFIXES", (".png", ".jpg"))
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    for name in ("phone.HEIC", "more.heic", "raw.dng", "notes", "sub/train.txt", "sub/other.txt", ".hidden.heic"):
        (root / name).write_text("a")
    advice = "(pip install 'depthg[heic]' reads .heic; convert .dng to .jpg or .png)"
    message = f"1 .dng, 2 .heic, 2 .txt, 1 without suffix {advice}"
    with pytest.raises(FileNotFoundError, match=rf"but {re.escape(message)}"):
        Folder(root)
    write(root / "a.png")
    with pytest.warns(UserWarning, match=rf"photos: 1 photos; not used: {re.escape(message)}") as caught:
        assert len(Folder(root).train) == 1
    assert len(caught) == 1, "one line"
    with pytest.warns(UserWarning, match=r"2 \.heic, 1 \.txt, 1 without"):
        Folder(root, list_train="sub/train.txt")


def test_nothing_is_said_where_every_file_is_used(tmp_path, recwarn):
    options = labelled(tmp_path)
    (tmp_path / "classes.txt").rename(options["root"] / "classes.txt")
    (tmp_path / "labels").rename(options["root"] / "labels")
    (options["root"] / "val.txt").write_text("01\n02\n")
    root = options["root"]
    Folder(root, labels=root / "labels", classes=root / "classes.txt", list_val="val.txt")
    assert not recwarn.list


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


# ---- lists


def numbered(root, n=8):
    for number in range(n):
        write(root / f"{number:02}.png", value=number)
    return root


def test_lists_choose_photos(tmp_path):
    root = numbered(tmp_path / "photos")
    write(root / "sub" / "x y.jpg")
    (tmp_path / "train.txt").write_text("03\n01.png\nsub/x y\n")
    (tmp_path / "val.txt").write_text("sub/x y.jpg\n07\n")
    data = load_dataset("folder", root=root, list_train=tmp_path / "train.txt", list_val=tmp_path / "val.txt")
    assert data.train.names == ["03", "01", "sub_x y"] and data.val.names == ["sub_x y", "07"]
    data = load_dataset("folder", root=root, list_train=tmp_path / "train.txt", n_val=2)
    assert data.val.names == ["03", "sub_x y"], "of the training photos, without labels"
    data = load_dataset("folder", root=root, list_val=tmp_path / "val.txt")
    assert len(data.train) == 9


def test_lists_from_windows(tmp_path):
    root = numbered(tmp_path / "photos")
    for name in ("x.jpg", "y.jpg", "z.jpg"):
        write(root / "sub" / "deep" / name)
    (tmp_path / "train.txt").write_text(
        "sub\\deep\\x.jpg\r\n.\\sub\\deep\\y\r\n03\r\n./04.png\r\n", "utf-16", newline=""
    )
    assert Folder(root, list_train=tmp_path / "train.txt").train.names == ["sub_deep_x", "sub_deep_y", "03", "04"]
    (tmp_path / "train.txt").write_text("sub\\deep\\q.jpg\n")
    with pytest.raises(DataError, match=r"names sub\\deep\\q\.jpg, but there is no such photo"):
        Folder(root, list_train=tmp_path / "train.txt")


def test_lists_that_fit_badly(tmp_path):
    root = numbered(tmp_path / "photos", 3)
    write(root / "01.jpg")
    for text, message in (
        ("02\n01\n", r"names 01, which fits 2 photos: add the suffix"),
        ("09\n", r"names 09, but there is no such photo below \S*photos"),
        ("../x\n", "line 1: .*leads out of the data set"),
    ):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(DataError, match=rf"list\.txt.*{message}"):
            Folder(root, list_train=tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("09\n02\n")
    with pytest.warns(UserWarning, match="skipped 1 of 2 photos"):
        assert Folder(root, on_error="skip", list_train=tmp_path / "list.txt").train.names == ["02"]
    (tmp_path / "list.txt").write_text("09\n")
    with pytest.warns(UserWarning), pytest.raises(DataError, match="names no photo below"):
        Folder(root, on_error="skip", list_train=tmp_path / "list.txt")


# ---- labels

CLASSES = "0 void\n1 road #804080\n2 sky\n"


def labelled(tmp_path, n=8, with_map=None):
    """Photos 00 to 0n, label maps in which photo number k has k % 3 everywhere, and the class file."""
    root = numbered(tmp_path / "photos", n)
    for number in range(n) if with_map is None else with_map:
        path = tmp_path / "labels" / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (30, 20), number % 3).save(path)
    (tmp_path / "classes.txt").write_text(CLASSES)
    return {"root": root, "labels": tmp_path / "labels", "classes": tmp_path / "classes.txt"}


def test_labels_of_all_photos(tmp_path):
    data = load_dataset("folder", **labelled(tmp_path))
    assert data.classes == ("road", "sky") and data.palette[0].tolist() == [128, 64, 128]
    assert data.val.names == ["00", "02", "05", "07"] and data.train.names == ["01", "03", "04", "06"]
    assert [int(data.val.label(i)[0, 0]) for i in range(4)] == [-1, 1, 1, 0]
    assert [int(data.train.label(i)[0, 0]) for i in range(4)] == [0, -1, 0, -1]
    assert data.note == "labels for 8 of 8 photos, 4 scored" and data.train.table is not None
    assert load_dataset("folder", **labelled(tmp_path / "other"), n_val=1).val.names == ["00"]


def test_all_labelled_photos_are_scored_where_nothing_is_trained(tmp_path):
    options = labelled(tmp_path, 8, with_map=(1, 2, 5, 7))
    data = load_dataset("folder", **options, held_out=False)
    assert data.val.names == ["01", "02", "05", "07"] and data.train.names == [f"0{number}" for number in range(8)]
    assert data.note == "labels for 4 of 8 photos, 4 scored"
    assert load_dataset("folder", **options, held_out=False, n_val=2).val.names == ["01", "07"]
    (tmp_path / "list.txt").write_text("02\n01\n")
    data = load_dataset("folder", **options, held_out=False, list_val=tmp_path / "list.txt")
    assert data.val.names == ["02", "01"] and len(data.train) == 8
    data = load_dataset("folder", **options, held_out=False, list_train=tmp_path / "list.txt")
    assert len(data.val) == 4 and data.train.names == ["02", "01"]


def test_there_is_no_limit_on_what_is_scored_where_nothing_is_trained(tmp_path):
    options = labelled(tmp_path, 130)
    numbers = [len(load_dataset("folder", **options, held_out=held_out).val) for held_out in (True, False)]
    assert numbers == [60, 130]
    del options["labels"], options["classes"]
    assert len(load_dataset("folder", **options, held_out=False).val) == 60, "nothing is scored without labels"


def test_photos_without_label_map_train_all_void(tmp_path):
    data = load_dataset("folder", **labelled(tmp_path, with_map=(1, 2, 5, 7)))
    assert data.val.names == ["01", "07"] and data.train.names == ["00", "02", "03", "04", "05", "06"]
    assert (data.train.label(0) == -1).all() and (data.train.label(1) == 1).all()
    assert data.note == "labels for 4 of 8 photos, 2 scored"


def test_lists_with_labels(tmp_path):
    options = labelled(tmp_path, with_map=(1, 2, 5, 7))
    (tmp_path / "val.txt").write_text("07\n01\n05\n")
    data = load_dataset("folder", **options, list_val=tmp_path / "val.txt")
    assert data.val.names == ["07", "01", "05"] and data.train.names == ["00", "02", "03", "04", "06"]
    (tmp_path / "train.txt").write_text("00\n01\n")
    data = load_dataset("folder", **options, list_train=tmp_path / "train.txt")
    assert data.train.names == ["00", "01"] and data.val.names == ["02", "05", "07"], "all that are left"
    with pytest.warns(UserWarning, match=r"1 photos are in data\.list_train and in data\.list_val"):
        load_dataset("folder", **options, list_train=tmp_path / "train.txt", list_val=tmp_path / "val.txt")
    (tmp_path / "train.txt").write_text("01\n02\n05\n07\n")
    with pytest.raises(DataError, match=r"no photo with a label map is left to score; .*data\.list_val"):
        load_dataset("folder", **options, list_train=tmp_path / "train.txt")
    (tmp_path / "val.txt").write_text("".join(f"0{number}\n" for number in range(8)))
    with pytest.raises(DataError, match=r"every photo is scored, none is left to train on"):
        load_dataset("folder", **options, list_val=tmp_path / "val.txt")


def test_label_maps_in_subfolders_and_below_the_photos(tmp_path):
    root = tmp_path / "photos"
    for name in ("a/1.jpg", "b/1.png", "c.png"):
        write(root / name)
    for name in ("a/1.png", "b/1.png"):
        write(root / "labels" / name, mode="L", value=1)
    (tmp_path / "classes.txt").write_text("grass\ntree\n")
    data = Folder(root, labels=root / "labels", classes=tmp_path / "classes.txt")
    assert sorted(data.train.names + data.val.names) == ["a_1", "b_1", "c"], "label maps are no photos"
    assert (data.val.label(0) == 1).all()


def test_label_maps_that_fit_badly(tmp_path):
    options = labelled(tmp_path)
    write(tmp_path / "labels" / "99.png", mode="L")
    with pytest.raises(DataError, match=r"label map \S*labels/99\.png has no photo \S*photos/99\.\*"):
        load_dataset("folder", **options)
    with pytest.warns(UserWarning, match="skipped 1 of"):
        data = load_dataset("folder", **options, on_error="skip")
    assert "99.png" in data.train.skipped[0]
    (tmp_path / "labels" / "99.png").unlink()
    write(tmp_path / "photos" / "03.jpg")
    with pytest.raises(DataError, match=r"03\.jpg and \S*03\.png have the same name but for the suffix"):
        load_dataset("folder", **options)


@pytest.mark.parametrize(
    ("mode", "value", "message"), [("RGB", 1, "the colours #010109"), ("L", 7, r"label ids 7, but .* 0\.\.2, 255")]
)
def test_bad_label_maps_are_named_or_skipped(tmp_path, mode, value, message):
    options = labelled(tmp_path)
    write(tmp_path / "labels" / "01.png", mode=mode, value=value, blue=9 if mode == "RGB" else None)
    with pytest.raises(DataError, match=rf"labels/01\.png.*{message}"):
        load_dataset("folder", **options).train.label(0)
    with pytest.warns(UserWarning, match="skipped 1 of 8 photos"):
        data = load_dataset("folder", **options, on_error="skip")
    assert "01" not in data.train.names + data.val.names and data.note == "labels for 7 of 7 photos, 3 scored"
    assert [int(data.val.label(i)[0, 0]) for i in range(3)] == [-1, 0, 0]


def test_labels_and_classes_go_together(tmp_path):
    options = labelled(tmp_path)
    for key in ("labels", "classes"):
        with pytest.raises(ValueError, match="go together"):
            load_dataset("folder", **{name: value for name, value in options.items() if name != key})
    with pytest.raises(ValueError, match=r"photos is data\.root itself"):
        load_dataset("folder", **options | {"labels": options["root"]})
    with pytest.raises(FileNotFoundError, match=r"(?s)no folder \S*gone\nexpected.*label maps of ids"):
        load_dataset("folder", **options | {"labels": tmp_path / "gone"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"(?s)no images in \S*empty\nexpected.*label maps of ids"):
        load_dataset("folder", **options | {"labels": tmp_path / "empty"})
