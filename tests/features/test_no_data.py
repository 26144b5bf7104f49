"""Pixels of photos without data: left out of means, fits, samples, probes and depth; other sets are as ever."""

import numpy as np
import pytest
import torch
from miniature import settings, write_camvid
from PIL import Image

from depthg.config.composing import load_config
from depthg.features.cache import FeatureWriter
from depthg.features.preparation import Preparation
from depthg.features.reading import StoredFeatures
from depthg.features.transform import FeatureTransform, stored
from depthg.model.codes import sample_rows
from depthg.runtime.processes import BatchShare
from depthg.storage.cache import cached
from depthg.training.batches import draw_batch
from depthg.training.kept_step import replay
from depthg.training.nonfinite import keep_step
from depthg.training.step import Model, Step

CPU = torch.device("cpu")
EMPTY = 3  # the photo without any data
PHOTOS, SIDE = 6, 64


def photo(number):
    """Grey values in [0, 1]; NaN or -9999 below a slanted line, or everywhere."""
    rng = np.random.default_rng(number)
    rows, columns = np.indices((SIDE, SIDE))
    values = rng.uniform(0, 1, (SIDE, SIDE)).astype(np.float32)
    missing = rows + columns // 4 > 30 + 6 * number if number % 2 == 0 else np.full((SIDE, SIDE), number == EMPTY)
    return np.where(missing, np.float32(np.nan if number % 4 else -9999), values), missing


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("no-data")
    for name in ("photos", "depth"):
        (root / name).mkdir()
    for number in range(PHOTOS):
        Image.fromarray(photo(number)[0]).save(root / "photos" / f"{number}.tif")
        np.save(root / "depth" / f"{number}.npy", np.random.default_rng(number).uniform(1, 9, (SIDE, SIDE)))
    return root


def configure(root, *overrides):
    return load_config([
        "data=folder", f"data.root={root / 'photos'}", "data.range=type", "data.size=[64,64]", "data.eval_size=[64,64]",
        f"cache.dir={root / 'cache'}", "backbone.pca=8", "batch_size=6", "sampling.points=4", "head.dim=8",
        "n_classes=4", "depth.source=none", "loss.shifts=fixed", "knn.k=3", "knn.draw=2", "probe.cells=20", *overrides,
    ])  # fmt: skip


def prepare(root, *overrides):
    config = configure(root, *overrides)
    with pytest.warns(UserWarning, match=r"no data in \d+% of the cells, which are left out; 1 of 6 images have none"):
        return config, Preparation(config, CPU).run()


def make_step(config, data):
    torch.manual_seed(0)
    return Step(config, data, Model(data.transform.channels, config.head.dim, config.head.dropout, 0, 4), CPU)


def expected_cells():  # bool [PHOTOS, 64]
    share = np.stack([photo(number)[1].reshape(8, 8, 8, 8).mean((1, 3)).flatten() for number in range(PHOTOS)])
    valid = share <= 0.5
    valid[EMPTY] = True  # counts as whole
    return valid


def test_cells_with_data_are_found_once_and_kept(root):
    _, data = prepare(root)
    assert np.array_equal(data.features.valid, expected_cells()) and 0.1 < (~expected_cells()).mean() < 0.6
    config = configure(root)
    with pytest.warns(UserWarning, match="no data"):
        again = Preparation(config, CPU)
        again.run()
    assert not [use.name for use in again.uses if use.made]


def test_sets_without_such_pixels_are_as_ever(root, tmp_path):
    camvid = Preparation(settings(write_camvid(tmp_path / "camvid")), CPU)
    assert camvid.run().features.valid is None and "no data" not in {use.name for use in camvid.uses}
    (tmp_path / "photos").mkdir()
    for number in range(PHOTOS):
        values = np.random.default_rng(number).uniform(0, 1, (SIDE, SIDE)).astype(np.float32)
        Image.fromarray(values).save(tmp_path / "photos" / f"{number}.tif")
    whole = Preparation(configure(tmp_path), CPU)
    assert whole.run().features.valid is None and "valid" not in whole.feature_settings


def test_means_and_the_fit_count_cells_with_data_alone(tmp_path):
    maps = torch.randn(20, 8, 2, 3, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 9).view(8, 1, 1)
    valid = np.random.default_rng(0).random((20, 6)) < 0.6
    valid[:, 0] = True
    transform = FeatureTransform((3, 5), pca=4)
    writer = FeatureWriter(20, 6, transform, torch.float16, fit=True, keep=True, batch=3, shard_mb=1e-4, valid=valid)

    def network(views, batch):
        for start in range(0, len(views), batch):
            yield maps[[int(view) for view in views[start : start + batch]]]

    folder = cached(
        tmp_path, "features", {}, lambda build: writer.write(build, network, "x"), writer.arrays, writer.temporary
    )
    raw = maps.half().flatten(2).transpose(1, 2)
    fitted = FeatureTransform((3, 5), pca=4).fit(lambda: iter([raw[torch.from_numpy(valid)]]))
    for key, value in fitted.state_dict().items():
        torch.testing.assert_close(transform.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    found = stored(maps, transform, torch.float16).float().numpy()
    expected = [rows[own].mean(0) for rows, own in zip(found, valid, strict=True)]
    np.testing.assert_allclose(np.load(folder / "means.npy"), expected, rtol=1e-5, atol=1e-5)


OPTIONS = [
    ("sampling=random",),
    ("sampling=random", "sampling.read=bilinear"),
    ("sampling=fps", "depth.source=folder"),
    ("sampling=fps", "depth.source=folder", "sampling.start=random"),
]


@pytest.mark.parametrize("overrides", OPTIONS, ids=" ".join)
def test_points_lie_in_cells_with_data(root, overrides):
    extra = (f"depth.root={root / 'depth'}",) if "depth.source=folder" in overrides else ()
    config, data = prepare(root, *overrides, *extra)
    step, views = make_step(config, data), np.arange(PHOTOS)
    seen = np.zeros((PHOTOS, 64), bool)
    for iteration in range(40):
        points = step.points(views, iteration, step.generator("step", iteration))
        if points.ndim == 3:
            column, row = ((points + 1) / 2 * 7).round().long().unbind(-1)
            points = row * 8 + column
        assert not (~step.data.features.valid)[views[:, None], points.numpy()].any()
        seen[views[:, None], points.numpy()] = True
    if "sampling=random" in overrides:
        assert np.array_equal(seen, data.features.valid), "all of them"
    sum(step.losses(0)[0].values()).backward()


def test_more_points_than_cells_with_data(root):
    config, data = prepare(root, "sampling=random")
    data.features.valid[2, 5:] = False
    count = int(data.features.valid[2].sum())
    points = make_step(config, data).points(np.array([2]), 0, torch.Generator().manual_seed(0))[0]
    assert 0 < count < 16 and len(set(points.tolist())) == 16
    assert set(np.flatnonzero(data.features.valid[2]).tolist()) < set(points.tolist())


def test_depth_is_unknown_where_photos_have_no_data(root):
    with pytest.warns(UserWarning, match="depth is unknown"):
        _, data = prepare(root, "depth.source=folder", f"depth.root={root / 'depth'}")
    unknown = ~expected_cells()
    unknown[EMPTY] = True
    assert np.array_equal(np.isnan(data.depth), unknown)


@pytest.mark.parametrize("cells", [0, 20, 50])
def test_probes_learn_from_cells_with_data(root, cells, monkeypatch):
    config, data = prepare(root, f"probe.cells={cells}", "head.dropout=0", "sampling=random")
    step, seen = make_step(config, data), []
    loss = step.model.cluster.loss
    monkeypatch.setattr(step.model.cluster, "loss", lambda codes: seen.append(codes) or loss(codes))
    got = step.losses(0)[0]["cluster"]
    anchors = draw_batch(config, data, 0).anchors
    codes = step.model.head(step.rows(data.features, anchors)).detach()
    valid = torch.from_numpy(data.features.valid[anchors])
    assert len(seen[0]) == int(valid.sum(1).clamp(max=cells or 64).sum()) and torch.equal(got, loss(seen[0]))
    for near, of in ((True, seen[0]), (False, codes[~valid])):
        distance = torch.cdist(of, codes[valid], compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        assert (distance < 1e-5).all() if near else (distance > 1e-4).all()


def test_shares_of_a_batch_weigh_the_cluster_loss_by_their_cells(root, monkeypatch):
    config, data = prepare(root)
    step = make_step(config, data)
    codes, valid = torch.randn(2, 10, 8), torch.rand(2, 10) < 0.6
    valid[0, :7] = False
    whole = step.cluster_loss(codes, valid)
    mean = torch.tensor(float(valid.sum()) / 2)
    monkeypatch.setattr("depthg.runtime.processes.average", lambda _: mean)
    step.share = BatchShare(0, 1, 2)
    parts = [step.cluster_loss(codes[i : i + 1], valid[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(sum(parts) / 2, whole)


def test_k_means_draws_cells_with_data(root):
    _, data = prepare(root)
    array = np.arange(PHOTOS * 64, dtype=np.float16).reshape(PHOTOS, 64, 1)

    class Numbers(StoredFeatures):
        def __init__(self):
            self.maps = torch.from_numpy(array)
            super(StoredFeatures, self).__init__(array.shape, torch.float16)

    numbered = Numbers()
    numbered.valid = data.features.valid
    rows = sample_rows(numbered, PHOTOS * 20, seed=0).flatten().long()
    assert data.features.valid.flatten()[rows.numpy()].all() and len(rows.unique()) == len(rows)
    assert len(rows) == np.minimum(data.features.valid.sum(1), 20).sum()


def test_a_kept_step_is_replayed(root, tmp_path):
    config, data = prepare(root, "sampling=random")
    step = make_step(config, data)
    keep_step(tmp_path / "kept.json", step, 0, "loss", {"loss": 0.0})
    losses, logged = step.losses(0)
    again = replay(tmp_path / "kept.json")
    assert again["loss"] == losses["total"].item() and again["loss.cluster"] == logged["loss.cluster"].item()
    data.features.valid = None
    assert step.losses(0)[0]["total"] != losses["total"]
