"""The depth term with unknown depths, against the written-out mean over known pairs in float64."""

import pytest
import torch

from depthg.kernels import reference
from depthg.kernels.reference import LossSettings
from depthg.training.depth_term import mean_relation
from depthg.training.known_depth import (
    known_depth_loss,
    known_pairs,
    known_relation,
    mean_known_relation,
    with_known_depth,
)

N, P, Q, K = 3, 11, 8, 6
BANDWIDTH = 0.4


def case(relation, other=False, dtype=torch.float32):
    """Codes and depths of two sides; the second image has no known depth at all on the first side."""
    generator = torch.Generator().manual_seed(0)
    sides = []
    for points in (P, Q) if other else (P, P):
        shape = (N, points, 3) if relation == "euclidean" else (N, points, 4) if relation == "normals" else (N, points)
        depth = torch.rand(shape, generator=generator) * (2 if relation == "normals" else 1)
        depth = depth - 1 if relation == "normals" else depth
        depth[torch.rand(N, points, generator=generator) < 0.4] = torch.nan
        codes = torch.randn(N, points, K, generator=generator)
        sides.append((codes.to(dtype).requires_grad_(), depth.to(dtype)))
    sides[0][1][1] = torch.nan
    (codes_a, depth_a), (codes_b, depth_b) = sides if other else (sides[0], sides[0])
    return codes_a, codes_b, depth_a, depth_b


def scaled_deviation(depth):
    deviation = depth - depth.mean()
    return deviation / deviation.abs().max() if deviation.abs().max() > 0 else deviation


def relation_of_two(u, v, relation, bandwidth):  # [p] or [p, D], [q] or [q, D], all known -> [p, q]
    if relation == "product":
        return torch.outer(u, v)
    if relation == "unit":
        return torch.outer((u > 0).double(), (v > 0).double())
    if relation == "centered":
        return torch.outer(scaled_deviation(u), scaled_deviation(v))
    if relation == "gaussian":
        return (-(((u[:, None] - v[None]) / bandwidth) ** 2)).exp()
    if relation == "euclidean":
        return (-((u[:, None] - v[None]) ** 2).sum(-1) / bandwidth**2).exp()
    return (u / u.norm(dim=1, keepdim=True)) @ (v / v.norm(dim=1, keepdim=True)).T


def known_rows(depth):
    return ~(depth if depth.ndim == 1 else depth[:, 0]).isnan()


def definition(codes_a, codes_b, depth_a, depth_b, shift, relation, clamp):
    """Images one by one, with their unknown points thrown away; float64. Also mean S and mean D of the known pairs."""
    terms, similarities, relations = [], [], []
    for a, b, u, v in zip(codes_a.double(), codes_b.double(), depth_a.double(), depth_b.double(), strict=True):
        here, there = known_rows(u), known_rows(v)
        if not here.any() or not there.any():
            continue
        a, b = (torch.nn.functional.normalize(x, dim=1) for x in (a[here], b[there]))
        s, d = a @ b.T, relation_of_two(u[here], v[there], relation, BANDWIDTH)
        terms.append(((d - shift) * (s.clamp(min=0) if clamp else s)).flatten())
        similarities.append(s.flatten())
        relations.append(d.flatten())
    return -torch.cat(terms).mean(), torch.cat(similarities).mean(), torch.cat(relations)


@pytest.mark.parametrize("impl", ["auto", "eager"])
@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("relation", reference.RELATIONS)
def test_value_and_gradient_are_those_of_the_mean_over_known_pairs(relation, other, clamp, impl):
    options = {"relation": relation, "bandwidth": BANDWIDTH, "clamp": clamp, "impl": impl}
    codes_a, codes_b, *depths = case(relation, other)
    inputs = [codes_a, codes_b] if other else [codes_a]
    loss, similarity = known_depth_loss(codes_a, codes_b, *depths, 0.3, **options)
    gradients = torch.autograd.grad(1.7 * loss, inputs)

    wide = [x.detach().double().requires_grad_() for x in inputs]
    expected, mean_s, _ = definition(wide[0], wide[-1], *depths, 0.3, relation, clamp)
    truth = torch.autograd.grad(1.7 * expected, wide)
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(similarity.double(), mean_s, atol=1e-6, rtol=1e-5)
    for got, wanted, depth in zip(gradients, truth, depths, strict=False):
        torch.testing.assert_close(got.double(), wanted, atol=1e-6, rtol=1e-4)
        unknown = ~torch.stack([known_rows(row) for row in depth])
        assert (got[unknown] == 0).all() and got[~unknown].abs().sum() > 0
    if impl == "eager":
        exact = known_depth_loss(*(wide[0], wide[-1]), *(depth.double() for depth in depths), 0.3, **options)
        torch.testing.assert_close(exact.loss, expected, atol=1e-13, rtol=1e-12)


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("relation", reference.RELATIONS)
def test_mean_of_d_is_over_known_pairs(relation, other):
    codes_a, codes_b, depth_a, depth_b = case(relation, other)
    relations = definition(codes_a, codes_b, depth_a, depth_b, 0.0, relation, True)[2]
    got = mean_known_relation(depth_a, depth_b, relation, BANDWIDTH)
    torch.testing.assert_close(got.double(), relations.mean(), atol=1e-6, rtol=1e-5)
    assert len(relations) == known_pairs(depth_a, depth_b)
    d = known_relation(depth_a, depth_b, relation, BANDWIDTH)
    torch.testing.assert_close(d.double(), relations, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("relation", reference.RELATIONS)
def test_where_all_is_known_it_is_the_term_of_all_pairs(relation):
    codes_a, codes_b, depth_a, depth_b = case(relation, True)
    depth_a, depth_b = (x.nan_to_num(nan=0.3) for x in (depth_a, depth_b))
    options = {"relation": relation, "bandwidth": BANDWIDTH}
    got = known_depth_loss(codes_a, codes_b, depth_a, depth_b, 0.3, **options)
    expected = reference.depth_correlation_loss(codes_a, codes_b, depth_a, depth_b, 0.3, **options)
    torch.testing.assert_close(got, expected)
    mean = mean_known_relation(depth_a, depth_b, relation, BANDWIDTH)
    torch.testing.assert_close(mean, mean_relation(depth_a, depth_b, relation, BANDWIDTH), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("relation", reference.RELATIONS)
def test_without_a_known_pair_the_term_is_zero(relation):
    codes, _, depth, _ = case(relation)
    nothing = torch.full_like(depth, torch.nan)
    term = known_depth_loss(codes, codes, nothing, nothing, 0.3, relation=relation)
    assert term.loss == 0 and term.similarity == 0 and mean_known_relation(nothing, nothing, relation, 0.1) == 0
    assert (torch.autograd.grad(term.loss, codes)[0] == 0).all()
    assert known_relation(nothing, nothing, relation, 0.1).numel() == 0


@pytest.mark.parametrize("relation", ["product", "gaussian", "normals"])
def test_shares_of_a_batch_average_to_the_whole_batch(relation):
    codes, _, depth, _ = case(relation)
    whole = known_depth_loss(codes, codes, depth, depth, 0.3, relation=relation)
    mean = mean_known_relation(depth, depth, relation, BANDWIDTH)
    parts = [slice(0, 1), slice(1, 3)]
    sums = [{}, {}]
    for part, into in zip(parts, sums, strict=True):  # what each process contributes to the averages, in their order
        calls = []
        mean_known_relation(depth[part], depth[part], relation, BANDWIDTH, lambda x, calls=calls: calls.append(x) or x)
        into["values"] = calls
    averages = [(a + b) / 2 for a, b in zip(sums[0]["values"], sums[1]["values"], strict=True)]
    pairs = averages[1]
    losses = []
    for part in parts:
        values = iter(averages)
        got = mean_known_relation(depth[part], depth[part], relation, BANDWIDTH, lambda _, values=values: next(values))
        torch.testing.assert_close(got, mean)
        term = known_depth_loss(
            codes[part], codes[part], depth[part], depth[part], 0.3, relation=relation, average=lambda _: pairs
        )
        losses.append(term.loss)
    torch.testing.assert_close(sum(losses) / 2, whole.loss)


def test_the_total_has_the_weighted_term():
    codes, _, depth, _ = case("product")
    feats = torch.randn(N, P, 5)
    settings = LossSettings(
        self_weight=0.5, self_shift=0.1, neighbour_weight=0.4, neighbour_shift=0.2, negative_weight=0.3,
        negative_shift=0.3, depth_weight=0.7, depth_shift=0.25,
    )  # fmt: skip
    negatives = torch.tensor([[1, 2, 0]])
    result = reference.depthg_loss(feats, codes, feats, codes, negatives, settings)
    got = with_known_depth(result, codes, settings, None, depth=depth)
    expected = definition(codes, codes, depth, depth, 0.25, "product", settings.clamp)[0]
    torch.testing.assert_close(got.depth.loss.double(), expected)
    torch.testing.assert_close(got.total, result.total + 0.7 * got.depth.loss)
    assert got[1:4] == result[1:4]
