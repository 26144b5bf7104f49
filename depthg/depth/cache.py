"""Predicted depth on disk: one 16-bit PNG per picture, named after a hash of the picture's pixels.

A map depends on the pixels and the network, not on a file name: photos may move, data sets may share them, and splits
may change without a new prediction. Each map is written atomically, so a killed run loses one batch at most, and
processes that work on the same photos share their maps.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image

from depthg.data.base import Split, missing_in
from depthg.data.files import DataError, read_values, show
from depthg.data.transforms import Views
from depthg.depth.network import DepthNetwork, Prediction, check_finite, decode, encode
from depthg.depth.sources import DepthSource
from depthg.runtime.progress import ProgressBar
from depthg.runtime.read_ahead import ahead
from depthg.storage.whole_files import write_text, write_whole

AHEAD = 32  # photos decoded ahead of the network
WORKERS = 4  # threads that decode and write


@dataclass(frozen=True)
class Job:
    """A picture on its way through the network."""

    path: Any  # of its map, or what else says where the result goes
    name: str
    inputs: torch.Tensor  # [3, h, w]
    size: tuple[int, int]  # height, width of the picture


class ModelDepth(DepthSource):
    """depth.source=model: a network's prediction for each picture of a split.

    Args:
        network: the network.
        cache: folder of caches; maps lie in `depth-maps/<network>` below it.
        batch_size: pictures of one input size per forward pass.
    """

    def __init__(self, network: DepthNetwork, cache: Path, batch_size: int = 4):
        self.network, self.cache, self.batch_size = network, cache, batch_size
        self.metric, self.dense, self.name = network.metric, True, network.source.label
        self._lock = Lock()

    @cached_property
    def folder(self) -> Path:
        """Folder of this network's maps; `settings.json` in it describes them."""
        network = self.network
        settings = {
            "network": network.name, "flip": network.flip, "preprocessing": network.preprocessing.settings,
            "values": "metres, logarithmic" if self.metric else "inverse depth, each picture from 0 to 65535",
        }  # fmt: skip
        with self._lock:  # from Python 3.12 on, threads may come here at once
            folder = self.cache / "depth-maps" / network.identity
            if not (folder / "settings.json").is_file():
                with _writing(self.cache):
                    write_text(folder / "settings.json", json.dumps(settings, indent=1))
        return folder

    def describe(self, split: Split) -> dict:
        return {"network": self.network.identity}

    def path(self, image: np.ndarray) -> Path:  # uint8 [H, W, 3]
        """The file of a picture's map."""
        digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(image).data)
        key = digest.hexdigest()
        return self.folder / key[:2] / f"{key}.png"

    def __call__(self, split: Split, index: int) -> np.ndarray:  # float32 [H, W]
        image = split.image(index)
        path, size = self.path(image), image.shape[:2]
        prediction = self._read(path)
        if prediction is None:
            with self._lock:
                job = Job(path, split.names[index], self.network.prepare(image), size)
                prediction = self._read(path) or self._predict([job])[0]
        return self.network.finish(prediction, size)

    def prepare(self, split: Split) -> None:
        """Predicts missing maps in batches, with a progress bar; each process starts elsewhere in the split.

        Raises:
            DataError: a photo cannot be read, or the network's output is not finite.
            OSError: a map cannot be written; finished maps are kept.
        """
        self.folder  # noqa: B018 (errors of the checkpoint before the progress bar)
        order = np.roll(np.arange(len(split)), -_first(len(split))).tolist()
        with ThreadPoolExecutor(WORKERS) as pool, ProgressBar("depth network", len(split)) as bar:
            missing = self._missing(ahead(pool, lambda index: self._job(split, index), order, AHEAD), bar)
            for jobs in same_shape(missing, self.batch_size):
                self._predict(jobs, pool)
                bar.advance(len(jobs))
        self.network.unload()

    def _job(self, split: Split, index: int) -> Job | None:
        """A picture to predict; None if its map exists."""
        image = split.image(index)
        path = self.path(image)
        if path.is_file():
            return None
        return Job(path, split.names[index], self.network.prepare(image), image.shape[:2])

    def _missing(self, jobs: Iterable[Job | None], bar: ProgressBar) -> Iterator[Job]:
        for job in jobs:
            if job is None or job.path.is_file():  # the second: another process was faster
                bar.skip(1)
            else:
                yield job

    def _predict(self, jobs: list[Job], pool: ThreadPoolExecutor | None = None) -> list[Prediction]:
        """Predicts and stores the maps of some pictures of one input size."""
        predictions = predict(self.network, jobs)
        for job, prediction in zip(jobs, predictions, strict=True):
            check_finite(prediction, job.name, self.name)
        files = {job.path: encode(found) for job, found in zip(jobs, predictions, strict=True)}  # equal pictures: one
        with _writing(self.cache):
            list((pool.map if pool else map)(_write, files, files.values()))
        return predictions

    def _read(self, path: Path) -> Prediction | None:
        """A stored map; None if it is missing or damaged."""
        try:
            levels = read_values(path)
        except DataError:
            return None
        return decode(levels, self.metric) if levels.dtype == np.uint16 else None


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    """Names the folder and the fix if a map cannot be written."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise OSError(
            f"cannot write depth maps in {show(cache)}: {reason}; make room or set cache.dir to another folder (maps "
            f"that are finished stay)"
        ) from error


def _first(count: int) -> int:
    """First index of this process: its share under torchrun, else pseudo-random, so that processes divide the work."""
    if "RANK" in os.environ:
        return count * int(os.environ["RANK"]) // int(os.environ.get("WORLD_SIZE", 1))
    return zlib.crc32(str(os.getpid()).encode()) % max(count, 1)


def _write(path: Path, levels: np.ndarray) -> None:
    write_whole(path, lambda partial: Image.fromarray(levels).save(partial, format="png", compress_level=1))


def same_shape(jobs: Iterable[Job], batch_size: int) -> Iterator[list[Job]]:
    """Batches of at most `batch_size` jobs with inputs of one shape; at most about `AHEAD` jobs wait for a batch."""
    limit = max(AHEAD, batch_size)
    waiting: dict[tuple, list[Job]] = {}
    for job in jobs:
        waiting.setdefault(tuple(job.inputs.shape), []).append(job)
        fullest = max(waiting, key=lambda shape: len(waiting[shape]))
        if len(waiting[fullest]) >= batch_size or sum(map(len, waiting.values())) >= limit:
            yield waiting.pop(fullest)
    yield from waiting.values()


def predict(network: DepthNetwork, jobs: list[Job]) -> list[Prediction]:
    """Predictions of a batch from `same_shape`."""
    return network.predict(torch.stack([job.inputs for job in jobs]), [job.size for job in jobs])


class Crops:
    """depth.on=crop: the crops of a split as separate photos, so that a network sees one crop at a time.

    Photo i is the crop of view i of `views`; `Views(Crops(views), views.size)` has the same views.
    """

    def __init__(self, views: Views):
        self.views, self.names = views, views.names

    def __len__(self) -> int:
        return len(self.views)

    def image(self, index: int) -> np.ndarray:  # uint8 [h, w, 3]
        return self.views.crop_image(index)

    def missing(self, index: int) -> np.ndarray | None:  # bool [h, w]
        missing = missing_in(self.views.split, self.views.photo(index))
        return None if missing is None else self.views.crop_of(index, missing)

    def label(self, index: int) -> None:
        return None

    def depth(self, index: int) -> None:
        return None

    def fov_deg(self, index: int) -> None:
        return None
