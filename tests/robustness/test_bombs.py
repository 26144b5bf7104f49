"""Files that promise more than they hold, or unfold to more than fits: refused without taking the memory."""

import json
import pickle
import struct
import zipfile
import zlib

import pytest
import torch
from hostile import folder_depth
from safetensors.torch import save_file

from depthg.backbones.weights import read_state_dict
from depthg.data.files import DataError, image_size, read_image, read_values
from depthg.data.matlab import read_mat
from depthg.foreign.torch_file import read_torch_file
from depthg.model.checkpoints import FILE, read_checkpoint
from depthg.model.converted import read_stego

pytestmark = pytest.mark.usefixtures("bounded_memory")

READERS = [read_torch_file, read_state_dict, read_stego]


def png(width, height, *chunks, idat=b"\x00"):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rest = [*chunks, (b"IDAT", zlib.compress(idat)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*part) for part in rest)


PICTURES = {
    "huge": png(2**31 - 1, 2**31 - 1), "wide": png(2**31 - 1, 1), "large": png(60_000, 60_000),
    "nothing": png(0, 0), "text": png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))),
    "profile": png(8, 8, (b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8)))),
    "chunk length": b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31 - 1) + b"IHDR",
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
    "ppm": b"P6 99999999 99999999 255\n", "gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\x3b",
    "tiff": b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHII", 256, 4, 2**31, 2**31 - 1),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_take_no_memory_on_a_promise(tmp_path, name):
    path = tmp_path / f"{name}.png"
    path.write_bytes(PICTURES[name])
    for read in (read_image, read_values, image_size):
        try:
            found = read(path)
        except DataError as error:
            assert name in str(error)
        else:
            assert read is image_size or found.nbytes < 10**6


def safetensors(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


TENSORS = {
    "length": safetensors(b"{}", length=2**63), "length too long": safetensors(b"{}", length=2**40),
    "no header": b"", "shape": safetensors({"a": tensor([2**40, 2**40], 0, 4)}, bytes(4)),
    "overflow": safetensors({"a": tensor([2**32, 2**32], 0, 0)}), "outside": safetensors({"a": tensor([1], 0, 4)}),
    "overlap": safetensors({"a": tensor([1], 0, 4), "b": tensor([1], 0, 4)}, bytes(4)),
    "hole": safetensors({"a": tensor([1], 4, 8)}, bytes(8)), "deep": safetensors(b"[" * 100_000),
    "metadata": safetensors({"__metadata__": {"depthg": "[" * 100_000}}),
    "list": safetensors({"__metadata__": {"depthg": "[]"}}),
    "negative": safetensors({"a": tensor([-1], 0, 4)}, bytes(4)),
    "keys": safetensors(b"{" + b",".join(b'"%d":1' % n for n in range(20_000)) + b"}"),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_safetensors_that_lie(tmp_path, name):
    (tmp_path / FILE).write_bytes(TENSORS[name])
    with pytest.raises(ValueError, match=FILE):
        read_checkpoint(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(TENSORS[name])
    with pytest.raises(ValueError, match=r"w\.safetensors"):
        read_state_dict(tmp_path / "w.safetensors")


def npy(text):
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


ARRAYS = {
    "terabytes": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000)}"),
    "gigabytes": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (60000, 60000)}"),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + pickle.dumps([1]),
    "code": npy("__import__('os').system('true')"), "deep": npy("(" * 100),
    "header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1),
    "negative": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 4)}"),
    "zip": b"PK\x03\x04" + bytes(100),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_depth_maps_that_lie(tmp_path, name):
    (tmp_path / "a.npy").write_bytes(ARRAYS[name])
    with pytest.raises(DataError, match=r"a\.npy"):
        folder_depth(tmp_path, "a")


def test_compressed_archives_do_not_unfold(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}, 2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", bytes(10**8))
    for reader in READERS:
        with pytest.raises(ValueError, match=r"bomb\.pth .*compressed"):
            reader(path)
    unfolded = zlib.compress(struct.pack("<II", 14, 10**8) + bytes(10**8))
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x100) + b"IM"
    (tmp_path / "bomb.mat").write_bytes(header + struct.pack("<II", 15, len(unfolded)) + unfolded)
    with pytest.raises(DataError, match=r"bomb\.mat"):
        read_mat(tmp_path / "bomb.mat", "a")
    save_file({"a": torch.ones(1)}, tmp_path / "ok.safetensors")
    assert list(read_state_dict(tmp_path / "ok.safetensors")) == ["a"]
