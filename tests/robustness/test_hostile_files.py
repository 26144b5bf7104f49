"""Known exploits at every door: nothing that a file says is run, and none takes memory that it only promises.

The parts have tests of their own (``test_torch_file.py``, ``test_records.py``, ``test_data_files.py`` ...); here the
public functions are given the files.
"""

import io
import json
import os
import pickle
import tarfile
import time
import zipfile

import numpy as np
import pytest
import torch
import yaml
from hostile import folder_depth
from PIL import Image

from depthg.backbones.weights import read_state_dict
from depthg.config.composing import load_config, stored_settings
from depthg.config.schema import Config
from depthg.data.files import DataError, read_image
from depthg.data.matlab import read_mat
from depthg.data.pairing import read_list
from depthg.foreign.torch_file import read_torch_file
from depthg.model.checkpoints import FILE, read_checkpoint
from depthg.model.converted import read_stego
from depthg.model.loaded_run import load_run
from depthg.model.run_folder import create_run, read_log
from depthg.reporting.report import write_report
from depthg.reporting.run_files import read_run
from depthg.storage.safe_text import MOST_CHARACTERS, parse_json, parse_yaml
from depthg.training.kept_step import read_step

pytestmark = pytest.mark.usefixtures("bounded_memory")

# ---- pickles


class Exploit:
    """Runs ``touch MARKER`` when unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


READERS = [read_torch_file, read_state_dict, read_stego]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_no_reader_of_weights_runs_a_pickle(tmp_path, reader):
    """Each reads with `read_torch_file`, whose tests have the exploits."""
    marker, path = tmp_path / "ran", tmp_path / "evil.ckpt"
    value = {"state_dict": {"a": torch.ones(2)}, "epoch": Exploit(marker)}
    for zipped in (True, False):
        torch.save(value, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=r"evil\.ckpt .*can run code"):
            reader(path)
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match=r"evil\.ckpt"):
        reader(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Exploit(marker)))
    assert marker.exists(), "the exploit works where pickles are loaded"


def disguised(tmp_path, marker) -> dict:
    """Pickles under names of other formats, and how they are read."""
    evil = pickle.dumps(Exploit(marker))
    run = create_run(Config(runs_dir=str(tmp_path / "runs"), name="a"))
    objects = np.array([Exploit(marker)], dtype=object)
    (tmp_path / "depth").mkdir()
    np.save(tmp_path / "depth" / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "depth" / "b.npz", a=objects)
    os.replace(tmp_path / "depth" / "b.npz", tmp_path / "depth" / "b.npy")
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    (run / "checkpoints" / "last").mkdir(parents=True)
    (run / "checkpoints" / "last" / FILE).write_bytes(evil)
    for name in ("weights.safetensors", "step.json", "step.safetensors", "photo.png", "list.txt", "gt.mat"):
        (tmp_path / name).write_bytes(evil)
    return {
        "checkpoint": lambda: read_checkpoint(run / "checkpoints" / "last"), "run": lambda: load_run(run),
        "safetensors": lambda: read_state_dict(tmp_path / "weights.safetensors"),
        "step": lambda: read_step(tmp_path / "step.json"), "photo": lambda: read_image(tmp_path / "photo.png"),
        "list": lambda: read_list(tmp_path / "list.txt"), "matlab": lambda: read_mat(tmp_path / "gt.mat", "a"),
        "array of objects": lambda: folder_depth(tmp_path / "depth", "a"),
        "archive as an array": lambda: folder_depth(tmp_path / "depth", "b"),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["checkpoint", "run", "safetensors", "step", "photo", "list", "matlab",
                                  "array of objects", "archive as an array"])  # fmt: skip
def test_pickles_under_other_names_are_not_run(tmp_path, name):
    marker = tmp_path / "ran"
    with pytest.raises((ValueError, OSError, TypeError)):
        disguised(tmp_path, marker)[name]()
    assert not marker.exists()


# ---- settings

YAML_TAGS = [
    "!!python/object/apply:os.system ['touch {}']", "!!python/object/new:os.system ['touch {}']",
    "name: !!python/object/apply:subprocess.check_output [['touch', '{}']]",
    "!!python/object/new:type {{args: [x, [], {{extend: !!python/name:exec}}], listitems: \"open('{}','w')\"}}",
    "a: !!python/module:this", "a: !!python/name:os.system", "!!python/tuple [1]", "!<tag:yaml.org,2002:python/none> x",
    "? !!python/object/apply:os.system ['touch {}']\n: 1", "!!map {{<<: !!python/object/apply:os.system ['touch {}']}}",
]  # fmt: skip
HYDRA = [
    "_target_: os.system", "head: {_target_: os.system, _args_: ['touch {}']}", "data: {_target_: subprocess.run}",
    "hydra: {run: {dir: '{}'}}", "defaults: [override hydra/launcher: submitit]", "_partial_: true",
    "_recursive_: false",
    "name: '${{oc.env:HOME}}'", "runs_dir: '${{oc.decode:${{oc.env:HOME}}}}'", "seed: ${{hydra:runtime.cwd}}",
]  # fmt: skip
BOMBS = {
    "laughs": "\n".join(["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]),
    "loop": "&a [*a]", "merge": "a: &a {b: 1}\nc: {<<: *a}", "deep": "[" * 100_000, "deep map": "{a: " * 5_000,
    "long": "# " + "x" * MOST_CHARACTERS, "digits": "seed: " + "9" * 50_000, "bytes": "\x00\x01",
}  # fmt: skip


@pytest.mark.parametrize("text", [*YAML_TAGS, *HYDRA, *BOMBS.values()], ids=lambda text: text[:30])
def test_settings_of_a_run_are_data(tmp_path, text):
    run, marker = tmp_path / "run", tmp_path / "ran"
    run.mkdir()
    (run / "config.yaml").write_text(text.replace("{}", str(marker)).replace("{{", "{").replace("}}", "}"))
    for use in (stored_settings, load_run, lambda run: load_config([f"resume={run}"])):
        with pytest.raises(ValueError, match=r"config\.yaml is damaged"):
            use(run)
    try:
        read_run(run)  # shown, not used: only what is no plain YAML is refused
    except ValueError as error:
        assert "config.yaml is damaged" in str(error)
    assert not marker.exists()
    if text in YAML_TAGS[:2]:
        yaml.unsafe_load(text.replace("{}", str(marker)).replace("{{", "{").replace("}}", "}"))
        assert marker.exists(), "the exploit works where YAML is loaded without care"


def test_yaml_and_json_of_plain_values():
    text = "a: [1, 2.5, null, true]\nb: {c: 'x'}\n"
    assert parse_yaml(text) == {"a": [1, 2.5, None, True], "b": {"c": "x"}} and parse_json("[1]") == [1]
    for deep in ("[" * 100_000, '{"a":' * 100_000):
        with pytest.raises(ValueError):
            parse_json(deep)


@pytest.mark.parametrize(
    "text",
    [
        "seed: " + "1:" * 200_000 + "1", "a: !!int '" + "1: " * 200_000 + "1'", "a: 2020-13-45",
        r'a: "\UFFFFFFFF"', r'a: "\U00110000"', "%YAML 1." + "9" * 5000 + "\n---\na: 1",
    ],
)  # fmt: skip
def test_yaml_values_that_take_long_or_do_not_exist(text):
    began = time.process_time()
    with pytest.raises(ValueError, match=r"is a number of|no YAML of plain values"):
        parse_yaml(text)
    assert time.process_time() - began < 20  # to base 60 the first would take half a minute and more
    assert len(parse_yaml("name: 2024-" + "a-run-with-a-long-name" * 10)["name"]) == 225
    assert parse_yaml(f"line: '{'-' * 150}'") == {"line": "-" * 150}


def test_pages_show_hostile_text_as_text(drawn_figures, tmp_path):
    run = create_run(Config(runs_dir=str(tmp_path), name="a"))
    script, formula = "<script>alert(1)</script>", r"$\frac{$"
    metrics = {"cluster.accuracy": script, "classes": [script, formula], "confusion": [[3, 1], [1, 2]]}
    metrics |= {"environment": {script: script}, "seconds": {script: 1}}
    metrics |= {"per_class": {"cluster": {script: 50.0, formula: 25.0}}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "metrics.jsonl").write_text(json.dumps({"iteration": 1, script: 1}) + "\n[" + "[" * 9999 + "\n")
    (run / "images.csv").write_text(f"name,accuracy,miou\n{script},1,1\n")
    page = write_report(run).read_text()
    assert script not in page and page.count("data:image/svg+xml") == 4
    assert len(read_log(run / "metrics.jsonl")) == 1


# ---- paths

OUTSIDE = ["../secret", "/etc/passwd", "a/../../secret", "..\\secret", "C:\\secret", "~/secret", "a\0b", "\\\\host\\x"]


@pytest.mark.parametrize("entry", OUTSIDE)
def test_lists_lead_nowhere_else(tmp_path, entry):
    (tmp_path / "list.txt").write_text(f"good\n{entry}\n")
    with pytest.raises(DataError, match=r"list\.txt, line 2"):
        read_list(tmp_path / "list.txt")


def test_archives_are_never_unpacked(tmp_path, monkeypatch):
    """Files with names that lead elsewhere are refused, as is the tar format of very old files."""
    for method in ("extract", "extractall"):
        monkeypatch.setattr(zipfile.ZipFile, method, None)
        monkeypatch.setattr(tarfile.TarFile, method, None)
    path = tmp_path / "in" / "a.pth"
    path.parent.mkdir()
    for name in ("../escaped", "/tmp/depthg-escaped", "a/../../escaped"):
        torch.save({"a": torch.ones(2)}, path)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
            archive.writestr(name, "x")
        if name.startswith("a/"):
            assert torch.equal(read_state_dict(path)["a"], torch.ones(2))  # looked up, and never needed
        else:
            with pytest.raises(ValueError, match=r"a\.pth"):
                read_state_dict(path)
    with tarfile.open(tmp_path / "old.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo("../escaped"), io.BytesIO())
    with pytest.raises(ValueError, match=r"old\.pth"):
        read_state_dict(tmp_path / "old.pth")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "old.pth"]
