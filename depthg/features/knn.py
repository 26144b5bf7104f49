"""Exact nearest neighbours of images by the cosine similarity of their mean features, in blocks with a running top-k.

The full similarity matrix is never stored. Vectors are processed in strips of ``STRIP`` rows. A pair of strips is
computed in tiles of ``TILE x TILE`` similarities, one matrix product each. Similarity is symmetric, so each tile is
computed once and serves both its rows and its columns. A tile changes a list only where a value exceeds the k-th best
so far, which soon becomes rare; see ``csrc/knn.h``.

The result follows the definition (sort every row of the similarity matrix, best first, ties to the lowest index) on
similarities computed in float32. Rounding depends on the order of summation in the matrix product, so two images whose
similarities differ by less than this rounding may change places. Equal similarities are ordered by index.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from depthg.features.transform import channel_dropout
from depthg.kernels import checks
from depthg.kernels._extension import native
from depthg.kernels.reference import normalize
from depthg.runtime.device import to_device

TILE = 512  # rows and columns of a tile: 1 MiB of similarities
DEVICE_TILE = 2048  # on a device: 16 MiB, and about 120 MiB while a tile is merged
STRIP = 32768  # rows of a strip; a multiple of TILE
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def unit_vectors(
    means: Tensor, dropout: float = 0.0, seed: int = 0, dtype: torch.dtype = torch.float32, first: int = 0
) -> Tensor:  # [V, C] -> [V, C]
    """Unit vectors of mean features, rounded to ``dtype``; ``first`` is the index of the first image.

    ``dropout`` first masks channels of the means. The released code masks them before it averages, which is the same,
    because a channel of an image is dropped as a whole. The masks depend on ``seed`` and ``first``.

    Raises:
        ValueError: a mean is NaN or infinite.
    """
    if not bool(means.isfinite().all()):
        bad = first + int((~means.isfinite().all(1)).nonzero()[0])
        raise ValueError(f"the mean features of image {bad} are not finite; check backbone.weights")
    state = np.random.SeedSequence([seed, first]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0]) >> 1)
    return normalize(channel_dropout(means[:, None].float(), dropout, generator)[:, 0]).to(dtype)


def nearest_neighbours(
    vectors: Tensor,  # [V, C] unit, on any device
    k: int,
    photos: Tensor | None = None,  # int64 [V]; views of one photo are never paired. None: only the view itself
    *,
    strip: int = STRIP,
    tile: int | None = None,
    impl: str = "auto",
) -> Tensor:  # int64 [V, k'] on the CPU
    """Indices of the k most similar other images, best first, ties to the lowest index; k' = min(k, those allowed).

    Args:
        vectors: float32, float16 or bfloat16; similarities are computed in float32.
        k: number of neighbours.
        photos: index of the photo of each view.
        strip, tile: rows of a strip and of a tile (tile None: ``TILE`` or ``DEVICE_TILE``); they bound the memory.
        impl: "cpp" (CPU), "eager" (any device), or "auto".

    Raises:
        ValueError: an image has no other image to be paired with, or ``impl`` is not available.
    """
    photos = torch.arange(len(vectors)) if photos is None else photos
    k, tile = allowed_k(k, photos), tile or tile_of(vectors.device)
    parts = strips(len(vectors), strip)
    lists = [TopK.empty(len(rows), k, vectors.device) for rows in parts]
    for a, b in strip_pairs(len(vectors), strip):
        pair = StripPair(_part(vectors, parts[a]), _part(vectors, parts[b]), parts[a], parts[b], photos)
        pair.run(lists[a], lists[b], tile, impl)
    return torch.cat([found.ids for found in lists]).cpu().long()


def allowed_k(k: int, photos: Tensor) -> int:
    """``k``, or the number of images that every image may be paired with, if that is smaller.

    Raises:
        ValueError: an image may not be paired with any other.
    """
    count = len(photos)
    allowed = count - int(photos.bincount().max()) if count else 0
    if allowed < 1:
        raise ValueError(f"{count} training images of {len(photos.unique())} photos leave none to pair; add photos")
    return min(k, allowed)


def strips(count: int, size: int = STRIP) -> list[range]:
    """Row range of every strip."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def tile_of(device: torch.device) -> int:
    """Default number of rows of a tile on a device."""
    return TILE if device.type == "cpu" else DEVICE_TILE


def strip_pairs(count: int, size: int = STRIP) -> list[tuple[int, int]]:
    """Every pair (a, b) of strips with a <= b."""
    n = len(strips(count, size))
    return [(a, b) for a in range(n) for b in range(a, n)]


def tile_count(rows: range, columns: range, tile: int = TILE) -> int:
    """Number of matrix products (tiles) between two strips, or within one."""
    a, b = -(-len(rows) // tile), -(-len(columns) // tile)
    return a * (a + 1) // 2 if rows == columns else a * b


def _part(x: Tensor, rows: range) -> Tensor:
    return x[rows.start : rows.stop]


class TopK:
    """The best values of every row so far and their indices: float32 and int32 ``[n, k]``, best first.

    Equal values are ordered by index. Unfilled places hold -inf and the largest int32.
    """

    def __init__(self, values: Tensor, ids: Tensor):
        self.values, self.ids = values, ids

    @classmethod
    def empty(cls, rows: int, k: int, device: torch.device | str = "cpu") -> TopK:
        values = torch.full((rows, k), -torch.inf, device=device)
        return cls(values, torch.full((rows, k), torch.iinfo(torch.int32).max, dtype=torch.int32, device=device))

    def part(self, rows: range) -> TopK:
        """A view of some rows."""
        return TopK(_part(self.values, rows), _part(self.ids, rows))

    def add(self, values: Tensor, ids: Tensor) -> None:  # float32 [n, m], int32 [n, m] or [m]
        """Merges more values and their indices into every row."""
        keys = torch.cat([_keys(self.values, self.ids), _keys(values, ids.expand(values.shape))], dim=1)
        best = keys.topk(self.values.shape[1], dim=1).values
        order = (best >> 32).int()
        self.ids.copy_(torch.iinfo(torch.int32).max - (best & 0xFFFFFFFF))
        self.values.copy_((order ^ ((order >> 31) & 0x7FFFFFFF)).view(torch.float32))


def _keys(values: Tensor, ids: Tensor) -> Tensor:  # int64
    """Sort keys in the order of (value, lower index first): monotonic bits of the float above the inverted index."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0: no -0
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    return (order << 32) | (torch.iinfo(torch.int32).max - ids.long())


class StripPair:
    """All similarities between the rows of two strips, or within one (``rows == columns``).

    Args:
        a, b: unit vectors ``[A, C]`` and ``[B, C]``.
        rows, columns: their indices among all images.
        photos: int64 [V], photo of each view.
    """

    def __init__(self, a: Tensor, b: Tensor, rows: range, columns: range, photos: Tensor):
        self.a, self.b, self.rows, self.columns = a, b, rows, columns
        own = (_part(photos, part).int().contiguous() for part in (rows, columns))
        self.photo_a, self.photo_b = (to_device(part, a.device) for part in own)

    def run(
        self, of_rows: TopK, of_columns: TopK, tile: int, impl: str, advance: Callable[[], None] = lambda: None
    ) -> None:
        """Merges every similarity into the lists of its row and its column; within a strip they are the same list."""
        compiled = checks.choose_impl(impl, self.a.device, cpp=checks.no_cpp()) == "cpp"
        merge = self._merge_native if compiled else self._merge_eager
        memory = torch.empty(tile * tile, device=self.a.device)
        for start in range(0, len(self.a), tile):
            i = range(start, min(start + tile, len(self.a)))
            x = _part(self.a, i).float()
            for other in range(start if self.rows == self.columns else 0, len(self.b), tile):
                j = range(other, min(other + tile, len(self.b)))
                similarity = memory[: len(i) * len(j)].view(len(i), len(j))
                torch.mm(x, _part(self.b, j).float().T, out=similarity)
                diagonal = self.rows == self.columns and i == j
                merge(similarity, i, j, of_rows.part(i), None if diagonal else of_columns.part(j))
                advance()

    def _merge_native(self, similarity: Tensor, i: range, j: range, of_rows: TopK, of_columns: TopK | None) -> None:
        job = native.KnnTile()
        job.rows, job.columns, job.k = len(i), len(j), of_rows.values.shape[1]
        job.first_row, job.first_column = self.rows.start + i.start, self.columns.start + j.start
        job.similarity = similarity.data_ptr()
        job.photo_row, job.photo_column = _part(self.photo_a, i).data_ptr(), _part(self.photo_b, j).data_ptr()
        job.row_values, job.row_ids = of_rows.values.data_ptr(), of_rows.ids.data_ptr()
        if of_columns is not None:
            job.column_values, job.column_ids = of_columns.values.data_ptr(), of_columns.ids.data_ptr()
        native.knn_tile(job, torch.get_num_threads())

    def _merge_eager(self, similarity: Tensor, i: range, j: range, of_rows: TopK, of_columns: TopK | None) -> None:
        similarity.masked_fill_(_part(self.photo_a, i)[:, None] == _part(self.photo_b, j)[None], -torch.inf)
        place = torch.arange(max(len(i), len(j)), dtype=torch.int32, device=similarity.device)
        of_rows.add(similarity, place[: len(j)] + self.columns.start + j.start)
        if of_columns is not None:
            of_columns.add(similarity.T, place[: len(i)] + self.rows.start + i.start)
