"""The linear probe that is fitted after training: which checkpoints hold it, and what reads it."""

import json

import pytest
import torch
from miniature import same, settings, weights, write_camvid
from torch.nn import functional as F

from depthg.config.composing import load_config
from depthg.evaluate import main
from depthg.model.checkpoints import FILE, read_checkpoint
from depthg.model.codes import labelled_codes
from depthg.model.linear_fit import fit_linear
from depthg.model.run_folder import read_log
from depthg.runtime.seeds import seed_of
from depthg.storage.whole_files import write_tensors
from depthg.train import train
from depthg.training.trainer import Trainer


@pytest.fixture
def root(tmp_path):
    return write_camvid(tmp_path / "camvid")


def training_cells(config, run, checkpoint="last"):
    """Codes and classes of the training cells, by the head of a checkpoint."""
    trainer = Trainer(load_config([f"resume={run}"]))
    tensors = read_checkpoint(run / "checkpoints" / checkpoint)[0]
    trainer.model.head.load_state_dict(
        {key.removeprefix("model.head."): value for key, value in tensors.items() if key.startswith("model.head.")}
    )
    seed = seed_of(config.seed, "linear fit")
    data = trainer.data
    return tensors, labelled_codes(trainer.model.head, data.features, data.labels, data.grid, seed, trainer.device)


def test_every_kept_checkpoint_holds_the_fit_to_its_own_codes(root, tmp_path, capsys):
    config = settings(root, "name=a", "val.every=5", "checkpoint.rule=both", "val.panels=0", "head.lr=0.01")
    metrics, run = train(config), tmp_path / "runs" / "a"
    assert "linear probe fitted to 384 cells: " in capsys.readouterr().out
    assert metrics["protocol"]["linear"] == "fitted to convergence" and metrics["protocol"]["linear_cells"] == 384
    stored = []
    for name in ("last", "best"):
        tensors, (codes, classes) = training_cells(config, run, name)
        fit = fit_linear(codes, classes, 11)
        assert torch.equal(tensors["model.fitted_linear.weight"], fit.weight), name
        assert torch.equal(tensors["model.fitted_linear.bias"], fit.bias), name
        header = read_checkpoint(run / "checkpoints" / name)[1]
        assert header["linear_fit"] == {"cells": 384, "iterations": fit.iterations, "gradient": fit.gradient}
        losses = [
            float(F.cross_entropy(codes @ tensors[f"{key}.weight"].T + tensors[f"{key}.bias"], classes))
            for key in ("model.fitted_linear", "model.linear")
        ]
        assert losses[0] < 0.9 * losses[1], "converged, unlike the probe of 20 iterations"
        stored.append(fit.weight)
    assert not torch.equal(*stored)
    lines = [line for line in read_log(run / "metrics.jsonl") if "cluster.miou" in line]
    assert all("linear_joint.miou" in line and "linear.miou" not in line for line in lines), "none during training"
    assert lines[-1]["linear_joint.miou"] == pytest.approx(metrics["linear_joint.miou"], abs=1e-6)
    assert metrics["linear.accuracy"] > metrics["linear_joint.accuracy"]


def test_the_scored_probe_is_that_of_the_best_checkpoint(root, tmp_path):
    metrics = train(settings(root, "name=a", "val.every=5", "checkpoint.rule=best", "val.panels=0"))
    assert main([str(tmp_path / "runs" / "a"), "--checkpoint", "best", "--no-kmeans", "--bootstrap", "0"]) == 0
    (path,) = (tmp_path / "runs" / "a" / "evaluations").glob("*.json")
    found = json.loads(path.read_text())
    for name in ("linear", "linear_joint"):
        assert found["results"][name]["accuracy"] == metrics[f"{name}.accuracy"]
    assert found["protocol"]["linear_cells"] == 384 and "linear probe fitted to 384 cells" in found["protocol_line"]


def test_a_checkpoint_without_the_fit_is_evaluated_and_gets_one_when_resumed(root, tmp_path):
    metrics, run = train(settings(root, "name=a", "val.panels=0")), tmp_path / "runs" / "a"
    whole = weights(run)
    tensors, header = read_checkpoint(run / "checkpoints" / "last")
    old = {key: value for key, value in tensors.items() if "fitted_linear" not in key}
    del header["linear_fit"]
    write_tensors(run / "checkpoints" / "last" / FILE, old, {"depthg": json.dumps(header)})
    assert main([str(run), "--out", str(tmp_path / "out"), "--bootstrap", "0"]) == 0
    (path,) = (tmp_path / "out").glob("*.json")
    found = json.loads(path.read_text())
    assert set(found["results"]) == {"cluster", "linear_joint", "kmeans_codes", "kmeans_features"}
    assert found["results"]["linear_joint"]["miou"] == metrics["linear_joint.miou"]
    assert "linear" not in found["protocol"] and "fitted" not in found["protocol_line"]
    again = train(load_config([f"resume={run}"]))
    assert same(weights(run), whole) and again["linear.miou"] == metrics["linear.miou"]


def test_training_photos_without_labels_leave_the_joint_probe_alone(root, tmp_path):
    for path in (root / "trainannot").iterdir():
        path.unlink()
    photos = ("data=folder", f"data.root={root / 'train'}", "depth.source=none", "n_classes=4", "name=a")
    assert not {"linear.miou", "linear_joint.miou"} & train(settings(root, *photos, "val.panels=0")).keys()
    assert "model.fitted_linear.weight" not in weights(tmp_path / "runs" / "a")
