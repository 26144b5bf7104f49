"""The folder of one run: settings, metrics, checkpoints. Files are written atomically or appended line by line."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import platform
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from depthg import __version__
from depthg.config.composing import stored_settings
from depthg.config.schema import Config
from depthg.storage.event_file import EventFile
from depthg.storage.safe_text import parse_json
from depthg.storage.whole_files import PARTIAL, remove_partials, write_error, write_text

try:
    import resource
except ImportError:  # Windows
    resource = None
try:
    import fcntl
except ImportError:  # the system has no such locks: two trainings are not kept apart
    fcntl = None

LOCK_FILE = ".lock"
CHECK_S = 0.5  # longer than any process holds the lock only to check it

NAME_LENGTH = 60  # of a folder of photos in the name of its run
SCORES_FILE = "images.csv"  # accuracy and mIoU of every evaluation image


def run_name(config: Config) -> str:
    """``name``, or a default of the experiment, data set (photos: their folder), mode and seed."""
    data = config.data.name
    if data == "folder" and config.data.root:
        folder = os.path.basename(absolute(config.data.root))
        data = re.sub(r"[^\w.-]+", "_", folder).strip("._-")[:NAME_LENGTH] or data
    return config.name or f"{config.experiment}-{data}-{config.mode}-seed{config.seed}"


def absolute(path: str) -> str:
    """A path that is the same from every working directory."""
    return os.path.abspath(os.path.expanduser(path))


def check_run(config: Config) -> Path:
    """Returns the folder that a new or resumed run will use; changes nothing.

    Raises:
        FileExistsError: another process trains in it. For a new run also: it is not empty and ``overwrite`` is off, or
            it is not a run folder.
        ValueError: see :func:`run_path`.
    """
    RunLock(run_path(config)).check()
    return _checked_path(config)


def run_path(config: Config) -> Path:
    """The folder of a new or resumed run.

    Raises:
        ValueError: ``name`` points outside ``runs_dir``.
    """
    if config.resume:
        return Path(config.resume).expanduser()
    name = Path(run_name(config))
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(
            f"name={name} leads out of runs_dir={config.runs_dir}; give a name, and the folder as runs_dir="
        )
    return (Path(config.runs_dir) / name).expanduser()


def _checked_path(config: Config) -> Path:
    path = run_path(config)
    if not config.resume and path.exists() and (not path.is_dir() or _content(path)):
        if not config.overwrite:
            if other := _other_photos(path, config):
                raise FileExistsError(f"{path} holds a run on {other}; give this one another name=")
            raise FileExistsError(
                f"{path} exists; continue with resume={path}, replace it with overwrite=true, or choose another name="
            )
        if not (path / "config.yaml").is_file():
            raise FileExistsError(f"{path} is not a run folder (no config.yaml), so overwrite=true leaves it alone")
    return path


def _other_photos(run: Path, config: Config) -> str | None:
    """Where the photos of an existing run lie, if the new one is about other photos."""
    try:
        stored = stored_settings(run)["data"]
    except (OSError, ValueError, KeyError):
        return None
    old, new = stored.get("root"), config.data.root
    return old if old and new and absolute(old) != absolute(new) else None


def _content(run: Path) -> list[Path]:
    """Content of a folder, without the lock and partial files that a process killed at its first step leaves."""
    rest = [path for path in run.iterdir() if path.name != LOCK_FILE and not PARTIAL.fullmatch(path.name)]
    return sorted(rest, key=lambda path: path.name == "config.yaml")  # last: it marks a run folder


def create_run(config: Config) -> Path:
    """Returns the run folder with its ``config.yaml``: emptied for a new run, the existing one with ``resume``."""
    path = _checked_path(config)
    path.mkdir(parents=True, exist_ok=True)
    remove_partials(path)
    for old in [] if config.resume else _content(path):
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    stored = dataclasses.replace(with_absolute_paths(config), resume=None, overwrite=False)
    write_text(path / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(stored)))
    return path


def with_absolute_paths(config: Config) -> Config:
    """The settings with absolute paths of photos, labels and depth, so that they hold in every working directory."""
    data, depth = config.data, config.depth
    paths: dict[str, Any] = {
        key: absolute(value) for key in ("root", "labels", "classes") if (value := getattr(data, key))
    }
    for key in ("list_train", "list_val"):
        value = getattr(data, key)
        if value and Path(value).expanduser().is_file():  # else it lies below the photos
            paths[key] = absolute(value)
    root = absolute(depth.root) if depth.root else depth.root
    return dataclasses.replace(
        config, data=dataclasses.replace(data, **paths), depth=dataclasses.replace(depth, root=root)
    )


class RunLock:
    """Lock that lets one process at a time train in a run folder. The system releases it when the process ends.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Path):
        self.path = run / LOCK_FILE
        self.descriptor: int | None = None

    def check(self) -> None:
        """Raises FileExistsError if another process trains here."""
        if fcntl and self.path.is_file():
            with open(self.path, "rb") as file:
                self._take(file.fileno(), fcntl.LOCK_SH)

    def take(self) -> RunLock:
        """Locks the folder, creating it if needed, until ``drop`` or the end of the process.

        Raises:
            FileExistsError: another process trains here.
            OSError: the folder cannot be written.
        """
        while self.descriptor is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise write_error(self.path.parent, error) from error
            try:
                if fcntl:
                    self._take(descriptor, fcntl.LOCK_EX)
                    if not self._names(descriptor):
                        continue  # the previous owner has just deleted the lock file
                self.descriptor = descriptor
            finally:
                if self.descriptor is None:
                    os.close(descriptor)
        os.ftruncate(self.descriptor, 0)
        os.write(self.descriptor, f"process {os.getpid()} on {platform.node()}".encode())
        return self

    def _names(self, descriptor: int) -> bool:
        """True if the open file is the one at ``path`` now."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def _take(self, descriptor: int, kind: int) -> None:
        end = time.monotonic() + CHECK_S
        while True:
            try:
                return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() < end:  # it may be only a check
                    time.sleep(CHECK_S / 10)
                    continue
                owner = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
                raise FileExistsError(
                    f"{owner} trains in {self.path.parent}; wait for it, stop it, or choose another name="
                ) from error
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise write_error(self.path, error) from error
                print(
                    f"warning: the file system of {self.path.parent} has no locks: nothing keeps a second training out",
                    file=sys.stderr,
                )
                return None

    def drop(self) -> None:
        """Releases the lock and deletes its file."""
        if self.descriptor is not None:
            with contextlib.suppress(OSError):  # the folder may be gone or read-only by now
                if self._names(self.descriptor):  # not the lock of a later run in a recreated folder
                    self.path.unlink()
            os.close(self.descriptor)
            self.descriptor = None


class MetricLog:
    """Writer of ``metrics.jsonl`` and TensorBoard events; on resume, lines after ``iteration`` are removed."""

    def __init__(self, run: Path, iteration: int = 0):
        self.path = run / "metrics.jsonl"
        kept = [json.dumps(line) for line in read_log(self.path) if line["iteration"] <= iteration] if iteration else []
        write_text(self.path, "".join(line + "\n" for line in kept))
        self.file = open(self.path, "a", encoding="utf-8", buffering=1)
        self.board = EventFile(run / "tensorboard", iteration + 1)

    def write(self, iteration: int, values: dict[str, float]) -> None:
        line = {"iteration": iteration, **{key: round(float(value), 6) for key, value in values.items()}}
        try:
            self.file.write(json.dumps(line) + "\n")
            self.board.write(iteration, {key.replace(".", "/"): float(value) for key, value in values.items()})
        except OSError as error:
            raise write_error(self.path.parent, error) from error

    def close(self) -> None:
        """Closes both files. ``write`` has already reported write errors, so errors are ignored here."""
        for file in (self.file, self.board):
            with contextlib.suppress(OSError):
                file.close()


def read_log(path: Path) -> list[dict]:
    """Reads the lines of ``metrics.jsonl``; an unfinished or damaged line and all following lines are ignored."""
    lines = []
    for text in path.read_text("utf-8", "replace").splitlines() if path.is_file() else []:
        try:
            line = parse_json(text)
        except ValueError:
            break
        if not isinstance(line, dict) or not isinstance(line.get("iteration"), int):
            break
        lines.append(line)
    return lines


def environment() -> dict[str, str]:
    """Versions and hardware that results depend on besides the settings."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "depthg": __version__, "torch": torch.__version__, "python": platform.python_version(), "device": device,
        "threads": str(torch.get_num_threads()), "system": platform.platform(terse=True),
    }  # fmt: skip


def peak_memory() -> dict[str, int]:
    """Peak memory of this process in MiB: resident (with mapped files) and, if used, on the GPU."""
    found = {}
    if resource is not None:
        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB elsewhere
        found["resident_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        found["gpu_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return found
