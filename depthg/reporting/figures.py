"""Curves, per-class bars and confusion matrices as matplotlib figures (no pyplot, no global state)."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from depthg.inference.read_outs import READ_OUTS
from depthg.storage.whole_files import write_whole

if TYPE_CHECKING:  # matplotlib takes a second to import: only what draws does so
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Theme(NamedTuple):
    """Colours of a figure; ``paper`` None lets the page behind show through."""

    ink: str
    faint: str
    grid: str
    paper: str | None
    series: tuple[str, ...]
    ramp: tuple[str, str]  # confusion matrix, 0% and 100%


LIGHT_SERIES = ("#1f6fb5", "#d9480f", "#2b8a3e", "#8a3ffc", "#946200")
DARK_SERIES = ("#6cb6ff", "#ffa06b", "#69db7c", "#c6a2ff", "#ffd43b")
LIGHT = Theme("#1c2024", "#60666e", "#d9dde2", None, LIGHT_SERIES, ("#f3f6fa", "#0b4f8a"))
DARK = Theme("#e7eaee", "#9aa3ad", "#3a4149", None, DARK_SERIES, ("#20262d", "#7cc0ff"))
PRINT = LIGHT._replace(paper="#ffffff")

TERMS = {"loss.self": "self", "loss.neighbour": "neighbour", "loss.negative": "negative", "loss.depth": "depth"}
PROBES = {"loss.cluster": "cluster probe", "loss.linear": "linear probe"}
CURVES = [*(key for key in READ_OUTS if key != "linear_joint"), "linear_joint"]  # in the order of the colours
# Part of the curves: title, keys with their names, whether every step is noisy and wants a running mean.
PARTS = {
    "loss": ("Loss", {"loss": "total"}, True),
    "terms": ("Loss terms, unweighted", TERMS, True),
    "probes": ("Probe losses", PROBES, True),
    "accuracy": ("Validation accuracy (%)", {f"{k}.accuracy": READ_OUTS[k].title for k in CURVES}, False),
    "miou": ("Validation mIoU (%)", {f"{k}.miou": READ_OUTS[k].title for k in CURVES}, False),
}
MOST_POINTS = 400  # points drawn per line


def available_curves(records: Sequence[Mapping]) -> list[str]:
    """Parts of :func:`curves_figure` with at least two points of a line in ``records``."""
    return [part for part, (_, keys, _) in PARTS.items() if any(len(_series(records, key)[0]) > 1 for key in keys)]


def curves_figure(records: Sequence[Mapping], parts: Sequence[str] | None = None, theme: Theme = PRINT) -> Figure:
    """Loss and metric curves over iterations, one chart per part.

    Args:
        records: lines of metrics.jsonl: ``iteration`` and any of the keys in ``PARTS``; NaN and None are left out.
        parts: keys of ``PARTS``; None: all that ``records`` can fill.
        theme: colours.
    """
    from matplotlib.ticker import MaxNLocator

    parts = available_curves(records) if parts is None else list(parts)
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"unknown curves {unknown}; choose from {list(PARTS)}")
    if not parts:
        raise ValueError("records hold no curve: at least two iterations with a loss or a score are needed")
    columns = min(2, len(parts))
    figure, axes = new_figure(theme, 4.7 * columns, 3.1 * math.ceil(len(parts) / columns), columns, len(parts))
    for ax, part in zip(axes, parts, strict=True):
        title, keys, noisy = PARTS[part]
        style_axes(ax, theme, title)
        curves = [(name, *_series(records, key)) for key, name in keys.items()]
        lines = [(i, *curve) for i, curve in enumerate(curves) if len(curve[1])]
        for i, name, x, y in lines:
            _line(ax, x, y, theme.series[i], name, noisy)
        ax.set_xlabel("iteration", color=theme.faint)
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        if len(lines) > 1:
            ax.legend(frameon=False, labelcolor=theme.ink, fontsize=9, ncols=2, loc="lower center",
                      bbox_to_anchor=(0.5, 1.0), borderaxespad=0.1)  # fmt: skip
            ax.title.set_position((0, 1.0))
            ax.set_title(title, color=theme.ink, fontsize=11.5, loc="left", pad=9 + 13 * math.ceil(len(lines) / 2))
    return figure


def iou_figure(per_class: Mapping[str, Mapping[str, float | None]], theme: Theme = PRINT) -> Figure:
    """IoU of every class, best first: a bar for the cluster probe, marks for the other read-outs.

    Args:
        per_class: read-out -> class -> IoU in percent; None or NaN where the class does not occur.
        theme: colours.
    """
    main = next((key for key in READ_OUTS if key in per_class), None)
    if main is None or not per_class[main]:
        raise ValueError(f"per_class must hold one of {list(READ_OUTS)}, got {list(per_class)}")
    value = {name: _number(v) for name, v in per_class[main].items()}
    names = sorted(value, key=lambda name: -1 if math.isnan(value[name]) else value[name])
    figure, (ax,) = new_figure(theme, 4.7, 1.1 + 0.29 * len(names), 1, 1)
    style_axes(ax, theme, None)
    rows = np.arange(len(names))
    widths = np.nan_to_num([value[name] for name in names])
    ax.barh(rows, widths, 0.66, color=theme.series[0], alpha=0.8, label=READ_OUTS[main].title)
    marks = {"linear": ("|", 150, 1), "kmeans_codes": ("x", 40, 2), "kmeans_features": ("o", 46, 3)}
    for key, (marker, size, colour) in marks.items():
        if key in per_class and key != main:
            at = [_number(per_class[key].get(name)) for name in names]
            look: dict[str, Any] = {"edgecolors": theme.series[colour], "facecolors": "none"} if marker == "o" else {}
            look = look or {"color": theme.series[colour]}
            ax.scatter(at, rows, size, marker=marker, linewidths=2, zorder=3, clip_on=False,
                       label=READ_OUTS[key].title, **look)  # fmt: skip
    for row, name in zip(rows, names, strict=True):
        text = "not in the labels" if math.isnan(value[name]) else f"{value[name]:.0f}"
        ax.annotate(text, (103 if text.isdigit() else 1, row), color=theme.ink if text.isdigit() else theme.faint,
                    va="center", ha="left", fontsize=9.5, annotation_clip=False)  # fmt: skip
    ax.set_yticks(rows, plain(names), color=theme.ink)
    ax.set_xlim(0, 100)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("IoU (%)", color=theme.faint)
    ax.tick_params(axis="y", pad=9)
    handles, labels = ax.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i] != READ_OUTS[main].title)
    ax.legend([handles[i] for i in order], [labels[i] for i in order], frameon=False, labelcolor=theme.ink, fontsize=9,
              ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))  # fmt: skip
    return figure


def confusion_figure(
    confusion: np.ndarray,  # int [n, n] or [n, n + 1]
    classes: Sequence[str],
    theme: Theme = PRINT,
) -> Figure:
    """Confusion matrix with rows in percent; the number of labelled pixels of a class stands at the right.

    Args:
        confusion: counts, rows = true classes, columns = predicted classes; a further column holds pixels of clusters
            without a class and is drawn when it is not empty.
        classes: names of the n classes.
        theme: colours.
    """
    from matplotlib.colors import LinearSegmentedColormap

    counts = np.asarray(confusion, dtype=np.int64)
    n = len(classes)
    if n == 0 or counts.shape not in ((n, n), (n, n + 1)):
        raise ValueError(f"confusion has shape {counts.shape}; {n} classes need ({n}, {n}) or ({n}, {n + 1})")
    counts = counts if counts[:, n:].any() else counts[:, :n]
    total = counts.sum(1, keepdims=True)
    share = 100 * counts / np.maximum(total, 1)
    cell = 0.46 if n <= 12 else 0.34
    font = 9.5 if n <= 12 else 7.5
    figure, (ax,) = new_figure(theme, 1.9 + cell * counts.shape[1], 1.3 + cell * n, 1, 1)
    style_axes(ax, theme, None)
    ax.grid(visible=False)
    edges_x, edges_y = np.arange(counts.shape[1] + 1), np.arange(n + 1)
    ramp = LinearSegmentedColormap.from_list("share", list(theme.ramp))  # matplotlib 3.8: a pair is colour and alpha
    ax.pcolormesh(edges_x, edges_y, share, cmap=ramp, vmin=0, vmax=100, edgecolors=theme.grid, linewidth=0.4)
    dark_end = theme.ramp[1] == PRINT.ramp[1]
    for (i, j), value in np.ndenumerate(share):
        if value >= 0.5:
            strong = value > 55
            ink = ("#ffffff" if dark_end else "#10151a") if strong else theme.ink
            ax.text(j + 0.5, i + 0.5, f"{value:.0f}", color=ink, ha="center", va="center", fontsize=font,
                    fontweight="bold" if i == j else "normal")  # fmt: skip
    classes = plain(classes)
    columns = [*classes, "no class"][: counts.shape[1]]
    ax.set_xticks(edges_x[:-1] + 0.5, columns, rotation=45, ha="right", rotation_mode="anchor", color=theme.ink)
    ax.set_yticks(edges_y[:-1] + 0.5, classes, color=theme.ink)
    for i in range(n):
        ax.annotate(_short_count(int(total[i, 0])), (counts.shape[1] + 0.15, i + 0.5), color=theme.faint, va="center",
                    fontsize=font, annotation_clip=False)  # fmt: skip
    ax.annotate("pixels", (counts.shape[1] + 0.15, -0.12), color=theme.faint, fontsize=font, annotation_clip=False)
    ax.set_ylim(n, 0)
    ax.set_aspect("equal")
    ax.set_xlabel("predicted", color=theme.faint)
    ax.set_ylabel("true class, rows in %", color=theme.faint)
    return figure


def plain(names: Sequence[str]) -> list[str]:
    """Names with dollars escaped: matplotlib reads what stands between two of them as a formula."""
    return [str(name).replace("$", r"\$") for name in names]


def save_figure(figure: Figure, path: Path | str, dpi: int = 150) -> None:
    """Write a figure whole or not at all; the ending chooses the format (png, svg, pdf)."""
    path = Path(path)
    write_whole(path, lambda partial: figure.savefig(partial, format=path.suffix[1:] or "png", dpi=dpi))


def svg_bytes(figure: Figure) -> bytes:
    """A figure as SVG with its text as shapes, so that it looks the same without any font."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=figure.patch.get_alpha() == 0)
    return buffer.getvalue()


def new_figure(theme: Theme, width: float, height: float, columns: int, n_axes: int) -> tuple[Figure, list[Axes]]:
    """An empty figure of ``n_axes`` axes in rows of ``columns``; sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor=theme.paper or "none")
    figure.patch.set_alpha(None if theme.paper else 0)
    rows = math.ceil(n_axes / columns)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(n_axes)]


def style_axes(ax: Axes, theme: Theme, title: str | None) -> None:
    """Quiet axes: no box, a light grid, a title at the left."""
    ax.set_facecolor("none")
    ax.spines[:].set_visible(False)
    ax.grid(color=theme.grid, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=theme.faint, length=0, labelsize=10)
    if title:
        ax.set_title(title, color=theme.ink, fontsize=11.5, loc="left")


def _line(ax: Axes, x: np.ndarray, y: np.ndarray, colour: str, name: str, noisy: bool) -> None:
    """One line; a noisy one as a faint trace under its running mean over 5% of the points."""
    if not noisy:
        ax.plot(x, y, color=colour, label=name, marker="o", markersize=4, linewidth=1.8)
        return
    half = len(y) // 40
    mean = running_mean(y, half)
    shown = np.unique(np.linspace(0, len(y) - 1, min(len(y), MOST_POINTS)).round().astype(int))
    if half:
        ax.plot(x[shown], y[shown], color=colour, alpha=0.25, linewidth=0.8)
    ax.plot(x[shown], mean[shown], color=colour, label=name, linewidth=1.8)


def running_mean(y: np.ndarray, half: int) -> np.ndarray:  # [n] -> [n]
    """Mean over ``half`` neighbours on either side; fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(y)])
    at = np.arange(len(y))
    first, end = np.maximum(at - half, 0), np.minimum(at + half + 1, len(y))
    return (total[end] - total[first]) / (end - first)


def _series(records: Sequence[Mapping], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and finite values of a key, sorted; of a repeated iteration (a resumed run) the last record counts."""
    points = {r["iteration"]: _number(r.get(key)) for r in records if "iteration" in r and key in r}
    points = {x: y for x, y in sorted(points.items()) if math.isfinite(y)}
    return np.array(list(points), dtype=np.float64), np.array(list(points.values()), dtype=np.float64)


def _number(value: object) -> float:
    """``value`` as a float, NaN for None or anything that is no number."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def _short_count(count: int) -> str:
    """1234567 -> "1.2M"."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f}{unit}" if count < 10 * size else f"{count / size:.0f}{unit}"
    return str(count)
