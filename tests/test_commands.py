"""``depthg COMMAND``: every command is found, listed and started as ``python -m depthg.COMMAND`` would."""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from test_layers import COMMANDS as FILES

import depthg
from depthg.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]


def depthg_command(*arguments):
    return subprocess.run([sys.executable, "-m", "depthg", *arguments], capture_output=True, text=True, timeout=300)


def test_the_list_is_complete_and_that_of_the_readme():
    assert set(COMMANDS) == FILES | {"depth"}
    table = dict(re.findall(r"^\| `depthg (\w+)` \| ([^|]+) \|", (ROOT / "README.md").read_text(), re.M))
    assert table == COMMANDS and list(table) == list(COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_without_a_command_it_lists_them(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["depthg", *arguments])
    assert main() == 0
    printed = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +{re.escape(does)}$", printed, re.M) for name, does in COMMANDS.items())


def test_an_unknown_command_names_the_nearest(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["depthg", "pridict"])
    assert main() == 2
    assert "'pridict' is not a command of depthg; did you mean predict?" in capsys.readouterr().err


def test_a_command_gets_its_arguments_and_gives_its_status():
    wrong = depthg_command("report", "no-such-run")
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: ") and "no-such-run" in wrong.stderr
    assert "usage: python -m depthg.report" in depthg_command("report", "--help").stdout
    assert depthg_command("--version").stdout.strip() == depthg.__version__


def test_the_installed_script_is_this_command():
    script = Path(sysconfig.get_path("scripts")) / "depthg"
    assert subprocess.check_output([script, "--version"], text=True).strip() == depthg.__version__


def test_the_segmenter_is_at_the_top_and_imported_on_demand():
    code = "import sys, depthg; assert 'torch' not in sys.modules; from depthg import Segmenter; print(Segmenter)"
    assert "depthg.inference.segmenter.Segmenter" in subprocess.check_output([sys.executable, "-c", code], text=True)
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        depthg.Segmentor  # noqa: B018
