"""Share and clearest crops of every cluster of a run, kept in its folder for the report."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from depthg.features.prepared import Prepared
from depthg.inference.clear_crops import MOST, ClearCrops, Crop
from depthg.inference.overlays import pixels_of
from depthg.model.codes import codes_of
from depthg.model.heads import ClusterProbe
from depthg.model.legend import Legend, checksum_of, read_legend
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
    text = {"images": len(views), "made_for": checksum_of(cluster.centroids), "clusters": listed}
    write_text(run / FOLDER / FILE, json.dumps(text, indent=1))


def _shown(data: Prepared, view: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An evaluation image, uint8 [H, W, 3], and its ids."""
    return data.example(view).image.permute(1, 2, 0).numpy(), ids


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def read_cluster_rows(run: Path) -> list[ClusterRow]:
    """The rows of a page, merged and named by the run's legend; empty for a run without them.

    Crops whose file is missing are left out.

    Raises:
        ValueError: the list or the legend is damaged.
    """
    path = run / FOLDER / FILE
    stored = read_mapping(path)
    clusters = stored.get("clusters", [])
    try:
        names = [str(entry["name"]) for entry in clusters]
        crops = [
            [
                Crop(0.0, crop["photo"], file.read_bytes())
                for crop in entry["crops"]
                if (file := run / FOLDER / Path(crop["file"]).name).is_file()
            ]
            for entry in clusters
        ]
        rows = cluster_rows(clusters, crops)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); remove it, then build again") from error
    legend = read_legend(run, names, stored.get("made_for")) if names else None
    return rows if legend is None else cluster_rows(*_merged(legend, clusters, crops))


def _merged(legend: Legend, clusters: Sequence[dict], crops: Sequence[list[Crop]]) -> tuple[list[dict], list]:
    """Clusters and crops of the legend's classes: first one crop of each of its clusters, then a second, ..."""
    entries, found = [], []
    for index, name in enumerate(legend.names):
        own = np.flatnonzero(legend.table == index).tolist()
        colour = legend.colours.get(name)
        entries.append(
            {
                "id": index, "name": name, "share": sum(clusters[i]["share"] for i in own),
                "colour": "#" + bytes(colour).hex() if colour else clusters[own[0]]["colour"],
            }
        )  # fmt: skip
        turns = itertools.chain.from_iterable(itertools.zip_longest(*(crops[i] for i in own)))
        found.append([crop for crop in turns if crop is not None][:MOST])
    return entries, found
