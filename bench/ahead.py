"""Compiles Triton kernels ahead of time, without a GPU, exactly as the launchers call them.

The public functions run on CPU tensors with ``impl="triton"``. A stand-in for Triton's driver names the target device,
and a launch ends after compiling. So the specialisation (values of 1, multiples of 16, 32 or 64 bits) and the options
are those of a real launch. Nothing is computed: results are uninitialised memory.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # maximum shared memory of a block, by architecture
OPTIONS = ("num_warps", "num_stages")
WATCHED = (
    "HMMA", "HGMMA", "UTCHMMA", "FFMA", "FFMA2", "LDG", "LDGSTS", "LDS", "LDSM", "LDL", "STL", "REDG", "ATOMG", "BAR",
)  # fmt: skip


class Driver:
    """The driver methods that Triton calls before a launch. ``device`` is the key of Triton's in-memory caches."""

    def __init__(self, target: int, device: int = 0) -> None:
        self.target, self.device = target, device

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.target, 32)

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One compiled kernel: its resources on a multiprocessor, and its instructions."""

    name: str
    variant: str  # values of the constexpr arguments and the options
    key: str
    registers: int
    stack: int  # bytes per thread
    shared: int  # bytes per block
    products: int  # tl.dot
    scalar_products: int  # those that run without tensor cores
    instructions: int
    counts: dict[str, int]  # number of each instruction in WATCHED
    cpu_s: float  # compile time, of this process and of the assembler

    @property
    def matrix_instructions(self) -> int:
        return sum(count for name, count in self.counts.items() if name.endswith("MMA"))


@dataclasses.dataclass(frozen=True)
class Launch:
    kernel: Kernel
    grid: tuple[int, ...]
    compiled: bool  # True if this launch compiled it, False if it came from a cache


def cpu_seconds() -> float:
    """CPU seconds of this process and of its ended children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def disassemble(cubin: bytes) -> tuple[dict[str, int], collections.Counter[str]]:
    """Registers and stack of a kernel, and the number of its instructions by the first part of their name."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run([tools / name, option, file.name], capture_output=True, text=True, check=True).stdout
            for name, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump does not tell registers and stack: {usage!r}")
    lines = re.finditer(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", code, re.M)
    return {"registers": int(found[1]), "stack": int(found[2])}, collections.Counter(m[1] for m in lines)


def describe(kernel: Any, compiled: Any, arguments: dict[str, Any], cpu_s: float) -> Kernel:
    usage, counts = disassemble(compiled.asm["cubin"])
    options = {key: getattr(compiled.metadata, key) for key in OPTIONS}
    constants = {x.name: arguments[x.name] for x in kernel.params if x.is_constexpr and x.name in arguments}
    scalar = re.findall(r"= tt\.dot .*-> tensor<[^>]*#blocked", compiled.asm["ttgir"])
    return Kernel(
        kernel.__name__, " ".join(f"{key}={value}" for key, value in (constants | options).items()), compiled.hash,
        usage["registers"], usage["stack"], compiled.metadata.shared,
        len(re.findall(r"= tt\.dot ", compiled.asm["ttir"])), len(scalar),
        counts.total(), {key: counts[key] for key in WATCHED if counts[key]}, cpu_s,
    )  # fmt: skip


@contextmanager
def recording(driver: Driver, record: Callable[[Launch], None]) -> Iterator[None]:
    """Context in which every Triton launch is compiled and passed to ``record``."""
    seen: dict[str, Kernel] = {}

    def run(plain: Callable[..., Any], kernel: Any, *args: Any, grid: Any, **options: Any) -> Any:
        before = cpu_seconds()
        compiled = plain(kernel, *args, grid=grid, **options)
        spent = cpu_seconds() - before
        arguments = dict(zip(kernel.arg_names, args, strict=False)) | options
        new = compiled.hash not in seen
        if new:
            seen[compiled.hash] = describe(kernel, compiled, arguments, round(spent, 2))
        record(Launch(seen[compiled.hash], tuple(grid(arguments) if callable(grid) else grid), new))
        return compiled

    with compiling(driver, run):
        yield


@contextmanager
def compiling(driver: Driver, around: Callable[..., Any] | None = None) -> Iterator[None]:
    """Context in which public functions use Triton, also for CPU tensors, and a launch ends before the driver call.

    ``around(plain, kernel, *args, **options)``, if given, replaces each launch; it calls ``plain`` with the remaining
    arguments. Kernels are cached by Triton, in memory by ``driver.device`` and on disk.
    """
    import triton
    from triton.runtime.jit import JITFunction

    from depthg.kernels import _extension, checks, launch_triton

    if not isinstance(triton.language.sum, JITFunction):
        raise RuntimeError("Triton's interpreter is on, which compiles nothing; start with TRITON_INTERPRET=0")
    launch, kept = JITFunction.run, (checks.choose_impl, _extension.HAS_CPU)

    def plain(kernel: Any, *args: Any, warmup: bool, **options: Any) -> Any:
        return launch(kernel, *args, warmup=True, **options)

    checks.choose_impl = lambda impl, device, **limits: "triton" if impl == "auto" else impl
    _extension.HAS_CPU = False  # the C++ path for the CPU, which CUDA tensors do not use
    JITFunction.run = plain if around is None else lambda kernel, *args, **how: around(plain, kernel, *args, **how)
    triton.runtime.driver.set_active(driver)
    launch_triton.architecture.cache_clear()
    try:
        yield
    finally:
        launch_triton.architecture.cache_clear()
        JITFunction.run = launch
        checks.choose_impl, _extension.HAS_CPU = kept
        if torch.cuda.is_available():  # without a GPU Triton has no driver to restore
            triton.runtime.driver.reset_active()


def allow_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed


def use_empty_cache(folder: str) -> None:
    """Sets Triton's disk cache to ``folder``, so that kernels compiled by other processes are compiled again here."""
    os.environ["TRITON_CACHE_DIR"] = folder
