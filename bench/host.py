"""Host cost of one step of the losses, measured without a GPU: ``python bench/host.py [--json FILE]``.

Runs forward and backward of ``depthg_loss`` from maps at the paper's step, with Triton, on CPU tensors and a stand-in
for Triton's driver (see ``ahead.py``): a launch does everything that it does on a GPU except the driver call. Counts
Triton launches and other operations that a device would execute (no views, no allocations). Time is the CPU time of the
calling thread, with tensors so small that arithmetic is negligible, against the eager loss of ``bench/stego.py`` in the
same run. Exits 1 above 8 launches, 12 other operations, or a tenth of eager's time.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ahead
import common
import compile_cases
import stego
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from depthg.kernels import LossSettings, checks

LAUNCHES, OPERATIONS, SHARE = 8, 12, 0.1
SETTINGS = LossSettings(depth_weight=0.19, depth_shift=0.03)
NO_WORK = ("empty", "detach", "alias", "lift_fresh", "_unsafe_view", "_reshape_alias", "promote_types")


class Operations(TorchDispatchMode):
    """Counts the operations that a device would execute, also inside our custom operators."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Sequence = (), kwargs: dict | None = None) -> Any:
        if function.namespace == "depthg":
            from torch._library.custom_ops import OPDEFS

            with self:  # a mode is off while it handles a call, and would miss the operator's inner calls
                return OPDEFS[function._schema.name]._init_fn(*args, **kwargs or {})
        name = function._schema.name.split("::")[1]
        if not function.is_view and not any(word in name for word in NO_WORK):
            self.counts[name] += 1
        return function(*args, **kwargs or {})


@contextmanager
def without_range_checks() -> Iterator[None]:
    """Context without range checks of indices, which run on the CPU only (on a GPU they would synchronise)."""
    check, checks.check_range = checks.check_range, lambda *args: None
    try:
        yield
    finally:
        checks.check_range = check


@dataclasses.dataclass
class Problem:
    """Inputs of a step: N images of ``cells`` x ``cells`` cells, P = ``side``^2 points, C and K channels, R draws."""

    images: int
    side: int
    channels: int
    codes: int
    cells: int
    draws: int = 5

    def __post_init__(self) -> None:
        n, size = self.images, (self.cells, self.cells)
        make = lambda c, grad: torch.rand(n, c, *size).requires_grad_(grad)  # noqa: E731
        self.maps = [make(c, grad) for c, grad in 2 * ((self.channels, False), (self.codes, True))]
        self.depth = torch.rand(n, 1, *size)
        self.at, self.near_at = (torch.rand(n, self.side, self.side, 2) * 2 - 1 for _ in range(2))
        self.points = [at.flatten(1, 2) for at in (self.at, self.near_at)]
        self.negatives = torch.stack([torch.randperm(n) for _ in range(self.draws)])

    def depthg(self) -> None:
        self.backward(compile_cases.from_maps(self.maps, self.depth, *self.points, self.negatives, SETTINGS))

    def eager(self) -> None:
        self.backward(stego.loss_at(*self.maps, self.negatives, self.depth, self.at, self.near_at, SETTINGS))

    def backward(self, loss: Tensor) -> None:
        for x in self.maps:
            x.grad = None
        loss.backward()


@dataclasses.dataclass(frozen=True)
class Row:
    contender: str
    launches: int
    operations: int
    thread_ms: float


def count(call: Callable[[], None], launches: list[str]) -> tuple[int, collections.Counter[str]]:
    """Triton launches and other operations of one call."""
    call()  # work that happens only once, e.g. compiling, does not count
    launches.clear()
    with Operations() as operations:
        call()
    return len(launches), operations.counts


def thread_ms(call: Callable[[], None], samples: int = 30, calls: int = 10) -> float:
    """CPU milliseconds of this thread for one call: the minimum of the samples, since other processes only add to it.

    A sample is several calls, since reading the clock takes time too.
    """
    found = []
    for _ in range(samples):
        begin = time.thread_time()
        for _ in range(calls):
            call()
        found.append((time.thread_time() - begin) * 1e3 / calls)
    return min(found)


def measure(problem: Problem, tiny: Problem) -> tuple[list[Row], dict[str, collections.Counter[str]]]:
    launches: list[str] = []

    def around(plain: Callable[..., Any], kernel: Any, *args: Any, **options: Any) -> Any:
        launches.append(kernel.__name__)
        return plain(kernel, *args, **options)

    rows, details = [], {}
    for name in ("depthg", "eager"):
        with without_range_checks(), ahead.compiling(ahead.Driver(90), around):
            number, operations = count(getattr(problem, name), launches)
        details[name] = operations + collections.Counter({f"{k} (Triton)": v for k, v in tally(launches)})
        with without_range_checks(), ahead.compiling(ahead.Driver(90)):
            getattr(tiny, name)()
            rows.append(Row(name, number, operations.total(), thread_ms(getattr(tiny, name))))
    return rows, details


def tally(names: Sequence[str]) -> list[tuple[str, int]]:
    return collections.Counter(names).most_common()


def faults(ours: Row, eager: Row) -> list[str]:
    found = []
    if ours.launches > LAUNCHES:
        found.append(f"{ours.launches} Triton launches, allowed {LAUNCHES}")
    if ours.operations > OPERATIONS:
        found.append(f"{ours.operations} other operations, allowed {OPERATIONS}")
    if ours.thread_ms > SHARE * eager.thread_ms:
        found.append(f"{ours.thread_ms:.3f} ms of thread time, allowed {SHARE} of eager's {eager.thread_ms:.3f}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the table and the machine to this file")
    args = parser.parse_args(arguments)
    os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(common.machine_line())
    rows, details = measure(Problem(32, 11, 384, 70, 28), Problem(8, 4, 24, 17, 4))
    print(common.format_table([f.name for f in dataclasses.fields(Row)], [dataclasses.astuple(r) for r in rows]))
    for name, counts in details.items():
        print(f"{name}:", ", ".join(f"{k} {v}" for k, v in counts.most_common()))
    found = faults(*rows)
    print(*[f"OVER BUDGET: {fault}" for fault in found], f"{len(found)} faults", sep="\n")
    if args.json:
        common.write_json(args.json, device="cpu", rows=rows, operations=details, faults=found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
