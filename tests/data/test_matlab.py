"""MATLAB files: equal to scipy's reader on whole files, and never anything but an error on damaged ones."""

import struct
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.io import loadmat, savemat

from depthg.data.files import DataError
from depthg.data.matlab import read_mat

DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]


@given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=6))
    ),
    st.booleans(),
)
def test_arrays_are_those_of_scipy(tmp_path_factory, values, compressed):
    path = tmp_path_factory.mktemp("matlab") / "some.mat"
    savemat(path, {"before": np.arange(3), "text": "abc", "values": values}, do_compression=compressed)
    got, expected = read_mat(path, "values"), loadmat(path)["values"]
    assert got.dtype == values.dtype == expected.dtype and got.shape == values.shape
    np.testing.assert_array_equal(got, values)


def test_doubles_stored_in_a_smaller_type(tmp_path):
    """As MATLAB writes whole numbers; a big-endian file, with a name that fits into its tag."""

    def element(kind, content):
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    small = struct.pack(">HH", 3, 1) + b"abc\0"
    content = element(6, struct.pack(">II", 6, 0)) + element(5, struct.pack(">ii", 2, 3)) + small
    content += element(2, bytes([1, 2, 3, 4, 5, 6]))
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(">H", 0x0100) + b"MI"
    path = tmp_path / "small.mat"
    path.write_bytes(header + element(14, content))
    got = read_mat(path, "abc")
    assert got.dtype == np.float64 and got.tolist() == [[1, 3, 5], [2, 4, 6]]
    np.testing.assert_array_equal(loadmat(path)["abc"], got)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"it is empty \(0 bytes\)"),
        (b"<html>404</html>" * 20, "no MATLAB file of version 5"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "version 7.3; save it with -v7"),
        (b"MATLAB 7.3".ljust(512) + b"\x89HDF\r\n\x1a\n", "version 7.3"),
        (b"MATLAB 5.0".ljust(124) + b"\0\1IM", "has no variable 'x'; it holds nothing"),
        (b"MATLAB 5.0".ljust(124) + b"\0\1IM" + b"ab", "it ends too early"),
    ],
)
def test_files_that_are_something_else(tmp_path, content, message):
    path = tmp_path / "some.mat"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"some\.mat.*{message}"):
        read_mat(path, "x")


def test_variables_that_are_no_numbers(tmp_path):
    path = tmp_path / "some.mat"
    cell = np.empty(1, object)
    cell[0] = 1
    savemat(path, {"text": "abc", "cell": cell, "complex": np.ones((2, 2)) * 1j, "struct": {"a": 1}})
    for name in ("text", "cell", "complex", "struct"):
        with pytest.raises(DataError, match=rf"some\.mat.*'{name}' holds no real numbers"):
            read_mat(path, name)
    with pytest.raises(DataError, match="no variable 'x'; it holds text, cell, complex, struct"):
        read_mat(path, "x")
    with pytest.raises(DataError, match=r"gone\.mat: No such file"):
        read_mat(tmp_path / "gone.mat", "x")


def test_compressed_data_may_not_unfold_without_end(tmp_path, monkeypatch):
    savemat(tmp_path / "some.mat", {"x": np.zeros((1000, 1000))}, do_compression=True)
    assert read_mat(tmp_path / "some.mat", "x").shape == (1000, 1000)
    monkeypatch.setattr("depthg.data.matlab.LARGEST", 100_000)
    with pytest.raises(DataError, match="unfolds to more than 100000 bytes"):
        read_mat(tmp_path / "some.mat", "x")


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files_raise_or_read_and_nothing_else(tmp_path, compressed):
    path, rng = tmp_path / "tile.mat", np.random.default_rng(0)
    savemat(path, {"img": rng.integers(0, 256, (20, 20, 4), np.uint8)}, do_compression=compressed)
    whole = path.read_bytes()
    failures = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for trial in range(600):
            damaged = bytearray(whole)
            if trial % 3 == 0:
                del damaged[rng.integers(len(whole)) :]
            for position in rng.integers(120, 230, trial % 6):  # the heads of the file and of the variable
                damaged[min(position, len(damaged) - 1)] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                assert isinstance(read_mat(path, "img"), np.ndarray)
            except DataError as error:
                failures += 1
                assert "tile.mat" in str(error)
    assert 300 < failures < 600
