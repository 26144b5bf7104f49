"""depth_correlation_loss of every implementation and relation against the float64 definition."""

import itertools

import pytest
import torch
from loss_cases import DEVICE, HALVES, IMPLS, assert_close_as_eager, copies, outcome, vectors

from depthg.kernels import depth_correlation_loss, reference

VECTORS = ("euclidean", "normals")


def depth(n, p, relation):
    x = torch.rand(n, p, 4 if relation == "normals" else 3) if relation in VECTORS else torch.rand(n, p)
    x[0, 0] = 0
    return x.to(DEVICE)


def compare(impl, n, p, q, k, relation, dtype=torch.float32, same=(False, False), **options):
    """``same``: whether the codes and the depth are one tensor on both sides."""
    codes = [vectors(n, p, k, dtype=dtype, grad=True), vectors(n, q, k, dtype=dtype, grad=True)]
    depths = [depth(n, p, relation).to(dtype), depth(n, q, relation).to(dtype)]
    upstream = [torch.randn(()).item()]

    def run(function, dtype, **more):
        a, b, u, v = copies([*codes, *depths], dtype)
        b, v = a if same[0] else b, u if same[1] else v
        term = function(a, b, u, v, 0.1, relation=relation, bandwidth=0.5, **options, **more)
        loss, gradients = outcome([term.loss], upstream, [a] if same[0] else [a, b])
        return torch.cat([loss, term.similarity.double()[None]]), gradients

    ours, eager = run(depth_correlation_loss, dtype, impl=impl), run(reference.depth_correlation_loss, dtype)
    assert_close_as_eager(ours, eager, run(reference.depth_correlation_loss, torch.float64), dtype)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("relation", reference.RELATIONS)
@pytest.mark.parametrize("same", [(False, False), (True, True), (True, False), (False, True)])
def test_relations(impl, relation, same):
    compare(impl, 2, 37, 37 if any(same) else 20, 7, relation, same=same)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("clamp, limit", [(True, 0.2), (False, None), (False, 0.2)])
def test_options(impl, clamp, limit):
    for same in ((False, False), (True, True)):
        compare(impl, 2, 9, 9, 5, "product", same=same, clamp=clamp, max_similarity=limit)


@pytest.mark.parametrize("relation", ["product", "gaussian"])
@pytest.mark.parametrize("k", [70, 90, 100])
def test_shapes_of_the_paper(relation, k):
    compare(IMPLS[0], 3, 121, 121, k, relation, same=(True, True))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("relation", reference.RELATIONS)
def test_half_inputs(impl, dtype, relation):
    compare(impl, 2, 20, 20, 10, relation, dtype=dtype, same=(True, True))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("grads", list(itertools.product([True, False], repeat=2)))
def test_every_subset_of_gradients(impl, grads):
    codes = [vectors(2, 5, 3, grad=g) for g in grads]
    u, v = depth(2, 5, "product"), depth(2, 5, "product")
    loss = depth_correlation_loss(*codes, u, v, 0.1, impl=impl).loss
    truth = reference.depth_correlation_loss(*(x.double() for x in (*codes, u, v)), 0.1).loss
    torch.testing.assert_close(loss.double(), truth, atol=1e-6, rtol=1e-6)
    assert loss.requires_grad == any(grads)
    wanted = [x for x in codes if x.requires_grad]
    if wanted:
        for ours, expected in zip(torch.autograd.grad(loss, wanted), torch.autograd.grad(truth, wanted), strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_batch_and_zero_codes(impl):
    codes = vectors(0, 4, 3, grad=True)
    u = torch.rand(0, 4, device=DEVICE)
    term = depth_correlation_loss(codes, codes, u, u, 0.1, impl=impl)
    term.loss.backward()
    assert term.loss.item() == 0 and codes.grad.shape == (0, 4, 3)
    codes = torch.zeros(2, 4, 3, device=DEVICE, requires_grad=True)
    u = torch.rand(2, 4, device=DEVICE)
    term = depth_correlation_loss(codes, codes, u, u, 0.1, impl=impl)
    term.loss.backward()
    assert term.loss.item() == 0 and (codes.grad == 0).all()


def test_second_derivative_raises():
    codes, u = vectors(2, 5, 3, grad=True), torch.rand(2, 5, device=DEVICE)
    (grad,) = torch.autograd.grad(depth_correlation_loss(codes, codes, u, u, 0.1).loss, codes, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"depth_a": torch.rand(2, 4)}, r"depth_a must be \[2, 5\] for relation 'product'.*got \(2, 4\)"),
        ({"depth_b": torch.rand(2, 6, 3)}, r"depth_b must be \[2, 6\]"),
        ({"relation": "normals"}, r"depth_a must be \[2, 5, D\]"),
        ({"relation": "inverse"}, "unknown relation 'inverse'; choose one of product"),
        ({"codes_b": torch.rand(3, 6, 3)}, r"codes_a \(2, 5, 3\) and codes_b \(3, 6, 3\)"),
        ({"codes_b": torch.rand(2, 6, 4)}, r"codes_a \(2, 5, 3\) and codes_b \(2, 6, 4\)"),
        ({"depth_a": torch.rand(2, 5, requires_grad=True)}, "depth_a requires grad"),
        ({"relation": "gaussian", "bandwidth": 1e-200}, "bandwidth must be between 1e-18 and 1e18 for relation 'gau"),
        ({"relation": "gaussian", "bandwidth": 1e200}, "bandwidth must be between"),
        ({"relation": "gaussian", "bandwidth": float("nan")}, "bandwidth must be between"),
    ],
)
def test_wrong_inputs(change, message):
    inputs = {
        "codes_a": torch.rand(2, 5, 3), "codes_b": torch.rand(2, 6, 3), "depth_a": torch.rand(2, 5),
        "depth_b": torch.rand(2, 6), "shift": 0.1,
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=message):
        depth_correlation_loss(**inputs)


@pytest.mark.parametrize("relation", ["euclidean", "normals"])
def test_depths_of_other_components_are_refused(relation):
    codes, points = torch.rand(2, 5, 3), torch.rand(2, 5, 3)
    with pytest.raises(ValueError, match=r"depth_a \(2, 5, 3\) and depth_b \(2, 5, 4\) must have one number of comp"):
        depth_correlation_loss(codes, codes, points, torch.rand(2, 5, 4), 0.1, relation=relation)
    with pytest.raises(ValueError, match=r"depth_a must be \[2, 5, D\]"):
        depth_correlation_loss(codes, codes, points[..., :0], points[..., :0], 0.1, relation=relation)
