"""Files of ``torch.save`` (`.pth`, `.pt`, `.ckpt`, `.bin`) read without executing what they contain.

``torch.load(weights_only=True)`` reads them, and each class or function that torch does not know is replaced by a
record. Before that the structure, the checksums and the pickles are checked: names that run code, memory that is only
promised, and keys nested deep enough to end the process never reach torch. Both formats are read: the zip archive, and
the row of pickles of torch < 1.6. All reads are of one open file, so that what is checked is what is loaded; were its
content exchanged in between, torch would still refuse each name without a record.
"""

from __future__ import annotations

import io
import math
import os
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from depthg.foreign.pickle_scan import PickleScan
from depthg.foreign.records import Record, UnpickleError, record_class

TORCH = (2, 10)  # in older ones a file read with weights_only=True can corrupt memory (CVE-2026-24747)
MAX_BYTES = 64 * 2**20  # of the pickles; tensors lie outside them
ZIP_START = b"PK\x03\x04"
MAGIC = 0x1950A86A20F9469CFC6C  # of the older format
STORED = 0  # zip's number for "not compressed"
ENCRYPTED = 1  # a flag of zip
MAX_DIMENSIONS = 64
DTYPES = (
    "float64 float32 float16 bfloat16 complex32 complex64 complex128 uint8 int8 int16 int32 int64 bool float8_e4m3fn "
    "float8_e5m2"
)
STORAGES = "Double Float Half BFloat16 Byte Char Short Int Long Bool ComplexFloat ComplexDouble"
FUNCTIONS = {  # that torch may call; the others that it knows (sparse, quantised, tensors of a size) are refused
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
    "torch._tensor._rebuild_from_type_v2", "torch.nn.parameter.Parameter", "torch.Size", "torch.device",
    "collections.OrderedDict", "collections.Counter", "_codecs.encode", "builtins.bytearray", "builtins.set",
    "builtins.complex",
}  # fmt: skip
VALUES = {
    *FUNCTIONS, *(f"torch.{name}Storage" for name in STORAGES.split()), "torch.storage.UntypedStorage", "torch.Tensor",
    *(f"torch.{name}" for name in DTYPES.split()),
}  # fmt: skip
HARMLESS = {"builtins.frozenset": frozenset, "builtins.bytes": bytes}  # unknown to torch
MAPPINGS = {"collections.defaultdict", "builtins.dict"}  # even those that stay empty
loading = threading.Lock()  # torch keeps its safe globals for the process


def read_torch_file(path: str | Path) -> Any:
    """The content of a file of ``torch.save``, tensors on the CPU.

    Returns:
        Dictionaries, lists, scalars and tensors; `depthg.foreign.records.Record` for objects of any other class
        (Lightning, OmegaConf, argparse ...), none of which is imported, and its subclasses for classes.

    Raises:
        FileNotFoundError: no such file.
        UnpickleError: a ValueError; the file is truncated, damaged or hostile, no file of ``torch.save``, or not of
            pickle protocol 2, which ``torch.save`` writes.
        ImportError: torch is older than 2.10.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    found = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if found < TORCH:
        raise ImportError(f"{path} cannot be read safely by torch {torch.__version__}; install torch>=2.10")
    with open(path, "rb") as file:
        try:
            zipped = file.read(len(ZIP_START)) == ZIP_START
            file.seek(0)
            scan, pickle = _scan_zip(file) if zipped else _scan_rows(file, os.fstat(file.fileno()).st_size)
            return _checked(_load(file, scan, pickle))
        except UnpickleError as error:
            raise UnpickleError(f"{path} cannot be loaded: {error}") from error
        except Exception as error:  # zipfile, pickletools and torch raise many types; torch's texts give its own advice
            raise UnpickleError(f"{path} is truncated or damaged ({type(error).__name__})") from error


# ---- before torch


def _scan_zip(file: BinaryIO) -> tuple[PickleScan, bytes]:
    """What the archive's pickle does, and the pickle."""
    with zipfile.ZipFile(file) as archive:
        records = _checked_records(archive)
        names = [name for name in records if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(names) != 1:
            raise UnpickleError("it is a zip archive, but not of torch.save (one data.pkl is expected)")
        if names[0].removesuffix("data.pkl") + "constants.pkl" in records:
            raise UnpickleError("it is a TorchScript archive, which holds code; save its state_dict() instead")
        if records[names[0]].file_size > MAX_BYTES:
            raise UnpickleError(f"its data.pkl is larger than {MAX_BYTES >> 20} MiB")
        broken = archive.testzip()
        if broken is not None:
            raise UnpickleError(f"its record {broken[:80]!r} is damaged (CRC-32 differs); copy or download it again")
        pickle = archive.read(names[0])
    file.seek(0)
    if torch._C.PyTorchFileReader(file).get_record("data.pkl") != pickle:
        raise UnpickleError("its zip archive can be read in two ways")
    scan = PickleScan()
    scan.read(io.BytesIO(pickle))
    for key, count in scan.storages.items():  # to the letter: torch would take another case for another storage
        record = records.get(f"{names[0].removesuffix('data.pkl')}data/{key}")
        if record is None or record.file_size < count:
            raise UnpickleError(f"the storage {key[:80]!r} is missing or shorter than its tensors; it is truncated")
    return scan, pickle


def _checked_records(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Records by name: none compressed (nothing can unfold to more than the file holds), named twice or overlapping."""
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    records = {info.filename: info for info in infos}
    if len({name.lower() for name in records}) != len(infos):  # torch looks names up without regard to case
        raise UnpickleError("its zip archive names a record twice")
    for info, following in zip(infos, [*infos[1:], None], strict=True):
        end = archive.start_dir if following is None else following.header_offset
        if info.compress_type != STORED or info.file_size != info.compress_size or info.flag_bits & ENCRYPTED:
            raise UnpickleError("its zip archive is compressed or encrypted, which torch.save never does; unpack it")
        if info.header_offset + info.file_size > end:
            raise UnpickleError("records of its zip archive overlap or run past its end")
    return records


def _scan_rows(file: BinaryIO, size: int) -> tuple[PickleScan, bytes]:
    """The older format: magic number, version, system, content and keys, each a pickle, then the storages."""
    head, scan = io.BytesIO(file.read(MAX_BYTES)), PickleScan()
    try:
        magic = scan.read(head)
    except Exception as error:
        if isinstance(error, UnpickleError) and head.getvalue().startswith(b"\x80"):  # PROTO: a pickle at least
            raise
        magic = None
    if magic != [MAGIC]:
        raise UnpickleError("it is no file of torch.save")
    scan.read(head)
    system = scan.read(head)
    if system[system.index("little_endian") + 1] is not True:
        raise UnpickleError("its numbers are stored in big-endian order; save it again on a usual machine")
    start = head.tell()
    scan.read(head)
    pickle = head.getvalue()[start : head.tell()]
    if sorted(scan.read(head)) != sorted(scan.storages):
        raise UnpickleError("its list of storages does not fit its tensors")
    if sum(scan.storages.values()) > size - head.tell():  # of a byte at least; torch compares the sizes
        raise UnpickleError("its storages promise more bytes than the file has")
    return scan, pickle


# ---- torch


def _load(file: BinaryIO, scan: PickleScan, pickle: bytes) -> Any:
    """``torch.load`` with a record in place of each name that torch does not know."""
    with _no_safe_globals():
        unknown = set(torch.serialization.get_unsafe_globals_in_checkpoint(_archive_of(pickle)))
        if not unknown <= scan.names:
            raise UnpickleError("damaged pickle (names that cannot be told apart)")
        lists = scan.filled["APPEND"] | scan.filled["APPENDS"]
        dicts = scan.filled["SETITEM"] | scan.filled["SETITEMS"] | MAPPINGS
        if scan.odd & (dicts | {"collections.OrderedDict"}):
            raise UnpickleError("damaged pickle (a dictionary with the state of something else)")
        known = scan.names - unknown
        refused = (known - VALUES) | (known & scan.called - FUNCTIONS)
        refused |= known & scan.filled["BUILD"] - {"collections.OrderedDict"}  # the state of a tensor
        if refused:
            raise UnpickleError(f"it uses {min(refused)[:80]}; only dense tensors of the usual types are read")
        aliases: list[Any] = [
            (HARMLESS.get(name) or record_class(name, name in dicts, name in lists), name) for name in unknown
        ]
        file.seek(0)
        with (
            torch.serialization.safe_globals(aliases),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # about storages
            return torch.load(file, map_location="cpu", weights_only=True)


@contextmanager
def _no_safe_globals() -> Iterator[None]:
    """Classes that other packages told torch to trust are unknown inside: their code would run."""
    with loading:
        trusted = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            yield
        finally:
            torch.serialization.add_safe_globals(trusted)


def _archive_of(pickle: bytes) -> io.BytesIO:
    """The pickle in an archive, the only format whose names torch lists."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("data.pkl", pickle), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", content)
    file.seek(0)
    return file


def _checked(content: Any) -> Any:
    """`content` after a walk through it: dense tensors, and no attributes that hide methods."""
    queue, seen = [content], set()
    while queue:
        node = queue.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Tensor):
            vars(node).clear()
            node.requires_grad_(False)
            values = math.prod(max(size, 1) for size in node.shape)
            held = node.untyped_storage().nbytes() if node.numel() else 2**31
            if values * node.itemsize > held or node.ndim > MAX_DIMENSIONS:  # a stride of 0 repeats values
                raise UnpickleError(f"a tensor of {values} values overruns its storage")
        elif isinstance(node, Record):
            queue += [node.args, node.state]
        elif isinstance(node, (dict, list, tuple, set, frozenset)):
            if isinstance(node, OrderedDict):
                vars(node).clear()
            queue += [*node, *node.values()] if isinstance(node, dict) else node
    return content


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
                found[f"{prefix}{key}"] = value.detach()
            elif isinstance(value, dict):
                queue.append((f"{prefix}{key}.", value, depth + 1))
    return found
