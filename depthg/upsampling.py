"""Up-sampled maps that are never held, on the CPU in C++: the arg-max of score maps at the size of a photo
(csrc/upsample.h), and the sum of the stages of a hypercolumn (csrc/stages.h)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from depthg.kernels._extension import native

MOST_MAPS = 65535


def up_sampled_ids(
    scores: np.ndarray,  # floating point [n, h, w], any strides
    size: tuple[int, int],
    *,
    impl: str = "auto",
) -> np.ndarray:  # uint8 [H, W] (uint16 for more than 255 maps)
    """``interpolate(scores, size, mode="bilinear", align_corners=False).argmax(0)``, up or down, in float32.

    Ties go to the lowest id; NaN exceeds every number and the first NaN wins, as in ``torch.argmax``. The compiled code
    gives the same ids whatever the number of threads and the instruction set; torch rounds differently, so where two
    scores differ in their last bit, or beside cells that are NaN or infinite, its ids may be others. Runs on as many
    threads as torch is set to in the calling thread, and holds two rows of scores of 64 pixels per thread.

    Args:
        scores: one map per id.
        size: height H and width W.
        impl: "cpp", "eager" (torch; holds the up-sampled scores), or "auto".

    Raises:
        ValueError: no map, no cell or no pixel, too many maps, or an ``impl`` that is not there.
    """
    if scores.ndim != 3 or 0 in (*scores.shape, *size) or len(scores) > MOST_MAPS:
        raise ValueError(f"score maps {list(scores.shape)} cannot be up-sampled to {list(size)}")
    scores = np.require(scores, np.float32, "A")
    dtype = np.uint8 if len(scores) < 256 else np.uint16
    if pick(impl) == "eager":
        return eager_ids(torch.from_numpy(np.ascontiguousarray(scores)), size).numpy().astype(dtype)
    ids = np.empty(size, dtype)
    strides = [stride // scores.itemsize for stride in scores.strides]
    native.upsample_argmax(
        scores.ctypes.data, scores.shape, strides, ids.shape, ids.ctypes.data, torch.get_num_threads()
    )
    return ids


def eager_ids(scores: Tensor, size: tuple[int, int]) -> Tensor:  # [n, h, w] -> int64 [H, W], on the same device
    """The definition, which holds the up-sampled scores."""
    return F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0].argmax(0)


def sum_of_stages(
    values: Sequence[Tensor],  # float32 [B, h_s, w_s, D] per stage
    vectors: Sequence[Tensor] | None,  # float32 [B, h_s, w_s, C_s], or nothing is divided
    size: tuple[int, int],
    *,
    impl: str = "auto",
) -> Tensor:  # float32 [B, H, W, D]
    """``sum_s up(values_s) / |up(vectors_s)|`` with bilinear up-sampling to ``size``; a vector of length 0 counts as 0.

    Args:
        values: per stage ``[B, h_s, w_s, D]``, all on one device, without gradients.
        vectors: per stage ``[B, h_s, w_s, C_s]``; None divides by nothing.
        size: height H and width W.
        impl: "cpp" (CPU), "eager" (torch, any device), or "auto".

    Raises:
        ValueError: shapes or devices that do not belong together, nothing to up-sample, tensors that require grad, or
            an ``impl`` that is not there.
    """
    _check_stages(values, vectors, size)
    impl = pick(impl, "sum_stages", on_cpu=values[0].is_cpu)
    if impl == "eager":
        return _eager_sum(values, vectors, size)
    values = [x.float().contiguous() for x in values]
    vectors = [] if vectors is None else [x.float().contiguous() for x in vectors]
    shapes = [tuple(x.shape[1:]) for x in vectors or values]
    out = values[0].new_empty(len(values[0]), *size, values[0].shape[-1])
    addresses = [x.data_ptr() for x in vectors] or [0] * len(values)
    native.sum_stages(
        shapes, addresses, [x.data_ptr() for x in values], out.shape, out.data_ptr(), torch.get_num_threads()
    )
    return out


def _check_stages(values: Sequence[Tensor], vectors: Sequence[Tensor] | None, size: tuple[int, int]) -> None:
    tensors = [*values, *(vectors or ())]
    fits = (
        len(values) > 0
        and all(x.ndim == 4 and x.is_floating_point() and x.device == values[0].device for x in tensors)
        and all((len(x), x.shape[3]) == (len(values[0]), values[0].shape[3]) for x in values)
        and (vectors is None or [x.shape[:3] for x in vectors] == [x.shape[:3] for x in values])
        and all(n > 0 for x in tensors for n in x.shape[1:])
        and min(size) > 0
    )
    if not fits:
        shapes = ", ".join(str(list(x.shape)) for x in values)
        beside = "" if vectors is None else f" and vectors {', '.join(str(list(x.shape)) for x in vectors)}"
        raise ValueError(
            f"values {shapes or 'of no stage'}{beside} cannot be up-sampled to {list(size)} and summed: values are "
            "floating-point [B, h, w, D] with one B and D, vectors [B, h, w, C] of the same B, h and w, on one device"
        )
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise ValueError("sums of stages have no gradient; detach the maps, or call under torch.no_grad()")


def _eager_sum(values: Sequence[Tensor], vectors: Sequence[Tensor] | None, size: tuple[int, int]) -> Tensor:
    """The definition, which holds the up-sampled stages; shapes as `sum_of_stages`."""

    def up(maps: Tensor) -> Tensor:  # [B, h, w, C] -> [B, H, W, C]
        return F.interpolate(maps.float().permute(0, 3, 1, 2), size, mode="bilinear").permute(0, 2, 3, 1)

    total = values[0].new_zeros(len(values[0]), *size, values[0].shape[-1], dtype=torch.float32)
    for i, part in enumerate(values):
        square = None if vectors is None else up(vectors[i]).square().sum(-1, keepdim=True)
        total += up(part) if square is None else up(part) * torch.where(square > 0, square, torch.inf).rsqrt()
    return total


def pick(impl: str, name: str = "upsample_argmax", *, on_cpu: bool = True) -> str:
    """The implementation that is meant: "cpp" where the function of this name was compiled, else "eager".

    Raises:
        ValueError: unknown, not compiled, or not for this device.
    """
    possible = ("eager", "cpp") if on_cpu and hasattr(native, name) else ("eager",)
    if impl == "auto":
        return possible[-1]
    if impl not in possible:
        raise ValueError(f"impl={impl!r} is not possible here; use {' or '.join(possible)}")
    return impl
