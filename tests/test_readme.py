"""README and the pages of docs/: their Python runs, their commands parse; options, links and pictures exist."""

import argparse
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import pytest
from miniature import settings, write_camvid

from depthg.config.composing import check_overrides
from depthg.config.schema import GROUPS, options
from depthg.kernels import __all__ as kernel_names
from depthg.train import train

ROOT = next(folder for folder in Path(__file__).parents if (folder / "mkdocs.yml").is_file())
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.glob("docs/**/*.md")}
TEXTS = {"README.md": README, **PAGES}
SETTINGS_ALONE = ("depthg.train", "depthg.prepare")  # commands that take key=value and Hydra's flags, without argparse
COMMANDS = tuple(
    f"depthg.{name}" for name in "evaluate predict convert reproduce diagnose report replay label depth export".split()
)
OTHERS = {"--multirun", "--cfg", "--help", "--mixed_precision"}  # options that are not argparse's here


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of one language, without the indentation of a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """``(module, arguments)`` of every ``python -m depthg.X ...``, in blocks and between backticks.

    Between backticks a command may stand without arguments, as a name.
    """
    shell = "\n".join(blocks(text, "bash")).replace("\\\n", " ")
    inline = [line.replace("\n", " ") for line in re.findall(r"`([^`]* -m depthg\.\w+ [^`]+)`", prose(text))]
    found = []
    for line in [*shell.splitlines(), *inline]:
        words = shlex.split(line, comments=True)
        starts = [place for place, word in enumerate(words) if word.startswith("depthg.") and words[place - 1] == "-m"]
        found += [(words[place], words[place + 1 :]) for place in starts]
    return found


def prose(text: str) -> str:
    """A page without its blocks."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


class Started(BaseException):
    """A command is about to read its command line."""


@pytest.fixture
def parser_of(monkeypatch):
    """The argument parser of ``python -m MODULE`` and the name of the method that the command calls on it."""

    def start(module: str) -> tuple[argparse.ArgumentParser, str]:
        def stop(method):
            def stopped(parser, *_, **__):
                raise Started(parser, method)

            return stopped

        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the module is imported already
            for method in ("parse_args", "parse_intermixed_args"):
                patch.setattr(argparse.ArgumentParser, method, stop(method))
            patch.setattr(sys, "argv", [module])
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except Started as started:
                return started.args
        raise AssertionError(f"{module} reads no command line")

    return start


def anchors(path: Path) -> set[str]:
    """Names of the headings of a page, as links spell them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_two_commands_stand_there_verbatim():
    shell = blocks(README, "bash")
    assert "python -m pip install -r requirements.txt && python -m depthg.train\n" in shell
    assert "python -m pip install -r requirements-dev.txt && python -m pytest -n 2\n" in shell


def test_the_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 180
    assert not [line for line in lines if len(line) > 100]


def test_every_page_begins_with_what_it_is_for_and_a_command():
    assert len(PAGES) >= 16
    for page, text in PAGES.items():
        start = re.split(r"^## ", text, flags=re.MULTILINE)[0]
        assert re.match(r"# .+\n\n\w", start), page
        assert blocks(start, "bash"), page


def test_python_blocks_run(tmp_path, monkeypatch):
    root = write_camvid(tmp_path / "camvid")
    train(settings(root, "name=mine", "val.panels=0", "iterations=10"))
    (tmp_path / "PHOTOS").mkdir()
    for name, photo in zip(("street.jpg", "park.jpg"), sorted((root / "val").iterdir()), strict=False):
        shutil.copy(photo, tmp_path / "PHOTOS" / name)
    monkeypatch.chdir(tmp_path)
    found, failures = [(page, code) for page, text in TEXTS.items() for code in blocks(text, "python")], []
    assert len(found) >= 10
    for page, code in found:
        try:
            exec(compile(code, page, "exec"), {})
        except Exception:
            failures.append(f"{page}:\n{code}\n{traceback.format_exc(limit=-1)}")
    assert not failures, "\n".join(failures)


def test_every_command_line_is_accepted(parser_of, capsys):
    parsers, failures, modules = {}, [], set()
    for page, text in TEXTS.items():
        for module, words in commands(text):
            modules.add(module)
            words = [word for word in words if word != "..."]
            pairs = [word for word in words if re.match(r"[\w./]+=", word)]
            try:
                if module in SETTINGS_ALONE:
                    check_overrides([word for word in words if word not in ("--cfg", "job", "--multirun", "--help")])
                    continue
                parser, method = parsers.setdefault(module, parser_of(module))
                getattr(parser, method)(words)
                check_overrides(pairs)
            except (SystemExit, ValueError) as error:
                failures.append(f"{page}: {module} {' '.join(words)}: {error} {capsys.readouterr().err}")
    assert not failures, "\n".join(failures)
    assert modules >= {*SETTINGS_ALONE, *COMMANDS}
    listed = set(re.findall(r"^\| `depthg (\w+)` \|", README, flags=re.MULTILINE))
    assert {f"depthg.{name}" for name in listed} == {*SETTINGS_ALONE, *COMMANDS}


def test_every_option_between_backticks_exists(parser_of):
    sections, keys, failures = {key.partition(".")[0] for key in options() if "." in key}, [*options(), *GROUPS], []
    flags = OTHERS | {flag for command in COMMANDS for flag in parser_of(command)[0]._option_string_actions}
    for page, text in TEXTS.items():
        for span in re.findall(r"`([^`]+)`", prose(text)):
            for word in () if "bench/" in span else span.split():
                key, equals, value = word.partition("=")
                dotted = re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", key) and key.partition(".")[0] in sections
                dotted = dotted and not key.endswith(".safetensors")
                if (dotted and key not in keys) or (word.startswith("--") and word not in flags):
                    failures.append(f"{page}: {word}")
                elif equals and key in GROUPS and value and not value.startswith("."):
                    try:
                        check_overrides([word])
                    except ValueError as error:
                        failures.append(f"{page}: {error}")
    assert not failures, "\n".join(failures)


def test_the_page_about_python_names_every_kernel():
    assert not set(kernel_names) - set(re.findall(r"`(\w+)`", PAGES["docs/python.md"]))


def test_links_and_pictures_of_the_readme_exist():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        path, _, anchor = target.partition("#")
        assert (ROOT / path).is_file(), target
        assert not anchor or anchor in anchors(ROOT / path), target


def test_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the pages are built by mkdocs (requirements-dev.txt)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        assert (tmp_path / "site" / Path(page).relative_to("docs").with_suffix(".html")).is_file(), page
