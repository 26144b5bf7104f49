#!/usr/bin/env python3
"""Asks the package index for a wheel of every pin, and of what the pins need in turn, on Python 3.10 to 3.14.

    python .ci/wheels.py [--python 3.14 ...] [--find-links FOLDER] [requirements-dev.txt]

It runs when requirements change, not with the tests: it takes minutes and a network. pip's dry run reads the metadata
of wheels and downloads none of them. pip evaluates environment markers for the Python that runs it, so that is done
here, for Linux on x86_64. Each package is asked for in the newest version that all who need it allow. Prints a line for
each failure and exits with status 1. Needs pip 23.3 or newer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PLATFORMS = ("linux_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)), "manylinux2014_x86_64")
INSTALL = "-m pip install --quiet --dry-run --ignore-installed --no-deps --only-binary=:all:".split()
FROM_SOURCE = {  # packages that may lack a wheel: where they may be needed, and why
    "antlr4-python3-runtime": (
        "anywhere",
        "hydra-core 1.3 and omegaconf 2.3 need 4.9, which is a source archive alone; pure Python, no compiler",
    ),
    "pydensecrf2": ("requirements-dev.txt", "the comparison for the CRF of this project; needs a C++ compiler"),
}


def read(path: Path) -> Iterator[tuple[str, Requirement]]:
    """Yields the file's name and the requirement of each line, also of ``-r FILE``; raises if one is no pin."""
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.split(" #")[0].strip()
        if line.startswith("-r "):
            yield from read(path.parent / line[3:].strip())
        elif line and not line.startswith("#") and line != "-e .":
            requirement = Requirement(line)
            if [part.operator for part in requirement.specifier] != ["=="]:
                raise ValueError(f"{path.name}: {line!r} is not pinned; write NAME==VERSION")
            yield path.name, requirement


def environment(python: str) -> dict[str, str]:
    """The values of environment markers for CPython ``python`` on Linux, x86_64."""
    return {
        "python_version": python, "python_full_version": f"{python}.0", "implementation_name": "cpython",
        "implementation_version": f"{python}.0", "platform_python_implementation": "CPython", "os_name": "posix",
        "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "platform_release": "",
        "platform_version": "", "extra": "",
    }  # fmt: skip


def applies(requirement: Requirement, python: str, extras: set[str]) -> bool:
    marker, values = requirement.marker, environment(python)
    return marker is None or any(marker.evaluate(values | {"extra": extra}) for extra in extras | {""})


def ask(requirements: list[Requirement], python: str, find_links: str | None) -> tuple[list[dict], str]:
    """Returns the metadata of the wheels that pip would install, and what pip said if it finds none for one of them."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        target = ["--python-version", python, *(f"--platform={name}" for name in PLATFORMS), "--target", folder]
        source = ["--no-index", "--find-links", find_links] if find_links else []
        names = [f"{wanted.name}{wanted.specifier}" for wanted in requirements]
        command = [sys.executable, *INSTALL, "--report", str(report), *target, *source, *names]
        # Local folders of wheels are no index; PIP_INDEX_URL and PIP_CERT still count.
        variables = {**os.environ, "PIP_CONFIG_FILE": os.devnull}
        for name in ("PIP_FIND_LINKS", "PIP_CONSTRAINT"):
            variables.pop(name, None)
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
        if done.returncode:
            return [], done.stderr.strip() or f"pip ended with status {done.returncode}"
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
        return [item["metadata"] for item in found], ""


class Walk:
    """All packages that the pins need on one Python, found by asking for wheels until nothing new turns up."""

    def __init__(self, python: str, find_links: str | None):
        self.python, self.find_links = python, find_links
        self.wanted: dict[str, Requirement] = {}
        self.extras: dict[str, set[str]] = {}
        self.places: dict[str, str] = {}  # the requirement file, or the package that needs it
        self.failures: list[str] = []
        self.from_source: dict[str, str] = {}
        self.lacking: set[str] = set()
        self.versions: dict[str, str] = {}

    def add(self, requirement: Requirement, place: str) -> bool:
        """Returns whether the requirement says more than those before it."""
        name = canonicalize_name(requirement.name)
        if name not in self.wanted:
            self.wanted[name] = Requirement(requirement.name)
            self.extras[name], self.places[name] = set(), place
            new = True
        else:
            parts = set(self.wanted[name].specifier)
            new = not (set(requirement.specifier) <= parts and requirement.extras <= self.extras[name])
        self.wanted[name].specifier &= requirement.specifier
        self.extras[name] |= requirement.extras
        return new

    def fail(self, name: str, answer: str) -> None:
        """Notes a package without a wheel: as allowed, or as a failure."""
        wanted, place = self.wanted[name], self.places[name]
        self.lacking.add(name)
        allowed, reason = FROM_SOURCE.get(name, ("nowhere", ""))
        if allowed in ("anywhere", place):
            self.from_source[name] = f"{wanted.name}{wanted.specifier} ({reason})"
        else:
            said = answer.splitlines()[-2:][0].removeprefix("ERROR: ")  # the versions that have one, or the last line
            self.failures.append(f"{self.python}: no wheel of {wanted.name}{wanted.specifier} ({place}): {said}")

    def ask_for(self, names: list[str]) -> list[dict]:
        """Metadata of the wheels; asks one by one where there is no common answer."""
        known = [name for name in names if name not in FROM_SOURCE]
        found, answer = ask([self.wanted[name] for name in known], self.python, self.find_links) if known else ([], "")
        alone = names if answer and len(known) > 1 else [name for name in names if name in FROM_SOURCE]
        if answer and len(known) == 1:
            self.fail(known[0], answer)
        for name in alone:
            single, answer = ask([self.wanted[name]], self.python, self.find_links)
            found += single
            if answer:
                self.fail(name, answer)
        return found

    def run(self) -> None:
        waiting = list(self.wanted)
        while waiting:
            follow = []
            for metadata in self.ask_for(waiting):
                name = canonicalize_name(metadata["name"])
                self.versions[name] = metadata["version"]
                for text in metadata.get("requires_dist", []):
                    requirement = Requirement(text)
                    if applies(requirement, self.python, self.extras[name]) and self.add(requirement, metadata["name"]):
                        follow.append(canonicalize_name(requirement.name))
            waiting = list(dict.fromkeys(follow))


def check(path: Path, python: str, find_links: str | None) -> Walk:
    walk = Walk(python, find_links)
    for place, requirement in read(path):
        if applies(requirement, python, set()):
            walk.add(requirement, place)
    walk.run()
    return walk


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("file", nargs="?", type=Path, default=root / "requirements-dev.txt", help="the requirements")
    parser.add_argument("--python", nargs="+", default=PYTHONS, metavar="3.X", help="versions (default: all)")
    parser.add_argument("--find-links", metavar="FOLDER", help="asks a folder of wheels in place of the index")
    given = parser.parse_args(arguments)
    failures, needed, lacking = [], set(), set()
    for python in given.python:
        walk = check(given.file, python, given.find_links)
        needed, lacking = needed | set(walk.wanted), lacking | walk.lacking
        failures += walk.failures
        print(f"{python}: wheels of {len(walk.versions)} packages", *walk.from_source.values(), sep="\n  from source: ")
    for name in sorted((needed - lacking) & set(FROM_SOURCE)):
        failures.append(f"{name} has a wheel on every Python asked for: take it out of FROM_SOURCE in .ci/wheels.py")
    for failure in failures:
        print(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
