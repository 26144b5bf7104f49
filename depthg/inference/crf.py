"""Dense CRF on the log-probabilities of the probes (Krähenbühl and Koltun, 2011); the filter is in ``kernels``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from depthg.kernels import dense_crf
from depthg.kernels.checks import no_cpp

ALPHA = 2.0  # the cluster probe's softmax: log-softmax of 2 cos (protocol, section 4)
ROWS, COLUMNS = 64, 512  # of a result that are computed at a time
LEAST_PROBABILITY = 1e-5  # of a class before the CRF, as in the released evaluation

Maps = Mapping[str, np.ndarray]


def available() -> bool:
    """Whether the compiled code is installed; the definition alone takes no photo."""
    return no_cpp() is None


def wanted(given: bool | None) -> bool:
    """Whether to refine photos: as given, or None for yes where the CRF is available.

    Raises:
        ImportError: it is asked for and not available.
    """
    if given:
        check_available()
    return available() if given is None else given


def check_available() -> None:
    """Raises ImportError with installation advice unless the CRF is available."""
    if reason := no_cpp():
        raise ImportError(f"the CRF {reason}; install depthg where a C++ compiler is present, or leave the CRF out")


def probe_log_probabilities(
    maps: Mapping[str, np.ndarray], size: tuple[int, int]
) -> dict[str, np.ndarray]:  # float32 [n, H, W]
    """Log-probabilities of probes at size (H, W), from maps at feature resolution.

    Args:
        maps: for each probe either ``NAME.scores`` ``[n, h, w]`` (gives the log-softmax of the up-sampled scores), or
            ``NAME.codes`` ``[K, h, w]`` with ``NAME.centroids`` ``[n, K]`` (log-softmax of twice the cosine).
        size: height H and width W.
    """
    found = {}
    for key, value in maps.items():
        name, _, kind = key.rpartition(".")
        if kind == "scores":
            found[name] = log_softmax(upsample(value, size))
        elif kind == "codes":
            found[name] = log_softmax(ALPHA * cosines(value, maps[f"{name}.centroids"], size))
    return found


def upsample(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:  # [n, h, w] -> float32 [n, H, W]
    """Bilinear up-sampling with ``align_corners=False``."""
    return _up_columns(_up_rows(maps, size[0]), size[1])


def cosines(codes: np.ndarray, centroids: np.ndarray, size: tuple[int, int]) -> np.ndarray:  # float32 [n, H, W]
    """Cosine of bilinearly up-sampled codes ``[K, h, w]`` with unit centroids ``[n, K]``.

    The up-sampled codes are never formed at full size. Dot products commute with up-sampling, and along a row, between
    the neighbours ``a`` and ``b``, ``|(1 - t) a + t b|^2 = (1 - t)^2 |a|^2 + 2 t (1 - t) a . b + t^2 |b|^2``.
    """
    out = np.empty((len(centroids), *size), np.float32)
    for start in range(0, size[0], ROWS):
        rows = start, min(start + ROWS, size[0])
        out[:, rows[0] : rows[1]] = cosine_rows(codes, centroids, size, rows, 0, codes.shape[1])
    return out


def cosine_rows(
    codes: np.ndarray,  # [K, rows, w]
    centroids: np.ndarray,  # [n, K]
    size: tuple[int, int],
    rows: tuple[int, int],
    first: int,
    cells: int,
) -> np.ndarray:  # float32 [n, stop - start, W]
    """The rows ``rows`` = (start, stop) of :func:`cosines`.

    Args:
        codes: the rows from ``first`` on of codes of ``cells`` rows, at least those that the result lies between.
        centroids: of length 1.
        size: height H and width W of the whole.
        rows: the same blocks give the same bits; others may differ in the last one.
        first, cells: see ``codes``.
    """
    tall = _up_rows(codes, size[0], rows, first, cells)  # [K, stop - start, w]
    dots = _up_columns(np.tensordot(centroids.astype(np.float32), tall, 1), size[1])
    low, high, t = _taps(tall.shape[2], size[1])
    square = np.square(tall).sum(0)
    product = np.einsum("khw,khw->hw", tall, tall[:, :, np.minimum(np.arange(tall.shape[2]) + 1, tall.shape[2] - 1)])
    length = (1 - t) ** 2 * square[:, low] + 2 * t * (1 - t) * product[:, low] + t**2 * square[:, high]
    dots /= np.maximum(np.sqrt(np.maximum(length, 0)), 1e-12)
    return np.clip(dots, -1, 1, out=dots)


def log_softmax(scores: np.ndarray) -> np.ndarray:  # [n, H, W], changed in place
    """Log-softmax over the first axis, in place."""
    for start in range(0, scores.shape[1], ROWS):
        part = scores[:, start : start + ROWS]
        part -= part.max(0)
        part -= np.log(np.exp(part).sum(0))
    return scores


def _taps(cells: int, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower neighbour, upper neighbour and weight of the upper one for every output position, each ``[pixels]``."""
    at = np.maximum((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5, 0)
    low = np.minimum(at.astype(np.int64), cells - 1)
    return low, np.minimum(low + 1, cells - 1), (at - low).astype(np.float32)


def _up_rows(
    maps: np.ndarray, height: int, rows: tuple[int, int] | None = None, first: int = 0, cells: int | None = None
) -> np.ndarray:  # [n, h, w] -> float32 [n, H, w], or [n, stop - start, w]; arguments as `cosine_rows`
    maps = maps.astype(np.float32, copy=False)
    low, high, share = _taps(maps.shape[1] if cells is None else cells, height)
    if rows is not None:
        low, high, share = (x[rows[0] : rows[1]] for x in (low - first, high - first, share))
    share = share[:, None]
    return maps[:, low] * (1 - share) + maps[:, high] * share


def _up_columns(values: np.ndarray, width: int) -> np.ndarray:  # float32 [n, H, w] -> [n, H, W]
    """By products with the weights of ``COLUMNS`` columns at a time, which are zero but for two cells a column."""
    low, high, share = _taps(values.shape[2], width)
    out = np.empty((*values.shape[:2], width), np.float32)
    for start in range(0, width, COLUMNS):
        part = slice(start, min(start + COLUMNS, width))
        first, last = low[part][0], high[part][-1]
        weights = np.zeros((last + 1 - first, part.stop - start), np.float32)
        np.add.at(weights, (low[part] - first, np.arange(part.stop - start)), 1 - share[part])
        np.add.at(weights, (high[part] - first, np.arange(part.stop - start)), share[part])
        np.matmul(values[:, :, first : last + 1], weights, out=out[:, :, part])
    return out


def crf_ids(image: np.ndarray, maps: Maps) -> dict[str, np.ndarray]:  # uint8 [H, W, 3] -> int16 [H, W]
    """Most probable class of every pixel after the CRF, per probe; ``maps`` as in :func:`probe_log_probabilities`."""
    return crf_ids_of_images([(image, maps)])[0]


def crf_ids_of_images(
    jobs: Sequence[tuple[np.ndarray, Maps]], threads: int | None = None
) -> list[dict[str, np.ndarray]]:
    """:func:`crf_ids` of images of one size with the same probes, filtered together, which is faster.

    A class has a probability of at least ``LEAST_PROBABILITY`` before. ``threads``: None for those of torch.
    """
    least, before = np.float32(np.log(LEAST_PROBABILITY)), torch.get_num_threads()
    terms = [probe_log_probabilities(maps, image.shape[:2]) for image, maps in jobs]
    for term in (term for own in terms for term in own.values()):  # in place: a street frame's take a quarter of a GB
        np.negative(np.maximum(term, least, out=term), out=term)
    unary = [terms[0][name][None] if len(jobs) == 1 else np.stack([own[name] for own in terms]) for name in terms[0]]
    images = np.stack([image for image, _ in jobs])
    try:
        if threads not in (None, before):
            torch.set_num_threads(threads)
        found = dense_crf(unary, images, ids=True)
    finally:
        if threads not in (None, before):
            torch.set_num_threads(before)
    return [dict(zip(terms[0], ids, strict=True)) for ids in zip(*found, strict=True)]
