"""Evaluates a trained run under the paper's test-time protocol, or others."""

from __future__ import annotations

import dataclasses
import warnings
import zlib
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from depthg.backbones import Backbone
from depthg.config.composing import stored_settings, to_config
from depthg.data.base import Split
from depthg.data.class_map import read_class_map
from depthg.evaluation.frames import FULL, Resolution
from depthg.evaluation.kmeans_read_outs import kmeans_read_outs
from depthg.evaluation.one_pass import FLIP, FLIP_CRF, PLAIN, EvaluationPass, Variant, probe_read_outs
from depthg.evaluation.protocol import protocol
from depthg.evaluation.results import (
    Evaluation,
    cluster_shares,
    protocol_of,
    score_all,
)
from depthg.features.preparation import Preparation
from depthg.inference.crf import check_available
from depthg.inference.merging import Merging
from depthg.inference.read_outs import READ_OUTS
from depthg.model import legend as legend_file
from depthg.model.legend import Legend
from depthg.model.loaded_run import LoadedRun
from depthg.model.run_folder import with_absolute_paths
from depthg.runtime import processes

MAX_CLUSTERS = 1000


@dataclasses.dataclass(frozen=True)
class Request:
    """Options of an evaluation; see the command's help."""

    split: str = "val"
    resolutions: tuple[Resolution, ...] = ()  # none: the run's data.eval_size
    variants: tuple[Variant, ...] = (PLAIN,)
    clusters: int | None = None
    kmeans: bool = True
    samples: int = 1000


def requested(
    default: Sequence[int],
    resolution: Resolution | None,
    *,
    everything: bool,
    flip: bool | None,
    crf: bool | None,
    **rest,
) -> Request:
    """Builds the request for one resolution and variant, or for all.

    Args:
        default: the run's ``data.eval_size``: size of the centre crop unless ``resolution`` gives another.
        everything: plain, flip and, unless ``crf`` is False, flip + CRF, on the centre crop and on full frames.
        rest: other fields of :class:`Request`.
    """
    height, width = default
    size: Resolution = resolution or (height, width)
    if not everything:
        return Request(resolutions=(size,), variants=(Variant(bool(flip), bool(crf)),), **rest)
    variants = (PLAIN, FLIP) if crf is False else (PLAIN, FLIP, FLIP_CRF)
    return Request(resolutions=((height, width) if size == FULL else size, FULL), variants=variants, **rest)


def evaluate(run: LoadedRun, request: Request = Request()) -> list[Evaluation]:
    """Scores of a run, one :class:`Evaluation` per resolution and variant; writes nothing.

    With several processes (``runtime.processes``), each evaluates a part of the photos; all but the first return an
    empty list.

    Raises:
        ValueError: clusters out of range, a resolution that does not fit the backbone, other classes than the run's, an
            unknown split, or no labelled pixel.
        ImportError: a CRF is requested and the compiled code is missing.
        DataError: a photo or label cannot be read.
    """
    config = run.config
    if request.clusters is not None and not 2 <= request.clusters <= MAX_CLUSTERS:
        raise ValueError(f"clusters={request.clusters} is out of range; it must be between 2 and {MAX_CLUSTERS}")
    height, width = config.data.eval_size
    resolutions: Sequence[Resolution] = request.resolutions or ((height, width),)
    _check_resolutions(resolutions, run.backbone)
    if any(variant.crf for variant in request.variants):
        check_available()
    preparation = Preparation(config, run.device, train_needed=False)
    preparation.backbone = run.backbone
    split, kmeans = _split(preparation, request.split), _kmeans(preparation, request)
    classes, class_map = _classes(run, preparation)
    read_outs = {name: read for name, read in probe_read_outs(run).items() if name == "cluster" or classes}
    read_outs |= processes.from_main(
        lambda: {
            name: read.to("cpu")
            for name, read in kmeans_read_outs(run, preparation, request.clusters, baselines=kmeans).items()
        }
    )
    read_outs = {name: read.to(run.device) for name, read in read_outs.items()}
    passing = EvaluationPass(run, read_outs, request.variants, len(classes))
    counts = passing.over(split, resolutions)
    if not processes.is_main():
        return []
    found = []
    for part in product(resolutions, request.variants):
        own = {name: counts[(*part, name)] for name in READ_OUTS if (*part, name) in counts}
        found.append(_evaluation(run, request, preparation.dataset.note, *part, own, classes, class_map))
    skipped = tuple(getattr(split, "skipped", ()))
    return [dataclasses.replace(evaluation, skipped=skipped) for evaluation in found]


def evaluation_name(run: LoadedRun, request: Request, resolution: Resolution, variant: Variant) -> str:
    """File name without extension; different protocols have different names.

    It includes data and score settings that differ from the run's: matching and count as words, the others as a
    checksum. ``data.root`` counts only for ``data=folder``, since other data sets are the same in any location.
    """
    size = FULL if resolution == FULL else "x".join(map(str, resolution))
    clusters = "" if request.clusters is None else f"k{request.clusters}"
    own, now = map(with_absolute_paths, (to_config(stored_settings(run.path)), run.config))
    words = [getattr(now.val, key) for key in ("matching", "count") if getattr(now.val, key) != getattr(own.val, key)]
    keys = ["labels", "classes", "class_map", "list_train", "list_val", "n_val", "n_test", "held_out"]
    keys += ["root"] * (now.data.name == "folder")
    other = [(key, getattr(now.data, key)) for key in keys if getattr(now.data, key) != getattr(own.data, key)]
    if now.val.crf_image != own.val.crf_image:
        words.append(f"crf_{now.val.crf_image}")
    checksum = f"{zlib.crc32(repr(other).encode()):08x}" if other else ""
    words += ["legend"] if run.legend is not None and request.clusters is None else []
    parts = (now.data.name, request.split, size, variant.name, run.checkpoint, clusters, *words, checksum)
    return "-".join(filter(None, parts))


def _evaluation(
    run: LoadedRun,
    request: Request,
    note: str,
    resolution: Resolution,
    variant: Variant,
    counts: dict[str, np.ndarray],
    classes: tuple[str, ...],
    class_map: np.ndarray | None,
) -> Evaluation:
    config, legend = run.config, None if request.clusters else run.legend
    merging = Merging(counts["cluster"].shape[2], legend)
    counts, n = counts | {"cluster": merging.counts(counts["cluster"])}, merging.n - merging.void
    named = None if legend is None else _named(legend, classes, merging)
    # The released count is about the run's own classes and clusters.
    count = config.val.count if class_map is None and legend is None else "all"
    matching = config.val.matching if n == len(classes) or count == "released" else "many_to_one"
    by = "k-means on codes" if request.clusters else "cluster probe"
    clusters = {"number": n, "by": by if legend is None else f"{by}, merged by {legend_file.FILE}"}
    shifts, weights = run.header.get("shifts") or (), run.backbone.weights_hash
    fit = run.header.get("linear_fit") if run.fitted_linear is not None and classes else None
    base = protocol(config, note, config.depth.source != "none", shifts, weights, fit)
    base |= {"crf_image": config.val.crf_image} if variant.crf else {}
    base |= {
        "matching": (matching if named is None else "by_name") if classes else None,
        "iterations": run.header.get("iteration", config.iterations),
    }
    if class_map is not None:
        base |= {"class_map": Path(config.data.class_map).name}
    base |= {"count": count}
    described = protocol_of(base, request.split, len(counts["cluster"]), resolution, variant, clusters, run.checkpoint)
    given = (classes, matching, count, request.samples, class_map, named, merging.void)
    results = score_all(counts, *given) if classes else {}
    shares = {} if classes else cluster_shares(counts)
    return Evaluation(evaluation_name(run, request, resolution, variant), variant, described, classes, results, shares)


def _named(legend: Legend, classes: Sequence[str], merging: Merging) -> np.ndarray | None:  # int64 [n ids]
    """Class of every id by its name (in any case), -1 for none; None if no given name is a class's."""
    places = {name.casefold(): place for place, name in enumerate(classes)}
    found = np.array([places.get(name.casefold(), -1) for name in legend.names] + [-1] * merging.void, np.int64)
    return found if (found[: len(legend.names)] >= 0)[list(legend.given)].any() else None


def _check_resolutions(resolutions: Sequence[Resolution], backbone: Backbone) -> None:
    for size in resolutions:
        if not isinstance(size, str) and any(side < 1 or side % backbone.multiple for side in size):
            near = "x".join(str(max(1, round(side / backbone.multiple)) * backbone.multiple) for side in size)
            raise ValueError(
                f"resolution {'x'.join(map(str, size))} must be a multiple of {backbone.multiple} for {backbone.name}; "
                f"nearest: {near}"
            )


def _split(preparation: Preparation, name: str) -> Split:
    split = getattr(preparation.dataset, name, None)
    if split is None:
        raise ValueError(f"data={preparation.dataset.name} has no split {name!r}; use val or train")
    if not len(split):
        root = preparation.config.data.root
        raise ValueError(f"data={preparation.dataset.name} has no photos for --split {name} below {root}")
    return split


def _kmeans(preparation: Preparation, request: Request) -> bool:
    """Whether the k-means baselines can be fitted, which takes training photos.

    Raises:
        ValueError: there are none, and a number of clusters is requested.
    """
    if len(preparation.dataset.train):
        return request.kmeans
    missing = f"data={preparation.dataset.name} has no training photos below {preparation.config.data.root}"
    if request.clusters is not None:
        raise ValueError(f"{missing}: k-means with clusters={request.clusters} needs some")
    if request.kmeans:
        warnings.warn(f"{missing}: the k-means baselines are left out", stacklevel=3)
    return False


def _classes(run: LoadedRun, preparation: Preparation) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Class names of the labels, and for `data.class_map` the class of the labels for each of the run (-1: none).

    Without a class map the classes must be the run's if it was trained with labels. A run that only numbers its classes
    takes the names of the data in their order.

    Raises:
        ValueError: the run has other classes, or a class map that cannot be used.
    """
    classes, data = tuple(preparation.dataset.classes), f"data={preparation.dataset.name}"
    if run.config.data.class_map:
        if not classes or not run.classes:
            lacking = "the data has no labels" if not classes else "the run has no linear probe"
            raise ValueError(f"data.class_map={run.config.data.class_map} has no use here: {lacking}; leave it out")
        table = getattr(preparation.dataset.val, "table", None)
        return classes, read_class_map(run.config.data.class_map, run.classes, classes, table)
    if not classes or not run.classes or classes == run.classes:
        return classes, None
    if len(classes) != len(run.classes):
        raise ValueError(
            f"the run was trained on {len(run.classes)} classes, {data} has {len(classes)}; scores need the same "
            f"classes: give other labels, number them as the run does (data=folder data.classes=FILE), or say which "
            f"class is which in a data.class_map=FILE"
        )
    if run.named:
        own, other = next(pair for pair in zip(run.classes, classes, strict=True) if pair[0] != pair[1])
        raise ValueError(
            f"the run was trained on {len(run.classes)} classes, {data} has {len(classes)} (the first that differs: "
            f"{own!r}, {other!r}); scores need the same classes, or a data.class_map=FILE that says which is which"
        )
    return classes, None
