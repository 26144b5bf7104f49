"""The mended interpreter multiplies bfloat16; see ``interpreter.py``."""

import pytest
import torch
from loss_cases import DEVICE, INTERPRETING, TRITON, vectors

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402


@triton.jit
def product_kernel(p_a, p_b, p_out, SIZE: tl.constexpr):
    o = tl.arange(0, SIZE)
    tile = o[:, None] * SIZE + o[None, :]
    tl.store(p_out + tile, tl.dot(tl.load(p_a + tile), tl.load(p_b + tile)))


@pytest.mark.skipif(not TRITON, reason="needs a GPU or TRITON_INTERPRET=1")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_products(dtype):
    a, b = (vectors(32, 32, dtype=dtype) for _ in range(2))
    out = torch.empty(32, 32, device=DEVICE)
    product_kernel[(1,)](a, b, out, SIZE=32)
    wanted = a.double() @ b.double()
    bound = 1e-2 if dtype == torch.float32 and not INTERPRETING else 1e-5  # the default there is TF32
    assert (out - wanted).abs().max() < bound
