"""What stands for classes and functions that a pickle names: records that hold the data and never run anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

MAX_DEPTH = 100  # of nested values in `plain`
MAX_VALUES = 1_000_000
MAX_KEY_DEPTH, MAX_KEY_PARTS = 4, 16
OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2, and protocols 0 to 2
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
    """A pickle that is damaged, hostile, or larger than any checkpoint needs."""


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names; it was not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Record:
    """What a pickle would have made by calling ``kind(*args, **kwargs)``; nothing was called.

    Attributes:
        state: what ``__setstate__`` or ``__dict__`` would have got, None when nothing.
        items: what would have been appended; pairs: what would have been set by key.
    """

    kind: Global
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)
    state: Any = None
    items: list = field(default_factory=list)
    pairs: list[tuple] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{self.kind}, not loaded>"


def is_hostile(module: str, name: str) -> bool:
    """Whether a name that a pickle wants to import serves to run code or to leave the process."""
    if module == "builtins":
        return name.partition(".")[0] in HOSTILE_BUILTINS
    return module.partition(".")[0] in HOSTILE_MODULES


def plain(value: Any) -> Any:
    """Settings as dictionaries, lists and scalars: OmegaConf containers, namespaces and other attribute records.

    A record turns into its ``_content`` or ``_val`` (OmegaConf), its keys, or its attributes; what is none of these
    becomes the name of its class.

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
    return str(value) if isinstance(value, Global) else type(value).__name__


def _content(record: Record) -> Any:
    """The part of a record that holds settings."""
    state = record.state
    if isinstance(state, tuple) and len(state) == 2:  # (__dict__, __slots__)
        state = next((part for part in state if isinstance(part, dict) and part), None)
    if isinstance(state, dict):
        for key in ("_content", "_val"):
            if key in state:
                return state[key]
    for found in (dict(record.pairs), record.items, state, list(record.args)):
        if found is not None and not (isinstance(found, (dict, list)) and not found):
            return found
    return str(record.kind)


def checked_key(value: Any, depth: int = 0) -> Any:
    """`value`, if it may be a key; hashing recurses, and a tuple nested deep enough would overflow the stack."""
    if isinstance(value, (tuple, frozenset)):
        if depth >= MAX_KEY_DEPTH or len(value) > MAX_KEY_PARTS:
            raise UnpickleError("damaged pickle (a key of too many parts)")
        for part in value:
            checked_key(part, depth + 1)
    hash(value)
    return value


def pairs_of(values: list) -> Iterable[tuple]:
    if len(values) % 2:
        raise UnpickleError("damaged pickle (a key without a value)")
    return zip(map(checked_key, values[::2]), values[1::2], strict=True)


def _listed(kind: type) -> Callable:
    def build(values: Any = ()) -> Any:
        if not isinstance(values, (list, tuple, set, frozenset)):
            raise UnpickleError(f"damaged pickle (a {kind.__name__} of a {type(values).__name__})")
        return kind(values if kind in (list, tuple) else map(checked_key, values))

    return build


def _dictionary(pairs: Any = ()) -> dict:
    if not isinstance(pairs, (list, tuple, dict)):
        raise UnpickleError(f"damaged pickle (a dictionary of a {type(pairs).__name__})")
    return {checked_key(key): value for key, value in (pairs.items() if isinstance(pairs, dict) else pairs)}


def _encoded(text: str = "", encoding: str = "latin1") -> bytes:
    """``codecs.encode``: how protocols 0 to 2 store bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnpickleError("damaged pickle (bytes that are no text in latin1)")
    return text.encode("latin-1")


def _byte_array(content: Any = b"", encoding: str = "latin1") -> bytes:
    return content if isinstance(content, bytes) else _encoded(content, encoding)


PLAIN: dict[tuple[str, str], Callable] = {
    ("builtins", "set"): _listed(set),
    ("builtins", "frozenset"): _listed(frozenset),
    ("builtins", "list"): _listed(list),
    ("builtins", "tuple"): _listed(tuple),
    ("builtins", "dict"): _dictionary,
    ("builtins", "bytearray"): _byte_array,
    ("builtins", "bytes"): _byte_array,
    ("_codecs", "encode"): _encoded,
    ("collections", "OrderedDict"): _dictionary,
    ("collections", "defaultdict"): lambda factory=None, pairs=(): _dictionary(pairs),
}
