"""Images that gained and lost most from one run to another, segmented by both."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from depthg.features.preparation import Preparation
from depthg.model.loaded_run import load_run
from depthg.reporting.page import Sheet, data_address
from depthg.reporting.panels import example, ranked_views, segment
from depthg.reporting.pictures import NARROW, panel_sheet
from depthg.runtime.command import USER_ERRORS

RANKS = {"best": "Gained most", "median": "Around the median change", "worst": "Lost most, or gained least"}
PICTURES = 6


class Reader:
    """Segmentations of a run's evaluation images as classes, from its kept features.

    Raises:
        ValueError, OSError, DataError: checkpoint or photos are missing, or are not those of the training.
    """

    def __init__(self, run: Path, checkpoint: str):
        self.run = load_run(run, checkpoint)
        self.data = Preparation(self.run.config, self.run.device).run()
        if self.run.header.get("features") != self.data.features_key:
            raise ValueError(f"{run} was trained on other photos, weights or settings than are found now")
        self.assignment = self.run.assignment
        if self.assignment is None:
            raise ValueError(f"{run} does not say which cluster is which class")

    def classes_of(self, view: int) -> np.ndarray:  # int [H, W], -1 = cluster without a class
        ids = segment(self.data, self.run.head, {"cluster": (True, self.run.cluster)}, [view])["cluster"][0]
        return self.assignment[ids]


def changed_sheets(
    runs: Sequence[tuple[Path, str]], labels: Sequence[str], images: Sequence[Mapping[str, tuple[float, float]]]
) -> tuple[list[Sheet], str]:
    """Sheets of the images whose mIoU changed most; without them, a sentence that says what is missing.

    Args:
        runs: folder and checkpoint of both.
        labels: what they are called.
        images: accuracy and mIoU by image name, of both.
    """
    names = [name for name in images[0] if name in images[1]]
    if not names:
        return [], "images.csv is missing in one of the runs (val.panels=0)."
    before, after = (np.array([found[name][1] for name in names]) for found in images)
    try:
        readers = [Reader(*run) for run in runs]
        groups = ranked_views(after - before, PICTURES)
        chosen = {rank: [(names[v], before[v], after[v]) for v in views] for rank, views in groups.items()}
        return [_sheet(readers, labels, RANKS[rank], images) for rank, images in chosen.items()], ""
    except USER_ERRORS as error:
        return [], str(error)


def _sheet(
    readers: Sequence[Reader], labels: Sequence[str], title: str, chosen: Sequence[tuple[str, float, float]]
) -> Sheet:
    data, rows = readers[1].data, []
    for name, before, after in chosen:
        view = data.evaluation_split.names.index(name)
        first, second = (reader.classes_of(view) for reader in readers)
        rows.append(example(data, view, first, second, f" · mIoU {before:.0f} to {after:.0f}"))
    titles = {field: label[0].upper() + label[1:] for field, label in zip(("clusters", "linear"), labels, strict=True)}
    colours: dict[str, Any] = {"classes": data.dataset.classes, "palette": data.dataset.palette, "titles": titles}
    picture = panel_sheet(rows, **colours)
    narrow = panel_sheet([replace(row, depth=None) for row in rows], columns=NARROW, **colours)  # both side by side
    alt = f"{title}: photo, label and both segmentations"
    return Sheet(_png_address(picture), picture.width, alt, title, _png_address(narrow))


def _png_address(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return data_address(buffer.getvalue())
