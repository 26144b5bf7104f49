"""Sampled points of an image: integer cells (paper) or coordinates in [-1, 1] (released code)."""

from __future__ import annotations

import torch
from torch import Tensor

from depthg.config.schema import SamplingConfig
from depthg.kernels import farthest_point_sample, farthest_point_sample_depth
from depthg.kernels.released import released_cloud, released_coordinates
from depthg.runtime.processes import BatchShare


def random_cells(
    share: BatchShare | int, n_cells: int, points: int, generator: torch.Generator | None = None
) -> Tensor:
    """Distinct random cells of each image, int64 ``[images, points]``, for a number of images or a share of a batch.

    Raises:
        ValueError: more points than cells.
    """
    share = BatchShare(0, share, share) if isinstance(share, int) else share
    if points > n_cells:
        raise ValueError(f"{points} points do not fit a feature map of {n_cells} cells; lower sampling.points")
    return torch.rand(share.total, n_cells, generator=generator)[share.rows].topk(points, dim=1).indices


def farthest_cells(
    depth: Tensor,
    points: int,
    settings: SamplingConfig,
    generator: torch.Generator | None,
    share: BatchShare | None = None,
) -> Tensor:
    """Farthest point sampling of the unprojected depth ``[N, H, W]``: cells, int64 ``[N, points]``, in picking order.

    Raises:
        ValueError: more points than cells.
    """
    n, height, width = depth.shape
    if points > height * width:
        raise ValueError(f"{points} points do not fit a feature map of {height} x {width}; lower sampling.points")
    start: int | Tensor = 0
    if settings.start == "random":
        share = BatchShare(0, n, n) if share is None else share
        start = torch.randint(height * width, (share.total,), generator=generator)[share.rows].to(depth.device)
    if settings.unprojection == "released":
        return farthest_point_sample(released_cloud(depth), points, start=start)
    return farthest_point_sample_depth(depth, points, fov_deg=settings.fov_deg, start=start)


def sample(
    depth: Tensor | None,  # [N, H, W] in [0, 1]; None: random points
    shape: tuple[int, int, int],  # N, H, W
    points: int,  # points per image
    settings: SamplingConfig,
    generator: torch.Generator | None = None,
    share: BatchShare | None = None,
) -> Tensor:
    """Points of every image: int64 cells ``[N, points]``, or with ``read=bilinear`` float (x, y) ``[N, points, 2]``.

    ``share``: the images are these rows of a larger batch; random numbers are drawn for the whole batch.
    """
    n, height, width = shape
    share = BatchShare(0, n, n) if share is None else share
    if settings.method == "random" or depth is None:
        if settings.read == "bilinear":
            return torch.rand(share.total, points, 2, generator=generator)[share.rows] * 2 - 1
        return random_cells(share, height * width, points, generator)
    return as_read(farthest_cells(depth, points, settings, generator, share), (height, width), settings)


def as_read(cells: Tensor, grid: tuple[int, int], settings: SamplingConfig) -> Tensor:  # [N, P] -> [N, P] or [N, P, 2]
    """Sampled cells unchanged or, with ``read=bilinear``, as coordinates in raster order, as in the released code."""
    if settings.read == "cells":
        return cells
    return released_coordinates(cells.sort(dim=1).values, *grid, settings.transpose)
