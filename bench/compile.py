"""Compiles every Triton kernel ahead of time, without a GPU, and checks budgets: ``python bench/compile.py``.

    python bench/compile.py [--quick] [--targets 80,90] [--dtypes fp16,bf16] [--cases TEXT] [--jobs N] [--json FILE]

The public functions run at the shapes of ``bench/loss.py`` and some others (see ``ahead.py``). Prints one line per
distinct kernel and grid: the grid, registers, stack (spilled bytes per thread), shared memory, the number of
instructions, CPU seconds of compiling, and the number of some instructions by name. Exits 1 if

- a kernel has more stack than 32 bytes for half inputs, 64 for TF32, 256 for float32 (histograms: always 32);
- a block uses more shared memory than the architecture has;
- a product (``tl.dot``) of half or TF32 inputs runs without tensor cores, or a product of any inputs is missing (Triton
  3.7.1 compiles some float32 products for sm_100 to an empty kernel);
- the main launch of the paper's step has fewer than two programs for each of the 132 multiprocessors of an H100;
- the kernels of the paper's step take more than 20 CPU seconds to compile, from an empty cache;
- a step compiles again although only N, P, C or K have changed, and not the sizes they are padded to.

To test another version of Triton, run the script in an environment with that version.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import ahead
import common
import compile_cases

DTYPES = ("fp32", "tf32", "fp16", "bf16")
STACK = {"fp32": 256, "tf32": 64, "fp16": 32, "bf16": 32}
STACK_HISTOGRAM = 32
PROGRAMS = 264
FIRST_STEP_S = 20.0


@dataclasses.dataclass
class Row:
    """A kernel launch compiled for one target and input type; ``case`` is the first case that launched it."""

    target: int
    dtype: str
    case: str
    grid: tuple[int, ...]
    kernel: ahead.Kernel
    compiled: bool
    faults: list[str]

    def line(self) -> str:
        k = self.kernel
        grid, counts = "x".join(map(str, self.grid)), " ".join(f"{n}:{c}" for n, c in k.counts.items())
        return (
            f"sm_{self.target:<4}{self.dtype:5}{self.case[:26]:27}{k.name[:24]:25}{grid:>14}  {k.registers:3} registers"
            f" {k.stack:5} stack {k.shared:6} shared {k.instructions:6} instructions"
            f" {k.cpu_s * self.compiled:5.1f} s  {counts}"
            + "".join(f"\n    OVER BUDGET: {fault}" for fault in self.faults)
        )

    def plain(self) -> dict[str, object]:
        kernel = dataclasses.asdict(self.kernel)
        del kernel["key"]
        kernel["cpu_s"] *= self.compiled
        return {"target": self.target, "dtype": self.dtype, "case": self.case, "grid": self.grid, **kernel}


@dataclasses.dataclass
class Unit:
    """Results of one target and input type, compiled from an empty cache."""

    target: int
    dtype: str
    rows: list[Row] = dataclasses.field(default_factory=list)
    launches: int = 0
    first_step_s: float | None = None
    faults: list[str] = dataclasses.field(default_factory=list)

    def all_faults(self) -> list[str]:
        where = f"sm_{self.target} {self.dtype}"
        single = [f"{where} {row.case}, {row.kernel.name}: {fault}" for row in self.rows for fault in row.faults]
        return single + [f"{where}: {fault}" for fault in self.faults]


def faults(kernel: ahead.Kernel, grid: Sequence[int], target: int, dtype: str) -> list[str]:
    """Budget violations of one kernel."""
    found = []
    stack = STACK_HISTOGRAM if "histogram" in kernel.name else STACK[dtype]
    if kernel.stack > stack:
        found.append(f"{kernel.stack} bytes of stack, allowed {stack}")
    if kernel.shared > ahead.SHARED_KIB[target] * 1024:
        found.append(f"{kernel.shared} bytes of shared memory, sm_{target} has {ahead.SHARED_KIB[target]} KiB")
    if dtype != "fp32" and kernel.scalar_products:
        found.append(f"{kernel.scalar_products} of {kernel.products} products run without tensor cores")
    if dtype != "fp32" and kernel.products and not kernel.matrix_instructions:
        found.append(f"{kernel.products} products, but no instruction of the tensor cores")
    if kernel.products and not kernel.matrix_instructions + kernel.counts.get("FFMA", 0) + kernel.counts.get(
        "FFMA2", 0
    ):
        found.append(f"{kernel.products} products in {kernel.instructions} instructions: the compiler dropped them")
    if max(grid[1:], default=1) > 65535 or grid[0] >= 2**31:
        found.append(f"a grid of {grid}, which no device takes")
    return found


def main_launch_faults(rows: Sequence[tuple[ahead.Kernel, Sequence[int]]]) -> list[str]:
    """A fault if the launch with the most products does not fill a device, else an empty list."""
    main = max(rows, key=lambda row: row[0].products * programs(row[1]), default=None)
    if main is None or programs(main[1]) >= PROGRAMS:
        return []
    return [f"the main launch of the paper's step, {main[0].name}, has {programs(main[1])} programs, wanted {PROGRAMS}"]


def programs(grid: Sequence[int]) -> int:
    return functools.reduce(lambda x, y: x * y, grid, 1)


def compile_unit(target: int, dtype: str, number: int, chosen: Sequence[str], variations: bool) -> Unit:
    """Compiles all chosen cases for one target and type; prints a line per distinct kernel and grid."""
    unit, launched, seen = Unit(target, dtype), [], set()

    def record(case: str, launch: ahead.Launch) -> None:
        unit.launches += 1
        launched.append(launch)
        if (launch.kernel.key, launch.grid) not in seen:
            seen.add((launch.kernel.key, launch.grid))
            found = faults(launch.kernel, launch.grid, target, dtype)
            unit.rows.append(Row(target, dtype, case, launch.grid, launch.kernel, launch.compiled, found))
            print(unit.rows[-1].line(), flush=True)

    ahead.allow_tf32(dtype == "tf32")
    with tempfile.TemporaryDirectory(prefix="depthg-compile-") as cache:
        ahead.use_empty_cache(cache)
        current = ""
        with ahead.recording(ahead.Driver(target, number), lambda launch: record(current, launch)):
            for current in chosen:
                launched.clear()
                compile_cases.CASES[current](compile_cases.TYPES[dtype])
                if current == compile_cases.PAPER_STEP:
                    unit.first_step_s = round(sum(x.kernel.cpu_s for x in launched if x.compiled), 1)
                    unit.faults += main_launch_faults([(x.kernel, x.grid) for x in launched])
            for size in compile_cases.SAME_CLASS if variations else ():
                current = "N, P, C, K = " + ", ".join(map(str, size))
                launched.clear()
                compile_cases.loss_case(*size)(compile_cases.TYPES[dtype])
                anew = {launch.kernel.name for launch in launched if launch.compiled}
                unit.faults += [f"{current} compiles {', '.join(sorted(anew))} anew"] if anew else []
    if unit.first_step_s is not None and unit.first_step_s > FIRST_STEP_S:
        unit.faults.append(f"the first step took {unit.first_step_s} CPU seconds of compiling, allowed {FIRST_STEP_S}")
    return unit


def run_units(tasks: Sequence[tuple], jobs: int) -> list[Unit]:
    if jobs == 1:
        return [compile_unit(*task) for task in tasks]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(compile_unit, *zip(*tasks, strict=True)))


def report(units: Sequence[Unit], path: Path | None) -> list[str]:
    """Prints a summary of each target and type, writes the kernels to ``path``, and returns all faults."""
    header = ("target", "type", "launches", "kernels", "most stack", "most shared", "first step, CPU s", "over budget")
    lines = []
    for unit in units:
        kernels = [row.kernel for row in unit.rows if row.compiled]
        most = [max((getattr(k, name) for k in kernels), default=0) for name in ("stack", "shared")]
        over = len(unit.all_faults())
        lines.append((f"sm_{unit.target}", unit.dtype, unit.launches, len(kernels), *most, unit.first_step_s, over))
    print(common.format_table(header, lines))
    found = [fault for unit in units for fault in unit.all_faults()]
    print(*found, f"{len(found)} faults", sep="\n")
    if path:
        units_plain = [dict(zip(header, line, strict=True)) for line in lines]
        rows = [row.plain() for unit in units for row in unit.rows]
        common.write_json(path, device="cpu", rows=rows, compact=True, units=units_plain, faults=found)
    return found


def listed(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Returns a parser of comma-separated lists of some of the choices."""

    def parse(text: str) -> list[str]:
        for word in text.split(","):
            if word not in choices:
                raise argparse.ArgumentTypeError(f"unknown {word!r}; choose from {', '.join(choices)}")
        return text.split(",")

    return parse


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    targets = [str(target) for target in ahead.SHARED_KIB]
    quick = f"{len(compile_cases.QUICK)} cases in fp32 and fp16 for sm_80 and sm_90"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--targets", type=listed(targets), help=f"of {','.join(targets)}; default all")
    parser.add_argument("--dtypes", type=listed(DTYPES), help=f"of {','.join(DTYPES)}; default all")
    parser.add_argument("--cases", default="", metavar="TEXT", help="only the cases with this in their name")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile, default 2")
    parser.add_argument("--json", type=Path, help="write the kernels and the machine to this file")
    args = parser.parse_args(arguments)
    os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported, here and in the processes that compile
    chosen = [c for c in (compile_cases.QUICK if args.quick else compile_cases.CASES) if args.cases in c]
    if not chosen:
        parser.error(f"no case has {args.cases!r} in its name; there are {', '.join(compile_cases.CASES)}")
    args.targets = args.targets or (["80", "90"] if args.quick else targets)
    args.dtypes = args.dtypes or (["fp32", "fp16"] if args.quick else DTYPES)
    pairs = [(int(target), dtype) for dtype in args.dtypes for target in args.targets]
    vary = compile_cases.PAPER_STEP in chosen  # once: which sizes compile again does not depend on target and type
    tasks = [(*pair, number, chosen, vary and number == 0) for number, pair in enumerate(pairs)]
    print(common.machine_line())
    return 1 if report(run_units(tasks, args.jobs), args.json) else 0


if __name__ == "__main__":
    sys.exit(main())
