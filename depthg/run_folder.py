"""The folder of one run: settings, metrics, checkpoints. Every file is written whole or appended line by line."""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch.utils.tensorboard import SummaryWriter

from depthg import __version__
from depthg.checkpoints import write_text
from depthg.config import Config

try:
    import resource
except ImportError:  # Windows
    resource = None


SCORES_FILE = "images.csv"  # accuracy and mIoU of every evaluation image


def run_name(config: Config) -> str:
    """``name``, or one made of the experiment, data set, mode and seed."""
    return config.name or f"{config.experiment}-{config.data.name}-{config.mode}-seed{config.seed}"


def check_run(config: Config) -> Path:
    """The folder that a new run will use; nothing is changed yet.

    Raises:
        FileExistsError: it holds something already and ``overwrite`` is off, or it is no run folder.
    """
    path = Path(config.runs_dir).expanduser() / run_name(config)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        if not config.overwrite:
            raise FileExistsError(
                f"{path} exists; continue with resume={path}, replace it with overwrite=true, or choose another name="
            )
        if not (path / "config.yaml").is_file():
            raise FileExistsError(f"{path} is not a run folder (no config.yaml), so overwrite=true leaves it alone")
    return path


def create_run(config: Config) -> Path:
    """The run folder with its ``config.yaml``: an emptied one for a new run, the existing one with ``resume``."""
    path = Path(config.resume).expanduser() if config.resume else check_run(config)
    if not config.resume:
        shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True, exist_ok=True)
    stored = dataclasses.replace(config, resume=None, overwrite=False)
    write_text(path / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(stored)))
    return path


class MetricLog:
    """``metrics.jsonl`` and TensorBoard events; lines past ``iteration`` are dropped when a run is resumed."""

    def __init__(self, run: Path, iteration: int = 0):
        self.path = run / "metrics.jsonl"
        kept = [json.dumps(line) for line in read_log(self.path) if line["iteration"] <= iteration] if iteration else []
        write_text(self.path, "".join(line + "\n" for line in kept))
        self.file = open(self.path, "a", encoding="utf-8", buffering=1)
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=iteration + 1)

    def write(self, iteration: int, values: dict[str, float]) -> None:
        line = {"iteration": iteration, **{key: round(float(value), 6) for key, value in values.items()}}
        self.file.write(json.dumps(line) + "\n")
        for key, value in values.items():
            self.board.add_scalar(key.replace(".", "/"), float(value), iteration)

    def close(self) -> None:
        self.file.close()
        self.board.close()


def read_log(path: Path) -> list[dict]:
    """Lines of ``metrics.jsonl``; an unfinished last line is ignored."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def environment() -> dict[str, str]:
    """What a number depends on besides the settings."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "depthg": __version__, "torch": torch.__version__, "python": platform.python_version(), "device": device,
        "threads": str(torch.get_num_threads()), "system": platform.platform(terse=True),
    }  # fmt: skip


def peak_memory() -> dict[str, int]:
    """Largest memory of this process so far in MiB: resident (with mapped files) and, where used, on the GPU."""
    found = {}
    if resource is not None:
        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        found["resident_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        found["gpu_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return found
