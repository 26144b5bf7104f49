"""Feature transform against written-out definitions; the cache is whole or absent and never mixed up."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from depthg.features import FeatureTransform, cached, write_features


def fitted(x: torch.Tensor, stages=(3, 5), **settings) -> FeatureTransform:
    return FeatureTransform(stages, **settings).fit(lambda: iter(x.split(7)))


def test_standardise_then_unit_stages():
    x = torch.randn(50, 8) * torch.arange(1, 9) + 3
    x[:, 2] = 4.0  # a constant channel says nothing and becomes zero
    y = (x - x.mean(0)) / x.std(0, unbiased=False).clamp(min=1e-6)
    expected = torch.cat([F.normalize(y[:, :3], dim=1), F.normalize(y[:, 3:], dim=1)], dim=1)
    torch.testing.assert_close(fitted(x)(x), expected, rtol=1e-4, atol=1e-5)


def test_projection_keeps_inner_products_best():
    x = torch.randn(400, 8)
    full, some = fitted(x)(x), fitted(x, pca=4)(x)
    values = torch.linalg.eigvalsh(full.T @ full).flip(0)
    assert some.shape == (400, 4)
    torch.testing.assert_close((some**2).sum(0), values[:4], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(fitted(x, pca=8)(x) @ fitted(x, pca=8)(x).T, full @ full.T, rtol=1e-4, atol=1e-4)


def test_identity_and_errors():
    x = torch.randn(5, 8)
    transform = FeatureTransform((8,), standardize=False)
    assert transform.is_identity and torch.equal(transform(x), x)
    with pytest.raises(ValueError, match="pca=9 exceeds the 8"):
        FeatureTransform((3, 5), pca=9)


@pytest.mark.parametrize("settings", [{"standardize": False}, {"pca": 4}])
def test_written_features_are_the_transformed_backbone_output(tmp_path, settings):
    maps = torch.randn(20, 8, 2, 3)
    transform = FeatureTransform((3, 5), **settings)
    write_features(tmp_path, iter(maps.split(6)), 20, transform, fit=not transform.is_identity)
    stored = np.load(tmp_path / "features.npy")
    expected = transform(maps.half().float().flatten(2).transpose(1, 2))
    assert stored.dtype == np.float16 and stored.shape == (20, 6, transform.channels)
    np.testing.assert_allclose(stored, expected.numpy(), atol=2e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.npy", "transform.safetensors"]


def build(folder):
    np.save(folder / "a.npy", np.arange(5))
    build.calls += 1


def test_cache_is_built_once_per_settings_and_readable(tmp_path):
    build.calls = 0
    first = cached(tmp_path, "kind", {"x": 1}, build)
    assert cached(tmp_path, "kind", {"x": 1}, build) == first
    assert cached(tmp_path, "kind", {"x": 2}, build) != first
    assert build.calls == 2
    assert json.loads((first / "manifest.json").read_text())["settings"]["x"] == 1


@pytest.mark.parametrize("damage", ["truncated", "missing", "no manifest", "broken manifest"])
def test_a_damaged_cache_is_built_again(tmp_path, damage):
    build.calls = 0
    folder = cached(tmp_path, "kind", {}, build)
    if damage == "truncated":
        (folder / "a.npy").write_bytes((folder / "a.npy").read_bytes()[:-3])
    elif damage == "missing":
        (folder / "a.npy").unlink()
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text("{")
    assert np.load(cached(tmp_path, "kind", {}, build) / "a.npy").tolist() == [0, 1, 2, 3, 4]
    assert build.calls == 2


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(folder):
        np.save(folder / "a.npy", np.arange(5))
        raise OSError("No space left on device")

    with pytest.raises(OSError, match=r"No space left on device; set cache\.dir"):
        cached(tmp_path, "kind", {}, fail)
    assert list((tmp_path / "kind").iterdir()) == []
