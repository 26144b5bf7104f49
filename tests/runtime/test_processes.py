"""Two processes train as one does; what only several processes can get wrong.

By default one launch is tested; the others are slow.
"""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from miniature import arguments, settings, write_camvid
from PIL import Image

from depthg.config.composing import load_config
from depthg.model.checkpoints import read_checkpoint
from depthg.model.run_folder import read_log
from depthg.runtime import processes
from depthg.runtime.device import pick_device
from depthg.runtime.processes import BatchShare, precision
from depthg.train import train

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
CASES = {
    "paper": ["batch_size=32"],  # 2 processes x 16 against 1 x 32
    "released": [
        "batch_size=8", "mode=released", "last_batch=drop", "loss.shifts=auto", "val.every=10", "checkpoint.rule=best",
    ],
    "crops": [
        "batch_size=8", "data.crop=five", "loss.depth.pair=crop", "loss.depth.shift_mean=true", "probe.cells=5",
        "sampling.start=random",
    ],
    "random": ["batch_size=8", "depth.source=none", "probe.cells=0", "features.cache=off", "iterations=8"],
    "bilinear": ["batch_size=8", "sampling=random", "sampling.read=bilinear", "iterations=8"],
    "uncentred": ["batch_size=8", "loss.center=false", "loss.scope=process", "iterations=8"],
    "halves": ["batch_size=8", "loss.scope=process", "iterations=8"],
    "bfloat16": ["batch_size=8", "precision=bfloat16", "iterations=8"],
    "bfloat16-released": ["batch_size=8", "mode=released", "last_batch=drop", "precision=bfloat16", "iterations=8"],
}  # fmt: skip
DIVERGE = """from depthg import train
from depthg.runtime import processes
from depthg.training import step
original = step.Step.losses
def losses(self, iteration):
    losses, logged = original(self, iteration)
    factor = float("nan") if iteration == 2 and processes.rank() == 1 else 1
    changed = losses["cluster"] * factor
    return {**losses, "cluster": changed}, {**logged, "loss.cluster": changed.detach()}
step.Step.losses = losses
train.main()
"""
SLOW = pytest.mark.slow
EQUAL = [name for name in CASES if name not in ("uncentred", "halves", "bfloat16", "bfloat16-released")]


def lines(root: Path, name: str, runs: str) -> list[str]:
    """Command line of a case; photos are scored, so runs differ by their folder alone."""
    more = [f"runs_dir={root.parent / runs}", f"name={name}", "log_every=1", "val.panels=0"]
    return arguments(root, *more, *CASES[name])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """34 photos, of which the first half, which falls to the first process, has no label."""
    root = write_camvid(tmp_path_factory.mktemp("processes") / "camvid", 34, 5)
    for number in range(17):
        Image.new("L", (64, 64), 11).save(root / "trainannot" / f"{number:03d}.png")
    return root


@pytest.fixture(scope="module")
def two(root):
    """All cases trained by two processes; the folder of their runs, and what was printed."""
    begun, resumed = lines(root, "bilinear", "resumed"), f"resume={root.parent / 'resumed' / 'bilinear'}"
    return trained(root, "two", *CASES, more=([*begun, "iterations=4"], [resumed, "iterations=8"]))


def trained(root: Path, runs: str, *names: str, more: tuple[list[str], ...] = ()) -> tuple[Path, str]:
    """Cases, and further command lines, trained in one launch of two processes."""
    file = root.parent / f"{runs}.json"
    file.write_text(json.dumps([*(lines(root, name, runs) for name in names), *more]))
    done = launch(str(Path(__file__).parents[1] / "together.py"), str(file))
    assert done.returncode == 0, done.stderr
    return root.parent / runs, done.stdout


def launch(*command: str, prefix: list[str] | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "140"}
    whole = [sys.executable, "-m", *(TORCHRUN if prefix is None else prefix), *command]
    return subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=600)


def losses(run: Path) -> list[dict]:
    return [line for line in read_log(run / "metrics.jsonl") if "loss" in line]


def differ(a: Path, b: Path, fitted: bool = True) -> tuple[float, float]:
    """Largest difference of a loss in any iteration, and of a weight at the end.

    Without ``fitted`` the linear probe that is fitted after training is left out: it follows from the other weights by
    an iteration that stops at a small gradient, so rounding of the codes moves it by more than the weights.
    """
    of_losses = [
        abs(x[key] - y[key]) for x, y in zip(losses(a), losses(b), strict=True) for key in x if "sec" not in key
    ]
    weights = [read_checkpoint(run / "checkpoints" / "last")[0] for run in (a, b)]
    assert weights[0].keys() == weights[1].keys()
    of_weights = [
        (weights[0][key] - weights[1][key]).abs().max().item() for key in weights[0] if fitted or "fitted" not in key
    ]
    return max(of_losses), max(of_weights)


def test_two_processes_train_as_one_does(root):
    """One case, for the default run."""
    check_equal(root, trained(root, "pair", "random")[0], "random", "alone")


@SLOW
@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_give_the_losses_and_weights_of_one(root, two, name):
    check_equal(root, two[0], name, "one")


def check_equal(root: Path, runs: Path, name: str, alone: str) -> None:
    one = train(load_config(lines(root, name, alone)))
    run = runs / name
    found = json.loads((run / "metrics.json").read_text())
    of_losses, of_weights = differ(root.parent / alone / name, run, fitted=False)
    assert len(losses(run)) == (8 if "iterations=8" in CASES[name] else 20)
    assert of_losses < 1e-5 and of_weights < 1e-5
    for key in one:
        if key.endswith(("accuracy", "miou")):
            assert found[key] == pytest.approx(one[key], abs=0.02), key
    assert (one["environment"]["processes"], found["environment"]["processes"]) == ("1", "2")


@SLOW
def test_two_processes_resume(root, two):
    assert differ(two[0] / "bilinear", root.parent / "resumed" / "bilinear") == (0, 0)


@SLOW
def test_scope_process_knows_only_its_own_part(root, two):
    names = ("uncentred", "halves")
    for name in names:
        train(load_config(lines(root, name, "one")))
    one, own = ({name: losses(run / name)[0] for name in names} for run in (root.parent / "one", two[0]))
    assert own["uncentred"]["loss.self"] == pytest.approx(one["uncentred"]["loss.self"], abs=1e-6)
    assert abs(own["uncentred"]["loss.negative"] - one["uncentred"]["loss.negative"]) > 1e-4, "other negatives"
    assert abs(own["halves"]["loss.self"] - one["halves"]["loss.self"]) > 1e-6, "another mean of F"


@SLOW
def test_a_loss_that_is_not_finite_in_one_process_stops_both_and_is_kept(root, tmp_path):
    script = tmp_path / "diverge.py"
    script.write_text(DIVERGE)
    command = [sys.executable, "-m", *TORCHRUN, str(script), *arguments(root, "name=nan", "batch_size=4")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode and "loss.cluster is nan at iteration 3: training diverged" in done.stderr, done.stderr
    kept = json.loads((root.parent / "runs/nan/nonfinite/iteration-0000003.json").read_text())
    assert kept["processes"] == 2 and kept["term"] == "loss.cluster" and kept["values"]["loss.cluster"] == "nan"


@SLOW
@pytest.mark.parametrize("name", ["bfloat16", "bfloat16-released"])
def test_bfloat16_is_near_float32(root, two, name):
    train(load_config([*lines(root, name, "one"), "precision=float32"]))
    one, half = losses(root.parent / "one" / name), losses(two[0] / name)
    difference = max(abs(x["loss"] - y["loss"]) for x, y in zip(one, half, strict=True))
    assert 1e-6 < difference < 0.02


@SLOW
def test_one_process_prints_and_writes(two):
    runs, printed = two
    assert len(re.findall("protocol:", printed)) == len(CASES) + 2
    assert sorted(path.name for path in runs.iterdir()) == sorted(CASES)
    assert not list(runs.rglob(".*")), "no lock and no unfinished file is left"


def test_shares_of_a_batch_that_does_not_divide(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(ValueError, match="batch_size=5 is not divisible by 2 processes; use batch_size=4 or 6, or"):
        processes.share_of(5, "batch_size")


@SLOW
def test_a_batch_that_does_not_divide_is_an_error(root, tmp_path):
    alone = "loss.scope=process leaves 1 image to each of 2 processes"
    for batch, message in (
        (["batch_size=5"], "batch_size=5 is not divisible by 2"),
        (["batch_size=2", "loss.scope=process"], alone),
    ):
        done = launch("-m", "depthg.train", *arguments(root, f"runs_dir={tmp_path}", *batch))
        assert done.returncode != 0
        for process in ("", " (process 1)"):
            assert f"error{process}: {message}" in done.stderr
        assert not list(tmp_path.iterdir())


@SLOW
def test_a_signal_stops_all_at_one_iteration_and_resuming_needs_no_second_process(root, tmp_path):
    command = arguments(root, f"runs_dir={tmp_path}", "name=cut", "batch_size=8", "iterations=100000", "log_every=1")
    process, log = begin(tmp_path / "cut", *command, "checkpoint.every=0")
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=60)[0]
    assert printed.replace("\n", "").count(f"resume={tmp_path / 'cut'}") == 1
    iteration = read_checkpoint(tmp_path / "cut" / "checkpoints" / "last")[1]["iteration"]
    assert iteration == read_log(log)[-1]["iteration"] > 5
    train(load_config([f"resume={tmp_path / 'cut'}", f"iterations={iteration + 3}"]))
    whole = train(settings(root, f"runs_dir={tmp_path}", "name=whole", "batch_size=8", f"iterations={iteration + 3}"))
    assert whole["environment"]["processes"] == "1"
    assert differ_weights(tmp_path / "whole", tmp_path / "cut") < 1e-4


def begin(run: Path, *command: str) -> tuple[subprocess.Popen, Path]:
    """Two processes that have trained for some iterations, and their log."""
    process = subprocess.Popen(
        [sys.executable, "-m", *TORCHRUN, "-m", "depthg.train", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = run / "metrics.jsonl"
    while process.poll() is None and not (log.is_file() and len(log.read_text().splitlines()) > 5):
        time.sleep(0.1)
    return process, log


@SLOW
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the process in /proc")
def test_a_killed_process_ends_all_in_one_line_and_the_run_goes_on(root, tmp_path):
    run = tmp_path / "killed"
    command = arguments(root, f"runs_dir={tmp_path}", "name=killed", "batch_size=8", "iterations=100000", "log_every=1")
    process, log = begin(run, *command, "checkpoint.every=2")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {b"\0LOCAL_RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes(): int(child) for child in children}
    os.kill(ranks[True], signal.SIGKILL)
    _, printed = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "error: the connection to the other processes is lost: one of them has ended" in printed
    assert read_checkpoint(run / "checkpoints" / "last")[1]["iteration"] >= 4
    train(load_config([f"resume={run}", f"iterations={len(log.read_text().splitlines()) + 3}"]))
    assert (run / "metrics.json").is_file()


def differ_weights(a: Path, b: Path) -> float:
    one, other = (read_checkpoint(run / "checkpoints" / "last")[0] for run in (a, b))
    return max((one[key] - other[key]).abs().max().item() for key in one if key.startswith("model"))


@SLOW
@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed")
def test_accelerate_launch(root, two, tmp_path):
    prefix = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    prefix += ["--dynamo_backend", "no", "--mixed_precision", "bf16", "--main_process_port", "0"]
    command = [*lines(root, "bfloat16", "accelerate"), "precision=auto", "device=cpu"]
    done = launch("-m", "depthg.train", *command, prefix=prefix)
    assert done.returncode == 0, done.stderr
    assert differ(two[0] / "bfloat16", root.parent / "accelerate" / "bfloat16") == (0, 0)


@SLOW
def test_evaluation_split_over_processes_is_that_of_one(two, tmp_path):
    command = ["depthg.evaluate", str(two[0] / "paper"), "--all", "--no-crf", "device=cpu", "--out"]
    for name, prefix in (("one", []), ("two", None)):
        done = launch(*(["-m"] if prefix is None else []), *command, str(tmp_path / name), prefix=prefix)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("written:") == 4
    for path in (tmp_path / "one").glob("*.json"):
        one, other = (json.loads((tmp_path / name / path.name).read_text()) for name in ("one", "two"))
        assert one.keys() == other.keys() and all(one[key] == other[key] for key in one if key != "seconds")


@SLOW
def test_two_machines(root, two):
    """Two launchers that meet at an address, as on two machines with one process each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = ["--master-addr", "localhost", "--master-port", str(free.getsockname()[1])]
    command = ["-m", "depthg.train", *lines(root, "bilinear", "machines")]
    ranks = [["torch.distributed.run", "--nnodes", "2", "--node-rank", rank, *meeting] for rank in "01"]
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(lambda prefix: launch(*command, prefix=prefix), ranks):
            assert done.returncode == 0, done.stderr
    assert differ(two[0] / "bilinear", root.parent / "machines" / "bilinear") == (0, 0)


def test_precision_of_the_launcher(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert [precision(name) for name in ("auto", "float32", "bfloat16")] == ["float32", "float32", "bfloat16"]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert [precision(name) for name in ("auto", "float32")] == ["bfloat16", "float32"]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="mixed_precision fp16 is not possible; use bf16"):
        precision("auto")


def test_several_processes_without_a_meeting_point(run_module):
    done = run_module("depthg.train", WORLD_SIZE="2", RANK="0", device="cpu")
    assert done.returncode == 1
    assert done.stderr.startswith("error: WORLD_SIZE=2 is set without MASTER_ADDR, MASTER_PORT: start")


@pytest.mark.parametrize("size", [1, 3, 7])
def test_parts_of_shares_cover_them_once(size):
    batch = torch.arange(12)
    for share in (BatchShare(0, 4, 12), BatchShare(4, 8, 12), BatchShare(8, 12, 12)):
        parts = [
            batch[first : first + size][share.within(first, min(first + size, 12)).rows] for first in range(0, 12, size)
        ]
        assert torch.equal(torch.cat(parts), batch[share.rows])


def test_every_process_of_a_machine_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda"), "one process"
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 1)
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device=cuda:0 is one GPU, but there are several processes"):
        pick_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"process 3 of this machine has no GPU \(2 here\); start at most 2"):
        pick_device("auto")
