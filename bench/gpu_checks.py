"""Checks of the kernels for ``check_gpu.py``: values and gradients, layouts, and equality of two runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable

import common
import torch
from torch import Tensor

from depthg import kernels
from depthg.kernels import LossSettings, reference
from depthg.kernels._extension import HAS_CPU, HAS_CUDA

SETTINGS = LossSettings(depth_weight=0.19, depth_shift=0.03)
FACTOR = 8  # allowed error beyond eager's, in eps of the dtype, as in the tests
KINKS = 3e-3  # allowed relative gradient error besides twice eager's: an S near 0 can round to either side of the clamp
TF32_EPS = 2.0**-11
Check = tuple[str, Callable[[], dict | None]]


@dataclasses.dataclass(frozen=True)
class Place:
    """Device of the checks. ``small``: small shapes, without times, memory and graphs."""

    device: str
    small: bool

    @property
    def gpu(self) -> bool:
        return self.device.startswith("cuda")


def require(condition: object, text: str) -> None:
    if not condition:
        raise AssertionError(text)


def relative(found: Tensor, truth: Tensor) -> float:
    """Error relative to the norm of the truth, or to 1e-4 if that is larger (gradients that cancel)."""
    return float((found.double() - truth.double()).norm() / truth.double().norm().clamp(min=1e-4))


def checks(place: Place) -> list[Check]:
    found: list[Check] = [("machine", functools.partial(machine, place))]
    for part in (fps_checks, loss_checks, layout_checks, other_checks):
        found += part(place)
    return found


def machine(place: Place) -> dict:
    about = dict(common.machine(place.device))
    if place.gpu:
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
        }
        about |= {"devices": torch.cuda.device_count(), "cuda": torch.version.cuda}
    return about | {"cpp": HAS_CPU, "compiled_cuda": HAS_CUDA}


# ---- farthest point sampling

CLOUDS = [
    (3, 784, 3, 121, "float32"), (2, 1, 3, 1, "float32"), (4, 1024, 8, 20, "float32"), (2, 1025, 3, 64, "float16"),
    (2, 4010, 3, 64, "bfloat16"), (2, 4011, 2, 64, "float64"), (2, 1505, 8, 40, "float32"),
    (4, 12544, 3, 200, "float32"), (1, 16384, 3, 50, "float32"), (2, 16385, 3, 50, "float32"),
    (8, 12544, 3, 1024, "float32"), (1, 100_000, 3, 2048, "float32"), (1, 70_001, 5, 50, "float32"),
    (300, 64, 3, 64, "float32"), (1, 1_000_000, 3, 64, "float32"),
]  # fmt: skip
SMALL_CLOUDS = [(2, 40, 3, 9, "float32"), (1, 1, 3, 1, "float32"), (2, 33, 5, 7, "float16"), (2, 20, 3, 20, "float32")]


def samplers(place: Place) -> list[str]:
    """FPS implementations for tensors on the device."""
    named = ["cuda"] if place.gpu and HAS_CUDA else []
    return [*named, "triton", "eager"]


def fps_checks(place: Place) -> Iterable[Check]:
    for impl in samplers(place):
        for shape in SMALL_CLOUDS if place.small else CLOUDS:
            if impl != "eager" or shape[1] * shape[3] < 1e6:
                yield f"fps {impl} {' '.join(map(str, shape))}", functools.partial(same_picks, place, impl, *shape)
        yield f"fps {impl} depth maps", functools.partial(same_cells, place, impl)


def same_picks(place: Place, impl: str, clouds: int, n: int, dims: int, k: int, dtype: str) -> None:
    """Picks of random, lattice and coinciding points equal the CPU's, with strided input, lengths and starts."""
    generator = torch.Generator().manual_seed(n)
    plain = torch.randn(clouds, n, dims, generator=generator)
    for points in (plain, (2 * plain).round(), plain[:, :1].expand(-1, n, -1) * 1.0):
        points = points.to(getattr(torch, dtype))
        lengths = torch.randint(k, n + 1, (clouds,), generator=generator)
        start = (torch.rand(clouds, generator=generator) * lengths).long()
        expected = kernels.farthest_point_sample(points, k, lengths=lengths, start=start)
        there = points.to(place.device).transpose(0, 1).contiguous().transpose(0, 1)
        options = {"lengths": lengths.to(place.device), "start": start.to(place.device)}
        found = kernels.farthest_point_sample(there, k, **options, impl=impl).cpu()
        wrong = (found != expected).nonzero()
        require(not len(wrong), f"{len(wrong)} picks differ, the first at {wrong[:1].tolist()}")


def same_cells(place: Place, impl: str) -> None:
    side, k = (6, 8) if place.small else (28, 121)
    depth = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    expected = kernels.farthest_point_sample_depth(depth, k, fov_deg=60.0)
    found = kernels.farthest_point_sample_depth(depth.to(place.device), k, fov_deg=60.0, impl=impl)
    require(torch.equal(found.cpu(), expected), "cells differ from the CPU's")


# ---- losses

SHAPES = [(32, 121, 384, 70), (4, 784, 384, 70), (1, 1, 1, 1), (3, 37, 50, 90), (2, 65, 768, 200), (8, 144, 768, 90)]
SMALL_SHAPES = [(2, 20, 24, 9), (1, 1, 1, 1)]


def inputs(place: Place, n: int, p: int, c: int, k: int, dtype: torch.dtype, draws: int = 3) -> list[Tensor]:
    """Features and codes of anchors and neighbours, negatives, depth."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((n, p, c), (n, p, k), (n, p, c), (n, p, k))
    feats, codes, near, near_codes = (torch.randn(*s, generator=generator).to(place.device, dtype) for s in shapes)
    negatives = torch.randint(0, n, (draws, n), generator=generator).to(place.device)
    depth = torch.rand(n, p, generator=generator).to(place.device, dtype)
    return [feats.relu(), codes, near.relu(), near_codes, negatives, depth]


def loss_and_gradients(tensors: list[Tensor], settings: LossSettings, impl: str, dtype: torch.dtype) -> list[Tensor]:
    feats, codes, near, near_codes, negatives, depth = tensors
    feats, near, depth = feats.to(dtype), near.to(dtype), depth.to(dtype)
    leaves = [x.detach().to(dtype).requires_grad_() for x in (codes, near_codes)]
    result = kernels.depthg_loss(feats, leaves[0], near, leaves[1], negatives, settings, depth=depth, impl=impl)
    return [result.total.detach(), *torch.autograd.grad(1.3 * result.total, leaves)]


def loss_checks(place: Place) -> Iterable[Check]:
    kinds = [("float32", "highest"), ("float32", "high"), ("float16", "highest"), ("bfloat16", "highest")]
    for dtype, precision in kinds if place.gpu else [kinds[0], kinds[2]]:
        for shape in SMALL_SHAPES if place.small else SHAPES:
            name = f"loss {dtype} {precision} {' '.join(map(str, shape))}"
            yield name, functools.partial(close_to_truth, place, shape, getattr(torch, dtype), precision)
    for relation in reference.RELATIONS:
        yield f"loss relation {relation}", functools.partial(every_relation, place, relation)


def close_to_truth(place: Place, shape: tuple[int, ...], dtype: torch.dtype, precision: str) -> dict:
    """The error is at most eager's in this dtype plus FACTOR eps; clamped gradients may have twice it + KINKS."""
    tensors = inputs(place, *shape, dtype)
    eps, figures = torch.finfo(dtype).eps if precision == "highest" else TF32_EPS, {}
    torch.set_float32_matmul_precision(precision)
    try:
        for clamp in (False, True):
            settings = dataclasses.replace(SETTINGS, clamp=clamp)
            ours, eager = (loss_and_gradients(tensors, settings, impl, dtype) for impl in ("triton", "eager"))
            truth = loss_and_gradients(tensors, settings, "eager", torch.float64)
            errors = [relative(*pair) for pair in zip(ours, truth, strict=True)]
            allowed = [relative(*pair) + FACTOR * eps for pair in zip(eager, truth, strict=True)]
            allowed[0] *= max(0.05 / max(abs(truth[0].item()), 1e-4), 1.0)  # a loss near 0 has no relative error
            allowed[1:] = [2 * limit + KINKS if clamp else limit for limit in allowed[1:]]
            name = "clamped" if clamp else "plain"
            figures |= {f"{name}_errors": errors, f"{name}_allowed": allowed}
            require(all(x <= y for x, y in zip(errors, allowed, strict=True)), f"{figures}")
    finally:
        torch.set_float32_matmul_precision("highest")
    return figures


def every_relation(place: Place, relation: str) -> dict:
    n, p, k = (2, 9, 5) if place.small else (6, 121, 70)
    generator, channels = torch.Generator().manual_seed(0), (3,) if relation in ("normals", "euclidean") else ()
    codes = [torch.randn(n, p, k, generator=generator).to(place.device) for _ in range(2)]
    depth = [torch.rand(n, p, *channels, generator=generator).to(place.device) for _ in range(2)]
    found = {}
    for impl, dtype in (("triton", torch.float32), ("eager", torch.float32), ("eager", torch.float64)):
        leaves = [x.to(dtype).requires_grad_() for x in codes]
        options = {"relation": relation, "bandwidth": 0.5, "clamp": False, "impl": impl}
        loss = kernels.depth_correlation_loss(*leaves, *(u.to(dtype) for u in depth), 0.1, **options).loss
        found[impl, dtype] = torch.autograd.grad(loss, leaves)
    truth = found["eager", torch.float64]
    errors, eager = (max(map(relative, found[i, torch.float32], truth)) for i in ("triton", "eager"))
    require(errors <= eager + FACTOR * torch.finfo(torch.float32).eps, f"gradient off by {errors}, eager by {eager}")
    return {"error": errors, "eager_error": eager}


# ---- layouts, repetition, the other operations


def layout_checks(place: Place) -> Iterable[Check]:
    yield "negatives of any layout", functools.partial(any_layout, place)
    yield "same result twice", functools.partial(same_twice, place)


def any_layout(place: Place) -> None:
    """Transposed, strided and expanded indices, and vectors with other strides, give equal bits."""
    shape = (4, 20, 24, 9) if place.small else (16, 121, 384, 70)
    feats, codes, near, near_codes, negatives, depth = inputs(place, *shape, torch.float32)
    every = torch.arange(shape[0], device=place.device).expand(3, -1)
    wide = torch.stack([negatives, negatives], 2).flatten(1)[:, ::2]
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (feats, codes, near, near_codes)]
    for given, plain, vectors in (
        (negatives.t().contiguous().t(), negatives, [feats, codes, near, near_codes]),
        (wide, negatives, [feats, codes, near, near_codes]),
        (every, every.contiguous(), [feats, codes, near, near_codes]),
        (negatives, negatives, turned),
    ):
        found = loss_and_gradients([*vectors, given, depth], SETTINGS, "triton", torch.float32)
        expected = loss_and_gradients([feats, codes, near, near_codes, plain, depth], SETTINGS, "triton", torch.float32)
        require(all(map(torch.equal, found, expected)), f"indices with strides {given.stride()}, {vectors[0].stride()}")


def same_twice(place: Place) -> None:
    tensors = inputs(place, *(SMALL_SHAPES if place.small else SHAPES)[0], torch.float32)
    first, second = (loss_and_gradients(tensors, SETTINGS, "triton", torch.float32) for _ in range(2))
    require(all(map(torch.equal, first, second)), "two runs differ in their bits")


def other_checks(place: Place) -> Iterable[Check]:
    for bins in (100,) if place.small else (1000, 4000):
        yield f"histogram {bins}", functools.partial(histogram, place, bins)
    sizes = (
        [(16, "float32")] if place.small else [(512, "float32"), (512, "float16"), (514, "bfloat16"), (8192, "float16")]
    )
    for rows, dtype in sizes:
        yield f"nt_xent {rows} {dtype}", functools.partial(nt_xent, place, rows, getattr(torch, dtype))
    for dtype in ("float32", "float16"):
        yield f"sample_points {dtype}", functools.partial(sampled, place, getattr(torch, dtype))


def histogram(place: Place, bins: int) -> dict:
    n, p, c = (2, 9, 8) if place.small else (8, 121, 384)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, p, c, generator=generator).relu().to(place.device) for _ in range(2))
    options = {"index_b": torch.randperm(n, generator=generator).to(place.device)[None], "center": True}
    ours, eager = (
        kernels.correlation_histogram(x, y, bins, range=(-2.0, 2.0), impl=impl, **options)
        for impl in ("triton", "eager")
    )
    moved = float((ours - eager).abs().sum() / eager.sum())
    require(ours.sum() == eager.sum() and moved < 2e-3, f"{moved} of the pairs lie in another bin")
    return {"moved": moved}


def nt_xent(place: Place, rows: int, dtype: torch.dtype) -> dict:
    generator = torch.Generator().manual_seed(0)
    z = [
        torch.randn(rows // 2, 8 if place.small else 128, generator=generator).to(place.device, dtype) for _ in range(2)
    ]
    found = []
    for impl, kind in (("triton", dtype), ("eager", dtype), ("eager", torch.float64)):
        leaves = [x.to(kind).requires_grad_() for x in z]
        loss = kernels.nt_xent_loss(*leaves, 0.5, impl=impl)
        found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    ours, eager, truth = found
    errors = [relative(*pair) for pair in zip(ours, truth, strict=True)]
    allowed = [relative(*pair) + FACTOR * torch.finfo(dtype).eps for pair in zip(eager, truth, strict=True)]
    require(all(x <= y for x, y in zip(errors, allowed, strict=True)), f"errors {errors}, allowed {allowed}")
    return {"errors": errors, "allowed": allowed}


def sampled(place: Place, dtype: torch.dtype) -> dict:
    generator, figures = torch.Generator().manual_seed(0), {}
    maps = torch.randn(3, 70, 14, 14, generator=generator).to(place.device, dtype)
    points = torch.rand(3, 31, 2, generator=generator).to(place.device) * 2 - 1
    cells = torch.randint(0, 196, (3, 31), generator=generator).to(place.device)
    for name, at in (("coordinates", points), ("cells", cells)):
        found = []
        for impl, kind in (("triton", dtype), ("eager", dtype), ("eager", torch.float64)):
            leaf = maps.to(kind).requires_grad_()
            out = kernels.sample_points(leaf, at.to(kind) if at.is_floating_point() else at, impl=impl)
            upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(place.device, kind)
            found.append([out.detach(), *torch.autograd.grad(out, leaf, upstream)])
        ours, eager, truth = found
        errors = [relative(*pair) for pair in zip(ours, truth, strict=True)]
        allowed = [relative(*pair) + FACTOR * torch.finfo(dtype).eps for pair in zip(eager, truth, strict=True)]
        require(all(x <= y for x, y in zip(errors, allowed, strict=True)), f"{name}: {errors}, allowed {allowed}")
        figures[name] = errors
    return figures
