"""nt_xent_loss of every implementation against the float64 definition."""

import itertools

import pytest
import torch
from loss_cases import DEVICE, HALVES, IMPLS, TRITON, assert_close_as_eager, copies, outcome, vectors

from depthg.kernels import nt_xent_loss, reference
from depthg.kernels.code_gradient import code_gradient
from depthg.kernels.feature_means import mean_vectors


def compare(impl, n, k, temperature=0.2, dtype=torch.float32):
    """A logit is as large as 1 / T and so is its rounding error, in units of eps."""
    views = [vectors(n, k, dtype=dtype, grad=True) for _ in range(2)]

    def run(function, dtype, **more):
        leaves = copies(views, dtype)
        return outcome([function(*leaves, temperature, **more)], [-0.7], leaves)

    ours, eager = run(nt_xent_loss, dtype, impl=impl), run(reference.nt_xent_loss, dtype)
    assert_close_as_eager(ours, eager, run(reference.nt_xent_loss, torch.float64), dtype, 8 + 1 / temperature)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("n, k", [(16, 32), (19, 7), (40, 140), (2, 3), (70, 48), (20, 70), (9, 90), (33, 128)])
def test_shapes(impl, n, k):
    compare(impl, n, k)


@pytest.mark.skipif(not TRITON, reason="needs a GPU or TRITON_INTERPRET=1")
@pytest.mark.parametrize("programs", [1, 4, 7, 1000])
def test_columns_in_any_number_of_spans(monkeypatch, programs):
    import depthg.kernels.nt_xent_triton as launch

    monkeypatch.setattr(launch, "PROGRAMS", programs)
    compare("triton", 90, 20)


@pytest.mark.skipif(not TRITON, reason="needs a GPU or TRITON_INTERPRET=1")
@pytest.mark.parametrize("k", [*range(1, 300, 7), 16, 32, 48, 64, 80, 96, 112, 128, 192, 256])
def test_padded_channels_are_whole_blocks_of_powers_of_two(k):
    from depthg.kernels.nt_xent_triton import channel_blocks

    padded, first, second = channel_blocks(k)
    assert padded >= k and padded % (first + second) == 0 and padded <= max(16, k + 63)
    assert all(x & (x - 1) == 0 and x % 16 == 0 for x in (first, second))
    assert (padded == first + second) if k <= 128 else padded % 64 == 0


def test_many_views_in_chunks(monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["depthg.kernels.nt_xent"], "CHUNK", 1 << 9)
    compare(IMPLS[0], 121, 70)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("temperature", [0.01, 0.5, 10.0])
def test_temperatures(impl, temperature):
    compare(impl, 20, 8, temperature)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("n, k, temperature", [(20, 8, 0.5), (40, 70, 0.1), (9, 140, 0.5)])
def test_half_inputs(impl, dtype, n, k, temperature):
    compare(impl, n, k, temperature, dtype)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", HALVES)
def test_small_weights_keep_their_digits(impl, dtype):
    """Equal views at a low temperature: the gradient is made of weights of 2e-9, as of a billion views."""
    z = vectors(16, 64, dtype=dtype)
    views = [z.clone().requires_grad_(), z.clone().requires_grad_()]
    grads = torch.autograd.grad(nt_xent_loss(*views, 0.05, impl=impl) * 2**18, views)
    wide = [x.detach().double().requires_grad_() for x in views]
    truth = torch.autograd.grad(reference.nt_xent_loss(*wide, 0.05) * 2**18, wide)
    for ours, expected in zip(grads, truth, strict=True):
        error = (ours.double() - expected).norm() / expected.norm()
        assert error < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_autocast_changes_nothing(impl, dtype):
    views, found = [vectors(20, 24, dtype=dtype, grad=True) for _ in range(2)], []
    for enabled in (False, True):
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=enabled):
            loss = nt_xent_loss(*views, 0.5, impl=impl)
            found.append((loss.detach(), *torch.autograd.grad(loss, views)))  # backward inside, too
    assert all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(*found, strict=True))


@pytest.mark.parametrize("impl", IMPLS)
def test_one_pair_has_loss_and_gradient_zero(impl):
    z_a, z_b = vectors(1, 4, grad=True), vectors(1, 4, grad=True)
    loss = nt_xent_loss(z_a, z_b, 0.5, impl=impl)
    loss.backward()
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-6, rtol=0)
    torch.testing.assert_close(z_a.grad, torch.zeros_like(z_a), atol=1e-6, rtol=0)


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_batch_and_zero_vectors(impl):
    z = vectors(0, 4, grad=True)
    loss = nt_xent_loss(z, z, 0.5, impl=impl)
    loss.backward()
    assert loss.item() == 0 and z.grad.shape == (0, 4)
    z_a, z_b = vectors(3, 4), vectors(3, 4)
    z_a[1] = 0
    z_a.requires_grad_()
    nt_xent_loss(z_a, z_b, 0.5, impl=impl).backward()
    assert torch.isfinite(z_a.grad).all() and (z_a.grad[1] == 0).all() and z_a.grad[0].norm() > 0


@pytest.mark.parametrize("impl", [*IMPLS, "eager"])
@pytest.mark.parametrize("length", [1e-30, 1e-40])
@pytest.mark.parametrize("channels", [1, 4])
def test_vectors_whose_squares_vanish_count_as_zero(impl, length, channels):
    views, found = (vectors(3, channels), vectors(3, channels)), []
    for short in (0, length):
        views[0].requires_grad_(False)[1] = short
        loss = nt_xent_loss(views[0].requires_grad_(), views[1], 0.5, impl=impl)
        found.append((loss.detach(), *torch.autograd.grad(loss, views[:1])))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(
    ("dtype", "length"),
    [(torch.float32, 1e-30), (torch.float32, 1e-40), (torch.bfloat16, 1e-30), (torch.float64, 1e-200)],
)
def test_such_vectors_have_no_gradient_and_no_part_in_means(dtype, length):
    x = torch.full((1, 1, 1), length, dtype=dtype)
    found = code_gradient(x, torch.ones(1, 1, 1, 1, dtype=torch.promote_types(dtype, torch.float32)), torch.ones(1))
    assert found.item() == 0 and mean_vectors(x).item() == 0


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("grads", list(itertools.product([True, False], repeat=2)))
def test_every_subset_of_gradients(impl, grads):
    views = [vectors(5, 3, grad=g) for g in grads]
    loss, truth = nt_xent_loss(*views, 0.5, impl=impl), reference.nt_xent_loss(*(x.double() for x in views), 0.5)
    torch.testing.assert_close(loss.double(), truth, atol=1e-6, rtol=1e-6)
    wanted = [x for x in views if x.requires_grad]
    if wanted:
        for x, y in zip(torch.autograd.grad(loss, wanted), torch.autograd.grad(truth, wanted), strict=True):
            torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_op_checks(impl):
    views = (vectors(5, 3, grad=True), vectors(5, 3, grad=True))
    torch.library.opcheck(torch.ops.depthg.nt_xent_loss.default, (*views, 0.5, True, impl))


def test_compiles_to_one_graph():
    z_a, z_b = vectors(5, 3, grad=True), vectors(5, 3, grad=True)
    loss = torch.compile(lambda a, b: nt_xent_loss(a * 2, b, 0.5), fullgraph=True, backend="aot_eager")(z_a, z_b)
    expected = nt_xent_loss(z_a * 2, z_b, 0.5)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, z_a)[0], torch.autograd.grad(expected, z_a)[0])


def test_second_derivative_raises():
    z_a, z_b = vectors(5, 3, grad=True), vectors(5, 3)
    (grad,) = torch.autograd.grad(nt_xent_loss(z_a, z_b, 0.5), z_a, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        grad.sum().backward()


def test_wrong_inputs():
    with pytest.raises(ValueError, match=r"z_a \(5, 3\) and z_b \(4, 3\)"):
        nt_xent_loss(vectors(5, 3), vectors(4, 3), 0.5)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        nt_xent_loss(vectors(5, 3), vectors(5, 3), 0)
    with pytest.raises(TypeError, match="floating point"):
        nt_xent_loss(torch.ones(5, 3, dtype=torch.int64, device=DEVICE), vectors(5, 3), 0.5)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_view_opposite_to_all_others_at_a_low_temperature(impl):
    """Columns that only pad a tile must not count, however small the sums of a row are."""
    x = torch.tensor([[1.0, 0.1, 0.0], [-1.0, 0.0, 0.1]], device=DEVICE)
    for a, b in ((x[:1], x[1:]), (x, torch.cat([x[1:], x[1:]]))):
        leaves = [t.clone().requires_grad_() for t in (a, b)]
        grads = torch.autograd.grad(nt_xent_loss(*leaves, 0.005, impl=impl), leaves)
        wide = [t.double().requires_grad_() for t in (a, b)]
        truth = torch.autograd.grad(nt_xent_loss(*wide, 0.005, impl="eager"), wide)
        for ours, wanted in zip(grads, truth, strict=True):
            torch.testing.assert_close(ours.double(), wanted, atol=1e-3, rtol=1e-4)
