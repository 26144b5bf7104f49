"""One run of a table: trained and evaluated in separate processes, resumable, with its metrics read back."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from depthg.config.composing import load_config, stored_settings, to_config
from depthg.config.schema import differing
from depthg.model.checkpoints import FILE
from depthg.model.run_folder import read_log
from depthg.paper.tables import Result
from depthg.runtime import processes
from depthg.storage.whole_files import write_text

PROTOCOLS = ("plain", "flip", "flip-crf")
ERRORS = "errors"  # folder beside the runs


@dataclass(frozen=True)
class Job:
    """A row with a seed.

    Attributes:
        settings: ``key=value`` of the training, without its folder and seed.
        checkpoints: checkpoints to score.
        protocol: test-time protocol, one of ``PROTOCOLS``.
        evaluation: prefix of the file names of an evaluation; empty: the metrics of the training suffice.
        split: split that an evaluation scores.
        kmeans: True if an evaluation computes the k-means baselines.
    """

    row: str
    seed: int
    folder: Path
    settings: tuple[str, ...]
    checkpoints: tuple[str, ...] = ("last",)
    protocol: str = "plain"
    evaluation: str = ""
    split: str = "val"
    kmeans: bool = False

    @property
    def overrides(self) -> list[str]:
        return [
            *self.settings,
            f"seed={self.seed}",
            f"name={self.folder.name}",
            f"runs_dir={quoted(self.folder.parent)}",
        ]

    @property
    def error_file(self) -> Path:
        return self.folder.parent / ERRORS / f"{self.folder.name}.txt"

    def evaluation_file(self, checkpoint: str) -> Path:
        return self.folder / "evaluations" / f"{self.evaluation}-{self.protocol}-{checkpoint}.json"


def quoted(path: Path) -> str:
    """A path quoted for Hydra's grammar, in which spaces and commas have a meaning."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def check_folder(job: Job, overwrite: bool) -> None:
    """Raises FileExistsError if the job's folder contains anything other than this run, unless ``overwrite``."""
    if overwrite or not job.folder.exists() or (job.folder.is_dir() and not any(job.folder.iterdir())):
        return
    try:
        stored = to_config(stored_settings(job.folder))
    except FileNotFoundError as error:
        raise FileExistsError(f"{job.folder} holds something that is no run; choose another --out") from error
    asked = load_config(job.overrides)
    asked = dataclasses.replace(asked, precision=processes.precision(asked.precision))  # as training stores it
    different = differing(dataclasses.asdict(stored), dataclasses.asdict(asked))
    if different:
        key, (old, new) = next(iter(different.items()))
        raise FileExistsError(
            f"{job.folder} was trained with {key}={old}, now {key}={new} is asked for; pass --overwrite to train it "
            f"anew, or another --out"
        )


def run_job(job: Job, overwrite: bool = False) -> str:
    """Trains and evaluates unless that is done already; returns an empty string, or the error.

    The last line of a failed process is stored in ``errors/`` beside the run folders.
    """
    try:
        for command in commands(job, overwrite):
            run_command(command)
    except (RuntimeError, OSError) as error:
        write_text(job.error_file, f"{error}\n")
        return str(error)
    job.error_file.unlink(missing_ok=True)
    return ""


def commands(job: Job, overwrite: bool = False) -> list[list[str]]:
    """The commands that remain to be run; none for a finished and evaluated job."""
    found = []
    finished = (job.folder / "metrics.json").is_file()
    if not finished or overwrite:
        resumable = (job.folder / "checkpoints" / "last" / FILE).is_file() and not overwrite
        train = [f"resume={job.folder}"] if resumable else [*job.overrides, "overwrite=true"]
        found.append(["depthg.train", *train])
    for checkpoint in job.checkpoints if job.evaluation else ():
        if job.evaluation_file(checkpoint).is_file() and not overwrite:
            continue
        flags = ["--flip"] * (job.protocol != "plain") + ["--crf"] * (job.protocol == "flip-crf")
        flags += [] if job.kmeans else ["--no-kmeans"]
        flags += ["--split", job.split, "--checkpoint", checkpoint, "--overwrite"]
        found.append(["depthg.evaluate", str(job.folder), *flags])
    return [[sys.executable, "-m", *command] for command in found]


def run_command(command: list[str]) -> None:
    """Runs a process and shows its output.

    Raises:
        RuntimeError: it failed; contains its last line on stderr.
        KeyboardInterrupt: it was stopped.
    """
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        kept: deque[str] = deque(maxlen=20)

        def forward() -> None:
            for line in process.stderr:
                kept.append(line.rstrip())
                sys.stderr.write(line)

        reader = Thread(target=forward, daemon=True)
        reader.start()
        try:
            status = process.wait()
        except KeyboardInterrupt as stop:
            if stop.args:  # SIGTERM may reach this process only; Ctrl-C reaches both
                process.terminate()
            process.wait()  # it saves a checkpoint first
            raise
        reader.join()
    if status == 130:
        raise KeyboardInterrupt
    if status:
        last = next((line for line in reversed(kept) if line.strip()), "no message")
        reason = f"killed by signal {-status}" if status < 0 else last.removeprefix("error: ")
        raise RuntimeError(f"{command[2].removeprefix('depthg.')}: {reason}")


def result_of(job: Job) -> Result:
    """The metrics a job has produced so far.

    They are listed per checkpoint; ``error`` tells what failed or is missing.
    """
    error = job.error_file.read_text(encoding="utf-8").strip() if job.error_file.is_file() else ""
    found, problem = {}, ""
    for checkpoint in job.checkpoints:
        try:
            found[checkpoint] = _metrics(job, checkpoint)
        except (OSError, ValueError, KeyError, TypeError) as reason:
            problem = problem or f"no {checkpoint} numbers: {reason}"
    return Result(job.row, job.seed, str(job.folder), found, error or problem)


def _metrics(job: Job, checkpoint: str) -> dict:
    if job.evaluation:
        stored = json.loads(job.evaluation_file(checkpoint).read_text(encoding="utf-8"))
        scores = {f"{name}.{kind}": r[kind] for name, r in stored["results"].items() for kind in ("accuracy", "miou")}
        return {**scores, "protocol": stored["protocol"]}
    metrics = json.loads((job.folder / "metrics.json").read_text(encoding="utf-8"))
    if not metrics["classes"]:
        raise ValueError("the data has no labels, so nothing is scored")
    if checkpoint == "last":
        return metrics
    evaluated = [line for line in read_log(job.folder / "metrics.jsonl") if "cluster.miou" in line]
    if not evaluated:
        raise ValueError("metrics.jsonl holds no evaluation")
    score = f"cluster.{metrics['protocol'].get('best_by', 'miou')}"
    best = max(evaluated, key=lambda line: line[score])  # the first of equal ones, as in the trainer
    return {**best, "protocol": {**metrics["protocol"], "checkpoint": "best", "iterations": best["iteration"]}}
