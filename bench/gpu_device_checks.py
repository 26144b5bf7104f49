"""Checks of calls on a GPU for ``check_gpu.py``: graphs, memory, a second device, and times."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable

import common
import torch
from gpu_checks import FACTOR, SETTINGS, Check, Place, inputs, loss_and_gradients, relative, require
from torch import Tensor

from depthg import kernels

REPLAYS = 3
PAPER, DENSE, LARGE = (32, 121, 384, 70), (8, 784, 384, 70), (32, 1600, 384, 70)
CLOUDS = ((64, 784, 121), (256, 784, 121), (8, 12544, 1024), (1, 100_000, 2048))
VIEWS = 65536  # number of views of NT-Xent


def checks(place: Place) -> Iterable[Check]:
    if place.gpu and not place.small:
        for name in ("loss", "fps", "fps large"):
            yield f"graph {name}", functools.partial(graph, place, name)
        yield f"memory {' '.join(map(str, LARGE))}", functools.partial(memory, place)
        yield f"nt_xent {VIEWS} float16", functools.partial(nt_xent_large, place)
        for clouds in CLOUDS:
            yield f"time fps {' '.join(map(str, clouds))}", functools.partial(time_fps, place, *clouds)
        for precision, dtype in (("highest", "float32"), ("high", "float32"), ("highest", "bfloat16")):
            for shape in (PAPER, DENSE):
                name = f"time loss {dtype} {precision} {' '.join(map(str, shape))}"
                yield name, functools.partial(time_loss, place, shape, getattr(torch, dtype), precision)
    if place.gpu and torch.cuda.device_count() > 1:
        yield "second device", functools.partial(second_device, place)


def capture(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Captures the call in a CUDA graph, after warm-up calls on a separate stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        call()
    return captured


def graph_call(place: Place, name: str) -> tuple[Tensor, Callable[[], list[Tensor]]]:
    """An input tensor that can be overwritten, and a call that reads it."""
    if name == "loss":
        tensors = inputs(place, *PAPER, torch.float32)
        return tensors[1], lambda: loss_and_gradients(tensors, SETTINGS, "triton", torch.float32)
    clouds, n, k = CLOUDS[0] if name == "fps" else CLOUDS[2]
    points = torch.randn(clouds, n, 3, device=place.device)
    return points, lambda: [kernels.farthest_point_sample(points, k)]


def graph(place: Place, name: str) -> None:
    """Replays equal plain calls bit for bit, with the current content of the input."""
    given, call = graph_call(place, name)
    held: list[Tensor] = []

    def kept() -> None:
        held[:] = call()

    captured = capture(kept)
    for number in range(REPLAYS):
        given.copy_(torch.randn(given.shape, generator=torch.Generator().manual_seed(number)))
        captured.replay()
        found = [x.clone() for x in held]
        require(all(map(torch.equal, found, call())), f"replay {number + 1} differs from a plain call")


def memory(place: Place) -> dict:
    """Peak memory of forward and backward above the memory in use before is at most 1/20 of eager's."""
    (n, p, *_), tensors, peaks = LARGE, inputs(place, *LARGE, torch.float32, draws=5), {}
    for impl in ("triton", "eager"):
        loss_and_gradients(inputs(place, 2, *LARGE[1:], torch.float32), SETTINGS, impl, torch.float32)  # compiles
        torch.cuda.empty_cache()
        try:
            call = functools.partial(loss_and_gradients, tensors, SETTINGS, impl, torch.float32)
            peaks[impl] = common.peak_memory(call, "cuda")
        except torch.OutOfMemoryError:
            peaks[impl] = 3 * 4 * n * 7 * p**2  # three tensors per pair, a lower bound of eager's memory
    require(20 * peaks["triton"] <= peaks["eager"], f"{peaks}")
    return {f"{impl}_mib": peak / 2**20 for impl, peak in peaks.items()}


def nt_xent_large(place: Place) -> dict:
    """NT-Xent whose matrix would take 8 GiB in float16; checks gradients of the first rows against float64."""
    z = torch.randn(VIEWS, 128, generator=torch.Generator().manual_seed(0)).to(place.device, torch.float16)
    leaf, some, t = z.clone().requires_grad_(), 64, 0.5
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = kernels.nt_xent_loss(leaf[: VIEWS // 2], leaf[VIEWS // 2 :], t, impl="triton")
    (1024 * loss).backward()  # scaled: most entries would be subnormal in float16
    peak = torch.cuda.max_memory_allocated() - before
    unit = torch.nn.functional.normalize(z.double(), dim=1)
    logits, itself = unit[:some] @ unit.T / t, torch.arange(some, device=place.device)
    logits[itself, itself] = -torch.inf
    own = logits.softmax(1)
    others = torch.stack([(unit @ x / t).exp() for x in unit[:some]])  # exp(z_j . z_i / T)
    sums = torch.cat([(part @ unit.T / t).exp().sum(1) for part in unit.split(2048)]) - math.exp(1 / t)
    weight = own + others / sums
    weight[itself, itself] = 0
    weight[itself, itself + VIEWS // 2] -= 2
    d_unit = weight @ unit / (VIEWS * t)
    along = unit[:some] * (unit[:some] * d_unit).sum(1, keepdim=True)
    truth = (d_unit - along) / z[:some].double().norm(dim=1, keepdim=True)
    error = relative(leaf.grad[:some] / 1024, truth)
    require(error < FACTOR * torch.finfo(torch.float16).eps, f"gradient off by {error}")
    return {"error": error, "peak_mib": peak / 2**20}


def median_ms(call: Callable[[], object]) -> float:
    return common.time_all({"call": call}, device="cuda", budget_s=0.3, most=50)["call"].median


def time_fps(place: Place, clouds: int, n: int, k: int) -> dict:
    points = torch.rand(clouds, n, 3, device=place.device)
    call = functools.partial(kernels.farthest_point_sample, points, k)
    return {"call_ms": median_ms(call), "graph_ms": median_ms(capture(call).replay)}


def time_loss(place: Place, shape: tuple[int, ...], dtype: torch.dtype, precision: str) -> dict:
    """Times forward and backward from points: calls (host included) and replays of a graph (device only)."""
    tensors, found = inputs(place, *shape, dtype, draws=5), {}
    torch.set_float32_matmul_precision(precision)
    try:
        for impl in ("triton", "eager"):
            call = functools.partial(loss_and_gradients, tensors, SETTINGS, impl, dtype)
            found[f"{impl}_call_ms"] = median_ms(call)
            if impl == "triton":  # eager is not captured: it may not support graphs
                found[f"{impl}_graph_ms"] = median_ms(capture(call).replay)
    finally:
        torch.set_float32_matmul_precision("highest")
    return found


def second_device(place: Place) -> None:
    """Calls on cuda:1, while cuda:0 is the current device, give the results of cuda:0."""
    tensors = inputs(place, *PAPER, torch.float32)
    there = [x.to("cuda:1") for x in tensors]
    found, expected = (loss_and_gradients(x, SETTINGS, "triton", torch.float32) for x in (there, tensors))
    require(all(x.device.index == 1 for x in found), "results are not on cuda:1")
    errors = [relative(x.cpu(), y.cpu()) for x, y in zip(found, expected, strict=True)]
    require(max(errors) < 1e-5, f"cuda:1 differs from cuda:0 by {errors}")
    points = torch.randn(4, 784, 3, generator=torch.Generator().manual_seed(0))
    for k in (121, 784):
        picks = kernels.farthest_point_sample(points.to("cuda:1"), k)
        require(torch.equal(picks.cpu(), kernels.farthest_point_sample(points, k)), "picks on cuda:1 differ")
    large = torch.randn(1, 50_000, 3, generator=torch.Generator().manual_seed(0))
    picks = kernels.farthest_point_sample(large.to("cuda:1"), 64)
    require(torch.equal(picks.cpu(), kernels.farthest_point_sample(large, 64)), "picks of a large cloud differ")
    require(torch.cuda.current_device() == 0, "the current device has changed")
