"""All formats of ``--export``, and the exporters of one command."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from depthg.data.errors import show
from depthg.inference.exports.coco import Coco
from depthg.inference.exports.common import Exporter, ExportPhoto, Labels, clearness, label_names, stems
from depthg.inference.exports.label_studio import LabelStudio
from depthg.inference.exports.masks import Cvat, Voc
from depthg.inference.exports.yolo import Yolo
from depthg.inference.segmenter import Segmenter

FORMATS: dict[str, type[Exporter]] = {kind.NAME: kind for kind in (Coco, Yolo, Voc, Cvat, LabelStudio)}


class Source(Protocol):
    """A photo of the command: its file, and its path as it was given."""

    @property
    def photo(self) -> Path: ...

    @property
    def relative(self) -> str: ...


def formats_of(text: str) -> list[str]:
    """Parses names of formats with commas between them.

    Raises:
        ValueError: an unknown format, or a package that one needs is missing.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in FORMATS:
            raise ValueError(f"{name!r} is not one of the formats {', '.join(FORMATS)}")
        needed = FORMATS[name].NEEDS
        if needed and importlib.util.find_spec(needed) is None:
            raise ValueError(f"{name} needs {needed}: python -m pip install 'depthg[export]'")
    return names


class Exports:
    """The exporters that a command asks for; threads may share it.

    Args:
        chosen: names of formats, as ``formats_of`` gives them for each word of the command line.
        out: folder of the results.
        sources: the photos.
        names: of the ids.
        colours: uint8 [n, 3].
        run: folder of the run.

    Raises:
        ValueError: an output would replace one of the photos.
    """

    def __init__(
        self,
        chosen: Sequence[Sequence[str]],
        out: Path,
        sources: Sequence[Source],
        names: Sequence[str],
        colours: np.ndarray,
        run: Path,
    ):
        relative = [source.relative for source in sources]
        photos = [ExportPhoto(s.photo, s.relative, stem) for s, stem in zip(sources, stems(relative), strict=True)]
        labels, title = Labels(label_names(names), colours), os.path.basename(os.path.realpath(run))
        wanted = dict.fromkeys(name for word in chosen for name in word)
        self._exporters = [FORMATS[name](out, photos, labels, title) for name in wanted]
        self._numbers = {source.photo: number for number, source in enumerate(sources)}
        inputs = {os.path.realpath(source.photo) for source in sources}
        for file in self.files:
            if os.path.realpath(file) in inputs:
                raise ValueError(f"{show(file)} is one of the photos and would be replaced; choose another --out")

    @classmethod
    def of(cls, segmenter: Segmenter, chosen: Sequence[Sequence[str]], out: Path, sources: Sequence[Source]) -> Exports:
        """The exporters for the ids of a run; the id that its legend calls void is no class."""
        n = segmenter.merging.n - segmenter.merging.void
        return cls(chosen, out, sources, segmenter.names[:n], segmenter.colours[:n], segmenter.run.path)

    @property
    def files(self) -> list[Path]:
        """All files that may be written."""
        return [file for exporter in self._exporters for file in exporter.files]

    def add(self, photo: Path, ids: np.ndarray, scores: np.ndarray) -> None:
        """Takes a photo: ids [H, W], and the cosines of its cells, float [n, h, w]."""
        for exporter in self._exporters:
            exporter.add(self._numbers[photo], ids, clearness(scores))

    def finish(self) -> list[str]:
        """Writes what remains; returns a line for each format."""
        return [exporter.finish() for exporter in self._exporters]
