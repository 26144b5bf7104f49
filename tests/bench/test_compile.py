"""``bench/compile.py``: the kernels of this package stay within their budgets, and one that does not is found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

BENCH = Path(__file__).parents[2] / "bench"

PLANTED = """
import sys
sys.path.insert(0, {bench!r})
import os
os.environ["TRITON_INTERPRET"] = "0"
import compile, compile_cases, torch, triton
import triton.language as tl

@triton.jit
def wide_kernel(p_x, p_out, N, SIZE: tl.constexpr):
    o = tl.arange(0, SIZE)
    b_x = tl.load(p_x + o[:, None] * SIZE + o[None, :])
    total = tl.zeros([SIZE, SIZE], tl.float32)
    for _ in range(0, N):
        total = tl.dot(b_x, b_x, total)
    tl.store(p_out + o[:, None] * SIZE + o[None, :], total)

def launch(dtype):
    x = torch.zeros({size}, {size}, dtype=dtype)
    wide_kernel[(1,)](x, x.float(), 3, SIZE={size}, num_warps=4)

compile_cases.CASES = {{"planted": launch}}
sys.exit(compile.main(["--jobs", "1", "--targets", "90", "--dtypes", "fp16", "--cases", "planted", *sys.argv[1:]]))
"""


def run(*command):
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=variables, timeout=900)


@pytest.mark.slow
def test_kernels_are_within_their_budgets(tmp_path):
    done = run(BENCH / "compile.py", "--quick", "--json", tmp_path / "rows.json")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert (tmp_path / "rows.json").stat().st_size > 1000


@pytest.mark.slow
def test_a_kernel_that_spills_is_found(tmp_path):
    done = []
    for size in (64, 256):
        script = tmp_path / f"planted_{size}.py"
        script.write_text(PLANTED.format(bench=str(BENCH), size=size))
        done.append(run(script))
    small, wide = done
    assert small.returncode == 0, small.stdout + small.stderr
    assert "0 faults" in small.stdout and "HGMMA" in small.stdout
    assert wide.returncode == 1, wide.stdout + wide.stderr
    assert "bytes of stack, allowed 32" in wide.stdout


@pytest.mark.parametrize(
    ("change", "target", "dtype", "message"),
    [
        ({}, 90, "fp16", None),
        ({"stack": 33}, 90, "bf16", "33 bytes of stack, allowed 32"),
        ({"stack": 65}, 90, "tf32", "65 bytes of stack, allowed 64"),
        ({"stack": 64}, 90, "tf32", None),
        ({"stack": 256}, 90, "fp32", None),
        ({"stack": 257}, 90, "fp32", "257 bytes of stack, allowed 256"),
        ({"stack": 33, "name": "histogram_kernel"}, 90, "fp32", "33 bytes of stack, allowed 32"),
        ({"shared": 100 * 1024}, 90, "fp16", None),
        ({"shared": 100 * 1024}, 86, "fp16", "102400 bytes of shared memory, sm_86 has 99 KiB"),
        ({"scalar_products": 1}, 90, "tf32", "1 of 2 products run without tensor cores"),
        ({"scalar_products": 1}, 90, "fp32", None),
        ({"counts": {"FFMA": 9}}, 90, "fp16", "2 products, but no instruction of the tensor cores"),
        ({"counts": {"LDG": 9}}, 90, "fp32", "2 products in 1000 instructions: the compiler dropped them"),
        ({"counts": {"FFMA": 9}}, 90, "fp32", None),
        ({"grid": (1, 65536)}, 90, "fp16", "which no device takes"),
    ],
)
def test_budgets(monkeypatch, change, target, dtype, message):
    monkeypatch.syspath_prepend(str(BENCH))
    import ahead
    import compile

    kernel = {
        "name": "pair_kernel", "variant": "", "key": "", "registers": 255, "stack": 0, "shared": 0, "products": 2,
        "scalar_products": 0, "instructions": 1000, "counts": {"HGMMA": 4}, "cpu_s": 1.0,
    } | {key: value for key, value in change.items() if key != "grid"}  # fmt: skip
    found = compile.faults(ahead.Kernel(**kernel), change.get("grid", (8, 8)), target, dtype)
    assert len(found) == (message is not None) and (message is None or message in found[0])


@pytest.mark.slow
def test_unknown_choices_are_named():
    for arguments, message in (
        (["--targets", "70"], "unknown '70'; choose from 80, 86"),
        (["--dtypes", "fp8"], "unknown 'fp8'"),
        (["--cases", "nothing"], "no case has 'nothing' in its name"),
    ):
        done = run(BENCH / "compile.py", *arguments)
        assert done.returncode == 2 and message in done.stderr
