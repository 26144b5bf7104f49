"""Eager definition of the dense CRF: pure torch, any floating dtype, every pair of pixels.

The messages of :func:`dense_crf` are exact Gaussian sums; the compiled code filters on the permutohedral lattice, which
approximates them. README.md here states by how much.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CrfSettings:
    """Edge potentials: ``w_g exp(-d^2 / 2 s_g^2) + w_b exp(-d^2 / 2 s_xy^2 - c^2 / 2 s_rgb^2)``.

    ``d`` is the distance of two pixels, ``c`` that of their colours in 0..255. A kernel of weight 0 is left out.
    """

    iterations: int = 10
    gaussian_sxy: float = 1.0  # pixels
    gaussian_weight: float = 3.0
    bilateral_sxy: float = 67.0  # pixels
    bilateral_srgb: float = 3.0
    bilateral_weight: float = 4.0


def dense_crf(
    unary: Tensor,  # [L, H, W]
    image: Tensor,  # uint8 [H, W, 3]
    settings: CrfSettings = CrfSettings(),
) -> Tensor:  # [L, H, W]
    """Mean field with Potts compatibility (Krähenbühl and Koltun, 2011), with symmetric normalisation of the kernels.

    ``Q = softmax(-unary)``, then ``iterations`` times ``Q = softmax(-unary + sum_k w_k N_k K_k N_k Q)`` with
    ``N_k = diag(1 / sqrt(K_k 1))``. A kernel has 1 on its diagonal: a pixel sends a message to itself, too.
    """
    classes, height, width = unary.shape
    energy = unary.reshape(classes, -1)
    kernels = pairwise_kernels(image, settings, unary.dtype)
    marginals = torch.softmax(-energy, 0)
    for _ in range(settings.iterations):
        messages = sum((marginals @ kernel for kernel in kernels), torch.zeros_like(energy))
        marginals = torch.softmax(messages - energy, 0)
    return marginals.reshape(classes, height, width)


def pairwise_kernels(image: Tensor, settings: CrfSettings, dtype: torch.dtype) -> list[Tensor]:  # [H*W, H*W] each
    """Weight times normalised kernel, for the kernels whose weight is not 0."""
    height, width, _ = image.shape
    rows = torch.arange(height, dtype=dtype, device=image.device)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=dtype, device=image.device).expand(height, width)
    place = torch.stack([columns, rows], -1).reshape(-1, 2)
    colour = image.reshape(-1, 3).to(dtype)
    features = [
        (settings.gaussian_weight, place / settings.gaussian_sxy),
        (settings.bilateral_weight, torch.cat([place / settings.bilateral_sxy, colour / settings.bilateral_srgb], 1)),
    ]
    found = []
    for weight, f in features:
        if weight:
            kernel = torch.exp(-((f[:, None] - f[None]) ** 2).sum(-1) / 2)
            norm = kernel.sum(1).rsqrt()
            found.append(weight * norm[:, None] * kernel * norm)
    return found
