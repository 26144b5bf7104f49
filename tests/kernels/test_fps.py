"""Farthest point sampling: one suite over every implementation; the law is equal indices."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthg.kernels import _extension, farthest_point_sample, farthest_point_sample_depth, reference, unproject
from depthg.kernels._extension import HAS_CPU, HAS_CUDA, native
from depthg.kernels.checks import HAS_TRITON, interpreting

CPP = pytest.param("cpp", "cpu", marks=pytest.mark.skipif(not HAS_CPU, reason="depthg._C is not built"))
NO_CUDA = "depthg was built without CUDA" if not HAS_CUDA else "no CUDA device"
CUDA = pytest.param(
    "cuda", "cuda", marks=pytest.mark.skipif(not HAS_CUDA or not torch.cuda.is_available(), reason=NO_CUDA)
)
NO_TRITON = "triton is not installed" if not HAS_TRITON else "no CUDA device, and Triton's interpreter is off"
TRITON = pytest.param(
    "triton", "cuda" if torch.cuda.is_available() else "cpu",
    marks=pytest.mark.skipif(not HAS_TRITON or not (torch.cuda.is_available() or interpreting()), reason=NO_TRITON),
)  # fmt: skip
LONG = pytest.param(*TRITON.values, marks=[*TRITON.marks, pytest.mark.slow])
EVERY = pytest.mark.parametrize(("impl", "device"), [pytest.param("eager", "cpu"), CPP, CUDA, TRITON])
FAST = pytest.mark.parametrize(("impl", "device"), [CPP, CUDA, TRITON])


def few_picks(impl, device, picks):
    """Skips what takes Triton's interpreter minutes: about two milliseconds a pick."""
    if impl == "triton" and device == "cpu" and picks > 1000:
        pytest.skip("too many picks for Triton's interpreter")


def by_hand(points, k, start=0):
    """The definition once more, as written-out loops over one cloud of float32 points (a list of lists)."""
    points = torch.as_tensor(points, dtype=torch.float32)
    nearest = [math.inf] * len(points)
    picks = [start]
    while len(picks) < k:
        nearest[picks[-1]] = -1.0
        for i, point in enumerate(points):
            distance = torch.zeros(())
            for a, b in zip(point, points[picks[-1]], strict=True):
                distance = distance + (a - b) * (a - b)
            nearest[i] = min(nearest[i], distance.item())
        picks.append(nearest.index(max(nearest)))
    return picks


def lattice(side, dims=3):
    axes = torch.meshgrid(*[torch.arange(side, dtype=torch.float32)] * dims, indexing="ij")
    return torch.stack(axes, -1).reshape(1, -1, dims)


def same_as_eager(points, k, impl, device, **options):
    on_device = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    ours = farthest_point_sample(points.to(device), k, impl=impl, **on_device).cpu()
    assert torch.equal(ours, farthest_point_sample(points.cpu(), k, impl="eager", **options))


# Hand-made clouds


@EVERY
def test_line_of_five_points(impl, device):
    points = torch.tensor([[[0.0], [1.0], [2.0], [3.0], [10.0]]], device=device)
    # 10 is farthest from 0; then 3 (3 away from 0); then 1 and 2 are 1 away from a pick: the lower index first
    assert farthest_point_sample(points, 5, impl=impl).tolist() == [[0, 4, 3, 1, 2]]


@EVERY
def test_square_takes_the_opposite_corner_then_the_lower_index(impl, device):
    points = torch.tensor([[[0.0, 0], [1, 0], [0, 1], [1, 1]]], device=device)
    assert farthest_point_sample(points, 4, impl=impl).tolist() == [[0, 3, 1, 2]]
    assert farthest_point_sample(points, 3, start=2, impl=impl).tolist() == [[2, 1, 0]]


@EVERY
@pytest.mark.parametrize("dims", range(1, 9))
def test_every_dimension_follows_the_loops(impl, device, dims):
    points = torch.randn(1, 37, dims)
    ours = farthest_point_sample(points.to(device), 12, start=7, impl=impl)
    assert ours.tolist() == [by_hand(points[0], 12, 7)]


@EVERY
@pytest.mark.parametrize("n", [50, 900, 3000])
def test_equal_points_are_picked_once_each_in_the_order_of_their_indices(impl, device, n):
    few_picks(impl, device, 5 * n)
    points = torch.full((5, n, 3), 0.3, device=device)  # five clouds: some are sampled in step, some alone
    expected = [7, *range(7), *range(8, n)]
    for k in (1, 2, 5, n - 1, n):
        assert farthest_point_sample(points, k, start=7, impl=impl).tolist() == [expected[:k]] * 5


@EVERY
def test_duplicates_follow_when_every_place_is_taken(impl, device):
    corners = torch.tensor([[0.0, 0], [0, 3], [4, 0]])
    points = corners.repeat(20, 1)[None].to(device)
    picks = farthest_point_sample(points, 60, start=4, impl=impl)[0].tolist()
    # start (0, 3); then (4, 0), which is 5 away; then the origin; then the rest by index
    assert picks == [4, 2, 0, *(i for i in range(60) if i not in (4, 2, 0))]


@EVERY
def test_clouds_that_run_out_of_places_at_different_picks(impl, device):
    clouds = torch.randn(9, 300, 3)
    for b in range(9):
        clouds[b, 3 * b + 1 :] = clouds[b, 0]
    ours = farthest_point_sample(clouds.to(device), 60, impl=impl).cpu()
    for b in range(9):
        alone = farthest_point_sample(clouds[b : b + 1], 60, impl="eager")[0]
        assert torch.equal(ours[b], alone)
        assert alone.unique().numel() == 60


@EVERY
@pytest.mark.parametrize("scale", [1.0, 1e-30])  # at 1e-30 every distance underflows to zero
@pytest.mark.parametrize(("n", "dims"), [(17, 1), (200, 3), (700, 2), (5000, 3), (700, 5)])
def test_all_points_of_a_lattice_full_of_ties_and_duplicates_are_picked(impl, device, n, dims, scale):
    few_picks(impl, device, 2 * n)
    points = torch.randint(3, (2, n, dims)) * scale
    picks = farthest_point_sample(points.to(device), n, start=n // 2, impl=impl).cpu()
    assert torch.equal(picks.sort(1).values, torch.arange(n).expand(2, n))
    assert torch.equal(picks, farthest_point_sample(points, n, start=n // 2, impl="eager"))


@EVERY
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 130])
def test_k_equal_n_is_a_permutation_of_distinct_points(impl, device, n):
    points = torch.randn(2, n, 3, device=device)
    picks = farthest_point_sample(points, n, impl=impl)
    assert torch.equal(picks.sort(1).values.cpu(), torch.arange(n).expand(2, n))


@EVERY
def test_empty_batch(impl, device):
    assert farthest_point_sample(torch.zeros(0, 5, 3, device=device), 4, impl=impl).shape == (0, 4)
    assert farthest_point_sample_depth(torch.zeros(0, 5, 3, device=device), 4, impl=impl).shape == (0, 4)


@EVERY
def test_prefix_is_the_smaller_sample(impl, device):
    points = torch.randn(3, 200, 3, device=device)
    assert torch.equal(farthest_point_sample(points, 64, impl=impl)[:, :9], farthest_point_sample(points, 9, impl=impl))


# Equal to the definition


@FAST
@pytest.mark.parametrize(("side", "dims"), [(28, 2), (9, 3), (90, 2), (17, 3)])
def test_lattices_full_of_ties(impl, device, side, dims):
    points = lattice(side, dims)
    same_as_eager(points, 121, impl, device)
    shuffled = points[:, torch.randperm(points.shape[1])]
    same_as_eager(shuffled, 121, impl, device)


@FAST
@pytest.mark.parametrize("n", [3000, 5000, 20000])
def test_collinear_and_coplanar_points(impl, device, n):
    line = torch.rand(1, n, 1) * torch.tensor([1.0, 2.0, -0.5])
    same_as_eager(line, 90, impl, device)
    plane = torch.cat([torch.rand(1, n, 2), torch.full((1, n, 1), 3.0)], 2)
    same_as_eager(plane, 90, impl, device, start=n - 1)


@FAST
@pytest.mark.parametrize(
    ("n", "dims", "k"),
    [(784, 3, 121), (784, 2, 60), (1600, 3, 144), (4095, 3, 70), (5000, 5, 60), (12544, 3, 120), (20000, 8, 40)],
)
def test_random_clouds_of_all_sizes(impl, device, n, dims, k):
    same_as_eager(torch.randn(2, n, dims), k, impl, device, start=torch.tensor([3, n - 1]))


@FAST
def test_clusters_and_far_outliers(impl, device):
    points = torch.randn(1, 9000, 3) * 1e-3 + torch.randint(0, 4, (1, 9000, 1)) * 100.0
    points[0, 17] = torch.tensor([3e7, -2e7, 1e6])
    same_as_eager(points, 100, impl, device)


@FAST
@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_distances_that_underflow_or_overflow(impl, device, scale):
    same_as_eager(torch.randn(2, 5000, 3) * scale, 30, impl, device)
    same_as_eager(torch.randn(2, 300, 3) * scale, 30, impl, device)


@FAST
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [500, 6000])
def test_dtypes(impl, device, dtype, n):
    same_as_eager(torch.randn(2, n, 3).to(dtype), 50, impl, device)


@EVERY
def test_every_half_is_read_exactly(impl, device):
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    halves = halves[halves.isfinite()][None, ::7, None].to(device)
    full = halves.float()
    assert torch.equal(farthest_point_sample(halves, 40, impl=impl), farthest_point_sample(full, 40, impl=impl))


@FAST
def test_views_of_any_strides(impl, device):
    base = torch.randn(3, 4, 900, 2)
    views = [
        base[:, :3, :, 0].transpose(1, 2),
        base[:, 1:, ::3, 1].mT,
        base[:1, 0, :, :].expand(2, -1, -1),
        base[:, :, 5],
    ]
    views.append(base.flip(2)[:, :, ::2, 0].mT[:, :, 1:])
    for view in views:
        ours = farthest_point_sample(view.to(device), 4, impl=impl)
        assert torch.equal(ours, farthest_point_sample(view.contiguous().to(device), 4, impl="eager"))


@FAST
@pytest.mark.parametrize("n", [300, 6000])
def test_ragged_lengths_ignore_what_lies_beyond(impl, device, n):
    points = torch.randn(4, n, 3)
    lengths = torch.tensor([n, n - 1, n // 3, 41])
    same_as_eager(points, 41, impl, device, lengths=lengths)
    polluted = points.clone()
    for b, length in enumerate(lengths.tolist()):
        polluted[b, length:] = math.nan
    ours = farthest_point_sample(polluted.to(device), 41, lengths=lengths.to(device), impl=impl)
    assert torch.equal(ours, farthest_point_sample(points.to(device), 41, lengths=lengths.to(device), impl=impl))
    for b, length in enumerate(lengths.tolist()):
        alone = farthest_point_sample(points[b : b + 1, :length].to(device), 41, impl=impl)
        assert torch.equal(ours[b : b + 1], alone)


coordinate = st.one_of(st.integers(-3, 3).map(float), st.floats(-100, 100, width=32))


@st.composite
def clouds(draw):
    batch, n, dims = draw(st.integers(1, 3)), draw(st.integers(1, 80)), draw(st.integers(1, 8))
    palette = draw(st.lists(coordinate, min_size=1, max_size=12))  # few values: many ties and duplicates
    seed = draw(st.integers(0, 2**31))
    choice = torch.randint(len(palette), (batch, n, dims), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(palette)[choice], draw(st.integers(1, n)), draw(st.integers(0, n - 1))


@FAST
@settings(max_examples=60, deadline=None)
@given(case=clouds())
def test_any_cloud_equals_the_definition(impl, device, case):
    points, k, start = case
    same_as_eager(points, k, impl, device, start=start)


@pytest.mark.parametrize(("impl", "device"), [pytest.param("eager", "cpu"), CPP, CUDA, LONG])
@settings(max_examples=60, deadline=None)
@given(case=clouds(), data=st.data())
def test_the_picks_of_any_cloud_differ(impl, device, case, data):
    points, k, start = case
    n = points.shape[1]
    lengths = data.draw(st.lists(st.integers(max(k, start + 1), n), min_size=len(points), max_size=len(points)))
    options = {"start": start, "lengths": torch.tensor(lengths, device=device), "impl": impl}
    for cloud, length in zip(farthest_point_sample(points.to(device), k, **options).tolist(), lengths, strict=True):
        assert len(set(cloud)) == k
        assert max(cloud) < length


@given(case=clouds())
@settings(max_examples=25, deadline=None)
def test_the_definition_equals_the_loops(case):
    points, k, start = case
    k = min(k, 8)
    picks = reference.farthest_point_sample(points, k, start=start)
    assert picks.tolist() == [by_hand(cloud, k, start) for cloud in points]


def test_the_definition_moves_starts_and_lengths_into_range_and_ends_with_zeros():
    points = torch.randn(4, 12, 2)
    points[3, 2] = math.nan
    starts, lengths = torch.tensor([-5, 99, 3, 0]), torch.tensor([0, 99, 5, 12])
    picks = reference.farthest_point_sample(points, 12, start=starts, lengths=lengths)
    assert picks[0].tolist() == [0] * 12
    assert picks[1].tolist() == reference.farthest_point_sample(points[1:2], 12, start=11)[0].tolist()
    assert sorted(picks[2].tolist()) == [0] * 8 + [1, 2, 3, 4]
    assert picks[2, 0] == 3
    assert sorted(picks[3].tolist()) == list(range(12))


# Threads


@pytest.mark.skipif(not HAS_CPU, reason="depthg._C is not built")
@pytest.mark.parametrize("shape", [(64, 200, 3), (5, 9000, 3), (1, 70000, 3), (3, 20000, 2)])
def test_any_number_of_threads_gives_the_same_indices(shape):
    points = torch.randn(shape)
    tied = (points * 4).round()
    few = points.round().clamp(-1, 0)  # at most eight places: the others are duplicates
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 64):
            torch.set_num_threads(threads)
            results.append([farthest_point_sample(x, 30, start=11, impl="cpp") for x in (points, tied, few)])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][2], farthest_point_sample(few, 30, start=11, impl="eager"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


FORKED = """
import os, torch
from depthg.kernels import farthest_point_sample
torch.set_num_threads(2)
points = torch.rand(8, 500, 3)
here = farthest_point_sample(points, 20, impl="cpp")
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(here, farthest_point_sample(points, 20, impl="cpp")) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not HAS_CPU or not hasattr(os, "fork"), reason="needs depthg._C and fork")
def test_a_forked_process_starts_its_own_threads():
    assert subprocess.run([sys.executable, "-c", FORKED], timeout=60).returncode == 0


@pytest.mark.skipif(not HAS_CPU, reason="depthg._C is not built")
def test_calls_from_several_python_threads_at_once():
    from concurrent.futures import ThreadPoolExecutor

    points = [torch.randn(4, 2000, 3) for _ in range(6)]
    alone = [farthest_point_sample(x, 50, impl="cpp") for x in points]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: farthest_point_sample(x, 50, impl="cpp"), points * 3))
    assert all(torch.equal(a, b) for a, b in zip(alone * 3, together, strict=True))


@pytest.mark.skipif(not HAS_CPU, reason="depthg._C is not built")
def test_scratch_memory_is_linear_in_the_points_and_free_of_k():
    def scratch(batch, n, k, threads):
        clouds = native.Clouds(0, 0, batch, n, 3, 3 * n, 3, 1, 0, 0, 0.0, 0, 0, 0, k, 0)
        return native.fps_cpu_scratch_bytes(clouds, threads)

    assert scratch(8, 12544, 12544, 8) == scratch(8, 12544, 100, 8) >= scratch(8, 12544, 1, 8)
    for threads in (1, 8):
        assert scratch(8, 100_000, 64, threads) <= 8 * 100_000 * 64  # bytes a point


@pytest.mark.skipif(not HAS_CPU or "DEPTHG_ISA" not in os.environ, reason="DEPTHG_ISA asks for no instruction set")
def test_the_tests_run_on_the_instruction_set_that_is_asked_for():
    """``.ci/run`` goes through the tests of the compiled code once more with DEPTHG_ISA=baseline and avx2."""
    wanted = os.environ["DEPTHG_ISA"]
    if wanted == "avx2" and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this machine has no AVX2")
    assert native.fps_cpu_isa() == wanted


# Depth maps


def test_unproject_by_hand():
    depth = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    # 90 degrees over two cells: f = 1, centres at -0.5 and 0.5
    expected = [[-0.5, -0.5, 1], [1, -1, 2], [-1.5, 1.5, 3], [2, 2, 4]]
    torch.testing.assert_close(unproject(depth, 90.0), torch.tensor([expected]))


def test_unproject_edge_of_the_field_of_view_and_square_pixels():
    points = unproject(torch.ones(1, 4, 10), 60.0).reshape(4, 10, 3)
    half_cell = points[0, 1, 0] - points[0, 0, 0]
    assert math.isclose(points[0, -1, 0] + half_cell / 2, math.tan(math.radians(30)), rel_tol=1e-6)
    torch.testing.assert_close(points[1, 0, 1] - points[0, 0, 1], half_cell)


def test_unproject_is_differentiable_and_takes_a_field_of_view_per_map():
    depth = torch.rand(2, 3, 5, requires_grad=True)
    fov = torch.tensor([50.0, 90.0])
    points = unproject(depth, fov)
    for b in range(2):
        torch.testing.assert_close(points[b], unproject(depth[b : b + 1], fov[b].item())[0], rtol=0, atol=1e-6)
    points[..., 2].sum().backward()
    assert torch.equal(depth.grad, torch.ones_like(depth))


@EVERY
@pytest.mark.parametrize("shape", [(3, 28, 28), (2, 7, 31), (2, 1, 40), (1, 40, 1), (2, 80, 75), (1, 130, 140)])
def test_depth_equals_sampling_the_unprojected_points(impl, device, shape):
    depth = torch.rand(shape) + 0.2
    k = min(60, shape[1] * shape[2])
    for fov in (90.0, 37.5):
        ours = farthest_point_sample_depth(depth.to(device), k, fov_deg=fov, start=2, impl=impl).cpu()
        assert torch.equal(ours, farthest_point_sample(unproject(depth, fov), k, start=2, impl="eager"))


@EVERY
def test_depth_with_a_field_of_view_per_map_types_and_strides(impl, device):
    depth = (torch.rand(3, 20, 44).transpose(1, 2)[:, ::2] + 0.1).to(device)
    fov = torch.tensor([30.0, 90.0, 120.0], dtype=torch.float64, device=device)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        ours = farthest_point_sample_depth(depth.to(dtype), 33, fov_deg=fov, impl=impl)
        assert torch.equal(ours, farthest_point_sample(unproject(depth.to(dtype), fov), 33, impl="eager"))


@EVERY
def test_flat_depth_is_a_lattice_full_of_ties(impl, device):
    depth = torch.ones(1, 28, 28)
    ours = farthest_point_sample_depth(depth.to(device), 121, impl=impl).cpu()
    assert torch.equal(ours, reference.farthest_point_sample_depth(depth, 121))
    assert ours[0, :4].tolist() == [0, 27 * 28 + 27, 27, 27 * 28]  # the four corners


# Start


@EVERY
@pytest.mark.parametrize("lengths", [None, torch.tensor([1, 2, 40])])
def test_random_start_is_reproducible_and_in_range(impl, device, lengths):
    points = torch.randn(3, 40, 3, device=device)
    options = {"start": "random", "impl": impl, "lengths": None if lengths is None else lengths.to(device)}
    seen = set()
    for seed in range(40):
        a, b = (
            farthest_point_sample(points, 1, generator=torch.Generator().manual_seed(seed), **options) for _ in range(2)
        )
        assert torch.equal(a, b)
        assert (a[:, 0].cpu() < (40 if lengths is None else lengths)).all()
        seen.add(a[2, 0].item())
    assert len(seen) > 15


def test_random_start_of_a_depth_map_uses_the_generator():
    depth = torch.rand(4, 6, 6) + 1
    first, second = (
        farthest_point_sample_depth(depth, 3, start="random", generator=torch.Generator().manual_seed(5)) for _ in "ab"
    )
    assert torch.equal(first, second)
    assert first[:, 0].unique().numel() > 1


# Errors


CLOUD = torch.zeros(2, 10, 3)
MISTAKES = {
    "k zero": (dict(points=CLOUD, k=0), "k = 0"),
    "k above N": (dict(points=CLOUD, k=11), "k = 11.*10"),
    "k a float": (dict(points=CLOUD, k=2.0), "k must be an int"),
    "k above a length": (dict(points=CLOUD, k=6, lengths=torch.tensor([10, 5])), "k = 6.*5 points of cloud 1"),
    "no points": (dict(points=CLOUD[:, :0], k=1), "no points"),
    "rank": (dict(points=CLOUD[0], k=1), r"\(10, 3\)"),
    "dtype": (dict(points=CLOUD.long(), k=1), "int64"),
    "no coordinate": (dict(points=CLOUD[..., :0], k=1), "1 to 8"),
    "nine coordinates": (dict(points=torch.zeros(1, 4, 9), k=1), "1 to 8"),
    "start above N": (dict(points=CLOUD, k=1, start=10), "start = 10"),
    "start negative": (dict(points=CLOUD, k=1, start=-1), "start = -1"),
    "start word": (dict(points=CLOUD, k=1, start="first"), "'first'"),
    "start float": (dict(points=CLOUD, k=1, start=1.0), "1.0"),
    "start in a tensor": (dict(points=CLOUD, k=1, start=torch.tensor([0, 10])), "10.*cloud 1"),
    "start beyond a length": (dict(points=CLOUD, k=1, start=5, lengths=torch.tensor([9, 5])), "start.*5.*cloud 1"),
    "start shape": (dict(points=CLOUD, k=1, start=torch.tensor([0])), r"\(2,\)"),
    "start dtype": (dict(points=CLOUD, k=1, start=torch.tensor([0.0, 0])), "float32"),
    "length zero": (dict(points=CLOUD, k=1, lengths=torch.tensor([0, 5])), r"lengths\[0\] = 0"),
    "length above N": (dict(points=CLOUD, k=1, lengths=torch.tensor([5, 11])), r"lengths\[1\] = 11"),
    "lengths a list": (dict(points=CLOUD, k=1, lengths=[5, 5]), "list"),
    "devices": (dict(points=CLOUD, k=1, lengths=torch.zeros(2, dtype=torch.int64, device="meta")), "meta"),
    "impl unknown": (dict(points=CLOUD, k=1, impl="fast"), r"'fast'.*'auto', 'cuda', 'triton', 'cpp', 'eager'"),
}


@pytest.mark.parametrize("impl", ["eager", CPP.values[0]])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_raise_value_errors_that_name_the_value(mistake, impl):
    if impl == "cpp" and not HAS_CPU:
        pytest.skip("depthg._C is not built")
    arguments, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        farthest_point_sample(**{"impl": impl, **arguments})


@pytest.mark.parametrize("impl", ["eager", "cpp"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n", [100, 5000])
def test_cpu_points_that_are_not_finite_are_refused(impl, value, n):
    if impl == "cpp" and not HAS_CPU:
        pytest.skip("depthg._C is not built")
    points = torch.randn(3, n, 3)
    points[1, 77, 2] = value
    with pytest.raises(ValueError, match=r"points\[1, 77\]"):
        farthest_point_sample(points, 5, impl=impl)
    with pytest.raises(ValueError, match="float32"):
        farthest_point_sample(torch.full((1, n, 2), 1e300, dtype=torch.float64), 5, impl=impl)


@pytest.mark.parametrize("impl", ["eager", "cpp"])
def test_depth_that_is_not_finite_is_refused(impl):
    if impl == "cpp" and not HAS_CPU:
        pytest.skip("depthg._C is not built")
    depth = torch.ones(2, 5, 7)
    depth[1, 3, 4] = math.inf
    with pytest.raises(ValueError, match="clip the sky"):
        farthest_point_sample_depth(depth, 5, impl=impl)


@pytest.mark.parametrize("fov", [0.0, 180.0, -20.0, math.nan, torch.tensor([90.0, 180.0]), torch.tensor([90.0])])
def test_field_of_view_is_checked(fov):
    for call in (unproject, lambda d, fov: farthest_point_sample_depth(d, 2, fov_deg=fov)):
        with pytest.raises(ValueError, match="fov_deg"):
            call(torch.ones(2, 4, 4), fov)


def test_an_absent_implementation_names_the_alternative(monkeypatch):
    monkeypatch.setattr(_extension, "HAS_CPU", False)
    monkeypatch.setattr(_extension, "HAS_CUDA", False)
    with pytest.raises(ValueError, match=r"impl='cpp'.*impl='eager'"):
        farthest_point_sample(CLOUD, 1, impl="cpp")
    with pytest.raises(ValueError, match=r"impl='cuda'.*impl='eager'"):
        farthest_point_sample(CLOUD, 1, impl="cuda")
    assert farthest_point_sample(CLOUD, 1).tolist() == [[0], [0]]  # auto falls back


@pytest.mark.skipif(not torch.cuda.is_available() or not HAS_CUDA, reason=NO_CUDA)
@pytest.mark.parametrize("n", [700, 9000, 30000])
def test_cuda_with_nan_gives_valid_indices_and_captures_in_a_graph(n):
    points = torch.randn(2, n, 3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    farthest_point_sample(points, 20, impl="cuda")
    with torch.cuda.graph(graph):
        picks = farthest_point_sample(points, 20, impl="cuda")
    graph.replay()
    assert torch.equal(picks, farthest_point_sample(points, 20, impl="eager"))
    points[0, ::3] = math.nan
    graph.replay()
    assert ((picks >= 0) & (picks < n)).all()


# torch.library and torch.compile


@EVERY
def test_operators_pass_opcheck(impl, device):
    points, depth = torch.randn(2, 30, 3, device=device), torch.rand(2, 5, 6, device=device) + 1
    starts, lengths = torch.tensor([1, 2], device=device), torch.tensor([30, 20], device=device)
    for arguments in ((points, 7, None, 3, None, impl), (points, 7, starts, 0, lengths, impl)):
        torch.library.opcheck(torch.ops.depthg.farthest_point_sample.default, arguments)
    focals = torch.tensor([3.0, 4.0], device=device)
    for arguments in ((depth, 7, None, 3.0, None, 3, impl), (depth, 7, focals, 0.0, starts, 0, impl)):
        torch.library.opcheck(torch.ops.depthg.farthest_point_sample_depth.default, arguments)


@EVERY
def test_compiles_without_a_graph_break(impl, device):
    def centre_of_picks(points, depth, fov):
        picks = farthest_point_sample(points * 2, 9, start=1, impl=impl)
        cells = farthest_point_sample_depth(depth + 1, 5, fov_deg=fov, impl=impl)
        drawn = farthest_point_sample(points, 2, start="random", impl=impl)
        return points.gather(1, picks[..., None].expand(-1, -1, 3)).mean(1), cells, drawn.shape

    arguments = [torch.randn(2, 40, 3), torch.rand(2, 6, 7), torch.tensor([60.0, 80.0])]
    arguments = [x.to(device) for x in arguments]
    compiled = torch.compile(centre_of_picks, fullgraph=True, backend="aot_eager")
    expected, ours = centre_of_picks(*arguments), compiled(*arguments)
    assert torch.equal(expected[0], ours[0])
    assert torch.equal(expected[1], ours[1])


def test_points_that_require_grad_are_taken_and_indices_carry_none():
    points = torch.randn(1, 20, 3, requires_grad=True)
    assert not farthest_point_sample(points, 3).requires_grad
