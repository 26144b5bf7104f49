"""The compiled module ``depthg._C``, or the reason why it is not there."""

from __future__ import annotations

import importlib
from typing import Any

native: Any = None  # a compiled module has no type hints
missing: str | None = None
try:
    native = importlib.import_module("depthg._C")
except ImportError as error:
    missing = f"the compiled module depthg._C cannot be imported ({error})"

HAS_CPU: bool = native is not None
HAS_CUDA: bool = native is not None and native.has_cuda
