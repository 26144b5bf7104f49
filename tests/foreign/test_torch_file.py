"""Files of torch.save in both formats: equal tensors, and files that lie are refused before memory is taken."""

import io
import os
import pickle
import struct
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthg import torch_file
from depthg.inert import Record, UnpickleError
from depthg.torch_file import read_torch_file, tensors_of

BOTH = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "rows"])


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
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_come_back(tmp_path, zipped, protocol):
    torch.save(content(), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found = read_torch_file(tmp_path / "a.pth")
    expected = torch.load(tmp_path / "a.pth", weights_only=False)
    assert list(found) == list(expected)
    assert (found["dtype"], found["size"], found["epoch"]) == (torch.float16, (2, 3), 7)
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


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"echo > {self.marker}",)


class Odd:
    def __init__(self):
        self.value = torch.ones(2)


@BOTH
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["value", "nested", "key", "attribute"])
def test_malicious_files_are_refused(tmp_path, zipped, protocol, place):
    evil = Evil(tmp_path / "ran")
    odd = Odd()
    odd.value = evil
    tensors = torch.ones(3) if protocol >= 2 else 0  # torch's own records need protocol 2
    value = {"value": [tensors, evil], "nested": {"a": [{"b": (evil,)}]}, "key": {evil: 1}, "attribute": odd}[place]
    torch.save(value, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    with pytest.raises(UnpickleError, match=r"a\.pth cannot be loaded: it wants to use (posix|nt)\.system"):
        read_torch_file(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


@BOTH
def test_evil_behind_the_first_pickle(tmp_path, zipped):
    """The older format is a row of pickles, the archive may hold others: none of them is a way in."""
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    evil = pickle.dumps(Evil(tmp_path / "ran"))
    if zipped:
        with zipfile.ZipFile(tmp_path / "a.pth", "a", zipfile.ZIP_STORED) as archive:
            archive.writestr("a/extra.pkl", evil)
        assert torch.equal(read_torch_file(tmp_path / "a.pth")["a"], torch.ones(3))
    else:
        whole = (tmp_path / "a.pth").read_bytes()
        at = whole.index(b"\x80\x02]", 50)  # the list of storage keys
        (tmp_path / "a.pth").write_bytes(whole[:at] + evil + whole[at:])
        with pytest.raises(UnpickleError, match="can run code"):
            read_torch_file(tmp_path / "a.pth")
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
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", value if isinstance(value, bytes) else Pickled(value))
        for name, part in ({"data/0": struct.pack("<2f", 1, 2)} if records is None else records).items():
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
def test_storages_that_lie(tmp_path, name):
    with pytest.raises(UnpickleError):
        read_torch_file(archive(tmp_path / "a.pth", {"a": LIES[name]}))


def test_one_storage_with_two_types(tmp_path):
    both = [Storage(*FLOATS), Storage("storage", torch.IntStorage, "0", "cpu", 2)]
    with pytest.raises(UnpickleError, match="described in two ways"):
        read_torch_file(archive(tmp_path / "a.pth", both))


OVERRUNS = {
    "size": {"size": (3,)}, "stride": {"stride": (2,)}, "offset": {"offset": 1}, "negative offset": {"offset": -1},
    "negative stride": {"stride": (-1,), "offset": 1}, "negative size": {"size": (-1,)},
    "expanded": {"size": (2**50,), "stride": (0,)}, "product": {"size": (2**40, 2**40), "stride": (0, 0)},
    "empty and huge": {"size": (0, 2**62, 2**62), "stride": (1, 1, 1)}, "ranks": {"size": (2, 1)},
    "list": {"size": [2]}, "text": {"size": ("2",)}, "wide": {"size": (1,) * 100, "stride": (1,) * 100},
    "step of 70 bits": {"size": (1,), "stride": (2**70,)}, "no storage": {"storage": 5},
    "hidden type": {"function": torch._utils._rebuild_tensor_v3, "rest": ("float32",)},
}  # fmt: skip


@pytest.mark.parametrize("name", OVERRUNS)
def test_tensors_that_overrun_their_storage(tmp_path, name):
    lie = {"storage": Storage(*FLOATS), **OVERRUNS[name]}
    with pytest.raises(UnpickleError):
        read_torch_file(archive(tmp_path / "a.pth", {"a": Rebuilt(**lie)}))


@pytest.mark.parametrize(
    "change, message",
    [
        ("compressed", "compressed"), ("twice", "twice"), ("overlap", "overlap"), ("script", "TorchScript"),
        ("big endian", "big-endian"), ("other zip", "not of torch.save"), ("two", "one data.pkl"), ("crc", "CRC"),
        ("huge pickle", "larger than"),
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
        extra = {"script": {"constants.pkl": b""}, "big endian": {"byteorder": b"big"}, "two": {"x/data.pkl": b""}}
        archive(path, value, {**good, **extra.get(change, {})})
        if change == "huge pickle":
            monkeypatch.setattr(torch_file, "MAX_BYTES", 10)
    with pytest.raises(UnpickleError, match=message):
        read_torch_file(path)


def test_the_older_format_takes_no_memory_on_a_promise(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(7)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"K\x07N", b"J\xff\xff\xff\x7fN"))
    with pytest.raises(UnpickleError, match="promise more bytes"):
        read_torch_file(path)
    path.write_bytes(whole.replace(struct.pack("<q", 7), struct.pack("<q", 6)))
    with pytest.raises(UnpickleError, match="has 6 values"):
        read_torch_file(path)


@BOTH
def test_truncated_files(tmp_path, zipped):
    path = tmp_path / "a.pth"
    torch.save(content(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in (0, 1, 4, 30, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UnpickleError, match=r"a\.pth"):
            read_torch_file(path)


@pytest.mark.parametrize("text", [b"", b"hello", b"\x89PNG\r\n", pickle.dumps({"a": 1}), b"PK\x03\x04", b"\x80\x02}."])
def test_other_files_are_named(tmp_path, text):
    (tmp_path / "a.pth").write_bytes(text)
    with pytest.raises(UnpickleError, match=r"a\.pth"):
        read_torch_file(tmp_path / "a.pth")
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
