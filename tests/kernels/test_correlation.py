"""correlation_loss of every implementation against the float64 definition, and what callers may get wrong."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import DEVICE, HALVES, IMPLS, assert_close_as_eager, copies, outcome, vectors

from depthg.kernels import _extension, checks, correlation, correlation_loss, reference

SHAPES = {  # N, M, P, Q, C, K, R
    "aligned": (2, 2, 32, 32, 64, 32, 2),
    "odd": (2, 3, 37, 21, 19, 7, 2),
    "one image": (1, 1, 9, 9, 5, 3, 1),
    "one point": (3, 3, 1, 1, 8, 4, 2),
    "wide codes": (2, 2, 10, 12, 6, 140, 1),
}
PAPER = {
    "P = 121": (3, 3, 121, 121, 384, 70, 2),
    "ViT-B": (2, 2, 144, 144, 768, 90, 2),
    "100": (2, 2, 64, 50, 384, 100, 1),
}


def compare(impl, shape, dtype=torch.float32, index=True, same=False, grads=(True, True), **options):
    n, m, p, q, c, k, r = shape
    feats_a, feats_b = vectors(n, p, c, dtype=dtype), vectors(m, q, c, dtype=dtype)
    codes_a, codes_b = vectors(n, p, k, dtype=dtype, grad=grads[0]), vectors(m, q, k, dtype=dtype, grad=grads[1])
    index_b = torch.randint(0, n if same else m, (r, n), device=DEVICE) if index else None
    upstream, tensors = [torch.randn(()).item()], [feats_a, feats_b, codes_a, codes_b]

    def run(function, dtype, **more):
        leaves = copies(tensors, dtype)
        x, y, a, b = (leaves[0], leaves[0], leaves[2], leaves[2]) if same else leaves
        term = function(x, y, a, b, 0.1, index_b=index_b, **options, **more)
        assert not term.similarity.requires_grad
        loss, gradients = outcome([term.loss], upstream, leaves[2:3] if same else leaves[2:])
        return torch.cat([loss, term.similarity.double()[None]]), gradients

    ours, eager = run(correlation_loss, dtype, impl=impl), run(reference.correlation_loss, dtype)
    assert_close_as_eager(ours, eager, run(reference.correlation_loss, torch.float64), dtype)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(impl, name, index):
    shape = SHAPES[name]
    compare(impl, shape if index else (shape[0], shape[0], *shape[2:]), index=index)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_one_bank_on_both_sides(impl, name, index):
    if name == "one point" and not index:
        pytest.skip("S is 1 everywhere: the true gradient is 0 and only rounding is left")
    compare(impl, SHAPES[name], index=index, same=True)


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("same", [True, False])
def test_shapes_of_the_paper(name, same):
    compare(IMPLS[0], PAPER[name], same=same)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64] if DEVICE == "cpu" else [torch.float32])
def test_points_split_into_several_row_blocks(dtype):
    """Blocks of W hold 65,536 numbers of float32, half of that in float64."""
    for same, index in itertools.product([True, False], [True, False]):
        compare(IMPLS[0], (2, 2, 300, 300 if same else 260, 12, 6, 2), dtype, same=same, index=index)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("center, clamp, limit", list(itertools.product([True, False], [True, False], [None, 0.2])))
def test_options(impl, center, clamp, limit):
    for same, index in itertools.product([True, False], [True, False]):
        compare(impl, (3, 3, 9, 11, 6, 5, 2), same=same, index=index, center=center, clamp=clamp, max_similarity=limit)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_inputs(impl, dtype):
    for same in (True, False):
        compare(impl, (2, 2, 20, 20, 24, 10, 2), dtype=dtype, same=same)
        compare(impl, (2, 2, 20, 20, 24, 10, 2), dtype=dtype, same=same, center=False, clamp=False)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("grads", list(itertools.product([True, False], repeat=2)))
def test_every_subset_of_gradients(impl, grads):
    if not any(grads):
        data = [vectors(2, 5, c) for c in (4, 4, 3, 3)]
        assert not correlation_loss(*data, 0.1, impl=impl).loss.requires_grad
    compare_subset(impl, grads)


def compare_subset(impl, grads):
    data = [vectors(2, 5, c) for c in (4, 4)] + [vectors(2, 5, 3, grad=g) for g in grads]
    loss = correlation_loss(*data, 0.1, impl=impl).loss
    truth = reference.correlation_loss(*(x.double() for x in data), 0.1).loss
    torch.testing.assert_close(loss.double(), truth, atol=1e-6, rtol=1e-6)
    wanted = [x for x in data if x.requires_grad]
    if wanted:
        for ours, expected in zip(torch.autograd.grad(loss, wanted), torch.autograd.grad(truth, wanted), strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_strided_inputs(impl):
    feats, codes = vectors(2, 6, 9).transpose(1, 2), vectors(2, 5, 18)[:, :, ::2].transpose(1, 2)
    term = correlation_loss(feats, feats, codes, codes, 0.1, impl=impl)
    truth = reference.correlation_loss(*(x.double() for x in (feats, feats, codes, codes)), 0.1)
    torch.testing.assert_close(term.loss.double(), truth.loss, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_zero_vectors(impl):
    feats, codes = vectors(2, 5, 4), vectors(2, 5, 3)
    feats[0, 0], codes[0, 2], codes[1] = 0, 0, 0
    codes.requires_grad_()
    term = correlation_loss(feats, feats, codes, codes, 0.1, impl=impl)
    term.loss.backward()
    assert (codes.grad[0, 2] == 0).all() and (codes.grad[1] == 0).all() and codes.grad[0, 0].norm() > 0
    truth = reference.correlation_loss(*(x.detach().double() for x in (feats, feats, codes, codes)), 0.1)
    torch.testing.assert_close(term.loss.double(), truth.loss, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("n, p", [(0, 4), (2, 0)])
def test_empty_batch(impl, n, p):
    codes = vectors(n, p, 3, grad=True)
    term = correlation_loss(vectors(n, p, 4), vectors(n, p, 4), codes, codes, 0.1, impl=impl)
    assert term.loss.item() == 0 and term.similarity.item() == 0
    term.loss.backward()
    assert codes.grad.shape == codes.shape and (codes.grad == 0).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_two_runs_are_bitwise_equal(impl):
    feats, codes, index = vectors(4, 30, 9), vectors(4, 30, 6, grad=True), torch.randint(0, 4, (5, 4), device=DEVICE)
    losses, grads = [], []
    for _ in range(2):
        loss = correlation_loss(feats, feats, codes, codes, 0.1, index_b=index, impl=impl).loss
        losses.append(loss.item())
        grads.append(torch.autograd.grad(loss, codes)[0])
    assert losses[0] == losses[1] and torch.equal(*grads)


@pytest.mark.parametrize("impl", IMPLS)
def test_tensor_shift(impl):
    data = [vectors(2, 5, c) for c in (4, 4, 3, 3)]
    as_float, as_tensor = (correlation_loss(*data, s, impl=impl).loss for s in (0.25, torch.tensor(0.25).to(DEVICE)))
    assert as_float.item() == as_tensor.item()


@pytest.mark.parametrize("impl", IMPLS)
def test_second_derivative_raises(impl):
    feats, codes = vectors(2, 5, 4), vectors(2, 5, 3, grad=True)
    loss = correlation_loss(feats, feats, codes, codes, 0.1, impl=impl).loss
    (grad,) = torch.autograd.grad(loss, codes, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        grad.sum().backward()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31))
def test_repeated_mirrored_and_own_negatives(images, draws, seed):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, images, (draws, images), generator=generator).to(DEVICE)
    feats, codes = (torch.randn(images, 6, c, generator=generator).to(DEVICE).requires_grad_(c == 3) for c in (4, 3))
    loss = correlation_loss(feats, feats, codes, codes, 0.1, index_b=index).loss
    (grad,) = torch.autograd.grad(loss, codes)
    wide = codes.detach().double().requires_grad_()
    truth = reference.correlation_loss(feats.double(), feats.double(), wide, wide, 0.1, index_b=index).loss
    torch.testing.assert_close(loss.double(), truth, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(grad.double(), torch.autograd.grad(truth, wide)[0], atol=1e-6, rtol=1e-4)


def test_equal_leaves_that_are_not_one_tensor_get_gradients_of_their_own():
    feats, codes = vectors(2, 5, 4), vectors(2, 5, 3, grad=True)
    other = codes.detach().requires_grad_()
    correlation_loss(feats, feats, codes, other, 0.1).loss.backward()
    wide = [x.detach().double().requires_grad_() for x in (codes, other)]
    reference.correlation_loss(feats.double(), feats.double(), *wide, 0.1).loss.backward()
    torch.testing.assert_close(codes.grad.double(), wide[0].grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(other.grad.double(), wide[1].grad, atol=1e-6, rtol=1e-5)


def test_op_checks():
    from depthg.kernels import code_gradient as _  # noqa: F401

    codes = vectors(2, 5, 3)
    torch.library.opcheck(torch.ops.depthg.code_gradient.default, (codes, vectors(2, 2, 5, 3), vectors(2)))


def test_compiles_to_one_graph():
    feats, codes, other = vectors(3, 5, 4), vectors(3, 5, 3, grad=True), vectors(3, 5, 3, grad=True)
    index = torch.tensor([[1, 2, 0]], device=DEVICE)

    def step(x, a, b):
        return correlation_loss(x, x, a * 2, b, 0.1, index_b=index).loss + correlation_loss(x, x, a, a, 0.1).loss

    expected = step(feats, codes, other)
    loss = torch.compile(step, fullgraph=True, backend="aot_eager")(feats, codes, other)
    torch.testing.assert_close(loss, expected)
    for ours, wanted in zip(
        torch.autograd.grad(loss, [codes, other]), torch.autograd.grad(expected, [codes, other]), strict=True
    ):
        torch.testing.assert_close(ours, wanted)


def good():
    return {
        "feats_a": vectors(2, 5, 4), "feats_b": vectors(3, 6, 4), "codes_a": vectors(2, 5, 3),
        "codes_b": vectors(3, 6, 3), "index_b": torch.tensor([[0, 2]], device=DEVICE),
    }  # fmt: skip


@pytest.mark.parametrize(
    "name, value, error, message",
    [
        ("feats_a", lambda: vectors(2, 4, 4), ValueError, r"feats_a \(2, 4, 4\) and codes_a \(2, 5, 3\)"),
        ("feats_b", lambda: vectors(3, 6, 5), ValueError, r"feats_a \(2, 5, 4\) and feats_b \(3, 6, 5\)"),
        ("codes_b", lambda: vectors(3, 6, 4), ValueError, r"codes_a \(2, 5, 3\) and codes_b \(3, 6, 4\)"),
        ("codes_a", lambda: vectors(2, 5), ValueError, r"images, points, channels.*\(2, 5\)"),
        ("index_b", lambda: None, ValueError, r"feats_a \(2, 5, 4\) and feats_b \(3, 6, 4\).*index_b"),
        ("index_b", lambda: torch.zeros(2, 3, dtype=torch.int64), ValueError, r"\[draws, 2\].*\(2, 3\)"),
        ("index_b", lambda: torch.zeros(1, 2), TypeError, "int64, got torch.float32"),
        ("feats_a", lambda: torch.ones(2, 5, 4, dtype=torch.int32), TypeError, "floating point, got torch.int32"),
        ("codes_b", lambda: [1.0], TypeError, "must be a tensor, got list"),
        ("feats_b", lambda: vectors(3, 6, 4, grad=True), ValueError, "feats_b requires grad"),
        ("feats_b", lambda: torch.empty(3, 6, 4, device="meta"), ValueError, "is on meta"),
    ],
)
def test_wrong_inputs(name, value, error, message):
    inputs = good() | {name: value()}
    if name == "index_b" and inputs[name] is not None:
        inputs[name] = inputs[name].to(DEVICE)
    with pytest.raises(error, match=message):
        correlation_loss(**inputs, shift=0.1)


@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU the range is not checked: it would wait for the device")
@pytest.mark.parametrize("wrong", [3, -1])
def test_index_out_of_range(wrong):
    with pytest.raises(ValueError, match=f"index_b holds {wrong}, outside the 3 images"):
        correlation_loss(**(good() | {"index_b": torch.tensor([[0, wrong]])}), shift=0.1)


def test_implementations_that_cannot_run(monkeypatch):
    with pytest.raises(ValueError, match=r"unknown impl 'cuda'.*'triton'"):
        correlation_loss(**good(), shift=0.1, impl="cuda")
    monkeypatch.setattr(checks, "HAS_TRITON", False)
    with pytest.raises(ValueError, match="not installed; use impl='auto'"):
        correlation_loss(**good(), shift=0.1, impl="triton")
    monkeypatch.setattr(_extension, "HAS_CPU", False)
    with pytest.raises(ValueError, match=r"impl='cpp' cannot run.*use impl='eager'"):
        correlation_loss(**good(), shift=0.1, impl="cpp")
    if DEVICE == "cpu":
        monkeypatch.setattr(checks, "HAS_TRITON", True)
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        with pytest.raises(ValueError, match=r"needs CUDA tensors.*use impl='auto'"):
            correlation_loss(**good(), shift=0.1, impl="triton")


def test_eager_is_the_reference():
    inputs = good()
    ours, wanted = (
        f(**inputs, shift=0.1, **o)
        for f, o in ((correlation_loss, {"impl": "eager"}), (reference.correlation_loss, {}))
    )
    assert torch.equal(ours.loss, wanted.loss)


def test_correlation_tensor():
    a, b, index = vectors(2, 5, 4, grad=True), vectors(3, 6, 4), torch.tensor([[0, 2]], device=DEVICE)
    value = correlation(a, b, index_b=index, center=True)
    assert value.shape == (1, 2, 5, 6) and value.requires_grad
    with pytest.raises(ValueError, match=r"a \(2, 5, 4\) and b \(3, 6, 4\)"):
        correlation(a, b)
