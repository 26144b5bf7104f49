"""Multinomial logistic regression on frozen codes, fitted to convergence: the linear probe of a finished training."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 2048  # rows per block: scores and gradient of a block stay in cache
GRADIENT, ITERATIONS = 1e-4, 500  # largest entry of the gradient of the mean loss at the end; steps at most
LEAST_AXIS = 1e-4  # variance along an axis, as a part of the largest, from which on it is scaled to 1


class LinearFit(NamedTuple):
    """Scores of the classes are ``codes @ weight.T + bias``."""

    weight: Tensor  # float32 [n_classes, K]
    bias: Tensor  # float32 [n_classes]
    iterations: int
    gradient: float  # largest entry of the gradient where it stopped


def fit_linear(codes: Tensor, classes: Tensor, n_classes: int, iterations: int = ITERATIONS) -> LinearFit:
    """Weights that minimise ``mean cross_entropy(x W^T + b, classes) + (|W|^2 + |b|^2) / (2 N)``.

    ``x`` are the codes with mean 0, whitened (:func:`whitening`), which takes a third of the steps that codes with
    deviation 1 take; the returned weights act on the codes themselves. The penalty is that of scikit-learn's default,
    C = 1, and makes the minimum unique. It is found by scipy's L-BFGS-B in float64 on the CPU, started at zero: the
    same codes give the same weights. One thread computes it: between short products, two wait longer than they work.

    Args:
        codes: float [N, K], on any device.
        classes: int64 [N] in [0, n_classes).
        n_classes: rows of the weight; a class without a row in ``classes`` gets low scores.
        iterations: maximum steps; fewer where no entry of the gradient is larger than ``GRADIENT``.

    Raises:
        ValueError: no rows, shapes that do not fit together, a class out of range, NaN or infinite codes.
    """
    from scipy.optimize import minimize  # takes half a second, and most commands do not need it

    codes, classes = _checked(codes, classes, n_classes)
    options = {"maxiter": iterations, "maxfun": 2 * iterations, "gtol": GRADIENT, "ftol": 0.0, "maxcor": 20}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        mean, axes = whitening(codes)
        x = torch.cat([(codes - mean) @ axes, codes.new_ones(len(codes), 1)], 1)

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weight = torch.from_numpy(flat).view(n_classes, -1)
            total, slope = _loss(x, classes, weight)
            total += float(weight.square().sum()) / 2
            return total / len(x), ((slope + weight) / len(x)).flatten().numpy()

        start = np.zeros(n_classes * x.shape[1])
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    finally:
        torch.set_num_threads(threads)
    solved = torch.from_numpy(found.x).view(n_classes, -1)
    weight = solved[:, :-1] @ axes.T
    bias = solved[:, -1] - weight @ mean
    return LinearFit(weight.float(), bias.float(), int(found.nit), float(np.abs(found.jac).max()))


def whitening(codes: Tensor) -> tuple[Tensor, Tensor]:  # float64 [N, K] -> [K], [K, K]
    """Mean and axes: ``(codes - mean) @ axes`` has uncorrelated channels of variance 1.

    The axes are the principal ones of the codes with deviation 1. An axis whose variance is below ``LEAST_AXIS`` of the
    largest is scaled as if it had that much; a constant channel becomes 0.
    """
    mean, deviation = codes.mean(0), codes.std(0, correction=0)
    scale = torch.where(deviation > 1e-6 * (mean.abs() + deviation), 1 / deviation, 0)
    unit = (codes - mean) * scale
    variance, axes = torch.linalg.eigh(unit.T @ unit / len(unit))
    least = max(LEAST_AXIS * float(variance[-1]), torch.finfo(torch.float64).tiny)
    return mean, scale[:, None] * axes / variance.clamp(min=least).sqrt()


def _checked(codes: Tensor, classes: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Codes in float64 and classes, both on the CPU."""
    if codes.ndim != 2 or classes.shape != codes.shape[:1] or not len(codes):
        raise ValueError(
            f"codes must be [N, K] with classes [N] and at least one row, got {list(codes.shape)} and "
            f"{list(classes.shape)}"
        )
    codes, classes = codes.detach().cpu().double(), classes.cpu().long()
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= n_classes:
        raise ValueError(f"classes must be in [0, {n_classes}), got {low if low < 0 else high}; leave out void")
    if not bool(torch.isfinite(codes).all()):
        raise ValueError("codes hold NaN or infinity; the head has diverged")
    return codes, classes


def _loss(x: Tensor, classes: Tensor, weight: Tensor) -> tuple[float, Tensor]:
    """Sum of the cross-entropies, and its gradient ``[n_classes, K + 1]``."""
    total, slope = 0.0, torch.zeros_like(weight)
    for rows, target in zip(x.split(ROWS), classes.split(ROWS), strict=True):
        scores = F.log_softmax(rows @ weight.T, dim=1)
        total -= float(scores.gather(1, target[:, None]).sum())
        scores.exp_()
        scores[torch.arange(len(target)), target] -= 1
        slope.addmm_(scores.T, rows)
    return total, slope
