"""``report.html`` of a run: one file with every picture inside, without scripts, that opens offline.

``python -m depthg.report RUN`` builds it again from what lies in the run folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
import yaml

from depthg.checkpoints import write_text
from depthg.figures import PARTS, READ_OUTS, available_curves, confusion_figure, curves_figure, iou_figure
from depthg.report_page import (
    MINUS,
    PAGE,
    SMALLEST,
    figure,
    image,
    is_number,
    pairs,
    percent,
    picture_width,
    section,
    sheet,
    table,
    text,
    words,
)
from depthg.run_folder import read_log

ABOUT = {
    "cluster": "learned without labels; one cluster for one class, matched over the whole split",
    "linear": "trained on labels: shows what the codes hold, not an unsupervised result",
    "kmeans_codes": "cosine k-means on the learned codes, same matching",
    "kmeans_features": "cosine k-means on the frozen backbone features, same matching: the starting point",
}
OPEN_SHEETS, MOST_SHEETS = 2, 12
KNOWN_FILES = ("config.yaml", "metrics.jsonl", "metrics.json", "confusion.png", "panels")


def write_report(run: Path | str) -> Path:
    """Write ``run/report.html`` from the files of a run folder; what is absent is left out.

    Args:
        run: folder with any of config.yaml, metrics.jsonl, metrics.json, panels/*.png, confusion.png.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: the folder does not exist or holds none of these files.
        ValueError: config.yaml or metrics.json is damaged.
    """
    run = Path(run)
    if not any((run / name).exists() for name in KNOWN_FILES):
        found = "has none of " + ", ".join(KNOWN_FILES) if run.is_dir() else "does not exist"
        raise FileNotFoundError(f"{run} {found}; pass the folder of a run, such as runs/NAME")
    config = _mapping(run / "config.yaml", yaml.safe_load, yaml.YAMLError)
    metrics = _mapping(run / "metrics.json", json.loads, ValueError)
    records = read_log(run / "metrics.jsonl")
    sections = [
        _headline(metrics, config, records),
        section("Pictures", _pictures(run / "panels")),
        section("Scores", _score_table(metrics)),
        section("Classes", _classes(run, metrics)),
        section("Curves", _curves(records)),
        section("Time", _time(metrics.get("seconds"))),
        section("Settings", _settings(config)),
        section("Environment", table((words(k), text(v)) for k, v in pairs(metrics.get("environment")))),
    ]
    name = escape(run.resolve().name)
    page = PAGE.format(title=name, subtitle=_subtitle(config), body="\n".join(filter(None, sections)))
    write_text(run / "report.html", page)
    return run / "report.html"


def _mapping(path: Path, parse, error: type[Exception]) -> dict:
    """A parsed file that holds a mapping; empty when there is no file."""
    if not path.is_file():
        return {}
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except (error, UnicodeDecodeError) as reason:
        raise ValueError(
            f"{path} is damaged ({reason}); restore it or remove it, then build the report again"
        ) from reason
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not keys and values; remove it, then build again")
    return value


def _headline(metrics: Mapping, config: Mapping, records: Sequence[Mapping]) -> str:
    """The numbers to look at first, and what they were measured under."""
    cards = []
    for key, name in (("cluster", "Cluster"), ("linear", "Linear")):
        for kind, title in (("accuracy", "accuracy"), ("miou", "mIoU")):
            value, start = metrics.get(f"{key}.{kind}"), metrics.get(f"kmeans_features.{kind}")
            if is_number(value):
                note = "probe trained on labels" if key == "linear" else ""
                if key == "cluster" and is_number(start):
                    note = f"{_difference(value - start)} k-means on raw features"
                cards.append((f"{name} {title}", percent(value), "%", note))
    notes = []
    if not cards:
        cards = list(_progress(config, records))
        if not metrics:
            notes.append("The run has not been evaluated yet (no metrics.json).")
        elif not metrics.get("classes"):
            notes.append("The data has no labels, so there are no scores; clusters are shown by number.")
    body = "".join(_card(*card) for card in cards)
    protocol = " · ".join(map(escape, protocol_parts(metrics.get("protocol") or {})))
    lines = [f'<div class="cards">{body}</div>' if body else "", *(f'<p class="hint">{escape(n)}</p>' for n in notes)]
    lines.append(f'<p class="protocol"><b>Protocol</b> {protocol}</p>' if protocol else "")
    return "<section>" + "".join(lines) + "</section>" if any(lines) else ""


def _card(name: str, value: str, unit: str, note: str) -> str:
    parts = (("name", escape(name)), ("value", f"{escape(value)}<span>{escape(unit)}</span>"), ("note", escape(note)))
    return '<div class="card">' + "".join(f'<div class="{kind}">{content}</div>' for kind, content in parts) + "</div>"


def _progress(config: Mapping, records: Sequence[Mapping]) -> Iterable[tuple[str, str, str, str]]:
    """Cards of a run without scores: how far it is and its loss."""
    losses = [(r["iteration"], r["loss"]) for r in records if "iteration" in r and is_number(r.get("loss"))]
    if losses:
        total = config.get("iterations")
        yield "Iterations", f"{losses[-1][0]}", f" of {total}" if total else "", ""
        yield "Loss", _plain(losses[-1][1]), "", f"{_plain(losses[0][1])} at the start"
    if is_number(config.get("n_classes")):
        yield "Clusters", str(config["n_classes"]), "", ""


def protocol_parts(protocol: Mapping) -> list[str]:
    """The protocol in words, one item per key; unknown keys are shown as they are."""
    phrases = {
        "split": lambda v: f"{v} split",
        "resolution": lambda v: " \u00d7 ".join(map(str, v)) + " px" if isinstance(v, (list, tuple)) else f"{v} px",
        "crop": lambda v: "no crop" if v == "none" else f"{v}" if "crop" in str(v) else f"crop {v}",
        "flip": lambda v: "flip averaging" if v else "no flip",
        "crf": lambda v: "CRF" if v else "no CRF",
        "checkpoint": lambda v: f"{v} checkpoint",
        "mode": lambda v: f"mode {v}",
        "seed": lambda v: f"seed {v}",
        "probe_reinit": lambda v: f"cluster probe restarted at iteration {v}" if v else "cluster probe never restarted",
    }
    known = [str(phrases[key](protocol[key])) for key in phrases if protocol.get(key) is not None]
    return known + [f"{words(key)} {text(value)}" for key, value in protocol.items() if key not in phrases]


def _pictures(folder: Path) -> str:
    """The panel sheets, the first ones open."""
    sheets = sorted(folder.glob("*.png"))
    if not sheets:
        return ""
    shown = [sheet(path) for path in sheets[:MOST_SHEETS]]
    body = "".join(shown[:OPEN_SHEETS])
    if any(picture_width(path) * SMALLEST > 350 for path in sheets[:MOST_SHEETS]):
        body += '<p class="hint swipe">Swipe a sheet sideways to see all columns.</p>'
    if shown[OPEN_SHEETS:]:
        hidden = "".join(shown[OPEN_SHEETS:])
        body += f"<details><summary>{len(shown) - OPEN_SHEETS} more</summary>{hidden}</details>"
    if len(sheets) > MOST_SHEETS:
        body += f'<p class="hint">{len(sheets) - MOST_SHEETS} further sheets lie in the folder panels.</p>'
    return body


def _plain(value: float) -> str:
    return f"{value:.3f}".replace("-", MINUS)


def _difference(value: float) -> str:
    return f"+{value:.1f} over" if value >= 0 else f"{-value:.1f} below"


def _score_table(metrics: Mapping) -> str:
    """Accuracy and mIoU of the four read-outs."""
    rows = []
    for key, name in READ_OUTS.items():
        values = [metrics.get(f"{key}.{kind}") for kind in ("accuracy", "miou")]
        if any(map(is_number, values)):
            cells = "".join(f"<td>{escape(percent(value))}</td>" for value in values)
            about = f"<small>{escape(ABOUT[key])}</small>"
            rows.append(f'<tr class="{key}"><th scope="row">{escape(name)}{about}</th>{cells}</tr>')
    if not rows:
        return ""
    head = '<tr><th scope="col">Read-out</th><th scope="col">Accuracy %</th><th scope="col">mIoU %</th></tr>'
    return f'<table class="scores"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _classes(run: Path, metrics: Mapping) -> str:
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
    head = "".join(f'<th scope="col">{escape(READ_OUTS[key])}</th>' for key in per_class)
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th>'
        + "".join(f"<td>{escape(percent(values.get(name)))}</td>" for values in per_class.values())
        + "</tr>"
        for name in names
    )
    table = f'<table><thead><tr><th scope="col">IoU %</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<details><summary>Numbers</summary><div class="wide">{table}</div></details>'


def _curves(records: Sequence[Mapping]) -> str:
    """A chart per part of the log."""
    parts = available_curves(records)
    charts = [figure(PARTS[p][0], lambda theme, p=p: curves_figure(records, [p], theme), caption=False) for p in parts]
    return f'<div class="grid">{"".join(charts)}</div>' if charts else ""


def _time(seconds: object) -> str:
    """Seconds per part as bars."""
    values = {key: value for key, value in pairs(seconds) if is_number(value)}
    most = max(values.values(), default=0) or 1
    rows = "".join(
        f'<tr class="{"total" if key == "total" else ""}"><th scope="row">{escape(words(key))}</th>'
        f'<td>{value:.1f} s</td><td class="bar"><i style="width:{100 * max(value, 0) / most:.1f}%"></i></td></tr>'
        for key, value in values.items()
    )
    return f'<table class="time"><tbody>{rows}</tbody></table>' if rows else ""


def _settings(config: Mapping) -> str:
    """Every setting, one fold per group."""
    top = [(key, text(value)) for key, value in config.items() if not isinstance(value, dict)]
    folds = [("run", top)] if top else []
    folds += [(str(key), list(_flatten(value))) for key, value in config.items() if isinstance(value, dict)]
    return "".join(f"<details><summary>{escape(n)}</summary>{table(rows)}</details>" for n, rows in folds if rows)


def _flatten(value: Mapping, prefix: str = "") -> Iterable[tuple[str, str]]:
    """``{"a": {"b": 1}}`` -> ("a.b", "1")."""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flatten(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", text(item)


def _subtitle(config: Mapping) -> str:
    """Data set, backbone, depth and length of the run in one line."""

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
    return " · ".join(escape(str(item)) for item in items if item)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m depthg.report RUN [RUN ...]``."""
    parser = argparse.ArgumentParser(prog="python -m depthg.report", description="Build report.html of run folders.")
    parser.add_argument("run", nargs="+", type=Path, help="folder of a run, such as runs/NAME")
    for run in parser.parse_args(arguments).run:
        try:
            print(write_report(run))
        except (FileNotFoundError, ValueError) as error:
            parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
