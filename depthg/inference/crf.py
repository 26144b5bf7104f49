"""Dense CRF on the log-probabilities of the probes (Krähenbühl and Koltun, 2011), filtered by pydensecrf2.

Worker processes import this module, so it imports only numpy; pydensecrf2 (the extra ``crf``) is imported on use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ALPHA = 2.0  # the cluster probe's softmax: log-softmax of 2 cos (protocol, section 4)


@dataclass(frozen=True)
class CrfSettings:
    """Pairwise Potts energy of the paper: ``w_g exp(-d^2 / 2 s_g^2) + w_b exp(-d^2 / 2 s_xy^2 - c^2 / 2 s_rgb^2)``.

    ``d`` is the distance of two pixels, ``c`` the distance of their colours in 0..255. The unary term is -log p with
    p of at least ``least_probability``, as in the released evaluation.
    """

    iterations: int = 10
    gaussian_sxy: float = 1.0  # pixels
    gaussian_weight: float = 3.0
    bilateral_sxy: float = 67.0  # pixels
    bilateral_srgb: float = 3.0
    bilateral_weight: float = 4.0
    least_probability: float = 1e-5


def check_available() -> None:
    """Raises ImportError with installation advice if pydensecrf2 is missing."""
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "the CRF needs pydensecrf2: python -m pip install 'depthg[crf]' (a C++ compiler and Python up to 3.12; "
            f"{error})"
        ) from error


def refine(
    image: np.ndarray,  # uint8 [H, W, 3]
    log_probabilities: Sequence[np.ndarray],  # float32 [n, H, W] each
    settings: CrfSettings = CrfSettings(),
) -> list[np.ndarray]:  # float32 [n, H, W] each
    """Mean-field marginals of an image for each of several unary terms ``-log p``.

    The lattice depends only on the image: it is built once for all terms with the same number of classes.

    Args:
        image: the photo, RGB.
        log_probabilities: one array per read-out; the number of classes may differ.
        settings: kernels and iterations.

    Raises:
        ImportError: pydensecrf2 is missing.
        ValueError: the image is not uint8 [H, W, 3], or a term has another size, one class or non-finite values.
    """
    check_available()
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the CRF needs an image uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    lattices: dict[int, Any] = {}
    found = []
    for term in log_probabilities:
        n = term.shape[0]
        if term.ndim != 3 or term.shape[1:] != image.shape[:2] or n < 2:
            raise ValueError(
                f"log-probabilities {list(term.shape)} do not fit the image {list(image.shape)}; expected [n, H, W]"
            )
        unary = np.ascontiguousarray(-term.reshape(n, -1), dtype=np.float32)
        if not np.isfinite(unary).all():
            raise ValueError("log-probabilities must be finite; give a class of probability 0 a small one instead")
        if n not in lattices:
            lattices[n] = _lattice(image, n, settings)
        lattices[n].setUnaryEnergy(unary)
        found.append(np.asarray(lattices[n].inference(settings.iterations)).reshape(n, *image.shape[:2]))
    return found


def _lattice(image: np.ndarray, n: int, settings: CrfSettings):
    """A pydensecrf DenseCRF2D with the pairwise filters of an image and no unary term."""
    from pydensecrf.densecrf import DenseCRF2D

    height, width = image.shape[:2]
    crf = DenseCRF2D(width, height, n)
    crf.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_weight)
    crf.addPairwiseBilateral(
        sxy=settings.bilateral_sxy,
        srgb=settings.bilateral_srgb,
        rgbim=np.ascontiguousarray(image[:, :, ::-1]),  # BGR, as in the released code
        compat=settings.bilateral_weight,
    )
    return crf


# ---- unary terms from maps at feature resolution


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


def crf_ids(
    image: np.ndarray,  # uint8 [H, W, 3]
    maps: Mapping[str, np.ndarray],
    settings: CrfSettings = CrfSettings(),
) -> dict[str, np.ndarray]:  # int16 [H, W]
    """Most probable class of every pixel after the CRF, per probe; ``maps`` as in :func:`probe_log_probabilities`."""
    terms = probe_log_probabilities(maps, image.shape[:2])
    least = np.float32(np.log(settings.least_probability))
    marginals = refine(image, [np.maximum(term, least, out=term) for term in terms.values()], settings)
    # pydensecrf stores the classes of a pixel contiguously, so this arg-max reads contiguous values.
    return {name: q.transpose(1, 2, 0).argmax(2).astype(np.int16) for name, q in zip(terms, marginals, strict=True)}
