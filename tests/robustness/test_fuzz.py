"""Readers of files under mutated input: a value, or an error that names the file. ``tests/fuzz/run.py`` goes on."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "fuzz"
sys.path.insert(0, str(FOLDER))

from mutate import mutations  # noqa: E402
from targets import TARGETS  # noqa: E402

NEEDS_ATHERIS = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed: pip install atheris"
)
INPUTS = 150  # of each target


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_files_end_in_a_value_or_in_an_error_that_names_the_file(name):
    for number, content in enumerate(mutations(TARGETS[name].seeds, INPUTS)):
        try:
            TARGETS[name](content)
        except Exception as error:
            raise AssertionError(f"input {number} of {name}: {content[:200]!r}") from error


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_valid(name):
    """Otherwise the mutations would stop at the first check."""
    target = TARGETS[name]
    if name == "stego":
        pytest.skip("a whole network would be needed")
    for seed in target.seeds:
        target.read(target.write(seed))


def test_mutations_repeat_and_differ():
    first, again, other = (list(mutations([b"abc", b"0123"], 50, seed)) for seed in (1, 1, 2))
    assert first == again and first != other and len(first) == 50 and first[:3] == [b"abc", b"0123", b""]


@pytest.mark.parametrize("tool", ["blind", pytest.param("atheris", marks=[NEEDS_ATHERIS, pytest.mark.slow])])
def test_an_unexpected_error_is_a_finding(tmp_path, tool):
    code = (
        "import sys, run, targets\nfrom pathlib import Path\n"
        "targets.TARGETS['bad'] = targets.Target('x', lambda path: 1 / len(path.read_bytes()), [b'a'])\n"
        "targets.TARGETS['good'] = targets.Target('y', lambda path: path.read_bytes(), [b'a'])\n"
        "sys.argv = ['run', 'bad', 'good', '--seconds', '4']\n"
        f"if {tool == 'blind'}: run.importlib.util.find_spec = lambda name: None\n"
        "sys.exit(run.main())\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(FOLDER)!r})\n{code}"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert finished.returncode == 1, finished.stderr
    assert re.search(r"^bad: [1-9]\d* inputs, FAILED$", finished.stdout, re.MULTILINE), finished.stdout
    assert re.search(r"^good: [1-9][\d,]* inputs$", finished.stdout, re.MULTILINE), finished.stdout
    assert finished.stdout.endswith("inputs, findings in bad\n") and "ZeroDivisionError" in finished.stderr
    assert ("atheris is not installed" in finished.stdout) == (tool == "blind")
    kept = [path.read_bytes() for path in (tmp_path / "fuzz-findings").iterdir()]
    assert kept and set(kept) == {b""}
    assert tool == "atheris" or (len(kept) == 1 and "bad: 2 inputs" in finished.stdout)


@pytest.mark.slow
@NEEDS_ATHERIS
def test_atheris_finds_nothing_in_a_short_time(tmp_path):
    command = [sys.executable, str(FOLDER / "run.py"), "list", "config", "checkpoint", "labels", "--seconds", "12"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "no finding" in finished.stdout and " 0 inputs" not in finished.stdout
