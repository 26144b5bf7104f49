"""Reading feature maps at points: exact gather at integer cells, bilinear at coordinates.

Both are one weighted sum: ``out[n, p] = sum_t weights[n, p, t] * maps[n, :, cells[n, p, t]]`` with one cell or four.
The Triton backward sorts the cells and lets one program add up each cell's contributions in order: no atomics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from depthg.kernels import checks, reference
from depthg.kernels._extension import native


def corners(points: Tensor, height: int, width: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Cells [N, P, 4] and weights [N, P, 4] of bilinear reading at (x, y) in [-1, 1], clamped to the border."""
    xy = points.to(torch.promote_types(points.dtype, torch.float32))
    size = xy.new_tensor([width, height]) if points.device.type == "cpu" else _sizes(xy, width, height)
    xy = (xy + 1) / 2 * (size - 1) if align_corners else ((xy + 1) * size - 1) / 2
    xy = torch.minimum(xy.clamp(min=0), size - 1)
    low = xy.floor()
    high = torch.minimum(low + 1, size - 1)
    share = xy - low
    (x0, y0), (x1, y1), (x, y) = low.long().unbind(-1), high.long().unbind(-1), share.unbind(-1)
    cells = torch.stack([y0 * width + x0, y0 * width + x1, y1 * width + x0, y1 * width + x1], -1)
    return cells, torch.stack([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x], -1)


def _sizes(xy: Tensor, width: int, height: int) -> Tensor:  # filled on the device: no copy from the host
    return torch.stack([torch.full((), float(v), dtype=xy.dtype, device=xy.device) for v in (width, height)])


def no_cpp(x: Tensor) -> str | None:
    """Why C++ cannot read maps of this type, or None."""
    if x.dtype != torch.float32:
        return f"has no {str(x.dtype).removeprefix('torch.')}; use impl='auto' or 'eager'"
    return checks.no_cpp()


def _flat_cells(maps: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """The maps, copied unless cell ``row * W + column`` lies at that multiple of one stride, and their strides."""
    image, channel, row, cell = maps.stride()
    if row != maps.shape[3] * cell:
        maps = maps.contiguous()
        image, channel, row, cell = maps.stride()
    return maps, (image, channel, cell)


@torch.library.custom_op("depthg::sample_cells", mutates_args=())
def sample_cells(
    maps: Tensor,  # [N, C, H, W]
    cells: Tensor,  # [M, P, T] int64
    weights: Tensor,  # [M, P, T] float32
    index: Tensor | None,  # [M] int64, the map that each row reads; None: row n reads map n
    impl: str,
) -> Tensor:  # [M, P, C]
    """Weighted sums of map vectors by C++ ("cpp", float32), or without ``index`` by Triton."""
    if impl == "cpp":
        out = torch.empty(*cells.shape[:2], maps.shape[1], device="cpu")
        maps, stride = _flat_cells(maps)
        cells, weights, index, where = _addresses(cells, weights, index)
        size = (cells.shape[0], maps.shape[1], *cells.shape[1:], maps.shape[0], maps.shape[2] * maps.shape[3])
        native.sample_maps(size, stride, *where, maps.data_ptr(), out.data_ptr(), torch.get_num_threads())
        return out
    from depthg.kernels.sample_points_triton import read

    return read(maps, cells, weights)


def _addresses(cells: Tensor, weights: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, list[int]]:
    """The three tensors, contiguous, and their addresses (0 for None)."""
    cells, weights, index = cells.contiguous(), weights.contiguous(), None if index is None else index.contiguous()
    return cells, weights, index, [0 if x is None else x.data_ptr() for x in (cells, weights, index)]


@sample_cells.register_fake
def _(maps: Tensor, cells: Tensor, weights: Tensor, index: Tensor | None, impl: str) -> Tensor:
    return maps.new_empty((*cells.shape[:2], maps.shape[1]))


@torch.library.custom_op("depthg::sample_cells_backward", mutates_args=())
def sample_cells_backward(
    d_out: Tensor,
    cells: Tensor,
    weights: Tensor,
    index: Tensor | None,
    images: int,
    height: int,
    width: int,
    impl: str,
) -> Tensor:
    """Gradient of the maps [N, C, H, W]."""
    if impl == "cpp":
        d_out, channels, area = d_out.contiguous(), d_out.shape[2], height * width
        d_maps = torch.empty(images, channels, height, width, device="cpu")
        cells, weights, index, where = _addresses(cells, weights, index)
        size = (cells.shape[0], channels, *cells.shape[1:], images, area)
        stride = (channels * area, area, 1)
        native.sample_maps_backward(
            size, stride, *where, d_out.data_ptr(), d_maps.data_ptr(), torch.get_num_threads()
        )  # fmt: skip
        return d_maps
    from depthg.kernels.sample_points_triton import write

    return write(d_out, cells, weights, height, width)


@sample_cells_backward.register_fake
def _(
    d_out: Tensor, cells: Tensor, weights: Tensor, index: Tensor | None, images: int, height: int, width: int, impl: str
) -> Tensor:
    return d_out.new_empty((images, d_out.shape[2], height, width))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:4])
    ctx.rest = (inputs[0].shape[0], *inputs[0].shape[2:], inputs[4])


def _backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    return sample_cells_backward(d_out, *ctx.saved_tensors, *ctx.rest), None, None, None, None


def _backward_of_backward(ctx: Any, d_maps: Tensor) -> tuple[Tensor | None, ...]:
    return sample_cells(d_maps, *ctx.saved_tensors, ctx.impl), None, None, None, None, None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:4])
    ctx.impl = inputs[7]


sample_cells.register_autograd(_backward, setup_context=_setup_context)
sample_cells_backward.register_autograd(_backward_of_backward, setup_context=_setup_backward)


def check_points(maps: Tensor, points: Tensor, index: Tensor | None, name: str = "maps", at: str = "points") -> None:
    """``points`` are cells or coordinates of the maps (of those that ``index`` names)."""
    checks.check_floats(**{name: maps})
    if not isinstance(points, Tensor):
        raise TypeError(f"{at} must be a tensor, got {type(points).__name__}")
    checks.check_frozen(**{at: points})
    if maps.ndim != 4:
        raise ValueError(f"{name} must be [N, C, H, W], got shape {checks.shape(maps)}")
    if points.device != maps.device:
        raise ValueError(f"{at} is on {points.device} but {name} is on {maps.device}; move them to one device")
    cells = points.ndim == 2 and points.dtype == torch.int64
    if not cells and not (points.ndim == 3 and points.shape[2] == 2 and points.is_floating_point()):
        raise ValueError(
            f"{at} must be int64 cells [N, P] or float coordinates [N, P, 2],"
            f" got {points.dtype} of shape {checks.shape(points)}"
        )
    if index is None and points.shape[0] != maps.shape[0]:
        raise ValueError(f"{name} {checks.shape(maps)} and {at} {checks.shape(points)} must have the same images")
    if index is not None:
        _check_index(maps, points, index)
    if maps.shape[2] * maps.shape[3] == 0 and points.numel():
        raise ValueError(f"{name} of shape {checks.shape(maps)} have no cell to read")
    if not cells or torch.compiler.is_compiling() or points.device.type != "cpu" or points.numel() == 0:
        return
    low, high = int(points.min()), int(points.max())
    count = maps.shape[2] * maps.shape[3]
    if low < 0 or high >= count:
        raise ValueError(
            f"{at} hold cell {low if low < 0 else high}, outside the {count} cells of {name} {checks.shape(maps)}"
        )


def _check_index(maps: Tensor, points: Tensor, index: Tensor) -> None:
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.shape != points.shape[:1]:
        found = f"{index.dtype} of shape {checks.shape(index)}" if isinstance(index, Tensor) else type(index).__name__
        raise ValueError(f"index must be int64 [{points.shape[0]}] for points {checks.shape(points)}, got {found}")
    if index.device != maps.device:
        raise ValueError(f"index is on {index.device} but maps is on {maps.device}; move them to one device")
    if torch.compiler.is_compiling() or index.device.type != "cpu" or index.numel() == 0:
        return
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= maps.shape[0]:
        raise ValueError(f"index holds {low if low < 0 else high}, outside the {maps.shape[0]} images of maps")


def sample_points(
    maps: Tensor,  # [N, C, H, W]
    points: Tensor,  # [N, P] int64 flat cells, or [N, P, 2] coordinates (x, y) in [-1, 1]
    *,
    index: Tensor | None = None,  # [M] int64
    align_corners: bool = True,
    impl: str = "auto",
) -> Tensor:  # [N, P, C]
    """Map vectors at points, differentiable in the maps.

    ``out[n, p] = maps[n, :, row, column]`` with ``points[n, p] = row * W + column``; at coordinates bilinear, border
    clamped, exactly as ``grid_sample(..., padding_mode="border")``.

    Args:
        maps: ``[N, C, H, W]``, float; channels-last memory makes the gather cheap.
        points: int64 cells ``[N, P]`` in [0, H W) (not checked on CUDA), or float (x, y) ``[N, P, 2]`` in [-1, 1].
        index: int64 ``[M]``: row m of ``points``, then ``[M, P]`` or ``[M, P, 2]``, reads map ``index[m]`` (not checked
            on CUDA); None: row n reads map n.
        align_corners: whether -1 and 1 are the centres of the outermost cells (True) or their outer edges.
        impl: "auto", "triton", "cpp" (the CPU, float32) or "eager".

    Returns:
        ``[N, P, C]`` (``[M, P, C]`` with ``index``) in the dtype of the maps.

    Raises:
        TypeError: maps are not floating point.
        ValueError: shapes, devices or cells do not fit, points require grad, or ``impl`` cannot run here.
    """
    check_points(maps, points, index)
    impl = checks.choose_impl(impl, maps.device, triton=checks.no_triton(maps), cpp=no_cpp(maps))
    if maps.shape[2] * maps.shape[3] == 0:  # then there are no points either
        return maps.new_zeros(*points.shape[:2], maps.shape[1])
    if index is not None and impl != "cpp":
        maps, index = maps[index], None
    if impl == "eager":
        return reference.sample_points(maps, points, align_corners=align_corners)
    if points.ndim == 2:
        cells = points[:, :, None]
        weights = torch.ones(cells.shape, device=maps.device)
    else:
        cells, weights = corners(points, maps.shape[2], maps.shape[3], align_corners)
    out: Tensor = sample_cells(maps, cells, weights.float(), index, impl)
    return out
