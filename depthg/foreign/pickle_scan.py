"""What a pickle would do, found before ``torch.load`` reads it: names, calls, keys and storages. Nothing is built."""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from depthg.foreign.records import UnpickleError, is_hostile

MAX_STEPS = 5_000_000  # opcodes of one file, and values in keys and arguments
MAX_NAMES = 200  # of classes and functions: torch walks through all of them for every use of one
MAX_DEPTH = 100  # of keys and arguments: hashing recurses in C, and a tuple of 200,000 levels ends the process
CONSTANTS = frozenset("NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINSTRING".split())
EMPTY: dict[str, Any] = {"EMPTY_LIST": None, "EMPTY_TUPLE": [], "EMPTY_DICT": dict, "EMPTY_SET": None}
FILLS = {"BUILD": 1, "APPEND": 1, "SETITEM": 2, "APPENDS": 0, "SETITEMS": 0}  # by how many values; 0: since a mark
BYTES = ("_codecs.encode", "builtins.bytearray", "builtins.bytes")  # how protocol 2 stores bytes
DICT = "collections.OrderedDict"
ITERATES = (DICT, "builtins.set", "builtins.frozenset", "collections.Counter", "torch.Size")
SUBCLASS = "torch._tensor._rebuild_from_type_v2"
HASHED = ("torch.Size", "builtins.frozenset")  # by their values; other objects by identity, or not at all


@dataclass(slots=True, eq=False)
class Node:
    """What is known of a value on the stack."""

    value: Any = None  # a constant; the parts of a tuple; `dict` for a dictionary
    name: str = ""  # of a global, or of the one that was called for it
    made: bool = False  # by a call
    depth: int = 0
    weight: int = 1  # number of values inside, shared ones counted each time
    inside: bool = False  # of another value
    objects: bool = False  # some were made by a call
    length: int = 0  # of bytes
    wide: bool = False  # a whole number of more than 64 bits, or one inside: many of these can have one hash

    def take(self, parts: list[Node]) -> None:
        """Counts further values inside."""
        for part in parts:
            part.inside = True
            self.objects |= part.made
            self.wide |= part.wide
            self.depth = max(self.depth, part.depth + 1)
            self.weight = min(self.weight + part.weight, MAX_STEPS)


@dataclass
class PickleScan:
    """What the pickles of one file do.

    Attributes:
        names: all globals, as ``module.name``; called: those that are called.
        filled: by opcode, those whose objects it fills; odd: those whose state is no dictionary.
        storages: number of values by key.
    """

    names: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    filled: dict[str, set[str]] = field(default_factory=lambda: {opcode: set() for opcode in FILLS})
    odd: set[str] = field(default_factory=set)
    storages: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    encoded: int = 0  # characters that become bytes
    most_encoded: int = 0

    def read(self, file: BytesIO) -> list:
        """Follows one pickle, leaves the file behind it, and returns the constants in it.

        Raises:
            UnpickleError: names that run code, another protocol, too many steps, too deep; others mean damage.
        """
        stack: list[Node] = []
        marks: list[int] = []
        memo: dict[int, Node] = {}
        constants = []
        self.most_encoded = 4 * len(file.getbuffer())  # each text once, and once more as a bytearray, is half of it
        for opcode, argument, _ in pickletools.genops(file):
            self._spend(1)
            name = opcode.name
            if name in CONSTANTS:
                constants.append(True if name == "NEWTRUE" else argument)
                wide = type(constants[-1]) is int and constants[-1].bit_length() > 64
                stack.append(Node(constants[-1], wide=wide))
            elif name in EMPTY:
                stack.append(Node(EMPTY[name]))
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "MARK":
                marks.append(len(stack))
            elif name == "GLOBAL":
                stack.append(self._global(argument))
            elif name.startswith("TUPLE"):
                stack.append(Node(_pop(stack, marks, int(name[5:] or 0))))
                stack[-1].take(stack[-1].value)
            elif name in ("REDUCE", "NEWOBJ"):
                stack.append(self._call(*_pop(stack, marks, 2)))
            elif name in FILLS:
                self._fill(name, _pop(stack, marks, FILLS[name]), stack[-1])
            elif name == "BINPERSID":
                stack.append(self._storage(stack.pop().value))
            elif name == "STOP":
                return constants
            elif name != "PROTO" or argument > 3:
                text = f"its pickle is of another protocol than 2 ({name} {argument}), torch.save's default"
                raise UnpickleError(f"{text}; save it again with that")
        raise UnpickleError("a pickle without an end")

    def _spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise UnpickleError(f"a pickle of more than {MAX_STEPS} steps: no checkpoint needs that many")

    def _global(self, argument: str) -> Node:
        module, _, name = argument.partition(" ")
        full = ".".join(NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name)))  # of Python 2
        if is_hostile(full):
            raise UnpickleError(f"it wants to use {full[:80]}, which can run code: do not load this file anywhere")
        self.names.add(full)
        if len(self.names) > MAX_NAMES:
            raise UnpickleError(f"it names more than {MAX_NAMES} classes and functions: no checkpoint needs that many")
        self._spend(len(self.names))
        return Node(name=full)

    def _hash(self, value: Node) -> None:
        """Counts what is hashed or copied."""
        self._spend(value.weight)
        if value.depth > MAX_DEPTH:
            raise UnpickleError(f"a key or arguments nested deeper than {MAX_DEPTH} levels")

    def _hash_key(self, value: Node) -> None:
        """Counts a key, or the values of a set."""
        self._hash(value)
        if value.wide:
            raise UnpickleError("a key with a whole number of more than 64 bits")

    def _call(self, function: Node, args: Node) -> Node:
        name = function.name
        if function.made or not name or not isinstance(args.value, list):
            raise UnpickleError("damaged pickle (it calls what is no class or function)")
        self.called.add(name)
        self._hash(args)
        if name in BYTES and args.value:  # of texts: a number would be a size, another codec would be imported
            text, *codec = args.value
            of_text = isinstance(text.value, str) or (text.made and text.name in BYTES)
            if not of_text or any(part.value not in ("latin1", "latin-1") for part in codec):
                raise UnpickleError("damaged pickle (bytes that are no text in latin1)")
            length = len(text.value) if isinstance(text.value, str) else text.length
            self.encoded += length
            if self.encoded > self.most_encoded:
                raise UnpickleError("its pickle unfolds to more bytes than it holds")
            return Node(None, name, True, length=length)
        if name in ITERATES:
            self._hash_key(args)
        if name in ITERATES and any(part.made or (part.objects and name == DICT) for part in args.value):
            raise UnpickleError(f"damaged pickle (a {name} of what is no list)")  # a tensor becomes a tensor per value
        if name == SUBCLASS and not args.value[0].name.startswith("torch._utils._rebuild_tensor"):
            raise UnpickleError("a tensor of an unknown subclass")  # torch would call that argument
        return Node(None, name, True, *((args.depth, args.weight) if name in HASHED else ()))

    def _fill(self, opcode: str, parts: list[Node], target: Node) -> None:
        for key in parts[::2] if opcode.startswith("SET") else ():
            self._hash_key(key)
        if target.made:
            self.filled[opcode].add(target.name)
            if opcode == "BUILD" and parts[0].value is not dict:
                self.odd.add(target.name)
        elif target.inside:  # its own place may have been counted as a key or an argument
            raise UnpickleError("a list or dictionary that is changed after it was put somewhere")
        else:
            target.take(parts)

    def _storage(self, identity: list[Node]) -> Node:
        """Of ``("storage", class, key, location, number of values)``; the older format adds a view."""
        if len(identity) < 5 or identity[0].value != "storage":
            raise UnpickleError("it refers to an object that is no storage; save a state_dict() instead")
        key, count = identity[2].value, identity[4].value
        if type(key) is not str or type(count) is not int or count < 0:
            raise UnpickleError("a storage without a proper key or size")
        if len(identity) > 5 and identity[5].value is not None:
            raise UnpickleError("it was saved by torch 0.3 or older; save it again with a newer version")
        self.storages[key] = max(count, self.storages.get(key, 0))
        return Node(name="storage", made=True)


def _pop(stack: list[Node], marks: list[int], count: int) -> list[Node]:
    """The topmost values, or with ``count=0`` those since the last mark."""
    at = len(stack) - count if count else marks.pop()
    values = stack[at:]
    del stack[at:]
    return values
