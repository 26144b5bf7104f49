"""Builds ``depthg._C`` from ``csrc`` with ninja and installs ``kernels/`` as the package ``depthg.kernels``.

The environment variable ``DEPTHG_BUILD`` chooses what is built:

- ``auto`` (default): the CPU code, and the CUDA code when nvcc is found; what fails is left out, with a reason;
- ``cpu``: the CPU code only; ``cuda``: both; a failure is an error;
- ``none``: pure Python, the eager implementations alone.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-pthread"]
ISA_FLAGS = {  # one copy of each *_simd.cpp per instruction set; csrc/isa.h chooses at run time
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": [
        "-Wno-maybe-uninitialized",
        "-mfma",
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mprefer-vector-width=512",
    ],
}
CUDA_ARCHS = ["75", "80", "90", "100", "120"]  # sm_80 code runs on 86 and 89
LAUNCHERS = {"ccache", "sccache", "distcc", "icecc"}  # words that may stand before the compiler in $CXX
PTX_ARCHS = ["80", "120"]  # as PTX too: for devices between and after the others


def say(message):
    print(f"depthg: {message}", file=sys.stderr, flush=True)


def build_mode():
    mode = os.environ.get("DEPTHG_BUILD", "auto").lower()
    if mode not in ("auto", "cpu", "cuda", "none"):
        raise SystemExit(f"DEPTHG_BUILD={mode!r} is not known; use auto, cpu, cuda or none")
    return mode


def find_cxx():
    """The C++ compiler: $CXX, the one of Python, or a usual name; None when there is none (or on Windows)."""
    if os.name == "nt":
        return None
    names = [os.environ.get("CXX"), sysconfig.get_config_var("CXX"), "g++", "clang++", "c++"]
    commands = [shlex.split(name) for name in names if name]
    return next((words for words in commands if words and shutil.which(words[0])), None)


def host_compiler(cxx):
    """The compiler itself for nvcc's -ccbin, which takes no words before or after it: g++ of "ccache g++ -m64"."""
    return next((word for word in cxx if Path(word).name not in LAUNCHERS), cxx[0])


def cpp_sources():
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/*.cpp"))


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    names = [str(Path(home, "bin", "nvcc"))] if home else []
    return next((path for name in [*names, "nvcc", "/usr/local/cuda/bin/nvcc"] if (path := shutil.which(name))), None)


def supported_archs(nvcc):
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    archs = [arch for arch in CUDA_ARCHS if f"compute_{arch}" in listed]
    if not archs:
        raise RuntimeError(f"{nvcc} knows none of the targets sm_{', sm_'.join(CUDA_ARCHS)}")
    return archs


def cuda_libraries(nvcc):
    """Where the static runtime lies in a toolkit from the package index, which its nvcc does not know."""
    folder = Path(nvcc).resolve().parent.parent / "lib"
    return [f"-L{folder}"] if (folder / "libcudart_static.a").exists() else []


class NinjaFile:
    """Collects compile steps and writes them as build.ninja."""

    def __init__(self):
        self.lines, self.objects = [], []

    def rule(self, name, command, depfile=True):
        deps = ["  depfile = $out.d", "  deps = gcc"] if depfile else []
        self.lines += [f"rule {name}", f"  command = {command}", *deps]

    def compile(self, rule, source, flags=(), name=None):
        target = f"{name or Path(source).stem}.o"
        self.lines += [f"build {target}: {rule} {ninja_path(ROOT / source)}", f"  flags = {shlex.join(flags)}"]
        self.objects.append(target)

    def run(self, folder):
        Path(folder, "build.ninja").write_text("\n".join([*self.lines, ""]))
        import ninja

        command = [str(Path(ninja.BIN_DIR, "ninja")), "-C", str(folder)]
        if subprocess.run(command).returncode:
            raise RuntimeError(f"a compile step failed; run {shlex.join(command)} to see it again")


def ninja_path(path):
    return str(path).replace("$", "$$").replace(":", "$:").replace(" ", "$ ")


class BuildExtension(build_ext):
    """Compiles and links ``depthg._C``; in mode auto it tries less when more does not work."""

    def build_extension(self, ext):
        mode, nvcc = build_mode(), find_nvcc()
        if mode == "cuda" and not nvcc:
            raise SystemExit(
                "DEPTHG_BUILD=cuda, but nvcc is not found: install the toolkit, set CUDA_HOME, or use DEPTHG_BUILD=cpu"
            )
        attempts = {"auto": [True, False] if nvcc else [False], "cpu": [False], "cuda": [True]}[mode]
        for with_cuda in attempts:
            try:
                return self.build(ext, nvcc if with_cuda else None)
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                if mode != "auto":
                    raise SystemExit(f"DEPTHG_BUILD={mode}: {error}") from error
                left = (
                    "the CPU code alone"
                    if with_cuda
                    else "no compiled code: the eager implementations remain, and are slow"
                )
                say(f"{'CUDA' if with_cuda else 'C++'} build failed ({error}); installing {left}")

    def build(self, ext, nvcc):
        cxx = find_cxx()
        folder = Path(self.build_temp, "cuda" if nvcc else "cpu").resolve()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        import pybind11

        defines = (["-DDEPTHG_X86"] if x86 else []) + (["-DDEPTHG_CUDA"] if nvcc else [])
        includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
        steps = NinjaFile()
        common = [*CXX_FLAGS, *shlex.split(os.environ.get("CXXFLAGS", "")), *defines]
        steps.rule("cxx", f"{shlex.join([*cxx, *common])} $flags -MMD -MF $out.d -c $in -o $out")
        if nvcc:
            self.add_cuda(steps, nvcc, cxx)
        for source in cpp_sources():
            if source.endswith("_simd.cpp"):
                for isa in ISA_FLAGS if x86 else ["baseline"]:
                    flags = [*ISA_FLAGS[isa], f"-DDEPTHG_ISA_NAME={isa}"]
                    steps.compile("cxx", source, flags, name=f"{Path(source).stem}_{isa}")
            else:
                steps.compile("cxx", source, ["-O1", *includes] if source.endswith("bindings.cpp") else [])
        shared = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
        if nvcc:  # links the CUDA runtime statically and knows where it lies
            linker = [
                nvcc,
                "-ccbin",
                host_compiler(cxx),
                "-shared",
                "-cudart",
                "static",
                "-Xcompiler",
                "-pthread",
                *cuda_libraries(nvcc),
            ]
        else:
            linker = [*cxx, *shared, "-pthread"]
        steps.rule("link", f"{shlex.join(linker)} $in -o $out", depfile=False)
        steps.lines += [f"build {ninja_path(target)}: link {' '.join(steps.objects)}", f"default {ninja_path(target)}"]
        steps.run(folder)

    def add_cuda(self, steps, nvcc, cxx):
        archs = supported_archs(nvcc)
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
        codes += [f"-gencode=arch=compute_{a},code=compute_{a}" for a in archs if a in PTX_ARCHS or a == archs[-1]]
        host = ["-ccbin", host_compiler(cxx), "-Xcompiler", "-fPIC,-fvisibility=hidden"]
        flags = ["-std=c++17", "-O3", "--fmad=false", "--threads", "0", *host, *codes]
        steps.rule("nvcc", f"{shlex.join([nvcc, *flags])} $flags -MMD -MF $out.d -c $in -o $out")
        steps.compile("nvcc", "csrc/fps_cuda.cu")


def extensions():
    mode = build_mode()
    if mode == "none":
        return []
    if not find_cxx():
        if mode != "auto":
            raise SystemExit(f"DEPTHG_BUILD={mode}, but no C++ compiler is found: install g++ or clang++, or set CXX")
        say("no C++ compiler found (g++, clang++, $CXX); installing pure Python, farthest point sampling will be slow")
        return []
    sources = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/*") if p.suffix in (".cpp", ".cu"))
    headers = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/*.h"))
    return [Extension("depthg._C", sources=sources, depends=headers, optional=mode == "auto")]


setup(
    packages=[*find_namespace_packages(include=["depthg", "depthg.*"]), "depthg.kernels"],
    package_dir={"depthg": "depthg", "depthg.kernels": "kernels"},
    package_data={"": ["*.yaml", "*.html", "*.css"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtension},
)
