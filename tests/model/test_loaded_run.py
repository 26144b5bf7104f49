"""A run folder is read back to the same codes; whatever does not fit together is refused with file and reason."""

import json
import shutil

import numpy as np
import pytest
import torch
from miniature import settings
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from depthg.data.transforms import to_float
from depthg.features.preparation import Preparation
from depthg.inference.segmenter import Segmenter
from depthg.model.checkpoints import FILE
from depthg.model.codes import codes_of
from depthg.model.loaded_run import load_run


@pytest.fixture
def run(shared_run, tmp_path):
    return shutil.copytree(shared_run, tmp_path / "run")


def rewrite(run, change_tensors=lambda tensors: None, **header):
    """The checkpoint with other tensors and other header entries (None: removed)."""
    path = run / "checkpoints" / "last" / FILE
    with safe_open(path, framework="pt") as file:
        stored = json.loads(file.metadata()["depthg"]) | header
    tensors = load_file(path)
    change_tensors(tensors)
    stored = {key: value for key, value in stored.items() if value is not None}
    save_file(tensors, path, metadata={"depthg": json.dumps(stored)})


def test_features_and_codes_equal_those_of_training(shared_tree, shared_run):
    run = load_run(shared_run)
    assert run.config.backbone.standardize
    preparation = Preparation(settings(shared_tree), run.device)
    data = preparation.run()
    views = preparation.evaluation_views
    images = to_float(torch.stack([views.load(number).image for number in range(3)]))
    features = run.features(images)
    assert torch.equal(features, torch.from_numpy(np.array(data.evaluation.features)).float())
    assert torch.equal(run.codes(features), codes_of(run.head, data.evaluation.features, run.device))
    assert run.classes == data.dataset.classes and run.n_clusters == 11 and run.header["iteration"] == 20
    assert not any(parameter.requires_grad for parameter in run.head.parameters()) and not run.head.training


def test_the_matching_of_the_same_checkpoint_is_found(run):
    stored = json.loads((run / "metrics.json").read_text())
    assert load_run(run).assignment.tolist() == stored["assignment"]["cluster"]
    stored["protocol"]["checkpoint"] = "best"
    (run / "metrics.json").write_text(json.dumps(stored))
    assert load_run(run).assignment is None
    entries = [("best", "cluster probe", 1), ("last", "cluster probe", 2), ("last", "k-means on codes", 3)]
    stored["evaluations"] = [
        {"checkpoint": checkpoint, "clusters": {"number": 11, "by": by}, "cluster.assignment": [number] * 11}
        for checkpoint, by, number in entries
    ]
    (run / "metrics.json").write_text(json.dumps(stored))
    assert load_run(run).assignment.tolist() == [2] * 11, "of an evaluation of this checkpoint's cluster probe"
    del stored["evaluations"]
    stored["protocol"]["checkpoint"], stored["assignment"]["cluster"][0] = "last", 11
    (run / "metrics.json").write_text(json.dumps(stored))
    assert load_run(run).assignment is None, "a class that the run does not have"


def test_stages_of_older_checkpoints_come_from_the_backbone(run):
    rewrite(run, stages=None)
    loaded = load_run(run)
    assert loaded.transform.stages == loaded.backbone.stages and len(loaded.transform.stages) == 3


def test_missing_checkpoints(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="kept no best checkpoint"):
        load_run(run, "best")
    with pytest.raises(ValueError, match="checkpoint='worst' is not one of"):
        load_run(run, "worst")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*last"):
        load_run(run)
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        load_run(tmp_path / "nothing")


def test_a_truncated_checkpoint(run):
    path = run / "checkpoints" / "last" / FILE
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"checkpoint.safetensors is damaged"):
        load_run(run)


def drop(name):
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "header", "message"),
    [
        (lambda t: None, {"backbone": "dino_vits8"}, "trained on features of dino_vits8, .* names efficientnet_lite0"),
        (lambda t: None, {"classes": ["a", "b"]}, "11 clusters, the settings of the run ask for 2"),
        (drop("model.cluster.centroids"), {}, "cluster.centroids is missing"),
        (drop("model.head.linear.weight"), {}, "head.linear.weight is missing"),
        (lambda t: t.update({"model.linear.weight": torch.zeros(5, 8)}), {}, "linear probe of 5 classes but names 11"),
        (lambda t: t.update({"model.transform.mean": torch.zeros(384)}), {}, "has 472 channels, the checkpoint 384"),
    ],
)
def test_parts_of_different_runs_are_refused(run, change, header, message):
    rewrite(run, change, **header)
    with pytest.raises(ValueError, match=message):
        load_run(run)


def test_other_weights_of_the_backbone_are_refused_when_it_is_needed(run):
    rewrite(run, weights="0123456789abcdef")
    loaded = load_run(run)
    with pytest.raises(ValueError, match=r"with other weights than .* found here"):
        loaded.features(torch.rand(1, 3, 64, 64))


def test_only_places_may_be_given_anew(run, tmp_path):
    assert load_run(run, overrides=[f"cache.dir={tmp_path}"]).config.cache.dir == str(tmp_path)
    assert load_run(run, overrides=["data.workers=3"]).config.data.workers == 3
    with pytest.raises(ValueError, match=r"head\.dim belongs to the trained run"):
        load_run(run, overrides=["head.dim=3"])
    with pytest.raises(ValueError, match=r"unknown key 'data\.rot'"):
        load_run(run, overrides=["data.rot=x"])


def test_clusters_without_a_class_take_the_name_of_their_most_frequent_one(shared_run, tmp_path):
    copy = shutil.copytree(shared_run, tmp_path / "run")
    stored = json.loads((copy / "metrics.json").read_text())
    assert load_run(copy).naming.tolist() == stored["assignment"]["cluster"], "every cluster has a class"
    frequent = stored["most_frequent"]["cluster"]
    assert len(frequent) == 11 and {0, 3} <= set(frequent) <= {-1, 0, 1, 3}, "sky, road and pole are in the labels"
    stored["assignment"]["cluster"][:2] = [-1, -1]
    stored["most_frequent"]["cluster"][:2] = [3, -1]
    (copy / "metrics.json").write_text(json.dumps(stored))
    run = load_run(copy)
    assert run.assignment[:2].tolist() == [-1, -1] and run.naming[:2].tolist() == [3, -1]
    assert run.naming[2:].tolist() == run.assignment[2:].tolist()
    names, colours = Segmenter(run).names, Segmenter(run).colours
    assert names[:2] == ("road", "cluster 1")
    assert colours[0].tolist() not in colours[1:].tolist(), "a colour that no class has"
    for damaged in ([99, 0], "x"):
        (copy / "metrics.json").write_text(json.dumps({**stored, "most_frequent": {"cluster": damaged}}))
        assert load_run(copy).naming.tolist() == run.assignment.tolist()
