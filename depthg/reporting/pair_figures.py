"""Figures of a diagnosis: histograms over pairs of points, and agreement on the number of clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthg.reporting.figures import PRINT, Theme, new_figure, style_axes

TITLES = {"F": "F: cosine of features", "S": "S: cosine of codes", "D": "D: depth correlation inside an image"}
BINS_SHOWN = 120
TAIL = 0.001  # share of pairs cut off at either end of the axis


def shown_range(counts: np.ndarray, low: float, high: float, marks: Sequence[float] = ()) -> tuple[int, int]:
    """First and last bin (exclusive) that hold all but ``TAIL`` of every row, widened to the ``marks``."""
    first, last = counts.shape[1], 0
    for row in counts:
        share = row.cumsum() / max(row.sum(), 1)
        first = min(first, int(np.searchsorted(share, TAIL)))
        last = max(last, int(np.searchsorted(share, 1 - TAIL)) + 1)
    at = [int((mark - low) / (high - low) * counts.shape[1]) for mark in marks]
    return max(0, min([first, *at])), min(counts.shape[1], max([last, *(a + 1 for a in at)]))


def draw_histograms(
    ax: Axes,
    counts: np.ndarray,  # [rows, bins]
    names: Sequence[str],
    limits: tuple[float, float],
    theme: Theme,
    shifts: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Shares per row as outlines, with vertical lines at the shifts of each row ("used" solid, others dashed)."""
    shifts = shifts or {}
    marks = [value for values in shifts.values() for value in values]
    first, last = shown_range(counts, *limits, marks)
    group = max(1, -(-(last - first) // BINS_SHOWN))
    last = first + group * -(-(last - first) // group)
    edges = np.linspace(*limits, counts.shape[1] + 1)
    width = edges[1] - edges[0]
    for i, (row, name) in enumerate(zip(counts, names, strict=True)):
        padded = np.pad(row[first:last], (0, max(0, last - len(row))))
        share = padded.reshape(-1, group).sum(1) / max(row.sum(), 1) / (group * width)
        at = edges[0] + width * (first + group * np.arange(len(share) + 1))
        ax.stairs(share, at, color=theme.series[i], fill=True, alpha=0.13)
        ax.stairs(share, at, color=theme.series[i], linewidth=1.6, label=name)
    for label, values in shifts.items():
        for i, value in enumerate(values):
            ax.axvline(value, color=theme.series[i], linewidth=1.4, linestyle="-" if label == "used" else (0, (3, 2)))
    ax.set_yticks([])
    ax.margins(x=0.01)
    ax.set_ylim(bottom=0)
    if len(counts) > 1:
        ax.legend(frameon=False, labelcolor=theme.ink, fontsize=9, loc="upper right")


def draw_clusters(ax: Axes, clusters: Mapping, theme: Theme) -> None:
    """Prediction strength and silhouette over the number of clusters, with the threshold and the suggestion."""
    k = clusters["k"]
    ax.axhline(clusters["threshold"], color=theme.faint, linewidth=1, linestyle=(0, (3, 2)))
    ax.plot(k, clusters["strength"], color=theme.series[0], marker="o", markersize=4, label="prediction strength")
    ax.plot(k, clusters["silhouette"], color=theme.series[1], marker=".", linewidth=1.2, label="silhouette")
    if clusters["suggested"] is not None:
        at = k.index(clusters["suggested"]) if isinstance(k, list) else list(k).index(clusters["suggested"])
        ax.scatter(
            [k[at]], [clusters["strength"][at]], 130, facecolors="none", edgecolors=theme.series[0], linewidths=2
        )
        ax.annotate(f"{k[at]}", (k[at], clusters["strength"][at]), (0, 10), textcoords="offset points", ha="center",
                    color=theme.ink, fontsize=10.5, fontweight="bold")  # fmt: skip
    ax.set_ylim(min(0, *clusters["silhouette"]), 1.12)
    ax.set_xlabel("clusters", color=theme.faint)
    locator: Any = ax.xaxis.get_major_locator()  # whose subclass for linear axes takes this
    locator.set_params(integer=True)
    ax.legend(frameon=False, labelcolor=theme.ink, fontsize=9, loc="upper right")


def diagnosis_figure(
    found: Mapping,
    counts: Mapping[str, np.ndarray],
    limits: tuple[float, float],
    parts: Sequence[str] | None = None,
    theme: Theme = PRINT,
) -> Figure:
    """The given parts ("F", "S", "D", "clusters"; None: all of them) of a diagnosis, two in a row."""
    parts = [*counts, "clusters"] if parts is None else list(parts)
    columns = min(2, len(parts))
    figure, axes = new_figure(theme, 4.9 * columns, 3.2 * -(-len(parts) // columns), columns, len(parts))
    for ax, part in zip(axes, parts, strict=True):
        if part == "clusters":
            style_axes(ax, theme, f"How many clusters of {found['clusters']['of']}")
            draw_clusters(ax, found["clusters"], theme)
            continue
        style_axes(ax, theme, TITLES[part] + (f" ({found['D']['relation']})" if part == "D" else ""))
        rows = counts[part] if counts[part].ndim == 2 else counts[part][None]
        draw_histograms(ax, np.asarray(rows), names_of(part, found), limits, theme, shifts_of(part, found))
    return figure


def names_of(part: str, found: Mapping) -> list[str]:
    return ["pairs of points"] if part == "D" else [f"{kind} pairs" for kind in found[part]]


def shifts_of(part: str, found: Mapping) -> dict[str, list[float]]:
    """Vertical lines of a part, one value per row."""
    if part == "S":
        return {}
    if part == "D":
        return {"used": [found["D"]["shift"]]}
    rows = found["F"].values()
    return {"used": [r["shift"] for r in rows], "suggested": [r["suggested_shift"] for r in rows]}
