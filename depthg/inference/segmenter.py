"""Segmentation of photos of any size with a trained run."""

from __future__ import annotations

import itertools
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from depthg.data.colours import class_palette
from depthg.data.files import DataError
from depthg.data.reading import Reading
from depthg.data.transforms import to_float
from depthg.inference.crf import ALPHA, check_available, cosines, crf_ids, log_softmax
from depthg.inference.crf_image import crf_image
from depthg.inference.merging import VOID, Merging
from depthg.inference.overlays import cluster_colours
from depthg.inference.read_outs import predict_ids
from depthg.inference.windows import Layout, NetworkPhoto, as_rgb, blend_strips, cut, layout, scaled
from depthg.kernels.upsampling import up_sampled_ids
from depthg.model.loaded_run import LoadedRun, load_run
from depthg.runtime.device import pick_device, to_device
from depthg.runtime.read_ahead import ahead

RESIZE = "resize"
CRF_PIXELS = 2**21  # of a photo that is refined at its own size; the filter takes up to half a kilobyte a pixel
READERS, WRITERS = 4, 4  # threads beside a GPU
T = TypeVar("T")


@dataclass(frozen=True)
class Segmentation:
    """The segmentation of one photo, at its size.

    Attributes:
        ids: cluster of every pixel, uint8 [H, W] (uint16 for more than 255 clusters); with a ``legend.yaml`` in the run
            folder, the class that it makes of the cluster.
        probabilities: float32 [n ids, H, W], softmax of twice the cosines; None unless requested.
        names: name of every id: what the legend says, else the cluster's class if the run was scored with labels, else
            ``cluster`` and its number. Where the legend makes clusters void, the last id has the name ``void``.
    """

    ids: np.ndarray
    probabilities: np.ndarray | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class Maps:
    """Output of the network at feature resolution; on a GPU also the ids at full size."""

    codes: np.ndarray  # float32 [K, h, w]
    scores: np.ndarray  # float32 [n_clusters, h, w]
    ids: np.ndarray | None


class Segmenter:
    """Segments photos with a trained run.

    Args:
        run: from ``load_run``.
        window: ``"resize"`` scales a photo to the resolution of the run's evaluation (panoramas are cut along their
            length). A number keeps the photo's resolution and cuts it into overlapping square windows with this side in
            pixels (rounded to a multiple of ``backbone.multiple``); their codes are blended.
        batch: windows per forward pass.
        flip: average the codes of every window and of its mirror image, as ``depthg.evaluate --flip`` (twice the time).
        legend: use the names and merged clusters of the run's ``legend.yaml``; False: clusters as they are.

    Raises:
        ValueError: a damaged legend, an invalid window or batch, or other weights of the backbone than in training.
    """

    def __init__(
        self, run: LoadedRun, window: int | str = RESIZE, batch: int = 8, flip: bool = False, legend: bool = True
    ):
        smallest = run.backbone.multiple  # loads the backbone, so that its errors are raised here
        if window != RESIZE and (not isinstance(window, int) or window < smallest):
            raise ValueError(f"window={window!r} is not possible; use {RESIZE!r} or at least {smallest} pixels")
        if batch < 1:
            raise ValueError(f"batch={batch} must be at least 1")
        self.run, self.batch, self.flip = run, batch, flip
        self.legend = run.legend if legend else None
        self.merging = Merging(run.n_clusters, self.legend)
        self.reading = Reading.of(run.config.data)  # of files
        self.window = window if isinstance(window, int) else None

    @classmethod
    def load(
        cls,
        run: str | PathLike,
        *,
        checkpoint: str = "last",
        device: str = "auto",
        window: int | str = RESIZE,
        batch: int = 8,
        flip: bool = False,
        legend: bool = True,
        weights: str | PathLike | None = None,
        max_pixels: int | None = None,
    ) -> Segmenter:
        """Reads a run folder and its backbone.

        Args:
            run: folder of ``depthg.train`` or ``depthg.convert``.
            checkpoint: ``last`` or ``best``.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            window, batch, flip, legend: see the class.
            weights: path of the backbone's weights, if it differs from that of training.
            max_pixels: larger files are refused; None: the run's ``data.max_pixels``.

        Raises:
            FileNotFoundError: no run folder, no checkpoint, or no backbone weights.
            ValueError: damaged files, or files that do not belong together.
        """
        moved = [] if weights is None else [f"backbone.weights={weights}"]
        moved += [] if max_pixels is None else [f"data.max_pixels={max_pixels}"]
        return cls(load_run(run, checkpoint, pick_device(device), moved), window, batch, flip, legend)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Name of every id, see :class:`Segmentation`."""
        if self.legend is None:
            return self.run.cluster_names
        return (*self.legend.names, *([VOID] if self.merging.void else []))

    @cached_property
    def colours(self) -> np.ndarray:
        """Colour of every id, uint8 [n, 3]: the legend's, its class's, or one that no class has; black for void."""
        stored = self._stored_palette()
        palette = class_palette(len(self.run.class_names)) if stored is None else stored
        found = cluster_colours(self.run.assignment, self.run.n_clusters, palette)
        if self.legend is None:
            return found
        own = [self.legend.colours.get(name) for name in self.legend.names]
        named = [rgb or found[first] for rgb, first in zip(own, self.legend.first, strict=True)]
        return np.array([*named, *([(0, 0, 0)] if self.merging.void else [])], np.uint8)

    def _stored_palette(self) -> np.ndarray | None:
        """The data set's colours from ``metrics.json``, or None."""
        try:
            stored = json.loads((self.run.path / "metrics.json").read_text(encoding="utf-8"))["palette"]
            found = np.array(stored, dtype=np.uint8)
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None
        return found if found.shape == (len(self.run.class_names), 3) else None

    def predict(self, image, *, probabilities: bool = False, crf: bool = False) -> Segmentation:
        """Segments one photo.

        Args:
            image: a path, a Pillow image, an array uint8 [H, W, 3], or a tensor [3, H, W], uint8 or floating point in
                [0, 1]; RGB. Files may be grey, transparent, 16 bits deep or rotated by EXIF.
            probabilities: also return the probabilities of every cluster at full size (without CRF).
            crf: refine the ids with a dense CRF (needs the compiled code).

        Raises:
            DataError: the file cannot be read (a subclass of ValueError).
            TypeError, ValueError: an unsupported type or shape, or values out of range.
            ImportError: ``crf`` needs the compiled code.
        """
        return next(iter(self.predict_many([image], probabilities=probabilities, crf=crf)))

    def predict_many(
        self, images: Iterable, *, probabilities: bool = False, crf: bool = False
    ) -> Iterator[Segmentation]:
        """Segments photos in order; decoding and up-sampling overlap with the network. Arguments as ``predict``."""
        if crf:
            check_available()

        def finish(photo: NetworkPhoto, maps: Maps) -> Segmentation:
            ids = self.refined(photo, maps) if crf else self.ids(photo, maps)
            return Segmentation(ids, self.probabilities(photo, maps) if probabilities else None, self.names)

        for found in self.stream(images, finish):
            if isinstance(found, DataError):
                raise found
            yield found

    def stream(self, images: Iterable, finish: Callable[[NetworkPhoto, Maps], T]) -> Iterator[T | DataError]:
        """Yields ``finish(photo, maps)`` of every image in order, or the DataError of one that cannot be read."""
        return (self._side_by_side if self.run.device.type == "cpu" else self._pipelined)(images, finish)

    def _side_by_side(self, images: Iterable, finish: Callable) -> Iterator:
        """One photo per thread and one thread per core: threads do not wait for each other in every layer."""
        total = torch.get_num_threads()
        workers = max(1, min(total, len(images) if isinstance(images, Sized) else total))

        @_or_error
        def whole(image):
            photo = self.prepare(image)
            return finish(photo, *self.maps([photo]))

        if workers == 1:  # all threads work on it
            yield from map(whole, images)
            return
        try:
            with ThreadPoolExecutor(workers, "photo", torch.set_num_threads, (total // workers,)) as pool:
                yield from ahead(pool, whole, images, workers + 2)
        finally:
            torch.set_num_threads(total)  # the pool's threads also set the default for later threads

    def _pipelined(self, images: Iterable, finish: Callable) -> Iterator:
        """Runs batches in this thread, while some threads decode and scale ahead and others run ``finish``."""
        with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(WRITERS) as writers:
            pending: deque[Future] = deque()
            for group in self._groups(ahead(readers, _or_error(self.prepare), images, self.batch + READERS + 1)):
                if isinstance(group, DataError):
                    pending.append(writers.submit(lambda error: error, group))
                else:
                    pairs = zip(group, self.maps(group), strict=True)
                    pending.extend(writers.submit(finish, photo, maps) for photo, maps in pairs)
                while len(pending) > 2 * self.batch:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def prepare(self, image) -> NetworkPhoto:
        """Decodes and scales a photo for the network."""
        array = as_rgb(image, self.reading)
        plan = self.layout(array.shape[:2])
        return NetworkPhoto(image, array, scaled(array, plan.size, self.run.config.data.interpolation), plan)

    def layout(self, size: tuple[int, int]) -> Layout:
        """Scaled size and windows of a photo of ``size`` = (height, width)."""
        backbone = self.run.backbone
        return layout(size, self.run.config.data.eval_size, self.window, backbone.stride, backbone.multiple)

    def _groups(self, photos: Iterable[NetworkPhoto | DataError]) -> Iterator[list[NetworkPhoto] | DataError]:
        """Yields groups of photos with equal windows that fit into one batch, or an error."""
        group: list[NetworkPhoto] = []
        count = 0
        for photo in photos:
            if isinstance(photo, DataError):
                yield from [group] if group else []
                yield photo
                group, count = [], 0
                continue
            new = len(photo.plan.corners)
            if group and (count + new > self.batch or photo.plan.window != group[0].plan.window):
                yield group
                group, count = [], 0
            group.append(photo)
            count += new
        if group:
            yield group

    @torch.no_grad()
    def maps(self, photos: list[NetworkPhoto]) -> list[Maps]:
        """Codes and scores of photos with equal windows."""
        parts = self._parts(window for photo in photos for window in cut(photo.pixels, photo.plan))
        found = []
        for photo in photos:
            grid, done, codes, scores = self.grid(photo.plan), 0, None, []
            own = itertools.islice(parts, len(photo.plan.corners))
            for strip in self._blended(own, photo.plan):
                if codes is None:  # as one array from the start, so that no second one is held
                    codes = strip if strip.shape[1:] == grid else strip.new_empty(len(strip), *grid)
                if codes is not strip:
                    codes[:, done : done + strip.shape[1]] = strip
                done += strip.shape[1]
                scores.append(self.scores(strip))  # [n, rows, w]
            whole, ids = torch.cat(scores, 1) if len(scores) > 1 else scores[0], None
            if whole.is_cuda:
                flat = whole.flatten(1).T[None]
                ids = predict_ids(flat, grid, photo.image.shape[:2])[0].to(self._dtype).cpu().numpy()
            found.append(Maps(codes.cpu().numpy(), whole.cpu().numpy(), ids))
        return found

    @torch.no_grad()
    def strips(self, windows: Iterable[np.ndarray], plan: Layout) -> Iterator[Tensor]:  # [K, rows, w]
        """Codes of a photo from its windows in order, strip by strip from top to bottom."""
        yield from self._blended(self._parts(windows), plan)

    def scores(self, codes: Tensor) -> Tensor:  # [K, h, w] -> [n_clusters, h, w]
        """Scores of the clusters."""
        with torch.no_grad():
            return self.run.cluster(codes.flatten(1).T).T.unflatten(1, codes.shape[1:])

    def grid(self, plan: Layout) -> tuple[int, int]:
        """Height and width of a photo in cells."""
        stride = self.run.backbone.stride
        return plan.size[0] // stride, plan.size[1] // stride

    def _blended(self, parts: Iterable[Tensor], plan: Layout) -> Iterator[Tensor]:
        stride = self.run.backbone.stride
        return blend_strips(parts, [(top // stride, left // stride) for top, left in plan.corners], self.grid(plan))

    def _parts(self, windows: Iterable[np.ndarray]) -> Iterator[Tensor]:  # [K, h, w] of every window
        windows, stride = iter(windows), self.run.backbone.stride
        while batch := list(itertools.islice(windows, self.batch)):
            codes = self._codes(batch).transpose(1, 2)
            yield from codes.unflatten(2, tuple(n // stride for n in batch[0].shape[:2]))

    def _codes(self, windows: list[np.ndarray]) -> Tensor:  # [B, h*w, K]
        pixels = to_device(torch.from_numpy(np.stack(windows)), self.run.device).permute(0, 3, 1, 2)
        if not self.flip:
            return self._codes_of(pixels)
        codes, mirrored = self._codes_of(pixels), self._codes_of(pixels.flip(-1))
        columns = pixels.shape[3] // self.run.backbone.stride
        return (codes + mirrored.unflatten(1, (-1, columns)).flip(2).flatten(1, 2)) / 2

    def _codes_of(self, pixels: Tensor) -> Tensor:  # uint8 [B, 3, H, W] -> [B, h*w, K]
        size = (pixels.shape[2] // self.run.backbone.stride, pixels.shape[3] // self.run.backbone.stride)
        maps = self.run.backbone.stage_maps(to_float(pixels))
        step = 1 if pixels.is_cpu else len(pixels)  # intermediate results are as large as the features
        parts = ([m[i : i + step] for m in maps] for i in range(0, len(pixels), step))
        return torch.cat([self.run.codes(self.run.transform.of_stages(part, size)) for part in parts])  # not rounded

    @property
    def _dtype(self) -> torch.dtype:
        return torch.uint8 if self.run.n_clusters < 256 else torch.uint16

    @cached_property
    def centroids(self) -> np.ndarray:
        """Centroids of the clusters, of length 1, float32 [n_clusters, K]."""
        return F.normalize(self.run.cluster.centroids.detach(), dim=-1).cpu().numpy()

    def ids(self, photo: NetworkPhoto, maps: Maps) -> np.ndarray:
        """Id of every pixel."""
        found = up_sampled_ids(maps.scores, photo.image.shape[:2]) if maps.ids is None else maps.ids
        return self.merging.ids(found)

    def unary(self, maps: Maps) -> dict[str, np.ndarray]:
        """The maps that ``depthg.inference.crf.crf_ids`` takes."""
        return {"cluster.codes": maps.codes, "cluster.centroids": self.centroids}

    def refined(self, photo: NetworkPhoto, maps: Maps) -> np.ndarray:
        """Id of every pixel after the CRF, which compares the bytes of the run's ``val.crf_image``.

        A photo of more than ``CRF_PIXELS`` is scaled down for it, and the ids are scaled up again.
        """
        size = photo.image.shape[:2]
        small = crf_size(size)
        image = crf_image(scaled(photo.image, small, "antialias"), self.run.config.val.crf_image)
        ids = crf_ids(image, self.unary(maps))["cluster"].astype(np.uint8 if self.run.n_clusters < 256 else np.uint16)
        return self.merging.ids(ids if small == size else enlarged(ids, size, (0, size[0])))

    def probabilities(self, photo: NetworkPhoto, maps: Maps) -> np.ndarray:
        """Softmax of twice the cosines to the centroids, float32 [n ids, H, W]; those of merged clusters are added."""
        logs = cosines(maps.codes, self.centroids, photo.image.shape[:2])
        logs *= ALPHA
        return self.merging.probabilities(np.exp(log_softmax(logs), out=logs))


def crf_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which the CRF refines a photo of ``size``."""
    share = min(1.0, math.sqrt(CRF_PIXELS / math.prod(size)))
    return max(1, int(size[0] * share)), max(1, int(size[1] * share))


def enlarged(ids: np.ndarray, size: tuple[int, int], part: tuple[int, int]) -> np.ndarray:  # [h, w] -> [rows, W]
    """The rows ``part`` = (start, stop) of ids that are scaled up to ``size`` = (height, width)."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(np.int64) for n, m in zip(size, ids.shape, strict=True))
    return ids[rows[slice(*part), None], columns]


def _or_error(function: Callable) -> Callable:
    """Wraps ``function`` to return a DataError instead of raising it."""

    def outcome(item):
        try:
            return function(item)
        except DataError as error:
            return error

    return outcome


def window_of(text: str) -> int | str:
    """Parses a window: ``resize`` or a number of pixels; raises ValueError for anything else."""
    if text == RESIZE:
        return text
    if not text.isdecimal():
        raise ValueError(f"{text!r} is neither {RESIZE} nor a number of pixels")
    return int(text)
