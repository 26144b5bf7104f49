"""Up-sampled maps that are never held, on the CPU in C++: the arg-max of score maps at the size of a photo
(csrc/upsample.h), and the sum of the stages of a hypercolumn (csrc/sum_maps.h). On a device torch does both, the
arg-max some rows at a time, and the scores of a probe are up-sampled by matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from depthg.kernels._extension import native
from depthg.kernels.checks import choose_impl, no_cpp

MOST_MAPS = 65535
BLOCK_VALUES = 2**23  # scores that are up-sampled at a time on a device: 32 MiB


def up_sampled_ids(
    scores: np.ndarray,  # floating point [n, h, w], any strides
    size: tuple[int, int],
    *,
    impl: str = "auto",
    rows: tuple[int, int] | None = None,
    first: int = 0,
    cells: int | None = None,
) -> np.ndarray:  # uint8 [H, W] (uint16 for more than 255 maps), or [rows, W]
    """``interpolate(scores, size, mode="bilinear", align_corners=False).argmax(0)``, up or down, in float32.

    Ties go to the lowest id; NaN exceeds every number and the first NaN wins, as in ``torch.argmax``. The compiled code
    gives the same ids whatever the number of threads and the instruction set; torch rounds differently, so where two
    scores differ in their last bit, or beside cells that are NaN or infinite, its ids may be others. Runs on as many
    threads as torch is set to in the calling thread, and holds two rows of scores of 64 pixels per thread.

    Args:
        scores: one map per id.
        size: height H and width W.
        impl: "cpp", "eager" (torch; holds the up-sampled scores), or "auto".
        rows: start and stop of the rows of the result to compute; None: all. The compiled code gives the same ids as
            for all rows at once.
        first, cells: the rows of `scores` are the rows from `first` on of maps of `cells` rows (None: of all).

    Raises:
        ValueError: no map, no cell or no pixel, too many maps, rows outside the result or whose cells are not given, or
            an ``impl`` that cannot run here.
    """
    if scores.ndim != 3 or 0 in (*scores.shape, *size) or len(scores) > MOST_MAPS:
        raise ValueError(f"score maps {list(scores.shape)} cannot be up-sampled to {list(size)}")
    cells = scores.shape[1] if cells is None else cells
    start, stop = (0, size[0]) if rows is None else rows
    _check_rows(scores.shape[1], size[0], (start, stop), first, cells)
    scores = np.require(scores, np.float32, "A")
    dtype = np.uint8 if len(scores) < 256 else np.uint16
    if choose_impl(impl, torch.device("cpu"), cpp=no_cpp()) == "eager":
        given = torch.from_numpy(np.ascontiguousarray(scores))
        found = eager_ids(given, size) if rows is None else device_ids(given, size, (start, stop), first, cells)
        return found.numpy().astype(dtype)
    ids = np.empty((stop - start, size[1]), dtype)
    strides = [stride // scores.itemsize for stride in scores.strides]
    native.upsample_argmax(
        scores.ctypes.data, (len(scores), cells, scores.shape[2]), strides, first, size, (start, stop),
        ids.ctypes.data, torch.get_num_threads(),
    )  # fmt: skip
    return ids


def needed_cells(cells: int, pixels: int, rows: tuple[int, int]) -> tuple[int, int]:
    """Start and stop of the cells along an axis that the pixels ``rows`` = (start, stop) of it lie between."""
    low, high = (min(int(max((row + 0.5) * (cells / pixels) - 0.5, 0)), cells - 1) for row in (rows[0], rows[1] - 1))
    return low, min(high + 2, cells)


def _check_rows(given: int, height: int, rows: tuple[int, int], first: int, cells: int) -> None:
    if not 0 <= rows[0] < rows[1] <= height:
        raise ValueError(f"rows={list(rows)} are no rows of an image of height {height}")
    low, high = needed_cells(cells, height, rows)
    if not (first <= low and high <= first + given <= cells):
        raise ValueError(
            f"rows {rows[0]} to {rows[1]} of {height} need the cells {low} to {high} of {cells}, but those from "
            f"{first} to {first + given} are given"
        )


def eager_ids(scores: Tensor, size: tuple[int, int]) -> Tensor:  # [n, h, w] -> int64 [H, W], on the same device
    """The definition, which holds the up-sampled scores."""
    return F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0].argmax(0)


def taps(cells: int, pixels: int, device: torch.device) -> tuple[Tensor, Tensor]:  # int64 [pixels], float32 [pixels]
    """The lower cell of every pixel along one axis, and the weight of the one after it."""
    own = torch.device("cpu") if device.type == "mps" else device  # Apple's GPU has no float64
    at = ((torch.arange(pixels, dtype=torch.float64, device=own) + 0.5) * (cells / pixels) - 0.5).clamp_(min=0)
    cell = at.long().clamp_(max=cells - 1)
    return cell.to(device), (at - cell).float().to(device)


def device_ids(
    scores: Tensor,  # floating point [n, h, w]
    size: tuple[int, int],
    rows: tuple[int, int] | None = None,
    first: int = 0,
    cells: int | None = None,
) -> Tensor:  # int64 [H, W], or [rows, W]
    """The arg-max of :func:`up_sampled_ids` on the device of the scores, some rows at a time; arguments as there.

    Every product and every sum is rounded like those of the compiled code, along x before y, so the ids are the same.
    """
    (n, h, w), (height, width) = scores.shape, size
    cells, (begin, end) = h if cells is None else cells, (0, height) if rows is None else rows
    x, right = taps(w, width, scores.device)
    y, below = taps(cells, height, scores.device)
    step = max(1, BLOCK_VALUES // (n * width * max(1, -(-cells // height))))
    out = torch.empty((end - begin, width), dtype=torch.int64, device=scores.device)
    for start in range(begin, end, step):
        stop = min(start + step, end)
        low, high = needed_cells(cells, height, (start, stop))  # known here
        part = scores[:, low - first : high - first].float()
        part = part[..., x] * (1 - right) + part[..., (x + 1).clamp(max=w - 1)] * right
        cell, share = y[start:stop] - low, below[start:stop, None]
        upper, lower = (part[:, c] for c in (cell, (cell + 1).clamp(max=part.shape[1] - 1)))
        out[start - begin : stop - begin] = upper.mul_(1 - share).add_(lower.mul_(share)).argmax(0)
    return out


@lru_cache(maxsize=16)
def weights(cells: int, pixels: int, device: torch.device) -> Tensor:  # float32 [pixels, cells]
    """Bilinear up-sampling along one axis as a matrix, made once."""
    with torch.inference_mode(False):  # autograd refuses to save tensors made inside it
        cell, share = (x[:, None] for x in taps(cells, pixels, device))
        at = torch.arange(cells, device=device)
        return (at == cell) * (1 - share) + (at == (cell + 1).clamp(max=cells - 1)) * share


def up_sampled_scores(scores: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Scores ``[N, h*w, n]`` at the size of a photo, ``[N, H, W, n]``, bilinear and differentiable.

    On a GPU by products with the weights of either axis: the gradient of ``interpolate`` adds up with atomics there, in
    an order that changes from run to run.
    """
    if scores.is_cpu:
        maps = scores.transpose(1, 2).unflatten(2, grid)
        return F.interpolate(maps, size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    return products_of_weights(scores, grid, size)


def products_of_weights(scores: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """:func:`up_sampled_scores` along x while there are few rows, then along y; contiguous."""
    x, y = weights(grid[1], size[1], scores.device), weights(grid[0], size[0], scores.device)
    wide = scores.unflatten(1, grid).transpose(2, 3) @ x.to(scores.dtype).T  # [N, h, n, W]
    tall = y.to(scores.dtype) @ wide.transpose(2, 3).flatten(2)  # [N, H, W * n]
    maps: Tensor = tall.unflatten(2, (size[1], scores.shape[2]))
    return maps


def sum_of_stages(
    values: Sequence[Tensor],  # float32 [B, h_s, w_s, D] per stage
    vectors: Sequence[Tensor] | None,  # float32 [B, h_s, w_s, C_s], or nothing is divided
    size: tuple[int, int],
    *,
    impl: str = "auto",
) -> Tensor:  # float32 [B, H, W, D]
    """``sum_s up(values_s) / |up(vectors_s)|`` with bilinear up-sampling to ``size``; a vector of length 0 counts as 0.

    Args:
        values: per stage ``[B, h_s, w_s, D]``, all on one device, without gradients.
        vectors: per stage ``[B, h_s, w_s, C_s]``; None divides by nothing.
        size: height H and width W.
        impl: "cpp" (CPU), "eager" (torch, any device), or "auto".

    Raises:
        ValueError: shapes or devices that do not belong together, nothing to up-sample, tensors that require grad, or
            an ``impl`` that cannot run here.
    """
    _check_stages(values, vectors, size)
    if choose_impl(impl, values[0].device, cpp=no_cpp()) == "eager":
        return _eager_sum(values, vectors, size)
    values = [x.float().contiguous() for x in values]
    vectors = [] if vectors is None else [x.float().contiguous() for x in vectors]
    shapes = [tuple(x.shape[1:]) for x in vectors or values]
    out = values[0].new_empty(len(values[0]), *size, values[0].shape[-1])
    addresses = [x.data_ptr() for x in vectors] or [0] * len(values)
    native.sum_maps(
        shapes, addresses, [x.data_ptr() for x in values], out.shape, out.data_ptr(), torch.get_num_threads()
    )
    return out


def _check_stages(values: Sequence[Tensor], vectors: Sequence[Tensor] | None, size: tuple[int, int]) -> None:
    tensors = [*values, *(vectors or ())]
    fits = (
        len(values) > 0
        and all(x.ndim == 4 and x.is_floating_point() and x.device == values[0].device for x in tensors)
        and all((len(x), x.shape[3]) == (len(values[0]), values[0].shape[3]) for x in values)
        and (vectors is None or [x.shape[:3] for x in vectors] == [x.shape[:3] for x in values])
        and all(n > 0 for x in tensors for n in x.shape[1:])
        and min(size) > 0
    )
    if not fits:
        shapes = ", ".join(str(list(x.shape)) for x in values)
        beside = "" if vectors is None else f" and vectors {', '.join(str(list(x.shape)) for x in vectors)}"
        raise ValueError(
            f"values {shapes or 'of no stage'}{beside} cannot be up-sampled to {list(size)} and summed: values are "
            "floating-point [B, h, w, D] with one B and D, vectors [B, h, w, C] of the same B, h and w, on one device"
        )
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise ValueError("sums of stages have no gradient; detach the maps, or call under torch.no_grad()")


def _eager_sum(values: Sequence[Tensor], vectors: Sequence[Tensor] | None, size: tuple[int, int]) -> Tensor:
    """The definition, which holds the up-sampled stages; shapes as `sum_of_stages`."""

    def up(maps: Tensor) -> Tensor:  # [B, h, w, C] -> [B, H, W, C]
        return F.interpolate(maps.float().permute(0, 3, 1, 2), size, mode="bilinear").permute(0, 2, 3, 1)

    total = values[0].new_zeros(len(values[0]), *size, values[0].shape[-1], dtype=torch.float32)
    for i, part in enumerate(values):
        square = None if vectors is None else up(vectors[i]).square().sum(-1, keepdim=True)
        total += up(part) if square is None else up(part) * torch.where(square > 0, square, torch.inf).rsqrt()
    return total
