"""depthg_loss of every implementation against the float64 definition: total, every term, every gradient."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from loss_cases import DEVICE, HALVES, IMPLS, LONG, assert_close_as_eager, copies, outcome, vectors

from depthg.kernels import LossSettings, _extension, correlation_loss, depth_correlation_loss, depthg_loss, reference
from depthg.kernels.feature_means import feature_means

KEYS = ("feats_negative", "codes_negative", "depth", "codes_depth", "depth_other")


def make(n, p, q, c, k, draws, bank=False, depth=True, crop=False, dtype=torch.float32, relation="product"):
    """Tensors in the order feats, codes, feats_neighbour, codes_neighbour, then KEYS; and the negatives."""
    feats, near = (vectors(n, m, c, dtype=dtype) for m in (p, q))
    codes, near_codes = (vectors(n, m, k, dtype=dtype, grad=True) for m in (p, q))
    optional = [None] * 5
    if bank:
        optional[0], optional[1] = vectors(n + 1, q, c, dtype=dtype), vectors(n + 1, q, k, dtype=dtype, grad=True)
    if depth:
        channels = (3,) if relation in ("normals", "euclidean") else ()
        optional[2] = torch.rand(n, p, *channels).to(DEVICE, dtype)
        if crop:
            optional[3], optional[4] = (
                vectors(n, q, k, dtype=dtype, grad=True),
                torch.rand(n, q, *channels).to(DEVICE, dtype),
            )
    negatives = torch.randint(0, max(1, n + bank), (draws, n), device=DEVICE)
    return [feats, codes, near, near_codes, *optional], negatives


def run(function, tensors, negatives, settings, dtype, **more):
    """Total, losses and similarities, with gradients under different upstream gradients for each."""
    leaves = copies(tensors, dtype)
    optional = dict(zip(KEYS, leaves[4:], strict=True))
    result = function(*leaves[:4], negatives, settings, **optional, **more)
    terms = [term for term in result[1:] if term is not None]
    upstream = [1.3, -0.4, 0.7, 0.2, 0.5][: len(terms) + 1]
    losses, grads = outcome([result.total, *(t.loss for t in terms)], upstream, leaves)
    return torch.cat([losses, torch.stack([t.similarity.double() for t in terms])]), grads


def compare(impl, tensors, negatives, settings, dtype=torch.float32):
    ours = run(depthg_loss, tensors, negatives, settings, dtype, impl=impl)
    eager = run(reference.depthg_loss, tensors, negatives, settings, dtype)
    assert_close_as_eager(ours, eager, run(reference.depthg_loss, tensors, negatives, settings, torch.float64), dtype)


SETTINGS = LossSettings(depth_weight=0.2, depth_shift=0.05)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "bank, depth, crop", [(False, True, False), (False, False, False), (True, True, True), (True, True, False)]
)
def test_banks_and_crops(impl, bank, depth, crop):
    compare(impl, *make(3, 37, 21, 19, 7, 2, bank, depth, crop), SETTINGS)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("center, clamp, limit", list(itertools.product([True, False], [True, False], [None, 0.2])))
def test_options(impl, center, clamp, limit):
    settings = LossSettings(depth_weight=0.2, center=center, clamp=clamp, max_similarity=limit)
    compare(impl, *make(3, 9, 11, 6, 5, 2), settings)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("relation", reference.RELATIONS)
def test_relations(impl, relation):
    settings = LossSettings(depth_weight=0.2, depth_shift=0.1, relation=relation, bandwidth=0.5)
    compare(impl, *make(2, 9, 7, 6, 5, 2, relation=relation), settings)
    compare(impl, *make(2, 9, 7, 6, 5, 2, crop=True, relation=relation), settings)


@pytest.mark.parametrize(
    "shape", [(4, 121, 121, 384, 70, 5), (2, 144, 144, 768, 90, 5), (8, 49, 49, 128, 100, 5), (2, 400, 400, 32, 20, 2)]
)
def test_shapes_of_the_paper(shape):
    compare(IMPLS[0], *make(*shape), SETTINGS)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bank, crop", [(False, False), (True, True)])
def test_half_inputs(impl, dtype, bank, crop):
    compare(impl, *make(2, 20, 20, 24, 10, 2, bank, True, crop, dtype=dtype), SETTINGS, dtype)


@pytest.mark.skipif(DEVICE == "cuda" or not _extension.HAS_CPU, reason="needs the compiled pass on the CPU")
class TestCompiledPass:
    """What only the compiled pass can get wrong."""

    @pytest.mark.parametrize("relation", reference.RELATIONS)
    @pytest.mark.parametrize("bank, crop", [(False, False), (True, True)])
    def test_float64_of_every_relation(self, relation, bank, crop):
        """As exact as the definition, and the gradient is that of the values."""
        settings = LossSettings(depth_weight=0.2, depth_shift=0.1, relation=relation, bandwidth=0.5)
        tensors, negatives = make(3, 37, 21, 19, 7, 2, bank, True, crop, torch.float64, relation)
        ours, truth = (
            run(f, tensors, negatives, settings, torch.float64, **more)
            for f, more in ((depthg_loss, {"impl": "cpp"}), (reference.depthg_loss, {}))
        )
        torch.testing.assert_close(ours[0], truth[0], atol=1e-14, rtol=1e-13)
        for x, y in zip(ours[1], truth[1], strict=True):
            torch.testing.assert_close(x, y, atol=1e-15, rtol=1e-12)

    @pytest.mark.parametrize("relation", ["product", "gaussian"])
    def test_gradcheck(self, relation):
        tensors, negatives = make(2, 5, 4, 3, 3, 2, bank=True, crop=True, dtype=torch.float64)
        settings = LossSettings(depth_weight=0.2, relation=relation, bandwidth=0.5, clamp=False)  # no kink

        def total(codes, near_codes, far_codes, other_codes):
            changed = [
                tensors[0],
                codes,
                tensors[2],
                near_codes,
                tensors[4],
                far_codes,
                tensors[6],
                other_codes,
                tensors[8],
            ]
            return depthg_loss(*changed[:4], negatives, settings, **dict(zip(KEYS, changed[4:], strict=True))).total

        assert torch.autograd.gradcheck(total, [tensors[i] for i in (1, 3, 5, 7)])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_exponentials_of_every_size(self, dtype):
        """exp(-u^2) for u from 0 to beyond the smallest normal number: within some units in the last place."""
        u = torch.linspace(0, 30, 4000, dtype=torch.float64).to(dtype)
        codes, zero = torch.ones(1, 1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
        options = {"relation": "gaussian", "bandwidth": 1.0, "impl": "cpp"}
        losses = [depth_correlation_loss(codes, codes, x[None, None], zero, 0.0, **options).loss for x in u]
        ours, truth = -torch.stack(losses).double(), (-(u.double() ** 2)).exp()
        tiny, eps = torch.finfo(dtype).tiny, torch.finfo(dtype).eps
        normal = truth > 2 * tiny
        assert (ours[~normal] < 4 * tiny).all()
        allowed = (2 + (u.double() ** 2)[normal]) * eps * truth[normal]  # u^2 itself is rounded
        assert ((ours - truth)[normal].abs() <= allowed).all()

    def test_depth_that_is_not_finite(self):
        codes = vectors(1, 3, 4)
        for value, expected in ((math.inf, 0.0), (math.nan, math.nan)):
            u, v = torch.tensor([[value] * 3]), torch.zeros(1, 3)
            loss = depth_correlation_loss(codes, codes, u, v, 0.0, relation="gaussian", impl="cpp").loss.item()
            assert loss == expected or (math.isnan(loss) and math.isnan(expected))

    @pytest.mark.parametrize("p, q", [(1, 1), (31, 33), (32, 64), (33, 65), (300, 290)])
    @pytest.mark.parametrize("k", [1, 16, 81, 130])
    def test_sizes_around_panels_and_tiles(self, p, q, k):
        compare("cpp", *make(2, p, q, 5, k, 2, bank=p != q), LossSettings(depth_weight=0.3, max_similarity=0.9))

    def test_threads_do_not_change_a_bit(self):
        tensors, negatives = make(9, 70, 70, 33, 20, 5)
        before, results = torch.get_num_threads(), []
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                optional = dict(zip(KEYS, tensors[4:], strict=True))
                total = depthg_loss(*tensors[:4], negatives, SETTINGS, **optional).total
                results.append((total, *torch.autograd.grad(total, [tensors[1], tensors[3]])))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))

    def test_two_callers_at_the_same_time(self):
        problems = [make(5, 40, 40, 12, 9, 3) for _ in range(4)]

        def solve(problem):
            return depthg_loss(*problem[0][:4], problem[1], SETTINGS).total.item()

        alone = [solve(p) for p in problems]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(10):
                assert list(pool.map(solve, problems)) == alone


def test_float16_features_with_float32_codes():
    tensors, negatives = make(3, 16, 16, 12, 6, 2)
    halves = [x.half() if i in (0, 2) else x for i, x in enumerate(tensors)]
    ours = run_as_is(halves, negatives)
    wide = run_as_is([x.float() if i in (0, 2) else x for i, x in enumerate(halves)], negatives)
    torch.testing.assert_close(ours[0], wide[0], atol=1e-6, rtol=1e-5)
    for x, y in zip(ours[1], wide[1], strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-4)


def run_as_is(tensors, negatives):
    total = depthg_loss(*tensors[:4], negatives, SETTINGS, **dict(zip(KEYS, tensors[4:], strict=True))).total
    return total, torch.autograd.grad(total, [tensors[1], tensors[3]])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("grads", list(itertools.product([True, False], repeat=2)))
def test_every_subset_of_gradients(impl, grads):
    tensors, negatives = make(2, 6, 5, 4, 3, 2)
    for position, grad in zip((1, 3), grads, strict=True):
        tensors[position] = tensors[position].detach().requires_grad_(grad)
    ours = run(depthg_loss, tensors, negatives, SETTINGS, torch.float32, impl=impl)
    truth = run(reference.depthg_loss, tensors, negatives, SETTINGS, torch.float64)
    torch.testing.assert_close(ours[0], truth[0], atol=1e-6, rtol=1e-6)
    assert len(ours[1]) == sum(grads)
    for x, y in zip(ours[1], truth[1], strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_one_term_is_the_term_alone(impl):
    tensors, negatives = make(3, 9, 8, 6, 5, 2)
    feats, codes, near, near_codes = tensors[:4]
    result = depthg_loss(*tensors[:4], negatives, SETTINGS, impl=impl)
    alone = correlation_loss(feats, near, codes, near_codes, SETTINGS.neighbour_shift, impl=impl)
    torch.testing.assert_close(result.neighbour.loss, alone.loss)
    for ours, wanted in zip(
        torch.autograd.grad(result.neighbour.loss, [codes, near_codes]),
        torch.autograd.grad(alone.loss, [codes, near_codes]),
        strict=True,
    ):
        torch.testing.assert_close(ours, wanted, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_no_points_or_no_channels_are_as_in_the_definition(impl):
    tensors, negatives = make(2, 6, 5, 4, 3, 2)
    feats, codes, near, near_codes = tensors[:4]
    for given in ((feats, codes, near[:, :0], near_codes[:, :0]), (feats[..., :0], codes, near[..., :0], near_codes)):
        found, expected = (depthg_loss(*given, negatives, SETTINGS, impl=i).total for i in (impl, "eager"))
        torch.testing.assert_close(found, expected)
        assert expected != 0


@pytest.mark.parametrize("impl", IMPLS)
def test_no_negatives_and_empty_batch(impl):
    tensors, negatives = make(2, 6, 5, 4, 3, 0)
    result = depthg_loss(*tensors[:4], negatives, SETTINGS, impl=impl)
    assert result.negative.loss.item() == 0 and result.negative.similarity.item() == 0
    tensors, negatives = make(0, 6, 5, 4, 3, 2)
    result = depthg_loss(*tensors[:4], negatives, SETTINGS, depth=tensors[6], impl=impl)
    result.total.backward()
    assert result.total.item() == 0 and tensors[1].grad.shape == (0, 6, 3)


@pytest.mark.skipif(DEVICE == "cuda", reason="what CPU tensors take without compiled code")
def test_without_compiled_code_the_definition_runs(monkeypatch):
    monkeypatch.setattr(_extension, "HAS_CPU", False)
    tensors, negatives = make(3, 37, 21, 19, 7, 2)
    ours = run(depthg_loss, tensors, negatives, SETTINGS, torch.float32)
    eager = run(reference.depthg_loss, tensors, negatives, SETTINGS, torch.float32)
    assert torch.equal(ours[0], eager[0])
    assert all(torch.equal(x, y) for x, y in zip(ours[1], eager[1], strict=True))


def test_compiles_to_one_graph():
    tensors, negatives = make(3, 6, 5, 4, 3, 2)

    def step(codes, near_codes):
        result = depthg_loss(tensors[0], codes * 2, tensors[2], near_codes, negatives, SETTINGS, depth=tensors[6])
        return result.total + result.self.loss

    codes = [tensors[1], tensors[3]]
    expected = step(*codes)
    loss = torch.compile(step, fullgraph=True, backend="aot_eager")(*codes)
    torch.testing.assert_close(loss, expected)
    for x, y in zip(torch.autograd.grad(loss, codes), torch.autograd.grad(expected, codes), strict=True):
        torch.testing.assert_close(x, y)


def test_second_derivative_raises():
    tensors, negatives = make(2, 6, 5, 4, 3, 2)
    total = depthg_loss(*tensors[:4], negatives, SETTINGS).total
    (grad,) = torch.autograd.grad(total, tensors[1], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"feats_negative": torch.rand(4, 5, 4)}, "pass both or neither"),
        ({"codes_depth": torch.rand(2, 5, 3)}, "need depth"),
        ({"depth": torch.rand(2, 6), "codes_depth": torch.rand(2, 5, 3)}, "needs depth_other"),
        ({"negatives": torch.tensor([[0, 2]])}, "negatives holds 2, outside the 2 images"),
        ({"codes_neighbour": torch.rand(2, 6, 3)}, r"feats_neighbour \(2, 5, 4\) and codes_neighbour \(2, 6, 3\)"),
        ({"feats": torch.rand(2, 6, 4, requires_grad=True)}, "feats requires grad"),
        ({"depth": torch.rand(2, 5)}, r"depth must be \[2, 6\]"),
        ({"feature_means": torch.rand(2)}, r"feature_means must be \[3\]"),
        ({"feature_means": torch.rand(3, device="meta")}, "feature_means is on meta but feats is on cpu"),
    ],
)
def test_wrong_inputs(change, message):
    inputs = {
        "feats": torch.rand(2, 6, 4), "codes": torch.rand(2, 6, 3), "feats_neighbour": torch.rand(2, 5, 4),
        "codes_neighbour": torch.rand(2, 5, 3), "negatives": torch.tensor([[1, 0]]), "settings": SETTINGS,
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=message):
        depthg_loss(**inputs)


@pytest.mark.parametrize("impl", LONG)
def test_given_means_of_f_take_the_place_of_the_computed_ones(impl):
    tensors, negatives = make(3, 37, 21, 19, 7, 2, bank=True)
    means = reference.feature_means(tensors[0], tensors[2], negatives, tensors[4])
    ours = feature_means(tensors[0], tensors[2], negatives, tensors[4])
    torch.testing.assert_close(ours, means.double(), atol=1e-7, rtol=1e-5)
    more = {"feature_means": means + torch.tensor([0.3, -0.2, 0.1, 0.4], device=DEVICE)}
    found = run(depthg_loss, tensors, negatives, SETTINGS, torch.float32, impl=impl, **more)
    eager = run(reference.depthg_loss, tensors, negatives, SETTINGS, torch.float32, **more)
    assert_close_as_eager(
        found, eager, run(reference.depthg_loss, tensors, negatives, SETTINGS, torch.float64, **more), torch.float32
    )
    plain = run(depthg_loss, tensors, negatives, SETTINGS, torch.float32, impl=impl)
    own = run(depthg_loss, tensors, negatives, SETTINGS, torch.float32, impl=impl, feature_means=ours)
    torch.testing.assert_close(own[0], plain[0])
    assert not torch.allclose(found[0], plain[0], atol=1e-3)


def test_halves_of_a_batch_with_the_means_of_the_whole_give_its_loss():
    tensors, negatives = make(4, 20, 20, 9, 6, 3)
    feats, codes, near, near_codes, depth = *tensors[:4], tensors[6]
    whole = depthg_loss(feats, codes, near, near_codes, negatives, SETTINGS, depth=depth)
    half = [
        depthg_loss(
            feats[s], codes[s], near[s], near_codes[s], negatives[:, s], SETTINGS, depth=depth[s],
            feats_negative=feats, codes_negative=codes, feature_means=feature_means(feats, near, negatives),
        ).total
        for s in (slice(0, 2), slice(2, 4))
    ]  # fmt: skip
    leaves = [codes, near_codes]
    torch.testing.assert_close(sum(half) / 2, whole.total)
    expected = torch.autograd.grad(whole.total, leaves)
    for x, y in zip(torch.autograd.grad(sum(half) / 2, leaves), expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-7, rtol=1e-5)


@pytest.mark.skipif(not _extension.HAS_CPU, reason="depthg._C is not compiled")
def test_an_index_of_a_compiled_graph_is_looked_at():
    feats, codes = torch.randn(4, 40, 8), torch.randn(4, 40, 16)

    @torch.compile(backend="eager")
    def loss(index_b):
        return correlation_loss(feats, feats, codes, codes, 0.1, index_b=index_b, center=False, impl="cpp").loss

    for wrong in (4, -1, 100_000):
        with pytest.raises(ValueError, match=f"index_b holds {wrong}, outside the 4 images"):
            loss(torch.tensor([[0, 1, 2, wrong]]))


@pytest.mark.skipif(not _extension.HAS_CPU, reason="depthg._C is not compiled")
def test_a_default_device_changes_nothing_for_tensors_of_the_cpu():
    feats, codes = torch.randn(4, 40, 8), torch.randn(4, 40, 16)
    negatives = torch.tensor([[1, 2, 3, 0]])
    values = (feats, codes, feats, codes, negatives, LossSettings())
    expected = depthg_loss(*values, depth=torch.rand(4, 40, device="cpu"), impl="cpp").total
    with torch.device("meta"):
        found = depthg_loss(*values, depth=torch.rand(4, 40, device="cpu"), impl="cpp").total
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(not _extension.HAS_CPU, reason="depthg._C is not compiled")
@pytest.mark.parametrize("options", [{}, {"clamp": False}, {"max_similarity": 0.8}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_codes_that_are_not_finite_give_no_finite_loss(dtype, options):
    feats, codes = torch.randn(2, 9, 8, dtype=dtype), torch.randn(2, 9, 16, dtype=dtype)
    codes[1, 3, 2] = torch.inf
    assert correlation_loss(feats, feats, codes, codes, 0.1, impl="cpp", **options).loss.isnan()
