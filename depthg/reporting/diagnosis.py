"""``python -m depthg.diagnose RUN|experiment=... [key=value ...]``: how similar pairs are, and the
shifts and the number of clusters that follow from that, without labels. Writes one page of plots.

The shift b divides pairs into attracted (F > b) and repelled ones, so the histograms of F tell how to choose it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from depthg.config.schema import UNLABELLED_CLUSTERS, Config
from depthg.evaluation.cluster_count import THRESHOLD, count_clusters
from depthg.features.preparation import Preparation
from depthg.features.prepared import Prepared
from depthg.model.loaded_run import LoadedRun
from depthg.runtime.device import pick_device
from depthg.training.batches import draw_batch
from depthg.training.depth_term import kernel_relation
from depthg.training.known_depth import known_relation
from depthg.training.schedules import piecewise_constant
from depthg.training.step import HISTOGRAM_BINS, HISTOGRAM_RANGE, SHIFT_BATCHES, Model, Step, quantile_of

PAIRS = ("self", "neighbour", "negative")
SHOWN = (0.05, 0.25, 0.5, 0.75, 0.95)  # quantiles
CLUSTER_ROWS, CLUSTER_IMAGES = 6000, 500
SHIFT_TOLERANCE = 0.05  # shifts that differ less from the suggested ones need no change
FILES = ("diagnosis.html", "diagnosis.png", "diagnosis.json")


def histogram_statistics(counts: Tensor, shift: float) -> dict:
    """Mean, quantiles and the share of pairs above ``shift`` of a histogram over ``HISTOGRAM_RANGE``."""
    low, high = HISTOGRAM_RANGE
    edges = torch.linspace(low, high, len(counts) + 1, dtype=torch.float64)
    middle = (edges[1:] + edges[:-1]) / 2
    share = counts.double() / counts.sum()
    return {
        "mean": float((share * middle).sum()),
        "quantiles": {str(quantile): quantile_of(counts, quantile) for quantile in SHOWN},
        "positive_share": float(share[middle > shift].sum()),
    }


def feature_pairs(step: Step, used: Sequence[float] | None) -> tuple[dict, Tensor]:
    """Statistics of F per kind of pair, and the histograms ``[3, bins]``.

    Shares of positive pairs are given for the ``used`` shifts (None: the suggested ones) and for the suggested ones,
    which are those that ``loss.shifts=auto`` takes.
    """
    counts, suggestion = step.pair_counts(step.plain_features, center=step.config.loss.center), step.auto_shifts()
    found = {}
    for kind, row, shift, suggested in zip(PAIRS, counts, used or suggestion, suggestion, strict=True):
        found[kind] = {
            **histogram_statistics(row, shift), "shift": shift, "suggested_shift": suggested,
            "suggested_positive_share": histogram_statistics(row, suggested)["positive_share"],
        }  # fmt: skip
    return found, counts


def code_pairs(step: Step) -> tuple[dict, Tensor]:
    """Statistics of S per kind of pair, above 0, and the histograms ``[3, bins]``."""

    def codes(views: np.ndarray, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            return step.model.head(step.plain_features(views, generator))

    counts = step.pair_counts(codes)
    return {kind: histogram_statistics(row, 0.0) for kind, row in zip(PAIRS, counts, strict=True)}, counts


def depth_pairs(step: Step) -> tuple[dict, Tensor] | tuple[None, None]:
    """Statistics of D inside an image under the first iteration's shift, where depth is known; None without depth."""
    config, settings = step.config, step.config.loss.depth
    if step.data.depth is None:
        return None, None
    side = piecewise_constant(0, config.sampling.points, config.sampling.schedule)
    counts = torch.zeros(HISTOGRAM_BINS, dtype=torch.float64)
    total, pairs = 0.0, 0
    for number in range(SHIFT_BATCHES):
        batch, generator = draw_batch(config, step.data, number), step.generator("shifts", number)
        here, there = (
            None if views is None else step.depth_values(views, step.points(views, 0, generator), side)
            for views in (batch.anchors, batch.others)  # others: loss.depth.pair=crop
        )
        for u, v in zip(here.split(1), (here if there is None else there).split(1), strict=True):
            d = known_relation(u, v, kernel_relation(settings.relation), settings.bandwidth)
            counts += torch.histc(d.float(), HISTOGRAM_BINS, *HISTOGRAM_RANGE).cpu()
            total, pairs = total + float(d.sum(dtype=torch.float64)), pairs + d.numel()
    if not pairs:
        return None, None
    shift = total / pairs if settings.shift_mean else settings.shift
    about = {"relation": settings.relation, "shift": shift, "shift_from": "mean of D" if settings.shift_mean else "set"}
    return {**about, **histogram_statistics(counts, shift)}, counts


def cluster_vectors(step: Step, use_codes: bool) -> Tensor:  # [V, R, C]
    """Vectors at random cells of one view per photo, of up to ``CLUSTER_IMAGES`` photos."""
    rng = np.random.default_rng(step.config.seed)
    views = np.unique(step.data.photos, return_index=True)[1]
    views = np.sort(rng.permutation(views)[:CLUSTER_IMAGES])
    each, n_cells = max(1, CLUSTER_ROWS // len(views)), step.data.features.shape[1]
    found = []
    for block in np.array_split(views, -(-len(views) // 32)):
        order, valid = rng.random((len(block), n_cells)), step.data.features.valid
        order = order if valid is None else order + ~valid[block]  # cells without data come last
        cells = torch.from_numpy(order.argsort(1)[:, :each].copy())
        vectors = step.vectors(block, cells)
        with torch.no_grad():
            found.append((step.model.head(vectors) if use_codes else vectors).cpu())
    return torch.cat(found)


def diagnose(config: Config, run: LoadedRun | None = None, most_clusters: int = 20) -> tuple[dict, dict[str, Tensor]]:
    """Statistics as ``diagnosis.json`` holds them, and the histograms behind them (``F``, ``S``, ``D``).

    Args:
        config: settings; with ``run`` those of the run.
        run: a trained run adds S, and the clusters are counted on its codes.
        most_clusters: numbers of clusters from 2 to this are tried.
    """
    device = pick_device(config.device)
    data = Preparation(config, device).run()
    check_same_features(run, data)
    step = Step(config, data, _model(config, data, run), device)
    step.model.to(device).eval()
    auto = run is None and config.loss.shifts == "auto"
    features, f_counts = feature_pairs(step, run.header["shifts"] if run else None if auto else step.shifts)
    depth, d_counts = depth_pairs(step)
    codes, s_counts = code_pairs(step) if run else (None, None)
    clusters = count_clusters(cluster_vectors(step, run is not None), range(2, most_clusters + 1), seed=config.seed)
    source = "loss.shifts=auto" if auto else "the run" if run else "the settings"
    found = {
        "data": config.data.name, "backbone": config.backbone.name, "run": run and run.path.name,
        "views": len(data.features), "batches": SHIFT_BATCHES, "batch_size": config.batch_size,
        "sampling": config.sampling.method if data.depth is not None else "random", "center": config.loss.center,
        "quantiles": list(config.loss.quantiles), "shifts_from": source,
        "F": features, "S": codes, "D": depth,
        "clusters": {**asdict(clusters), "of": "codes" if run else "features", "threshold": THRESHOLD},
        "n_classes": config.n_classes or len(data.dataset.classes) or None, "classes": len(data.dataset.classes),
    }  # fmt: skip
    return found, {k: v for k, v in (("F", f_counts), ("S", s_counts), ("D", d_counts)) if v is not None}


def check_same_features(run: LoadedRun | None, data: Prepared) -> None:
    if run is not None and run.header.get("features") != data.features_key:
        raise ValueError(
            f"{run.path} was trained on other photos, weights or settings than are found now; pass data.root=DIR of "
            f"the photos it was trained on"
        )


def _model(config: Config, data: Prepared, run: LoadedRun | None) -> Model:
    classes = len(data.dataset.classes)
    model = Model(data.transform.channels, config.head.dim, 0.0, classes, config.n_classes or classes or 2)
    if run:
        model.head = run.head
    return model


def suggestions(found: dict) -> list[str]:
    """The suggested shifts as ``key=value``."""
    return [f"loss.{kind}.shift={found['F'][kind]['suggested_shift']:g}" for kind in PAIRS]


def print_diagnosis(found: dict, console: Console) -> None:
    table = Table("F of pairs", "mean", "5%", "median", "95%", "shift", "positive", "suggested", "positive")
    for kind in PAIRS:
        row = found["F"][kind]
        q = row["quantiles"]
        table.add_row(kind, *(f"{value:.3f}" for value in (row["mean"], q["0.05"], q["0.5"], q["0.95"], row["shift"])),
                      f"{row['positive_share']:.1%}", f"{row['suggested_shift']:.3f}",
                      f"{row['suggested_positive_share']:.1%}")  # fmt: skip
    console.print(table)
    quantiles = ", ".join(map(str, found["quantiles"]))
    console.print(f"shifts: those of {found['shifts_from']}; suggested: at the quantiles {quantiles} (loss.quantiles)")
    if found["D"]:
        d = found["D"]
        console.print(f"D ({d['relation']}): mean {d['mean']:.3f}, shift {d['shift']:.3f} ({d['shift_from']}), "
                      f"positive {d['positive_share']:.1%}")  # fmt: skip
    console.print(cluster_sentence(found["clusters"]), soft_wrap=True)
    console.print("to use: loss.shifts=auto, or " + " ".join(suggestions(found)), highlight=False, soft_wrap=True)
    console.print(f"advice: {advice(found)}", highlight=False, soft_wrap=True)


def cluster_sentence(clusters: dict) -> str:
    most = max(clusters["k"])
    if clusters["suggested"] is None:
        return f"clusters: no number from 2 to {most} is agreed upon by two halves of the photos"
    return (
        f"clusters: n_classes={clusters['suggested']} or more; the largest number up to {most} that two halves of "
        f"the photos agree upon (prediction strength of {clusters['of']} at least {clusters['threshold']}), and rare "
        f"classes are beyond that"
    )


def advice(found: dict) -> str:
    """What to do with the numbers: how many clusters to start with, and which settings to change.

    The agreed number is a lower bound: on the 8 classes of the demo it is 3 from features and 6 from codes, on the 11
    of CamVid 4 from features. So the range begins at it (codes) or twice it (features), at 8 or more, and ends at about
    twice that: too many clusters can be merged by their names, too few cannot be split. Data with labels keep a cluster
    for each class.
    """
    agreed, of_codes = found["clusters"]["suggested"], found["clusters"]["of"] == "codes"
    low = max(UNLABELLED_CLUSTERS, (agreed or 0) * (1 if of_codes else 2))
    high, now, changes = 2 * low - 1, found["n_classes"], []
    if not now or not (low <= now <= high or now == found["classes"]):
        changes.append(f"n_classes={low}")
    if any(abs(found["F"][kind]["shift"] - found["F"][kind]["suggested_shift"]) > SHIFT_TOLERANCE for kind in PAIRS):
        changes.append("loss.shifts=auto")
    todo = f"set {' and '.join(changes)}" if changes else "nothing to change"
    return f"start with {low} to {high} clusters; {todo}"
