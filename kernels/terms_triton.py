"""Launchers of the Triton losses: prepare, means, bias, tiles and losses forward; two launches backward.

No host sync and nothing that depends on values: capturable by CUDA graphs once a call of the same sizes and the same
needs of gradients has run, which puts its tables on the device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from depthg.kernels import finish_triton, prepare_triton, tiles_triton
from depthg.kernels.launch_triton import architecture, cdiv, on_device, power_of_two, precision
from depthg.kernels.pair_terms import Inputs, Options
from depthg.kernels.plan_triton import GRADIENT_ROWS, HALF, PREPARE_POINTS, TF32, TF32X3, Plan, Sizes, make_plan, tables
from depthg.kernels.prepare_triton import BANK_FIELDS, BANKS, CELLS, COORDINATES, PLAIN, POSITIVE, ROWS_GIVEN, UNIT
from depthg.kernels.reference import _scaled_deviation
from depthg.kernels.tiles_triton import FIELDS, SEGMENTS


class Saved(NamedTuple):
    """What the backward pass needs: gradients of all segments at the unit codes, the unit codes, inverse lengths."""

    rows: Tensor  # [slots, width_k] float32
    codes: Tensor  # [rows, width_k]
    inverse: Tensor  # [rows] float32


class Part(NamedTuple):
    """What one launch of ``prepare_kernel`` reads: vectors of a bank or of two that are alike, and depth."""

    bank: int
    feats: Tensor | None = None
    codes: Tensor | None = None
    depth: Tensor | None = None
    depth0: int = 0  # where its first point is stored
    points: Tensor | None = None
    second: Any = None  # the Part of the bank behind this one


def sizes_of(x: Inputs, own: bool, needs: list[bool]) -> Sizes:
    """``needs``: whether anchors, neighbours, negatives and the other crop get gradients."""

    def count(t: Tensor | None, points: Tensor | None = None) -> int:
        return 0 if t is None else int(t.shape[1] if points is None else points.shape[1])

    def channels(t: Tensor | None) -> int:
        return 0 if t is None else int(t.shape[1] if t.ndim == 4 else t.shape[2])

    components = 0 if x.depth is None else 1 if x.depth.ndim == 2 else channels(x.depth)
    far = x.codes_far
    widest = x.codes.dtype if x.feats is None or x.feats.dtype.itemsize == 2 else x.feats.dtype
    return Sizes(
        int(x.codes.shape[0]), count(x.codes, x.points), channels(x.feats), channels(x.codes),
        count(x.codes_near, x.points_near), 0 if far is None else int(far.shape[0]), count(far),
        0 if x.negatives is None else int(x.negatives.shape[0]), count(x.codes_other), own, components,
        x.depth_other is not None, any(needs), needs[1], needs[2], needs[3],
        products=HALF if widest.itemsize == 2 else TF32 if precision(widest) == "tf32" else TF32X3,
        arch=architecture(x.codes.device),
    )  # fmt: skip


def forward(
    x: Inputs, sizes: Sizes, options: Options, shifts: list[float], weights: list[float]
) -> tuple[Tensor, Tensor, Tensor, Saved]:
    """The weighted total, losses [4] and mean similarities [4] of self, neighbour, negatives and depth."""
    with on_device(x.codes):
        return _forward(x, make_plan(sizes), options, shifts, weights)


def _forward(
    x: Inputs, plan: Plan, options: Options, shifts: list[float], weights: list[float]
) -> tuple[Tensor, Tensor, Tensor, Saved]:
    # Longer than usual: five launches in a row that share most of their arguments.
    s, device = plan.sizes, x.codes.device
    k0, k1, blocks_k = plan.split_k
    width, width_c, draws = plan.width_c + plan.width_k, plan.width_c, plan.bias_draws
    table, factors, banks = tables(plan, device)
    codes = torch.empty((plan.rows, plan.width_k), dtype=x.codes.dtype, device=device)
    feature_rows = 0 if x.feats is None else plan.banks[plan.other].row0 if plan.other else plan.rows
    feats = codes if x.feats is None else torch.empty((feature_rows, width_c), dtype=x.feats.dtype, device=device)
    rows = torch.empty((plan.slots if s.grad else 0, plan.width_k), dtype=torch.float32, device=device)
    points = plan.banks[0].rows + (plan.banks[plan.other].rows if s.depth_other else 0)
    inverse = torch.empty(plan.rows, dtype=torch.float32, device=device)
    depth, sums, mean, bias, constant, similar, partial = _floats(
        device, points * s.depth, plan.sums * width, plan.images * width,
        draws * s.anchors * s.points if options.center else 0, draws + 1, draws + 1, plan.programs,
    )  # fmt: skip
    index = banks if x.negatives is None else x.negatives.contiguous()
    far_images = plan.banks[plan.far].images
    entries = cdiv(index.numel(), 64) * 64  # an address that is aligned for every N compiles nothing anew
    order = torch.empty(entries + far_images + 1, dtype=torch.int64, device=device) if s.draws else banks
    start = order[entries:] if s.draws else banks
    _prepare(x, plan, options, feats, codes, inverse, depth, sums)
    programs = plan.images * cdiv(width, 64)
    listing = cdiv(index.numel(), 64) + cdiv(far_images + 1, 64) if s.draws and s.grad else 0
    prepare_triton.means_kernel[(programs + listing,)](
        sums, mean, banks, index, order, start,
        plan.images, plan.feature_images, s.draws, s.anchors, width_c, programs, far_images,
        WIDTH_K=plan.width_k, BANKS=BANKS, BANK_FIELDS=BANK_FIELDS, BLOCK_C=64, BLOCK_E=64,
        BLOCK_T=16,
    )  # fmt: skip
    programs = draws * s.anchors * cdiv(s.points, 32) if options.center and draws else 0
    image = [plan.banks[0 if b is None else b].image0 for b in (plan.near, plan.far, plan.other)]
    prepare_triton.bias_kernel[(programs + draws + bool(s.depth),)](
        feats, mean, index, mean if x.shifts is None else x.shifts, mean if x.means is None else x.means.contiguous(),
        bias, constant, similar, *shifts,
        s.anchors, draws, int(s.own), int(plan.near is not None), *image, s.points, width_c, programs,
        SHIFTS=x.shifts is not None, CENTER=options.center, GIVEN=x.means is not None, WIDTH_K=plan.width_k,
        BLOCK_P=32, BLOCK_N=16, BLOCK_C=64,
    )  # fmt: skip
    exponential = options.relation in ("gaussian", "euclidean")
    tiles_triton.pair_rows_kernel[(plan.programs, blocks_k if s.grad else 1)](
        feats, codes, depth, bias, constant, index, order, start, table, rows, partial,
        s.draws, s.anchors, s.points, width_c // plan.tile["BLOCK_C"], blocks_k,
        1 / options.bandwidth**2 if exponential else 0.0,
        0.0 if options.max_similarity is None else float(options.max_similarity),
        CENTER=options.center, D=s.depth, EXPONENTIAL=s.depth > 0 and exponential, GRAD=s.grad,
        CLAMP=options.clamp, LIMIT=options.max_similarity is not None, WIDE=blocks_k > 1,
        FEATURE_PRECISION=_precision(s, feats), CODE_PRECISION=_precision(s, codes), K0=k0, K1=k1,
        SEGMENTS=SEGMENTS, FIELDS=FIELDS, **plan.tile,
    )  # fmt: skip
    total, losses, similarities = (torch.empty(n, dtype=torch.float32, device=device) for n in ((), 4, 4))
    finish_triton.losses_kernel[(1,)](
        partial, table, factors, similar, total, losses, similarities,
        plan.programs, plan.segments, draws, int(s.own), int(plan.near is not None), int(s.depth > 0), *weights,
        FIELDS=FIELDS, BLOCK=1024,
    )  # fmt: skip
    return total, losses, similarities, Saved(rows, codes, inverse)


def _precision(s: Sizes, x: Tensor) -> str:
    return "ieee" if x.dtype != torch.float32 else "tf32" if s.products == TF32 else "tf32x3"


def _floats(device: torch.device, *counts: int) -> tuple[Tensor, ...]:
    """Uninitialised float32 vectors in one piece of memory, each aligned."""
    padded = [cdiv(n, 64) * 64 for n in counts]
    whole: tuple[Tensor, ...] = torch.empty(sum(padded), dtype=torch.float32, device=device).split(padded)
    return whole


def _prepare(
    x: Inputs, plan: Plan, options: Options, feats: Tensor, codes: Tensor, inverse: Tensor, depth: Tensor, sums: Tensor
) -> None:
    """One launch for every bank, and one for depth where no bank has its points."""
    own_depth, other_depth = x.depth, x.depth_other
    if options.relation == "centered":
        own_depth, other_depth = (None if d is None else _scaled_deviation(d.float()) for d in (x.depth, x.depth_other))
    apart = x.points is not None and own_depth is not None and own_depth.ndim != 4
    behind = plan.banks[0].rows  # depth of the other side comes behind that of the anchors
    anchors = Part(0, x.feats, x.codes, None if apart else own_depth, 0, x.points)
    given = [anchors]
    if plan.near is not None:
        near = Part(plan.near, x.feats_near, x.codes_near, None, 0, x.points_near)
        if _alike(anchors, near):
            given = [anchors._replace(second=near)]
        else:
            given.append(near)
    if plan.far:
        given.append(Part(plan.far, x.feats_far, x.codes_far))
    if plan.other:
        given.append(Part(plan.other, None, x.codes_other, other_depth, behind))
    elif other_depth is not None:
        given.append(Part(0, None, None, other_depth, behind))
    if apart:
        given.append(Part(0, None, None, own_depth))
    kind = {"unit": POSITIVE, "normals": UNIT}.get(options.relation, PLAIN)
    for part in given:
        _, f, z, u, depth0, at, second = part
        bank = plan.banks[part.bank]
        f1, z1, at1 = (f, z, at) if second is None else (second.feats, second.codes, second.points)
        mode = ROWS_GIVEN if at is None else CELLS if at.ndim == 2 else COORDINATES
        block_c = power_of_two(max(64, plan.width_c))  # all channels, where registers hold them
        warps = max(4, block_c // (64 if mode == COORDINATES else 128))
        block_c, warps = (block_c, warps) if warps <= 8 else (64, 4)
        prepare_triton.prepare_kernel[(bank.images * (1 if second is None else 2), bank.tiles)](
            *(codes if t is None else t for t in (f, f1)), *_strides(f),
            *(codes if t is None else t for t in (z, z1)), *_strides(z),
            codes if u is None else u, *_strides(u), *(codes if t is None else t.contiguous() for t in (at, at1)),
            feats, codes, depth, inverse, sums, bank.images, bank.row0, bank.tile0, depth0,
            bank.points, plan.sizes.channels, plan.sizes.codes, plan.sizes.depth, plan.width_c,
            FEATURES=f is not None, CODES=z is not None, DEPTH=0 if u is None else kind, MODE=mode,
            ALIGN=options.align_corners, WHOLE=block_c >= plan.width_c, WIDTH_K=plan.width_k, BLOCK_P=PREPARE_POINTS,
            BLOCK_C=block_c, BLOCK_K=min(128, power_of_two(plan.width_k)),
            BLOCK_D=power_of_two(max(1, plan.sizes.depth)), num_warps=warps,
        )  # fmt: skip


def _alike(a: Part, b: Part) -> bool:
    """Whether one launch can prepare both banks: they differ in their addresses alone."""
    pairs = ((a.feats, b.feats), (a.codes, b.codes), (a.points, b.points))
    return all(
        x is y or (x is not None and y is not None and _layout(x) == _layout(y))
        for x, y in pairs
    )  # fmt: skip


def _layout(x: Tensor) -> tuple[Any, ...]:
    return x.dtype, x.shape, x.stride()


def _strides(x: Tensor | None) -> tuple[int, ...]:
    """Strides of image, channel, row and column, and the size: points given as they are lie in one row."""
    if x is None:
        return (0,) * 6
    if x.ndim == 4:
        return (*x.stride(), x.shape[2], x.shape[3])
    return x.stride(0), x.stride(2) if x.ndim == 3 else 0, 0, x.stride(1), 1, x.shape[1]


def backward(
    saved: Saved,
    sizes: Sizes,
    d_total: Tensor | None,  # []
    d_losses: Tensor | None,  # [4]
    codes: list[Tensor | None],  # of the four banks
    points: list[Tensor | None],  # of the first two
    weights: list[float],
    align_corners: bool,
) -> list[Tensor]:
    """Gradients of the codes of every bank, in their shapes; empty for a bank that is not given or needs none."""
    plan = make_plan(sizes)
    s = plan.sizes
    given = [(z, at) for z, at in zip(codes, [*points, None, None], strict=True) if z is not None]
    wanted = [s.grad, s.grad_near, s.grad_far, s.grad_other]
    wanted = [need for need, z in zip(wanted, codes, strict=True) if z is not None]
    maps = any(at is not None for _, at in given)
    columns = plan.width_k if maps else s.codes
    with on_device(saved.codes):
        at_points = [
            torch.empty(
                (bank.images, bank.points, columns) if need else 0,
                dtype=torch.float32 if maps else z.dtype, device=z.device,
            )
            for bank, need, (z, _) in zip(plan.banks, wanted, given, strict=True)
        ]  # fmt: skip
        _code_gradients(saved, plan, d_total, d_losses, weights, at_points, wanted, columns)
        found = _to_maps(at_points, given, wanted, align_corners) if maps else at_points
    places = iter(zip(found, wanted, strict=True))
    grads = []
    for z in codes:
        gradient, need = (saved.inverse, False) if z is None else next(places)
        grads.append(gradient if need else saved.inverse.new_empty(0))
    return grads


def _code_gradients(
    saved: Saved, plan: Plan, d_total: Tensor | None, d_losses: Tensor | None, weights: list[float],
    out: list[Tensor], wanted: list[bool], columns: int,
) -> None:  # fmt: skip
    table, factors, banks = tables(plan, saved.codes.device)
    tiles = sum(cdiv(bank.rows, GRADIENT_ROWS) for bank in plan.banks)
    finish_triton.code_gradient_kernel[(tiles,)](
        saved.rows, saved.codes, saved.inverse, table, banks, factors,
        factors if d_total is None else d_total, factors if d_losses is None else d_losses.contiguous(),
        *[out[min(i, len(out) - 1)] for i in range(BANKS)],
        plan.segments, sum(need << i for i, need in enumerate(wanted)), plan.width_k, columns, *weights,
        TOTAL=d_total is not None, LOSSES=d_losses is not None, FIELDS=FIELDS, BANKS=BANKS, BANK_FIELDS=BANK_FIELDS,
        BLOCK_P=GRADIENT_ROWS, BLOCK_K=min(128, power_of_two(plan.width_k)),
    )  # fmt: skip


def _to_maps(d: list[Tensor], given: list[tuple[Tensor, Any]], wanted: list[bool], align_corners: bool) -> list[Tensor]:
    """Gradients [N, P, width_k] at points as those of the maps that were read there; the rest in their own type."""
    out = list(d)
    for i, (z, at) in enumerate(given):
        if wanted[i]:
            out[i] = d[i][..., : z.shape[-1]].to(z.dtype).contiguous() if at is None else torch.empty_like(z)
    banks = [i for i, (_, at) in enumerate(given) if at is not None and wanted[i]]
    alike = len(banks) == 2 and all(
        _layout(x) == _layout(y) for x, y in ((out[0], out[1]), (given[0][1], given[1][1]))
    )  # fmt: skip
    for group in [banks] if alike else [[i] for i in banks]:
        first, last = group[0], group[-1]
        at = [given[i][1].contiguous() for i in (first, last)]
        images, k, height, width = out[first].shape
        block_k = min(64, max(16, power_of_two(k)))
        grid = cdiv(height * width, 64), len(group) * images, cdiv(k, block_k)
        finish_triton.scatter_kernel[grid](
            d[first], d[last], *at, out[first], out[last],
            *out[first].stride(), height, width, images, at[0].shape[1], k, d[first].shape[2],
            MODE=CELLS if at[0].ndim == 2 else COORDINATES, ALIGN=align_corners,
            BLOCK_CELLS=64, BLOCK_P=32, BLOCK_K=block_k,
        )  # fmt: skip
    return out
