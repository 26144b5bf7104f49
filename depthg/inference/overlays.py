"""Overlays of segmented photos: colours of the clusters, outlines, names in the regions, and a legend strip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from depthg.data.colours import class_palette

PALETTE = 256  # colours that a PNG can hold
STRIP = 128  # rows that are drawn at a time
PAPER, INK, FAINT = (255, 255, 255), (25, 28, 32), (98, 104, 112)
PLACES_SIDE = 160  # regions are looked for on a map of at most this side
SMALLEST_REGION = 0.004  # share of the photo from which a region is named
SMALLEST_SHARE = 0.0005  # share of the photo from which a cluster is in the legend


def with_palette(ids: np.ndarray, colours: np.ndarray) -> Image.Image:  # [H, W] below 256, uint8 [n, 3]
    """A palette image (Pillow) of the ids in their colours."""
    image = Image.fromarray(ids.astype(np.uint8, copy=False))
    image.putpalette(colours.tobytes())
    return image


def overlay(image: np.ndarray, ids: np.ndarray, colours: np.ndarray) -> np.ndarray:  # uint8 [H, W, 3]
    """Mean of the photo and the colours of its clusters."""
    half = colours >> 1
    drawn = half[ids] if len(colours) > PALETTE else np.array(with_palette(ids, half).convert("RGB"))
    drawn += image >> 1
    return drawn


def pixels_of(ids: np.ndarray, n: int) -> np.ndarray:  # [H, W] below n -> int [n]
    """Pixels of every id."""
    total = np.zeros(n, np.int64)
    for start in range(0, len(ids), STRIP):
        part = ids[start : start + STRIP]
        if n > PALETTE:
            total += np.bincount(part.ravel(), minlength=n)
        else:
            total += Image.fromarray(part.astype(np.uint8, copy=False)).histogram()[:n]
    return total


def plain_overlay(image: np.ndarray, ids: np.ndarray, colours: np.ndarray) -> Image.Image:
    """:func:`overlay` as an RGB image, drawn in strips."""
    whole = Image.new("RGB", ids.shape[::-1])
    _draw_strips(whole, image, ids, colours, 0)
    return whole


def _draw_strips(whole: Image.Image, image: np.ndarray, ids: np.ndarray, colours: np.ndarray, line: int) -> None:
    """Draws the overlay, with outlines of ``line`` pixels if that is not 0, ``STRIP`` rows at a time.

    Outlines look ``line`` rows up and down, so a strip is drawn with that many more.
    """
    for start in range(0, len(ids), STRIP):
        first = max(0, start - line)
        part = slice(first, start + STRIP + line)
        drawn = overlay(image[part], ids[part], colours)
        if line:
            draw_outlines(drawn, ids[part], colours, line)
        whole.paste(Image.fromarray(drawn[start - first :][:STRIP]), (0, start))


def labelled_overlay(
    image: np.ndarray,  # uint8 [H, W, 3]
    ids: np.ndarray,  # [H, W]
    colours: np.ndarray,  # uint8 [n, 3], or [n + 1, 3]
    names: Sequence[str],
) -> Image.Image:
    """:func:`overlay` with an outline of each region in its pure colour, its name or number, and a legend below.

    Blended colours look alike (yellow over a dark road is orange), outlines do not. A colour more than there are names
    is that of the id n, pixels without data: they have no name and no share.

    Returns:
        An RGB image, as wide as the photo and higher by the legend.
    """
    height, width = ids.shape
    side = min(height, width)
    counts = pixels_of(ids, len(colours))[: len(names)]
    strip = legend_strip(counts / max(1, counts.sum()), colours, names, width, max(10, round(side / 32)))
    whole = Image.new("RGB", (width, height + strip.height), PAPER)
    _draw_strips(whole, image, ids, colours, max(1, round(side / 240)))
    whole.paste(strip, (0, height))
    _write_names(ImageDraw.Draw(whole), ids, names, max(10, round(side / 28)))
    return whole


def draw_outlines(drawn: np.ndarray, ids: np.ndarray, colours: np.ndarray, width: int) -> None:
    """Draws a line of ``width`` pixels along the inner edge of each region into ``drawn``, uint8 [H, W, 3]."""
    edge = np.zeros(ids.shape, bool)
    for step in sorted({1, width // 2 + 1, width}):  # in between, only what is thinner than a half could be missed
        for here, there in ((np.s_[step:, :], np.s_[:-step, :]), (np.s_[:, step:], np.s_[:, :-step])):
            differs = ids[here] != ids[there]
            edge[here] |= differs
            edge[there] |= differs
    at = np.flatnonzero(edge)
    drawn.reshape(-1, 3)[at] = colours[ids.ravel()[at]]


def region_places(ids: np.ndarray) -> list[tuple[int, int, int, float]]:
    """Id, row, column and inner radius in pixels of the largest circle in each connected region that is large enough.

    Looked for on a map of at most ``PLACES_SIDE``, so places are only that exact.
    """
    from scipy import ndimage

    step = max(1, math.ceil(max(ids.shape) / PLACES_SIDE))
    small = ids[step // 2 :: step, step // 2 :: step]
    edge = np.ones((small.shape[0] + 2, small.shape[1] + 2), bool)  # the photo's border is a border of the region
    edge[1:-1, 1:-1] = False
    inside = edge[1:-1, 1:-1]
    inside[1:] |= small[1:] != small[:-1]
    inside[:, 1:] |= small[:, 1:] != small[:, :-1]
    distance = ndimage.distance_transform_edt(~edge)[1:-1, 1:-1]
    regions, total = np.zeros(small.shape, np.int64), 0
    for value in np.unique(small):
        labels, count = ndimage.label(small == value)
        regions += np.where(labels > 0, labels + total, 0)
        total += count
    best = np.zeros(total + 1, np.int64)
    order = distance.argsort(axis=None)
    best[regions.ravel()[order]] = order  # the last one written is that of the largest distance
    sizes, found = np.bincount(regions.ravel(), minlength=total + 1), []
    for place in best[sizes >= max(1, SMALLEST_REGION * small.size)].tolist():
        row, column = divmod(place, small.shape[1])
        y, x = row * step + step // 2, column * step + step // 2
        found.append((int(small[row, column]), y, x, float(distance[row, column]) * step))
    return found


def _write_names(draw: ImageDraw.ImageDraw, ids: np.ndarray, names: Sequence[str], size: int) -> None:
    """Writes the name of each region, or its number where the name is too long, as white text with a dark border."""
    letters, border = font(size), max(1, size // 8)
    for value, y, x, radius in (place for place in region_places(ids) if place[0] < len(names)):
        for text in dict.fromkeys((short_name(value, names[value]), str(value))):
            if letters.getlength(text) / 2 < 1.6 * radius and size / 2 < 1.2 * radius:
                half = letters.getlength(text) / 2 + border
                x = min(max(x, half), max(half, ids.shape[1] - half))
                draw.text((x, y), text, PAPER, letters, "mm", stroke_width=border, stroke_fill=INK)
                break


def cluster_colours(assigned: np.ndarray | None, n: int, palette: np.ndarray) -> np.ndarray:
    """Colour of every cluster, uint8 [n, 3]: that of its class, or one that no class has.

    Args:
        assigned: int [n], class of every cluster or -1; None: clusters by number.
        n: number of clusters.
        palette: uint8 [n_classes, 3].
    """
    if assigned is None:
        return class_palette(n)
    alone = np.cumsum(assigned < 0) - 1 + len(palette)
    both = np.vstack([palette, class_palette(len(palette) + n)[len(palette) :]])
    return both[np.where(assigned < 0, alone, assigned)]


def short_name(number: int, name: str) -> str:
    """The name of a class in one line, or the bare number of a cluster without one."""
    return str(number) if name == f"cluster {number}" else " ".join(name.split())


def legend_strip(shares: np.ndarray, colours: np.ndarray, names: Sequence[str], width: int, size: int) -> Image.Image:
    """Swatch, number, name and share of the clusters that occur, the largest first, wrapped to the width."""
    letters, gap = font(size), max(3, size // 2)
    order = [i for i in np.argsort(-shares, kind="stable") if shares[i] >= SMALLEST_SHARE]
    placed, x, y, line = [], gap, gap, round(1.6 * size)
    for i in order:
        share = f"{shares[i]:.0%}" if shares[i] >= 0.01 else "<1%"
        text = " ".join((*dict.fromkeys((str(i), short_name(int(i), names[i]))), share))
        length = round(1.4 * size + letters.getlength(text))
        if x > gap and x + length > width - gap:
            x, y = gap, y + line
        placed.append((x, y, int(i), text))
        x += length + 2 * gap
    strip = Image.new("RGB", (width, y + line), PAPER)
    draw = ImageDraw.Draw(strip)
    for x, y, i, text in placed:
        draw.rectangle((x, y, x + size, y + size), fill=tuple(map(int, colours[i])), outline=FAINT)
        draw.text((x + 1.4 * size, y + size / 2), text, INK, letters, "lm")
    return strip


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it, so that no system font is needed."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
