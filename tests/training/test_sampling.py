"""Point sampling: each option of the protocol at both values, against written-out loops."""

import math

import numpy as np
import pytest
import torch

from depthg.config.schema import SamplingConfig
from depthg.kernels.released import released_cloud
from depthg.training.sampling import (
    as_read,
    farthest_cells,
    random_cells,
    sample,
)


def farthest_loop(cloud: np.ndarray, count: int, start: int) -> list[int]:
    """Farthest point sampling as anybody would write it: float32, ties to the lowest index."""
    picks, nearest = [start], np.full(len(cloud), np.inf, np.float32)
    while len(picks) < count:
        nearest = np.minimum(nearest, ((cloud - cloud[picks[-1]]) ** 2).sum(1, dtype=np.float32))
        picks.append(int(nearest.argmax()))
    return picks


def pinhole_loop(depth: np.ndarray, fov_deg: float) -> np.ndarray:
    height, width = depth.shape
    focal = width / (2 * math.tan(math.radians(fov_deg) / 2))
    rows = [
        [(c + 0.5 - width / 2) / focal * depth[r, c], (r + 0.5 - height / 2) / focal * depth[r, c], depth[r, c]]
        for r in range(height)
        for c in range(width)
    ]
    return np.array(rows, np.float32)


def test_random_cells_are_distinct_and_cover_everything_in_the_long_run():
    cells = random_cells(500, 12, 5, torch.Generator().manual_seed(0))
    assert all(len(set(row.tolist())) == 5 for row in cells)
    counts = cells.flatten().bincount(minlength=12).float()
    assert (counts / counts.mean() - 1).abs().max() < 0.2


def test_too_many_points_is_an_error_that_names_both_numbers():
    with pytest.raises(ValueError, match=r"17 points .* 16 cells"):
        random_cells(1, 16, 17)
    with pytest.raises(ValueError, match=r"17 points .* 4 x 4"):
        farthest_cells(torch.rand(1, 4, 4), 17, SamplingConfig(), None)


@pytest.mark.parametrize("fov", [60.0, 90.0])
def test_paper_fps_against_a_loop(fov):
    depth = torch.rand(3, 5, 7)
    cells = farthest_cells(depth, 9, SamplingConfig(fov_deg=fov), None)
    for row, one in zip(cells, depth.numpy(), strict=True):
        assert row.tolist() == farthest_loop(pinhole_loop(one, fov), 9, 0)


def test_random_start_differs_per_image_and_is_the_first_pick():
    depth = torch.rand(1, 6, 6).expand(64, 6, 6).contiguous()
    settings = SamplingConfig(start="random")
    cells = farthest_cells(depth, 4, settings, torch.Generator().manual_seed(0))
    assert len(set(cells[:, 0].tolist())) > 10
    again = farthest_cells(depth, 4, settings, torch.Generator().manual_seed(0))
    assert torch.equal(cells, again)
    assert (farthest_cells(depth, 4, SamplingConfig(), None)[:, 0] == 0).all()


def test_released_unprojection_is_used():
    depth = torch.rand(2, 6, 6)
    cells = farthest_cells(depth, 8, SamplingConfig(unprojection="released"), None)
    for row, one in zip(cells, released_cloud(depth).numpy(), strict=True):
        assert row.tolist() == farthest_loop(one, 8, 0)


def test_released_coordinates_transpose_and_read_cell_27_at_26_04():
    cells, grid = torch.tensor([[27 * 28 + 3, 1]]), (28, 28)
    assert as_read(cells, grid, SamplingConfig()) is cells
    near, far = as_read(cells, grid, SamplingConfig(read="bilinear"))[0].tolist()
    assert (near[0] + 1) / 2 * 28 == pytest.approx(1, abs=1e-5) and near[1] == -1, "in raster order"
    assert (far[0] + 1) / 2 * 27 == pytest.approx(3 * 27 / 28, abs=1e-5)
    assert (far[1] + 1) / 2 * 27 == pytest.approx(26.04, abs=0.005)
    swapped = as_read(cells, grid, SamplingConfig(read="bilinear", transpose=True))[0].tolist()
    assert swapped == [near[::-1], far[::-1]]


def test_sample_reads_cells_or_coordinates():
    depth, shape = torch.rand(2, 6, 6), (2, 6, 6)
    generator = torch.Generator().manual_seed(0)
    assert sample(depth, shape, 9, SamplingConfig(), generator).dtype == torch.int64
    assert sample(depth, shape, 9, SamplingConfig(read="bilinear"), generator).shape == (2, 9, 2)
    random = sample(depth, shape, 9, SamplingConfig(method="random", read="bilinear"), generator)
    assert random.shape == (2, 9, 2) and random.abs().max() <= 1
    assert sample(None, shape, 9, SamplingConfig(), generator).shape == (2, 9), "without depth points are random"
