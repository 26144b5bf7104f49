"""What newer Pythons change, tested on every Python: checks of help texts, start methods, warnings of the compiler."""

import argparse
import ast
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from depthg.config.command import _help_without_text, run_command

ROOT = next(folder for folder in Path(__file__).parents if (folder / "mkdocs.yml").is_file())
FILES = [path for folder in ("depthg", "kernels", "bench", "tests", ".ci") for path in (ROOT / folder).rglob("*.py")]
PARSERS = [path for path in FILES if path.name != Path(__file__).name and "ArgumentParser(" in path.read_text("utf-8")]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def texts_alone(parser, action):
    """What argparse checks on Python 3.14 when an option is added: its help is a text, and its % can be expanded."""
    if action.help:
        try:
            parser._get_formatter()._expand_help(action)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError("badly formed help string") from error


@pytest.fixture
def strict_help(monkeypatch):
    """argparse that checks the help of every option when it is added, on each Python as 3.14 does."""
    add = argparse.ArgumentParser.add_argument

    def checked(parser, *names, **options):
        action = add(parser, *names, **options)
        parser._check_help(action)
        return action

    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", texts_alone, raising=False)
    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", checked)


@pytest.mark.parametrize("path", PARSERS, ids=name_of)
def test_help_of_every_command_can_be_expanded(path, strict_help, monkeypatch, capsys):
    """``--help`` expands the % of every help text; Python 3.14 does it in each call of the command."""
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    monkeypatch.syspath_prepend(path.parent)
    with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the module is imported already
        if path.is_relative_to(ROOT / "depthg"):
            runpy.run_module(".".join(path.relative_to(ROOT).with_suffix("").parts), run_name="__main__")
        else:
            runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code in (0, None) and capsys.readouterr().out.startswith("usage:")


def test_flags_of_hydra_pass_the_check_of_help(strict_help, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--cfg", "job", "iterations=7"])
    run_command(lambda config: pytest.fail("--cfg job runs nothing"), "depthg.train", "Trains.")
    assert "iterations: 7" in capsys.readouterr().out


def test_help_that_is_a_text_stays_checked(strict_help):
    with _help_without_text():
        parser = argparse.ArgumentParser()
        parser.add_argument("--lazy", help=object())
        with pytest.raises(ValueError, match="badly formed"):
            parser.add_argument("--share", help="50% of it")
    with pytest.raises(ValueError, match="badly formed"):
        argparse.ArgumentParser().add_argument("--lazy", help=object())


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports, and ``module.name`` of what it imports from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_no_process_depends_on_the_default_start_method():
    """It is fork up to Python 3.13 and forkserver from 3.14 on. The package starts commands; benchmarks say "spawn"."""
    pools = {"multiprocessing", "torch.multiprocessing", "concurrent.futures.ProcessPoolExecutor"}
    users = {name_of(path) for path in FILES if imported(path) & pools}
    assert users == {"bench/compile.py", "bench/knn.py"}
    for name in users:
        text = (ROOT / name).read_text("utf-8")
        uses = [line for line in text.splitlines() if "multiprocessing." in line and "import" not in line]
        assert uses and all('multiprocessing.get_context("spawn")' in line for line in uses), uses


def test_the_compiler_warns_of_nothing():
    """Each new Python warns of more, for instance 3.12 of unknown escapes and 3.14 of a return in finally."""
    code = "import pathlib, sys\nfor path in sys.argv[1:]: compile(pathlib.Path(path).read_bytes(), path, 'exec')"
    command = [sys.executable, "-W", "error", "-c", code, *FILES, ROOT / "setup.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(FILES) > 250
