"""Neighbours against a loop; views of one photo; dropout."""

import numpy as np
import pytest
import torch
from depthg.kernels.reference import normalize

from depthg.knn import mean_features, nearest_neighbours


@pytest.mark.parametrize("block", [3, 1000])
def test_neighbours_against_a_loop(block):
    vectors = normalize(torch.randn(20, 5))
    photos = torch.arange(20) // 2
    found = nearest_neighbours(vectors, 6, photos, block=block)
    for i in range(20):
        others = [j for j in range(20) if photos[j] != photos[i]]
        expected = sorted(others, key=lambda j: (-float(vectors[i] @ vectors[j]), j))[:6]
        assert found[i].tolist() == expected


def test_crops_of_one_photo_may_be_allowed():
    vectors = normalize(torch.tensor([[1.0, 0], [1.0, 0.01], [0, 1.0], [0.1, 1.0]]))
    assert nearest_neighbours(vectors, 1)[:, 0].tolist() == [1, 0, 3, 2]
    assert nearest_neighbours(vectors, 1, torch.tensor([0, 0, 1, 1]))[:, 0].tolist() == [3, 3, 1, 1]


def test_ties_go_to_the_lowest_index_and_k_is_cut():
    assert nearest_neighbours(torch.ones(4, 2), 9).tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_a_single_photo_has_no_neighbour():
    with pytest.raises(ValueError, match="5 training images of 1 photos"):
        nearest_neighbours(torch.ones(5, 2), 3, torch.zeros(5, dtype=torch.long))


def test_mean_features_are_unit_means_and_dropout_changes_them():
    features = np.random.default_rng(0).normal(size=(70, 9, 6)).astype(np.float16)
    means = mean_features(features)
    torch.testing.assert_close(means[3], normalize(torch.from_numpy(features[3]).float().mean(0)))
    dropped = mean_features(features, 0.5, seed=1)
    assert ((dropped == 0).float().mean() - 0.5).abs() < 0.1
    assert torch.equal(dropped, mean_features(features, 0.5, seed=1))
