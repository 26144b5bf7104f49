"""correlation_histogram of every implementation against the counts of the tensor."""

import pytest
import torch
from loss_cases import DEVICE, HALVES, IMPLS, vectors

from depthg.kernels import correlation, correlation_histogram, reference


def assert_same_counts(ours, wanted, total, slack):
    """Equal but for values within rounding of an edge, which may move to the neighbouring bin."""
    assert ours.dtype == torch.int64 and ours.sum().item() == total == wanted.sum().item()
    assert (ours.cumsum(0) - wanted.cumsum(0)).abs().max().item() <= slack


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("bins", [1, 7, 64])
def test_counts(impl, center, bins):
    a, b, index = vectors(3, 37, 20), vectors(4, 29, 20), torch.tensor([[0, 3, 1], [2, 2, 0]], device=DEVICE)
    ours = correlation_histogram(a, b, bins, center=center, index_b=index, impl=impl)
    wanted = reference.correlation_histogram(a.double(), b.double(), bins, center=center, index_b=index)
    assert_same_counts(ours, wanted, 2 * 3 * 37 * 29, 1)


@pytest.mark.parametrize("impl", IMPLS)
def test_range_and_plain_products(impl):
    u, v = torch.rand(2, 40, 1, device=DEVICE), torch.rand(2, 30, 1, device=DEVICE)
    ours = correlation_histogram(u, v, 10, range=(0.0, 0.5), cosine=False, impl=impl)
    wanted = reference.correlation_histogram(u.double(), v.double(), 10, range=(0.0, 0.5), cosine=False)
    assert_same_counts(ours, wanted, 2 * 40 * 30, 1)
    assert ours[-1] > ours[-2]  # everything above the range is in the outermost bin


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("center", [True, False])
def test_half_inputs(impl, dtype, center):
    """Products of half inputs are exact: only values within rounding of float32 move."""
    a, b = vectors(2, 70, 40, dtype=dtype), vectors(2, 65, 40, dtype=dtype)
    ours = correlation_histogram(a, b, 100, center=center, impl=impl)
    wanted = reference.correlation_histogram(a.double(), b.double(), 100, center=center)
    assert_same_counts(ours, wanted, 2 * 70 * 65, 3)


@pytest.mark.parametrize("impl", IMPLS)
def test_sides_of_unlike_types(impl):
    a, b = vectors(2, 20, 9), vectors(2, 30, 9, dtype=torch.float16)
    ours = correlation_histogram(a, b, 50, center=True, impl=impl)
    assert_same_counts(ours, reference.correlation_histogram(a.double(), b.double(), 50, center=True), 1200, 2)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("channels", [1, 16, 17, 33, 65, 140])
def test_channels_of_any_number(impl, channels):
    a, b = vectors(2, 20, channels), vectors(2, 67, channels)
    ours = correlation_histogram(a, b, 3999, range=(-1.1, 1.3), impl=impl)  # cosines of one channel are on no edge
    wanted = reference.correlation_histogram(a.double(), b.double(), 3999, range=(-1.1, 1.3))
    assert_same_counts(ours, wanted, 2 * 20 * 67, 3)


@pytest.mark.parametrize("impl", IMPLS)
def test_tensors_of_any_layout(impl):
    a, b = vectors(3, 6, 37).transpose(1, 2), vectors(4, 29, 12)[..., ::2]
    for index in (torch.arange(3, device=DEVICE).expand(2, 3), torch.randint(0, 4, (3, 5), device=DEVICE).T[1:3]):
        ours = correlation_histogram(a, b, 30, center=True, index_b=index, impl=impl)
        wanted = reference.correlation_histogram(a.double(), b.double(), 30, center=True, index_b=index.clone())
        assert_same_counts(ours, wanted, 2 * 3 * 37 * 29, 3)


@pytest.mark.parametrize("impl", IMPLS)
def test_autocast_changes_nothing(impl):
    a, b = vectors(2, 40, 30), vectors(2, 40, 30)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        found = correlation_histogram(a, b, 500, center=True, impl=impl)
    assert torch.equal(found, correlation_histogram(a, b, 500, center=True, impl=impl))


def test_rows_in_blocks(monkeypatch):
    from depthg.kernels import histogram

    monkeypatch.setattr(histogram, "CHUNK", 1 << 9)
    a = vectors(3, 50, 6)
    ours = correlation_histogram(a, a, 20, center=True)
    assert_same_counts(ours, reference.correlation_histogram(a.double(), a.double(), 20, center=True), 3 * 50 * 50, 2)


def test_quantile_from_the_histogram():
    a, b = vectors(2, 60, 8), vectors(2, 60, 8)
    counts = correlation_histogram(a, b, 2000)
    bin_of_median = (counts.cumsum(0) >= counts.sum() / 2).nonzero()[0].item()
    assert abs(-1 + (bin_of_median + 0.5) / 1000 - correlation(a, b).median().item()) < 2e-3


@pytest.mark.parametrize("impl", IMPLS)
def test_empty(impl):
    assert correlation_histogram(vectors(0, 4, 3), vectors(0, 4, 3), 5, impl=impl).tolist() == [0] * 5


@pytest.mark.parametrize("impl", IMPLS)
def test_op_checks(impl):
    args = (vectors(2, 5, 4), vectors(2, 6, 4), 8, -1.0, 1.0, True, None, True, impl)
    torch.library.opcheck(torch.ops.depthg.correlation_histogram.default, args)


def test_wrong_inputs():
    a = vectors(2, 5, 4)
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        correlation_histogram(a, a, 0)
    with pytest.raises(ValueError, match="low < high"):
        correlation_histogram(a, a, 5, range=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"a \(2, 5, 4\) and b \(2, 5, 3\)"):
        correlation_histogram(a, vectors(2, 5, 3), 5)


@pytest.mark.parametrize("ends", [(0.0, 1e-300), (-1e300, 1e300)])
def test_ranges_that_float32_cannot_divide_are_refused(ends):
    x = torch.rand(1, 2, 3)
    with pytest.raises(ValueError, match="is too narrow or too wide for 4 bins"):
        correlation_histogram(x, x, 4, range=ends)
