"""A text file that says which class of the labels each class of a run stands for."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from depthg.data.classes import VOID_NAME
from depthg.data.files import DataError, show

ARROW = "->"


def read_class_map(
    path: str | Path, run: Sequence[str], data: Sequence[str], table: np.ndarray | None = None
) -> np.ndarray:  # int64 [len(run)]
    """Read a class map: a line `class of the run -> class of the data` for each class of the run that has one.

    A side is a name or a number: of the run's classes counted from 0, and the id in the label maps. Several classes of
    the run may go to one class of the data. `void` on the right is the same as no line. Empty lines and lines that
    begin with # are left out.

    Args:
        path: the file.
        run: names of the run's classes.
        data: names of the data's classes.
        table: class of every label id, -1 for void (`files.label_table`); None: ids are the classes' numbers.

    Returns:
        The class of the data for each class of the run, -1 for none.

    Raises:
        FileNotFoundError: no such file.
        DataError: not UTF-8 text, a line without arrow, an unknown class, one of the run twice, or nothing mapped.
    """
    path = Path(path).expanduser()
    table = np.arange(len(data)) if table is None else table
    found = np.full(len(run), -1, np.int64)
    seen: set[int] = set()
    for number, line in _lines(path):
        where = f"{show(path)}, line {number}"
        left, arrow, right = (part.strip() for part in line.partition(ARROW))
        if not arrow or not left or not right:
            raise DataError(f"{where}: {line!r} is not of the form 'class of the run {ARROW} class of the data'")
        own = _numbered(left, len(run)) if left not in run else list(run).index(left)
        if own is None:
            raise DataError(f"{where}: the run has no class {left!r}{_near(left, run)}")
        if own in seen:
            raise DataError(f"{where}: the run's class {left!r} is given twice; it can stand for one class")
        seen.add(own)
        if right.casefold() == VOID_NAME and right not in data:
            continue
        other = _numbered(right, len(table)) if right not in data else list(data).index(right)
        if right not in data and other is not None:
            other = int(table[other])
        if other is None or other < -1 or other >= len(data):
            raise DataError(f"{where}: the labels have no class {right!r}{_near(right, data)}")
        found[own] = other
    if (found < 0).all():
        raise DataError(f"{show(path)} maps no class of the run; it must hold lines 'class of the run {ARROW} class'")
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"data.class_map: there is no file {show(path)}; it must hold a pair of classes per line"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{show(path)} is no class map: it is not UTF-8 text ({error.reason})") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.strip().startswith("#"):
            yield number, line.strip()


def _numbered(text: str, n: int) -> int | None:
    """The number in a text, if it is one below n."""
    return int(text) if text.isdecimal() and len(text) < 10 and int(text) < n else None


def _near(word: str, names: Sequence[str]) -> str:
    match = difflib.get_close_matches(word, names, n=1, cutoff=0.4)
    return f"; did you mean {match[0]!r}?" if match else f" (it has {', '.join(names)})"
