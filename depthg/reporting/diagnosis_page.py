"""The page of a diagnosis: ``diagnosis.html`` (one file, opens offline) and the same plots as ``diagnosis.png``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from depthg.reporting.figures import save_figure
from depthg.reporting.page import PAGE, figure, section
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
) -> None:
    """Write ``diagnosis.html`` and ``diagnosis.png`` into ``folder``, each whole or not at all."""
    arrays = {part: np.asarray(values) for part, values in counts.items()}
    parts = [*arrays, "clusters"]
    blocks = []
    for part in parts:
        title = TITLES.get(part, "Number of clusters")
        drawn = figure(title, lambda theme, p=part: diagnosis_figure(found, arrays, limits, [p], theme), caption=False)
        blocks.append(f'<div>{drawn}<p class="hint">{escape(NOTES[part])}</p></div>')
    suggestion = (
        f'<p><code class="setting">{escape(" ".join(settings))}</code></p><p class="hint">Shifts at the quantiles '
        f"{escape(', '.join(map(str, found['quantiles'])))} of F (loss.quantiles), as loss.shifts=auto takes them. No "
        f"label was read. {escape(clusters[0].upper() + clusters[1:])}.</p>"
    )
    body = section("Suggested", suggestion) + section("Plots", f'<div class="grid">{"".join(blocks)}</div>')
    body += section("Pairs", pair_table(found))
    about = [found["data"], found["backbone"], f"{found['views']} views", f"{found['sampling']} points"]
    about += [
        f"{found['batches']} batches of {found['batch_size']}",
        "F centred" if found["center"] else "F not centred",
    ]
    title = f"Diagnosis of {found['run'] or found['data']}"
    page = PAGE.format(title=escape(title), subtitle=escape(" · ".join(map(str, filter(None, about)))), body=body)
    save_figure(diagnosis_figure(found, arrays, limits), folder / "diagnosis.png")
    write_text(folder / "diagnosis.html", page)


def pair_table(found: Mapping) -> str:
    """Means, quantiles, shifts and shares of every kind of pair."""
    head = ("", "mean", "5%", "median", "95%", "shift", "positive", "suggested", "positive")
    rows = []
    for part in ("F", "S", "D"):
        values = found[part] and ({"one image": found[part]} if part == "D" else found[part])
        for kind, row in (values or {}).items():
            q, shift, suggested = row["quantiles"], row.get("shift"), row.get("suggested_shift")
            cells = [f"{v:.3f}" for v in (row["mean"], q["0.05"], q["0.5"], q["0.95"])]
            cells += ["0 (clamp)" if shift is None else f"{shift:.3f}", f"{row['positive_share']:.1%}"]
            cells += ["", ""] if suggested is None else [f"{suggested:.3f}", f"{row['suggested_positive_share']:.1%}"]
            row_cells = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            rows.append(f'<tr><th scope="row">{part}, {escape(kind)}</th>{row_cells}</tr>')
    header = "".join(f'<th scope="col">{name}</th>' for name in head)
    return f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
