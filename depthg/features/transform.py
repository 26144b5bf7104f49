"""Processing after the frozen backbone: standardising, PCA, rounding for storage, and channel dropout."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from depthg.backbones import up_sampled
from depthg.kernels.upsampling import sum_of_stages
from depthg.runtime.device import doubled
from depthg.runtime.processes import BatchShare

# Backbone output [batch, C, h, w] of some views, in order: maps(views, batch)
Maps = Callable[[Sequence[int] | np.ndarray, int], Iterator[Tensor]]
CACHED_ROWS = 2048  # 1.5 MB of ViT-S features
FIT_VALUES = 2**24  # values per step of fitting a transform: 64 MiB, and three times 128 MiB in float64 besides
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class FeatureTransform(nn.Module):
    """Standardises each channel, L2-normalises each stage of a hypercolumn, projects to fewer dimensions.

    Args:
        stages: channels of each stage; their sum is C.
        pca: output dimensions D; 0: no projection (D = C).
        standardize: False: the transform is the identity (``pca`` = 0) or the projection alone.

    Raises:
        ValueError: ``pca`` exceeds C.
    """

    mean: Tensor  # [C]
    scale: Tensor  # [C]
    basis: Tensor  # [C, D]

    def __init__(self, stages: tuple[int, ...], pca: int = 0, standardize: bool = True):
        super().__init__()
        channels = sum(stages)
        if pca > channels:
            raise ValueError(f"backbone.pca={pca} exceeds the {channels} feature channels")
        self.stages, self.standardize = tuple(stages), standardize
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("basis", torch.zeros(channels, pca))

    @property
    def channels(self) -> int:
        return self.basis.shape[1] or self.mean.shape[0]

    @property
    def is_identity(self) -> bool:
        return not self.standardize and not self.basis.shape[1]

    def _stagewise(self, x: Tensor) -> Tensor:  # [..., C]
        if not self.standardize:
            return x
        x = (x - self.mean).mul_(self.scale)
        for stage in x.split(self.stages, dim=-1):  # in place: memory traffic dominates the cost
            square = (stage * stage).sum(-1, keepdim=True)
            stage.mul_(torch.where(square > 0, square, torch.inf).rsqrt())  # a zero vector stays zero
        return x

    def forward(self, x: Tensor) -> Tensor:  # [..., C] -> [..., D]
        x = self._stagewise(x.float())
        return x @ self.basis if self.basis.shape[1] else x

    def of_stages(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:  # [B, C_s, h_s, w_s] -> [B, h*w, D]
        """``forward`` on the maps of all stages, up-sampled (bilinear) to ``size`` = (h, w) and concatenated.

        Up-sampling is linear, so a projection is applied to the coarse maps first, while they have few cells.
        """
        if not self.basis.shape[1]:
            parts = [up_sampled(m, size) for m in maps]
            whole = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
            return self(whole.flatten(2).transpose(1, 2))
        vectors = [m.permute(0, 2, 3, 1) for m in maps]
        if self.standardize:
            triples = zip(vectors, self.mean.split(self.stages), self.scale.split(self.stages), strict=True)
            vectors = [(x - mean) * scale for x, mean, scale in triples]
        values = [x @ basis for x, basis in zip(vectors, self.basis.split(self.stages), strict=True)]
        return sum_of_stages(values, vectors if self.standardize else None, size).flatten(1, 2)

    def fit(self, chunks: Callable[[], Iterator[Tensor]]) -> FeatureTransform:
        """Fits mean and scale, then the basis (leading eigenvectors of the second moment) on ``[rows, C]`` chunks.

        The chunks are on the device of the transform. Each step processes at most about ``FIT_VALUES`` values.
        """
        rows = max(1, FIT_VALUES // len(self.mean))
        if self.standardize:
            count, total, square = 0, torch.zeros(()), torch.zeros(())
            for x in (part for chunk in chunks() for part in chunk.split(rows)):
                x = doubled(x)
                count, total, square = count + len(x), total + x.sum(0), square + (x * x).sum(0)
            mean = total / count
            deviation = (square / count - mean**2).clamp(min=0).sqrt()
            self.mean.copy_(mean)
            self.scale.copy_(torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), 0.0))
        if self.basis.shape[1]:
            moment = doubled(self.mean.new_zeros(len(self.mean), len(self.mean)))
            for x in (part for chunk in chunks() for part in chunk.split(rows)):
                x = self._stagewise(x.float())
                moment += doubled(x.T @ x)
            vectors = torch.linalg.eigh(moment.cpu()).eigenvectors.flip(1)[:, : self.basis.shape[1]]
            self.basis.copy_(vectors * vectors.sum(0).sign())
        return self


def stored(maps: Tensor, transform: FeatureTransform, dtype: torch.dtype) -> Tensor:  # [B, C, h, w] -> [B, h*w, D]
    """Features as the cache stores them, on the CPU: rounds the backbone output, applies the transform, rounds again.

    ``maps`` and ``transform`` are on the same device.

    Raises:
        ValueError: a value is NaN, or beyond the range of ``dtype``.
    """
    return transform_stored(round_maps(maps, dtype), transform).cpu()


def round_maps(maps: Tensor, dtype: torch.dtype) -> Tensor:  # [B, C, h, w] -> [B, h*w, C]
    """Backbone output with channels last, cast to ``dtype`` and checked to be finite."""
    return _finite(maps.flatten(2).transpose(1, 2).to(dtype).contiguous())


def transform_stored(rows: Tensor, transform: FeatureTransform) -> Tensor:  # [B, h*w, C] -> [B, h*w, D], same dtype
    """Applies the transform to rounded backbone output and rounds the result to the same dtype."""
    return rows if transform.is_identity else _finite(transform(rows).to(rows.dtype))


def _finite(rows: Tensor) -> Tensor:
    if not bool(rows.isfinite().all()):
        name = str(rows.dtype).removeprefix("torch.")
        raise ValueError(
            f"the backbone gives features that are NaN or beyond the range of {name}; check backbone.weights"
            + ("" if rows.dtype == torch.bfloat16 else ", or use features.dtype=bfloat16")
        )
    return rows


def disk_dtype(dtype: torch.dtype) -> np.dtype:
    """The numpy dtype of stored features: float16, or uint16 for the bits of bfloat16, which numpy lacks."""
    return np.dtype(np.uint16 if dtype == torch.bfloat16 else np.float16)


def to_disk(rows: Tensor) -> np.ndarray:
    """Features as a numpy array for storage: float16, or the bits of bfloat16 as uint16."""
    rows = rows.cpu()
    return rows.view(torch.uint16).numpy() if rows.dtype == torch.bfloat16 else rows.numpy()


def from_disk(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """A tensor that shares the bits of a stored array; do not write to it if the array is read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array).view(dtype)


def channel_dropout(
    x: Tensor,  # [N, P, C]
    rate: float,
    generator: torch.Generator | None = None,
    share: BatchShare | None = None,
) -> Tensor:
    """Drops whole channels of an image (Dropout2d on channels-last points), scaled by ``1 / (1 - rate)``.

    ``share``: the images are these rows of a larger batch; the mask is drawn for the whole batch.
    """
    if rate == 0:
        return x
    images = x.shape[0] if share is None else share.total
    keep = torch.rand(images, 1, x.shape[2], device=x.device, generator=generator) >= rate
    keep = keep if share is None else keep[share.rows]
    return x * (keep / (1 - rate)).to(x.dtype)
