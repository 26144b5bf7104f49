"""Settings inside records: OmegaConf containers, namespaces and plain attribute objects turn into plain values."""

import argparse
import pathlib
import pickle

import pytest
import torch
from omegaconf import OmegaConf

from depthg.inert import Global, Record, UnpickleError, is_hostile, plain
from depthg.unpickle import read_pickle

SETTINGS = {"dim": 70, "rates": [0.5, None, {"deep": True}], "name": "vit_small", "same": "${dim}"}


class Attributes(dict):
    """A dictionary with attributes, as trainers keep hyper-parameters in."""

    def __reduce__(self):
        return Attributes, (), None, None, iter(self.items())


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", [OmegaConf.create, lambda s: argparse.Namespace(**s), Attributes, dict])
def test_settings_in_any_wrapping(kind, protocol):
    assert plain(read_pickle(pickle.dumps({"cfg": kind(SETTINGS)}, protocol))) == {"cfg": SETTINGS}


def test_what_holds_no_settings_is_named():
    kind = Global("a", "B")
    assert plain({1: kind, None: Record(kind), "bytes": b"x"}) == {"1": "a.B", "None": "a.B", "bytes": "bytes"}
    assert plain(read_pickle(pickle.dumps(pathlib.PurePosixPath("x"), 2))) == ["x"]
    assert plain(Record(kind, state=(None, {"slot": 3}))) == {"slot": 3}
    assert plain(({1}, (2.5,))) == [[1], [2.5]]
    assert (
        plain(Record(kind, state=torch.ones(3))) == "Tensor" and plain(Record(kind, state=(torch.ones(3), {}))) == "a.B"
    )
    with pytest.raises(UnpickleError):
        read_pickle(b"cx\ny\n)R}}s.")  # a dictionary as the key of a record


def test_values_that_explode_when_written_out_are_refused():
    level: list = [1]
    for _ in range(60):
        level = [level, level]
    loop = Record(Global("a", "B"))
    loop.state = {"_content": {"self": loop}}
    for value in (level, loop, {"x": 1 << 200}):
        with pytest.raises(UnpickleError):
            plain(value)


def test_hostile_names():
    assert all(is_hostile(*name) for name in (("os", "system"), ("os.path", "join"), ("builtins", "eval.x")))
    assert not any(is_hostile(*name) for name in (("builtins", "dict"), ("oslo", "x"), ("torch", "compile")))
