"""Number of clusters: found on synthetic clusters, refused where there are none."""

import pytest
import torch

from depthg.evaluation.cluster_count import count_clusters, mean_silhouette, prediction_strength


def images(k, spread, n_images=40, rows=20, dim=16):
    """Vectors around k random directions, every image a random mixture of them."""
    centres = torch.nn.functional.normalize(torch.randn(k, dim), dim=1)
    member = torch.randint(k, (n_images, rows))
    return centres[member] + spread * torch.randn(n_images, rows, dim) / dim**0.5


@pytest.mark.parametrize("k", [2, 3, 5, 8])
def test_clear_clusters_are_counted(k):
    found = count_clusters(images(k, 0.15), range(2, 12))
    assert found.suggested == k
    assert found.silhouette[k - 2] == max(found.silhouette)
    assert all(0 <= value <= 1 for value in found.strength)


def test_one_cloud_has_no_agreed_number():
    found = count_clusters(torch.randn(40, 20, 16), range(2, 12))
    assert found.suggested is None and max(found.strength) < 0.8


def test_threshold_splits_and_seed_have_an_effect():
    x = images(6, 0.6)
    assert count_clusters(x, range(2, 9), threshold=1e-3).suggested == 8
    one, again, other = (count_clusters(x, (8,), splits=1, seed=seed).strength for seed in (0, 0, 1))
    assert one == again != other
    assert count_clusters(x, (8,), splits=3).strength != one


def test_strength_is_the_share_of_the_worst_cluster():
    own = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    other = torch.tensor([2, 2, 2, 1, 0, 0, 0])
    assert prediction_strength(own, other, 3) == pytest.approx(6 / 12)  # cluster 0: 3 of 4 together; 2 has no pair
    assert prediction_strength(own, own, 3) == 1


def test_silhouette_by_hand():
    centroids = torch.eye(2)
    x = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    assert mean_silhouette(x, centroids) == pytest.approx((1 + (0.4 - 0.2) / 0.4) / 2)


@pytest.mark.parametrize(
    ("shape", "k", "message"),
    [((1, 20, 4), (2,), "two are needed"), ((4, 2, 4), (2, 5), "between 2 and the 4"), ((4, 2, 4), (1,), "between 2")],
)
def test_what_cannot_be_divided(shape, k, message):
    with pytest.raises(ValueError, match=message):
        count_clusters(torch.randn(shape), k)
