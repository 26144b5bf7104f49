"""Point sampling: each option of the protocol at both values, against written-out loops."""

import math

import numpy as np
import pytest
import torch

from depthg.config.schema import SamplingConfig
from depthg.kernels import farthest_point_sample_depth
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


# ---- unknown depth


def with_holes(share: float, images: int = 5, size: tuple[int, int] = (6, 7)) -> torch.Tensor:
    depth = torch.rand(images, *size, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05
    holes = torch.rand(images, *size, generator=torch.Generator().manual_seed(2)) < share
    return depth.masked_fill(holes, torch.nan)


@pytest.mark.parametrize("unprojection", ["pinhole", "released"])
def test_fps_knows_nothing_of_cells_of_unknown_depth(unprojection):
    """It picks among the known cells as if there were no others, from the first of them on."""
    depth, settings = with_holes(0.4), SamplingConfig(unprojection=unprojection)
    cells = farthest_cells(depth, 12, settings, None)
    for row, one in zip(cells, depth, strict=True):
        there = (~one.flatten().isnan()).nonzero()[:, 0].numpy()
        clouds = {
            "pinhole": lambda x: pinhole_loop(x.numpy(), settings.fov_deg),
            "released": lambda x: released_cloud(x[None])[0].numpy(),
        }
        picks = farthest_loop(clouds[unprojection](one)[there], 12, 0)
        assert row.tolist() == there[picks].tolist()


def test_depth_of_zero_is_known_even_where_all_of_it_lies_at_one_place():
    depth = torch.zeros(1, 5, 5)  # every cell at the camera: all distances are 0
    depth[0, :3] = torch.nan
    assert sorted(farthest_cells(depth, 10, SamplingConfig(), None)[0].tolist()) == list(range(15, 25))


def test_images_without_holes_keep_their_picks_in_a_batch_with_holes():
    depth = with_holes(0.4)
    depth[[0, 3]] = torch.rand(2, 6, 7) + 0.1
    for start in ("first", "random"):
        settings = SamplingConfig(start=start)
        alone = depth.nan_to_num(nan=0.5)
        found, expected = (farthest_cells(x, 9, settings, torch.Generator().manual_seed(4)) for x in (depth, alone))
        assert torch.equal(found[[0, 3]], expected[[0, 3]])


def test_a_random_start_is_a_known_cell_and_any_of_them():
    depth = with_holes(0.7, images=1)
    known = set((~depth.flatten().isnan()).nonzero()[:, 0].tolist())
    many = depth.expand(600, 6, 7).contiguous()
    starts = farthest_cells(many, 3, SamplingConfig(start="random"), torch.Generator().manual_seed(0))[:, 0]
    counts = starts.bincount(minlength=42)
    assert set(counts.nonzero()[:, 0].tolist()) == known
    assert counts[list(known)].float().std() < 0.5 * counts[list(known)].float().mean()


def test_with_fewer_known_cells_than_points_the_rest_is_random_and_distinct():
    depth = with_holes(0.3, images=4)
    depth[1].flatten()[5:] = torch.nan
    depth[2] = torch.nan
    cells = farthest_cells(depth, 20, SamplingConfig(), None)
    assert all(len(set(row.tolist())) == 20 for row in cells)
    known = (~depth[1].flatten().isnan()).nonzero()[:, 0].tolist()
    assert 0 < len(known) <= 5 and set(cells[1, : len(known)].tolist()) == set(known)
    assert cells[2].tolist() != sorted(cells[2].tolist()), "random, not in raster order"
    assert torch.equal(farthest_cells(depth, 9, SamplingConfig(), None), cells[:, :9]), (
        "the first are the smaller sample"
    )
    assert torch.equal(farthest_cells(depth[1:3], 20, SamplingConfig(), None), cells[1:3]), "of the image alone"
    random = SamplingConfig(start="random")
    draws = [farthest_cells(depth, 20, random, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0][2], draws[2][2])


def test_the_kernel_itself_refuses_unknown_depth():
    with pytest.raises(ValueError, match=r"NaN or infinite.*fill holes"):
        farthest_point_sample_depth(with_holes(0.4), 4)
