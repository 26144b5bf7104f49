"""Several processes of one run, on one or more machines: ranks, shares of a batch and collective operations.

``torchrun`` and ``accelerate launch`` start them and say in the environment how many there are; a process that was
started alone is the first of one, and everything here then returns at once.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from depthg.runtime.worker_pool import available_cores

T = TypeVar("T")
PATIENCE = timedelta(hours=6)  # the others wait while the first evaluates, draws pictures, or downloads
NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")


def announced(name: str, default: int = 0) -> int:
    """An integer that the launcher set in the environment."""
    return int(os.environ.get(name) or default)


def is_main() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return announced("RANK") == 0 or announced("WORLD_SIZE", 1) == 1


def start(device: torch.device) -> None:
    """Connects the processes that a launcher started; gloo for the CPU, NCCL for GPUs. Does nothing for one process.

    Raises:
        ValueError: the environment announces several processes, but has no address for them.
    """
    if announced("WORLD_SIZE", 1) == 1 or dist.is_initialized():
        return
    missing = [name for name in NEEDED if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} is set without {', '.join(missing)}: start several processes with "
            "torchrun or accelerate launch, or unset WORLD_SIZE"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    atexit.register(_end)


def _end() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Rank of this process; 0 if it runs alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Number of connected processes; 1 if it runs alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_cores() -> int | None:
    """Cores available to this process where a machine runs several processes; None if it has all."""
    beside = announced("LOCAL_WORLD_SIZE", 1)
    return None if beside == 1 else max(1, available_cores() // beside)


def label() -> str:
    """`` (process 1)`` in all processes but the first, for messages that any of them may print."""
    return "" if is_main() else f" (process {announced('RANK')})"


def precision(name: str) -> str:
    """``auto`` resolved: what ``accelerate launch --mixed_precision`` asks for, else float32.

    Raises:
        ValueError: the launcher asks for a precision other than bf16.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if name != "auto":
        return name
    if asked not in ("no", "bf16"):
        raise ValueError(f"--mixed_precision {asked} is not possible; use bf16 or no (or precision=float32)")
    return "bfloat16" if asked == "bf16" else "float32"


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Turns errors of collective operations into one sentence.

    Raises:
        ConnectionError: another process ended, or the network failed.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ConnectionError(
            f"the connection to the other processes is lost: one of them has ended, see its message, or the network "
            f"failed ({str(error).splitlines()[0][:200]}); what is saved goes on with resume=RUN"
        ) from error


def _add_up(x: Tensor) -> None:
    """Replaces a tensor by its sum over processes."""
    with _together():
        dist.all_reduce(x)


def barrier() -> None:
    """Returns when every process has called it."""
    if count() > 1:
        _add_up(torch.zeros(1))


def total(x: Tensor) -> Tensor:
    """Sum over processes, in the dtype of ``x``."""
    if count() > 1:
        x = x.detach().clone()
        _add_up(x)
    return x


def average(x: Tensor) -> Tensor:
    """Mean over processes."""
    return total(x) / count() if count() > 1 else x


def averages(values: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Means over processes of named numbers; every process has the same names. One read from the GPU."""
    there = {name: x.detach().double() for name, x in values.items() if isinstance(x, Tensor) and x.is_cuda}
    read = dict(zip(there, torch.stack(list(there.values())).tolist(), strict=True)) if there else {}
    numbers = torch.tensor([float(read.get(name, x)) for name, x in values.items()], dtype=torch.float64)
    return dict(zip(values, average(numbers).tolist(), strict=True))


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process; the same answer everywhere."""
    return bool(total(torch.tensor([int(flag)]))[0])


def from_main(make: Callable[[], T]) -> T:
    """What ``make()`` returns, or raises, in the first process, in every process."""
    if count() == 1:
        return make()
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found[0] = make()
            pickle.dumps(found[0])
        except Exception as error:
            found = [None, _sendable(error)]
    with _together():
        dist.broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def collect(part: T) -> list[T]:
    """``part`` of every process, in their order."""
    if count() == 1:
        return [part]
    parts: list[Any] = [None] * count()
    with _together():
        dist.all_gather_object(parts, part)
    return parts


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The first process runs the block before the others, so that they find its results."""
    if rank() > 0:
        barrier()
    try:
        yield
    finally:
        if rank() == 0:
            barrier()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        out = x.new_empty(count(), *x.shape)
        with _together():
            dist.all_gather(list(_bytes(out).unbind()), _bytes(x.contiguous()))  # every dtype, whatever gloo knows
        return out.flatten(0, 1)

    @staticmethod
    def backward(ctx, d_out: Tensor) -> Tensor:
        everyones = d_out.float().contiguous()
        if everyones.data_ptr() == d_out.data_ptr():
            everyones = everyones.clone()  # autograd may use it elsewhere
        _add_up(everyones)
        return everyones.chunk(count())[rank()].to(d_out.dtype)


def _bytes(x: Tensor) -> Tensor:
    return x.view(torch.uint8)


def gather(x: Tensor) -> Tensor:  # [n, ...] -> [processes * n, ...]
    """The tensors of all processes, concatenated; equal shapes. Each process gets the summed gradient of its rows."""
    return x if count() == 1 else _Gather.apply(x)


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replaces every gradient by its mean over processes, in one message. Those that are None are None everywhere."""
    if count() == 1:
        return
    with_gradient = [p for p in parameters if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in with_gradient])
    _add_up(flat)
    flat /= count()
    for p, mean in zip(with_gradient, flat.split([p.numel() for p in with_gradient]), strict=True):
        p.grad.copy_(mean.view_as(p))


@dataclass(frozen=True)
class BatchShare:
    """Rows ``first`` to ``stop`` of a batch of ``total``: the share of one process.

    Random numbers are drawn for the whole batch and then cut, so that they do not depend on the number of processes.
    """

    first: int
    stop: int
    total: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.stop)

    @property
    def size(self) -> int:
        return self.stop - self.first

    def within(self, first: int, stop: int) -> BatchShare:
        """The part of this share in rows ``first`` to ``stop``, counted from ``first``."""
        return BatchShare(
            min(max(self.first, first), stop) - first, max(min(self.stop, stop), first) - first, stop - first
        )


def share_of(total: int, name: str) -> BatchShare | None:
    """The rows of a batch that belong to this process; None when it has all.

    Raises:
        ValueError: the batch cannot be divided into equal shares.
    """
    if count() == 1:
        return None
    if total % count():  # equal shares: the mean over processes is then the mean over the batch
        low, high = total // count() * count(), -(-total // count()) * count()
        near = high if low == 0 else f"{low} or {high}"
        raise ValueError(
            f"{name}={total} is not divisible by {count()} processes; use {name}={near}, or another number of them"
        )
    size = total // count()
    return BatchShare(rank() * size, (rank() + 1) * size, total)
