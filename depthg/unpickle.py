"""Pickles read as data: nothing is imported, no code of the file or of the classes it names is run.

`pickletools` decodes the opcodes, and they are interpreted here. A class or function that a pickle names becomes a
`Global`, what it would build with one a `Record` that keeps the arguments and the state. Only the functions that the
caller hands over are called, with arguments that they have to check.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from functools import partialmethod
from typing import IO, Any, BinaryIO, cast

from depthg.inert import (
    OLD_NAMES,
    PLAIN,
    Global,
    Record,
    UnpickleError,
    checked_key,
    is_hostile,
    pairs_of,
)

MAX_BYTES = 64 * 2**20  # of one pickle; tensors lie outside it
MAX_WORK = 5_000_000  # opcodes, and elements that known functions copy
MAX_INT_BITS = 1024


def read_pickle(
    source: bytes | BinaryIO,
    functions: Mapping[tuple[str, str], Callable] | None = None,
    values: Mapping[tuple[str, str], Any] | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The value of one pickle of any protocol.

    Args:
        source: the pickle, or a binary file at its start, which is left just behind it.
        functions: by (module, name): what is called in place of a function or class of the file. The arguments come
            from the file, so a function must check them, and may raise ValueError.
        values: by (module, name): what stands for a global that is not called, e.g. a dtype.
        persistent: turns a persistent id into a value; None refuses them.

    Returns:
        Plain Python values, what `functions` returned, and `Global` and `Record` for everything else.

    Raises:
        UnpickleError: damaged, hostile (it names functions that run code), or larger than `MAX_BYTES` or `MAX_WORK`.
    """
    file = _Bounded(io.BytesIO(source) if isinstance(source, bytes) else source)
    machine = _Machine({**PLAIN, **(functions or {})}, values or {}, persistent)
    try:
        return machine.run(file)
    except UnpickleError:
        raise
    except Exception as error:  # whatever a damaged pickle leads to: IndexError, KeyError, TypeError, struct.error ...
        raise UnpickleError(f"damaged pickle ({type(error).__name__}: {str(error)[:200]})") from error


class _Bounded:
    """A file that reads no more than `MAX_BYTES` and never asks for memory that a length in the file only promises."""

    def __init__(self, file: BinaryIO):
        self.file, self.left = file, MAX_BYTES

    def read(self, n: int) -> bytes:
        self._take(n)
        return self.file.read(n)

    def readline(self) -> bytes:
        line = self.file.readline(self.left + 1)
        self._take(len(line))
        return line

    def _take(self, n: int) -> None:
        if not 0 <= n <= self.left:
            raise UnpickleError(f"a pickle of more than {MAX_BYTES >> 20} MiB: checkpoints keep their tensors outside")
        self.left -= n


class _Machine:
    """The stack machine of pickle, without its imports and calls."""

    def __init__(self, functions: Mapping, values: Mapping, persistent: Callable | None):
        self.functions, self.values, self.persistent = functions, values, persistent
        self.stack: list = []
        self.marks: list[list] = []
        self.memo: dict[int, Any] = {}
        self.work = 0

    def run(self, file: _Bounded) -> Any:
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], file)):  # which reads and reads lines
            self.spend(1)
            name = opcode.name
            if name in LITERALS:
                if isinstance(argument, int) and argument.bit_length() > MAX_INT_BITS:
                    raise UnpickleError(f"an integer of {argument.bit_length()} bits")
                self.stack.append(argument)
            elif name in EMPTY:
                self.stack.append(EMPTY[name]())
            elif name == "STOP":
                return self.stack.pop()
            elif name not in IGNORED:
                act = getattr(self, f"do_{name.lower()}", None)
                if act is None:
                    raise UnpickleError(f"the opcode {name} is not read: it refers to something outside the file")
                act(argument)
        raise UnpickleError("a pickle without an end")

    def spend(self, amount: int) -> None:
        self.work += amount
        if self.work > MAX_WORK:
            raise UnpickleError(f"a pickle of more than {MAX_WORK} steps: no checkpoint needs that many")

    def marked(self) -> list:
        """What was pushed since the last mark."""
        values, self.stack = self.stack, self.marks.pop()
        return values

    def top(self) -> Any:
        return self.stack[-1]

    # ---- stack and memo

    def do_mark(self, _) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def do_pop(self, _) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.marked()

    def do_pop_mark(self, _) -> None:
        self.marked()

    def do_dup(self, _) -> None:
        self.stack.append(self.stack[-1])

    def do_get(self, index) -> None:
        self.stack.append(self.memo[int(index)])

    def do_put(self, index) -> None:
        self.memo[int(index)] = self.stack[-1]

    do_binget = do_long_binget = do_get
    do_binput = do_long_binput = do_put

    def do_memoize(self, _) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    # ---- containers

    def do_list(self, _) -> None:
        values = self.marked()
        self.stack.append(values)

    def do_tuple(self, _) -> None:
        values = self.marked()
        self.stack.append(tuple(values))

    def do_frozenset(self, _) -> None:
        values = self.marked()
        self.stack.append(frozenset(map(checked_key, values)))

    def do_tuple1(self, _, n: int = 1) -> None:
        if len(self.stack) < n:
            raise UnpickleError("damaged pickle (a tuple of more than there is)")
        self.stack[-n:] = [tuple(self.stack[-n:])]

    do_tuple2 = partialmethod(do_tuple1, n=2)
    do_tuple3 = partialmethod(do_tuple1, n=3)

    def do_dict(self, _) -> None:
        values = self.marked()
        self.stack.append(dict(pairs_of(values)))

    def do_append(self, _) -> None:
        self._extend([self.stack.pop()])

    def do_appends(self, _) -> None:
        self._extend(self.marked())

    def _extend(self, values: list) -> None:
        target = self.top()
        if not isinstance(target, (list, Record)):
            raise UnpickleError(f"damaged pickle (appends to a {type(target).__name__})")
        (target.items if isinstance(target, Record) else target).extend(values)

    def do_setitem(self, _) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def do_setitems(self, _) -> None:
        self._set(self.marked())

    def _set(self, values: list) -> None:
        target = self.top()
        if isinstance(target, dict):
            target.update(pairs_of(values))
        elif isinstance(target, Record):
            target.pairs.extend(pairs_of(values))
        else:
            raise UnpickleError(f"damaged pickle (sets keys of a {type(target).__name__})")

    def do_additems(self, _) -> None:
        values, target = self.marked(), self.top()
        if not isinstance(target, set):
            raise UnpickleError(f"damaged pickle (adds to a {type(target).__name__})")
        target.update(map(checked_key, values))

    # ---- globals, and what would be calls

    def do_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(self.find(module, name))

    def do_stack_global(self, _) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise UnpickleError("damaged pickle (a global whose name is no text)")
        self.stack.append(self.find(module, name))

    def find(self, module: str, name: str) -> Any:
        """The value or the `Global` of this name; looked up as a whole, never by attribute."""
        module = OLD_NAMES.get(module, module)
        if is_hostile(module, name):
            raise UnpickleError(f"it wants to use {module}.{name}, which can run code: do not load this file anywhere")
        return self.values.get((module, name), Global(module, name))

    def call(self, kind: Any, args: Any, kwargs: dict | None = None) -> None:
        if not isinstance(args, tuple) or not isinstance({} if kwargs is None else kwargs, dict):
            raise UnpickleError("damaged pickle (arguments that are no tuple)")
        if isinstance(kind, Record):  # functools.partial, say: what it would return is as unknown as itself
            self.stack.append(Record(kind.kind, (kind, *args), kwargs or {}))
            return
        if not isinstance(kind, Global):
            raise UnpickleError(f"damaged pickle (calls a {type(kind).__name__})")
        key = (kind.module, kind.name)
        if key in COPYREG:
            self.call(*COPYREG[key](*args))
        elif key in self.functions and not kwargs:
            self.spend(sum(len(value) for value in args if isinstance(value, SIZED)))
            self.stack.append(self.functions[key](*args))
        else:
            self.stack.append(Record(kind, args, kwargs or {}))

    def do_reduce(self, _) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        self.call(kind, args)

    do_newobj = do_reduce

    def do_newobj_ex(self, _) -> None:
        kwargs, args, kind = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.call(kind, args, kwargs)

    def do_inst(self, argument: str) -> None:
        args = tuple(self.marked())
        self.do_global(argument)
        self.call(self.stack.pop(), args)

    def do_obj(self, _) -> None:
        kind, *args = self.marked()
        self.call(kind, tuple(args))

    def do_build(self, _) -> None:
        """Keeps the state of a record; that of anything else (`_metadata` of a state dict, say) is of no use here."""
        state = self.stack.pop()
        if isinstance(self.top(), Record):
            self.top().state = state

    def do_persid(self, identity) -> None:
        if self.persistent is None:
            raise UnpickleError("it refers to objects outside the file")
        self.stack.append(self.persistent(identity))

    def do_binpersid(self, _) -> None:
        self.do_persid(self.stack.pop())


LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT BINFLOAT".split()
)
EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set,
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
}  # fmt: skip
IGNORED = ("PROTO", "FRAME")
SIZED = (str, bytes, bytearray, list, tuple, dict, set, frozenset)
COPYREG: dict[tuple[str, str], Callable] = {  # how protocols 0 to 2 spell "an object of this class"
    ("copyreg", "_reconstructor"): lambda kind, base=None, state=None: (kind, () if state is None else (state,), {}),
    ("copyreg", "__newobj__"): lambda kind, *args: (kind, args, {}),
    ("copyreg", "__newobj_ex__"): lambda kind, args, kwargs: (kind, args, kwargs),
}
