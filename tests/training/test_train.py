"""Whole trainings on a miniature data set: losses fall, runs repeat and resume bit for bit, errors are one line."""

import json
import os
import shlex
import signal
import sys

import numpy as np
import pytest
import torch
from miniature import same, settings, weights, write_camvid
from PIL import Image

from depthg.config.composing import load_config
from depthg.model.checkpoints import read_checkpoint
from depthg.model.run_folder import read_log
from depthg.runtime.stopping import StopRequest
from depthg.train import main, train
from depthg.training.trainer import Trainer, resume_note

KEYS = [
    f"{name}.{score}"
    for name in ("cluster", "linear", "linear_joint", "kmeans_features", "kmeans_codes")
    for score in ("accuracy", "miou")
]


@pytest.fixture
def root(tmp_path):
    return write_camvid(tmp_path / "camvid")


def test_losses_fall_and_the_run_folder_is_complete(drawn_figures, root, tmp_path):
    config = settings(root, "iterations=60", "log_every=5", "val.every=30", "val.panels=2", "name=a", "head.lr=0.005")
    metrics = train(config)
    run = tmp_path / "runs" / "a"
    lines = [line for line in read_log(run / "metrics.jsonl") if "loss" in line]
    for key in ("loss", "loss.linear", "loss.cluster"):
        assert np.mean([line[key] for line in lines[-3:]]) < np.mean([line[key] for line in lines[:3]]), key
    evaluated = [line["iteration"] for line in read_log(run / "metrics.jsonl") if "cluster.miou" in line]
    assert evaluated == [30, 60]
    assert all(0 <= metrics[key] <= 100 for key in KEYS)
    assert metrics == json.loads((run / "metrics.json").read_text())
    assert {"resolution", "crop", "flip", "crf", "checkpoint", "seed", "mode"} <= metrics["protocol"].keys()
    assert {"prepare", "train", "evaluate", "total"} <= metrics["seconds"].keys()
    assert 100 < metrics["memory"]["resident_mib"] < 100_000
    for name in (
        "config.yaml",
        "report.html",
        "panels/best.png",
        "panels/worst.png",
        "images.csv",
        "confusion.png",
        "checkpoints/last/checkpoint.safetensors",
    ):
        assert (run / name).stat().st_size > 0, name
    assert list((run / "tensorboard").iterdir())
    assert not [path for path in run.rglob(".*")], "no temporary file is left"


def test_same_seed_same_weights_and_metrics(root, tmp_path):
    results = [train(settings(root, f"name={name}", f"seed={seed}")) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    a, b, c = (weights(tmp_path / "runs" / name) for name in "abc")
    assert same(a, b) and not same(a, c)
    assert [results[0][key] for key in KEYS] == [results[1][key] for key in KEYS]


@pytest.mark.parametrize("stop", [pytest.param(3, marks=pytest.mark.slow), 13])
def test_a_killed_run_resumes_to_the_same_weights(root, tmp_path, monkeypatch, stop):
    train(settings(root, "name=whole", "log_every=1", "loss.shifts=auto"))
    with monkeypatch.context() as patch:
        original = Trainer.due

        def killed(self, every):
            if self.iteration == stop:
                raise SystemExit("killed")
            return original(self, every)

        patch.setattr(Trainer, "due", killed)
        with pytest.raises(SystemExit):
            train(settings(root, "name=cut", "log_every=1", "checkpoint.every=4", "loss.shifts=auto"))
    train(load_config([f"resume={tmp_path / 'runs' / 'cut'}"]))
    assert same(weights(tmp_path / "runs" / "whole"), weights(tmp_path / "runs" / "cut"))
    losses = [
        [line["loss"] for line in read_log(tmp_path / "runs" / name / "metrics.jsonl")] for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 20


@pytest.mark.parametrize("signal_name", [pytest.param("SIGINT", marks=pytest.mark.slow), "SIGTERM"])
def test_a_signal_stops_after_the_iteration_saves_and_says_how_to_go_on(
    root, tmp_path, monkeypatch, capsys, signal_name
):
    train(settings(root, "name=whole"))
    original = Trainer.reinitialize_clusters

    def interrupted(self):  # in the middle of iteration 10
        os.kill(os.getpid(), getattr(signal, signal_name))
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "reinitialize_clusters", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(settings(root, "name=cut"))
    run = tmp_path / "runs" / "cut"
    assert read_checkpoint(run / "checkpoints" / "last")[1]["iteration"] == 10
    assert f"resume={run}" in capsys.readouterr().out.replace("\n", "")
    train(load_config([f"resume={run}"]))
    assert same(weights(tmp_path / "runs" / "whole"), weights(run))


def test_a_second_signal_stops_at_once_unless_it_is_the_first_passed_on():
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGTERM)  # by the cluster, and by the launcher
        stop.at -= 1.1
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not stopped")


def test_a_finished_run_can_be_trained_longer(root, tmp_path):
    train(settings(root, "name=long", "iterations=24"))
    train(settings(root, "name=short", "iterations=12"))
    train(load_config([f"resume={tmp_path / 'runs' / 'short'}", "iterations=24"]))
    assert same(weights(tmp_path / "runs" / "long"), weights(tmp_path / "runs" / "short"))


def test_labels_reach_neither_head_nor_clusters(root, tmp_path):
    train(settings(root, "name=a"))
    for path in (root / "trainannot").iterdir():
        Image.fromarray(np.random.default_rng(0).integers(0, 11, (64, 64)).astype(np.uint8)).save(path)
    train(settings(root, "name=b"))
    a, b = (weights(tmp_path / "runs" / name) for name in "ab")
    assert not torch.equal(a["model.linear.weight"], b["model.linear.weight"])
    assert all(torch.equal(a[key], b[key]) for key in a if "linear." not in key.replace("head.linear", ""))


def test_changed_photos_are_noticed_on_resume(root, tmp_path):
    train(settings(root, "name=a"))
    Image.new("RGB", (64, 64), "red").save(root / "train" / "001.png")
    with pytest.raises(ValueError, match="other photos, weights or settings"):
        train(load_config([f"resume={tmp_path / 'runs' / 'a'}"]))


def test_nothing_is_written_or_deleted_before_the_settings_proved_possible(root, tmp_path):
    train(settings(root, "name=a"))
    finished = (tmp_path / "runs" / "a" / "metrics.json").read_text()
    for override in ("batch_size=50", "device=tpu9", f"data.root={tmp_path / 'typo'}", "data.eval_split=test"):
        with pytest.raises((ValueError, FileNotFoundError)):
            train(settings(root, "name=a", "overwrite=true", override))
    assert (tmp_path / "runs" / "a" / "metrics.json").read_text() == finished
    with pytest.raises(ValueError, match="batch_size=50"):
        train(settings(root, "name=b", "batch_size=50"))
    assert not (tmp_path / "runs" / "b").exists()


def test_divergence_stops_with_the_iteration_and_the_term(root, tmp_path):
    with pytest.raises(ValueError, match=r"(loss|similarity).* at iteration \d+: training diverged; lower head\.lr"):
        train(settings(root, "name=a", "head.lr=1e30", "log_every=1", "probe.reinit=0"))
    assert "NaN" not in (tmp_path / "runs" / "a" / "metrics.jsonl").read_text()


def test_best_checkpoint_without_labels_is_an_error(root):
    overrides = (
        "data=folder",
        f"data.root={root / 'train'}",
        "depth.source=none",
        "checkpoint.rule=best",
        "val.every=5",
    )
    with pytest.raises(ValueError, match=r"needs labels .* checkpoint\.rule=last"):
        train(settings(root, *overrides))


def test_unlabelled_evaluation_images_are_an_error_at_the_start(root, tmp_path):
    for path in (root / "valannot").iterdir():
        Image.new("L", (64, 64), 11).save(path)
    with pytest.raises(ValueError, match="no pixel of the 3 evaluation images has a label"):
        train(settings(root, "name=a"))
    assert not (tmp_path / "runs" / "a").exists()


def test_missing_depth_is_said_and_stands_in_the_protocol(root, capsys):
    metrics = train(settings(root, "depth.source=none"))
    assert "plain STEGO" in capsys.readouterr().out
    assert (metrics["protocol"]["sampling"], metrics["protocol"]["depth_term"]) == ("random", "off")
    guided = train(settings(root, "name=guided"))["protocol"]
    assert (guided["sampling"], guided["depth_term"]) == ("fps", "product, weight 0.2")


def test_skipped_photos_are_counted_in_the_metrics(root):
    (root / "train" / "003.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="skipped"):
        metrics = train(settings(root, "data.on_error=skip", "batch_size=5"))
    assert len(metrics["skipped"]) == 1 and "003.png" in metrics["skipped"][0]


def test_best_checkpoint_is_kept_reported_and_named_in_the_protocol(root, tmp_path):
    metrics = train(settings(root, "name=a", "val.every=5", "checkpoint.rule=best"))
    run = tmp_path / "runs" / "a"
    best = max(line["cluster.miou"] for line in read_log(run / "metrics.jsonl") if "cluster.miou" in line)
    assert metrics["cluster.miou"] == pytest.approx(best, abs=1e-3)
    assert metrics["protocol"]["checkpoint"] == "best"
    assert read_checkpoint(run / "checkpoints" / "best")[1]["best"] == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("score", ["miou", "accuracy"])
def test_the_score_that_picks_the_best_checkpoint(root, score):
    scores = iter([(3.0, 1.0), (2.0, 2.0), (1.0, 3.0), (2.5, 1.5)])

    def measured(*_, **__):
        accuracy, miou = next(scores, (0.0, 0.0))
        return {"cluster.accuracy": accuracy, "cluster.miou": miou}

    trainer = Trainer.__new__(Trainer)
    trainer.config, trainer.best = settings(root, "val.every=5", "checkpoint.rule=best", f"checkpoint.by={score}"), -1.0
    trainer.seconds, saved = {"evaluate": 0.0}, []
    trainer.write_log, trainer.save = lambda _: None, saved.append
    for _ in range(4):
        trainer.validate(measured)
    assert (len(saved), trainer.best) == {"miou": (3, 3.0), "accuracy": (1, 3.0)}[score]


def test_both_checkpoints_are_kept_and_the_last_is_reported(root, tmp_path):
    last = train(settings(root, "name=a", "val.every=5"))
    both = train(settings(root, "name=b", "val.every=5", "checkpoint.rule=both"))
    assert [last[key] for key in KEYS] == [both[key] for key in KEYS]
    assert both["protocol"]["checkpoint"] == "last"
    best = max(line["cluster.miou"] for line in read_log(tmp_path / "runs/b/metrics.jsonl") if "cluster.miou" in line)
    header = read_checkpoint(tmp_path / "runs" / "b" / "checkpoints" / "best")[1]
    assert header["best"] == pytest.approx(best, abs=1e-3)
    assert not (tmp_path / "runs" / "a" / "checkpoints" / "best").exists()


def test_reinit_moves_the_centroids_to_kmeans_of_the_codes(root, tmp_path):
    train(settings(root, "name=a", "probe.reinit=20"))
    train(settings(root, "name=b", "probe.reinit=0"))
    a, b = (weights(tmp_path / "runs" / name) for name in "ab")
    assert torch.equal(a["model.head.linear.weight"], b["model.head.linear.weight"])
    assert not torch.equal(a["model.cluster.centroids"], b["model.cluster.centroids"])
    assert not any(key.startswith("optimizer.cluster.") for key in a), "the old centroids' momentum is forgotten"
    lengths = a["model.cluster.centroids"].norm(dim=1)
    torch.testing.assert_close(lengths, lengths.mean().expand_as(lengths))


def test_a_resumed_run_says_what_has_changed(root, tmp_path, capsys):
    train(settings(root, "name=a", "probe.reinit=0.5", "iterations=6"))
    capsys.readouterr()
    train(load_config([f"resume={tmp_path / 'runs' / 'a'}"]))
    assert "resume: iteration 6 is reached already, nothing is trained" in capsys.readouterr().out
    found = train(load_config([f"resume={tmp_path / 'runs' / 'a'}", "iterations=14"]))
    printed = capsys.readouterr().out
    assert "resume: iterations=14 instead of 6; goes on at iteration 6, cluster probe restarted at 7\n" in printed
    assert found["protocol"]["probe_reinit"] == 7
    assert resume_note(load_config([]), 500, 0) == ""


def test_the_restart_follows_the_iterations_and_a_late_schedule_is_named(root, tmp_path, capsys):
    share = train(settings(root, "name=a", "probe.reinit=0.5", "iterations=12"))
    fixed = train(settings(root, "name=b", "probe.reinit=6", "iterations=12", "val.every=13"))
    assert share["protocol"]["probe_reinit"] == fixed["protocol"]["probe_reinit"] == 6
    assert same(*(weights(tmp_path / "runs" / name) for name in "ab"))
    assert "iterations=12 ends before val.every=13, checkpoint.every=100" in capsys.readouterr().out


def test_photos_without_labels_give_clusters_and_pictures(drawn_figures, root, tmp_path, capsys):
    for number, size in enumerate([(80, 64), (64, 120), (300, 200)]):
        Image.effect_noise(size, 60).convert("RGB").save(root / "train" / f"new {number}é.jpg")
    config = settings(root, "name=a", "data=folder", f"data.root={root / 'train'}", "depth.source=none", "n_classes=4")
    metrics, run, photos = train(config), tmp_path / "runs" / "a", shlex.quote(str(root / "train"))
    assert f"\nnext: python -m depthg.predict {run} {photos} --out DIR\n" in capsys.readouterr().out
    assert not any(key in metrics for key in KEYS) and metrics["classes"] == []
    assert "NaN" not in (tmp_path / "runs" / "a" / "metrics.jsonl").read_text()
    assert (tmp_path / "runs" / "a" / "panels" / "00.png").is_file()
    assert "model.linear.weight" not in weights(tmp_path / "runs" / "a")


def test_released_mode_trains(root):
    assert train(settings(root, "name=a", "mode=released"))["protocol"]["mode"] == "released"


def test_zero_iterations_evaluate_the_untrained_head(root):
    assert 0 <= train(settings(root, "name=a", "iterations=0"))["cluster.accuracy"] <= 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=camvid", "data.root=nowhere"], "nowhere"),
        (["data=camvid"], "data.root=DIR"),
        (["data=folder", "data.root=empty"], "no photos below empty"),
        (["los.depth.weight=1"], "did you mean 'loss.depth.weight'?"),
        (["backbone=dino_vits8", "backbone.weights=nothing.pth", "data=folder", "data.root=one"], "nothing.pth"),
        (["resume=nowhere"], "not a run folder"),
        (["data=folder", "data.root=one", "data.labels=a", "data.classes=b", "data.held_out=false"], "is trained on"),
        (["data=folder", "data.root=one", "data.class_map=map.txt"], "data.class_map=map.txt is for depthg.evaluate"),
    ],
)
def test_user_errors_are_said_without_a_traceback(tmp_path, monkeypatch, capsys, recwarn, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (64, 64)).save(tmp_path / "one" / f"{name}.png")
    said = error_of(tmp_path, monkeypatch, capsys, arguments)
    assert said.startswith("error: ") and message in said and "Traceback" not in said
    assert not recwarn.list


def error_of(folder, monkeypatch, capsys, arguments) -> str:
    """What the command says on stderr when it is started in ``folder``; its status is 1."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DEPTHG_CACHE", str(folder / "cache"))
    monkeypatch.setattr(sys, "argv", ["depthg.train", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    return capsys.readouterr().err


def test_a_user_error_is_status_one_and_all_that_is_said(run_module):
    finished = run_module("depthg.train", "device=tpu9")
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: device='tpu9'") and finished.stderr.count("\n") == 1


def test_command_line_from_scenes_to_report(run_module, tmp_path, monkeypatch, capsys):
    arguments = [
        "data.n_train=6",
        "data.n_val=2",
        "iterations=4",
        "batch_size=4",
        "name=tiny",
        "val.kmeans_samples=1000",
    ]
    finished = run_module("depthg.train", *arguments)
    assert finished.returncode == 0, finished.stderr
    assert "k-means" in finished.stdout and "protocol:" in finished.stdout
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()
    assert "overwrite=true" in error_of(tmp_path, monkeypatch, capsys, arguments)
    train(load_config([*arguments, "overwrite=true", "iterations=5"]))
    assert read_checkpoint(tmp_path / "runs" / "tiny" / "checkpoints" / "last")[1]["iteration"] == 5
