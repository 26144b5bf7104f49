"""Sections of the report page: pictures, scores, classes, curves, time, memory, settings."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from depthg.config.schema import flatten
from depthg.inference.read_outs import READ_OUTS
from depthg.model.run_folder import SCORES_FILE
from depthg.reporting.figures import PARTS, available_curves, confusion_figure, curves_figure, iou_figure
from depthg.reporting.page import (
    DASH,
    SMALLEST,
    SWIPE,
    figure,
    image,
    is_number,
    pairs,
    percent,
    picture_width,
    sheet,
    table,
    text,
    words,
)  # fmt: skip

ABOUT = {
    "cluster": "learned without labels; one cluster for one class, matched over the whole split",
    "linear": "trained on labels: shows what the codes hold, not an unsupervised result",
    "kmeans_codes": "cosine k-means on the learned codes, same matching",
    "kmeans_features": "cosine k-means on the frozen backbone features, same matching: the starting point",
}
OPEN_SHEETS, MOST_SHEETS = 2, 12
RANKS = {  # sheets of a split with labels, in this order
    "best": "Best images", "median": "Images around the median", "worst": "Worst images",
}  # fmt: skip


def pictures(folder: Path) -> str:
    """The panel sheets: best, median and worst images, or the first ones open."""
    sheets = sorted(
        folder.glob("*.png"), key=lambda path: (list(RANKS).index(path.stem) if path.stem in RANKS else 9, path)
    )
    if not sheets:
        return ""
    shown = [sheet(path, RANKS.get(path.stem, "")) for path in sheets[:MOST_SHEETS]]
    n_open = max(OPEN_SHEETS, sum(path.stem in RANKS for path in sheets))
    body = "".join(shown[:n_open])
    if any(picture_width(path) * SMALLEST > 350 for path in sheets[:MOST_SHEETS]):
        body += SWIPE
    if shown[n_open:]:
        body += f"<details><summary>{len(shown) - n_open} more</summary>{''.join(shown[n_open:])}</details>"
    if len(sheets) > MOST_SHEETS:
        body += f'<p class="hint">{len(sheets) - MOST_SHEETS} further sheets lie in the folder panels.</p>'
    return body


def read_image_scores(path: Path) -> dict[str, tuple[float, float]]:
    """Accuracy and mIoU of every labelled image, from ``images.csv``; empty when there is none.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {row["name"]: (float(row["accuracy"]), float(row["miou"])) for row in rows if row["miou"]}
    except FileNotFoundError:
        return {}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); remove it, then build again") from error


def image_line(path: Path) -> str:
    """How the scores of single images spread."""
    miou = [value for _, value in read_image_scores(path).values()]
    if not miou:
        return ""
    low, median, high = np.percentile(miou, (10, 50, 90))
    text = (
        f"mIoU of a single image, over {len(miou)} images: median {median:.0f}, eight in ten between {low:.0f} and "
        f"{high:.0f} (every image: {SCORES_FILE} in the run folder)."
    )
    return f'<p class="hint">{escape(text)}</p>'


def score_table(metrics: Mapping) -> str:
    """Accuracy and mIoU of the four read-outs."""
    rows = []
    for key, (_, name, _) in READ_OUTS.items():
        values = [metrics.get(f"{key}.{kind}") for kind in ("accuracy", "miou")]
        if any(map(is_number, values)):
            cells = "".join(f"<td>{escape(percent(value))}</td>" for value in values)
            about = f"<small>{escape(ABOUT[key])}</small>"
            rows.append(f'<tr class="{key}"><th scope="row">{escape(name)}{about}</th>{cells}</tr>')
    if not rows:
        return ""
    return _score_rows(rows)


def class_section(run: Path, metrics: Mapping) -> str:
    """Bars and numbers per class, and the confusion matrix."""
    parts = []
    per_class = {
        key: dict(values) for key, values in pairs(metrics.get("per_class")) if key in READ_OUTS and pairs(values)
    }
    if per_class:
        parts.append(figure("IoU per class", lambda theme: iou_figure(per_class, theme)))
    classes, confusion = metrics.get("classes") or [], metrics.get("confusion") or []
    n = len(classes)
    if n and len(confusion) == n and {len(row) for row in confusion} in ({n}, {n + 1}):
        size = "wide big" if n > 12 else ""
        draw = lambda theme: confusion_figure(np.array(confusion), classes, theme)  # noqa: E731
        parts.append(figure("Confusion of the cluster probe", draw, size))
    elif (run / "confusion.png").is_file():
        parts.append(f'<figure class="sheet">{image(run / "confusion.png", "Confusion matrix")}</figure>')
    body = f'<div class="grid">{"".join(parts)}</div>' if parts else ""
    return body + (_class_table(per_class) if per_class else "")


def _class_table(per_class: Mapping[str, Mapping]) -> str:
    """IoU numbers behind the bars."""
    names = list(dict.fromkeys(name for values in per_class.values() for name in values))
    head = "".join(f'<th scope="col">{escape(READ_OUTS[key].title)}</th>' for key in per_class)
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th>'
        + "".join(f"<td>{escape(percent(values.get(name)))}</td>" for values in per_class.values())
        + "</tr>"
        for name in names
    )
    table = f'<table><thead><tr><th scope="col">IoU %</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<details><summary>Numbers</summary><div class="wide">{table}</div></details>'


def curve_section(records: Sequence[Mapping]) -> str:
    """A chart per part of the log."""
    parts = available_curves(records)
    charts = [figure(PARTS[p][0], lambda theme, p=p: curves_figure(records, [p], theme), caption=False) for p in parts]
    return f'<div class="grid">{"".join(charts)}</div>' if charts else ""


def evaluation_section(evaluations: object) -> str:
    """Scores of ``python -m depthg.evaluate`` with their intervals, each under its protocol."""
    blocks = []
    for entry in evaluations if isinstance(evaluations, list) else []:
        rows = []
        for key in READ_OUTS:
            cells = [_with_interval(entry, key, kind) for kind in ("accuracy", "miou")]
            if any(cells):
                inner = "".join(f"<td>{cell or DASH}</td>" for cell in cells)
                rows.append(f'<tr class="{key}"><th scope="row">{escape(READ_OUTS[key].title)}</th>{inner}</tr>')
        if rows:
            blocks.append(f'<p class="about">{escape(text(entry.get("protocol")))}</p>{_score_rows(rows)}')
    note = '<p class="hint">Below a score: its 95% interval over images.</p>'
    return "".join(blocks) + note if blocks else ""


def _score_rows(rows: Sequence[str]) -> str:
    head = '<tr><th scope="col">Read-out</th><th scope="col">Accuracy %</th><th scope="col">mIoU %</th></tr>'
    return f'<table class="scores"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _with_interval(entry: Mapping, key: str, kind: str) -> str:
    """A score with its 95% interval below; empty where there is none."""
    ends: Sequence = (entry.get(f"{key}.intervals") or {}).get(kind) or ()
    if not is_number(entry.get(f"{key}.{kind}")):
        return ""
    interval = f"<small>{percent(ends[0])} to {percent(ends[1])}</small>" if len(ends) == 2 else ""
    return percent(entry[f"{key}.{kind}"]) + interval


def memory_line(memory: object) -> str:
    """Peak memory in words."""
    found = dict(pairs(memory))
    parts = [
        (found.get("resident_mib"), "of memory (resident, with mapped files)"),
        (found.get("gpu_mib"), "on the GPU"),
    ]
    known = [f"{size / 1024:.2f} GiB {where}" for size, where in parts if is_number(size)]
    return f'<p class="hint">At most {escape(" and ".join(known))}.</p>' if known else ""


def time_table(seconds: object) -> str:
    """Seconds per part as bars."""
    values = {key: value for key, value in pairs(seconds) if is_number(value)}
    most = max(values.values(), default=0) or 1
    rows = "".join(
        f'<tr class="{"total" if key == "total" else ""}"><th scope="row">{escape(words(key))}</th>'
        f'<td>{value:.1f} s</td><td class="bar"><i style="width:{100 * max(value, 0) / most:.1f}%"></i></td></tr>'
        for key, value in values.items()
    )
    return f'<table class="time"><tbody>{rows}</tbody></table>' if rows else ""


def settings_section(config: Mapping) -> str:
    """Every setting, one fold per group."""
    top = [(key, text(value)) for key, value in config.items() if not isinstance(value, dict)]
    folds = [("run", top)] if top else []
    groups = {key: flatten(value) for key, value in config.items() if isinstance(value, dict)}
    folds += [(str(key), [(k, text(v)) for k, v in values.items()]) for key, values in groups.items()]
    return "".join(f"<details><summary>{escape(n)}</summary>{table(rows)}</details>" for n, rows in folds if rows)
