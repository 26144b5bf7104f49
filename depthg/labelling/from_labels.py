"""Names for clusters from a few labelled photos: each takes the class that most of its labelled pixels have."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Table

from depthg.data.files import show
from depthg.evaluation.one_pass import PLAIN, EvaluationPass, probe_read_outs
from depthg.features.preparation import Preparation
from depthg.model.legend import FILE, checksum_of, write_legend
from depthg.model.loaded_run import LoadedRun, load_run
from depthg.runtime import command
from depthg.runtime.device import pick_device

CLASS_FILES = "labelmap.txt", "classes.txt"


class Named(NamedTuple):
    """The class that a cluster has most often: its share of the cluster's labelled pixels, and how many those are."""

    cluster: int
    name: str | None  # None: the cluster has no labelled pixel
    share: float
    pixels: int


def settings_of(labels: Path, classes: Path | None, photos: str | None) -> list[str]:
    """Settings that read photos and their labels, all of them.

    Raises:
        FileNotFoundError: no ``classes`` is given, and none of ``CLASS_FILES`` is in or beside the folder.
    """
    if classes is None:
        places = [folder / name for folder in (labels, labels.parent) for name in CLASS_FILES]
        classes = next((place for place in places if place.is_file()), None)
        if classes is None:
            raise FileNotFoundError(
                f"no file names the classes of {show(labels)} ({' or '.join(CLASS_FILES)} in or beside it); give "
                f"--classes FILE"
            )
    found = ["data.name=folder", f"data.labels={labels}", f"data.classes={classes}", "data.held_out=false"]
    cleared = ["data.list_train=null", "data.list_val=null", "data.n_val=null", "data.class_map=null"]
    return [*found, *cleared, *([f"data.root={photos}"] if photos else [])]


def names_from_labels(run: LoadedRun) -> tuple[list[Named], int]:
    """The most frequent class of every cluster, and the number of labelled photos.

    The photos are scaled and cropped as in the run's evaluation.

    Args:
        run: loaded with :func:`settings_of`.

    Raises:
        ValueError: no pixel has a label.
        DataError: a photo or label map cannot be read.
    """
    preparation = Preparation(run.config, run.device, train_needed=False)
    preparation.backbone = run.backbone
    dataset, size = preparation.dataset, tuple(run.config.data.eval_size)
    passing = EvaluationPass(run, {"cluster": probe_read_outs(run)["cluster"]}, (PLAIN,), len(dataset.classes))
    per_photo = passing.over(dataset.val, [size])[(size, PLAIN, "cluster")]  # type: ignore[list-item, index]
    total = per_photo.sum(0)
    if not total.any():
        raise ValueError(f"no pixel of the {len(per_photo)} photos has a label; check the label maps and their classes")
    return named(total, dataset.classes), int(per_photo.any((1, 2)).sum())


def named(confusion: np.ndarray, classes: Sequence[str]) -> list[Named]:  # int64 [n_classes, n_clusters]
    """The most frequent class of every cluster; of equally frequent ones, the first."""
    best, most, pixels = (values.tolist() for values in (confusion.argmax(0), confusion.max(0), confusion.sum(0)))
    return [
        Named(number, classes[best[number]], most[number] / total, total) if total else Named(number, None, 0.0, 0)
        for number, total in enumerate(pixels)
    ]


def given_by(found: Sequence[Named], least: float) -> dict[int, str | None]:
    """Names by cluster: of those whose most frequent class has at least the share ``least`` of its labelled pixels.

    Raises:
        ValueError: there is none.
    """
    given: dict[int, str | None] = {entry.cluster: entry.name for entry in found if entry.name and entry.share >= least}
    if not given:
        raise ValueError(f"no cluster has one class in {least:.0%} of its labelled pixels; lower --least")
    return given


def name_from_labels(options: argparse.Namespace) -> None:
    """``--from``: takes the names from labelled photos and prints how sure each is.

    Raises:
        FileExistsError: the run has a legend, which is replaced with ``--overwrite`` alone.
        FileNotFoundError, ValueError: the labels cannot be used, or no cluster gets a name.
    """
    path = options.run / FILE
    if path.exists() and not options.overwrite:
        raise FileExistsError(f"{show(path)} exists; edit it, or replace it with --overwrite")
    if not 0 <= options.least <= 1:
        raise ValueError(f"--least {options.least} is a share of the pixels; it must be between 0 and 1")
    overrides = settings_of(options.labels, options.classes, options.photos)
    run = load_run(options.run, options.checkpoint, pick_device(options.device), overrides)
    found, photos = names_from_labels(run)
    given = given_by(found, options.least)
    write_legend(run.path, given, checksum_of(run.cluster.centroids))
    table = Table("cluster", "name", "of its labelled pixels", "pixels", title=f"names from {photos} labelled photos")
    for entry in found:
        name = given.get(entry.cluster) or (f"unnamed ({entry.name})" if entry.name else "unnamed (no label)")
        table.add_row(str(entry.cluster), name, f"{entry.share:.0%}" if entry.pixels else "-", f"{entry.pixels:,}")
    console = command.console()
    console.print(table)
    console.print(
        f"{len(set(given.values()))} names for {len(given)} of {len(found)} clusters: {path}", highlight=False
    )
