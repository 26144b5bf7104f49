"""Seeds that depend on a purpose alone, not on earlier draws."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def seed_of(seed: int, *parts: object) -> int:
    """A 63-bit seed for one purpose: the draws of an iteration do not depend on earlier ones."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_everything(seed: int) -> None:
    """Sets the generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
