"""Caches on disk: whole or absent, built shard by shard by any number of processes, resumed after a kill.

A cache is a folder ``<root>/<kind>/<key>`` of ``.npy`` arrays; the key is a hash of the settings that the arrays depend
on, which lie beside them in ``manifest.json``. It grows in ``.<key>.partial`` and gets its name when it is whole. Work
is divided into shards. A process locks a shard, writes its rows, flushes them to disk, and marks the shard as done; the
system drops the lock of a killed process, so nothing goes stale. Processes that build the same cache at the same time
take different shards, on one machine or on several that share the folder. Arrays are written with ordinary writes and
never through a memory map, where a full disk would be a crash.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from rich.filesize import decimal

from depthg.runtime.progress import ProgressBar
from depthg.storage.array_file import array_bytes, create_array, flush, write_rows

try:
    import fcntl
except ImportError:  # no such locks on this system: one process at a time
    fcntl = None

CACHE_VERSION = 2
POLL_S = 0.1  # between two looks at shards that other processes work on
MOST_ROWS = 512  # of a shard: small rows may take long to compute
RESERVE = 64 * 2**20  # bytes of the disk that stay free
MARKS, DONE = "shards", b"done\n"
DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOLCK,
    errno.ENOSYS,
}  # fmt: skip

Arrays = Mapping[str, tuple[tuple[int, ...], np.dtype | type]]  # name -> shape, dtype


def cache_key(settings: dict) -> str:
    """Name of the cache that belongs to exactly these settings (any JSON value)."""
    return hashlib.sha256(_settings_text(settings).encode()).hexdigest()[:20]


def _settings_text(settings: dict) -> str:
    return json.dumps({"version": CACHE_VERSION, **settings}, sort_keys=True, indent=1)


def cached(
    root: Path,
    kind: str,
    settings: dict,
    build: Callable[[Build], None],
    arrays: Arrays,
    temporary: Arrays | None = None,
) -> Path:
    """The folder of arrays that belong to exactly these settings; ``build`` fills them where they are missing.

    Args:
        root: where caches lie.
        kind: what is cached, a folder name.
        settings: everything that the content depends on, as a JSON value.
        build: called with the :class:`Build`; after a kill it is called again and finds the finished shards marked.
        arrays: shape and dtype of the arrays that are kept, as ``NAME.npy``.
        temporary: further arrays that are needed only while building.

    Raises:
        OSError: the arrays do not fit on the disk, or cannot be written; finished shards stay.
    """
    folder = root / kind / cache_key(settings)
    while not is_whole(folder):
        check_room(root, missing_bytes(folder, arrays, temporary))
        construction = Build(folder, _settings_text(settings), arrays, temporary or {})
        try:
            if construction.open():
                build(construction)
                construction.finish()
        except OSError as error:
            if is_whole(folder):  # another process finished it first
                break
            here = str(error.filename).startswith(str(root)) if error.filename else error.errno in DISK_ERRORS
            if not here:
                raise  # about the data or the network
            hint = "free some room or set cache.dir to another folder; finished shards stay and are not made again"
            reason = error.strerror or str(error)
            raise _error(error.errno, f"cannot write the {kind} cache in {root}: {reason}; {hint}") from error
        finally:
            construction.close()
    return folder


def _error(number: int | None, text: str) -> OSError:
    """An OSError with this number and text; the number is not part of the text."""
    error = OSError(text)
    error.errno = number
    return error


def is_whole(folder: Path) -> bool:
    """True if every file in the manifest exists with its full size."""
    try:
        sizes = json.loads((folder / "manifest.json").read_text())["bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def folder_bytes(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk (holes of unfinished files are not counted)."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # another process may just have finished the cache
                total += os.stat(os.path.join(path, name)).st_blocks * 512
    return total


def missing_bytes(folder: Path, arrays: Arrays, temporary: Arrays | None = None) -> int:
    """Bytes still to be written before the cache ``folder`` is complete."""
    if is_whole(folder) or (_partial(folder) / MARKS / "finish-0-1").exists():  # all is written
        return 0
    sizes = [array_bytes(*array) for array in (*arrays.values(), *(temporary or {}).values())]
    return max(0, sum(sizes) - folder_bytes(_partial(folder)))


def check_room(folder: Path, needed: int, note: str = "") -> None:
    """Raises OSError (ENOSPC) if ``needed`` more bytes and a reserve do not fit on the disk."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed and needed + RESERVE > free:
        what = f"another {decimal(needed)}{note and f' ({note})'} and {decimal(RESERVE)} to spare"
        text = f"{folder} has {decimal(free)} of room, but needs {what}; set cache.dir to a folder on a larger disk"
        raise _error(errno.ENOSPC, text)


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


class Build:
    """One cache under construction.

    Attributes:
        folder: the unfinished cache; :meth:`file` adds small further files.
    """

    def __init__(self, target: Path, settings: str, arrays: Arrays, temporary: Arrays):
        self.target, self.settings = target, settings
        self.folder = _partial(target)
        self.arrays, self.temporary = dict(arrays), dict(temporary)
        self._marks = self.folder / MARKS
        self._held: set[int] = set()  # file descriptors of locked marks

    def open(self) -> bool:
        """Makes the folder and the empty arrays; False if another process has finished the cache."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(exist_ok=True)
        if is_whole(self.target):  # finished by another process since the caller looked: leave nothing behind
            shutil.rmtree(self.folder, ignore_errors=True)
            return False
        self._marks.mkdir(exist_ok=True)
        for _ in self.once("arrays"):
            (self.folder / "settings.json").write_text(self.settings)
            for name, (shape, dtype) in {**self.arrays, **self.temporary}.items():
                create_array(self.path(name), shape, np.dtype(dtype))
        return True

    def path(self, name: str) -> Path:
        """The file of an array."""
        return self.folder / f"{name}.npy"

    def read(self, name: str) -> np.ndarray:
        """An array, memory-mapped; rows that are not written yet are undefined."""
        return np.load(self.path(name), mmap_mode="r")

    def write(self, name: str, start: int, rows: np.ndarray) -> None:
        """Writes rows ``start`` to ``start + len(rows)`` of an array, one sequential write.

        Raises:
            ValueError: rows of another shape than announced, or beyond the end.
        """
        shape, dtype = {**self.arrays, **self.temporary}[name]
        if rows.shape[1:] != tuple(shape[1:]) or start + len(rows) > shape[0]:
            raise ValueError(f"rows {start} on of shape {rows.shape} do not fit {name} of shape {tuple(shape)}")
        write_rows(self.path(name), shape, start, np.ascontiguousarray(rows, dtype))

    def file(self, name: str, write: Callable[[Path], object]) -> Path:
        """A small further file of the cache, written whole or not at all; inside :meth:`once`."""
        path, partial = self.folder / name, self.folder / f".{name}.new"
        write(partial)
        flush(partial)
        os.replace(partial, path)
        return path

    def shards(
        self, name: str, count: int, size: int, bar: ProgressBar | None = None, work: Callable[[range], int] = len
    ) -> Iterator[range]:
        """Ranges of ``size`` rows that this process must fill; ends when all ``count`` rows are filled, by any process.

        A shard is marked as done when the next one is asked for. The ranges of one name must not depend on the process.
        ``bar`` counts shards that were done before or by other processes; ``work(rows)`` is the cost of a shard.
        """
        pending = [range(start, min(start + size, count)) for start in range(0, count, max(1, size))]
        turn = _first_shard(len(pending))
        pending = pending[turn:] + pending[:turn]
        while pending:
            busy = []
            for rows in pending:
                mark = self._claim(f"{name}-{rows.start}-{rows.stop}")
                if mark is None:
                    busy.append(rows)
                elif mark < 0:
                    if bar:
                        bar.skip(work(rows))
                else:
                    yield rows
                    self._mark_done(mark)
            pending = busy
            if bar:
                bar.note("waiting for another process" if pending else "")
            if pending:
                time.sleep(POLL_S)

    def once(self, name: str) -> Iterator[None]:
        """A step that one process does while the others wait: ``for _ in build.once("fit"): ...``."""
        for _ in self.shards(name, 1, 1):
            yield

    def _claim(self, mark: str) -> int | None:
        """Descriptor of the locked marker of a shard; None: another process works on it; -1: it is done."""
        descriptor = os.open(self._marks / mark, os.O_RDWR | os.O_CREAT, 0o666)
        self._held.add(descriptor)
        try:
            if fcntl:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._release(descriptor)
            return None
        if os.read(descriptor, len(DONE)) == DONE:
            self._release(descriptor)
            return -1
        return descriptor

    def _mark_done(self, descriptor: int) -> None:
        for name in (*self.arrays, *self.temporary):  # the rows reach the disk before the mark does
            if self.path(name).exists():
                flush(self.path(name))
        os.write(descriptor, DONE)
        self._release(descriptor)

    def _release(self, descriptor: int) -> None:
        self._held.discard(descriptor)
        os.close(descriptor)

    def close(self) -> None:
        """Drops the locks that a failed step still holds."""
        for descriptor in list(self._held):
            self._release(descriptor)

    def finish(self) -> None:
        """Writes the manifest, last, and gives the folder its name."""
        for _ in self.once("finish"):
            for name in self.temporary:
                self.path(name).unlink(missing_ok=True)
            kept = sorted(path for path in self.folder.iterdir() if path.is_file() and path.name[0] != ".")
            kept = [path for path in kept if path.name not in ("manifest.json", "settings.json")]
            sizes = {path.name: path.stat().st_size for path in kept}
            manifest = json.dumps({"settings": json.loads(self.settings), "bytes": sizes}, indent=1)
            self.file("manifest.json", functools.partial(Path.write_text, data=manifest))
            (self.folder / "settings.json").unlink(missing_ok=True)
            shutil.rmtree(self.target, ignore_errors=True)  # damaged, or is_whole would have found it
            self.folder.rename(self.target)
            shutil.rmtree(self.target / MARKS, ignore_errors=True)


def rows_per_shard(row_bytes: int, shard_mb: float, multiple: int = 1) -> int:
    """Rows of a shard of about ``shard_mb`` MiB, at most ``MOST_ROWS``: a multiple of ``multiple``, at least one."""
    return max(1, min(int(shard_mb * 2**20 / row_bytes), MOST_ROWS) // multiple) * multiple


def _first_shard(count: int) -> int:
    """Shard at which this process of a distributed run starts."""
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    return count * rank // max(1, world) % max(1, count)
