"""NT-Xent, the contrastive objective of Sec. 3.3, without the 2N x 2N matrix.

loss = mean_i (log sum_{j != i} exp(z_i . z_j / T) - z_i . z_pair(i) / T),  z unit vectors of the 2N views
d_i  = sum_j (softmax_ij + softmax_ji - 2 [j = pair(i)]) z_j / (2N T)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from depthg.kernels import checks, reference
from depthg.kernels.code_gradient import code_gradient, inverse_length
from depthg.kernels.terms_cpu import working_dtype

CHUNK = 1 << 20  # elements of the matrix that are held at a time: 4 MiB of float32


def _cpu(z: Tensor, temperature: float, need: bool) -> tuple[Tensor, Tensor | None]:
    """Loss and gradient at the unit vectors; a chunk of rows of the matrix at a time."""
    rows = z.shape[0]
    z = z.to(working_dtype(z))
    unit = z * inverse_length(z)[:, None]
    d = torch.zeros_like(unit) if need else None
    pair = torch.arange(rows, device="cpu").roll(rows // 2)
    loss = 0.0
    for here in torch.arange(rows, device="cpu").split(max(16, CHUNK // rows)):
        block = slice(int(here[0]), int(here[-1]) + 1)
        own = unit[block]
        logits = (own @ unit.T).div_(temperature)
        inside = torch.arange(len(here), device="cpu")
        logits[inside, here] = -math.inf
        positive = logits[inside, pair[block]]
        largest = logits.amax(1, keepdim=True)
        weight = logits.sub_(largest).exp_()
        total = weight.sum(1, keepdim=True)
        loss += (total.log() + largest - positive[:, None]).sum().item()
        if d is not None:
            weight.div_(total)
            weight[inside, pair[block]] -= 1
            d[block].addmm_(weight, unit)
            d.addmm_(weight.T, own)
    return unit.new_tensor(loss / rows), None if d is None else d.div_(temperature * rows)


def _run(z: Tensor, temperature: float, need: bool, impl: str) -> tuple[Tensor, Tensor | None]:
    dtype = working_dtype(z)
    if z.shape[0] == 0:
        return z.new_zeros((), dtype=dtype), z.new_zeros(z.shape, dtype=dtype) if need else None
    if impl == "cpp":
        return _cpu(z, temperature, need)
    from depthg.kernels.nt_xent_triton import run

    return run(z, temperature, need)


@torch.library.custom_op("depthg::nt_xent_loss", mutates_args=())
def nt_xent_loss_op(z_a: Tensor, z_b: Tensor, temperature: float, need: bool, impl: str) -> tuple[Tensor, Tensor]:
    """Loss and the gradient at the unit vectors [2N, K] (empty when not needed)."""
    with torch.autocast(z_a.device.type, enabled=False):  # products of this operator keep the types that it gives them
        loss, d = _run(torch.cat([z_a, z_b]), temperature, need, impl)
    return loss, loss.new_empty(0) if d is None else d


@nt_xent_loss_op.register_fake
def _(z_a: Tensor, z_b: Tensor, temperature: float, need: bool, impl: str) -> tuple[Tensor, Tensor]:
    dtype = working_dtype(z_a, z_b)
    shape = (z_a.shape[0] + z_b.shape[0], z_a.shape[1]) if need else (0,)
    return z_a.new_empty((), dtype=dtype), z_a.new_empty(shape, dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, g_loss: Tensor | None, g_d: Tensor | None) -> tuple[Tensor | None, ...]:
    z_a, z_b, d = ctx.saved_tensors
    n = z_a.shape[0]
    grads: list[Tensor | None] = [None] * 5
    if g_loss is not None and ctx.needs_input_grad[0]:
        grads[0] = code_gradient(z_a, d[None, :n], g_loss[None])
    if g_loss is not None and ctx.needs_input_grad[1]:
        grads[1] = code_gradient(z_b, d[None, n:], g_loss[None])
    return tuple(grads)


nt_xent_loss_op.register_autograd(_backward, setup_context=_setup_context)


def nt_xent_loss(z_a: Tensor, z_b: Tensor, temperature: float, *, impl: str = "auto") -> Tensor:
    """Contrastive loss over 2N views, ``z_a[n]`` and ``z_b[n]`` being two views of one thing.

    ``loss = mean_i -log(exp(cos(z_i, z_pair(i)) / T) / sum_{j != i} exp(cos(z_i, z_j) / T))``

    Args:
        z_a: vectors of the first views ``[N, K]``, any length (normalised here), float.
        z_b: vectors of the second views ``[N, K]``.
        temperature: T above 0.
        impl: "auto", "triton", "cpp" (the CPU, in chunks of the matrix) or "eager".

    Returns:
        The loss, 0-dim, float32 for half inputs; 0 for an empty batch.

    Raises:
        TypeError: an input is not floating point.
        ValueError: shapes or devices do not fit, the temperature is not positive, or ``impl`` cannot run here.

    DepthG Sec. 3.3; SimCLR.
    """
    checks.check_floats(z_a=z_a, z_b=z_b)
    if z_a.ndim != 2 or z_a.shape != z_b.shape:
        raise ValueError(f"z_a {checks.shape(z_a)} and z_b {checks.shape(z_b)} must have one shape [views, channels]")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    impl = checks.choose_impl(impl, z_a.device, triton=checks.no_triton(z_a, z_b), cpp=None)
    if impl == "eager":
        return reference.nt_xent_loss(z_a, z_b, temperature)
    need = torch.is_grad_enabled() and (z_a.requires_grad or z_b.requires_grad)
    loss: Tensor = nt_xent_loss_op(z_a, z_b, float(temperature), need, impl)[0]
    return loss
