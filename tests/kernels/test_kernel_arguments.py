"""Any arguments of the kernels: a result that the eager definition agrees with, or ValueError, TypeError from both."""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depthg.kernels import (
    CrfSettings,
    LossSettings,
    correlation,
    correlation_histogram,
    correlation_loss,
    dense_crf,
    depth_correlation_loss,
    depthg_loss,
    farthest_point_sample,
    farthest_point_sample_depth,
    nt_xent_loss,
    sample_points,
    unproject,
)

EXAMPLES = int(os.environ.get("DEPTHG_EXAMPLES", 150))  # of each test
MANY = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
REFUSED = (ValueError, TypeError)
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
OTHERS = [torch.int64, torch.uint8, torch.bool, torch.complex64]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, 6e4, float("inf"), float("-inf"), float("nan")]
SIDES = st.sampled_from([0, 1, 2, 3, 5])
RARELY = st.sampled_from([False] * 9 + [True])


@st.composite
def tensors(draw, *shape, integer=None):
    """A tensor of about this shape: sometimes of another rank, size, type, layout, or with special values."""
    shape = list(shape)
    if draw(RARELY):
        shape = draw(st.lists(SIDES, max_size=5))
    elif shape and draw(RARELY):
        shape[draw(st.integers(0, len(shape) - 1))] = draw(SIDES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    if integer is not None and not draw(RARELY):
        low, high = integer
        if draw(RARELY):
            low, high = -2, high + 2
        return torch.randint(low, max(high, low + 1), shape, generator=generator)
    x = torch.rand(shape, generator=generator)
    if draw(RARELY) and x.numel():
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = draw(st.sampled_from(SPECIAL))
    x = x.to(draw(st.sampled_from(OTHERS if draw(RARELY) else FLOATS[:1] * 6 + FLOATS)))
    layout = draw(st.sampled_from(["whole", "whole", "turned", "strided", "expanded", "shifted"]))
    if layout == "turned" and x.ndim > 1:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "strided" and x.ndim:
        x = x.repeat_interleave(2, dim=-1)[..., ::2]
    elif layout == "expanded" and x.ndim and x.shape[0]:
        x = x[:1].expand(x.shape)
    elif layout == "shifted":
        x = torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape)
    return x


REALS = st.one_of(st.floats(-1, 1), st.floats(0.05, 1), st.sampled_from([0, 1, 7, -1, 2.5, float("nan"), float("inf")]))
COUNTS = st.one_of(st.integers(1, 4), st.integers(1, 4), st.sampled_from([0, -1, 10**5, 2.5, float("nan"), None, "x"]))
FLAGS = st.booleans()


def outcome(function, *arguments, **keywords):
    """What a call gives: a list of tensors, or the error that refuses it. Any other error fails the test."""
    try:
        found = function(*arguments, **keywords)
    except REFUSED as error:
        assert str(error), "an error says what is wrong"
        return error
    flat, queue = [], [found]
    while queue:
        part = queue.pop()
        if isinstance(part, torch.Tensor):
            flat.append(part)
        elif part is not None:
            queue += list(part)
    return flat


def check(function, *arguments, equal=False, scale=1.0, **keywords):
    """Compares the fast implementation with the eager one, whose errors may also be torch's own. Results are sums of
    numbers of about ``scale``."""
    fast = outcome(function, *arguments, **keywords)
    try:
        slow = outcome(function, *arguments, impl="eager", **keywords)
    except (RuntimeError, IndexError) as error:
        slow = error
    if isinstance(fast, Exception):
        assert isinstance(slow, Exception), f"refused: {fast!r}, eager gives {slow}"
    if isinstance(fast, Exception) or isinstance(slow, Exception):
        return
    assert [x.shape for x in fast] == [x.shape for x in slow]
    given = [x for x in arguments if isinstance(x, torch.Tensor)]
    half = any(x.dtype in FLOATS[2:] for x in given)
    tame = all(bool((x.isfinite() & (x.abs() < 1e4)).all()) for x in given)
    if len({x.dtype for x in given}) > 1:  # squares of tiny numbers are zero in one type and not in another
        tame = tame and all(bool(((x == 0) | (x.abs() > 1e-15)).all()) for x in given)
    for ours, theirs in zip(fast, slow, strict=True):
        if equal:
            assert torch.equal(ours, theirs)
        elif tame and bool(theirs.isfinite().all()):
            tolerance = 0.1 if half else 1e-3
            torch.testing.assert_close(ours.double(), theirs.double(), atol=tolerance * max(1, scale), rtol=tolerance)


@MANY
@given(st.data())
def test_farthest_point_sample(data):
    b, n = data.draw(SIDES), data.draw(SIDES)
    points = data.draw(tensors(b, n, data.draw(st.integers(1, 4))))
    start = data.draw(st.one_of(st.just(0), st.integers(-1, 5), tensors(b, integer=(0, max(n, 1)))))
    lengths = data.draw(st.one_of(st.none(), tensors(b, integer=(1, max(n + 1, 2)))))
    check(farthest_point_sample, points, data.draw(COUNTS), start=start, lengths=lengths, equal=True)


@MANY
@given(st.data())
def test_farthest_point_sample_depth(data):
    b, h, w = (data.draw(SIDES) for _ in range(3))
    depth, fov = data.draw(tensors(b, h, w)), data.draw(st.one_of(st.floats(1, 179), REALS, tensors(b)))
    check(farthest_point_sample_depth, depth, data.draw(COUNTS), fov_deg=fov, equal=True)
    outcome(unproject, depth, fov)


@MANY
@given(st.data())
def test_correlations(data):
    n, p, q, c = *(data.draw(SIDES) for _ in range(3)), data.draw(st.integers(1, 5))
    a, b = data.draw(tensors(n, p, c)), data.draw(tensors(n, q, c))
    codes_a, codes_b = data.draw(tensors(n, p, 3)), data.draw(tensors(n, q, 3))
    index = data.draw(st.one_of(st.none(), tensors(2, n, integer=(0, max(n, 1)))))
    center, clamp, limit = data.draw(FLAGS), data.draw(FLAGS), data.draw(st.one_of(st.none(), REALS))
    outcome(correlation, a, b, index_b=index, center=center, cosine=data.draw(FLAGS))
    check(correlation_loss, a, b, codes_a, codes_b, data.draw(REALS), index_b=index, center=center, clamp=clamp,
          max_similarity=limit)  # fmt: skip
    edges = (data.draw(REALS), data.draw(REALS))
    outcome(correlation_histogram, a, b, data.draw(COUNTS), range=edges, center=center, index_b=index)


@MANY
@given(st.data())
def test_depth_correlation(data):
    n, p, q = (data.draw(SIDES) for _ in range(3))
    relation = data.draw(st.sampled_from(["product", "centered", "gaussian", "euclidean", "normals", "unit", "x"]))
    extra = {"euclidean": (3,), "normals": (4,)}.get(relation, ())
    depth_a, depth_b = data.draw(tensors(n, p, *extra)), data.draw(tensors(n, q, *extra))
    codes_a, codes_b = data.draw(tensors(n, p, 3)), data.draw(tensors(n, q, 3))
    check(depth_correlation_loss, codes_a, codes_b, depth_a, depth_b, data.draw(REALS), relation=relation,
          bandwidth=data.draw(REALS), clamp=data.draw(FLAGS))  # fmt: skip


@MANY
@given(st.data())
def test_depthg_loss(data):
    n, p, c = data.draw(st.sampled_from([1, 2, 3])), data.draw(SIDES), data.draw(st.integers(1, 5))
    feats, near = data.draw(tensors(n, p, c)), data.draw(tensors(n, p, c))
    codes, near_codes = data.draw(tensors(n, p, 3)), data.draw(tensors(n, p, 3))
    negatives = data.draw(tensors(2, n, integer=(0, n)))
    depth = data.draw(st.one_of(st.none(), tensors(n, p)))
    check(depthg_loss, feats, codes, near, near_codes, negatives, LossSettings(depth_weight=0.1), depth=depth)


@MANY
@given(st.data())
def test_nt_xent(data):
    n, k = data.draw(SIDES), data.draw(SIDES)
    views, temperature = (data.draw(tensors(n, k)), data.draw(tensors(n, k))), data.draw(REALS)
    check(nt_xent_loss, *views, temperature, scale=1e-3 / temperature if temperature else 1)  # 8 ulp of 1 / T


@MANY
@given(st.data())
def test_sample_points(data):
    n, c, h, w, p = (data.draw(SIDES) for _ in range(5))
    maps, points = data.draw(tensors(n, c, h, w)), data.draw(tensors(n, p, 2))
    index = data.draw(st.one_of(st.none(), tensors(n, integer=(0, max(n, 1)))))
    check(sample_points, maps, points, index=index, align_corners=data.draw(FLAGS))


@MANY
@given(st.data())
def test_dense_crf(data):
    """The lattice approximates the definition, so shapes and refusals are compared, and that marginals are some."""
    b, h, w = (data.draw(SIDES) for _ in range(3))
    batch = data.draw(st.sampled_from([(), (b,)]))
    image = data.draw(tensors(*batch, h, w, 3, integer=(0, 256)))
    image = image.to(torch.uint8) if not data.draw(RARELY) else image
    terms = [
        data.draw(tensors(*batch, data.draw(st.integers(1, 20)), h, w)) for _ in range(data.draw(st.integers(1, 3)))
    ]
    sigma = st.one_of(st.floats(0.5, 100), REALS)
    options = CrfSettings(
        data.draw(st.one_of(st.integers(0, 3), st.sampled_from([-1, 2.5, None]))), data.draw(sigma), data.draw(REALS),
        data.draw(sigma), data.draw(sigma), data.draw(REALS),
    )  # fmt: skip
    ids = data.draw(FLAGS)
    fast, slow = (outcome(dense_crf, terms, image, options, ids=ids, impl=impl) for impl in ("auto", "eager"))
    if isinstance(fast, Exception) or isinstance(slow, Exception):
        assert type(fast) is type(slow) and str(fast) == str(slow)
        return
    assert [x.shape for x in fast] == [x.shape for x in slow]
    for found in fast if not ids else []:
        torch.testing.assert_close(found.sum(-3), torch.ones_like(found.sum(-3)), atol=1e-4, rtol=0)


def test_the_comparison_sees_a_difference():
    with pytest.raises(AssertionError):
        check(lambda x, impl="auto": x + (impl == "eager"), torch.ones(2))
    with pytest.raises(AssertionError):
        check(lambda x, impl="auto": x + 3e-3 * (impl == "eager"), torch.ones(2), scale=0.5)
    check(lambda x, impl="auto": x + 3e-3 * (impl == "eager"), torch.ones(2), scale=10)
    with pytest.raises(AssertionError, match="refused"):
        check(lambda x, impl="auto": x if impl == "eager" else int("x"), torch.ones(2))
    with pytest.raises(RuntimeError):
        check(lambda x, impl="auto": x.view(7), torch.ones(2))
