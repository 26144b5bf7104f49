"""The training loop of STEGO and DepthG on frozen features, with checkpoints and log in a run folder."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console

from depthg.config.composing import stored_settings
from depthg.config.schema import Config
from depthg.features.preparation import Preparation
from depthg.features.prepared import Prepared
from depthg.model.checkpoints import FILE, load_modules, load_optimizers, read_checkpoint, save_checkpoint
from depthg.model.clustering import cosine_kmeans
from depthg.model.codes import training_codes
from depthg.model.run_folder import MetricLog, RunLock, check_run, create_run, run_path
from depthg.runtime import processes
from depthg.runtime.device import pick_device, to_device
from depthg.runtime.progress import training_bar
from depthg.runtime.seeds import seed_of
from depthg.runtime.stopping import StopRequest
from depthg.training.batches import draw_batch
from depthg.training.nonfinite import FiniteGuard, last_checkpoint
from depthg.training.schedules import restart_iteration, unreached
from depthg.training.step import Model, Step


class Trainer:
    """One run: data, model, optimisers and the run folder. Settings are checked before the folder is changed.

    With several processes, only the first one writes and prints.
    """

    def __init__(self, config: Config, lock: RunLock | None = None):
        started = time.perf_counter()
        self.console, self.device = Console(quiet=not processes.is_main()), pick_device(config.device)
        processes.start(self.device)
        check_shares(config)
        if config.data.class_map:
            raise ValueError(f"data.class_map={config.data.class_map} is for depthg.evaluate; leave it out here")
        if config.data.labels and not config.data.held_out:
            raise ValueError(
                "data.held_out=false scores photos whose labels the linear probe is trained on; leave it out here, and "
                "give it to depthg.evaluate"
            )
        self.config = config = dataclasses.replace(config, precision=processes.precision(config.precision))
        # Missing photos are named before a run that exists already, but that is named before scenes are rendered.
        early = None if config.data.name == "scenes" else Preparation(config, self.device)
        processes.from_main(lambda: check_run(config))
        preparation = early or Preparation(config, self.device)
        self.config = config = preparation.config  # with the range of the photos
        self.data, self.weights_hash = preparation.run(), preparation.backbone.weights_hash
        check_data(config, self.data, self.console)
        stored = stored_settings(run_path(config))["iterations"] if config.resume else config.iterations
        if lock is not None:
            processes.from_main(lambda: bool(lock.take()))
        self.run = processes.from_main(lambda: create_run(config))
        torch.manual_seed(seed_of(config.seed, "weights"))
        classes = self.data.dataset.classes
        channels, clusters = self.data.transform.channels, config.n_classes or len(classes)
        self.model = Model(channels, config.head.dim, config.head.dropout, len(classes), clusters).to(self.device)
        rates = {"head": config.head.lr, "linear": config.probe.lr, "cluster": config.probe.lr}
        self.optimizers = {name: adam(module, rates[name], self.device) for name, module in self.model.named_children()}
        self.step = Step(config, self.data, self.model, self.device)
        self.guard = FiniteGuard(self.run, config.train.on_nan, self.console)
        self.iteration, self.best = 0, -1.0
        self.seconds = {"prepare": time.perf_counter() - started, "train": 0.0, "evaluate": 0.0}
        resumed = config.resume and self.restore()
        if note := resume_note(config, stored, self.iteration):
            self.console.print(note, highlight=False, soft_wrap=True)
        if not resumed and config.loss.shifts == "auto":
            self.step.shifts = self.step.auto_shifts()
        self.log = MetricLog(self.run, self.iteration) if processes.is_main() else None

    def modules(self) -> dict[str, torch.nn.Module]:
        return {"transform": self.data.transform, **dict(self.model.named_children())}

    def save(self, name: str = "last") -> None:
        self.guard.settle()
        header = {
            "iteration": self.iteration, "shifts": self.step.shifts, "best": self.best, "seconds": self.seconds,
            "backbone": self.config.backbone.name, "weights": self.weights_hash,
            "stages": self.data.transform.stages, "classes": self.data.dataset.classes,
            "features": self.data.features_key, "skipped": self.guard.skipped,
        }  # fmt: skip
        if processes.is_main():
            save_checkpoint(self.run / "checkpoints" / name, self.modules(), self.optimizers, header)

    def restore(self) -> bool:
        """Restores ``checkpoints/last``; returns False if the run was killed before its first checkpoint.

        Raises:
            ValueError: the checkpoint belongs to other features.
        """
        folder = self.run / "checkpoints" / "last"
        found = processes.from_main(lambda: read_checkpoint(folder) if (folder / FILE).is_file() else None)
        if found is None:
            return False
        tensors, header = found
        if header["features"] != self.data.features_key:
            raise ValueError(
                f"{self.run} was trained on other photos, weights or settings than are found now; start anew"
            )
        load_modules(tensors, self.modules(), folder)
        load_optimizers(tensors, self.optimizers)
        self.iteration, self.best = header["iteration"], header["best"]
        self.step.shifts = tuple(header["shifts"])
        self.guard.skipped = header.get("skipped", [])
        self.seconds = {name: value + header["seconds"][name] for name, value in self.seconds.items()}
        return True

    def train(self, score: Callable[[], dict] = dict) -> None:
        """The training loop: losses, three optimisers, then log, validate and save when due.

        Args:
            score: returns metrics of the current model, for ``val.every``; empty without labels.
        """
        config, restart_at = self.config, restart_iteration(self.config.probe.reinit, self.config.iterations)
        with training_bar(self.console) as bar, StopRequest() as stop:
            task = bar.add_task("training", total=config.iterations, completed=self.iteration, loss="")
            while self.iteration < config.iterations:
                started = time.perf_counter()
                losses, logged = self.step.losses(self.iteration)
                for optimizer in self.optimizers.values():
                    optimizer.zero_grad(set_to_none=True)
                total: Any = sum(losses.values())
                total.backward()
                processes.average_gradients(list(self.model.parameters()))
                finite = self.guard.passes(self.step, self.iteration, losses, logged, self.optimizers.values())
                for optimizer in self.optimizers.values() if finite else ():
                    optimizer.step()
                self.iteration += 1
                restart = self.iteration == restart_at
                if restart or self.due(config.log_every) or self.due(config.val.every):
                    finite = self.guard.settle() and finite  # before the step is used below; save() settles by itself
                if restart:
                    self.reinitialize_clusters()
                self.seconds["train"] += time.perf_counter() - started
                if self.due(config.log_every) and finite:
                    bar.update(task, loss=f"loss {self.log_step({'loss': losses['total'].detach(), **logged}):.4f}")
                if self.due(config.val.every):
                    self.validate(score)
                stopping = processes.any_of(stop.requested)
                if self.due(config.checkpoint.every) or stopping:
                    self.save()
                if stopping:
                    raise KeyboardInterrupt
                bar.update(task, completed=self.iteration)
        self.save()

    def due(self, every: int) -> bool:
        return bool(every) and (self.iteration % every == 0)

    def log_step(self, values: dict) -> float:
        """Writes means over processes to ``metrics.jsonl`` and returns the loss.

        Raises:
            ValueError: a value is not finite.
        """
        started = time.perf_counter()
        values = processes.averages(values)
        self.seconds["train"] += time.perf_counter() - started
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"{name} is {float(value)} at iteration {self.iteration}: training diverged; lower head.lr or "
                    f"probe.lr ({last_checkpoint(self.run)})"
                )
        self.write_log({**values, "seconds": self.seconds["train"]})
        return values["loss"]

    def write_log(self, values: dict) -> None:
        if self.log is not None:
            self.log.write(self.iteration, values)

    def reinitialize_clusters(self) -> None:
        """Moves the cluster probe's centroids to k-means centroids of training codes, and resets their optimiser.

        The new centroids get the mean length of the old ones.
        """
        probe = self.model.cluster
        with torch.no_grad():
            probe.centroids.copy_(self.code_centroids() * probe.centroids.norm(dim=1).mean())
        self.optimizers["cluster"].state.clear()

    def kmeans(self, vectors: Callable[[], torch.Tensor]) -> torch.Tensor:
        """k-means centroids of vectors, on the device; the first process computes them for all."""
        clusters, seed = len(self.model.cluster.centroids), self.config.seed
        found = processes.from_main(lambda: cosine_kmeans(vectors(), clusters, seed=seed).cpu())
        return to_device(found, self.device)

    def code_centroids(self) -> torch.Tensor:
        """k-means centroids of training codes."""
        head, features, count = self.model.head, self.data.features, self.config.val.kmeans_samples
        return self.kmeans(lambda: training_codes(head, features, count, self.config.seed, self.device))

    def validate(self, score: Callable[[], dict]) -> None:
        """Logs the metrics and, unless ``checkpoint.rule=last``, saves the best checkpoint by ``checkpoint.by``."""
        started = time.perf_counter()
        metrics = score()
        if metrics:
            self.write_log({key: value for key, value in metrics.items() if key != "per_class"})
            value = metrics[f"cluster.{self.config.checkpoint.by}"]
            if self.config.checkpoint.rule != "last" and value > self.best:
                self.best = value
                self.save("best")
        self.seconds["evaluate"] += time.perf_counter() - started


def adam(module: torch.nn.Module, rate: float, device: torch.device) -> torch.optim.Adam:
    """The optimiser of a module; on a GPU the fused version, which can skip a step by itself (see ``FiniteGuard``)."""
    return torch.optim.Adam(module.parameters(), lr=rate, fused=True if device.type == "cuda" else None)


def resume_note(config: Config, stored: int, iteration: int) -> str:
    """What a run that is resumed does otherwise than before; empty for a new one and where nothing has changed.

    Args:
        stored: the ``iterations`` that it had.
        iteration: where it goes on.
    """
    if not config.resume or (config.iterations == stored and iteration < stored):
        return ""
    changed = f"iterations={config.iterations} instead of {stored}; " if config.iterations != stored else ""
    if iteration >= config.iterations:
        return f"resume: {changed}iteration {iteration} is reached already, nothing is trained"
    restart = restart_iteration(config.probe.reinit, config.iterations)
    after = f", cluster probe restarted at {restart}" if restart > iteration else ""
    return f"resume: {changed}goes on at iteration {iteration}{after}"


def check_shares(config: Config) -> None:
    """Raises ValueError if the batch cannot be divided equally among processes with enough images for negatives."""
    share = processes.share_of(config.batch_size, "batch_size")
    if share is not None and config.loss.scope == "process" and share.size < 2:
        raise ValueError(
            f"loss.scope=process leaves {share.size} image to each of {processes.count()} processes and no negative; "
            f"use batch_size={2 * processes.count()} or more, or loss.scope=global"
        )
    if share is not None and config.last_batch == "keep":
        raise ValueError(f"last_batch=keep cannot be divided among {processes.count()} processes; use last_batch=drop")


def check_data(config: Config, data: Prepared, console: Console) -> None:
    """Raises ValueError for settings that do not fit the data; prints a note if depth is missing but configured."""
    draw_batch(config, data, 0)  # raises if the batch is larger than the data set
    alone = config.last_batch == "keep" and len(data.features) % config.batch_size == 1
    if alone and config.loss.negative.pairing == "derangement":
        raise ValueError(
            f"last_batch=keep: the last batch of {len(data.features)} images in batches of {config.batch_size} "
            f"holds one image, which has no negative; use last_batch=drop or another batch_size"
        )
    rule = config.checkpoint.rule
    if rule != "last" and data.evaluation.labels is None:
        raise ValueError(f"checkpoint.rule={rule} needs labels to pick a checkpoint by; use checkpoint.rule=last")
    if data.depth is None and (config.loss.depth.weight or config.sampling.method == "fps"):
        console.print("depth.source=none: plain STEGO, with random points and without the depth term")
    if never := unreached(config):
        console.print(f"iterations={config.iterations} ends before {', '.join(never)}", highlight=False, soft_wrap=True)
