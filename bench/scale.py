"""Cost of training against images, points, batch size and processes: ``python bench/scale.py``.

    OMP_NUM_THREADS=1 python bench/scale.py [--json FILE] [--quick]

Times the trainer's step (``training.step``) with the settings of ``experiment=cocostuff27_vits8`` on synthetic features
of ViT-S/8 size: draws, reading, sampling, head, all terms, both probes on all cells, backward, Adam. One quantity
changes at a time; the others are 1,000 images, 121 points, batch 32, one process. Two processes, connected by gloo,
share one batch of 32; each has as many threads as the single process. Every case runs in separate processes; memory is
the peak of a step above the memory in use before.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import common
import numpy as np
import torch
from torch import Tensor

from depthg.config.composing import load_config
from depthg.features.knn import nearest_neighbours
from depthg.features.prepared import Prepared
from depthg.features.reading import Features
from depthg.runtime import processes
from depthg.training.step import Model, Step

CHANNELS, CLASSES, SIDE, WIDE_SIDE = 384, 27, 28, 40  # cells per side: 224 and 320 pixels
DISTINCT = 128  # distinct maps in memory; more images repeat them
IMAGES, POINTS, BATCHES, PROCESSES = (100, 1000, 10_000), (81, 121, 400, 1600), (8, 32, 64, 128), (1, 2)


@dataclasses.dataclass(frozen=True)
class Case:
    """One training; ``points`` per image on a grid of ``side`` x ``side`` cells."""

    axis: str
    images: int = 1000
    points: int = 121
    batch: int = 32
    processes: int = 1
    side: int = SIDE


@dataclasses.dataclass(frozen=True)
class Row:
    axis: str
    value: int
    step_ms: float
    ratio: float
    memory_mib: float | None
    neighbours_s: float | None
    features_mb: float


class RepeatedFeatures(Features):
    """``DISTINCT`` maps, repeated for any number of images."""

    def __init__(self, images: int, cells: int):
        super().__init__((images, cells, CHANNELS), torch.float16)
        self.maps = torch.randn(DISTINCT, cells, CHANNELS, generator=torch.Generator().manual_seed(0)).relu().half()

    def read(self, views: np.ndarray) -> Tensor:
        return self.maps[torch.from_numpy(np.asarray(views)) % DISTINCT]


def prepared(case: Case) -> Prepared:
    """The prepared inputs of a synthetic data set."""
    rng, cells = np.random.default_rng(0), case.side**2
    coarse = torch.from_numpy(rng.random((DISTINCT, 1, 4, 4), dtype=np.float32))
    depth = torch.nn.functional.interpolate(coarse, (case.side, case.side), mode="bicubic").clamp(0.05, 1)
    repeat = np.arange(case.images) % DISTINCT
    labels = rng.integers(CLASSES, size=(DISTINCT, 8 * case.side, 8 * case.side), dtype=np.int16)
    return Prepared(
        dataset=None, features_key="", transform=None, grid=(case.side, case.side),
        features=RepeatedFeatures(case.images, cells), labels=Repeated(labels, case.images),
        depth=depth.flatten(1).numpy().astype(np.float16)[repeat], depth_grids=None, normals=None,
        photos=np.arange(case.images),
        neighbours=rng.integers(case.images, size=(case.images, 30)), evaluation=None, evaluation_split=None,
        example=None,
    )  # fmt: skip


class Repeated:
    """An array with rows repeated for any number of images."""

    def __init__(self, rows: np.ndarray, images: int):
        self.rows, self.shape = rows, (images, *rows.shape[1:])

    def __getitem__(self, views: np.ndarray) -> np.ndarray:
        return self.rows[np.asarray(views) % len(self.rows)]


def training(case: Case) -> tuple[list[float], float | None]:
    """Milliseconds of some steps, and MiB of the first step's peak above the memory before it (None: unknown)."""
    side = round(case.points**0.5)
    config = load_config(
        [
            "experiment=cocostuff27_vits8", "data.root=.", "depth.source=dataset", f"batch_size={case.batch}",
            f"sampling.points={side}", "sampling.schedule=[]", "device=cpu",
        ]
    )  # fmt: skip
    torch.manual_seed(0)
    model = Model(CHANNELS, config.head.dim, config.head.dropout, CLASSES, CLASSES)
    step = Step(config, prepared(case), model, torch.device("cpu"))
    adam = torch.optim.Adam(model.parameters(), lr=5e-4)

    def once(iteration: int) -> float:
        begin = time.perf_counter()
        losses, _ = step.losses(iteration)
        adam.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        processes.average_gradients(list(model.parameters()))
        adam.step()
        return (time.perf_counter() - begin) * 1e3

    memory = common.peak_memory(lambda: once(0))
    heavy = case.points * case.batch > 20_000
    return [once(iteration) for iteration in range(1, 4 if heavy else 12)], None if memory is None else memory / 2**20


def in_new_processes(case: Case) -> tuple[list[float], float | None]:
    """``training`` in ``case.processes`` new processes, each with this process's number of threads."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.processes)]
    launcher = launcher if case.processes > 1 else []
    command = [sys.executable, *launcher, __file__, "--worker", json.dumps(dataclasses.asdict(case))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    samples, memory = json.loads(done.stdout.splitlines()[-1])
    return samples, memory


def worker(case: Case) -> None:
    processes.start(torch.device("cpu"))
    samples, memory = training(case)
    everyone = processes.collect(memory)
    if processes.is_main():
        print(json.dumps([samples, None if None in everyone else max(everyone)]))


def neighbours_seconds(images: int) -> float:
    """Seconds to find the 30 nearest neighbours of the mean features of this many images."""
    means = torch.randn(images, CHANNELS, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(means, dim=1)
    begin = time.perf_counter()
    nearest_neighbours(unit, 30)
    return time.perf_counter() - begin


def cases(quick: bool) -> list[Case]:
    if quick:
        return [Case("images", images=100, points=9, batch=8), Case("processes", 100, 9, 8, processes=2)]
    found = [Case("images", images=images) for images in IMAGES]
    found += [Case("points", points=points, side=WIDE_SIDE) for points in POINTS]
    found += [Case("batch", batch=batch) for batch in BATCHES]
    return found + [Case("processes", processes=number) for number in PROCESSES]


def measure(quick: bool) -> list[Row]:
    rows, first = [], {}
    for case in cases(quick):
        samples, memory = in_new_processes(case)
        median = common.summary(samples).median
        base = first.setdefault(case.axis, median)
        seconds = neighbours_seconds(case.images) if case.axis == "images" else None
        size = case.images * case.side**2 * CHANNELS * 2 / 1e6
        rows.append(Row(case.axis, getattr(case, case.axis), median, median / base, memory, seconds, size))
        print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the table and the machine to this file")
    parser.add_argument("--quick", action="store_true", help="two small cases")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(Case(**args.worker))
    print(common.machine_line())
    rows = measure(args.quick)
    print(common.format_table([f.name for f in dataclasses.fields(Row)], [dataclasses.astuple(r) for r in rows]))
    if args.json:
        common.write_json(args.json, device="cpu", rows=rows)


if __name__ == "__main__":
    main()
