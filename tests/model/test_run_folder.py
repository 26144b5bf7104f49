"""Run folders: never overwritten by accident, resumable, logs cut at the checkpoint."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from miniature import settings, write_camvid

from depthg.config.composing import load_config
from depthg.config.schema import Config
from depthg.model.run_folder import MetricLog, check_run, create_run, read_log, run_name, run_path


@pytest.fixture
def config(tmp_path):
    return settings(write_camvid(tmp_path / "camvid", 2, 1))


def test_names():
    assert run_name(Config()) == "demo-scenes-paper-seed0"
    assert run_name(Config(name="mine")) == "mine"
    assert run_path(Config(name="sweep/mine")) == Path("runs/sweep/mine")
    for name in ("../mine", "a/../../b", "/mine"):
        with pytest.raises(ValueError, match=rf"name={name} leads out of runs_dir=runs; .*runs_dir="):
            run_path(Config(name=name))
        assert run_path(Config(name=name, resume="x")) == Path("x")


def test_photos_are_named_after_their_folder(tmp_path, monkeypatch):
    def name(root):
        return run_name(load_config(["data=folder", f"data.root={root}"]))

    assert name("/data/holiday") == name("/data/holiday/") == "photos-holiday-paper-seed0"
    assert name("/a/my photos (1)&ü") == "photos-my_photos_1_ü-paper-seed0"
    assert name("/") == "photos-folder-paper-seed0" and name("/" + "x" * 200) == f"photos-{'x' * 60}-paper-seed0"
    monkeypatch.chdir(tmp_path)
    assert name(".") == f"photos-{tmp_path.name}-paper-seed0"


def test_a_run_on_other_photos_is_not_offered_for_resuming(tmp_path):
    def config(folder):
        return load_config(["data=folder", f"data.root={tmp_path / folder}", f"runs_dir={tmp_path / 'runs'}"])

    create_run(config("a/photos"))
    with pytest.raises(FileExistsError, match=rf"holds a run on {tmp_path}/a/photos; give this one another name="):
        check_run(config("b/photos"))
    with pytest.raises(FileExistsError, match=r"continue with resume="):
        check_run(config("a/photos"))


def test_paths_are_stored_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "val.txt").touch()
    paths = ["data.root=photos", "data.labels=maps", "data.classes=classes.txt", "data.list_val=val.txt"]
    config = load_config(["data=folder", *paths, "data.list_train=below-root.txt", "depth.root=~/depth", "name=a"])
    data = load_config([f"resume={create_run(config)}"]).data
    assert (data.root, data.labels) == (str(tmp_path / "photos"), str(tmp_path / "maps"))
    assert (data.classes, data.list_val) == (str(tmp_path / "classes.txt"), str(tmp_path / "val.txt"))
    assert data.list_train == "below-root.txt", "it lies below the photos"
    assert load_config(["resume=runs/a"]).depth.root == str(Path.home() / "depth")


def test_settings_survive_the_round_trip(config):
    run = create_run(config)
    assert yaml.safe_load((run / "config.yaml").read_text())["loss"]["depth"]["weight"] == 0.2
    found = load_config([f"resume={run}"])
    assert create_run(found) == run
    assert dataclasses.replace(found, resume=None) == config


def test_resume_may_change_iterations_and_places_only(config):
    run = create_run(config)
    found = load_config([f"resume={run}", "iterations=99", "device=cpu", "cache.dir=elsewhere", "data.workers=2"])
    assert (found.iterations, found.device, found.cache.dir, found.data.workers) == (99, "cpu", "elsewhere", 2)
    assert found.loss.depth.weight == 0.2
    create_run(found)
    assert load_config([f"resume={run}"]).iterations == 99, "a second resume goes on to the same end"


def test_an_existing_run_is_refused_unless_overwritten(config):
    run = create_run(config)
    with pytest.raises(FileExistsError, match=r"resume=.*overwrite=true"):
        check_run(config)
    (run / "rest").write_text("x")
    config.overwrite = True
    assert create_run(config) == run and not (run / "rest").exists()


def test_a_folder_that_is_no_run_is_left_alone(config, tmp_path):
    config.runs_dir, config.name, config.overwrite = str(tmp_path), "photos", True
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_text("precious")
    with pytest.raises(FileExistsError, match="not a run folder"):
        check_run(config)
    assert (tmp_path / "photos" / "holiday.jpg").exists()


def test_resume_needs_a_run_folder_with_readable_settings(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.yaml"):
        load_config([f"resume={tmp_path}"])
    exploit = f"!!python/object/apply:os.system ['touch {tmp_path / 'ran'}']"
    for text in ("a: [", "unknown_key: 1", "seed: abc", "batch_size: 1", exploit, "_target_: os.system"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match="is damaged"):
            load_config([f"resume={tmp_path}"])
    assert not (tmp_path / "ran").exists()


def test_log_is_cut_at_the_checkpoint_and_ignores_a_half_line(tmp_path):
    log = MetricLog(tmp_path)
    for iteration in (10, 20, 30):
        log.write(iteration, {"loss": iteration / 7})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 40, "lo')
    MetricLog(tmp_path, 20).close()
    assert read_log(tmp_path / "metrics.jsonl") == [
        {"iteration": 10, "loss": round(10 / 7, 6)},
        {"iteration": 20, "loss": round(20 / 7, 6)},
    ]
    MetricLog(tmp_path).close()
    assert read_log(tmp_path / "metrics.jsonl") == []
    assert list((tmp_path / "tensorboard").iterdir())
