"""What the tests of the losses share: data, the float64 truth, and the accuracy rule of the house."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from depthg.kernels._extension import HAS_CPU

ON_GPU = torch.cuda.is_available()
INTERPRETING = os.environ.get("TRITON_INTERPRET", "0") == "1"
DEVICE = "cuda" if ON_GPU else "cpu"
IMPLS = (["triton"] if ON_GPU else ["cpp" if HAS_CPU else "eager"]) + (
    ["triton"] if INTERPRETING and not ON_GPU else []
)
TRITON = ON_GPU or INTERPRETING
LONG = [  # of what takes the interpreter several seconds
    pytest.param(impl, marks=pytest.mark.slow) if impl == "triton" and INTERPRETING else impl for impl in IMPLS
]
HALVES = [torch.float16, torch.bfloat16]


def vectors(*shape: int, dtype=torch.float32, grad: bool = False) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype).requires_grad_(grad)


def copies(tensors: list[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """Leaves with the same values in another dtype."""
    return [None if x is None else x.detach().to(dtype).requires_grad_(x.requires_grad) for x in tensors]


def outcome(results: list[Tensor], upstream: list[float], leaves: list[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
    """Values and gradients of the leaves, in float64, under the given upstream gradients."""
    wanted = [x for x in leaves if x is not None and x.requires_grad]
    total = sum(g * x for g, x in zip(upstream, results, strict=True))
    grads = torch.autograd.grad(total, wanted) if wanted else []
    return torch.stack([x.detach().double() for x in results]), [g.double() for g in grads]


def assert_close_as_eager(ours, eager, truth, dtype: torch.dtype, factor: float = 8.0) -> None:
    """|ours - truth| <= |eager - truth| + factor eps, for values and for gradients in relative L2 and direction."""
    eps = torch.finfo(dtype).eps
    values, grads = ours
    scale = truth[0].abs().clamp(min=0.05)
    error, allowed = (values - truth[0]).abs(), (eager[0] - truth[0]).abs() + factor * eps * scale
    assert (error <= allowed).all(), f"values off by {error.tolist()}, allowed {allowed.tolist()}"
    for ours_grad, eager_grad, truth_grad in zip(grads, eager[1], truth[1], strict=True):
        assert torch.isfinite(ours_grad).all()
        size = truth_grad.norm()
        error, allowed = (ours_grad - truth_grad).norm(), (eager_grad - truth_grad).norm() + factor * eps * size
        assert error <= allowed, f"gradient off by {error / size:.1e} of its length, allowed {allowed / size:.1e}"
        if size > 0:
            cosine = (ours_grad * truth_grad).sum() / (ours_grad.norm() * size)
            assert cosine > 1 - 1e-2 * (eps * 1e3) ** 0.5
