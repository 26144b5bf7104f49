"""Times several ways to run the dense CRF of both probes: ``python bench/crf.py [--images DIR] [--json FILE]``.

Images are rendered scenes (or photos of a folder, centre crop) with random unary terms. The numbers of classes are
those of COCO-Stuff (27), CamVid (11) and the demo (8). Times are milliseconds per image for both probes, from maps at
feature resolution to ids at full size. Ids are compared for equality before anything is timed. `floor` is one worker's
time divided by the number of cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from contextlib import ExitStack
from pathlib import Path

import common
import numpy as np

from depthg.data import Views
from depthg.data.folder import Folder
from depthg.data.scenes import SceneDataset
from depthg.inference.crf import crf_ids
from depthg.inference.crf_pool import CrfPool
from depthg.runtime.worker_pool import available_cores

SIDE, CELL = 320, 8
CLASSES = (27, 11, 8)
PER_PROBE, SHARED = "one process, a lattice per probe", "one process, one lattice"


@dataclasses.dataclass(frozen=True)
class Row:
    """Milliseconds per image; ``speedup``: over the first row; ``equal``: ids equal those of the first row."""

    classes: int
    implementation: str
    median: float
    p20: float
    p80: float
    runs: int
    speedup: float
    equal: bool
    floor: float
    times_floor: float


def load_images(folder: Path | None, count: int) -> list[np.ndarray]:  # uint8 [SIDE, SIDE, 3]
    with tempfile.TemporaryDirectory() as cache:
        if folder is None:
            split = SceneDataset(cache, n_train=1, n_val=count, size=SIDE).val
        else:
            split = Folder(folder, n_val=count).val
        views = Views(split, (SIDE, SIDE))
        return [views.load(number, ("image",)).image.permute(1, 2, 0).numpy() for number in range(len(views))]


def random_maps(n: int, seed: int) -> dict[str, np.ndarray]:
    """Maps of a linear probe and of a cluster probe with n classes."""
    rng, grid = np.random.default_rng(seed), (SIDE // CELL, SIDE // CELL)
    centroids = rng.normal(size=(n, 70)).astype(np.float32)
    return {
        "linear.scores": 2 * rng.normal(size=(n, *grid)).astype(np.float32),
        "cluster.codes": rng.normal(size=(70, *grid)).astype(np.float32),
        "cluster.centroids": centroids / np.linalg.norm(centroids, axis=1, keepdims=True),
    }


def per_probe(image: np.ndarray, maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The usual way: each probe separately."""
    found = {}
    for probe in ("linear", "cluster"):
        found |= crf_ids(image, {key: value for key, value in maps.items() if key.startswith(probe)})
    return found


def in_pool(pool: CrfPool, jobs: list) -> list[dict[str, np.ndarray]]:
    return [future.result() for future in [pool.submit(*job) for job in jobs]]


def measure(classes: int, images: list[np.ndarray], budget_s: float) -> list[Row]:
    jobs = [(image, random_maps(classes, seed)) for seed, image in enumerate(images)]
    cores = available_cores()
    with ExitStack() as stack:
        one, many = (stack.enter_context(CrfPool(workers)) for workers in (1, cores))
        calls = {
            PER_PROBE: lambda: [per_probe(*job) for job in jobs],
            SHARED: lambda: [crf_ids(*job) for job in jobs],
            "1 worker process, one lattice": lambda: in_pool(one, jobs),
            f"{cores} worker processes, one lattice": lambda: in_pool(many, jobs),
        }
        found = {name: call() for name, call in calls.items()}
        equal = {
            name: all(np.array_equal(a[key], b[key]) for a, b in zip(ids, found[PER_PROBE], strict=True) for key in b)
            for name, ids in found.items()
        }
        timings = common.time_all(calls, budget_s=budget_s)
    floor = timings["1 worker process, one lattice"].median / len(jobs) / cores
    rows = []
    for name, timing in timings.items():
        median, p20, p80 = (value / len(jobs) for value in (timing.median, timing.p20, timing.p80))
        rows.append(
            Row(
                classes, name, median, p20, p80, timing.runs, timings[PER_PROBE].median / timing.median, equal[name],
                floor, median / floor,
            )
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, help="folder of photos instead of rendered scenes")
    parser.add_argument("--json", type=Path, help="write the table and the machine to this file")
    parser.add_argument("--quick", action="store_true", help="fewest classes only, fewer repeats")
    arguments = parser.parse_args()
    print(common.machine_line())
    images = load_images(arguments.images, 4)
    rows: list[Row] = []
    for classes in CLASSES[-1:] if arguments.quick else CLASSES:
        rows += measure(classes, images, 2.0 if arguments.quick else 10.0)
        fields = [field.name for field in dataclasses.fields(Row) if field.name != "classes"]
        table = [[getattr(row, field) for field in fields] for row in rows if row.classes == classes]
        print(f"\n{classes} classes, {SIDE} x {SIDE}; milliseconds per image, both probes")
        print(common.format_table([field.replace("times_", "x ") for field in fields], table), flush=True)
    if arguments.json:
        source = "photos" if arguments.images else "rendered scenes"
        common.write_json(arguments.json, device="cpu", rows=rows, images=len(images), source=source)


if __name__ == "__main__":
    main()
