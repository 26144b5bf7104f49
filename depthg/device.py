"""Which device a command runs on."""

from __future__ import annotations

import torch


def pick_device(name: str) -> torch.device:
    """``auto`` takes a GPU when there is one.

    Raises:
        ValueError: no such device, or no GPU that PyTorch sees.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is not possible; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name}: PyTorch sees no GPU here; use device=cpu")
    return device
