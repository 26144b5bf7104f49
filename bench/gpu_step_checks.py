"""Checks of training and evaluation for ``check_gpu.py``: steps without synchronisation, scores in bounded memory."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
import torch
from gpu_checks import Check, Place, require
from torch.nn import functional as F
from waiting import PRESET, synthetic

from depthg.config.composing import load_config
from depthg.evaluation.metrics import image_confusions
from depthg.features.knn import nearest_neighbours
from depthg.features.reading import Features
from depthg.inference.read_outs import predict_ids
from depthg.kernels.upsampling import device_ids, products_of_weights
from depthg.model.clustering import cosine_kmeans
from depthg.training.nonfinite import largest_gradients, not_finite
from depthg.training.step import Model, Step
from depthg.training.trainer import adam

CLASSES = 27
OPTIONS = {
    "paper": ("mode=paper",),
    "paper, probes at cells": ("mode=paper", "probe.cells=64"),
    "random start": ("mode=paper", "sampling.start=random"),
    "released": ("mode=released", "sampling.schedule=[]"),
    "bilinear": ("mode=paper", "sampling=random", "sampling.read=bilinear"),
}


class HeldFeatures(Features):
    """Features in memory."""

    def __init__(self, maps: torch.Tensor):
        super().__init__(tuple(maps.shape), maps.dtype)
        self.maps = maps

    def read(self, views: np.ndarray) -> torch.Tensor:
        return self.maps[torch.from_numpy(np.asarray(views, np.int64))]


def checks(place: Place) -> Iterable[Check]:
    for name, options in OPTIONS.items():
        yield f"step {name}", functools.partial(same_step, place, options)
    yield "arg-max at full size", functools.partial(arg_max, place)
    yield "up-sampled probe", functools.partial(up_sampled_probe, place)
    yield "neighbours", functools.partial(neighbours, place)
    yield "k-means", functools.partial(kmeans, place)


def same_step(place: Place, options: tuple[str, ...]) -> dict:
    """Losses equal the CPU's, and a step on a GPU, optimiser included, never synchronises with the host."""
    side, channels = (6, 16) if place.small else (28, 384)
    small = ("batch_size=4", "sampling.points=2", "loss.negative.draws=2") if place.small else ("batch_size=32",)
    config = load_config([*PRESET, *options, *small, "head.dropout=0"])
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2 * config.batch_size, side * side, channels, generator=generator).relu().half()
    data, found = synthetic(HeldFeatures(maps), side, config.sampling), []
    for device in map(torch.device, ("cpu", place.device)):
        torch.manual_seed(0)
        model = Model(channels, config.head.dim, 0.0, CLASSES, CLASSES).to(device)
        step, optimiser = Step(config, data, model, device, ahead=False), adam(model, 5e-4, device)
        losses = step.losses(0)[0]  # compiles, and fills caches
        found.append({name: loss.item() for name, loss in losses.items()})
        if not place.gpu or device.type == "cpu":
            continue
        sum(losses.values()).backward()
        optimiser.step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            losses = step.losses(1)[0]
            optimiser.zero_grad()
            sum(losses.values()).backward()
            optimiser.found_inf = not_finite(losses, largest_gradients(model))
            optimiser.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for name, value in found[0].items():
        require(
            abs(found[1][name] - value) <= 1e-4 * max(1, abs(value)), f"{name}: {found[1][name]}, on the CPU {value}"
        )
    return found[1]


def arg_max(place: Place) -> dict:
    """Ids of 27 classes at 2,048 x 1,024 equal the CPU's; computing and counting them takes less than 1 GB."""
    cells, size = ((4, 6), (32, 48)) if place.small else ((128, 256), (1024, 2048))
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, cells[0] * cells[1], CLASSES, generator=generator)
    label = torch.randint(-1, CLASSES, (1, *size), generator=generator)
    there, labels, figures = scores.to(place.device), label.to(place.device), {}
    if place.gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    maps = there.transpose(1, 2).unflatten(2, cells)
    ids = torch.stack([device_ids(one, size) for one in maps])
    counts = image_confusions(ids, labels, CLASSES, CLASSES)
    if place.gpu:
        figures["peak_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
        require(figures["peak_mb"] < 1000, f"{figures}")
    expected = predict_ids(scores, cells, size)
    require(torch.equal(ids.cpu(), expected), f"{int((ids.cpu() != expected).sum())} ids differ from the CPU's")
    require(np.array_equal(counts, image_confusions(expected, label, CLASSES, CLASSES)), "counts differ")
    return figures


def up_sampled_probe(place: Place) -> None:
    """Scores and gradients by matrix products agree with ``interpolate`` in float64, and two runs are equal."""
    grid, size = ((3, 4), (24, 32)) if place.small else ((28, 28), (224, 224))
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, grid[0] * grid[1], CLASSES, generator=generator)
    upstream = torch.randn(2, *size, CLASSES, generator=generator)
    truth = scores.double().requires_grad_()
    expected = F.interpolate(truth.transpose(1, 2).unflatten(2, grid), size, mode="bilinear").permute(0, 2, 3, 1)
    expected.backward(upstream.double())
    grads = []
    for _ in range(2):
        leaf = scores.to(place.device, copy=True).requires_grad_()
        out = products_of_weights(leaf, grid, size)
        out.backward(upstream.to(place.device))
        torch.testing.assert_close(out.detach().cpu(), expected.float(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(leaf.grad.cpu(), truth.grad.float(), rtol=1e-4, atol=1e-3)
        grads.append(leaf.grad)
    require(torch.equal(*grads), "two runs differ in their bits")


def neighbours(place: Place) -> None:
    count = 300 if place.small else 20_000
    vectors = torch.randint(-2, 3, (count, 64), generator=torch.Generator().manual_seed(0)).float() / 16  # exact
    photos = torch.arange(count) // 2
    found = nearest_neighbours(vectors.to(place.device), 30, photos, impl="eager")
    require(torch.equal(found, nearest_neighbours(vectors, 30, photos)), "neighbours differ from the CPU's")


def kmeans(place: Place) -> None:
    count, k = (200, 4) if place.small else (40_000, CLASSES)
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(k, 70, generator=generator)
    x = torch.randn(count, 70, generator=generator) + centres[torch.randint(k, (count,), generator=generator)]
    found, expected = (cosine_kmeans(y, k, seed=0, n_init=3).cpu() for y in (x.to(place.device), x))
    scores = [(F.normalize(x, dim=1) @ c.T).amax(1).mean().item() for c in (found, expected)]
    require(abs(scores[0] - scores[1]) < 1e-4, f"mean cosines {scores}")
