"""Atomic file writes: a file is complete or absent, even after a crash."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import platform
import re
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PARTIAL = re.compile(r"\.partial-([0-9a-f]{8})-(\d+)-\d+")  # machine, process, counter
MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
ABANDONED_S = 3600  # without a change, for files of other machines
_numbers = itertools.count()


def partial_path(path: Path) -> Path:
    """A unique name beside ``path``, across processes and machines, for an unfinished file."""
    return path.with_name(f".partial-{MACHINE}-{os.getpid()}-{next(_numbers)}")


def write_whole(path: Path, write: Callable[[Path], object], *, flush: bool = True) -> None:
    """Calls ``write(temporary_path)``, flushes it to disk and renames it to ``path``: whole or not at all.

    ``flush=False`` does not wait until the file is on the disk: for results that can be made again.

    Raises:
        OSError: the file cannot be written, and the old file at ``path`` is intact; or the new file exists, but may
            not be on the disk yet.
    """
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        if flush:
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # a disk that became read-only must not hide the first error
            partial.unlink(missing_ok=True)
    if flush:  # apart: an error here comes after the file was replaced
        flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Waits until renames in a folder are on the disk, if its file system supports this.

    Raises:
        OSError: they may not be on the disk; the files themselves are complete.
    """
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # a file system that flushes no folders
            return
        text = f"cannot flush {folder} to the disk: {error.strerror}; what was just written in it is whole, but may be "
        raise OSError(error.errno, text + "lost if the machine stops now") from error


def write_error(path: Path, error: OSError) -> OSError:
    """An error of the same type and number that names the file and a fix."""
    text = (
        f"cannot write {path}: {error.strerror or error}; free some room or make the folder writable. What was there "
        "before is intact"
    )
    raised = type(error)(text)
    raised.errno = error.errno
    return raised


def remove_partials(folder: Path) -> None:
    """Removes unfinished files that killed processes left below ``folder`` (see :func:`write_whole`)."""
    for path in folder.rglob(".partial-*"):
        if PARTIAL.fullmatch(path.name) and path.is_file() and _abandoned(path):
            path.unlink(missing_ok=True)


def _abandoned(path: Path) -> bool:
    machine, process = PARTIAL.fullmatch(path.name).groups()
    if machine == MACHINE:
        return not _runs(int(process))
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_S
    except FileNotFoundError:  # just finished
        return False


def _runs(process: int) -> bool:
    """True if another process with this pid exists on this machine."""
    if process == os.getpid():
        return False  # it had the number of this one, before
    if os.name == "nt":  # where the call below would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # owned by another user, or not a valid pid
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_text_parts(path: Path, parts: Iterable[str]) -> None:
    """Writes a text file whole or not at all, piece by piece, so that it need not fit into memory."""

    def write(partial: Path) -> None:
        with open(partial, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(parts)

    write_whole(path, write)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file whole or not at all.

    Its bytes are made in memory first, which takes twice the room of the tensors for a moment: the library's own writer
    has an unfinished file that stays behind after a kill.
    """
    from safetensors.torch import save  # with torch, which processes that draw scenes do without

    write_whole(path, lambda partial: partial.write_bytes(save(dict(tensors), metadata)))
