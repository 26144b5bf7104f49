"""Sampled points of an image: integer cells (paper) or coordinates in [-1, 1] (released code)."""

from __future__ import annotations

import torch
from torch import Tensor

from depthg.config.schema import SamplingConfig
from depthg.kernels import farthest_point_sample, farthest_point_sample_depth, unproject
from depthg.kernels.released import released_cloud, released_coordinates
from depthg.runtime.processes import BatchShare


def random_cells(
    share: BatchShare | int,
    n_cells: int,
    points: int,
    generator: torch.Generator | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Distinct random cells of each image, int64 ``[images, points]``, for a number of images or a share of a batch.

    Cells that are not ``valid`` (bool ``[images, n_cells]``) are taken only where too few others are there.

    Raises:
        ValueError: more points than cells.
    """
    share = BatchShare(0, share, share) if isinstance(share, int) else share
    if points > n_cells:
        raise ValueError(f"{points} points do not fit a feature map of {n_cells} cells; lower sampling.points")
    draws = torch.rand(share.total, n_cells, generator=generator)[share.rows]
    return (draws if valid is None else draws - (~valid).float()).topk(points, dim=1).indices


def random_coordinates(
    share: BatchShare, grid: tuple[int, int], points: int, generator: torch.Generator | None, valid: Tensor | None
) -> Tensor:
    """Random coordinates of each image, float32 ``[images, points, 2]`` in [-1, 1].

    Those nearest to a cell that is not ``valid`` (bool ``[images, h*w]``) move to the centre of a random valid one.
    """
    at = torch.rand(share.total, points, 2, generator=generator)[share.rows] * 2 - 1
    if valid is None:
        return at
    size = torch.tensor(grid[::-1]) - 1  # x counts columns; coordinates -1 and 1 are the centres of the outer cells
    place = (at + 1) / 2 * size
    column, row = place.round().long().unbind(-1)
    cells, counts = row * grid[1] + column, valid.sum(1, keepdim=True)
    part = (place[..., 0] - column + 0.5).clamp(0, 1 - 1e-6)  # inside the cell: a random number once more
    ranked = (~valid).byte().argsort(dim=1, stable=True)  # valid cells first
    moved = ranked.gather(1, (part * counts).long())
    centre = torch.stack([moved % grid[1], moved // grid[1]], -1) * 2 / size.clamp(min=1) - 1
    return torch.where(valid.gather(1, cells)[..., None], at, centre)


def farthest_cells(
    depth: Tensor,
    points: int,
    settings: SamplingConfig,
    generator: torch.Generator | None,
    share: BatchShare | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Farthest point sampling of the unprojected depth ``[N, H, W]``: cells, int64 ``[N, points]``, in picking order.

    Cells of unknown depth (NaN) come last, in random order: they are picked where too few are known. Of those the ones
    that are not ``valid`` (bool ``[N, H * W]``) are the very last.

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
    if not depth.sum().isnan():
        return _farthest(depth, points, settings, start)
    known = ~depth.flatten(1).isnan()
    dense = known.all(1)
    starts = torch.full((n,), start, device=depth.device) if isinstance(start, int) else start
    cells = torch.empty(n, points, dtype=torch.int64, device=depth.device)
    if dense.any():
        cells[dense] = _farthest(depth[dense], points, settings, starts[dense])
    rest = known if valid is None else valid
    cells[~dense] = _farthest_known(depth[~dense], known[~dense], rest[~dense], points, settings, starts[~dense])
    return cells


def _farthest(depth: Tensor, points: int, settings: SamplingConfig, start: int | Tensor) -> Tensor:  # [N, points]
    if settings.unprojection == "released":
        return farthest_point_sample(released_cloud(depth), points, start=start)
    return farthest_point_sample_depth(depth, points, fov_deg=settings.fov_deg, start=start)


def _farthest_known(
    depth: Tensor,  # [N, H, W], NaN = unknown
    known: Tensor,  # bool [N, H * W]
    valid: Tensor,  # bool [N, H * W]; the others are the last of those that are not known
    points: int,
    settings: SamplingConfig,
    starts: Tensor,  # int64 [N]
) -> Tensor:  # int64 [N, points]
    """Farthest known cells of each image, then unknown ones in a random order that follows from the image's start.

    Starts count among all cells, and the first pick lies at the same share of the known ones.
    """
    filled, n = depth.nan_to_num(nan=0.0), known.shape[1]
    cloud = released_cloud(filled) if settings.unprojection == "released" else unproject(filled, settings.fov_deg)
    counts, order = known.sum(1), (~known).byte().argsort(dim=1, stable=True)  # the known cells first, in their order
    cloud, first = cloud.gather(1, order[..., None].expand(-1, -1, 3)), starts * counts // n
    cells, enough = torch.empty(len(depth), points, dtype=torch.int64, device=depth.device), counts >= points
    if enough.any():
        picks = farthest_point_sample(cloud[enough], points, start=first[enough], lengths=counts[enough])
        cells[enough] = order[enough].gather(1, picks)
    for image in (~enough).nonzero()[:, 0].tolist():
        count, own = int(counts[image]), order[image]
        if count:
            picks = farthest_point_sample(cloud[image, None, :count], count, start=int(first[image]))
            cells[image, :count] = own[picks[0]]
        shuffled = torch.randperm(n - count, generator=torch.Generator().manual_seed(int(starts[image])))
        rest = own[count:][shuffled.to(own.device)]
        cells[image, count:] = rest[(~valid[image, rest]).byte().argsort(stable=True)][: points - count]
    return cells


def sample(
    depth: Tensor | None,  # [N, H, W] in [0, 1]; None: random points
    shape: tuple[int, int, int],  # N, H, W
    points: int,  # points per image
    settings: SamplingConfig,
    generator: torch.Generator | None = None,
    share: BatchShare | None = None,
    valid: Tensor | None = None,  # bool [N, H * W], cells with data
) -> Tensor:
    """Points of every image: int64 cells ``[N, points]``, or with ``read=bilinear`` float (x, y) ``[N, points, 2]``.

    ``share``: the images are these rows of a larger batch; random numbers are drawn for the whole batch.
    """
    n, height, width = shape
    share = BatchShare(0, n, n) if share is None else share
    if settings.method == "random" or depth is None:
        if settings.read == "bilinear":
            return random_coordinates(share, (height, width), points, generator, valid)
        return random_cells(share, height * width, points, generator, valid)
    return as_read(farthest_cells(depth, points, settings, generator, share, valid), (height, width), settings)


def as_read(cells: Tensor, grid: tuple[int, int], settings: SamplingConfig) -> Tensor:  # [N, P] -> [N, P] or [N, P, 2]
    """Sampled cells unchanged or, with ``read=bilinear``, as coordinates in raster order, as in the released code."""
    if settings.read == "cells":
        return cells
    return released_coordinates(cells.sort(dim=1).values, *grid, settings.transpose)
