"""Frame, style and building blocks of the report page; its content policy forbids everything outside the file."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from depthg.reporting.figures import DARK, LIGHT, svg_bytes

SMALLEST = 0.56  # scale below which a sheet scrolls: tiles of about 145 pixels
MINUS, DASH = "\u2212", "\u2013"
SWIPE = '<p class="hint swipe">Swipe a sheet sideways to see all columns.</p>'

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --faint: #5b626b; --paper: #ffffff; --card: #f4f6f8; --line: #dfe3e8;
  --accent: #1f6fb5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7eaee; --faint: #9aa3ad; --paper: #14181d; --card: #1d232a; --line: #333b44; --accent: #6cb6ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 12px; }
header p { margin: 4px 0 0; color: var(--faint); }
section { margin-top: 34px; }
header + section { margin-top: 22px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.card { background: var(--card); border-radius: 12px; padding: 14px 16px; }
.card .name { color: var(--faint); font-size: .9rem; }
.card .value { font-size: 2rem; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.card .value span { font-size: 1rem; font-weight: 400; color: var(--faint); margin-left: 3px; }
.card .note { color: var(--faint); font-size: .82rem; line-height: 1.35; }
.protocol, .hint { color: var(--faint); font-size: .9rem; margin: 12px 0 0; }
.swipe { display: none; } @media (max-width: 800px) { .swipe { display: block; } }
.protocol b { color: var(--ink); font-weight: 600; margin-right: 6px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 22px 28px;
  align-items: start; }
figure { margin: 0; min-width: 0; }
figcaption { font-weight: 600; font-size: .95rem; margin-bottom: 6px; }
img { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; }
.big img { min-width: 640px; }
.sheet { background: #fff; border-radius: 12px; border: 1px solid var(--line); }
.sheet + .sheet, details .sheet { margin-top: 14px; }
.sheet img { margin: 0 auto; }
.warning { background: #fff3d6; color: #5c4300; border-radius: 12px; padding: 12px 16px; }
.compare td, .compare thead th + th { text-align: right; white-space: nowrap; padding: 7px 0 7px 14px; }
.compare td.gain { font-weight: 650; }
.caption { font-weight: 600; font-size: .95rem; margin: 18px 0 6px; } h2 + .caption { margin-top: 0; }
.about { color: var(--faint); font-size: .9rem; margin: 22px 0 4px; } h2 + .about { margin-top: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--faint); font-size: .85rem; font-weight: 500; }
tbody th { font-weight: 500; }
.scores td, .scores thead th + th { text-align: right; padding-right: 0; padding-left: 14px; white-space: nowrap; }
.scores td { font-size: 1.05rem; }
.scores small { display: block; color: var(--faint); font-weight: 400; font-size: .84rem; line-height: 1.35; }
.scores .cluster th, .scores .cluster td { font-weight: 650; }
.time th { width: 30%; } .time td { white-space: nowrap; width: 1%; text-align: right; }
.time td.bar { width: auto; } .time .total th, .time .total td { font-weight: 650; }
.bar i { display: block; height: 10px; margin-top: 7px; border-radius: 5px; background: var(--accent); min-width: 2px; }
.total .bar i { background: var(--line); }
.keys th { width: 45%; color: var(--faint); font-weight: 400; overflow-wrap: anywhere; }
.keys td { overflow-wrap: anywhere; }
details { border-bottom: 1px solid var(--line); } details[open] { padding-bottom: 10px; }
code { background: var(--card); border-radius: 6px; padding: 3px 7px; font-size: .92rem; overflow-wrap: anywhere; }
summary { cursor: pointer; padding: 9px 0; font-weight: 500; }
@media print { details { display: none; } }
"""

PAGE = (
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title} - depthg report</title>
<style>"""
    + STYLE.replace("{", "{{").replace("}", "}}")
    + """</style>
</head>
<body>
<main>
<header><h1>{title}</h1><p>{subtitle}</p></header>
{body}
</main>
</body>
</html>
"""
)


def section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def figure(title: str, draw, size: str = "", caption: bool = True) -> str:
    """A figure in both themes; the reader's setting chooses. ``draw(theme)`` makes it."""
    light, dark = (data_address(svg_bytes(draw(theme)), "svg+xml") for theme in (LIGHT, DARK))
    picture = (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(title)}"></picture>'
    )
    text = f"<figcaption>{escape(title)}</figcaption>" if caption else ""
    return f'<figure>{text}<div class="{size}">{picture}</div></figure>'


def image(path: Path, alt: str) -> str:
    return f'<img src="{data_address(path.read_bytes(), "png")}" alt="{escape(alt)}">'


def sheet(path: Path, caption: str = "") -> str:
    """A panel sheet of a run."""
    return sheet_of(
        path.read_bytes(), picture_width(path), f"Example pictures {path.stem}: photo and segmentations", caption
    )


def sheet_of(png: bytes, width: int, alt: str, caption: str = "") -> str:
    """A wide picture, never enlarged; on a narrow screen it scrolls sideways before its tiles get too small."""
    size = f"max-width:{width}px;min-width:{round(SMALLEST * width)}px"
    words = f'<div class="caption">{escape(caption)}</div>' if caption else ""
    picture = f'<img src="{data_address(png, "png")}" alt="{escape(alt)}" style="{size}">'
    return f'{words}<div class="wide sheet">{picture}</div>'


def picture_width(path: Path) -> int:
    try:
        with Image.open(path) as picture:
            return picture.width
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable picture ({error}); remove it, then build again") from error


def data_address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def table(rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>' for key, value in rows)
    return f'<table class="keys"><tbody>{body}</tbody></table>' if body else ""


def pairs(value: object) -> Iterable[tuple[str, Any]]:
    return [(str(key), item) for key, item in value.items()] if isinstance(value, dict) else []


def words(key: object) -> str:
    return str(key).replace("_", " ")


def text(value: object) -> str:
    """A setting in words: no quotes, no braces, a dash for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(text, value)) or "none"
    return DASH if value is None else str(value)


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def percent(value: object) -> str:
    return f"{value:.1f}" if is_number(value) else DASH
