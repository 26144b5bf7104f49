"""With a legend, prediction speaks of its classes: merged ids, names, colours, summed probabilities, and void last."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from depthg import predict
from depthg.inference import photo_files
from depthg.inference.merging import Merging
from depthg.inference.segmenter import Segmenter
from depthg.model.legend import FILE, legend_of


def test_without_a_legend_nothing_changes():
    same, values = Merging(3, None), np.arange(6).reshape(3, 2)
    assert same.n == 3 and same.ids(values) is values and same.scores(values) is same.probabilities(values) is values


def test_ids_scores_and_probabilities_by_hand():
    merging = Merging(4, legend_of({0: "a", 3: "a", 1: None}, [f"cluster {i}" for i in range(4)]))
    assert merging.n == 3 and merging.void and merging.table.tolist() == [0, 2, 1, 0]
    ids = merging.ids(np.array([[0, 1], [2, 3]], np.uint8))
    assert ids.dtype == np.uint8 and ids.tolist() == [[0, 2], [1, 0]]
    values = np.array([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(merging.scores(values), [0.4, 0.3, 0.2])
    np.testing.assert_allclose(merging.probabilities(values), [0.5, 0.3, 0.2])
    many = Merging(400, legend_of({}, [f"cluster {i}" for i in range(400)]))
    assert many.ids(np.array([399], np.uint16)).dtype == np.uint16


@pytest.fixture
def named(shared_run, tmp_path):
    """A copy of the run in which every second cluster is merged, and the last is void."""
    run = shutil.copytree(shared_run, tmp_path / "run")
    n = Segmenter.load(run).run.n_clusters
    lines = [f"  {i}: even" for i in range(0, n - 1, 2)] + [f"  {n - 1}: null"]
    (run / FILE).write_text("clusters:\n" + "\n".join(lines) + "\ncolours: {even: '#0a141e'}\n")
    return run, n


@pytest.mark.parametrize("crf", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_predicted_files_are_of_the_classes(named, shared_tree, tmp_path, monkeypatch, crf, large):
    run, n = named
    monkeypatch.setattr(photo_files, "LARGE", (1, 1) if large else photo_files.LARGE)
    photos, out = shared_tree / "val", tmp_path / "out"
    given = [str(run), str(photos), "--out", str(out), "--probabilities", "--crf" if crf else "--no-crf"]
    assert predict.main(given) == 0
    plain, merged = Segmenter.load(run, legend=False), Segmenter.load(run)
    table = np.array([0 if i % 2 == 0 and i < n - 1 else -1 if i == n - 1 else (i + 1) // 2 for i in range(n)])
    table[n - 1] = table.max() + 1
    assert merged.names[0] == "even" and merged.names[-1] == "void" and len(merged.names) == table.max() + 1
    assert merged.colours[0].tolist() == [10, 20, 30] and merged.colours[-1].tolist() == [0, 0, 0]
    text = json.loads((out / "legend.json").read_text())
    assert [entry["name"] for entry in text["ids"]] == list(merged.names)
    assert text["ids"][0]["clusters"] == list(range(0, n - 1, 2)) and text["ids"][0]["colour"] == "#0a141e"
    seen = np.zeros(len(merged.names), np.int64)
    for photo in sorted(photos.glob("*.png")):
        before = plain.predict(photo, crf=crf, probabilities=True)
        after = merged.predict(photo, crf=crf, probabilities=True)
        written = np.array(Image.open(out / "ids" / photo.name))
        np.testing.assert_array_equal(after.ids, table[before.ids])
        np.testing.assert_array_equal(written, after.ids)
        sums = np.stack([before.probabilities[table == i].sum(0) for i in range(len(merged.names))])
        np.testing.assert_allclose(after.probabilities, sums, atol=1e-6)
        np.testing.assert_allclose(
            np.load(out / "probabilities" / f"{photo.stem}.npz")["probabilities"], sums, atol=1e-3
        )
        seen += np.bincount(after.ids.ravel(), minlength=len(seen))
    np.testing.assert_allclose([entry["share"] for entry in text["ids"]], seen / seen.sum(), atol=1e-6)
    assert (out / "index.html").read_text().count("even") and seen[0] > 0


def test_a_damaged_legend_is_told_before_the_work(named, shared_tree, tmp_path, capsys):
    (named[0] / FILE).write_text("clusters: {1000: road}")
    assert predict.main([str(named[0]), str(shared_tree / "val"), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert "legend.yaml" in told and "no cluster 1000" in told and not (tmp_path / "out").exists()
