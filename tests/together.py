"""Trains with several settings in a row, in every process that a launcher started: ``together.py FILE``.

FILE holds a JSON list of command lines. One launch for many trainings: starting Python takes longer than they do, and
so would the drawings of their reports, which are left out.
"""

import json
import sys
from pathlib import Path

from depthg.config.composing import load_config
from depthg.reporting import page as report_page
from depthg.train import train

if __name__ == "__main__":
    report_page.svg_bytes = lambda figure: b"<svg/>"
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        train(load_config(arguments))
