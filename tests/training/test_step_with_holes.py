"""A step on depth maps with holes: points, the depth term and its shift against definitions over known pairs."""

import dataclasses

import numpy as np
import pytest
import torch
from miniature import settings, write_camvid
from test_known_depth import definition

from depthg.data.errors import DataError
from depthg.features.preparation import Preparation
from depthg.kernels.reference import depthg_loss
from depthg.reporting.diagnosis import depth_pairs
from depthg.runtime.processes import BatchShare
from depthg.training.batches import draw_batch
from depthg.training.depth_term import kernel_relation
from depthg.training.kept_step import replay
from depthg.training.known_depth import with_known_depth
from depthg.training.nonfinite import keep_step
from depthg.training.step import Model, Step

CPU = torch.device("cpu")
EMPTY = 2  # the photo without any known depth


def punch(root, value):
    """Blobs of `value` over a quarter of every second depth map, and over all of photo ``EMPTY``."""
    rng = np.random.default_rng(0)
    for number, path in enumerate(sorted((root / "depth" / "train").iterdir())):
        depth = np.load(path)
        rows, columns = np.indices(depth.shape)
        for _ in range(0 if number % 2 else 9):
            row, column = rng.integers(0, 64, 2)
            depth[(rows - row) ** 2 + (columns - column) ** 2 < 10**2] = value
        np.save(path, np.full_like(depth, value) if number == EMPTY else depth)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return punch(write_camvid(tmp_path_factory.mktemp("holes") / "camvid"), 0)


def prepare(root, *overrides):
    config = settings(root, *overrides)
    with pytest.warns(UserWarning, match=r"depth is unknown in \d+% of the cells; \d+ of \d+ images have none"):
        return config, Preparation(config, CPU).run()


def make_step(config, data):
    torch.manual_seed(0)
    return Step(config, data, Model(data.transform.channels, config.head.dim, config.head.dropout, 11, 11), CPU)


def test_holes_are_prepared_as_unknown_cells(root):
    _, data = prepare(root, "loss.depth.relation=normals")
    unknown = np.isnan(data.depth)
    for view, path in enumerate(sorted((root / "depth" / "train").iterdir())):
        holes = (np.load(path) == 0).reshape(8, 8, 8, 8).mean((1, 3))
        assert np.array_equal(unknown[view].reshape(8, 8), holes > 0.5)
    assert np.array_equal(np.isnan(data.normals), np.repeat(unknown[..., None], 4, -1))
    np.testing.assert_allclose(data.unknown, unknown.mean(1))
    assert data.unknown[EMPTY] == 1 and (data.unknown[1::2] == 0).all() and 0.05 < data.unknown[0] < 0.9


def test_nan_and_negative_depths_are_prepared_like_zeros(root, tmp_path):
    _, data = prepare(root)
    for name, value in (("nan", np.nan), ("negative", -9999.0)):
        other = prepare(punch(write_camvid(tmp_path / name / "camvid"), value))[1]
        assert np.array_equal(other.depth, data.depth, equal_nan=True)


def test_no_known_depth_at_all_is_an_error(tmp_path):
    root = write_camvid(tmp_path / "camvid")
    for path in (root / "depth" / "train").iterdir():
        np.save(path, np.zeros((64, 64), np.float32))
    with pytest.raises(DataError, match=r"depth\.root=\S*depth: no depth is known in any of the 6 images; in metres 0"):
        Preparation(settings(root), CPU).run()


def test_whole_maps_and_few_holes_are_not_mentioned(tmp_path, recwarn):
    root = write_camvid(tmp_path / "camvid")
    assert Preparation(settings(root), CPU).run().unknown is None
    depth = np.load(root / "depth" / "train" / "000.npy")
    depth[:8, :8] = np.nan
    np.save(root / "depth" / "train" / "000.npy", depth)
    assert Preparation(settings(root), CPU).run().unknown.tolist() == [1 / 64, 0, 0, 0, 0, 0]
    assert not [w for w in recwarn if "unknown" in str(w.message)]


RELATIONS = ("product", "unit", "centered", "gaussian", "euclidean", "normals", "inclination")
OPTIONS = [
    *[(f"loss.depth.relation={relation}",) for relation in RELATIONS],
    ("loss.depth.at=grid",),
    ("sampling=random", "sampling.read=bilinear", "loss.depth.relation=normals"),
    ("sampling=random", "sampling.read=bilinear"),
    ("data.crop=five", "loss.depth.pair=crop"),
    ("data.crop=five", "loss.depth.pair=crop", "loss.depth.relation=normals", "sampling.start=random"),
    ("loss.depth.shift_mean=true", "loss.depth.relation=gaussian", "loss.clamp=false"),
]


@pytest.fixture
def seen(monkeypatch):
    """What a step hands to the two parts of its loss."""
    found = {}

    def whole(*inputs, **others):
        found["others"] = others
        return depthg_loss(*inputs, **others)

    def apart(result, codes, settings, average, **inputs):
        found.update(codes=codes, settings=settings, **inputs)
        return with_known_depth(result, codes, settings, average, **inputs)

    monkeypatch.setattr("depthg.training.step.depthg_loss", whole)
    monkeypatch.setattr("depthg.training.step.with_known_depth", apart)
    return found


@pytest.mark.parametrize("overrides", OPTIONS, ids=" ".join)
def test_the_depth_term_is_the_mean_over_known_pairs(root, overrides, seen):
    config, data = prepare(root, "loss.depth.bandwidth=0.4", "loss.depth.shift=0.3", *overrides)
    step = make_step(config, data)
    losses, logged = step.losses(0)
    assert "depth" not in seen["others"]
    u = seen["depth"]
    v, codes = seen.get("depth_other", u), seen.get("codes_depth", seen["codes"])
    assert u.isnan().any() and not u.isnan().all() and (v is u) == (config.loss.depth.pair == "self")
    relation, shift = kernel_relation(config.loss.depth.relation), seen["settings"].depth_shift
    loss, similarity, d = definition(seen["codes"], codes, u, v, shift, relation, config.loss.clamp)
    if config.loss.depth.shift_mean:
        torch.testing.assert_close(shift.double(), d.mean(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(logged["loss.depth"].double(), loss, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(logged["similarity.depth"].double(), similarity, atol=1e-6, rtol=1e-5)
    kinds = ("self", "neighbour", "negative")
    total = sum(getattr(config.loss, kind).weight * logged[f"loss.{kind}"] for kind in kinds)
    torch.testing.assert_close(losses["total"], total + config.loss.depth.weight * logged["loss.depth"])
    losses["total"].backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in step.model.head.parameters())


def test_points_lie_where_depth_is_known(root, seen):
    config, data = prepare(root, "batch_size=5")
    step = make_step(config, data)
    step.losses(0)
    batch = draw_batch(config, data, 0)
    points = step.points(batch.anchors, 0, step.generator("any"))
    for view, cells, depth in zip(batch.anchors, points, seen["depth"], strict=True):
        expected = data.depth[view][cells.numpy()].astype(np.float32)
        assert np.array_equal(depth.numpy(), expected, equal_nan=True)
        assert np.isnan(expected).sum() == max(0, 16 - np.isfinite(data.depth[view]).sum())


def test_a_batch_without_holes_is_computed_as_ever(root, seen):
    config, data = prepare(root, "batch_size=2", "knn.draw=2")
    with_holes = [view for view in range(6) if data.unknown[view] > 0]
    step, plain = make_step(config, data), make_step(config, dataclasses.replace(data, unknown=None))
    apart = 0
    for iteration in range(9):
        seen.clear()
        losses, _ = step.losses(iteration)
        if set(draw_batch(config, data, iteration).anchors) & set(with_holes):
            assert "depth" in seen and losses["total"].isfinite()
            apart += 1
        else:
            assert "depth" not in seen and torch.equal(losses["total"], plain.losses(iteration)[0]["total"])
    assert 0 < apart < 9


def test_holes_of_the_whole_batch_decide_for_every_process(root, seen, monkeypatch):
    """Also where this process has none of them: all processes average the number of pairs, or none does."""
    config, data = prepare(root, "loss.scope=global")
    calls = []
    monkeypatch.setattr("depthg.training.step.share_of", lambda *_: BatchShare(1, 2, 6))
    monkeypatch.setattr("depthg.runtime.processes.average", lambda x: calls.append(x.shape) or x)
    monkeypatch.setattr("depthg.runtime.processes.gather", lambda x: x.repeat(6, 1, 1))
    step = make_step(config, data)
    assert not step.has_holes(draw_batch(config, data, 0).part(step.share).anchors)
    step.losses(0)
    assert "depth" in seen and seen["depth"].shape == (1, 16) and torch.Size([]) in calls


def test_a_kept_step_with_holes_is_replayed(root, tmp_path):
    config, data = prepare(root)
    step = make_step(config, data)
    keep_step(tmp_path / "kept.json", step, 0, "loss", {"loss": 0.0})
    losses, logged = step.losses(0)
    again = replay(tmp_path / "kept.json")
    assert again["loss"] == losses["total"].item() and again["loss.depth"] == logged["loss.depth"].item()


@pytest.mark.parametrize("relation", ["product", "normals"])
def test_the_diagnosis_reads_d_where_depth_is_known(root, relation):
    config, data = prepare(root, f"loss.depth.relation={relation}", "loss.depth.shift_mean=true")
    found, counts = depth_pairs(make_step(config, data))
    known = 0
    for view in range(6):  # all views are anchors of every batch
        cells = make_step(config, data).points(np.array([view]), 0, torch.Generator())[0]
        known += 12 * int(np.isfinite(data.depth[view][cells.numpy()]).sum()) ** 2
    assert (
        counts.sum() == known
        and np.isfinite(found["shift"])
        and found["shift"] == pytest.approx(found["mean"], abs=1e-3)
    )
    data.unknown[:] = 1
    data = dataclasses.replace(data, depth=np.full_like(data.depth, np.nan), normals=None)
    assert relation != "product" or depth_pairs(make_step(config, data)) == (None, None)
