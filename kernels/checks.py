"""Argument checks shared by the correlation operations, and the choice of an implementation."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from depthg.kernels import _extension
from depthg.kernels.reference import RELATIONS, LossSettings

T = TypeVar("T")
TRITON_TYPES = (torch.float32, torch.float16, torch.bfloat16)
HAS_TRITON = importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """True when Triton kernels run in Triton's interpreter, which also takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def any_empty(*tensors: Tensor | None) -> bool:
    """True if any tensor is empty; the eager definition handles that case."""
    return any(0 in x.shape for x in tensors if x is not None)


def one_type(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in the widest of their types."""
    types = {x.dtype for x in tensors if x is not None}
    if len(types) < 2:
        return tensors
    widest = functools.reduce(torch.promote_types, types)
    return tuple(x if x is None else x.to(widest) for x in tensors)


DEVICES = {"triton": "cuda", "cpp": "cpu", "cuda": "cuda"}  # where each implementation runs


def choose_impl(impl: str, device: torch.device, **limits: str | None) -> str:
    """The implementation of an operation for tensors on ``device``: "triton", "cpp", "cuda" or "eager".

    Args:
        impl: what the caller asks for; "auto" takes the first that can run, else "eager".
        device: where the tensors are.
        limits: the implementations that the operation has beside "eager", best first: None, or why this one cannot run
            and what to do (``no_triton``, ``no_cpp``, ``no_cuda``).

    Raises:
        ValueError: ``impl`` is unknown, or cannot run here; the message names the alternative.
    """
    if impl == "auto":
        for name, limit in limits.items():
            if limit is None and device.type == DEVICES[name] and (name != "triton" or torch.version.hip is None):
                return name
        return "eager"
    if impl == "eager":
        return impl
    if impl not in limits:
        raise ValueError(f"unknown impl {impl!r}; choose one of {', '.join(map(repr, ('auto', *limits, 'eager')))}")
    if limits[impl] is not None:
        raise ValueError(f"impl={impl!r} {limits[impl]}")
    wanted, interpreted = DEVICES[impl], impl == "triton" and device.type == "cpu" and interpreting()
    if device.type != wanted and not interpreted:
        beside = " (or TRITON_INTERPRET=1 on the CPU)" if impl == "triton" else ""
        raise ValueError(f"impl={impl!r} needs {wanted.upper()} tensors{beside}, got {device}; use impl='auto'")
    return impl


def no_triton(*tensors: Tensor | None) -> str | None:
    """Why Triton cannot take these tensors, or None."""
    if not HAS_TRITON:
        return "needs the package triton, which is not installed; use impl='auto' or 'eager'"
    for x in tensors:
        if x is not None and x.dtype not in TRITON_TYPES:
            return f"has no {str(x.dtype).removeprefix('torch.')}; use impl='auto' or 'eager'"
    return None


def no_cpp() -> str | None:
    """Why the compiled CPU code cannot run, or None."""
    if not _extension.HAS_CPU:
        return f"cannot run: {_extension.missing}; install with DEPTHG_BUILD=cpu, or use impl='eager'"
    return None


def no_cuda() -> str | None:
    """Why the compiled CUDA code cannot run, or None."""
    if not _extension.HAS_CUDA:
        return "needs a build with CUDA; install with DEPTHG_BUILD=cuda, or use impl='triton' or impl='eager'"
    return None


def without_autocast(function: Callable[..., T]) -> Callable[..., T]:
    """The body of an operator in the types of its tensors: autocast would run its matrix products in half precision."""

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> T:
        device = next(x.device.type for x in arguments if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*arguments, **named)

    return run


class Sampled:
    """What checks ask of the vectors that a map gives at points, before they are read."""

    def __init__(self, maps: Tensor, points: Tensor, *, scalar: bool = False) -> None:
        self.shape = torch.Size([maps.shape[0], points.shape[1], *([] if scalar else [maps.shape[1]])])
        self.ndim = len(self.shape)
        self.dtype, self.device, self.requires_grad = maps.dtype, maps.device, maps.requires_grad


def check_maps(
    feats: Tensor, codes: Tensor, feats_near: Tensor, codes_near: Tensor, depth: Tensor | None, points: Tensor,
    points_near: Tensor, settings: LossSettings,
) -> None:  # fmt: skip
    """Everything that ``points`` are read from is a map that has them."""
    from depthg.kernels.sample_points import check_points

    sides = [("feats", feats, feats, points), ("feats_neighbour", feats_near, feats_near, points_near),
             ("codes", codes, feats, points), ("codes_neighbour", codes_near, feats_near, points_near),
             ("depth", depth, feats, points)]  # fmt: skip
    for name, x, beside, at in sides if depth is not None else sides[:4]:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if x.ndim != 4:
            raise ValueError(f"{name} must be a map [images, channels, height, width] with points, got {shape(x)}")
        if x is beside or x.shape[0] != beside.shape[0] or 0 in x.shape[2:]:
            check_points(x, at, None, name, "points" if at is points else "points_neighbour")
        elif at.ndim == 2 and x.shape[2:] != beside.shape[2:]:
            raise ValueError(
                f"{name} {shape(x)} and its features {shape(beside)} must have one height and width, since points are"
                " cells; maps of different sizes are read at coordinates [N, P, 2]"
            )
    vectors = settings.relation in ("euclidean", "normals")
    if depth is not None and not vectors and depth.shape[1] != 1:
        raise ValueError(
            f"depth must be [{depth.shape[0]}, 1, height, width] for {settings.relation!r}, got {shape(depth)}"
        )


def shape(x: Tensor) -> str:
    return str(tuple(x.shape))


def check_floats(**tensors: Tensor | None) -> None:
    """Every given tensor is floating point, and all lie on one device."""
    first = None
    for name, x in tensors.items():
        if x is None:
            continue
        if not isinstance(x, (Tensor, Sampled)):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if not x.dtype.is_floating_point:
            raise TypeError(f"{name} must be floating point, got {x.dtype}; call {name}.float()")
        first = (name, x) if first is None else first
        if x.device != first[1].device:
            raise ValueError(f"{first[0]} is on {first[1].device} but {name} is on {x.device}; move them to one device")


def check_frozen(**tensors: Tensor | None) -> None:
    """No given tensor requires grad: its gradient would not be computed."""
    for name, x in tensors.items():
        if x is not None and x.requires_grad:
            raise ValueError(f"{name} requires grad, but only codes get gradients; pass {name}.detach()")


def check_sides(name_x: str, x: Tensor, name_y: str, y: Tensor) -> None:
    """Both are [images, points, channels] with equal images and points."""
    for name, t in ((name_x, x), (name_y, y)):
        if t.ndim != 3:
            raise ValueError(f"{name} must be [images, points, channels], got shape {shape(t)}")
    if x.shape[:2] != y.shape[:2]:
        raise ValueError(
            f"{name_x} {shape(x)} and {name_y} {shape(y)} must have the same images and points (the first two sizes)"
        )


def check_channels(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    if a.shape[2] != b.shape[2]:
        raise ValueError(f"{name_a} {shape(a)} and {name_b} {shape(b)} must have the same channels (the last size)")


def check_codes(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    """Two [images, points, channels] with equal images and channels, compared image by image."""
    for name, t in ((name_a, a), (name_b, b)):
        if t.ndim != 3:
            raise ValueError(f"{name} must be [images, points, channels], got shape {shape(t)}")
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"{name_a} {shape(a)} and {name_b} {shape(b)} must have the same number of images")
    check_channels(name_a, a, name_b, b)


def check_pairing(
    name_a: str, a: Tensor, name_b: str, b: Tensor, index_b: Tensor | None, name_index: str = "index_b"
) -> None:
    """``index_b`` is int64 [R, N] with values in [0, M); without one the two sides pair image by image.

    On CUDA the range of values is not checked: that would wait for the device.
    """
    if index_b is None:
        if a.shape[0] != b.shape[0]:
            raise ValueError(
                f"{name_a} {shape(a)} and {name_b} {shape(b)} must have the same number of images, or pass {name_index}"
            )
        return
    if index_b.dtype != torch.int64:
        raise TypeError(f"{name_index} must be int64, got {index_b.dtype}; call {name_index}.long()")
    if index_b.ndim != 2 or index_b.shape[1] != a.shape[0]:
        raise ValueError(f"{name_index} must be [draws, {a.shape[0]}] for {name_a} {shape(a)}, got {shape(index_b)}")
    if index_b.device != a.device:
        raise ValueError(f"{name_index} is on {index_b.device} but {name_a} is on {a.device}; move them to one device")
    if not torch.compiler.is_compiling() and index_b.device.type == "cpu" and index_b.numel():
        check_range(name_index, index_b, name_b, b)


def check_range(name_index: str, index: Tensor, name_b: str, b: Tensor) -> None:
    """Values of an index of images on the CPU."""
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= b.shape[0]:
        raise ValueError(
            f"{name_index} holds {low if low < 0 else high}, outside the {b.shape[0]} images of {name_b} {shape(b)}"
        )


def check_relation(name_u: str, u: Tensor, codes: Tensor, relation: str) -> None:
    """Depth is [N, P], or [N, P, D] for the relations of points and normals, at the points of the codes."""
    if relation not in RELATIONS:
        raise ValueError(f"unknown relation {relation!r}; choose one of {', '.join(RELATIONS)}")
    ndim = 3 if relation in ("euclidean", "normals") else 2
    if u.ndim != ndim or u.shape[:2] != codes.shape[:2] or 0 in u.shape[2:]:
        wanted = f"[{codes.shape[0]}, {codes.shape[1]}" + (", D]" if ndim == 3 else "]")
        raise ValueError(
            f"{name_u} must be {wanted} for relation {relation!r} and codes {shape(codes)}, got {shape(u)}"
        )


def check_depths(name_u: str, u: Tensor, name_v: str, v: Tensor) -> None:
    """Depths of both sides have as many components."""
    if u.shape[2:] != v.shape[2:]:
        raise ValueError(f"{name_u} {shape(u)} and {name_v} {shape(v)} must have one number of components D")


def check_limit(clamp: bool, max_similarity: float | None) -> None:
    """An upper limit below the lower one would leave no similarity as it is."""
    if clamp and max_similarity is not None and not max_similarity >= 0:
        raise ValueError(f"max_similarity must be at least 0 with clamp, got {max_similarity}; or turn clamp off")


def check_bandwidth(relation: str, bandwidth: float) -> None:
    """The relations "gaussian" and "euclidean" divide by the square of the bandwidth, in float32."""
    if relation in ("gaussian", "euclidean") and not 1e-18 <= bandwidth <= 1e18:
        raise ValueError(f"bandwidth must be between 1e-18 and 1e18 for relation {relation!r}, got {bandwidth}")


def scalar(value: float | Tensor, device: torch.device) -> Tensor:
    """A 0-dim float64 tensor on the device (Apple's GPU has float32); one already there is not read by the host."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    if isinstance(value, Tensor):
        return value.detach().to(device=device, dtype=dtype).reshape(())
    return torch.full((), float(value), dtype=dtype, device=device)


def check_terms(
    feats: Tensor, codes: Tensor, feats_neighbour: Tensor, codes_neighbour: Tensor, negatives: Tensor,
    settings: LossSettings, optional: tuple[Tensor | None, ...],
) -> None:  # fmt: skip
    """The tensors of ``depthg_loss`` fit each other; ``optional`` are the negative bank, depth and the other crop."""
    far_feats, far_codes, depth, codes_depth, depth_other = optional
    check_floats(
        codes=codes, feats=feats, feats_neighbour=feats_neighbour, codes_neighbour=codes_neighbour,
        feats_negative=far_feats, codes_negative=far_codes, depth=depth, codes_depth=codes_depth,
        depth_other=depth_other,
    )  # fmt: skip
    check_frozen(
        feats=feats, feats_neighbour=feats_neighbour, feats_negative=far_feats, depth=depth, depth_other=depth_other
    )
    check_sides("feats", feats, "codes", codes)
    check_sides("feats_neighbour", feats_neighbour, "codes_neighbour", codes_neighbour)
    check_channels("feats", feats, "feats_neighbour", feats_neighbour)
    check_codes("codes", codes, "codes_neighbour", codes_neighbour)
    if (far_feats is None) != (far_codes is None):
        raise ValueError("feats_negative and codes_negative are one bank: pass both or neither")
    if far_feats is not None and far_codes is not None:
        check_sides("feats_negative", far_feats, "codes_negative", far_codes)
        check_channels("feats", feats, "feats_negative", far_feats)
        check_channels("codes", codes, "codes_negative", far_codes)
    bank = codes if far_codes is None else far_codes
    check_pairing("codes", codes, "the negative bank", bank, negatives, "negatives")
    if depth is None:
        if codes_depth is not None or depth_other is not None:
            raise ValueError("codes_depth and depth_other need depth, the depth at the anchors' points")
        return
    if codes_depth is not None and depth_other is None:
        raise ValueError("codes_depth needs depth_other, the depth at the points of the other crop")
    check_relation("depth", depth, codes, settings.relation)
    check_bandwidth(settings.relation, settings.bandwidth)
    if codes_depth is not None:
        check_codes("codes", codes, "codes_depth", codes_depth)
    if depth_other is not None:
        check_relation("depth_other", depth_other, codes if codes_depth is None else codes_depth, settings.relation)
        check_depths("depth", depth, "depth_other", depth_other)
