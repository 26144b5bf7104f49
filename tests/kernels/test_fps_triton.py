"""The Triton sampler where values cannot be read back, and its machine code; its indices are tested in ``test_fps``."""

import math
from contextlib import contextmanager

import pytest
import torch
from compile_only import ahead_of_time

from depthg.kernels import _extension, checks, farthest_point_sample, farthest_point_sample_depth, fps, reference
from depthg.kernels.checks import interpreting

pytest.importorskip("triton")
SLOW = pytest.mark.slow
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS = pytest.mark.skipif(
    DEVICE == "cpu" and not interpreting(), reason="no CUDA device, and Triton's interpreter is off"
)
SIZES = pytest.mark.parametrize(
    ("n", "dims", "swept"), [(40, 2, False), (40, 4, False), (16500, 1, False), (40, 3, True)]
)


def unchecked(points, k, swept=False, **options):
    """What the operator returns on CUDA, where values are not checked; ``swept``: as for a large cloud."""
    from depthg.kernels import fps_triton

    plain = {"points": points.shape[1], "width": 0, "focals": None, "focal": 0.0, "lengths": None, "starts": None}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HALVES_POINTS", "TILES_POINTS") if swept else ():
            patch.setattr(fps_triton, name, 0)
        return fps_triton.sample(points.to(DEVICE), k, **(plain | {"start": 0} | options)).cpu()


@RUNS
@SIZES
def test_starts_and_lengths_out_of_range_are_moved_into_it(n, dims, swept):
    points = torch.randn(6, n, dims)
    starts = torch.tensor([-(2**40), -1, n, 2**40, 7, 0], device=DEVICE)
    lengths = torch.tensor([n, 2**40, n + 1, n, 3, -1], device=DEVICE)
    ours = unchecked(points, 5, swept, starts=starts, lengths=lengths)
    assert torch.equal(ours, reference.farthest_point_sample(points, 5, start=starts.cpu(), lengths=lengths.cpu()))
    assert ours[:, 0].tolist() == [0, 0, n - 1, n - 1, 2, 0]
    for start, first in ((-5, 0), (n + 5, n - 1)):
        assert (unchecked(points, 1, swept, start=start) == first).all()


@RUNS
@SIZES
def test_picks_beyond_a_cloud_are_zeros(n, dims, swept):
    points = torch.randn(3, n, dims)
    ours = unchecked(points, 9, swept, lengths=torch.tensor([4, 1, 9], device=DEVICE), start=2).tolist()
    assert sorted(ours[0][:4]) == [0, 1, 2, 3] and ours[0][4:] == [0] * 5
    assert ours[1] == [0] * 9
    assert sorted(ours[2]) == list(range(9))


@RUNS
@SIZES
@pytest.mark.filterwarnings("ignore:invalid value encountered")  # by the interpreter's NumPy
def test_points_that_are_not_finite_give_valid_indices(n, dims, swept):
    for value in (math.nan, math.inf, -math.inf):
        points = torch.randn(2, n, dims)
        points[0, ::3] = value
        picks = unchecked(points, 30, swept, start=3)
        assert ((picks >= 0) & (picks < n)).all()
        assert torch.equal(picks[1:], reference.farthest_point_sample(points[1:], 30, start=3))


@RUNS
@pytest.mark.parametrize(
    "most", [pytest.param(1024, marks=SLOW), 4, pytest.param(1, marks=SLOW)]
)  # parts of all clouds
@pytest.mark.parametrize(
    ("n", "dims", "k"), [pytest.param(3000, 3, 40, marks=SLOW), (5000, 8, 10), (1025, 2, 30), (90, 1, 90)]
)
def test_parts_of_large_clouds_agree_with_the_definition(monkeypatch, most, n, dims, k):
    from depthg.kernels import fps_triton

    monkeypatch.setattr(fps_triton, "MOST_PARTS", most)
    starts, lengths = torch.tensor([n - 1, 7]), torch.tensor([n, n - 1])
    for points in (torch.randn(2, n, dims), torch.randint(2, (2, n, dims)).float()):  # many places, few places
        ours = unchecked(points, k, swept=True, starts=starts.to(DEVICE), lengths=lengths.to(DEVICE))
        assert torch.equal(ours, reference.farthest_point_sample(points, k, start=starts, lengths=lengths))


@RUNS
@pytest.mark.parametrize("shape", [(2, 50, 61), (1, 3, 1500)])
def test_large_depth_maps(monkeypatch, shape):
    from depthg.kernels import fps_triton

    depth = torch.rand(shape) + 0.2
    for limit in (0, 65536):  # sweeps, then tiles
        monkeypatch.setattr(fps_triton, "HALVES_POINTS", 0)
        monkeypatch.setattr(fps_triton, "TILES_POINTS", limit)
        ours = farthest_point_sample_depth(depth.to(DEVICE), 9, fov_deg=70.0, start=5, impl="triton").cpu()
        assert torch.equal(ours, reference.farthest_point_sample_depth(depth, 9, fov_deg=70.0, start=5))


@RUNS
def test_starts_lengths_and_focal_lengths_of_any_stride():
    points, depth = torch.randn(3, 30, 3), torch.rand(3, 5, 7) + 0.5
    starts, lengths = torch.tensor([[4, 0], [2, 0], [1, 0]])[:, 0], torch.tensor([30, 20, 10]).flip(0).flip(0)
    fov = torch.tensor([50.0, 0, 70.0, 0, 90.0])[::2]
    options = {"start": starts.to(DEVICE), "impl": "triton"}
    ours = farthest_point_sample(points.to(DEVICE), 8, lengths=lengths.to(DEVICE), **options)
    assert torch.equal(ours.cpu(), reference.farthest_point_sample(points, 8, start=starts, lengths=lengths))
    ours = farthest_point_sample_depth(depth.to(DEVICE), 8, fov_deg=fov.to(DEVICE), **options)
    assert torch.equal(ours.cpu(), reference.farthest_point_sample_depth(depth, 8, start=starts, fov_deg=fov))


def choose(impl, device, n):
    return checks.choose_impl(impl, torch.device(device), **fps.limits(impl, torch.device(device), n))


def test_auto_takes_compiled_code_then_triton_then_eager(monkeypatch):
    monkeypatch.setattr(_extension, "HAS_CUDA", True)
    monkeypatch.setattr(fps, "compiled_cuda_runs", lambda device: True)
    assert choose("auto", "cuda", 100) == "cuda"
    monkeypatch.setattr(_extension, "HAS_CUDA", False)
    assert choose("auto", "cuda", 100) == "triton"
    assert choose("auto", "cuda", 2**30 + 1) == "eager"
    assert choose("auto", "cpu", 100) == ("cpp" if _extension.HAS_CPU else "eager")
    monkeypatch.setattr(checks, "HAS_TRITON", False)
    assert choose("auto", "cuda", 100) == "eager"


def test_an_impl_that_cannot_run_names_the_alternative(monkeypatch):
    with pytest.raises(ValueError, match=r"at most 1073741824 points a cloud, got 1073741825.*'auto'"):
        choose("triton", "cuda", 2**30 + 1)
    with pytest.raises(ValueError, match=r"needs CUDA tensors.*got meta.*'auto'"):
        choose("triton", "meta", 9)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=r"TRITON_INTERPRET=1.*got cpu.*'auto'"):
        choose("triton", "cpu", 9)
    monkeypatch.setattr(_extension, "HAS_CUDA", False)
    with pytest.raises(ValueError, match=r"impl='triton' or impl='eager'"):
        choose("cuda", "cuda", 9)
    monkeypatch.setattr(checks, "HAS_TRITON", False)
    with pytest.raises(ValueError, match=r"triton, which is not installed.*'eager'"):
        choose("triton", "cuda", 9)


@RUNS
def test_every_launch_is_on_the_device_of_its_tensors(monkeypatch):
    from triton.runtime import interpreter, jit

    from depthg.kernels import fps_triton

    kind = jit.JITFunction if DEVICE == "cuda" else interpreter.InterpretedFunction
    plain, guarded, launched = kind.run, [], []

    @contextmanager
    def marked(x):
        guarded.append(x)
        with plain_guard(x):
            yield
        guarded.pop()

    def run(self, *arguments, **options):
        launched.append((self.__name__, len(guarded)))
        return plain(self, *arguments, **options)

    plain_guard = fps_triton.on_device
    monkeypatch.setattr(fps_triton, "on_device", marked)
    monkeypatch.setattr(kind, "run", run)
    for n, dims, swept in ((40, 2, False), (40, 4, False), (16500, 1, False), (40, 3, True)):
        unchecked(torch.randn(2, n, dims), 2, swept)
    assert sorted(set(launched)) == [(f"{name}_kernel", 1) for name in ("halves", "held", "spread", "sweep", "tiles")]


# Machine code, compiled ahead of time


AHEAD = """
import re
import compile_only, torch
from compile_only import instructions, launched, stack
from depthg.kernels import fps_triton

def compiled(b, n, dims, k, width=0, per_cloud=False, dtype=torch.float32, step=1):
    x = torch.empty((b, n // width, width * step) if width else (b, n, dims * step), dtype=dtype)[..., ::step]
    several = {name: torch.ones(b, dtype=torch.int64) if per_cloud else None for name in ("lengths", "starts")}
    focals = torch.ones(b) if per_cloud and width else None
    fps_triton.sample(x, k, points=n, width=width, focals=focals, focal=3.0, start=0, **several)
    return launched[-1]

def has(lines, pattern):
    return [line for line in lines if re.match(pattern, line)]

def split(kernel):
    "All instructions, and those of the loop over picks, which alone takes a maximum."
    everything, loops = instructions(kernel)
    picks = [loop for loop in loops if has(loop, "C?REDUX")]
    assert len(picks) == 1, [len(loop) for loop in loops]
    return everything, picks[0]
"""
ROUNDED = """
large, larger = (1, 20000, 3, 9), (1, 70000, 3, 9)
for case in [(9, 784, 3, 99), (9, 784, 1, 99), (9, 4096, 2, 99), (9, 9000, 3, 99), (2, 784, 8, 9), large, larger]:
    for more in ({}, {"width": 28, "per_cloud": True}) if case[2] == 3 else ({},):
        kernel = compiled(*case, **more)
        everything, loop = split(kernel) if kernel.name != "sweep_kernel" else [instructions(kernel)[0]] * 2
        assert "fma" not in kernel.asm["ptx"]
        assert not has(loop, r"FFMA|(FADD|FMUL)2?\\.FTZ"), (case, more)
        assert has(loop, "FADD") and has(loop, "FMUL"), (case, more)
        assert more or not has(everything, "FFMA"), case  # a division has some
assert {kernel.name for kernel in launched} == {
    "held_kernel", "halves_kernel", "tiles_kernel", "spread_kernel", "sweep_kernel"
}
compile_only.forced["enable_fp_fusion"] = True
assert has(split(compiled(9, 784, 3, 99))[1], "FFMA")  # what is looked for would be found
"""
SPILLS = """
for n in (784, 4096, 12544, 50_000, 100_000):
    for more in ({}, {"width": 112 if n == 12544 else 16}, {"dtype": torch.float16, "per_cloud": True}):
        compiled(8, n, 3, 2, **more)
        assert [stack(kernel) for kernel in set(launched)] == [0] * len(set(launched)), (n, more)
        launched.clear()
"""
ONCE = """
before = compiled(64, 784, 3, 121), compiled(8, 9000, 3, 99), compiled(3, 20000, 3, 9), compiled(9, 784, 3, 9, width=28)
after = (
    [compiled(1, 1000, 3, 1), compiled(16, 513, 3, 1024), compiled(2, 640, 3, 16, step=16)],
    [compiled(1, 16384, 3, 1), compiled(2, 8193, 3, 16, step=2)],
    [compiled(1, 16385, 3, 1), compiled(2, 65536, 3, 16), compiled(1, 40_000, 3, 7)],
    [compiled(1, 1000, 3, 1, width=1), compiled(16, 1024, 3, 16, width=16), compiled(2, 1023, 3, 5, width=31)],
)
for one, others in zip(before, after, strict=True):
    assert all(other is one for other in others), one.name
assert len({kernel.name for kernel in before}) == 3
launched.clear()
for case in (1, 100_000, 3, 5), (7, 65537, 3, 3), (1, 2**20, 3, 1), (300, 70_000, 3, 2):
    compiled(*case)
assert len(set(launched)) == 2 and len(launched) == 6 + 4 + 2 + 3  # one that writes, one for each pick
"""


@SLOW
@pytest.mark.parametrize("target", [80, 90, 100])  # 100 has instructions for two at once
def test_no_product_is_fused_with_a_sum(target):
    ahead_of_time(AHEAD + ROUNDED, target)


@SLOW
@pytest.mark.parametrize("target", [80, 86, 90, 100, 120])
def test_no_register_spills(target):
    ahead_of_time(AHEAD + SPILLS, target)


def test_sizes_of_one_class_share_a_kernel():
    ahead_of_time(AHEAD + ONCE, 90)


def test_compiled_code_that_the_driver_cannot_run_is_left_alone(monkeypatch):
    """A wheel brings CUDA code wherever it is installed; an old driver or GPU then gets the Triton sampler."""

    class Native:
        Clouds = staticmethod(lambda *arguments: arguments)

        @staticmethod
        def fps_cuda_scratch_bytes(clouds, device):
            if device == 1:
                raise RuntimeError("CUDA driver version is insufficient for CUDA runtime version")
            return 0

    monkeypatch.setattr(fps, "native", Native)
    monkeypatch.setattr(_extension, "HAS_CUDA", True)
    monkeypatch.setattr(fps, "compiled_cuda_runs", fps.compiled_cuda_runs.__wrapped__)
    assert choose("auto", "cuda:0", 100) == "cuda"
    with pytest.warns(UserWarning, match="driver version is insufficient"):
        assert choose("auto", "cuda:1", 100) == "triton"
