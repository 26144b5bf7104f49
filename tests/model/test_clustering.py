"""Cosine k-means against hand-made clusters, written-out loops and brute force."""

import itertools

import pytest
import torch
from torch.nn.functional import normalize

from depthg.model.clustering import ROWS, assign, cosine_kmeans


def blobs(k, per_cluster, channels, noise, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.eye(channels)[:k]
    member = torch.arange(k).repeat(per_cluster)
    x = centres[member] + noise * torch.randn(len(member), channels, generator=generator)
    return x * torch.rand(len(member), 1, generator=generator).add(0.1), member  # lengths must not matter


def mean_distance(x, centroids):
    return float((1 - normalize(x.double(), dim=1) @ centroids.double().t()).amin(1).mean())


def test_finds_separated_clusters_whatever_their_lengths():
    x, member = blobs(5, 40, 16, 0.1)
    centroids = cosine_kmeans(x, 5, seed=3)
    assert centroids.shape == (5, 16)
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(5))
    found = assign(x, centroids)
    pairs = set(zip(member.tolist(), found.tolist(), strict=True))
    assert len(pairs) == 5 and len({p for _, p in pairs}) == 5


def test_centroids_are_the_normalised_sums_of_their_members():
    x, _ = blobs(4, 30, 8, 0.5)
    centroids = cosine_kmeans(x.double(), 4, seed=0, iterations=200, tolerance=0.0)
    found = assign(x.double(), centroids)
    for j in range(4):
        total = torch.zeros(8, dtype=torch.float64)
        for row in x.double()[found == j]:
            total += row / row.norm()
        torch.testing.assert_close(centroids[j], total / total.norm())


def test_reaches_the_best_partition_of_a_small_set():
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unit = normalize(x, dim=1)
    best = max(
        sum(float(unit[[i for i in range(8) if parts[i] == j]].sum(0).norm()) for j in range(2))
        for parts in itertools.product(range(2), repeat=8)
    )
    centroids = cosine_kmeans(x, 2, seed=0, n_init=20)
    assert mean_distance(x, centroids) == pytest.approx(1 - best / 8, abs=1e-12)


def test_same_seed_same_centroids_and_the_global_generator_is_left_alone():
    x, _ = blobs(6, 50, 10, 0.8)
    state = torch.get_rng_state()
    first = cosine_kmeans(x, 6, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(cosine_kmeans(x, 6, seed=7), first)
    seven, eight = (cosine_kmeans(x, 6, seed=seed, n_init=1, iterations=1) for seed in (7, 8))
    assert not torch.equal(seven, eight)


def test_more_iterations_and_restarts_never_hurt():
    x = torch.randn(600, 12, generator=torch.Generator().manual_seed(0))
    one, ten = (mean_distance(x, cosine_kmeans(x, 9, seed=0, n_init=1, iterations=n)) for n in (1, 10))
    assert ten < one
    # The returned restart is the best one of those that ran.
    many = mean_distance(x, cosine_kmeans(x, 9, seed=0, n_init=16))
    average = sum(mean_distance(x, cosine_kmeans(x, 9, seed=s, n_init=1)) for s in range(16)) / 16
    assert many < average


def test_blocks_of_rows_do_not_change_the_result(monkeypatch):
    x = torch.randn(500, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = cosine_kmeans(x, 5, seed=1)
    member = assign(x, whole)
    monkeypatch.setattr("depthg.model.clustering.ROWS", 37)
    assert ROWS > 500
    torch.testing.assert_close(cosine_kmeans(x, 5, seed=1), whole)
    assert torch.equal(assign(x, whole), member)


def test_lost_clusters_move_to_the_worst_served_points():
    from depthg.model.clustering import _accumulate, _update

    x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    centroids = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]])  # the last two have no member
    sums, distance = _accumulate(x, centroids)
    assert float(distance) == pytest.approx((0 + 0.2 + 1.0 + 0.4) / 4)
    updated = _update(x, centroids, sums)[0]
    torch.testing.assert_close(updated[0], normalize(x.sum(0), dim=0))
    torch.testing.assert_close(updated[1:], x[[2, 3]])  # cosines to their centroid: 0.0 and 0.6, the two lowest


def test_members_that_cancel_out_leave_unit_centroids():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    centroids = cosine_kmeans(x, 1, seed=0)
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(1))


def test_fewer_directions_than_clusters_end_with_repeated_centroids():
    x = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).repeat(5, 1)
    centroids = cosine_kmeans(x, 4, seed=0)
    assert torch.isfinite(centroids).all()
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(4))
    assert mean_distance(x, centroids) == pytest.approx(0.0, abs=1e-7)


def test_zero_vectors_are_left_out_of_the_fit_and_go_to_cluster_zero():
    x, _ = blobs(3, 20, 6, 0.2)
    padded = torch.cat([torch.zeros(4, 6), x])
    centroids = cosine_kmeans(padded, 3, seed=0)
    assert torch.equal(centroids, cosine_kmeans(x, 3, seed=0))
    assert assign(padded, centroids)[:4].tolist() == [0] * 4


def test_half_precision_and_very_short_vectors():
    x, member = blobs(3, 20, 6, 0.1)
    assert cosine_kmeans(x.half(), 3, seed=0).dtype == torch.float32
    for scale in (1e-30, 1e30):
        found = assign(x, cosine_kmeans(x * scale, 3, seed=0))
        assert len(set(zip(member.tolist(), found.tolist(), strict=True))) == 3


def test_assign_equals_a_loop_keeps_leading_axes_and_breaks_ties_low():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 5, generator=generator)
    centroids = normalize(torch.randn(6, 5, generator=generator), dim=1)
    found = assign(x, centroids)
    assert found.shape == (2, 3, 4) and found.dtype == torch.int64
    for n, i, j in itertools.product(range(2), range(3), range(4)):
        cosines = [float(x[n, i, j] @ c) for c in centroids]
        assert int(found[n, i, j]) == cosines.index(max(cosines))
    assert assign(torch.ones(3, 2), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])).tolist() == [0, 0, 0]
    assert assign(torch.zeros(0, 5), centroids).shape == (0,)


@pytest.mark.parametrize(
    ("x", "k", "error", "message"),
    [
        (torch.ones(3, 2), 4, ValueError, "k = 4 clusters need at least 4"),
        (torch.zeros(9, 2), 1, ValueError, "not zero, got 0 of 9"),
        (torch.ones(3, 2), 0, ValueError, "k must be at least 1"),
        (torch.ones(3), 1, ValueError, r"\[N, C\], got shape \(3,\)"),
        (torch.ones(3, 2, dtype=torch.long), 1, TypeError, "dtype torch.int64"),
        (torch.tensor([[1.0, 1.0], [torch.nan, 1.0]]), 1, ValueError, "first in row 1"),
        (torch.tensor([[torch.inf, 1.0]]), 1, ValueError, "NaN or infinity"),
    ],
)
def test_refuses_what_it_cannot_cluster(x, k, error, message):
    with pytest.raises(error, match=message):
        cosine_kmeans(x, k, seed=0)


def test_refuses_bad_counts_and_other_channels():
    for name in ("n_init", "iterations"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            cosine_kmeans(torch.ones(3, 2), 1, seed=0, **{name: 0})
    with pytest.raises(ValueError, match="same C"):
        assign(torch.ones(3, 2), torch.ones(1, 3))
