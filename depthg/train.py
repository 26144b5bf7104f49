"""``python -m depthg.train``: trains STEGO + DepthG on frozen features, evaluates, and writes a run folder."""

from __future__ import annotations

import shlex

from rich.console import Console

from depthg.config import Config
from depthg.config.command import run_command
from depthg.evaluation.protocol import print_metrics
from depthg.evaluation.training_scores import TrainingScores
from depthg.model.run_folder import RunLock, absolute, run_path
from depthg.reporting.finish import finish
from depthg.runtime import processes
from depthg.runtime.stopping import terminate_as_interrupt
from depthg.training.trainer import Trainer

SUMMARY = """Trains STEGO + DepthG on frozen features, without labels, and evaluates the segmentation.
With no argument: the embedded demo on procedural RGB-D scenes.
On your own photos: data=folder data.root=DIR n_classes=12"""


def train(config: Config) -> dict:
    """Trains and evaluates one configuration; returns the content of ``metrics.json``."""
    lock, trainer, console = RunLock(run_path(config)), None, Console(quiet=not processes.is_main())
    with terminate_as_interrupt():
        try:
            trainer = Trainer(config, lock)
            scores = TrainingScores(trainer)
            trainer.train(scores.metrics)
            metrics = finish(trainer, scores)
            if processes.is_main():
                print_metrics(metrics, trainer.run, trainer.console)
                trainer.console.print(f"next: {next_step(trainer)}", highlight=False, soft_wrap=True)
            return metrics
        except KeyboardInterrupt:
            if trainer is None:
                console.print("stopped before the training; what is prepared is kept for when you start it again")
            else:
                console.print(f"stopped; continue with: python -m depthg.train resume={trainer.run}")
            raise
        finally:
            try:
                if trainer is not None and trainer.log is not None:
                    trainer.log.close()
            finally:
                lock.drop()


def next_step(trainer: Trainer) -> str:
    """The command that segments photos with the run: those of training, where they are somebody's own."""
    data = trainer.config.data
    photos = shlex.quote(absolute(data.root)) if data.name == "folder" and data.root else "PHOTOS"
    return f"python -m depthg.predict {shlex.quote(str(trainer.run))} {photos} --out DIR"


def main() -> None:
    """``python -m depthg.train``."""
    run_command(train, "depthg.train", SUMMARY)


if __name__ == "__main__":
    main()
