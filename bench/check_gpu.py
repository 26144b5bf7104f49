"""Checks every GPU path against float64 and the CPU, and times single calls: ``python bench/check_gpu.py``.

    python bench/check_gpu.py [--json FILE] [--seconds S] [--only TEXT] [--small] [--interpret]

Prints one JSON line per check and continues after a failure. The exit status is 1 if any check failed, 2 without a GPU.
``--small`` runs small shapes only, without times, memory and graphs (for compute-sanitizer). ``--interpret`` runs them
without a GPU in Triton's interpreter, which tests this script and not a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from pathlib import Path


def report(row: dict) -> None:
    print(json.dumps(row), flush=True)


def run(checks: list, deadline_s: float) -> list[dict]:
    """Runs the checks ``(name, function)``: a returned dict holds measured values, an exception is a failure."""
    begin, rows = time.monotonic(), []
    for name, check in checks:
        started = time.monotonic()
        if started - begin > deadline_s:
            rows.append({"check": name, "skipped": f"{deadline_s:g} s are over"})
        else:
            try:
                rows.append({"check": name, "ok": True, **(check() or {})})
            except Exception as error:  # the next check runs in any case
                where = traceback.extract_tb(error.__traceback__)[-1]
                text = f"{type(error).__name__}: {error}"[:400]
                rows.append(
                    {"check": name, "ok": False, "error": text, "at": f"{Path(where.filename).name}:{where.lineno}"}
                )
            rows[-1]["seconds"] = round(time.monotonic() - started, 2)
        report(rows[-1])
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the machine and every check to this file")
    parser.add_argument("--seconds", type=float, default=240, help="no check starts later than this")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the checks with this in their name")
    parser.add_argument("--small", action="store_true", help="small shapes; no times, memory, graphs")
    parser.add_argument("--interpret", action="store_true", help="without a GPU: small shapes in Triton's interpreter")
    args = parser.parse_args(arguments)
    if args.interpret:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is imported
    import torch

    gpu = torch.cuda.is_available()
    if not gpu and not args.interpret:
        print("torch sees no CUDA device here: nothing was checked (--interpret tries the script without one)")
        return 2
    import common
    import gpu_checks
    import gpu_device_checks
    import gpu_step_checks

    place = gpu_checks.Place("cuda" if gpu else "cpu", args.small or not gpu)
    parts = (gpu_checks, gpu_step_checks, gpu_device_checks)
    checks = [check for part in parts for check in part.checks(place)]
    rows = run([check for check in checks if args.only in check[0]], args.seconds)
    if args.json:
        common.write_json(args.json, device=place.device, rows=rows, small=place.small)
    failed = [row["check"] for row in rows if row.get("ok") is False]
    skipped = sum("skipped" in row for row in rows)
    report({"checks": len(rows), "failed": len(failed), "skipped": skipped, "names": failed})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
