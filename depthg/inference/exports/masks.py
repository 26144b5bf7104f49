"""``voc/`` and ``cvat.zip``: masks as PNG and ``labelmap.txt``. Nothing of the ids is lost."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from depthg.data.errors import show
from depthg.inference.exports.common import Exporter, Labels, distinct_colours, label_names
from depthg.storage.whole_files import write_text, write_whole

NO_CLASS, BORDER = (0, 0, 0), (224, 224, 192)  # colours with a meaning in Pascal VOC
MOST = 255  # ids beside the one of no class in a palette, and objects of a photo in CVAT
DATE = (1980, 1, 1, 0, 0, 0)  # of the files in an archive, so that equal content gives equal archives
CLASSES, OBJECTS = "SegmentationClass", "SegmentationObject"
LIST, MAP = "ImageSets/Segmentation/default.txt", "labelmap.txt"


def mask_labels(labels: Labels) -> Labels:
    """Names that a line ``name:red,green,blue::`` can hold, and colours that stand for nothing else."""
    plain = [name.replace(":", " ").lstrip("# ") for name in labels.names]
    return Labels(label_names(plain, ("void", "background")), distinct_colours(labels.colours, (NO_CLASS, BORDER)))


def labelmap(labels: Labels, no_class: str) -> str:
    """The text of ``labelmap.txt``; its first line is what pixels without a class are."""
    rows = zip((no_class, *labels.names), np.vstack([[NO_CLASS], labels.colours]).tolist(), strict=True)
    return "# label:color_rgb:parts:actions\n" + "".join(f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in rows)


def places_of(ids: np.ndarray, n: int) -> np.ndarray:  # [H, W] -> uint16 [H, W]
    """1 for the id 0 and so on; 0 for values that are no id."""
    table = np.zeros(max(n, int(ids.max(initial=0)) + 1), np.uint16)
    table[:n] = np.arange(1, n + 1)
    return table[ids]


class Voc(Exporter):
    """Pascal VOC's folders. Indices of the palette are ids plus 1, and 0 is void; more than 255 ids: RGB."""

    NAME = "voc"

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._labels, self._done = mask_labels(self.labels), set[int]()

    def _path(self, number: int) -> Path:
        return self.out / "voc" / CLASSES / f"{self.photos[number].stem}.png"

    @property
    def files(self) -> list[Path]:
        fixed = [self.out / "voc" / name for name in (MAP, LIST)]
        return [*fixed, *map(self._path, range(len(self.photos)))]

    def add(self, number: int, ids: np.ndarray, score: float) -> None:
        places, palette = places_of(ids, len(self.labels)), np.vstack([[NO_CLASS], self._labels.colours])
        image = drawn(places, palette.astype(np.uint8), len(self.labels) <= MOST)
        write_whole(self._path(number), lambda partial: image.save(partial, format="PNG"), flush=False)
        self._done.add(number)

    def finish(self) -> str:
        write_text(self.files[0], labelmap(self._labels, "void"))
        write_text(self.files[1], "".join(f"{self.photos[number].stem}\n" for number in sorted(self._done)))
        return f"voc: {show(self.files[0].parent)}"


class Cvat(Exporter):
    """An archive that CVAT imports as "Segmentation mask 1.1", and ``cvat_labels.json`` for its raw editor of labels.

    Each id of a photo is one object. Both masks are in RGB: that tells ids apart whether or not a reader looks at
    palettes.
    """

    NAME = "cvat"

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        if len(self.labels) > MOST:
            raise ValueError(f"cvat holds {MOST} clusters, the run has {len(self.labels)}; pass --export voc")
        self._labels, self._found = mask_labels(self.labels), dict[int, tuple[bytes, bytes]]()

    @property
    def files(self) -> list[Path]:
        return [self.out / "cvat.zip", self.out / "cvat_labels.json"]

    def add(self, number: int, ids: np.ndarray, score: float) -> None:
        places = places_of(ids, len(self.labels))
        found = np.setdiff1d(places, [0])
        objects = np.zeros(len(self.labels) + 1, np.uint8)
        objects[found] = np.arange(1, len(found) + 1)
        palette = np.vstack([[NO_CLASS], self._labels.colours]).astype(np.uint8)
        self._found[number] = png(drawn(places, palette)), png(drawn(objects[places], object_colours()))

    def finish(self) -> str:
        archive, raw = self.files
        names = [self.photos[number].stem for number in sorted(self._found)]
        content: dict[str, bytes] = {MAP: labelmap(self._labels, "background").encode()}
        content[LIST] = "".join(f"{name}\n" for name in names).encode()
        for place, folder in enumerate((CLASSES, OBJECTS)):
            masks = (self._found[number][place] for number in sorted(self._found))
            content |= {f"{folder}/{name}.png": mask for name, mask in zip(names, masks, strict=True)}
        write_whole(archive, lambda partial: write_archive(partial, content))
        rows = zip(self._labels.names, self._labels.colours, strict=True)
        labels = [{"name": name, "color": f"#{bytes(colour).hex()}", "attributes": []} for name, colour in rows]
        write_text(raw, json.dumps(labels, indent=1))
        return f"cvat: {show(archive)}, labels: {show(raw)}"


def drawn(places: np.ndarray, palette: np.ndarray, indexed: bool = False) -> Image.Image:  # [H, W], uint8 [n, 3]
    """A picture in these colours: RGB, or with a palette."""
    if not indexed:
        return Image.fromarray(palette[places])
    image = Image.fromarray(places.astype(np.uint8))
    image.putpalette(palette.tobytes())
    return image


def png(image: Image.Image) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def object_colours() -> np.ndarray:  # uint8 [256, 3]
    """The colours of objects in Pascal VOC: bits 0, 3 and 6 of the number are the highest bits of red, and so on."""
    numbers, colours = np.arange(256), np.zeros((256, 3), np.int64)
    for bit in range(8):
        colours[:, bit % 3] |= ((numbers >> bit) & 1) << (7 - bit // 3)
    return colours.astype(np.uint8)


def write_archive(path: Path, content: dict[str, bytes]) -> None:
    """Writes a zip archive whose bytes depend on the content alone."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            info = zipfile.ZipInfo(name, DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
