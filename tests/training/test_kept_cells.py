"""Cells that depend on a view alone: computed once, the same numbers as without keeping them."""

import numpy as np
import pytest
import torch
from miniature import settings

import depthg.training.sampling
from depthg.features.preparation import Preparation
from depthg.training.kept_cells import KeptCells
from depthg.training.step import Model, Step

CPU = torch.device("cpu")


def counted(n_cells=50, width=40):
    """A computation of distinct cells in an order of their own for each view, and the views that it was asked for."""
    asked = []
    order = torch.stack([torch.randperm(n_cells, generator=torch.Generator().manual_seed(v)) for v in range(9)])

    def of(points):
        def compute(views):
            asked.extend(views.tolist())
            return order[torch.from_numpy(views), :points]

        return compute

    return order[:, :width], of, asked


def test_every_view_is_computed_once():
    order, of, asked = counted()
    kept = KeptCells(9, 50)
    for views in ([3, 1], [1, 4, 1], [8, 3, 4], [4, 4]):
        found = kept.cells(np.array(views), 6, of(6))
        assert torch.equal(found, order[views, :6])
        assert found.dtype == torch.int64
    assert sorted(asked) == [1, 3, 4, 8]


def test_fewer_points_are_the_first_ones_and_more_are_computed_anew():
    order, of, asked = counted()
    kept = KeptCells(9, 50)
    for points, views in ((9, [0, 1]), (4, [0, 1]), (4, [2]), (4, [2]), (9, [2]), (9, [2]), (4, [2, 0])):
        assert torch.equal(kept.cells(np.array(views), points, of(points)), order[views, :points])
    assert asked == [0, 1, 2, 2]  # the third view with 4 points, then with 9
    for _ in range(2):
        assert torch.equal(kept.cells(np.array([1, 2]), 30, of(30)), order[[1, 2], :30])
    assert asked[4:] == [1, 2]


@pytest.mark.parametrize(("cells", "size"), [(2**15, 2), (2**15 + 1, 4)])
def test_cells_take_as_many_bytes_as_they_need(cells, size):
    kept = KeptCells(9, cells)
    last = torch.full((1, 3), cells - 1)
    assert torch.equal(kept.cells(np.array([5]), 3, lambda views: last), last)
    assert torch.equal(kept.cells(np.array([5]), 3, lambda views: None), last)
    assert kept.found.element_size() == size


def test_beyond_the_limit_nothing_is_kept():
    order, of, asked = counted()
    kept = KeptCells(9, 50, limit=9 * 6 * 2)
    for points in (7, 7, 6, 6):
        assert torch.equal(kept.cells(np.array([2]), points, of(points)), order[[2], :points])
    assert asked == [2, 2, 2]
    assert kept.found.numel() == 9 * 6


# In the trainer's step


@pytest.fixture(scope="module")
def root(shared_tree):
    return shared_tree


def sampled_views(monkeypatch):
    """The number of views of every call of farthest point sampling."""
    calls = []
    for name in ("farthest_point_sample", "farthest_point_sample_depth"):
        plain = getattr(depthg.training.sampling, name)

        def spy(x, *arguments, plain=plain, **options):
            calls.append(len(x))
            return plain(x, *arguments, **options)

        monkeypatch.setattr(depthg.training.sampling, name, spy)
    return calls


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("sampling.unprojection=released", "sampling.read=bilinear", "sampling.transpose=true"),
        ("sampling.schedule=[[2,2],[4,4],[6,3]]",),
        ("loss.depth.pair=crop", "data.crop=five", "data.crop_ratio=0.6"),
    ],
)
def test_losses_are_those_of_a_step_that_keeps_nothing(root, monkeypatch, overrides):
    config = settings(root, "batch_size=2", "sampling.points=3", *overrides)
    data = Preparation(config, CPU).run()

    def make(limit):
        torch.manual_seed(0)
        step = Step(config, data, Model(data.transform.channels, config.head.dim, 0.1, 11, 11), CPU)
        step.kept.limit = limit
        return step

    calls, kept = sampled_views(monkeypatch), make(2**20)
    seen = [kept.losses(iteration)[0] for iteration in range(9)]
    once = len(calls), sum(calls)
    for iteration, losses in enumerate(seen):  # each from a step that knows nothing, as after resuming
        other = make(0).losses(iteration)[0]
        assert all(torch.equal(losses[name], other[name]) for name in other)
    assert sum(calls) - once[1] == 9 * 2 * (3 if config.loss.depth.pair == "crop" else 2)
    rounds = 3 if config.sampling.schedule else 1  # more points than ever before: 9, then 16
    assert once[1] <= rounds * len(data.features)


def test_a_random_start_is_drawn_anew(root, monkeypatch):
    config = settings(root, "batch_size=2", "sampling.start=random")
    data = Preparation(config, CPU).run()
    step = Step(config, data, Model(data.transform.channels, 8, 0.1, 11, 11), CPU)
    calls = sampled_views(monkeypatch)
    for iteration in range(4):
        step.losses(iteration)
    assert calls == [2] * 8
    assert step.kept.found.numel() == 0
