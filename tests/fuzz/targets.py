"""What is fuzzed: readers of files that may come from anywhere, with valid files to start from.

A reader may return, or raise ``ValueError`` or ``FileNotFoundError`` with a message that names the file; anything else
is a finding.
"""

import atexit
import io
import json
import pickle
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save

from depthg.backbones.weights import read_state_dict
from depthg.config.composing import stored_settings
from depthg.config.schema import Config
from depthg.data.classes import read_classes
from depthg.data.files import label_table, read_image, read_label
from depthg.data.matlab import read_mat
from depthg.data.pairing import read_list
from depthg.data.reading import Reading
from depthg.depth.sources import FolderDepth
from depthg.foreign.torch_file import read_torch_file
from depthg.model.checkpoints import FILE, read_checkpoint
from depthg.model.converted import plain_setting, read_stego
from depthg.model.run_folder import read_log
from depthg.reporting.run_files import read_run

EXPECTED = (ValueError, FileNotFoundError)
folder = Path(tempfile.mkdtemp(prefix="depthg-fuzz-"))
atexit.register(shutil.rmtree, folder, ignore_errors=True)


@dataclass(frozen=True)
class Target:
    """A reader of one file."""

    name: str  # of the file
    read: Callable[[Path], object]
    seeds: list[bytes]

    def write(self, content: bytes) -> Path:
        """A file of this content in a folder of its own."""
        path = folder / f"of-{self.name}" / self.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    def __call__(self, content: bytes) -> None:
        """Reads a file of this content; raises what is not expected."""
        path = self.write(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about damage that it can live with
            try:
                self.read(path)
            except EXPECTED as error:
                if self.name not in str(error) and path.parent.name not in str(error):
                    raise AssertionError(f"the error does not name the file: {error}") from error


def picture(mode: str, kind: str, values: int = 256) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((9, 7), 50).point(lambda value: value % values).convert(mode).save(file, kind)
    return file.getvalue()


def saved(value, **keywords) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **keywords)
    return file.getvalue()


def array(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def matlab() -> bytes:
    from scipy.io import savemat

    file = io.BytesIO()
    savemat(file, {"groundTruth": np.arange(12, dtype=np.uint8).reshape(3, 4)}, do_compression=True)
    return file.getvalue()


def archived(path: Path) -> Path:
    """The content of `path` as the pickle of a torch file."""
    archive = path.with_name("a.pkl.pth")
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in (("data.pkl", path.read_bytes()), ("version", b"3\n"), ("byteorder", b"little")):
            file.writestr(f"archive/{name}", content)
    return archive


STATE = {"state_dict": {"net.cluster1.0.weight": torch.ones(2, 3)}, "hyper_parameters": {"dim": 2}, "epoch": 1}
HEADER = {"depthg": json.dumps({"iteration": 3, "shifts": [0.1], "stages": [2]})}
SETTINGS = OmegaConf.to_yaml(OmegaConf.structured(Config()))
LOG = '{"iteration": 1, "loss": 0.5}\n{"iteration": 2, "loss": -0.5}\n'
LABELS = label_table({0: 0, 1: 1, 255: -1})
TARGETS = {
    "list": Target("list.txt", read_list, [b"a/b.png\nc.jpg\n# note\n", "\ufeffé 1\r\n".encode()]),
    "classes": Target("classes.txt", read_classes, [b"0 sky\n1 road #ff00aa\n255 void\n", b"sky\nroad\n"]),
    "labels": Target(
        "label.png", lambda path: read_label(path, LABELS), [picture("L", "PNG", 2), picture("I;16", "PNG", 2)]
    ),
    "photo": Target("photo.jpg", read_image, [picture("RGB", "JPEG"), picture("LA", "PNG"), picture("L", "TIFF")]),
    "depth": Target(
        "depth.npy", lambda path: FolderDepth(path.parent, 0.001)._read(path, Reading()),
        [array(np.ones((3, 4), np.float32)), array(np.ones((2, 2), np.uint16))],
    ),
    "matlab": Target("gt.mat", lambda path: read_mat(path, "groundTruth"), [matlab()]),
    "checkpoint": Target(
        FILE, lambda path: read_checkpoint(path.parent), [save({"model.a": torch.ones(2), "b": torch.zeros(1)}, HEADER)]
    ),
    "config": Target("config.yaml", lambda path: stored_settings(path.parent), [SETTINGS.encode(), b"seed: 1\n"]),
    "metrics": Target("metrics.json", lambda path: read_run(path.parent), [b'{"cluster.miou": 1, "classes": []}']),
    "log": Target("metrics.jsonl", read_log, [LOG.encode()]),
    "weights": Target(
        "a.pth", read_state_dict, [saved(STATE), saved(STATE, _use_new_zipfile_serialization=False)]
    ),
    "stego": Target("a.ckpt", read_stego, [saved(STATE), saved(STATE, _use_new_zipfile_serialization=False)]),
    "pickle": Target(
        "a.pkl", lambda path: plain_setting(read_torch_file(archived(path)), path),
        [pickle.dumps({"a": [1, {2}, "x", 0.5, b"y"], "b": Path("x")}, 2), pickle.dumps([{"a": (1, None)}, Path], 3)],
    ),
}  # fmt: skip
