"""A process that refines images with the dense CRF: jobs come in on stdin, ids go out on stdout (see crf_pool.py).

A message is its length in 8 bytes and arrays by name in the safetensors format; nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import IO

import numpy as np
from safetensors.numpy import load, save

from depthg.crf import CrfSettings, crf_ids


def send(stream: IO[bytes], arrays: dict[str, np.ndarray]) -> None:
    payload = save({name: np.ascontiguousarray(value) for name, value in arrays.items()})
    stream.write(len(payload).to_bytes(8, "little"))
    stream.write(payload)
    stream.flush()


def receive(stream: IO[bytes]) -> dict[str, np.ndarray] | None:
    """The next message; None when the other side has gone."""
    size = stream.read(8)
    payload = stream.read(int.from_bytes(size, "little")) if len(size) == 8 else b""
    return load(payload) if len(size) == 8 and len(payload) == int.from_bytes(size, "little") else None


def main() -> None:
    """Answers images from standard input until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits; it ends this one
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up among the answers
    settings = CrfSettings(**json.loads(sys.argv[1]))
    while (job := receive(sys.stdin.buffer)) is not None:
        try:
            answer = crf_ids(job.pop("image"), job, settings)
        except Exception as error:  # for the process that asked
            answer = {"error": np.frombuffer(f"{type(error).__name__}: {error}".encode(), np.uint8)}
        send(answers, answer)


if __name__ == "__main__":
    main()
