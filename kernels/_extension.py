"""The compiled module ``depthg._C``, or the reason why it is not there."""

from __future__ import annotations

import importlib

try:
    native = importlib.import_module("depthg._C")
    missing = None
except ImportError as error:
    native = None
    missing = f"the compiled module depthg._C cannot be imported ({error})"

HAS_CPU = native is not None
HAS_CUDA = native is not None and native.has_cuda
