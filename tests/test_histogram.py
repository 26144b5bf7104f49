"""correlation_histogram of every implementation against the counts of the tensor."""

import pytest
import torch
from depthg.kernels import correlation, correlation_histogram, reference
from loss_cases import DEVICE, IMPLS, vectors


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


def test_rows_in_blocks(monkeypatch):
    from depthg.kernels import pair_pass

    monkeypatch.setattr(pair_pass, "CHUNK", 1 << 9)
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
