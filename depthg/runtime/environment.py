"""Environment variables that torch reads when it is imported; what the user has set stays."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping, Sequence
from itertools import pairwise
from pathlib import PurePath

SPINS = "10000"  # rounds that a thread of libgomp (torch's on Linux) waits awake for the others, about 0.1 ms


def set_defaults(
    environment: MutableMapping[str, str] | None = None,
    command: Sequence[str] | None = None,
    system: str = sys.platform,
) -> None:
    """Sets defaults that suit this package.

    In a command (``python -m depthg...`` or ``depthg ...``) the threads of a layer sleep after a short wait. They would
    stay awake for 300,000 rounds, and where other programs want the cores too, they take them from the thread that all
    wait for.
    On macOS, operations that torch lacks on Apple's GPU run on the CPU instead of raising.

    Args:
        environment: None: that of this process.
        command: what the interpreter was started with; None: this process.
        system: as ``sys.platform``.
    """
    environment = os.environ if environment is None else environment
    command = sys.orig_argv if command is None else command
    started = any(flag == "-m" and name.split(".")[0] == "depthg" for flag, name in pairwise(command))
    started |= any(PurePath(name).stem == "depthg" for name in command[1:2])  # the installed program
    if started and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = SPINS
    if system == "darwin":
        environment.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
