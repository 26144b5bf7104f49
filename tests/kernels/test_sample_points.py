"""sample_points of every implementation against indexing and grid_sample."""

import pytest
import torch
from compile_only import ahead_of_time
from loss_cases import DEVICE, HALVES, IMPLS, INTERPRETING, vectors

from depthg.kernels import reference, sample_points


def make(n=2, c=9, h=6, w=7, channels_last=False, dtype=torch.float32):
    maps = vectors(n, c, h, w, dtype=dtype)
    maps = maps.to(memory_format=torch.channels_last) if channels_last else maps
    return maps.requires_grad_()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("channels_last", [True, False])
def test_cells_are_gathered_exactly(impl, channels_last):
    maps, cells = make(channels_last=channels_last), torch.randint(0, 42, (2, 30), device=DEVICE)
    out = sample_points(maps, cells, impl=impl)
    for n in range(2):
        for p in range(30):
            row, column = divmod(cells[n, p].item(), 7)
            assert torch.equal(out[n, p], maps[n, :, row, column])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("kind", ["cells", "corners", "edges"])
def test_values_and_gradients(impl, channels_last, kind):
    maps = make(channels_last=channels_last)
    points = torch.rand(2, 30, 2, device=DEVICE) * 2.6 - 1.3  # some outside: the border is repeated
    points[:, :2] = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], device=DEVICE)
    points = torch.randint(0, 42, (2, 30), device=DEVICE) if kind == "cells" else points
    options, upstream = {"align_corners": kind == "corners"}, vectors(2, 30, 9)
    ours = sample_points(maps, points, impl=impl, **options)
    (d_ours,) = torch.autograd.grad((ours * upstream).sum(), maps)
    wide = maps.detach().double().requires_grad_()
    truth = reference.sample_points(wide, points if kind == "cells" else points.double(), **options)
    (d_truth,) = torch.autograd.grad((truth * upstream.double()).sum(), wide)
    assert ours.is_contiguous()
    torch.testing.assert_close(ours.double(), truth, atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(d_ours.double(), d_truth, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_maps(impl, dtype):
    maps, cells = make(dtype=dtype), torch.randint(0, 42, (2, 5), device=DEVICE)
    if impl == "cpp":  # reads float32 alone; "auto" takes the definition
        with pytest.raises(ValueError, match=r"impl='cpp' has no b?float16; use impl='auto' or 'eager'"):
            sample_points(maps, cells, impl=impl)
        impl = "auto"
    assert torch.equal(sample_points(maps, cells, impl=impl), reference.sample_points(maps, cells))


@pytest.mark.parametrize("impl", [*dict.fromkeys(["auto" if x == "cpp" else x for x in [*IMPLS, "eager"]])])
@pytest.mark.parametrize("dtype", HALVES)
def test_coordinates_of_half_maps_stay_float32(impl, dtype):
    if impl == "triton" and INTERPRETING and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter truncates to bfloat16 instead of rounding")
    maps = torch.arange(28.0).expand(2, 3, 28, 28).to(DEVICE, dtype)  # exact in either type: a cell's value is its x
    points = torch.rand(2, 400, 2, device=DEVICE) * 2 - 1
    x = (points[..., :1].double() + 1) / 2 * 27
    out = sample_points(maps, points, impl=impl)
    assert out.dtype == dtype
    assert ((out.double() - x).abs() <= torch.finfo(dtype).eps / 2 * x + 1e-5).all()  # rounded once, at the end


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("kind", ["cells", "coordinates"])
def test_index_says_which_map_each_row_reads(impl, channels_last, kind):
    maps, index = make(n=3, c=19, channels_last=channels_last), torch.tensor([2, 0, 2, 2], device=DEVICE)
    points = torch.randint(0, 42, (4, 6), device=DEVICE) if kind == "cells" else torch.rand(4, 6, 2, device=DEVICE)
    ours, upstream = sample_points(maps, points, index=index, impl=impl), vectors(4, 6, 19)
    (d_ours,) = torch.autograd.grad((ours * upstream).sum(), maps)
    expected = reference.sample_points(maps[index], points)
    (d_expected,) = torch.autograd.grad((expected * upstream).sum(), maps)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(d_ours, d_expected)
    assert not d_ours[1].any()


@pytest.mark.parametrize("impl", IMPLS)
def test_no_row_reads(impl):
    maps, nothing = make(), torch.zeros(0, dtype=torch.int64, device=DEVICE)
    out = sample_points(maps, torch.zeros(0, 5, 2, device=DEVICE), index=nothing, impl=impl)
    assert out.shape == (0, 5, 9)
    out.sum().backward()
    assert (maps.grad == 0).all()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("c", [1, 4, 15, 16, 17, 35, 128, 131])
@pytest.mark.parametrize(("h", "w", "p"), [(1, 1, 3), (5, 6, 40), (40, 41, 3)])
def test_blocks_of_channels(c, h, w, p, channels_last):
    maps, points = make(3, c, h, w, channels_last), torch.rand(3, p, 2, device=DEVICE) * 2 - 1
    ours, expected = sample_points(maps, points), reference.sample_points(maps, points)
    torch.testing.assert_close(ours, expected)
    upstream = torch.randn_like(ours)
    torch.testing.assert_close(*(torch.autograd.grad(out, maps, upstream)[0] for out in (ours, expected)))


@pytest.mark.parametrize(
    ("index", "message"),
    [([0, 2, 0, 0], "outside the 2 images"), ([0, 1], r"int64 \[4\]"), ([0.0] * 4, "int64"), ([-1, 0, 0, 0], "-1")],
)
def test_wrong_index(index, message):
    with pytest.raises(ValueError, match=message):
        sample_points(
            make(), torch.zeros(4, 5, dtype=torch.int64, device=DEVICE), index=torch.tensor(index, device=DEVICE)
        )


@pytest.mark.parametrize("impl", IMPLS)
def test_repeated_cells_add_up(impl):
    maps, cells = make(), torch.full((2, 5), 3, device=DEVICE)
    (grad,) = torch.autograd.grad(sample_points(maps, cells, impl=impl).sum(), maps)
    assert (grad.flatten(2)[:, :, 3] == 5).all() and grad.sum() == 5 * 2 * 9


@pytest.mark.parametrize("impl", IMPLS)
def test_no_points_and_no_images(impl):
    for n, p in ((2, 0), (0, 3)):
        maps = make(n=n)
        out = sample_points(maps, torch.zeros(n, p, dtype=torch.int64, device=DEVICE), impl=impl)
        assert out.shape == (n, p, 9)
        out.sum().backward()
        assert (maps.grad == 0).all()


@pytest.mark.parametrize("impl", [impl for impl in IMPLS if impl != "eager"])
@pytest.mark.parametrize("indexed", [False, True])
def test_op_checks(impl, indexed):
    if impl == "triton" and indexed:
        pytest.skip("Triton takes no index: the maps are gathered before")
    cells, weights = torch.randint(0, 42, (2, 5, 4), device=DEVICE), torch.rand(2, 5, 4, device=DEVICE)
    index = torch.tensor([1, 1], device=DEVICE) if indexed else None
    torch.library.opcheck(torch.ops.depthg.sample_cells.default, (make(), cells, weights, index, impl))
    d_out = vectors(2, 5, 9, grad=True)
    arguments = (d_out, cells, weights, index, 2, 6, 7, impl)
    torch.library.opcheck(torch.ops.depthg.sample_cells_backward.default, arguments)


@pytest.mark.parametrize("impl", IMPLS)
def test_compiles_to_one_graph(impl):
    maps, points = make(), torch.rand(2, 5, 2, device=DEVICE)
    compiled = torch.compile(lambda m: sample_points(m, points, impl=impl), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(maps), sample_points(maps, points, impl=impl))


@pytest.mark.parametrize(
    "points, message",
    [
        (torch.tensor([[0, 42], [0, 1]]), r"cell 42, outside the 42 cells of maps \(2, 9, 6, 7\)"),
        (torch.tensor([[0, -1], [0, 1]]), "cell -1"),
        (torch.zeros(3, 4, dtype=torch.int64), r"maps \(2, 9, 6, 7\) and points \(3, 4\)"),
        (torch.zeros(2, 4), r"int64 cells \[N, P\] or float coordinates"),
        (torch.zeros(2, 4, 3), "got torch.float32 of shape"),
        (torch.zeros(2, 4, 2, requires_grad=True), "points requires grad"),
    ],
)
def test_wrong_inputs(points, message):
    with pytest.raises(ValueError, match=message):
        sample_points(torch.zeros(2, 9, 6, 7), points)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", ["cells", "coordinates"])
def test_points_index_and_upstream_gradient_of_any_layout(impl, kind):
    maps = make(n=3, c=19)
    points = torch.randint(0, 42, (6, 4, 2), device=DEVICE) if kind == "cells" else torch.rand(6, 4, 4, device=DEVICE)
    points = points.transpose(0, 1)[..., 0] if kind == "cells" else points.transpose(0, 1)[..., ::2]
    for index in (
        torch.tensor([2, 9, 0, 9, 2, 9, 1, 9], device=DEVICE)[::2],
        torch.ones((), device=DEVICE).long().expand(4),
    ):
        ours, expected = (
            sample_points(maps, points, index=index, impl=impl),
            reference.sample_points(maps[index], points),
        )
        upstream = vectors(19, 6, 1).expand(19, 6, 4).permute(2, 1, 0)
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(*(torch.autograd.grad(out, maps, upstream)[0] for out in (ours, expected)))


SIZES_ALONE = """
import torch
from compile_only import launched
from depthg.kernels import sample_points_triton

def sizes(n, c, h, w, p, last=False, offset=0):
    "Kernels that read maps at points and write their gradient."
    maps = torch.empty(n * c * h * w + offset)[offset:].view(n, c, h, w)
    maps = maps.to(memory_format=torch.channels_last) if last else maps
    cells, weights = torch.zeros(n, p, 4, dtype=torch.int64), torch.zeros(n, p, 4)
    sample_points_triton.read(maps, cells, weights)
    sample_points_triton.write(torch.empty(n, p, c), cells, weights, h, w)
    return launched[-2:]

first = sizes(32, 384, 28, 28, 121)
assert [kernel.name for kernel in first] == ["read_kernel", "write_kernel"]
others = (7, 70, 28, 28, 100), (1, 1, 1, 1, 1), (2, 16, 8, 8, 16), (3, 33, 5, 7, 1, True), (2, 9, 28, 28, 64, False, 1)
for other in others:
    assert all(a is b for a, b in zip(first, sizes(*other), strict=True)), other
"""


@pytest.mark.slow
def test_sizes_and_strides_share_a_kernel():
    pytest.importorskip("triton")
    ahead_of_time(SIZES_ALONE, 90)
