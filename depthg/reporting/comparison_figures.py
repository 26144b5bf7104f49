"""Figures of a comparison of two runs: classes, single images, validation curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from depthg.reporting.figures import PRINT, Theme, new_figure, plain, style_axes

LEGEND: dict[str, Any] = {
    "frameon": False, "fontsize": 9, "ncols": 2, "loc": "lower center", "bbox_to_anchor": (0.5, 1.0),
}  # fmt: skip


def class_figure(
    first: Mapping[str, float | None], second: Mapping[str, float | None], names: Sequence[str], theme: Theme = PRINT
) -> Figure:
    """IoU of every class in both runs, joined by a line, largest gain on top; classes that do not occur are left out.

    Args:
        first, second: class -> IoU in percent, None where the class does not occur.
        names: of the two runs.
    """
    known = [name for name in first if first[name] is not None and second.get(name) is not None]
    known.sort(key=lambda name: second[name] - first[name])
    rows, a, b = np.arange(len(known)), *(np.array([run[name] for name in known]) for run in (first, second))
    names = plain(names)
    figure, (ax,) = new_figure(theme, 4.9, 1.1 + 0.29 * len(known), 1, 1)
    style_axes(ax, theme, None)
    ax.hlines(rows, a, b, color=theme.faint, linewidth=1.6, alpha=0.6)
    ax.scatter(a, rows, 42, facecolors="none", edgecolors=theme.series[1], linewidths=1.8, zorder=3, label=names[0])
    ax.scatter(b, rows, 46, color=theme.series[0], zorder=3, label=names[1])
    for row, change in zip(rows, b - a, strict=True):
        ax.annotate(signed(change), (104, row), color=theme.ink, va="center", ha="left", fontsize=9.5,
                    annotation_clip=False)  # fmt: skip
    ax.set_yticks(rows, plain(known), color=theme.ink)
    ax.set_xlim(0, 100)
    ax.set_ylim(-0.6, len(known) - 0.4)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("IoU (%)", color=theme.faint)
    ax.legend(labelcolor=theme.ink, **LEGEND)
    return figure


def image_figure(first: np.ndarray, second: np.ndarray, names: Sequence[str], theme: Theme = PRINT) -> Figure:
    """mIoU of every image in both runs; above the diagonal the second is better."""
    names = plain(names)
    figure, (ax,) = new_figure(theme, 4.9, 4.3, 1, 1)
    style_axes(ax, theme, None)
    low, high = min(first.min(), second.min()), max(first.max(), second.max())
    margin = 0.04 * max(high - low, 1.0)
    ends = (low - margin, high + margin)
    ax.plot(ends, ends, color=theme.faint, linewidth=1, linestyle=(0, (3, 2)))
    ax.scatter(first, second, 26, color=theme.series[0], alpha=0.75, linewidths=0)
    ax.set_xlim(ends)
    ax.set_ylim(ends)
    ax.set_aspect("equal")
    ax.set_xlabel(f"mIoU of an image, {names[0]} (%)", color=theme.faint)
    ax.set_ylabel(f"{names[1]} (%)", color=theme.faint)
    return figure


def validation_figure(
    first: Sequence[Mapping], second: Sequence[Mapping], kind: str, names: Sequence[str], theme: Theme = PRINT
) -> Figure:
    """``kind`` ("accuracy" or "miou") of the cluster probe over iterations, of the evaluated lines of both logs."""
    names = plain(names)
    figure, (ax,) = new_figure(theme, 4.7, 3.1, 1, 1)
    style_axes(ax, theme, None)
    for lines, name, colour in ((first, names[0], theme.series[1]), (second, names[1], theme.series[0])):
        x, y = zip(*((line["iteration"], line[f"cluster.{kind}"]) for line in lines), strict=True)
        ax.plot(x, y, color=colour, marker="o", markersize=4, linewidth=1.8, label=name)
    ax.set_xlabel("iteration", color=theme.faint)
    ax.set_ylabel("%", color=theme.faint)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    ax.legend(frameon=False, labelcolor=theme.ink, fontsize=9)
    return figure


def signed(value: float) -> str:
    """+1.2, a true minus, and no sign on what rounds to zero."""
    rounded = round(float(value), 1)
    return f"{rounded:+.1f}".replace("-", "\u2212") if rounded else "0.0"
