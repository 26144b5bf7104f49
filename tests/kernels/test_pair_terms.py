"""The Triton losses: work list, layouts, types and launches; accuracy is tested loss by loss."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from loss_cases import DEVICE, IMPLS, LONG, ON_GPU, TRITON, vectors

from depthg.kernels import LossSettings, correlation_loss, depth_correlation_loss, depthg_loss, reference, sample_points

pytestmark = pytest.mark.skipif(not TRITON, reason="needs Triton's interpreter or a GPU")
SETTINGS = LossSettings(depth_weight=0.19, depth_shift=0.03)


def maps(n=3, c=9, k=5, size=(4, 6), code_size=(4, 6), depth_channels=1):
    """Features, codes, neighbours' features and codes, and depth as maps."""
    sides = [vectors(n, c, *size), vectors(n, k, *code_size, grad=True)]
    sides += [vectors(n, c, *size), vectors(n, k, *code_size, grad=True)]
    return sides, torch.rand(n, depth_channels, *size, device=DEVICE)


def run_at(sides, depth, negatives, settings, impl, dtype=torch.float32, **more):
    leaves = [x.detach().to(dtype).requires_grad_(x.requires_grad) for x in sides]
    result = depthg_loss(*leaves, negatives, settings, depth=depth.to(dtype), impl=impl, **more)
    mixed = 1.3 * result.total - 0.4 * result.negative.loss + 0.7 * result.depth.loss
    grads = torch.autograd.grad(mixed, [x for x in leaves if x.requires_grad])
    return [result.total, *(term.loss for term in result[1:]), *(term.similarity for term in result[1:]), *grads]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("relation", reference.RELATIONS)
@pytest.mark.parametrize("kind", ["cells", "coordinates", "sizes of their own"])
def test_maps_are_read_at_points(impl, relation, kind):
    vector = relation in ("euclidean", "normals")
    code_size = (3, 5) if kind == "sizes of their own" else (4, 6)
    sides, depth = maps(code_size=code_size, depth_channels=3 if vector else 1)
    settings = dataclasses.replace(SETTINGS, relation=relation, bandwidth=0.5)
    negatives = torch.tensor([[1, 2, 0], [2, 2, 1]], device=DEVICE)
    if kind == "cells":
        points, near = (torch.randint(0, 24, (3, p), device=DEVICE) for p in (7, 11))
        more = {"points": points, "points_neighbour": near}
    else:
        points = torch.rand(3, 7, 2, device=DEVICE) * 2.4 - 1.2  # some outside, which are read at the border
        more = {"points": points, "align_corners": kind == "coordinates"}
    ours = run_at(sides, depth, negatives, settings, impl, **more)
    more = {k: v.double() if k == "points" and v.is_floating_point() else v for k, v in more.items()}
    truth = run_at(sides, depth, negatives, settings, "eager", torch.float64, **more)
    for x, y in zip(ours, truth, strict=True):
        torch.testing.assert_close(x.double(), y, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_maps_of_every_layout(impl):
    sides, depth = maps()
    negatives, points = torch.tensor([[1, 2, 0]], device=DEVICE), torch.randint(0, 24, (3, 7), device=DEVICE)
    plain = run_at(sides, depth, negatives, SETTINGS, impl, points=points)
    last = [x.detach().contiguous(memory_format=torch.channels_last).requires_grad_(x.requires_grad) for x in sides]
    wide = [
        torch.cat([x.detach(), x.detach()], 3)[..., :6].requires_grad_(x.requires_grad) for x in sides
    ]  # rows that do not follow each other
    for other in (last, wide):
        result = depthg_loss(*other, negatives, SETTINGS, depth=depth, points=points.t().contiguous().t(), impl=impl)
        grads = torch.autograd.grad(result.total, [other[1], other[3]])
        torch.testing.assert_close(result.total, plain[0])
        assert all(torch.isfinite(g).all() and g.shape == (3, 5, 4, 6) for g in grads)


@pytest.mark.parametrize("impl", IMPLS)
def test_maps_beside_a_bank_and_another_crop(impl):
    sides, depth = maps()
    points = torch.randint(0, 24, (3, 7), device=DEVICE)
    bank = vectors(4, 5, 9), vectors(4, 5, 5, grad=True)
    crop, other = vectors(3, 6, 5, grad=True), torch.rand(3, 6, device=DEVICE)
    negatives = torch.tensor([[3, 1, 0], [2, 0, 0]], device=DEVICE)
    more = {"feats_negative": bank[0], "codes_negative": bank[1], "codes_depth": crop, "depth_other": other}
    found = []
    for how in (impl, "eager"):
        total = depthg_loss(*sides, negatives, SETTINGS, depth=depth, points=points, impl=how, **more).total
        found.append([total, *torch.autograd.grad(total, [sides[1], sides[3], bank[1], crop])])
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-5)


def test_maps_that_do_not_fit_are_refused():
    sides, depth = maps()
    negatives, points = torch.tensor([[1, 2, 0]], device=DEVICE), torch.zeros(3, 7, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match=r"points_neighbour needs points"):
        depthg_loss(*sides, negatives, SETTINGS, points_neighbour=points)
    with pytest.raises(ValueError, match=r"codes must be a map \[images, channels, height, width\].*\(3, 5, 4\)"):
        depthg_loss(sides[0], sides[1][..., 0], *sides[2:], negatives, SETTINGS, points=points)
    with pytest.raises(ValueError, match=r"depth must be \[3, 1, height, width\] for 'product'"):
        depthg_loss(*sides, negatives, SETTINGS, depth=depth.expand(3, 2, 4, 6), points=points)
    with pytest.raises(ValueError, match=r"feats .* and points .* must have the same images"):
        depthg_loss(*sides, negatives, SETTINGS, points=points[:2])
    with pytest.raises(ValueError, match=r"codes_neighbour .* must have one height and width, since points are cells"):
        depthg_loss(*sides[:3], sides[3][:, :, :2], negatives, SETTINGS, points=points)
    with pytest.raises(TypeError, match="points_neighbour must be a tensor, got list"):
        depthg_loss(*sides, negatives, SETTINGS, points=points, points_neighbour=[0])
    with pytest.raises(ValueError, match="points_neighbour must be int64 cells"):
        depthg_loss(*sides, negatives, SETTINGS, points=points, points_neighbour=points.int())
    if not ON_GPU:
        with pytest.raises(ValueError, match="points hold cell 24, outside the 24 cells of feats"):
            depthg_loss(*sides, negatives, SETTINGS, points=points + 24)


@pytest.mark.parametrize("impl", LONG)
def test_indices_of_any_layout(impl):
    feats, codes, near, near_codes = (vectors(4, 9, k) for k in (6, 5, 6, 5))
    index = torch.tensor([[1, 2, 3, 0], [2, 3, 0, 1], [0, 0, 1, 3]], device=DEVICE)
    strided = torch.stack([index, index], 2)[..., 0]
    repeated = torch.arange(4, device=DEVICE).roll(1).expand(3, 4)
    for given in (index.t().contiguous().t(), strided, repeated):
        assert not given.is_contiguous()
        for call in (
            lambda i: depthg_loss(feats, codes, near, near_codes, i, SETTINGS, impl=impl).total,
            lambda i: correlation_loss(feats, near, codes, near_codes, 0.1, index_b=i, impl=impl).loss,
        ):
            assert torch.equal(call(given), call(given.contiguous()))


@pytest.mark.parametrize("impl", IMPLS)
def test_sides_of_unlike_types(impl):
    feats, codes, near, near_codes = (vectors(3, 9, k) for k in (6, 5, 6, 5))
    codes, half = codes.requires_grad_(), near_codes.half().requires_grad_()
    negatives = torch.tensor([[1, 2, 0]], device=DEVICE)
    mixed = depthg_loss(feats.half(), codes, near, half, negatives, SETTINGS, impl=impl).total
    grads = torch.autograd.grad(mixed, [codes, half])
    wide = half.detach().float().requires_grad_()
    plain = depthg_loss(feats.half().float(), codes, near, wide, negatives, SETTINGS, impl=impl).total
    expected = torch.autograd.grad(plain, [codes, wide])
    assert grads[1].dtype == torch.float16
    torch.testing.assert_close(mixed, plain)
    torch.testing.assert_close(grads[0], expected[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(grads[1].float(), expected[1], atol=1e-4, rtol=1e-2)
    u = torch.rand(3, 9, device=DEVICE)
    first = depth_correlation_loss(codes, half, u, u.half(), 0.1, impl=impl).loss
    torch.testing.assert_close(first, depth_correlation_loss(codes, wide, u, u.half().float(), 0.1, impl=impl).loss)


@pytest.mark.parametrize("impl", IMPLS)
def test_autocast_changes_nothing(impl):
    feats, codes, near, near_codes = (vectors(3, 9, k) for k in (6, 5, 6, 5))
    codes, near_codes = codes.requires_grad_(), near_codes.requires_grad_()
    negatives, u = torch.tensor([[1, 2, 0]], device=DEVICE), torch.rand(3, 9, device=DEVICE)
    settings = dataclasses.replace(SETTINGS, relation="gaussian")
    found = []
    for enabled in (False, True):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=enabled):
            total = depthg_loss(feats, codes, near, near_codes, negatives, settings, depth=u, impl=impl).total
            alone = correlation_loss(feats, near, codes, near_codes, 0.1, impl=impl).loss
            guide = depth_correlation_loss(codes, near_codes, u, u, 0.1, relation="gaussian", impl=impl).loss
            grads = torch.autograd.grad(total + alone + guide, [codes, near_codes])
        found.append([total, alone, guide, *grads])
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_shifts_may_be_tensors():
    sides = [vectors(3, 9, k) for k in (6, 5, 6, 5)]
    negatives, u = torch.tensor([[1, 2, 0]], device=DEVICE), torch.rand(3, 9, device=DEVICE)
    shifts = {"self_shift": 0.1, "neighbour_shift": 0.2, "negative_shift": 0.3, "depth_shift": 0.4}
    numbers = dataclasses.replace(SETTINGS, **shifts)
    tensors = dataclasses.replace(SETTINGS, **{k: torch.tensor(v, device=DEVICE) for k, v in shifts.items()})
    for some in (tensors, dataclasses.replace(numbers, depth_shift=torch.tensor(0.4, device=DEVICE))):
        losses = [
            torch.stack([t.loss for t in depthg_loss(*sides, negatives, s, depth=u, impl="triton")[1:]])
            for s in (numbers, some)
        ]
        torch.testing.assert_close(*losses)


@pytest.mark.parametrize("impl", IMPLS)
def test_means_of_any_layout(impl):
    sides = [vectors(3, 9, k) for k in (6, 5, 6, 5)]
    negatives = torch.tensor([[1, 2, 0], [2, 0, 1]], device=DEVICE)
    strided = torch.arange(8.0, device=DEVICE).div(10)[::2]
    for means in (strided, torch.full((1,), 0.3, device=DEVICE).expand(4), strided.double()):
        found = [
            depthg_loss(*sides, negatives, SETTINGS, feature_means=m, impl=impl).total
            for m in (means, means.float().contiguous())
        ]
        torch.testing.assert_close(*found)
    with pytest.raises(ValueError, match="feature_means requires grad"):
        depthg_loss(*sides, negatives, SETTINGS, feature_means=strided.clone().requires_grad_(), impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_nothing_to_compare(impl):
    """Sides, points or images without elements, also of unlike types, give what the definition gives."""
    negatives = torch.tensor([[1, 2, 0]], device=DEVICE)
    for half in (False, True):
        for p, q in ((0, 4), (4, 0)):
            feats, codes, near, near_codes = vectors(3, p, 6), vectors(3, p, 5), vectors(3, q, 6), vectors(3, q, 5)
            feats = feats.half() if half else feats
            total = depthg_loss(feats, codes, near, near_codes, negatives, SETTINGS, impl=impl).total
            wanted = depthg_loss(feats.float(), codes, near, near_codes, negatives, SETTINGS, impl="eager").total
            torch.testing.assert_close(total, wanted)
            one = correlation_loss(feats, near, codes, near_codes, 0.1, impl=impl)
            assert one.loss == 0 and one.similarity == 0
    sides, depth = maps()
    empty = torch.zeros(3, 0, dtype=torch.int64, device=DEVICE)
    some = torch.zeros(3, 4, dtype=torch.int64, device=DEVICE)
    for points, near in ((empty, empty), (some, empty), (empty, some)):
        more = {"points": points, "points_neighbour": near}
        found = [depthg_loss(*sides, negatives, SETTINGS, depth=depth, impl=i, **more).total for i in (impl, "eager")]
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("impl", IMPLS)
def test_what_a_relation_does_not_use_does_not_matter(impl):
    sides = [vectors(3, 9, k) for k in (6, 5, 6, 5)]
    negatives, u = torch.tensor([[1, 2, 0]], device=DEVICE), torch.rand(3, 9, device=DEVICE)
    flat = dataclasses.replace(SETTINGS, bandwidth=0.0)
    found = [depthg_loss(*sides, negatives, s, depth=u, impl=impl).total for s in (SETTINGS, flat)]
    assert torch.equal(*found)
    with pytest.raises(ValueError, match=r"max_similarity must be at least 0 with clamp, got -0\.1"):
        depthg_loss(*sides, negatives, dataclasses.replace(SETTINGS, max_similarity=-0.1), impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_similarities_of_terms_that_are_not_given_are_zero(impl):
    from depthg.kernels.pair_terms import Inputs, Options, pair_terms

    given = Inputs(vectors(2, 9, 5), vectors(2, 9, 6))
    _, losses, similarities = pair_terms(given, Options(own=True), shifts=(0.1,) * 4, impl=impl)
    assert losses[0] != 0 and similarities[0] != 0
    assert losses[1:].tolist() == similarities[1:].tolist() == [0, 0, 0]


def test_types_that_triton_has_not_are_refused():
    codes = vectors(2, 9, 5).to(torch.float8_e5m2)
    with pytest.raises(ValueError, match="impl='triton' has no float8_e5m2"):
        correlation_loss(codes, codes, codes, codes, 0.1, impl="triton")


@pytest.mark.parametrize("programs", [pytest.param(1, marks=pytest.mark.slow), 12])
def test_any_split_of_the_draws_adds_up(monkeypatch, programs):
    from depthg.kernels import plan_triton

    tensors = [vectors(3, 40, k) for k in (6, 5, 6, 5)]
    tensors[1].requires_grad_()
    negatives = torch.tensor([[1, 2, 0], [2, 2, 1], [0, 0, 0], [1, 1, 1]], device=DEVICE)
    found = []
    for limit in (programs, plan_triton.PROGRAMS):
        monkeypatch.setattr(plan_triton, "PROGRAMS", limit)
        plan_triton.make_plan.cache_clear()
        total = depthg_loss(*tensors, negatives, SETTINGS, impl="triton").total
        found.append((total, *torch.autograd.grad(total, tensors[1])))
    plan_triton.make_plan.cache_clear()
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, atol=1e-7, rtol=1e-5)


def test_the_papers_step_fills_a_device():
    from depthg.kernels import plan_triton, terms_triton
    from depthg.kernels.pair_terms import Inputs

    x = [torch.empty(32, 121, k, device="meta") for k in (70, 384, 70, 384)]
    index = torch.empty(5, 32, dtype=torch.int64, device="meta")
    depth = torch.empty(32, 121, device="meta")
    inputs = Inputs(*x, None, None, None, depth, None, None, None, index, None, None)
    sizes = terms_triton.sizes_of(inputs, True, [True, True, False, False])._replace(arch=90)
    assert plan_triton.make_plan(sizes).programs >= 2 * 132


def test_wide_codes_run_in_blocks():
    sides = [vectors(2, 9, 6), vectors(2, 9, 300, grad=True), vectors(2, 7, 6), vectors(2, 7, 300, grad=True)]
    negatives = torch.tensor([[1, 0]], device=DEVICE)
    found = []
    for impl in ("triton", "eager"):
        total = depthg_loss(*sides, negatives, SETTINGS, depth=torch.ones(2, 9, device=DEVICE), impl=impl).total
        found.append([total, *torch.autograd.grad(total, [sides[1], sides[3]])])
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-5)


def test_every_launch_is_on_the_device_of_its_tensors(monkeypatch):
    """Triton launches on the current device: every launch must stand inside ``on_device``."""
    from triton.runtime import interpreter, jit

    from depthg.kernels import launch_triton, sample_points_triton, terms_triton

    inside, launched = [0], []

    class Marked:
        def __init__(self, x):
            self.guard = launch_triton.on_device(x)

        def __enter__(self):
            inside[0] += 1
            self.guard.__enter__()

        def __exit__(self, *error):
            inside[0] -= 1
            return self.guard.__exit__(*error)

    kind = jit.JITFunction if ON_GPU else interpreter.InterpretedFunction
    plain = kind.run

    def run(self, *args, **kwargs):
        launched.append((self.__name__, inside[0] > 0))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(kind, "run", run)
    for module in (terms_triton, sample_points_triton):
        monkeypatch.setattr(module, "on_device", Marked)
    sides, depth = maps()
    negatives, points = torch.tensor([[1, 2, 0]], device=DEVICE), torch.zeros(3, 7, dtype=torch.int64, device=DEVICE)
    run_at(sides, depth, negatives, SETTINGS, "triton", points=points)
    sample_points(sides[1], points, impl="triton").sum().backward()
    assert len({name for name, _ in launched}) >= 8
    assert [name for name, guarded in launched if not guarded] == []


def test_memory_of_dense_points(monkeypatch):
    """At N = 32, P = 1600 below 1/20 of what eager keeps: three float32 tensors of every pair's P x P."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from triton.runtime import interpreter, jit

    kind = jit.JITFunction if ON_GPU else interpreter.InterpretedFunction
    monkeypatch.setattr(kind, "run", lambda *args, **kwargs: None)  # what is allocated does not depend on it
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    n, side, c, k, draws = 32, 40, 384, 70, 5
    allocated = [0, 0]  # forward and backward: everything, whether it is still alive or not

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            if str(function).startswith(("aten.empty", "aten.new_empty", "aten.zeros")):
                allocated[backward] += made.untyped_storage().nbytes()
            return made

    sides = [torch.empty(n, x, side, side, device=DEVICE, requires_grad=x == k) for x in (c, k, c, k)]
    negatives = torch.zeros(draws, n, dtype=torch.int64, device=DEVICE)
    points = torch.zeros(n, side * side, dtype=torch.int64, device=DEVICE)
    depth = torch.empty(n, 1, side, side, device=DEVICE)
    backward = 0
    with Count():
        total = depthg_loss(*sides, negatives, SETTINGS, depth=depth, points=points, impl="triton").total
        backward = 1
        total.backward()
    packed = 4 * 2 * n * side**2 * c
    limit = 3 * 4 * n * (2 + draws) * side**4 / 20
    assert packed < allocated[0] < limit
    assert allocated[0] - packed + allocated[1] < limit  # features are gone by then


SETTINGS_OF_TF32 = {
    "pass": "tf32x3",
    "torch.set_float32_matmul_precision('high')": "tf32",
    "torch.backends.cuda.matmul.allow_tf32 = True": "tf32",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": "tf32",
    "torch.backends.fp32_precision = 'tf32'": "tf32",
    "torch.set_float32_matmul_precision('high'); torch.backends.cuda.matmul.fp32_precision = 'ieee'": "tf32x3",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_both_settings_of_tf32():
    """In a process for each setting: torch refuses to mix the old ones with the new ones."""
    code = f"""import os, sys, torch
from depthg.kernels import correlation_loss, launch_triton
for setting in {list(SETTINGS_OF_TF32)!r}:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    exec(setting)
    x = torch.ones(1, 2, 3)
    correlation_loss(x, x, x, x, 0.1, impl='triton')
    print(launch_triton.precision(torch.float16), launch_triton.precision(torch.float32), flush=True)
    os._exit(0)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"ieee {name}" for name in SETTINGS_OF_TF32.values()], done.stderr


def test_function_transforms_work_on_the_definition():
    feats, codes, near, near_codes = (vectors(3, 9, k) for k in (6, 5, 6, 5))

    def loss(x):
        return correlation_loss(feats, near, x, near_codes, 0.1, impl="eager").loss

    leaf = codes.clone().requires_grad_()
    ours = torch.autograd.grad(correlation_loss(feats, near, leaf, near_codes, 0.1).loss, leaf)[0]
    torch.testing.assert_close(torch.func.grad(loss)(codes), ours, atol=1e-6, rtol=1e-5)
    several = torch.stack([codes, codes * 2 + 0.1])
    torch.testing.assert_close(torch.func.vmap(loss)(several), torch.stack([loss(x) for x in several]))


@pytest.mark.parametrize("impl", LONG)
def test_op_checks(impl):
    from depthg.kernels.pair_terms import Inputs, Options, key_of

    op, backward = torch.ops.depthg.pair_terms.default, torch.ops.depthg.pair_terms_backward.default
    feats, codes, near, near_codes = (vectors(3, 9, k) for k in (6, 5, 6, 5))
    codes, near_codes = codes.requires_grad_(), near_codes.requires_grad_()
    index, u = torch.tensor([[1, 2, 0]], device=DEVICE), torch.rand(3, 9, device=DEVICE)
    needs = [True, True, False, False]

    def arguments(inputs, needs=needs, own=True, relation="product"):
        return (*inputs, own, [0.1] * 4, [1.0] * 4, relation, 0.5, True, True, None, True, needs, impl)

    given = [Inputs(codes, feats, near_codes, near, depth=u, negatives=index)]
    torch.library.opcheck(op, arguments(given[0]))
    torch.library.opcheck(op, arguments(Inputs(codes, depth=u, codes_other=near_codes, depth_other=u),
                                        [True, False, False, True], False, "gaussian"))  # fmt: skip
    bank = vectors(4, 5, 9), vectors(4, 5, 5, grad=True)
    if impl == "triton":
        sides, depth = maps()
        points = torch.rand(3, 7, 2, device=DEVICE)
        given.append(Inputs(sides[1], sides[0], sides[3], sides[2], depth=depth, points=points, points_near=points,
                            negatives=index))  # fmt: skip
        torch.library.opcheck(op, arguments(given[1]))
        # A bank is no map: its gradients come back in its own shape.
        beside = given[1]._replace(codes_far=bank[1], feats_far=bank[0])
    else:
        beside = given[0]._replace(codes_far=bank[1], feats_far=vectors(4, 5, 6))
    torch.library.opcheck(op, arguments(beside, [True, True, True, False]))
    for x in given:
        with torch.no_grad():
            _, _, _, *saved = op(*arguments(x))
        ones = torch.ones((), device=DEVICE)
        codes_given = [x.codes.detach(), x.codes_near.detach(), None, None]
        key = key_of(x, Options(own=True), needs, impl)
        found = (ones, None, *saved, x.points, x.points_near, *codes_given, key, [1.0] * 4, True, impl)
        torch.library.opcheck(backward, found)


def test_points_of_unlike_types():
    sides, depth = maps()
    negatives = torch.tensor([[1, 2, 0]], device=DEVICE)
    at = [torch.rand(3, 7, 2, device=DEVICE) for _ in range(2)]
    found = []
    for near in (at[1].half(), at[1].half().float()):
        more = {"points": at[0], "points_neighbour": near, "impl": "triton"}
        total = depthg_loss(*sides, negatives, SETTINGS, depth=depth, **more).total
        found.append([total, *torch.autograd.grad(total, [sides[1], sides[3]])])
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


@pytest.mark.parametrize("channels", [70, 384, 768])
def test_three_products_of_tf32_are_as_exact_as_float32(channels):
    """What ``tf32x3`` leaves out, on the CPU: operands as sums of two roundings to TF32, and three of four products.

    The tensor cores' own sums are not imitated.
    """

    def rounded(x):  # to 10 bits, to nearest, as cvt.rna does
        return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    a, b = (torch.nn.functional.normalize(torch.randn(4, 121, channels).relu(), dim=-1) for _ in range(2))
    large_a, large_b = rounded(a), rounded(b)
    small_a, small_b = rounded(a - large_a), rounded(b - large_b)
    three = small_a @ large_b.mT + large_a @ small_b.mT + large_a @ large_b.mT
    truth = a.double() @ b.double().mT
    error, eager = ((x.double() - truth).norm() / truth.norm() for x in (three, a @ b.mT))
    assert error <= eager + 0.1 * torch.finfo(torch.float32).eps
    assert (large_a @ large_b.mT - truth).norm() / truth.norm() > 100 * error
