"""Scoring against written-out up-sampling and counting."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import depthg.model.codes
from depthg.evaluation.scoring import confusions, summarize
from depthg.features.prepared import EvaluationSet
from depthg.features.reading import StoredFeatures
from depthg.inference.read_outs import predict_ids
from depthg.model.codes import sample_rows
from depthg.model.heads import ClusterProbe, LinearProbe, SegmentationHead

CPU = torch.device("cpu")


def test_arg_max_equals_the_cosine_of_up_sampled_codes():
    codes, probe = torch.randn(2, 12, 5), ClusterProbe(5, 4)
    maps = F.interpolate(codes.transpose(1, 2).unflatten(2, (3, 4)), (21, 30), mode="bilinear", align_corners=False)
    cosine = torch.einsum("bkhw,nk->bnhw", F.normalize(maps, dim=1), F.normalize(probe.centroids, dim=1))
    found = predict_ids(probe(codes), (3, 4), (21, 30))
    assert (found == cosine.argmax(1)).float().mean() > 0.999  # ties in the last bit may fall either way


def test_confusions_and_metrics_by_hand():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(5, 12, 6)).astype(np.float16)
    labels = rng.integers(-1, 3, (5, 9, 10)).astype(np.int16)
    head, linear = SegmentationHead(6, 4), LinearProbe(4, 3)
    data = EvaluationSet(features, labels, (3, 4), (9, 10))
    total = confusions(data, head, {"linear": (True, linear)}, 3, CPU, batch=2)
    expected = np.zeros((3, 3), int)
    head.eval()
    for image, label in zip(features, labels, strict=True):
        scores = linear(head(torch.from_numpy(image).float()[None]))
        ids = predict_ids(scores, (3, 4), (9, 10))[0].numpy()
        for truth, found in zip(label.flatten(), ids.flatten(), strict=True):
            if truth >= 0:
                expected[truth, found] += 1
    assert (total["linear"] == expected).all()
    metrics, assignments = summarize(total, ("a", "b", "c"))
    assert metrics["linear.accuracy"] == round(100 * expected.trace() / expected.sum(), 3)
    assert set(metrics["per_class"]["linear"]) == {"a", "b", "c"} and assignments == {}


def test_clusters_are_matched_whatever_their_order():
    total = {"cluster": np.array([[0, 9, 1], [8, 0, 2], [1, 1, 7]])}
    metrics, assignments = summarize(total, ("a", "b", "c"))
    assert assignments["cluster"].tolist() == [1, 0, 2]
    assert metrics["cluster.accuracy"] == round(100 * 24 / 29, 3)


def test_a_class_that_does_not_occur_is_null_and_not_nan():
    metrics, _ = summarize({"linear": np.array([[5, 1], [0, 0]])}, ("a", "b"))
    assert metrics["per_class"]["linear"]["b"] is None


def test_rows_come_evenly_from_every_image():
    features = np.arange(4).repeat(10)[:, None].reshape(4, 10, 1).astype(np.float16)
    rows = sample_rows(features, 12, seed=0)
    assert sorted(rows.flatten().tolist()) == [i for i in range(4) for _ in range(3)]


def test_released_metric_drops_extra_clusters_and_counts_absent_classes():
    total = {"cluster": np.array([[6, 0, 1, 3], [0, 4, 0, 0], [0, 0, 0, 0]])}
    paper, _ = summarize(total, ("a", "b", "c"))
    released, _ = summarize(total, ("a", "b", "c"), count="released")
    assert paper["cluster.accuracy"] == round(100 * 10 / 14, 3) and paper["per_class"]["cluster"]["c"] is None
    assert released["cluster.accuracy"] == round(100 * 10 / 11, 3) and released["per_class"]["cluster"]["c"] == 0


def test_many_to_one_matching_lets_clusters_share_a_class():
    total = {"cluster": np.array([[5, 4, 0], [0, 0, 6]])}
    metrics, assignments = summarize(total, ("a", "b"), matching="many_to_one")
    assert assignments["cluster"].tolist() == [0, 0, 1] and metrics["cluster.accuracy"] == 100
    assert summarize(total, ("a", "b"))[0]["cluster.accuracy"] == round(100 * 11 / 15, 3)


@pytest.mark.parametrize("size", [(24, 32), (23, 37), (5, 6), (3, 4), (2, 9)])
def test_ids_equal_those_of_up_sampled_scores(size):
    scores = torch.randn(3, 12, 5)
    maps = scores.transpose(1, 2).unflatten(2, (3, 4))
    expected = F.interpolate(maps, size, mode="bilinear", align_corners=False).argmax(1)
    found = predict_ids(scores, (3, 4), size)
    assert found.dtype == torch.int64 and torch.equal(found, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_ids_on_a_gpu():
    scores = torch.randn(3, 12, 5)
    assert torch.equal(predict_ids(scores.cuda(), (3, 4), (23, 37)).cpu(), predict_ids(scores, (3, 4), (23, 37)))


def test_frames_of_2048_x_1024_with_27_classes_take_little_memory():
    """In a process of its own: pages that were mapped before do not count."""
    code = """
import resource, torch
from depthg.inference.read_outs import predict_ids
scores = torch.randn(1, 128 * 256, 27)
predict_ids(scores[:, :64], (8, 8), (64, 64))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
predict_ids(scores, (128, 256), (1024, 2048))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64, "MiB; the ids take 18, the up-sampled scores alone would take 216"


def test_of_many_images_only_some_are_sampled_from_a_cache_as_from_an_array(tmp_path, monkeypatch):
    monkeypatch.setattr(depthg.model.codes, "SAMPLE_IMAGES", 70)
    array = np.arange(150 * 4).reshape(150, 4, 1).repeat(2, axis=2).astype(np.float16)
    np.save(tmp_path / "features.npy", array)
    rows = sample_rows(array, 140, seed=3)
    assert len(rows) == 140 and torch.equal(
        rows, sample_rows(StoredFeatures(tmp_path / "features.npy", torch.float16), 140, 3)
    )
    images = (rows[:, 0] // 4).int().unique()
    assert images.tolist() == [i * 150 // 70 for i in range(70)]
    monkeypatch.setattr(depthg.model.codes, "SAMPLE_IMAGES", 150)
    assert len((sample_rows(array, 140, seed=3)[:, 0] // 4).int().unique()) == 150
