"""Prepared arrays: aligned with each other, cached by exactly what matters, nothing written into the data."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from miniature import settings, write_camvid
from PIL import Image

from depthg.config.composing import load_config
from depthg.data.files import DataError
from depthg.features.preparation import Preparation
from depthg.model.run_folder import read_log
from depthg.prepare import main
from depthg.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path):
    return write_camvid(tmp_path / "camvid")


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def run(config, backbone=None):
    preparation = Preparation(config, CPU)
    preparation._backbone = backbone
    preparation.run()
    return preparation


def test_arrays_have_the_documented_shapes_and_the_data_is_untouched(root):
    before = listing(root)
    data = Preparation(settings(root, "loss.depth.relation=normals"), CPU).run()
    assert data.features.shape == (6, 64, 16) and data.features[:2].dtype == np.float16
    assert data.labels.shape == (6, 64, 64) and set(np.unique(data.labels)) <= {-1, 0, 1, 3}
    assert data.depth.shape == (6, 64) and 0 < data.depth.min() and data.depth.max() <= 1
    assert data.normals.shape == (6, 64, 4)
    assert data.neighbours.shape == (6, 5) and data.photos.tolist() == list(range(6))
    assert data.evaluation.features.shape == (3, 64, 16) and data.evaluation.labels.shape == (3, 64, 64)
    assert listing(root) == before


def test_depth_of_a_cell_is_the_mean_of_the_mapped_depth_in_it(root):
    data = Preparation(settings(root), CPU).run()
    metres = np.load(root / "depth" / "train" / "002.npy").astype(np.float64)
    mapped = 1 - 5 / (metres + 5)
    expected = mapped.reshape(8, 8, 8, 8).mean((1, 3)).flatten()
    np.testing.assert_allclose(data.depth[2], expected, atol=1e-3)


def test_features_match_the_backbone_on_the_photo(root):
    preparation = Preparation(settings(root, "backbone.standardize=false", "backbone.pca=0"), CPU)
    data = preparation.run()
    photo = torch.from_numpy(np.asarray(Image.open(root / "train" / "004.png")).copy()).permute(2, 0, 1)[None] / 255
    expected = preparation.backbone(photo).flatten(2).transpose(1, 2)[0]
    np.testing.assert_allclose(data.features[4], expected.numpy(), rtol=2e-3, atol=5e-3)


def made(preparation):
    """Kinds of caches that a preparation had to make."""
    return sorted(stage.folder.parent.name for stage in preparation.uses if stage.made)


def test_caches_are_reused_and_other_settings_never_are(root):
    first = run(settings(root))
    assert made(first) == ["depth", "features", "features", "labels", "labels", "neighbours"]
    for overrides, expected in (
        ((), []),
        (("seed=5", "loss.depth.weight=1", "cache.shard_mb=1"), []),
        (("depth.scale=9",), ["depth"]),
        (("backbone.pca=8",), ["features", "features", "neighbours"]),
        (("features.dtype=bfloat16",), ["features", "features", "neighbours"]),
        (("data.interpolation=nearest",), ["depth", "features", "features", "labels", "labels", "neighbours"]),
        (("data.eval_size=[96,96]",), ["features", "labels"]),
        (("knn.k=4", "knn.draw=3"), ["neighbours"]),
        (("knn.dtype=float16",), ["neighbours"]),
        (("knn.exclude_same_photo=false",), ["neighbours"]),
        (("knn.dropout=true",), ["neighbours"]),
        (("knn.dropout=true", "seed=5"), ["neighbours"]),
        (("knn.dropout=true", "seed=5"), []),
    ):
        assert made(run(settings(root, *overrides), first.backbone)) == expected, overrides


def test_a_changed_photo_is_noticed(root):
    run(settings(root))
    Image.new("RGB", (64, 64), "red").save(root / "train" / "001.png")
    preparation = Preparation(settings(root), CPU)
    data = preparation.run()
    assert "features" in made(preparation)
    assert np.ptp(data.features[1].astype(float), axis=0).mean() < np.ptp(data.features[2].astype(float), axis=0).mean()


def test_five_crops_are_five_views_of_each_photo(root):
    data = Preparation(settings(root, "data.crop=five"), CPU).run()
    assert len(data.features) == 30 and data.photos.tolist() == [i // 5 for i in range(30)]
    label = np.asarray(Image.open(root / "trainannot" / "001.png")).astype(int)
    corner = label[:32, :32].repeat(2, 0).repeat(2, 1)
    assert (data.labels[5] == np.where(corner == 11, -1, corner)).all()


def test_crops_of_one_photo_are_neighbours_only_where_that_is_allowed(root):
    for exclude, same in (("true", False), ("false", True)):
        data = Preparation(settings(root, "data.crop=five", f"knn.exclude_same_photo={exclude}"), CPU).run()
        assert data.neighbours.shape == (30, 25 if exclude == "true" else 29)
        own = np.arange(30)[:, None] == data.neighbours
        assert not own.any() and (data.photos[data.neighbours] == data.photos[:, None]).any() == same


def test_dropout_before_averaging_changes_the_neighbours(root):
    plain, dropped, again = (
        Preparation(settings(root, "data.crop=five", f"knn.dropout={on}", "head.dropout=0.5"), CPU).run().neighbours
        for on in ("false", "true", "true")
    )
    assert (dropped == again).all() and not (plain == dropped).all()


def test_without_depth_there_are_no_depth_arrays(root):
    data = Preparation(settings(root, "depth.source=none"), CPU).run()
    assert data.depth is None and data.normals is None and data.example(0).maps == {}


def test_normals_are_made_only_for_relations_that_compare_surfaces(root):
    for relation, made in (("product", False), ("normals", True), ("inclination", True)):
        data = Preparation(settings(root, f"loss.depth.relation={relation}"), CPU).run()
        assert (data.normals is not None) == made


def test_mapped_values_give_no_normals(root):
    for path in (root / "depth").rglob("*.npy"):
        np.save(path, np.random.default_rng(0).random((64, 64)).astype(np.float32))
    data = Preparation(settings(root, "depth.mapping=none"), CPU).run()
    assert data.normals is None and data.depth is not None


@pytest.mark.parametrize("kind", ["damaged", "a link to itself", "a pipe"])
def test_a_broken_photo_is_named_or_skipped(root, kind):
    photo = root / "train" / "003.png"
    photo.unlink()
    if kind == "damaged":
        photo.write_bytes(b"broken")
    elif kind == "a pipe":
        os.mkfifo(photo)
    else:
        photo.symlink_to(photo.name)
    with pytest.raises(DataError, match=r"003\.png"):
        Preparation(settings(root), CPU).run()
    with pytest.warns(UserWarning, match=r"skipped 1 of 6"):
        data = Preparation(settings(root, "data.on_error=skip"), CPU).run()
    assert len(data.features) == 5 and len(data.depth) == 5


def test_a_tiny_photo_is_named_or_skipped(root):
    Image.new("RGB", (4, 4)).save(root / "train" / "003.png")
    Image.new("L", (4, 4)).save(root / "trainannot" / "003.png")
    np.save(root / "depth" / "train" / "003.npy", np.ones((4, 4), np.float32))
    with pytest.raises(DataError, match="003 is 4 x 4 pixels"):
        Preparation(settings(root), CPU).run()
    with pytest.warns(UserWarning, match="003 is only 4 x 4 pixels"):
        assert len(Preparation(settings(root, "data.on_error=skip"), CPU).run().features) == 5


def test_ground_plane_needs_no_files(root):
    data = Preparation(settings(root, "depth.source=ground_plane", "depth.horizon=0.5"), CPU).run()
    depth = data.depth[0].reshape(8, 8).astype(float)
    assert (depth[:4] == 1).all() and (np.diff(depth[4:, 0]) < 0).all()


def test_bfloat16_features(root):
    plain = Preparation(settings(root), CPU).run().features
    found = Preparation(settings(root, "features.dtype=bfloat16"), CPU).run().features
    assert plain.dtype == torch.float16 and found.dtype == torch.bfloat16
    difference = (found.rows(np.arange(6)) - plain.rows(np.arange(6))).abs().max()
    assert 0 < difference < 0.05


def test_streamed_features_are_those_of_the_cache(root):
    cached = Preparation(settings(root), CPU).run()
    preparation = Preparation(settings(root, "features.cache=off"), CPU)
    streamed = preparation.run()
    views = np.array([4, 0, 2])
    torch.testing.assert_close(streamed.features.rows(views), cached.features.rows(views), rtol=2e-3, atol=2e-3)
    evaluation = (data.evaluation.features[0:3] for data in (streamed, cached))
    np.testing.assert_allclose(*evaluation, rtol=2e-3, atol=2e-3)
    assert (streamed.neighbours == cached.neighbours).all() and streamed.features_key == cached.features_key
    assert "features" not in made(preparation) and "means" in made(preparation)


def test_training_with_streamed_features_gives_nearly_the_same_losses(root, tmp_path):
    lines = []
    for name in ("on", "off"):
        trainer = Trainer(settings(root, f"name={name}", f"features.cache={name}", "iterations=8", "log_every=4"))
        trainer.train()
        trainer.log.close()
        lines.append(read_log(tmp_path / "runs" / name / "metrics.jsonl"))
    assert len(lines[0]) == 2
    for a, b in zip(*lines, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-3)
        assert a["loss.linear"] == pytest.approx(b["loss.linear"], rel=2e-2)


@pytest.mark.slow
def test_processes_that_decode_change_no_byte(root, tmp_path):
    alone = run(settings(root, f"cache.dir={tmp_path / 'threads'}"))
    several = run(settings(root, f"cache.dir={tmp_path / 'processes'}", "data.workers=2"), alone.backbone)
    assert arrays(tmp_path / "processes") == arrays(tmp_path / "threads")
    assert several.loader._sent and not alone.loader._sent
    assert several.loader._pool is None, "nothing is left to decode"
    streamed = [run(settings(root, "features.cache=off", f"data.workers={n}"), alone.backbone) for n in (0, 1)]
    found = [preparation.run().features.read(np.array([4, 0, 2])) for preparation in streamed]
    assert torch.equal(*found)


def test_sizes_that_do_not_fit_the_backbone_are_refused_at_once(root, tmp_path):
    for key in ("data.size", "data.eval_size"):
        with pytest.raises(ValueError, match=rf"{key}=\[64, 60\] must be multiples of 32 .*\[64, 64\]"):
            Preparation(settings(root, f"{key}=[64,60]"), CPU).run()
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_the_key_of_the_features_is_readable_and_names_what_matters(root):
    preparation = run(settings(root, "data.crop=five"))
    folder = next(stage.folder for stage in preparation.uses if stage.name == "features, training")
    found = json.loads((folder / "manifest.json").read_text())["settings"]
    assert found["backbone"] == "efficientnet_lite0" and found["dtype"] == "float16" and found["pca"] == 16
    assert found["train"]["count"] == 30 and found["train"]["crop"] == "five" and found["train"]["size"] == [64, 64]
    assert found["weights"] == preparation.backbone.weights_hash
    stage = next(stage for stage in preparation.uses if stage.name == "neighbours")
    assert json.loads((stage.folder / "manifest.json").read_text())["settings"]["features"]["train"] == found["train"]


def arguments(root, *more):
    return [
        "data=camvid", f"data.root={root}", "data.size=[64,64]", "data.eval_size=[64,64]", "depth.source=folder",
        f"depth.root={root / 'depth'}", "data.crop=five", "backbone.pca=16", "backbone.batch_size=2",
        "cache.shard_mb=0.01", *more,
    ]  # fmt: skip


def arrays(cache):
    return {path.relative_to(cache): path.read_bytes() for path in cache.rglob("*.npy")}


def test_command_makes_everything_and_finds_it_again(run_module, root, tmp_path):
    first = run_module("depthg.prepare", *arguments(root))
    assert first.returncode == 0, first.stderr
    rows = [line.split() for line in first.stdout.splitlines() if " made " in line]
    assert [row[0] for row in rows] == ["depth", "labels,", "labels,", "features,", "features,", "neighbours"]
    assert "30" in rows[0] and str(tmp_path / "cache") in first.stdout
    before = listing(tmp_path / "cache")
    again = run_module("depthg.prepare", *arguments(root))
    assert again.stdout.count(" found ") == 6 and " made " not in again.stdout
    assert listing(tmp_path / "cache") == before


def test_user_errors_are_one_line(root, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments(root, "knn.kk=3")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: unknown key 'knn.kk'; did you mean 'knn.k'? (all keys: --help)\n"


def test_help_of_the_command_says_where_results_are_kept(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare", "--help"])
    monkeypatch.setenv("COLUMNS", "140")
    main()
    found = capsys.readouterr().out
    for text in ("DEPTHG_CACHE", "features.cache", "cache.shard_mb", "goes on where it was", "knn.dtype"):
        assert text in found


def start(root, cache, **environment):
    threads = str(torch.get_num_threads())  # as here: sums may be rounded otherwise
    variables = {**os.environ, "DEPTHG_CACHE": str(cache), "OMP_NUM_THREADS": threads, **environment}
    command = [sys.executable, "-m", "depthg.prepare", *arguments(root)]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_and_a_killed_one_end_with_the_same_bytes(root, tmp_path):
    pair = [start(root, tmp_path / "pair", RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    killed = start(root, tmp_path / "cut")
    while killed.poll() is None and not list((tmp_path / "cut").glob("features/.*/shards/raw-*")):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    rest = start(root, tmp_path / "cut")
    run(load_config(arguments(root, f"cache.dir={tmp_path / 'lone'}")))
    for process in (*pair, rest):
        assert process.wait(timeout=120) == 0, process.stderr.read()
    expected = arrays(tmp_path / "lone")
    assert len(expected) == 10
    assert arrays(tmp_path / "pair") == expected and arrays(tmp_path / "cut") == expected
    assert not list((tmp_path / "pair").rglob("*.partial")) and not list((tmp_path / "cut").rglob("*.partial"))
