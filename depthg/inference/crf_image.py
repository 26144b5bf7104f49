"""The bytes of a photo that the CRF compares: the photo's own, or those that the released code computes."""

from __future__ import annotations

import functools

import numpy as np

from depthg.backbones.vit import IMAGENET_MEAN, IMAGENET_STD

CRF_IMAGES = ("photo", "released")


def crf_image(image: np.ndarray, kind: str) -> np.ndarray:  # uint8 [H, W, 3] -> the same
    """The image for the CRF.

    Args:
        image: the photo, RGB, uint8 [H, W, 3].
        kind: "photo" (unchanged) or "released": each byte after the normalisation of the network's input and back,
            `((x / 255 - mean) / std * std + mean) * 255` in float32, truncated. Some bytes are one lower.

    Raises:
        ValueError: another kind.
    """
    if kind not in CRF_IMAGES:
        raise ValueError(f"crf_image={kind!r} is not one of {', '.join(CRF_IMAGES)}")
    if kind == "photo":
        return image
    return np.stack([row[image[:, :, channel]] for channel, row in enumerate(_released_bytes())], axis=2)


@functools.cache
def _released_bytes() -> np.ndarray:  # uint8 [3, 256]
    mean, std = (np.array(values, np.float32)[:, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    normalised = (np.arange(256, dtype=np.float32) / np.float32(255) - mean) / std
    return ((normalised * std + mean) * np.float32(255)).astype(np.uint8)
