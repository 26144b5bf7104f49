"""A page that compares two runs on the same data: what depth contributed, or any other change of settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from depthg.config.schema import differing
from depthg.inference.read_outs import READ_OUTS, SCORES
from depthg.model.run_folder import SCORES_FILE
from depthg.reporting.comparison_figures import class_figure, image_figure, signed, validation_figure
from depthg.reporting.page import HEADLINE, Drawing, Sheet, drawing, render
from depthg.reporting.run_files import protocol_words, read_image_scores, read_run
from depthg.reporting.values import gibibytes, is_number, pairs, percent, text, words
from depthg.storage.outputs import output_folder
from depthg.storage.whole_files import write_text

SAME = ("data", "photos", "split")  # else the numbers are about different things
MEASURED = ("resolution", "crop", "flip", "crf", "checkpoint", "matching", "count", "linear")
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
    """Write a page about two runs. The second is the change; if only one run had depth, that one is.

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
    a, b = ordered_sides(first, second)
    out = out or first.resolve().parent / f"{first.resolve().name}-{second.resolve().name}.html"
    output_folder(out.parent, (out.name,), overwrite)
    write_text(out, render("comparison.html", comparison_content(a, b, pictures)))
    return out


def ordered_sides(first: Path, second: Path) -> tuple[Side, Side]:
    """Both runs, the change last: the second, or the only one with depth."""
    a, b = (read_side(path) for path in (first, second))
    check_same_data(a, b)
    return (b, a) if a.guided and not b.guided else (a, b)


def result_lines(first: Path, second: Path) -> list[str]:
    """Accuracy and mIoU of the clusters of both runs, a line each."""
    a, b = name_sides(*ordered_sides(first, second))
    return [
        f"{name}: {percent(before)} % {a.label}, {percent(after)} % {b.label} ({signed(after - before)})"
        for name, before, after in _both(a, b, HEADLINE)
        if name.startswith("Cluster")
    ]


def comparison_content(a: Side, b: Side, pictures: bool) -> dict[str, Any]:
    """What ``templates/comparison.html`` lays out; ``b`` is the change."""
    title = "What depth contributed" if b.guided and not a.guided else "Comparison of two runs"
    a, b = name_sides(a, b)
    sheets, no_sheets = _pictures(a, b) if pictures else ([], "")
    seeds = [side.protocol.get("seed") for side in (a, b)]
    unlike = [key for key in MEASURED if a.protocol.get(key) != b.protocol.get(key)]
    shared = {key: value for key, value in a.protocol.items() if b.protocol.get(key) == value and key != "shifts"}
    changes = {key: values for key, values in differing(a.config, b.config).items() if key != "experiment"}
    return {
        "title": title, "labels": [a.label, b.label],
        "subtitle": [f"{side.label}: {side.path.name}" for side in (a, b)],
        "unlike": [f"{words(k)}: {text(a.protocol.get(k))} and {text(b.protocol.get(k))}" for k in unlike],
        "cards": [
            (name, signed(after - before), "points", f"{percent(before)} % {a.label}, {percent(after)} % {b.label}")
            for name, before, after in _both(a, b, HEADLINE)
        ],
        "seeds": f"seed {seeds[0]}" if seeds[0] == seeds[1] else f"seeds {seeds[0]} and {seeds[1]}",
        "protocol": protocol_words(shared), "sheets": sheets, "no_sheets": no_sheets,
        "scores": score_rows(a, b), "figures": [*_class_figures(a, b), *_image_figures(a, b)], "curves": _curves(a, b),
        "settings": [(key, *map(text, values)) for key, values in changes.items()], "costs": cost_rows(a, b),
    }  # fmt: skip


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
    """Both with labels: with and without depth, or the names of their folders (with the parent where these agree)."""
    if b.guided and not a.guided:
        labels = ("without depth", "with depth")
    elif a.path.name != b.path.name:
        labels = (a.path.name, b.path.name)
    else:
        labels = ("/".join(a.path.parts[-2:]), "/".join(b.path.parts[-2:]))
    return replace(a, label=labels[0]), replace(b, label=labels[1])


def _pictures(a: Side, b: Side) -> tuple[list[Sheet], str]:
    from depthg.reporting.comparison_pictures import changed_sheets  # loads networks: not for a page without pictures

    runs = [(side.path, str(side.protocol.get("checkpoint", "last"))) for side in (a, b)]
    return changed_sheets(runs, (a.label, b.label), (a.images, b.images))


def _both(a: Side, b: Side, names: Mapping[str, str]) -> list[tuple[str, float, float]]:
    """Name and value in both runs of the metrics in ``names`` that both have."""
    values = [(name, a.metrics.get(metric), b.metrics.get(metric)) for metric, name in names.items()]
    return [(name, *both) for name, *both in values if all(map(is_number, both))]


def score_rows(a: Side, b: Side) -> list[tuple[str, str, str, str]]:
    """Accuracy and mIoU of every read-out in both runs, with the change."""
    names = {f"{k}.{kind}": f"{READ_OUTS[k].title}, {title}" for k in READ_OUTS for kind, title in SCORES.items()}
    return [
        (name, percent(before), percent(after), signed(after - before)) for name, before, after in _both(a, b, names)
    ]


def paired(a: Side, b: Side) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the images that both runs scored, and their mIoU in both."""
    names = [name for name in a.images if name in b.images]
    before, after = (np.array([side.images[name][1] for name in names]) for side in (a, b))
    return names, before, after


def mean_interval(change: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Central 95% of the mean of ``change`` over bootstrap draws of the images."""
    draws = np.random.default_rng(seed).choice(change, (DRAWS, len(change)))
    return tuple(np.percentile(draws.mean(1), (2.5, 97.5)))


def _class_figures(a: Side, b: Side) -> list[Drawing]:
    first, second = (dict(pairs(dict(pairs(side.metrics.get("per_class"))).get("cluster"))) for side in (a, b))
    if not any(is_number(value) and is_number(second.get(name)) for name, value in first.items()):
        return []
    return [drawing("IoU per class, cluster probe", class_figure, first, second, (a.label, b.label))]


def _image_figures(a: Side, b: Side) -> list[Drawing]:
    names, before, after = paired(a, b)
    if len(names) < 2:
        return []
    change = after - before
    low, high = mean_interval(change)
    note = (
        f"{b.label[0].upper()}{b.label[1:]}: better on {(change > 0).sum()} and worse on {(change < 0).sum()} of "
        f"{len(names)} images. Mean change of an image's mIoU: {signed(change.mean())}, 95% interval over images "
        f"{signed(low)} to {signed(high)}."
    )
    title = "Single images, cluster probe"
    return [drawing(title, image_figure, before, after, (a.label, b.label), note=note)]


def _curves(a: Side, b: Side) -> list[Drawing]:
    first, second = ([line for line in side.records if is_number(line.get("cluster.miou"))] for side in (a, b))
    if min(len(first), len(second)) < 2:
        return []
    titles = {"accuracy": "Accuracy, cluster probe", "miou": "mIoU, cluster probe"}
    labels = (a.label, b.label)
    return [drawing(title, validation_figure, first, second, kind, labels) for kind, title in titles.items()]


def cost_rows(a: Side, b: Side) -> list[tuple[str, str, str]]:
    """Seconds per part and peak memory of both."""
    first, second = (dict(pairs(side.metrics.get("seconds"))) for side in (a, b))
    rows = [(words(k), f"{v:.1f} s", f"{second[k]:.1f} s") for k, v in first.items() if is_number(v) and k in second]
    memory = [dict(pairs(side.metrics.get("memory"))) for side in (a, b)]
    for key, name in (("resident_mib", "peak memory"), ("gpu_mib", "peak GPU memory")):
        if all(is_number(found.get(key)) for found in memory):
            before, after = (gibibytes(found[key]) for found in memory)
            rows.append((name, before, after))
    return rows
