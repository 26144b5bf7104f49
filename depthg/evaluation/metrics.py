"""Confusion matrix, matching of clusters to classes, and the scores of a segmentation.

Counts are int64 ``[n_classes, n_predicted]``: rows are true classes, columns are predicted ids. They are summed over
images, so that clusters are matched once for a whole split, not once per image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

VOID = -1
BLOCK = 100  # bootstrap samples with counts in memory at a time


class Scores(NamedTuple):
    """Scores in percent; the arrays are float64 [n_classes], NaN where a quantity is undefined.

    ``iou``: TP / (TP + FP + FN), NaN for a class without a labelled pixel. ``precision``: TP / (TP + FP), NaN for a
    class that is never predicted. ``recall``: TP / (TP + FN), NaN for a class without a labelled pixel.
    """

    accuracy: float
    miou: float
    iou: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


def confusion_matrix(
    predicted: np.ndarray | torch.Tensor,  # [...] integer
    label: np.ndarray | torch.Tensor,  # [...] integer, -1 = void
    n_predicted: int,
    n_classes: int,
) -> np.ndarray:  # int64 [n_classes, n_predicted]
    """Count every labelled pixel: ``confusion[c, p] = #{label == c and predicted == p}``.

    Args:
        predicted: ids in [0, n_predicted), any shape, integer dtype, array or tensor (CPU or GPU).
        label: classes in [0, n_classes) or -1 (void, not counted), same shape.
        n_predicted: number of clusters, or of classes for a linear probe.
        n_classes: number of classes.

    Returns:
        A numpy array on the CPU, so that counts of several batches can be added with ``+=``.

    Raises:
        ValueError: shapes differ, or an id is out of range (predictions on void pixels are checked too).
        TypeError: an input does not have an integer dtype.
    """
    for name, value in (("n_predicted", n_predicted), ("n_classes", n_classes)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if tuple(predicted.shape) != tuple(label.shape):
        shapes = f"predicted has shape {tuple(predicted.shape)} and label {tuple(label.shape)}"
        raise ValueError(f"{shapes}; resize one to the other first")
    if not (isinstance(predicted, torch.Tensor) or isinstance(label, torch.Tensor)):
        predicted, label = _int64(predicted, "predicted"), _int64(label, "label")
        count: Any = np.bincount
    else:
        device = next(x.device for x in (predicted, label) if isinstance(x, torch.Tensor))
        predicted, label = _int64(predicted, "predicted", device), _int64(label, "label", device)
        count = torch.bincount
    _check_range(predicted, "predicted", 0, n_predicted, "is n_predicted the number of clusters?")
    _check_range(label, "label", VOID, n_classes, "map void to -1 and other ids to classes first")
    # Void is row 0 here, so a single pass needs no mask and no copy of the labelled pixels.
    counts = count((label + 1) * n_predicted + predicted, minlength=(n_classes + 1) * n_predicted)
    counts = counts.cpu().numpy() if isinstance(counts, torch.Tensor) else counts
    return counts.astype(np.int64).reshape(n_classes + 1, n_predicted)[1:]


def image_confusions(
    predicted: torch.Tensor,  # int64 [B, H, W]
    label: torch.Tensor,  # int64 [B, H, W], -1 = void
    n_predicted: int,
    n_classes: int,
) -> np.ndarray:  # int64 [B, n_classes, n_predicted]
    """``confusion_matrix`` of every image of a batch, counted in one pass."""
    images, cells = len(predicted), n_classes * n_predicted
    _check_range(predicted.flatten(), "predicted", 0, n_predicted, "is n_predicted the number of clusters?")
    _check_range(label.flatten(), "label", VOID, n_classes, "map void to -1 and other ids to classes first")
    place = label * n_predicted + predicted + torch.arange(images, device=label.device).view(-1, 1, 1) * cells
    place = torch.where(label < 0, images * cells, place)  # void is counted behind the last image
    counts = torch.bincount(place.flatten(), minlength=images * cells + 1)[:-1]
    return counts.view(images, n_classes, n_predicted).cpu().numpy()


def match_hungarian(confusion: np.ndarray | torch.Tensor) -> np.ndarray:
    """One-to-one matching with the most correct pixels: ``assignment[p]`` is the class of cluster p.

    Where several matchings are equally good, scipy's choice depends on the orientation; it gets [clusters, classes], as
    in the released code.

    Args:
        confusion: counts [n_classes, n_predicted].

    Returns:
        int64 [n_predicted]; -1 for a cluster left without a class, which happens when n_predicted > n_classes. With
        n_predicted < n_classes some classes have no cluster.
    """
    from scipy.optimize import linear_sum_assignment  # takes half a second, and most commands do not need it

    confusion = _counts(confusion)
    assignment = np.full(confusion.shape[1], -1, dtype=np.int64)
    clusters, classes = linear_sum_assignment(confusion.T, maximize=True)
    assignment[clusters] = classes
    return assignment


def match_many_to_one(confusion: np.ndarray | torch.Tensor) -> np.ndarray:
    """Each cluster takes its most frequent class: ``assignment[p] = argmax_c confusion[c, p]``.

    Ties go to the lowest class. A cluster without a labelled pixel gets -1.

    Args:
        confusion: counts [n_classes, n_predicted].

    Returns:
        int64 [n_predicted].
    """
    confusion = _counts(confusion)
    return np.where(confusion.any(axis=0), confusion.argmax(axis=0), -1).astype(np.int64)


def matched_confusion(confusion: np.ndarray | torch.Tensor, assignment: np.ndarray | None = None) -> np.ndarray:
    """Merge cluster columns into class columns: int64 [n_classes, n_classes + 1].

    Args:
        confusion: counts [n_classes, n_predicted].
        assignment: int [n_predicted], class of every cluster or -1; None: predicted ids are already classes.

    Returns:
        Column c counts the pixels predicted as class c; the last column, those of clusters without a class.
    """
    confusion = _counts(confusion)
    n_classes, n_predicted = confusion.shape
    if assignment is None:
        if n_predicted != n_classes:
            raise ValueError(f"confusion has shape {confusion.shape}; pass an assignment or one column per class")
        assignment = np.arange(n_classes)
    assignment = _int64(assignment, "assignment")
    if assignment.shape != (n_predicted,):
        raise ValueError(f"assignment has shape {assignment.shape}, expected ({n_predicted},): one class per cluster")
    _check_range(assignment, "assignment", -1, n_classes, "-1 marks a cluster without a class")
    matched = np.zeros((n_classes, n_classes + 1), dtype=np.int64)
    np.add.at(matched.T, assignment, confusion.T)  # -1 addresses the last column
    return matched


def counted(confusion: np.ndarray, count: str) -> np.ndarray:
    """The counts that are matched and scored: all or, for ``count="released"``, those of ids below the class number.

    The released code drops the pixels of extra clusters (ids from ``n_classes`` on) before it matches.

    Args:
        confusion: [..., n_classes, n_predicted].
        count: "all" or "released".
    """
    if count == "all" or confusion.shape[-1] <= confusion.shape[-2]:
        return confusion
    kept = confusion.copy()
    kept[..., confusion.shape[-2] :] = 0
    return kept


def scores(confusion: np.ndarray | torch.Tensor, assignment: np.ndarray | None = None, *, count: str = "all") -> Scores:
    """Accuracy = trace / sum and mIoU = mean IoU over the classes that occur in the labels, in percent.

    Pixels of a cluster without a class are wrong: they count in the denominator of the accuracy and in the union of
    their true class (protocol, item 32).

    Args:
        confusion: counts [n_classes, n_predicted]; those of :func:`counted` for ``count="released"``.
        assignment: int [n_predicted], class of every cluster or -1; None: predicted ids are already classes.
        count: "all", or "released": as the released code does, a class that is predicted but never labelled counts
            with IoU 0 in the mean (else it is skipped, IoU NaN), and so do all clusters without a class together, if
            they have a pixel. A class neither labelled nor predicted is always skipped.

    Raises:
        ValueError: there is no labelled pixel to score.
    """
    matched = matched_confusion(confusion, assignment)
    n_classes = matched.shape[0]
    correct = matched.diagonal().astype(np.float64)
    labelled = matched.sum(1)
    predicted = matched[:, :n_classes].sum(0)
    total = int(labelled.sum())
    if total == 0:
        raise ValueError("no labelled pixel was counted, so there is nothing to score; use a split that has labels")
    iou = _percent(correct, labelled + predicted - correct)
    if count == "all":
        iou[labelled == 0] = np.nan
    rest = [0.0] if count == "released" and matched[:, n_classes].any() else []
    return Scores(
        accuracy=float(100.0 * correct.sum() / total),
        miou=float(np.nanmean([*iou, *rest])),
        iou=iou,
        precision=_percent(correct, predicted),
        recall=_percent(correct, labelled),
    )


class Intervals(NamedTuple):
    """Confidence intervals: lower and upper ends in percent."""

    accuracy: tuple[float, float]
    miou: tuple[float, float]


def bootstrap_intervals(
    confusions: np.ndarray,  # int64 [V, n_classes, n_predicted]
    match: Callable[[np.ndarray], np.ndarray] | None,
    *,
    samples: int = 1000,
    level: float = 95.0,
    seed: int = 0,
    count: str = "all",
) -> Intervals | None:
    """Percentile bootstrap over images: how much the scores vary with other images of the same kind.

    Draws V of the V images with replacement, ``samples`` times, and repeats the whole computation for each draw: counts
    are added, clusters are matched **again**, and classes that do not occur are skipped. The interval contains the
    central ``level`` percent. It does not describe the variation over seeds or cameras.

    Args:
        confusions: counts per image.
        match: ``match_hungarian`` or ``match_many_to_one``; None: predicted ids are already classes.
        samples: number of draws.
        level: percent inside the interval.
        seed: seed of the draws.
        count: as in ``scores``.

    Returns:
        The intervals; None if ``samples`` is 0 or fewer than two images have a labelled pixel.
    """
    confusions = counted(confusions, count)
    labelled = confusions.any(axis=(1, 2))
    if labelled.sum() < 2 or samples < 1:
        return None
    images, rows, columns = confusions.shape
    rng, flat = np.random.default_rng(seed), confusions.reshape(images, -1).astype(np.float64)
    found = []
    for start in range(0, samples, BLOCK):
        draws = rng.multinomial(images, np.full(images, 1 / images), size=min(BLOCK, samples - start))
        for counts in (draws @ flat).astype(np.int64).reshape(-1, rows, columns):  # exact below 2^53 pixels
            if counts.any():
                result = scores(counts, match(counts) if match else None, count=count)
                found.append((result.accuracy, result.miou))
    ends = np.percentile(found, [50 - level / 2, 50 + level / 2], axis=0)
    (low, low_miou), (high, high_miou) = ends.tolist()
    return Intervals((low, high), (low_miou, high_miou))


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``100 * part / whole``, NaN where ``whole`` is 0."""
    return 100.0 * np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _int64(value, name: str, device: torch.device | None = None):
    """``value`` as int64: a tensor on ``device``, or a numpy array when ``device`` is None."""
    kind = value.dtype
    if isinstance(value, torch.Tensor):
        integer = not (kind.is_floating_point or kind.is_complex or kind == torch.bool)
    else:
        integer = kind.kind in "iu"
    if not integer:
        raise TypeError(f"{name} has dtype {kind}; integer ids are needed (take the argmax of scores first)")
    if isinstance(value, torch.Tensor):
        return value.cpu().long().numpy().ravel() if device is None else value.to(device, torch.int64).reshape(-1)
    array = value.astype(np.int64, copy=device is not None).ravel()
    return array if device is None else torch.from_numpy(array).to(device)


def _check_range(ids, name: str, lowest: int, end: int, hint: str) -> None:
    """Raise a ValueError that names an id outside ``[lowest, end)``."""
    if not ids.shape[0]:
        return
    for value in (int(ids.min()), int(ids.max())):
        if not lowest <= value < end:
            raise ValueError(f"{name} holds the id {value}, outside [{lowest}, {end - 1}]; {hint}")


def _counts(confusion: np.ndarray | torch.Tensor) -> np.ndarray:
    """``confusion`` as a checked int64 array [n_classes, n_predicted]."""
    array = confusion.detach().cpu().numpy() if isinstance(confusion, torch.Tensor) else np.asarray(confusion)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"confusion must be [n_classes, n_predicted], got shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"confusion has dtype {array.dtype}; it must hold integer counts")
    if array.min() < 0:
        raise ValueError(f"confusion holds the negative count {array.min()}")
    return array.astype(np.int64, copy=False)
