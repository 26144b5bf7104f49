"""The protocol of a run, and printing of its scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from depthg.backbones import weights_source
from depthg.config.schema import Config
from depthg.inference.read_outs import READ_OUTS, SCORES
from depthg.training.schedules import restart_iteration


def protocol(
    config: Config, photos: str, guided: bool, shifts: Sequence[float], weights: str, fit: Mapping | None = None
) -> dict:
    """The protocol: settings that the scores of a run depend on.

    Args:
        photos: note on which photos and lists of the data set were found; empty: all.
        guided: True if the run had depth.
        shifts: b of self, neighbour and negative pairs.
        weights: hash of the backbone's weights.
        fit: what the checkpoint says about the fit of its linear probe; None or empty: it has none.
    """
    depth = config.loss.depth
    term = f"{depth.relation}, weight {depth.weight:g}" if guided and depth.weight else "off"
    return {
        "data": config.data.name, "photos": photos or "all", "split": config.data.eval_split,
        "resolution": list(config.data.eval_size),
        "crop": "scaled to cover, centre crop", "flip": False, "crf": False,
        "checkpoint": "best" if config.checkpoint.rule == "best" else "last", "best_by": config.checkpoint.by,
        "matching": config.val.matching, "count": config.val.count, "seed": config.seed, "mode": config.mode,
        "iterations": config.iterations, "backbone": config.backbone.name, "pca": config.backbone.pca,
        "weights": f"{weights_source(config.backbone.name, config.backbone.weights)}, hash {weights}",
        "sampling": config.sampling.method if guided else "random", "depth": config.depth.source, "depth_term": term,
        "probe_reinit": restart_iteration(config.probe.reinit, config.iterations),
        "probe_cells": config.probe.cells or "all", "shifts": list(shifts),
        **({"linear": "fitted to convergence", "linear_cells": fit["cells"]} if fit else {}),
    }  # fmt: skip


def print_metrics(metrics: dict, run: Path, console: Console) -> None:
    """Prints scores and per-class IoU of the read-outs, the protocol, times, and the paths of pictures and report."""
    classes = metrics["classes"]
    if classes:
        read_outs = [name for name in READ_OUTS if f"{name}.accuracy" in metrics]
        table = Table("percent", *(READ_OUTS[name].head for name in read_outs), title="scores")
        for score, text in SCORES.items():
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
