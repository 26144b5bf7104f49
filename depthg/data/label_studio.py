"""Label maps from Label Studio: masks that people drew or corrected with its brush, as files for ``data.labels``."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from depthg.data.brush_masks import decode_values
from depthg.data.errors import DataError, show
from depthg.data.reading import DEFAULT
from depthg.storage.safe_text import parse_json
from depthg.storage.whole_files import write_text, write_whole

INSIDE = 128  # from this opacity on a pixel belongs to a stroke
VOID, VOID_16 = 255, 65535  # of label maps, of 8 and of 16 bits


def write_label_maps(export: str | os.PathLike, out: str | os.PathLike, interface: str | os.PathLike) -> list[Path]:
    """Turns an export of Label Studio (its format JSON) into ``out/labels/PHOTO.png`` and ``out/classes.txt``.

    A label map holds the last annotation of its task that was not skipped; where masks overlap, the later one counts,
    and pixels without a mask are void. Tasks without an annotation give no file. Shapes that are not drawn with the
    brush are left out, and a warning counts them.

    Args:
        export: the file from Label Studio.
        out: folder for the results; files of the same names are replaced.
        interface: the labelling interface, such as ``labelstudio.xml``: its labels in their order are the classes.

    Returns:
        the label maps.

    Raises:
        DataError: a file that cannot be read or has no annotation, a label that the interface lacks, a damaged mask, or
            a photo's path that leads out of the folder.
    """
    export, out = Path(export).expanduser(), Path(out).expanduser()
    classes = _classes(Path(interface).expanduser())
    ids = {name: number if number < VOID else number + 1 for number, name in enumerate(classes)}
    wide = len(classes) > VOID
    try:
        tasks = parse_json(export.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{show(export)} is no export of Label Studio in its format JSON ({error})") from error
    written, left_out = [], Counter[str]()
    for task in tasks if isinstance(tasks, list) else [tasks]:
        try:
            label = _label_map(task, ids, VOID_16 if wide else VOID, left_out)
            name = None if label is None else _photo(task["data"])
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            number = task.get("id") if isinstance(task, Mapping) else None
            reason = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else error
            raise DataError(f"{show(export)}: task {number} cannot be read: {reason}") from error
        if label is None:
            continue
        written.append(out / "labels" / f"{os.path.splitext(name)[0]}.png")
        write_whole(written[-1], partial(_save, label if wide else label.astype(np.uint8)), flush=False)
    if not written:
        raise DataError(f"{show(export)} has no annotation with brush masks; export the project as JSON, not JSON-MIN")
    rows = [f"{ids[name]} {name}{colour}" for name, colour in classes.items()]
    write_text(out / "classes.txt", "\n".join([*rows, f"{VOID_16 if wide else VOID} void", ""]))
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        warnings.warn(f"{show(export)}: not drawn with the brush and left out: {kinds}", stacklevel=2)
    return written


def _save(label: np.ndarray, path: Path) -> None:
    Image.fromarray(label).save(path, format="PNG")


def _classes(interface: Path) -> dict[str, str]:
    """Name and colour (`` #rrggbb`` or nothing) of every brush label, in order."""
    try:
        text = interface.read_text(encoding="utf-8")
        if "<!" in text:  # declarations, whose entities can expand to gigabytes
            raise ValueError("it has declarations or comments, remove them")
        found = ElementTree.fromstring(text).findall(".//BrushLabels/Label")
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise DataError(f"{show(interface)} is no labelling interface of Label Studio ({error})") from error
    colours = {label.get("value", "").strip(): label.get("background", "") for label in found}
    if not colours or "" in colours:
        raise DataError(f"{show(interface)} must have BrushLabels, and in them a Label with a value for each class")
    return {name: f" {c}" if re.fullmatch("#[0-9a-fA-F]{6}", c) else "" for name, c in colours.items()}


def _label_map(task: Mapping[str, Any], ids: Mapping[str, int], void: int, left_out: Counter) -> np.ndarray | None:
    """uint16 [H, W], the label map of a task; None without an annotation."""
    annotations = [a for a in task.get("annotations", ()) if not a.get("was_cancelled")]
    results = annotations[-1]["result"] if annotations else []
    label = None
    for result in results:
        if result.get("type") != "brushlabels" or result["value"].get("format") != "rle":
            left_out[str(result.get("type"))] += 1
            continue
        size = int(result["original_height"]), int(result["original_width"])
        if min(size) < 1 or size[0] * size[1] > DEFAULT.max_pixels:
            raise ValueError(f"a mask of {size[1]} x {size[0]} pixels (at most {DEFAULT.max_pixels:,} are read)")
        label = np.full(size, void, np.uint16) if label is None else label
        if label.shape != size:
            raise ValueError("its masks differ in size")
        [name] = result["value"]["brushlabels"]
        if name.strip() not in ids:
            raise ValueError(f"the label {name!r} is not in the labelling interface; add it there")
        label[decode_values(result["value"]["rle"], size) >= INSIDE] = ids[name.strip()]
    return label


def _photo(data: Mapping[str, Any]) -> str:
    """Path of the photo: that under ``photo``, or what the address of its picture says."""
    path = data.get("photo")
    if path is None:
        addresses = [text for text in data.values() if isinstance(text, str) and "/" in text]
        if not addresses:
            raise ValueError(f"its data {dict(data)} hold no address of a picture")
        address = urlsplit(addresses[0])
        path = parse_qs(address.query)["d"][0] if "d=" in address.query else unquote(address.path).rpartition("/")[2]
    parts = PurePosixPath(path.replace("\\", "/")).parts
    if not parts or ".." in parts or path.startswith("/") or re.match("[A-Za-z]:", path) or "\0" in path:
        raise ValueError(f"{path!r} leads out of the folder of label maps")
    return path
