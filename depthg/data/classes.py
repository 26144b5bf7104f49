"""A text file that says which class each label id means."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from depthg.data.colours import class_palette
from depthg.data.files import DataError, label_table, show
from depthg.data.text_lists import read_lines

VOID_NAME, VOID_ID, LARGEST_ID = "void", 255, 65535


@dataclass(frozen=True)
class Classes:
    """Names in label order, a colour for each, and the look-up table of `files.label_table`."""

    names: tuple[str, ...]
    palette: np.ndarray  # uint8 [n, 3]
    table: np.ndarray | None  # int64 [largest id + 1]


NO_CLASSES = Classes((), np.zeros((0, 3), np.uint8), None)


def read_classes(path: str | Path) -> Classes:
    """Read a class file: a class per line as `name`, `id name` or `id name #rrggbb`.

    Without ids the first line is id 0, the next id 1, and so on. Lines with one name are one class; the name void, and
    id 255 unless it is listed, are void. Empty lines and lines that begin with # are left out.

    Raises:
        FileNotFoundError: no such file.
        DataError: not UTF-8 text, no class, an id without name or given twice, or only some lines with an id.
    """
    path = Path(path).expanduser()
    labels: dict[str, int] = {}
    colours: dict[int, tuple[int, ...]] = {}
    ids: dict[int, int] = {}
    for number, label_id, name, colour in _rows(path):
        if not name or label_id in ids or label_id > LARGEST_ID:
            problem = "has no name" if not name else "comes twice" if label_id in ids else f"is over {LARGEST_ID}"
            raise DataError(f"{show(path)}, line {number}: the id {label_id} {problem}; write 'id name' or 'name'")
        label = -1 if name.casefold() == VOID_NAME else labels.setdefault(name, len(labels))
        ids[label_id] = label
        if colour and label >= 0:
            colours.setdefault(label, tuple(bytes.fromhex(colour)))
    if not labels:
        raise DataError(f"{show(path)} names no class; it must hold a class per line, the first for id 0")
    palette = class_palette(len(labels)).copy()
    for label, rgb in colours.items():
        palette[label] = rgb
    return Classes(tuple(labels), palette, label_table({VOID_ID: -1} | ids))


def _rows(path: Path) -> Iterator[tuple[int, int, str, str | None]]:
    """Number, id, name and colour (six hexadecimal digits) of every line that is not empty and no comment."""
    if not path.is_file():
        raise FileNotFoundError(f"data.classes: there is no file {show(path)}; it must hold a class per line")
    lines = list(enumerate(read_lines(path, "list of classes"), 1))
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    split = [re.fullmatch(r"(\d+)(?:[\s:,]+(.*))?", line) for _, line in lines]
    if any(split) and not all(split):
        number, line = lines[split.index(None)]
        raise DataError(f"{show(path)}, line {number}: {line!r} has no id, others have; give all lines an id or none")
    for position, ((number, line), found) in enumerate(zip(lines, split, strict=True)):
        label_id, rest = (int(found[1]), found[2] or "") if found else (position, line)
        name, colour = re.fullmatch(r"(.*?)(?:(?:^|\s)#([0-9a-fA-F]{6}))?", rest).groups()
        yield number, label_id, name.strip(), colour
