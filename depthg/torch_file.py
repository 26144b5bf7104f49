"""Files of ``torch.save`` (`.pth`, `.pt`, `.ckpt`, `.bin`) read without executing what they contain.

Both formats: the zip archive (`data.pkl` and one record per storage) and the older row of pickles that is followed by
the storages. What a storage or tensor claims about its size is compared with the file before memory is taken.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from depthg.inert import Global, Record, UnpickleError
from depthg.unpickle import MAX_BYTES, read_pickle

ZIP_START = b"PK\x03\x04"
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the older format
STORED = 0  # zip's number for "not compressed"
ENCRYPTED = 1  # a flag of zip
MAX_DIMENSIONS = 64
DTYPES = {
    name: getattr(torch, name)
    for name in (
        "float64 float32 float16 bfloat16 complex32 complex64 complex128 uint8 int8 int16 int32 int64 bool "
        "float8_e4m3fn float8_e5m2"
    ).split()
}
STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "ByteStorage": torch.uint8, "CharStorage": torch.int8,
    "ShortStorage": torch.int16, "IntStorage": torch.int32, "LongStorage": torch.int64, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": None,
}  # fmt: skip


def read_torch_file(path: str | Path) -> Any:
    """The content of a file of ``torch.save``, tensors on the CPU.

    Returns:
        Dictionaries, lists, scalars and tensors; `depthg.inert.Record` and `Global` for objects of any other class
        (Lightning, OmegaConf, argparse ...), none of which is imported.

    Raises:
        FileNotFoundError: no such file.
        UnpickleError: a ValueError; the file is truncated, damaged or hostile, or no file of ``torch.save``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    with open(path, "rb") as file:
        try:
            start = file.read(len(ZIP_START))
            file.seek(0)
            return _read_zip(file) if start == ZIP_START else _read_rows(file, path.stat().st_size)
        except UnpickleError as error:
            raise UnpickleError(f"{path} cannot be loaded: {error}") from error
        except Exception as error:  # zipfile and struct raise many types on damaged files
            raise UnpickleError(f"{path} is truncated or damaged ({type(error).__name__}: {error})") from error


# ---- zip


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        records = _checked_records(archive)
        names = [name for name in records if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(names) != 1:
            raise UnpickleError("it is a zip archive, but not of torch.save (one data.pkl is expected)")
        prefix = names[0].removesuffix("data.pkl")
        if prefix + "constants.pkl" in records:
            raise UnpickleError("it is a TorchScript archive, which holds code; save its state_dict() instead")
        order = archive.read(prefix + "byteorder") if prefix + "byteorder" in records else b"little"
        if order != b"little":
            raise UnpickleError("its numbers are stored in big-endian order; save it again on a usual machine")
        if records[names[0]].file_size > MAX_BYTES:
            raise UnpickleError(f"its data.pkl is larger than {MAX_BYTES >> 20} MiB")

        def read(key: str, size: int) -> bytearray:
            info = records.get(f"{prefix}data/{key}")
            if info is None or info.file_size != size:
                found = "is missing" if info is None else f"has {info.file_size} bytes"
                raise UnpickleError(f"the storage {key[:40]!r} {found}, {size} are promised")
            content = bytearray(size)
            with archive.open(info) as stream:
                if cast(io.BufferedIOBase, stream).readinto(content) != size or stream.read(1):
                    raise UnpickleError(f"the storage {key[:40]!r} is truncated")
            return content

        return _unpickle(archive.read(names[0]), _Storages(lambda key, dtype, size: _tensor(read(key, size), dtype)))


def _checked_records(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Records by name: none compressed (nothing can unfold to more than the file holds), named twice or overlapping."""
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    records = {info.filename: info for info in infos}
    if len(records) != len(infos):
        raise UnpickleError("its zip archive names a record twice")
    for info, following in zip(infos, [*infos[1:], None], strict=True):
        end = archive.start_dir if following is None else following.header_offset
        if info.compress_type != STORED or info.file_size != info.compress_size or info.flag_bits & ENCRYPTED:
            raise UnpickleError("its zip archive is compressed or encrypted, which torch.save never does; unpack it")
        if info.header_offset + info.file_size > end:
            raise UnpickleError("records of its zip archive overlap or run past its end")
    return records


# ---- the format before torch 1.6


def _read_rows(file: BinaryIO, size: int) -> Any:
    try:
        magic = read_pickle(file)
    except UnpickleError:
        magic = None
    if magic != MAGIC:
        raise UnpickleError("it is no file of torch.save")
    if read_pickle(file) != PROTOCOL:
        raise UnpickleError("its version of the format is unknown")
    system = read_pickle(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UnpickleError("its numbers are stored in big-endian order; save it again on a usual machine")
    left = size - file.tell()

    def make(key: str, dtype: torch.dtype, n_bytes: int) -> Tensor:
        nonlocal left
        left -= n_bytes
        if left < 0:
            raise UnpickleError("its storages promise more bytes than the file has")
        return _tensor(bytearray(n_bytes), dtype)

    storages = _Storages(make)
    content = _unpickle(file, storages)
    keys = read_pickle(file)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages.known):
        raise UnpickleError("its list of storages does not fit its tensors")
    for key in map(str, keys):
        target = storages.known[key]
        (count,) = struct.unpack("<q", file.read(8))
        view = target.view(torch.uint8).numpy().data if target.numel() else memoryview(bytearray())
        if count != target.numel() or cast(io.BufferedIOBase, file).readinto(view) != len(view):
            raise UnpickleError(f"the storage {key[:40]!r} is truncated or has {count} values, not {target.numel()}")
    return content


# ---- tensors


def _tensor(content: bytearray, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


class _Storages:
    """Flat tensors by key, each made once; `make(key, dtype, bytes)` finds or promises the memory."""

    def __init__(self, make: Callable[[str, torch.dtype, int], Tensor]):
        self.make = make
        self.known: dict[str, Tensor] = {}

    def __call__(self, identity: Any) -> Tensor:
        """The storage of ``("storage", kind, key, location, number of values)``; the older format adds a view."""
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise UnpickleError("it refers to an object that is no storage")
        kind, key, count = identity[1], identity[2], identity[4]
        name = kind.name if isinstance(kind, Global) and kind.module in ("torch", "torch.storage") else None
        if name not in STORAGES:
            raise UnpickleError("a storage of unknown kind; only dense tensors of the usual types are read")
        if type(key) is not str or type(count) is not int or count < 0:
            raise UnpickleError("a storage without a proper key or size")
        if len(identity) == 6 and identity[5] is not None:
            raise UnpickleError("it was saved by torch 0.3 or older; save it again with a newer version")
        dtype = STORAGES[name] or torch.uint8
        if key not in self.known:
            self.known[key] = self.make(key, dtype, count * dtype.itemsize)
        storage = self.known[key]
        if storage.dtype != dtype or storage.numel() != count:
            raise UnpickleError(f"the storage {key[:40]!r} is described in two ways")
        return storage


def _unpickle(source: bytes | BinaryIO, storages: _Storages) -> Any:
    values = {("torch", name): dtype for name, dtype in DTYPES.items()}
    return read_pickle(source, FUNCTIONS, values, storages)


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *unused: Any) -> Tensor:
    """A view of a storage; sizes and strides must stay inside it, and no element is repeated."""
    if not isinstance(storage, Tensor) or storage.ndim != 1:
        raise UnpickleError("a tensor without a storage")
    if not all(isinstance(part, tuple) and len(part) <= MAX_DIMENSIONS for part in (size, stride)):
        raise UnpickleError("a tensor whose size or stride is no tuple")
    numbers = [offset, *size, *stride]
    if any(type(n) is not int or n < 0 for n in numbers) or len(size) != len(stride):
        raise UnpickleError("a tensor with an impossible size, stride or offset")
    count = 1
    for n in size:
        count *= n
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count > storage.numel() or (count and last >= storage.numel()):
        raise UnpickleError(f"a tensor of {count} values at offset {offset} overruns its storage of {storage.numel()}")
    return storage.as_strided(size, stride, offset) if count else storage.new_empty(size)


def _rebuild_v3(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """A tensor of an untyped storage; its dtype comes as the third of the further arguments."""
    dtype = rest[2] if len(rest) > 2 else None
    if dtype not in DTYPES.values() or not isinstance(storage, Tensor) or storage.dtype != torch.uint8:
        raise UnpickleError("a tensor of unknown type")
    if storage.numel() % dtype.itemsize:
        raise UnpickleError(f"a storage of {storage.numel()} bytes that does not hold whole values of {dtype}")
    return _rebuild(storage.view(dtype), offset, size, stride)


def _parameter(data: Any, *unused: Any) -> Any:
    """A parameter without its gradient flag, hooks and attributes: only its values are of use."""
    if not isinstance(data, Tensor):
        raise UnpickleError("a parameter without values")
    return data


def _subclass(function: Any, kind: Any, args: Any, state: Any = None) -> Any:
    """A tensor with attributes or of a subclass: its values."""
    key = (function.module, function.name) if isinstance(function, Global) else None
    if key not in FUNCTIONS or not isinstance(args, tuple) or FUNCTIONS[key] is _subclass:
        raise UnpickleError("a tensor of an unknown subclass")
    return FUNCTIONS[key](*args)


def _size(values: Any = ()) -> tuple:
    if not isinstance(values, (tuple, list)):
        raise UnpickleError("a torch.Size that is no tuple")
    return tuple(values)


FUNCTIONS: dict[tuple[str, str], Callable] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _subclass,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("torch", "Size"): _size,
}


def tensors_of(content: Any) -> dict[str, Tensor]:
    """All tensors of nested dictionaries, by keys joined with dots; what is not a tensor is dropped.

    Raises:
        UnpickleError: dictionaries that hold themselves, or are nested deeper than any state dict.
    """
    found: dict[str, Tensor] = {}
    queue = [("", content, 0)]
    while queue:
        prefix, node, depth = queue.pop()
        if depth > 20 or len(queue) + len(found) > 1_000_000:
            raise UnpickleError("dictionaries nested deeper or larger than any state dict")
        for key, value in node.items() if isinstance(node, dict) else ():
            if isinstance(value, Tensor):
                found[f"{prefix}{key}"] = value
            elif isinstance(value, (dict, Record)):
                queue.append((f"{prefix}{key}.", dict(value.pairs) if isinstance(value, Record) else value, depth + 1))
    return found
