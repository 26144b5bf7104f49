"""From codes to scores: ids at label resolution, confusion matrices of a cached split, and their summary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from depthg import processes
from depthg.device import to_device
from depthg.features import Features
from depthg.metrics import confusion_matrix, match_hungarian, match_many_to_one, scores
from depthg.upsampling import device_ids, up_sampled_ids

READ_OUTS = ("cluster", "linear", "kmeans_codes", "kmeans_features")
MATCHINGS = {"hungarian": match_hungarian, "many_to_one": match_many_to_one}
SAMPLE_IMAGES = 1024  # that vectors are drawn from at most: with streamed features each is a forward pass
SAMPLE_BLOCK = 64  # images read at a time
BATCH_VALUES, BATCH_PIXELS = 2**25, 2**22  # of features (128 MiB) and of labels that are scored at a time


@dataclass
class EvaluationSet:
    """Cached features ``[V, h*w, C]``, labels ``[V, H, W]`` (None: none), grid (h, w) and size (H, W) of a split."""

    features: Features | np.ndarray
    labels: np.ndarray | None
    grid: tuple[int, int]
    size: tuple[int, int]


def predict_ids(scores_map: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Arg-max over the last axis of ``[B, h*w, n]`` after bilinear up-sampling to ``size``; int64 ``[B, H, W]``.

    Scores that are linear in the codes may be up-sampled instead of the codes: the operations commute, and the length
    of a code does not change which centroid is nearest. Images are done one by one, on the CPU without up-sampled
    scores, on a device with those of some rows; the ids are the same.
    """
    images = scores_map.detach().transpose(1, 2).unflatten(2, grid)
    found = torch.empty(len(images), *size, dtype=torch.int64, device=images.device)
    for image, ids in zip(images, found, strict=True):
        ids.copy_(torch.from_numpy(up_sampled_ids(image.numpy(), size)) if image.is_cpu else device_ids(image, size))
    return found


def sent(features: np.ndarray, device: torch.device) -> Tensor:  # [B, h*w, C]
    """Cached feature maps in float32 on a device."""
    return to_device(torch.from_numpy(np.array(features)), device).float()


def codes_of(head: torch.nn.Module, features: np.ndarray | Tensor, device: torch.device) -> Tensor:  # [B, h*w, K]
    """Codes of cached feature maps, or of those that are on the device, in evaluation mode and without gradient."""
    training = head.training
    head.eval()
    with torch.no_grad():
        codes = head(features if isinstance(features, Tensor) else sent(features, device))
    head.train(training)
    return codes


def sample_rows(features: Features | np.ndarray, count: int, seed: int) -> Tensor:  # [V, h*w, C] -> [count, C]
    """Random feature vectors, evenly many from every image, or from ``SAMPLE_IMAGES`` of them, evenly spread."""
    images, cells, _ = features.shape
    chosen = np.arange(images) if images <= SAMPLE_IMAGES else np.arange(SAMPLE_IMAGES) * images // SAMPLE_IMAGES
    each = min(cells, max(1, -(-count // len(chosen))))
    generator = np.random.default_rng(seed)
    places = [np.sort(generator.choice(cells, each, replace=False)) for _ in chosen]
    if not isinstance(features, Features):
        return torch.from_numpy(np.concatenate([features[i, at] for i, at in zip(chosen, places, strict=True)])).float()
    places = torch.from_numpy(np.stack(places)).split(SAMPLE_BLOCK)
    blocks = np.split(chosen, range(SAMPLE_BLOCK, len(chosen), SAMPLE_BLOCK))
    return torch.cat([features.at(some, at) for some, at in zip(blocks, places, strict=True)]).flatten(0, 1)


def training_codes(
    head: torch.nn.Module, features: Features | np.ndarray, count: int, seed: int, device: torch.device
) -> Tensor:
    """Codes of random training vectors ``[count, K]`` on the device; the head acts on points, so only these are
    computed."""
    rows = sample_rows(features, count, seed)
    return codes_of(head, rows[None].numpy(), device)[0]


def confusions(
    data: EvaluationSet, head: torch.nn.Module, read_outs: dict, n_classes: int, device: torch.device, batch: int = 16
) -> dict[str, np.ndarray]:
    """One confusion matrix per read-out over a whole split; a read-out is ``(uses_codes, function of vectors)``.

    Processes take batches in turn, and all get the sum. A batch is smaller where images are large: features and labels
    on the device stay below ``BATCH_VALUES`` and ``BATCH_PIXELS``, or at one image.
    """
    _, cells, channels = data.features.shape
    batch = max(1, min(batch, BATCH_VALUES // (cells * channels), BATCH_PIXELS // (data.size[0] * data.size[1])))
    total: dict[str, np.ndarray] = {}
    for start in range(batch * processes.rank(), len(data.features), batch * processes.count()):
        features = data.features[start : start + batch]
        label = to_device(torch.from_numpy(np.array(data.labels[start : start + batch])), device)
        raw = sent(features, device)
        codes = codes_of(head, raw, device)
        for name, (uses_codes, read) in read_outs.items():
            with torch.no_grad():
                value = read(codes if uses_codes else raw)
            ids = predict_ids(value, data.grid, data.size)
            counted = confusion_matrix(ids, label, value.shape[-1], n_classes)
            total[name] = total.get(name, 0) + counted
    parts = processes.collect(total)  # a process may have had none
    zero = np.zeros((), np.int64)
    return {name: sum((part[name] for part in parts if name in part), zero) for name in read_outs}


def summarize(
    total: dict[str, np.ndarray], classes: tuple[str, ...], matching: str = "hungarian", count: str = "all"
) -> tuple[dict, dict[str, np.ndarray]]:
    """Flat metrics in percent with ``per_class`` IoU, and the assignment of every clustering.

    ``count="released"`` drops the pixels of clusters without a class, and a class that is predicted but never labelled
    enters the mean with IoU 0, as in the released code.
    """
    match = MATCHINGS[matching]
    metrics: dict = {"per_class": {}}
    assignments = {}
    for name, confusion in total.items():
        assignment = None if name == "linear" else match(confusion)
        result = scores(confusion, assignment, **counting(count))
        metrics[f"{name}.accuracy"], metrics[f"{name}.miou"] = round(result.accuracy, 3), round(result.miou, 3)
        iou = [None if np.isnan(value) else round(float(value), 3) for value in result.iou]
        metrics["per_class"][name] = dict(zip(classes, iou, strict=True))
        if assignment is not None:
            assignments[name] = assignment
    return metrics, assignments


def counting(count: str) -> dict[str, bool]:
    """Keywords of ``metrics.scores`` for ``val.count``: ``all`` or ``released``."""
    return {"drop_unmatched": count == "released", "count_absent": count == "released"}
