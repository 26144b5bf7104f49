"""A pretended GPU: tensors that say they are on ``cuda:0`` and compute on the CPU, so that code takes its CUDA path.

Whatever would make the host wait for a real device is seen on its way (:class:`Device`), with the line that asks for
it, and a CPU tensor where CUDA would refuse it raises. Triton kernels and the bodies of this package's operators run on
the values, so results can be compared with the CPU's.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
ROOT = Path(__file__).parent.parent
OURS = tuple(str(ROOT / name) for name in ("depthg", "kernels"))
READING = {  # operations whose result the host needs before it can go on
    "_local_scalar_dense", "nonzero", "nonzero_static", "masked_select", "equal", "is_nonzero", "_unique2",
    "unique_dim", "unique_consecutive", "bincount", "argwhere", "repeat_interleave", "_linalg_eigh", "_assert_async",
}  # fmt: skip


@dataclass(frozen=True)
class Wait:
    """``kind``: reads (the host waits for a value), sends (from pageable memory, or blocking), or waits (for an event);
    ``where``: file and function that ask for it."""

    kind: str
    operation: str
    where: str


class OnDevice(Tensor):
    """A tensor that claims to be on ``cuda:0``; its values are on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @staticmethod
    def __new__(cls, values: Tensor) -> OnDevice:
        with torch.inference_mode(False):  # a view of a tensor that is no inference tensor is none either
            return torch.Tensor._make_wrapper_subclass(
                cls, values.shape, values.stride(), values.storage_offset(), dtype=values.dtype, device=CPU
            )

    def __init__(self, values: Tensor):
        self.values = values

    def __repr__(self) -> str:
        return f"OnDevice({self.values!r})"

    def __tensor_flatten__(self):  # modules then exchange their parameters instead of filling them
        return ["values"], None

    @staticmethod
    def __tensor_unflatten__(values, context, size, stride):
        return OnDevice(values["values"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return Device.current.dispatch(function, args, kwargs or {})


def inner(x: Any) -> Any:
    return x.values if isinstance(x, OnDevice) else x


def outer(x: Any) -> Any:
    return OnDevice(x) if isinstance(x, Tensor) and not isinstance(x, OnDevice) else x


def is_device(x: Any) -> bool:
    return isinstance(x, (str, torch.device)) and str(x).startswith("cuda")


class Device(TorchFunctionMode):
    """The pretended GPU; inside ``with Device() as device`` tensors can be sent to ``cuda:0``.

    Attributes:
        seen: what a host would have waited for, in order.
        operations: how often the device did what.
        peak: most bytes that tensors on the device held at a time, since ``measure()``.
    """

    current: Device

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Wait] = []
        self.operations: Counter[str] = Counter()
        self.held: dict[int, int] = {}  # bytes of storages by their address
        self.peak = 0
        self.pinned: list[Tensor] = []  # kept, so that no other tensor gets their memory

    def note(self, kind: str, operation: str) -> None:
        frame: Any = sys._getframe(1)
        while frame and not frame.f_code.co_filename.startswith(OURS):
            frame = frame.f_back
        where = f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}" if frame else "elsewhere"
        self.seen.append(Wait(kind, operation, where))

    # What Python asks for: factories, and the ways to and from the device.

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if function in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self.move(args[0], args[1:] if name == "to" else (name, *args[1:]), kwargs)
        if function in (Tensor.numpy, Tensor.tolist, Tensor.__array__) and isinstance(args[0], OnDevice):
            self.note("reads", name)
            return function(args[0].values, *args[1:], **kwargs)
        if function is Tensor.pin_memory:
            return self.pin(args[0].clone())
        if function is Tensor.is_pinned:
            return self.is_pinned(args[0])
        if function is Tensor.new_tensor and isinstance(args[0], OnDevice):
            self.note("sends", name)
            return OnDevice(function(args[0].values, *args[1:], **kwargs))
        pin = kwargs.pop("pin_memory", False)
        if is_device(kwargs.get("device")):
            kwargs["device"] = CPU
            if name in ("tensor", "as_tensor", "asarray", "new_tensor"):
                self.note("sends", name)
            return tree_map(outer, function(*tree_map(inner, args), **tree_map(inner, kwargs)))
        found = function(*args, **kwargs)
        return self.pin(found) if pin else found

    def pin(self, x: Tensor) -> Tensor:
        self.pinned.append(x)
        return x

    def is_pinned(self, x: Tensor) -> bool:
        return any(x.untyped_storage().data_ptr() == p.untyped_storage().data_ptr() for p in self.pinned)

    def move(self, x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """``x.to(...)``: both directions, and changes of the dtype alone."""
        given = [*args, *kwargs.values()]
        given += [part for y in given if isinstance(y, Tensor) for part in (y.device, y.dtype)]
        device = next((y for y in given if isinstance(y, (str, torch.device))), None)
        dtype = next((y for y in given if isinstance(y, torch.dtype)), None)
        later = bool(kwargs.get("non_blocking", False)) or any(y is True for y in args)
        on = isinstance(x, OnDevice)
        if device is not None and is_device(device) and not on:
            if not (later and self.is_pinned(x)):
                self.note("sends", "to")
            with torch._C.DisableTorchFunction():
                return Sent.apply(x, dtype)
        if device is not None and not is_device(device) and on:
            self.note("reads later" if later else "reads", "to")
            values = x.detach().values
            values = values.clone() if dtype is None else values.to(dtype, copy=True)
            return self.pin(values) if later else values
        with torch._C.DisableTorchFunction():
            return x if dtype is None else x.to(dtype)

    # What the operators do.

    def dispatch(self, function, args: tuple, kwargs: dict) -> Any:
        name = function._schema.name.removeprefix("aten::").removeprefix("depthg::")
        body = torch._library.custom_ops.OPDEFS.get(f"depthg::{name}")
        if function.namespace == "depthg" and body is not None:
            with self:
                return body._init_fn(*args, **kwargs)
        self.check(name, args, kwargs)
        self.operations[name] += 1
        kwargs = {k: CPU if k == "device" and v is not None else v for k, v in kwargs.items()}
        out = function(*tree_map(inner, args), **tree_map(inner, kwargs))
        self.count(out)
        return return_and_correct_aliasing(function, args, kwargs, tree_map(outer, out))

    def measure(self) -> None:
        """What is held now does not count."""
        self.peak = 0
        self.held = dict.fromkeys(self.held, 0)

    def count(self, out: Any) -> None:
        """Adds the memory of results, until nothing refers to it any more; memory inside an operation is not seen."""
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage().nbytes():
                storage = x.untyped_storage()
                if storage.data_ptr() not in self.held:
                    self.held[storage.data_ptr()] = storage.nbytes()
                    weakref.finalize(storage, self.held.pop, storage.data_ptr(), None)
        self.peak = max(self.peak, sum(self.held.values()))

    def check(self, name: str, args: tuple, kwargs: dict) -> None:
        """Notes what reads values, and refuses CPU tensors beside those of the device."""
        if name in READING:
            self.note("reads", name)
        elif name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            indices = [x for x in args[1] if isinstance(x, Tensor)]
            if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
                self.note("reads", f"{name} by a mask")
            if any(not isinstance(x, OnDevice) for x in indices):
                self.note("sends", name)
            args = (args[0], *args[2:])
        elif name == "copy_" and isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
            later = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            if isinstance(args[0], OnDevice):
                if not (later and self.is_pinned(args[1])):
                    self.note("sends", name)
            else:
                self.note("reads later" if later and self.is_pinned(args[0]) else "reads", name)
            return
        strangers = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and not isinstance(x, OnDevice)]
        if any(x.ndim for x in strangers):
            raise RuntimeError(f"{name} gets a CPU tensor beside tensors on cuda:0")


class Factories(TorchDispatchMode):
    """New tensors on the device where torch's own Python code makes them, which functions of a mode do not see."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not is_device(kwargs.get("device")):
            return function(*args, **kwargs)
        kwargs = {**kwargs, "device": CPU}
        return tree_map(outer, function(*tree_map(inner, args), **tree_map(inner, kwargs)))


class Sent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype | None) -> Tensor:
        values = x.detach()
        return OnDevice(values.clone() if dtype is None else values.to(dtype, copy=True))

    @staticmethod
    def backward(ctx, d_out: Tensor):
        return d_out.values, None


class Event:
    """``torch.cuda.Event``."""

    def __init__(self, *given: Any, **named: Any) -> None: ...

    def record(self, *given: Any) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        Device.current.note("waits", "Event.synchronize")


@contextlib.contextmanager
def pretend() -> Iterator[Device]:
    """The pretended GPU, with Triton in the interpreter."""
    from triton.runtime import interpreter

    plain, grouped = interpreter.InterpretedFunction.run, Optimizer._group_tensors_by_device_and_dtype

    def run(self, *args, **kwargs):
        with torch._C.DisableTorchFunction():
            return plain(self, *tree_map(inner, args), **tree_map(inner, kwargs))

    def group(*given):
        return {(CUDA, dtype): tensors for (_, dtype), tensors in grouped(*given).items()}

    with pytest.MonkeyPatch.context() as patch, Factories(), Device() as device:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(interpreter.InterpretedFunction, "run", run)
        patch.setattr(torch.cuda, "device", lambda *given: contextlib.nullcontext())
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(group))
        patch.setattr(Device, "current", device, raising=False)
        yield device
