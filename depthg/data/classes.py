"""A text file that says which class each label id means."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from depthg.colours import class_palette
from depthg.data.files import DataError, label_table, show

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
    if not path.is_file():
        raise FileNotFoundError(f"data.classes: there is no file {show(path)}; it must hold a class per line")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{show(path)} is no list of classes: it is not UTF-8 text ({error.reason})") from error
    rows = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    rows = [(number, line) for number, line in rows if not line.startswith("#")]
    with_id = [bool(re.match(r"\d+([\s:,]|$)", line)) for _, line in rows]
    if any(with_id) and not all(with_id):
        number, line = rows[with_id.index(False)]
        raise DataError(
            f"{show(path)}, line {number}: {line!r} has no id, other lines have one; give all or none an id"
        )
    labels: dict[str, int] = {}
    colours: dict[int, tuple[int, ...]] = {}
    ids: dict[int, int] = {}
    for position, (number, line) in enumerate(rows):
        found = re.fullmatch(r"(\d+)[\s:,]+(.*)" if with_id[0] else r"()(.*)", line)
        label_id, rest = (int(found[1] or position), found[2]) if found else (-1, "")
        name, _, colour = rest.partition(" #") if re.search(r" #[0-9a-fA-F]{6}$", rest) else (rest, "", "")
        if not name.strip() or label_id in ids or label_id > LARGEST_ID:
            problem = (
                "has no name" if not name.strip() else "comes twice" if label_id in ids else f"is over {LARGEST_ID}"
            )
            raise DataError(f"{show(path)}, line {number}: the id of {line!r} {problem}; write 'id name' or 'name'")
        label = -1 if name.strip().casefold() == VOID_NAME else labels.setdefault(name.strip(), len(labels))
        ids[label_id] = label
        if colour and label >= 0:
            colours.setdefault(label, tuple(bytes.fromhex(colour)))
    if not labels:
        raise DataError(f"{show(path)} names no class; it must hold a class per line, the first for id 0")
    palette = class_palette(len(labels)).copy()
    for label, colour in colours.items():
        palette[label] = colour
    return Classes(tuple(labels), palette, label_table({VOID_ID: -1} | ids))
