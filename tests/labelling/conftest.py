"""A run whose clusters are being named, served as a person would serve it."""

import shutil
import subprocess
import sys

import pytest


@pytest.fixture
def served(shared_tree, shared_run, tmp_path):
    """A copy of the shared run, the address of its page, and the process that serves it."""
    run = shutil.copytree(shared_run, tmp_path / "run")
    command = [sys.executable, "-m", "depthg.label", run, shared_tree / "train", "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    while line and "http" not in line:
        line = process.stdout.readline()
    assert "http" in line, process.stderr.read()
    yield run, line.removeprefix("open ").strip(), process
    process.terminate()
    assert process.wait(30) == 130, process.stderr.read()
