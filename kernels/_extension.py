"""The compiled module ``depthg._C``, or the reason why it is missing."""

from __future__ import annotations

import importlib
from typing import Any

import torch

native: Any = None  # a compiled module has no type hints
missing: str | None = None
try:
    native = importlib.import_module("depthg._C")
except ImportError as error:
    missing = f"the compiled module depthg._C cannot be imported ({error})"

HAS_CPU: bool = native is not None
HAS_CUDA: bool = native is not None and native.has_cuda


def typed(name: str, dtype: torch.dtype) -> Any:
    """A function or class of the compiled module, which has it once for float32 and once for float64."""
    return getattr(native, f"{name}64" if dtype == torch.float64 else f"{name}32")
