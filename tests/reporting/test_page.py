"""Templates: text stays text in every place of every page, the style stands inside, a missing value is an error."""

import json
from dataclasses import replace
from importlib import resources

import jinja2
import numpy as np
import pytest
import test_comparison
from test_report import Page, full_metrics, full_run

import depthg.reporting.gallery
from depthg.reporting import diagnosis_page
from depthg.reporting.comparison import comparison_content, read_side
from depthg.reporting.gallery import write_gallery
from depthg.reporting.page import Drawing, Sheet, render
from depthg.reporting.report import report_content

HOSTILE = """"'><script>alert(1)</script><b>{{ 7 * 7 }}"""
EVALUATION = {"protocol": "x", "cluster.miou": 20.0, "cluster.intervals": {"miou": [18.0, 22.5]}}
PAIR = {
    "mean": 0.1, "quantiles": {"0.05": 0.0, "0.5": 0.1, "0.95": 0.2}, "shift": 0.1, "positive_share": 0.5,
    "suggested_shift": 0.2, "suggested_positive_share": 0.3,
}  # fmt: skip


def report(folder):
    run = full_run(folder / "run")
    metrics = full_metrics() | {"evaluations": [EVALUATION], "memory": {"resident_mib": 1024}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    return report_content(run) | {"note": "no scores", "images": "spread"}


def comparison(folder):
    runs = [test_comparison.make_run(folder / name, protocol={"flip": name == "a"}) for name in ("a", "b")]
    return comparison_content(*map(read_side, runs), pictures=False) | {"no_sheets": "no photos"}


def diagnosis(folder):
    clusters = {"k": [2], "strength": [1.0], "silhouette": [0.4], "suggested": 2, "threshold": 0.8, "of": "codes"}
    found = {
        "data": "x", "backbone": "net", "run": "run", "views": 1, "sampling": "fps", "batches": 1, "batch_size": 2,
        "center": True, "quantiles": [0.5], "F": {"self": PAIR}, "S": {"self": PAIR}, "D": None, "clusters": clusters,
    }  # fmt: skip
    counts = {"F": np.ones((1, 100)), "S": np.ones((1, 100))}
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnosis_page, "render", lambda name, content: kept.append(content) or "")
        diagnosis_page.write_page(
            folder, found, counts, ["loss.self.shift=0.1"], "two clusters", (-1.0, 1.0), "start with two"
        )
    return kept[0]


def gallery(folder):
    """Only names and lines that are shown."""
    photo = {"photo": "a photo.jpg", "files": ["ids/a.png"]}
    legend = {"run": "runs/x", "ids": [], "photos": [photo] * 3, "failed": ["b.jpg is broken"] * 3, "window": "resize"}
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(depthg.reporting.gallery, "render", lambda name, content: kept.append(content) or "")
        write_gallery(folder, legend, [])
    assert [link for _, link in kept[0]["links"]] == ["ids/a.png"] * 3
    return kept[0] | {"links": []}


def hostile(value):
    """The same content with ``HOSTILE`` behind every text."""
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(hostile, value))
    if isinstance(value, Drawing):
        return replace(value, title=hostile(value.title), note=hostile(value.note))
    if isinstance(value, Sheet):
        return replace(value, alt=hostile(value.alt), caption=hostile(value.caption))
    return value + HOSTILE if isinstance(value, str) else value


def texts(value):
    """Number of texts in the content."""
    if isinstance(value, dict):
        return sum(map(texts, value.values()))
    return sum(map(texts, value)) if isinstance(value, (list, tuple)) else isinstance(value, str)


@pytest.mark.parametrize("content", [report, comparison, diagnosis, gallery])
def test_text_stays_text_in_every_place(tmp_path, content):
    plain = content(tmp_path)
    (tmp_path / "page.html").write_text(render(f"{content.__name__}.html", plain), encoding="utf-8")
    (tmp_path / "hostile.html").write_text(render(f"{content.__name__}.html", hostile(plain)), encoding="utf-8")
    page, attacked = (Page(tmp_path / f"{name}.html") for name in ("page", "hostile"))
    shown = attacked.text.count("<script>alert(1)</script><b>{{ 7 * 7 }}")
    assert shown > 0.8 * texts(plain), "nearly all of the content is visible text"
    new = {"small", "p", "figcaption", "div"}  # around what was empty
    assert [tag for tag in attacked.tags if tag not in new] == [tag for tag in page.tags if tag not in new]


@pytest.mark.parametrize("content", [report, comparison, diagnosis, gallery])
def test_a_missing_value_is_an_error(tmp_path, content):
    full = content(tmp_path)
    for key in full:
        with pytest.raises(jinja2.UndefinedError, match=f"'{key}' is undefined"):
            render(f"{content.__name__}.html", {name: value for name, value in full.items() if name != key})


def test_the_style_stands_inside_the_page(tmp_path):
    style = resources.files("depthg.reporting") / "templates" / "style.css"
    html = render("report.html", report(tmp_path))
    assert html.startswith("<!DOCTYPE html>") and html.count(style.read_text(encoding="utf-8").strip()) == 1
