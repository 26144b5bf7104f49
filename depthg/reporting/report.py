"""``report.html`` of a run: one file with every picture inside, without scripts, that opens offline.

``python -m depthg.report RUN`` builds it again from what lies in the run folder; ``RUN_A RUN_B`` makes a page that
compares two runs (``comparison``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from depthg.model.run_folder import SCORES_FILE
from depthg.reporting.page import MINUS, PAGE, is_number, pairs, percent, section, table, text, words
from depthg.reporting.run_files import protocol_words, read_run
from depthg.reporting.sections import (
    class_section,
    curve_section,
    evaluation_section,
    image_line,
    memory_line,
    pictures,
    score_table,
    settings_section,
    time_table,
)  # fmt: skip
from depthg.storage.outputs import output_folder
from depthg.storage.whole_files import write_text

KNOWN_FILES = ("config.yaml", "metrics.jsonl", "metrics.json", "confusion.png", "panels")


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
        found = "has none of " + ", ".join(KNOWN_FILES) if run.is_dir() else "does not exist"
        raise FileNotFoundError(f"{run} {found}; pass the folder of a run, such as runs/NAME")
    config, metrics, records = read_run(run)
    sections = [
        _headline(metrics, config, records),
        section("Pictures", pictures(run / "panels") + image_line(run / SCORES_FILE)),
        section("Scores", score_table(metrics)),
        section("Evaluations", evaluation_section(metrics.get("evaluations"))),
        section("Classes", class_section(run, metrics)),
        section("Curves", curve_section(records)),
        section("Time and memory", time_table(metrics.get("seconds")) + memory_line(metrics.get("memory"))),
        section("Settings", settings_section(config)),
        section("Environment", table((words(k), text(v)) for k, v in pairs(metrics.get("environment")))),
    ]
    name = escape(run.resolve().name)
    page = PAGE.format(title=name, subtitle=_subtitle(config), body="\n".join(filter(None, sections)))
    path = run / "report.html" if out is None else out
    output_folder(path.parent, (path.name,), overwrite or out is None)
    write_text(path, page)
    return path


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
    protocol = " · ".join(map(escape, protocol_words(metrics.get("protocol") or {})))
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


def _plain(value: float) -> str:
    return f"{value:.3f}".replace("-", MINUS)


def _difference(value: float) -> str:
    return f"+{value:.1f} over" if value >= 0 else f"{-value:.1f} below"


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
