"""A page that compares two runs on the same data: what depth contributed, or any other change of settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import numpy as np

from depthg.config.schema import differing
from depthg.inference.read_outs import READ_OUTS
from depthg.model.run_folder import SCORES_FILE
from depthg.reporting.comparison_figures import class_figure, image_figure, signed, validation_figure
from depthg.reporting.page import PAGE, figure, is_number, pairs, percent, section, text, words
from depthg.reporting.run_files import protocol_words, read_run
from depthg.reporting.sections import read_image_scores
from depthg.storage.outputs import output_folder
from depthg.storage.whole_files import write_text

SAME = ("data", "photos", "split")  # else the numbers are about different things
MEASURED = ("resolution", "crop", "flip", "crf", "checkpoint", "matching", "count")
DRAWS = 2000  # of the bootstrap


@dataclass(frozen=True)
class Side:
    """One of the two runs, and what it is called on the page."""

    path: Path
    config: Mapping
    metrics: Mapping
    records: Sequence[Mapping]
    images: Mapping[str, tuple[float, float]]
    label: str = ""

    @property
    def protocol(self) -> Mapping:
        return self.metrics["protocol"]

    @property
    def guided(self) -> bool:
        """Whether depth took part in the training."""
        used = self.protocol.get("depth_term", "off") != "off" or self.protocol.get("sampling") == "fps"
        return self.protocol.get("depth", "none") != "none" and used


def write_comparison(
    first: Path, second: Path, out: Path | None = None, overwrite: bool = False, pictures: bool = True
) -> Path:
    """Write a page about two runs; the second is read as the change, or, where only one had depth, that one.

    Args:
        first, second: run folders.
        out: the file; None: ``FIRST-SECOND.html`` beside the first run.
        overwrite: whether it may exist.
        pictures: show images that gained and lost; needs the photos and both checkpoints, and is left out (saying so)
            where these are missing.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: a folder is no run.
        FileExistsError: the file exists.
        ValueError: a run without scores, or runs on other data, splits or classes.
    """
    a, b = (read_side(path) for path in (first, second))
    check_same_data(a, b)
    out = out or first.resolve().parent / f"{first.resolve().name}-{second.resolve().name}.html"
    output_folder(out.parent, (out.name,), overwrite)
    if a.guided and not b.guided:
        a, b = b, a
    title = "What depth contributed" if b.guided and not a.guided else "Comparison of two runs"
    a, b = name_sides(a, b)
    body = "".join(
        (
            _headline(a, b),
            section("Pictures", _pictures(a, b) if pictures else ""),
            section("Scores", score_table(a, b)),
            section("Classes and images", _figures(a, b)),
            section("Validation", _curves(a, b)),
            section("Settings that differ", settings_table(a, b)),
            section("Time and memory", cost_table(a, b)),
        )
    )
    runs = f"{escape(a.label)}: {escape(str(a.path.name))} · {escape(b.label)}: {escape(str(b.path.name))}"
    write_text(out, PAGE.format(title=title, subtitle=runs, body=body))
    return out


def read_side(path: Path) -> Side:
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; pass the folder of a run, such as runs/NAME")
    config, metrics, records = read_run(path)
    if not is_number(metrics.get("cluster.miou")) or not metrics.get("protocol"):
        missing = "no metrics.json" if not metrics else "no scores (was its data without labels?)"
        raise ValueError(f"{path} has {missing}, so there is nothing to compare; only evaluated runs can be compared")
    return Side(path.resolve(), config, metrics, records, read_image_scores(path / SCORES_FILE))


def check_same_data(a: Side, b: Side) -> None:
    """Raise ValueError for runs whose numbers are about different data."""
    for key in SAME:
        if a.protocol.get(key) != b.protocol.get(key):
            raise ValueError(
                f"{a.path} was measured on {key} {a.protocol.get(key)!r}, {b.path} on {b.protocol.get(key)!r}; numbers "
                f"of different data cannot be compared"
            )
    if a.metrics.get("classes") != b.metrics.get("classes"):
        raise ValueError(f"{a.path} and {b.path} have different classes; their numbers cannot be compared")


def name_sides(a: Side, b: Side) -> tuple[Side, Side]:
    """Both with labels: with and without depth, or their folders' names as far as these differ."""
    if b.guided and not a.guided:
        labels = ("without depth", "with depth")
    elif a.path.name != b.path.name:
        labels = (a.path.name, b.path.name)
    else:
        labels = ("/".join(a.path.parts[-2:]), "/".join(b.path.parts[-2:]))
    return replace(a, label=labels[0]), replace(b, label=labels[1])


def _pictures(a: Side, b: Side) -> str:
    from depthg.reporting.comparison_pictures import (
        picture_section,  # loads networks, which a page without pictures does not
    )

    runs = [(side.path, str(side.protocol.get("checkpoint", "last"))) for side in (a, b)]
    return picture_section(runs, (a.label, b.label), (a.images, b.images))


def _headline(a: Side, b: Side) -> str:
    cards = []
    for key, name in (("cluster", "Cluster"), ("linear", "Linear")):
        for kind, title in (("accuracy", "accuracy"), ("miou", "mIoU")):
            before, after = (side.metrics.get(f"{key}.{kind}") for side in (a, b))
            if is_number(before) and is_number(after):
                note = f"{percent(before)} % {a.label}, {percent(after)} % {b.label}"
                cards.append(
                    f'<div class="card"><div class="name">{name} {title}</div><div class="value">'
                    f'{signed(after - before)}<span>points</span></div><div class="note">{escape(note)}</div></div>'
                )
    other = [key for key in MEASURED if a.protocol.get(key) != b.protocol.get(key)]
    warning = ""
    if other:
        listed = "; ".join(f"{words(k)}: {text(a.protocol.get(k))} and {text(b.protocol.get(k))}" for k in other)
        warning = f'<p class="warning">Not measured alike, which is part of the differences: {escape(listed)}.</p>'
    seeds = [side.protocol.get("seed") for side in (a, b)]
    same = f"seed {seeds[0]}" if seeds[0] == seeds[1] else f"seeds {seeds[0]} and {seeds[1]}"
    hint = (
        f"One run each ({same}): part of every difference is chance. python -m depthg.reproduce table4 data=... gives "
        f"means and spreads over seeds."
    )
    shared = {key: value for key, value in a.protocol.items() if b.protocol.get(key) == value and key != "shifts"}
    line = " · ".join(map(escape, protocol_words(shared)))
    return (
        f'<section>{warning}<div class="cards">{"".join(cards)}</div><p class="hint">{escape(hint)}</p>'
        f'<p class="protocol"><b>Protocol of both</b> {line}</p></section>'
    )


def score_table(a: Side, b: Side) -> str:
    """Accuracy and mIoU of every read-out in both runs, with the change."""
    rows = []
    for key, (_, name, _) in READ_OUTS.items():
        for kind, title in (("accuracy", "accuracy"), ("miou", "mIoU")):
            before, after = (side.metrics.get(f"{key}.{kind}") for side in (a, b))
            if is_number(before) and is_number(after):
                cells = "".join(f"<td>{cell}</td>" for cell in (percent(before), percent(after)))
                change = f'<td class="gain">{signed(after - before)}</td>'
                rows.append(f'<tr><th scope="row">{escape(name)}, {title}</th>{cells}{change}</tr>')
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in ("%", a.label, b.label, "change"))
    return f'<table class="compare"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def paired(a: Side, b: Side) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the images that both runs scored, and their mIoU in both."""
    names = [name for name in a.images if name in b.images]
    before, after = (np.array([side.images[name][1] for name in names]) for side in (a, b))
    return names, before, after


def mean_interval(change: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Central 95% of the mean of ``change`` over bootstrap draws of the images."""
    draws = np.random.default_rng(seed).choice(change, (DRAWS, len(change)))
    return tuple(np.percentile(draws.mean(1), (2.5, 97.5)))


def _figures(a: Side, b: Side) -> str:
    labels, blocks = (a.label, b.label), []
    first, second = (dict(pairs(dict(pairs(side.metrics.get("per_class"))).get("cluster"))) for side in (a, b))
    if any(is_number(value) and is_number(second.get(name)) for name, value in first.items()):
        draw = lambda theme: class_figure(first, second, labels, theme)  # noqa: E731
        blocks.append(figure("IoU per class, cluster probe", draw))
    names, before, after = paired(a, b)
    if len(names) > 1:
        change = after - before
        low, high = mean_interval(change)
        sentence = (
            f"{b.label[0].upper()}{b.label[1:]}: better on {(change > 0).sum()} and worse on {(change < 0).sum()} of "
            f"{len(names)} images. Mean change of an image's mIoU: {signed(change.mean())}, 95% interval over images "
            f"{signed(low)} to {signed(high)}."
        )
        drawn = figure("Single images, cluster probe", lambda theme: image_figure(before, after, labels, theme))
        blocks.append(f'<div>{drawn}<p class="hint">{escape(sentence)}</p></div>')
    return f'<div class="grid">{"".join(blocks)}</div>' if blocks else ""


def _curves(a: Side, b: Side) -> str:
    first, second = ([line for line in side.records if is_number(line.get("cluster.miou"))] for side in (a, b))
    if min(len(first), len(second)) < 2:
        return ""
    charts = [
        figure(title, lambda theme, kind=kind: validation_figure(first, second, kind, (a.label, b.label), theme))
        for kind, title in (("accuracy", "Accuracy, cluster probe"), ("miou", "mIoU, cluster probe"))
    ]
    return f'<div class="grid">{"".join(charts)}</div>'


def settings_table(a: Side, b: Side) -> str:
    """Keys whose values differ; the preset's name is none of them, for the settings behind it are."""
    changes = differing(a.config, b.config)
    rows = [(key, *map(text, values)) for key, values in changes.items() if key != "experiment"]
    return _three_columns(("", a.label, b.label), rows) if rows else '<p class="hint">None.</p>'


def cost_table(a: Side, b: Side) -> str:
    """Seconds per part and peak memory of both."""
    first, second = (dict(pairs(side.metrics.get("seconds"))) for side in (a, b))
    rows = [(words(k), f"{v:.1f} s", f"{second[k]:.1f} s") for k, v in first.items() if is_number(v) and k in second]
    memory = [dict(pairs(side.metrics.get("memory"))) for side in (a, b)]
    for key, name in (("resident_mib", "peak memory"), ("gpu_mib", "peak GPU memory")):
        if all(is_number(found.get(key)) for found in memory):
            before, after = (f"{found[key] / 1024:.2f} GiB" for found in memory)
            rows.append((name, before, after))
    return _three_columns(("", a.label, b.label), rows)


def _three_columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return f'<table class="three"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>' if body else ""
