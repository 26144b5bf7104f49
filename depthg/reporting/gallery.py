"""Clusters with colour, share and clearest crops: the page ``index.html`` of a prediction, and a part of reports."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from PIL import Image

from depthg.inference.clear_crops import Crop
from depthg.inference.overlays import short_name
from depthg.reporting.page import data_address, render
from depthg.storage.whole_files import write_text

INDEX = "index.html"
MOST_THUMBS, THUMB = 12, 480  # photos shown, and their width in pixels


class ClusterRow(NamedTuple):
    """A cluster on a page."""

    label: str
    colour: str  # #rrggbb
    share: str
    crops: list[tuple[str, str]]  # address and photo


def cluster_rows(clusters: Sequence[Mapping], crops: Sequence[Sequence[Crop]]) -> list[ClusterRow]:
    """Rows of the clusters that occur, the largest first.

    Args:
        clusters: ``id``, ``name``, ``colour`` and ``share`` (of 1) of every cluster.
        crops: of every cluster, the clearest first.
    """
    both = sorted(zip(clusters, crops, strict=True), key=lambda pair: -pair[0]["share"])
    return [
        ClusterRow(
            " ".join(dict.fromkeys((str(c["id"]), short_name(c["id"], c["name"])))), c["colour"],
            f"{100 * c['share']:.1f} %", [(data_address(crop.jpeg, "jpeg"), crop.photo) for crop in found],
        )
        for c, found in both
        if c["share"] > 0
    ]  # fmt: skip


def write_gallery(out: Path, legend: Mapping, crops: Sequence[Sequence[Crop]]) -> Path:
    """Writes ``out/index.html``: the clusters, some photos, and links to the files of all photos.

    Args:
        out: folder of the prediction.
        legend: content of its ``legend.json``.
        crops: the clearest crops of every cluster.
    """
    photos = legend["photos"]
    shown = np.unique(np.linspace(0, len(photos) - 1, min(MOST_THUMBS, len(photos))).round().astype(int)).tolist()
    about = [Path(legend["run"]).name, f"{len(legend['ids'])} clusters", f"window {legend['window']}"]
    content = {
        "title": f"Segmentation of {len(photos)} photos", "failed": legend["failed"],
        "subtitle": [*about, *(text for text in ("flip", "crf") if legend.get(text))],
        "clusters": cluster_rows(legend["ids"], crops),
        "thumbs": [found for index in shown if (found := _thumb(out, photos[index]))],
        "links": [(Path(photo["photo"]).name, quote(_shown_file(photo))) for photo in photos],
    }  # fmt: skip
    write_text(out / INDEX, render("gallery.html", content))
    return out / INDEX


def _shown_file(photo: Mapping) -> str:
    """The overlay of a photo, or its ids where there is none."""
    files = photo["files"]
    return next((file for file in files if file.startswith("overlay/")), files[0])


def _thumb(out: Path, photo: Mapping) -> tuple[str, str, str] | None:
    """Link, picture and name of a photo's overlay; None without one."""
    file = _shown_file(photo)
    if not file.startswith("overlay/"):
        return None
    with Image.open(out / file) as picture:
        picture.thumbnail((THUMB, 2 * THUMB))
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, format="JPEG", quality=85)
    return quote(file), data_address(buffer.getvalue(), "jpeg"), Path(photo["photo"]).name
