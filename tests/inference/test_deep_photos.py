"""The range of deep photos: found when a run is trained, stored with it, and used by whatever reads photos later."""

import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import yaml
from miniature import settings
from PIL import Image

from depthg import predict, train
from depthg.config.composing import load_config, stored_settings
from depthg.data.files import read_image
from depthg.data.reading import Reading
from depthg.features.caches import Caches
from depthg.inference.segmenter import Segmenter
from depthg.model.loaded_run import load_run


def write(folder, top, n=6):
    """Photos of a bright and a dark half with noise, 16 bits deep, with values up to `top`."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(n):
        values = np.where(np.arange(64) < 20 + 4 * number, 0.2, 0.8)[:, None] + rng.uniform(-0.2, 0.2, (64, 64))
        Image.fromarray((values * top).astype(np.uint16)).save(folder / f"{number}.png")
    return folder


def options(photos, *more):
    return settings(
        photos, "data=folder", f"data.root={photos}", "depth.source=none", "n_classes=3", "backbone.pca=0",
        "iterations=2", "probe.reinit=0", "val.panels=1", "name=deep", *more,
    )  # fmt: skip


def test_a_run_keeps_the_range_of_its_photos(tmp_path):
    photos = write(tmp_path / "photos", 4095)
    with pytest.warns(UserWarning, match=r"6 of 6 photos have more than 8 bits; .*data\.range=auto, from 6"):
        train.train(options(photos))
    run = tmp_path / "runs" / "deep"
    text = yaml.safe_load((run / "config.yaml").read_text())["data"]["range"]
    low, high = map(float, text.split(","))
    assert 0 <= low < 60 and 4000 < high <= 4095
    assert load_config([f"resume={run}"]).data.range == load_run(run).config.data.range == text
    assert load_run(run, overrides=["data.range=0,9"]).config.data.range == "0,9"
    dim = write(tmp_path / "dim", 1000)
    segmenter = Segmenter.load(run, device="cpu")
    assert segmenter.reading == Reading(range=text)
    photo = segmenter.prepare(dim / "0.png").image
    assert photo.max() < 70 and (photo == read_image(dim / "0.png", Reading(range=text))).all(), "not stretched anew"
    assert (
        predict.main(
            [str(run), str(dim), "--out", str(tmp_path / "out"), "--device", "cpu", "--overlay", "png", "--plain"]
        )
        == 0
    )
    ids, drawn = (np.array(Image.open(tmp_path / "out" / name / "0.png")) for name in ("ids", "overlay"))
    assert (ids == segmenter.predict(dim / "0.png", crf=True).ids).all()
    assert (drawn == (segmenter.colours[ids] >> 1) + (photo >> 1)).all(), "the picture shows what the network saw"


def test_the_range_decides_what_is_cached(tmp_path):
    photos = write(tmp_path / "photos", 4095)
    keys = {}
    for text in ("auto", "type", "0,4095", "0,2000"):
        with pytest.warns(UserWarning) if text in ("auto", "type") else nullcontext():
            caches = Caches(options(photos, f"data.range={text}"), "cpu")
        keys[text] = caches.describe(caches.train_views)["photos"]
        assert caches.config.data.range == (text if text != "auto" else caches.dataset.train.reading.range)
    assert len(set(keys.values())) == 4


def test_a_run_of_8_bit_photos_gives_deep_ones_a_range(shared_run, tmp_path):
    photos = write(tmp_path / "photos", 4095)
    with pytest.warns(UserWarning, match="the photos: 6 of 6 photos have more than 8 bits"):
        assert predict.main([str(shared_run), str(photos), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    segmenter = Segmenter.load(shared_run, device="cpu")
    assert segmenter.prepare(photos / "0.png").image.max() < 17, "one photo alone is read by the range of its type"
    drawn = np.array(Image.open(tmp_path / "out" / "overlay" / "0.jpg")).astype(int)
    assert drawn.max() > 100


def test_runs_of_before_keep_the_range_of_the_type(shared_run, tmp_path):
    shutil.copytree(shared_run, tmp_path / "old")
    stored = yaml.safe_load((tmp_path / "old" / "config.yaml").read_text())
    for name, expected in (("folder", "type"), ("camvid", None)):
        del stored["data"]["range"]
        stored["data"]["name"] = name
        (tmp_path / "old" / "config.yaml").write_text(yaml.safe_dump(stored))
        assert stored_settings(tmp_path / "old")["data"].get("range") == expected
        stored["data"]["range"] = "auto"
    assert load_run(tmp_path / "old").config.data.range == "auto"
