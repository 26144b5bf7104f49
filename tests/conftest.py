"""Without a GPU, Triton kernels run in the interpreter; uninitialised memory is NaN, so that reading it shows."""

import importlib.util
import os
import zlib
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes test side by side: idle threads that spin would slow all
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is imported

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    import interpreter

    interpreter.mend()

import pytest
from hypothesis import settings

from depthg.reporting.figures import svg_bytes

settings.register_profile(  # a busy machine is no failure; examples are the same every time, unless more are asked for
    "patient", deadline=None, derandomize="DEPTHG_EXAMPLES" not in os.environ
)
settings.load_profile("patient")
torch.utils.deterministic.fill_uninitialized_memory = True


LONGEST = (  # of both runs, that of the slow tests and the other
    "processes", "train", "fps", "check_gpu", "device_step", "fps_cuda_on_cpu", "fps_triton", "pair_terms", "build",
    "compile", "reproduce", "loading", "interruptions", "kills", "prepare", "memory", "multirun", "evaluate",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before what is slow is left out
def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that of several processes none is left alone with one at the end.

    Of the cases of one test that Triton's interpreter runs, the first and about a third of the others, chosen by their
    names, are in the default run; the rest is slow.
    """
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    seen = set()
    for item in items:
        if hasattr(item, "callspec") and item.callspec.params.get("impl") == "triton":
            test = item.nodeid.partition("[")[0]
            if test in seen and zlib.crc32(item.callspec.id.encode()) % 3:
                item.add_marker("slow")
            seen.add(test)


@pytest.fixture(autouse=True)
def _seeded():
    """Every test starts from one seed, with deterministic algorithms and NaN-filled ``torch.empty``."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def _plain_figures():
    """Figures of reports are built but not drawn, which would take most of a miniature run: see ``drawn_figures``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthg.reporting.page.svg_bytes", lambda figure: b"<svg/>")
        yield


@pytest.fixture(scope="session")
def shared_tree(tmp_path_factory, _plain_figures):
    """A miniature CamVid with a trained run, ``runs/tiny``, beside it, and the cache of its preparation.

    Made once for all processes that test, and for all tests that only read it.
    """
    from miniature import settings, write_camvid

    from depthg.train import train

    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "shared"
    folder.mkdir(exist_ok=True)
    root = folder / "camvid"
    with open(folder / "lock", "w") as lock:
        if importlib.util.find_spec("fcntl"):
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "runs" / "tiny" / "metrics.json").is_file():
            train(settings(write_camvid(root), "name=tiny", "val.panels=0"))
    return root


@pytest.fixture(scope="session")
def shared_run(shared_tree):
    """The folder of the trained run in the shared tree; whoever changes something in it works on a copy."""
    return shared_tree.parent / "runs" / "tiny"


@pytest.fixture
def drawn_figures(monkeypatch):
    """Draws the figures of reports in this process."""
    monkeypatch.setattr("depthg.reporting.page.svg_bytes", svg_bytes)


@pytest.fixture
def bounded_memory():
    """Fails a test in which the process takes 300 MiB more than it has, however much earlier tests took."""

    def resident(field):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
    except OSError:
        pytest.skip("this system does not tell peaks of memory")
    yield
    grown = resident("VmHWM") - before
    assert grown < 300, f"took {grown:.0f} MiB"


@pytest.fixture
def run_module(tmp_path):
    """Runs ``python -m MODULE ARGS...`` in ``tmp_path`` with a cache of its own; returns the finished process."""
    import subprocess
    import sys

    def run(module: str, *arguments: str, **environment: str):
        variables = {**os.environ, "DEPTHG_CACHE": str(tmp_path / "cache"), "COLUMNS": "140", **environment}
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run
