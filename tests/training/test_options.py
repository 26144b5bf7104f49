"""Options reach what they are meant for: the function that acts on them sees exactly the given value."""

import numpy as np
import pytest
import torch
from miniature import settings, write_camvid
from PIL import Image

import depthg.features.caches
import depthg.training.sampling
import depthg.training.step
from depthg.features.preparation import Preparation
from depthg.training.step import Model, Step
from depthg.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(shared_tree):
    return shared_tree


def make_step(root, *overrides):
    config = settings(root, *overrides)
    data = Preparation(config, CPU).run()
    return Step(config, data, Model(data.transform.channels, 8, 0.1, 11, 11), CPU)


class Stop(Exception):
    """Raised by a spy once it has seen its arguments."""


def first_call(monkeypatch, module, name, act):
    """Arguments of the first call of ``module.name`` while ``act()`` runs; the call itself does not happen."""

    def spy(*arguments, **keywords):
        raise Stop(arguments, keywords)

    monkeypatch.setattr(module, name, spy)
    with pytest.raises(Stop) as seen:
        act()
    return seen.value.args


LOSS_OPTIONS = {
    "loss.self.weight": "self_weight",
    "loss.self.shift": "self_shift",
    "loss.neighbour.weight": "neighbour_weight",
    "loss.neighbour.shift": "neighbour_shift",
    "loss.negative.weight": "negative_weight",
    "loss.negative.shift": "negative_shift",
    "loss.depth.weight": "depth_weight",
    "loss.depth.shift": "depth_shift",
    "loss.depth.bandwidth": "bandwidth",
}


def test_every_weight_and_shift_reaches_its_own_term(root, monkeypatch):
    values = {key: 0.11 + 0.01 * number for number, key in enumerate(LOSS_OPTIONS)}
    step = make_step(root, *(f"{key}={value}" for key, value in values.items()), "loss.negative.draws=3")
    arguments, _ = first_call(monkeypatch, depthg.training.step, "depthg_loss", lambda: step.losses(0))
    found = arguments[5]
    for key, name in LOSS_OPTIONS.items():
        assert getattr(found, name) == pytest.approx(values[key]), key
    assert arguments[4].shape == (3, 6), "loss.negative.draws"


def test_field_of_view_of_the_unprojection(root, monkeypatch):
    step = make_step(root, "sampling.fov_deg=37")
    _, keywords = first_call(
        monkeypatch, depthg.training.sampling, "farthest_point_sample_depth", lambda: step.losses(0)
    )
    assert keywords["fov_deg"] == 37


@pytest.mark.parametrize("more", [[], ["mode=released"]])
def test_cells_of_the_probes(root, monkeypatch, more):
    step = make_step(root, "probe.cells=3", *more)
    arguments, _ = first_call(monkeypatch, depthg.training.step, "linear_probe_loss", lambda: step.losses(0))
    codes, cells = arguments[1], arguments[4]
    assert codes.shape[:2] == cells.shape == (step.config.batch_size, 3)
    assert all(len(set(row)) == 3 for row in cells.tolist()), "no cell is drawn twice"


def test_all_cells_of_the_probes(root, monkeypatch):
    step = make_step(root, "probe.cells=0")
    arguments, _ = first_call(monkeypatch, depthg.training.step, "linear_probe_loss", lambda: step.losses(0))
    assert arguments[1].shape[1] == step.data.grid[0] * step.data.grid[1] and arguments[4] is None


def test_learning_rates(root):
    trainer = Trainer(settings(root, "name=rates", "head.lr=0.25", "probe.lr=0.125"))
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in trainer.optimizers.items()}
    assert rates == {"head": 0.25, "cluster": 0.125, "linear": 0.125}
    trainer.log.close()


def test_scene_counts_and_seed(root, monkeypatch):
    config = settings(root, "data=scenes", "data.n_train=4", "data.n_val=3", "data.n_test=2", "data.scene_seed=5")
    _, keywords = first_call(monkeypatch, depthg.features.caches, "load_dataset", lambda: Preparation(config, CPU))
    assert [keywords[key] for key in ("n_train", "n_val", "n_test", "seed")] == [4, 3, 2, 5]


def test_batch_size_of_the_backbone(root, tmp_path):
    config = settings(root, "backbone.batch_size=4", f"cache.dir={tmp_path}")
    preparation, sizes = Preparation(config, CPU), []
    network = preparation.backbone

    def spy(images):
        sizes.append(len(images))
        return network(images)

    preparation._backbone = type(
        "Spy", (), {"__call__": staticmethod(spy), "__getattr__": lambda _, k: getattr(network, k)}
    )()
    preparation.features()
    assert sizes == [4, 2, 3]


def test_crop_ratio(root):
    view = Preparation(settings(root, "data.crop=five", "data.crop_ratio=0.25"), CPU).train_views.load(0)
    photo = np.asarray(Image.open(root / "train" / "000.png"))
    assert abs(view.image.float().mean() - photo[:16, :16].mean()) < 1


def ground(root, *overrides):
    config = settings(root, "depth.source=ground_plane", "depth.mapping=linear", "depth.horizon=0.25", *overrides)
    return Preparation(config, CPU).run().depth[0].reshape(8, 8).astype(float)


def test_ground_plane_options(root):
    plain = ground(root, "depth.far=1000")
    np.testing.assert_allclose(ground(root, "depth.far=1000", "depth.camera_height=2.8")[4:], 2 * plain[4:], rtol=2e-3)
    np.testing.assert_allclose(ground(root, "depth.far=500")[4:], 2 * plain[4:], rtol=2e-3)
    wide = np.tan(np.radians(30)) / np.tan(np.radians(45))  # focal length at 90 over that at 60 degrees
    np.testing.assert_allclose(ground(root, "depth.far=1000", "depth.fov_deg=90")[4:], wide * plain[4:], rtol=2e-3)


def test_unit_of_integer_depth_maps(tmp_path):
    root = write_camvid(tmp_path / "camvid", 2, 1)
    files = list((root / "depth").rglob("*.npy"))
    for path in files:
        np.save(path, np.minimum(np.load(path), 60))
    exact = Preparation(settings(root, "batch_size=2"), CPU).run().depth
    for path in files:
        Image.fromarray((np.load(path) * 100).astype(np.uint16)).save(path.with_suffix(".png"))
        path.unlink()
    stored = Preparation(settings(root, "batch_size=2", "depth.metres_per_unit=0.01"), CPU).run().depth
    np.testing.assert_allclose(stored.astype(float), exact.astype(float), atol=2e-3)


def test_test_split_is_scored_when_asked_for(tmp_path):
    root = write_camvid(tmp_path / "camvid", 2, 1)
    config = settings(root, "data=scenes", "data.n_train=2", "data.n_val=1", "data.n_test=1", "data.eval_split=test")
    preparation = Preparation(config, CPU)
    assert preparation.evaluation_split.names == ["test_0000"]
    assert not np.array_equal(preparation.evaluation_split.image(0), preparation.dataset.val.image(0))
    with pytest.raises(ValueError, match="no split 'test'"):
        Preparation(settings(root, "data.eval_split=test"), CPU)
