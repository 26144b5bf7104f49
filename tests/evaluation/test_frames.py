"""Frames: crops are those of training's evaluation, full frames keep photo and label, batches lose nothing."""

import numpy as np
import pytest
import torch

from depthg.data.files import DataError
from depthg.data.transforms import Views
from depthg.evaluation.frames import FULL, batches, load_frames


class Photos:
    """A split of random photos of given sizes; counts how often a photo is decoded."""

    def __init__(self, *sizes, labelled=True):
        rng = np.random.default_rng(0)
        self.photos = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
        self.labels = [rng.integers(-1, 4, size) if labelled else None for size in sizes]
        self.names, self.decoded = [f"photo {i}" for i in range(len(sizes))], 0

    def __len__(self):
        return len(self.photos)

    def image(self, index):
        self.decoded += 1
        return self.photos[index]

    def label(self, index):
        return self.labels[index]


@pytest.mark.parametrize("interpolation", ["antialias", "nearest"])
def test_a_crop_is_the_view_of_training_and_decoding_happens_once(interpolation):
    split = Photos((50, 70))
    crop, other, full = load_frames(split, 0, [(32, 32), (48, 64), FULL], 16, interpolation)
    assert split.decoded == 1
    for frame, size in ((crop, (32, 32)), (other, (48, 64))):
        view = Views(split, size, "none", interpolation).load(0)
        assert torch.equal(frame.network, view.image) and torch.equal(frame.label, view.label)
        np.testing.assert_array_equal(frame.image, view.image.permute(1, 2, 0))
    assert full.network.shape == (3, 48, 64), "nearest multiples of 16"
    np.testing.assert_array_equal(full.image, split.photos[0])
    np.testing.assert_array_equal(full.label, split.labels[0])
    values = set(map(tuple, full.network.flatten(1).T.tolist()))
    known = values <= set(map(tuple, split.photos[0].reshape(-1, 3).tolist()))
    assert known == (interpolation == "nearest")


def test_a_full_frame_that_fits_is_not_touched_and_a_small_one_is_enlarged():
    assert torch.equal(
        load_frames(Photos((32, 48)), 0, [FULL], 16, "antialias")[0].network,
        torch.from_numpy(Photos((32, 48)).photos[0].transpose(2, 0, 1)),
    )
    frame = load_frames(Photos((9, 40), labelled=False), 0, [FULL], 32, "antialias")[0]
    assert frame.network.shape == (3, 32, 32) and frame.image.shape == (9, 40, 3) and frame.label is None


def test_labels_of_another_size_are_refused():
    split = Photos((32, 32))
    split.labels[0] = np.zeros((32, 31), np.int64)
    with pytest.raises(DataError, match="photo 0"):
        load_frames(split, 0, [FULL], 16, "antialias")


def test_batches_hold_one_size_few_pixels_and_every_photo_once():
    split = Photos((32, 32), (32, 32), (32, 32), (64, 32), (32, 32), (128, 128), (32, 32))
    found = list(batches(split, [(16, 16), FULL], multiple=16, interpolation="antialias", pixels=2 * 32 * 32))
    assert split.decoded == len(split)
    for batch in found:
        assert len({(frame.resolution, frame.image.shape) for frame in batch}) == 1
        assert len(batch) == 1 or sum(frame.network[0].numel() for frame in batch) <= 2 * 32 * 32
    for resolution in ((16, 16), FULL):
        numbers = [frame.number for batch in found for frame in batch if frame.resolution == resolution]
        assert sorted(numbers) == list(range(len(split)))
    assert max(len(batch) for batch in found if batch[0].resolution == FULL) == 2
