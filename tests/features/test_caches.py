"""Room for everything that is missing is checked at once; what a stage took is noted."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from miniature import settings, write_camvid

import depthg.storage.cache
from depthg.features.preparation import Preparation
from depthg.storage.cache import RESERVE

Usage = namedtuple("Usage", "total used free")
CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path):
    return write_camvid(tmp_path / "camvid")


def with_room(monkeypatch, size):
    monkeypatch.setattr(depthg.storage.cache.shutil, "disk_usage", lambda _: Usage(0, 0, RESERVE + size))


def test_what_does_not_fit_is_refused_before_the_first_stage(root, tmp_path, monkeypatch):
    with_room(monkeypatch, 2_000)
    with pytest.raises(OSError, match=r"most of it for features, training; features\.cache=off .*set cache\.dir"):
        Preparation(settings(root), CPU).run()
    with pytest.raises(OSError, match=r"most of it for labels, training\).*set cache\.dir"):
        Preparation(settings(root, "features.cache=off", "backbone.pca=0", "backbone.standardize=false"), CPU).run()
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_what_is_there_needs_no_room(root, monkeypatch):
    Preparation(settings(root), CPU).run()
    with_room(monkeypatch, -RESERVE)
    Preparation(settings(root), CPU).run()


def test_stages_note_what_they_made(root):
    preparation = Preparation(settings(root), CPU)
    preparation.run()
    names = ["depth", "labels, training", "labels, evaluation", "features, training", "features, evaluation"]
    assert [stage.name for stage in preparation.uses] == [*names, "neighbours"]
    for stage, count in zip(preparation.uses, (6, 6, 3, 6, 3, 6), strict=True):
        arrays = sum(path.stat().st_size for path in stage.folder.glob("*.npy"))
        assert stage.count == count and stage.made and stage.seconds > 0 and stage.bytes >= arrays


def test_maps_come_in_batches_in_the_given_order(root):
    preparation = Preparation(settings(root), CPU)
    whole = torch.cat(list(preparation.maps(preparation.train_views)(range(6), 6)))
    parts = list(preparation.maps(preparation.train_views)(np.array([4, 1, 5]), 2))
    assert [len(part) for part in parts] == [2, 1]
    torch.testing.assert_close(torch.cat(parts), whole[[4, 1, 5]], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("where", ["", "/caches/here"])
def test_the_cache_never_lies_in_the_data(root, where):
    with pytest.raises(ValueError, match=r"cache\.dir=.* lies inside data\.root="):
        Preparation(settings(root, f"cache.dir={root}{where}"), CPU)
    assert not (root / "caches").exists()


def test_size_of_the_shards(root):
    for given, labels, features in (("64", 512, 512), ("0.02", 2, 1)):
        preparation = Preparation(settings(root, f"cache.shard_mb={given}", "backbone.batch_size=1"), CPU)
        assert preparation.rows_per_shard(2 * 64 * 64) == labels
        assert preparation.feature_plans[0][2]._shard() == min(features, 64 * 2**20 // (64 * 472 * 2))
