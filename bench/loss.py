"""Correlation losses: ours, eager in STEGO's form, and torch.compile of eager: ``python bench/loss.py``.

    python bench/loss.py [--device cpu|cuda] [--json FILE] [--quick] [--no-compile] [--case TEXT]

Contenders get the same tensors, are compared with each other before they are timed, and run in turns. ``floor`` is the
time of the plain algorithm's matrix products at the matrix rate (forward: F and S once; with backward: two more
products of S's size), or of reading the inputs and writing the gradients once at the memory bandwidth, if that is
longer. Both rates are measured in the same run. Ours can be faster than the floor: pairs drawn twice or mirrored are
computed once. ``ratio`` is the contender's median over ours. Memory is the peak above the memory in use before, each
contender in a fresh process.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import common
import stego
import torch

from depthg import kernels
from depthg.compat import ContrastiveCorrelationLoss
from depthg.kernels import LossSettings, reference

SETTINGS = LossSettings(depth_weight=0.19, depth_shift=0.03)
MEMORY_LIMIT = 4 << 30  # bytes of eager's tensors above which eager does not run on a CPU
CONTENDERS = ("depthg", "eager", "compile")


@dataclasses.dataclass(frozen=True)
class Case:
    """``images`` N, ``side`` x ``side`` points, C feature and K code channels, R draws; side 0 is NT-Xent on 2N views.

    Points are read from maps of ``cells`` x ``cells`` cells; with 0, the vectors at the points are given. ``drop_in``:
    STEGO's class against ``depthg.compat``, with random draws and without depth.
    """

    name: str
    images: int
    side: int
    channels: int
    codes: int
    cells: int = 28
    draws: int = 5
    drop_in: bool = False

    @property
    def pairs(self) -> int:
        return self.images * (2 + self.draws)

    def operations(self, backward: bool) -> float:
        """Floating-point operations of the matrix products (a multiply-add is two); depth shares the S of self."""
        if self.side == 0:
            return 2.0 * (2 * self.images) ** 2 * self.codes * (3 if backward else 1)
        width = self.channels + self.codes * (3 if backward else 1)
        depth = self.codes if backward else 0
        return 2.0 * self.side**4 * (self.pairs * width + self.images * depth)

    def bytes_moved(self, backward: bool) -> float:
        """Bytes to read both inputs once and, with backward, to write the gradients of the codes once."""
        passes = 2 if backward else 1
        if self.side == 0:
            return 4.0 * 2 * self.images * self.codes * passes
        return 4.0 * 2 * self.images * (self.cells or self.side) ** 2 * (self.channels + self.codes * passes)

    def floor_ms(self, backward: bool, rate: float, bandwidth: float) -> float:
        return 1e3 * max(self.operations(backward) / rate, self.bytes_moved(backward) / bandwidth)

    def eager_bytes(self) -> float:
        """Approximate bytes that eager holds at a time: three tensors per pair in the graph."""
        return (2 * self.images) ** 2 * 4.0 * 3 if self.side == 0 else 3 * 4.0 * self.pairs * self.side**4


CASES = [
    Case("paper step (ViT-S)", 32, 11, 384, 70),
    Case("paper step (ViT-B)", 32, 12, 768, 90),
    Case("dense, N=8", 8, 28, 384, 70),
    Case("dense, N=32", 32, 40, 384, 70, cells=40),
    Case("STEGO's class, drop-in", 32, 11, 384, 70, drop_in=True),
    Case("points given, N=32, P=121", 32, 11, 384, 70, cells=0),
    Case("points given, N=8, P=784", 8, 28, 384, 70, cells=0),
    Case("NT-Xent, 2N=8192", 4096, 0, 0, 128),
]
GPU_CASES = [Case("NT-Xent, 2N=65536", 32768, 0, 0, 128)]


@dataclasses.dataclass(frozen=True)
class Row:
    case: str
    contender: str
    direction: str
    median_ms: float
    p20_ms: float
    p80_ms: float
    runs: int
    ratio: float
    floor_ms: float
    peak_mib: float | None


def make_calls(case: Case, device: str, names: tuple[str, ...]) -> dict[str, tuple[Callable, list[torch.Tensor]]]:
    """For each contender, the loss as a function without arguments, and the leaves that get gradients."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, grad: bool = False) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device).requires_grad_(grad)

    if case.side == 0:
        z = [draw(case.images, case.codes, grad=True) for _ in range(2)]
        eager = lambda a, b: reference.nt_xent_loss(a, b, 0.5)  # noqa: E731
        functions = {"depthg": lambda a, b: kernels.nt_xent_loss(a, b, 0.5), "eager": eager}
        if "compile" in names:
            functions["compile"] = torch.compile(eager)
        return {name: (lambda f=f: f(*z), z) for name, f in functions.items() if name in names}
    return {name: call for name, call in loss_calls(case, draw, device, names).items() if name in names}


def loss_calls(case: Case, draw: Callable, device: str, names: tuple[str, ...]) -> dict[str, tuple[Callable, list]]:
    """Calls of Eq. 7 from maps, or from the vectors at the points."""
    n, side, c, k, size = case.images, case.side, case.channels, case.codes, case.cells or case.side
    feats, near_feats = draw(n, c, size, size).relu(), draw(n, c, size, size).relu()
    codes, near_codes = draw(n, k, size, size, grad=True), draw(n, k, size, size, grad=True)
    depth = draw(n, 1, size, size).sigmoid()
    generator = torch.Generator().manual_seed(1)
    offsets = torch.randperm(n - 1, generator=generator)[: case.draws] + 1
    negatives = torch.stack([torch.randperm(n, generator=generator) for _ in offsets])
    negatives = torch.where(negatives == torch.arange(n), (negatives + 1) % n, negatives).to(device)
    maps = [feats, codes, near_feats, near_codes]
    if case.drop_in:
        eager, rest = seeded(lambda *x: stego.drop_in(*x, case.draws, side, SETTINGS)), []
        leaves, ours = maps[1::2], seeded(lambda: replaced_class(case, maps))
    elif case.cells:
        at, near_at = (torch.rand(n, side, side, 2, generator=generator).to(device) * 2 - 1 for _ in range(2))
        eager, rest = stego.loss_at, [negatives, depth, at, near_at, SETTINGS]
        leaves, ours = maps[1::2], lambda: fused_at(*maps, negatives, depth, at.flatten(1, 2), near_at.flatten(1, 2))
    else:
        points = [x.detach().flatten(2).transpose(1, 2).contiguous() for x in maps]
        points = [x.requires_grad_(i % 2 == 1) for i, x in enumerate(points)]
        eager, rest = stego.loss, [negatives, depth[:, 0], SETTINGS]
        u, leaves = depth.flatten(1), points[1::2]
        ours = lambda: kernels.depthg_loss(*points, negatives, SETTINGS, depth=u).total  # noqa: E731
    calls = {"depthg": (ours, leaves), "eager": (lambda: eager(*maps, *rest), maps[1::2])}
    if "compile" in names:
        compiled = torch.compile(eager)
        calls["compile"] = (lambda: compiled(*maps, *rest), maps[1::2])
    return calls


def seeded(call: Callable) -> Callable:
    """The call with the same random draws every time."""

    def run(*inputs):
        torch.manual_seed(0)
        return call(*inputs)

    return run


def replaced_class(case: Case, maps: list[torch.Tensor]) -> torch.Tensor:
    feats, codes, near_feats, near_codes = maps
    cfg = SimpleNamespace(
        pointwise=True, zero_clamp=True, stabalize=False, feature_samples=case.side, neg_samples=case.draws,
        use_salience=False, pos_intra_shift=SETTINGS.self_shift, pos_inter_shift=SETTINGS.neighbour_shift,
        neg_inter_shift=SETTINGS.negative_shift,
    )  # fmt: skip
    own, _, near, _, far, _ = ContrastiveCorrelationLoss(cfg)(feats, near_feats, None, None, codes, near_codes)
    return SETTINGS.self_weight * own + SETTINGS.neighbour_weight * near + SETTINGS.negative_weight * far


def fused_at(feats, codes, near_feats, near_codes, negatives, depth, at, near_at) -> torch.Tensor:
    """``stego.loss_at`` computed by this package: every image is read once for all its pairs."""
    maps = feats, codes, near_feats, near_codes
    return kernels.depthg_loss(*maps, negatives, SETTINGS, depth=depth, points=at, points_neighbour=near_at).total


def forward_backward(call: Callable, leaves: list[torch.Tensor]) -> None:
    for x in leaves:
        x.grad = None
    call().backward()


def check_equal(calls: dict[str, tuple[Callable, list[torch.Tensor]]]) -> None:
    """Raises if losses differ by more than 1e-5 or gradients by 1e-3 of their norm; the tests check accuracy strictly.

    Among millions of S, some are within rounding of the kink at 0. Each that rounds to the other side changes the
    gradient by a few 1e-4.
    """
    seen = {}
    for name, (call, leaves) in calls.items():
        forward_backward(call, leaves)
        grads = [x.grad.flatten(2).transpose(1, 2) if x.grad.ndim == 4 else x.grad for x in leaves]
        seen[name] = (call().item(), grads)
    value, grads = seen["depthg"]
    for name, (other, other_grads) in seen.items():
        if abs(value - other) > 1e-5 * max(1, abs(other)):
            raise RuntimeError(f"{name} has the loss {other}, depthg {value}: nothing is timed")
        for x, y in zip(grads, other_grads, strict=True):
            if (x - y).norm() > 1e-3 * y.norm():
                raise RuntimeError(f"the gradients of depthg and {name} differ: nothing is timed")


def measure_case(
    case: Case, device: str, names: tuple[str, ...], rates: tuple[float, float], budget_s: float
) -> list[Row]:
    calls = make_calls(case, device, names)
    check_equal(calls)
    peaks = {name: peak(case, name, device) for name in calls}
    rows = []
    for backward in (False, True):
        timed = {
            name: (lambda c=call, x=leaves: forward_backward(c, x)) if backward else no_grad(call)
            for name, (call, leaves) in calls.items()
        }
        timings = common.time_all(timed, device=device, budget_s=budget_s, least=5, most=50)
        for name, t in timings.items():
            rows.append(
                Row(
                    case.name, name, "forward + backward" if backward else "forward", t.median, t.p20, t.p80, t.runs,
                    t.median / timings["depthg"].median, case.floor_ms(backward, *rates),
                    None if not backward or peaks[name] is None else peaks[name] / 2**20,
                )
            )  # fmt: skip
    return rows


def no_grad(call: Callable) -> Callable:
    def run():
        with torch.no_grad():
            return call()

    return run


def peak(case: Case, name: str, device: str) -> int | None:
    """Peak memory of one forward and backward, in a separate process."""
    command = [sys.executable, __file__, "--memory", case.name, name, "--device", device]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
    return None if run.stdout.strip() == "None" else int(run.stdout)


def print_peak(case_name: str, name: str, device: str) -> None:
    case = next(c for c in CASES + GPU_CASES if c.name == case_name)
    small = dataclasses.replace(case, images=min(case.images, 4), side=min(case.side, 4), cells=min(case.cells, 4))
    call, leaves = make_calls(small, device, (name,))[name]
    forward_backward(call, leaves)  # loads libraries, starts thread pools
    call, leaves = make_calls(case, device, (name,))[name]
    for x in leaves:  # gradients, which all contenders leave behind, are not working memory
        x.grad = torch.zeros_like(x)
    if name == "compile":
        call()  # compiles
    gc.collect()
    print(common.peak_memory(lambda: call().backward(), device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the table, the machine and the floors to this file")
    parser.add_argument("--quick", action="store_true", help="two cases, fewer repeats, no torch.compile")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--case", default="", metavar="TEXT", help="only the cases with this in their name")
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "CONTENDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        return print_peak(*args.memory, args.device)
    names = tuple(n for n in CONTENDERS if n != "compile" or not (args.quick or args.no_compile))
    cases = CASES[5:7] if args.quick else CASES + (GPU_CASES if args.device == "cuda" else [])
    cases = [case for case in cases if args.case in case.name]
    rate, bandwidth = common.measure_matmul(args.device), common.measure_bandwidth(args.device)
    print(common.machine_line(args.device))
    print(f"matrix products {rate / 1e9:.0f} GFLOP/s, copies {bandwidth / 1e9:.1f} GB/s")
    rows = []
    for case in cases:
        too_big = args.device == "cpu" and case.eager_bytes() > MEMORY_LIMIT
        contenders, budget_s = ("depthg",) if too_big else names, 0.5 if args.quick else 2.0
        found = measure_case(case, args.device, contenders, (rate, bandwidth), budget_s)
        rows += found
        print(common.format_table([f.name for f in dataclasses.fields(Row)], [dataclasses.astuple(r) for r in found]))
    if args.json:
        common.write_json(args.json, device=args.device, rows=rows, matmul_flops=rate, bytes_per_s=bandwidth)


if __name__ == "__main__":
    main()
