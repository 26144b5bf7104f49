"""Panels: photo, depth, label, clusters and linear probe side by side, with one legend. Drawn with Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from depthg.data.colours import class_palette, depth_colours, depth_scale
from depthg.inference.overlays import font
from depthg.storage.whole_files import write_whole

VOID, NO_CLASS = -1, -2  # ids that belong to no class: not labelled; a cluster left without a class
UNKNOWN = "depth unknown"
VOID_COLOUR, STRIPES = (0, 0, 0), ((255, 255, 255), (110, 110, 110))
PAPER, INK, FAINT = (255, 255, 255), (25, 28, 32), (98, 104, 112)
COLUMNS = {"image": "Image", "depth": "Depth", "label": "Label", "clusters": "Clusters", "linear": "Linear probe"}
NARROW = 2  # tiles side by side on a phone
MARGIN, GAP, TITLE, TEXT = 18, 8, 22, 19  # pixels


@dataclass(frozen=True)
class Example:
    """One row of a sheet; maps may be smaller or larger than the image and are scaled to its tile."""

    image: np.ndarray  # uint8 [H, W, 3]
    clusters: np.ndarray  # int [H, W], cluster ids
    depth: np.ndarray | None = None  # float [H, W], near = small; inf = sky, NaN or <= 0 metres = unknown
    label: np.ndarray | None = None  # int [H, W], -1 = void
    linear: np.ndarray | None = None  # int [H, W], classes
    name: str = ""


class Key(NamedTuple):
    """What the colours of a sheet mean."""

    names: tuple[str, ...]
    palette: np.ndarray  # uint8 [n, 3]
    assignment: np.ndarray | None  # int [n_clusters], class of every cluster or -1; None: ids are in `names` already


def panel(
    image: np.ndarray,  # uint8 [H, W, 3]
    clusters: np.ndarray,  # int [H, W]
    *,
    depth: np.ndarray | None = None,  # float [H, W]
    label: np.ndarray | None = None,  # int [H, W]
    linear: np.ndarray | None = None,  # int [H, W]
    name: str = "",
    **settings,
) -> Image.Image:
    """One example with titles and legend; ``settings`` are those of :func:`panel_sheet`."""
    return panel_sheet([Example(image, clusters, depth, label, linear, name)], **settings)


def panel_sheet(
    examples: Sequence[Example],
    *,
    classes: Sequence[str] = (),
    palette: np.ndarray | None = None,  # uint8 [n_classes, 3]
    assignment: np.ndarray | None = None,  # int [n_clusters]
    n_clusters: int | None = None,
    metric: bool | None = None,
    tile: int = 256,
    titles: Mapping[str, str] | None = None,
    columns: int | None = None,
) -> Image.Image:
    """A row per example: image | depth | label | clusters | linear, with column titles and one legend below.

    A column that no example has is left out. Rows keep the aspect ratio of their image.

    Args:
        examples: at least one.
        classes: class names; empty without labels, then clusters are shown by number, each in its colour.
        palette: a colour per class; None: ``class_palette``.
        assignment: class of every cluster (-1: none, drawn striped); None: cluster ids are class ids already.
        n_clusters: clusters in the legend without classes; None: those that occur.
        metric: depth is in metres (drawn on a logarithmic scale with its range written down); None: when a value
            exceeds 1.
        tile: width of a tile in pixels.
        titles: other words above the columns, by field of :class:`Example`.
        columns: tiles side by side, for narrow screens: each example takes several lines, and each tile has its title.
            None: all tiles in one line.

    Raises:
        ValueError: no example, a map of the wrong shape, or ids without a colour.
    """
    if not examples:
        raise ValueError("a sheet needs at least one example, got none")
    key = _key(examples, tuple(classes), palette, assignment, n_clusters)
    fields = [field for field in COLUMNS if any(getattr(example, field) is not None for example in examples)]
    scale = depth_scale([e.depth for e in examples if e.depth is not None], metric)
    words, narrow = COLUMNS | dict(titles or {}), columns is not None and columns < len(fields)
    lines = [fields[i : i + columns] for i in range(0, len(fields), columns)] if narrow else [fields]
    if narrow:
        rows = [_block(example, lines, words, key, scale, tile) for example in examples]
    else:
        rows = [_row(example, fields, key, scale, tile) for example in examples]
    width = 2 * MARGIN + len(lines[0]) * (tile + GAP) - GAP
    legend = _legend(_entries(examples, key), key, scale, width, holes=any(map(_has_holes, examples)))
    head = MARGIN if narrow else MARGIN + round(1.6 * TITLE)
    sheet = Image.new("RGB", (width, head + sum(r.height + GAP for r in rows) + GAP + legend.height), PAPER)
    draw = ImageDraw.Draw(sheet)
    if not narrow:
        _titles(draw, [words[field] for field in fields], MARGIN, head, tile)
    y = head
    for row in rows:
        sheet.paste(row, (MARGIN, y))
        y += row.height + GAP
    sheet.paste(legend, (0, y + GAP))
    return sheet


def save_png(image: Image.Image, path: Path | str) -> None:
    """Write a PNG whole or not at all; missing folders are made."""
    write_whole(Path(path), lambda partial: image.save(partial, format="PNG", optimize=True))


def _key(examples, classes, palette, assignment, n_clusters) -> Key:
    """Names and colours of a sheet, with every id checked against them."""
    if classes:
        palette = class_palette(len(classes)) if palette is None else np.asarray(palette, np.uint8)
        if palette.shape != (len(classes), 3):
            raise ValueError(f"palette has shape {palette.shape}, expected ({len(classes)}, 3): a colour per class")
    else:
        occurring = 1 + max(int(np.max(e.clusters, initial=-1)) for e in examples)
        n_clusters = occurring if n_clusters is None else n_clusters
        classes, palette, assignment = _numbered(n_clusters), class_palette(n_clusters), None
    for e in examples:
        if e.image.ndim != 3 or e.image.shape[2] != 3 or e.image.dtype != np.uint8:
            raise ValueError(f"{e.name or 'image'}: expected uint8 [H, W, 3], got {e.image.dtype} {e.image.shape}")
        n_ids = len(classes) if assignment is None else len(assignment)
        for field, end in (("depth", None), ("label", len(classes)), ("clusters", n_ids), ("linear", len(classes))):
            values = getattr(e, field)
            if values is not None and (values.ndim != 2 or 0 in values.shape):
                raise ValueError(f"{e.name or field}: {field} must be [H, W], got shape {values.shape}")
            if values is not None and end is not None and not -1 <= int(values.min()) <= int(values.max()) < end:
                found = f"{int(values.min())}..{int(values.max())}"
                raise ValueError(f"{e.name or field}: {field} holds ids {found}, outside [-1, {end - 1}]")
    return Key(classes, palette, None if assignment is None else np.asarray(assignment))


def _numbered(n: int) -> tuple[str, ...]:
    """Names of clusters without classes: "cluster 0", then bare numbers."""
    return tuple(f"cluster {i}" if i == 0 else str(i) for i in range(n))


def _classes_of(field: str, ids: np.ndarray, key: Key) -> np.ndarray:
    """Ids of a map as rows of the key, VOID or NO_CLASS."""
    if field == "clusters" and key.assignment is not None:
        ids = np.where(ids >= 0, key.assignment[ids], -1)
    return np.where(ids >= 0, ids, VOID if field == "label" else NO_CLASS)


def _row(example: Example, fields: list[str], key: Key, scale, tile: int) -> Image.Image:
    """The name of an example and its tiles."""
    h, w = example.image.shape[:2]
    zoom = min(tile / w, 2 * tile / h)  # very tall photos are limited to twice the tile width
    size = (max(1, round(w * zoom)), max(1, round(h * zoom)))
    top = round(1.5 * TEXT) if example.name else 0
    row = Image.new("RGB", (len(fields) * (tile + GAP) - GAP, top + size[1]), PAPER)
    draw = ImageDraw.Draw(row)
    if example.name:
        draw.text((0, top - 7), _shorten(example.name, row.width), FAINT, font(TEXT), anchor="ls")
    for i, field in enumerate(fields):
        left = i * (tile + GAP) + (tile - size[0]) // 2
        values = getattr(example, field)
        if values is None:
            draw.text((i * (tile + GAP) + tile / 2, top + size[1] / 2), "none", FAINT, font(TEXT), anchor="mm")
            continue
        row.paste(_tile(field, values, key, scale, size), (left, top))
    return row


def _titles(draw: ImageDraw.ImageDraw, titles: Sequence[str], left: int, bottom: int, tile: int) -> None:
    """Column titles, centred above their tiles."""
    for i, title in enumerate(titles):
        centre = left + i * (tile + GAP) + tile / 2
        draw.text((centre, bottom - TITLE / 2), title, INK, font(min(TITLE, tile // 7)), anchor="ms")


def _block(
    example: Example, lines: Sequence[list[str]], words: Mapping[str, str], key: Key, scale, tile: int
) -> Image.Image:
    """The name of an example and several lines of tiles, each under its titles."""
    title = round(1.5 * TITLE)
    rows = [_row(replace(example, name=""), fields, key, scale, tile) for fields in lines]
    top = round(1.5 * TEXT) if example.name else 0
    block = Image.new("RGB", (rows[0].width, top + sum(title + row.height + GAP for row in rows)), PAPER)
    draw, y = ImageDraw.Draw(block), top
    if example.name:
        draw.text((0, top - 7), _shorten(example.name, block.width), FAINT, font(TEXT), anchor="ls")
    for fields, row in zip(lines, rows, strict=True):
        _titles(draw, [words[field] for field in fields], 0, y + title, tile)
        block.paste(row, (0, y + title))
        y += title + row.height + GAP
    return block


def _tile(field: str, values: np.ndarray, key: Key, scale, size: tuple[int, int]) -> Image.Image:
    """One map in colours, ``size`` = (width, height)."""
    if field == "image":
        return Image.fromarray(values).resize(size, Image.Resampling.LANCZOS)
    if field == "depth":
        return Image.fromarray(depth_colours(values, scale)).resize(size, Image.Resampling.BILINEAR)
    rows, columns = ((np.arange(n) * 2 + 1) * m // (2 * n) for n, m in zip(size[::-1], values.shape, strict=True))
    return Image.fromarray(_colour(_classes_of(field, values[np.ix_(rows, columns)], key), key.palette))


def _colour(ids: np.ndarray, palette: np.ndarray) -> np.ndarray:  # [H, W] -> uint8 [H, W, 3]
    """Class colours; void is black and an unmatched cluster striped."""
    rows, columns = np.indices(ids.shape)
    stripes = np.array(STRIPES, np.uint8)[((rows + columns) // 6) % 2]
    coloured = np.vstack([palette, [VOID_COLOUR]]).astype(np.uint8)[np.where(ids >= 0, ids, -1)]
    return np.where((ids == NO_CLASS)[..., None], stripes, coloured)


def _entries(examples: Sequence[Example], key: Key) -> list[tuple[str, int]]:
    """Legend: every class, and void and unmatched clusters where they occur."""
    used = set()
    for e in examples:
        maps = ((field, getattr(e, field)) for field in ("label", "clusters", "linear"))
        used |= {v for field, ids in maps if ids is not None for v in np.unique(_classes_of(field, ids, key)).tolist()}
    names = [(name, i) for i, name in enumerate(key.names)]
    extra = (("void", VOID), ("cluster without a class", NO_CLASS))
    return names + [(name, i) for name, i in extra if i in used]


def _has_holes(example: Example) -> bool:
    return example.depth is not None and bool(np.isnan(example.depth).any())


def _legend(entries: list[tuple[str, int]], key: Key, scale, width: int, holes: bool) -> Image.Image:
    """Swatches and names, wrapped to the width; the depth scale comes first, then the colour of unknown depth."""
    side = TEXT
    items = [("", _colour(np.full((side, round(1.6 * side)), i), key.palette), name) for name, i in entries]
    if scale is not None:
        near, far, metric = scale
        ramp = np.geomspace(near, far, 8 * side) if metric else np.linspace(near, far, 8 * side)
        texts = (f"depth: near {near:.2g} m", f"far {far:.2g} m") if metric else ("depth: near", "far")
        unknown = depth_colours(np.full((side, round(1.6 * side)), np.nan), scale)
        items[:0] = [("", unknown, UNKNOWN)] if holes else []
        items.insert(0, (texts[0], depth_colours(np.tile(ramp, (side, 1)), scale), texts[1]))
    letters, space, placed, x, y = font(TEXT), round(0.4 * side), [], MARGIN, 4
    for before, swatch, after in items:
        after = _shorten(after, width - 2 * MARGIN - swatch.shape[1] - 2 * space)
        start = letters.getlength(before) + space if before else 0
        length = start + swatch.shape[1] + space + letters.getlength(after)
        if x > MARGIN and x + length > width - MARGIN:
            x, y = MARGIN, y + round(1.7 * side)
        placed.append((x, y, before, start, swatch, after))
        x += round(length + 1.3 * side)
    legend = Image.new("RGB", (width, y + side + MARGIN), PAPER)
    draw = ImageDraw.Draw(legend)
    for x, y, before, start, swatch, after in placed:
        left = round(x + start)
        legend.paste(Image.fromarray(swatch), (left, y))
        draw.rectangle((left, y, left + swatch.shape[1] - 1, y + side - 1), outline=FAINT)
        draw.text((x, y + side / 2), before, INK, letters, anchor="lm")
        draw.text((left + swatch.shape[1] + space, y + side / 2), after, INK, letters, anchor="lm")
    return legend


def _shorten(text: str, width: float) -> str:
    """``text`` cut in the middle until it fits."""
    cut = len(text)
    short = text
    while cut > 2 and font(TEXT).getlength(short) > width:
        cut -= 1
        short = f"{text[: cut // 2]}…{text[len(text) - (cut - cut // 2) :]}"
    return short
