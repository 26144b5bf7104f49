"""What a training writes at its end: final scores, pictures, the confusion matrix and the report."""

from __future__ import annotations

import json
import time
from functools import partial

import numpy as np

from depthg.evaluation.metrics import match_many_to_one, matched_confusion
from depthg.evaluation.protocol import protocol
from depthg.evaluation.training_scores import TrainingScores
from depthg.inference.overlays import cluster_colours
from depthg.model.checkpoints import FILE, add_module, load_modules, read_checkpoint
from depthg.model.run_folder import environment, peak_memory
from depthg.reporting.cluster_crops import write_cluster_crops
from depthg.reporting.figures import confusion_figure, save_figure
from depthg.reporting.panels import write_panels
from depthg.reporting.report import write_report
from depthg.runtime import processes
from depthg.storage.whole_files import write_text
from depthg.training.trainer import Trainer


def finish(trainer: Trainer, scores: TrainingScores) -> dict:
    """Scores the checkpoint that the settings choose and writes the run's results.

    Returns:
        What ``metrics.json`` holds; nothing in processes other than the first.
    """
    started = time.perf_counter()
    config, data = trainer.config, trainer.data
    fit = fit_linear_probes(trainer, scores)
    metrics, assignments, counts = scores.all()
    if not processes.is_main():
        return {}
    if metrics:
        matched = matched_confusion(counts["cluster"], assignments["cluster"])
        metrics["confusion"] = matched.tolist()
        metrics["assignment"] = {name: found.tolist() for name, found in assignments.items()}
        metrics["most_frequent"] = {"cluster": match_many_to_one(counts["cluster"]).tolist()}
        save_figure(confusion_figure(matched, data.dataset.classes), trainer.run / "confusion.png")
    metrics["classes"] = list(data.dataset.classes)
    metrics["palette"] = data.dataset.palette.tolist()
    metrics["protocol"] = protocol(
        config, data.dataset.note, data.depth is not None, trainer.step.shifts, trainer.weights_hash, fit
    )
    metrics["environment"] = environment() | {"processes": str(processes.count())}
    metrics["skipped_iterations"] = trainer.guard.skipped
    metrics["skipped"] = [*skipped(data.dataset.train), *skipped(data.evaluation_split)]
    if config.val.panels:
        matching, count = assignments.get("cluster"), config.val.panels
        write_panels(trainer.run, data, scores.probes(), trainer.model.head, matching, count)
        write_clusters(trainer, metrics, matching)
    trainer.seconds["evaluate"] += time.perf_counter() - started
    seconds = {**trainer.seconds, "total": sum(trainer.seconds.values())}
    metrics["seconds"] = {name: round(value, 2) for name, value in seconds.items()}
    metrics["memory"] = peak_memory()
    write_text(trainer.run / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False))
    write_report(trainer.run)
    return metrics


def fit_linear_probes(trainer: Trainer, scores: TrainingScores) -> dict:
    """Fits the linear probe to the codes of every checkpoint that the run keeps, and stores it there.

    The trainer's model, and the probe of ``scores``, are those of the checkpoint that the settings choose afterwards.

    Returns:
        What the header of that checkpoint holds of the fit; empty if nothing was fitted.
    """
    folder = trainer.run / "checkpoints"
    kept = processes.from_main(lambda: [name for name in ("last", "best") if (folder / name / FILE).is_file()])
    if trainer.config.checkpoint.rule != "best":
        kept.reverse()
    about: dict = {}
    for name in kept:  # the chosen one is the last of them
        if len(kept) > 1:
            found = processes.from_main(partial(read_checkpoint, folder / name))
            load_modules(found[0], trainer.modules(), folder / name)
        about = scores.fit_linear_probe()
        if about and processes.is_main():
            weights = {"weight": scores.fitted.weight, "bias": scores.fitted.bias}
            add_module(folder / name, "fitted_linear", weights, {"linear_fit": about})
    return about


def write_clusters(trainer: Trainer, metrics: dict, matching: np.ndarray | None) -> None:
    """Share and clearest crops of every cluster, under the name of its (else its most frequent) class."""
    classes, model, dataset = metrics["classes"], trainer.model, trainer.data.dataset
    n = len(model.cluster.centroids)
    frequent = np.array(metrics["most_frequent"]["cluster"]) if matching is not None else np.full(n, -1)
    naming = frequent if matching is None else np.where(matching < 0, frequent, matching)
    names = [classes[c] if c >= 0 else f"cluster {number}" for number, c in enumerate(naming)]
    colours = cluster_colours(matching, n, dataset.palette)
    write_cluster_crops(trainer.run, trainer.data, model.head, model.cluster, names, colours)


def skipped(split) -> list[str]:
    """What ``data.on_error=skip`` left out, a line per photo."""
    return list(getattr(split, "skipped", []))
