"""Times several ways to run the dense CRF of both probes: ``python bench/crf.py [--images DIR] [--json FILE]``.

Images are rendered scenes (or photos of a folder, centre crop) with random unary terms. The numbers of classes are
those of COCO-Stuff (27), CamVid (11) and the demo (8). Times are milliseconds per image for both probes, from maps at
feature resolution to ids at full size.

Ids are compared before anything is timed: those of all ways must agree at 99.95% of the pixels (the unary terms of
processes with one thread round differently), and the marginals of `dense_crf` within 2e-3 with those of pydensecrf2, a
package for developers; else nothing is timed. `floor`: for pydensecrf2 one worker's time divided by the number of
cores; for `dense_crf` the bytes that splatting, blurring, slicing and the softmax read and write, over the bandwidth of
a large copy in this run. What stays in a cache from one of these to the next can make it faster than that.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from contextlib import ExitStack
from pathlib import Path

import common
import numpy as np
from pydensecrf_pool import CrfPool, crf_ids, refine

from depthg.data import Views
from depthg.data.folder import Folder
from depthg.data.scenes import SceneDataset
from depthg.inference.crf import LEAST_PROBABILITY, crf_ids_of_images, probe_log_probabilities
from depthg.inference.crf import crf_ids as own_ids
from depthg.kernels import CrfSettings, dense_crf
from depthg.kernels._extension import native
from depthg.runtime.worker_pool import available_cores

SIDE, CELL = 320, 8
CLASSES = (27, 11, 8)
PER_PROBE, SHARED = "one process, a lattice per probe", "one process, one lattice"
OURS, BATCH, ALONE = "dense_crf, image by image", "dense_crf, a batch", "dense_crf without what makes its unary terms"
LEAST_EQUAL, MOST_APART = 0.9995, 2e-3  # of ids and of marginals, against pydensecrf2


@dataclasses.dataclass(frozen=True)
class Row:
    """Milliseconds per image; ``speedup``: over the first row; ``equal``: share of ids equal to the first row's."""

    classes: int
    implementation: str
    median: float
    p20: float
    p80: float
    runs: int
    speedup: float
    equal: float
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


def unary_terms(image: np.ndarray, maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    terms, least = probe_log_probabilities(maps, image.shape[:2]), np.float32(np.log(LEAST_PROBABILITY))
    return {name: -np.maximum(term, least) for name, term in terms.items()}


def check(found: dict[str, list[dict[str, np.ndarray]]], jobs: list) -> dict[str, float]:
    """Share of ids that equal those of the first row; ends the run where it or the marginals are not close enough."""
    equal = {
        name: float(
            np.mean([(a[key] == b[key]).mean() for a, b in zip(ids, found[PER_PROBE], strict=True) for key in b])
        )
        for name, ids in found.items()
    }
    apart = 0.0
    for image, maps in jobs:
        terms = list(unary_terms(image, maps).values())
        pairs = zip(dense_crf(terms, image), refine(image, terms), strict=True)
        apart = max(apart, *(float(abs(a - b).max()) for a, b in pairs))
    print(f"largest difference of marginals from pydensecrf2: {apart:.1e}")
    wrong = [name for name, share in equal.items() if share < LEAST_EQUAL]
    if wrong or apart > MOST_APART:
        raise SystemExit(
            f"not timed: ids of {wrong} or marginals ({apart:.1e}) differ from those of pydensecrf2: {equal}"
        )
    return equal


def floor_ms(jobs: list, bandwidth: float) -> float:
    """Milliseconds of the traffic: each step reads and writes every number of its lattice and channels once."""
    total = 0
    for image, maps in jobs:
        settings, pixels = CrfSettings(), image.shape[0] * image.shape[1]
        channels = sum(len(x) for x in unary_terms(image, maps).values())
        blocks = -(-channels // 16)
        per_iteration = 4 * pixels * channels * 3  # softmax: messages and unary in, marginals out
        for corners, kernel in (
            (3, (settings.gaussian_weight, settings.gaussian_sxy, 0.0)),
            (6, (settings.bilateral_weight, settings.bilateral_sxy, settings.bilateral_srgb)),
        ):
            vertices, chained = native.dense_crf_counts(*image.shape[:2], image.ctypes.data, kernel)
            splat = 8 * corners * pixels * blocks + 4 * channels * (pixels + vertices)
            blur = 4 * chained * blocks + 2 * 4 * channels * chained
            per_iteration += splat + blur + 8 * corners * pixels * blocks + 4 * channels * (vertices + pixels)
        total += settings.iterations * per_iteration
    return total / len(jobs) / bandwidth * 1e3


def measure(classes: int, images: list[np.ndarray], budget_s: float, bandwidth: float) -> list[Row]:
    jobs = [(image, random_maps(classes, seed)) for seed, image in enumerate(images)]
    cores = available_cores()
    with ExitStack() as stack:
        one, many = (stack.enter_context(CrfPool(workers)) for workers in (1, cores))
        calls = {
            PER_PROBE: lambda: [per_probe(*job) for job in jobs],
            SHARED: lambda: [crf_ids(*job) for job in jobs],
            "1 worker process, one lattice": lambda: in_pool(one, jobs),
            f"{cores} worker processes, one lattice": lambda: in_pool(many, jobs),
            OURS: lambda: [own_ids(*job) for job in jobs],
            BATCH: lambda: crf_ids_of_images(jobs),
        }
        equal = check({name: call() for name, call in calls.items()}, jobs)
        terms = [list(unary_terms(*job).values()) for job in jobs]
        calls[ALONE] = lambda: [dense_crf(term, job[0], ids=True) for term, job in zip(terms, jobs, strict=True)]
        equal[ALONE] = equal[OURS]
        timings = common.time_all(calls, budget_s=budget_s)
    process = timings["1 worker process, one lattice"].median / len(jobs) / cores
    traffic = floor_ms(jobs, bandwidth)
    rows = []
    for name, timing in timings.items():
        median, p20, p80 = (value / len(jobs) for value in (timing.median, timing.p20, timing.p80))
        floor = traffic if name in (OURS, BATCH, ALONE) else process
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
    bandwidth = common.measure_bandwidth()
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s")
    rows: list[Row] = []
    for classes in CLASSES[-1:] if arguments.quick else CLASSES:
        rows += measure(classes, images, 2.0 if arguments.quick else 10.0, bandwidth)
        fields = [field.name for field in dataclasses.fields(Row) if field.name != "classes"]
        table = [[getattr(row, field) for field in fields] for row in rows if row.classes == classes]
        print(f"\n{classes} classes, {SIDE} x {SIDE}; milliseconds per image, both probes")
        print(common.format_table([field.replace("times_", "x ") for field in fields], table), flush=True)
    if arguments.json:
        source = "photos" if arguments.images else "rendered scenes"
        common.write_json(
            arguments.json, device="cpu", rows=rows, images=len(images), source=source, bandwidth=bandwidth
        )


if __name__ == "__main__":
    main()
