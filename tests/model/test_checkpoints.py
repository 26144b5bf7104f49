"""Checkpoints: a round trip is exact, files are whole or absent, damage is named, nothing is unpickled."""

import pickle

import pytest
import torch

from depthg.model.checkpoints import FILE, load_modules, load_optimizers, read_checkpoint, save_checkpoint
from depthg.storage.whole_files import write_text, write_whole


def trained():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def test_round_trip_continues_bit_for_bit(tmp_path):
    model, optimizer = trained()
    save_checkpoint(tmp_path, {"m": model}, {"m": optimizer}, {"iteration": 3})
    copy, copied = trained()
    tensors, header = read_checkpoint(tmp_path)
    load_modules(tensors, {"m": copy}, tmp_path)
    load_optimizers(tensors, {"m": copied})
    assert header == {"iteration": 3}
    x = torch.randn(4, 3)
    for network, adam in ((model, optimizer), (copy, copied)):
        adam.zero_grad()
        network(x).square().sum().backward()
        adam.step()
    assert torch.equal(model.weight, copy.weight) and torch.equal(model.bias, copy.bias)


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    write_text(tmp_path / "a.txt", "old")

    def fail(partial):
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "a.txt", fail)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read_checkpoint(tmp_path)
    model, optimizer = trained()
    path = save_checkpoint(tmp_path, {"m": model}, {"m": optimizer}, {})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=FILE):
        read_checkpoint(tmp_path)


def test_a_pickle_is_not_loaded(tmp_path):
    class Exploit:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / FILE).write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(ValueError, match="not a depthg checkpoint"):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_shape_are_named(tmp_path):
    model, optimizer = trained()
    save_checkpoint(tmp_path, {"m": model}, {"m": optimizer}, {})
    tensors, _ = read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"m\.weight has shape \(2, 3\); this model needs \(5, 3\)"):
        load_modules(tensors, {"m": torch.nn.Linear(3, 5)}, tmp_path)
    with pytest.raises(ValueError, match=r"n\.weight is missing"):
        load_modules(tensors, {"n": torch.nn.Linear(3, 2)}, tmp_path)
