"""Features on disk are the transformed backbone output, whatever the shards, the sample, and the order of work."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import depthg.features.cache
from depthg.features.cache import FeatureWriter
from depthg.features.reading import StoredFeatures
from depthg.features.transform import DTYPES, FeatureTransform, stored
from depthg.storage.cache import cached

MAPS = torch.randn(20, 8, 2, 3, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 9).view(8, 1, 1)


def network(calls=None):
    def maps(views, batch):
        for start in range(0, len(views), batch):
            part = [int(view) for view in views[start : start + batch]]
            if calls is not None:
                calls.append(part)
            yield MAPS[part]

    return maps


def write(root, settings, *, dtype=torch.float16, calls=None, keep=True, shard_mb=1e-4, fit=None):
    transform = FeatureTransform((3, 5), **settings)
    fit = not transform.is_identity if fit is None else fit
    writer = FeatureWriter(20, 6, transform, dtype, fit=fit, keep=keep, batch=3, shard_mb=shard_mb)
    maps = network(calls)
    folder = cached(
        root, "features", {}, lambda build: writer.write(build, maps, "features"), writer.arrays, writer.temporary
    )
    return folder, transform


@pytest.mark.parametrize("settings", [{"standardize": False}, {"pca": 4}, {"standardize": False, "pca": 4}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_features_and_means_are_those_of_the_transformed_backbone_output(tmp_path, settings, dtype):
    calls = []
    folder, transform = write(tmp_path, settings, dtype=DTYPES[dtype], calls=calls)
    expected = stored(MAPS, transform, DTYPES[dtype])
    features = StoredFeatures(folder / "features.npy", DTYPES[dtype])
    assert torch.equal(features.rows(np.arange(20)), expected.float())
    np.testing.assert_allclose(np.load(folder / "means.npy"), expected.float().mean(1), rtol=1e-6, atol=1e-6)
    assert sum(map(len, calls)) == 20, "every view goes through the backbone once"
    names = {"features.npy", "means.npy", "manifest.json"}
    names |= set() if transform.is_identity else {"transform.safetensors"}
    assert {path.name for path in folder.iterdir()} == names


def test_the_transform_is_fitted_on_all_views_and_stored(tmp_path):
    folder, transform = write(tmp_path, {"pca": 4})
    raw = MAPS.half().flatten(2).transpose(1, 2)
    expected = FeatureTransform((3, 5), pca=4).fit(lambda: iter([raw.flatten(0, 1)]))
    found = load_file(folder / "transform.safetensors")
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(found[key], transform.state_dict()[key])


def test_of_many_views_a_sample_is_fitted_and_all_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(depthg.features.cache, "FIT_VIEWS", 5)
    calls = []
    folder, transform = write(tmp_path, {"pca": 4}, calls=calls)
    assert [view for part in calls for view in part] == [0, 4, 8, 12, 16, *range(20)]
    raw = MAPS[::4].half().flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(transform.mean, raw.float().mean(0), rtol=1e-4, atol=1e-4)
    features = StoredFeatures(folder / "features.npy", torch.float16)
    assert torch.equal(features.rows(np.arange(20)), stored(MAPS, transform, torch.float16).float())


@pytest.mark.parametrize("sample", [5, 2048])
def test_shards_and_interruptions_do_not_change_a_byte(tmp_path, monkeypatch, sample):
    monkeypatch.setattr(depthg.features.cache, "FIT_VIEWS", sample)
    whole, _ = write(tmp_path / "whole", {"pca": 4}, shard_mb=64.0)

    class Killed(BaseException):
        pass

    original, kills = depthg.features.cache.Build.write, 0

    def killed(self, name, start, rows):
        nonlocal budget
        budget -= 1
        if budget < 0:
            raise Killed
        original(self, name, start, rows)

    with monkeypatch.context() as patch:
        patch.setattr(depthg.features.cache.Build, "write", killed)
        for _ in range(30):
            budget = 4
            try:
                cut, _ = write(tmp_path / "cut", {"pca": 4})
                break
            except Killed:
                kills += 1
    assert kills >= 3
    for name in ("features.npy", "means.npy", "transform.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def test_means_alone_are_those_of_the_features(tmp_path):
    whole, _ = write(tmp_path / "whole", {"pca": 4})
    means, _ = write(tmp_path / "means", {"pca": 4}, keep=False)
    assert (means / "means.npy").read_bytes() == (whole / "means.npy").read_bytes()
    assert (means / "transform.safetensors").read_bytes() == (whole / "transform.safetensors").read_bytes()
    assert not (means / "features.npy").exists()


def test_a_backbone_that_skips_images_is_noticed(tmp_path):
    writer = FeatureWriter(
        20, 6, FeatureTransform((3, 5), standardize=False), torch.float16, fit=False, keep=True, batch=3, shard_mb=1
    )

    def maps(views, batch):
        yield MAPS[:3]

    with pytest.raises(ValueError, match="3 of 20 images reached the feature cache"):
        cached(tmp_path, "features", {}, lambda build: writer.write(build, maps, "x"), writer.arrays)
