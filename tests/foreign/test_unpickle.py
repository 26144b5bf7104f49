"""The restricted reader: plain data of every protocol comes back, exploits neither run nor exhaust the machine."""

import argparse
import builtins
import collections
import functools
import importlib
import io
import operator
import os
import pickle
import struct
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthg import unpickle
from depthg.inert import Global, Record, UnpickleError, plain
from depthg.unpickle import read_pickle

PROTOCOLS = range(6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.sampled_from(PROTOCOLS))
def test_plain_values_come_back(value, protocol):
    assert read_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers_of_the_standard_library(protocol):
    shared = [1]
    value = {
        "set": {1, 2}, "frozen": frozenset({3}), "ordered": collections.OrderedDict(b=1, a=2),
        "default": collections.defaultdict(list, {1: [2]}), "array": bytearray(b"\xff\x00"), "empty": (set(), b""),
        "shared": [shared, shared],
    }  # fmt: skip
    found = read_pickle(pickle.dumps(value, protocol))
    assert found == {**value, "ordered": {"b": 1, "a": 2}, "default": {1: [2]}}
    assert found["shared"][0] is found["shared"][1] and list(found["ordered"]) == ["b", "a"]


class Settings:
    """Stands for a class of a package that is not installed."""

    def __init__(self):
        self.rate, self.loop = 0.5, self


class Slotted:
    __slots__ = ("x",)


class Ordered(list):
    pass


class Named(dict):
    def __reduce__(self):
        return (Named, ("argument",), {"state": 1}, None, iter([("key", "value")]))


class Keyed:
    def __new__(cls, *, size):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (), {"size": 3}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_unknown_classes_become_records(protocol):
    record = read_pickle(pickle.dumps(Settings(), protocol))
    assert isinstance(record, Record) and record.kind == Global(__name__, "Settings")
    assert record.state["rate"] == 0.5 and record.state["loop"] is record
    record = read_pickle(pickle.dumps(argparse.Namespace(a=1), protocol))
    assert record.state == {"a": 1} and "argparse.Namespace" in repr(record)
    record = read_pickle(pickle.dumps(Ordered([1, 2]), protocol))
    assert record.items == [1, 2] or record.args == ([1, 2],)
    record = read_pickle(pickle.dumps(Named(), protocol))
    assert (record.args, record.state, record.pairs) == (("argument",), {"state": 1}, [("key", "value")])
    assert read_pickle(pickle.dumps([Settings, len], protocol)) == [
        Global(__name__, "Settings"),
        Global("builtins", "len"),
    ]


def test_slots_and_keyword_arguments():
    slotted = Slotted()
    slotted.x = 7
    assert read_pickle(pickle.dumps(slotted, 2)).state == (None, {"x": 7})
    assert read_pickle(pickle.dumps(Keyed(size=3), 4)).kwargs == {"size": 3}
    assert read_pickle(pickle.dumps(Keyed(size=3), 2)).kind in (
        Global(__name__, "Keyed"),
        Global("functools", "partial"),
    )


def test_only_given_functions_are_called_and_their_errors_are_ours():
    content = pickle.dumps([Slotted, argparse.Namespace], 2)
    assert read_pickle(content, values={("argparse", "Namespace"): 5})[1] == 5
    evil = pickle.dumps(Call(operator.add, (2, 3)), 2)
    assert read_pickle(evil, {("_operator", "add"): lambda a, b: a * b}) == 6
    assert isinstance(read_pickle(evil), Record)
    with pytest.raises(UnpickleError, match="ZeroDivisionError"):
        read_pickle(evil, {("_operator", "add"): lambda a, b: a / 0})


# ---- exploits


class Call:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function, args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def calls(marker: str) -> dict:
    """What would create the file `marker` when unpickled in the usual way, or is a step on the way there."""
    command, code = f"echo > {marker}", f"open({marker!r}, 'w').close()"
    return {
        "os.system": Call(os.system, (command,)),
        "subprocess.Popen": Call(subprocess.Popen, (["touch", marker],)),
        "subprocess.check_output": Call(subprocess.check_output, (["touch", marker],)),
        "eval": Call(eval, (code,)),
        "exec": Call(exec, (code,)),
        "open": Call(open, (marker, "w")),
        "compile": Call(exec, (Call(compile, (code, "x", "exec")),)),
        "__import__": Call(builtins.__import__, ("this",)),
        "import_module": Call(importlib.import_module, ("this",)),
        "getattr": Call(getattr, (Call(importlib.import_module, ("os",)), "system")),
        "getattr of a class": Call(getattr, (argparse.Namespace, "__init__")),
        "partial": Call(functools.partial, (os.system, command)),
        "map": Call(list, (Call(map, (os.system, [command])),)),
        "methodcaller": Call(operator.methodcaller, ("system", command)),
        "runpy": Call(importlib.import_module("runpy").run_module, ("this",)),
        "nested pickle": Call(pickle.loads, (pickle.dumps(Call(os.system, (command,))),)),
        "inside a list": [1, {"a": (Call(os.system, (command,)),)}],
        "as a key": {Call(len, ((),)): Call(os.system, (command,))},
        "getattr of a string": Call(getattr, ("{0.__class__}", "format")),
        "sys.exit": Call(sys.exit, ()),
        "webbrowser": Call(importlib.import_module("webbrowser").open, ("file:///",)),
    }  # fmt: skip


INERT = {"getattr of a class", "methodcaller", "getattr of a string", "open"}  # kept as records, the others are refused


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", calls("x"))
def test_no_call_of_a_pickle_happens(name, protocol, tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    content = pickle.dumps(calls(str(marker))[name], protocol)
    monkeypatch.delitem(sys.modules, "this", raising=False)
    if name in INERT:
        assert isinstance(read_pickle(content), Record)
    else:
        with pytest.raises(UnpickleError, match="can run code"):
            read_pickle(content)
    assert not marker.exists() and "this" not in sys.modules


RUN = b"cbuiltins\nlen\n"  # a harmless global, to be misused
ODDITIES = {
    "attributes of a global": b"\x80\x04\x8c\x0bcollections\x8c\x20OrderedDict.__init__.__globals__\x93.",
    "module by path": b"\x80\x04\x8c\x0adepthg.cli\x8c\x08sys.exit\x93.",
    "name that is no text": b"\x80\x04K\x01K\x02\x93.",
    "name from bytes": b"\x80\x04C\x02osC\x06system\x93.",
    "call of a string": b"\x80\x04\x8c\x02os)R.",
    "arguments that are no tuple": RUN + b"]R.",
    "object without a class": b"(o.",
    "object of a value": b"(K\x01K\x02o.",
    "keyword arguments that are none": RUN + b")]\x92.",
    "state of a class": b"\x80\x02" + RUN + b"}X\x01\x00\x00\x00aK\x01sb.",
    "state of a list": b"]}b.",
    "persistent id": b"Pos.system\n.",
    "persistent object": b"\x80\x02K\x01Q.",
    "extension registry": b"\x80\x02\x82\x01.",
    "wide extension": b"\x80\x02\x84\x01\x00\x00\x00.",
    "buffer outside": b"\x80\x05\x97.",
    "memo that is empty": b"h\x05.",
    "mark that is missing": b"t.",
    "nothing on the stack": b".",
    "no end": b"K\x01",
    "empty": b"",
    "unknown opcode": b"\xff.",
    "odd pairs": b"(K\x01d.",
    "append to a number": b"K\x01K\x02a.",
    "keys of a list": b"]K\x01K\x02s.",
    "adding to a list": b"\x80\x04](K\x01\x90.",
    "list as a key": b"}]K\x01s.",
    "tuple of nothing": b"\x80\x02K\x01\x87.",
    "text that is not UTF-8": b"X\x02\x00\x00\x00\xff\xfe.",
    "int that is none": b"Iabc\n.",
    "array of a size": b"\x80\x02cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.",
    "set of a size": b"\x80\x02cbuiltins\nset\n(J\xff\xff\xff\x7ftR.",
    "dictionary of a number": b"\x80\x02cbuiltins\ndict\n(K\x05tR.",
    "codec of our choice": b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x06\x00\x00\x00rot_13tR.",
    "old module name": b"c__builtin__\neval\n(S'1'\ntR.",
    "windows": b"cnt\nsystem\n(S'x'\ntR.",
    "instance opcode": b"(S'x'\nios\nsystem\n.",
    "reconstructor": b"ccopy_reg\n_reconstructor\n(cos\nsystem\nNNtR.",
    "reconstructor of nothing": b"ccopy_reg\n_reconstructor\n)R.",
    "reconstructor of a number": b"ccopy_reg\n_reconstructor\n(K\x01NNtR.",
}  # fmt: skip
HARMLESS = {
    "attributes of a global": Global,
    "module by path": Global,
    "state of a class": Global,
    "state of a list": list,
}


@pytest.mark.parametrize("name", ODDITIES)
def test_tricks_with_opcodes(name):
    if name in HARMLESS:
        assert type(read_pickle(ODDITIES[name])) is HARMLESS[name]
    else:
        with pytest.raises(UnpickleError):
            read_pickle(ODDITIES[name])


def test_state_cannot_be_set_on_anything_but_records():
    before = dict(vars(Record)), dict(vars(Global))
    content = b"\x80\x02cdepthg.inert\nRecord\n(N}X\x08\x00\x00\x00__call__K\x01stb."
    assert read_pickle(content) == Global("depthg.inert", "Record")
    assert (dict(vars(Record)), dict(vars(Global))) == before


def big(opcode: bytes, size: int, form: str = "<Q") -> bytes:
    return b"\x80\x05" + opcode + struct.pack(form, size) + b"xx."


BOMBS = {
    "long bytes": big(b"\x8e", 2**62),
    "long text": big(b"\x8d", 2**40),
    "long array": big(b"\x96", 2**50),
    "long integer": big(b"\x8b", 2**31 - 1, "<i"),
    "digits": b"L" + b"9" * 100_000 + b"L\n.",
    "wide integer": b"\x80\x02\x8b" + struct.pack("<i", 10_000) + b"\x01" * 10_000 + b".",
    "many objects": b"\x80\x02" + b"}" * 100_001 + b".",
    "copies": b"\x80\x02(" + b"K\x01" * 5000 + b"lq\x00cbuiltins\nlist\nq\x01" + b"h\x01h\x00\x85R" * 20 + b".",
    "deep key": b"\x80\x02}" + b")" + b"\x85" * 60_000 + b"K\x01s.",
    "deep set": b"\x80\x04\x8f(" + b")" + b"\x85" * 60_000 + b"\x90.",
    "wide key": b"\x80\x02}(" + b"K\x01" * 100_000 + b"tK\x01s.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(name, monkeypatch):
    monkeypatch.setattr(unpickle, "MAX_WORK", 100_000)
    with pytest.raises(UnpickleError):
        read_pickle(BOMBS[name])


def test_deep_nesting_neither_recurses_nor_crashes():
    depth = 60_000
    for content in (
        b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".",
        b"\x80\x02N" + b"\x85" * depth + b".",
        b"\x80\x02cx\ny\n" + b")R" * depth + b".",
        b"\x80\x02cx\ny\nq\x000" + b"h\x00)\x81" * depth + b"b" * (depth - 1) + b".",
    ):
        value = read_pickle(content)
        assert type(value) in (list, tuple, Record)
        assert not isinstance(value, Record) or repr(value) == "<x.y, not loaded>"
        del value  # deallocation must not recurse either


def test_memory_is_not_taken_on_a_promise(monkeypatch):
    asked = []

    class File(io.BytesIO):
        def read(self, n=-1):
            asked.append(n)
            return super().read(n)

    with pytest.raises(UnpickleError, match="more than"):
        read_pickle(File(BOMBS["long bytes"]))
    assert max(asked) <= 64


def test_a_file_is_left_behind_the_pickle():
    file = io.BytesIO(pickle.dumps([1], 2) + pickle.dumps("b", 4) + b"rest")
    assert (read_pickle(file), read_pickle(file), file.read()) == ([1], "b", b"rest")


def test_size_of_a_pickle_is_bounded(monkeypatch):
    monkeypatch.setattr(unpickle, "MAX_BYTES", 100)
    with pytest.raises(UnpickleError, match="MiB"):
        read_pickle(pickle.dumps(["x" * 20] * 20 + list(range(300, 400)), 0))
    with pytest.raises(UnpickleError):
        read_pickle(b"S'" + b"a" * 300 + b"'\n.")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.data())
def test_any_bytes_end_in_a_value_or_in_our_error(content, data):
    if data.draw(st.booleans()):
        whole = pickle.dumps({"a": [Settings(), {1, 2}, b"x", 1.5]}, data.draw(st.sampled_from(PROTOCOLS)))
        at = data.draw(st.integers(0, len(whole) - 1))
        content = whole[:at] + content[:2] + whole[at + data.draw(st.integers(0, 3)) :]
    try:
        plain(read_pickle(content))
    except UnpickleError:
        pass
