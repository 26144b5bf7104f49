"""Comparison of two runs: differences by hand, what cannot be compared, pictures where photos and checkpoints are."""

import json
import re

import numpy as np
import pytest
import yaml
from miniature import settings, write_camvid
from test_report import Page

from depthg.report import main
from depthg.reporting.comparison import mean_interval, write_comparison
from depthg.reporting.comparison_figures import class_figure, image_figure, signed, validation_figure
from depthg.reporting.figures import svg_bytes
from depthg.train import train

CLASSES = ["sky", "road <b>", "car"]
PROTOCOL = {
    "data": "x", "photos": "all", "split": "val", "resolution": [64, 64], "crop": "none", "flip": False, "crf": False,
    "checkpoint": "last", "matching": "hungarian", "count": "all", "seed": 0, "depth": "none", "depth_term": "off",
    "sampling": "random",
}  # fmt: skip
DEPTH = {"depth": "dataset", "depth_term": "product, weight 0.2", "sampling": "fps"}


def make_run(path, cluster=(60.0, 40.0), protocol=None, images=(20.0, 30.0, 40.0), **metrics):
    """A run folder with scores; the linear probe always has 80 and 50."""
    path.mkdir(parents=True)
    iou = dict(zip(CLASSES, (cluster[1] + 10, cluster[1] - 10, None), strict=True))
    content = {
        "cluster.accuracy": cluster[0], "cluster.miou": cluster[1], "linear.accuracy": 80.0, "linear.miou": 50.0,
        "per_class": {"cluster": iou}, "classes": CLASSES, "protocol": PROTOCOL | (protocol or {}),
        "seconds": {"train": 10.0, "total": 12.0}, "memory": {"resident_mib": 1024},
    }  # fmt: skip
    (path / "metrics.json").write_text(json.dumps(content | metrics))
    data, weight = {"name": "x", "workers": len(path.name)}, cluster[0] / 100
    config = {"seed": 0, "name": path.name, "loss": {"depth": {"weight": weight}}, "data": data}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [{"iteration": i, "cluster.accuracy": 50.0 + i, "cluster.miou": 30.0 + i} for i in (1, 2)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = "".join(f"image{n},50.0,{value}\n" for n, value in enumerate(images))
    (path / "images.csv").write_text("name,accuracy,miou\n" + rows)
    return path


def test_depth_is_read_as_the_change_whatever_the_order(tmp_path):
    make_run(tmp_path / "plain")
    make_run(tmp_path / "guided", (66.5, 39.0), DEPTH, images=(25.0, 30.0, 50.0))
    pages = []
    for order in (("plain", "guided"), ("guided", "plain")):
        path = write_comparison(*(tmp_path / name for name in order), pictures=False)
        assert path == tmp_path / f"{'-'.join(order)}.html"
        pages.append(Page(path))
        for part in (
            "What depth contributed", "without depth: plain", "with depth: guided",
            "+6.5 points 60.0 % without depth, 66.5 % with depth", "Cluster probe, mIoU 40.0 39.0 −1.0",  # noqa: RUF001
            "Linear probe, accuracy 80.0 80.0 0.0", "One run each (seed 0)",
            "With depth: better on 2 and worse on 0 of 3 images. Mean change of an image's mIoU: +5.0",
            "loss.depth.weight 0.6 0.665", "train 10.0 s 10.0 s", "peak memory 1.00 GiB 1.00 GiB", "Protocol of both",
        ):  # fmt: skip
            assert part in pages[-1].text, part
        for part in ("Not measured alike", "name plain", "data.workers"):
            assert part not in pages[-1].text, part
    assert pages[0].text == pages[1].text


def test_other_changes_are_named_by_the_folders(tmp_path):
    a, b = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run", protocol={"seed": 3})
    page = Page(write_comparison(a, b, tmp_path / "page.html", pictures=False))
    assert "Comparison of two runs" in page.text and "a/run" in page.text and "b/run" in page.text
    assert "seeds 0 and 3" in page.text
    both = [make_run(tmp_path / name, protocol=DEPTH) for name in ("one", "two")]
    page = Page(write_comparison(*both, pictures=False))
    assert "Comparison of two runs" in page.text and "one 60.0 %" not in page.text and "60.0 % one" in page.text


def test_the_page_is_self_contained_and_escaped(drawn_figures, tmp_path):
    a, b = make_run(tmp_path / "a<b>"), make_run(tmp_path / "b", (70.0, 50.0))
    path = write_comparison(a, b, tmp_path / "page.html", pictures=False)
    page = Page(path)
    assert page.addresses and all(address.startswith("data:image/") for address in page.addresses)
    assert "a<b>" in page.text and not {"script", "b>"} & set(page.tags)
    assert {"IoU per class, cluster probe", "Single images, cluster probe", "mIoU, cluster probe"} <= set(page.alts)


@pytest.mark.parametrize(
    ("key", "value"),
    [("resolution", [32, 32]), ("flip", True), ("crf", True), ("checkpoint", "best"), ("count", "released")],
)
def test_runs_that_were_measured_differently_carry_a_warning(tmp_path, key, value):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", protocol={key: value})
    page = Page(write_comparison(a, b, pictures=False))
    assert f"Not measured alike, which is part of the differences: {key}:" in page.text


@pytest.mark.parametrize(("key", "value"), [("data", "camvid"), ("split", "test"), ("photos", "the first 10")])
def test_runs_on_other_data_are_refused(tmp_path, key, value, capsys):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", protocol={key: value})
    assert main([str(a), str(b)]) == 1
    error = capsys.readouterr().err
    assert re.search(rf"measured on {key} '.*', .* on '{value}'; numbers of different data cannot be compared", error)
    assert not list(tmp_path.glob("*.html"))


def test_runs_that_cannot_be_compared(tmp_path, capsys):
    a = make_run(tmp_path / "a")
    other = make_run(tmp_path / "classes", classes=["sky"])
    with pytest.raises(ValueError, match="different classes"):
        write_comparison(a, other)
    unlabelled = make_run(tmp_path / "unlabelled", **{"cluster.miou": None})
    with pytest.raises(ValueError, match="no scores"):
        write_comparison(a, unlabelled)
    (unlabelled / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"no metrics\.json"):
        write_comparison(unlabelled, a)
    assert main([str(a), str(tmp_path / "nowhere")]) == 1
    assert "nowhere does not exist" in capsys.readouterr().err


def test_nothing_is_overwritten_unasked(tmp_path, capsys):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", (63.5, 39.0))
    (tmp_path / "a-b.html").write_text("mine")
    assert main([str(a), str(b), "--no-pictures"]) == 1
    assert "a-b.html exists; pass --overwrite" in capsys.readouterr().err
    assert (tmp_path / "a-b.html").read_text() == "mine"
    capsys.readouterr()
    assert main([str(a), str(b), "--no-pictures", "--overwrite"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [
        "Cluster accuracy: 60.0 % a, 63.5 % b (+3.5)", "Cluster mIoU: 40.0 % a, 39.0 % b (\u22121.0)"
    ]  # fmt: skip
    assert printed[2:] == [str(tmp_path / "a-b.html")]
    assert "Comparison" in (tmp_path / "a-b.html").read_text()


def test_missing_parts_are_left_out(tmp_path):
    a, b = (make_run(tmp_path / name) for name in "ab")
    for run in (a, b):
        for name in ("images.csv", "metrics.jsonl", "config.yaml"):
            (run / name).unlink()
    page = Page(write_comparison(a, b))
    assert "No pictures: images.csv is missing" in page.text and "Validation" not in page.text
    assert "Single images" not in page.text and "None" not in page.text.replace("None.", "")


def test_pictures_of_real_runs_and_without_their_checkpoint(tmp_path):
    root = write_camvid(tmp_path / "camvid", n_val=4)
    fast = ("iterations=8", "probe.reinit=0", "val.panels=2")
    train(settings(root, *fast, "name=guided"))
    train(settings(root, *fast, "name=plain", "depth.source=none"))
    runs = [tmp_path / "runs" / name for name in ("plain", "guided")]
    path = write_comparison(*runs)
    page = Page(path)
    sheets = [alt for alt in page.alts if "both segmentations" in alt]
    assert [alt.split(":")[0] for alt in sheets] == ["Gained most", "Lost most, or gained least"] or len(sheets) == 3
    assert "What depth contributed" in page.text
    assert path.read_text().count('<source media="(max-width: 800px)" srcset="data:image/png') == len(sheets)
    (runs[0] / "checkpoints" / "last" / "checkpoint.safetensors").unlink()
    page = Page(write_comparison(*runs, overwrite=True))
    assert "No pictures: no checkpoint at" in page.text


def test_class_figure_sorts_by_the_change_and_skips_absent_classes():
    first, second = {"a": 10.0, "b": 50.0, "c": None, "d": 5.0}, {"a": 30.0, "b": 45.0, "c": 3.0, "d": None}
    ax = class_figure(first, second, ("x", "y")).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "a"]
    assert [t.get_text() for t in ax.texts] == ["−5.0", "+20.0"]  # noqa: RUF001
    np.testing.assert_array_equal(ax.collections[1].get_offsets()[:, 0], [50, 10])
    np.testing.assert_array_equal(ax.collections[2].get_offsets()[:, 0], [45, 30])


def test_image_and_validation_figures_hold_the_values():
    ax = image_figure(np.array([10.0, 20.0]), np.array([15.0, 12.0]), ("x", "y")).axes[0]
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), [[10, 15], [20, 12]])
    lines = [{"iteration": i, "cluster.miou": i / 2} for i in (10, 20)]
    ax = validation_figure(lines, lines[:1], "miou", ("x", "y")).axes[0]
    assert [line.get_label() for line in ax.get_lines()] == ["x", "y"]
    np.testing.assert_array_equal(ax.get_lines()[0].get_xydata(), [[10, 5], [20, 10]])


def test_names_are_no_formulas():
    odd, scores = (r"$\frac{$", "$x$"), {r"$\frac{$": 10.0, "b": 50.0}
    lines = [{"iteration": 1, "cluster.miou": 1.0}]
    for figure in (
        class_figure(scores, scores, odd),
        image_figure(np.ones(1), np.ones(1), odd),
        validation_figure(lines, lines, "miou", odd),
    ):
        svg_bytes(figure)  # would raise


def test_intervals_and_signs():
    change = np.random.default_rng(0).normal(2.0, 5.0, 400)
    low, high = mean_interval(change)
    expected = 1.96 * change.std() / 20
    assert low == pytest.approx(change.mean() - expected, abs=0.1)
    assert high == pytest.approx(change.mean() + expected, abs=0.1)
    assert [signed(value) for value in (1.24, -1.26, 0.04, -0.04)] == ["+1.2", "−1.3", "0.0", "0.0"]  # noqa: RUF001
