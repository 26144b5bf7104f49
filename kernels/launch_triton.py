"""What every Triton launch needs: the precision of its products and the device of its tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
import triton
from torch import Tensor

from depthg.kernels.checks import interpreting


def cdiv(a: int, b: int) -> int:
    """a / b rounded up; triton.cdiv is also callable in kernels and takes ten times as long here."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def tf32_allowed() -> bool:
    """Whether the user allows TF32 for float32 matrix products on CUDA, by torch's old settings or its new one.

    ``get_float32_matmul_precision`` raises once the new setting was used, so the new one is asked where it exists.
    """
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", None)  # since torch 2.9
    return bool(torch.backends.cuda.matmul.allow_tf32) if setting is None else setting == "tf32"


def precision(dtype: torch.dtype) -> str:
    """``input_precision`` of ``tl.dot``: float32 runs as three TF32 products, or as one where the user allows it."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if tf32_allowed() else "tf32x3"


@lru_cache(maxsize=64)
def architecture(device: torch.device) -> int:
    """Compute capability of the device as Triton names it, 90 for 9.0; 0 in the interpreter."""
    if interpreting():
        return 0
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return int(triton.runtime.driver.active.get_current_target().arch)


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """The device of ``x`` as the current one: Triton launches on the current device, wherever its tensors are."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()
