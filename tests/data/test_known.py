"""Means over what is known of a map, against loops over pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthg.data.known import mean_of_known, mean_with_holes
from depthg.data.transforms import Window, cell_means, resize_area


def loop(values, rows, columns):
    """Means of the known pixels of equal cells; NaN where less than half is known."""
    height, width = values.shape[0] // rows, values.shape[1] // columns
    found = np.full((rows, columns), np.nan)
    for r in range(rows):
        for c in range(columns):
            cell = values[r * height : (r + 1) * height, c * width : (c + 1) * width].astype(np.float64)
            known = cell[~np.isnan(cell)]
            if 2 * len(known) >= cell.size:
                found[r, c] = known.mean()
    return found


def means(values, size):
    """The two ways by which views average over cells."""
    height, width = values.shape[1:]
    whole = Window(crop=(0, 0, height, width), box=(0.0, 0.0, height, width))
    return cell_means(values, size), resize_area(values, whole, size)


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_cells_are_the_means_of_what_is_known_in_them(seed, share):
    rng = np.random.default_rng(seed)
    values = rng.uniform(0, 1, (2, 12, 20)).astype(np.float32)
    values[rng.random(values.shape) < share] = np.nan
    for got in means(values, (3, 5)):
        assert got.dtype == np.float32
        for channel, expected in zip(got, values, strict=True):
            np.testing.assert_allclose(channel, loop(expected, 3, 5), atol=2e-6)


def test_nothing_known_and_the_range_of_the_map():
    for got in means(np.full((1, 8, 8), np.nan, np.float32), (2, 2)):
        assert np.isnan(got).all()
    values = np.full((1, 9, 9), 0.7, np.float32)
    values[0, ::2, ::3] = np.nan
    for got in means(values, (2, 2)):
        assert (got == np.float32(0.7)).all(), "rounding does not leave the range"


def test_a_map_without_holes_is_averaged_as_ever():
    values = torch.rand(2, 7, 9)
    seen = []

    def mean(x):
        seen.append(x)
        return x.mean((1, 2))

    assert torch.equal(mean_of_known(mean, values), values.mean((1, 2)))
    assert len(seen) == 1 and seen[0] is values
    torch.testing.assert_close(mean_with_holes(mean, values), values.mean((1, 2)))


@pytest.mark.parametrize(("known", "expected"), [(3, 2.0), (2, 1.5), (1, None)])
def test_half_of_the_weight_must_be_known(known, expected):
    values = torch.full((4,), torch.nan)
    values[:known] = torch.arange(1, known + 1)
    got = mean_with_holes(lambda x: x.mean(0, keepdim=True), values)
    assert got.isnan().all() if expected is None else got.tolist() == [expected]
