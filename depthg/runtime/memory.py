"""Memory that the C library keeps for later although it is free."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # Windows has no library without a name
        return None


def give_back() -> None:
    """Returns free memory to the system (glibc; elsewhere it does nothing).

    Blocks of a few megabytes that are made and freed in turn, such as the layers of a network, leave holes that glibc
    keeps: several hundred megabytes with photos of changing sizes.
    """
    trim = _trim()
    if trim is not None:
        trim(0)
