"""The page of a diagnosis: ``diagnosis.html`` (one file, opens offline) and the same plots as ``diagnosis.png``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from depthg.reporting.figures import save_figure
from depthg.reporting.page import drawing, render
from depthg.reporting.pair_figures import TITLES, diagnosis_figure
from depthg.storage.whole_files import write_text

NOTES = {
    "F": "Pairs right of their shift b (solid line: in use; dashed: suggested) are pulled together, pairs left of it "
    "pushed apart. Self: points of one photo; neighbour: of a photo and its neighbour; negative: of random photos.",
    "S": "What the head made of it: cosines of codes at the same points. Below 0 the clamp stops the push.",
    "D": "The line is the shift in the first iteration: pairs right of it are pulled together by the depth term.",
    "clusters": "Two random halves of the photos are clustered independently; the strength says how far they agree in "
    "the cluster where they agree least (Tibshirani and Walther, 2005).",
}


def write_page(
    folder: Path,
    found: Mapping,
    counts: Mapping[str, object],  # [rows, bins] or [bins]
    settings: Sequence[str],
    clusters: str,
    limits: tuple[float, float],
    advice: str,
) -> None:
    """Write ``diagnosis.html`` and ``diagnosis.png`` into ``folder``, each whole or not at all.

    Args:
        found: statistics as ``diagnosis.json`` holds them.
        counts: the histograms behind them.
        settings: the suggested shifts as ``key=value``.
        clusters: a sentence about the number of clusters.
        limits: ends of the histograms.
        advice: what to do, in words.
    """
    arrays = {part: np.asarray(values) for part, values in counts.items()}
    titles = {part: TITLES.get(part, "Number of clusters") for part in (*arrays, "clusters")}
    about = [
        found["data"], found["backbone"], f"{found['views']} views", f"{found['sampling']} points",
        f"{found['batches']} batches of {found['batch_size']}", "F centred" if found["center"] else "F not centred",
    ]  # fmt: skip
    content = {
        "title": f"Diagnosis of {found['run'] or found['data']}", "subtitle": [part for part in about if part],
        "settings": settings, "quantiles": list(found["quantiles"]), "clusters": clusters[0].upper() + clusters[1:],
        "advice": advice[0].upper() + advice[1:],
        "plots": [
            drawing(title, diagnosis_figure, found, arrays, limits, [part], note=NOTES[part])
            for part, title in titles.items()
        ],
        "pairs": pair_rows(found),
    }  # fmt: skip
    page = render("diagnosis.html", content)
    save_figure(diagnosis_figure(found, arrays, limits), folder / "diagnosis.png")
    write_text(folder / "diagnosis.html", page)


def pair_rows(found: Mapping) -> list[list[str]]:
    """Mean, quantiles, shifts and shares of every kind of pair."""
    rows = []
    for part in ("F", "S", "D"):
        values = found[part] and ({"one image": found[part]} if part == "D" else found[part])
        for kind, row in (values or {}).items():
            q, shift, suggested = row["quantiles"], row.get("shift"), row.get("suggested_shift")
            cells = [f"{v:.3f}" for v in (row["mean"], q["0.05"], q["0.5"], q["0.95"])]
            cells += ["0 (clamp)" if shift is None else f"{shift:.3f}", f"{row['positive_share']:.1%}"]
            cells += ["", ""] if suggested is None else [f"{suggested:.3f}", f"{row['suggested_positive_share']:.1%}"]
            rows.append([f"{part}, {kind}", *cells])
    return rows
