"""Confusion matrices of a cached split, and their summary."""

from __future__ import annotations

import numpy as np
import torch

from depthg.evaluation.metrics import confusion_matrix, counted, match_hungarian, match_many_to_one, scores
from depthg.features.prepared import EvaluationSet
from depthg.inference.read_outs import LINEAR, predict_ids
from depthg.model.codes import codes_of, sent
from depthg.runtime import processes
from depthg.runtime.device import to_device

MATCHINGS = {"hungarian": match_hungarian, "many_to_one": match_many_to_one}
BATCH_VALUES, BATCH_PIXELS = 2**25, 2**22  # maximum of a batch: feature values (128 MiB) and label pixels


def confusions(
    data: EvaluationSet, head: torch.nn.Module, read_outs: dict, n_classes: int, device: torch.device, batch: int = 16
) -> dict[str, np.ndarray]:
    """One confusion matrix per read-out over a whole split; a read-out is ``(uses_codes, function of vectors)``.

    The batches are divided among processes, and every process gets the sum. Large images reduce the batch size:
    features and labels on the device stay within ``BATCH_VALUES`` and ``BATCH_PIXELS``, or at one image.
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
    parts = processes.collect(total)  # a process may have had no batch
    zero = np.zeros((), np.int64)
    return {name: sum((part[name] for part in parts if name in part), zero) for name in read_outs}


def summarize(
    total: dict[str, np.ndarray], classes: tuple[str, ...], matching: str = "hungarian", count: str = "all"
) -> tuple[dict, dict[str, np.ndarray]]:
    """Flat metrics in percent with ``per_class`` IoU, and the assignment of every clustering.

    ``count``: ``all`` or ``released``, see :func:`depthg.evaluation.metrics.counted` and ``scores`` there.
    """
    match = MATCHINGS[matching]
    metrics: dict = {"per_class": {}}
    assignments = {}
    for name, confusion in total.items():
        confusion = counted(confusion, count)
        assignment = None if name in LINEAR else match(confusion)
        result = scores(confusion, assignment, count=count)
        metrics[f"{name}.accuracy"], metrics[f"{name}.miou"] = round(result.accuracy, 3), round(result.miou, 3)
        iou = [None if np.isnan(value) else round(float(value), 3) for value in result.iou]
        metrics["per_class"][name] = dict(zip(classes, iou, strict=True))
        if assignment is not None:
            assignments[name] = assignment
    return metrics, assignments
