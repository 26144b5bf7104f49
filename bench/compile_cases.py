"""The calls that ``bench/compile.py`` compiles: public functions at the shapes of ``bench/loss.py`` and some others.

Inputs are zeros, since nothing is computed. Each case is a function of the input dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from depthg import kernels
from depthg.kernels import LossSettings

TYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PAPER_STEP = "paper step (ViT-S)"
SAME_CLASS = [(16, 100, 380, 66), (7, 49, 321, 80), (1, 128, 384, 65)]  # N, P, C, K, all padded as (32, 121, 384, 70)
HALVES = (torch.float16, torch.bfloat16)


def empty(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.zeros(*shape, dtype=dtype).requires_grad_(grad)


def loss_case(
    n: int, p: int, c: int, k: int, *, cells: int = 28, draws: int = 5, relation: str = "product", depth: bool = True,
    grad: bool = True, wide_feats: bool = False, bank: bool = False,
) -> Callable[[torch.dtype], None]:  # fmt: skip
    """Eq. 7 and its gradients, from maps of ``cells`` x ``cells`` cells, or from vectors at the points if 0.

    ``wide_feats``: float32 features with codes of the case's dtype. ``bank``: negatives from separate tensors.
    """

    def run(dtype: torch.dtype) -> None:
        s = LossSettings(depth_weight=0.19, depth_shift=0.03, relation=relation)
        size = (cells, cells) if cells else (p,)
        make = lambda channels, kind, need=False: given(n, channels, size, kind, need)  # noqa: E731
        wide = torch.float32 if wide_feats else dtype
        tensors = [make(c, wide), make(k, dtype, grad), make(c, wide), make(k, dtype, grad)]
        negatives = torch.zeros(draws, n, dtype=torch.int64)
        far = {"feats_negative": empty(n, p, c, dtype=wide), "codes_negative": empty(n, p, k, dtype=dtype, grad=grad)}
        more = far if bank else {}
        if cells:
            u = empty(n, 1, cells, cells) if depth else None
            total = from_maps(tensors, u, empty(n, p, 2), empty(n, p, 2), negatives, s)
        else:
            vector = (3,) if relation in ("euclidean", "normals") else ()
            u = empty(n, p, *vector, dtype=dtype) if depth else None
            total = kernels.depthg_loss(*tensors, negatives, s, depth=u, **more, impl="triton").total
        if grad:
            total.backward()

    return run


def given(n: int, channels: int, size: tuple[int, ...], dtype: torch.dtype, grad: bool) -> Tensor:
    """Maps [N, channels, H, W], or vectors [N, P, channels] if ``size`` is (P,)."""
    return empty(*((n, channels, *size) if len(size) == 2 else (n, *size, channels)), dtype=dtype, grad=grad)


def from_maps(
    maps: list[Tensor], depth: Tensor | None, at: Tensor, near_at: Tensor, negatives: Tensor, settings: LossSettings
) -> Tensor:
    """The loss of maps [N, C, H, W] read at coordinates [N, P, 2]."""
    options = {"depth": depth, "points": at, "points_neighbour": near_at, "impl": "triton"}
    return kernels.depthg_loss(*maps, negatives, settings, **options).total


def drop_in(dtype: torch.dtype) -> None:
    """The drop-in for STEGO's class in ``depthg.compat``."""
    from depthg.compat import ContrastiveCorrelationLoss

    cfg = SimpleNamespace(
        pointwise=True, zero_clamp=True, stabalize=False, feature_samples=11, neg_samples=5, use_salience=False,
        pos_intra_shift=0.1, pos_inter_shift=0.1, neg_inter_shift=0.1,
    )  # fmt: skip
    feats, codes = empty(32, 384, 28, 28, dtype=dtype), empty(32, 70, 28, 28, dtype=dtype, grad=True)
    own, _, near, _, far, _ = ContrastiveCorrelationLoss(cfg)(feats, feats, None, None, codes, codes)
    (own.mean() + near.mean() + far.mean()).backward()


def one_term(center: bool, limit: float | None) -> Callable[[torch.dtype], None]:
    """``correlation_loss`` with negatives."""

    def run(dtype: torch.dtype) -> None:
        feats, codes = empty(32, 121, 384, dtype=dtype), empty(32, 121, 70, dtype=dtype, grad=True)
        index, other = torch.zeros(5, 32, dtype=torch.int64), empty(32, 121, 70, dtype=dtype, grad=True)
        options = {"index_b": index, "center": center, "max_similarity": limit, "impl": "triton"}
        kernels.correlation_loss(feats, feats.clone(), codes, other, 0.1, **options).loss.backward()

    return run


def depth_term(relation: str) -> Callable[[torch.dtype], None]:
    """``depth_correlation_loss`` of two crops."""

    def run(dtype: torch.dtype) -> None:
        codes, other = (empty(32, 121, 27, dtype=dtype, grad=True) for _ in range(2))
        shape = (32, 121, 3) if relation in ("euclidean", "normals") else (32, 121)
        u, v = empty(*shape, dtype=dtype), empty(*shape, dtype=dtype)
        kernels.depth_correlation_loss(codes, other, u, v, 0.1, relation=relation, impl="triton").loss.backward()

    return run


def nt_xent(views: int, k: int) -> Callable[[torch.dtype], None]:
    def run(dtype: torch.dtype) -> None:
        z = [empty(views // 2, k, dtype=dtype, grad=True) for _ in range(2)]
        kernels.nt_xent_loss(*z, 0.5, impl="triton").backward()

    return run


def histogram(n: int, p: int, c: int, bins: int) -> Callable[[torch.dtype], None]:
    def run(dtype: torch.dtype) -> None:
        x, index = empty(n, p, c, dtype=dtype), torch.zeros(2, n, dtype=torch.int64)
        kernels.correlation_histogram(x, x.clone(), bins, center=True, index_b=index, impl="triton")

    return run


def sampling(n: int, c: int, side: int, p: int) -> Callable[[torch.dtype], None]:
    """``sample_points`` at coordinates and at cells, with gradients."""

    def run(dtype: torch.dtype) -> None:
        maps = empty(n, c, side, side, dtype=dtype, grad=True)
        for points in (empty(n, p, 2), torch.zeros(n, p, dtype=torch.int64)):
            kernels.sample_points(maps, points, impl="triton").sum().backward()

    return run


def farthest(clouds: int, n: int, k: int) -> Callable[[torch.dtype], None]:
    def run(dtype: torch.dtype) -> None:
        kernels.farthest_point_sample(empty(clouds, n, 3, dtype=dtype), k, impl="triton")

    return run


def farthest_depth(maps: int, side: int, k: int) -> Callable[[torch.dtype], None]:
    def run(dtype: torch.dtype) -> None:
        kernels.farthest_point_sample_depth(empty(maps, side, side, dtype=dtype), k, impl="triton")

    return run


CASES: dict[str, Callable[[torch.dtype], None]] = {
    PAPER_STEP: loss_case(32, 121, 384, 70),
    "paper step (ViT-B)": loss_case(32, 144, 768, 90),
    "dense, N=8": loss_case(8, 784, 384, 70),
    "dense, N=32": loss_case(32, 1600, 384, 70, cells=40),
    "STEGO's class, drop-in": drop_in,
    "points given, N=32, P=121": loss_case(32, 121, 384, 70, cells=0),
    "points given, N=8, P=784": loss_case(8, 784, 384, 70, cells=0),
    "forward alone": loss_case(32, 121, 384, 70, grad=False),
    "without depth": loss_case(32, 121, 384, 70, depth=False),
    "normals": loss_case(32, 121, 384, 70, cells=0, relation="normals"),
    "gaussian": loss_case(32, 121, 384, 70, cells=0, relation="gaussian"),
    "euclidean, K=27": loss_case(32, 121, 384, 27, cells=0, relation="euclidean"),
    "K=100": loss_case(32, 121, 384, 100),
    "K=200": loss_case(8, 784, 384, 200),
    "features in float32": loss_case(32, 121, 384, 70, cells=0, wide_feats=True),
    "negatives of their own": loss_case(32, 121, 384, 70, cells=0, bank=True),
    "one of everything": loss_case(1, 1, 1, 1, cells=1, draws=1),
    "one term": one_term(True, None),
    "one term, limited": one_term(False, 0.9),
    "depth alone, product": depth_term("product"),
    "depth alone, normals": depth_term("normals"),
    "depth alone, gaussian": depth_term("gaussian"),
    "NT-Xent, 2N=512": nt_xent(512, 70),
    "NT-Xent, 2N=8192": nt_xent(8192, 128),
    "NT-Xent, 2N=65536": nt_xent(65536, 128),
    "NT-Xent, one pair": nt_xent(2, 1),
    "histogram, 1000 bins": histogram(8, 784, 384, 1000),
    "histogram, 4000 bins": histogram(8, 784, 384, 4000),
    "histogram, one of all": histogram(1, 1, 1, 1),
    "sample_points": sampling(32, 384, 28, 121),
    "FPS, 64 clouds of 784": farthest(64, 784, 121),
    "FPS, 8 clouds of 12544": farthest(8, 12544, 1024),
    "FPS, 100000 points": farthest(1, 100000, 64),
    "FPS, depth of 28 x 28": farthest_depth(32, 28, 121),
}
QUICK = (PAPER_STEP, "NT-Xent, 2N=8192", "histogram, 4000 bins")
