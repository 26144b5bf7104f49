"""The paper's tables (``tables.yaml``), and their comparison with our results as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

from depthg.inference.read_outs import READ_OUTS, SCORES

CHECKPOINTS = ("last", "best")
NOT_SHOWN = ("seed", "checkpoint", "shifts", "intervals")  # parts of a protocol shown elsewhere, or specific to a seed


@dataclass(frozen=True)
class Row:
    """A line of a table. Without ``experiment`` it is only quoted from the paper, except in the ablation.

    Attributes:
        row: its name on the command line and in folders.
        paper: the paper's numbers in percent by metric, None where it gives none.
        experiment: preset of the run.
        settings: ``key=value`` that the row changes in it.
        read_out: read-out shown in the "cluster" columns; any other than "cluster" has no linear probe.
    """

    row: str
    method: str
    model: str = ""
    paper: Mapping[str, float | None] = field(default_factory=dict)
    experiment: str | None = None
    settings: tuple[str, ...] = ()
    read_out: str = "cluster"
    note: str = ""


@dataclass(frozen=True)
class PaperTable:
    """Rows with the same metrics; ``settings`` apply to all of them, and the user's settings override them."""

    name: str
    title: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    settings: tuple[str, ...] = ()
    experiments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Result:
    """The result of one run: ``metrics`` per checkpoint as in ``metrics.json``, and ``error`` if it failed."""

    row: str
    seed: int
    folder: str
    metrics: Mapping[str, Mapping] = field(default_factory=dict)
    error: str = ""


@lru_cache
def paper_tables() -> dict[str, PaperTable]:
    """``table1`` to ``table4`` and ``ablation`` (table 4 on other data), by name."""
    text = (resources.files("depthg.paper") / "tables.yaml").read_text(encoding="utf-8")
    return {name: _table(name, **content) for name, content in yaml.safe_load(text).items()}


def _table(name: str, title: str, metrics: list, rows: list, settings=(), experiments=None, note="") -> PaperTable:
    made = []
    for content in rows:
        content = dict(content)
        figures, changes = content.pop("paper", ()), tuple(content.pop("set", ()))
        content.setdefault("row", content.get("experiment", content["method"]))
        made.append(Row(**content, paper=dict(zip(metrics, figures, strict=bool(figures))), settings=changes))
    experiments = {data: tuple(given) for data, given in (experiments or {}).items()}
    return PaperTable(name, title, tuple(metrics), tuple(made), tuple(settings), experiments, note)


def value_of(row: Row, metrics: Mapping, metric: str) -> float | None:
    """A row's value of a metric, taken from its read-out; None if there is none."""
    kind, score = metric.split(".")
    if row.read_out != "cluster":
        kind = row.read_out if kind == "cluster" else "none"
    if kind == "linear_joint" and f"{kind}.{score}" not in metrics:
        kind = "linear"  # older versions had this probe alone, under this name
    value = metrics.get(f"{kind}.{score}")
    return float(value) if isinstance(value, (int, float)) else None


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (None for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "\u2013"
    mean, deviation = spread(known)
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} \u00b1 {deviation:.1f}"


def column_names(metrics: Iterable[str]) -> list[str]:
    """Column heads such as ``clusters: accuracy``, ``mIoU``: the read-out is named where it changes."""
    names, before = [], ""
    for metric in metrics:
        kind, score = metric.split(".")
        names.append(SCORES[score] if kind == before else f"{READ_OUTS[kind].name}: {SCORES[score]}")
        before = kind
    return names


def markdown(table: PaperTable, results: Sequence[Result], command: str = "") -> str:
    """The table in Markdown with the paper's numbers and ours, then protocol, notes and failures."""
    quoted = any(row.paper for row in table.rows)
    head = ["method", *(["model"] if quoted else []), "source", "seeds", *column_names(table.metrics)]
    lines = [f"## {table.title}", "", f"`{command}`", ""] if command else [f"## {table.title}", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in table.rows:
        first = [row.method, *([row.model] if quoted else [])]  # only on a row's first line
        for source, seeds, cells in _lines(table, row, results, "ours, " if quoted else ""):
            lines.append("| " + " | ".join([*first, source, seeds, *cells]) + " |")
            first = [""] * len(first)
    lines += ["", "Percent, last and best checkpoint: mean \u00b1 sample standard deviation over the seeds.", ""]
    lines += [f"- {text}" for text in _notes(table, results)]
    return "\n".join(lines) + "\n"


def _lines(table: PaperTable, row: Row, results: Sequence[Result], prefix: str) -> Iterable[tuple[str, str, list[str]]]:
    """Source, seeds and cells of every line of a row."""
    if row.paper:
        yield "paper", "", [_cell([row.paper[metric]]) for metric in table.metrics]
    for checkpoint in CHECKPOINTS:
        runs = [result for result in results if result.row == row.row and checkpoint in result.metrics]
        if runs:
            cells = [_cell([value_of(row, run.metrics[checkpoint], m) for run in runs]) for m in table.metrics]
            yield prefix + checkpoint, ", ".join(str(run.seed) for run in runs), cells


def _notes(table: PaperTable, results: Sequence[Result]) -> Iterable[str]:
    if table.note:
        yield table.note
    shown = {result.row for result in results}
    yield from (f"{row.method}: {row.note}." for row in table.rows if row.note and (row.paper or row.row in shown))
    measured: dict[str, Any] = {}  # protocol of a row's last checkpoint, or else of its best
    for result in results:
        for metrics in result.metrics.values():
            own = {key: value for key, value in metrics.get("protocol", {}).items() if key not in NOT_SHOWN}
            measured.setdefault(result.row, own)
    if measured:
        common = common_items(list(measured.values()))
        yield f"Protocol of ours: {protocol_text(common)}."
        for row in table.rows:
            rest = {key: value for key, value in measured.get(row.row, {}).items() if key not in common}
            if rest:
                yield f"{row.method}{f', {row.model}' if row.model else ''}: {protocol_text(rest)}."
        if any("best" in result.metrics for result in results):
            yield "The best checkpoint is picked by the cluster probe's mIoU on labelled validation images."
    yield from (f"**Failed**: {r.row}, seed {r.seed}: {r.error}" for r in results if r.error)


def common_items(mappings: Sequence[Mapping]) -> dict:
    """Items that are equal in all mappings."""
    first, *others = mappings
    return {key: value for key, value in first.items() if all(other.get(key, ...) == value for other in others)}


def protocol_text(protocol: Mapping) -> str:
    return json.dumps(protocol)[1:-1].replace('"', "")


def csv_text(table: PaperTable, results: Sequence[Result]) -> str:
    """The table as CSV: a line per source and seed, and mean and standard deviation over seeds, in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("table", "row", "method", "model", "source", "seed", *table.metrics, "folder", "error"))
    for row in table.rows:
        about = (table.name, row.row, row.method, row.model)
        if row.paper:
            writer.writerow((*about, "paper", "", *(row.paper[metric] for metric in table.metrics), "", ""))
        mine = [result for result in results if result.row == row.row]
        for checkpoint in CHECKPOINTS:
            runs = [result for result in mine if checkpoint in result.metrics]
            values = [[value_of(row, run.metrics[checkpoint], metric) for metric in table.metrics] for run in runs]
            for run, cells in zip(runs, values, strict=True):
                writer.writerow((*about, checkpoint, run.seed, *cells, run.folder, ""))
            known = [[value for value in column if value is not None] for column in zip(*values, strict=True)]
            for index, name in enumerate(("mean", "std")):
                if runs:
                    writer.writerow(
                        (*about, checkpoint, name, *(spread(c)[index] if c else None for c in known), "", "")
                    )
        writer.writerows(
            (*about, "", run.seed, *[None] * len(table.metrics), run.folder, run.error) for run in mine if run.error
        )
    return text.getvalue()
