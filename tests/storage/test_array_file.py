"""Array files filled in any order read as numpy wrote them, and take no room before."""

import numpy as np
import pytest

from depthg.storage.array_file import array_bytes, create_array, flush, write_rows


@pytest.mark.parametrize("dtype", [np.float16, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 3, 5)])
def test_rows_written_in_any_order_make_the_file_that_numpy_writes(tmp_path, shape, dtype):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    np.save(tmp_path / "numpy.npy", array)
    path = tmp_path / "ours.npy"
    create_array(path, shape, np.dtype(dtype))
    assert path.stat().st_size == (tmp_path / "numpy.npy").stat().st_size
    for rows in (slice(4, 7), slice(0, 1), slice(1, 4)):
        write_rows(path, shape, rows.start, array[rows])
    flush(path)
    np.testing.assert_array_equal(np.load(path), array)
    assert path.read_bytes() == (tmp_path / "numpy.npy").read_bytes()


def test_an_empty_array_is_a_hole(tmp_path):
    create_array(tmp_path / "a.npy", (10**6, 384), np.dtype(np.float16))
    found = (tmp_path / "a.npy").stat()
    assert found.st_size > array_bytes((10**6, 384), np.float16) and found.st_blocks * 512 < 10**5
