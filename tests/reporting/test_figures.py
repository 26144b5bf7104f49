"""Figures: what is drawn is what the records say."""

import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.cbook import is_math_text
from matplotlib.colors import to_hex
from PIL import Image

from depthg.reporting.figures import (
    DARK,
    LIGHT,
    PRINT,
    available_curves,
    confusion_figure,
    curves_figure,
    iou_figure,
    running_mean,
    save_figure,
    svg_bytes,
)


def records(n=30):
    lines = [{"iteration": i, "loss": 1 / (i + 1), "loss.self": 0.1 * i, "loss.cluster": -0.5} for i in range(n)]
    return [*lines, *({"iteration": i, "cluster.accuracy": 50.0 + i, "linear.accuracy": 80.0} for i in (10, 20))]


def lines_of(ax):
    return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


def test_curves_hold_the_records_and_only_parts_that_exist():
    assert available_curves(records()) == ["loss", "terms", "probes", "accuracy"]
    figure = curves_figure(records())
    assert [ax.get_title("left") for ax in figure.axes] == [
        "Loss", "Loss terms, unweighted", "Probe losses", "Validation accuracy (%)"
    ]  # fmt: skip
    accuracy = lines_of(figure.axes[3])
    assert set(accuracy) == {"Cluster probe", "Linear probe"}
    np.testing.assert_array_equal(accuracy["Cluster probe"].get_xydata(), [[10, 60], [20, 70]])


def test_noisy_curves_are_smoothed_and_the_trace_stays_visible():
    rng = np.random.default_rng(0)
    y = rng.normal(size=400)
    ax = curves_figure([{"iteration": i, "loss": v} for i, v in enumerate(y)], ["loss"]).axes[0]
    trace, mean = ax.get_lines()
    np.testing.assert_allclose(trace.get_ydata(), y)
    np.testing.assert_allclose(mean.get_ydata(), running_mean(y, 10))
    assert mean.get_ydata().std() < 0.5 * y.std()


def test_running_mean_equals_a_loop():
    y = np.arange(9.0) ** 2
    for half in (0, 1, 3, 20):
        expected = [np.mean([y[j] for j in range(9) if abs(i - j) <= half]) for i in range(9)]
        np.testing.assert_allclose(running_mean(y, half), expected)


def test_records_of_a_resumed_run_nan_and_null_are_handled():
    lines = [
        {"iteration": 0, "loss": 1.0},
        {"iteration": 1, "loss": math.nan},
        {"iteration": 2, "loss": 5.0},
        {"iteration": 2, "loss": 3.0},  # written again after a resume
        {"iteration": 3, "loss": None},
        {"iteration": 4, "loss": "?"},
        {"note": "no iteration"},
        {"iteration": 1.5, "loss": 2.0},
    ]
    (line,) = lines_of(curves_figure(lines, ["loss"]).axes[0]).values()
    np.testing.assert_array_equal(line.get_xydata(), [[0, 1], [1.5, 2], [2, 3]])


def test_long_runs_are_thinned_and_keep_both_ends():
    ax = curves_figure([{"iteration": i, "loss": 0.0} for i in range(5000)], ["loss"]).axes[0]
    x = ax.get_lines()[-1].get_xdata()
    assert len(x) <= 400 and x[0] == 0 and x[-1] == 4999


def test_curves_refuse_unknown_parts_and_empty_records():
    with pytest.raises(ValueError, match=r"unknown curves \['los'\]; choose from \['loss'"):
        curves_figure(records(), ["los"])
    with pytest.raises(ValueError, match="hold no curve"):
        curves_figure([{"iteration": 0, "loss": 1.0}])
    assert available_curves([]) == []


def test_iou_bars_are_sorted_and_absent_classes_say_so():
    per_class = {
        "cluster": {"sky": 90.0, "car": None, "road": 40.4, "pole": 0.0},
        "linear": {"sky": 95.0, "car": None, "road": 60.0, "pole": 10.0},
    }
    ax = iou_figure(per_class).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["car", "pole", "road", "sky"]  # from the bottom up
    assert [bar.get_width() for bar in ax.patches] == [0, 0, 40.4, 90]
    assert [t.get_text() for t in ax.texts] == ["not in the labels", "0", "40", "90"]
    np.testing.assert_array_equal(ax.collections[0].get_offsets()[1:], [[10, 1], [60, 2], [95, 3]])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["Cluster probe", "Linear probe"]


def test_iou_bars_fall_back_to_the_first_read_out_there_is():
    ax = iou_figure({"kmeans_features": {"a": 30.0, "b": 20.0}}).axes[0]
    assert [bar.get_width() for bar in ax.patches] == [20, 30]
    with pytest.raises(ValueError, match="per_class must hold one of"):
        iou_figure({"other": {"a": 1.0}})


def test_confusion_rows_are_percent_and_totals_are_shown():
    ax = confusion_figure(np.array([[3, 1], [0, 1500]]), ["sky", "road"]).axes[0]
    np.testing.assert_array_equal(ax.collections[0].get_array().reshape(2, 2), [[75, 25], [0, 100]])
    assert [t.get_text() for t in ax.texts] == ["75", "25", "100", "4", "1.5k", "pixels"]


def test_confusion_shows_clusters_without_a_class_only_when_there_are_any():
    classes = ["a", "b"]
    with_extra = confusion_figure(np.array([[1, 0, 1], [0, 1, 0]]), classes).axes[0]
    assert [t.get_text() for t in with_extra.get_xticklabels()] == ["a", "b", "no class"]
    without = confusion_figure(np.array([[1, 0, 0], [0, 0, 0]]), classes).axes[0]  # class b has no pixel
    assert [t.get_text() for t in without.get_xticklabels()] == ["a", "b"]
    for bad in (np.zeros((2, 4), int), np.zeros((3, 3), int)):
        with pytest.raises(ValueError, match="2 classes need"):
            confusion_figure(bad, classes)


@pytest.mark.parametrize("n", [1, 2, 12, 13, 40])
@pytest.mark.parametrize("theme", [LIGHT, DARK, PRINT])
def test_any_number_of_classes_draws(n, theme):
    names = [f"class {i} <&>" for i in range(n)]
    for figure in (
        confusion_figure(np.eye(n, dtype=int), names, theme),
        iou_figure({"cluster": dict.fromkeys(names, 5.0)}, theme),
    ):
        ElementTree.fromstring(svg_bytes(figure))


@pytest.mark.parametrize("name", [r"$\frac{$", "a $x$ b", "$"])
def test_names_are_drawn_letter_by_letter(name):
    for figure in (
        iou_figure({"cluster": {name: 50.0, "b": 5.0}}),
        confusion_figure(np.eye(2, dtype=int), [name, "b"]),
    ):
        svg_bytes(figure)
        drawn = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert sorted(text.replace(r"\$", "$") for text in drawn) == sorted([name, "b"])
        assert not any(map(is_math_text, drawn))


def test_svg_needs_no_fonts_and_is_transparent_for_the_page_themes():
    text = svg_bytes(curves_figure(records(), theme=DARK)).decode()
    assert "<text" not in text and "font-family" not in text and "<dc:date>" not in text
    assert curves_figure(records(), theme=DARK).patch.get_alpha() == 0
    assert to_hex(curves_figure(records()).get_facecolor()) == "#ffffff"


def test_figures_are_saved_whole(tmp_path):
    save_figure(curves_figure(records(), ["loss"]), tmp_path / "a" / "curves.png", dpi=50)
    with Image.open(tmp_path / "a" / "curves.png") as image:
        assert image.size == (235, 155)
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_pyplot_is_not_imported():
    code = (
        "import sys, depthg.reporting.figures, depthg.reporting.pictures; sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
