"""``depthg COMMAND ...`` and ``python -m depthg``: the commands, in the order of the work."""

from __future__ import annotations

import difflib
import runpy
import sys

COMMANDS = {
    "prepare": "computes features and depth ahead",
    "depth": "writes depth maps of photos",
    "train": "trains, evaluates, reports; resumes a stopped run",
    "diagnose": "suggests a number of clusters, and shifts",
    "evaluate": "scores a run: flip, CRF, full frames",
    "predict": "segments photos with a trained run",
    "label": "names, merges and leaves out clusters",
    "export": "writes a run as an ONNX graph",
    "report": "builds a report again, or compares two runs",
    "convert": "reads a checkpoint of STEGO or DepthG",
    "reproduce": "runs the rows of a table of the paper",
    "replay": "computes a step with NaN again",
}


def overview() -> str:
    """The text of ``depthg --help``."""
    from depthg import __version__

    lines = [f"  {name:<11}{does}" for name, does in COMMANDS.items()]
    return "\n".join([
        f"depthg {__version__}: segments photos without labels", "", "usage: depthg COMMAND ...", "", *lines, "",
        "depthg COMMAND --help has the options of one. python -m depthg.COMMAND is the same.",
    ])  # fmt: skip


def main() -> int:
    """Runs the command named by the first argument as ``python -m depthg.COMMAND``; returns the exit status."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print(overview())
        return 0
    if name == "--version":
        from depthg import __version__

        print(__version__)
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"error: {name!r} is not a command of depthg{hint} (depthg --help lists them)", file=sys.stderr)
        return 2
    del sys.argv[1]
    runpy.run_module(f"depthg.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
