"""The work list of the Triton losses: which banks and segments a call has, where their rows lie, and the tile sizes.

A plan depends on sizes and options alone. It is made once for each and kept, with its tables on the device, so a step
in steady state builds nothing and copies nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from depthg.kernels.launch_triton import cdiv
from depthg.kernels.prepare_triton import BANKS
from depthg.kernels.tiles_triton import (
    BIAS_BOTH,
    BIAS_COLUMNS,
    BIAS_ROWS,
    DRAWN,
    FIELDS,
    INVERSE,
    NEVER,
    SAME,
    SEGMENTS,
)

SELF, NEIGHBOUR, NEGATIVE, DEPTH = range(4)
HALF, TF32, TF32X3 = range(3)
POINTS = 64  # of a tile of the main launch
PROGRAMS = 2048  # limit up to which each draw of an image gets its own program
PREPARE_POINTS = 8  # of a tile of ``prepare_kernel``
GRADIENT_ROWS = 8  # of a tile of ``code_gradient_kernel``


class Sizes(NamedTuple):
    """What a call compares. Sizes of banks that are not given are 0."""

    anchors: int  # N
    points: int  # P
    channels: int  # C, 0 without features
    codes: int  # K
    near_points: int  # Q, 0: no neighbour term
    far_images: int  # M of a bank of negatives, 0: the anchors
    far_points: int
    draws: int  # R, 0: no negatives
    other_points: int  # of the other crop, 0: the anchors
    own: bool  # self term
    depth: int  # D, 0: no depth term
    depth_other: bool  # depth of side b differs from that of side a
    grad: bool
    grad_near: bool
    grad_far: bool
    grad_other: bool
    products: int  # HALF, TF32 or TF32X3: how the widest of the vectors are multiplied
    arch: int  # of the device: 90 for sm_90; 0 in the interpreter


class Bank(NamedTuple):
    """Images stored one after another, and where their rows, mean vectors and tiles of sums begin."""

    images: int
    points: int
    row0: int
    image0: int
    tile0: int

    @property
    def tiles(self) -> int:
        return cdiv(self.points, PREPARE_POINTS)

    @property
    def rows(self) -> int:
        return self.images * self.points


@dataclass(frozen=True)
class Plan:
    """Everything about a call that its sizes and options decide."""

    sizes: Sizes
    banks: tuple[Bank, ...]  # anchors, then those given of neighbours, negatives and the other crop
    near: int | None  # position in ``banks``, as the next two; 0, the anchors, for a bank that is not given
    far: int
    other: int
    split_k: tuple[int, int, int]  # K0, K1 and blocks of ``split_codes``
    width_c: int  # of packed rows of features
    tile: dict[str, int]  # BLOCK_P, BLOCK_Q, BLOCK_C, num_warps, num_stages of the main launch
    programs: int
    segments: int
    slots: int  # rows of gradients over all segments
    table: tuple[tuple[int, ...], ...]
    factors: tuple[tuple[float, float], ...]
    kept: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)  # its tables

    @cached_property
    def width_k(self) -> int:
        """Of packed rows of codes and of rows of gradients."""
        k0, k1, blocks = self.split_k
        return (k0 + k1 if k1 > 1 else k0) * blocks

    @cached_property
    def rows(self) -> int:
        return self.banks[-1].row0 + self.banks[-1].rows

    @cached_property
    def images(self) -> int:
        return self.banks[-1].image0 + self.banks[-1].images

    @cached_property
    def feature_images(self) -> int:
        """Images before the other crop, which has codes alone."""
        return self.banks[self.other].image0 if self.other else self.images

    @cached_property
    def sums(self) -> int:
        """Tiles of ``prepare_kernel`` over all banks."""
        return self.banks[-1].tile0 + self.banks[-1].images * self.banks[-1].tiles

    @cached_property
    def bias_draws(self) -> int:
        """Draws with a bias: self, neighbour and negatives."""
        return self.sizes.own + (self.near is not None) + self.sizes.draws


def split_codes(channels: int) -> tuple[int, int, int]:
    """``(K0, K1, blocks)``: powers of two whose sum is at least the channels; K1 = 1 stands for none."""
    for k0, k1 in ((16, 1), (32, 1), (32, 16), (64, 1), (64, 16), (64, 32), (64, 64)):
        if channels <= k0 + (k1 if k1 > 1 else 0):
            return k0, k1, 1
    return 64, 1, cdiv(channels, 64)


def tile_sizes(products: int, arch: int, codes: int) -> dict[str, int]:
    """Tile of the main launch: the largest that compiles (nearly) without spills, as ``bench/compile.py`` measures."""
    if arch == 0:
        return {"BLOCK_P": POINTS // 2, "BLOCK_Q": 32, "BLOCK_C": 64}
    p, warps, new = POINTS, 8, arch // 10 in (9, 10)  # those that multiply whole tiles out of shared memory
    large = 96 < codes <= 128  # more run in blocks of 64
    if products == HALF:
        q, c = 64 if new else 32, 64
    elif products == TF32:
        q, c = 16 if large and not new else 32, 32
    elif arch // 10 == 9:
        q, c, warps = 16, 32, 4
    elif arch // 10 == 10:
        q, c = 32, 32
    elif large:
        p, q, c, warps = 32, 16, 32, 4
    else:
        q, c = 16, 16
    return {"BLOCK_P": p, "BLOCK_Q": q, "BLOCK_C": c, "num_warps": warps, "num_stages": 3}


class Segment(NamedTuple):
    """One term on one side: what the table says of it (see ``FIELDS`` in tiles_triton.py), and two factors."""

    first: int  # of its programs
    row0: int
    rows: int  # of an image
    images: int
    tiles: int  # of rows of an image
    splits: int  # programs that share the pairs of an image
    column0: int
    columns: int
    kind: int
    term: int
    out0: int  # first row of its gradients
    draw0: int  # first draw of its biases and constants
    bias: int
    depth: int
    u0: int  # first point of depth of the rows and of the columns
    v0: int
    alpha: float  # of its values; 0 on side b, where they are those of side a
    grad_alpha: float


@cache  # 2 KB a size; a captured CUDA graph holds addresses of its tables
def make_plan(s: Sizes) -> Plan:
    banks, near, far, other = place_banks(s)
    tile = tile_sizes(s.products, s.arch, s.codes)
    segments: list[Segment] = []
    for made in list_segments(s, banks, near, far, other, tile["BLOCK_P"]):
        last = segments[-1] if segments else None
        first = last.first + last.images * last.tiles * last.splits if last else 0
        out0 = last.out0 + last.images * last.rows * last.splits if last else 0
        segments.append(made._replace(first=first, out0=out0))
    last = segments[-1]
    filler = (NEVER, *[0] * (FIELDS - 1))
    return Plan(
        s, banks, near, far, other, split_codes(s.codes), cdiv(s.channels, 64) * 64, tile,
        last.first + last.images * last.tiles * last.splits, len(segments),
        last.out0 + last.images * last.rows * last.splits,
        tuple([tuple(map(int, made[:FIELDS])) for made in segments] + [filler] * (SEGMENTS - len(segments))),
        tuple((segment.alpha, segment.grad_alpha) for segment in segments),
    )  # fmt: skip


def place_banks(s: Sizes) -> tuple[tuple[Bank, ...], int | None, int, int]:
    """The banks one behind the other, and which are the neighbours', the negatives' and the other crop's."""
    banks = [Bank(s.anchors, s.points, 0, 0, 0)]

    def add(images: int, points: int) -> int:
        b = banks[-1]
        banks.append(Bank(images, points, b.row0 + b.rows, b.image0 + b.images, b.tile0 + b.images * b.tiles))
        return len(banks) - 1

    near = add(s.anchors, s.near_points) if s.near_points else None
    far = add(s.far_images, s.far_points) if s.far_images else 0
    other = add(s.anchors, s.other_points) if s.other_points else 0
    return tuple(banks), near, far, other


def list_segments(
    s: Sizes, banks: tuple[Bank, ...], near: int | None, far: int, other: int, block_p: int
) -> list[Segment]:
    """Segments in the order of launch, those of the longest programs first."""
    anchor, found = banks[0], []

    def add(term: int, a: Bank, b: Bank, kind: int, draw0: int, *, bias: int, splits: int = 1, value: bool = True,
            symmetric: bool = False, u0: int = 0, v0: int = 0) -> None:  # fmt: skip
        alpha = -1.0 / (anchor.images * a.points * b.points * (s.draws if term == NEGATIVE else 1))
        found.append(
            Segment(
                0, a.row0, a.points, a.images, cdiv(a.points, block_p), splits, b.row0, b.points, kind, term, 0,
                draw0, bias, int(term == DEPTH), u0, v0, alpha if value else 0.0, 2 * alpha if symmetric else alpha,
            )
        )  # fmt: skip

    if s.draws:
        bank, draw0 = banks[far], s.own + (near is not None)
        tiles = anchor.images * cdiv(anchor.points, block_p) + bank.images * cdiv(bank.points, block_p)
        splits = max(1, min(s.draws, PROGRAMS // tiles))
        add(NEGATIVE, anchor, bank, DRAWN, draw0, bias=BIAS_ROWS, splits=splits)
        if s.grad if far == 0 else s.grad_far:
            split = splits if bank.images <= anchor.images else 1
            add(NEGATIVE, bank, anchor, INVERSE, draw0, bias=BIAS_COLUMNS, splits=split, value=False)
    if near is not None:
        add(NEIGHBOUR, anchor, banks[near], SAME, int(s.own), bias=BIAS_ROWS)
        if s.grad_near:
            add(NEIGHBOUR, banks[near], anchor, SAME, int(s.own), bias=BIAS_COLUMNS, value=False)
    if s.own:
        add(SELF, anchor, anchor, SAME, 0, bias=BIAS_BOTH, symmetric=True)
    if s.depth:
        bank, draw0 = banks[other], s.own + (near is not None) + s.draws
        symmetric = other == 0 and not s.depth_other
        v0 = 0 if symmetric else anchor.rows
        add(DEPTH, anchor, bank, SAME, draw0, bias=BIAS_ROWS, symmetric=symmetric, v0=v0)
        if not symmetric and (s.grad if other == 0 else s.grad_other):
            add(DEPTH, bank, anchor, SAME, draw0, bias=BIAS_ROWS, u0=v0, value=False)
    return found


def tables(plan: Plan, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Segments [SEGMENTS, FIELDS] int64, their factors [segments, 2] float32 and the banks int64, on the device."""
    found = plan.kept.get(device)
    if found is None:
        found = plan.kept[device] = make_tables(plan, device)
    return found


def make_tables(plan: Plan, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    banks: list[tuple[int, ...]] = []
    for b in plan.banks:
        tile0 = sum(cdiv(other.rows, GRADIENT_ROWS) for other in plan.banks[: len(banks)])
        banks.append((b.image0, b.points, b.tile0, b.tiles, b.row0, b.rows, tile0, 0))
    banks += [(NEVER, 0, 0, 0, 0, 0, NEVER, 0)] * (BANKS - len(banks))
    return (
        torch.tensor(plan.table, dtype=torch.int64, device=device),
        torch.tensor(plan.factors, dtype=torch.float32, device=device),
        torch.tensor(banks, dtype=torch.int64, device=device),
    )
