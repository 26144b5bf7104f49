"""Output folders of commands: tested for writing before any computation; existing files need ``overwrite``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path


def output_folder(path: Path, names: Iterable[str | Path] = (), overwrite: bool = False, option: str = "--out") -> Path:
    """``path``, made if needed and tested for writing.

    Args:
        path: the folder.
        names: files that will be written in it.
        overwrite: whether they may exist already.
        option: the command-line option that chooses the folder, for messages.

    Raises:
        FileExistsError: a file exists and ``overwrite`` is off.
        OSError: the folder cannot be made or written in.
    """
    held = [name for name in names if (path / name).exists()]
    if held and not overwrite:
        raise FileExistsError(f"{path / held[0]} exists; pass --overwrite to replace it, or another {option}")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot write in {path} ({reason}); pass {option} with a place that can be written") from error
    return path


def named_folder(text: str) -> Path:
    """A folder's name, ~ expanded; an empty one is most likely a variable that is not set."""
    if not text:
        raise ValueError("the folder has no name")
    return Path(text).expanduser()
