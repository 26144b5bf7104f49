"""Files of torch.save in both formats: equal tensors; nothing runs, and files that lie are refused in one sentence."""

import argparse
import builtins
import collections
import functools
import importlib
import io
import operator
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthg.foreign import pickle_scan, torch_file
from depthg.foreign.records import Record, UnpickleError, plain
from depthg.foreign.torch_file import read_torch_file, tensors_of

BOTH = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "rows"])
ADVICE = re.compile(r"weights_only|safe_globals|torch\.load|pickle_module|\n|GitHub|PyTorch")


def refused(path, match="") -> str:
    """The error's text: one sentence of ours that names the file, without torch's advice."""
    with pytest.raises(UnpickleError, match=match) as caught:
        read_torch_file(path)
    text = str(caught.value)
    assert path.name in text and not ADVICE.search(text), text
    return text


def content() -> dict:
    shared = torch.randn(10)
    tagged = torch.nn.Parameter(torch.randn(2))
    tagged.note = "attributes travel with parameters"
    return {
        **{str(t): torch.tensor([0, 1, 3]).to(t) for t in (torch.float64, torch.float16, torch.bfloat16, torch.int16)},
        "bool": torch.tensor([True, False]), "complex": torch.randn(3, dtype=torch.complex64),
        "view": torch.randn(4, 6).t()[1:, ::2], "scalar": torch.tensor(3.5), "none": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)), "tagged": tagged, "first": shared[:4], "rest": shared[4:],
        "state": torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).state_dict(),
        "dtype": torch.float16, "size": torch.Size([2, 3]), "epoch": 7,
    }  # fmt: skip


@BOTH
@pytest.mark.parametrize("protocol", [2, 3])
def test_tensors_come_back(tmp_path, zipped, protocol):
    torch.save(content(), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found = read_torch_file(tmp_path / "a.pth")
    expected = torch.load(tmp_path / "a.pth", weights_only=False)
    assert list(found) == list(expected)
    assert (found["dtype"], found["size"], found["epoch"]) == (torch.float16, (2, 3), 7)
    assert not hasattr(found["tagged"], "note")
    found, expected = tensors_of(found), tensors_of(expected)
    assert found.keys() == expected.keys() and len(found) > 15
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value.detach()), key
    assert found["first"].untyped_storage().data_ptr() == found["rest"].untyped_storage().data_ptr()
    assert not any(value.requires_grad for value in found.values())


def test_untyped_storages_of_new_types(tmp_path):
    value = {"a": torch.randn(6).to(torch.float8_e4m3fn), "b": torch.randn(3, 2).t()}
    torch.save(value, tmp_path / "a.pth")
    found = read_torch_file(tmp_path / "a.pth")
    assert torch.equal(found["a"].float(), value["a"].float()) and torch.equal(found["b"], value["b"])


class Odd:
    def __init__(self):
        self.value = torch.ones(2)


# ---- exploits


class Call:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def calls(marker: str) -> dict:
    """What would create the file `marker` when unpickled in the usual way, or is a step on the way there."""
    command, code, odd = f"echo > {marker}", f"open({marker!r}, 'w').close()", Odd()
    odd.value = evil = Call(os.system, command)
    module = importlib.import_module
    return {
        "os.system": evil, "in a list": [1, {"a": (evil,)}], "as a key": {evil: 1}, "as an attribute": odd,
        "subprocess": Call(subprocess.Popen, ["touch", marker]), "eval": Call(eval, code), "exec": Call(exec, code),
        "compile": Call(exec, Call(compile, code, "x", "exec")), "__import__": Call(builtins.__import__, "this"),
        "import_module": Call(module, "this"), "getattr": Call(getattr, Call(module, "os"), "system"),
        "partial": Call(functools.partial, os.system, command), "map": Call(list, Call(map, os.system, [command])),
        "runpy": Call(module("runpy").run_module, "this"), "sys.exit": Call(sys.exit),
        "nested pickle": Call(pickle.loads, pickle.dumps(evil)), "webbrowser": Call(module("webbrowser").open, "x:"),
    }  # fmt: skip


@BOTH
@pytest.mark.parametrize("name", calls("x"))
def test_no_call_of_a_pickle_happens(name, zipped, tmp_path, monkeypatch):
    marker, path = tmp_path / "ran", tmp_path / "a.pth"
    monkeypatch.delitem(sys.modules, "this", raising=False)
    for protocol in (2, 3):
        value = [torch.ones(3), calls(str(marker))[name]]
        torch.save(value, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
        refused(path, r"a\.pth cannot be loaded: it wants to use [\w.]+, which can run code")
    assert not marker.exists() and "this" not in sys.modules


def test_other_protocols_are_refused(tmp_path):
    """torch reads protocol 2, and 3 where it adds nothing."""
    path, marker = tmp_path / "a.pth", tmp_path / "ran"
    for protocol, zipped in [(p, z) for p in (0, 1, 4, 5) for z in (True, False)]:
        value = {"a": [Odd, -(2**100), b"x", *range(300)]} if protocol < 2 else {"a": torch.ones(2)}
        torch.save(value, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
        refused(path, "another protocol than 2|no file of torch.save")
        torch.save(calls(str(marker))["os.system"], path, pickle_protocol=protocol)
        refused(path)
    assert not marker.exists()


@BOTH
def test_functions_that_cannot_run_code_are_kept_as_records(tmp_path, zipped):
    given = [operator.methodcaller("system", "x"), Call(getattr, argparse.Namespace, "x"), functools.partial(len, "x")]
    torch.save(given, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert [record.kind for record in read_torch_file(tmp_path / "a.pth")] == [
        "operator.methodcaller", "builtins.getattr", "functools.partial",
    ]  # fmt: skip


SIZE = 2**40
TORCH_KNOWS = {
    "tensor of a size": Call(torch.FloatTensor, SIZE), "storage of a size": Call(torch.UntypedStorage, SIZE),
    "bytes of a size": Call(bytes, SIZE), "bytearray of a size": Call(bytearray, SIZE),
    "bytearray of a tensor": Call(bytearray, torch.tensor(SIZE)),
    "as an argument": Call(torch._tensor._rebuild_from_type_v2, bytearray, torch.Tensor, (SIZE,), {}),
    "codec": Call(__import__("_codecs").encode, "x", "rot13"), "meta": torch.empty(3, device="meta"),
    "sparse": torch.eye(2).to_sparse(), "sparse rows": torch.eye(2).to_sparse_csr(),
    "quantised": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
    "uint32": torch.ones(2).to(torch.uint32), "set of a tensor": Call(set, torch.ones(2)),
    "pairs of a tensor": Call(collections.OrderedDict, [torch.ones(2)]), "size": Call(torch.Size, torch.ones(2)),
}  # fmt: skip


@BOTH
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_what_torch_would_call_and_no_checkpoint_needs(tmp_path, zipped, bounded_memory):
    for name, value in TORCH_KNOWS.items():
        torch.save({"a": value}, tmp_path / f"{name}.pth", _use_new_zipfile_serialization=zipped)
        refused(tmp_path / f"{name}.pth", "usual types|latin1|unknown subclass|no list")


class Registered:
    """A class that some package told torch to trust."""

    def __init__(self):
        Registered.made = True

    def __reduce__(self):
        return Registered, ()


def test_classes_that_others_registered_are_not_made(tmp_path):
    torch.save(Registered(), tmp_path / "a.pth")
    del Registered.made
    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([Registered]):
        assert isinstance(read_torch_file(tmp_path / "a.pth"), Record) and not hasattr(Registered, "made")
        assert set(torch.serialization.get_safe_globals()) == {*before, Registered}
        (tmp_path / "a.pth").write_bytes(b"PK\x03\x04")
        refused(tmp_path / "a.pth")
        assert set(torch.serialization.get_safe_globals()) == {*before, Registered}
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_older_versions_of_torch_are_refused(tmp_path, monkeypatch):
    torch.save({"a": 1}, tmp_path / "a.pth")
    for version in ("2.9.1", "1.13.0+cu117"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(ImportError, match=rf"a\.pth .*{re.escape(version)}.*torch>=2\.10"):
            read_torch_file(tmp_path / "a.pth")


def test_a_file_that_is_exchanged_while_it_is_read(tmp_path, monkeypatch):
    """What was checked is what is loaded; what is written into the file meanwhile is refused by torch itself."""
    path, other, ask = tmp_path / "a.pth", tmp_path / "b.pth", torch.serialization.get_unsafe_globals_in_checkpoint
    exchanges = [lambda: os.replace(other, path), lambda: path.write_bytes(other.read_bytes())]
    for exchange in exchanges:
        torch.save({"a": torch.ones(3)}, path)
        torch.save({"a": Call(os.system, f"touch {tmp_path / 'ran'}"), "b": torch.ones(3)}, other)

        def asked(file, exchange=exchange):
            exchange()
            return ask(file)

        monkeypatch.setattr(torch.serialization, "get_unsafe_globals_in_checkpoint", asked)
        if exchange is exchanges[0]:
            assert torch.equal(read_torch_file(path)["a"], torch.ones(3))
        else:
            refused(path)
    assert not (tmp_path / "ran").exists()


@BOTH
def test_evil_behind_the_first_pickle(tmp_path, zipped):
    """The older format is a row of pickles, the archive may hold others: none of them is a way in."""
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    evil = pickle.dumps(calls(str(tmp_path / "ran"))["os.system"], 2)
    if zipped:
        with zipfile.ZipFile(tmp_path / "a.pth", "a", zipfile.ZIP_STORED) as archive:
            archive.writestr("a/extra.pkl", evil)
        assert torch.equal(read_torch_file(tmp_path / "a.pth")["a"], torch.ones(3))
    else:
        whole = (tmp_path / "a.pth").read_bytes()
        at = whole.index(b"\x80\x02]", 50)  # the list of storage keys
        (tmp_path / "a.pth").write_bytes(whole[:at] + evil + whole[at:])
        refused(tmp_path / "a.pth", "can run code")
    assert not (tmp_path / "ran").exists()


@BOTH
def test_objects_of_unknown_classes_keep_their_tensors(tmp_path, zipped):
    torch.save({"x": Odd()}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    record = read_torch_file(tmp_path / "a.pth")["x"]
    assert isinstance(record, Record) and torch.equal(record.state["value"], torch.ones(2))


# ---- archives that lie


class Pickled:
    """Pickles of torch-like content: storages by persistent id, tensors by a call."""

    class _Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return value.identity if isinstance(value, Storage) else None

    def __new__(cls, value) -> bytes:
        file = io.BytesIO()
        cls._Pickler(file, 2).dump(value)
        return file.getvalue()


class Storage:
    def __init__(self, *identity):
        self.identity = identity


class Rebuilt:
    def __init__(self, storage, offset=0, size=(2,), stride=(1,), function=torch._utils._rebuild_tensor_v2, rest=()):
        self.call = function, (storage, offset, size, stride, False, {}, *rest)

    def __reduce__(self):
        return self.call


FLOATS = ("storage", torch.FloatStorage, "0", "cpu", 2)


def archive(path, value, records=None, compression=zipfile.ZIP_STORED):
    """A file with the records of real ones."""
    records = {"data/0": struct.pack("<2f", 1, 2)} if records is None else records
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", value if isinstance(value, bytes) else Pickled(value))
        for name, part in {"version": "3\n", "byteorder": "little", **records}.items():
            file.writestr(f"archive/{name}", part)
    return path


def test_the_handmade_archive_is_right(tmp_path):
    found = read_torch_file(archive(tmp_path / "a.pth", {"a": Rebuilt(Storage(*FLOATS))}))
    assert found["a"].tolist() == [1, 2]


LIES = {
    "missing record": Storage("storage", torch.FloatStorage, "1", "cpu", 2),
    "path as key": Storage("storage", torch.FloatStorage, "../../etc/passwd", "cpu", 2),
    "more than there is": Storage("storage", torch.FloatStorage, "0", "cpu", 3),
    "less than there is": Storage("storage", torch.FloatStorage, "0", "cpu", 1),
    "terabytes": Storage("storage", torch.FloatStorage, "0", "cpu", 2**40),
    "negative": Storage("storage", torch.FloatStorage, "0", "cpu", -2),
    "number as text": Storage("storage", torch.FloatStorage, "0", "cpu", "2"),
    "key as number": Storage("storage", torch.FloatStorage, 0, "cpu", 2),
    "other class": Storage("storage", dict, "0", "cpu", 2),
    "no storage": Storage("module", torch.nn.Linear, "0", "cpu", 2),
    "too short": Storage("storage", "0"),
    "old view": Storage("storage", torch.FloatStorage, "0", "cpu", 2, ("0", 0, 1)),
    "quantised": Storage("storage", torch.QInt8Storage, "0", "cpu", 8),
}


@pytest.mark.parametrize("name", LIES)
def test_storages_that_lie(tmp_path, name, bounded_memory):
    refused(archive(tmp_path / "a.pth", {"a": LIES[name]}))


OVERRUNS = {
    "size": {"size": (3,)}, "stride": {"stride": (2,)}, "offset": {"offset": 1}, "negative offset": {"offset": -1},
    "negative stride": {"stride": (-1,), "offset": 1}, "negative size": {"size": (-1,)},
    "expanded": {"size": (2**50,), "stride": (0,)}, "product": {"size": (2**40, 2**40), "stride": (0, 0)},
    "empty and huge": {"size": (0, 2**62, 2**62), "stride": (1, 1, 1)}, "ranks": {"size": (2, 1)},
    "text": {"size": ("2",)}, "wide": {"size": (1,) * 100, "stride": (1,) * 100},
    "step of 70 bits": {"size": (1,), "stride": (2**70,)}, "no storage": {"storage": 5},
    "hidden type": {"function": torch._utils._rebuild_tensor_v3, "rest": ("float32",)},
}  # fmt: skip


@pytest.mark.parametrize("name", OVERRUNS)
def test_tensors_that_overrun_their_storage(tmp_path, name, bounded_memory):
    refused(archive(tmp_path / "a.pth", {"a": Rebuilt(**{"storage": Storage(*FLOATS), **OVERRUNS[name]})}))


@pytest.mark.parametrize(
    "change, message",
    [
        ("compressed", "compressed"), ("twice", "twice"), ("case", "twice"), ("overlap", "overlap"),
        ("script", "TorchScript"), ("other zip", "not of torch.save"), ("two", "one data.pkl"),
        ("crc", "'archive/data/0' is damaged"), ("huge pickle", "larger than"), ("no version", "damaged"),
        ("byte order", "damaged"),
    ],
)  # fmt: skip
def test_archives_that_are_refused(tmp_path, change, message, monkeypatch):
    path, good = tmp_path / "a.pth", {"data/0": struct.pack("<2f", 1, 2)}
    value = Pickled({"a": Rebuilt(Storage(*FLOATS))})
    if change == "compressed":
        archive(path, {"a": Storage("storage", torch.ByteStorage, "0", "cpu", 10**6)}, {"data/0": bytes(10**6)}, 8)
    elif change == "twice":
        with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", value)
            file.writestr("archive/data.pkl", value)
    elif change == "overlap":
        archive(path, value, {"data/0": bytes(8), "data/1": bytes(8)})
        whole = bytearray(path.read_bytes())
        entry = whole.rindex(b"archive/data/1") - 46  # its place in the central directory
        first = whole.index(b"archive/data/0") - 30
        struct.pack_into("<L", whole, entry + 42, first)
        path.write_bytes(whole)
    elif change == "other zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("word/document.xml", "text")
    elif change == "crc":
        archive(path, value, good)
        path.write_bytes(path.read_bytes().replace(struct.pack("<2f", 1, 2), struct.pack("<2f", 1, 3)))
    else:
        extra = {"script": {"constants.pkl": b""}, "two": {"x/data.pkl": b""}, "case": {"Data.pkl": b"N."}}
        extra["byte order"] = {"byteorder": b"odd"}
        archive(path, value, {**good, **extra.get(change, {})})
        if change == "huge pickle":
            monkeypatch.setattr(torch_file, "MAX_BYTES", 10)
        if change == "no version":
            path.write_bytes(path.read_bytes().replace(b"archive/version", b"archive/Version"[::-1]))
    refused(path, message)


def test_big_endian_files(tmp_path):
    found = read_torch_file(
        archive(
            tmp_path / "a.pth",
            {"a": Rebuilt(Storage(*FLOATS))},
            {"data/0": struct.pack(">2f", 1, 2), "byteorder": "big"},
        )
    )
    assert found["a"].tolist() == [1, 2]
    torch.save({"a": torch.ones(7)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "a.pth").read_bytes()
    at = whole.index(b"\x88", whole.index(b"little_endian"))
    (tmp_path / "a.pth").write_bytes(whole[:at] + b"\x89" + whole[at + 1 :])
    refused(tmp_path / "a.pth", "big-endian")


def test_the_older_format_takes_no_memory_on_a_promise(tmp_path, bounded_memory):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(7)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"K\x07N", b"J\xff\xff\xff\x7fN"))
    refused(path, "promise more bytes")
    for old, new in (
        (struct.pack("<q", 7), struct.pack("<q", 6)),
        (b"K\x07N", b"K\x08N"),
        (b"K\x07\x85", b"K\x08\x85"),
    ):
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        refused(path, "damaged")
    key = re.search(rb"\x80\x02\]q\x00X(.{4})(\d+)q\x01a\.", whole, re.DOTALL)  # the list of storages
    path.write_bytes(whole[: key.start(2)] + b"9" * len(key[2]) + whole[key.end(2) :])
    refused(path, "does not fit")


# ---- pickles that are bombs

NESTED = {
    "key": b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.",
    "keys": b"\x80\x02}()" + b"\x85" * 200_000 + b"K\x01u.",
    "set": b"\x80\x02cbuiltins\nset\n])" + b"\x85" * 200_000 + b"a\x85R.",
    "set, later": b"\x80\x02}K\x01]q\x00scbuiltins\nset\nh\x00)" + b"\x85" * 200_000 + b"a\x85R.",
    "pairs": b"\x80\x02ccollections\nOrderedDict\n])" + b"\x85" * 200_000 + b"K\x01\x86a\x85R.",
    "frozen": b"\x80\x02}" + b"c__builtin__\nfrozenset\n(]" * 20_000 + b"K\x01" + b"atR" * 20_000 + b"K\x01s.",
    "shared": b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",  # hashing takes 2^60 steps
    "many": b"\x80\x02(" + b"K\x01" * 150_000 + b"t.",
    "long text": b"\x80\x02X\xff\xff\xff\x7fxx.", "long integer": b"\x80\x02\x8b\xff\xff\xff\x7fxx.",
    "state": b"\x80\x02ccollections\nOrderedDict\n)R])" + b"\x85" * 200_000 + b"K\x01\x86ab.",
    "state of a kind of dict": b"\x80\x02cx\ny\n)\x81K\x01K\x01s])" + b"\x85" * 200_000 + b"K\x01\x86ab.",
    "loop": b"\x80\x02]q\x00h\x00ah\x00a.",
}  # fmt: skip


@pytest.mark.parametrize("name", NESTED)
def test_pickles_that_would_end_the_process(tmp_path, name, monkeypatch, bounded_memory):
    monkeypatch.setattr(pickle_scan, "MAX_STEPS", 100_000 if name == "many" else 1_000_000)
    refused(archive(tmp_path / "a.pth", NESTED[name]))


def long_integer(value: int) -> bytes:
    number = pickle.encode_long(value)
    return b"\x8a" + bytes([len(number)]) + number


COLLIDING = b"".join(long_integer(i * (2**61 - 1)) for i in range(1, 20_000))  # all have the hash 0
AMPLIFIED = {
    "more than 200 classes": b"\x80\x02](" + b"".join(b"ca\nb%x\n" % i for i in range(8000)) + b"e.",
    "more bytes than it holds": (
        b"\x80\x02](c_codecs\nencode\nq\x00X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
        + b"X\x06\x00\x00\x00latin1\x86q\x01" + b"h\x00h\x01R" * 1000 + b"e."
    ),
    "a key with a whole number": b"\x80\x02cbuiltins\nset\n](" + COLLIDING + b"e\x85R.",
    "a key": b"\x80\x02}(" + long_integer(2**64) + b"Nu.",
}  # fmt: skip


@pytest.mark.parametrize("message", AMPLIFIED)
def test_small_files_that_would_take_much_time_or_memory(tmp_path, message, bounded_memory):
    refused(archive(tmp_path / "a.pth", AMPLIFIED[message]), message)


def test_keys_of_storages_differ_in_case(tmp_path):
    record = {"data/a": struct.pack("<2f", 1, 2)}
    floats = [("storage", torch.FloatStorage, key, "cpu", 2) for key in "aA"]
    found = read_torch_file(archive(tmp_path / "a.pth", {"a": Rebuilt(Storage(*floats[0]))}, record))
    assert found["a"].tolist() == [1, 2]
    refused(archive(tmp_path / "b.pth", {"a": Rebuilt(Storage(*floats[1]))}, record), "'A' is missing")


def test_whole_modules_of_the_older_format(tmp_path):
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    refused(tmp_path / "a.pth", "no storage; save a state_dict")


def test_nesting_that_is_read_and_let_go(tmp_path):
    """Lists, dictionaries, records and attributes of tensors, built from the inside and from the outside."""
    depth = 60_000
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ"
    tensor = b"(" + storage + b"K\x00K\x02\x85K\x01\x85\x89}t"
    tagged = b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nctorch\nTensor\n" + tensor
    for content, kind in (
        (b"]" * depth + b"a" * (depth - 1), list),
        (b"}K\x01" * depth + b"N" + b"s" * depth, dict),
        (b"cx\ny\n)\x81" * depth + b"N" + b"b" * depth, Record),
        (b"cx\ny\n)\x81q\x00" + b"cx\ny\n)\x81q\x01bh\x01" * depth + b"h\x00", Record),
        ((tagged + b"}X\x01\x00\x00\x00a") * 20_000 + b"N" + b"stR" * 20_000, torch.Tensor),
    ):
        value = read_torch_file(archive(tmp_path / "a.pth", b"\x80\x02" + content + b"."))
        assert isinstance(value, kind)
        if kind is dict:
            with pytest.raises(UnpickleError, match="nested"):
                tensors_of(value)
        if kind is not torch.Tensor:
            with pytest.raises(UnpickleError, match="nested"):
                plain(value)
        del value  # must not recurse either


def test_attributes_do_not_hide_methods(tmp_path):
    class Shadowed:
        def __reduce__(self):
            return collections.OrderedDict, (), {"items": 5, "values": 5, "get": 5}, None, iter([("a", torch.ones(2))])

    rebuilt = torch._utils._rebuild_tensor_v2, torch.Tensor, (torch.ones(2)._typed_storage(), 0, (2,), (1,), False, {})
    tensor = Call(torch._tensor._rebuild_from_type_v2, *rebuilt, {"numel": 5, "detach": 5})
    torch.save({"state": Shadowed(), "tensor": tensor}, tmp_path / "a.pth")
    found = read_torch_file(tmp_path / "a.pth")
    assert found["state"].get("a").sum() == 2 and list(tensors_of(found)) == ["tensor", "state.a"]


def test_files_that_two_readers_see_in_two_ways(tmp_path, monkeypatch):
    path = archive(tmp_path / "a.pth", b"\x80\x02ca b\nc\n.")  # a.(b c), or (a b).c
    refused(path, "names that cannot be told apart")
    other = torch._C.PyTorchFileReader(io.BytesIO(archive(tmp_path / "b.pth", {"a": 1}).read_bytes()))
    monkeypatch.setattr(torch._C, "PyTorchFileReader", lambda file: other)
    refused(path, "read in two ways")


@BOTH
def test_truncated_files(tmp_path, zipped):
    path = tmp_path / "a.pth"
    torch.save(content(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in (0, 1, 4, 30, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path)


def test_flipped_bits_are_named(tmp_path):
    """torch's reader would not see one."""
    torch.save({"a": torch.arange(100.0)}, tmp_path / "a.pth")
    whole = bytearray((tmp_path / "a.pth").read_bytes())
    whole[whole.index(struct.pack("<2f", 50, 51))] ^= 4
    (tmp_path / "a.pth").write_bytes(whole)
    assert torch.load(tmp_path / "a.pth", weights_only=True)["a"].tolist() != list(range(100))
    refused(tmp_path / "a.pth", r"a\.pth .*'a/data/0' is damaged \(CRC-32")


def test_other_files_are_named(tmp_path):
    for text in (b"", b"hello", b"\x89PNG\r\n", pickle.dumps({"a": 1}), b"PK\x03\x04", b"\x80\x02}.", b"\xff" * 99):
        (tmp_path / "a.pth").write_bytes(text)
        refused(tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_torch_file(tmp_path / "nothing.pth")


@BOTH
def test_damage_anywhere_is_our_error_or_harmless(tmp_path_factory, zipped):
    path = tmp_path_factory.mktemp("fuzz") / "a.pth"
    torch.save({"a": torch.ones(3), "b": [Odd(), 1.5]}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=4))
    def damaged(changes):
        changed = bytearray(whole)
        for at, value in changes:
            changed[at] = value
        path.write_bytes(changed)
        try:
            read_torch_file(path)
        except UnpickleError:
            pass

    damaged()


def test_state_dicts_of_dictionaries_that_hold_themselves():
    loop: dict = {"a": torch.ones(1)}
    loop["b"] = loop
    with pytest.raises(UnpickleError, match="nested"):
        tensors_of(loop)
    assert tensors_of([1]) == {} and list(tensors_of({"x": {"y": torch.ones(1), 3: torch.ones(1)}})) == ["x.y", "x.3"]
