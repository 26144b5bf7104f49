"""Cosine (spherical) k-means, for the k-means read-outs and for re-initialising the cluster probe."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from depthg.runtime.device import doubled, to_device

ROWS = 4096  # rows per block: the block stays in cache between the two products of an iteration
DEVICE_ROWS = 32768  # on a GPU, where each launch costs more; 35 MB of cosines for 27 clusters and 10 restarts


def cosine_kmeans(
    x: Tensor,  # [N, C]
    k: int,
    *,
    seed: int,
    n_init: int = 10,
    iterations: int = 50,
    tolerance: float = 1e-5,
) -> Tensor:  # [k, C]
    """Unit centroids that maximise ``mean_n max_j cos(x[n], centroid[j])``; the best of ``n_init`` restarts.

    All restarts run together, in the same passes over ``x``. Seeding is k-means++ with the cosine distance 1 - cos
    (half the squared distance of unit vectors). A cluster that loses all its points, or whose points sum to zero, moves
    to the point with the lowest cosine to its nearest centroid. Zero vectors have no direction and are ignored.

    Args:
        x: vectors, any floating dtype; half precision is computed in float32. Lengths do not matter.
        k: number of clusters.
        seed: seed of a separate CPU generator: the same seed gives the same result; the global state is unchanged.
        n_init: number of restarts.
        iterations: maximum iterations of a restart.
        tolerance: stop when no restart improves its mean cosine distance by more than this fraction.

    Returns:
        Unit-norm centroids on the device of ``x`` (float32, or float64 for float64 input). If ``x`` has fewer than k
        distinct directions, some centroids are equal.

    Raises:
        ValueError: shape not [N, C], an argument out of range, NaN or infinity, or fewer than k non-zero vectors.
        TypeError: ``x`` is not floating point.
    """
    x = _unit_rows(x, k)
    for name, value in (("n_init", n_init), ("iterations", iterations)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    centroids = _seed_centroids(x, k, n_init, torch.Generator().manual_seed(seed))
    previous = None
    for _ in range(iterations):
        sums, distance = _accumulate(x, centroids)
        # The distance is that of the centroids before their update; those are kept when nothing improves any more.
        if previous is not None and bool((previous - distance <= tolerance * previous).all()):
            break
        previous = distance
        centroids = _update(x, centroids, sums)
    else:
        distance = _accumulate(x, centroids)[1]
    return centroids[int(distance.argmin())]


def assign(
    x: Tensor,  # [..., C]
    centroids: Tensor,  # [k, C]
) -> Tensor:  # int64 [...]
    """Nearest centroid by cosine: ``argmax_j x . centroid[j]``, ties (and zero vectors) to the lowest j.

    Args:
        x: vectors, any floating dtype, any length.
        centroids: unit vectors, as ``cosine_kmeans`` returns them.

    Raises:
        ValueError: the shapes do not fit together.
    """
    if x.ndim < 1 or centroids.ndim != 2 or x.shape[-1] != centroids.shape[1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and centroids {tuple(centroids.shape)}; expected [..., C] and [k, C], same C"
        )
    weight = centroids.to(x.device).t()
    rows = _blocks(x.reshape(-1, x.shape[-1]))
    return torch.cat([(block.to(weight.dtype) @ weight).argmax(1) for block in rows]).reshape(x.shape[:-1])


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    return x.split(ROWS if x.is_cpu else DEVICE_ROWS)


def _unit_rows(x: Tensor, k: int) -> Tensor:
    """The non-zero rows of ``x`` as unit vectors in float32 or float64, after checking the arguments."""
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"x must be [N, C], got shape {tuple(x.shape)}; flatten maps to rows of C channels first")
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}; floating point features are needed")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    largest = torch.linalg.vector_norm(x, torch.inf, dim=1, keepdim=True)
    if not bool(torch.isfinite(largest).all()):
        row = int((~torch.isfinite(largest[:, 0])).nonzero()[0])
        raise ValueError(f"x holds NaN or infinity (first in row {row}); check the features or codes for overflow")
    used = largest[:, 0] > 0
    n_rows, n_used = x.shape[0], int(used.sum())
    if n_used < k:
        raise ValueError(f"k = {k} clusters need at least {k} vectors that are not zero, got {n_used} of {n_rows} rows")
    if n_used < n_rows:
        x, largest = x[used], largest[used]
    # Dividing by the largest entry first keeps the squares of very short or long vectors in range.
    return normalize(x / largest, dim=1)


def _seed_centroids(x: Tensor, k: int, n_init: int, generator: torch.Generator) -> Tensor:  # [n_init, k, C]
    """k-means++: each next seed is drawn with probability proportional to its distance to the nearest seed so far."""
    index = torch.randint(x.shape[0], (n_init,), generator=generator)
    seeds = [x[to_device(index, x.device)]]
    nearest = (1 - x @ seeds[0].t()).clamp_(min=0)  # [N, n_init]
    for _ in range(1, k):
        # Exponential race: the smallest e / w is row n with probability w_n / sum w. It needs no cumulative sum (which
        # has no deterministic CUDA kernel) and never draws a row of weight 0 unless all weights are 0.
        race = to_device(torch.empty(nearest.shape, dtype=x.dtype).exponential_(generator=generator), x.device)
        race = torch.where(nearest > 0, race / nearest, torch.inf)
        fallback = to_device(torch.randint(x.shape[0], (n_init,), generator=generator), x.device)
        value, index = race.min(0)
        seeds.append(x[torch.where(value.isinf(), fallback, index)])
        nearest = torch.minimum(nearest, (1 - x @ seeds[-1].t()).clamp_(min=0))
    return torch.stack(seeds, 1)


def _accumulate(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the members of every centroid [R, k, C] and the mean cosine distance of every restart [R]."""
    n_init, k, channels = centroids.shape
    weight = centroids.reshape(-1, channels)
    sums = x.new_zeros(n_init * k, channels)
    distance = doubled(torch.zeros(n_init, device=x.device))
    for block in _blocks(x):
        # Rows last: the maximum over k then runs over contiguous vectors.
        cosine = (weight @ block.t()).view(n_init, k, -1)
        best, member = cosine.max(1, keepdim=True)
        best = 1 - best
        distance += doubled(best.sum((1, 2))) if x.device.type == "mps" else best.sum((1, 2), dtype=torch.float64)
        chosen = cosine.zero_().scatter_(1, member, 1)
        sums.addmm_(chosen.view(n_init * k, -1), block)
    return sums.view(n_init, k, channels), distance / x.shape[0]


def _update(x: Tensor, centroids: Tensor, sums: Tensor) -> Tensor:
    """New unit centroids; those without a direction move to the points farthest from the centroids of their restart."""
    length = torch.linalg.vector_norm(sums, dim=2, keepdim=True)
    lost = length[..., 0] <= 1e-6
    updated = normalize(sums, dim=2)
    for restart in lost.any(1).nonzero().flatten().tolist():
        served = torch.cat([(block @ centroids[restart].t()).amax(1) for block in _blocks(x)])
        empty = lost[restart].nonzero().flatten()
        updated[restart, empty] = x[served.argsort(stable=True)[: len(empty)]]
    return updated
