"""The CUDA code of farthest point sampling on a CPU (``tests/cuda_on_cpu``): equal indices, and faults it finds."""

import ctypes
import faulthandler
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from depthg.kernels import reference, unproject

HERE = Path(__file__).parents[1]
CSRC = HERE.parent / "csrc"
CXX = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or "g++"
FLAGS = "-std=c++17 -O1 -U_FORTIFY_SOURCE -ffp-contract=off -fPIC -fno-gnu-unique -shared"
WARNINGS = "-Wall -Wno-unknown-pragmas -Werror"
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
ALL, NO_CLUSTERS, LITTLE, OLD_PTX, SMALL = range(5)  # devices of cuda_runtime.h

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the stand-in for CUDA is made for Linux"),
    pytest.mark.skipif(shutil.which(shlex.split(CXX)[0]) is None, reason="no C++ compiler"),
]


class Clouds(ctypes.Structure):
    """``Clouds`` of ``csrc/fps.h``."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("batch", ctypes.c_int64),
        ("points", ctypes.c_int64),
        ("dims", ctypes.c_int64),
        ("stride", ctypes.c_int64 * 3),
        ("width", ctypes.c_int64),
        ("focals", ctypes.c_void_p),
        ("focal", ctypes.c_float),
        ("lengths", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("start", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("picks", ctypes.c_void_p),
    ]


def compile_for(arch, folder, csrc=CSRC):
    """The library for one architecture."""
    library = folder / f"sample_{arch}.so"
    flags = [*shlex.split(FLAGS), *shlex.split(WARNINGS), *shlex.split(os.environ.get("DEPTHG_SHIM_FLAGS", ""))]
    includes = [f"-DSHIM_ARCH={arch}", f"-I{HERE / 'cuda_on_cpu'}", f"-I{csrc}"]
    source = HERE / "cuda_on_cpu" / "sample.cpp"
    command = [*shlex.split(CXX), *flags, *includes, str(source), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return Library(library, arch)


class Library:
    def __init__(self, path, arch):
        self.arch = arch
        self.scratch = torch.empty(0, dtype=torch.uint8)
        self.native = ctypes.CDLL(str(path))
        self.native.sample.restype = ctypes.c_char_p
        self.native.scratch_bytes.restype = ctypes.c_long

    def sample(self, points, k, *, device=SMALL, lengths=None, start=0, focal=None, stream_device=None):
        """``points`` [B, N, D], or depth maps [B, H, W] where there is a focal length (a float, or a tensor [B])."""
        batch, n, dims = points.shape
        picks = torch.full((batch, k), -1)
        starts = start if isinstance(start, torch.Tensor) else None
        focals = focal if isinstance(focal, torch.Tensor) else None
        width = 0 if focal is None else dims
        clouds = Clouds(
            points.data_ptr(), DTYPES[points.dtype], batch, n * dims if width else n, 3 if width else dims,
            (ctypes.c_int64 * 3)(*points.stride()), width, address(focals),
            focal if isinstance(focal, float) else 0.0, address(lengths), address(starts),
            0 if starts is not None else start, k, picks.data_ptr(),
        )  # fmt: skip
        size = self.native.scratch_bytes(ctypes.byref(clouds), device)
        if size > self.scratch.numel() - 64:  # else what earlier calls left is still there
            self.scratch = torch.full((size + 64,), 0x7F, dtype=torch.uint8)
        at = self.scratch.data_ptr() + 63 & ~63  # the caching allocator aligns
        stream = device if stream_device is None else stream_device
        error = self.native.sample(ctypes.byref(clouds), ctypes.c_void_p(at), device, stream)
        if error:
            raise RuntimeError(error.decode())
        return picks

    def counts(self):
        """Launches, those of clusters, cooperative ones, and memsets since the last call."""
        out = (ctypes.c_long * 4)()
        self.native.counts(out)
        return tuple(out)


def address(tensor):
    return None if tensor is None else tensor.data_ptr()


SLOW = pytest.mark.slow


@pytest.fixture(scope="module", params=[pytest.param(700, marks=SLOW), pytest.param(800, marks=SLOW), 900])
def library(request, tmp_path_factory):
    """Without and with ``__reduce_max_sync``, and with clusters."""
    return compile_for(request.param, tmp_path_factory.mktemp("library"))


def same_as_definition(library, points, k, *, device=SMALL, **options):
    ours = library.sample(points, k, device=device, **options)
    assert torch.equal(ours, reference.farthest_point_sample(points, k, **options))


SHAPES = [
    (3, 784, 3, 40), (2, 1, 3, 1), (2, 33, 2, 33), (2, 1024, 8, 20), (1, 1025, 3, 30), (2, 1535, 8, 6), (1, 4000, 3, 8),
    (1, 4090, 3, 6), (2, 12544, 3, 6), (1, 16385, 1, 5), (3, 20000, 3, 5), (1, 70001, 5, 4), (7, 5000, 2, 4),
]  # fmt: skip


# Clusters of 16 blocks and of 8; sanitizers take a minute for each.
LARGEST = [((1, 4500, 3, 6), ALL), ((2, 12544, 3, 5), ALL), ((1, 90000, 4, 4), ALL)]
LARGEST *= "DEPTHG_SHIM_FLAGS" not in os.environ


@pytest.mark.parametrize("tied", [pytest.param(False, marks=SLOW), True])
@pytest.mark.parametrize(
    ("shape", "device"), [(shape, device) for shape in SHAPES for device in (SMALL, NO_CLUSTERS, LITTLE)] + LARGEST
)
def test_indices_are_those_of_the_definition(library, shape, device, tied):
    batch, n, dims, k = shape
    points = torch.randn(batch, n, dims)
    points = points.round() if tied else points
    lengths = torch.randint(k, n + 1, (batch,))
    same_as_definition(library, points, k, device=device, start=n - 1)
    same_as_definition(library, points, k, device=device, start=torch.randint(n, (batch,)) % lengths, lengths=lengths)


def test_what_runs_where(library):
    """One launch for all picks: alone, as a cluster, or as a grid whose blocks are all resident."""

    def counts(shape, device):
        library.sample(torch.randn(shape), 3, device=device)
        return library.counts()

    library.counts()
    clusters = library.arch >= 900
    assert counts((4, 784, 3), ALL) == (1, 0, 0, 0)
    assert counts((1, 30000, 3), ALL) == ((1, 1, 0, 0) if clusters else (1, 0, 1, 1))
    assert counts((1, 30000, 3), NO_CLUSTERS) == (1, 0, 1, 1)
    assert counts((1, 8000, 3), SMALL) == ((1, 1, 0, 0) if clusters else (1, 0, 0, 0))
    assert counts((1, 30000, 3), OLD_PTX) == (1, 0, 1, 1)
    assert counts((1, 400_000, 3), ALL) == (1, 0, 1, 1)  # more than a cluster holds
    assert counts((40, 5000, 3), NO_CLUSTERS) == (1, 0, 0, 0)  # clouds enough for all


@pytest.mark.parametrize("device", [SMALL, NO_CLUSTERS, LITTLE])
@pytest.mark.parametrize("n", [40, 1500, 8000, 20000])
def test_the_picks_of_points_that_coincide_differ(library, n, device):
    points = torch.full((2, n, 3), 0.3)
    assert library.sample(points, 6, device=device, start=2).tolist() == [[2, 0, 1, 3, 4, 5]] * 2
    points[1] = torch.randint(2, (n, 3)) * 2.0
    same_as_definition(library, points, 14, device=device)


@pytest.mark.parametrize("device", [SMALL, NO_CLUSTERS, LITTLE])
@pytest.mark.parametrize("n", [60, 8000, 18000])
def test_lengths_and_starts_that_do_not_fit_are_moved_into_range(library, n, device):
    points = torch.randn(5, n, 3)
    lengths = torch.tensor([-3, 0, 2, n + 7, 5])
    starts = torch.tensor([9, -1, 2, n + 3, 4])
    same_as_definition(library, points, 8, device=device, start=starts, lengths=lengths)
    picks = library.sample(points, 8, device=device, start=starts, lengths=lengths)
    assert picks[:2].tolist() == [[0] * 8] * 2
    assert sorted(picks[4].tolist()) == [0, 0, 0, 0, 1, 2, 3, 4]
    assert picks[3, 0] == n - 1


@pytest.mark.parametrize("n", [60, 8000, 18000])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_points_that_are_not_finite_give_valid_and_different_indices(library, n, value):
    points = torch.randn(2, n, 3)
    points[0, ::3, 1] = value
    points[1] = value
    for device in (SMALL, NO_CLUSTERS, LITTLE):
        same_as_definition(library, points, 9, device=device, start=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_types_and_strides(library, dtype):
    for n in (500, 6000):
        points = torch.randn(2, 4, 2 * n).to(dtype)[:, :3, ::2].mT
        same_as_definition(library, points, 9, device=SMALL)


def test_depth_maps(library):
    for shape in ((2, 28, 28), (1, 90, 70), (2, 7, 31)):
        depth = torch.rand(shape) + 0.2
        for fov in (60.0, torch.tensor([50.0, 90.0])[: shape[0]]):
            ours = library.sample(depth, 7, start=3, focal=reference.focal_length(fov, shape[2]))
            assert torch.equal(ours, reference.farthest_point_sample(unproject(depth, fov), 7, start=3))


def test_no_clouds_and_no_launch(library):
    library.counts()
    assert library.sample(torch.zeros(0, 5000, 3), 4).shape == (0, 4)
    assert library.counts() == (0, 0, 0, 0)


def test_scratch_memory_is_free_of_k_and_small_where_blocks_hold_the_points(library):
    def scratch(batch, n, k, device):
        clouds = Clouds(batch=batch, points=n, dims=3, k=k)
        return library.native.scratch_bytes(ctypes.byref(clouds), device)

    for device in (ALL, NO_CLUSTERS, LITTLE):
        assert scratch(8, 900, 100, device) == 0
        assert scratch(2, 30000, 1, device) == scratch(2, 30000, 30000, device)
        assert scratch(3, 2_000_000, 64, device) <= 3 * 2_000_000 * 16 + 10**6
    assert scratch(1, 30000, 64, NO_CLUSTERS) < 10_000


@pytest.mark.parametrize("before", [0, ALL + 1, SMALL + 1])
@pytest.mark.parametrize("n", [300, 9000])
def test_launches_go_to_the_device_of_the_stream_and_the_context_is_put_back(library, n, before):
    library.native.set_context(before)
    same_as_definition(library, torch.randn(1, n, 3), 4, device=NO_CLUSTERS)
    assert library.native.context() == before
    with pytest.raises(RuntimeError, match="stream of another device"):
        library.sample(torch.randn(1, n, 3), 4, device=NO_CLUSTERS, stream_device=SMALL)
    assert library.native.context() == before


# The stand-in finds faults


GRID = (1, 13000, 3, 3, NO_CLUSTERS)  # the second one finds the posts of the first
LONG_GRID = (1, 13000, 3, 12, NO_CLUSTERS)
CLUSTERS = [(1, 8000, 3, 9, SMALL)] + [(1, 8000, 3, 2, SMALL)] * 3
WORK = [(2, 784, 3, 12, SMALL), (4, 5000, 3, 6, LITTLE), GRID, GRID, LONG_GRID, *CLUSTERS]


def finds_a_fault(library, site=-1, seeds=20):
    """Whether one of several samplings (small, one block, a grid, a cluster) is wrong, ends with an error or crashes.

    ``site`` is the barrier that does nothing. They run in a process of their own, in up to ``seeds`` random orders.
    """
    torch.manual_seed(0)
    work = [(torch.randn(shape), k, device) for *shape, k, device in WORK]
    expected = [reference.farthest_point_sample(points, k) for points, k, _ in work]
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        right = False
        try:
            for seed in range(seeds):
                right = False
                library.native.plant(site, seed)
                picks = [library.sample(points, k, device=device) for points, k, device in work]
                right = all(torch.equal(a, b) for a, b in zip(picks, expected, strict=True))
                if not right:
                    break
        finally:
            os._exit(0 if right else 1)
    return os.waitpid(child, 0)[1] != 0


def test_every_barrier_is_needed(library):
    assert not finds_a_fault(library, seeds=2)  # with all of them
    count = library.native.barriers()
    assert count == 4
    for site in range(count):
        assert finds_a_fault(library, site), f"without barrier {site} of {count} all is well"


PLANTED = {
    "one set of posts in a cluster": ("(*posts)[turn & 1]", "(*posts)[0]"),
    "one set of posts in a grid": ("static_cast<int64_t>(turn & 1)", "static_cast<int64_t>(0)"),
    "posts read before they arrive": ("pair.first >> 32 == turn && pair.second >> 32 == turn", "true"),
    "half a post read before it arrives": ("&& pair.second >> 32 == turn", ""),
    "no meeting before the first post": ("all[i] = {0, 0};\n    meet();", "all[i] = {0, 0};"),
    "no meeting at the end": ("void end() { meet(); }", "void end() {}"),
    "posts of an earlier call": ("if (posts) require(", "if (!posts) require("),
}


@pytest.mark.parametrize("fault", [pytest.param(x, marks=SLOW if number else ()) for number, x in enumerate(PLANTED)])
def test_planted_faults_are_found(fault, tmp_path):
    old, new = PLANTED[fault]
    shutil.copytree(CSRC, tmp_path / "csrc")
    file = next(file for file in sorted(tmp_path.glob("csrc/fps_*")) if old in file.read_text())
    file.write_text(file.read_text().replace(old, new))
    assert finds_a_fault(compile_for(900, tmp_path, tmp_path / "csrc"))
