"""What stands for classes and functions that a checkpoint names: records that hold the data and never run anything."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar

MAX_DEPTH = 100  # of nested values in `plain`
MAX_VALUES = 1_000_000
# No checkpoint needs these; one that names them wants to run something.
HOSTILE_MODULES = frozenset(
    "os posix nt subprocess sys shutil socket ctypes _ctypes importlib imp pkgutil runpy pty code codeop pickle "
    "_pickle marshal webbrowser urllib http ftplib pdb bdb timeit cProfile profile trace commands popen2 gc "
    "multiprocessing asyncio threading _thread signal ssl pip ensurepip idlelib tempfile pydoc doctest inspect".split()
)
HOSTILE_BUILTINS = frozenset(
    "eval exec compile open __import__ input breakpoint globals locals vars setattr delattr exit quit help".split()
)


class UnpickleError(ValueError):
    """A checkpoint that is damaged, hostile, or larger than any checkpoint needs."""


class Record:
    """What a file would have made by calling the class or function `kind` with `args`; nothing was called.

    Each name in a file has a subclass, which also stands for the class or function itself.

    Attributes:
        state: what ``__setstate__`` or ``__dict__`` would have got, None when nothing.
    """

    kind: ClassVar[str] = ""
    args: tuple
    state: Any

    def __new__(cls, *args: Any) -> Any:
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<{self.kind}, not loaded>"


def record_class(name: str, is_dict: bool = False, is_list: bool = False) -> type[Record]:
    """What stands for ``module.name``; the objects of subclasses of dict and list become dicts and lists."""
    members: dict[str, Any] = {"kind": name}
    if is_dict or is_list:
        members["__new__"] = lambda cls, *args: OrderedDict() if is_dict else []
    return type(name.rpartition(".")[2], (Record,), members)


def is_hostile(name: str) -> bool:
    """Whether ``module.name``, which a file wants to import, serves to run code or to leave the process."""
    module, _, rest = name.partition(".")
    return module in HOSTILE_MODULES or (module == "builtins" and rest.partition(".")[0] in HOSTILE_BUILTINS)


def plain(value: Any) -> Any:
    """Settings as dictionaries, lists and scalars: OmegaConf containers, namespaces and other attribute records.

    A record turns into its ``_content`` or ``_val`` (OmegaConf), its attributes, or its arguments; what is none of
    these becomes the name of its class.

    Raises:
        UnpickleError: nested deeper than `MAX_DEPTH`, or more than `MAX_VALUES`.
    """
    left = MAX_VALUES

    def walk(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > MAX_DEPTH or left < 0:
            raise UnpickleError("its settings are nested deeper or larger than any checkpoint needs")
        if isinstance(value, Record):
            return walk(_content(value), depth + 1)
        if isinstance(value, dict):
            return {k if isinstance(k, str) else str(walk(k, depth + 1)): walk(v, depth + 1) for k, v in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [walk(v, depth + 1) for v in value]
        if isinstance(value, int) and value.bit_length() > 64:
            raise UnpickleError("its settings hold an integer of more than 64 bits")
        return value if value is None or isinstance(value, (bool, int, float, str)) else _named(value)

    return walk(value, 0)


def _named(value: Any) -> str:
    if isinstance(value, type):
        return value.kind if issubclass(value, Record) else f"{value.__module__}.{value.__qualname__}"
    return type(value).__name__


def _content(record: Record) -> Any:
    """The part of a record that holds settings."""
    state = record.state
    if isinstance(state, tuple) and len(state) == 2:  # (__dict__, __slots__)
        state = next((part for part in state if isinstance(part, dict) and part), None)
    if isinstance(state, dict):
        for key in ("_content", "_val"):
            if key in state:
                return state[key]
    for found in (state, list(record.args)):
        if found is not None and not (isinstance(found, (dict, list)) and not found):
            return found
    return record.kind
