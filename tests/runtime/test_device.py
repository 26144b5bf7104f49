"""Devices: whatever this machine lacks is one sentence."""

import pytest
import torch

from depthg.runtime.device import pick_device


@pytest.mark.parametrize("name", ["mps", "xpu", "meta"])
def test_a_device_that_is_not_here_is_one_sentence(name, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"^device={name}: PyTorch has no such device here; use device=cpu$"):
        pick_device(name)


def test_devices_that_are_here_are_taken(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    assert [pick_device(name).type for name in ("mps", "xpu", "cpu")] == ["mps", "xpu", "cpu"]


def test_a_gpu_beyond_the_last_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"^device=cuda:7: the last GPU here is cuda:1$"):
        pick_device("cuda:7")
