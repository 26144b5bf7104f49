"""One pass over a split that counts every test-time variant and every read-out, image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from depthg.data.base import Split
from depthg.data.transforms import to_float
from depthg.evaluation.frames import Frame, Resolution, batches
from depthg.evaluation.metrics import image_confusions
from depthg.inference.crf import crf_ids_of_images
from depthg.inference.crf_image import crf_image
from depthg.inference.read_outs import predict_ids
from depthg.model.loaded_run import LoadedRun
from depthg.runtime import processes
from depthg.runtime.device import to_device
from depthg.runtime.progress import ProgressBar

PROBES = ("cluster", "linear", "linear_joint")
BATCH_PIXELS = 4 * 320 * 320


@dataclass(frozen=True)
class Variant:
    """Test-time variant: average the codes of photo and mirror image, refine by the CRF."""

    flip: bool = False
    crf: bool = False

    @property
    def name(self) -> str:
        return "-".join(part for part, on in (("flip", self.flip), ("crf", self.crf)) if on) or "plain"


PLAIN, FLIP, FLIP_CRF = Variant(), Variant(flip=True), Variant(flip=True, crf=True)


@dataclass(frozen=True)
class ReadOut:
    """Scores that are linear in the codes (or in the raw features): ``x @ weight.T + bias``.

    With ``cosine``, the rows of ``weight`` are unit centroids, and class probabilities are the softmax of twice the
    cosine; otherwise they are the softmax of the scores. The arg-max needs no probabilities.
    """

    weight: Tensor  # [n, K], or [n, C] for features
    bias: Tensor | None = None  # [n]
    cosine: bool = True
    on: str = "codes"

    @property
    def n(self) -> int:
        return len(self.weight)

    def __call__(self, x: Tensor) -> Tensor:  # [..., K] -> [..., n]
        return torch.nn.functional.linear(x, self.weight, self.bias)

    def to(self, device: torch.device | str) -> ReadOut:
        return replace(self, weight=self.weight.to(device), bias=None if self.bias is None else self.bias.to(device))

    def maps(self, name: str, codes: Tensor, grid: tuple[int, int]) -> dict[str, np.ndarray]:  # [h*w, K]
        """The input of :func:`depthg.inference.crf.probe_log_probabilities`, at feature resolution."""
        values = codes if self.cosine else self(codes)
        kind = "codes" if self.cosine else "scores"
        found = {f"{name}.{kind}": values.T.unflatten(1, grid).cpu().numpy()}
        return found | ({f"{name}.centroids": self.weight.cpu().numpy()} if self.cosine else {})


def probe_read_outs(run: LoadedRun) -> dict[str, ReadOut]:
    """The learned probes of a run; without labels only the cluster probe."""
    found = {"cluster": ReadOut(torch.nn.functional.normalize(run.cluster.centroids, dim=1))}
    for name, probe in (("linear", run.fitted_linear), ("linear_joint", run.linear)):
        if probe is not None:
            found[name] = ReadOut(probe.weight, probe.bias, cosine=False)
    return found


@dataclass
class Counts:
    """Confusion matrices per image; without labels, one row that counts the pixels of every id."""

    tables: list[np.ndarray] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def add(self, numbers: Sequence[int], tables: Sequence[np.ndarray] | np.ndarray) -> None:
        self.numbers += numbers
        self.tables += list(tables)

    @property
    def per_image(self) -> np.ndarray:  # int64 [V, n_classes, n], in the order of the split
        return np.stack(self.tables)[np.argsort(self.numbers)]


Key = tuple[Resolution, Variant, str]  # ..., read-out


class EvaluationPass:
    """Counts of every (resolution, variant, read-out); each image goes through the backbone once, or twice for a flip.

    Args:
        run: head, backbone and transform.
        read_outs: by name; the CRF refines ``PROBES``.
        variants: test-time variants to count.
        n_classes: number of classes; 0: no labels, the pixels of every id are counted.
    """

    def __init__(self, run: LoadedRun, read_outs: Mapping[str, ReadOut], variants: Sequence[Variant], n_classes: int):
        self.run, self.read_outs, self.variants, self.n_classes = run, read_outs, variants, n_classes
        self.counts: dict[Key, Counts] = {}

    def over(self, split: Split, resolutions: Sequence[Resolution]) -> dict[Key, np.ndarray]:
        """Runs over a split; returns int64 ``[V, n_classes, n]`` for each key (``n_classes`` is 1 without labels).

        The photos are divided among processes, and every process gets all counts.
        """
        numbers = range(processes.rank(), len(split), processes.count())
        with ProgressBar("evaluation", len(numbers) * len(resolutions)) as bar:
            for frames in batches(
                split, resolutions, multiple=self.run.backbone.multiple, pixels=BATCH_PIXELS, numbers=numbers,
                interpolation=self.run.config.data.interpolation,
            ):  # fmt: skip
                self._batch(frames)
                bar.advance(len(frames))
        whole: dict[Key, Counts] = {}
        for part in processes.collect(self.counts):
            for key, counts in part.items():
                whole.setdefault(key, Counts()).add(counts.numbers, counts.tables)
        return {key: counts.per_image for key, counts in whole.items()}

    @torch.no_grad()
    def _batch(self, frames: list[Frame]) -> None:
        images = to_float(to_device(torch.stack([frame.network for frame in frames]), self.run.device))
        stride = self.run.backbone.stride
        grid = (images.shape[2] // stride, images.shape[3] // stride)
        values = {False: self._values(images)}
        if any(variant.flip for variant in self.variants):
            mirrored = self._values(images.flip(-1))
            values[True] = {
                on: (x + mirrored[on].unflatten(1, grid).flip(2).flatten(1, 2)) / 2 for on, x in values[False].items()
            }
        label = self._labels(frames)
        for variant in self.variants:
            if variant.crf:
                self._refine(frames, variant, values[variant.flip]["codes"], grid, label)
                continue
            for name, read in self.read_outs.items():
                ids = predict_ids(read(values[variant.flip][read.on]), grid, (label.shape[1], label.shape[2]))
                self._count(frames, variant, name, ids, label)

    def _values(self, images: Tensor) -> dict[str, Tensor]:  # [B, 3, H, W] -> [B, h*w, C], [B, h*w, K]
        features = self.run.features(images)
        return {"features": features, "codes": self.run.codes(features)}

    def _labels(self, frames: list[Frame]) -> Tensor:  # int64 [B, H, W]
        """Labels of the frames; zeros (a single class) if there are no labels."""
        if self.n_classes:
            return to_device(torch.stack([frame.label for frame in frames]), self.run.device)
        return torch.zeros(len(frames), *frames[0].image.shape[:2], dtype=torch.int64, device=self.run.device)

    def _count(self, frames: list[Frame], variant: Variant, name: str, ids: Tensor, label: Tensor) -> None:
        tables = image_confusions(ids, label, self.read_outs[name].n, max(self.n_classes, 1))
        key = (frames[0].resolution, variant, name)
        self.counts.setdefault(key, Counts()).add([frame.number for frame in frames], tables)

    def _refine(
        self, frames: list[Frame], variant: Variant, codes: Tensor, grid: tuple[int, int], label: Tensor
    ) -> None:
        """Counts the probes' ids after the CRF."""
        probes = {name: read for name, read in self.read_outs.items() if name in PROBES}
        jobs = []
        for frame, own in zip(frames, codes, strict=True):
            maps: dict[str, np.ndarray] = {}
            for name, read in probes.items():
                maps |= read.maps(name, own, grid)
            jobs.append((crf_image(frame.image, self.run.config.val.crf_image), maps))
        found = crf_ids_of_images(jobs, processes.own_cores())
        for name in probes:
            ids = torch.from_numpy(np.stack([ids[name] for ids in found]).astype(np.int64))
            self._count(frames, variant, name, to_device(ids, self.run.device), label)
