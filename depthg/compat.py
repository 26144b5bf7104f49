"""Drop-in for STEGO's ``ContrastiveCorrelationLoss``: the same call, draws and results, without its large tensors.

STEGO is MIT-licensed (Hamilton et al., 2022); this is an independent implementation of its class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from depthg.kernels import correlation_loss, sample_points

ATTRIBUTES = (
    "pointwise",
    "zero_clamp",
    "stabalize",
    "feature_samples",
    "neg_samples",
    "use_salience",
    "pos_intra_shift",
    "pos_inter_shift",
    "neg_inter_shift",
)


class ContrastiveCorrelationLoss(nn.Module):
    """STEGO's loss on feature and code maps, as a drop-in replacement.

    ``cfg`` is any object with STEGO's attributes: ``pointwise`` (spatial centring), ``zero_clamp``, ``stabalize``
    (similarities above 0.8 count as 0.8), ``feature_samples`` (points per side), ``neg_samples`` (draws),
    ``use_salience``, ``pos_intra_shift``, ``pos_inter_shift``, ``neg_inter_shift``. They are read at every call, so
    code that changes them during training keeps working.

    Random numbers are drawn as in the original and in its order, so equal seeds give equal losses: ``coords1`` then
    ``coords2`` uniform in [-1, 1], then one permutation per negative draw. All negatives are read at ``coords2``.

    Raises:
        ValueError: ``cfg`` lacks an attribute.
        NotImplementedError: ``cfg.use_salience`` is set.
    """

    def __init__(self, cfg: Any, *, impl: str = "auto") -> None:
        super().__init__()
        missing = [name for name in ATTRIBUTES if not hasattr(cfg, name)]
        if missing:
            raise ValueError(f"cfg lacks {', '.join(missing)}; it needs {', '.join(ATTRIBUTES)}")
        if cfg.use_salience:
            raise NotImplementedError("salience sampling is not supported; set use_salience=False")
        self.cfg = cfg
        self.impl = impl

    def forward(
        self,
        orig_feats: Tensor,  # [N, C, H, W]
        orig_feats_pos: Tensor,  # [N, C, H, W]
        orig_salience: Tensor | None,  # not used
        orig_salience_pos: Tensor | None,  # not used
        orig_code: Tensor,  # [N, K, H', W']
        orig_code_pos: Tensor,  # [N, K, H', W']
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Losses and mean similarities of the image with itself, with its positive and with the negatives.

        Returns:
            ``(self loss, self similarity, positive loss, positive similarity, negative loss, negative similarity)`` as
            0-dim tensors. The original returns tensors with five dimensions for the caller to average; ``.mean()``
            works on both. Similarities are detached.
        """
        n, side, device = orig_feats.shape[0], self.cfg.feature_samples, orig_feats.device
        coords1 = torch.rand([n, side, side, 2], device=device).mul_(2).sub_(1).flatten(1, 2)
        coords2 = torch.rand([n, side, side, 2], device=device).mul_(2).sub_(1).flatten(1, 2)
        draws = [_draw(n, device) for _ in range(self.cfg.neg_samples)]
        index = torch.stack(draws) if draws else coords1.new_zeros((0, n), dtype=torch.int64)
        with torch.no_grad():
            feats, feats_pos = self._read(orig_feats, coords1), self._read(orig_feats_pos, coords2)
            feats_neg = self._negatives(orig_feats, coords2, index)
        codes, codes_pos = self._read(orig_code, coords1), self._read(orig_code_pos, coords2)
        codes_neg = self._negatives(orig_code, coords2, index)
        cfg = self.cfg
        options: dict[str, Any] = {
            "center": bool(cfg.pointwise),
            "clamp": bool(cfg.zero_clamp),
            "max_similarity": 0.8 if cfg.stabalize else None,
            "impl": self.impl,
        }
        own = correlation_loss(feats, feats, codes, codes, cfg.pos_intra_shift, **options)
        near = correlation_loss(feats, feats_pos, codes, codes_pos, cfg.pos_inter_shift, **options)
        rows = torch.arange(index.numel(), device=device).view_as(index)
        far = correlation_loss(feats, feats_neg, codes, codes_neg, cfg.neg_inter_shift, index_b=rows, **options)
        return (*own, *near, *far)

    def _read(self, maps: Tensor, coords: Tensor) -> Tensor:  # [N, C, H, W], [N, P, 2] -> [N, P, C]
        return sample_points(maps, coords.to(maps.dtype), align_corners=True, impl=self.impl)

    def _negatives(self, maps: Tensor, coords: Tensor, index: Tensor) -> Tensor:  # -> [R N, P, C]
        """Reads image ``index[r, n]`` of draw r at the points of image n, so every pair has separate vectors."""
        points = coords.to(maps.dtype).repeat(len(index), 1, 1)
        return sample_points(maps, points, index=index.flatten(), align_corners=True, impl=self.impl)


def _draw(n: int, device: torch.device) -> Tensor:
    """A permutation with its fixed points shifted by one; not a permutation any more, as in the original."""
    index = torch.randperm(n, device=device)
    index[index == torch.arange(n, device=device)] += 1
    return index % n
