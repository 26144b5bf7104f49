"""Free memory goes back to the system, and what the CRF keeps can be let go."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from depthg.kernels.dense_crf import _kept, dense_crf, forget_memory
from depthg.runtime.memory import give_back


def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))  # MiB


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library than glibc")
def test_holes_between_blocks_go_back():
    give_back()
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    before = resident()
    blocks = [libc.malloc(64 * 1024) for _ in range(1600)]  # below the size that is mapped apart
    for block in blocks:
        ctypes.memset(block, 1, 64 * 1024)
    for block in blocks[:-1]:
        libc.free(block)
    held = resident()
    give_back()
    assert held > before + 90 and resident() < held - 80
    libc.free(blocks[-1])


def test_the_crf_forgets_its_memory():
    forget_memory()
    dense_crf(np.zeros((2, 8, 8), np.float32), np.zeros((8, 8, 3), np.uint8), ids=True)
    if not hasattr(_kept, "memory"):
        pytest.skip("the compiled code is not installed")
    forget_memory()
    assert not hasattr(_kept, "memory")
    forget_memory()
