"""One training step: its views, their sampled points, and the losses, as a pure function of the iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthg.config.schema import Config
from depthg.features.prepared import Prepared, grid_places
from depthg.features.reading import Features
from depthg.features.transform import channel_dropout
from depthg.kernels import LossSettings, correlation_histogram, depthg_loss, sample_points
from depthg.kernels.feature_means import feature_means
from depthg.model.heads import ClusterProbe, LinearProbe, SegmentationHead, codes_without_grad, linear_probe_loss
from depthg.runtime import processes
from depthg.runtime.device import to_device
from depthg.runtime.processes import BatchShare, share_of
from depthg.runtime.read_ahead import ReadAhead
from depthg.runtime.seeds import seed_of
from depthg.training.batches import Batch, announce, draw_batch, negative_pairs
from depthg.training.depth_term import at_points, cloud, inclination, kernel_relation, mean_relation
from depthg.training.kept_cells import KeptCells
from depthg.training.known_depth import mean_known_relation, with_known_depth
from depthg.training.sampling import as_read, farthest_cells, sample
from depthg.training.schedules import exponential_decay, piecewise_constant

HISTOGRAM_BINS, HISTOGRAM_RANGE = 4000, (-2.0, 2.0)
SHIFT_BATCHES = 12


def quantile_of(counts: Tensor, quantile: float) -> float:
    """A quantile of a histogram over ``HISTOGRAM_RANGE``: the centre of the bin that reaches it."""
    low, high = HISTOGRAM_RANGE
    share = counts.cumsum(0) / counts.sum()
    return low + (high - low) * (int((share < quantile).sum()) + 0.5) / len(counts)


class Model(torch.nn.Module):
    """The trained modules: head, linear probe (None without labels) and cluster probe."""

    def __init__(self, channels: int, dim: int, dropout: float, n_classes: int, n_clusters: int):
        super().__init__()
        self.head = SegmentationHead(channels, dim, dropout)
        self.cluster = ClusterProbe(dim, n_clusters)
        self.linear = LinearProbe(dim, n_classes) if n_classes else None  # last: labels change no other weight


class Step:
    """The losses of one optimiser step. All random numbers derive from ``(seed, iteration)``.

    With several processes, each computes its share of the batch; the mean of their losses is that of the whole batch.
    """

    def __init__(self, config: Config, data: Prepared, model: Model, device: torch.device, ahead: bool = True):
        self.config, self.data, self.model, self.device = config, data, model, device
        self.guided, self.ahead = data.depth is not None, ReadAhead() if ahead else None  # reads for the next step
        self.buffers: dict[str, Tensor] = {}
        self.kept = KeptCells(len(data.features), data.grid[0] * data.grid[1])
        self.shifts = (config.loss.self.shift, config.loss.neighbour.shift, config.loss.negative.shift)
        self.share = share_of(config.batch_size, "batch_size")
        self.joint = self.share is not None and config.loss.scope == "global"  # one batch over all processes

    def generator(self, *parts: object) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(self.config.seed, *parts))

    def rows(self, array: np.ndarray | Features, views: np.ndarray) -> Tensor:
        """Float32 rows of some views on the device."""
        if isinstance(array, Features):
            return array.rows(views, self.device)
        return to_device(torch.from_numpy(np.asarray(array[views])), self.device).float()

    def points(
        self, views: np.ndarray, iteration: int, generator: torch.Generator, share: BatchShare | None = None
    ) -> Tensor:
        """Sampled points of some views (of a share of a batch): cells ``[N, P]`` or coordinates ``[N, P, 2]``.

        Points that depend only on a view's depth (fps with a fixed start) are computed once and kept. Sampling runs on
        the CPU, where depth and features are read: the host would have to wait for points sampled on a GPU.
        """
        settings, grid = self.config.sampling, self.data.grid
        side = piecewise_constant(iteration, settings.points, settings.schedule)
        if not self.guided or settings.method != "fps" or settings.start == "random":
            depth = self.depth_maps(views) if self.guided and settings.method == "fps" else None
            valid = self.data.features.with_data(views)
            return sample(depth, (len(views), *grid), side * side, settings, generator, share, valid)

        def farthest(some: np.ndarray) -> Tensor:
            valid = self.data.features.with_data(some)
            return farthest_cells(self.depth_maps(some), side * side, settings, None, valid=valid)

        cells = self.kept.cells(views, side * side, farthest)
        return as_read(cells, grid, settings)

    def depth_maps(self, views: np.ndarray) -> Tensor:  # float32 [N, h, w] on the CPU
        return torch.from_numpy(np.asarray(self.data.depth[views])).float().view(-1, *self.data.grid)

    def gather(self, maps: Tensor, points: Tensor) -> Tensor:  # [N, h*w, C] -> [N, P, C]
        """Vectors at cells (exact) or coordinates (bilinear)."""
        points = to_device(points, self.device)
        if points.ndim == 2:
            return maps.gather(1, points[..., None].expand(-1, -1, maps.shape[2]))
        return sample_points(maps.transpose(1, 2).unflatten(2, self.data.grid), points)

    def forward(self, feats: Tensor) -> tuple[Tensor, Tensor]:  # [N, P, C] -> [N, P, C], [N, P, K]
        """Features (with the dropout that F is computed on) and codes of this process's part of the batch."""
        rate = self.config.head.dropout if self.config.loss.feature_dropout else 0.0
        dropped = channel_dropout(feats, rate, share=self.share)
        with self.autocast():
            codes = self.model.head(feats, self.share)
        return dropped.to(codes.dtype), codes

    @property
    def average(self) -> Callable[[Tensor], Tensor] | None:
        """Mean over the processes that share a batch, None where there is one batch per process."""
        return processes.average if self.joint else None

    def autocast(self) -> torch.autocast:
        """Context that computes the head's products in bfloat16 with ``precision=bfloat16``."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def read(self, maps: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Features and codes at points of feature maps ``[N, h*w, C]``.

        For cells the head runs only on the points. For coordinates it runs on the whole maps, and features and codes
        are interpolated.
        """
        if points.ndim == 2:
            return self.forward(self.gather(maps, points))
        feats, codes = (self.gather(values, points) for values in self.forward(maps))
        return feats, codes

    def depth_values(self, views: np.ndarray, points: Tensor, side: int) -> Tensor:
        """Values that the depth relation compares: ``[N, P]`` or ``[N, P, D]``, at the points or on a regular grid.

        They are NaN where depth is unknown.

        Raises:
            ValueError: the relation needs normals and there are none.
        """
        settings, holes = self.config.loss.depth, self.has_holes(views)
        if settings.relation in ("normals", "inclination"):
            if self.data.normals is None:
                raise ValueError(
                    f"loss.depth.relation={settings.relation} needs metric depth; depth.mapping=none gives no normals"
                )
            normals = self.rows(self.data.normals, views)
            normals = at_points(normals, to_device(points, self.device), self.data.grid, holes)
            return inclination(normals) if settings.relation == "inclination" else normals
        if settings.at == "grid":
            return self.rows(self.data.depth_grids, views)[:, grid_places(self.config.sampling)[side]]
        depth = self.rows(self.data.depth, views)
        if settings.relation == "euclidean":
            depth = cloud(depth, self.data.grid, self.config.sampling.fov_deg)
        return at_points(depth, to_device(points, self.device), self.data.grid, holes)

    def has_holes(self, views: np.ndarray) -> bool:
        """Whether the depth of some views is unknown somewhere; the host alone knows, so that nothing waits."""
        return self.data.unknown is not None and bool((self.data.unknown[views] > 0).any())

    def settings(self, iteration: int, depth_shift: float | Tensor) -> LossSettings:
        """Weights and shifts of this iteration."""
        loss, depth = self.config.loss, self.config.loss.depth
        weight = exponential_decay(
            iteration, depth.weight, factor=depth.factor, every=depth.every, minimum=depth.weight_minimum,
            after=depth.decay == "after",
        )  # fmt: skip
        return LossSettings(
            self_weight=loss.self.weight, self_shift=self.shifts[0],
            neighbour_weight=loss.neighbour.weight, neighbour_shift=self.shifts[1],
            negative_weight=loss.negative.weight, negative_shift=self.shifts[2],
            depth_weight=weight, depth_shift=depth_shift, relation=kernel_relation(depth.relation),
            bandwidth=depth.bandwidth, center=loss.center, clamp=loss.clamp,
        )  # fmt: skip

    def pair_counts(self, read: Callable[[np.ndarray, torch.Generator], Tensor], *, center: bool = False) -> Tensor:
        """Histograms ``[3, HISTOGRAM_BINS]`` over [-2, 2] of cosines of self, neighbour and negative pairs.

        ``read(views, generator)`` returns vectors ``[N, P, C]``. Uses ``SHIFT_BATCHES`` batches, no labels and no P x Q
        tensors. The batches are divided among the processes.
        """
        negative, counts = self.config.loss.negative, torch.zeros(3, HISTOGRAM_BINS, dtype=torch.float64)
        for number in range(processes.rank(), SHIFT_BATCHES, processes.count()):
            generator = self.generator("shifts", number)
            batch = draw_batch(self.config, self.data, number)
            pairs = negative_pairs(len(batch.anchors), negative.draws, negative.pairing, generator)
            a, b = (read(views, generator) for views in (batch.anchors, batch.neighbours))
            for row, (other, index) in enumerate(((a, None), (b, None), (a, to_device(pairs, self.device)))):
                counts[row] += correlation_histogram(
                    a, other, HISTOGRAM_BINS, center=center, index_b=index, range=HISTOGRAM_RANGE
                ).cpu()
        return processes.total(counts)

    def auto_shifts(self) -> tuple[float, float, float]:
        """Shifts for self, neighbour and negative pairs: quantiles of F (centred with ``loss.center``)."""
        loss = self.config.loss
        counts = self.pair_counts(self.plain_features, center=loss.center)
        own, near, far = (round(quantile_of(row, q), 4) for row, q in zip(counts, loss.quantiles, strict=True))
        return own, near, far

    def plain_features(self, views: np.ndarray, generator: torch.Generator) -> Tensor:  # [N, P, C]
        """Features at the points of iteration 0, without dropout."""
        return self.vectors(views, self.points(views, 0, generator))

    def vectors(self, views: np.ndarray, points: Tensor, name: str = "") -> Tensor:  # [N, P, C]
        """Features of some views at points; for cells only these are read (``name``: see :meth:`memory`)."""
        if points.ndim == 2:
            memory = self.memory(name, *points.shape, self.data.features.shape[2])
            return self.data.features.at(views, points, self.device, memory)
        return self.gather(self.rows(self.data.features, views), points)

    def read_views(self, views: np.ndarray, points: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Features and codes of some views at points."""
        if points.ndim == 2:
            return self.forward(self.vectors(views, points, name))
        return self.read(self.maps(views, name), points)

    def maps(self, views: np.ndarray, name: str) -> Tensor:  # [N, h*w, C]
        """Whole feature maps of some views."""
        memory = self.memory(f"maps of {name}", len(views), *self.data.features.shape[1:])
        return self.data.features.rows(views, self.device, memory)

    def memory(self, name: str, *shape: int) -> Tensor | None:
        """CPU buffer of this name, reused by later steps (allocating can cost more than reading); None on a GPU."""
        if self.device.type != "cpu" or not name:
            return None
        if name not in self.buffers or self.buffers[name].shape != shape:
            self.buffers[name] = torch.empty(shape)
        return self.buffers[name]

    def losses(self, iteration: int) -> tuple[dict[str, Tensor], dict[str, float | Tensor]]:
        """Losses to add and differentiate (``total``, ``linear``, ``cluster``), and the values to log."""
        config, data = self.config, self.data
        torch.manual_seed(seed_of(config.seed, "dropout", iteration))
        generator = self.generator("step", iteration)
        whole = draw_batch(config, data, iteration)
        batch, holes = whole.part(self.share), self.has_holes(whole.depth_views)
        views = batch.anchors, batch.neighbours
        points, near_points = (self.points(v, iteration, generator, self.share) for v in views)
        negatives = self.negatives(len(batch.anchors), iteration, generator)
        own = config.sampling.negatives == "own"
        bank: dict[str, Any] = {}
        sparse = config.probe.cells and own and points.ndim == 2  # no whole maps are needed
        maps = None if sparse else self.maps(batch.anchors, "anchors")
        if maps is None:
            feats, codes = self.read_views(batch.anchors, points, "anchors")
        elif own:
            feats, codes = self.read(maps, points)
        else:
            feats, codes, bank = self.read_with_bank(maps, points, near_points, negatives)
        if own and self.joint:
            bank = {"feats_negative": processes.gather(feats), "codes_negative": processes.gather(codes)}
        near_feats, near_codes = self.read_views(batch.neighbours, near_points, "neighbours")
        if self.ahead is not None:  # overlaps with the computation below, not with the reads above
            self.ahead.start(lambda: announce(draw_batch(config, data, iteration + 1).part(self.share), data))
        index = bank.pop("index", negatives)
        if self.joint and config.loss.center:
            bank["feature_means"] = processes.average(feature_means(feats, near_feats, index, bank["feats_negative"]))
        depth = self.depth_inputs(batch, points, iteration, generator, holes)
        shift = depth.pop("shift", 0.0)
        settings, apart = self.settings(iteration, shift), depth if holes else {}
        result = depthg_loss(feats, codes, near_feats, near_codes, index, settings, **bank, **({} if apart else depth))
        if apart:
            result = with_known_depth(result, codes, settings, self.average, **apart)
        terms = {"self": result.self, "neighbour": result.neighbour, "negative": result.negative, "depth": result.depth}
        logged: dict[str, float | Tensor] = {
            f"loss.{name}": term.loss for name, term in terms.items() if term is not None
        }
        logged |= {f"similarity.{name}": term.similarity for name, term in terms.items() if term is not None}
        if self.guided:
            logged |= {"weight.depth": self.settings(iteration, 0.0).depth_weight, "shift.depth": shift}
        losses = {"total": result.total, **self.probe_losses(maps, batch, generator)}
        logged |= {f"loss.{name}": value for name, value in losses.items() if name != "total"}
        return losses, {key: value.detach() if isinstance(value, Tensor) else value for key, value in logged.items()}

    def negatives(self, images: int, iteration: int, generator: torch.Generator) -> Tensor:  # int64 [R, N]
        """Rows of the negative bank for this process's anchors: in the whole batch, or in the process's own part."""
        settings, share = self.config.loss.negative, self.share
        if share is not None and not self.joint:
            own = self.generator("negatives", share.first, iteration)
            return to_device(negative_pairs(share.size, settings.draws, settings.pairing, own), self.device)
        whole = images if share is None else self.config.batch_size
        found = negative_pairs(whole, settings.draws, settings.pairing, generator)
        return to_device(found if share is None else found[:, share.rows], self.device)

    def read_with_bank(
        self, maps: Tensor, points: Tensor, near_points: Tensor, negatives: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Anchors at their points, and negatives: image ``negatives[r, n]`` at the points of neighbour n.

        Both come from one forward pass over the maps, hence one dropout mask, as in the released code. Processes that
        share a batch gather each other's maps.
        """
        own = self.forward(maps)
        feats, codes = (self.gather(values, points) for values in own)
        whole = [processes.gather(values) for values in own] if self.joint else own
        rows, at = negatives.flatten(), to_device(near_points, self.device)
        at = at.repeat(len(negatives), *[1] * (at.ndim - 1))
        bank_feats, bank_codes = (self.gather(values[rows], at) for values in whole)
        index = torch.arange(negatives.numel(), device=self.device).view(negatives.shape)
        return feats, codes, {"feats_negative": bank_feats, "codes_negative": bank_codes, "index": index}

    def depth_inputs(
        self, batch: Batch, points: Tensor, iteration: int, generator: torch.Generator, holes: bool = False
    ) -> dict:
        """Depth inputs of the loss (with ``pair=crop`` also codes and depth of the other crop), and the shift.

        Empty without depth or with weight 0. ``holes``: the whole batch has unknown depth somewhere.
        """
        settings = self.config.loss.depth
        if not self.guided or settings.weight == 0:
            return {}
        side = piecewise_constant(iteration, self.config.sampling.points, self.config.sampling.schedule)
        values = self.depth_values(batch.anchors, points, side)
        inputs, other = {"depth": values}, values
        if settings.pair == "crop":
            other_points = self.points(batch.others, iteration, generator, self.share)
            other = self.depth_values(batch.others, other_points, side)
            codes = self.read_views(batch.others, other_points, "others")[1]
            inputs |= {"codes_depth": codes, "depth_other": other}
        shift: Any = exponential_decay(
            iteration, settings.shift, factor=settings.factor, every=settings.every, minimum=settings.shift_minimum,
            after=settings.decay == "after",
        )  # fmt: skip
        if settings.shift_mean and holes:
            relation = kernel_relation(settings.relation)
            shift = mean_known_relation(values, other, relation, settings.bandwidth, self.average)
        elif settings.shift_mean:
            shift = mean_relation(values, other, kernel_relation(settings.relation), settings.bandwidth)
            shift = processes.average(shift) if self.joint else shift
        return {**inputs, "shift": shift}

    def cluster_loss(self, codes: Tensor, valid: Tensor | None) -> Tensor:  # [N, M, K], bool [N, M] on the CPU
        """The cluster probe's loss over cells with data, in a batch of several processes over those of all of them."""
        if valid is None:
            return self.model.cluster.loss(codes)
        places = valid.flatten().nonzero()[:, 0]
        loss = self.model.cluster.loss(codes.flatten(0, 1)[to_device(places, codes.device)])
        if self.share is None:
            return loss
        return loss * (len(places) / processes.average(torch.tensor(float(len(places))))).item()

    def probe_losses(self, maps: Tensor | None, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of both probes on detached codes of whole maps or random cells; the linear one at labelled pixels."""
        cells, grid = None, self.data.grid
        valid = self.data.features.with_data(batch.anchors)
        if self.config.probe.cells:
            share = BatchShare(0, len(batch.anchors), len(batch.anchors)) if self.share is None else self.share
            order = torch.rand(share.total, grid[0] * grid[1], generator=generator)[share.rows]
            order = (order if valid is None else order + (~valid).float()).argsort(1)  # cells without data come last
            cells = order[:, : self.config.probe.cells]
            valid = valid if valid is None else valid.gather(1, cells)
            maps = self.vectors(batch.anchors, cells, "probes") if maps is None else self.gather(maps, cells)
        with self.autocast():
            codes = codes_without_grad(self.model.head, maps, self.share).float()
        losses = {"cluster": self.cluster_loss(codes, valid)}
        if self.model.linear is None:
            return losses
        label = torch.from_numpy(np.asarray(self.data.labels[batch.anchors]))
        average = None if self.share is None else processes.average
        linear = linear_probe_loss(self.model.linear, codes, label, grid, cells, average)
        return losses if linear is None else losses | {"linear": linear}
