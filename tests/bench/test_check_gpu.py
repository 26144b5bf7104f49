"""bench/gpu.sh and bench/check_gpu.py where there is no GPU: they say so, or try themselves in the interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "bench"
sys.path.insert(0, str(BENCH))
import check_gpu  # noqa: E402

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which bench/gpu.sh is for")
INTERPRETING = pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="Triton's interpreter is off")

WRONG = {
    "depthg_loss": "loss float32", "farthest_point_sample": "fps eager 2 40", "correlation_histogram": "histogram",
    "nt_xent_loss": "nt_xent", "sample_points": "sample_points",
}  # fmt: skip


def lines(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_without_a_gpu_nothing_is_checked_and_one_line_says_so(capsys):
    assert check_gpu.main([]) == 2
    assert capsys.readouterr().out.count("\n") == 1


def test_a_check_that_fails_is_named_and_the_next_one_runs(capsys):
    def fails():
        raise RuntimeError("broken")

    rows = check_gpu.run([("a", fails), ("b", lambda: {"figure": 1.0}), ("c", lambda: None)], 60)
    assert [row["ok"] for row in rows] == [False, True, True] and rows[1]["figure"] == 1.0
    assert rows[0]["error"] == "RuntimeError: broken" and rows[0]["at"].startswith("test_check_gpu.py:")
    assert [row["check"] for row in lines(capsys.readouterr().out)] == ["a", "b", "c"]
    assert "skipped" in check_gpu.run([("a", fails)], -1)[0]


@pytest.mark.slow
@INTERPRETING
def test_every_small_check_passes_in_the_interpreter(tmp_path, capsys):
    status = check_gpu.main(["--interpret", "--json", str(tmp_path / "check.json")])
    *rows, last = lines(capsys.readouterr().out)
    assert status == 0 and last == {"checks": len(rows), "failed": 0, "skipped": 0, "names": []}, last["names"]
    kept = json.loads((tmp_path / "check.json").read_text())
    assert kept["rows"] == rows and kept["small"] and kept["machine"]["torch"] == torch.__version__
    parts = {row["check"].split()[0] for row in rows}
    assert parts >= {"machine", "fps", "loss", "negatives", "same", "histogram", "nt_xent", "sample_points", "step"}
    assert parts >= {"arg-max", "up-sampled", "neighbours", "k-means"}


@INTERPRETING
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_results_are_found(monkeypatch, capsys, wrong):
    """Every comparison can fail: an implementation that is a little off, or gives other indices, does not pass."""
    from depthg import kernels

    plain = getattr(kernels, wrong)

    def off(*args, impl="auto", **options):
        found = plain(*args, impl=impl, **options)
        if impl != ("eager" if wrong == "farthest_point_sample" else "triton"):
            return found
        if wrong == "depthg_loss":
            return found._replace(total=found.total * 1.01)
        if wrong == "correlation_histogram":
            return found.roll(1)
        return found.flip(1) if wrong == "farthest_point_sample" else found * 1.02

    monkeypatch.setattr(kernels, wrong, off)
    assert check_gpu.main(["--interpret", "--only", WRONG[wrong]]) == 1
    assert lines(capsys.readouterr().out)[-1]["failed"] >= 1


@INTERPRETING
def test_layouts_and_repetition_are_found(monkeypatch, capsys):
    from depthg import kernels

    plain, calls = kernels.depthg_loss, []

    def drifting(*args, **options):
        calls.append(1)
        found = plain(*args, **options)
        return found._replace(total=found.total * (1 + 1e-6 * len(calls)))

    monkeypatch.setattr(kernels, "depthg_loss", drifting)
    for name in ("negatives of any layout", "same result twice"):
        assert check_gpu.main(["--interpret", "--only", name]) == 1
    capsys.readouterr()


def run_script(tmp_path, *arguments, **environment):
    variables = {**os.environ, "OUT": str(tmp_path / "out"), "PYTHON": sys.executable, **environment}
    command = ["bash", str(BENCH / "gpu.sh"), *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)


def test_the_script_says_in_one_line_that_there_is_no_gpu(tmp_path):
    found = run_script(tmp_path)
    assert found.returncode == 2 and found.stdout.count("\n") == 1 and "no CUDA device" in found.stdout


def test_the_script_ends_with_a_line_per_part_and_its_status(tmp_path):
    fake = tmp_path / "python"  # stands for a machine whose checks fail
    fake.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 1\necho "{}"\nexit 1\n')
    fake.chmod(0o755)
    found = run_script(tmp_path, "--interpret", PYTHON=str(fake))
    assert found.returncode == 1 and "check: FAILED (1)" in found.stdout.splitlines()[-1]
    assert (tmp_path / "out" / "gpu-summary.txt").read_text().splitlines()[-1] == found.stdout.splitlines()[-1]


def test_on_a_machine_with_a_gpu_every_part_runs_though_one_fails(tmp_path):
    """A python that writes down what it is asked for stands for the machine; compute-sanitizer runs what it gets."""
    fake, log = tmp_path / "python", tmp_path / "log"
    fake.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exit 0\n[ "$1" = - ] && exit 0\necho "$DEPTHG_BUILD $*" >> {log}\n'
        'case "$*" in *fps.py*|*DEPTHG*) exit 1;; esac\n[ "$DEPTHG_BUILD" != cuda ]\n'
    )
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text('#!/bin/sh\nwhile [ "$1" != "$PYTHON" ]; do shift; done\n"$@"\n')
    for file in (fake, sanitizer):
        file.chmod(0o755)
    found = run_script(tmp_path, PYTHON=str(fake), PATH=f"{tmp_path}:{os.environ['PATH']}")
    parts = [line.split(":")[0] for line in found.stdout.split("== summary\n")[1].splitlines()]
    expected = ["build", "build-cpu", "check", "loss-paper", "fps", "step", "loss-dense"]
    assert parts == expected + [f"{t}-{k}" for t in ("memcheck", "racecheck") for k in ("fps", "loss")]
    assert found.returncode == 1 and found.stdout.count("FAILED") == 2
    asked = log.read_text()
    assert "cuda -m pip install" in asked and "cpu -m pip install" in asked
    assert asked.count("--small") == 4 and asked.count("--device cuda") == 4


def test_nothing_starts_when_the_time_is_over(tmp_path):
    found = run_script(tmp_path, "--interpret", BUDGET_S="0")
    assert "check: skipped, 0 s are over" in found.stdout


@pytest.mark.slow
@INTERPRETING
def test_the_checks_of_a_device_run_on_a_pretended_one(monkeypatch):
    """A graph is the call itself, times are 1 ms, and bytes are those that the pretended device counts."""
    import gpu_checks
    import gpu_device_checks
    import gpu_step_checks
    from pretend_cuda import Device, pretend

    for name, value in (("PAPER", (2, 20, 24, 9)), ("DENSE", (2, 20, 24, 9)), ("LARGE", (6, 80, 8, 4)), ("VIEWS", 256)):
        monkeypatch.setattr(gpu_device_checks, name, value)
    monkeypatch.setattr(gpu_device_checks, "CLOUDS", ((2, 40, 9), (1, 20, 20), (2, 33, 5)))
    monkeypatch.setattr(gpu_device_checks, "capture", lambda call: SimpleNamespace(replay=call))
    monkeypatch.setattr(gpu_device_checks, "median_ms", lambda call: (call(), 1.0)[1])
    for name, value in {
        "synchronize": lambda: None, "empty_cache": lambda: None, "memory_allocated": lambda: 0,
        "reset_peak_memory_stats": lambda: Device.current.measure(), "set_sync_debug_mode": watch,
        "max_memory_allocated": lambda: Device.current.peak,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    with pretend():
        large, small = (gpu_checks.Place("cuda:0", small) for small in (False, True))
        parts = (gpu_device_checks, large), (gpu_step_checks, small)
        checks = [check for part, place in parts for check in part.checks(place)]
        rows = check_gpu.run(checks, 500)
    assert {row["check"]: row["error"] for row in rows if not row.get("ok")} == {}
    kinds = {row["check"].split()[0] for row in rows}
    assert kinds >= {"graph", "memory", "nt_xent", "time", "step", "arg-max"}


def watch(mode):
    """Stands for ``torch.cuda.set_sync_debug_mode``: nothing may have waited since it was set to "error"."""
    from pretend_cuda import Device

    seen = Device.current.seen
    if mode == "error":
        seen.clear()
    assert not seen
