"""Losses as modules: a module holds the options, ``depthg.kernels`` computes the loss.

criterion = FeatureCorrelation(shift=0.08)
loss = criterion(feats_a, feats_b, codes_a, codes_b).loss
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from depthg import kernels
from depthg.kernels import CorrelationTerm, DepthGLoss, LossSettings


class FeatureCorrelation(nn.Module):
    """``kernels.correlation_loss`` with fixed options; Eq. 2."""

    def __init__(
        self,
        shift: float,
        *,
        center: bool = True,
        clamp: bool = True,
        max_similarity: float | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        self.shift = shift
        self.options: dict[str, Any] = {
            "center": center,
            "clamp": clamp,
            "max_similarity": max_similarity,
            "impl": impl,
        }

    def forward(
        self,
        feats_a: Tensor,  # [N, P, C]
        feats_b: Tensor,  # [M, Q, C]
        codes_a: Tensor,  # [N, P, K]
        codes_b: Tensor,  # [M, Q, K]
        index_b: Tensor | None = None,  # [R, N] int64
    ) -> CorrelationTerm:
        return kernels.correlation_loss(feats_a, feats_b, codes_a, codes_b, self.shift, index_b=index_b, **self.options)

    def extra_repr(self) -> str:
        return f"shift={self.shift}, " + ", ".join(f"{k}={v!r}" for k, v in self.options.items())


class DepthCorrelation(nn.Module):
    """``kernels.depth_correlation_loss`` with fixed options; Eq. 6."""

    def __init__(
        self,
        shift: float,
        *,
        relation: str = "product",
        bandwidth: float = 0.1,
        clamp: bool = True,
        max_similarity: float | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        self.shift = shift
        self.options: dict[str, Any] = {
            "relation": relation,
            "bandwidth": bandwidth,
            "clamp": clamp,
            "max_similarity": max_similarity,
            "impl": impl,
        }

    def forward(
        self,
        codes_a: Tensor,  # [N, P, K]
        codes_b: Tensor,  # [N, Q, K]
        depth_a: Tensor,  # [N, P], or [N, P, D] for euclidean and normals
        depth_b: Tensor,  # [N, Q], likewise
    ) -> CorrelationTerm:
        return kernels.depth_correlation_loss(codes_a, codes_b, depth_a, depth_b, self.shift, **self.options)

    def extra_repr(self) -> str:
        return f"shift={self.shift}, " + ", ".join(f"{k}={v!r}" for k, v in self.options.items())


class DepthGuidedLoss(nn.Module):
    """``kernels.depthg_loss``: all terms of Eq. 7. ``settings`` may be replaced between steps, e.g. by a schedule."""

    def __init__(self, settings: LossSettings | None = None, *, impl: str = "auto") -> None:
        super().__init__()
        self.settings = LossSettings() if settings is None else settings
        self.impl = impl

    def forward(
        self,
        feats: Tensor,  # [N, P, C]
        codes: Tensor,  # [N, P, K]
        feats_neighbour: Tensor,  # [N, Q, C]
        codes_neighbour: Tensor,  # [N, Q, K]
        negatives: Tensor,  # [R, N] int64
        **optional: Any,
    ) -> DepthGLoss:
        """The loss; ``optional`` are keyword arguments of ``kernels.depthg_loss``: depth, another crop, points ..."""
        return kernels.depthg_loss(
            feats, codes, feats_neighbour, codes_neighbour, negatives, self.settings, impl=self.impl, **optional
        )

    def extra_repr(self) -> str:
        return f"{self.settings}, impl={self.impl!r}"


class NTXent(nn.Module):
    """``kernels.nt_xent_loss`` with a fixed temperature; the contrastive objective of Sec. 3.3."""

    def __init__(self, temperature: float = 0.5, *, impl: str = "auto") -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature
        self.impl = impl

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:  # [N, K], [N, K] -> 0-dim
        return kernels.nt_xent_loss(z_a, z_b, self.temperature, impl=self.impl)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, impl={self.impl!r}"
