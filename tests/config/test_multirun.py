"""Sweeps: Hydra's multirun with its own launcher, and that other launchers can send the task to their workers."""

import pickle
import sys
import types

import pytest
from miniature import arguments, write_camvid

from depthg import train
from depthg.config.command import importable
from depthg.model.checkpoints import read_checkpoint

SHORT = ("iterations=2", "val.panels=0", "batch_size=6")


def swept(run_module, tmp_path, *overrides: str) -> None:
    """Trains with seeds 0 and 1; two runs, which differ."""
    root = write_camvid(tmp_path / "camvid")
    command = ["--multirun", *overrides, *arguments(root, *SHORT), "seed=0,1", "name=s${seed}"]
    done = run_module("depthg.train", *command)
    assert done.returncode == 0, done.stderr
    runs = [tmp_path / "runs" / name for name in ("s0", "s1")]
    assert all((run / "metrics.json").is_file() for run in runs)
    one, other = (read_checkpoint(run / "checkpoints" / "last")[0]["model.head.linear.weight"] for run in runs)
    assert not one.equal(other)


@pytest.mark.slow
def test_a_sweep_on_this_machine(run_module, tmp_path):
    swept(run_module, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("launcher, package", [("joblib", "joblib"), ("submitit_local", "submitit")])
def test_launchers_that_start_processes(run_module, tmp_path, launcher, package):
    pytest.importorskip(f"hydra_plugins.hydra_{package}_launcher", reason=f"needs hydra-{package}-launcher")
    swept(run_module, tmp_path, f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep")


def test_the_task_of_a_command_can_be_sent(monkeypatch):
    def task(config):
        return None

    assert importable(task) is task
    main = types.ModuleType("__main__")
    main.__spec__ = types.SimpleNamespace(name="depthg.train")
    monkeypatch.setitem(sys.modules, "__main__", main)
    task.__module__, task.__name__ = "__main__", "train"
    assert importable(task) is train.train
    assert pickle.loads(pickle.dumps(importable(task))) is train.train
