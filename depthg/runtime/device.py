"""Device selection, and copies between host and device that do not block the host."""

from __future__ import annotations

import torch
from torch import Tensor

from depthg.runtime.processes import announced


def pick_device(name: str) -> torch.device:
    """``auto`` selects a GPU if there is one. Several processes on a machine get one GPU each.

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
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ValueError(f"device={name}: the last GPU here is cuda:{torch.cuda.device_count() - 1}")
    if device.type not in ("cpu", "cuda") and not _available(device.type):
        raise ValueError(f"device={name}: PyTorch has no such device here; use device=cpu")
    return device


def _available(kind: str) -> bool:
    """True for Apple's (mps) and Intel's (xpu) GPUs where PyTorch can use one; False for anything else."""
    return {"mps": torch.backends.mps, "xpu": torch.xpu}[kind].is_available() if kind in ("mps", "xpu") else False


def _own_gpu(name: str, device: torch.device) -> torch.device:
    """The GPU of this process on its machine."""
    number, gpus = announced("LOCAL_RANK"), torch.cuda.device_count()
    if device.index is not None:
        raise ValueError(f"device={name} is one GPU, but there are several processes; use device=cuda")
    if number >= gpus:
        raise ValueError(f"process {number + 1} of this machine has no GPU ({gpus} here); start at most {gpus}")
    return torch.device("cuda", number)


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """``x`` on a device, in its dtype. Copies to a GPU go through pinned memory and do not block the host."""
    device = torch.device(device)
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    x = x.contiguous()  # else the copy goes through memory that is not pinned
    return (x if x.is_pinned() else x.pin_memory()).to(device, non_blocking=True)


def doubled(x: Tensor) -> Tensor:
    """``x`` in float64 on its device; on the CPU if that is Apple's GPU, which has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def host_memory(*shape: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Uninitialised CPU memory from which a device is filled without another copy: pinned for a GPU."""
    return torch.empty(shape, dtype=dtype, pin_memory=torch.device(device).type == "cuda")


class Later:
    """An asynchronous copy of a tensor to the host.

    Args:
        x: small, on any device.
    """

    def __init__(self, x: Tensor):
        self._event: torch.cuda.Event | None = None
        self._values = x.detach().to("cpu", non_blocking=x.is_cuda)
        if x.is_cuda:
            with torch.cuda.device(x.device):
                self._event = torch.cuda.Event()
                self._event.record()

    def values(self) -> Tensor:
        """The values on the CPU; waits until the copy is complete."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._values
