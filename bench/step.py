"""One training step with cached features, against the eager path with FPS in numpy: ``python bench/step.py``.

    python bench/step.py [--device cpu|cuda] [--json FILE] [--quick]

Both steps use the same arrays: sample P points by FPS on the depth of 2 N photos, read features, head, all terms of the
loss, both probes, backward, Adam. The eager step reads whole maps and runs the head on them; the probes use these
codes. Ours reads features only at the sampled points and, for the probes, at P random cells of each anchor
(``probe.cells``); "depthg, all cells" gives the probes whole maps too, with another pass of the head without gradient.
Like the trainer, it samples and reads on the CPU, where depth and features are, and copies to a GPU from pinned memory.

"step" is timed without timing its parts: on a GPU, timing a part synchronises with it, which a step alone does not do.
A second table gives the fraction of the trainer's step that waits for features in memory and on disk (``waiting.py``).
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
import stego
import torch
import waiting

from depthg import kernels
from depthg.kernels import LossSettings
from depthg.model.heads import ClusterProbe, LinearProbe, SegmentationHead, codes_without_grad
from depthg.runtime.device import host_memory, to_device

SETTINGS = LossSettings(depth_weight=0.19, depth_shift=0.03)
PARTS = ("read", "sample", "head", "loss", "probes", "backward", "optimizer")
CLASSES = 27


@dataclasses.dataclass(frozen=True)
class Row:
    contender: str
    part: str
    median_ms: float
    p20_ms: float
    p80_ms: float
    share: float
    ratio: float


class Data:
    """Synthetic cached views: features float16 [V, h*w, C], smooth depth [V, h, w], labels [V, h*w]."""

    def __init__(self, views: int, side: int, channels: int):
        rng = np.random.default_rng(0)
        self.side = side
        self.features = np.maximum(rng.standard_normal((views, side * side, channels)), 0).astype(np.float16)
        coarse = torch.from_numpy(rng.random((views, 1, 4, 4), dtype=np.float32))
        depth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0.05, 1)
        self.depth = depth[:, 0].numpy()
        self.labels = rng.integers(CLASSES, size=(views, side * side))

    def batch(self, images: int, iteration: int) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
        turn, position = divmod(iteration, len(self.features) // (2 * images))
        views = np.random.default_rng(turn).permutation(len(self.features))[2 * images * position :][: 2 * images]
        rng = np.random.default_rng(iteration)
        negatives = np.stack([(np.arange(images) + shift) % images for shift in rng.permutation(images - 1)[:5] + 1])
        return views[:images], views[images:], torch.from_numpy(negatives)

    def at(self, views: np.ndarray, cells: torch.Tensor, device: str) -> torch.Tensor:  # [N], [N, P] -> [N, P, C]
        """Vectors in float32 on a device."""
        area, channels = self.features.shape[1:]
        rows = (torch.from_numpy(views)[:, None] * area + cells).flatten()
        sent = host_memory(len(rows), channels, dtype=torch.float16, device=device)
        torch.index_select(torch.from_numpy(self.features).view(-1, channels), 0, rows, out=sent)
        return to_device(sent.view(*cells.shape, channels), device).float()


class Clock:
    """Records the milliseconds of each part of a step; with ``off``, does nothing."""

    def __init__(self, device: str, off: bool = False):
        self.device, self.parts, self.off = device, {}, off

    def __call__(self, part: str) -> None:
        if self.off:
            return
        common.synchronize(self.device)
        now = time.perf_counter()
        if part:
            self.parts.setdefault(part, []).append((now - self.last) * 1e3)
        self.last = now


class Probes(torch.nn.Module):
    """Cluster and linear probe on detached codes [N, h*w, K], labels at the cells."""

    def __init__(self, codes: int):
        super().__init__()
        self.cluster, self.linear = ClusterProbe(codes, CLASSES), LinearProbe(codes, CLASSES)

    def forward(self, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        scores = self.linear(codes).flatten(0, 1)
        return self.cluster.loss(codes) + torch.nn.functional.cross_entropy(scores, labels.flatten())


def our_step(
    data: Data, images: int, points: int, codes: int, device: str, all_cells: bool
) -> Callable[[int, Clock], float]:
    torch.manual_seed(0)
    head = SegmentationHead(data.features.shape[2], codes).to(device)
    probes = Probes(codes).to(device)
    adam = torch.optim.Adam([*head.parameters(), *probes.parameters()], lr=5e-4)
    area = data.features.shape[1]

    def step(iteration: int, clock: Clock) -> float:
        anchors, near, negatives = data.batch(images, iteration)
        views, n = np.concatenate([anchors, near]), images
        clock("")
        depth = torch.from_numpy(data.depth[views])
        cells = kernels.farthest_point_sample_depth(depth, points)
        u = to_device(depth.flatten(1).gather(1, cells)[:n], device)
        clock("sample")
        feats = data.at(views, cells, device)
        clock("read")
        z = head(feats)
        clock("head")
        result = kernels.depthg_loss(
            feats[:n], z[:n], feats[n:], z[n:], to_device(negatives, device), SETTINGS, depth=u
        )  # fmt: skip
        clock("loss")
        seen = torch.rand(n, area).argsort(1)[:, : area if all_cells else points]
        probed = codes_without_grad(head, data.at(anchors, seen, device))
        labels = to_device(torch.from_numpy(np.take_along_axis(data.labels[anchors], seen.numpy(), 1)), device)
        probing = probes(probed, labels)
        clock("probes")
        adam.zero_grad(set_to_none=True)
        (result.total + probing).backward()
        clock("backward")
        adam.step()
        clock("optimizer")
        return result.total.item()

    return step


def eager_step(data: Data, images: int, points: int, codes: int, device: str) -> Callable[[int, Clock], float]:
    torch.manual_seed(0)
    head = stego.Head(data.features.shape[2], codes).to(device)
    probes = Probes(codes).to(device)
    adam = torch.optim.Adam([*head.parameters(), *probes.parameters()], lr=5e-4)
    size, side = data.side, round(points**0.5)

    def step(iteration: int, clock: Clock) -> float:
        anchors, near, negatives = data.batch(images, iteration)
        views = np.concatenate([anchors, near])
        clock("")
        maps = torch.from_numpy(data.features[views]).to(device).float().transpose(1, 2).unflatten(2, (size, size))
        clock("read")
        cells = np.stack([stego.farthest_points(data.depth[v], side * side) for v in views])
        at = stego.coordinates(cells, size, size, side).to(device)
        u = torch.from_numpy(np.take_along_axis(data.depth[anchors].reshape(images, -1), cells[:images], 1)).to(device)
        clock("sample")
        dropped, z = head(maps.contiguous())
        clock("head")
        n, whole = images, z.detach()[:images]
        feats, z = stego.read(dropped, at), stego.read(z, at)
        loss = stego.loss(
            feats[:n], z[:n], feats[n:], z[n:], negatives.to(device), u.view(-1, side, side), SETTINGS
        )  # fmt: skip
        clock("loss")
        probing = probes(whole.flatten(2).transpose(1, 2), torch.from_numpy(data.labels[anchors]).to(device))
        clock("probes")
        adam.zero_grad(set_to_none=True)
        (loss + probing).backward()
        clock("backward")
        adam.step()
        clock("optimizer")
        return loss.item()

    return step


def measure(device: str, quick: bool) -> list[Row]:
    images, points, codes = (8, 49, 70) if quick else (32, 121, 70)
    data = Data(4 * images, 28, 384)
    steps = {
        "depthg": our_step(data, images, points, codes, device, all_cells=False),
        "depthg, all cells": our_step(data, images, points, codes, device, all_cells=True),
        "eager": eager_step(data, images, points, codes, device),
    }
    clocks = {name: Clock(device) for name in steps}
    totals, off = {name: [] for name in steps}, Clock(device, off=True)
    for iteration in range(4 if quick else 12):
        for name, step in steps.items():
            step(iteration, clocks[name])
            common.synchronize(device)
            begin = time.perf_counter()
            step(iteration, off)
            common.synchronize(device)
            totals[name].append((time.perf_counter() - begin) * 1e3)
    ours = common.summary(totals["depthg"][2:]).median
    rows = []
    for name in steps:
        whole = common.summary(totals[name][2:])
        rows.append(Row(name, "step", whole.median, whole.p20, whole.p80, 1.0, whole.median / ours))
        for part in PARTS:
            t = common.summary(clocks[name].parts[part][2:])
            mine = common.summary(clocks["depthg"].parts[part][2:]).median
            rows.append(Row(name, part, t.median, t.p20, t.p80, t.median / whole.median, t.median / mine))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the table and the machine to this file")
    parser.add_argument("--quick", action="store_true", help="a small step, few repeats")
    args = parser.parse_args()
    print(common.machine_line(args.device))
    rows = measure(args.device, args.quick)
    print(common.format_table([f.name for f in dataclasses.fields(Row)], [dataclasses.astuple(r) for r in rows]))
    waits = waiting.measure(args.device, args.quick)
    print()
    print(
        common.format_table([f.name for f in dataclasses.fields(waiting.Row)], [dataclasses.astuple(r) for r in waits])
    )
    if args.json:
        common.write_json(args.json, device=args.device, rows=rows, waiting=[dataclasses.asdict(r) for r in waits])


if __name__ == "__main__":
    main()
