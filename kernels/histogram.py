"""Streaming histogram of the correlation tensor: quantiles, shifts and diagnostics without the tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from depthg.kernels import checks, reference
from depthg.kernels.code_gradient import inverse_length
from depthg.kernels.correlation import check_pair
from depthg.kernels.terms_cpu import mean_product, working_dtype

CHUNK = 1 << 18  # elements of F that are held at a time: 1 MiB of float32, which stays in the cache


def _cpu(a: Tensor, b: Tensor, bins: int, low: float, high: float, center: bool, index: Tensor, cosine: bool) -> Tensor:
    dtype = working_dtype(a, b)
    a, b = (x.to(dtype) * inverse_length(x.to(dtype))[..., None] if cosine else x.to(dtype) for x in (a, b))
    (draws, n), p, q = index.shape, a.shape[1], b.shape[1]
    i, j = torch.arange(n, device="cpu").repeat(draws), index.reshape(-1)
    mean_b = b.mean(1)
    whole = mean_product(a.mean(1), mean_b, index).to(dtype).repeat_interleave(n)
    batch = max(1, CHUNK // (p * q))
    out = torch.zeros(bins, dtype=torch.int64, device="cpu")
    for one, other, raised in zip(i.split(batch), j.split(batch), whole.split(batch), strict=True):
        x, y = a[one], b[other]
        for rows in x.split(max(16, CHUNK // (len(one) * q)), 1):
            if center:  # the mean as [1, C] x [C, rows], which BLAS does far faster than [rows, C] x [C, 1]
                mean = torch.bmm(mean_b[other][:, None], rows.transpose(1, 2)).transpose(1, 2)
                value = torch.baddbmm(raised[:, None, None] - mean, rows, y.transpose(1, 2))
            else:
                value = torch.bmm(rows, y.transpose(1, 2))
            place = value.sub_(low).mul_(bins / (high - low)).floor_().clamp_(0, bins - 1).long()
            out += torch.bincount(place.flatten(), minlength=bins)
    return out


@torch.library.custom_op("depthg::correlation_histogram", mutates_args=())
@checks.without_autocast
def correlation_histogram_op(
    a: Tensor,
    b: Tensor,
    bins: int,
    low: float,
    high: float,
    center: bool,
    index_b: Tensor | None,
    cosine: bool,
    impl: str,
) -> Tensor:
    """Counts [bins] int64."""
    index = torch.arange(a.shape[0], device=a.device)[None] if index_b is None else index_b
    if index.numel() * a.shape[1] * b.shape[1] == 0:
        return torch.zeros(bins, dtype=torch.int64, device=a.device)
    with torch.autocast(a.device.type, enabled=False):  # products of this operator keep the types that it gives them
        if impl == "cpp":
            return _cpu(a, b, bins, low, high, center, index, cosine)
        from depthg.kernels.histogram_triton import count

        return count(a, b, bins, low, high, center, index, cosine)


@correlation_histogram_op.register_fake
def _(
    a: Tensor, b: Tensor, bins: int, low: float, high: float, center: bool, index_b: Tensor | None, cosine: bool,
    impl: str,
) -> Tensor:  # fmt: skip
    return a.new_empty(bins, dtype=torch.int64)


def correlation_histogram(
    a: Tensor,  # [N, P, C]
    b: Tensor,  # [M, Q, C]
    bins: int,
    *,
    range: tuple[float, float] = (-1.0, 1.0),
    center: bool = False,
    index_b: Tensor | None = None,  # [R, N] int64
    cosine: bool = True,
    impl: str = "auto",
) -> Tensor:  # [bins] int64
    """Histogram of ``correlation(a, b)`` without the tensor; no gradient.

    ``counts[k] = #{F[r, n, p, q] in bin k}`` for equal bins over ``range``; values outside go to the outermost bins.

    Args:
        a: vectors ``[N, P, C]``, float: features, codes, or depth with ``cosine=False``.
        b: vectors of the other side ``[M, Q, C]``.
        bins: number of bins, at least 1.
        range: lower edge of the first and upper edge of the last bin.
        center: spatial centring as in ``correlation_loss``.
        index_b: ``[R, N]`` int64 in [0, M), default image n with image n.
        cosine: normalise the vectors; False takes plain dot products, so depth ``[N, P, 1]`` gives Eq. 5.
        impl: "auto", "triton", "cpp" (the CPU, in chunks of the tensor) or "eager".

    Returns:
        int64 counts ``[bins]``, summing to R N P Q. A value within rounding of an edge may fall on either side of it.

    Raises:
        TypeError: an input is not floating point, or ``index_b`` is not int64.
        ValueError: shapes, devices, bins or range do not fit, a value is not finite (not checked on CUDA), or ``impl``
            cannot run here.
    """
    check_pair("a", a, "b", b, index_b)
    low, high = float(range[0]), float(range[1])
    if not isinstance(bins, int):
        raise TypeError(f"bins must be an int, got {bins!r}")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if not low < high:
        raise ValueError(f"range must be (low, high) with low < high, got {tuple(range)}")
    if not 1e-30 < (high - low) / bins < 1e30:  # float32 divides by it
        raise ValueError(f"range {tuple(range)} is too narrow or too wide for {bins} bins of float32")
    for name, x in (("a", a), ("b", b)):
        if x.device.type == "cpu" and not torch.compiler.is_compiling() and not x.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity, which belongs to no bin")
    impl = checks.choose_impl(impl, a.device, triton=checks.no_triton(a, b), cpp=None)
    a, b = a.detach(), b.detach()
    if impl == "eager":
        return reference.correlation_histogram(
            a, b, bins, range=(low, high), center=center, index_b=index_b, cosine=cosine
        )
    counts: Tensor = correlation_histogram_op(a, b, bins, low, high, center, index_b, cosine, impl)
    return counts
