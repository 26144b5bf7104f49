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
        values, vectors: one tensor per stage, on the same device; no gradient flows.
        size: height H and width W.
        impl: "cpp" (CPU), "eager" (torch, any device), or "auto".
    """
    if pick(impl) == "eager" or not values[0].is_cpu:
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


def _eager_sum(values: Sequence[Tensor], vectors: Sequence[Tensor] | None, size: tuple[int, int]) -> Tensor:
    def up(maps: Tensor) -> Tensor:
        return F.interpolate(maps.permute(0, 3, 1, 2), size, mode="bilinear").permute(0, 2, 3, 1)

    total = values[0].new_zeros(len(values[0]), *size, values[0].shape[-1])
    for i, part in enumerate(values):
        square = None if vectors is None else up(vectors[i]).square().sum(-1, keepdim=True)
        total += up(part) if square is None else up(part) * torch.where(square > 0, square, torch.inf).rsqrt()
    return total


def pick(impl: str) -> str:
    """The implementation that is meant: "cpp" where it was compiled, else "eager".

    Raises:
        ValueError: unknown, or not compiled.
    """
    possible = ("eager", "cpp") if hasattr(native, "upsample_argmax") else ("eager",)
    if impl == "auto":
        return possible[-1]
    if impl not in possible:
        raise ValueError(f"impl={impl!r} is not possible here; use {' or '.join(possible)}")
    return impl
