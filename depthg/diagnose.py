"""``python -m depthg.diagnose``: label-free statistics of a data set or a run, suggested shifts, number of clusters."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from depthg.config.composing import load_config
from depthg.model.loaded_run import load_run
from depthg.model.run_folder import run_name
from depthg.reporting.diagnosis import FILES, advice, cluster_sentence, diagnose, print_diagnosis, suggestions
from depthg.reporting.diagnosis_page import write_page
from depthg.runtime import command
from depthg.storage.outputs import output_folder
from depthg.storage.whole_files import write_text
from depthg.training.step import HISTOGRAM_RANGE


def run(options: argparse.Namespace) -> None:
    """Computes the statistics of the command line's run or settings, writes them and prints a summary."""
    runs = [text for text in options.what if "=" not in text]
    overrides = [text for text in options.what if "=" in text]
    if len(runs) > 1:
        raise ValueError(f"one run at a time, got {' '.join(runs)}; settings are key=value")
    trained = load_run(runs[0], options.checkpoint, "cpu", overrides) if runs else None
    config = trained.config if trained else load_config(overrides)
    default = (
        trained.path / "diagnosis" if trained else Path(config.runs_dir).expanduser() / f"diagnosis-{run_name(config)}"
    )
    folder = output_folder(options.out or default, FILES, options.overwrite)
    found, counts = diagnose(config, trained, options.most_clusters)
    sentence = cluster_sentence(found["clusters"])
    write_page(folder, found, counts, suggestions(found), sentence, HISTOGRAM_RANGE, advice(found))
    write_text(folder / "diagnosis.json", json.dumps(found, indent=1, allow_nan=False))
    console = command.console()
    print_diagnosis(found, console)
    console.print(f"plots: {folder / 'diagnosis.html'}", highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m depthg.diagnose``."""
    parser = argparse.ArgumentParser(
        prog="python -m depthg.diagnose",
        description="Label-free: histograms of F, S and D over pairs of points, suggested shifts, number of clusters.",
    )
    parser.add_argument("what", nargs="*", metavar="RUN|key=value", help="a run folder, or settings as for training")
    parser.add_argument("--out", type=Path, help="folder for the plots (default: RUN/diagnosis, or below runs_dir)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier diagnosis")
    parser.add_argument("--checkpoint", default="last", choices=("last", "best"), help="weights of the run")
    parser.add_argument("--most-clusters", type=int, default=20, metavar="K", help="try 2 to K clusters (default 20)")
    options = parser.parse_intermixed_args(arguments)
    if options.most_clusters < 2:
        parser.error(f"--most-clusters {options.most_clusters} must be at least 2")
    return command.run(lambda: run(options), "stopped; what is prepared is kept for the next time")


if __name__ == "__main__":
    sys.exit(main())
