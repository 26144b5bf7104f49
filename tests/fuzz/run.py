"""Fuzzes readers of files with atheris, guided by coverage; without it, with blind mutations.

    pip install atheris
    python tests/fuzz/run.py --seconds 600            # every target in turn, each for a part of the time
    python tests/fuzz/run.py config list --seconds 60

A finding is written to ``fuzz-findings/`` in the working folder, and the status is 1. The last line counts inputs.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import io
import os
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parent))
FINDINGS = Path("fuzz-findings")


def keep(name: str, content: bytes) -> None:
    FINDINGS.mkdir(exist_ok=True)
    path = FINDINGS / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"
    path.write_bytes(content)
    print(f"finding: {path}", file=sys.stderr)
    traceback.print_exc()


def blind(name: str, seconds: float, seed: int = 0) -> int:
    """Mutations until the time is up or something is found; their number, negative with a finding."""
    from mutate import mutations
    from targets import TARGETS

    tried, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for content in mutations(TARGETS[name].seeds, 200, seed):
            tried += 1
            try:
                TARGETS[name](content)
            except Exception:
                keep(name, content)
                return -tried
        seed += 1
    return tried


def guided(name: str, target, seconds: float) -> tuple[int, bool, str]:
    """One target under atheris: the number of inputs, whether it failed, and what was said.

    atheris ends its process, so it has a child of its own: to fork is quicker than to instrument the modules again.
    """
    with tempfile.TemporaryFile() as said, tempfile.TemporaryDirectory(prefix="depthg-corpus-") as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        child = os.fork()
        if not child:
            fuzz(name, target, seconds, corpus, said.fileno())
        status = os.waitpid(child, 0)[1]
        said.seek(0)
        text = said.read().decode(errors="replace")
    counts = re.findall(r"(?:Done |stat::number_of_executed_units: |^#)(\d+)", text, re.MULTILINE)
    return max(map(int, counts), default=0), status != 0, text


def fuzz(name: str, target, seconds: float, corpus: str, said: int) -> NoReturn:
    """Ends the process; all that is printed goes to the file ``said``."""
    tried, status = 0, 1

    def one(content: bytes) -> None:
        nonlocal tried
        tried += 1
        try:
            target(content)
        except Exception:
            keep(name, content)
            print(f"#{tried}", file=sys.stderr)
            raise

    try:
        import atheris

        for printed in (1, 2):
            os.dup2(said, printed)
        FINDINGS.mkdir(exist_ok=True)
        limits = [f"-max_total_time={max(1, round(seconds))}", "-max_len=8192", "-rss_limit_mb=4096", "-timeout=20"]
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={FINDINGS}/{name}-", corpus], one)
        atheris.Fuzz()  # ends the process when the time is up
    except SystemExit as end:  # and raises this after a finding
        status = 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="*", help="config, list, ... (default: all)")
    parser.add_argument("--seconds", type=float, default=60, help="over all targets")
    options = parser.parse_args()
    with_atheris = importlib.util.find_spec("atheris") is not None
    if with_atheris:
        import atheris

        hushed = contextlib.redirect_stderr(io.StringIO())  # a line per module
        with hushed, atheris.instrument_imports(include=["depthg", "yaml", "omegaconf"]):
            from targets import TARGETS
    else:
        print("atheris is not installed (pip install atheris): blind mutations instead")
        from targets import TARGETS
    names = options.target or list(TARGETS)
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        parser.error(f"no target {unknown[0]}; choose from {', '.join(TARGETS)}")
    total, failed = 0, []
    for name in names:
        share = options.seconds / len(names)
        if with_atheris:
            tried, found, text = guided(name, TARGETS[name], share)
            if found:
                print(text[-4000:], file=sys.stderr)
        else:
            tried = blind(name, share)
            tried, found = abs(tried), tried < 0
        total += tried
        failed += [name] if found else []
        print(f"{name}: {tried:,} inputs{', FAILED' if found else ''}", flush=True)
    print(f"{total:,} inputs, {'findings in ' + ', '.join(failed) if failed else 'no finding'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
