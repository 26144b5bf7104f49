"""Farthest point sampling: ``picks[j] = argmax_i min_{l < j} |points[i] - points[picks[l]]|^2``.

The contract (arithmetic, ties, errors) stands in ``csrc/fps.h``, the definition in ``reference.farthest_point_sample``.
"""

from __future__ import annotations

import threading
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from depthg.kernels import checks, fps_checks, reference
from depthg.kernels._extension import native

TRITON_POINTS = 2**30  # its tiles count in 32 bits, and the last one must not overflow
KEPT_BYTES = 64 * 2**20  # of scratch memory that a thread keeps for its next call: fresh pages cost a fault each


def limits(impl: str, device: torch.device, n: int) -> dict[str, str | None]:
    """What ``checks.choose_impl`` asks: why an implementation cannot sample clouds of ``n`` points, best first."""
    cuda, triton = checks.no_cuda(), checks.no_triton()
    if impl == "auto" and device.type == "cuda" and cuda is None and not compiled_cuda_runs(device):
        cuda = "needs a newer driver"
    if triton is None and n > TRITON_POINTS:
        triton = f"takes at most {TRITON_POINTS} points a cloud, got {n}; use impl='auto'"
    return {"cuda": cuda, "triton": triton, "cpp": checks.no_cpp()}


@cache
def compiled_cuda_runs(device: torch.device) -> bool:
    """Whether the compiled CUDA code can run on the device: its runtime needs a driver of its major version or later.

    A warning says why not, once.
    """
    some = native.Clouds(0, 0, 1, 20000, 3, 60000, 3, 1, 0, 0, 0.0, 0, 0, 0, 1, 0)  # nothing of it is read
    try:
        native.fps_cuda_scratch_bytes(some, device.index or 0)
    except RuntimeError as error:
        warnings.warn(f"{error}; without the compiled code, sampling on {device} is slower", stacklevel=2)
        return False
    return True


# What torch.compiler.assume_constant_result sets. The decorator itself would import torch._dynamo, and with it Triton
# and sympy: 140 MB and a second in every process that imports this.
compiled_cuda_runs._dynamo_marked_constant = True  # type: ignore[attr-defined]


# Launch

_kept = threading.local()


def _cpu_scratch(size: int) -> Tensor:  # uint8 [at least size]
    """Uninitialised scratch: what this thread kept from an earlier call, when it is large enough."""
    scratch = getattr(_kept, "scratch", None)
    if scratch is None or scratch.numel() < size:
        scratch = torch.empty(size, dtype=torch.uint8, device="cpu")
        if size <= KEPT_BYTES:
            _kept.scratch = scratch
    return scratch


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _launch(
    x: Tensor,  # [B, N, D], or [B, H, W] when width > 0
    picks: Tensor,  # [B, k] int64
    *,
    points: int,
    width: int,
    focals: Tensor | None,  # [B] float32
    focal: float,
    lengths: Tensor | None,  # [B] int64
    starts: Tensor | None,  # [B] int64
    start: int,
) -> None:
    dims = 3 if width else x.shape[2]
    per_cloud = [None if t is None else t.contiguous() for t in (focals, lengths, starts)]
    addresses = [_address(t) for t in per_cloud]
    clouds = native.Clouds(
        x.data_ptr(), fps_checks.DTYPES[x.dtype], x.shape[0], points, dims, *x.stride(), width,
        addresses[0], focal, addresses[1], addresses[2], start, picks.shape[1], picks.data_ptr(),
    )  # fmt: skip
    if x.device.type == "cpu":
        threads = torch.get_num_threads()
        scratch = _cpu_scratch(native.fps_cpu_scratch_bytes(clouds, threads))
        native.fps_cpu(clouds, scratch.data_ptr(), threads)
        return
    # The caching allocator keeps the scratch memory of this stream alive until the kernels on it have run.
    scratch = torch.empty(native.fps_cuda_scratch_bytes(clouds, x.device.index), dtype=torch.uint8, device=x.device)
    stream = torch.cuda.current_stream(x.device)
    native.fps_cuda(clouds, scratch.data_ptr(), x.device.index, stream.cuda_stream)


def _triton(x: Tensor, k: int, **layout: Any) -> Tensor:  # [B, N, D] or [B, H, W] -> [B, k] int64
    from depthg.kernels import fps_triton  # needs the package triton, which may be absent

    return fps_triton.sample(x, k, **layout)


# Operators. Defined with a schema instead of `custom_op`, whose wrappers take as long as a few picks.

torch.library.define(
    "depthg::farthest_point_sample",
    "(Tensor points, SymInt k, Tensor? starts, SymInt start, Tensor? lengths, str impl) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "depthg::farthest_point_sample_depth",
    "(Tensor depth, SymInt k, Tensor? focals, float focal, Tensor? starts, SymInt start, str impl) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
_sample_op = torch.ops.depthg.farthest_point_sample.default
_sample_depth_op = torch.ops.depthg.farthest_point_sample_depth.default


@torch.library.impl("depthg::farthest_point_sample", "default")
def _sample(points: Tensor, k: int, starts: Tensor | None, start: int, lengths: Tensor | None, impl: str) -> Tensor:
    if impl == "eager":
        fps_checks.check_values(points, k, starts, start, lengths)
        return reference.farthest_point_sample(points, k, start=start if starts is None else starts, lengths=lengths)
    if impl == "triton":
        fps_checks.check_values(points, k, starts, start, lengths)
        return _triton(
            points, k, points=points.shape[1], width=0, focals=None, focal=0.0,
            lengths=lengths, starts=starts, start=start,
        )  # fmt: skip
    picks = torch.empty(points.shape[0], k, dtype=torch.int64, device=points.device)
    _launch(
        points, picks, points=points.shape[1], width=0, focals=None, focal=0.0,
        lengths=lengths, starts=starts, start=start,
    )  # fmt: skip
    return picks


def _sample_fake(
    points: Tensor, k: int, starts: Tensor | None, start: int, lengths: Tensor | None, impl: str
) -> Tensor:
    return points.new_empty((points.shape[0], k), dtype=torch.int64)


torch.library.register_fake("depthg::farthest_point_sample", _sample_fake)


@torch.library.impl("depthg::farthest_point_sample_depth", "default")
def _sample_depth(
    depth: Tensor, k: int, focals: Tensor | None, focal: float, starts: Tensor | None, start: int, impl: str
) -> Tensor:
    if impl == "eager":
        points = reference.unproject_focal(depth, focal if focals is None else focals)
        fps_checks.check_values(points, k, starts, start, None)
        return reference.farthest_point_sample(points, k, start=start if starts is None else starts)
    if impl == "triton":
        if depth.device.type == "cpu":  # the interpreter: values are checked as everywhere on the CPU
            fps_checks.check_values(
                reference.unproject_focal(depth, focal if focals is None else focals), k, starts, start, None
            )
        return _triton(
            depth, k, points=depth.shape[1] * depth.shape[2], width=depth.shape[2], focals=focals, focal=focal,
            lengths=None, starts=starts, start=start,
        )  # fmt: skip
    picks = torch.empty(depth.shape[0], k, dtype=torch.int64, device=depth.device)
    _launch(
        depth, picks, points=depth.shape[1] * depth.shape[2], width=depth.shape[2], focals=focals, focal=focal,
        lengths=None, starts=starts, start=start,
    )  # fmt: skip
    return picks


def _sample_depth_fake(
    depth: Tensor, k: int, focals: Tensor | None, focal: float, starts: Tensor | None, start: int, impl: str
) -> Tensor:
    return depth.new_empty((depth.shape[0], k), dtype=torch.int64)


torch.library.register_fake("depthg::farthest_point_sample_depth", _sample_depth_fake)


# Public functions


def _start(
    start: int | Tensor | str, x: Tensor, n: int, lengths: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor | None, int]:
    """The start as the operators take it: a tensor for every cloud, or None and one number."""
    if isinstance(start, Tensor):
        fps_checks.check_per_cloud("start", start, x)
        return start, 0
    if isinstance(start, str):
        if start != "random":
            raise ValueError(f"start must be an int, an int64 tensor or 'random', got {start!r}")
        return reference.first_pick(start, x.shape[0], n, lengths, x.device, generator), 0
    if isinstance(start, bool) or not isinstance(start, (int, torch.SymInt)):
        raise ValueError(f"start must be an int, an int64 tensor or 'random', got {start!r}")
    if not 0 <= start < n:
        raise ValueError(f"start = {start} is outside a cloud of {n} points")
    return None, start


def farthest_point_sample(
    points: Tensor,  # [B, N, D]
    k: int,
    *,
    start: int | Tensor | str = 0,  # [B] int64
    lengths: Tensor | None = None,  # [B] int64
    generator: torch.Generator | None = None,
    impl: str = "auto",
) -> Tensor:  # [B, k] int64
    """Indices of ``k`` points of every cloud, each the farthest from all before it.

    ``picks[:, 0] = start;  picks[:, j] = argmax_i min_{l < j} |points[:, i] - points[:, picks[:, l]]|^2``

    All implementations return equal indices: points are rounded to float32 (float64 too), squared distances are taken
    in float32 without FMA, ties go to the lowest index. The order is that of picking: a prefix is the smaller sample.
    The indices of a cloud differ for every k: a picked point is never picked again, and when only duplicates of picked
    points remain, they follow in the order of their indices. No gradient flows.

    Args:
        points: float32, float64, float16 or bfloat16 [B, N, D] with 1 <= D <= 8, any strides.
        k: number of picks, 1 to N (and to the shortest length).
        start: first pick: an int, an int64 tensor [B], or "random" for a uniform draw per cloud.
        lengths: int64 [B], the number of points of each cloud; the rest of its row is ignored. None: N.
        generator: source of the random start, on any device.
        impl: "cpp" (CPU), "cuda" (compiled), "triton" (CUDA without compiled code), "eager", or "auto": the first that
            can run.

    Returns:
        int64 [B, k] on the device of ``points``.

    Raises:
        ValueError: wrong rank, dtype, D or device; N = 0; k, start or lengths out of range; NaN or infinity among CPU
            points. On CUDA no value is read back: lengths are moved into 1 to N and starts below the length there, and
            picks beyond a cloud's length are 0. A distance to NaN counts as none. Indices are below N in any case.

    The definition is ``reference.farthest_point_sample``, the contract ``csrc/fps.h``.
    """
    fps_checks.check_input("points", points, "[clouds, points, coordinates]")
    if not 1 <= points.shape[2] <= fps_checks.MAX_DIMS:
        raise ValueError(
            f"points must have 1 to {fps_checks.MAX_DIMS} coordinates (the last axis), got shape {tuple(points.shape)}"
        )
    fps_checks.check_k(k, points.shape[1], f"points of shape {tuple(points.shape)}")
    if lengths is not None:
        fps_checks.check_per_cloud("lengths", lengths, points)
    impl = checks.choose_impl(impl, points.device, **limits(impl, points.device, points.shape[1]))
    starts, first = _start(start, points, points.shape[1], lengths, generator)
    picks: Tensor = _sample_op(points.detach(), k, starts, first, lengths, impl)
    return picks


def farthest_point_sample_depth(
    depth: Tensor,  # [N, H, W]
    k: int,
    *,
    fov_deg: float | Tensor = 90.0,  # [N]
    start: int | Tensor | str = 0,  # [N] int64
    generator: torch.Generator | None = None,
    impl: str = "auto",
) -> Tensor:  # [N, k] int64
    """Flat indices ``row * W + column`` of ``k`` cells of every depth map, spread over the surfaces that it shows.

    ``farthest_point_sample(unproject(depth, fov_deg), k)``, without storing the points outside the kernel.

    Args:
        depth: depth along the optical axis, [N, H, W], finite, in any unit; types as in ``farthest_point_sample``. To
            leave out cells of unknown depth, sample ``unproject(depth)`` of the other cells, see ``lengths`` there.
        k: number of cells, 1 to H * W.
        fov_deg: horizontal field of view in degrees, 0 < fov_deg < 180; a float, or a floating tensor [N].
        start, generator, impl: as in ``farthest_point_sample``.

    Returns:
        int64 [N, k], in picking order.

    Raises:
        ValueError: as in ``farthest_point_sample``, and for a field of view outside (0, 180).
    """
    fps_checks.check_input("depth", depth, "[maps, height, width]")
    n = depth.shape[1] * depth.shape[2]
    fps_checks.check_k(k, n, f"depth of shape {tuple(depth.shape)}")
    impl = checks.choose_impl(impl, depth.device, **limits(impl, depth.device, n))
    focal = fps_checks.focal(fov_deg, depth)
    starts, first = _start(start, depth, n, None, generator)
    per_map = isinstance(focal, Tensor)
    picks: Tensor = _sample_depth_op(
        depth.detach(), k, focal if per_map else None, 0.0 if per_map else focal, starts, first, impl
    )
    return picks


def unproject(depth: Tensor, fov_deg: float | Tensor = 90.0) -> Tensor:  # [N, H, W], [N] -> [N, H*W, 3] float32
    """Points seen by a pinhole camera with square pixels, at cell centres, in raster order: x right, y down, z = depth.

    ``x = (column + 1/2 - W/2) / f * z;  y = (row + 1/2 - H/2) / f * z;  f = W/2 / tan(fov/2)``, in float32

    Args:
        depth: depth along the optical axis, floating point [N, H, W], in any unit (that of the result).
        fov_deg: horizontal field of view in degrees, 0 < fov_deg < 180; a float, or a floating tensor [N].

    Returns:
        float32 [N, H * W, 3]; gradients flow to ``depth``.

    Raises:
        ValueError: wrong rank or dtype, or a field of view outside (0, 180).
    """
    fps_checks.check_input("depth", depth, "[maps, height, width]")
    return reference.unproject_focal(depth, fps_checks.focal(fov_deg, depth))
