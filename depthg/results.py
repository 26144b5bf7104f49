"""What a person looks at after a run: a table of scores and sheets of example pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from depthg.config import Config
from depthg.evaluate import READ_OUTS, codes_of, predict_ids
from depthg.pictures import Example, panel_sheet, save_png
from depthg.prepare import Prepared

NAMES = {
    "cluster": "clusters", "linear": "linear probe\n(uses labels)",
    "kmeans_codes": "k-means\non codes", "kmeans_features": "k-means\non features",
}  # fmt: skip
ROWS_PER_SHEET = 4


def protocol(config: Config, data: Prepared, shifts: tuple) -> dict:
    """What every number of a run depends on."""
    depth, guided = config.loss.depth, data.depth is not None
    term = f"{depth.relation}, weight {depth.weight:g}" if guided and depth.weight else "off"
    return {
        "data": config.data.name, "photos": data.dataset.note or "all", "split": config.data.eval_split,
        "resolution": list(config.data.eval_size),
        "crop": "scaled to cover, centre crop", "flip": False, "crf": False, "checkpoint": config.checkpoint.rule,
        "matching": config.val.matching, "count": config.val.count, "seed": config.seed, "mode": config.mode,
        "iterations": config.iterations, "backbone": config.backbone.name, "pca": config.backbone.pca,
        "sampling": config.sampling.method if guided else "random", "depth": config.depth.source, "depth_term": term,
        "probe_reinit": config.probe.reinit if config.probe.reinit <= config.iterations else 0, "shifts": list(shifts),
    }  # fmt: skip


def print_metrics(metrics: dict, run: Path, console: Console) -> None:
    """The read-outs with per-class IoU, the protocol they were measured under, and where the pictures are."""
    classes = metrics["classes"]
    if classes:
        read_outs = [name for name in READ_OUTS if f"{name}.accuracy" in metrics]
        table = Table("percent", *(NAMES[name] for name in read_outs), title="scores")
        for score, text in (("accuracy", "accuracy"), ("miou", "mIoU")):
            table.add_row(text, *(f"{metrics[f'{name}.{score}']:.1f}" for name in read_outs), style="bold")
        table.add_section()
        for label in classes:
            values = [metrics["per_class"][name][label] for name in read_outs]
            table.add_row(f"IoU {label}", *("-" if value is None else f"{value:.1f}" for value in values))
        console.print(table)
    else:
        console.print("no labels: clusters and pictures only")
    console.print("protocol: " + json.dumps(metrics["protocol"])[1:-1].replace('"', ""), highlight=False)
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in metrics["seconds"].items())
    console.print(f"time: {seconds}\npictures: {run / 'panels'}\nreport: {run / 'report.html'}", highlight=False)


def write_panels(
    run: Path, data: Prepared, read_outs: dict, head: torch.nn.Module, assignment: np.ndarray | None, count: int
) -> None:
    """Sheets ``panels/00.png`` ... of evenly spread evaluation images: photo, depth, label, clusters, linear."""
    evaluation, device = data.evaluation, next(head.parameters()).device
    views = np.unique(
        np.linspace(0, len(evaluation.features) - 1, min(count, len(evaluation.features))).round().astype(int)
    )
    examples = []
    for view in map(int, views):
        shown = data.example(view)
        codes = codes_of(head, evaluation.features[view : view + 1], device)
        with torch.no_grad():
            ids = {
                name: predict_ids(read(codes), evaluation.grid, evaluation.size)[0].cpu().numpy()
                for name, (_, read) in read_outs.items()
            }
        examples.append(
            Example(
                image=shown.image.permute(1, 2, 0).numpy(),
                clusters=ids["cluster"],
                depth=shown.maps["depth"][0].numpy() if shown.maps else None,
                label=None if shown.label is None else shown.label.numpy(),
                linear=ids.get("linear"),
                name=data.evaluation_split.names[view],
            )
        )
    (run / "panels").mkdir(exist_ok=True)
    for number, start in enumerate(range(0, len(examples), ROWS_PER_SHEET)):
        sheet = panel_sheet(
            examples[start : start + ROWS_PER_SHEET],
            classes=data.dataset.classes,
            palette=data.dataset.palette if data.dataset.classes else None,
            assignment=assignment,
            n_clusters=read_outs["cluster"][1].centroids.shape[0],
        )
        save_png(sheet, run / "panels" / f"{number:02d}.png")
