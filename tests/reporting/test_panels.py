"""Example pictures: scores of single images by hand, the best and the worst of them, nothing without labels."""

import csv

import numpy as np
import pytest
import torch
from miniature import settings, write_camvid

import depthg.reporting.panels
from depthg.features.preparation import Preparation
from depthg.model.heads import ClusterProbe, SegmentationHead
from depthg.reporting.panels import RANKS, image_scores, ranked_views, split_confusions, spread_views, write_panels


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_camvid(tmp_path_factory.mktemp("panels") / "camvid", n_val=5)
    return Preparation(settings(root), torch.device("cpu")).run()


def modules(data):
    return SegmentationHead(data.transform.channels, 8), ClusterProbe(8, 13)


def test_scores_of_single_images_by_hand():
    confusions = np.zeros((3, 3, 2), int)
    confusions[0] = [[3, 1], [0, 4], [0, 0]]  # the third class is not in this label
    confusions[2] = [[0, 5], [0, 0], [0, 5]]
    found = image_scores(confusions, np.array([0, 1]))
    np.testing.assert_allclose(found.accuracy, [100 * 7 / 8, np.nan, 0])
    np.testing.assert_allclose(found.miou, [(75 + 80) / 2, np.nan, 0])


def test_single_images_add_up_to_the_split(data):
    head, cluster = modules(data)
    found = split_confusions(data, head, cluster)
    assert found.shape == (5, 11, 13)
    labelled = (np.asarray(data.evaluation.labels) >= 0).sum((1, 2))
    np.testing.assert_array_equal(found.sum((1, 2)), labelled)
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 30])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 40])
def test_ranks_are_sorted_and_share_no_image(n, count):
    miou = np.random.default_rng(n).permutation(n).astype(float)
    groups = ranked_views(miou, count)
    views = [view for group in groups.values() for view in group]
    assert len(views) == len(set(views)) == min(n, count)
    values = miou[views]
    assert (np.diff(values) < 0).all(), "best first"
    assert values[0] == n - 1 and list(groups) == [rank for rank in RANKS if rank in groups]
    if min(n, count) >= 3:
        assert values[-1] == 0 and abs(np.mean(miou[groups["median"]]) - (n - 1) / 2) <= 1


def test_images_without_labels_are_in_no_rank():
    assert ranked_views(np.array([np.nan, 5.0, np.nan]), 8) == {"best": [1]}
    assert ranked_views(np.array([np.nan]), 8) == {}
    assert spread_views(10, 3) == [0, 4, 9] and spread_views(2, 8) == [0, 1]


def test_sheets_and_scores_of_a_labelled_split(data, tmp_path, monkeypatch):
    head, cluster = modules(data)
    assignment = np.r_[np.arange(11), -1, -1]
    drawn = []
    original = depthg.reporting.panels.panel_sheet
    monkeypatch.setattr(
        depthg.reporting.panels,
        "panel_sheet",
        lambda rows, **kw: drawn.append(rows) or original(rows, **kw),
    )
    write_panels(tmp_path, data, {"cluster": (True, cluster)}, head, assignment, 4)
    names = ["best.png", "median.png", "worst.png"]
    assert sorted(path.name for path in (tmp_path / "panels").iterdir()) == sorted([*names, "narrow"])
    assert sorted(path.name for path in (tmp_path / "panels" / "narrow").iterdir()) == names
    found = image_scores(split_confusions(data, head, cluster), assignment)
    with open(tmp_path / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == data.evaluation_split.names
    np.testing.assert_allclose([float(row["miou"]) for row in rows], found.miou, atol=1e-3)
    np.testing.assert_allclose([float(row["accuracy"]) for row in rows], found.accuracy, atol=1e-3)
    best, worst = found.miou.argmax(), found.miou.argmin()
    assert (
        drawn[0][0].name == f"{rows[best]['name']} · mIoU {found.miou[best]:.0f}, accuracy {found.accuracy[best]:.0f}"
    )
    assert drawn[-1][-1].name.startswith(f"{rows[worst]['name']} ·")


def test_without_labels_an_even_spread_is_shown(data, tmp_path):
    head, cluster = modules(data)
    write_panels(tmp_path, data, {"cluster": (True, cluster)}, head, None, 5)
    assert sorted(path.name for path in (tmp_path / "panels").glob("*.png")) == ["00.png", "01.png"]
    assert not (tmp_path / "images.csv").exists()
