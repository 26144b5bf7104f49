"""Arg-max at full size against PyTorch's up-sampling."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from depthg.upsampling import up_sampled_ids


def reference(scores, size):
    maps = F.interpolate(torch.from_numpy(scores).double()[None], size, mode="bilinear", align_corners=False)[0]
    top = maps.topk(min(2, len(maps)), 0).values
    clear = torch.ones(size, dtype=torch.bool) if len(maps) == 1 else top[0] - top[1] > 1e-5
    return maps.argmax(0).numpy(), clear.numpy()


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.integers(1, 60), st.integers(1, 60),
    st.integers(0, 2**32), st.booleans(),
)  # fmt: skip
def test_equals_the_arg_max_of_up_sampled_scores(n, h, w, height, width, seed, smooth):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, h, w)).astype(np.float32)
    if smooth:  # large areas of one id
        scores = np.cumsum(np.cumsum(scores, 1), 2).astype(np.float32)
    ids = up_sampled_ids(scores, (height, width))
    expected, clear = reference(scores, (height, width))
    assert ids.shape == (height, width) and ids.dtype == np.uint8
    assert (ids == expected)[clear].all()


def test_photo_sized_maps_of_many_classes():
    scores = F.interpolate(torch.randn(1, 300, 4, 5), (20, 30), mode="bicubic")[0].numpy()
    ids = up_sampled_ids(scores, (333, 517))
    expected, clear = reference(scores, (333, 517))
    assert ids.dtype == np.uint16 and ids.max() > 255 and clear.mean() > 0.99
    assert (ids == expected)[clear].all()


def test_ties_go_to_the_lowest_id_and_the_layout_does_not_matter():
    scores = np.zeros((3, 2, 2), np.float32)
    scores[1:, 1, 1] = 1
    assert up_sampled_ids(scores, (4, 4)).tolist() == [[0] * 4, [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]]
    other = np.random.default_rng(0).normal(size=(6, 7, 5)).astype(np.float64)
    assert (up_sampled_ids(other.transpose(2, 0, 1), (40, 30)) == up_sampled_ids(
        np.ascontiguousarray(other.transpose(2, 0, 1)), (40, 30))).all()  # fmt: skip


def test_impossible_sizes():
    for shape, size in (((0, 2, 2), (4, 4)), ((2, 2, 0), (4, 4)), ((2, 2, 2), (0, 4))):
        with pytest.raises(ValueError, match="cannot be up-sampled"):
            up_sampled_ids(np.zeros(shape, np.float32), size)
