"""Triton's interpreter, mended: products of bfloat16.

numpy has no bfloat16, so the interpreter keeps such values as uint16, the upper half of a float32. Its ``tl.dot`` hands
them to numpy as they are and multiplies the bits: a loss comes out as -1.8e8. Here they are widened first, which is
exact, and as on a GPU the products are summed in float32.
"""

from __future__ import annotations

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_create_dot = interpreter.InterpreterBuilder.create_dot


def _widened(x: interpreter.TensorHandle) -> interpreter.TensorHandle:
    if x.dtype.scalar != tl.bfloat16 or x.data.dtype != np.uint16:
        return x
    return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def create_dot(builder, a, b, *rest):
    return _create_dot(builder, _widened(a), _widened(b), *rest)


def mend() -> None:
    interpreter.InterpreterBuilder.create_dot = create_dot
