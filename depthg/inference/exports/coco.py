"""``coco.json``: COCO's layout for stuff, a run-length encoded mask per class and photo. Loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from depthg.data.errors import show
from depthg.inference.exports.common import Exporter, present
from depthg.storage.whole_files import write_text_parts


class Coco(Exporter):
    """Images, categories from id 1, and one annotation per class and photo; ``iscrowd`` is 0."""

    NAME, NEEDS = "coco", "pycocotools"

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._found: dict[int, tuple[tuple[int, int], list[dict]]] = {}

    @property
    def files(self) -> list[Path]:
        return [self.out / "coco.json"]

    def add(self, number: int, ids: np.ndarray, score: float) -> None:
        from pycocotools import mask as masks

        found = []
        for value, inside in present(ids, len(self.labels)):
            code = masks.encode(np.asfortranarray(inside, np.uint8))
            found.append({
                "category_id": value + 1, "area": int(masks.area(code)), "bbox": masks.toBbox(code).tolist(),
                "iscrowd": 0, "segmentation": {"size": list(ids.shape), "counts": code["counts"].decode("ascii")},
            })  # fmt: skip
        self._found[number] = (ids.shape, found)

    def finish(self) -> str:
        [path] = self.files
        write_text_parts(path, self._parts())
        return f"coco: {show(path)}"

    def _parts(self):
        """The text of the file, piece by piece."""
        numbers = sorted(self._found)
        images = [
            {"id": number + 1, "file_name": self.photos[number].relative, "width": width, "height": height}
            for number in numbers
            for height, width in [self._found[number][0]]
        ]
        categories = [
            {"id": i + 1, "name": name, "supercategory": "stuff", "isthing": 0, "color": colour}
            for i, (name, colour) in enumerate(zip(self.labels.names, self.labels.colours.tolist(), strict=True))
        ]
        head = {"info": {"description": self.run}, "licenses": [], "categories": categories, "images": images}
        yield json.dumps(head)[:-1] + ', "annotations": ['
        count = 0
        for number in numbers:
            for found in self._found[number][1]:
                count += 1
                yield (",\n" if count > 1 else "\n") + json.dumps({"id": count, "image_id": number + 1, **found})
        yield "]}\n"
