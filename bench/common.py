"""Shared code of the benchmarks: timing, floors measured in the same run, machine description, tables and JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
BLOCK = 5  # consecutive timed calls of one contender
REST_S = 0.01  # pause before them: OpenMP threads spin after a call and would occupy the next contender's cores


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds over ``runs`` calls."""

    median: float
    p20: float
    p80: float
    runs: int


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def time_once(call: Callable[[], object], device: str) -> float:
    """Milliseconds of one call: CUDA events on a GPU, the wall clock on a CPU."""
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)
    begin_s = time.perf_counter()
    call()
    return (time.perf_counter() - begin_s) * 1e3


def summary(samples: Sequence[float]) -> Timing:
    if len(samples) == 1:
        return Timing(samples[0], samples[0], samples[0], 1)
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return Timing(statistics.median(samples), deciles[1], deciles[7], len(samples))


def time_all(
    calls: dict[str, Callable[[], object]],
    *,
    device: str = "cpu",
    budget_s: float = 1.0,
    least: int = 3,
    most: int = 200,
) -> dict[str, Timing]:
    """Times all calls after a warm-up, alternating between them, so that a slower machine slows all of them.

    Each call runs for about ``budget_s`` seconds, but at least ``least`` and at most ``most`` times.
    """
    rounds = {}
    for name, call in calls.items():
        call()  # compiles, grows thread pools, faults memory in
        synchronize(device)
        rounds[name] = min(max(int(budget_s * 1e3 / max(time_once(call, device), 1e-3)), least), most)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    blocks = -(-max(rounds.values(), default=0) // BLOCK)
    for block in range(blocks):
        for name, call in calls.items():
            # Calls with few rounds are spread over the whole time, so that all run under the same conditions.
            due = -(-rounds[name] * (block + 1) // blocks) - len(samples[name])
            if due > 0 and rounds[name] >= blocks:
                time.sleep(REST_S)
                call()  # refills the caches
                synchronize(device)
            samples[name] += [time_once(call, device) for _ in range(due)]
    return {name: summary(values) for name, values in samples.items()}


def peak_memory(call: Callable[[], object], device: str = "cpu") -> int | None:
    """Bytes by which the peak exceeds the memory in use before the call; None if the system does not report it.

    On a CPU this is the resident set of the process (Linux). Pages that are already mapped and reused do not count, so
    call it in a fresh process, before anything of that size has run.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _resident("VmRSS")
        call()
        return max(_resident("VmHWM") - before, 0)
    except OSError:
        return None


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure_bandwidth(device: str = "cpu", mebibytes: int = 256) -> float:
    """Bytes per second of a large copy, counting reads and writes."""
    source = torch.ones(mebibytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = time_all({"copy": lambda: target.copy_(source)}, device=device, budget_s=0.5).pop("copy").p20
    return 2 * source.numel() / (best * 1e-3)


def measure_matmul(device: str = "cpu", dtype: torch.dtype = torch.float32, size: int | None = None) -> float:
    """Floating-point operations per second of a square matrix product (a multiply-add is two), without TF32."""
    n = size or (8192 if device == "cuda" else 1024)
    a, b = (torch.rand(n, n, device=device).to(dtype) for _ in range(2))
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        best = time_all({"matmul": lambda: a @ b}, device=device, budget_s=0.5).pop("matmul").p20
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    return 2 * n**3 / (best * 1e-3)


def device_name(device: str = "cpu") -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def scheduling() -> str:
    """The scheduling class of this process; a real-time class keeps other processes off its cores while it runs."""
    if not hasattr(os, "sched_getscheduler"):
        return "unknown"
    names = {os.SCHED_OTHER: "normal", os.SCHED_FIFO: "real-time fifo", os.SCHED_RR: "real-time round robin"}
    return names.get(os.sched_getscheduler(0), "other")


def machine(device: str = "cpu") -> dict[str, str | int]:
    """Device, threads, versions and commit, which every result needs."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "none"
    sha = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "scheduling": scheduling(),
        "torch": torch.__version__,
        "triton": triton_version,
        "python": platform.python_version(),
        "git": sha.stdout.strip() or "unknown",
    }


def machine_line(device: str = "cpu") -> str:
    return ", ".join(f"{key} {value}" if key != "device" else str(value) for key, value in machine(device).items())


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns: text to the left, numbers to the right."""
    cells = [[format_cell(value) for value in row] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(header, *cells, strict=True)]
    numeric = [all(isinstance(row[i], (int, float, type(None))) for row in rows) for i in range(len(header))]

    def line(texts):
        return "  ".join(
            t.rjust(w) if n else t.ljust(w) for t, w, n in zip(texts, widths, numeric, strict=True)
        ).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *map(line, cells)])


def format_cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def write_json(
    path: str | Path, *, device: str, rows: Sequence[object], compact: bool = False, **extra: object
) -> None:
    """Writes the machine, ``extra`` values (floors, arguments), and one object per row (dataclass or dict).

    ``compact``: one line per row.
    """
    plain = [dataclasses.asdict(row) if dataclasses.is_dataclass(row) else row for row in rows]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine(device), **extra, "rows": [] if compact else plain}, indent=1)
    if compact and plain:
        text = text.removesuffix("[]\n}") + "[\n" + ",\n".join("  " + json.dumps(row) for row in plain) + "\n ]\n}"
    path.write_text(text + "\n")


def results_path(benchmark: str, device: str = "cpu") -> Path:
    """Path of the committed results of this device."""
    name = "".join(c if c.isalnum() else "-" for c in device_name(device).lower())
    return ROOT / "bench" / "results" / f"{benchmark}-{'-'.join(filter(None, name.split('-')))}.json"
