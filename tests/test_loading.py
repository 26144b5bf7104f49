"""Views come in order whatever the threads do, errors come through, and a fingerprint changes with the files."""

import os
import threading
import time

import numpy as np
import pytest
import torch

from depthg.cache import cached
from depthg.data.base import FileSplit, Subset
from depthg.data.files import DataError
from depthg.data.transforms import View
from depthg.loading import fingerprint, load_views, write_views


class Fake:
    """Views that take the longer the lower their number."""

    def __init__(self, count, broken=None):
        self.count, self.broken, self.threads, self.asked = count, broken, set(), []

    def __len__(self):
        return self.count

    def load(self, number, parts):
        self.threads.add(threading.get_ident())
        self.asked.append((number, parts))
        time.sleep(0.002 * (number % 5 == 0))
        if number == self.broken:
            raise DataError(f"photo {number} is broken")
        return View(torch.full((1, 1, 1), number, dtype=torch.uint8), torch.full((2,), number))


def test_views_come_in_the_given_order_from_several_threads():
    views = Fake(200)
    numbers = np.random.default_rng(0).permutation(200)
    assert [int(view.image) for view in load_views(views, numbers, "image")] == numbers.tolist()
    assert len(views.threads) > 1 and {parts for _, parts in views.asked} == {("image",)}


def test_no_more_than_needed_is_decoded_ahead():
    views = Fake(1000)
    loader = load_views(views, range(1000), "image")
    next(loader)
    loader.close()
    assert len(views.asked) <= 64 + 16


def test_a_broken_photo_is_reported():
    with pytest.raises(DataError, match="photo 30 is broken"):
        list(load_views(Fake(60, broken=30), range(60), "image"))


def test_a_row_per_view_is_written(tmp_path):
    views = Fake(11)

    def build(construction):
        write_views(construction, "labels", views, "label", lambda view: {"labels": view.label.numpy()}, 4)

    folder = cached(tmp_path, "labels", {}, build, {"labels": ((11, 2), np.int16)})
    np.testing.assert_array_equal(np.load(folder / "labels.npy"), np.arange(11)[:, None].repeat(2, 1))


def test_a_fingerprint_changes_with_names_sizes_times_and_choice(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"1234")
        os.utime(tmp_path / f"{name}.png", (1, 1))

    def split(names="abc", labels=None):
        return FileSplit([tmp_path / f"{name}.png" for name in names], root=tmp_path, labels=labels)

    found = {
        "same": fingerprint(split()),
        "fewer": fingerprint(split("ab")),
        "subset": fingerprint(Subset(split(), [0, 2])),
        "other subset": fingerprint(Subset(split(), [0, 1])),
        "labels": fingerprint(split(labels=[tmp_path / "a.png", None, None])),
    }
    assert fingerprint(split()) == found["same"]
    os.utime(tmp_path / "b.png", (2, 2))
    found["time"] = fingerprint(split())
    (tmp_path / "b.png").write_bytes(b"12345")
    os.utime(tmp_path / "b.png", (1, 1))
    found["size"] = fingerprint(split())
    assert len(set(found.values())) == len(found)
    (tmp_path / "c.png").unlink()
    with pytest.raises(DataError, match=r"c\.png"):
        fingerprint(split())
