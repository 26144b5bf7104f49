"""Triton launches that only compile, without a GPU: for scripts that :func:`ahead_of_time` runs.

``import compile_only`` in such a script puts a stand-in in the place of the driver, which names the device to compile
for. A launch on CPU tensors then ends after compiling, as a real launch would compile, and is added to ``launched``.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

launched: list = []  # kernels in the order of their launches
forced: dict = {}  # options that every launch is given


def ahead_of_time(script: str, target: int) -> None:
    """Runs a script in a process of its own with Triton's interpreter off; it has to end without an error."""
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "TRITON_INTERPRET": "0", "COMPILE_FOR": str(target), "PYTHONPATH": paths}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def _stand_in(target: int) -> None:
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    class Driver:
        def get_current_target(self):
            return GPUTarget("cuda", target, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

        def get_active_torch_device(self):
            return torch.device("cpu")

    plain = JITFunction.run

    def run(self, *arguments, grid, warmup, **options):
        launched.append(plain(self, *arguments, grid=grid, warmup=True, **{**options, **forced}))
        return launched[-1]

    JITFunction.run = run
    triton.runtime.driver.set_active(Driver())


if "COMPILE_FOR" in os.environ:
    _stand_in(int(os.environ["COMPILE_FOR"]))


def tool(name: str, option: str, kernel) -> str:
    """What a tool of CUDA, which Triton brings, says of a compiled kernel."""
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([folder / name, option, file.name], capture_output=True, text=True, check=True).stdout


def stack(kernel) -> int:
    """Bytes of stack per thread: registers that spill."""
    return int(re.search(r"STACK:(\d+)", tool("cuobjdump", "-res-usage", kernel))[1])


def instructions(kernel) -> tuple[list[str], list[list[str]]]:
    """All instructions of a kernel without their predicates, and those of each loop: what a branch jumps back over."""
    lines, at = [], {}
    for line in tool("nvdisasm", "-c", kernel).splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            at[label[1]] = len(lines)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(.*);", line):
            lines.append(found[1])
    jumps = [(at[m[1]], i) for i, line in enumerate(lines) if (m := re.search(r"^BRA.*(\.L_x_\d+)", line))]
    return lines, [lines[begin:end] for begin, end in jumps if begin < end]
