"""What the released code of DepthG reads from a depth map: its point cloud, coordinates of cells, a regular grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

FACTOR = 2 * math.tan(90 / 2)  # 3.24 instead of 2: tan takes the angle of 90 degrees as radians
FAR = 5.0  # only z is stretched by it


def released_cloud(depth: Tensor) -> Tensor:  # [N, H, W] -> [N, H*W, 3] float32
    """The point cloud of the released code, in raster order; it differs from the pinhole model of ``unproject``.

    ``x = f d (column - W/2) / W;  y = f d (row - H/2) / H;  z = -5 d;  f = 2 tan(45 rad)``, float32, from left to right

    Args:
        depth: floating point [N, H, W].

    Returns:
        float32 [N, H * W, 3] on the device of ``depth``. Another order of the operations would round differently, and
        farthest point sampling of it would pick other cells.
    """
    n, height, width = depth.shape
    depth = depth.float()
    scaled, device = depth * FACTOR, depth.device
    row = torch.arange(height, dtype=torch.float32, device=device)[:, None] - height / 2
    column = torch.arange(width, dtype=torch.float32, device=device) - width / 2
    # A tensor divides truly; a Python number would be multiplied by its inverse on a GPU.
    x = scaled * column / torch.full((1,), float(width), dtype=torch.float32, device=device)
    y = scaled * row / torch.full((1,), float(height), dtype=torch.float32, device=device)
    return torch.stack([x, y, depth * -FAR], dim=-1).reshape(n, height * width, 3)


def released_coordinates(cells: Tensor, height: int, width: int, transpose: bool) -> Tensor:  # [N, P] -> [N, P, 2]
    """Cells as coordinates in [-1, 1), divided by the size and not by size - 1: cell 27 of 28 is read at 26.04.

    Args:
        cells: int64 [N, P], ``row * width + column``.
        height: rows of the map.
        width: columns of the map.
        transpose: give (row, column) as (x, y), as the released code does: maps are read at the transposed cell.

    Returns:
        float32 [N, P, 2] in the order of ``cells``. The released code has its points in raster order: sort cells first.
    """
    row = (cells // width).float() / height * 2 - 1
    column = (cells % width).float() / width * 2 - 1
    return torch.stack([row, column] if transpose else [column, row], dim=-1)


def regular_grid(depth: Tensor, side: int) -> Tensor:  # [N, H, W] -> [N, side * side]
    """Depth resized to a regular grid, paired with the points in raster order as in the released code.

    The grid has nothing to do with where the points lie. Its outermost rows and columns are those of the map
    (``align_corners=True``). Point ``column * side + row`` gets the value at (row, column).

    Args:
        depth: floating point [N, H, W].
        side: points per side.
    """
    grid = F.interpolate(depth[:, None], (side, side), mode="bilinear", align_corners=True)[:, 0]
    return grid.transpose(1, 2).flatten(1)
