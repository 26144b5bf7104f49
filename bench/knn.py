"""Nearest neighbours of images, against blocks of rows and a full top-k: ``python bench/knn.py``.

    python bench/knn.py [--device cpu|cuda] [--json FILE] [--quick]

The usual way multiplies a sixteenth of the vectors with all of them and takes ``torch.topk`` of every row (as STEGO
finds its 30 neighbours). Ours computes every tile of the symmetric product once, for its rows and its columns, and
merges values above the k-th best so far. The similarities at both results are compared before anything is timed.

Peak memory is the growth of the resident set during the call, in a separate process, without the vectors. The last part
times two pairs of strips of a larger set from disk, as in the preparation, and extrapolates to all pairs.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
import torch
from torch import Tensor

from depthg.features.knn import STRIP, nearest_neighbours, unit_vectors
from depthg.features.knn_cache import NeighbourWriter
from depthg.runtime.progress import ProgressBar
from depthg.storage.cache import Build

CHANNELS, K = 384, 30
BLOCKS = 16  # number of row blocks in the usual way
GROUPS = 400  # clusters of the synthetic vectors


@dataclasses.dataclass(frozen=True)
class Row:
    vectors: int
    contender: str
    median_ms: float
    p20_ms: float
    p80_ms: float
    times_ours: float
    floor_ms: float  # multiply-adds over the measured peak rate
    peak_mb: float | None


def mean_features(count: int, seed: int = 0) -> Tensor:  # float32 [count, CHANNELS]
    """Synthetic mean features with groups and a common direction, like those of real features."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(GROUPS, CHANNELS, generator=generator)
    groups = torch.randint(GROUPS, (count,), generator=generator)
    return 0.8 * centres[groups] + torch.randn(count, CHANNELS, generator=generator) + 3


def usual(vectors: Tensor) -> Tensor:
    """Blocks of rows against all vectors with a full top-k; the first neighbour, the vector itself, is dropped."""
    rows = -(-len(vectors) // BLOCKS)
    found = [(block @ vectors.T).topk(K + 1, dim=1).indices[:, 1:] for block in vectors.split(rows)]
    return torch.cat(found)


CONTENDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "usual": usual,
    "depthg": lambda vectors: nearest_neighbours(vectors, K),
    "depthg, eager": lambda vectors: nearest_neighbours(vectors, K, impl="eager"),
}


def contenders(device: str) -> list[str]:
    """Names of the contenders; on a CPU also the eager version, which needs no compiler."""
    return [name for name in CONTENDERS if device == "cpu" or name != "depthg, eager"]


def check_equal(vectors: Tensor, names: list[str]) -> None:
    """Raises unless all results have the same similarities, up to rounding."""
    reference = None
    for name in names:
        found = CONTENDERS[name](vectors).to(vectors.device)
        similarity = torch.stack([vectors[i] @ vectors[found[i]].T for i in range(0, len(vectors), 97)])
        reference = similarity if reference is None else reference
        worst = float((similarity - reference).abs().max())
        if worst > 1e-5:
            raise AssertionError(f"{name} and {names[0]} differ by {worst:g} in similarity")


def peak(name: str, count: int, device: str, threads: int) -> float | None:
    """Peak memory of one contender in megabytes; to be called in a fresh process."""
    torch.set_num_threads(threads)
    vectors = unit_vectors(mean_features(count)).to(device)
    CONTENDERS[name](vectors[:256])  # loads libraries, starts thread pools
    give_back_memory()
    found = common.peak_memory(lambda: CONTENDERS[name](vectors), device)
    return None if found is None else found / 1e6


def give_back_memory() -> None:
    """Returns freed memory to the system, so that its reuse counts in the peak."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # not glibc
        pass


def measure(count: int, device: str, quick: bool) -> list[Row]:
    vectors = unit_vectors(mean_features(count)).to(device)
    names = contenders(device)
    check_equal(vectors, names)
    floor = 1e3 * count * count * CHANNELS / common.measure_matmul(device)  # half of the products
    calls = {name: (lambda call=CONTENDERS[name]: call(vectors)) for name in names}
    timings = common.time_all(calls, device=device, budget_s=2 if quick else 20, least=3, most=15)
    ours = timings["depthg"].median
    rows = []
    for name, t in timings.items():
        memory = in_process(peak, name, count, device, torch.get_num_threads())
        rows.append(Row(count, name, t.median, t.p20, t.p80, t.median / ours, floor, memory))
    return rows


def in_process(function: Callable, *arguments):
    """Runs a function in a fresh process and returns its result."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def large(count: int, strip: int, device: str, threads: int) -> dict[str, float]:
    """Seconds of a pair within one strip, of a pair of two strips and of a merge, and peak resident memory."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        means, rows = Path(folder) / "means.npy", 50_000
        file = np.lib.format.open_memmap(means, "w+", np.float32, (count, CHANNELS))
        for start in range(0, count, rows):
            file[start : start + rows] = mean_features(min(rows, count - start), start)
        file.flush()
        del file
        writer = NeighbourWriter(means, np.arange(count) // 5, K, device=device, strip=strip)
        seconds: dict[str, float] = {}

        def run() -> None:
            build = Build(Path(folder) / "neighbours", "{}", writer.arrays, writer.temporary)
            build.folder.parent.mkdir(exist_ok=True)
            build.open()
            with ProgressBar("two pairs of strips", writer._tiles(0) + writer._tiles(1)) as bar:
                for name, number in (("within", 0), ("between", 1)):
                    begin = time.perf_counter()
                    writer._pair(build, number, bar)
                    seconds[name] = time.perf_counter() - begin
            begin = time.perf_counter()
            writer._merge(build, 0)
            seconds["merge"] = time.perf_counter() - begin
            build.close()

        growth = common.peak_memory(run, device)
        strips = len(writer.strips)
        pairs = strips * (strips - 1) // 2
        total = strips * (seconds["within"] + seconds["merge"]) + pairs * seconds["between"]
        if growth is not None and device == "cpu":
            growth = common._resident("VmHWM")  # of the whole process
        return {
            "vectors": count, "strips": strips, **{f"{name}_s": value for name, value in seconds.items()},
            "total_s": total, "peak_process_mb": None if growth is None else growth / 1e6,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the tables and the machine to this file")
    parser.add_argument("--quick", action="store_true", help="fewer vectors, few repeats")
    args = parser.parse_args()
    print(common.machine_line(args.device))
    rows = measure(4_000 if args.quick else 20_000, args.device, args.quick)
    header = [field.name for field in dataclasses.fields(Row)]
    print(common.format_table(header, [dataclasses.astuple(row) for row in rows]))
    count, strip = (20_000, 4_096) if args.quick else (500_000, STRIP)
    whole = in_process(large, count, strip, args.device, torch.get_num_threads())
    print(f"\n{count:,} x {CHANNELS}, from two pairs of strips of {strip:,}:")
    print(common.format_table(list(whole), [list(whole.values())]))
    if args.json:
        common.write_json(args.json, device=args.device, rows=rows, large=whole)


if __name__ == "__main__":
    main()
