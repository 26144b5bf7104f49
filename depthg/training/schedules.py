"""Schedules as pure functions of the iteration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def exponential_decay(
    iteration: int, initial: float, *, factor: float, every: int, minimum: float = 0.0, after: bool = False
) -> float:
    """Exponential decay ``max(initial * factor ** (iteration // every), minimum)``, the intended form of Eq. 8 and 9.

    As printed, the equations raise the previous value to the power ``floor(t / m)``, which is 1 for 0 < t < m.

    Args:
        iteration: optimiser steps taken so far, from 0.
        initial: value at iteration 0.
        factor: multiplier applied every ``every`` iterations; 1 keeps the value constant.
        every: iterations between two decays (the paper's m); 0 never decays.
        minimum: lower bound of the decay; an initial value below it is not raised to it.
        after: decay after the step of an iteration that ``every`` divides, as the released code does: each value holds
            one iteration longer, ``factor ** ((iteration - 1) // every)`` from iteration 1 on.
    """
    if every <= 0:
        return initial
    times = max(iteration - after, 0) // every
    return max(initial * factor**times, min(minimum, initial))


def piecewise_constant(iteration: int, initial: int, changes: Iterable[Sequence[int]]) -> int:
    """The value of the latest ``(start, value)`` at or before ``iteration``; ``initial`` before the first one."""
    reached = [(start, value) for start, value in changes if start <= iteration]
    return max(reached)[1] if reached else initial
