"""Every data set trains: from a miniature tree to scores, with the protocol line saying what was found."""

import json

import numpy as np
import pytest
import torch
from miniature import settings, write_camvid
from miniature_trees import write_cityscapes, write_cocostuff27, write_nyuv2, write_potsdam3, write_voc2012
from PIL import Image

from depthg.config.composing import load_config
from depthg.data import load_dataset
from depthg.features.preparation import Preparation
from depthg.train import train

pytestmark = pytest.mark.filterwarnings("ignore:.*numbers are not comparable")
CPU = torch.device("cpu")
SHORT = ("iterations=2", "probe.reinit=0", "val.panels=1", "val.kmeans_samples=200", "batch_size=4", "overwrite=true")


def write_folder(root):
    """CamVid's training photos with label maps for half of them."""
    write_camvid(root)
    for path in sorted((root / "trainannot").iterdir())[::2]:
        path.unlink()
    (root / "classes.txt").write_text("".join(f"{i} class {i}\n" for i in range(11)) + "11 void\n")
    return root


CASES = {
    "cityscapes": (write_cityscapes, 27, "train: leftImg8bit, 6 photos (usually 2,975)"),
    "cocostuff27": (write_cocostuff27, 27, "no list, all 6 photos of train2017 (the usual list has 97,702)"),
    "potsdam3": (write_potsdam3, 3, "train: labelled_train.txt, 6 photos (usually 4,545)"),
    "nyuv2": (write_nyuv2, 40, "train: splits.mat, 6 photos (usually 795)"),
    "voc2012": (write_voc2012, 21, "train: train.txt, 6 photos (usually 1,464)"),
    "folder": (write_folder, 11, "labels for 3 of 6 photos, 1 scored"),
}


@pytest.mark.parametrize("name", CASES)
def test_train_and_score(tmp_path, name):
    write, n_classes, note = CASES[name]
    root = write(tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    more = [
        f"data={name}",
        f"cache.dir={tmp_path / 'cache'}",
        f"runs_dir={tmp_path / 'runs'}",
        "depth.source=dataset" if name == "nyuv2" else "depth.source=none",
    ]
    photos = root
    if name == "folder":
        photos = root / "train"
        more += [f"data.labels={root / 'trainannot'}", f"data.classes={root / 'classes.txt'}"]
    metrics = train(settings(photos, *SHORT, *more))
    assert note in metrics["protocol"]["photos"] and len(metrics["classes"]) == n_classes
    for read_out in ("cluster", "linear", "linear_joint", "kmeans_codes"):
        assert np.isfinite([metrics[f"{read_out}.accuracy"], metrics[f"{read_out}.miou"]]).all()
    [run] = (tmp_path / "runs").iterdir()
    assert json.loads((run / "metrics.json").read_text())["protocol"] == metrics["protocol"]
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before, "never written to"


def test_a_data_set_whose_training_photos_have_no_labels_is_scored_all_the_same(tmp_path):
    root = write_potsdam3(tmp_path / "data")
    (root / "unlabelled_train.txt").write_text("2\n4\n")
    more = ("data=potsdam3", "data.list_train=unlabelled_train.txt", "data.crop=five", "depth.source=none")
    metrics = train(settings(root, *SHORT, *more))
    assert np.isfinite(metrics["cluster.miou"]) and "unlabelled_train.txt, 2 photos" in metrics["protocol"]["photos"]


def test_another_class_file_is_another_cache_of_labels(tmp_path):
    root = write_folder(tmp_path / "data")
    files = (f"data.labels={root / 'trainannot'}", f"data.classes={root / 'classes.txt'}", "depth.source=none")
    config = settings(root / "train", "data=folder", *files)

    def labels(third):
        (root / "classes.txt").write_text(f"0 sky\n1 ground\n3 {third}\n11 void\n")
        preparation = Preparation(config, CPU)
        assert preparation.dataset.classes == ("sky", "ground")
        return np.array(preparation.labels(preparation.evaluation_views))

    first, second = labels("sky"), labels("ground")
    assert (first != second).any() and ((first == second) | ((first == 0) & (second == 1))).all()


# ---- what the released code does with images and neighbours


def test_interpolation_reaches_images_and_depth(tmp_path):
    root = write_camvid(tmp_path / "camvid", 2, 1)
    rng = np.random.default_rng(0)
    for path in root.rglob("train/*.png"):
        Image.fromarray(rng.choice(np.array([0, 255], np.uint8), (64, 64, 3))).save(path)
    for path in root.rglob("train/*.npy"):
        np.save(path, rng.choice(np.array([0.25, 0.75], np.float32), (64, 64)))
    for interpolation, few in (("antialias", False), ("nearest", True)):
        config = settings(root, f"data.interpolation={interpolation}", "data.size=[32,32]", "depth.mapping=none")
        preparation = Preparation(config, CPU)
        views = preparation.train_views
        image = views.load(0).image
        assert (len(image.unique()) == 2) == few
        depth = preparation.depth(views, (8, 8))["depth"][0].reshape(8, 8)
        whole = preparation.depth(views, (32, 32))["depth"][0].reshape(32, 32)
        assert (len(np.unique(whole)) == 2) == few
        means = whole.astype(float).reshape(8, 4, 8, 4).mean((1, 3))
        assert np.allclose(depth, means, atol=1e-3), "the mean over each cell, after nearest too"


def test_neighbours_of_the_same_photo_and_of_features_with_dropout(tmp_path):
    root = write_camvid(tmp_path / "camvid", 6, 1)

    def found(*overrides):
        more = ("data.crop=five", "depth.source=none", "knn.k=9", *overrides)
        data = Preparation(settings(root, *more), CPU).run()
        return np.array(data.neighbours), np.array(data.photos)

    neighbours, photos = found()
    assert not (photos[neighbours] == photos[:, None]).any()
    with_same, _ = found("knn.exclude_same_photo=false")
    assert (photos[with_same] == photos[:, None]).any() and not (with_same == np.arange(len(photos))[:, None]).any()
    dropped, _ = found("knn.dropout=true", "head.dropout=0.5")
    assert not (photos[dropped] == photos[:, None]).any() and (dropped != neighbours).any()


def test_settings_of_each_data_set_fit_its_photos():
    for name in CASES:
        data = load_config([f"data={name}"]).data
        assert data.name == name and min(data.size) == 224
        assert data.crop == ("five" if name in ("cityscapes", "cocostuff27") else "none")
        assert data.eval_size == ([224, 224] if name == "folder" else [320, 320])


def test_opening_a_data_set_reads_no_photo(tmp_path, monkeypatch):
    """Only data.on_error=skip has to."""
    root = write_cityscapes(tmp_path / "cityscapes")

    def refuse(*_, **__):
        raise AssertionError("a photo was opened")

    monkeypatch.setattr(Image, "open", refuse)
    assert len(load_dataset("cityscapes", root=root).train) == 6
