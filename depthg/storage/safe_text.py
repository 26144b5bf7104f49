"""YAML and JSON from files of unknown origin: plain values of bounded size and depth, and no code."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

MOST_CHARACTERS = 2**20  # of settings; those of this package take 5,000
MOST_LEVELS = 20
LONG_NUMBER = re.compile(r"[-+.:_\d\s]{101,}")  # 1:1:1 ... is one to base 60, whose value takes quadratic time


class _RefusedError(ValueError):
    """YAML syntax that settings must not use."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: invalid YAML, tags that create objects, aliases (a few of them can expand to gigabytes), or
            more than `MOST_CHARACTERS` or `MOST_LEVELS`.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters, settings have at most {MOST_CHARACTERS:,}")
    try:
        _check_events(text)
        return yaml.safe_load(text)
    except _RefusedError:
        raise
    except (yaml.YAMLError, AttributeError, TypeError, IndexError, KeyError, OverflowError, ValueError) as error:
        raise ValueError(f"it is no YAML of plain values: {error}") from error  # a few slip through PyYAML's own checks


def _check_events(text: str) -> None:
    level = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level > MOST_LEVELS:
            raise _RefusedError(f"it is nested deeper than {MOST_LEVELS} levels")
        if isinstance(event, yaml.ScalarEvent) and (event.implicit[0] or event.tag):  # else it is quoted: a text
            if LONG_NUMBER.fullmatch(event.value):
                raise _RefusedError(f"{event.value[:20]}... is a number of {len(event.value):,} characters")
        if isinstance(event, yaml.AliasEvent):
            raise _RefusedError(f"it refers to another part of itself (*{event.anchor}); write that part out")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: invalid JSON, or nested deeper than the interpreter's stack.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def check_no_references(value: Any) -> Any:
    """Returns ``value`` if no string in it is an OmegaConf interpolation, which could read environment variables.

    Raises:
        ValueError: a string is one; the message names it.
    """
    queue = [value]
    while queue:
        part = queue.pop()
        if isinstance(part, dict):
            queue += [*part, *part.values()]
        elif isinstance(part, list):
            queue += part
        elif isinstance(part, str) and "${" in part:
            raise ValueError(f"{part[:80]!r} is a reference, which stored settings do not need; write its value")
    return value
