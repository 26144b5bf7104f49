"""Clusters in a run's report: shares of all pixels, clearest crops, names also for more clusters than classes."""

import json
import shutil

import numpy as np
import pytest
from miniature import settings, write_camvid
from PIL import Image

from depthg.data.colours import class_palette
from depthg.inference.overlays import cluster_colours
from depthg.inference.segmenter import Segmenter
from depthg.reporting.cluster_crops import read_cluster_rows
from depthg.reporting.report import write_report
from depthg.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = write_camvid(tmp_path_factory.mktemp("gallery") / "camvid")
    train(settings(root, "name=many", "val.panels=2", "iterations=12", "n_classes=13"))
    return root.parent / "runs" / "many"


def test_a_run_keeps_the_share_and_the_clearest_crops_of_every_cluster(run):
    stored, segmenter = json.loads((run / "clusters" / "clusters.json").read_text()), Segmenter.load(run, device="cpu")
    rows = stored["clusters"]
    assert stored["images"] == 3 and len(rows) == 13 and sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-4)
    assert tuple(row["name"] for row in rows) == segmenter.names, "as predict names them"
    assert [row["colour"] for row in rows] == [f"#{bytes(colour).hex()}" for colour in segmenter.colours]
    for row in rows:
        assert len(row["crops"]) <= 3 and (row["share"] > 0.1) <= (len(row["crops"]) > 0)
        assert all(Image.open(run / "clusters" / crop["file"]).size == (144, 144) for crop in row["crops"])
    page = write_report(run).read_text()
    found = read_cluster_rows(run)
    assert [row.share for row in found] == [
        f"{100 * x:.1f} %" for x in sorted(r["share"] for r in rows if r["share"])[::-1]
    ]
    assert all(f"<b>{row.label}</b> <span>{row.share}</span>" in page for row in found)
    assert all(address in page for row in found for address, _ in row.crops) and "<h2>Clusters</h2>" in page


def test_what_is_missing_is_left_out_and_what_is_damaged_is_named(run, tmp_path):
    assert read_cluster_rows(tmp_path) == []
    (tmp_path / "clusters").mkdir()
    file, text = tmp_path / "clusters" / "clusters.json", (run / "clusters" / "clusters.json").read_text()
    file.write_text(text)
    assert [row.label for row in read_cluster_rows(tmp_path)] == [row.label for row in read_cluster_rows(run)]
    assert not any(row.crops for row in read_cluster_rows(tmp_path))
    for damaged in ("{", '{"clusters": [{"id": 0}]}', '{"clusters": 3}'):
        file.write_text(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            read_cluster_rows(tmp_path)


def test_the_report_names_and_merges_as_the_legend_does(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    rows = sorted(json.loads((run / "clusters" / "clusters.json").read_text())["clusters"], key=lambda r: -r["share"])
    one, two, three = rows[:3]
    merged = f"{one['id']}: gravel, {two['id']}: gravel, {three['id']}: null"
    (copied / "legend.yaml").write_text(f"clusters: {{{merged}}}\ncolours: {{gravel: '#010203'}}")
    found = {row.label.split(" ", 1)[1]: row for row in read_cluster_rows(copied)}
    gravel = found["gravel"]
    assert gravel.share == f"{100 * (one['share'] + two['share']):.1f} %" and gravel.colour == "#010203"
    assert len(gravel.crops) == min(8, len(one["crops"]) + len(two["crops"]))
    assert {photo for _, photo in gravel.crops} >= {one["crops"][0]["photo"], two["crops"][0]["photo"]}
    assert len(found) == len(read_cluster_rows(run)) - 2 and "gravel" in write_report(copied).read_text()
    (copied / "legend.yaml").write_text("made_for: abcd\nclusters: {0: gravel}")
    with pytest.warns(UserWarning, match="another training"):
        assert read_cluster_rows(copied) == read_cluster_rows(run)


def test_colours_of_clusters():
    palette = class_palette(2)[::-1]
    found = cluster_colours(np.array([1, -1, 0, -1, 1]), 5, palette)
    assert (found[[0, 2, 4]] == palette[[1, 0, 1]]).all()
    assert len({tuple(colour) for colour in found}) == 4, "a colour that no class has for each without a class"
    assert (cluster_colours(None, 3, palette) == class_palette(3)).all()
