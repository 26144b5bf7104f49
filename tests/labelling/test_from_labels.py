"""Names from labelled photos: the commonest class of each cluster, counted as evaluation counts."""

import shutil

import numpy as np
import pytest
from PIL import Image

from depthg.inference.segmenter import Segmenter
from depthg.label import main
from depthg.labelling.from_labels import given_by, named
from depthg.model.legend import FILE, checksum_of, read_legend
from depthg.model.loaded_run import load_run

CLASSES = "0 sky\n1 building\n3 road\n11 void\n"


@pytest.fixture
def labelled(shared_tree, shared_run, tmp_path):
    """A copy of the run's files, a folder of labels, and the photos."""
    run = shutil.copytree(shared_run, tmp_path / "run")
    labels = shutil.copytree(shared_tree / "valannot", tmp_path / "labels")
    (tmp_path / "classes.txt").write_text(CLASSES)
    return run, labels, shared_tree / "val"


def test_the_commonest_class_and_its_share():
    found = named(np.array([[3, 0, 5], [1, 0, 5]]), ("sky", "road"))
    assert [tuple(entry) for entry in found] == [(0, "sky", 0.75, 4), (1, None, 0.0, 0), (2, "sky", 0.5, 10)]
    assert given_by(found, 0.5) == {0: "sky", 2: "sky"} and given_by(found, 0.75) == {0: "sky"}
    with pytest.raises(ValueError, match="lower --least"):
        given_by(found, 0.9)


def test_names_are_those_of_a_many_to_one_matching(labelled, capsys):
    run, labels, photos = labelled
    assert main([str(run), str(photos), "--from", str(labels), "--least", "0"]) == 0
    printed = capsys.readouterr().out
    loaded = load_run(run)
    counts, lines = np.zeros((loaded.n_clusters, 12), np.int64), {0: "sky", 1: "building", 3: "road"}
    for photo in sorted(photos.glob("*.png")):  # 64 x 64, as in the run's evaluation: nothing is scaled or cropped
        ids, label = Segmenter(loaded, legend=False).predict(photo).ids, np.array(Image.open(labels / photo.name))
        np.add.at(counts, (ids[label < 11], label[label < 11]), 1)
    legend = read_legend(run, loaded.cluster_names, checksum_of(loaded.cluster.centroids))
    expected = [lines[row.argmax()] if row.any() else loaded.cluster_names[i] for i, row in enumerate(counts)]
    assert [legend.names[index] for index in legend.table] == expected and len(set(expected)) > 2
    assert f"{run / FILE}" in printed.replace("\n", "") and "3 labelled photos" in printed


def test_what_it_refuses(labelled, capsys, tmp_path):
    run, labels, photos = labelled
    given = [str(run), str(photos), "--from", str(labels)]
    for more, message in (
        (["--least", "1.5"], "--least 1.5"),
        (["--classes", str(tmp_path / "none.txt")], "there is no file"),
    ):
        assert main(given + more) == 1 and message in capsys.readouterr().err
    (run / FILE).write_text("clusters: {0: mine}")
    assert main(given) == 1 and "--overwrite" in capsys.readouterr().err
    assert "mine" in (run / FILE).read_text()
    assert main([*given, "--overwrite"]) == 0 and "mine" not in (run / FILE).read_text()
    (labels.parent / "classes.txt").unlink()
    assert main([*given, "--overwrite"]) == 1 and "labelmap.txt or classes.txt" in capsys.readouterr().err
