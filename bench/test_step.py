"""The step of ``bench/step.py`` as a pytest-benchmark suite: ``python -m pytest bench/test_step.py``."""

import math
from functools import partial

import pytest
import step
import torch

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "make",
    [partial(step.our_step, all_cells=False), partial(step.our_step, all_cells=True), step.eager_step],
    ids=["depthg", "depthg, all cells", "eager"],
)
def test_step(benchmark, make, device):
    data = step.Data(64, 28, 384)
    run = make(data, 16, 121, 70, device)
    clock = step.Clock(device)
    loss = benchmark(lambda: run(0, clock))
    assert math.isfinite(loss)
    assert set(clock.parts) == set(step.PARTS)


def test_waiting_is_measured_in_every_case():
    rows = step.waiting.measure("cpu", quick=True)
    cases = [(name, case) for name in step.waiting.SETTINGS for case in step.waiting.CASES]
    assert [(row.settings, row.features) for row in rows] == (cases if step.waiting.AVAILABLE else [])
    assert all(0 < row.waiting_ms < row.step_ms for row in rows)
