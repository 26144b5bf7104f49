"""Feature transform against written-out definitions; features read alike from a cache and from the backbone."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from depthg.features.reading import StoredFeatures, StreamedFeatures
from depthg.features.transform import DTYPES, FeatureTransform, stored, to_disk
from depthg.storage.array_file import create_array


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


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("pca", [0, 5])
def test_coarse_stages_are_projected_before_they_are_up_sampled(pca, standardize):
    sizes = {3: (8, 12), 5: (4, 6), 6: (2, 3), 2: (3, 5)}  # channels -> size; the last is no divisor of the first
    maps = [torch.randn(2, channels, *size) + 1 for channels, size in sizes.items()]
    maps[1][0] = 0.0
    whole = torch.cat([F.interpolate(m, (8, 12), mode="bilinear") for m in maps], 1).flatten(2).transpose(1, 2)
    transform = FeatureTransform(tuple(sizes), pca, standardize).fit(lambda: iter(whole))
    transform.mean[3:8] = 0.0  # so that the first image's second stage has no direction
    torch.testing.assert_close(transform.of_stages(maps, (8, 12)), transform(whole), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_features_that_do_not_fit_the_type_are_refused(dtype):
    transform, maps = FeatureTransform((3,), standardize=False), torch.ones(2, 3, 2, 2)
    maps[1, 0, 0, 0] = 1e5
    if dtype == "float16":
        with pytest.raises(ValueError, match=r"beyond the range of float16.*features\.dtype=bfloat16"):
            stored(maps, transform, DTYPES[dtype])
    else:
        assert stored(maps, transform, DTYPES[dtype]).max() > 9e4
    maps[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"NaN.*backbone\.weights"):
        stored(maps, transform, DTYPES[dtype])


MAPS = torch.randn(9, 5, 2, 3, generator=torch.Generator().manual_seed(1))


def backbone(views, batch):
    for start in range(0, len(views), batch):
        yield MAPS[torch.as_tensor(np.asarray(views[start : start + batch]))]


@pytest.fixture(params=[(kind, dtype) for kind in ("stored", "streamed") for dtype in DTYPES], ids="-".join)
def reader(request, tmp_path):
    """Features of nine views with their transform, from a file and from a network, and what they should be."""
    kind, name = request.param
    transform = FeatureTransform((2, 3)).fit(lambda: iter([MAPS.flatten(2).transpose(1, 2).flatten(0, 1)]))
    expected = stored(MAPS, transform, DTYPES[name])
    if kind == "streamed":
        return StreamedFeatures((9, 6, 5), DTYPES[name], transform, backbone, batch=2), expected
    np.save(tmp_path / "features.npy", to_disk(expected))
    return StoredFeatures(tmp_path / "features.npy", DTYPES[name]), expected


def test_rows_and_single_vectors_of_views(reader):
    features, expected = reader
    views = np.array([7, 0, 7, 3])
    rows = features.rows(views)
    assert rows.dtype == torch.float32 and torch.equal(rows, expected[views].float())
    buffer = torch.full((4, 6, 5), torch.nan)
    assert features.rows(views, "cpu", buffer) is buffer and torch.equal(buffer, rows)
    cells = torch.tensor([[0, 5, 5], [1, 2, 3], [4, 4, 4], [5, 0, 1]])
    vectors, buffer = features.at(views, cells), torch.full((4, 3, 5), torch.nan)
    assert torch.equal(vectors, rows.gather(1, cells[..., None].expand(-1, -1, 5)))
    assert features.at(views, cells, "cpu", buffer) is buffer and torch.equal(buffer, vectors)


def test_many_vectors_are_read_part_by_part(tmp_path):
    values = torch.randn(5, 700, 3).half()
    np.save(tmp_path / "features.npy", values.numpy())
    cells = torch.randint(700, (4, 1500))
    found = StoredFeatures(tmp_path / "features.npy", torch.float16).at(np.array([4, 1, 1, 0]), cells)
    assert torch.equal(found, values[[4, 1, 1, 0]].float().gather(1, cells[..., None].expand(-1, -1, 3)))


def test_features_index_like_an_array(reader):
    features, expected = reader
    expected = (expected.float() if expected.dtype == torch.bfloat16 else expected).numpy()
    assert len(features) == 9 and features.shape == (9, 6, 5)
    for index in (3, slice(2, 5), np.array([8, 1]), (4, np.array([0, 3])), (slice(1, 3), 2), slice(-2, None)):
        found = features[index]
        assert isinstance(found, np.ndarray) and found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected[index])


def test_a_cache_larger_than_the_memory_can_be_read(tmp_path):
    shape = (490_000, 784, 384)  # 295 GB, a hole on the disk
    create_array(tmp_path / "features.npy", shape, np.dtype(np.float16))
    features = StoredFeatures(tmp_path / "features.npy", torch.float16)
    views, cells = np.array([489_999, 0]), torch.tensor([[783], [0]])
    assert features.shape == shape and features.at(views, cells).abs().sum() == 0
    assert features[489_998, 5].shape == (384,)
