"""What all formats of annotation tools share: photos, unique names, distinct colours, and the exporter's interface."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from depthg.data.colours import class_palette

# control characters, and bytes that are no text
UNWRITTEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
MOST_COLOURS = 64  # of the palette that are tried where one is taken


@dataclass(frozen=True)
class ExportPhoto:
    """A photo as annotation tools know it.

    Attributes:
        file: where it lies.
        relative: its path as it was given, with suffix, folders separated by ``/``.
        stem: ``relative`` without suffix (with it, where two photos differ in nothing else); unique, and one line.
    """

    file: Path
    relative: str
    stem: str


@dataclass(frozen=True)
class Labels:
    """What ids mean: ``names`` are unique and one line each, ``colours`` uint8 [n, 3] distinct."""

    names: tuple[str, ...]
    colours: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


class Exporter(ABC):
    """Writes one format. Threads call ``add`` side by side; what is written does not depend on their order.

    Args:
        out: folder of the results.
        photos: all photos; ``number`` is a place in this list.
        labels: names and colours of the ids.
        run: name of the run.
    """

    NAME: str
    NEEDS: str | None = None  # a package of the extra ``export``

    def __init__(self, out: Path, photos: Sequence[ExportPhoto], labels: Labels, run: str):
        self.out, self.photos, self.labels, self.run = out, photos, labels, run

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """All files that may be written."""

    @abstractmethod
    def add(self, number: int, ids: np.ndarray, score: float) -> None:
        """Takes a photo.

        Args:
            number: place of the photo in ``photos``.
            ids: [H, W], uint8 or uint16. Values that are no id, such as 255 or 65535 for void, belong to no class.
            score: how clear the photo's clusters are, see :func:`clearness`.
        """

    @abstractmethod
    def finish(self) -> str:
        """Writes what remains, once all photos are in; returns a line that says where it lies."""


def present(ids: np.ndarray, n: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields each id below ``n`` that occurs, in order, with its mask, bool [H, W]."""
    for value in np.unique(ids).tolist():
        if value < n:
            yield value, ids == value


def clearness(scores: np.ndarray) -> float:  # float [n, h, w]
    """Mean distance between the best and the second-best cosine of a cell; the best one alone if there is no second."""
    if len(scores) < 2:
        return float(scores.mean())
    order = np.partition(scores, -2, axis=0)
    return float((order[-1] - order[-2]).mean())


def stems(relative: Sequence[str]) -> list[str]:
    """Unique paths without suffix, each one line of text, also where upper and lower case are the same."""
    clean = [UNWRITTEN.sub("_", path) for path in relative]
    short = [os.path.splitext(path)[0] for path in clean]
    counts = Counter(stem.casefold() for stem in short)
    wanted = [stem if counts[stem.casefold()] == 1 else path for path, stem in zip(clean, short, strict=True)]
    return numbered(wanted, [str(number) for number in range(2, len(wanted) + 2)], "_")


def label_names(names: Sequence[str], taken: Iterable[str] = ()) -> tuple[str, ...]:
    """Unique names of one line each, not empty: those that two clusters share get the number of their cluster.

    Args:
        names: of the clusters, any text.
        taken: names in small letters that have a meaning in the format.
    """
    clean = [" ".join(UNWRITTEN.sub(" ", name).split()) or "cluster" for name in names]
    reserved = {*taken, *(name for name, count in Counter(clean).items() if count > 1)}
    return tuple(numbered(clean, [str(number) for number in range(len(names))], " ", reserved))


def numbered(wanted: Sequence[str], numbers: Sequence[str], joint: str, taken: Iterable[str] = ()) -> list[str]:
    """The texts made unique: those in ``taken``, and those that came before, get their number (again, if need be)."""
    reserved = {text.casefold() for text in taken}
    alone = Counter(text.casefold() for text in wanted)
    used, found = set(reserved), []
    free = {text.casefold() for text in wanted if alone[text.casefold()] == 1} - reserved
    for text, number in zip(wanted, numbers, strict=True):
        name = text
        while name.casefold() in used or (name is not text and name.casefold() in free):
            name = f"{name}{joint}{number}"
        used.add(name.casefold())
        found.append(name)
    return found


def distinct_colours(colours: np.ndarray, taken: Iterable[tuple[int, int, int]] = ()) -> np.ndarray:
    """Colours uint8 [n, 3] without repetition and without those in ``taken``: who comes first keeps its colour."""
    given = [tuple(colour) for colour in colours.tolist()]
    used, found = set(taken), []
    others = (tuple(colour) for colour in class_palette(min(2 * len(given) + 2, MOST_COLOURS)).tolist())
    spare = (colour for colour in chain(others, _any_colours()) if colour not in given)
    for colour in given:
        while colour in used:
            colour = next(spare)
        used.add(colour)
        found.append(colour)
    return np.array(found, np.uint8).reshape(-1, 3)


def _any_colours() -> Iterator[tuple[int, int, int]]:
    """All colours, neighbours far apart."""
    for number in range(1, 2**24):
        red, green, blue = (number * 7_340_033 % 2**24).to_bytes(3, "big")
        yield red, green, blue
