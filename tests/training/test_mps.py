"""Training on Apple's GPU, pretended: no tensor there is float64, which it lacks, and scores are those of the CPU."""

import numpy as np
import pretend_cuda
import pytest
import torch
from miniature import settings, write_camvid
from pretend_cuda import CPU, Device, OnDevice, pretend

from depthg.model.run_folder import read_log
from depthg.runtime.device import pick_device
from depthg.train import train

pytest.importorskip("triton")
MPS = torch.device("mps", 0)


class WithoutDoubles(Device):
    """The pretended device, which refuses float64 as MPS does."""

    def dispatch(self, function, args, kwargs):
        out = super().dispatch(function, args, kwargs)
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, OnDevice) and x.values.dtype == torch.float64:
                raise TypeError(f"{function._schema.name} makes a float64 tensor, which the MPS framework lacks")
        return out

    def move(self, x, args, kwargs):
        out = super().move(x, args, kwargs)
        if isinstance(out, OnDevice) and out.values.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return out


@pytest.fixture
def mps(monkeypatch):
    monkeypatch.setattr(pretend_cuda, "CUDA", MPS)
    monkeypatch.setattr(pretend_cuda, "is_device", lambda x: isinstance(x, (str, torch.device)) and "mps" in str(x))
    monkeypatch.setattr(OnDevice, "is_cuda", property(lambda self: False))
    monkeypatch.setattr(pretend_cuda, "Device", WithoutDoubles)
    return MPS


def test_the_pretended_device_refuses_float64(mps):
    with pretend():
        x = torch.ones(3).to(mps)
        assert x.device == mps and not x.is_cuda and (x + 1).tolist() == [2, 2, 2]
        for wrong in (lambda: x.double(), lambda: x.sum(dtype=torch.float64), lambda: torch.ones(2).double().to(mps)):
            with pytest.raises(TypeError, match="float64"):
                wrong()


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("loss.shifts=auto", "backbone.standardize=true", "sampling.start=random"),
        pytest.param(("mode=released",), marks=pytest.mark.slow),
        pytest.param(("loss.depth.relation=inclination", "features.cache=off"), marks=pytest.mark.slow),
    ],
)
def test_a_run_has_the_scores_of_the_cpu(tmp_path, monkeypatch, mps, overrides):
    root, found = write_camvid(tmp_path / "camvid"), []
    for where in (CPU, mps):
        monkeypatch.setattr("depthg.training.trainer.pick_device", lambda name, where=where: where)
        config = settings(root, *overrides, "head.dropout=0", "val.panels=0", "iterations=4", f"name={where.type}")
        with pretend():
            found.append(train(config))
    for key in found[0]:
        if key.endswith(("accuracy", "miou")):
            assert found[1][key] == pytest.approx(found[0][key], abs=0.5), key


def test_holes_in_depth_maps_need_no_float64(tmp_path, monkeypatch, mps):
    root, losses = write_camvid(tmp_path / "camvid"), []
    for path in (root / "depth" / "train").iterdir():
        depth = np.load(path)
        depth[20:40, 8:40] = np.nan
        np.save(path, depth)
    for where in (CPU, mps):
        monkeypatch.setattr("depthg.training.trainer.pick_device", lambda name, where=where: where)
        options = ("loss.depth.shift_mean=true", "head.dropout=0", "val.panels=0", "iterations=2", "log_every=1")
        with pretend(), pytest.warns(UserWarning, match="depth is unknown"):
            train(settings(root, *options, f"name={where.type}"))
        log = read_log(root.parent / "runs" / where.type / "metrics.jsonl")
        losses.append([line["loss.depth"] for line in log if "loss.depth" in line])
    assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_the_device_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device=mps: PyTorch has no such device here"):
        pick_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("mps").type == "mps"
