"""A training that is killed with SIGKILL, again and again, ends with the bytes of one that was left alone.

The test starts this file as a process of its own, which forks a child per attempt: forking is safe there, because
nothing has computed yet, and costs no imports.
"""

import contextlib
import itertools
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest

from depthg.storage import array_file
from depthg.storage.cache import MARKS

KILLS, LEAST = 20, 3  # at random moments: in all, and in every phase
MOST_RUNS = 12
OPTIONS = [
    "iterations=24", "log_every=1", "val.every=8", "checkpoint.every=3", "checkpoint.rule=both", "val.panels=2",
    "cache.shard_mb=0.02", "backbone.batch_size=2",
]  # fmt: skip
VOLATILE = ("seconds", "memory")  # of metrics.json: they measure the machine
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


FEW = ("before a cache gets its name", "inside a checkpoint")


def test_killed_at_a_few_places(tmp_path):
    assert killed(tmp_path, *FEW)["chosen"] == list(FEW)


@pytest.mark.slow
def test_killed_at_random_moments_and_at_chosen_ones(tmp_path):
    found = killed(tmp_path)
    print(found)
    assert sum(found["random"].values()) >= KILLS and min(found["random"].values()) >= LEAST
    assert found["chosen"] == CHOSEN_NAMES


def killed(root: Path, *places: str) -> dict:
    """What the process that kills has found: at ``places`` alone, or at all and at random moments too."""
    helpers = str(Path(__file__).parents[1])  # where miniature.py lies
    variables = {**os.environ, "PYTHONPATH": helpers, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(root), *places]
    finished = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-4000:]
    found = json.loads(finished.stdout)
    expected = content(root, "whole")
    for name in found["runs"]:
        got = content(root, name)
        assert got.keys() == expected.keys(), name
        for key, value in expected.items():
            assert got[key] == value, f"{name}: {key}"
    return found


def content(root: Path, name: str) -> dict:
    """What must not depend on kills: weights and optimiser states as bytes, scores, losses, caches; no rests."""
    run, found = root / "runs" / name, {}
    for path in sorted(run.glob("checkpoints/*/*")):
        raw = path.read_bytes()
        (length,) = struct.unpack_from("<Q", raw)
        header = json.loads(raw[8 : 8 + length])
        stated = json.loads(header.pop("__metadata__")["depthg"])
        del stated["seconds"]
        found[str(path.relative_to(run))] = header, stated, raw[8 + length :]
    metrics = json.loads((run / "metrics.json").read_text())
    found["metrics.json"] = {key: value for key, value in metrics.items() if key not in VOLATILE}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["metrics.jsonl"] = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    found["files"] = sorted(str(p.relative_to(run)) for p in run.rglob("*") if "tensorboard" not in p.parts)
    cache = root / f"cache-{name}"
    files = sorted(p for p in cache.rglob("*") if p.is_file() and p.parent.name != MARKS)  # marks of a whole cache
    found["cache"] = {str(p.relative_to(cache)): p.read_bytes() for p in files}
    return found


# ---- the process that kills


PHASES = ("prepare", "train", "evaluate")
phase = mmap.mmap(-1, 1)  # which of them a child is in, seen by its parent


def attempt(root: Path, name: str, sabotage=None, report: bool = False) -> int:
    """Starts or continues the run ``name`` in a child; its process id."""
    phase[0] = 0
    process = os.fork()
    if process:
        return process
    try:
        import depthg.reporting.finish
        import depthg.train
        from depthg.config.composing import load_config

        if not report:  # drawing takes the longest
            depthg.reporting.finish.write_report = lambda run: (run / "report.html").touch()
        enter_phase(depthg.train.Trainer, "train", 1)
        enter_phase(depthg.train, "finish", 2)
        if sabotage:
            sabotage()
        run = root / "runs" / name
        with open(root / "output.txt", "a") as output, contextlib.redirect_stdout(output):
            given = [f"resume={run}"] if (run / "config.yaml").is_file() else None
            depthg.train.train(load_config(given) if given else options(root, name))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def options(root: Path, name: str):
    from miniature import settings

    return settings(root / "camvid", *OPTIONS, f"name={name}", f"cache.dir={root / f'cache-{name}'}")


def enter_phase(owner, method: str, number: int) -> None:
    original = getattr(owner, method)

    def entered(*arguments):
        phase[0] = number
        return original(*arguments)

    setattr(owner, method, entered)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner, name: str, number: int = 1, wanted=lambda *arguments: True, first=lambda *arguments: None):
    """Dies in the ``number``-th call of ``owner.name`` with wanted arguments, after doing ``first``."""

    def prepare() -> None:
        original, left = getattr(owner, name), [number]

        def call(*arguments, **keywords):
            if wanted(*arguments):
                left[0] -= 1
                if not left[0]:
                    first(*arguments)
                    die()
            return original(*arguments, **keywords)

        setattr(owner, name, call)

    return prepare


def half_checkpoint(path, content) -> None:
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])


def is_partial(path, content) -> bool:
    return path.name.startswith(".partial-")


def half_rows(path, shape, start, rows) -> None:
    array_file.write_rows(path, shape, start, np.full_like(rows[:1], 7))


def half_line(log, iteration, values) -> None:
    log.file.write(f'{{"iteration": {iteration}, "lo')
    log.file.flush()


def to(name: str):
    return lambda source, target: Path(target).name == name


def chosen() -> dict:
    """Where a run is killed, in the order in which it comes to these places."""
    import torch
    from matplotlib.figure import Figure

    from depthg.evaluation import training_scores
    from depthg.model import checkpoints, run_folder
    from depthg.reporting import finish
    from depthg.storage import cache
    from depthg.training.trainer import Trainer

    replace = (os, "replace")
    return {
        "before a shard of the cache": at_call(cache, "write_rows", 1),
        "inside a shard of the cache": at_call(cache, "write_rows", 3, first=half_rows),
        "before a shard is marked": at_call(cache.Build, "_mark_done", 4),
        "before a cache gets its name": at_call(cache.Path, "rename", 2),
        "after a cache got its name": at_call(cache.Path, "rename", 2, first=os.rename),
        "before config.yaml is there": at_call(*replace, wanted=to("config.yaml")),
        "before the first checkpoint": at_call(checkpoints, "write_tensors", 1),
        "inside a checkpoint": at_call(Path, "write_bytes", 2, is_partial, half_checkpoint),
        "inside a line of metrics": at_call(run_folder.MetricLog, "write", 5, first=half_line),
        "inside an evaluation": at_call(training_scores, "confusions", 1),
        "between best and last": at_call(Trainer, "save", 3, lambda trainer, *name: not name),
        "between two optimisers": at_call(torch.optim.Adam, "step", 8),
        "before a checkpoint is renamed": at_call(*replace, 2, to("checkpoint.safetensors")),
        "after a checkpoint was renamed": at_call(*replace, 2, to("checkpoint.safetensors"), os.rename),
        "inside the last evaluation": at_call(finish, "matched_confusion", 1),
        "between two pictures": at_call(*replace, 1, to("confusion.png")),
        "before metrics.json is there": at_call(*replace, 1, to("metrics.json")),
        "inside the report": at_call(Figure, "savefig", 3),
    }  # fmt: skip


CHOSEN_NAMES = [
    "before a shard of the cache", "inside a shard of the cache", "before a shard is marked",
    "before a cache gets its name", "after a cache got its name", "before config.yaml is there",
    "before the first checkpoint", "inside a checkpoint", "inside a line of metrics", "inside an evaluation",
    "between best and last", "between two optimisers", "before a checkpoint is renamed",
    "after a checkpoint was renamed", "inside the last evaluation", "between two pictures",
    "before metrics.json is there", "inside the report",
]  # fmt: skip


def finish(root: Path, name: str) -> None:
    status = os.waitpid(attempt(root, name, report=name == "chosen"), 0)[1]
    if status:
        raise SystemExit(f"{name} did not finish: {os.waitstatus_to_exitcode(status)}")


def phase_spans(process: int) -> list[float]:
    """Seconds that a child spends in each phase."""
    starts, ended = [time.perf_counter()], False
    while not ended:
        ended = bool(os.waitpid(process, os.WNOHANG)[0])
        if ended or phase[0] == len(starts):
            starts.append(time.perf_counter())
        time.sleep(0.001)
    return [later - earlier for earlier, later in itertools.pairwise(starts)]


def main(root: Path, *places: str) -> None:
    import matplotlib.figure  # for the children, which would each import what is drawn and matched with
    import scipy.optimize
    import torch
    from miniature import write_camvid

    import depthg.train

    torch.set_num_threads(1)
    write_camvid(root / "camvid")
    dice, found = random.Random(0), {"random": dict.fromkeys(PHASES, 0), "chosen": [], "runs": ["chosen"]}
    finish(root, "whole")
    spans = [] if places else phase_spans(attempt(root, "timed"))
    for place, sabotage in chosen().items():
        if places and place not in places:
            continue
        status = os.waitpid(attempt(root, "chosen", sabotage, place == "inside the report"), 0)[1]
        if status != signal.SIGKILL:
            raise SystemExit(f"not killed {place}: {os.waitstatus_to_exitcode(status)}")
        found["chosen"].append(place)
    finish(root, "chosen")
    while not places and (sum(found["random"].values()) < KILLS or min(found["random"].values()) < LEAST):
        if len(found["runs"]) > MOST_RUNS:
            raise SystemExit(f"killed too seldom in some phase: {found['random']}")
        name = f"random{len(found['runs'])}"
        found["runs"].append(name)
        for number, tries in enumerate((3, 3, 1)):
            for again in range(tries):  # what is finished in one attempt is short in the next
                process = attempt(root, name)
                limit = time.perf_counter() + 60
                while phase[0] < number and time.perf_counter() < limit:
                    time.sleep(0.001)
                time.sleep(dice.uniform(0, spans[number]))
                os.kill(process, signal.SIGKILL)  # a child that ended waits to be asked for
                status = os.waitpid(process, 0)[1]
                if status not in (0, signal.SIGKILL):
                    raise SystemExit(f"{name} failed: {os.waitstatus_to_exitcode(status)}")
                if status:
                    found["random"][PHASES[phase[0]]] += 1
                if not again and (not status or phase[0] > number):
                    spans[number] /= 2  # the machine was slower when the phase was timed
        finish(root, name)
    assert depthg.train and matplotlib.figure and scipy.optimize
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
