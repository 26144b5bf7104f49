"""Schedules as pure functions of the iteration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from depthg.config.schema import Config


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


def restart_iteration(reinit: float, iterations: int) -> int:
    """Iteration after which ``probe.reinit`` restarts the cluster probe; 0: never.

    Args:
        reinit: below 1 a share of ``iterations`` (rounded, at least the first), else an iteration; 0 never restarts.
        iterations: length of the run.
    """
    found = max(1, round(reinit * iterations)) if 0 < reinit < 1 else round(reinit)
    return found if found <= iterations else 0


def unreached(config: Config) -> list[str]:
    """Schedules of the settings, as ``key=value``, that begin only after the last iteration."""
    iterations, decay, sampling = config.iterations, config.loss.depth, config.sampling
    found = [
        f"{key}={value}"
        for key, value in (
            ("val.every", config.val.every),
            ("checkpoint.every", config.checkpoint.every),
            ("log_every", config.log_every),
        )
        if value > iterations > 0
    ]
    if config.probe.reinit > iterations > 0:
        found.append(f"probe.reinit={config.probe.reinit:g}")
    late = [list(change) for change in sampling.schedule if change[0] >= iterations > 0]
    if late:
        found.append(f"sampling.schedule={late}")
    depth_term = config.depth.source != "none" and decay.weight and decay.factor < 1
    if depth_term and decay.every > iterations - 1 - (decay.decay == "after") and iterations > 0:
        found.append(f"loss.depth.every={decay.every}")
    return found
