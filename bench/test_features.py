"""Parts of ``bench/features.py`` as a pytest-benchmark suite: ``python -m pytest bench/test_features.py``."""

import features
import pytest


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    pytest.importorskip("transformers")
    return features.random_weights(tmp_path_factory.mktemp("weights"))


def test_attention(benchmark, weights):
    rows = benchmark.pedantic(features.attention, (weights, "cpu", True), rounds=1)
    assert [row.contender for row in rows] == ["fused", "materialised"]


def test_preparation(benchmark, weights, tmp_path):
    photos = features.write_photos(tmp_path / "photos", 2)
    rows, outside = benchmark.pedantic(features.preparation, (weights, photos, tmp_path, "cpu", 1), rounds=1)
    assert len(rows) == 2 and 0 <= outside < 1


def test_reading(benchmark, tmp_path):
    rows = benchmark.pedantic(features.reading, (tmp_path, "cpu", True), rounds=1)
    assert len(rows) == 4 and all(row.median_ms > 0 for row in rows)
