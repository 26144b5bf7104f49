"""``python -m depthg.prepare``: computes and caches the fixed inputs of training."""

from __future__ import annotations

import sys

from depthg.config import Config
from depthg.config.command import run_command
from depthg.features.preparation import Preparation
from depthg.features.summary import PARTS, SUMMARY, print_summary
from depthg.runtime import command, processes
from depthg.runtime.device import pick_device
from depthg.runtime.stopping import terminate_as_interrupt


def prepare(config: Config) -> Preparation:
    """Finds or builds all caches of a configuration, and prints a summary."""
    with terminate_as_interrupt():
        try:
            preparation = Preparation(config, pick_device(config.device))
            preparation.run()
        except KeyboardInterrupt:
            if processes.is_main():
                print("stopped; finished shards are kept, and the same command goes on from them", file=sys.stderr)
            raise
    if processes.is_main():
        print_summary(preparation.uses, preparation.root, command.console())
    return preparation


def main() -> None:
    """``python -m depthg.prepare``."""
    run_command(prepare, "depthg.prepare", SUMMARY, PARTS)


if __name__ == "__main__":
    main()
