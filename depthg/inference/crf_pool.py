"""Worker processes for the dense CRF, which runs on one core and holds Python's global interpreter lock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict

import numpy as np

from depthg.inference.crf import CrfSettings, check_available
from depthg.runtime.worker_pool import ONE_THREAD, Arrays, WorkerEnded, WorkerPool, array_text, available_cores

# The filters allocate and free tens of megabytes per iteration. By default glibc returns them to the system each time,
# and page faults took a third of the run time.
ENVIRONMENT = {
    **ONE_THREAD,
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}


class CrfPool:
    """Processes that refine images in parallel; use it in a ``with`` block, which ends them.

    Args:
        workers: number of processes; None: one per available core.
        settings: kernels and iterations.

    Raises:
        ImportError: pydensecrf2 is missing.
        ValueError: ``workers`` is less than 1.
    """

    def __init__(self, workers: int | None = None, settings: CrfSettings = CrfSettings()):  # noqa: B008 (frozen)
        check_available()
        self.workers = available_cores() if workers is None else workers
        if self.workers < 1:
            raise ValueError(f"workers={workers}: the CRF needs at least 1 process")
        self._pool = WorkerPool(
            ["depthg.inference.crf_worker", json.dumps(asdict(settings))], self.workers, ENVIRONMENT
        )

    def __enter__(self) -> CrfPool:
        return self

    def __exit__(self, *error) -> None:
        self._pool.__exit__(*error)

    def submit(self, image: np.ndarray, maps: Mapping[str, np.ndarray]) -> Future:
        """Submits ``crf_ids(image, maps)``; returns a future of the result of :func:`depthg.inference.crf.crf_ids`."""
        return self._pool.submit(self._ask, {"image": image, **maps})

    def _ask(self, job: Arrays) -> Arrays:
        try:
            answer = self._pool.ask(job)
        except WorkerEnded as error:
            height, width = job["image"].shape[:2]
            raise RuntimeError(
                f"a CRF process ended (exit code {error.args[0]}) at an image of {height} x {width} pixels; if memory "
                "ran out, use fewer processes (evaluate --workers) or smaller photos"
            ) from None
        if "error" in answer:
            raise ValueError(f"the CRF failed: {array_text(answer['type'])}: {array_text(answer['error'])}")
        return answer
