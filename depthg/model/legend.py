"""``RUN/legend.yaml``: names that people give to the clusters of a run; clusters with one name are merged.

    made_for: 1f0c2a9b       # checksum of the clusters, written by depthg.label; may be left out
    clusters:
      0: road
      1: sky
      2: road                # the same class as cluster 0
      3: null                # void: its pixels belong to no class
    colours:                 # may be left out
      road: "#804080"

Clusters that are not listed keep the name that the run gives them, and are merged with nothing.
"""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from depthg.storage.safe_text import parse_yaml
from depthg.storage.whole_files import write_text

FILE = "legend.yaml"
VOID = -1
LONGEST_NAME = 100
HEADER = """# Names of this run's clusters; edit them as you like. Clusters with one name are one class; null is void.
# Colours are optional: a line such as  road: "#804080"  below  colours:
"""
KEYS = ("made_for", "clusters", "colours")


@dataclass(frozen=True)
class Legend:
    """What the clusters of a run mean.

    Attributes:
        names: name of every id. Ids are numbered by the first cluster of each name.
        table: int64 [n_clusters], the id of each cluster, ``VOID`` for none.
        colours: by name, those that the file gives, each three values 0..255.
        given: whether each name is of the file; the others are what the run calls its clusters.
    """

    names: tuple[str, ...]
    table: np.ndarray
    colours: Mapping[str, tuple[int, int, int]]
    given: tuple[bool, ...]

    @property
    def first(self) -> np.ndarray:  # int64 [n_ids]
        """The first cluster of each id."""
        return np.array([int((self.table == i).argmax()) for i in range(len(self.names))], np.int64)


def checksum_of(centroids: Tensor) -> str:
    """Eight hexadecimal digits that name the clusters of a checkpoint."""
    return f"{zlib.crc32(centroids.detach().cpu().float().contiguous().numpy().tobytes()):08x}"


def read_legend(run: Path, names: Sequence[str], checksum: str | None) -> Legend | None:
    """The legend of a run folder; None without the file, or with a warning if it was made for other clusters.

    Args:
        run: the run folder.
        names: the name that the run gives to each cluster.
        checksum: of the clusters, from :func:`checksum_of`; None: not known, and not compared.

    Raises:
        ValueError: the file is damaged, names a cluster that does not exist, or makes all of them void.
    """
    path = run / FILE
    if not path.is_file():
        return None
    try:
        found = parse_yaml(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds no keys and values; write {', '.join(KEYS[1:])}")
        if checksum is not None and found.get("made_for") not in (None, checksum):
            warnings.warn(
                f"{path} names the clusters of another training or checkpoint ({found['made_for']}, not {checksum}): "
                f"it is left out; name these clusters, or remove its line made_for",
                stacklevel=2,
            )
            return None
        return legend_of(_names_in(found), names, _colours_in(found))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def legend_of(
    given: Mapping[int, str | None], names: Sequence[str], colours: Mapping[str, tuple[int, int, int]] | None = None
) -> Legend:
    """The legend for names by cluster, None for void; clusters without an entry keep their name and are not merged.

    Raises:
        ValueError: a cluster or the name of a colour does not exist, or every cluster is void.
    """
    wrong = [number for number in given if not 0 <= number < len(names)]
    if wrong:
        raise ValueError(f"there is no cluster {wrong[0]}; the run has clusters 0 to {len(names) - 1}")
    keys = [("given", given[i]) if i in given else ("own", i) for i in range(len(names))]
    ids: dict[Any, int] = {}
    table = [VOID if key == ("given", None) else ids.setdefault(key, len(ids)) for key in keys]
    if not ids:
        raise ValueError("every cluster is void; give at least one of them a name")
    found = tuple(str(key) if kind == "given" else names[key] for kind, key in ids)
    colours = dict(colours or {})
    lost = [name for name in colours if name not in found]
    if lost:
        raise ValueError(f"colours: no cluster has the name {lost[0]!r}")
    return Legend(found, np.array(table, np.int64), colours, tuple(kind == "given" for kind, _ in ids))


def write_legend(
    run: Path,
    given: Mapping[int, str | None],
    checksum: str,
    colours: Mapping[str, tuple[int, int, int]] | None = None,
) -> Path:
    """Writes the file, whole or not at all.

    Raises:
        ValueError: a name is empty, longer than ``LONGEST_NAME``, or not one line of text.
        OSError: it cannot be written.
    """
    content: dict[str, Any] = {"made_for": checksum}
    content["clusters"] = {int(number): _checked(number, given[number]) for number in sorted(given)}
    if colours:
        content["colours"] = {name: "#" + bytes(colour).hex() for name, colour in colours.items()}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
    write_text(run / FILE, HEADER + text)
    return run / FILE


def _names_in(found: dict) -> dict[int, str | None]:
    unknown = [key for key in found if key not in KEYS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not one of its keys ({', '.join(KEYS)})")
    clusters = found.get("clusters") or {}
    if not isinstance(clusters, dict):
        raise ValueError("clusters must hold a line  number: name  for each cluster")
    for number in clusters:
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueError(f"clusters: {number!r} is no number of a cluster")
    return {number: _checked(number, name) for number, name in clusters.items()}


def _checked(number: int, name: Any) -> str | None:
    """A name without blanks around it; None for void, by that name too."""
    if name is None:
        return None
    if isinstance(name, bool):
        raise ValueError(f"clusters: the name of {number} reads as {name}; put it in quotes")
    text = str(name).strip() if isinstance(name, (str, int, float)) else ""
    if not text or len(text) > LONGEST_NAME or not text.isprintable():
        raise ValueError(
            f"clusters: the name of {number} must be one line of 1 to {LONGEST_NAME} characters (null makes it void)"
        )
    return None if text.casefold() == "void" else text


def _colours_in(found: dict) -> dict[str, tuple[int, int, int]]:
    colours = found.get("colours") or {}
    if not isinstance(colours, dict):
        raise ValueError('colours must hold lines  name: "#rrggbb"')
    for name, colour in colours.items():
        if not isinstance(colour, str) or not re.fullmatch("#[0-9a-fA-F]{6}", colour):
            raise ValueError(f'colours: that of {name!r} must be written as "#rrggbb", with the quotes')
    parts = {str(name).strip(): tuple(bytes.fromhex(colour[1:])) for name, colour in colours.items()}
    return parts  # type: ignore[return-value]
