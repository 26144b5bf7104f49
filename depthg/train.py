"""``python -m depthg.train``: trains STEGO + DepthG on frozen features, evaluates, and writes a run folder."""

from __future__ import annotations

import json
import time

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from depthg.checkpoints import load_modules, load_optimizers, read_checkpoint, save_checkpoint, write_text
from depthg.cli import run_command
from depthg.clustering import cosine_kmeans
from depthg.config import Config
from depthg.evaluate import confusions, kmeans_read_outs, summarize, training_codes
from depthg.figures import confusion_figure, save_figure
from depthg.metrics import matched_confusion
from depthg.prepare import Preparation
from depthg.report import write_report
from depthg.results import print_metrics, write_panels
from depthg.run_folder import MetricLog, create_run, environment, open_run
from depthg.step import Model, Step, seed_of

SUMMARY = """Trains STEGO + DepthG on frozen features, without labels, and evaluates the segmentation.
With no argument: the embedded demo on procedural RGB-D scenes. On your own photos: data=folder data.root=DIR n_classes=12"""


class Trainer:
    """One run: data, model, optimisers and the run folder."""

    def __init__(self, config: Config):
        self.started = time.perf_counter()
        self.console = Console()
        self.config, self.run = open_run(config) if config.resume else (config, create_run(config))
        self.device = pick_device(config.device)
        self.data = Preparation(self.config, self.device).run()
        self.seconds = {"prepare": time.perf_counter() - self.started, "train": 0.0, "evaluate": 0.0}
        torch.manual_seed(seed_of(self.config.seed, "weights"))
        classes = self.data.dataset.classes
        n_clusters = self.config.n_classes or len(classes)
        self.model = Model(
            self.data.transform.channels, self.config.head.dim, self.config.head.dropout, len(classes), n_clusters
        ).to(self.device)
        rates = {"head": self.config.head.lr, "linear": self.config.probe.lr, "cluster": self.config.probe.lr}
        self.optimizers = {
            name: torch.optim.Adam(module.parameters(), lr=rates[name]) for name, module in self.model.named_children()
        }
        self.step = Step(self.config, self.data, self.model, self.device)
        self.iteration, self.best = 0, -1.0
        if config.resume:
            self.restore()
        elif self.config.loss.shifts == "auto":
            self.step.shifts = self.step.auto_shifts()
        self.log = MetricLog(self.run, self.iteration)

    def modules(self) -> dict[str, torch.nn.Module]:
        return {"transform": self.data.transform, **dict(self.model.named_children())}

    def save(self, name: str = "last") -> None:
        header = {
            "iteration": self.iteration, "shifts": self.step.shifts, "best": self.best, "seconds": self.seconds,
            "backbone": self.config.backbone.name, "classes": self.data.dataset.classes,
        }  # fmt: skip
        save_checkpoint(self.run / "checkpoints" / name, self.modules(), self.optimizers, header)

    def restore(self, name: str = "last") -> None:
        folder = self.run / "checkpoints" / name
        if not folder.is_dir():
            return  # killed before its first checkpoint: the run starts again
        tensors, header = read_checkpoint(folder)
        load_modules(tensors, self.modules(), folder)
        load_optimizers(tensors, self.optimizers)
        self.iteration, self.best = header["iteration"], header["best"]
        self.step.shifts = tuple(header["shifts"])
        self.seconds["train"] = header["seconds"]["train"]

    def train(self) -> None:
        """The loop: losses, three optimisers, then log, evaluate and save when due."""
        config, started = self.config, time.perf_counter() - self.seconds["train"]
        with training_bar(self.console) as bar:
            task = bar.add_task("training", total=config.iterations, completed=self.iteration, loss="")
            while self.iteration < config.iterations:
                losses, logged = self.step.losses(self.iteration)
                for optimizer in self.optimizers.values():
                    optimizer.zero_grad(set_to_none=True)
                sum(losses.values()).backward()
                for optimizer in self.optimizers.values():
                    optimizer.step()
                self.iteration += 1
                self.seconds["train"] = time.perf_counter() - started
                if self.iteration == config.probe.reinit:
                    self.reinitialize_clusters()
                if self.due(config.log_every):
                    self.log.write(self.iteration, {"loss": losses["total"].item(), **logged, "seconds": self.seconds["train"]})
                    bar.update(task, loss=f"loss {losses['total'].item():.4f}")
                if self.due(config.val.every):
                    self.validate()
                if self.due(config.checkpoint.every):
                    self.save()
                bar.update(task, completed=self.iteration)
        self.save()

    def due(self, every: int) -> bool:
        return bool(every) and (self.iteration % every == 0)

    def reinitialize_clusters(self) -> None:
        """Moves the cluster probe's centroids to k-means of training codes, at their present length."""
        probe = self.model.cluster
        count, seed = self.config.val.kmeans_samples, self.config.seed
        codes = training_codes(self.model.head, self.data.features, count, seed, self.device)
        centroids = cosine_kmeans(codes, len(probe.centroids), seed=seed)
        with torch.no_grad():
            probe.centroids.copy_(centroids.to(self.device) * probe.centroids.norm(dim=1).mean())

    def read_outs(self) -> dict:
        found = {"cluster": (True, self.model.cluster)}
        return found | ({"linear": (True, self.model.linear)} if self.model.linear is not None else {})

    def scores(self, read_outs: dict) -> tuple[dict, dict, dict]:
        """Metrics, assignments and confusion matrices of the evaluation split; empty without labels."""
        classes = self.data.dataset.classes
        if self.data.evaluation.labels is None:
            return {}, {}, {}
        counts = confusions(self.data.evaluation, self.model.head, read_outs, len(classes), self.device)
        return *summarize(counts, classes, released=self.config.mode == "released"), counts

    def validate(self) -> None:
        started = time.perf_counter()
        metrics = self.scores(self.read_outs())[0]
        if metrics:
            self.log.write(self.iteration, {key: value for key, value in metrics.items() if key != "per_class"})
            if self.config.checkpoint.rule == "best" and metrics["cluster.miou"] > self.best:
                self.best = metrics["cluster.miou"]
                self.save("best")
        self.seconds["evaluate"] += time.perf_counter() - started

    def evaluate(self) -> dict:
        """Final scores with both k-means baselines, pictures and the report."""
        started = time.perf_counter()
        if self.config.checkpoint.rule == "best" and (self.run / "checkpoints" / "best").is_dir():
            tensors, _ = read_checkpoint(self.run / "checkpoints" / "best")
            load_modules(tensors, self.modules(), self.run / "checkpoints" / "best")
        read_outs, assignments, metrics = self.read_outs(), {}, {}
        if self.data.evaluation.labels is not None:
            n_clusters, count = len(self.model.cluster.centroids), self.config.val.kmeans_samples
            baselines = kmeans_read_outs(
                self.model.head, self.data.features, n_clusters, count, self.config.seed, self.device
            )
            metrics, assignments, counts = self.scores(read_outs | baselines)
            matched = matched_confusion(counts["cluster"], assignments["cluster"])
            metrics["confusion"] = matched.tolist()
            save_figure(confusion_figure(matched, self.data.dataset.classes), self.run / "confusion.png")
        metrics["classes"] = list(self.data.dataset.classes)
        metrics["protocol"] = protocol(self.config, self.step.shifts)
        metrics["environment"] = environment()
        if self.config.val.panels:
            write_panels(
                self.run, self.data, read_outs, self.model.head, assignments.get("cluster"), self.config.val.panels
            )
        self.seconds["evaluate"] += time.perf_counter() - started
        self.seconds["total"] = time.perf_counter() - self.started
        metrics["seconds"] = {name: round(value, 2) for name, value in self.seconds.items()}
        write_text(self.run / "metrics.json", json.dumps(metrics, indent=1))
        write_report(self.run)
        return metrics


def protocol(config: Config, shifts: tuple) -> dict:
    """What every number of a run depends on."""
    return {
        "data": config.data.name, "split": config.data.eval_split, "resolution": list(config.data.eval_size),
        "crop": "scaled to cover, centre crop", "flip": False, "crf": False, "checkpoint": config.checkpoint.rule,
        "matching": "hungarian over the split", "seed": config.seed, "mode": config.mode,
        "probe_reinit": config.probe.reinit if config.probe.reinit <= config.iterations else 0, "shifts": list(shifts), "backbone": config.backbone.name,
    }  # fmt: skip


def pick_device(name: str) -> torch.device:
    """``auto`` takes a GPU when there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is not possible; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name}: PyTorch sees no GPU here; use device=cpu")
    return device


def training_bar(console: Console) -> Progress:
    """Progress with the loss, iterations per second and the time left."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"),
        _Speed(), TimeRemainingColumn(), console=console,
    )  # fmt: skip


class _Speed(TextColumn):
    def __init__(self):
        super().__init__("")

    def render(self, task):
        return f"{task.speed:.1f} it/s" if task.speed else ""


def train(config: Config) -> dict:
    """Trains and evaluates one configuration; returns what ``metrics.json`` holds."""
    trainer = Trainer(config)
    try:
        trainer.train()
        metrics = trainer.evaluate()
        print_metrics(metrics, trainer.run, trainer.console)
        return metrics
    except KeyboardInterrupt:
        trainer.save()
        trainer.console.print(f"stopped; continue with: python -m depthg.train resume={trainer.run}")
        raise
    finally:
        trainer.log.close()


def main() -> None:
    def task(config: Config) -> None:
        train(config)

    run_command(task, "depthg.train", SUMMARY)


if __name__ == "__main__":
    main()
