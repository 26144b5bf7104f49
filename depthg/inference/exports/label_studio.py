"""``labelstudio.json`` and ``labelstudio.xml``: tasks with predicted brush masks, and the labelling interface."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np

from depthg.data.brush_masks import encode_mask
from depthg.data.errors import show
from depthg.inference.exports.common import Exporter, present
from depthg.storage.whole_files import write_text, write_text_parts

IMAGE, BRUSH = "image", "brush"  # names in the labelling interface
SERVED = "/data/local-files/?d="  # Label Studio's address of files below its document root


class LabelStudio(Exporter):
    """A task per photo with one prediction: a mask per id, the run's name, and a score."""

    NAME = "labelstudio"

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._found: dict[int, tuple[tuple[int, int], float, list[tuple[int, bytes]]]] = {}

    @property
    def files(self) -> list[Path]:
        return [self.out / "labelstudio.json", self.out / "labelstudio.xml"]

    @property
    def folder(self) -> Path:
        """The folder that holds all photos."""
        return Path(os.path.commonpath([os.path.dirname(os.path.abspath(photo.file)) for photo in self.photos]))

    def add(self, number: int, ids: np.ndarray, score: float) -> None:
        masks = [(value, zlib.compress(encode_mask(mask))) for value, mask in present(ids, len(self.labels))]
        self._found[number] = ids.shape, score, masks

    def finish(self) -> str:
        tasks, interface = self.files
        write_text_parts(tasks, self._parts())
        write_text(interface, self._interface())
        root, folder = show(self.folder.parent), show(self.folder)
        return (
            f"labelstudio: {show(tasks)}, interface: {show(interface)}; serve photos with "
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}, and a local storage {folder}"
        )

    def _interface(self) -> str:
        view = ElementTree.Element("View")
        ElementTree.SubElement(view, "Image", name=IMAGE, value=f"${IMAGE}", zoom="true", zoomControl="true")
        brush = ElementTree.SubElement(view, "BrushLabels", name=BRUSH, toName=IMAGE)
        for name, colour in zip(self.labels.names, self.labels.colours, strict=True):
            ElementTree.SubElement(brush, "Label", value=name, background=f"#{bytes(colour).hex()}")
        ElementTree.indent(view)
        return ElementTree.tostring(view, encoding="unicode") + "\n"

    def _parts(self) -> Iterator[str]:
        """The text of the tasks, one by one."""
        for place, number in enumerate(sorted(self._found)):
            yield ("[\n" if place == 0 else ",\n") + json.dumps(self._task(number))
        yield "\n]\n" if self._found else "[]\n"

    def _task(self, number: int) -> dict:
        photo, ((height, width), score, masks) = self.photos[number], self._found[number]
        served = Path(os.path.abspath(photo.file)).relative_to(self.folder.parent).as_posix()
        results = [
            {
                "id": f"{number}-{value}", "type": "brushlabels", "from_name": BRUSH, "to_name": IMAGE,
                "original_width": width, "original_height": height, "image_rotation": 0,
                "value": {
                    "format": "rle", "rle": list(zlib.decompress(packed)), "brushlabels": [self.labels.names[value]],
                },
            }
            for value, packed in masks
        ]  # fmt: skip
        return {
            "data": {IMAGE: SERVED + quote(os.fsencode(served)), "photo": photo.relative},
            "predictions": [{"model_version": self.run, "score": round(score, 6), "result": results}],
        }
