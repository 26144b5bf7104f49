"""The neighbours of ``bench/knn.py`` as a pytest-benchmark suite: ``python -m pytest bench/test_knn.py``."""

import knn
import pytest
import torch

from depthg.features.knn import unit_vectors


@pytest.mark.parametrize("name", knn.CONTENDERS)
def test_neighbours(benchmark, name):
    vectors = unit_vectors(knn.mean_features(2_000))
    found = benchmark(knn.CONTENDERS[name], vectors)
    assert found.shape == (2_000, knn.K)
    knn.check_equal(vectors, [name, "usual"])


def test_a_slice_of_a_larger_set(benchmark):
    found = benchmark.pedantic(knn.large, (3_000, 1_024, "cpu", torch.get_num_threads()), rounds=1)
    assert found["strips"] == 3 and found["total_s"] > 0
