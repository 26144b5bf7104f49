"""Fuzzes readers of files with atheris, guided by coverage; without it, with blind mutations.

    pip install atheris
    python tests/fuzz/run.py --seconds 600            # every target in turn, each for a part of the time
    python tests/fuzz/run.py config list --seconds 60

A finding is written to ``fuzz-findings/`` in the working folder, and the status is 1. The last line counts inputs.
"""

import argparse
import atexit
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

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


def guided(name: str, seconds: float) -> None:
    """One target under atheris, which ends the process."""
    import atheris

    with atheris.instrument_imports(include=["depthg", "yaml", "omegaconf"]):
        from targets import TARGETS
    target = TARGETS[name]
    FINDINGS.mkdir(exist_ok=True)
    corpus = Path(tempfile.mkdtemp(prefix="depthg-corpus-"))
    atexit.register(shutil.rmtree, corpus, ignore_errors=True)
    for number, seed in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(seed)

    def one(content: bytes) -> None:
        try:
            target(content)
        except Exception:
            keep(name, content)
            raise

    limits = [f"-max_total_time={max(1, round(seconds))}", "-max_len=8192", "-rss_limit_mb=4096", "-timeout=20"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={FINDINGS}/{name}-", str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="*", help="config, list, ... (default: all)")
    parser.add_argument("--seconds", type=float, default=60, help="over all targets")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        guided(options.target[0], options.seconds)
        return 0
    from targets import TARGETS

    names = options.target or list(TARGETS)
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        parser.error(f"no target {unknown[0]}; choose from {', '.join(TARGETS)}")
    with_atheris, total, failed = importlib.util.find_spec("atheris") is not None, 0, []
    if not with_atheris:
        print("atheris is not installed (pip install atheris): blind mutations instead")
    for name in names:
        share = options.seconds / len(names)
        if with_atheris:
            command = [sys.executable, __file__, name, "--alone", "--seconds", str(share)]
            finished = subprocess.run(command, capture_output=True, text=True, errors="replace")
            counts = re.findall(r"(?:Done |stat::number_of_executed_units: |^#)(\d+)", finished.stderr, re.MULTILINE)
            tried, found = max(map(int, counts), default=0), finished.returncode != 0
            if found:
                print(finished.stderr[-4000:], file=sys.stderr)
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
