"""Drop-in for the loss class of STEGO and of DepthG: the same calls, draws and results, without its large tensors.

STEGO is MIT-licensed (Hamilton et al., 2022), DepthG (Sick et al., 2024) has no licence; this is an independent
implementation of both calls, held to the values that their classes give.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthg.kernels import checks, correlation_loss, depth_correlation_loss, farthest_point_sample, sample_points
from depthg.kernels.released import regular_grid, released_cloud, released_coordinates

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
DEPTH_ATTRIBUTES = ("depth_sampling", "depth_feat_correlation_loss", "depth_feat_shift")
FARTHEST = ("fps", "fps_depth_feat")  # the original samples by depth alone for both names
RANDOM = ("none", "random", None)


class ContrastiveCorrelationLoss(nn.Module):
    """The loss of STEGO (six arguments) and of DepthG (eight, with depth maps) on feature and code maps, as a drop-in.

    ``cfg`` is any object with STEGO's attributes: ``pointwise`` (spatial centring), ``zero_clamp``, ``stabalize``
    (similarities above 0.8 count as 0.8), ``feature_samples`` (points per side, S), ``neg_samples`` (draws),
    ``use_salience``, ``pos_intra_shift``, ``pos_inter_shift``, ``neg_inter_shift``. A call with depth maps also needs
    DepthG's: ``depth_sampling`` ("fps", or "none" for random points), ``depth_feat_correlation_loss`` (whether there is
    a depth term) and ``depth_feat_shift``. All are read at every call, so code that changes them during training keeps
    working.

    Random numbers are drawn as in the original and in its order, so equal seeds give equal losses. Points of the images
    and then of the positives are

    - uniform in [-1, 1], ``coords1`` then ``coords2``; or
    - with ``depth_sampling="fps"`` chosen by farthest point sampling of the depth maps, with no draw: depth is averaged
      to the size of the feature map, see ``kernels.released`` for the point cloud and the (transposed) coordinates; or
    - with ``use_salience``, whatever ``depth_sampling`` says, cells where the salience is not 0, drawn image by image
      with replacement, first of the images, then of the positives; where an image has none, any cell; ``coords1`` and
      ``coords2`` as above take the place of 10% of them, the same points for both. Coordinates are divided by the
      height on both axes: salience maps are taken to be square.

    Then follows one permutation per negative draw. All negatives are read at ``coords2``.

    The depth term takes D = 1 where depth is positive on both sides, else 0: depth normalised as a vector of one
    component. As in the original it is read on a regular S x S grid over the whole map, not at the points of the codes.

    What differs: results are 0-dim; points and distances are float32, also for float64 depth; farthest points may be
    combined with any other option; ``depth_sampling="simple"`` is not supported, and an unknown name is an error
    instead of random points.

    Args:
        cfg: the attributes above.
        impl: as in ``kernels.correlation_loss``; "cpp" reads float32 maps alone.

    Raises:
        ValueError: ``cfg`` lacks an attribute of STEGO's.
    """

    def __init__(self, cfg: Any, *, impl: str = "auto") -> None:
        super().__init__()
        _require(cfg, ATTRIBUTES, "it needs")
        self.cfg = cfg
        self.impl = impl

    def forward(
        self,
        orig_feats: Tensor,  # [N, C, H, W]
        orig_feats_pos: Tensor,  # [N, C, H, W]
        orig_salience: Tensor | None,  # [N, H'', W''], read with use_salience alone
        orig_salience_pos: Tensor | None,  # [N, H'', W'']
        orig_code: Tensor,  # [N, K, H', W']
        orig_code_pos: Tensor,  # [N, K, H', W']
        depth: Tensor | None = None,  # [N, 1, Y, X] or [N, Y, X], of any size, float
        depth_pos: Tensor | None = None,  # likewise; read with farthest point sampling alone
    ) -> tuple[Tensor, ...]:
        """Losses and mean similarities of the image with itself, its positive, the negatives, and the depth term.

        Returns:
            ``(self loss, self similarity, positive loss, positive similarity, negative loss, negative similarity)``,
            six 0-dim tensors, and with ``cfg.depth_feat_correlation_loss`` two more, ``(..., depth loss, mean D)``.
            The original returns some of them with five dimensions for the caller to average; ``.mean()`` works on both.
            Similarities and D are detached. Gradients flow to the codes.

        Raises:
            TypeError: a map is not floating point.
            ValueError: ``cfg`` asks for depth or salience maps that are not given, or lacks an attribute that they
                need; a shape or device does not fit; depth requires grad; fewer cells than points; or ``impl`` cannot
                run.
        """
        cfg, n, device = self.cfg, orig_feats.shape[0], orig_feats.device
        depth, depth_pos, with_term = self._depth(orig_feats, depth, depth_pos)
        coords1, coords2 = self._points(
            orig_feats, orig_feats_pos, (orig_salience, orig_salience_pos), depth, depth_pos
        )
        draws = [_draw(n, device) for _ in range(cfg.neg_samples)]
        index = torch.stack(draws) if draws else coords1.new_zeros((0, n), dtype=torch.int64)
        with torch.no_grad():
            feats, feats_pos = self._read(orig_feats, coords1), self._read(orig_feats_pos, coords2)
            feats_neg = self._negatives(orig_feats, coords2, index)
        codes, codes_pos = self._read(orig_code, coords1), self._read(orig_code_pos, coords2)
        codes_neg = self._negatives(orig_code, coords2, index)
        similarity: dict[str, Any] = {
            "clamp": bool(cfg.zero_clamp),
            "max_similarity": 0.8 if cfg.stabalize else None,
            "impl": self.impl,
        }
        options = {"center": bool(cfg.pointwise), **similarity}
        own = correlation_loss(feats, feats, codes, codes, cfg.pos_intra_shift, **options)
        near = correlation_loss(feats, feats_pos, codes, codes_pos, cfg.pos_inter_shift, **options)
        rows = torch.arange(index.numel(), device=device).view_as(index)
        far = correlation_loss(feats, feats_neg, codes, codes_neg, cfg.neg_inter_shift, index_b=rows, **options)
        if not with_term:
            return (*own, *near, *far)
        unit = _unit_grid(depth, cfg.feature_samples)
        guide = depth_correlation_loss(codes, codes, unit, unit, cfg.depth_feat_shift, **similarity)
        return (*own, *near, *far, guide.loss, unit.mean(1).square().mean())

    def _depth(
        self, feats: Tensor, depth: Tensor | None, depth_pos: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, bool]:
        """The depth maps that ``cfg`` asks for as float32 [N, 1, Y, X], and whether there is a depth term.

        The positives' map is there for farthest point sampling alone.
        """
        cfg = self.cfg
        if depth is not None or depth_pos is not None:
            _require(cfg, DEPTH_ATTRIBUTES, "a call with depth maps needs")
        with_term = bool(getattr(cfg, "depth_feat_correlation_loss", False))
        sampling = None if cfg.use_salience else getattr(cfg, "depth_sampling", None)
        if sampling not in (*FARTHEST, *RANDOM):
            raise ValueError(f"depth_sampling={sampling!r} is not supported; use 'fps', or 'none' for random points")
        farthest = sampling in FARTHEST
        why = f"depth_sampling={sampling!r}" if farthest else "depth_feat_correlation_loss=True"
        first = _map("depth", depth, feats, why) if farthest or with_term else None
        return first, _map("depth_pos", depth_pos, feats, why) if farthest else None, with_term

    def _points(
        self, feats: Tensor, feats_pos: Tensor, salience: tuple[Tensor | None, Tensor | None],
        depth: Tensor | None, depth_pos: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Coordinates (x, y) in [-1, 1] of both sides, float32 [N, S * S, 2]."""
        n, side, device = feats.shape[0], self.cfg.feature_samples, feats.device
        if depth_pos is not None:
            return _farthest(depth, feats, side), _farthest(depth_pos, feats_pos, side)

        def uniform() -> Tensor:
            return torch.rand([n, side, side, 2], device=device).mul_(2).sub_(1).flatten(1, 2)

        if not self.cfg.use_salience:
            return uniform(), uniform()
        maps = [_salience(*x, feats) for x in zip(("orig_salience", "orig_salience_pos"), salience, strict=True)]
        salient = [_salient_points(x, side) for x in maps]
        uniforms = [uniform(), uniform()]
        kept = (torch.rand([n, side, side], device=device) > 0.1).flatten(1)[..., None]
        first, second = (torch.where(kept, x, y) for x, y in zip(salient, uniforms, strict=True))
        return first, second

    def _read(self, maps: Tensor, coords: Tensor) -> Tensor:  # [N, C, H, W], float32 [N, P, 2] -> [N, P, C]
        return sample_points(maps, coords, align_corners=True, impl=self.impl)

    def _negatives(self, maps: Tensor, coords: Tensor, index: Tensor) -> Tensor:  # -> [R N, P, C]
        """Reads image ``index[r, n]`` of draw r at the points of image n, so every pair has separate vectors."""
        points = coords.repeat(len(index), 1, 1)
        return sample_points(maps, points, index=index.flatten(), align_corners=True, impl=self.impl)


def _require(cfg: Any, names: tuple[str, ...], who: str) -> None:
    missing = [name for name in names if not hasattr(cfg, name)]
    if missing:
        raise ValueError(f"cfg lacks {', '.join(missing)}; {who} {', '.join(names)}")


def _map(name: str, depth: Tensor | None, feats: Tensor, why: str) -> Tensor:
    """A depth map [N, 1, Y, X] or [N, Y, X] as float32 [N, 1, Y, X], checked."""
    if depth is None:
        raise ValueError(f"{why} needs depth maps, but {name} is None; pass depth and depth_pos, or turn it off")
    checks.check_floats(orig_feats=feats, **{name: depth})
    checks.check_frozen(**{name: depth})
    maps = depth[:, None] if depth.ndim == 3 else depth
    if maps.ndim != 4 or maps.shape[:2] != (feats.shape[0], 1) or 0 in maps.shape[2:]:
        n = feats.shape[0]
        raise ValueError(f"{name} must be [{n}, 1, height, width] or [{n}, height, width], got {checks.shape(depth)}")
    return maps.float()


def _farthest(depth: Tensor, feats: Tensor, side: int) -> Tensor:  # [N, 1, Y, X] -> [N, side * side, 2]
    """Farthest points at the size of the feature map, in raster order, as the coordinates that the original reads."""
    height, width = feats.shape[2:]
    if side * side > height * width:
        raise ValueError(
            f"feature_samples={side} asks for {side * side} points of a map of {height} x {width} cells; lower it"
        )
    cloud = released_cloud(F.adaptive_avg_pool2d(depth, (height, width))[:, 0])
    cells = farthest_point_sample(cloud, side * side).sort(1).values
    return released_coordinates(cells, height, width, transpose=True)


def _unit_grid(depth: Tensor, side: int) -> Tensor:  # [N, 1, Y, X] -> [N, side * side]
    """Depth on a regular grid as vectors of one component, normalised: 1 where it is positive, 0 where it is 0."""
    return F.normalize(regular_grid(depth[:, 0], side)[:, None], dim=1, eps=1e-10)[:, 0]


def _salience(name: str, salience: Tensor | None, feats: Tensor) -> Tensor:
    if salience is None:
        raise ValueError(f"use_salience=True needs salience maps, but {name} is None; pass them or use_salience=False")
    n = feats.shape[0]
    if salience.ndim != 3 or salience.shape[0] != n or 0 in salience.shape:
        raise ValueError(f"{name} must be [{n}, height, width], got {checks.shape(salience)}; squeeze a channel axis")
    if salience.device != feats.device:
        raise ValueError(f"{name} is on {salience.device} but orig_feats is on {feats.device}; move them to one device")
    return salience


def _salient_points(salience: Tensor, side: int) -> Tensor:  # [N, H, W] -> [N, side * side, 2]
    """Random cells where the salience is not 0, of every image in turn, as (x, y)."""
    height, points, found = salience.shape[1], side * side, []
    for image in salience:
        cells = image.nonzero()  # (row, column)
        if len(cells):  # drawn on the default device, as in the original
            found.append(cells[torch.randint(len(cells), (points,)).to(cells.device)])
        else:
            found.append(torch.randint(height, (points, 2), device=cells.device))
    return (torch.stack(found).float() / height * 2 - 1).flip(-1)


def _draw(n: int, device: torch.device) -> Tensor:
    """A permutation with its fixed points shifted by one; not a permutation any more, as in the original."""
    index = torch.randperm(n, device=device)
    return (index + (index == torch.arange(n, device=device))) % n
