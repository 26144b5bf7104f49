"""``report.html`` of a run: one file with every picture inside, without scripts, that opens offline.

``python -m depthg.report RUN`` builds it again from the files of the run folder; ``RUN_A RUN_B`` makes a page that
compares two runs (``comparison``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from depthg.config.schema import flatten
from depthg.inference.read_outs import READ_OUTS, SCORES
from depthg.model.run_folder import SCORES_FILE
from depthg.reporting.cluster_crops import read_cluster_rows
from depthg.reporting.figures import PARTS, available_curves, confusion_figure, curves_figure, iou_figure
from depthg.reporting.page import (
    HEADLINE,
    NARROW_FOLDER,
    SMALLEST,
    Drawing,
    Sheet,
    data_address,
    drawing,
    picture_width,
    render,
)
from depthg.reporting.run_files import protocol_words, read_image_scores, read_run
from depthg.reporting.values import MINUS, gibibytes, is_number, pairs, percent, text, words
from depthg.storage.outputs import output_folder
from depthg.storage.whole_files import write_text

KNOWN_FILES = ("config.yaml", "metrics.jsonl", "metrics.json", "confusion.png", "panels", "clusters")
ABOUT = {
    "cluster": "learned without labels; one cluster for one class, matched over the whole split",
    "linear": "fitted to labels after training: shows what the codes hold, not an unsupervised result",
    "linear_joint": "trained with the head, as in the paper; short of convergence where the training is short",
    "kmeans_codes": "cosine k-means on the learned codes, same matching",
    "kmeans_features": "cosine k-means on the frozen backbone features, same matching: the starting point",
}
OPEN_SHEETS, MOST_SHEETS = 2, 12
RANKS = {  # sheets of a split with labels, in this order
    "best": "Best images", "median": "Images around the median", "worst": "Worst images",
}  # fmt: skip


def write_report(run: Path | str, out: Path | None = None, overwrite: bool = False) -> Path:
    """Write ``run/report.html`` from the files of a run folder; what is absent is left out.

    Args:
        run: folder with any of config.yaml, metrics.jsonl, metrics.json, images.csv, panels/*.png, confusion.png.
        out: another file to write.
        overwrite: whether ``out`` may exist; the run's own report is always made anew.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: the folder does not exist or holds none of these files.
        FileExistsError: ``out`` exists.
        OSError: it cannot be written.
        ValueError: config.yaml, metrics.json or images.csv is damaged.
    """
    run = Path(run)
    if not any((run / name).exists() for name in KNOWN_FILES):
        missing = "is a file" if run.is_file() else "does not exist"
        found = "has none of " + ", ".join(KNOWN_FILES) if run.is_dir() else missing
        raise FileNotFoundError(f"{run} {found}; pass the folder of a run, such as runs/NAME")
    page = render("report.html", report_content(run))
    path = run / "report.html" if out is None else out
    output_folder(path.parent, (path.name,), overwrite or out is None)
    write_text(path, page)
    return path


def report_content(run: Path) -> dict[str, Any]:
    """What ``templates/report.html`` lays out."""
    config, metrics, records = read_run(run)
    cards, note, protocol, later = score_cards(metrics), "", protocol_words(metrics.get("protocol") or {}), {}
    if not cards:
        cards = progress_cards(config, records)
        if not metrics:
            note = "The run has not been evaluated yet (no metrics.json)."
        elif not metrics.get("classes"):
            note = "The data has no labels, so there are no scores; clusters are shown by number."
            later, cards, protocol = {"cards": cards, "protocol": protocol}, [], []  # pictures and shares come first
    evaluations = metrics.get("evaluations")
    evaluations = evaluations if isinstance(evaluations, list) else []
    scored = [(text(entry.get("protocol")), score_rows(entry)) for entry in evaluations]
    return {
        "title": run.resolve().name, "subtitle": subtitle(config), "cards": cards, "note": note,
        "protocol": protocol, "later": {"cards": [], "protocol": []} | later, "clusters": read_cluster_rows(run),
        "pictures": pictures(run / "panels"), "images": image_sentence(run / SCORES_FILE),
        "read_outs": score_rows(metrics, ABOUT),
        "evaluations": [(line, rows) for line, rows in scored if rows],
        **class_content(run, metrics),
        "curves": [drawing(PARTS[part][0], curves_figure, records, [part]) for part in available_curves(records)],
        "times": time_bars(metrics.get("seconds")), "memory": memory_parts(metrics.get("memory")),
        "settings": setting_groups(config),
        "environment": [(words(key), text(value)) for key, value in pairs(metrics.get("environment"))],
    }  # fmt: skip


def subtitle(config: Mapping) -> list[str]:
    """Data set, backbone, depth and length of the run."""

    def named(group: str, key: str = "name") -> object:
        value = config.get(group)
        return value.get(key) if isinstance(value, dict) else value

    loss = config.get("loss") if isinstance(config.get("loss"), dict) else {}
    depth = loss.get("depth") if isinstance(loss.get("depth"), dict) else {}
    items = [named("data"), named("backbone")]
    if is_number(depth.get("weight")) and depth["weight"] and named("depth", "source") != "none":
        items.append(f"depth relation {depth.get('relation')}")
    items += [f"{config['iterations']} iterations"] if is_number(config.get("iterations")) else []
    items += [f"seed {config['seed']}"] if is_number(config.get("seed")) else []
    return [str(item) for item in items if item]


def score_cards(metrics: Mapping) -> list[tuple[str, str, str, str]]:
    """Name, value, unit and note of the numbers to look at first; empty without scores."""
    cards = []
    for metric, name in HEADLINE.items():
        probe, kind = metric.split(".")
        value, start = metrics.get(metric), metrics.get(f"kmeans_features.{kind}")
        if is_number(value):
            note = "probe fitted to labels" if probe == "linear" else ""
            if probe == "cluster" and is_number(start):
                change = value - start
                note = f"{f'+{change:.1f} over' if change >= 0 else f'{-change:.1f} below'} k-means on raw features"
            cards.append((name, percent(value), "%", note))
    return cards


def progress_cards(config: Mapping, records: Sequence[Mapping]) -> list[tuple[str, str, str, str]]:
    """Cards of a run without scores: how far it is and its loss."""
    cards = []
    losses = [(r["iteration"], r["loss"]) for r in records if "iteration" in r and is_number(r.get("loss"))]
    if losses:
        total = config.get("iterations")
        first, last = (f"{loss:.3f}".replace("-", MINUS) for loss in (losses[0][1], losses[-1][1]))
        cards.append(("Iterations", str(losses[-1][0]), f" of {total}" if total else "", ""))
        cards.append(("Loss", last, "", f"{first} at the start"))
    if is_number(config.get("n_classes")):
        cards.append(("Clusters", str(config["n_classes"]), "", ""))
    return cards


def pictures(folder: Path) -> dict[str, Any]:
    """The panel sheets: best, median and worst images, or the first ones open and the others folded."""
    rank = {name: number for number, name in enumerate(RANKS)}
    paths = sorted(folder.glob("*.png"), key=lambda path: (rank.get(path.stem, len(RANKS)), path))
    sheets = [
        Sheet(data_address(path.read_bytes()), picture_width(path),
              f"Example pictures {path.stem}: photo and segmentations", RANKS.get(path.stem, ""),
              _narrow_address(path))
        for path in paths[:MOST_SHEETS]
    ]  # fmt: skip
    n_open = max(OPEN_SHEETS, sum(path.stem in RANKS for path in paths))
    return {
        "open": sheets[:n_open], "folded": sheets[n_open:], "further": len(paths) - len(sheets),
        "wide": any(sheet.width * SMALLEST > 350 and not sheet.narrow for sheet in sheets),
    }  # fmt: skip


def _narrow_address(path: Path) -> str:
    """The sheet for phones beside a sheet; empty without one."""
    narrow = path.parent / NARROW_FOLDER / path.name
    return data_address(narrow.read_bytes()) if narrow.is_file() else ""


def image_sentence(path: Path) -> str:
    """How the scores of single images spread; empty without them."""
    miou = [value for _, value in read_image_scores(path).values()]
    if not miou:
        return ""
    low, median, high = np.percentile(miou, (10, 50, 90))
    return (
        f"mIoU of a single image, over {len(miou)} images: median {median:.0f}, eight in ten between {low:.0f} and "
        f"{high:.0f} (every image: {SCORES_FILE} in the run folder)."
    )


def score_rows(entry: Mapping, about: Mapping | None = None) -> list[tuple[str, str, str, list]]:
    """Key, title, what ``about`` says of it and scores of every read-out that has any.

    A score is a text and its 95% interval, which is empty where none is known.
    """
    rows = []
    for key, read_out in READ_OUTS.items():
        if any(is_number(entry.get(f"{key}.{kind}")) for kind in SCORES):
            cells = [_with_interval(entry, key, kind) for kind in SCORES]
            rows.append((key, read_out.title, (about or {}).get(key, ""), cells))
    return rows


def _with_interval(entry: Mapping, key: str, kind: str) -> tuple[str, str]:
    ends: Sequence = (entry.get(f"{key}.intervals") or {}).get(kind) or ()
    value = entry.get(f"{key}.{kind}")
    known = is_number(value) and len(ends) == 2
    return percent(value), f"{percent(ends[0])} to {percent(ends[1])}" if known else ""


def class_content(run: Path, metrics: Mapping) -> dict[str, Any]:
    """Bars and numbers per class, and the confusion matrix."""
    figures = []
    found = {key: dict(values) for key, values in pairs(metrics.get("per_class")) if key in READ_OUTS and pairs(values)}
    if found:
        figures.append(drawing("IoU per class", iou_figure, found))
    classes, confusion = metrics.get("classes") or [], metrics.get("confusion") or []
    n = len(classes)
    if n and len(confusion) == n and {len(row) for row in confusion} in ({n}, {n + 1}):
        size = "wide big" if n > 12 else ""
        title, counts = "Confusion of the cluster probe", np.array(confusion)
        figures.append(drawing(title, confusion_figure, counts, classes, size=size))
    elif (run / "confusion.png").is_file():
        figures.append(Drawing("Confusion matrix", data_address((run / "confusion.png").read_bytes())))
    names = dict.fromkeys(name for values in found.values() for name in values)
    rows = [(name, *(percent(values.get(name)) for values in found.values())) for name in names]
    head = ["IoU %", *(READ_OUTS[key].title for key in found)]
    return {"class_figures": figures, "classes": {"head": head, "rows": rows}}


def time_bars(seconds: object) -> list[tuple[str, str, str]]:
    """Name, seconds and percent of the longest, per part of the run."""
    values = {words(key): value for key, value in pairs(seconds) if is_number(value)}
    most = max(values.values(), default=0) or 1
    return [(name, f"{value:.1f} s", f"{100 * max(value, 0) / most:.1f}") for name, value in values.items()]


def memory_parts(memory: object) -> list[str]:
    """Peak memory in words, per kind of memory."""
    found = dict(pairs(memory))
    kinds = {"resident_mib": "of memory (resident, with mapped files)", "gpu_mib": "on the GPU"}
    return [f"{gibibytes(found[key])} {where}" for key, where in kinds.items() if is_number(found.get(key))]


def setting_groups(config: Mapping) -> list[tuple[str, list[tuple[str, str]]]]:
    """Every setting, in groups: those at the top as "run", and one group per part."""
    groups = [("run", {key: value for key, value in config.items() if not isinstance(value, dict)})]
    groups += [(str(key), flatten(value)) for key, value in config.items() if isinstance(value, dict)]
    return [(name, [(str(key), text(value)) for key, value in values.items()]) for name, values in groups if values]
