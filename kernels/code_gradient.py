"""Backward of the correlation losses on the CPU, and of NT-Xent.

Gradients at the unit codes are combined and taken through the normalisation:

unit = codes / |codes|,  d_unit = sum_t upstream[t] * d_terms[t]
d_codes = (d_unit - unit (unit . d_unit)) / |codes|,  0 at a zero vector
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from depthg.kernels import checks, pair_pass_native
from depthg.kernels.pair_pass import inverse_length


@torch.library.custom_op("depthg::code_gradient", mutates_args=())
@checks.without_autocast
def code_gradient(
    codes: Tensor,  # [N, P, K]
    d_terms: Tensor,  # [T, N, P, K] gradients of the terms at the unit codes
    upstream: Tensor,  # [T]
) -> Tensor:  # [N, P, K] in the dtype of codes
    """Gradient of ``sum_t upstream[t] * loss_t`` at the codes, from the gradients at the unit codes."""
    floats = codes.dtype == d_terms.dtype == torch.float32
    if floats and codes.device.type == "cpu" and pair_pass_native.AVAILABLE:
        return pair_pass_native.code_gradient(codes, d_terms, upstream)
    if d_terms.shape[0] == 1:
        d_unit = d_terms[0] * upstream.to(d_terms.dtype)
    else:
        d_unit = (upstream.to(d_terms.dtype)[None] @ d_terms.flatten(1)).view(d_terms.shape[1:])
    x = codes.to(d_terms.dtype)
    inverse = inverse_length(x)[..., None]
    along = (x * d_unit).sum(-1, keepdim=True)
    return d_unit.addcmul_(x, along * inverse * inverse, value=-1).mul_(inverse).to(codes.dtype)


@code_gradient.register_fake
def _(codes: Tensor, d_terms: Tensor, upstream: Tensor) -> Tensor:
    return torch.empty_like(codes, memory_format=torch.contiguous_format)


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> NoReturn:
    raise RuntimeError("the losses of depthg.kernels have no second derivative; use impl='eager' for double backward")


code_gradient.register_autograd(_no_second_derivative)
