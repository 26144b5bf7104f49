"""The cases of ``bench/loss.py`` as a pytest-benchmark suite: ``python -m pytest bench/test_loss.py``."""

import loss
import pytest
import torch

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
SMALL = [case for case in loss.CASES if case.eager_bytes() < 2e9]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("contender", ["depthg", "eager"])
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_forward_and_backward(benchmark, case, contender, device):
    calls = loss.make_calls(case, device, (contender,))
    call, leaves = calls[contender]

    def run():
        loss.forward_backward(call, leaves)
        loss.common.synchronize(device)

    benchmark(run)
    assert all(torch.isfinite(x.grad).all() for x in leaves)


@pytest.mark.parametrize("device", DEVICES)
def test_contenders_agree(device):
    loss.check_equal(loss.make_calls(loss.Case("small", 4, 5, 16, 8), device, ("depthg", "eager")))
    drop_in = loss.Case("small", 4, 5, 16, 8, cells=6, drop_in=True)
    loss.check_equal(loss.make_calls(drop_in, device, ("depthg", "eager")))
    loss.check_equal(loss.make_calls(loss.Case("small", 4, 5, 16, 8, cells=0), device, ("depthg", "eager")))
    loss.check_equal(loss.make_calls(loss.Case("small", 16, 0, 0, 8), device, ("depthg", "eager")))
