"""A text file that says which class each label id means."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from depthg.data.colour_masks import MaskColours
from depthg.data.colours import class_palette
from depthg.data.files import DataError, label_table, show
from depthg.data.text_lists import read_lines

LABELMAP = r"([^:]+):(\d{1,3}),(\d{1,3}),(\d{1,3})(?::.*)?"  # name:red,green,blue:parts:actions
VOC_BORDER = (224, 224, 192)  # the void of Pascal VOC's masks
VOID_NAME, VOID_ID, LARGEST_ID = "void", 255, 65535


@dataclass(frozen=True)
class Classes:
    """Names in label order, a colour for each, and the look-up table of `files.label_table`."""

    names: tuple[str, ...]
    palette: np.ndarray  # uint8 [n, 3]
    table: np.ndarray | None  # int64 [largest id + 1]
    colours: MaskColours | None = None  # of label maps in colour


Row = tuple[int, int, str, str | None]
NO_CLASSES = Classes((), np.zeros((0, 3), np.uint8), None)


def read_classes(path: str | Path) -> Classes:
    """Read a class file: a class per line as `name`, `id name`, `name #rrggbb` or `id name #rrggbb`.

    The colours are those of pictures, and of label maps in colour. A `labelmap.txt` of CVAT or of Pascal VOC tools
    (`name:red,green,blue:parts:actions`) is read too. Without ids the first line is id 0, the next id 1, and so on.
    Lines with one name are one class; the name void, and id 255 unless it is listed, are void. Empty lines and lines
    that begin with # are left out.

    Raises:
        FileNotFoundError: no such file.
        DataError: not UTF-8 text, no class, an id without name or given twice, or only some lines with an id.
    """
    path = Path(path).expanduser()
    labels: dict[str, int] = {}
    colours: dict[int, tuple[int, int, int]] = {}
    masks: dict[tuple[int, int, int], set[int]] = {}
    ids: dict[int, int] = {}
    lines = _lines(path)
    palettes = _is_labelmap(lines)
    for number, label_id, name, colour in _labelmap_rows(path, lines) if palettes else _rows(path, lines):
        if not name or label_id in ids or label_id > LARGEST_ID:
            problem = "has no name" if not name else "comes twice" if label_id in ids else f"is over {LARGEST_ID}"
            raise DataError(f"{show(path)}, line {number}: the id {label_id} {problem}; write 'id name' or 'name'")
        label = -1 if name.casefold() == VOID_NAME else labels.setdefault(name, len(labels))
        ids[label_id] = label
        if colour:
            red, green, blue = bytes.fromhex(colour)
            masks.setdefault((red, green, blue), set()).add(label)
        if colour and label >= 0:
            colours.setdefault(label, (red, green, blue))
    if not labels:
        raise DataError(f"{show(path)} names no class; it must hold a class per line, the first for id 0")
    palette = class_palette(len(labels)).copy()
    for label, rgb in colours.items():
        palette[label] = rgb
    clear = {
        rgb: label for rgb, (label, *others) in masks.items() if not others
    }  # a colour of two classes says nothing
    table = label_table({VOID_ID: -1} | ids)
    return Classes(tuple(labels), palette, table, MaskColours.of({VOC_BORDER: -1} | clear if masks else {}, palettes))


def _lines(path: Path) -> list[tuple[int, str]]:
    """Number and text of every line that is not empty and no comment."""
    if not path.is_file():
        raise FileNotFoundError(f"data.classes: there is no file {show(path)}; it must hold a class per line")
    lines = enumerate(read_lines(path, "list of classes"), 1)
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def _is_labelmap(lines: Sequence[tuple[int, str]]) -> bool:
    return bool(lines) and all(re.fullmatch(LABELMAP, line) for _, line in lines)


def _labelmap_rows(path: Path, lines: Sequence[tuple[int, str]]) -> Iterator[Row]:
    for position, (number, line) in enumerate(lines):
        name, *parts = re.fullmatch(LABELMAP, line).groups()
        rgb = list(map(int, parts))
        if max(rgb) > 255:
            raise DataError(f"{show(path)}, line {number}: {line!r} is no colour; its parts go from 0 to 255")
        yield number, position, name.strip(), bytes(rgb).hex()


def _rows(path: Path, lines: Sequence[tuple[int, str]]) -> Iterator[Row]:
    """Number, id, name and colour (six hexadecimal digits) of every line."""
    split = [re.fullmatch(r"(\d+)(?:[\s:,]+(.*))?", line) for _, line in lines]
    if any(split) and not all(split):
        number, line = lines[split.index(None)]
        raise DataError(f"{show(path)}, line {number}: {line!r} has no id, others have; give all lines an id or none")
    for position, ((number, line), found) in enumerate(zip(lines, split, strict=True)):
        label_id, rest = (int(found[1]), found[2] or "") if found else (position, line)
        name, colour = re.fullmatch(r"(.*?)(?:(?:^|\s)#([0-9a-fA-F]{6}))?", rest).groups()
        yield number, label_id, name.strip(), colour
