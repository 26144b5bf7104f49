"""Splits made of files, the on_error policy, names and pairing, and the registry."""

import sys
import types
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from depthg.config.schema import options
from depthg.data import DATASETS, load_dataset
from depthg.data.base import FileSplit, Subset, drop_unreadable, photo_size, unique_names
from depthg.data.files import DataError, label_table

SHAPE = (12, 18)


def write_photos(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(np.full((*SHAPE, 3), number, np.uint8)).save(folder / name)
    return [folder / name for name in names]


def make_split(root, n=4):
    photos = write_photos(root / "photos", [f"{i}.png" for i in range(n)])
    labels = []
    for number, photo in enumerate(photos):
        path = root / f"{photo.stem}_label.png"
        Image.fromarray(np.full(SHAPE, number, np.uint8)).save(path)
        labels.append(path)
    return FileSplit(photos, root=root, labels=labels, table=label_table({i: i for i in range(n)}))


def test_file_split_reads_photos_and_labels(tmp_path):
    split = make_split(tmp_path)
    assert len(split) == 4 and split.relative[2] == "photos/2.png" and split.names[2] == "photos_2"
    assert (split.image(2) == 2).all() and split.image(2).shape == (*SHAPE, 3)
    assert split.label(3).dtype == np.int64 and (split.label(3) == 3).all()
    assert split.size(0) == SHAPE and split.depth(0) is None and split.fov_deg(0) is None
    assert FileSplit(split.images, root=tmp_path).label(0) is None
    assert FileSplit(split.images, root=tmp_path, fov=50.0).fov_deg(3) == 50


def test_a_photo_without_label_map_is_all_void(tmp_path):
    split = make_split(tmp_path)
    split.labels[1] = None
    assert split.label(1).shape == SHAPE and split.label(1).dtype == np.int64 and (split.label(1) == -1).all()
    assert (split.label(2) == 2).all()


def test_label_of_another_size_names_both_files(tmp_path):
    split = make_split(tmp_path)
    Image.fromarray(np.zeros((5, 9), np.uint8)).save(split.labels[1])
    with pytest.raises(DataError, match=r"1_label\.png is 5 x 9 .*photos/1\.png is 12 x 18"):
        split.label(1)


def test_subset_keeps_order_and_delegates(tmp_path):
    split = make_split(tmp_path)
    part = Subset(split, np.array([3, 1]))
    assert len(part) == 2 and part.names == ["photos_3", "photos_1"] and part.relative[1] == "photos/1.png"
    assert (part.image(0) == 3).all() and (part.label(1) == 1).all()
    assert part.size(0) == SHAPE and part.depth(0) is None and part.fov_deg(0) is None
    assert part.table is split.table  # caches of labels depend on it


def test_photo_size_without_a_size_method(tmp_path):
    split = types.SimpleNamespace(image=lambda index: np.zeros((3, 5, 3), np.uint8))
    assert photo_size(split, 0) == (3, 5)


# ---- on_error


def test_raise_leaves_the_split_alone_and_reading_fails_later(tmp_path):
    split = make_split(tmp_path)
    split.images[1].write_bytes(b"")
    assert drop_unreadable(split, "raise") is split
    with pytest.raises(DataError, match=r"photos/1\.png.*0 bytes"):
        split.image(1)


def test_skip_counts_and_reports(tmp_path):
    split = make_split(tmp_path, 9)
    split.images[1].write_bytes(b"")
    split.images[4].write_bytes(split.images[4].read_bytes()[:40])
    Image.fromarray(np.full(SHAPE, 200, np.uint8)).save(split.labels[7])
    with pytest.warns(UserWarning, match="skipped 3 of 9 photos") as caught:
        kept = drop_unreadable(split, "skip")
    assert kept.names == [split.names[i] for i in (0, 2, 3, 5, 6, 8)]
    assert len(kept.skipped) == 3
    for reason, name in zip(kept.skipped, ("1.png", "4.png", "7_label.png"), strict=True):
        assert name in reason and name in str(caught[0].message)


def test_every_bad_photo_is_counted_and_every_odd_one_is_used(tmp_path):
    """One folder with all that people's folders hold."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "plain.jpg")
    image.save(tmp_path / "name with spaces and ü.png")
    image.convert("L").save(tmp_path / "grey.png")
    image.convert("RGBA").save(tmp_path / "rgba.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.convert("P").save(tmp_path / "palette.gif")
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "film.gif", save_all=True, append_images=[image.rotate(90)])
    Image.fromarray(np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80).save(tmp_path / "deep.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "grey.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    used = sorted(path.name for path in tmp_path.iterdir() if path.name != "loop")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.png").write_text("<html>404</html>")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "plain.jpg").read_bytes()[:300])
    (tmp_path / "broken.png").symlink_to("gone.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    (tmp_path / "odd.tif").write_bytes(b"II*\0" + bytes(20))
    Image.new("RGB", (3, 3)).save(tmp_path / "tiny.png")
    bad = ["broken.png", "circle.png", "cut.jpg", "empty.jpg", "odd.tif", "page.png", "tiny.png"]
    with pytest.warns(UserWarning, match=r"skipped 7 of 17 photos"):
        data = load_dataset("folder", root=tmp_path, on_error="skip")
    assert sorted(data.train.relative) == used and len(data.train.skipped) == 7
    assert all(any(name.split(".")[0] in reason for reason in data.train.skipped) for name in bad)
    shapes = {name: data.train.image(i).shape for i, name in enumerate(data.train.relative)}
    assert shapes.pop("turned.jpg") == (32, 24, 3) and set(shapes.values()) == {(24, 32, 3)}
    strict = load_dataset("folder", root=tmp_path)
    for index, name in enumerate(strict.train.relative):
        if name in bad[:-1]:
            with pytest.raises(DataError, match=name.replace(".", r"\.")):
                strict.train.image(index)


def test_a_long_report_is_cut_short(tmp_path):
    split = make_split(tmp_path, 9)
    for path in split.images[:8]:
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"(?s)skipped 8 of 9.*\.\.\. and 3 more"):
        assert len(drop_unreadable(split, "skip")) == 1


def test_skip_without_bad_photos_is_silent(tmp_path):
    split = make_split(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert drop_unreadable(split, "skip") is split


def test_nothing_left_is_an_error(tmp_path):
    split = make_split(tmp_path, 2)
    for path in split.images:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 2 photos.*0\.png"):
        drop_unreadable(split, "skip")


def test_unknown_policy(tmp_path):
    with pytest.raises(ValueError, match="on_error='ignore' is not one of raise, skip"):
        drop_unreadable(make_split(tmp_path), "ignore")


def test_other_errors_are_not_swallowed(tmp_path):
    split = make_split(tmp_path)
    split.depth = lambda index: 1 / 0
    with pytest.raises(ZeroDivisionError):
        drop_unreadable(split, "skip")


# ---- names


def test_names_drop_the_suffix_where_they_can():
    names = unique_names(["a.jpg", "b.jpg", "b.png", "sub/a.jpg", "Straße ü.tif"])
    assert names == ["a", "b.jpg", "b.png", "sub_a", "Straße ü"]


def test_names_stay_unique_and_short():
    names = unique_names(["a/b.png", "a_b.png", "A_B.png", "x" * 300 + "1.png", "y" * 300 + "1.png", "\udcff?.png"])
    assert names[0] == "a_b" and names[1] != names[2]
    assert len({name.casefold() for name in names}) == 6 and max(map(len, names)) < 90
    names[5].encode("utf-8")


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), unique=True))
def test_any_names_are_unique_and_usable_as_file_names(paths):
    names = unique_names([path + ".png" for path in paths])
    assert len({name.casefold() for name in names}) == len(paths)
    assert not any(set(name) & set('/\\:*?"<>|\0\n') for name in names)


# ---- registry


@pytest.mark.parametrize(("name", "near"), [("camvit", "camvid"), ("scene", "scenes"), ("folders", "folder")])
def test_unknown_data_set_names_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"data='{name}' is no known data set .*did you mean '{near}'"):
        load_dataset(name)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "scenes"])
def test_missing_root_says_what_to_pass(name):
    for root in (None, ""):
        with pytest.raises(ValueError, match=rf"data={name} needs data\.root=DIR: .*folder"):
            load_dataset(name, root=root)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "scenes"])
def test_a_data_set_that_is_not_there_shows_the_expected_tree(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"(?s)expected below data\.root=.*found:\n.*is empty"):
        load_dataset(name, root=tmp_path)


def test_the_settings_know_every_data_set():
    assert set(options()["data.name"][0].metadata["choices"]) == set(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("key", ["list_train", "list_val", "labels", "classes"])
def test_files_that_a_data_set_has_no_use_for(tmp_path, name, key):
    takes = DATASETS[name][3] if DATASETS[name] else ()
    if key not in takes:
        with pytest.raises(ValueError, match=rf"data={name} has no use for data\.{key} \(only .*folder\)"):
            load_dataset(name, root=tmp_path, **{key: "x"})


def test_unknown_count_and_policy():
    with pytest.raises(TypeError, match="no argument 'n_trian'"):
        load_dataset("scenes", n_trian=3)
    with pytest.raises(ValueError, match="on_error"):
        load_dataset("folder", root=".", on_error="maybe")


def test_counts_reach_the_data_sets(tmp_path, monkeypatch):
    write_photos(tmp_path, [f"{i}.png" for i in range(5)])
    data = load_dataset("folder", root=tmp_path, n_val=2, n_train=100)
    assert len(data.train) == 5 and len(data.val) == 2
    module = types.ModuleType("depthg.data.scenes")
    module.SceneDataset = lambda **arguments: arguments
    monkeypatch.setitem(sys.modules, "depthg.data.scenes", module)
    got = load_dataset("scenes", cache_dir=tmp_path, seed=3, n_train=7, n_test=None)
    assert got == {"cache_dir": tmp_path, "seed": 3, "n_train": 7}
