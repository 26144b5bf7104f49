"""The survey of a photo set: counts by hand, doubtful crops, and merges that the eye would suggest."""

import threading

import numpy as np
import pytest

from depthg.inference.clear_crops import MOST, doubtful_places
from depthg.inference.survey import Survey, border_lengths, suggested_merges

COLOURS = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)


def test_borders_are_counted_once_for_each_pair_of_neighbours():
    ids = np.array([[0, 0, 1], [2, 0, 1]])
    np.testing.assert_array_equal(border_lengths(ids, 3), [[0, 2, 2], [2, 0, 0], [2, 0, 0]])
    written_out = np.zeros((4, 4), np.int64)
    ids = np.random.default_rng(0).integers(0, 4, (9, 7)).astype(np.uint8)
    for i in range(9):
        for j in range(7):
            for k, m in ((i + 1, j), (i, j + 1)):
                if k < 9 and m < 7 and ids[i, j] != ids[k, m]:
                    written_out[ids[i, j], ids[k, m]] += 1
                    written_out[ids[k, m], ids[i, j]] += 1
    np.testing.assert_array_equal(border_lengths(ids, 4), written_out)


def test_merges_are_similar_clusters_that_touch():
    centroids = np.array([[1, 0], [0.9, 0.1], [0, 1], [1, 0.05]], np.float32)
    borders = np.array([[0, 10, 30, 0], [10, 0, 0, 0], [30, 0, 0, 5], [0, 0, 5, 0]])
    found = suggested_merges(centroids, borders)
    assert [(s.one, s.other) for s in found] == [(0, 1)]  # 0 and 3 never touch, 0 and 2 are not alike
    assert found[0].border == 1.0 and found[0].cosine == pytest.approx(0.9 / np.hypot(0.9, 0.1))
    borders[0, 3] = borders[3, 0] = 5
    assert [(s.one, s.other) for s in suggested_merges(centroids, borders)] == [(0, 1), (0, 3)]
    assert len(suggested_merges(centroids, borders, most=1)) == 1
    assert suggested_merges(np.zeros((2, 3)), np.ones((2, 2)) - np.eye(2)) == []


def test_the_doubtful_place_is_the_nearest_race_that_a_cluster_wins():
    scores = np.zeros((2, 20, 30))
    scores[0, :, :20], scores[1, :, 20:] = 1.0, 1.0  # clear everywhere
    scores[1, 8:14, 2:8] = 0.9  # but here nearly not
    doubt, row, column = doubtful_places(scores)[0]
    assert doubt == pytest.approx(-0.1) and (row, column) == ((8 + 3) / 20, (2 + 3) / 30)
    scores[:, 0, 0] = 0, 2  # a single cell of the cluster 1 where it is clear: no window to hold half of
    assert doubtful_places(scores)[1][0] == pytest.approx(-1.0)
    assert doubtful_places(np.ones((1, 4, 4))) == {}
    speck = np.stack([np.ones((10, 10)), np.zeros((10, 10))])
    speck[1, 5, 5] = 3
    assert doubtful_places(speck)[1][0] == pytest.approx(-2.0), "a cluster with less than half of any window"


def test_photos_add_up_in_any_order_and_thread():
    rng = np.random.default_rng(0)
    photos = [(f"{i}", rng.random((3, 8, 12)), rng.integers(0, 3, (32, 48)).astype(np.uint8)) for i in range(MOST + 4)]
    image = rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)
    found = []
    for order in (photos, photos[::-1]):
        survey = Survey(COLOURS)
        threads = [
            threading.Thread(target=survey.offer, args=(name, scores, ids, lambda ids=ids: (image, ids)))
            for name, scores, ids in order
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found.append(survey)
    one, other = found
    np.testing.assert_array_equal(one.pixels, sum(np.bincount(ids.ravel(), minlength=3) for *_, ids in photos))
    np.testing.assert_array_equal(one.borders, sum(border_lengths(ids, 3) for *_, ids in photos))
    assert one.shares.sum() == pytest.approx(1.0) and one.typical.all == other.typical.all
    assert one.doubtful.all == other.doubtful.all and all(len(crops) == MOST for crops in one.doubtful.all)
    assert one.typical.all != one.doubtful.all
    assert Survey(COLOURS).shares.tolist() == [0, 0, 0]
