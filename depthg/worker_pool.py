"""Worker processes that answer one message at a time: jobs go out on their stdin, answers come in on their stdout.

They are fresh interpreters, not forks: whoever starts them may hold threads, locks and a GPU, and its main module is
not run again. They end with the process that started them, whose end closes their stdin.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors.numpy import load, save

PACKAGE_PARENT = Path(__file__).resolve().parent.parent
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
Arrays = dict[str, np.ndarray]


def send(stream: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """A message: its length in 8 bytes, and arrays by name in the safetensors format."""
    payload = save({name: np.ascontiguousarray(value) for name, value in arrays.items()})
    stream.write(len(payload).to_bytes(8, "little"))
    stream.write(payload)
    stream.flush()


def receive(stream: IO[bytes]) -> Arrays | None:
    """The next message; None when the other side has gone."""
    size = stream.read(8)
    payload = stream.read(int.from_bytes(size, "little")) if len(size) == 8 else b""
    return load(payload) if len(size) == 8 and len(payload) == int.from_bytes(size, "little") else None


def text_array(text: str) -> np.ndarray:
    """Text as a message holds it."""
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


def array_text(array: np.ndarray) -> str:
    """The inverse of :func:`text_array`."""
    return array.tobytes().decode("utf-8", "surrogatepass")


def serve(answer: Callable[[Arrays], Arrays]) -> None:
    """What a worker process does: ``answer(message)`` for every message, until stdin closes.

    An exception becomes a message with its text in ``error`` and its type in ``type``.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up among the answers
    while (job := receive(sys.stdin.buffer)) is not None:
        try:
            found = answer(job)
        except Exception as error:  # for the process that asked
            found = {"error": text_array(str(error)), "type": text_array(type(error).__name__)}
        try:
            send(answers, found)
        except BrokenPipeError:  # nobody waits for it any more
            os._exit(0)


@dataclass
class Worker:
    """One process, and what it has been told once (see :meth:`WorkerPool.ask`)."""

    process: subprocess.Popen
    told: set[int] = field(default_factory=set)


class WorkerPool:
    """Processes that run ``python -m MODULE ARGUMENTS``; use it in a ``with`` block, which ends them.

    Args:
        command: module, and its arguments.
        workers: number of processes.
        environment: variables of theirs beside those of this process.
    """

    def __init__(self, command: Sequence[str], workers: int, environment: Mapping[str, str]):
        self.workers = workers
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self.processes: list[subprocess.Popen] = []
        self._ended = weakref.finalize(self, _end, self.processes)  # also when the interpreter ends
        with _blocked(signal.SIGINT, signal.SIGTERM):  # in the processes for good: this one decides, and ends them
            for _ in range(workers):
                # `python -m` looks into the current folder first; there, only this package can be found.
                process = subprocess.Popen(
                    [sys.executable, "-m", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    cwd=PACKAGE_PARENT, env={**os.environ, **environment},
                )  # fmt: skip
                self.processes.append(process)
                self._idle.put(Worker(process))
        self.threads = ThreadPoolExecutor(workers, "worker")

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        for process in self.processes:
            process.kill()
        self.threads.shutdown()  # the threads see their processes end
        self._ended()

    def submit(self, function: Callable, *arguments) -> Future:
        """Runs ``function(*arguments)``, which may :meth:`ask`, in a thread; there is one for each process."""
        return self.threads.submit(function, *arguments)

    def ask(self, job: Mapping[str, np.ndarray], first: tuple[int, Mapping[str, np.ndarray]] | None = None) -> Arrays:
        """Sends a message to an idle process and returns the answer.

        Args:
            job: the message.
            first: a number and a message that every process has to have had before, once.

        Raises:
            WorkerEnded: the process is gone.
        """
        worker = self._idle.get()
        try:
            answer = None
            try:
                if first is not None and first[0] not in worker.told:
                    send(worker.process.stdin, first[1])
                    answer = receive(worker.process.stdout)
                    if answer is None or "error" in answer:
                        return self._checked(answer, worker)
                    worker.told.add(first[0])
                send(worker.process.stdin, job)
                answer = receive(worker.process.stdout)
            except OSError:
                answer = None
            return self._checked(answer, worker)
        finally:
            self._idle.put(worker)

    def _checked(self, answer: Arrays | None, worker: Worker) -> Arrays:
        if answer is None:
            raise WorkerEnded(worker.process.wait())
        return answer


class WorkerEnded(RuntimeError):
    """A worker process is gone; ``args[0]`` is its exit code."""


@contextmanager
def _blocked(*signals: signal.Signals) -> Iterator[None]:
    """Signals wait until the end of the block; processes that are started in it never see them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        unsent: Any = process.stdin
        process.stdin = None
        process.communicate()
        with suppress(OSError):  # a message that was cut off
            unsent.close()


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
