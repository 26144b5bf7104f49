"""Share and clearest crops of every cluster of a run, kept in its folder for the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from depthg.features.prepared import Prepared
from depthg.inference.clear_crops import ClearCrops, Crop
from depthg.inference.overlays import pixels_of
from depthg.model.codes import codes_of
from depthg.model.heads import ClusterProbe
from depthg.reporting.gallery import ClusterRow, cluster_rows
from depthg.reporting.panels import segment, spread_views
from depthg.reporting.run_files import read_mapping
from depthg.storage.whole_files import write_text, write_whole

FOLDER, FILE = "clusters", "clusters.json"
MOST_VIEWS = 120  # evaluation images that are looked at


def write_cluster_crops(
    run: Path,
    data: Prepared,
    head: torch.nn.Module,
    cluster: ClusterProbe,
    names: Sequence[str],
    colours: np.ndarray,  # uint8 [n, 3]
) -> None:
    """``clusters/clusters.json`` and ``clusters/ID-NUMBER.jpg`` of up to ``MOST_VIEWS`` evaluation images."""
    views = spread_views(len(data.evaluation.features), MOST_VIEWS)
    pixels, crops = np.zeros(len(names), np.int64), ClearCrops(colours)
    for view in views:
        ids = segment(data, head, {"cluster": (True, cluster)}, [view])["cluster"][0]
        pixels += pixels_of(ids, len(names))
        with torch.no_grad():
            codes = codes_of(head, data.evaluation.features[np.array([view])], next(head.parameters()).device)
            scores = cluster(codes)[0].T.unflatten(1, data.evaluation.grid).cpu().numpy()
        crops.offer(data.evaluation_split.names[view], scores, partial(_shown, data, view, ids))
    shares, listed = pixels / max(1, pixels.sum()), []
    for number, (name, found) in enumerate(zip(names, crops.all, strict=True)):
        files = [f"{number:03d}-{place}.jpg" for place in range(len(found))]
        for file, crop in zip(files, found, strict=True):
            write_whole(run / FOLDER / file, partial(_write, crop.jpeg))
        listed.append(
            {
                "id": number, "name": name, "colour": "#" + bytes(colours[number]).hex(),
                "share": round(float(shares[number]), 6),
                "crops": [{"file": file, "photo": crop.photo} for file, crop in zip(files, found, strict=True)],
            }
        )  # fmt: skip
    write_text(run / FOLDER / FILE, json.dumps({"images": len(views), "clusters": listed}, indent=1))


def _shown(data: Prepared, view: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An evaluation image, uint8 [H, W, 3], and its ids."""
    return data.example(view).image.permute(1, 2, 0).numpy(), ids


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def read_cluster_rows(run: Path) -> list[ClusterRow]:
    """The rows of a page; empty for a run without them. Crops whose file is missing are left out.

    Raises:
        ValueError: the list is damaged.
    """
    path = run / FOLDER / FILE
    clusters = read_mapping(path).get("clusters", [])
    try:
        crops = [
            [
                Crop(0.0, crop["photo"], file.read_bytes())
                for crop in entry["crops"]
                if (file := run / FOLDER / Path(crop["file"]).name).is_file()
            ]
            for entry in clusters
        ]
        return cluster_rows(clusters, crops)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); remove it, then build again") from error
