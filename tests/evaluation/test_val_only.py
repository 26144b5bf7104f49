"""A trained run is evaluated on a data set that has nothing but validation photos."""

import json
import shutil

import pytest
from miniature_trees import write_cityscapes, write_cocostuff27, write_potsdam3, write_voc2012

from depthg.data import load_dataset
from depthg.evaluate import main


def scores(folder):
    [file] = folder.glob("*.json")
    return json.loads(file.read_text())


def test_scores_of_the_probes_need_no_training_photos(shared_run, shared_tree, tmp_path, capsys):
    for part in ("val", "valannot"):
        shutil.copytree(shared_tree / part, tmp_path / "camvid" / part)
    moved, own = [f"data.root={tmp_path / 'camvid'}"], tmp_path / "own"
    with pytest.warns(
        UserWarning, match=r"data=camvid has no training photos below \S*camvid: the k-means baselines are"
    ):
        assert main([str(shared_run), *moved, "--out", str(tmp_path / "moved"), "--bootstrap", "0"]) == 0
    assert main([str(shared_run), "--out", str(own), "--bootstrap", "0"]) == 0
    found, expected = scores(tmp_path / "moved"), scores(own)
    probes = {"cluster", "linear", "linear_joint"}
    assert set(found["results"]) == probes < set(expected["results"])
    assert {name: found["results"][name] for name in probes} == {name: expected["results"][name] for name in probes}
    capsys.readouterr()
    for arguments, text in (
        (["--clusters", "4"], "k-means with clusters=4 needs some"),
        (["--split", "train", "--no-kmeans"], "has no photos for --split train"),
    ):
        assert main([str(shared_run), *moved, *arguments, "--out", str(tmp_path / "none")]) == 1
        assert text in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*numbers are not comparable")
@pytest.mark.parametrize(
    ("name", "write", "train"),
    [
        ("cityscapes", write_cityscapes, ("leftImg8bit/train", "gtFine/train")),
        ("cocostuff27", write_cocostuff27, ("train2017", "annotations/train2017")),
        ("potsdam3", write_potsdam3, ("labelled_train.txt",)),
        ("voc2012", write_voc2012, ("ImageSets/Segmentation/train.txt",)),
    ],
)
def test_every_data_set_opens_without_its_training_photos(tmp_path, name, write, train):
    root = write(tmp_path / name)
    expected = load_dataset(name, root=root, train_needed=False)
    assert len(expected.train) > 0, "photos that are there are not left out"
    for path in train:
        shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()
    with pytest.raises(FileNotFoundError):
        load_dataset(name, root=root)
    data = load_dataset(name, root=root, train_needed=False)
    assert len(data.train) == 0 and data.val.names == expected.val.names and data.note.startswith("train: none; val: ")
    assert (data.val.label(0) == expected.val.label(0)).all()
    shutil.rmtree(root)
    with pytest.raises(FileNotFoundError):
        load_dataset(name, root=root, train_needed=False)
