"""Builds of the package: ``DEPTHG_BUILD`` in its four values, and the CUDA code where nvcc is present."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "kernels", "depthg")

CHECK = """
import sys
# An editable install of the checkout would supply what the wheel lacks.
sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
import torch
from depthg.kernels import _extension, farthest_point_sample
import depthg
assert depthg.__file__.startswith({folder!r}), depthg.__file__
points = torch.tensor([[[0.0], [1.0], [2.0], [3.0], [10.0]]])
assert farthest_point_sample(points, 5).tolist() == [[0, 4, 3, 1, 2]]
print(_extension.HAS_CPU, _extension.HAS_CUDA)
"""


def have(command):
    return shutil.which(command) is not None


@pytest.fixture
def copy_of_sources(tmp_path):
    """A copy to build in, so that neither the checkout nor its installed extension is touched."""
    target = tmp_path / "source"
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=ignore)
        else:
            target.mkdir(exist_ok=True)
            shutil.copy(source, target / name)
    return target


def build(folder, mode, **environment):
    """Runs ``setup.py bdist_wheel`` in ``folder``; returns the finished process and the wheels."""
    variables = {**os.environ, "DEPTHG_BUILD": mode, **environment}
    command = [sys.executable, "setup.py", "-q", "bdist_wheel"]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=600)
    return done, list(folder.glob("dist/*.whl"))


def installed_state(wheel, tmp_path):
    """Unpacks the wheel and imports it from there: what ``HAS_CPU`` and ``HAS_CUDA`` are, after one sampling."""
    folder = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(folder)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    code = CHECK.format(folder=str(folder))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def extension_in(wheel):
    return [name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("depthg/_C")]


pytestmark = pytest.mark.skipif(os.name == "nt", reason="the extension is not built on Windows")
UNOPTIMISED = {"CXXFLAGS": "-O0"}  # what is optimised, as users get it, is what all other tests run on
NEEDS_CXX = pytest.mark.skipif(not (have("g++") or have("clang++")), reason="no C++ compiler")


def test_none_is_pure_python_and_falls_back_to_eager(copy_of_sources, tmp_path):
    done, wheels = build(copy_of_sources, "none")
    assert done.returncode == 0, done.stderr
    assert wheels[0].name.endswith("py3-none-any.whl")
    assert not extension_in(wheels[0])
    beside_code = {path for path in (ROOT / "depthg").rglob("*.*") if path.suffix in (".yaml", ".html", ".css")}
    assert {".yaml", ".html", ".css"} == {path.suffix for path in beside_code}
    installed = set(zipfile.ZipFile(wheels[0]).namelist())
    assert {path.relative_to(ROOT).as_posix() for path in beside_code} <= installed
    assert installed_state(wheels[0], tmp_path) == ["False", "False"]


@pytest.mark.slow
@NEEDS_CXX
def test_cpu_wheel_contains_the_extension_without_cuda(copy_of_sources, tmp_path):
    done, wheels = build(copy_of_sources, "cpu", **UNOPTIMISED)
    assert done.returncode == 0, done.stderr
    assert len(extension_in(wheels[0])) == 1
    assert installed_state(wheels[0], tmp_path) == ["True", "False"]


@pytest.mark.slow
@NEEDS_CXX
def test_auto_without_a_working_nvcc_says_why_and_builds_the_cpu_code(copy_of_sources, tmp_path):
    broken = tmp_path / "toolkit" / "bin" / "nvcc"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\necho this toolkit is broken >&2\nexit 1\n")
    broken.chmod(0o755)
    done, wheels = build(copy_of_sources, "auto", CUDA_HOME=str(tmp_path / "toolkit"), **UNOPTIMISED)
    assert done.returncode == 0, done.stderr
    assert "CUDA build failed" in done.stderr
    assert "CPU code alone" in done.stderr
    assert installed_state(wheels[0], tmp_path) == ["True", "False"]


def test_auto_without_a_compiler_says_so_and_installs_pure_python(copy_of_sources, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    done, wheels = build(copy_of_sources, "auto", PATH=str(empty), CXX="no-such-compiler", CUDA_HOME=str(empty))
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler found" in done.stderr
    assert not extension_in(wheels[0])


@pytest.mark.parametrize(("mode", "message"), [("gpu", "auto, cpu, cuda or none"), ("cuda", "nvcc is not found")])
def test_modes_that_cannot_be_served_are_errors(copy_of_sources, tmp_path, mode, message):
    if mode == "cuda" and not have("g++"):
        pytest.skip("no C++ compiler")
    only_cxx = tmp_path / "bin"
    only_cxx.mkdir()
    if have("g++"):
        (only_cxx / "g++").symlink_to(shutil.which("g++"))
    if Path("/usr/local/cuda/bin/nvcc").exists() and mode == "cuda":
        pytest.skip("nvcc lies where it is always found")
    done, _ = build(copy_of_sources, mode, PATH=str(only_cxx), CUDA_HOME="")
    assert done.returncode != 0
    assert message in done.stderr


# CUDA


STAND_IN = """#!/bin/sh
if [ "$1" = --list-gpu-arch ]; then {list}; exit; fi
echo "$@" >>{log}
while [ $# -gt 0 ]; do
    case "$1" in -o) echo >"$2" ;; -MF) echo "x.o:" >"$2" ;; esac
    shift
done
"""


@pytest.fixture
def nvcc_calls(copy_of_sources, tmp_path):
    """A function that builds with a given $CXX and returns the calls of nvcc, which a stand-in writes down."""
    log, tools = tmp_path / "calls", tmp_path / "toolkit" / "bin"
    listed = "nvcc --list-gpu-arch" if have("nvcc") else f"printf 'compute_%s\\n' {' '.join(TARGETS)}"
    tools.mkdir(parents=True)
    for name, text in (("nvcc", STAND_IN), ("c++", STAND_IN), ("ccache", '#!/bin/sh\nexec "$@"\n')):
        (tools / name).write_text(text.replace("{list}", listed).replace("{log}", f"{log}.{name}"))
        (tools / name).chmod(0o755)

    def calls(cxx):
        done, _ = build(copy_of_sources, "cuda", CUDA_HOME=str(tmp_path / "toolkit"), CXX=cxx.format(tools))
        assert done.returncode == 0, done.stderr
        return Path(f"{log}.nvcc").read_text().splitlines()

    return calls


@pytest.fixture
def cuda_flags(nvcc_calls):
    """The options with which setup.py calls nvcc."""
    call = next(line for line in nvcc_calls("{}/c++") if "fps_cuda.cu" in line)
    return [word for word in call.split() if word.startswith(("-std", "-O", "--fmad", "-gencode"))]


@pytest.mark.parametrize("cxx", ["{0}/c++", "{0}/ccache {0}/c++", "{0}/ccache {0}/c++ -m64"])
def test_nvcc_gets_the_compiler_behind_a_launcher(nvcc_calls, tmp_path, cxx):
    calls = [line.split() for line in nvcc_calls(cxx)]
    assert len(calls) == 2  # compiles, and links
    for words in calls:
        assert words[words.index("-ccbin") + 1] == str(tmp_path / "toolkit" / "bin" / "c++")


TARGETS = ["75", "80", "90", "100", "120"]


def test_every_device_from_75_on_finds_cuda_code(cuda_flags):
    codes = {flag.rsplit("code=", 1)[1] for flag in cuda_flags if flag.startswith("-gencode")}
    assert codes >= {f"sm_{arch}" for arch in TARGETS}  # also 86 and 89, 103, 121
    assert codes >= {"compute_80", "compute_120"}  # whatever lies between, or comes later, compiles this
    assert "--fmad=false" in cuda_flags


@pytest.mark.slow
@pytest.mark.skipif(not have("nvcc"), reason="nvcc is not installed")
def test_no_kernel_spills_registers_on_any_target(cuda_flags, tmp_path):
    command = ["nvcc", *cuda_flags, "--threads", "2", "-Xptxas", "-v", "-c", "-o", str(tmp_path / "fps.o")]
    done = subprocess.run([*command, str(ROOT / "csrc" / "fps_cuda.cu")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    entry = r"Compiling entry function '(\w+)' for '(\w+)'\n.*\n\s*(\d+ bytes stack frame.*)\n"
    kernels = re.findall(entry, done.stderr)
    assert len(kernels) == 8 * len(TARGETS), done.stderr
    none = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    assert [kernel for kernel in kernels if kernel[2] != none] == []


@pytest.mark.skipif(not have("nvcc"), reason="nvcc is not installed")
def test_nvcc_compiles_the_cuda_code_without_warnings(tmp_path):
    listed = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    arch = "compute_80" if "compute_80" in listed else listed[0]
    command = ["nvcc", "-std=c++17", "--fmad=false", f"-arch={arch}", "-Werror", "all-warnings", "-ptx"]
    done = subprocess.run(
        [*command, str(ROOT / "csrc" / "fps_cuda.cu"), "-o", str(tmp_path / "fps.ptx")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ptx = (tmp_path / "fps.ptx").read_text()
    assert ".entry" in ptx
    assert "fma." not in ptx.replace("fma.rn.f64", "")  # contraction would break the equality of indices
