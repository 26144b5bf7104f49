"""Neighbours against the definition: every row of the similarity matrix sorted, ties by index, whatever the blocks."""

import numpy as np
import pytest
import torch

from depthg.features.knn import (
    DTYPES,
    TopK,
    allowed_k,
    nearest_neighbours,
    strip_pairs,
    strips,
    tile_count,
    unit_vectors,
)
from depthg.kernels._extension import native
from depthg.kernels.reference import normalize

IMPLS = ["eager", pytest.param("cpp", marks=pytest.mark.skipif(not hasattr(native, "knn_tile"), reason="not compiled"))]


def definition(vectors, k, photos):
    similarity = vectors.float() @ vectors.float().T
    similarity[photos[:, None] == photos[None]] = -torch.inf
    return similarity.argsort(dim=1, descending=True, stable=True)[:, :k]


def lattice(count, channels=6, seed=0):
    """Small integers: similarities are exact in any order of summation, and many are equal."""
    return torch.randint(-2, 3, (count, channels), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("strip", "tile"), [(32768, 1024), (40, 16), (16, 16), (7, 3), (1000, 10)])
@pytest.mark.parametrize("per_photo", [1, 5])
def test_equal_to_the_definition_on_a_lattice_full_of_ties(impl, strip, tile, per_photo):
    vectors, photos = lattice(203), torch.arange(203) // per_photo
    found = nearest_neighbours(vectors, 30, photos, strip=strip, tile=tile, impl=impl)
    assert found.dtype == torch.int64 and torch.equal(found, definition(vectors, 30, photos))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_of_random_vectors(impl, dtype):
    vectors = normalize(torch.randn(300, 24)).to(DTYPES[dtype])
    found = nearest_neighbours(vectors, 7, strip=128, tile=64, impl=impl)
    assert torch.equal(found, definition(vectors, 7, torch.arange(300)))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("k", [1, 2, 30, 64, 65, 299])
def test_any_number_of_neighbours(impl, k):
    vectors = lattice(300)
    assert torch.equal(
        nearest_neighbours(vectors, k, strip=90, tile=70, impl=impl), definition(vectors, k, torch.arange(300))
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_photos_need_not_be_in_order(impl):
    photos = torch.randint(0, 9, (100,))
    found = nearest_neighbours(lattice(100), 20, photos, strip=30, tile=16, impl=impl)
    assert torch.equal(found, definition(lattice(100), 20, photos))
    assert (photos[found] != photos[:, None]).all()


def test_the_threads_do_not_change_the_result():
    vectors, threads = torch.randn(500, 8), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        many = nearest_neighbours(vectors, 9, strip=256, tile=128)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(many, nearest_neighbours(vectors, 9, strip=256, tile=128))


def test_crops_of_one_photo_may_be_allowed():
    vectors = normalize(torch.tensor([[1.0, 0], [1.0, 0.01], [0, 1.0], [0.1, 1.0]]))
    assert nearest_neighbours(vectors, 1)[:, 0].tolist() == [1, 0, 3, 2]
    assert nearest_neighbours(vectors, 1, torch.tensor([0, 0, 1, 1]))[:, 0].tolist() == [3, 3, 1, 1]


@pytest.mark.parametrize("impl", IMPLS)
def test_ties_go_to_the_lowest_index_and_k_is_cut(impl):
    found = nearest_neighbours(torch.ones(4, 2), 9, impl=impl)
    assert found.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert allowed_k(9, torch.tensor([0, 0, 1])) == 1


def test_zero_of_either_sign_is_one_value():
    vectors = torch.tensor([[1.0, 0], [0, 1], [0, -1.0], [-0.0, 1]])
    assert nearest_neighbours(vectors, 3, impl="eager")[0].tolist() == [1, 2, 3]
    values = TopK.empty(1, 3)
    values.add(torch.tensor([[-0.0, 0.0, -0.0, 0.0]]), torch.arange(4, dtype=torch.int32))
    assert values.ids.tolist() == [[0, 1, 2]]


def test_merging_keeps_the_best_in_order():
    values, ids = torch.randint(-3, 4, (5, 60)).float() / 7, torch.randperm(60).int()
    best = TopK.empty(5, 8)
    for start in range(0, 60, 13):
        best.add(values[:, start : start + 13], ids[start : start + 13])
    for row in range(5):
        order = sorted(range(60), key=lambda place: (-float(values[row, place]), int(ids[place])))[:8]
        assert best.ids[row].tolist() == [int(ids[place]) for place in order]
        assert torch.equal(best.values[row], values[row, order])


def test_a_single_photo_has_no_neighbour():
    with pytest.raises(ValueError, match="5 training images of 1 photos"):
        nearest_neighbours(torch.ones(5, 2), 3, torch.zeros(5, dtype=torch.long))


def test_an_impossible_implementation_is_named():
    with pytest.raises(ValueError, match=r"unknown impl 'cuda'; choose one of 'auto', 'cpp', 'eager'"):
        nearest_neighbours(torch.ones(5, 2), 3, impl="cuda")


def test_strips_cover_every_pair_once():
    assert strips(10, 4) == [range(0, 4), range(4, 8), range(8, 10)]
    assert strip_pairs(10, 4) == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    assert tile_count(range(0, 4), range(0, 4), 2) == 3 and tile_count(range(0, 4), range(4, 7), 2) == 4


def test_unit_vectors_are_of_unit_length_and_dropout_masks_channels():
    means = torch.randn(70, 40)
    torch.testing.assert_close(unit_vectors(means), means / means.norm(dim=1, keepdim=True))
    assert unit_vectors(means, dtype=torch.float16).dtype == torch.float16
    dropped = unit_vectors(means, 0.5, seed=1)
    assert ((dropped == 0).float().mean() - 0.5).abs() < 0.1
    kept = torch.where(dropped == 0, 0.0, means)
    torch.testing.assert_close(dropped, normalize(kept))
    assert torch.equal(dropped, unit_vectors(means, 0.5, seed=1))
    assert not torch.equal(dropped, unit_vectors(means, 0.5, seed=2))
    assert not torch.equal(dropped, unit_vectors(means, 0.5, seed=1, first=64))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_named(value):
    means = torch.ones(4, 3)
    means[2, 1] = value
    with pytest.raises(ValueError, match="image 102 are not finite"):
        unit_vectors(means, first=100)
