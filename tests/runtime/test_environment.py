"""Defaults of torch's environment: for commands, before torch is imported, and never over what the user has set."""

import subprocess
import sys

import pytest

from depthg.runtime.environment import SPINS, set_defaults

TRAIN = ["python", "-u", "-m", "depthg.train", "seed=0"]


@pytest.mark.parametrize(
    ("command", "before", "after"),
    [
        (TRAIN, {}, {"GOMP_SPINCOUNT": SPINS}),
        (["python", "-m", "depthg"], {}, {"GOMP_SPINCOUNT": SPINS}),
        (TRAIN, {"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        (TRAIN, {"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
        (["python", "/usr/bin/depthg", "train"], {}, {"GOMP_SPINCOUNT": SPINS}),
        (["python", "-m", "pytest", "depthg.train"], {}, {}),
        (["python", "mine.py", "depthg"], {}, {}),
        (["python", "-m", "depthgram"], {}, {}),
        (["python", "mine.py"], {}, {}),
    ],
)
def test_commands_wait_asleep_unless_told_otherwise(command, before, after):
    set_defaults(before, command, "linux")
    assert before == after


def test_missing_operations_of_apples_gpu_run_on_the_cpu():
    found, own = {}, {"PYTORCH_ENABLE_MPS_FALLBACK": "0"}
    set_defaults(found, ["python"], "darwin")
    set_defaults(own, ["python"], "darwin")
    assert found == {"PYTORCH_ENABLE_MPS_FALLBACK": "1"} and own == {"PYTORCH_ENABLE_MPS_FALLBACK": "0"}


def test_the_variable_is_there_before_torch(tmp_path, monkeypatch):
    """A stand-in for torch says what it finds when a command imports it."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    (tmp_path / "torch.py").write_text("import os; raise SystemExit(f'spins {os.environ.get(\"GOMP_SPINCOUNT\")}')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run([sys.executable, "-m", "depthg.train"], capture_output=True, text=True, cwd=tmp_path)
    assert f"spins {SPINS}" in done.stderr
