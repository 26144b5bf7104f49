"""Values of a run's files in words, whatever kind they are."""

from __future__ import annotations

import math
from typing import Any

MINUS, DASH = "\u2212", "\u2013"


def pairs(value: object) -> list[tuple[str, Any]]:
    """Items of a mapping; empty for anything else."""
    return [(str(key), item) for key, item in value.items()] if isinstance(value, dict) else []


def words(key: object) -> str:
    """A key without underscores."""
    return str(key).replace("_", " ")


def text(value: object) -> str:
    """A setting in words: no quotes, no braces, a dash for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(text, value)) or "none"
    return DASH if value is None else str(value)


def is_number(value: object) -> bool:
    """True for finite numbers; False for booleans."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def percent(value: object) -> str:
    """One decimal, or a dash for anything that is no number."""
    return f"{value:.1f}" if is_number(value) else DASH


def gibibytes(mebibytes: float) -> str:
    return f"{mebibytes / 1024:.2f} GiB"
