"""Training on a GPU, pretended (pretend_cuda.py): nothing waits for the device, and the results are the CPU's."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from miniature import settings, write_camvid
from pretend_cuda import CPU, CUDA, Device, OnDevice, pretend
from safetensors.torch import load_file
from test_nonfinite import times

from depthg.config.composing import load_config
from depthg.features.preparation import Preparation
from depthg.model.checkpoints import read_checkpoint
from depthg.model.run_folder import read_log
from depthg.runtime.device import Later, host_memory, to_device
from depthg.train import train
from depthg.training.kept_step import replay
from depthg.training.nonfinite import FOLDER
from depthg.training.step import Model, Step
from depthg.training.trainer import Trainer

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which needs no pretence")

SMALL = ("head.dropout=0", "sampling.points=2", "sampling.schedule=[]", "loss.negative.draws=2", "val.panels=0")
# What a step may wait for, and why. Everything else that a run reads is outside its steps.
ONCE = {("sends", "tensor", "plan_triton.py:make_tables"): "the work list of a loss, once for each of its sizes"}
MODEL = {("sends", "to", "elsewhere")}  # the weights, by the test itself
EVERY_STEP = {
    ("reads later", "to", "device.py:__init__"): "one number, whether the step was finite; the host goes on",
    ("waits", "Event.synchronize", "device.py:values"): "for that number of the step before, while this one is queued",
}
WHERE_LOGGED = {
    ("reads", "tolist", "processes.py:averages"): "the logged numbers, all at once (log_every)",
    ("waits", "Event.synchronize", "device.py:values"): "whether they are finite (they are not logged otherwise)",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("device") / "camvid")


def seen(device, start=0):
    return Counter((wait.kind, wait.operation, wait.where) for wait in device.seen[start:])


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (lambda x, host: x.sum().item(), {"reads _local_scalar_dense"}),
        (lambda x, host: bool((x > 0).any()), {"reads _local_scalar_dense"}),
        (lambda x, host: float(x[0]), {"reads _local_scalar_dense"}),
        (lambda x, host: (x > 0).nonzero(), {"reads nonzero"}),
        (lambda x, host: x[x > 0], {"reads index by a mask"}),
        (lambda x, host: x.unique(), {"reads _unique2"}),
        (lambda x, host: torch.equal(x, x), {"reads equal"}),
        (lambda x, host: x.tolist(), {"reads tolist"}),
        (lambda x, host: x.numpy(), {"reads numpy"}),
        (lambda x, host: x.cpu(), {"reads to"}),
        (lambda x, host: host.copy_(x), {"reads copy_"}),
        (lambda x, host: x.copy_(host), {"sends copy_"}),
        (lambda x, host: host.to(CUDA), {"sends to"}),
        (lambda x, host: host.to(CUDA, non_blocking=True), {"sends to"}),  # from pageable memory
        (lambda x, host: host.pin_memory().to(CUDA), {"sends to"}),
        (lambda x, host: torch.tensor(1.0, device=CUDA), {"sends tensor"}),
        (lambda x, host: x.new_tensor([1.0]), {"sends new_tensor"}),
        (lambda x, host: x[torch.tensor([0, 1])], {"sends index"}),
        (lambda x, host: host.pin_memory().to(CUDA, non_blocking=True), set()),
        (lambda x, host: torch.zeros(3, device=CUDA) + x.exp().sum() * 2.0 + torch.full((), 2.0), set()),
        (lambda x, host: x.where(x > 0, 0).sort().values.gather(0, x.argsort()), set()),
        (lambda x, host: to_device(host, CUDA), set()),
        (lambda x, host: to_device(host_memory(3, dtype=torch.float16, device=CUDA), CUDA), set()),
        (lambda x, host: Later(x).values(), {"reads later to", "waits Event.synchronize"}),
    ],
)
def test_the_pretended_device_sees_what_waits(operation, expected):
    with pretend() as device:
        x, host = OnDevice(torch.tensor([1.0, -2.0, 3.0])), torch.ones(3)
        operation(x, host)
        assert {f"{wait.kind} {wait.operation}" for wait in device.seen} == expected


def test_the_pretended_device_computes_and_refuses_tensors_of_the_cpu():
    with pretend():
        x = torch.arange(3.0).to(CUDA).requires_grad_()
        assert x.device == CUDA and x.is_cuda and not x.is_cpu
        (x * x).sum().backward()
        assert x.grad.device == CUDA and x.grad.tolist() == [0, 2, 4]
        with pytest.raises(RuntimeError, match="add gets a CPU tensor"):
            x + torch.ones(3)


def test_copies_to_the_cpu_and_back_keep_the_values():
    x = torch.randn(3, 4)[:, ::2]
    assert to_device(x, "cpu") is x and torch.equal(Later(x).values(), x)
    assert not host_memory(2, dtype=torch.float32, device="cpu").is_pinned()
    with pretend():
        assert torch.equal(to_device(x, CUDA).values, x) and torch.equal(Later(to_device(x, CUDA)).values(), x)


def slow(*overrides):
    return pytest.param(overrides, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "overrides",
    [
        ("sampling.start=random", "data.crop=five", "loss.depth.pair=crop"),
        ("loss.depth.at=grid", "features.cache=off"),
        slow("probe.cells=0"),
        slow("probe.cells=20"),
        slow("sampling=random", "sampling.read=bilinear"),
        slow("mode=released"),
        slow("loss.depth.relation=gaussian", "loss.depth.shift_mean=true"),
        slow("loss.depth.relation=normals"),
        slow("depth.source=none", "loss.center=false", "loss.clamp=false"),
    ],
)
def test_no_option_waits_for_the_device_and_losses_are_the_same(root, overrides):
    config = settings(root, *SMALL, *overrides)
    data, losses = Preparation(config, CPU).run(), []
    for where in (CPU, CUDA):
        with pretend() as device:
            torch.manual_seed(0)
            model = Model(data.transform.channels, config.head.dim, 0.0, 11, 11).to(where)
            step = Step(config, data, model, where)
            if where == CUDA:
                step.losses(0)  # makes what is kept for each size
                assert set(seen(device)) <= set(ONCE) | MODEL, dict(seen(device))
            start = len(device.seen)
            found = step.losses(1)[0]
            sum(found.values()).backward()
            waits = seen(device, start)
            grads = [p.grad.detach().cpu() for p in model.parameters()]
            losses.append((torch.stack([value.detach().cpu() for value in found.values()]), grads))
    assert not waits, dict(waits)
    torch.testing.assert_close(*losses)


def run_on(monkeypatch, where, config):
    monkeypatch.setattr("depthg.training.trainer.pick_device", lambda name: where)
    with pretend() as device:
        return train(config), device


@pytest.mark.slow
def test_a_whole_run_waits_only_for_what_is_named_and_scores_as_on_the_cpu(root, tmp_path, monkeypatch):
    marks, metrics, plain = [], {}, Step.losses

    def marked(self, iteration):
        marks.append(len(Device.current.seen))
        return plain(self, iteration)

    monkeypatch.setattr(Step, "losses", marked)
    options = (*SMALL, "iterations=6", "log_every=3", "checkpoint.every=0", "probe.reinit=0", "val.panels=2")
    for where in (CPU, CUDA):
        marks.clear()
        own = (f"cache.dir={tmp_path}/cache-{where.type}", f"runs_dir={tmp_path}", f"name={where.type}")
        metrics[where.type], device = run_on(monkeypatch, where, settings(root, *options, *own))
        if where == CPU:
            assert not device.seen
    steps = [device.seen[begin:end] for begin, end in pairwise(marks)]
    for number, waits in enumerate(steps, 1):
        allowed = EVERY_STEP | (WHERE_LOGGED if number % 3 == 0 else {}) | (ONCE if number == 1 else {})
        found = Counter((wait.kind, wait.operation, wait.where) for wait in waits)
        assert set(found) <= set(allowed), dict(found)
        assert all(found[what] <= 1 + (number % 3 == 0) for what in EVERY_STEP)
    assert steps[2] and any(wait.kind == "reads" for wait in steps[2]) and len(steps) == 5
    for name, value in metrics["cpu"].items():
        if name.endswith(("accuracy", "miou")):
            assert metrics["cuda"][name] == pytest.approx(value, abs=0.1), name
    logs = [[line["loss"] for line in read_log(tmp_path / d / "metrics.jsonl") if "loss" in line] for d in metrics]
    np.testing.assert_allclose(*logs, rtol=1e-4)
    tensors = [read_checkpoint(tmp_path / name / "checkpoints" / "last")[0] for name in metrics]
    assert tensors[0].keys() == tensors[1].keys()
    for name, value in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], value, rtol=1e-2, atol=1e-3, msg=name)


def test_steps_that_are_not_finite_are_left_out_on_the_device(root, tmp_path, monkeypatch):
    times(monkeypatch, "total", lambda iteration: np.nan if iteration in (1, 3) else 1)
    options = (*SMALL, "iterations=4", "train.on_nan=skip", "log_every=1", "probe.reinit=0")
    found = {}
    for where in (CPU, CUDA):
        config = settings(root, *options, f"runs_dir={tmp_path}", f"name={where.type}")
        found[where.type] = run_on(monkeypatch, where, config)[0]
        assert found[where.type]["skipped_iterations"] == [2, 4]
        logged = [line["iteration"] for line in read_log(tmp_path / where.type / "metrics.jsonl") if "loss" in line]
        assert logged == [1, 3]
    tensors = [read_checkpoint(tmp_path / name / "checkpoints" / "last")[0] for name in found]
    assert all(t["optimizer.head.0.step"] == 2 for t in tensors)
    for name, value in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], value, rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.slow
def test_a_step_right_before_a_restart_of_the_clusters_is_settled_first(root, tmp_path, monkeypatch):
    times(monkeypatch, "total", lambda iteration: np.nan if iteration == 1 else 1)
    options = (*SMALL, "iterations=2", "train.on_nan=skip", "log_every=9", "probe.reinit=2", f"runs_dir={tmp_path}")
    kept = {}
    for where in (CPU, CUDA):
        run_on(monkeypatch, where, settings(root, *options, f"name={where.type}"))
        kept[where.type] = load_file(tmp_path / where.type / FOLDER / "iteration-0000002.safetensors")
    for name, value in kept["cpu"].items():  # weights before the restart: that of the clusters moves them far
        if name.startswith("model."):
            torch.testing.assert_close(kept["cuda"][name], value, rtol=1e-2, atol=1e-3, msg=name)
    after = read_checkpoint(tmp_path / "cuda" / "checkpoints" / "last")[0]["model.cluster.centroids"]
    assert (after - kept["cuda"]["model.cluster.centroids"]).abs().max() > 0.01


@pytest.mark.slow
def test_a_run_that_stops_one_step_later_has_kept_the_step_with_its_weights(root, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        times(patch, "total", lambda iteration: np.inf if iteration == 1 else 1)
        config = settings(root, *SMALL, "iterations=4", "log_every=9", f"runs_dir={tmp_path}", "name=a")
        with pytest.raises(ValueError, match=r"loss is -?inf at iteration 2: training diverged"):
            run_on(patch, CUDA, config)
    path = tmp_path / "a" / FOLDER / "iteration-0000002.json"
    kept = json.loads(path.read_text())
    again = replay(path)
    for name, value in kept["values"].items():
        if name != "loss":
            assert float(again[name]) == pytest.approx(float(value), rel=1e-4), name


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_optimisers_of_the_device(root, tmp_path, monkeypatch):
    options = (*SMALL, "probe.reinit=0", f"runs_dir={tmp_path}")
    run_on(monkeypatch, CUDA, settings(root, "iterations=4", "name=whole", *options))
    run_on(monkeypatch, CUDA, settings(root, "iterations=2", "name=half", *options))
    run_on(monkeypatch, CUDA, load_config([f"resume={tmp_path / 'half'}", "iterations=4"]))
    whole, half = (read_checkpoint(tmp_path / name / "checkpoints" / "last")[0] for name in ("whole", "half"))
    assert whole.keys() == half.keys() and all(torch.equal(half[name], value) for name, value in whole.items())


def test_on_a_cpu_the_optimiser_is_the_usual_one(root):
    trainer = Trainer(settings(root, "name=plain"))
    trainer.log.close()
    assert all(group["fused"] is None for o in trainer.optimizers.values() for group in o.param_groups)
