"""The bytes that the CRF compares, against the released code's arithmetic done step by step in torch."""

import numpy as np
import pytest
import torch

from depthg.inference.crf_image import crf_image


def released(image):
    """uint8 [H, W, 3]: to [0, 1], normalised, back, times 255, truncated; each step in float32."""
    x = torch.from_numpy(image).permute(2, 0, 1).float().div(255)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = x.sub(mean.view(3, 1, 1)).div(std.view(3, 1, 1))
    for channel, (m, s) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        x[channel].mul_(s).add_(m)
    return x.mul(255).byte().permute(1, 2, 0).numpy()


def test_every_byte_of_every_channel_is_that_of_the_released_code():
    image = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    found, expected = crf_image(image, "released"), released(image)
    assert found.dtype == np.uint8 and np.array_equal(found, expected)
    lower = image.astype(int) - found
    assert set(np.unique(lower)) == {0, 1}, "some bytes are one lower, none is higher"
    assert lower.reshape(256, 3).sum(0).tolist() == [62, 39, 36]


def test_channels_are_not_mixed_and_photos_are_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    found = crf_image(image, "released")
    assert np.array_equal(found, released(image)) and found.flags.c_contiguous and not np.array_equal(found, image)
    assert crf_image(image, "photo") is image
    with pytest.raises(ValueError, match="crf_image='paper' is not one of photo, released"):
        crf_image(image, "paper")
