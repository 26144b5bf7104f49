"""Scores of merged and named clusters, against those counted by hand from the plain clusters."""

import shutil

import numpy as np
import pytest

from depthg.evaluation.evaluate import evaluate
from depthg.evaluation.metrics import match_many_to_one, scores
from depthg.evaluation.one_pass import PLAIN, EvaluationPass, probe_read_outs
from depthg.features.preparation import Preparation
from depthg.model.legend import FILE
from depthg.model.loaded_run import load_run


@pytest.fixture
def run(shared_run, tmp_path):
    return shutil.copytree(shared_run, tmp_path / "run")


def plain_counts(run):  # int64 [n_classes, n_clusters]
    loaded = load_run(run)
    split = Preparation(loaded.config, loaded.device, train_needed=False).dataset.val
    read = {"cluster": probe_read_outs(loaded)["cluster"]}
    size = tuple(loaded.config.data.eval_size)
    return (
        EvaluationPass(loaded, read, (PLAIN,), len(loaded.classes)).over(split, [size])[(size, PLAIN, "cluster")].sum(0)
    )


def evaluated(run, text):
    (run / FILE).write_text(text)
    (found,) = evaluate(load_run(run))
    return found


def test_clusters_with_names_of_classes_are_scored_by_name(run):
    counts = plain_counts(run)
    best = match_many_to_one(counts)
    classes = load_run(run).classes
    named = {i: (classes[c].upper() if c >= 0 else "nothing") for i, c in enumerate(best.tolist())}
    named[int(counts.sum(0).argmax())] = None  # the largest is void: all its pixels are wrong
    lines = "".join(f"  {i}: {'null' if name is None else name}\n" for i, name in named.items())
    found = evaluated(run, f"clusters:\n{lines}")
    assignment = np.array([-1 if name in (None, "nothing") else best[i] for i, name in named.items()])
    expected = scores(counts, assignment)
    result = found.results["cluster"]
    assert (result["accuracy"], result["miou"]) == (round(expected.accuracy, 3), round(expected.miou, 3))
    assert found.protocol["matching"] == "by_name" and found.name.endswith("legend")
    assert found.protocol["clusters"]["by"] == "cluster probe, merged by legend.yaml"
    assert "cluster_hungarian" not in found.results and result["intervals"] is not None
    assert found.results["linear_joint"]["matching"] is None and found.results["kmeans_codes"]["accuracy"] > 0


def test_other_names_are_matched_after_merging_and_void_gets_no_class(run):
    counts = plain_counts(run)
    order = np.argsort(-counts.sum(0))
    found = evaluated(run, f"clusters: {{{order[1]}: one, {order[2]}: one, {order[0]}: null}}")
    columns = [counts[:, order[1]] + counts[:, order[2]], *(counts[:, i] for i in order[3:])]
    merged = np.stack([*columns, counts[:, order[0]]], 1)
    assignment = np.append(match_many_to_one(merged[:, :-1]), -1)
    expected = scores(merged, assignment)
    result = found.results["cluster"]
    assert (result["accuracy"], result["miou"]) == (round(expected.accuracy, 3), round(expected.miou, 3))
    assert found.protocol["clusters"]["number"] == counts.shape[1] - 2 and result["assignment"][-1] == -1
    assert found.results["cluster_hungarian"]["assignment"][-1] == -1


def test_the_matching_of_merged_clusters_names_no_clusters(run):
    from depthg.evaluate import main

    before = load_run(run).cluster_names
    (run / FILE).write_text("clusters: {0: one, 1: one}")
    assert main([str(run), "--no-kmeans", "--bootstrap", "0"]) == 0
    loaded = load_run(run)
    assert loaded.cluster_names == before and loaded.legend.names[0] == "one"
