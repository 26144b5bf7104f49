"""Photos and label maps by name, list files (also hostile ones), and what is said about their counts."""

import os
import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image

from depthg.data.files import DataError
from depthg.data.pairing import (
    by_stem,
    count_note,
    find_files,
    find_list,
    make_split,
    pair_files,
    pair_listed,
    read_list,
)


def write_photos(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (18, 12)).save(folder / name)
    return [folder / name for name in names]


def places(root):
    return {
        "photo_path": lambda key: root / "train" / f"{key}.*",
        "label_path": lambda key: root / "annot" / f"{key}.png",
    }


def pair(root, on_error="raise", photos=("a.jpg", "b.png"), labels=("a.png", "b.png")):
    images, maps = write_photos(root / "train", photos), write_photos(root / "annot", labels)
    return pair_files(by_stem(images), by_stem(maps), on_error=on_error, **places(root))


def test_pairs_go_by_stem(tmp_path):
    pairs, alone = pair(tmp_path)
    assert [(a.name, b.name) for a, b in pairs] == [("a.jpg", "a.png"), ("b.png", "b.png")] and alone == []


def test_accents_spelled_in_two_ways_are_one_stem(tmp_path):
    composed, split_up = (unicodedata.normalize(form, "Zürich.png") for form in ("NFC", "NFD"))
    assert composed != split_up
    pairs, _ = pair(tmp_path, photos=[composed], labels=[split_up])
    assert len(pairs) == 1


def test_photo_without_label_and_label_without_photo(tmp_path):
    with pytest.raises(DataError, match=r"photo \S*train/c\.png has no label map \S*annot/c\.png.*on_error=skip"):
        pair(tmp_path / "1", photos=("a.jpg", "c.png"), labels=("a.png",))
    with pytest.raises(DataError, match=r"label map \S*annot/d\.png has no photo \S*train/d\.\*"):
        pair(tmp_path / "2", photos=("a.jpg",), labels=("a.png", "d.png"))
    pairs, alone = pair(tmp_path / "3", "skip", photos=("a.jpg", "c.png"), labels=("a.png", "d.png"))
    assert len(pairs) == 1 and len(alone) == 2 and "c.png" in alone[0] and "d.png" in alone[1]


def test_two_photos_with_one_stem(tmp_path):
    for on_error in ("raise", "skip"):
        with pytest.raises(DataError, match=r"a\.jpg and \S*a\.png have the same name but for the suffix"):
            pair(tmp_path, on_error, photos=("a.jpg", "a.png"), labels=("a.png",))


@pytest.mark.parametrize("case", ["missing", "empty", "file"])
def test_folder_that_must_be_there(tmp_path, case):
    folder = tmp_path / "photos"
    if case == "empty":
        folder.mkdir()
        (folder / "notes.txt").touch()
    elif case == "file":
        folder.touch()
    with pytest.raises(FileNotFoundError, match=r"(?s)^no (images in|folder) .*photos\nexpected.*  tree\nfound:"):
        find_files(folder, tmp_path, "tree")


def test_split_of_nothing_names_the_first_reason(tmp_path):
    table = np.zeros(256, np.int64)
    with pytest.raises(DataError, match=r"none of the photos below .* first of 2: gone"):
        make_split([], ["gone", "too"], root=tmp_path, table=table, on_error="skip")


def test_split_counts_what_was_left_out(tmp_path):
    photo, label = write_photos(tmp_path, ["a.png", "b.png"])
    with pytest.warns(UserWarning, match="skipped 1 of 2 photos"):
        split = make_split([(photo, label)], ["gone"], root=tmp_path, table=np.zeros(256), on_error="raise", fov=7.0)
    assert split.skipped == ["gone"] and split.names == ["a"] and split.fov_deg(0) == 7


# ---- list files


def write_list(root, text):
    path = root / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "b\na\nc d ü\n", "b\r\na\r\nc d ü", "b\ra\rc d ü\r", "\ufeffb\n\n a \n\nc d ü\n\n", b"b\na\nc d \xc3\xbc",
        "b\r\na\r\nc d ü\r\n".encode("utf-16"), b"\xfe\xff" + "b\na\nc d ü".encode("utf-16-be"),
    ],
)  # fmt: skip
def test_names_keep_their_order(tmp_path, text):
    assert read_list(write_list(tmp_path, text)) == ["b", "a", "c d ü"]


@pytest.mark.parametrize(
    "entry",
    ["../../etc/passwd", "/etc/passwd", "a/../../b", "..", "~/x", "C:\\x", "c:x", "\\\\host\\x", "..\\x", "a\0b"],
)
def test_entries_that_lead_out_of_the_data_set_are_refused(tmp_path, entry):
    with pytest.raises(DataError, match=r"list\.txt, line 2: .*leads out of the data set"):
        read_list(write_list(tmp_path, f"fine\n{entry}\n"))


@pytest.mark.parametrize("entry", ["a..b", "..a", "sub/a", "a~b", "3:4", "a b"])
def test_odd_names_are_no_paths(tmp_path, entry):
    assert read_list(write_list(tmp_path, entry)) == [entry]


def test_repeated_names_are_used_once(tmp_path):
    with pytest.warns(UserWarning, match=r"list\.txt names 2 photos more than once"):
        assert read_list(write_list(tmp_path, "a\nb\na\na\n")) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("\n \n", "holds no names"), (b"\xe9\n", "not UTF-8 text"), (b"\xff\xfe\x00", "not UTF-16 text")],
)
def test_a_file_that_is_no_list(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"list\.txt.*{message}"):
        read_list(write_list(tmp_path, text))


def test_a_list_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"cannot read the list \S*list\.txt"):
        read_list(tmp_path / "list.txt")


def test_a_list_is_found_as_given_below_the_root_or_at_the_usual_place(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    inside = write_list(tmp_path / "root", "a")
    monkeypatch.chdir(tmp_path)
    assert find_list(inside, "data.list_val", tmp_path) == inside
    assert find_list("list.txt", "data.list_val", inside.parent) == inside
    assert find_list(None, "data.list_val", tmp_path, inside) == inside
    assert find_list(None, "data.list_val", tmp_path, tmp_path / "other.txt") is None
    outside = write_list(tmp_path, "b")
    assert find_list("list.txt", "data.list_val", inside.parent).resolve() == outside  # as given comes first
    with pytest.raises(FileNotFoundError, match=r"data\.list_val: there is no file gone\.txt nor \S*root/gone\.txt"):
        find_list("gone.txt", "data.list_val", inside.parent)


def listed(root, entries, on_error="raise", labels=("a.png", "b.png"), **more):
    images = by_stem(write_photos(root / "train", ["a.jpg", "b.png", "x.y.png"]))
    maps = by_stem(write_photos(root / "annot", labels))
    return pair_listed(entries, images, maps, source=root / "list.txt", on_error=on_error, **places(root), **more)


def test_listed_photos_with_and_without_suffix(tmp_path):
    pairs, alone = listed(tmp_path, ["b", "a.jpg", "x.y"], labels=("a.png", "b.png", "x.y.png", "z.png"))
    assert [image.name for image, _ in pairs] == ["b.png", "a.jpg", "x.y.png"] and alone == []
    assert [label.name for _, label in pairs] == ["b.png", "a.png", "x.y.png"]


def test_listed_photos_that_are_missing(tmp_path):
    with pytest.raises(DataError, match=r"list\.txt names q, but there is no photo \S*train/q\.\* \(2 such files"):
        listed(tmp_path, ["a", "q", "r"])
    with pytest.raises(DataError, match=r"photo \S*x\.y\.png has no label map \S*annot/x\.y\.png"):
        listed(tmp_path, ["x.y"])
    pairs, alone = listed(tmp_path, ["a", "q", "x.y"], "skip")
    assert len(pairs) == 1 and len(alone) == 2 and "q" in alone[0] and "x.y" in alone[1]
    pairs, alone = listed(tmp_path, ["x.y", "a"], labelled=False)
    assert [label and label.name for _, label in pairs] == [None, "a.png"] and alone == []


@pytest.mark.parametrize("entry", ["sub\\a.jpg", "sub\\a", "sub/a.jpg", ".\\sub\\a.jpg", "./sub/a"])
def test_listed_photos_with_the_separators_of_windows(tmp_path, entry):
    images = by_stem(write_photos(tmp_path / "sub", ["a.jpg"]), lambda path: f"sub/{path.stem}")
    [(photo, label)], alone = pair_listed(
        [entry], images, {}, source=tmp_path / "list.txt", on_error="raise", labelled=False, **places(tmp_path)
    )
    assert photo.name == "a.jpg" and label is None and not alone


@pytest.mark.skipif(os.sep != "/", reason="names hold no backslash here")
def test_a_backslash_in_a_name_comes_before_one_between_folders(tmp_path):
    images = {"sub\\a": tmp_path / "odd.png", "sub/a": tmp_path / "usual.png"}
    pairs, _ = pair_listed(
        ["sub\\a"], images, {}, source=tmp_path, on_error="raise", labelled=False, **places(tmp_path)
    )
    assert pairs[0][0].name == "odd.png"


def test_counts_are_said_and_other_counts_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert count_note("train", "train.txt", 97702, 97702) == "train: train.txt, 97,702 photos"
        assert count_note("val", "v.txt", 3000, 3000, 3000) == "val: v.txt, 3,000 photos"
        assert count_note("val", "v.txt", 3000, 3000, 2999) == "val: v.txt, 3,000 photos, 2,999 usable"
    with pytest.warns(UserWarning, match=r"train\.txt has 3 photos, usually 97,702: numbers are not comparable"):
        assert count_note("train", "train.txt", 3, 97702) == "train: train.txt, 3 photos (usually 97,702)"
