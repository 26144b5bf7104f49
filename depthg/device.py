"""Which device a command runs on."""

from __future__ import annotations

import torch

from depthg.processes import announced


def pick_device(name: str) -> torch.device:
    """``auto`` takes a GPU when there is one. Of several processes on a machine each takes a GPU of its own.

    Raises:
        ValueError: no such device, no GPU that PyTorch sees, or more processes than GPUs.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is not possible; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name}: PyTorch sees no GPU here; use device=cpu")
    if device.type == "cuda" and announced("WORLD_SIZE", 1) > 1:
        return _own_gpu(name, device)
    return device


def _own_gpu(name: str, device: torch.device) -> torch.device:
    """The GPU of this process on its machine."""
    number, gpus = announced("LOCAL_RANK"), torch.cuda.device_count()
    if device.index is not None:
        raise ValueError(f"device={name} is one GPU, but there are several processes; use device=cuda")
    if number >= gpus:
        raise ValueError(f"process {number + 1} of this machine has no GPU ({gpus} here); start at most {gpus}")
    return torch.device("cuda", number)
