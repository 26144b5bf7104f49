"""Checkpoints as STEGO and DepthG write them: made here, converted, compared with their forward pass written out."""

import json
import os
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from dino_oracle import dino_oracle, dino_state
from miniature import write_camvid
from omegaconf import OmegaConf
from PIL import Image
from torch.nn import functional as F

from depthg.backbones.dino import DINO, DinoSpec
from depthg.convert import main
from depthg.evaluate import main as evaluate
from depthg.foreign.records import MAX_DEPTH
from depthg.model.converted import BACKBONE_FILE, convert
from depthg.model.loaded_run import load_run
from depthg.predict import main as predict

pytest.importorskip("transformers", reason="the package transformers is not installed")

WIDTH, DIM, CLASSES, EXTRA = 128, 10, 27, 3
CFG = {
    "dim": DIM, "arch": "dino", "model_type": "vit_small", "dino_patch_size": 8, "dino_feat_type": "feat",
    "projection_type": "nonlinear", "dropout": True, "res": 224, "extra_clusters": EXTRA, "batch_size": 16,
    "dataset_name": "cocostuff27", "pos_intra_weight": 0.67, "pos_intra_shift": 0.08, "pos_inter_shift": 0.02,
    "neg_inter_shift": 0.66, "feature_samples": 11, "pointwise": False, "output_root": "${oc.env:HOME}/x",
    "list": [1, {"a": None}],
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """ViT-S/8 with two layers of 128 channels."""
    monkeypatch.setitem(DINO, "dino_vits8_300ep", DinoSpec(None, "url/file.pth", WIDTH, 8, 2))


def state_dict(projection="nonlinear", clusters=CLASSES + EXTRA):
    def convolution(name, d_out, d_in):
        return {f"{name}.weight": torch.randn(d_out, d_in, 1, 1) / d_in**0.5, f"{name}.bias": torch.randn(d_out) * 0.3}

    state = {f"net.model.{key}": value for key, value in dino_state(WIDTH, 2).items()}
    state |= convolution("net.cluster1.0", DIM, WIDTH)
    if projection == "nonlinear":
        state |= convolution("net.cluster2.0", WIDTH, WIDTH) | convolution("net.cluster2.2", DIM, WIDTH)
    state |= {"train_cluster_probe.clusters": torch.randn(CLASSES, DIM)}
    state |= {"cluster_probe.clusters": torch.randn(clusters, DIM)}
    return state | convolution("linear_probe", CLASSES, DIM) | convolution("decoder", WIDTH, DIM)


def stub_package(monkeypatch):
    """A module with classes named as Lightning's and OmegaConf's, laid out as theirs when pickled."""
    module = types.ModuleType("omegaconf_stub")
    monkeypatch.setitem(sys.modules, "omegaconf_stub", module)

    def make(name):
        kind = type(name, (), {"__module__": "omegaconf_stub"})
        setattr(module, name, kind)
        return kind

    Dict, List, Node, Callback = map(make, ("DictConfig", "ListConfig", "AnyNode", "ModelCheckpoint"))

    def wrap(value, parent=None):
        kind = Dict if isinstance(value, dict) else List if isinstance(value, list) else Node
        node = kind()
        node._metadata, node._parent = {"optional": True, "object_type": kind}, parent
        if kind is Dict:
            node._content = {key: wrap(part, node) for key, part in value.items()}
        elif kind is List:
            node._content = [wrap(part, node) for part in value]
        else:
            node._val = value
        return node

    return wrap, Callback


def write(path, state=None, cfg=CFG, wrap=dict, callback=None, version="1.4.2", step=7000, **kwargs):
    content = {
        "epoch": 3, "global_step": step, "pytorch-lightning_version": version, "state_dict": state or state_dict(),
        "callbacks": {callback: {"best_model_score": torch.tensor(0.2)}} if callback else {}, "optimizer_states": [],
        "lr_schedulers": [], "hparams_name": "kwargs", "hyper_parameters": {"n_classes": CLASSES, "cfg": wrap(cfg)},
    }  # fmt: skip
    torch.save(content, path, **kwargs)
    return content["state_dict"]


def stego(state, images):
    """Features, codes, cluster cosines and linear scores of STEGO in float64, written from its description."""
    weights = {key: value.double() for key, value in state.items()}
    features = dino_oracle({k.removeprefix("net.model."): v for k, v in state.items() if "net.model." in k}, images)

    def convolution(x, name):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    codes = convolution(features, "net.cluster1.0")
    if "net.cluster2.0.weight" in weights:
        codes = codes + convolution(F.relu(convolution(features, "net.cluster2.0")), "net.cluster2.2")
    clusters = F.normalize(weights["cluster_probe.clusters"], dim=1)
    cosines = torch.einsum("bkhw,nk->bnhw", F.normalize(codes, dim=1), clusters)
    return codes, cosines, convolution(codes, "linear_probe")


def check(run, state):
    """The converted run gives STEGO's codes and scores."""
    loaded, images = load_run(run), torch.rand(2, 3, 48, 64)
    codes, cosines, linear = (m.flatten(2).transpose(1, 2) for m in stego(state, images))
    found = loaded.codes(loaded.features(images)).double()
    error = (found - codes).norm() / codes.norm()
    assert error < 2e-3  # features are kept in float16, as in training
    with torch.no_grad():
        scores = F.normalize(loaded.cluster(found.float()), dim=-1).double()
        torch.testing.assert_close(scores, F.normalize(cosines, dim=-1), atol=5e-3, rtol=0)
        torch.testing.assert_close(loaded.linear(found.float()).double(), linear, atol=2e-2, rtol=0)
    return loaded


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "rows"])
@pytest.mark.parametrize("kind", ["stub", "omegaconf", "plain"])
def test_a_checkpoint_becomes_a_run_with_the_same_codes(tmp_path, monkeypatch, kind, zipped):
    callback = None
    with monkeypatch.context() as patch:
        wrap = {"omegaconf": OmegaConf.create, "plain": dict}.get(kind)
        if kind == "stub":
            wrap, callback = stub_package(patch)
        state = write(
            tmp_path / "a.ckpt", wrap=wrap, callback=callback, _use_new_zipfile_serialization=zipped,
        )  # fmt: skip
    assert "omegaconf_stub" not in sys.modules
    run = convert(tmp_path / "a.ckpt", tmp_path / "run")
    loaded = check(run, state)
    assert (loaded.n_clusters, len(loaded.classes), loaded.linear.out_features) == (CLASSES + EXTRA, CLASSES, CLASSES)
    assert loaded.config.backbone.name == "dino_vits8_300ep", "the checkpoint behind both projects"
    assert loaded.classes[9] == "person" and loaded.config.data.name == "cocostuff27" and loaded.assignment is None
    loss = loaded.config.loss
    assert (loss.self.weight, loss.self.shift, loss.neighbour.shift, loss.negative.shift) == (0.67, 0.08, 0.02, 0.66)
    assert (
        loss.center is False
        and loaded.config.head.dropout == 0.1
        and loaded.config.data.eval_size == [320, 320]
        and loaded.header["iteration"] == 7000
    )
    source = json.loads((run / "source.json").read_text())
    assert source["hyper_parameters"]["cfg"] == CFG and source["file"] == "a.ckpt"
    assert not [path for path in tmp_path.rglob(".*")], "no temporary file is left"


def test_iterations_are_counted_and_not_the_steps_of_three_optimisers(tmp_path):
    write(tmp_path / "a.ckpt", cfg={**CFG, "max_steps": 7000}, version="2.0.1.post0", step=6900)
    run = convert(tmp_path / "a.ckpt", tmp_path / "run")
    loaded, source = load_run(run), json.loads((run / "source.json").read_text())
    assert (loaded.header["iteration"], loaded.config.iterations) == (2300, 2334)
    assert (source["global_step"], source["iterations"], source["steps_per_iteration"]) == (6900, 2300, 3)
    write(tmp_path / "b.ckpt", cfg={**CFG, "max_steps": 5000}, version="1.5.10", step=4900)
    loaded = load_run(convert(tmp_path / "b.ckpt", tmp_path / "b"))
    assert (loaded.header["iteration"], loaded.config.iterations) == (4900, 5000), "older ones count iterations"


def test_lowered_settings_are_those_of_the_start(tmp_path):
    recorded = {"depth_feat_weight": 0.19 * 0.6 * 0.6, "depth_feat_shift": 0.03 * 0.6 * 0.6, "feature_samples": 9}
    decay = {
        "depth_loss_decay": True, "decay_every_steps": 250, "depth_loss_decay_factor": 0.6, "use_depth": True,
        "depth_feat_correlation_loss": True, "depth_sampling": "fps", "fps_sample_decay": True,
        "fps_sample_decay_every_steps": 1000, "fps_sample_decay_factor": 0.9, "crop_type": "five", "max_steps": 7000,
    }  # fmt: skip
    write(tmp_path / "a.ckpt", cfg={**CFG, **decay, **recorded}, version="2.0.1", step=3 * 600)
    run = convert(tmp_path / "a.ckpt", tmp_path / "run")
    config, lowered = load_run(run).config, json.loads((run / "source.json").read_text())["lowered"]
    depth, sampling = config.loss.depth, config.sampling
    assert (depth.weight, depth.shift, depth.factor, depth.every) == (0.19, 0.03, 0.6, 250)
    assert (sampling.method, sampling.points, sampling.schedule) == ("fps", 11, [[1, 9], [1001, 8], [2001, 7]])
    assert (config.depth.source, config.data.crop, config.mode, depth.relation) == ("model", "five", "released", "unit")
    assert lowered["sampling.points"] == {"recorded": 9, "initial": 11}
    assert lowered["loss.depth.weight"] == {"recorded": recorded["depth_feat_weight"], "initial": 0.19}


def test_the_run_folder_can_be_moved(tmp_path):
    state = write(tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "run").rename(tmp_path / "elsewhere")
    assert yaml.safe_load((tmp_path / "elsewhere" / "config.yaml").read_text())["backbone"]["weights"] == BACKBONE_FILE
    check(tmp_path / "elsewhere", state)


def test_linear_projection_and_bare_state_dicts(tmp_path):
    state = write(tmp_path / "a.ckpt", state_dict("linear"), {**CFG, "projection_type": "linear"})
    check(convert(tmp_path / "a.ckpt", tmp_path / "a"), state)
    torch.save(state, tmp_path / "b.pth")
    loaded = check(convert(tmp_path / "b.pth", tmp_path / "b"), state)
    assert loaded.config.data.name == "folder" and loaded.classes[:2] == ("class 0", "class 1")


def test_a_stop_between_the_renames_leaves_the_earlier_run(tmp_path, monkeypatch, capsys):
    write(tmp_path / "a.ckpt")
    run = convert(tmp_path / "a.ckpt", tmp_path / "run")
    (run / "mine").touch()
    original, calls = Path.rename, []

    def rename(path, target):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    assert main([str(tmp_path / "a.ckpt"), "--out", str(run), "--overwrite"]) == 130
    assert len(calls) == 3 and (run / "mine").is_file() and "as it was" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "run"]


def test_settings_that_are_too_deep_are_refused_with_the_name_of_the_file(tmp_path, capsys):
    deep: list = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    write(tmp_path / "deep.ckpt", cfg={**CFG, "x": deep})
    assert main([str(tmp_path / "deep.ckpt"), "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert re.search(r"deep\.ckpt cannot be converted: its settings are nested deeper", error) and not list(
        tmp_path.glob("run*")
    )


def test_without_linear_probe_and_without_backbone(tmp_path, capsys):
    state = state_dict(clusters=12)
    bare = {key: value for key, value in state.items() if not key.startswith(("linear_probe", "net.model."))}
    write(tmp_path / "a.ckpt", bare)
    assert main([str(tmp_path / "a.ckpt"), "--out", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "12 clusters" in text and "no linear probe" in text and "not in the checkpoint" in text
    loaded = load_run(tmp_path / "run")
    assert loaded.config.backbone.name == "dino_vits8_300ep"
    with pytest.raises(FileNotFoundError, match=r"needs the file file\.pth of DINO"):
        loaded.backbone.name  # noqa: B018 it is loaded on first use
    assert loaded.linear is None and loaded.classes == () and loaded.config.backbone.weights is None
    with pytest.raises(ValueError, match="name no DINO network"):
        write(tmp_path / "b.ckpt", bare, {**CFG, "model_type": "vit_tiny"})
        convert(tmp_path / "b.ckpt", tmp_path / "b")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"net.cluster1.0.weight": None}, "no STEGO or DepthG checkpoint"),
        ({"net.cluster1.0.bias": None}, "linear.bias of net.cluster1 and net.cluster2 is missing"),
        ({"net.cluster1.0.weight": torch.zeros(DIM, WIDTH, 3, 3)}, "1 x 1 convolution"),
        ({"net.cluster1.0.weight": torch.zeros(DIM, 10**6, 1, 1)}, "takes 1000000 channels"),
        ({"net.cluster2.2.weight": torch.zeros(DIM + 1, WIDTH, 1, 1)}, "nonlinear.2.weight"),
        ({"net.cluster2.2.weight": None}, "net.cluster2.2.weight is missing"),
        ({"cluster_probe.clusters": None}, "cluster_probe.clusters"),
        ({"cluster_probe.clusters": torch.zeros(30, DIM + 1)}, "centroids of cluster_probe"),
        ({"linear_probe.bias": None}, "bias of linear_probe"),
        ({"net.model.patch_embed.proj.weight": torch.zeros(WIDTH, 3, 14, 14)}, "width 128 and patch 14"),
        ({"net.model.blocks.1.attn.qkv.bias": None}, "missing"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(tmp_path, change, message):
    state = {**state_dict(), **change}
    write(tmp_path / "a.ckpt", {key: value for key, value in state.items() if value is not None})
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "a.ckpt", tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt"], "nothing half-written is left"


@pytest.mark.parametrize(
    "key, value", [("arch", "feature-pyramid"), ("dino_feat_type", "KK"), ("projection_type", "x")]
)
def test_other_networks_are_named(tmp_path, key, value):
    write(tmp_path / "a.ckpt", cfg={**CFG, key: value})
    with pytest.raises(ValueError, match=f"{key}={value}"):
        convert(tmp_path / "a.ckpt", tmp_path / "run")


def test_settings_that_are_hostile_or_odd_are_not_taken_over(tmp_path):
    odd = {
        "res": 1e300,
        "batch_size": "${oc.env:HOME}",
        "dataset_name": "../../x",
        "lr": float("nan"),
        "dim": "7",
        "dropout": False,
    }
    write(tmp_path / "a.ckpt", cfg={**CFG, **odd})
    config = load_run(convert(tmp_path / "a.ckpt", tmp_path / "run")).config
    assert (config.data.size, config.batch_size, config.data.name) == ([224, 224], 16, "folder")
    assert config.head.dim == DIM
    # The head's branches drop channels in any case; the setting is about the features that F compares.
    assert (config.head.dropout, config.loss.feature_dropout) == (0.1, False)


class Evil:
    def __reduce__(self):
        return os.system, ("echo > ran",)


def test_a_malicious_checkpoint_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.ckpt", cfg={**CFG, "callback": Evil()})
    assert main(["a.ckpt", "--out", "run"]) == 1
    assert "can run code" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt"]


def test_nothing_is_replaced_unasked(tmp_path, capsys):
    write(tmp_path / "a.ckpt")
    arguments = [str(tmp_path / "a.ckpt"), "--out", str(tmp_path / "run")]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("kept")
    assert main(arguments) == 1 and main([*arguments, "--overwrite"]) == 1
    assert "no run folder" in capsys.readouterr().err and (tmp_path / "run" / "mine.txt").exists()
    (tmp_path / "run" / "mine.txt").unlink()
    assert main(arguments) == 0
    assert main(arguments) == 1 and "--overwrite" in capsys.readouterr().err
    (tmp_path / "run" / "old.txt").write_text("of the run before")
    assert main([*arguments, "--overwrite"]) == 0 and not (tmp_path / "run" / "old.txt").exists()
    assert main([arguments[0], "--out", str(tmp_path), "--overwrite"]) == 1
    assert "holds the checkpoint itself" in capsys.readouterr().err
    assert main([str(tmp_path / "no.ckpt"), "--out", str(tmp_path / "b")]) == 1
    assert "no.ckpt" in capsys.readouterr().err


def labelled_photos(tmp_path, count):
    """Arguments of an evaluation: photos, label maps of the ids 0, 1, 3 and 11 (void), and names of the classes."""
    root = write_camvid(tmp_path / "camvid")
    lines = [f"{number} kind{number}" for number in range(count)] + ["11 void"] * (count < 12)
    (tmp_path / "classes.txt").write_text("\n".join(lines))
    return [
        "data=folder", f"data.root={root / 'train'}", f"data.labels={root / 'trainannot'}", "--resolution", "64",
        f"data.classes={tmp_path / 'classes.txt'}", f"cache.dir={tmp_path / 'cache'}",
    ]  # fmt: skip


def all_photos(tmp_path, part):
    """What `data=folder` scores of a converted run: all six photos."""
    return torch.from_numpy(
        np.stack([np.array(Image.open(path)) for path in sorted((tmp_path / "camvid" / part).iterdir())])
    )


@pytest.mark.parametrize("probe", [True, False], ids=["linear probe", "no linear probe"])
def test_a_checkpoint_of_an_unknown_data_set_is_scored_and_then_names_its_clusters(
    tmp_path, capsys, monkeypatch, probe
):
    state = state_dict(clusters=11)
    state |= {"linear_probe.weight": torch.randn(11, DIM, 1, 1), "linear_probe.bias": torch.randn(11)}
    kept = {key: value for key, value in state.items() if probe or not key.startswith("linear_probe")}
    with monkeypatch.context() as patch:
        write(tmp_path / "a.ckpt", kept, {**CFG, "dataset_name": "directory"}, stub_package(patch)[0])
    assert main([str(tmp_path / "a.ckpt"), "--out", str(tmp_path / "run")]) == 0
    names, given = [f"kind{number}" for number in range(11)], labelled_photos(tmp_path, 11)
    assert evaluate([str(tmp_path / "run"), *given]) == 0, capsys.readouterr().err
    (path,) = (tmp_path / "run" / "evaluations").glob(
        "folder-val-64x64-plain-last-????????.json"
    )  # not the run's own data
    found = json.loads(path.read_text())
    assert found["classes"] == names and ("linear_joint" in found["results"]) == probe
    assert {"cluster", "kmeans_codes", "kmeans_features"} <= set(found["results"])
    assert found["protocol"]["images"] == 6 and found["protocol"]["photos"] == "labels for 6 of 6 photos, 6 scored"

    run = load_run(tmp_path / "run")
    if probe:
        labels, images = all_photos(tmp_path, "trainannot"), all_photos(tmp_path, "train").permute(0, 3, 1, 2) / 255
        ids = F.interpolate(stego(state, images)[2], (64, 64), mode="bilinear").argmax(1)
        accuracy = 100 * float((ids == labels)[labels < 11].float().mean())
        assert found["results"]["linear_joint"]["accuracy"] == pytest.approx(accuracy, abs=0.5)
    assert run.assignment.tolist() == found["results"]["cluster"]["assignment"]
    assert run.class_names == tuple(names)
    out = tmp_path / "out"
    assert predict([str(tmp_path / "run"), str(tmp_path / "camvid" / "val"), "--out", str(out)]) == 0
    legend = json.loads((out / "legend.json").read_text())
    assert legend["named"] and [row["name"] for row in legend["ids"]] == [names[c] for c in run.assignment]


@pytest.mark.parametrize("option, images", [("data.n_val=2", 2), ("data.held_out=true", 3)])
def test_fewer_photos_are_scored_on_demand(tmp_path, option, images):
    write(tmp_path / "a.ckpt", cfg={**CFG, "dataset_name": "directory"})
    convert(tmp_path / "a.ckpt", tmp_path / "run")
    arguments = [*labelled_photos(tmp_path, CLASSES), "--no-kmeans", "--bootstrap", "0"]
    assert evaluate([str(tmp_path / "run"), *arguments, option]) == 0
    (path,) = (tmp_path / "run" / "evaluations").glob("*.json")
    assert json.loads(path.read_text())["protocol"]["images"] == images


def test_a_converted_run_is_scored_as_the_authors_score(tmp_path):
    write(tmp_path / "a.ckpt")
    config = load_run(convert(tmp_path / "a.ckpt", tmp_path / "run")).config
    assert (config.mode, config.data.interpolation, config.data.eval_size) == ("released", "nearest", [320, 320])
    assert (config.val.count, config.val.matching, config.val.crf_image) == ("released", "hungarian", "released")
    assert (config.data.held_out, config.data.n_val) == (False, None)


def mapped_run(tmp_path, lines):
    """A converted run of COCO-Stuff's 27 classes, and arguments that score it on four classes of other names."""
    state = write(tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "run")
    arguments = labelled_photos(tmp_path, 0)
    (tmp_path / "classes.txt").write_text("0 above\n1 block\n3 below\n7 elsewhere\n11 void\n")
    (tmp_path / "map.txt").write_text("\n".join(lines))
    return state, [str(tmp_path / "run"), *arguments, f"data.class_map={tmp_path / 'map.txt'}"]


def test_a_class_map_scores_a_run_on_labels_of_other_classes(tmp_path, capsys):
    """Accuracy and IoU of the linear probe against ids mapped by hand; the rest of the run's classes is wrong."""
    pairs = {"sky": "above", "building": "block", "9": "below", "ground": "below", "22": "1", "vehicle": "void"}
    state, arguments = mapped_run(tmp_path, [f"{left} -> {right}" for left, right in pairs.items()])
    assert evaluate([*arguments, "--bootstrap", "20"]) == 0, capsys.readouterr().err
    (path,) = (tmp_path / "run" / "evaluations").glob("*.json")
    found = json.loads(path.read_text())
    names = ["above", "block", "below", "elsewhere"]
    assert found["classes"] == names and found["protocol"]["class_map"] == "map.txt"
    assert found["protocol"]["count"] == "all" and "linear probe by class map map.txt" in found["protocol_line"]

    photos, labels = all_photos(tmp_path, "train").permute(0, 3, 1, 2) / 255, all_photos(tmp_path, "trainannot")
    ids = F.interpolate(stego(state, photos)[2], (64, 64), mode="bilinear").argmax(1)
    mapped = torch.full((CLASSES,), -1)
    mapped[[23, 20, 9, 21, 22]] = torch.tensor([0, 1, 2, 2, 1])
    truth = torch.full((12,), -1)
    truth[[0, 1, 3, 7]] = torch.arange(4)
    predicted, truth = mapped[ids], truth[labels.long()]
    scored = truth >= 0
    right = (predicted == truth) & scored
    linear = found["results"]["linear_joint"]
    assert linear["accuracy"] == pytest.approx(100 * float(right.sum() / scored.sum()), abs=0.5)
    assert linear["assignment"] == mapped.tolist() and linear["intervals"]["accuracy"][0] <= linear["accuracy"]
    for number, name in enumerate(names[:3]):
        union = ((predicted == number) | (truth == number)) & scored
        iou = 100 * float((right & (truth == number)).sum() / union.sum())
        assert linear["per_class"][name]["iou"] == pytest.approx(iou, abs=0.5), name
    assert linear["per_class"]["elsewhere"]["iou"] is None

    clusters = found["results"]
    assert clusters["cluster"]["matching"] == "many_to_one" and clusters["cluster_hungarian"]["matching"] == "hungarian"
    assert len(clusters["cluster"]["assignment"]) == CLASSES + EXTRA, "no cluster is dropped"
    run = load_run(tmp_path / "run")
    assert run.class_names == tuple(names) and run.assignment.tolist() == clusters["cluster"]["assignment"]


def test_another_class_map_is_another_protocol(tmp_path, capsys):
    _, arguments = mapped_run(tmp_path, ["sky -> above"])
    quick = ["--no-kmeans", "--bootstrap", "0"]
    assert evaluate([*arguments, *quick]) == 0 and evaluate([*arguments, *quick]) == 1
    assert "exists; pass --overwrite" in capsys.readouterr().err
    (tmp_path / "other.txt").write_text("sky -> below\n")
    assert evaluate([*arguments[:-1], *quick, f"data.class_map={tmp_path / 'other.txt'}"]) == 0
    assert len(list((tmp_path / "run" / "evaluations").glob("*.json"))) == 2


@pytest.mark.parametrize(
    "lines, drop, message",
    [
        (["skky -> above"], (), "the run has no class 'skky'; did you mean 'sky'"),
        (["sky -> above"], ("data.labels", "data.classes"), "has no use here: the data has no labels"),
        (None, (), "there is no file"),
    ],
)
def test_class_maps_that_cannot_be_used(tmp_path, capsys, lines, drop, message):
    _, arguments = mapped_run(tmp_path, lines or [])
    if lines is None:
        (tmp_path / "map.txt").unlink()
    assert evaluate([argument for argument in arguments if not argument.startswith(drop or ("none",))]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "data_set, count, message",
    [
        ("directory", 11, "trained on 27 classes, data=folder has 11; scores need the same classes"),
        ("directory", 11, "say which class is which in a data.class_map=FILE"),
        ("cocostuff27", 27, "'electronic', 'kind0'"),
    ],
)
def test_labels_of_other_classes_are_refused(tmp_path, capsys, data_set, count, message):
    write(tmp_path / "a.ckpt", cfg={**CFG, "dataset_name": data_set})
    convert(tmp_path / "a.ckpt", tmp_path / "run")
    assert evaluate([str(tmp_path / "run"), *labelled_photos(tmp_path, count)]) == 1
    assert message in capsys.readouterr().err
