"""``yolo/``: a text file of polygons per photo and ``data.yaml``, as YOLO's segmentation data sets have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from depthg.data.errors import show
from depthg.inference.exports.common import Exporter, present
from depthg.inference.exports.polygons import polygons
from depthg.storage.whole_files import write_text, write_whole

FEWEST_PIXELS = 8  # smaller regions are left out


class Yolo(Exporter):
    """A line per connected region: the id, then x and y of its polygon relative to the photo's width and height."""

    NAME = "yolo"

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._dropped: dict[int, tuple[int, int]] = {}

    def _path(self, number: int) -> Path:
        return self.out / "yolo" / "labels" / f"{self.photos[number].stem}.txt"

    @property
    def files(self) -> list[Path]:
        return [self.out / "yolo" / "data.yaml", *map(self._path, range(len(self.photos)))]

    def add(self, number: int, ids: np.ndarray, score: float) -> None:
        size = np.array(ids.shape[::-1])
        lines, regions, lost = [], 0, 0
        for value, inside in present(ids, len(self.labels)):
            for points, pixels in polygons(inside, FEWEST_PIXELS):
                if pixels < FEWEST_PIXELS:
                    regions, lost = regions + 1, lost + pixels
                else:
                    places = " ".join(f"{part:.7f}".rstrip("0").rstrip(".") for part in (points / size).ravel())
                    lines.append(f"{value} {places}\n")
        text = "".join(lines)
        write_whole(self._path(number), lambda partial: partial.write_text(text, encoding="ascii"), flush=False)
        self._dropped[number] = regions, lost

    def finish(self) -> str:
        content = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(self.labels.names))}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
        write_text(self.files[0], text)
        regions, lost = (sum(part) for part in zip(*self._dropped.values(), strict=True)) if self._dropped else (0, 0)
        left_out = f"; {regions:,} regions below {FEWEST_PIXELS} pixels are left out ({lost:,} pixels)" * bool(regions)
        return f"yolo: {show(self.files[0].parent)}{left_out}"
