"""Arg-max at full size, and sums of stages, against PyTorch's up-sampling."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from depthg.kernels import _extension
from depthg.kernels.upsampling import sum_of_stages, up_sampled_ids

needs_extension = pytest.mark.skipif(not _extension.HAS_CPU, reason="depthg._C is not compiled")
IMPLS = [pytest.param("cpp", marks=needs_extension), "eager"]


def reference(scores, size):
    """Ids in float64, and where the largest score is clearly the largest."""
    maps = F.interpolate(torch.from_numpy(scores).double()[None], size, mode="bilinear", align_corners=False)[0]
    top = maps.topk(min(2, len(maps)), 0).values
    clear = torch.ones(size, dtype=torch.bool) if len(maps) == 1 else top[0] - top[1] > 1e-5
    return maps.argmax(0).numpy(), clear.numpy()


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.integers(1, 150), st.integers(1, 150),
    st.integers(0, 2**32), st.booleans(),
)  # fmt: skip
def test_equals_the_arg_max_of_up_sampled_scores(impl, n, h, w, height, width, seed, smooth):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, h, w)).astype(np.float32)
    if smooth:  # large areas of one id
        scores = np.cumsum(np.cumsum(scores, 1), 2).astype(np.float32)
    ids = up_sampled_ids(scores, (height, width), impl=impl)
    expected, clear = reference(scores, (height, width))
    assert ids.shape == (height, width) and ids.dtype == np.uint8
    assert (ids == expected)[clear].all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "cells, size",
    [
        ((28, 36), (720, 960)),  # up, in vectors that overlap
        ((40, 53), (41, 52)),  # hardly at all
        ((60, 90), (7, 200)),  # down along one side, up along the other
        ((130, 140), (33, 17)),  # down
        ((5, 7), (5, 7)),  # as it is
        ((1, 1), (3, 70)),
        ((9, 1), (1, 1)),
    ],
)
def test_odd_sizes(impl, cells, size):
    scores = np.random.default_rng(0).normal(size=(27, *cells)).astype(np.float32)
    expected, clear = reference(scores, size)
    assert (up_sampled_ids(scores, size, impl=impl) == expected)[clear].all() and clear.mean() > 0.99


@pytest.mark.parametrize("impl", IMPLS)
def test_photo_sized_maps_of_many_classes(impl):
    scores = F.interpolate(torch.randn(1, 300, 4, 5), (20, 30), mode="bicubic")[0].numpy()
    ids = up_sampled_ids(scores, (333, 517), impl=impl)
    expected, clear = reference(scores, (333, 517))
    assert ids.dtype == np.uint16 and ids.max() > 255 and clear.mean() > 0.99
    assert (ids == expected)[clear].all()
    assert up_sampled_ids(scores[:255], (9, 9), impl=impl).dtype == np.uint8
    assert up_sampled_ids(scores[:256], (9, 9), impl=impl).dtype == np.uint16


@pytest.mark.parametrize("impl", IMPLS)
def test_ties_go_to_the_lowest_id(impl):
    scores = np.zeros((3, 2, 2), np.float32)
    scores[1:, 1, 1] = 1
    expected = [[0] * 4, [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]]
    assert up_sampled_ids(scores, (4, 4), impl=impl).tolist() == expected
    twice = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32).repeat(2, axis=0)
    assert (up_sampled_ids(twice, (61, 83), impl=impl) % 2 == 0).all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_taken_as_torch_takes_it(impl, value):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(6, 9, 8)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.03] = value
    size = (50, 70)  # no pixel lies on a cell, where torch's weights of zero make NaN of infinity
    expected = F.interpolate(torch.from_numpy(scores)[None], size, mode="bilinear")[0].argmax(0).numpy()
    found = up_sampled_ids(scores, size, impl=impl)
    assert (found != expected).mean() < 1e-3 and len(np.unique(found)) == 6
    if impl == "cpp":
        with np.errstate(invalid="ignore"):
            assert (found == rounded_ids(scores, size)).all()
    assert up_sampled_ids(np.full((3, 2, 2), value, np.float32), (5, 5), impl=impl).max() == 0


def rounded_ids(scores, size):
    """Ids of sums that are rounded as the compiled code rounds them: along x, then along y, every product and sum."""

    def along(values, pixels):  # the last axis
        cells = values.shape[-1]
        at = np.maximum((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5, 0)
        cell = np.minimum(at.astype(int), cells - 1)
        upper = (at - cell).astype(np.float32)
        return values[..., cell] * (1 - upper) + values[..., np.minimum(cell + 1, cells - 1)] * upper

    columns = along(scores, size[1])
    return along(columns.swapaxes(1, 2), size[0]).swapaxes(1, 2).argmax(0)


@needs_extension
@pytest.mark.parametrize("scale", [1, 1e-38, 1e-43, 1e38, 3e38])
@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 7), st.integers(1, 7), st.integers(1, 200), st.integers(1, 140),
    st.sampled_from(["normal", "few values", "one map above", "almost equal"]), st.integers(0, 2**32),
)  # fmt: skip
def test_maps_that_are_left_out_never_win(scale, n, h, w, height, width, kind, seed):
    """Every id, also where scores differ in their last bit, or are too large or too small for a margin."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-1, 1, (n, h, w))
    if kind == "few values":
        scores = scores.round()
    elif kind == "one map above":
        scores[rng.integers(n)] += 0.5
    elif kind == "almost equal":
        scores = 0.7 + scores * 1e-7
    scores = (scores * scale / 1.5).astype(np.float32)
    assert np.isfinite(scores).all()
    assert (up_sampled_ids(scores, (height, width)) == rounded_ids(scores, (height, width))).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_the_layout_does_not_matter(impl):
    scores = np.random.default_rng(0).normal(size=(6, 7, 5))
    expected = up_sampled_ids(scores.astype(np.float32), (40, 90), impl=impl)
    last = np.ascontiguousarray(scores.transpose(1, 2, 0), np.float32).transpose(2, 0, 1)
    wide = np.zeros((6, 14, 15), np.float32)
    wide[:, ::2, ::3] = scores
    reverse = np.ascontiguousarray(scores[::-1, ::-1, ::-1], np.float32)[::-1, ::-1, ::-1]
    packed = np.zeros(scores.shape, [("byte", "u1"), ("score", "f4")])  # not aligned
    packed["score"] = scores
    for other in (scores, last, wide[:, ::2, ::3], reverse, packed["score"]):
        assert (up_sampled_ids(other, (40, 90), impl=impl) == expected).all()


@needs_extension
def test_threads_do_not_change_ids():
    scores, before = np.random.default_rng(0).normal(size=(30, 37, 41)).astype(np.float32), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found.append(up_sampled_ids(scores, (301, 517)))
    finally:
        torch.set_num_threads(before)
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()


def random_stages(seed, images, size, dim, sizes, channels):
    """Values of either sign; vectors are positive: one that is much shorter than its neighbours is known less well."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(images, *cells, dim, generator=generator) for cells in sizes]
    vectors = [torch.rand(*x.shape[:3], c, generator=generator) + 0.1 for x, c in zip(values, channels, strict=True)]
    return values, vectors, size


def written_out(values, vectors, size):
    """The sum in float64, from up-sampled maps."""
    total = 0
    for i, part in enumerate(values):
        up, length = (
            F.interpolate(x.double().permute(0, 3, 1, 2), size, mode="bilinear").permute(0, 2, 3, 1)
            for x in (part, part if vectors is None else vectors[i])
        )
        norm = length.norm(dim=-1, keepdim=True)
        total = total + (up if vectors is None else torch.where(norm > 0, up / norm, 0.0))
    return total


SIDE = st.integers(1, 12)


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 3), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(1, 70),
    st.lists(st.tuples(SIDE, SIDE, st.integers(1, 70)), min_size=1, max_size=3), st.booleans(), st.integers(1, 3),
)  # fmt: skip
def test_sums_of_stages_equal_those_of_up_sampled_ones(impl, seed, images, size, dim, stages, divide, threads):
    values, vectors, size = random_stages(
        seed, images, size, dim, [(h, w) for h, w, _ in stages], [c for *_, c in stages]
    )
    if not divide:
        vectors = None
    else:
        vectors[0][0] = 0.0  # vectors of length 0
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = sum_of_stages(values, vectors, size, impl=impl)
    finally:
        torch.set_num_threads(before)
    assert found.shape == (images, *size, dim) and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), written_out(values, vectors, size), rtol=1e-4, atol=1e-4)


@needs_extension
def test_sums_of_stages_in_any_order_of_memory_and_on_several_threads():
    sizes = [(28, 36), (14, 18), (7, 9)]
    values, vectors, size = random_stages(0, 4, (28, 36), 128, sizes, [40, 112, 320])
    expected = written_out(values, vectors, size)
    torch.testing.assert_close(
        sum_of_stages(values, vectors, size, impl="cpp").double(), expected, rtol=1e-4, atol=1e-5
    )
    turned = [x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for x in vectors]
    assert torch.equal(sum_of_stages(values, turned, size), sum_of_stages(values, vectors, size))
    assert sum_of_stages([x[:0] for x in values], None, size).shape == (0, 28, 36, 128)


@needs_extension
def test_lengths_of_vectors_that_nearly_cancel():
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 0.1, 1e-2, 1e-3):
        u, noise = torch.randn(2, 40, generator=generator)
        vectors = torch.stack([u, -3 * u + size * noise])[None, None]  # 3 : 1 lies at the second of four pixels
        data = [torch.ones(1, 1, 2, 3)], [vectors], (1, 4)
        torch.testing.assert_close(sum_of_stages(*data, impl="cpp").double(), written_out(*data), rtol=1e-3, atol=1e-5)


ONE = torch.ones(2, 3, 4, 5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "values, vectors, size",
    [
        ([], None, (4, 4)),
        ([ONE, ONE[..., :2]], None, (4, 4)),
        ([ONE, ONE[:1]], None, (4, 4)),
        ([ONE[0]], None, (4, 4)),
        ([ONE[:, :0]], None, (4, 4)),
        ([ONE], [ONE[:, :2]], (4, 4)),
        ([ONE, ONE], [ONE], (4, 4)),
        ([ONE.long()], None, (4, 4)),
        ([ONE], [ONE], (0, 4)),
    ],
)
def test_stages_that_do_not_belong_together(impl, values, vectors, size):
    with pytest.raises(ValueError, match=r"values .* cannot be up-sampled to \[\d, 4\] and summed: values are"):
        sum_of_stages(values, vectors, size, impl=impl)
    with pytest.raises(ValueError, match="have no gradient; detach"):
        sum_of_stages([ONE.clone().requires_grad_()], None, (6, 8), impl=impl)


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(_extension, "HAS_CPU", False)
    scores = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    assert (up_sampled_ids(scores, (20, 30)) == reference(scores, (20, 30))[0]).mean() > 0.99
    with pytest.raises(ValueError, match=r"impl=.cpp. cannot run: .* use impl=.eager."):
        up_sampled_ids(scores, (20, 30), impl="cpp")


def test_impossible_sizes():
    for shape, size in (((0, 2, 2), (4, 4)), ((2, 2, 0), (4, 4)), ((2, 2, 2), (0, 4)), ((2, 2), (4, 4))):
        with pytest.raises(ValueError, match="cannot be up-sampled"):
            up_sampled_ids(np.zeros(shape, np.float32), size)
    with pytest.raises(ValueError, match="unknown impl 'cuda'"):
        up_sampled_ids(np.zeros((2, 2, 2), np.float32), (4, 4), impl="cuda")
