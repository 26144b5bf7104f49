"""TensorBoard event files, written immediately in the calling thread: a full disk raises an error there."""

from __future__ import annotations

import itertools
import os
import platform
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

VERSION = "brain.Event:2"  # what TensorBoard expects in the first record
_numbers = itertools.count()


class EventFile:
    """A new ``events.out.tfevents.*`` file in a folder; TensorBoard reads all of them in the order of their names.

    Args:
        folder: made if need be.
        first_step: steps from here on in other files of the folder are hidden; a resumed run writes them again.

    Raises:
        OSError: the file cannot be written (also raised by ``write``).
    """

    def __init__(self, folder: Path, first_step: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}.{os.getpid()}.{next(_numbers)}"
        self.path = folder / name
        self.file = open(self.path, "ab", buffering=0)
        self.records = RecordWriter(self.file)
        self._add(Event(file_version=VERSION))
        self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: dict[str, float]) -> None:
        """One point for every curve; names with a slash are grouped."""
        entries = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(Event(step=step, summary=Summary(value=entries)))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self.records.write(event.SerializeToString())

    def close(self) -> None:
        self.file.close()
