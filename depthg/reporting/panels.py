"""Example pictures of a run: the best, the median and the worst images, or without labels an even spread."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from depthg.evaluation.metrics import image_confusions, scores
from depthg.features.prepared import Prepared
from depthg.inference.read_outs import predict_ids
from depthg.model.codes import codes_of
from depthg.model.heads import ClusterProbe
from depthg.model.run_folder import SCORES_FILE
from depthg.reporting.page import NARROW_FOLDER
from depthg.reporting.pictures import NARROW, Example, panel_sheet, save_png
from depthg.storage.whole_files import write_text

ROWS_PER_SHEET = 4
RANKS = ("best", "median", "worst")
BATCH = 16


@dataclass(frozen=True)
class ImageScores:
    """Scores of single images in percent; NaN where no pixel is labelled."""

    accuracy: np.ndarray  # float64 [V]
    miou: np.ndarray  # float64 [V], mean over the classes in the image's label


def segment(data: Prepared, head: torch.nn.Module, read_outs: Mapping, views: Sequence[int]) -> dict[str, np.ndarray]:
    """Ids of some evaluation images per read-out ``(uses_codes, function)`` of codes: int64 ``[len(views), H, W]``."""
    evaluation, device = data.evaluation, next(head.parameters()).device
    codes = codes_of(head, evaluation.features[np.asarray(views)], device)
    with torch.no_grad():
        maps = {
            name: predict_ids(read(codes), evaluation.grid, evaluation.size) for name, (_, read) in read_outs.items()
        }
    return {name: ids.cpu().numpy() for name, ids in maps.items()}


def split_confusions(data: Prepared, head: torch.nn.Module, cluster: ClusterProbe) -> np.ndarray:
    """Confusion matrix of every evaluation image: int64 ``[V, n_classes, n_clusters]``."""
    n_images, n_classes, found = len(data.evaluation.features), len(data.dataset.classes), []
    for start in range(0, n_images, BATCH):
        views = np.arange(start, min(start + BATCH, n_images))
        ids = segment(data, head, {"cluster": (True, cluster)}, views.tolist())["cluster"]
        labels = torch.from_numpy(np.asarray(data.evaluation.labels[views]).astype(np.int64))
        found.append(image_confusions(torch.from_numpy(ids), labels, len(cluster.centroids), n_classes))
    return np.concatenate(found)


def image_scores(confusions: np.ndarray, assignment: np.ndarray) -> ImageScores:
    """Accuracy and mIoU of every image under the matching of the whole split.

    Args:
        confusions: counts [V, n_classes, n_clusters].
        assignment: int [n_clusters], class of every cluster or -1.
    """
    accuracy, miou = np.full(len(confusions), np.nan), np.full(len(confusions), np.nan)
    for number, counts in enumerate(confusions):
        if counts.any():
            found = scores(counts, assignment)
            accuracy[number], miou[number] = found.accuracy, found.miou
    return ImageScores(accuracy, miou)


def ranked_views(miou: np.ndarray, count: int) -> dict[str, list[int]]:
    """Up to ``count`` images in all: those with the highest mIoU, around the median, and with the lowest.

    Best first in every group; NaN is left out, and no image is in two groups.
    """
    order = np.argsort(-miou, kind="stable")
    order = order[~np.isnan(miou[order])]
    count = min(count, len(order))
    n_best = -(-count // 3)
    n_worst = -(-(count - n_best) // 2)
    n_median = count - n_best - n_worst
    middle = np.clip(len(order) // 2 - n_median // 2, n_best, len(order) - n_worst - n_median)
    groups = (order[:n_best], order[middle : middle + n_median], order[len(order) - n_worst :])
    return {rank: group.tolist() for rank, group in zip(RANKS, groups, strict=True) if len(group)}


def spread_views(n_images: int, count: int) -> list[int]:
    """``count`` views, evenly spread."""
    return np.unique(np.linspace(0, n_images - 1, min(count, n_images)).round().astype(int)).tolist()


def write_image_scores(path: Path, names: Sequence[str], found: ImageScores) -> None:
    """``name, accuracy, miou`` per evaluation image, as CSV; empty where no pixel is labelled."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", "accuracy", "miou"))
    for name, *values in zip(names, found.accuracy, found.miou, strict=True):
        writer.writerow((name, *("" if np.isnan(value) else f"{value:.3f}" for value in values)))
    write_text(path, text.getvalue())


def example(data: Prepared, view: int, clusters: np.ndarray, linear: np.ndarray | None, note: str) -> Example:
    """Row of a sheet: an evaluation image with two segmentations, ``note`` behind its name."""
    shown = data.example(view)
    return Example(
        image=shown.image.permute(1, 2, 0).numpy(),
        clusters=clusters,
        depth=shown.maps["depth"][0].numpy() if shown.maps else None,
        label=None if shown.label is None else shown.label.numpy(),
        linear=linear,
        name=data.evaluation_split.names[view] + note,
    )


def write_panels(
    run: Path, data: Prepared, read_outs: Mapping, head: torch.nn.Module, assignment: np.ndarray | None, count: int
) -> None:
    """``panels/best.png``, ``median.png``, ``worst.png`` and ``images.csv``; without labels ``panels/00.png`` ...

    ``panels/narrow`` holds the same sheets for phones, with two tiles side by side (where there are more).

    Args:
        run: the run folder.
        read_outs: ``(True, function of codes)`` per name: "cluster" and, with labels, "linear" and "linear_joint"; the
            second is drawn where the first is missing.
        assignment: class of every cluster; None without labels.
        count: pictures in all.
    """
    cluster, notes = read_outs["cluster"][1], {}
    if assignment is None:
        views = spread_views(len(data.evaluation.features), count)
        starts = range(0, len(views), ROWS_PER_SHEET)
        sheets = {f"{n:02d}": views[start : start + ROWS_PER_SHEET] for n, start in enumerate(starts)}
    else:
        found = image_scores(split_confusions(data, head, cluster), assignment)
        write_image_scores(run / SCORES_FILE, data.evaluation_split.names, found)
        sheets = ranked_views(found.miou, count)
        notes = {
            view: f" · mIoU {found.miou[view]:.0f}, accuracy {found.accuracy[view]:.0f}"
            for views in sheets.values()
            for view in views
        }
    for name, views in sheets.items():
        ids = [{key: maps[0] for key, maps in segment(data, head, read_outs, [view]).items()} for view in views]
        rows = [
            example(data, view, found["cluster"], found.get("linear", found.get("linear_joint")), notes.get(view, ""))
            for view, found in zip(views, ids, strict=True)
        ]
        wide, narrow = (
            panel_sheet(
                rows,
                classes=data.dataset.classes,
                palette=data.dataset.palette if data.dataset.classes else None,
                assignment=assignment,
                n_clusters=len(cluster.centroids),
                columns=columns,
            )
            for columns in (None, NARROW)
        )
        save_png(wide, run / "panels" / f"{name}.png")
        if narrow.size != wide.size:
            save_png(narrow, run / "panels" / NARROW_FOLDER / f"{name}.png")
