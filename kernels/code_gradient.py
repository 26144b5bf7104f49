"""Backward of the correlation losses on the CPU, and of NT-Xent.

Gradients at the unit codes are combined and taken through the normalisation:

unit = codes / |codes|,  d_unit = sum_t upstream[t] * d_terms[t]
d_codes = (d_unit - unit (unit . d_unit)) / |codes|,  0 at a zero vector
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from depthg.kernels import _extension, checks


def inverse_length(x: Tensor) -> Tensor:  # [..., C] -> [...]
    """1 / |x|, 0 for a zero vector as in ``reference.normalize``."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return norm.reciprocal().masked_fill_(norm.square() == 0, 0)


def through_normalization(
    codes: Tensor,  # [N, P, K]
    d_terms: Tensor,  # [T, N, P, K] float32 or float64, gradients of the terms at the unit codes
    upstream: Tensor,  # [T]
) -> Tensor:  # [N, P, K] in the dtype of codes
    """Gradient of ``sum_t upstream[t] * loss_t`` at the codes, from the gradients at the unit codes."""
    x, upstream = codes.to(d_terms.dtype), upstream.to(d_terms.dtype)
    if codes.device.type == "cpu" and _extension.HAS_CPU:
        x, d_terms, upstream = x.contiguous(), d_terms.contiguous(), upstream.contiguous()
        out = torch.empty_like(x)
        if x.numel():
            _extension.typed("code_gradient", x.dtype)(
                x.data_ptr(), d_terms.data_ptr(), upstream.data_ptr(), len(d_terms), x[..., 0].numel(), x.shape[-1],
                out.data_ptr(), torch.get_num_threads(),
            )  # fmt: skip
        return out.to(codes.dtype)
    if d_terms.shape[0] == 1:
        d_unit = d_terms[0] * upstream
    else:
        d_unit = (upstream[None] @ d_terms.flatten(1)).view(d_terms.shape[1:])
    inverse = inverse_length(x)[..., None]
    along = (x * d_unit).sum(-1, keepdim=True)
    return d_unit.addcmul_(x, along * inverse * inverse, value=-1).mul_(inverse).to(codes.dtype)


@torch.library.custom_op("depthg::code_gradient", mutates_args=())
@checks.without_autocast
def code_gradient(codes: Tensor, d_terms: Tensor, upstream: Tensor) -> Tensor:
    """``through_normalization`` as an operator."""
    return through_normalization(codes, d_terms, upstream)


@code_gradient.register_fake
def _(codes: Tensor, d_terms: Tensor, upstream: Tensor) -> Tensor:
    return torch.empty_like(codes, memory_format=torch.contiguous_format)


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> NoReturn:
    raise RuntimeError("the losses of depthg.kernels have no second derivative; use impl='eager' for double backward")


code_gradient.register_autograd(_no_second_derivative)
