"""Read-outs of a model: their names, and ids at the size of a label from scores at feature resolution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from depthg.kernels.upsampling import device_ids, up_sampled_ids


class ReadOut(NamedTuple):
    """What a read-out is called."""

    name: str  # in tables
    title: str  # on pages and in figures
    head: str  # above a column on the screen


READ_OUTS = {  # by the name in files
    "cluster": ReadOut("clusters", "Cluster probe", "clusters"),
    "linear": ReadOut("linear probe", "Linear probe", "linear probe\n(uses labels)"),
    "linear_joint": ReadOut("linear probe, trained jointly", "Linear probe, trained jointly", "linear probe\n(joint)"),
    "kmeans_codes": ReadOut("k-means on codes", "k-means on codes", "k-means\non codes"),
    "kmeans_features": ReadOut("k-means on features", "k-means on raw features", "k-means\non features"),
}
LINEAR = ("linear", "linear_joint")  # fitted to convergence after training; trained with the head
SCORES = {"accuracy": "accuracy", "miou": "mIoU"}  # of a read-out: the name in files -> in words


def predict_ids(scores_map: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Arg-max over the last axis of ``[B, h*w, n]`` after bilinear up-sampling to ``size``; int64 ``[B, H, W]``.

    Scores that are linear in the codes are up-sampled instead of the codes: the operations commute, and the length of a
    code does not change which centroid is nearest. Images are processed one by one. The CPU stores no up-sampled
    scores, a GPU those of some rows; the ids are equal.
    """
    images = scores_map.detach().transpose(1, 2).unflatten(2, grid)
    found = torch.empty(len(images), *size, dtype=torch.int64, device=images.device)
    for image, ids in zip(images, found, strict=True):
        ids.copy_(torch.from_numpy(up_sampled_ids(image.numpy(), size)) if image.is_cpu else device_ids(image, size))
    return found
