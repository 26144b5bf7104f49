"""Prefetching: rows of memory-mapped files, or results of a thread pool."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import torch

PAGE = 4096  # bytes


def read_ahead(array: np.ndarray | None, rows: np.ndarray) -> None:
    """Loads some rows of a memory-mapped file into memory; does nothing for arrays in memory.

    All rows are announced to the system first; then one byte of every page is read, which maps it.
    """
    if not isinstance(array, np.memmap):
        return
    size, rows = array.nbytes // max(1, len(array)), np.unique(rows).tolist()
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError), open(array.filename, "rb", buffering=0) as file:  # it may be deleted by now
            for row in rows:
                os.posix_fadvise(file.fileno(), array.offset + row * size, size, os.POSIX_FADV_WILLNEED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        flat = torch.from_numpy(np.frombuffer(array, np.uint8))
    for row in rows:  # numpy would hold the interpreter's lock
        flat[row * size : (row + 1) * size : PAGE].sum()


class ReadAhead:
    """A thread that runs one read at a time; requests while it is busy are skipped."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._running: Future | None = None

    def start(self, read: Callable[[], None]) -> None:
        """Runs ``read()`` in the thread and returns at once; its error is raised by the next call."""
        if self._running is not None:
            if not self._running.done():
                return
            self._running.result()
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._running = self._pool.submit(read)

    def wait(self) -> None:
        """Waits until the thread is idle."""
        if self._running is not None:
            self._running.result()


def ahead(pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: Iterable, depth: int) -> Iterator:
    """`map(function, items)` in a pool, at most `depth` results ahead of the consumer."""
    futures: deque[Future] = deque()
    try:
        for item in items:
            futures.append(pool.submit(function, item))
            if len(futures) >= depth:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        for future in futures:
            future.cancel()
