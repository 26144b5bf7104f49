"""Arg-max of score maps at the size of a photo; on the CPU in C++, without the up-sampled scores (csrc/upsample.h)."""

from __future__ import annotations

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
