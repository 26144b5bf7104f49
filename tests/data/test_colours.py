"""Colours of clusters and of depth: distinct, stable, and for depth the range that a set of maps needs."""

import numpy as np
import pytest

from depthg.data.colours import class_palette, depth_colours, depth_scale


def test_a_palette_is_the_beginning_of_every_larger_one():
    assert len(np.unique(class_palette(40), axis=0)) == 40
    np.testing.assert_array_equal(class_palette(12), class_palette(40)[:12])
    with pytest.raises(ValueError, match="read-only"):
        class_palette(3)[0] = 0


@pytest.mark.parametrize(
    ("n", "message"), [(-1, "not be negative, got -1"), (10**6, r"n = 1000000 .* can be told apart")]
)
def test_impossible_numbers_of_colours_are_refused(n, message):
    with pytest.raises(ValueError, match=message):
        class_palette(n)


def test_the_scale_says_metres_from_values_above_one():
    assert depth_scale([], None) is None
    assert depth_scale([np.array([[np.nan, np.inf]])], None) == (0.0, 1.0, False)
    near, far, metric = depth_scale([np.array([[1.0, 2.0], [0.0, 50.0]])], None)
    assert metric and 1 <= near < far <= 50
    assert depth_scale([np.linspace(0, 1, 50).reshape(5, 10)], None)[2] is False
    near, far, _ = depth_scale([np.full((2, 2), 3.0)], True)
    assert near == 3 and far > near  # one value still gives a range


@pytest.mark.parametrize("scale", [(1.0, 10.0, True), (0.0, 1.0, False)])
def test_near_is_brighter_than_far_and_unknown_is_grey(scale):
    near, far, _ = scale
    image = depth_colours(np.array([[near, far, np.nan]]), scale)
    assert image[0, 0].sum() > image[0, 1].sum()
    assert image[0, 2].tolist() == [160, 160, 160]
