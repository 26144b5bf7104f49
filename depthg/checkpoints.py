"""A checkpoint is one safetensors file: weights, optimiser states, and a JSON header. Loading runs no code."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from depthg.safe_text import parse_json

FILE = "checkpoint.safetensors"
PARTIAL = re.compile(r"\..+\.(\d+)")  # names that write_whole gives to unfinished files


def write_whole(path: Path, write: Callable[[Path], object], *, flush: bool = True) -> None:
    """Calls ``write(temporary_path)``, flushes it to disk and renames it to ``path``: whole or not at all.

    ``flush=False`` is for results that can be made again: nothing waits until they are on the disk.

    Raises:
        OSError: it cannot be written, and what was at ``path`` is intact; or the new file is there but not yet surely
            on the disk.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        if flush:
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # a disk that became read-only must not hide the first error
            partial.unlink(missing_ok=True)
    if flush:  # apart: an error here comes after the file was replaced
        flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Returns when renames in a folder are on the disk, where its file system can tell.

    Raises:
        OSError: they may not be; the files themselves are whole.
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


def write_error(path: Path, error: Exception) -> OSError:
    """An error of the same type and number that names the file and the way out."""
    number = getattr(error, "errno", None)
    if number is None and (found := re.search(r"os error (\d+)", str(error))):  # safetensors keeps it in the text
        number = int(found[1])
    reason = getattr(error, "strerror", None) or (os.strerror(number) if number else str(error))
    text = f"cannot write {path}: {reason}; free some room or make the folder writable. What was there before is intact"
    raised = (type(error) if isinstance(error, OSError) else OSError)(text)
    raised.errno = number
    return raised


def remove_partials(folder: Path) -> None:
    """Removes what :func:`write_whole` left below ``folder`` when its process was killed."""
    for path in folder.rglob(".*"):
        owner = PARTIAL.fullmatch(path.name)
        if owner and path.is_file() and not _runs(int(owner[1])):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether another process of this number exists on this machine."""
    if process == os.getpid():
        return False  # it had the number of this one, before
    if os.name == "nt":  # where the call below would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to somebody else; the number is none
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def save_checkpoint(folder: Path, modules: dict[str, torch.nn.Module], optimizers: dict, header: dict) -> Path:
    """Writes ``folder/checkpoint.safetensors``; ``header`` is any JSON value (iteration, shifts, sizes, ...)."""
    tensors = {f"model.{n}.{k}": v for n, module in modules.items() for k, v in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{name}.{index}.{key}": value for key, value in state.items()})
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items() if value.numel()}
    path = folder / FILE
    write_whole(path, lambda partial: save_file(tensors, partial, metadata={"depthg": json.dumps(header)}))
    return path


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and header of ``folder/checkpoint.safetensors``.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the file is damaged or was not written by this package.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; was the run stopped before its first one?")
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_json((file.metadata() or {})["depthg"])
            if not isinstance(header, dict):
                raise ValueError(f"its header is a {type(header).__name__}")
            return {key: file.get_tensor(key) for key in file.keys()}, header
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or not a depthg checkpoint ({error}); delete it and train again"
        ) from error


def load_modules(tensors: dict[str, Tensor], modules: dict[str, torch.nn.Module], path: Path) -> None:
    """Copies weights into modules; a missing or differently shaped weight is an error that names it."""
    for name, module in modules.items():
        for key, target in module.state_dict().items():
            value = tensors.get(f"model.{name}.{key}")
            if target.numel() == 0:
                continue
            if value is None or value.shape != target.shape:
                found = "is missing" if value is None else f"has shape {tuple(value.shape)}"
                raise ValueError(f"{path}: weight {name}.{key} {found}; this model needs {tuple(target.shape)}")
            target.copy_(value)


def load_optimizers(tensors: dict[str, Tensor], optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Restores optimiser states; the hyper-parameters stay those of the given optimisers."""
    for name, optimizer in optimizers.items():
        prefix = f"optimizer.{name}."
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(prefix):
                index, entry = key[len(prefix) :].split(".")
                state.setdefault(int(index), {})[entry] = value.clone()
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
