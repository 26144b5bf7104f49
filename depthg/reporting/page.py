"""What the pages share: the jinja2 templates, and pictures inside the file."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from depthg.inference.read_outs import READ_OUTS, SCORES
from depthg.reporting.figures import DARK, LIGHT, svg_bytes

NARROW_FOLDER = "narrow"  # in the folder of the panels
SMALLEST = 0.56  # scale below which a sheet scrolls: tiles of about 145 pixels
HEADLINE = {  # scores in cards at the top, such as cluster.miou: "Cluster mIoU"
    f"{key}.{kind}": f"{READ_OUTS[key].title.removesuffix(' probe')} {title}"
    for key in ("cluster", "linear")
    for kind, title in SCORES.items()
}


@lru_cache(1)
def templates() -> Environment:
    """The templates beside this file. They escape every value and refuse a value that is missing."""
    found = Environment(loader=PackageLoader("depthg.reporting"), autoescape=True, undefined=StrictUndefined)
    found.trim_blocks = found.lstrip_blocks = True
    return found


def render(name: str, content: dict[str, Any]) -> str:
    """A page from the template ``name``: one file that opens offline, without scripts."""
    return templates().get_template(name).render(content)


@dataclass(frozen=True)
class Drawing:
    """A figure in both themes, as data addresses; the reader's setting chooses one. ``dark`` empty: a plain picture."""

    title: str
    light: str
    dark: str = ""
    size: str = ""  # class of the box around it
    note: str = ""  # sentence below it


@dataclass(frozen=True)
class Sheet:
    """A wide picture. It is never enlarged.

    On a narrow screen ``narrow``, the same with two tiles side by side, takes its place; without one it scrolls before
    its tiles get too small.
    """

    address: str
    width: int
    alt: str
    caption: str = ""
    narrow: str = ""

    @property
    def smallest(self) -> int:
        return round(SMALLEST * self.width)


def drawing(title: str, draw: Callable, *arguments: object, size: str = "", note: str = "") -> Drawing:
    """The figure that ``draw(*arguments, theme=theme)`` makes, in both themes."""
    light, dark = (data_address(svg_bytes(draw(*arguments, theme=theme)), "svg+xml") for theme in (LIGHT, DARK))
    return Drawing(title, light, dark, size, note)


def picture_width(path: Path) -> int:
    """Width in pixels.

    Raises:
        ValueError: the file is no readable picture.
    """
    try:
        with Image.open(path) as picture:
            return picture.width
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable picture ({error}); remove it, then build again") from error


def data_address(content: bytes, kind: str = "png") -> str:
    """A picture as an address that holds all of it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
