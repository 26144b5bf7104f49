"""Worker processes that answer one message at a time: jobs go to their stdin, answers come from another pipe.

They are fresh interpreters, not forks: the parent process may hold threads, locks and a GPU, and its main module is
not run again. They have the same import path as the parent. When the parent ends, their stdin closes and they end.
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
from typing import IO

import numpy as np
from safetensors.numpy import load, save

# `python -m` would import from the current folder first; these look where the process that started them does.
START = """import os, sys
sys.path[:] = sys.argv.pop(1).split(os.pathsep)
del sys.argv[0]
import runpy
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)"""
ANSWERS = "DEPTHG_ANSWERS"  # variable with the number of the pipe; stdout is left to whoever prints
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
Arrays = dict[str, np.ndarray]


def send(stream: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a message: its length in 8 bytes, then named arrays in the safetensors format."""
    payload = save({name: np.ascontiguousarray(value) for name, value in arrays.items()})
    stream.write(len(payload).to_bytes(8, "little"))
    stream.write(payload)
    stream.flush()


def receive(stream: IO[bytes]) -> Arrays | None:
    """Reads the next message; None if the other side closed the pipe."""
    size = stream.read(8)
    payload = stream.read(int.from_bytes(size, "little")) if len(size) == 8 else b""
    return load(payload) if len(size) == 8 and len(payload) == int.from_bytes(size, "little") else None


def text_array(text: str) -> np.ndarray:
    """Text as an array for a message."""
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


def array_text(array: np.ndarray) -> str:
    """The inverse of :func:`text_array`."""
    return array.tobytes().decode("utf-8", "surrogatepass")


def serve(answer: Callable[[Arrays], Arrays]) -> None:
    """Main loop of a worker process: ``answer(message)`` for every message, until stdin closes.

    An exception becomes a message with its text in ``error`` and its type in ``type``.
    """
    answers = os.fdopen(int(os.environ[ANSWERS]), "wb")
    while (job := receive(sys.stdin.buffer)) is not None:
        try:
            found = answer(job)
        except Exception as error:  # for the process that asked
            found = {"error": text_array(str(error)), "type": text_array(type(error).__name__)}
        try:
            send(answers, found)
        except BrokenPipeError:  # the parent is gone
            os._exit(0)


@dataclass
class Worker:
    """One process, the pipe of its answers, and the setup messages that it has had (see :meth:`WorkerPool.ask`)."""

    process: subprocess.Popen
    answers: IO[bytes]
    told: set[int] = field(default_factory=set)


class WorkerPool:
    """Processes that run ``python -m MODULE ARGUMENTS``; use it in a ``with`` block, which ends them.

    Args:
        command: module, and its arguments.
        workers: number of processes.
        environment: additional environment variables.
    """

    def __init__(self, command: Sequence[str], workers: int, environment: Mapping[str, str]):
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self.workers: list[Worker] = []
        self._ended = weakref.finalize(self, _end, self.workers)  # also when the interpreter ends
        with _blocked(signal.SIGINT, signal.SIGTERM):  # in the processes for good: this one decides, and ends them
            for _ in range(workers):
                self.workers.append(_start(command, environment))
                self._idle.put(self.workers[-1])
        self.threads = ThreadPoolExecutor(workers, "worker")

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        for worker in self.workers:
            worker.process.kill()
        self.threads.shutdown()  # the threads see their processes end
        self._ended()

    def submit(self, function: Callable, *arguments) -> Future:
        """Runs ``function(*arguments)``, which may :meth:`ask`, in a thread; there is one for each process."""
        return self.threads.submit(function, *arguments)

    def ask(self, job: Mapping[str, np.ndarray], first: tuple[int, Mapping[str, np.ndarray]] | None = None) -> Arrays:
        """Sends a message to an idle process and returns the answer.

        Args:
            job: the message.
            first: a number and a setup message, which every process gets once, before its first job with that number.

        Raises:
            WorkerEnded: the process ended.
        """
        worker = self._idle.get()
        try:
            answer = None
            try:
                if first is not None and first[0] not in worker.told:
                    send(worker.process.stdin, first[1])
                    answer = receive(worker.answers)
                    if answer is None or "error" in answer:
                        return self._checked(answer, worker)
                    worker.told.add(first[0])
                send(worker.process.stdin, job)
                answer = receive(worker.answers)
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
    """A worker process ended; ``args[0]`` is its exit code."""


@contextmanager
def _blocked(*signals: signal.Signals) -> Iterator[None]:
    """Blocks signals in this thread during the block; processes started there keep them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(command: Sequence[str], environment: Mapping[str, str]) -> Worker:
    places = os.pathsep.join(os.path.abspath(place) for place in sys.path)
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", START, places, *command], stdin=subprocess.PIPE, pass_fds=[writing],
            env={**os.environ, **environment, ANSWERS: str(writing)},
        )  # fmt: skip
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return Worker(process, os.fdopen(reading, "rb"))


def _end(workers: list[Worker]) -> None:
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.wait()
        for pipe in (worker.process.stdin, worker.answers):
            with suppress(OSError):  # a message that was cut off
                pipe.close()


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
