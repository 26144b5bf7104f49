"""Dense CRF on the CPU: mean field with Gaussian edge potentials, filtered on the permutohedral lattice.

The contract and the equations stand in ``csrc/crf.h``, the definition in ``reference_crf.dense_crf``.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthg.kernels import reference_crf
from depthg.kernels._extension import native
from depthg.kernels.checks import choose_impl, no_cpp
from depthg.kernels.reference_crf import CrfSettings

KEPT_BYTES = 256 * 2**20  # of memory that a thread keeps for its next call
MOST_PIXELS = 2**28
MOST_CLASSES = 2**15 - 1  # of all terms; ids are int16
MOST_EAGER_PIXELS = 2**14  # the definition holds a matrix over pairs of pixels: 1 GiB
DEFAULT = CrfSettings()
Array = TypeVar("Array", Tensor, NDArray[Any])

_kept = threading.local()


@overload
def dense_crf(
    unary: Array, image: Tensor | NDArray[Any], settings: CrfSettings = ..., *, ids: bool = ..., impl: str = ...
) -> Array: ...


@overload
def dense_crf(
    unary: Sequence[Array], image: Tensor | NDArray[Any], settings: CrfSettings = ..., *, ids: bool = ...,
    impl: str = ...,
) -> list[Array]: ...  # fmt: skip


def dense_crf(
    unary: Any,  # float32 [L, H, W] or [B, L, H, W], or several
    image: Any,  # uint8 [H, W, 3] or [B, H, W, 3]
    settings: CrfSettings = DEFAULT,
    *,
    ids: bool = False,
    impl: str = "auto",
) -> Any:
    """Marginals of a dense CRF with Potts compatibility after mean-field iterations (Krähenbühl and Koltun, 2011).

    ``Q = softmax(-unary)``, then ``iterations`` times ``Q = softmax(-unary + sum_k w_k N_k K_k N_k Q)`` with a spatial
    and a bilateral Gaussian kernel K_k and ``N_k = diag(1 / sqrt(K_k 1))``. Several unary terms of one image are
    filtered together, each with its own softmax; that is faster than a call for each. One class has probability 1.

    The compiled code filters on the permutohedral lattice (Adams, Baek and Davis, 2010) and gives the same bits for any
    number of threads and any instruction set. It runs on as many threads as torch is set to and keeps up to 256 MiB for
    the next call of its thread. ``impl="eager"`` sums over all pairs of pixels, for images of at most 16,384.

    Args:
        unary: ``-log p``, floating point ``[L, H, W]`` or ``[B, L, H, W]``, finite, a tensor on the CPU or an array; or
            a sequence of them, whose numbers of classes L may differ.
        image: RGB, uint8 ``[H, W, 3]`` or ``[B, H, W, 3]``, a tensor on the CPU or an array.
        settings: kernels and iterations.
        ids: return the arg-max over classes, ties to the lowest, instead of marginals.
        impl: "cpp", "eager", or "auto".

    Returns:
        Marginals float32 of the shape of ``unary``, or ids int16 ``[H, W]`` or ``[B, H, W]``; tensors for tensors,
        arrays for arrays, a list for a sequence.

    Raises:
        TypeError: something is no tensor or array, or has another dtype.
        ValueError: shapes that do not belong together, no class or pixel, unary values that are not finite, tensors on
            a device or with gradients, settings out of range, an image too large for "eager", or an ``impl`` that
            cannot run here.
    """
    single = not isinstance(unary, (list, tuple))
    given = [unary] if single else list(unary)
    pixels, terms = _check(given, image)
    _check_settings(settings, tuple(pixels.shape[1:3]))
    run = _eager if choose_impl(impl, torch.device("cpu"), cpp=no_cpp()) == "eager" else _compiled
    found: list[Any] = run(terms, pixels, settings, ids)
    if image.ndim == 3:
        found = [x[0] for x in found]
    found = [x if isinstance(term, Tensor) else x.numpy() for x, term in zip(found, given, strict=True)]
    return found[0] if single else found


def _compiled(terms: list[Tensor], image: Tensor, settings: CrfSettings, ids: bool) -> list[Tensor]:
    """Terms float32 [B, L, H, W], image uint8 [B, H, W, 3], both contiguous."""
    size = image.shape[:3]
    out = [torch.empty(size if ids else x.shape, dtype=torch.int16 if ids else torch.float32) for x in terms]
    addresses, nothing = [x.data_ptr() for x in out], [0] * len(out)
    kernels = [
        (settings.gaussian_weight, settings.gaussian_sxy, 0.0),
        (settings.bilateral_weight, settings.bilateral_sxy, settings.bilateral_srgb),
    ]
    memory = _kept.__dict__.pop("memory", None) or native.CrfMemory()
    native.dense_crf(
        size, image.data_ptr(), [x.shape[1] for x in terms], [x.data_ptr() for x in terms],
        nothing if ids else addresses, addresses if ids else nothing, kernels, int(settings.iterations), memory,
        torch.get_num_threads(),
    )  # fmt: skip
    if memory.bytes() <= KEPT_BYTES:
        _kept.memory = memory
    return out


def forget_memory() -> None:
    """Frees what the calling thread keeps for its next call."""
    _kept.__dict__.pop("memory", None)


def _eager(terms: list[Tensor], image: Tensor, settings: CrfSettings, ids: bool) -> list[Tensor]:
    """The definition, image by image."""
    if image.shape[1] * image.shape[2] > MOST_EAGER_PIXELS:
        raise ValueError(
            f"impl='eager' sums over all pairs of pixels and takes images of at most {MOST_EAGER_PIXELS} pixels, got "
            f"{image.shape[1]} x {image.shape[2]}; install with DEPTHG_BUILD=cpu and use impl='auto'"
        )
    found = []
    for term in terms:
        marginals = torch.empty_like(term)
        for number, energy in enumerate(term):
            marginals[number] = reference_crf.dense_crf(energy, image[number], settings)
        found.append(marginals.argmax(1).to(torch.int16) if ids else marginals)
    return found


# Checks


def _tensor(name: str, x: Any) -> Tensor:
    """Memory of a tensor or an array as a tensor."""
    if isinstance(x, np.ndarray):
        return torch.from_numpy(x if x.flags.writeable and min(x.strides, default=0) >= 0 else x.copy())
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor or an array, got {type(x).__name__}")
    if x.device.type != "cpu":
        raise ValueError(f"{name} is on {x.device}, but the CRF runs on the CPU; pass {name}.cpu()")
    if x.requires_grad:
        raise ValueError(f"{name} requires grad, but the CRF has no gradient; pass {name}.detach()")
    return x


def _check(given: list[Any], image: Any) -> tuple[Tensor, list[Tensor]]:
    """The image uint8 [B, H, W, 3] and the terms float32 [B, L, H, W], contiguous and fitting each other."""
    if not given:
        raise ValueError("unary is an empty sequence; pass at least one unary term")
    pixels = _tensor("image", image)
    if pixels.dtype != torch.uint8:
        raise TypeError(f"image must be uint8, got {pixels.dtype}; colours are in 0..255")
    shape = list(pixels.shape)
    if len(shape) not in (3, 4) or shape[-1] != 3 or 0 in shape[-3:] or math.prod(shape[-3:-1]) > MOST_PIXELS:
        raise ValueError(
            f"image must be [H, W, 3] or [B, H, W, 3] with at least one pixel and at most {MOST_PIXELS}, got {shape}"
        )
    terms = []
    for i, x in enumerate(given):
        name = "unary" if len(given) == 1 else f"unary[{i}]"
        term = _tensor(name, x)
        if not term.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {term.dtype}; call {name}.float()")
        wanted = [*shape[:-3], "L", *shape[-3:-1]]
        if term.ndim != len(shape) or [*term.shape[:-3], "L", *term.shape[-2:]] != wanted or not term.shape[-3]:
            raise ValueError(
                f"{name} {list(term.shape)} does not fit the image {shape}: it must be [{', '.join(map(str, wanted))}] "
                "with at least one class L"
            )
        term = term.float()
        if term.numel() and not all(bool(limit.isfinite()) for limit in torch.aminmax(term)):
            raise ValueError(
                f"{name} holds values that are not finite in float32; give a class of probability 0 a small one instead"
            )
        terms.append(term.reshape(-1, *term.shape[-3:]).contiguous())
    if sum(x.shape[1] for x in terms) > MOST_CLASSES:
        raise ValueError(f"all terms together must have at most {MOST_CLASSES} classes")
    return pixels.reshape(-1, *shape[-3:]).contiguous(), terms


def _check_settings(settings: CrfSettings, size: tuple[int, ...]) -> None:
    if not isinstance(settings, CrfSettings):
        raise TypeError(f"settings must be CrfSettings, got {type(settings).__name__}")
    s = settings
    if isinstance(s.iterations, bool) or not isinstance(s.iterations, (int, np.integer)):
        raise TypeError(f"iterations must be an integer, got {s.iterations!r}")
    if not 0 <= s.iterations < 2**31:
        raise ValueError(f"iterations must be at least 0, got {s.iterations}")
    for name in ("gaussian_weight", "bilateral_weight"):
        if not 0 <= getattr(s, name) <= 1e18:
            raise ValueError(f"{name} must be between 0 and 1e18, got {getattr(s, name)}; 0 leaves the kernel out")
    for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
        if not 1e-18 <= getattr(s, name) <= 1e18:
            raise ValueError(f"{name} must be between 1e-18 and 1e18, got {getattr(s, name)}")
    for name, kernel in (
        ("gaussian_sxy", (s.gaussian_weight, s.gaussian_sxy, 0.0)),
        ("bilateral_sxy or bilateral_srgb", (s.bilateral_weight, s.bilateral_sxy, s.bilateral_srgb)),
    ):
        if native is not None and kernel[0] > 0 and not native.dense_crf_fits(*size, kernel):
            raise ValueError(
                f"{name} is too small for an image of {size[0]} x {size[1]}: {kernel[1:]}; no two pixels would be "
                "neighbours, so give the kernel weight 0"
            )
