"""Settings inside records: OmegaConf containers, namespaces and plain attribute objects turn into plain values."""

import argparse
import collections
import pathlib
import sys
import types

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from depthg.foreign.records import Record, UnpickleError, is_hostile, plain, record_class
from depthg.foreign.torch_file import read_torch_file

SETTINGS = {"dim": 70, "rates": [0.5, None, {"deep": True}], "name": "vit_small", "same": "${dim}"}


class Attributes(dict):
    """A dictionary with attributes, as trainers keep hyper-parameters in."""


class Named(dict):
    def __reduce__(self):
        return Named, ("argument",), {"items": 1}, None, iter(self.items())


class Ordered(list):
    pass


class Slotted:
    __slots__ = ("x",)


class Settings:
    """Stands for a class of a package that is not installed."""

    def __init__(self):
        self.rate, self.loop = 0.5, self


@pytest.fixture
def reread(tmp_path):
    """A value after `torch.save` and our reader."""

    def read(value, **keywords):
        torch.save(value, tmp_path / "a.pth", **keywords)
        return read_torch_file(tmp_path / "a.pth")

    return read


@pytest.fixture
def attribute_dict(monkeypatch):
    """Lightning's class of hyper-parameters, without Lightning."""
    name = "lightning_fabric.utilities.data"
    kind = type("AttributeDict", (dict,), {"__module__": name})
    for part in ("lightning_fabric", "lightning_fabric.utilities", name):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    sys.modules[name].AttributeDict = kind
    return kind


KINDS = [OmegaConf.create, lambda s: argparse.Namespace(**s), Attributes, Named, dict, collections.OrderedDict]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "rows"])
def test_settings_in_any_wrapping(reread, zipped, attribute_dict):
    for kind in [*KINDS, attribute_dict]:
        found = reread({"cfg": kind(SETTINGS)}, _use_new_zipfile_serialization=zipped)
        assert plain(found) == {"cfg": SETTINGS}, kind


def test_containers_of_the_standard_library(reread, attribute_dict):
    shared = [1]
    value = {
        "set": {1, 2}, "frozen": frozenset({3}), "ordered": collections.OrderedDict(b=1, a=2), "bytes": (b"", b"\xff"),
        "default": collections.defaultdict(list, {1: [2]}), "empty": [collections.defaultdict(list), set()],
        "count": collections.Counter("aab"), "array": bytearray(b"\xff\x00"), "attributes": attribute_dict(a=1),
        "shared": [shared, shared], "number": [2**70, 1.5, 1j, True, None], "list": Ordered([1, 2]),
    }  # fmt: skip
    found = reread(value)
    assert found == value and list(found["ordered"]) == ["b", "a"]
    assert found["shared"][0] is found["shared"][1]


def test_unknown_classes_become_records(reread):
    record = reread(Settings())
    assert isinstance(record, Record) and record.kind == f"{__name__}.Settings"
    assert record.state["rate"] == 0.5 and record.state["loop"] is record
    assert repr(record) == f"<{__name__}.Settings, not loaded>"
    slotted = Slotted()
    slotted.x = 7
    assert reread(slotted).state == (None, {"x": 7})
    assert [kind.kind for kind in reread([Settings, len])] == [f"{__name__}.Settings", "builtins.len"]
    assert all(isinstance(record, Record) for record in reread([np.ones(3), np.float32(1)]))
    module = reread(torch.nn.Linear(2, 1))
    assert isinstance(module, Record) and torch.is_tensor(module.state["_parameters"]["weight"])


def test_what_holds_no_settings_is_named(reread):
    kind = record_class("a.B")
    assert plain({1: kind, None: kind(), "bytes": b"x"}) == {"1": "a.B", "None": "a.B", "bytes": "bytes"}
    assert plain(reread(pathlib.PurePosixPath("x"))) == ["x"]
    assert plain(torch.Tensor) == "torch.Tensor" and plain(({1}, (2.5,))) == [[1], [2.5]]
    for state, expected in ((None, {"slot": 3}), {"slot": 3}), (torch.ones(3), "Tensor"), ((torch.ones(3), {}), "a.B"):
        record = kind()
        record.__setstate__(state)
        assert plain(record) == expected


def test_values_that_explode_when_written_out_are_refused():
    level: list = [1]
    for _ in range(60):
        level = [level, level]
    loop = record_class("a.B")()
    loop.__setstate__({"_content": {"self": loop}})
    for value in (level, loop, {"x": 1 << 200}):
        with pytest.raises(UnpickleError):
            plain(value)


def test_hostile_names():
    assert all(map(is_hostile, ("os.system", "os.path.join", "builtins.eval.x", "posix.system", "builtins.eval")))
    assert not any(map(is_hostile, ("builtins.dict", "oslo.x", "torch.compile", "functools.partial", "")))
