"""Checks of farthest point sampling.

Those of shapes and types need no values, so they also work under ``torch.compile``. Those of values stand inside the
operators: in C++, and in ``check_values`` for the other implementations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from depthg.kernels import reference

MAX_DIMS = 8
MAX_POINTS = 2**31 - 1
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # DType of csrc/fps.h


def check_input(name: str, x: Tensor, axes: str) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.ndim != 3:
        raise ValueError(f"{name} must be {axes}, got shape {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise ValueError(f"{name} must be float32, float64, float16 or bfloat16, got {x.dtype}; call {name}.float()")


def check_k(k: int, n: int, what: str) -> None:
    if isinstance(k, bool) or not isinstance(k, (int, torch.SymInt)):
        raise ValueError(f"k must be an int, got {k!r}")
    if n < 1:
        raise ValueError(f"there are no points to sample: {what}")
    if n > MAX_POINTS:
        raise ValueError(f"{what} has {n} points, the limit is {MAX_POINTS}; sample a part of them")
    if k < 1 or k > n:
        raise ValueError(f"k = {k} must be between 1 and the number of points, {n} ({what})")


def check_per_cloud(name: str, x: Tensor, points: Tensor, dtype: torch.dtype | None = torch.int64) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a tensor [{points.shape[0]}], got {type(x).__name__}")
    if x.shape != points.shape[:1] or (dtype is not None and x.dtype != dtype):
        kind = dtype or "floating"
        raise ValueError(
            f"{name} must be {kind} of shape ({points.shape[0]},), got {x.dtype} of shape {tuple(x.shape)}"
        )
    if x.device != points.device:
        raise ValueError(f"{name} is on {x.device}, the points on {points.device}; move them to one device")


def check_values(points: Tensor, k: int, starts: Tensor | None, start: int, lengths: Tensor | None) -> None:
    """What C++ checks for its own path: starts, lengths and finite points, on the CPU only (no host sync elsewhere)."""
    if points.device.type != "cpu":
        return
    clouds, n = points.shape[:2]
    for b in range(clouds):
        length = n if lengths is None else int(lengths[b])
        if not 1 <= length <= n:
            raise ValueError(f"lengths[{b}] = {length}, expected 1 to N = {n}")
        if k > length:
            raise ValueError(
                f"k = {k} is more than the {length} points of cloud {b}; pass a smaller k or drop that cloud"
            )
        first = start if starts is None else int(starts[b])
        if not 0 <= first < length:
            raise ValueError(f"start = {first} is outside cloud {b}, which has {length} points")
        bad = ~points[b, :length].float().isfinite().all(-1)
        if bad.any():
            raise ValueError(
                f"points[{b}, {int(bad.nonzero()[0])}] is NaN or infinite in float32; "
                "remove such points, or fill holes and clip the sky of a depth map before sampling"
            )


NARROWEST_DEG = 1e-30  # focal lengths of narrower views overflow float32


def focal(fov_deg: float | Tensor, depth: Tensor) -> float | Tensor:
    """Focal length in cells, after a check of the field of view (values of a tensor: on the CPU, when not tracing)."""
    if isinstance(fov_deg, Tensor):
        if not fov_deg.is_floating_point():
            raise TypeError(f"fov_deg must be floating point, got {fov_deg.dtype}")
        check_per_cloud("fov_deg", fov_deg, depth, dtype=None)
        if (
            not torch.compiler.is_compiling()
            and depth.device.type == "cpu"
            and not ((fov_deg > 0) & (fov_deg < 180)).all()
        ):
            raise ValueError(f"fov_deg must lie between 0 and 180 degrees, both excluded, got {fov_deg.tolist()}")
    elif not NARROWEST_DEG < fov_deg < 180:
        raise ValueError(f"fov_deg must lie between 0 and 180 degrees, both excluded, got {fov_deg}")
    return reference.focal_length(fov_deg, depth.shape[2])
