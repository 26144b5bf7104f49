"""The memory of a run does not grow: the resident size after a warm-up and at the end.

``DEPTHG_SOAK=5000 python -m pytest -s -m "" tests/robustness/test_memory.py -k demo`` measures a demo of 5,000
iterations.
"""

import ctypes
import gc
import os
from pathlib import Path

import pytest
from miniature import settings, write_camvid

from depthg.config.composing import load_config
from depthg.train import train
from depthg.training.step import Step

STATUS = Path("/proc/self/status")
MOST_GROWTH = 0.01
pytestmark = pytest.mark.skipif(not STATUS.is_file(), reason="needs /proc")


def resident_kib() -> int:
    return int(STATUS.read_text().split("VmRSS:")[1].split()[0])


def give_back() -> None:
    """Returns free memory of the heap to the system, so that a leak cannot hide in it."""
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)


def growth(config, monkeypatch, warm_up: int, every: int, before=lambda: None) -> float:
    """Relative growth of the resident size from the end of the warm-up to that of the training, by windows' maxima."""
    sizes, original = {}, Step.losses

    def measured(self, iteration):
        if iteration % every == 0:
            before()
            sizes[iteration] = resident_kib()
        return original(self, iteration)

    monkeypatch.setattr(Step, "losses", measured)
    gc.collect()  # what earlier tests left would be given back on the way
    train(config)
    span = (config.iterations - warm_up) // 5
    first = max(size for at, size in sizes.items() if warm_up <= at < warm_up + span)
    last = max(size for at, size in sizes.items() if at >= config.iterations - span)
    print(f"\nresident MiB by iteration: { {at: round(size / 1024, 1) for at, size in sizes.items()} }")
    print(f"{first} KiB after {warm_up} to {warm_up + span}, {last} KiB at the end: {100 * (last / first - 1):+.2f} %")
    return last / first - 1


@pytest.mark.slow
def test_a_short_run_does_not_grow(tmp_path, monkeypatch):
    config = settings(
        write_camvid(tmp_path / "camvid"), "iterations=600", "val.every=100", "checkpoint.every=50", "log_every=2"
    )
    assert growth(config, monkeypatch, warm_up=200, every=20, before=give_back) < MOST_GROWTH


@pytest.mark.slow
def test_the_measure_sees_a_leak(tmp_path, monkeypatch):
    leak, original, size = [], Step.losses, resident_kib() * 1024 // 15_000  # 2 % in 320 iterations
    monkeypatch.setattr(Step, "losses", lambda self, i: (leak.append(os.urandom(size)), original(self, i))[1])
    config = settings(write_camvid(tmp_path / "camvid"), "iterations=600", "checkpoint.every=0")
    assert growth(config, monkeypatch, warm_up=200, every=20, before=give_back) > MOST_GROWTH


@pytest.mark.slow
@pytest.mark.skipif("DEPTHG_SOAK" not in os.environ, reason="takes minutes; DEPTHG_SOAK=5000 runs it")
def test_a_long_demo_does_not_grow(tmp_path, monkeypatch):
    overrides = [f"iterations={os.environ['DEPTHG_SOAK']}", f"runs_dir={tmp_path}", "name=long"]
    assert growth(load_config(overrides), monkeypatch, warm_up=500, every=50) < MOST_GROWTH
