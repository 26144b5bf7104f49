"""The README: its commands are the tested ones, its Python runs, its options and links exist."""

import re
import shlex
from pathlib import Path

import pytest

from depthg.config.composing import check_overrides

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_the_two_commands_stand_there_verbatim():
    commands = blocks("bash")
    assert "python -m pip install -r requirements.txt && python -m depthg.train\n" in commands
    assert "python -m pip install -r requirements.txt && python -m pytest -n 2\n" in commands


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_every_command_line_has_valid_keys():
    lines = [line for line in re.findall(r"python -m depthg\.train([^`\n]*)", README) if line.strip()]
    assert len(lines) >= 4
    for line in lines:
        check_overrides([word for word in shlex.split(line) if not word.startswith("-")])


def test_every_named_option_exists():
    keys = set(
        re.findall(r"`((?:data|depth|loss|sampling|knn|probe|backbone|cache|val|checkpoint)\.[a-z_.]+)[=`]", README)
    )
    assert len(keys) >= 12
    check_overrides([f"{key}=0" for key in keys])


def test_relative_links_and_pictures_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
