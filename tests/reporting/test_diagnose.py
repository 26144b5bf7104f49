"""Diagnosis: histograms equal the dense tensors, suggestions equal loss.shifts=auto, the page holds what was found."""

import json
import re

import numpy as np
import pytest
import torch
from miniature import settings, write_camvid
from PIL import Image

import depthg.diagnose
import depthg.reporting.diagnosis
from depthg.diagnose import main
from depthg.evaluation.cluster_count import ClusterCount
from depthg.features.preparation import Preparation
from depthg.kernels.reference import correlation, depth_relation
from depthg.reporting.diagnosis import PAIRS, advice, depth_pairs, diagnose, feature_pairs, histogram_statistics
from depthg.reporting.pair_figures import diagnosis_figure, shown_range
from depthg.storage.outputs import output_folder
from depthg.train import train
from depthg.training.batches import draw_batch, negative_pairs
from depthg.training.step import HISTOGRAM_BINS, HISTOGRAM_RANGE, SHIFT_BATCHES, Model, Step

CPU = torch.device("cpu")
FAST = ("val.panels=0", "iterations=4", "probe.reinit=0")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("diagnose") / "camvid")


@pytest.fixture(scope="module")
def run(root):
    train(settings(root, *FAST, "name=trained", "loss.shifts=auto"))
    return root.parent / "runs" / "trained"


def make_step(root, *overrides):
    config = settings(root, *overrides)
    data = Preparation(config, CPU).run()
    return Step(config, data, Model(data.transform.channels, 8, 0.0, 11, 11), CPU)


def dense_pairs(step, center):
    """F of all three kinds of pairs as dense tensors, from the same draws."""
    rows = {kind: [] for kind in PAIRS}
    for number in range(SHIFT_BATCHES):
        generator, batch = step.generator("shifts", number), draw_batch(step.config, step.data, number)
        index = negative_pairs(len(batch.anchors), 5, "derangement", generator)
        a, b = (step.plain_features(views, generator) for views in (batch.anchors, batch.neighbours))
        for kind, other, pairs in zip(PAIRS, (a, b, a), (None, None, index), strict=True):
            rows[kind].append(correlation(a, other, index_b=pairs, center=center).flatten())
    return {kind: torch.cat(values) for kind, values in rows.items()}


@pytest.mark.parametrize("center", [True, False])
def test_statistics_of_f_equal_those_of_the_dense_tensor(root, center):
    step = make_step(root, f"loss.center={str(center).lower()}", "loss.quantiles=[0.3,0.5,0.9]")
    used = (0.1, 0.05, 0.3)
    found, counts = feature_pairs(step, used)
    for kind, shift, quantile, row in zip(PAIRS, used, (0.3, 0.5, 0.9), counts, strict=True):
        f = dense_pairs(step, center)[kind]
        assert row.sum() == f.numel()
        assert found[kind]["mean"] == pytest.approx(float(f.mean()), abs=1e-3)
        assert found[kind]["quantiles"]["0.5"] == pytest.approx(float(f.median()), abs=2e-3)
        assert found[kind]["positive_share"] == pytest.approx(float((f > shift).double().mean()), abs=5e-3)
        assert found[kind]["suggested_shift"] == pytest.approx(float(f.quantile(quantile)), abs=2e-3)
        assert found[kind]["suggested_positive_share"] == pytest.approx(1 - quantile, abs=0.01)
    assert tuple(found[kind]["suggested_shift"] for kind in PAIRS) == step.auto_shifts()


@pytest.mark.parametrize("relation", ["product", "unit", "centered", "gaussian", "euclidean", "normals", "inclination"])
def test_histogram_of_d_per_relation(root, relation):
    step = make_step(root, f"loss.depth.relation={relation}", "loss.depth.shift=0.25")
    found, counts = depth_pairs(step)
    assert counts.sum() == SHIFT_BATCHES * 6 * 16 * 16 and found["shift"] == 0.25
    if relation == "product":
        points = [step.points(np.arange(6), 0, step.generator("shifts", n)) for n in range(SHIFT_BATCHES)]
        u = torch.cat([step.depth_values(np.arange(6), p, 4) for p in points])
        d = depth_relation(u, u, "product")
        assert found["mean"] == pytest.approx(float(d.mean()), abs=1e-3)
        assert found["positive_share"] == pytest.approx(float((d > 0.25).double().mean()), abs=2e-3)
    if relation == "unit":
        assert found["quantiles"]["0.5"] == pytest.approx(1, abs=1e-3)


def test_shift_at_the_mean_of_d_and_pairs_of_crops(root):
    found, _ = depth_pairs(make_step(root, "loss.depth.shift_mean=true"))
    assert found["shift"] == pytest.approx(found["mean"], abs=1e-3) and found["shift_from"] == "mean of D"
    crops = ("data.crop=five", "data.size=[32,32]", "sampling.points=2")
    same, other = (depth_pairs(make_step(root, *crops, f"loss.depth.pair={p}"))[0]["mean"] for p in ("self", "crop"))
    assert same != pytest.approx(other, abs=1e-3)


def test_share_above_a_shift():
    counts = torch.zeros(HISTOGRAM_BINS)
    counts[[100, 2500, 3000]] = torch.tensor([1.0, 1.0, 2.0])
    found = histogram_statistics(counts, 0.6)
    low, high = HISTOGRAM_RANGE
    middle = [low + (high - low) * (i + 0.5) / HISTOGRAM_BINS for i in (100, 2500, 3000)]
    assert found["positive_share"] == 0.5
    assert found["mean"] == pytest.approx((middle[0] + middle[1] + 2 * middle[2]) / 4)


def test_one_cluster_is_no_clustering(run, capsys):
    with pytest.raises(SystemExit):
        main([str(run), "--most-clusters", "1"])
    assert "--most-clusters 1 must be at least 2" in capsys.readouterr().err


def test_a_run_gives_its_shifts_codes_and_a_page(drawn_figures, root, run, capsys):
    before = {path for path in root.rglob("*")}
    assert main([str(run), "--most-clusters", "4"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((run / "diagnosis" / "diagnosis.json").read_text())
    header = json.loads((run / "metrics.json").read_text())["protocol"]["shifts"]
    assert [found["F"][kind]["shift"] for kind in PAIRS] == header, "the run's own shifts"
    assert [found["F"][kind]["suggested_shift"] for kind in PAIRS] == header, "loss.shifts=auto took the suggestion"
    assert set(found["S"]) == set(PAIRS) and found["clusters"]["of"] == "codes"
    assert found["clusters"]["k"] == [2, 3, 4] and found["D"]["relation"] == "product"
    page = (run / "diagnosis" / "diagnosis.html").read_text()
    assert f"advice: {advice(found)}\n" in printed and advice(found).removeprefix("start") in page
    assert page.count("<img src=") == 4 and "default-src 'none'" in page and "https://" not in page
    for kind in PAIRS:
        assert f"loss.{kind}.shift={found['F'][kind]['suggested_shift']:g}" in printed
        assert f"loss.{kind}.shift={found['F'][kind]['suggested_shift']:g}" in page
        assert f"{found['F'][kind]['positive_share']:.1%}" in page
    with Image.open(run / "diagnosis" / "diagnosis.png") as picture:
        assert picture.width > 1000
    assert before == {path for path in root.rglob("*")}, "nothing is written into the data"
    assert main([str(run)]) == 1 and "--overwrite" in capsys.readouterr().err


def test_labels_are_not_used(root, run, tmp_path):
    config = settings(root)
    before, _ = diagnose(config, most_clusters=3)
    kept = {path: path.read_bytes() for path in (root / "trainannot").iterdir()}
    for path in kept:
        Image.fromarray(np.random.default_rng(0).integers(0, 11, (64, 64)).astype(np.uint8)).save(path)
    after, _ = diagnose(config, most_clusters=3)
    for path, content in kept.items():
        path.write_bytes(content)
    assert before == after


def test_settings_without_a_run_or_depth(root, tmp_path):
    found, counts = diagnose(settings(root, "depth.source=none", "loss.self.shift=0.3"), most_clusters=3)
    assert found["S"] is found["D"] is None and set(counts) == {"F"}
    assert found["F"]["self"]["shift"] == 0.3 and found["shifts_from"] == "the settings"
    assert found["clusters"]["of"] == "features" and found["sampling"] == "random"
    auto, _ = diagnose(settings(root, "loss.shifts=auto", "loss.self.shift=0.3"), most_clusters=3)
    assert auto["F"]["self"]["shift"] == auto["F"]["self"]["suggested_shift"] != 0.3


def test_axes_show_nearly_all_pairs_and_the_shifts():
    counts = np.zeros((1, 400))
    counts[0, 150:250] = 1
    assert shown_range(counts, -2, 2) == (150, 250)
    assert shown_range(counts, -2, 2, marks=[1.0]) == (150, 301)


def test_figure_holds_the_histogram_and_the_suggested_count():
    row = {"shift": 0.1, "suggested_shift": 0.2}
    clusters = {"k": [2, 3], "strength": [1.0, 0.9], "silhouette": [0.4, 0.3], "suggested": 3, "threshold": 0.8,
                "of": "codes"}  # fmt: skip
    found = {"F": dict.fromkeys(PAIRS, row), "D": {"relation": "product", "shift": 0.0}, "clusters": clusters}
    counts = {"F": np.random.default_rng(0).integers(1, 9, (3, 100)), "D": np.ones(100)}
    figure = diagnosis_figure(found, counts, HISTOGRAM_RANGE)
    f, d, k = figure.axes
    assert [line.get_xdata()[0] for line in f.get_lines()] == [0.1] * 3 + [0.2] * 3
    areas = [patch.get_data() for patch in f.patches if patch.get_label() != "_nolegend_"]
    assert sum(np.diff(areas[1].edges) * areas[1].values) == pytest.approx(1)
    assert "product" in d.get_title("left") and [t.get_text() for t in k.texts] == ["3"]


@pytest.mark.parametrize(
    ("agreed", "of", "n_classes", "shift", "expected"),
    [
        (4, "features", 12, 0.12, "start with 8 to 15 clusters; nothing to change"),
        (5, "features", None, 0.12, "start with 10 to 19 clusters; set n_classes=10"),
        (4, "codes", 8, 0.12, "start with 8 to 15 clusters; nothing to change"),
        (9, "codes", 18, 0.2, "start with 9 to 17 clusters; set n_classes=9 and loss.shifts=auto"),
        (None, "codes", 8, 0.2, "start with 8 to 15 clusters; set loss.shifts=auto"),
        (4, "codes", 3, 0.12, "start with 8 to 15 clusters; nothing to change"),  # of 3 classes
    ],
)
def test_advice_in_words(agreed, of, n_classes, shift, expected):
    pairs = {kind: {"shift": shift, "suggested_shift": 0.1} for kind in PAIRS}
    found = {"clusters": {"suggested": agreed, "of": of}, "n_classes": n_classes, "classes": 3, "F": pairs}
    assert advice(found) == expected


def test_no_agreed_number_is_said(root, capsys, monkeypatch, tmp_path):
    nothing = ClusterCount((2, 3), (0.1, 0.2), (0.3, 0.2), None)
    monkeypatch.setattr(depthg.reporting.diagnosis, "count_clusters", lambda *args, **keywords: nothing)
    monkeypatch.setattr(depthg.diagnose, "load_config", lambda overrides: settings(root))
    assert main(["--out", str(tmp_path / "out")]) == 0
    assert "no number from 2 to 3" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a run folder"),
        (["a", "b"], "one run at a time"),
        (["experiment=dmeo"], "did you mean 'demo'?"),
        (["seed=1", "--out", "/proc/none"], "cannot write in /proc/none"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error


def test_a_run_of_other_photos_is_refused(root, run, capsys, tmp_path):
    other = write_camvid(tmp_path / "other", 7)
    assert main([str(run), f"data.root={other}", f"depth.root={other / 'depth'}", "--out", str(tmp_path / "o")]) == 1
    assert "trained on other photos" in capsys.readouterr().err
    assert main([str(run), "batch_size=3"]) == 1
    assert "batch_size belongs to the trained run" in capsys.readouterr().err


def test_outputs_are_refused_or_replaced(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(FileExistsError, match=r"a exists; pass --overwrite to replace it, or another --to"):
        output_folder(tmp_path, ("b", "a"), option="--to")
    assert output_folder(tmp_path, ("b", "a"), overwrite=True) == tmp_path
    assert output_folder(tmp_path / "new" / "deep").is_dir() and not list((tmp_path / "new" / "deep").iterdir())
    with pytest.raises(OSError, match=re.escape(f"cannot write in {tmp_path / 'a' / 'b'}")):
        output_folder(tmp_path / "a" / "b")
