"""Dense CRF on the log-probabilities of the probes (Krähenbühl and Koltun, 2011); the filter is in ``kernels``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from depthg.kernels import dense_crf
from depthg.kernels.checks import no_cpp

ALPHA = 2.0  # the cluster probe's softmax: log-softmax of 2 cos (protocol, section 4)
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
    return _up_rows(maps, size[0]) @ _column_weights(maps.shape[2], size[1])


def cosines(codes: np.ndarray, centroids: np.ndarray, size: tuple[int, int]) -> np.ndarray:  # float32 [n, H, W]
    """Cosine of bilinearly up-sampled codes ``[K, h, w]`` with unit centroids ``[n, K]``.

    The up-sampled codes are never formed at full size. Dot products commute with up-sampling, and along a row, between
    the neighbours ``a`` and ``b``, ``|(1 - t) a + t b|^2 = (1 - t)^2 |a|^2 + 2 t (1 - t) a . b + t^2 |b|^2``.
    """
    rows = _up_rows(codes, size[0])  # [K, H, w]
    dots = np.tensordot(centroids.astype(np.float32), rows, 1) @ _column_weights(rows.shape[2], size[1])
    low, high, t = _taps(rows.shape[2], size[1])
    square = np.square(rows).sum(0)
    product = np.einsum("khw,khw->hw", rows, rows[:, :, np.minimum(np.arange(rows.shape[2]) + 1, rows.shape[2] - 1)])
    length = (1 - t) ** 2 * square[:, low] + 2 * t * (1 - t) * product[:, low] + t**2 * square[:, high]
    dots /= np.maximum(np.sqrt(np.maximum(length, 0)), 1e-12)
    return np.clip(dots, -1, 1, out=dots)


def log_softmax(scores: np.ndarray) -> np.ndarray:  # [n, H, W], changed in place
    """Log-softmax over the first axis, in place."""
    scores -= scores.max(0)
    scores -= np.log(np.exp(scores).sum(0))
    return scores


def _taps(cells: int, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower neighbour, upper neighbour and weight of the upper one for every output position, each ``[pixels]``."""
    at = np.maximum((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5, 0)
    low = np.minimum(at.astype(np.int64), cells - 1)
    return low, np.minimum(low + 1, cells - 1), (at - low).astype(np.float32)


def _up_rows(maps: np.ndarray, height: int) -> np.ndarray:  # [n, h, w] -> float32 [n, H, w]
    maps = maps.astype(np.float32, copy=False)
    low, high, share = _taps(maps.shape[1], height)
    share = share[:, None]
    return maps[:, low] * (1 - share) + maps[:, high] * share


def _column_weights(cells: int, width: int) -> np.ndarray:  # float32 [w, W]
    low, high, share = _taps(cells, width)
    weights = np.zeros((cells, width), np.float32)
    np.add.at(weights, (low, np.arange(width)), 1 - share)
    np.add.at(weights, (high, np.arange(width)), share)
    return weights


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
