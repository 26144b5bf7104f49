"""Neighbour lists written strip by strip equal those computed at once, after any interruption and by two processes."""

import numpy as np
import pytest
import torch

from depthg.features.knn import nearest_neighbours, unit_vectors
from depthg.features.knn_cache import NeighbourWriter
from depthg.storage.cache import cached

COUNT, K = 150, 11


@pytest.fixture
def means(tmp_path):
    np.save(tmp_path / "means.npy", np.random.default_rng(0).normal(size=(COUNT, 12)).astype(np.float32))
    return tmp_path / "means.npy"


def write(root, means, photos, build=None, **options):
    writer = NeighbourWriter(means, photos, K, strip=40, tile=16, **options)
    folder = cached(root, "neighbours", {}, build or writer.write, writer.arrays, writer.temporary)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "neighbours.npy"]
    return np.load(folder / "neighbours.npy")


@pytest.mark.parametrize("per_photo", [1, 5])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_strips_on_disk_give_what_one_strip_in_memory_gives(tmp_path, means, per_photo, dtype):
    photos = np.arange(COUNT) // per_photo
    vectors = unit_vectors(torch.from_numpy(np.load(means)), dtype=getattr(torch, dtype))
    expected = nearest_neighbours(vectors, K, torch.from_numpy(photos))
    found = write(tmp_path, means, photos, dtype=dtype)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected.numpy())


def test_dropout_changes_the_lists_and_depends_on_the_seed(tmp_path, means):
    photos = np.arange(COUNT)
    lists = [
        write(tmp_path / str(i), means, photos, dropout=dropout, seed=seed)
        for i, (dropout, seed) in enumerate([(0.0, 0), (0.2, 0), (0.2, 0), (0.2, 1), (0.0, 1)])
    ]
    equal = [(lists[a] == lists[b]).all() for a, b in ((0, 4), (1, 2), (0, 1), (1, 3))]
    assert equal == [True, True, False, False]


def test_an_interrupted_run_goes_on_with_the_next_pair(tmp_path, means, monkeypatch):
    photos = np.arange(COUNT)
    expected = write(tmp_path / "whole", means, photos)
    computed, original = [], NeighbourWriter._pair

    def pair(self, build, number, bar):
        if len(computed) in stops:
            stops.remove(len(computed))
            raise KeyboardInterrupt
        computed.append(number)
        original(self, build, number, bar)

    monkeypatch.setattr(NeighbourWriter, "_pair", pair)
    stops = [4, 7]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "cut", means, photos)
    np.testing.assert_array_equal(write(tmp_path / "cut", means, photos), expected)
    assert computed == list(range(10)), "4 strips make 10 pairs"
