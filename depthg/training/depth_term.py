"""Inputs of the depth term: values for each relation at the sampled points, and the mean of D."""

from __future__ import annotations

import torch
from torch import Tensor

from depthg.data.known import mean_with_holes
from depthg.kernels import sample_points, unproject
from depthg.kernels.reference import depth_relation, normalize


def cloud(depth: Tensor, grid: tuple[int, int], fov_deg: float) -> Tensor:  # [N, h*w] in [0, 1] -> [N, h*w, 3]
    """The point cloud of a mapped depth map, in units of mapped depth."""
    return unproject(depth.view(-1, *grid), fov_deg)


def inclination(normals: Tensor) -> Tensor:  # [..., 4] -> [..., 3]
    """Normals without their azimuth: length of the horizontal part, vertical part, sky flag.

    The cosine of two such vectors is high if both surfaces are ground, both walls, or both sky. Walls on opposite sides
    of a street have opposite normals, which ``normals`` would push apart; here they agree. Assumes a roughly level
    camera.
    """
    horizontal = torch.hypot(normals[..., 0], normals[..., 2])
    return torch.stack([horizontal, normals[..., 1], normals[..., 3]], dim=-1)


def kernel_relation(relation: str) -> str:
    """The relation of ``depthg.kernels`` that computes a configured relation; inclinations are compared as normals."""
    return "normals" if relation == "inclination" else relation


def at_points(
    values: Tensor,  # [N, h*w] or [N, h*w, D]
    points: Tensor,
    grid: tuple[int, int],
    holes: bool = False,
) -> Tensor:
    """Values ``[N, P]`` or ``[N, P, D]`` at integer cells ``[N, P]`` or coordinates ``[N, P, 2]``.

    ``holes``: some values are NaN; coordinates are then interpolated between those that are known.
    """
    maps = (values[..., None] if values.ndim == 2 else values).transpose(1, 2)
    maps = maps.reshape(*maps.shape[:2], *grid)
    if holes and points.ndim == 3:
        sampled = mean_with_holes(lambda x: sample_points(x, points), maps)
    else:
        sampled = sample_points(maps, points)
    return sampled[..., 0] if values.ndim == 2 else sampled


def mean_relation(depth_a: Tensor, depth_b: Tensor, relation: str, bandwidth: float) -> Tensor:  # 0-dim
    """Mean of the depth correlation tensor D over the batch, without forming D if it factorises."""
    if relation == "normals":
        return (normalize(depth_a).mean(1) * normalize(depth_b).mean(1)).sum(-1).mean()
    if relation in ("gaussian", "euclidean"):
        pairs = zip(depth_a.split(1), depth_b.split(1), strict=True)
        return torch.stack([depth_relation(a, b, relation, bandwidth).mean() for a, b in pairs]).mean()
    if relation == "centered":
        return depth_a.new_zeros(())  # a product of mean-free factors
    if relation == "unit":
        depth_a, depth_b = (depth_a > 0).to(depth_a.dtype), (depth_b > 0).to(depth_b.dtype)
    return (depth_a.mean(1) * depth_b.mean(1)).mean()
