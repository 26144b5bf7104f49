"""Which views a step compares, and that the disk is told of the next ones."""

import dataclasses
import os
import threading

import numpy as np
import pytest
import torch
from miniature import settings, write_camvid

from depthg.data import loading
from depthg.features.preparation import Preparation
from depthg.runtime import read_ahead
from depthg.training import batches
from depthg.training.batches import draw_batch, epoch_order
from depthg.training.step import Model, Step


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = write_camvid(tmp_path_factory.mktemp("batches") / "camvid")
    config = settings(root, "data.crop=five", "loss.depth.pair=crop", "batch_size=6")
    return config, Preparation(config, torch.device("cpu")).run()


def test_orders_of_epochs_are_permutations_that_differ():
    orders = [epoch_order(seed, epoch, 50).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert epoch_order(0, 0, 50).tolist() == orders[0]


def test_other_crops_are_of_the_same_photo_and_all_occur(made):
    config, data = made
    seen = set()
    for iteration in range(60):
        batch = draw_batch(config, data, iteration)
        assert (data.photos[batch.others] == data.photos[batch.anchors]).all()
        assert (batch.others != batch.anchors).all()
        seen |= set(zip(batch.anchors.tolist(), batch.others.tolist(), strict=True))
    assert len(seen) > 0.9 * 30 * 4, "30 crops with 4 others each"


def test_a_step_announces_the_next_one(made, monkeypatch):
    config, data = made
    told = []
    monkeypatch.setattr(data.features, "announce", lambda views: told.append(views))
    arrays = []
    monkeypatch.setattr(batches, "read_ahead", lambda array, rows: arrays.append((array, rows)))
    step = Step(config, data, Model(data.transform.channels, 8, 0.1, 11, 11), torch.device("cpu"))
    step.losses(4)
    step.ahead.wait()
    batch = draw_batch(config, data, 5)
    assert np.array_equal(told[0], np.concatenate([batch.anchors, batch.neighbours, batch.others]))
    parts = (data.depth, data.depth_grids, data.normals, data.labels)
    assert all(array is part for (array, _), part in zip(arrays, parts, strict=True))
    assert np.array_equal(arrays[3][1], batch.anchors)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice about files")
def test_rows_of_files_are_announced_by_their_bytes(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.zeros((10, 3, 5), np.float32))
    array, calls = np.load(tmp_path / "a.npy", mmap_mode="r"), []
    monkeypatch.setattr(read_ahead.os, "posix_fadvise", lambda file, *where: calls.append(where[:2]))
    read_ahead.read_ahead(array, np.array([7, 2, 7]))
    assert calls == [(array.offset + 2 * 60, 60), (array.offset + 7 * 60, 60)]
    read_ahead.read_ahead(np.zeros((10, 3)), np.array([1]))
    read_ahead.read_ahead(None, np.array([1]))
    assert len(calls) == 2


def test_one_reading_at_a_time_and_its_error_comes_up():
    ahead, go, done = read_ahead.ReadAhead(), threading.Event(), []
    ahead.start(lambda: done.append(go.wait(10)))
    ahead.start(lambda: done.append("left out"))
    go.set()
    ahead.wait()
    assert done == [True]
    ahead.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ahead.wait()
    with pytest.raises(ZeroDivisionError):
        ahead.start(lambda: None)


def test_streamed_features_have_nothing_to_announce(made):
    config, _ = made
    streamed = dataclasses.replace(config, features=dataclasses.replace(config.features, cache="off"))
    Preparation(streamed, torch.device("cpu")).run().features.announce(np.arange(3))


def test_threads_that_decode_change_nothing(made, monkeypatch):
    """Nothing random happens there: every draw of a step is made before, from the seed and the iteration."""
    config, _ = made
    streamed = dataclasses.replace(config, features=dataclasses.replace(config.features, cache="off"))
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(loading, "LOADERS", threads)
        features = Preparation(streamed, torch.device("cpu")).run().features
        found.append(features.read(np.array([7, 3, 29, 3])))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
