"""Worker processes for the dense CRF, which computes on one core and holds the interpreter's lock meanwhile."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from depthg.crf import CrfSettings, check_available
from depthg.crf_worker import receive, send

PACKAGE_PARENT = Path(__file__).resolve().parent.parent
# One thread each. The filters allocate and free tens of megabytes per iteration; by default glibc returns these to the
# system every time, and a third of the time went into faulting the pages in again.
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}


class CrfPool:
    """Processes that refine images side by side; use it in a ``with`` block, which ends them.

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
        command = [sys.executable, "-m", "depthg.crf_worker", json.dumps(asdict(settings))]
        self._idle: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
        self._processes = []
        for _ in range(self.workers):
            # `python -m` looks into the current folder first; there, only this package can be found.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PACKAGE_PARENT,
                env={**os.environ, **ENVIRONMENT},
            )  # fmt: skip
            self._processes.append(process)
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(self.workers)

    def __enter__(self) -> CrfPool:
        return self

    def __exit__(self, *error) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
        self._threads.shutdown()  # the threads see their processes end
        for process in self._processes:
            process.stdin, unsent = None, process.stdin
            process.communicate()
            _close(unsent)

    def submit(self, image: np.ndarray, maps: Mapping[str, np.ndarray]) -> Future:
        """Asks for ``crf_ids(image, maps)``; the future's result is that of :func:`depthg.crf.crf_ids`."""
        return self._threads.submit(self._ask, {"image": image, **maps})

    def _ask(self, job: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        process = self._idle.get()
        try:
            try:
                send(process.stdin, job)
                answer = receive(process.stdout)
            except OSError:
                answer = None
            if answer is None:
                height, width = job["image"].shape[:2]
                raise RuntimeError(
                    f"a CRF process ended (exit code {process.wait()}) at an image of {height} x {width} pixels; if "
                    "memory ran out, use fewer processes (evaluate --workers) or smaller photos"
                )
        finally:
            self._idle.put(process)
        if "error" in answer:
            raise ValueError(f"the CRF failed: {answer['error'].tobytes().decode()}")
        return answer


def _close(stream) -> None:
    try:
        stream.close()
    except OSError:  # a message that was cut off
        pass


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
