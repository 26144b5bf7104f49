"""A step of mode=released against losses and gradients of the authors' classes (``tests/oracle/released.npz``)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import settings, write_camvid
from PIL import Image
from torch.nn import functional as F

from depthg.config import load_config
from depthg.features.preparation import Preparation
from depthg.kernels import farthest_point_sample
from depthg.kernels.released import regular_grid, released_cloud, released_coordinates
from depthg.training.batches import Batch
from depthg.training.kept_step import KeptData, KeptFeatures, KeptRows
from depthg.training.step import Model, Step

ORACLE = Path(__file__).parents[1] / "oracle" / "released.npz"
SETTINGS = (
    "mode=released", "sampling.points=5", "batch_size=4", "n_classes=2", "knn.k=1", "knn.draw=1", "head.dim=8",
    "loss.self.weight=0.58", "loss.self.shift=0.07", "loss.neighbour.weight=0.36", "loss.neighbour.shift=0.025",
    "loss.negative.weight=0.70", "loss.negative.shift=0.76", "loss.depth.weight=0.19", "loss.depth.shift=0.03",
    "loss.depth.shift_mean=false", "loss.shifts=fixed", "sampling.start=first", "head.dropout=0", "probe.cells=0",
)  # fmt: skip
VIEWS = np.arange(8)  # four anchors, then their four neighbours


class GivenCodes(Step):
    """A step whose codes are given, as leaves: those of the anchors at the first pass, then those of the neighbours."""

    def forward(self, feats):
        codes = self.leaves[self.passes]
        self.passes += 1
        assert feats.shape[:2] == codes.shape[:2] == (4, 784), "whole maps, before they are read at the points"
        return feats, codes


def rows(maps):  # [N, C, H, W] -> [N, H*W, C]
    return torch.from_numpy(maps).flatten(2).transpose(1, 2).contiguous()


@pytest.fixture(scope="module")
def published():
    with np.load(ORACLE) as values:
        return dict(values)


@pytest.mark.parametrize("case", ["step", "step_zero"])
def test_losses_and_gradients_are_those_of_the_authors_classes(published, case, monkeypatch):
    given = {name.removeprefix(f"{case}_"): value for name, value in published.items() if name.startswith(f"{case}_")}
    given = {name: value for name, value in given.items() if not name.startswith("zero_")}
    config = load_config(["experiment=demo", *SETTINGS])
    depth = torch.from_numpy(np.concatenate([given["depth"], given["depth_pos"]]))[:, 0]
    features = torch.cat([rows(given["feats"]), rows(given["feats_pos"])])
    data = KeptData(
        grid=(28, 28), photos=VIEWS, features=KeptFeatures(VIEWS, features, 8), labels=None, normals=None,
        neighbours=KeptRows(VIEWS, np.roll(VIEWS, 4)[:, None], 8),
        depth=KeptRows(VIEWS, depth.flatten(1).numpy(), 8),
        depth_grids=KeptRows(VIEWS, regular_grid(depth, 5).numpy(), 8),
    )  # fmt: skip
    batch = Batch(VIEWS[:4], VIEWS[4:], None)
    monkeypatch.setattr("depthg.training.step.draw_batch", lambda *_: batch)
    monkeypatch.setattr("depthg.training.step.negative_pairs", lambda *_: torch.from_numpy(given["perms"]))
    step = GivenCodes(config, data, Model(16, 8, 0.0, 0, 2), torch.device("cpu"), ahead=False)
    step.leaves, step.passes = [rows(given[name]).requires_grad_() for name in ("code", "code_pos")], 0
    losses, logged = step.losses(1)
    ours = [float(logged[f"loss.{term}"]) for term in ("self", "neighbour", "negative", "depth")]
    assert np.abs(np.array(ours) - given["losses"]).max() <= 1e-6
    losses["total"].backward()
    for leaf, name in zip(step.leaves, ("grad_code", "grad_code_pos"), strict=True):
        wanted = rows(given[name]).double()
        assert (leaf.grad.double() - wanted).norm() <= 1e-5 * wanted.norm()


def test_depth_of_the_grid_lies_beside_the_points_in_raster_order():
    depth = torch.arange(12.0).view(1, 3, 4)
    assert regular_grid(depth, 2).tolist() == [[0, 8, 3, 11]], "the corners of the map, column by column"
    assert regular_grid(depth, 3).tolist() == [[0, 4, 8, 1.5, 5.5, 9.5, 3, 7, 11]]


@pytest.fixture
def photos(tmp_path):
    """A tree of photos of 96 x 80 pixels (width x height) with smooth and noisy depth in metres."""
    root, rng = write_camvid(tmp_path / "camvid", 3, 1), np.random.default_rng(0)
    for path in (root / "train").glob("*.png"):
        Image.fromarray(rng.integers(0, 256, (80, 96, 3), np.uint8)).save(path)
        Image.fromarray(rng.integers(0, 11, (80, 96), np.uint8)).save(root / "trainannot" / path.name)
        depth = np.add.outer(np.linspace(9, 2, 80), np.sin(np.arange(96) / 9)) + rng.gamma(0.3, 2, (80, 96))
        np.save(root / "depth" / "train" / f"{path.stem}.npy", depth.astype(np.float32))
    return root


def as_stored_and_loaded(path: Path) -> torch.Tensor:  # float32 [64, 64], whole numbers
    """Depth of a photo on the way of the released code: 8 bits, then Resize(64, NEAREST) and CenterCrop(64)."""
    depth = np.load(path)
    levels = ((depth - depth.min()) / (depth.max() - depth.min()) * 255).astype(np.uint8)
    resized = Image.fromarray(levels).resize((int(64 * 96 / 80), 64), Image.Resampling.NEAREST)
    left = round((resized.width - 64) / 2)
    return torch.from_numpy(np.asarray(resized).astype(np.float32))[:, left : left + 64]


def test_depth_and_points_from_photos_on(photos):
    given = ("mode=released", "batch_size=2", "sampling.schedule=[[1,3]]", "loss.depth.relation=product")
    config = settings(photos, *given)
    data = Preparation(config, torch.device("cpu")).run()
    maps = torch.stack([as_stored_and_loaded(path) for path in sorted((photos / "depth" / "train").glob("*.npy"))])
    cells = F.adaptive_avg_pool2d(maps[:, None], 8)[:, 0]
    assert data.depth.dtype == data.depth_grids.dtype == np.float32
    assert np.abs(data.depth.reshape(3, 8, 8) - (cells / 255).numpy()).max() <= 6e-8
    step = Step(config, data, Model(data.transform.channels, 8, 0.1, 11, 11), torch.device("cpu"), ahead=False)
    views, generator = np.arange(3), torch.Generator()
    for iteration, side in ((0, 4), (1, 3)):
        picks = farthest_point_sample(released_cloud(cells), side * side).sort(1).values
        points = step.points(views, iteration, generator)
        assert torch.equal(points, released_coordinates(picks, 8, 8, transpose=True))
        grid = F.interpolate(maps[:, None], (side, side), mode="bilinear", align_corners=True)[:, 0]
        values = step.depth_values(views, points, side)
        torch.testing.assert_close(values * 255, grid.transpose(1, 2).flatten(1), rtol=1e-6, atol=1e-5)
