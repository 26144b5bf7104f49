"""The pins, and .ci/wheels.py, which asks whether each has a wheel: here it asks a folder of small wheels."""

import re
import runpy
import zipfile
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "mkdocs.yml").is_file())
SCRIPT = runpy.run_path(str(ROOT / ".ci" / "wheels.py"))
SOURCE = "antlr4-python3-runtime==4.9.3"


@pytest.fixture
def asked(tmp_path, capsys):
    """Runs the script on wheels and requirements that a test names; returns its status and what it prints."""
    tags = ["py3-none-any", *(f"cp3{minor}-cp3{minor}-manylinux_2_28_x86_64" for minor in (10, 14))]

    def add(name: str, version: str, tag: str, needs: list[str]) -> None:
        base = f"{name}-{version}"
        with zipfile.ZipFile(tmp_path / f"{base}-{tag}.whl", "w") as wheel:
            fields = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
            wheel.writestr(f"{base}.dist-info/METADATA", "\n".join(["Metadata-Version: 2.1", *fields, ""]))
            wheel.writestr(f"{base}.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
            wheel.writestr(f"{base}.dist-info/RECORD", "")

    def ask(requirements: str, *pythons: str, dev: str = "") -> tuple[int, str]:
        add("pure", "1.0", tags[0], ['fast>=2; python_version >= "3.14"', "absent>=1; extra == 'all'"])
        add("fast", "1.0", tags[1], [])
        add("fast", "2.0", tags[2], [])
        (tmp_path / "requirements.txt").write_text(requirements)
        (tmp_path / "requirements-dev.txt").write_text(f"# tools\n-r requirements.txt\n-e .\n{dev}")
        arguments = [str(tmp_path / "requirements-dev.txt"), "--find-links", str(tmp_path), "--python", *pythons]
        return SCRIPT["main"](arguments), capsys.readouterr().out

    ask.add = add
    return ask


def test_a_missing_wheel_is_named_with_the_python_and_who_needs_it(asked):
    status, text = asked('old==1; python_version < "3.14"\nfast==1.0\npure[all]==1.0\n', "3.14")
    assert status == 1 and "old" not in text
    assert "3.14: no wheel of fast==1.0 (requirements.txt): Could not find a version" in text
    assert "3.14: no wheel of absent>=1 (pure): " in text


@pytest.mark.slow
def test_every_pin_and_what_it_needs_is_asked_for(asked):
    status, text = asked('pure==1.0  # all\nfast==1.0; python_version < "3.14"\n', "3.10", "3.14")
    assert status == 0, text
    assert "3.10: wheels of 2 packages" in text and "3.14: wheels of 2 packages" in text
    asked.add("newer", "1", "py3-none-any", ["fast>=2"])
    asked.add("older", "1", "py3-none-any", ["fast<2"])
    status, text = asked("newer==1\nolder==1\n", "3.14")
    assert status == 1 and ("no wheel of fast<2,>=2" in text or "no wheel of fast>=2,<2" in text)


@pytest.mark.slow
def test_packages_from_source_are_those_of_the_list(asked):
    status, text = asked(f"{SOURCE}\n", "3.10")
    assert status == 0 and f"from source: {SOURCE} (hydra-core" in text
    assert asked("", "3.10", dev="pydensecrf2==1.1\n")[0] == 0
    status, text = asked("pydensecrf2==1.1\n", "3.10")
    assert status == 1 and "no wheel of pydensecrf2==1.1 (requirements.txt)" in text


@pytest.mark.slow
def test_a_package_of_the_list_that_has_a_wheel_must_leave_it(asked):
    asked.add("antlr4_python3_runtime", "4.9.3", "py3-none-any", [])
    status, text = asked(f"{SOURCE}\n", "3.14")
    assert status == 1 and "antlr4-python3-runtime has a wheel on every Python asked for" in text


@pytest.mark.parametrize("line", ["numpy>=1.26", "numpy", "numpy==1.26,!=2"])
def test_what_is_not_pinned_is_refused(asked, line):
    with pytest.raises(ValueError, match="is not pinned; write NAME==VERSION"):
        asked(f"{line}\n", "3.10")


@pytest.mark.parametrize("python", SCRIPT["PYTHONS"])
def test_each_package_has_one_pin_on_each_python(python):
    """Markers neither overlap nor leave a gap: packages without a wheel on some Python are no exception but these."""
    lines = list(SCRIPT["read"](ROOT / "requirements-dev.txt"))
    used = [wanted.name for _, wanted in lines if SCRIPT["applies"](wanted, python, set())]
    missing = {wanted.name for _, wanted in lines} - set(used)
    assert len(used) == len(set(used)) > 25
    assert missing == ({"pydensecrf2"} if python in ("3.13", "3.14") else set())


def test_the_oldest_versions_are_those_that_the_metadata_allows():
    """.ci/oldest.txt pins each lower bound of pyproject.toml, which is how a bound is tried."""
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.")[0].partition("[project]")[2]
    bounds = re.findall(r'"([\w-]+)>=([\d.]+)[";]', metadata)
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / ".ci" / "oldest.txt").read_text("utf-8"), re.MULTILINE))
    assert {name for name, _ in bounds} == set(pins) and len(pins) > 20
    wrong = [
        (name, bound, pins[name])
        for name, bound in bounds
        if f"{bound}.0.0".split(".")[:3] != f"{pins[name]}.0".split(".")[:3]
    ]
    assert not wrong
