"""Sampling of the released code against the values of its classes in ``tests/oracle/released.npz``."""

from pathlib import Path

import numpy as np
import pytest
import torch
from loss_cases import DEVICE

from depthg.kernels import farthest_point_sample
from depthg.kernels.released import released_cloud, released_coordinates

ORACLE = Path(__file__).parents[1] / "oracle" / "released.npz"


@pytest.fixture(scope="module")
def published():
    with np.load(ORACLE) as values:
        return {name: torch.from_numpy(values[name]).to(DEVICE) for name in ("fps_depth", "fps_picks", "fps_coords")}


def test_all_maps_pick_by_pick(published):
    cloud = released_cloud(published["fps_depth"])
    assert cloud.shape == (14, 784, 3) and cloud.dtype == torch.float32
    for impl in ("auto", "eager"):
        picks = farthest_point_sample(cloud, 121, impl=impl)
        assert (picks == published["fps_picks"]).all(1).tolist() == [True] * 14
    assert all(len(set(row)) == 121 for row in picks.tolist())  # also where all depth is 0 and all points coincide


def test_coordinates_in_raster_order(published):
    cells = published["fps_picks"].sort(1).values
    ours = released_coordinates(cells, 28, 28, transpose=True)
    wanted = published["fps_coords"].flatten(1, 2) * 2 - 1
    assert ours.dtype == torch.float32 and (ours - wanted).abs().max() <= 1e-6


def test_only_z_is_stretched():
    depth = torch.full((1, 2, 4), 0.5, dtype=torch.float64, device=DEVICE)
    cloud = released_cloud(depth).reshape(2, 4, 3)
    factor = 3.2395503520965576  # 2 tan(45 rad) in float32
    assert cloud[..., 0].tolist() == [[factor / 2 * x for x in (-0.5, -0.25, 0, 0.25)]] * 2
    assert cloud[..., 1].tolist() == [[-factor / 4] * 4, [0.0] * 4]
    assert cloud[..., 2].unique().tolist() == [-2.5]


def test_coordinates_of_a_wide_map():
    cells = torch.tensor([[0, 5, 11]], device=DEVICE)  # of 3 rows and 4 columns: (0, 0), (1, 1), (2, 3)
    xy = released_coordinates(cells, 3, 4, transpose=False)[0]
    torch.testing.assert_close(xy.cpu(), torch.tensor([[-1, -1], [-0.5, -1 / 3], [0.5, 1 / 3]]))
    assert torch.equal(released_coordinates(cells, 3, 4, transpose=True)[0], xy.flip(1))
