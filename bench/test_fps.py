"""The shapes of ``bench/fps.py`` as a pytest-benchmark suite: ``python -m pytest bench/test_fps.py``."""

import fps
import pytest
import torch

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", fps.SHAPES, ids=str)
def test_farthest_point_sample(benchmark, shape, device):
    batch, n, k = shape
    points = torch.rand(batch, n, 3, generator=torch.Generator().manual_seed(0)).to(device)

    def sample():
        picks = fps.farthest_point_sample(points, k)
        fps.common.synchronize(device)
        return picks

    picks = benchmark(sample)
    assert picks.shape == (batch, k)
    assert (picks.sort(1).values.diff() > 0).all()  # distinct points, distinct picks


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(64, 784, 121), (256, 784, 121)], ids=str)
def test_farthest_point_sample_depth(benchmark, shape, device):
    calls = fps.depth_calls(*shape, device)

    def sample():
        picks = calls["depthg, depth maps"]()
        fps.common.synchronize(device)
        return picks

    assert torch.equal(benchmark(sample), calls["depthg, their points"]())
