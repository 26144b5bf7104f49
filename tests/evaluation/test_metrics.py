"""Metrics against hand-made cases, written-out loops and properties."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from depthg.evaluation.metrics import (
    bootstrap_intervals,
    confusion_matrix,
    counted,
    image_confusions,
    match_hungarian,
    match_many_to_one,
    matched_confusion,
    scores,
)


def loop_confusion(predicted, label, n_predicted, n_classes):
    counts = np.zeros((n_classes, n_predicted), dtype=np.int64)
    for p, c in zip(predicted.ravel().tolist(), label.ravel().tolist(), strict=True):
        if c != -1:
            counts[c, p] += 1
    return counts


def loop_scores(predicted, label, n_classes):
    """Scores from pixels in class ids (-1 predicted = no class); an oracle that shares no code with the module."""
    pairs = [(p, c) for p, c in zip(predicted.ravel().tolist(), label.ravel().tolist(), strict=True) if c != -1]
    accuracy = 100 * sum(p == c for p, c in pairs) / len(pairs)
    iou, precision, recall = [], [], []
    for k in range(n_classes):
        tp = sum(p == k and c == k for p, c in pairs)
        fp = sum(p == k and c != k for p, c in pairs)
        fn = sum(p != k and c == k for p, c in pairs)
        iou.append(100 * tp / (tp + fp + fn) if tp + fn else math.nan)
        precision.append(100 * tp / (tp + fp) if tp + fp else math.nan)
        recall.append(100 * tp / (tp + fn) if tp + fn else math.nan)
    occurring = [value for value in iou if not math.isnan(value)]
    return accuracy, sum(occurring) / len(occurring), iou, precision, recall


@st.composite
def segmentations(draw, most_predicted=6):
    n_classes, n_predicted = draw(st.integers(1, 5)), draw(st.integers(1, most_predicted))
    size = draw(st.integers(1, 40))
    predicted = draw(st.lists(st.integers(0, n_predicted - 1), min_size=size, max_size=size))
    label = draw(st.lists(st.integers(-1, n_classes - 1), min_size=size, max_size=size))
    return np.array(predicted), np.array(label), n_predicted, n_classes


@given(segmentations())
def test_confusion_equals_a_loop_for_arrays_and_tensors(case):
    predicted, label, n_predicted, n_classes = case
    expected = loop_confusion(*case)
    for p, c in (
        (predicted, label),
        (torch.from_numpy(predicted), torch.from_numpy(label)),
        (predicted.astype(np.uint8), torch.from_numpy(label).to(torch.int16)),
    ):
        got = confusion_matrix(p, c, n_predicted, n_classes)
        assert isinstance(got, np.ndarray) and got.dtype == np.int64
        np.testing.assert_array_equal(got, expected)


def test_confusion_of_maps_that_are_not_contiguous():
    rng = np.random.default_rng(0)
    predicted, label = rng.integers(0, 4, (7, 9)).T, rng.integers(-1, 3, (2, 9, 14))[1, :, ::2]
    np.testing.assert_array_equal(confusion_matrix(predicted, label, 4, 3), loop_confusion(predicted, label, 4, 3))
    got = confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(label.copy()), 4, 3)
    np.testing.assert_array_equal(got, loop_confusion(predicted, label, 4, 3))


def test_confusion_of_nothing_and_of_void_alone_is_zero():
    assert confusion_matrix(np.zeros((0, 3), int), np.zeros((0, 3), int), 2, 2).sum() == 0
    assert confusion_matrix(torch.zeros(5, dtype=torch.long), torch.full((5,), -1), 2, 3).tolist() == [[0, 0]] * 3


@pytest.mark.parametrize(
    ("predicted", "label", "message"),
    [
        ([0, 3], [0, 0], r"predicted holds the id 3, outside \[0, 2\]"),
        ([-1, 0], [0, 0], "predicted holds the id -1"),
        ([3, 0], [-1, 0], "predicted holds the id 3"),
        ([0, 0], [0, 2], r"label holds the id 2, outside \[-1, 1\]"),
        ([0, 0], [255, 0], "label holds the id 255.*void to -1"),
        ([0, 0], [0, -2], "label holds the id -2"),
        ([0, 0, 0], [0, 0], r"shape \(3,\) and label \(2,\)"),
    ],
)
@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_confusion_refuses_bad_ids_and_shapes(predicted, label, message, kind):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(kind(predicted), kind(label), 3, 2)


def test_confusion_refuses_scores_and_impossible_sizes():
    for bad in (np.zeros(3), torch.zeros(3), torch.zeros(3, dtype=torch.bool), np.zeros(3, bool)):
        with pytest.raises(TypeError, match="predicted has dtype"):
            confusion_matrix(bad, np.zeros(3, int), 2, 2)
    with pytest.raises(ValueError, match="n_classes must be at least 1"):
        confusion_matrix(np.zeros(3, int), np.zeros(3, int), 2, 0)


def test_hungarian_takes_the_best_total_and_not_the_best_pair():
    # The largest count, 5, is left out: 4 + 4 beats 5 + 0.
    assert match_hungarian(np.array([[5, 4], [4, 0]])).tolist() == [1, 0]


@given(segmentations())
def test_hungarian_is_as_good_as_every_one_to_one_matching(case):
    confusion = loop_confusion(*case)
    n_classes, n_predicted = confusion.shape
    assignment = match_hungarian(confusion)
    used = assignment[assignment >= 0]
    assert len(set(used.tolist())) == len(used) == min(n_classes, n_predicted)
    total = sum(confusion[c, p] for p, c in enumerate(assignment) if c >= 0)
    wide = np.pad(confusion, ((0, max(0, n_predicted - n_classes)), (0, 0)))  # rows to leave clusters unmatched
    orders = itertools.permutations(range(len(wide)), n_predicted)
    best = max(wide[list(rows), range(n_predicted)].sum() for rows in orders)
    assert total == best


def test_many_to_one_takes_the_largest_class_ties_low_and_empty_none():
    confusion = torch.tensor([[3, 2, 0, 9], [1, 2, 0, 10]])
    assert match_many_to_one(confusion).tolist() == [0, 0, -1, 1]


@given(segmentations())
def test_scores_equal_loops_over_pixels(case):
    predicted, label, *_, n_classes = case
    if (label == -1).all():
        return
    confusion = confusion_matrix(*case)
    for assignment in (match_hungarian(confusion), match_many_to_one(confusion)):
        got = scores(confusion, assignment)
        accuracy, miou, iou, precision, recall = loop_scores(assignment[predicted], label, n_classes)
        assert got.accuracy == pytest.approx(accuracy)
        assert got.miou == pytest.approx(miou)
        np.testing.assert_allclose(got.iou, iou)
        np.testing.assert_allclose(got.precision, precision)
        np.testing.assert_allclose(got.recall, recall)
        assert scores(confusion, match_many_to_one(confusion)).accuracy >= got.accuracy


@settings(max_examples=60)
@given(segmentations(), st.randoms(use_true_random=False))
def test_names_of_clusters_and_order_of_pixels_do_not_matter(case, random):
    predicted, label, n_predicted, n_classes = case
    if (label == -1).all():
        return
    names, order = list(range(n_predicted)), list(range(len(label)))
    random.shuffle(names)
    random.shuffle(order)
    confusion = confusion_matrix(*case)
    renamed = confusion_matrix(np.array(names)[predicted][order], label[order], n_predicted, n_classes)
    np.testing.assert_array_equal(renamed[:, names], confusion)
    assert scores(renamed, match_hungarian(renamed)).accuracy == scores(confusion, match_hungarian(confusion)).accuracy
    # The same clusters under other names: every score is the same once the assignment is renamed with them.
    assignment = match_hungarian(confusion)
    moved = np.empty_like(assignment)
    moved[names] = assignment
    for a, b in zip(scores(confusion, assignment), scores(renamed, moved), strict=True):
        np.testing.assert_array_equal(a, b)


def test_pixels_of_an_extra_cluster_are_wrong_and_never_dropped():
    confusion = np.array([[6, 0, 2], [1, 1, 0]])  # cluster 2 gets no class
    assert match_hungarian(confusion).tolist() == [0, 1, -1]
    got = scores(confusion, match_hungarian(confusion))
    assert got.accuracy == pytest.approx(70.0)
    np.testing.assert_allclose(got.iou, [100 * 6 / 9, 50.0])
    np.testing.assert_allclose(got.recall, [75.0, 50.0])
    np.testing.assert_allclose(got.precision, [100 * 6 / 7, 100.0])


def released_scores(predicted, label, n_classes):
    """Accuracy and mIoU of the released code, from pixels; extra clusters have ids from ``n_classes`` on."""
    pixels = [(p, c) for p, c in zip(predicted, label, strict=True) if c >= 0 and p < n_classes]  # before matching
    n_predicted = max(n_classes, 1 + max(predicted))
    counts = np.zeros((n_predicted, n_classes), int)
    for p, c in pixels:
        counts[p, c] += 1
    clusters, classes = linear_sum_assignment(counts, maximize=True)
    to_class = dict(zip(clusters.tolist(), classes.tolist(), strict=True))
    merged = [(to_class.get(p, n_classes), c) for p, c in pixels]
    iou = []
    for k in range(n_classes + 1):  # the last one: clusters that lost their class in a tie
        hit, either = sum(p == k == c for p, c in merged), sum(k in (p, c) for p, c in merged)
        iou += [hit / either] if either else []
    return 100 * sum(p == c for p, c in merged) / len(merged), 100 * sum(iou) / len(iou)


def test_released_option_drops_the_pixels_of_extra_clusters_before_it_matches():
    confusion = np.array([[1, 0, 9], [1, 2, 0]])  # without the last cluster, the first one takes class 0
    kept = counted(confusion, "released")
    assert kept.tolist() == [[1, 0, 0], [1, 2, 0]] and counted(confusion, "all") is confusion
    assert match_hungarian(kept).tolist() == [0, 1, -1]
    got = scores(kept, match_hungarian(kept), count="released")
    assert got.accuracy == pytest.approx(75)
    np.testing.assert_allclose(got.iou, [50, 100 * 2 / 3])


@settings(max_examples=300)
@given(st.data())
def test_released_metric_equals_one_written_out_pixel_by_pixel(data):
    n_classes = data.draw(st.integers(1, 5))
    n_predicted = n_classes + data.draw(st.integers(0, 3))
    size = data.draw(st.integers(1, 40))
    label = data.draw(st.lists(st.integers(-1, n_classes - 1), min_size=size, max_size=size))
    predicted = data.draw(st.lists(st.integers(0, n_predicted - 1), min_size=size, max_size=size))
    predicted, label = [*predicted, n_predicted - 1, 0], [*label, -1, 0]
    total = confusion_matrix(np.array(predicted), np.array(label), n_predicted, n_classes)
    kept = counted(total, "released")
    got = scores(kept, match_hungarian(kept), count="released")
    assert (got.accuracy, got.miou) == pytest.approx(released_scores(predicted, label, n_classes))


def test_clusters_that_lose_their_class_in_a_tie_count_as_one_more_class():
    confusion = np.array([[5, 3, 0], [0, 0, 0]])  # id 1 has no class of its own to take
    got = scores(confusion, np.array([0, -1, 1]), count="released")
    assert got.accuracy == pytest.approx(100 * 5 / 8) and got.miou == pytest.approx(100 * 5 / 8 / 2)


def test_hungarian_solves_clusters_by_classes():
    """Equally good matchings exist; scipy's choice depends on the orientation."""
    confusion = np.array([[2, 1, 1], [0, 1, 2], [1, 1, 2]])
    assert linear_sum_assignment(confusion.T, maximize=True)[1].tolist() == [0, 1, 2]
    assert linear_sum_assignment(confusion, maximize=True)[1].tolist() == [0, 2, 1], "the case tells them apart"
    assert match_hungarian(confusion).tolist() == [0, 1, 2]


def test_a_class_that_does_not_occur_is_skipped_or_counts_as_zero():
    confusion = np.array([[4, 2, 0], [0, 0, 0], [0, 0, 0]])  # class 1 is predicted and never labelled, class 2 neither
    got = scores(confusion)
    assert got.miou == pytest.approx(100 * 4 / 6)
    assert np.isnan(got.iou).tolist() == [False, True, True]
    assert np.isnan(got.recall).tolist() == [False, True, True]
    assert got.precision[:2].tolist() == [100.0, 0.0] and np.isnan(got.precision[2])
    released = scores(confusion, count="released")
    assert released.miou == pytest.approx(100 * 4 / 6 / 2)
    assert released.iou[1] == 0 and np.isnan(released.iou[2])


def test_labelled_class_without_a_cluster_counts_with_zero():
    confusion = np.array([[5], [3]])
    got = scores(confusion, match_hungarian(confusion))
    assert got.accuracy == pytest.approx(62.5) and got.miou == pytest.approx(62.5 / 2)
    assert got.iou[1] == 0 and np.isnan(got.precision[1])


def test_matched_confusion_merges_columns_and_keeps_every_pixel():
    confusion = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    np.testing.assert_array_equal(matched_confusion(confusion, np.array([1, 0, -1, 1])), [[2, 5, 3], [6, 13, 7]])
    np.testing.assert_array_equal(matched_confusion(np.eye(2, dtype=int)), [[1, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize(
    ("confusion", "assignment", "error", "message"),
    [
        (np.zeros((2, 2), int), None, ValueError, "no labelled pixel"),
        (np.ones((2, 3), int), None, ValueError, "pass an assignment"),
        (np.ones((2, 3), int), np.array([0, 1]), ValueError, r"assignment has shape \(2,\), expected \(3,\)"),
        (np.ones((2, 3), int), np.array([0, 1, 2]), ValueError, "assignment holds the id 2"),
        (np.ones((2, 2)), None, TypeError, "integer counts"),
        (-np.ones((2, 2), int), None, ValueError, "negative count"),
        (np.ones(4, int), None, ValueError, r"\[n_classes, n_predicted\]"),
    ],
)
def test_scores_refuse_what_they_cannot_read(confusion, assignment, error, message):
    with pytest.raises(error, match=message):
        scores(confusion, assignment)


def test_confusions_of_single_images_equal_those_of_their_own():
    rng = np.random.default_rng(0)
    predicted, label = rng.integers(0, 5, (4, 6, 7)), rng.integers(-1, 3, (4, 6, 7))
    label[1] = -1
    found = image_confusions(torch.from_numpy(predicted), torch.from_numpy(label), 5, 3)
    assert found.dtype == np.int64 and found.shape == (4, 3, 5)
    for counts, p, c in zip(found, predicted, label, strict=True):
        np.testing.assert_array_equal(counts, confusion_matrix(p, c, 5, 3))
    for p, c, message in (
        (predicted, label + 2, "label holds the id 4"),
        (predicted + 1, label, "predicted holds the id 5"),
    ):
        with pytest.raises(ValueError, match=message):
            image_confusions(torch.from_numpy(p), torch.from_numpy(c), 5, 3)


# ---- intervals


def test_intervals_equal_a_bootstrap_written_out():
    rng = np.random.default_rng(0)
    confusions = rng.integers(0, 50, (12, 3, 4)) * rng.integers(0, 2, (12, 1, 1))
    draws = np.random.default_rng(7).multinomial(12, np.full(12, 1 / 12), size=60)
    samples = []
    for weights in draws:
        total = sum(int(w) * counts for w, counts in zip(weights, confusions, strict=True))
        if total.any():
            total = counted(total, "released")
            samples.append(scores(total, match_hungarian(total), count="released")[:2])
    found = bootstrap_intervals(confusions, match_hungarian, samples=60, level=80, seed=7, count="released")
    np.testing.assert_allclose(np.array(found).T, np.percentile(samples, [10, 90], axis=0))


def test_interval_of_an_accuracy_is_as_wide_as_theory_says():
    rng = np.random.default_rng(0)
    right = rng.binomial(100, rng.beta(6, 4, 400))  # of 100 pixels in each of 400 images
    confusions = np.zeros((400, 2, 2), np.int64)
    confusions[:, 0, 0], confusions[:, 0, 1] = right, 100 - right
    low, high = bootstrap_intervals(confusions, None).accuracy
    width = 2 * 1.96 * right.std() / np.sqrt(400)
    assert low < right.mean() < high and high - low == pytest.approx(width, rel=0.1)


def test_clusters_are_matched_anew_in_every_sample():
    confusions = np.array([[[10, 0], [0, 10]]] * 5 + [[[0, 10], [10, 0]]] * 5)  # half of the images disagree
    assert bootstrap_intervals(confusions, match_hungarian).accuracy[0] >= 50
    assert bootstrap_intervals(confusions, lambda counts: np.array([0, 1])).accuracy[0] < 40


def test_no_interval_from_one_image_or_no_sample():
    confusions = np.zeros((3, 2, 2), np.int64)
    confusions[1] = 5
    assert bootstrap_intervals(confusions, None) is None
    confusions[2] = 5
    assert bootstrap_intervals(confusions, None, samples=0) is None
    assert bootstrap_intervals(confusions, None, samples=5).accuracy == (50, 50)
