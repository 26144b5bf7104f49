"""Farthest point sampling against installable packages: ``python bench/fps.py [--device cpu|cuda] [--json FILE]``.

All contenders get the same clouds, are warmed up, run in turns, and are compared with the eager reference before they
are timed. `ratio` is the median over that of the first row ("depthg", all threads). `floor` is the time of the
brute-force arithmetic on registers alone (CPU: measured vector rate; GPU: half the measured matrix rate), or of its
memory traffic at the measured bandwidth if that is longer. `x floor` is the median over the floor; pruning can go below
1.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
import numpy as np
import torch

from depthg.kernels import farthest_point_sample, farthest_point_sample_depth, unproject
from depthg.kernels._extension import HAS_CPU, native
from depthg.kernels.checks import HAS_TRITON

SHAPES = [
    (64, 784, 121),
    (256, 784, 121),
    (64, 1600, 144),
    (8, 12544, 1024),
    (1, 100_000, 2048),
    (1, 1_000_000, 1024),
]
QUICK = SHAPES[:1] + SHAPES[3:4]
SLOW_UPDATES = 5e7  # above this number of distance updates, --quick skips the loops in Python
SLOW_MS = 1500  # a contender with a slower first call is not repeated
OPTIONAL = ("fpsample", "torch_quickfps", "torch_fps", "torch_cluster", "pytorch3d")

Sampler = Callable[[], torch.Tensor]  # -> [B, k] indices


@dataclasses.dataclass(frozen=True)
class Row:
    """Milliseconds; ``equal``: the indices equal those of the eager reference."""

    shape: str
    implementation: str
    median: float
    p20: float
    p80: float
    runs: int
    ratio: float
    equal: bool
    floor: float
    times_floor: float


def numpy_loop(points: np.ndarray, k: int) -> torch.Tensor:  # [B, N, 3] -> [B, k]
    """One cloud after the other, one pick after the other, as the authors' training code samples."""
    picks = np.zeros((len(points), k), dtype=np.int64)
    for cloud, row in zip(points, picks, strict=True):
        nearest = np.full(len(cloud), np.inf, dtype=np.float32)
        for j in range(1, k):
            nearest = np.minimum(nearest, ((cloud - cloud[row[j - 1]]) ** 2).sum(1))
            row[j] = nearest.argmax()
    return torch.from_numpy(picks)


def with_threads(threads: int, call: Sampler) -> Sampler:
    def run() -> torch.Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return call()
        finally:
            torch.set_num_threads(before)

    return run


def optional(name: str):
    """Imports a module; None if it is not installed or does not load."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        if not isinstance(error, ModuleNotFoundError):
            print(f"{name} is installed but does not load: {error}")
        return None


def fpsample_calls(points: torch.Tensor, k: int) -> dict[str, Sampler]:
    fpsample = optional("fpsample")
    if fpsample is None or points.device.type != "cpu":
        return {}
    clouds = points.numpy()
    height = 3 if points.shape[1] < 4096 else 7  # as its documentation recommends for small and large clouds

    def per_cloud(sample: Callable, **options: int) -> Sampler:
        def run() -> torch.Tensor:
            picks = [sample(cloud, k, start_idx=0, **options).astype(np.int64) for cloud in clouds]
            return torch.from_numpy(np.stack(picks))

        return run

    return {
        "fpsample": per_cloud(fpsample.fps_sampling),
        "fpsample npdu": per_cloud(fpsample.fps_npdu_sampling),
        "fpsample k-d tree": per_cloud(fpsample.bucket_fps_kdtree_sampling),
        "fpsample k-d line": per_cloud(fpsample.bucket_fps_kdline_sampling, h=height),
    }


def package_calls(points: torch.Tensor, k: int) -> dict[str, Sampler]:
    """Calls of all installed packages that support this device."""
    batch, n, _ = points.shape
    calls = fpsample_calls(points, k)
    if quickfps := optional("torch_quickfps"):
        calls["torch_quickfps"] = lambda: quickfps.sample_idx(points, k, start_idx=0)
        calls["torch_quickfps baseline"] = lambda: quickfps.sample_idx_baseline(points, k, start_idx=0)
    if torch_fps := optional("torch_fps"):
        valid = torch.ones(batch, n, dtype=torch.bool, device=points.device)
        first = torch.zeros(batch, dtype=torch.int64, device=points.device)
        calls["torch_fps"] = lambda: torch_fps.farthest_point_sampling(points, valid, k, start_idx=first)
    if cluster := optional("torch_cluster"):
        flat = points.reshape(batch * n, -1)
        ptr = [b * n for b in range(batch + 1)]
        offset = torch.tensor(ptr[:-1], device=points.device)[:, None]
        calls["torch_cluster"] = lambda: (
            cluster.fps(flat, ratio=k / n, random_start=False, ptr=ptr).view(batch, -1)[:, :k] - offset
        )
    if optional("pytorch3d"):
        ops = importlib.import_module("pytorch3d.ops")
        calls["pytorch3d"] = lambda: ops.sample_farthest_points(points, K=k)[1]
    return calls


def our_calls(points: torch.Tensor, k: int) -> dict[str, Sampler]:
    calls = {"depthg": lambda: farthest_point_sample(points, k)}
    if points.device.type == "cpu":
        if torch.get_num_threads() > 1:
            calls["depthg, 1 thread"] = with_threads(1, calls["depthg"])
        calls["numpy loop"] = lambda: numpy_loop(points.numpy(), k)
    elif HAS_TRITON:
        calls["depthg, Triton"] = lambda: farthest_point_sample(points, k, impl="triton")
    calls["eager"] = lambda: farthest_point_sample(points, k, impl="eager")
    return calls


def depth_calls(batch: int, n: int, k: int, device: str) -> dict[str, Sampler]:
    """Sampling of synthetic depth maps with n cells: from the maps, and from their unprojected points."""
    side = round(n**0.5)
    if side * side != n:
        return {}
    row, column = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    step = (torch.arange(batch)[:, None, None] % 5 / 5 + 0.2) < column  # a depth edge at different places in the maps
    depth = (1 + row + step.float() + 0.01 * torch.rand(batch, side, side)).to(device)
    points = unproject(depth, 90.0)
    return {
        "depthg, depth maps": lambda: farthest_point_sample_depth(depth, k),
        "depthg, their points": lambda: farthest_point_sample(points, k),
    }


def vector_rate(threads: int) -> float:
    """Floating-point operations per second of all threads together, on registers; 0 without the compiled module."""
    if not HAS_CPU:
        return 0.0
    rounds = 2_000_000

    def run(_: int) -> int:
        return native.cpu_vector_operations(rounds)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, range(threads)))
        rates = []
        for _ in range(5):
            begin = time.perf_counter()
            operations = sum(pool.map(run, range(threads)))
            rates.append(operations / (time.perf_counter() - begin))
    return max(rates)


def floor_ms(shape: tuple[int, int, int], operations: float, bandwidth: float) -> float:
    """Floor of brute force: 10 operations for each of N points and k - 1 picks, or reading the points once.

    The operations are 3 subtractions, 3 products, 2 sums, a minimum and a maximum.
    """
    batch, n, k = shape
    arithmetic = 10 * batch * n * (k - 1) / operations if operations else 0.0
    return 1e3 * max(arithmetic, batch * n * 12 / bandwidth)


def measure(shape: tuple[int, int, int], device: str, budget_s: float, floor: float, quick: bool) -> list[Row]:
    batch, n, k = shape
    points = torch.rand(batch, n, 3, generator=torch.Generator().manual_seed(0)).to(device)
    calls = our_calls(points, k) | package_calls(points, k)
    left_out = {"numpy loop", "eager"} if quick and batch * n * k > SLOW_UPDATES and device == "cpu" else set()
    once: dict[str, common.Timing] = {}
    if device == "cuda":
        calls["eager"]()  # loads the kernels first
    begin = time.perf_counter()
    reference = calls["eager"]().cpu()
    once["eager"] = common.summary([(time.perf_counter() - begin) * 1e3])
    equal = {"eager": True}
    for name, call in list(calls.items()):
        if name == "eager" or name in left_out:
            continue
        try:
            if device == "cuda":
                call().cpu()  # compiles or loads kernels
            begin = time.perf_counter()
            equal[name] = torch.equal(call().cpu().long(), reference)
            once[name] = common.summary([(time.perf_counter() - begin) * 1e3])
        except (RuntimeError, ValueError, TypeError) as error:
            print(f"{name} fails at {shape}: {str(error).splitlines()[0]}")
    maps = depth_calls(batch, n, k, device)
    if maps:
        same = torch.equal(maps["depthg, depth maps"](), maps["depthg, their points"]())
        equal |= dict.fromkeys(maps, same)
    slow = {name for name, timing in once.items() if timing.median > SLOW_MS} - left_out
    timed = {name: call for name, call in (calls | maps).items() if name in equal and name not in slow | left_out}
    timings = common.time_all(timed, device=device, budget_s=budget_s)
    timings |= {name: once[name] for name in sorted(slow)}
    text = f"({batch}, {n}, {k})"
    return [
        Row(
            shape=text,
            implementation=name,
            **dataclasses.asdict(timing),
            ratio=timing.median / timings["depthg"].median,
            equal=equal[name],
            floor=floor,
            times_floor=timing.median / floor,
        )
        for name, timing in timings.items()
    ]


def draw(path: Path, device: str, budget_s: float) -> None:
    """Draws milliseconds against N, for one cloud and 121 picks."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    sizes = [256, 784, 3136, 12544, 50176, 200_704]
    curves: dict[str, list[tuple[int, float]]] = {}
    for n in sizes:
        for row in measure((1, n, 121), device, budget_s, 1.0, quick=True):
            curves.setdefault(row.implementation, []).append((n, row.median))
    figure, axes = plt.subplots(figsize=(8, 5))
    axes.set_prop_cycle(color=plt.get_cmap("tab20").colors)
    for name, curve in curves.items():
        ours = name.startswith("depthg")
        axes.plot(*zip(*curve, strict=True), marker="o", label=name, linewidth=2.5 if ours else 1.2)
    axes.set(xscale="log", yscale="log", xlabel="points N", ylabel="milliseconds", title="One cloud, 121 picks")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the table, the machine and the floors to this file")
    parser.add_argument("--plot", type=Path, help="draw time against N into this file")
    parser.add_argument("--quick", action="store_true", help="two shapes, fewer repeats, no slow loops")
    arguments = parser.parse_args()
    device, budget_s = arguments.device, 0.2 if arguments.quick else 0.6
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; use --device cpu")

    print(common.machine_line(device))
    missing = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not installed, so not compared: {', '.join(missing)}")
    bandwidth = common.measure_bandwidth(device)
    cores = min(torch.get_num_threads(), os.cpu_count() or 1)
    operations = vector_rate(cores) if device == "cpu" else common.measure_matmul(device) / 2
    print(f"measured: {operations / 1e9:.0f} G vector operations/s, {bandwidth / 1e9:.1f} GB/s")
    rows: list[Row] = []
    for shape in QUICK if arguments.quick else SHAPES:
        rows += measure(shape, device, budget_s, floor_ms(shape, operations, bandwidth), arguments.quick)
        fields = [field.name for field in dataclasses.fields(Row) if field.name != "shape"]
        table = [[getattr(row, field) for field in fields] for row in rows if row.shape == rows[-1].shape]
        print(f"\n{rows[-1].shape}  B, N, k; milliseconds")
        print(common.format_table([field.replace("times_", "x ") for field in fields], table), flush=True)
    if arguments.json:
        rates = {"vector_operations_per_s": operations, "bytes_per_s": bandwidth}
        versions = {name: version_of(name) for name in OPTIONAL}
        common.write_json(arguments.json, device=device, rows=rows, measured=rates, packages=versions)
    if arguments.plot:
        draw(arguments.plot, device, budget_s)


def version_of(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
