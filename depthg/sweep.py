"""The runs of a table as a Hydra multirun, so that Hydra's launchers (joblib, submitit, ...) can spread them.

One Hydra job is one row with one seed; the jobs lie in ``plan.json`` in the output folder.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException

from depthg.jobs import Job, quoted, run_job
from depthg.whole_files import write_text

PLAN = "plan.json"


@dataclass
class SweepConfig:
    plan: str = ""
    row: str = ""
    seed: int = 0
    overwrite: bool = False


def write_plan(jobs: Sequence[Job], path: Path) -> None:
    write_text(path, json.dumps([{**dataclasses.asdict(job), "folder": str(job.folder)} for job in jobs], indent=1))


def read_plan(path: Path) -> list[Job]:
    stored = json.loads(path.read_text(encoding="utf-8"))
    return [
        Job(**{**job, "folder": Path(job["folder"]), **{k: tuple(job[k]) for k in ("settings", "checkpoints")}})
        for job in stored
    ]


def run_one(config: SweepConfig) -> str:
    """One job of the plan; a failure is kept in its folder and does not end the sweep."""
    job = next(job for job in read_plan(Path(config.plan)) if (job.row, job.seed) == (config.row, config.seed))
    return run_job(job, config.overwrite)


def run_sweep(jobs: Sequence[Job], out: Path, hydra_overrides: Sequence[str], overwrite: bool) -> None:
    """All jobs as one multirun over rows and seeds."""
    write_plan(jobs, out / PLAN)
    ConfigStore.instance().store(name="table_sweep", node=SweepConfig)
    rows, seeds = (list(dict.fromkeys(getattr(job, key) for job in jobs)) for key in ("row", "seed"))
    before = sys.argv
    sys.argv = [
        "depthg.reproduce", "--multirun", f"plan={quoted(out / PLAN)}", f"row={','.join(rows)}",
        f"seed={','.join(map(str, seeds))}", f"overwrite={str(overwrite).lower()}",
        f"hydra.sweep.dir={quoted(out / 'sweep')}", *hydra_overrides,
    ]  # fmt: skip
    try:
        hydra.main(version_base="1.3", config_path=None, config_name="table_sweep")(run_one)()
    except (SystemExit, HydraException) as stop:  # the latter under a debugger or a tracer
        raise RuntimeError("Hydra could not run the sweep; its message stands above") from stop
    finally:
        sys.argv = before
