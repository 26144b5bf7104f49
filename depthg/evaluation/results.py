"""Results of an evaluation: scores with intervals and their protocol; writing, reading and printing them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from depthg.evaluation.frames import FULL, Resolution
from depthg.evaluation.metrics import bootstrap_intervals, counted, matched_confusion, scores
from depthg.evaluation.one_pass import Variant
from depthg.evaluation.scoring import MATCHINGS
from depthg.inference.crf import LEAST_PROBABILITY
from depthg.inference.read_outs import LINEAR, READ_OUTS
from depthg.kernels import CrfSettings
from depthg.storage.whole_files import write_text

FOLDER = "evaluations"
HUNGARIAN = "_hungarian"  # suffix of the second entry of a clustering with more or fewer clusters than classes


@dataclass(frozen=True)
class Evaluation:
    """Results of one resolution and variant: ``results`` by read-out or, without labels, ``shares`` of every cluster.

    Scores and shares are in percent.
    """

    name: str  # of its files, without extension
    variant: Variant
    protocol: dict
    classes: tuple[str, ...]
    results: dict[str, dict]
    shares: dict[str, list[float]]
    skipped: tuple[str, ...] = ()  # photos skipped by data.on_error=skip, a line each


def protocol_of(
    base: Mapping, split: str, images: int, resolution: Resolution, variant: Variant, clusters: dict, checkpoint: str
) -> dict:
    """The protocol of a run, updated with the settings of this evaluation."""
    full = resolution == FULL
    return {
        **base, "split": split, "images": images, "resolution": "photo size" if full else list(resolution),
        "crop": "none" if full else "scaled to cover, centre crop", "flip": variant.flip,
        "crf": {**asdict(CrfSettings()), "least_probability": LEAST_PROBABILITY} if variant.crf else False,
        "checkpoint": checkpoint, "clusters": clusters,
        "intervals": "95%, bootstrap over images, clusters matched anew",
    }  # fmt: skip


def protocol_line(protocol: Mapping) -> str:
    """The protocol of :func:`protocol_of` as one line, without the parameters of the CRF."""
    return "; ".join(protocol_parts(protocol))


def protocol_parts(protocol: Mapping) -> list[str]:
    """The parts of :func:`protocol_line`."""
    size, clusters = protocol["resolution"], protocol["clusters"]
    size = size if isinstance(size, str) else f"{size[0]} x {size[1]} centre crop"
    crf = "CRF on released bytes" if protocol.get("crf_image") == "released" else "CRF"
    given = f"{clusters['number']} clusters by {clusters['by']}"
    pixels = "every labelled pixel" if protocol["count"] == "all" else "counted as released"
    scored = [f"{given}, {protocol['matching'].replace('_', ' ')}", pixels] if protocol["matching"] else [given]
    restart, by = protocol["probe_reinit"], f" by {protocol.get('best_by', 'miou')}"
    linear = [f"linear probe fitted to {protocol['linear_cells']} cells"] if "linear" in protocol else []
    linear += [f"linear probe by class map {protocol['class_map']}"] if "class_map" in protocol else []
    return [
        f"{protocol['data']} {protocol['split']}, {protocol['images']} images",
        *([protocol["photos"]] if protocol["photos"] != "all" else []), size,
        "flip" if protocol["flip"] else "no flip", crf if protocol["crf"] else "no CRF",
        f"{protocol['checkpoint']} checkpoint{by if protocol['checkpoint'] == 'best' else ''}", *scored, *linear,
        f"{protocol['backbone']} ({protocol['weights']}), mode {protocol['mode']}",
        f"{protocol['iterations']} iterations, seed {protocol['seed']}",
        f"sampling {protocol['sampling']}, depth {protocol['depth']}, depth term {protocol['depth_term']}",
        *([f"cluster probe restarted at {restart}"] if restart else []),
    ]  # fmt: skip


def score(
    per_image: np.ndarray,  # int64 [V, n_classes, n]
    classes: Sequence[str],
    *,
    matching: str | None,
    count: str,
    samples: int,
    class_map: np.ndarray | None = None,
    void: bool = False,
) -> dict:
    """Scores in percent of one read-out over a split; ``matching`` None: ids are classes, or become so by the map.

    ``void``: the last id has no class, and its pixels are wrong.
    """
    total = counted(per_image.sum(0), count)
    match: Callable[[Any], np.ndarray] | None = MATCHINGS[matching] if matching else None
    if class_map is not None:
        match = functools.partial(_mapped, class_map)
    elif void and match is not None:
        match = functools.partial(_matched_but_the_last, match)
    assignment = match(total) if match else None
    found = scores(total, assignment, count=count)
    intervals = bootstrap_intervals(per_image, match, samples=samples, count=count)
    kinds = {"iou": found.iou, "precision": found.precision, "recall": found.recall}
    return {
        "accuracy": _percent(found.accuracy), "miou": _percent(found.miou), "matching": matching,
        "intervals": {k: list(map(_percent, ends)) for k, ends in intervals._asdict().items()} if intervals else None,
        "per_class": {
            name: {kind: _percent(values[i]) for kind, values in kinds.items()} for i, name in enumerate(classes)
        },
        "assignment": None if assignment is None else assignment.tolist(),
        "confusion": matched_confusion(total, assignment).tolist(),
    }  # fmt: skip


def _mapped(class_map: np.ndarray, _: np.ndarray) -> np.ndarray:
    """The matching that a class map says, whatever the counts."""
    return class_map


def _matched_but_the_last(match: Callable[[Any], np.ndarray], counts: np.ndarray) -> np.ndarray:
    """The matching of all ids but the last, which gets no class."""
    return np.append(match(counts[:, :-1]), -1)


def score_all(
    per_image: Mapping[str, np.ndarray],
    classes: Sequence[str],
    matching: str,
    count: str,
    samples: int,
    class_map: np.ndarray | None = None,  # int64 [n of the linear probes]
    named: np.ndarray | None = None,  # int64 [n ids]
    void: bool = False,
) -> dict[str, dict]:
    """Scores of every read-out.

    A clustering with as many clusters as classes is matched by ``matching``. Any other clustering is matched many to
    one, so that every cluster has a class, and also one to one under the name with the suffix ``_hungarian``. The
    released metric (``count``) has one matching, ``matching``, for all. With ``class_map`` the ids of the linear probes
    become classes by it; the pixels of those that it maps to none are wrong. ``named`` does the same for the ids that a
    legend makes of the clusters; without it and with ``void`` the last of these has no class.
    """
    found = {}
    for name, counts in per_image.items():
        if name == "cluster" and named is not None:
            found[name] = score(counts, classes, matching=None, count=count, samples=samples, class_map=named)
            continue
        last = void and name == "cluster"
        even = counts.shape[1] == counts.shape[2] - last or count == "released"
        first = None if name in LINEAR else matching if even else "many_to_one"
        own = class_map if name in LINEAR else None
        found[name] = score(counts, classes, matching=first, count=count, samples=samples, class_map=own, void=last)
        if name not in LINEAR and not even:
            found[name + HUNGARIAN] = score(
                counts, classes, matching="hungarian", count=count, samples=samples, void=last
            )
    return found


def cluster_shares(per_image: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Percentage of all pixels in every cluster, for data without labels."""
    totals = {name: counts.sum((0, 1)) for name, counts in per_image.items()}
    return {name: [_percent(100 * share) for share in total / total.sum()] for name, total in totals.items()}


def _percent(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 3)


# ---- files


def write_evaluation(folder: Path, found: Evaluation, environment: Mapping, seconds: float) -> Path:
    """Writes ``NAME.json`` and returns its path."""
    path = folder / f"{found.name}.json"
    content = {
        "protocol": found.protocol, "protocol_line": protocol_line(found.protocol), "classes": list(found.classes),
        "results": found.results, "shares": found.shares, "environment": dict(environment),
        "seconds": round(seconds, 2), "skipped": list(found.skipped),
    }  # fmt: skip
    write_text(path, json.dumps(content, indent=1, allow_nan=False))
    return path


def read_metrics(run: Path) -> dict:
    """Reads ``metrics.json`` of a run; a missing file or list ``evaluations`` counts as empty.

    Raises:
        ValueError: the file is damaged.
    """
    path = run / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        noted = metrics.setdefault("evaluations", [])
        if not all(isinstance(entry["file"], str) for entry in noted):
            raise ValueError("an evaluation names no file")
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); move it away, then evaluate again") from error
    return metrics


def note_in_metrics(run: Path, files: Mapping[Path, Evaluation]) -> None:
    """Adds evaluations to the list ``evaluations`` of the run's ``metrics.json``, replacing those of the same files.

    Adds ``classes`` if it is missing; everything else stays unchanged.

    Raises:
        ValueError: the file is damaged.
    """
    metrics = read_metrics(run)
    kept = [entry for entry in metrics["evaluations"] if run / entry["file"] not in files]
    for file, found in files.items():
        metrics.setdefault("classes", list(found.classes))
        entry = {
            "file": file.relative_to(run).as_posix(), "protocol": protocol_line(found.protocol),
            "checkpoint": found.protocol["checkpoint"], "clusters": found.protocol["clusters"], "shares": found.shares,
        }  # fmt: skip
        if "class_map" in found.protocol:
            entry["classes"] = list(found.classes)
        for name, result in found.results.items():
            entry |= {f"{name}.{kind}": result[kind] for kind in ("accuracy", "miou", "intervals", "assignment")}
        kept.append({key: value for key, value in entry.items() if value})
    write_text(run / "metrics.json", json.dumps({**metrics, "evaluations": kept}, indent=1, allow_nan=False))


# ---- screen


def print_evaluations(found: Sequence[Evaluation], console: Console) -> None:
    """Prints a line per read-out with 95% intervals, classes if there is one evaluation, and the protocol."""
    table = Table("frames", "test time", "read-out", "accuracy %", "mIoU %", title="scores with 95% intervals")
    for evaluation in found:
        for name, result in evaluation.results.items():
            values = [_with_interval(result, kind) for kind in ("accuracy", "miou")]
            table.add_row(*_about(evaluation), _read_out_name(name, result), *values)
        table.add_section()
    if table.row_count:
        console.print(table)
    if len(found) == 1 and found[0].results:
        console.print(_class_table(found[0]))
    if any(evaluation.shares for evaluation in found):
        console.print(_share_table(found))
    parts = [protocol_parts(evaluation.protocol) for evaluation in found]
    common = [part for part in parts[0] if all(part in others for others in parts)]  # the rest is in the rows
    console.print(f"protocol: {'; '.join(common)}", highlight=False)
    if not table.row_count:
        more = any(len(evaluation.shares) > 1 for evaluation in found)
        console.print(f"no labels: clusters alone, nothing is scored{' (shares of k-means: in the files)' * more}")


def _about(evaluation: Evaluation) -> tuple[str, str]:
    """Frames and test time in words."""
    size = evaluation.protocol["resolution"]
    size = size if isinstance(size, str) else f"{size[0]} x {size[1]}"
    return size, evaluation.variant.name.replace("-", " + ")


def _share_table(found: Sequence[Evaluation]) -> Table:
    """Shares of the clusters, a row per evaluation."""
    table = Table("frames", "test time", "cluster: percent", title="clusters, percent of pixels by cluster")
    for evaluation in found:
        shares = enumerate(evaluation.shares.get("cluster", ()))
        table.add_row(*_about(evaluation), ", ".join(f"{number}: {share:.1f}" for number, share in shares))
    return table


def _with_interval(result: Mapping, kind: str) -> str:
    ends = (result["intervals"] or {}).get(kind)
    return f"{result[kind]:.1f}" + (f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else "").replace("[", "\\[")


def _read_out_name(name: str, result: Mapping) -> str:
    plain = READ_OUTS[name.removesuffix(HUNGARIAN)].head.replace("\n", " ")
    return plain if result["matching"] in (None, "hungarian") and HUNGARIAN not in name else (
        f"{plain}, {result['matching'].replace('_', ' ')}"
    )  # fmt: skip


def _class_table(evaluation: Evaluation) -> Table:
    """IoU, precision and recall of the probes for every class."""
    probes = [name for name in ("cluster", *LINEAR) if name in evaluation.results]
    titles = [f"{READ_OUTS[name].name}\n{kind}" for name in probes for kind in ("IoU", "precision", "recall")]
    table = Table("percent", *titles, title="classes")
    for label in evaluation.classes:
        values = [evaluation.results[name]["per_class"][label] for name in probes]
        cells = [row[kind] for row in values for kind in ("iou", "precision", "recall")]
        table.add_row(label, *("-" if value is None else f"{value:.1f}" for value in cells))
    return table
