"""Looks at photos, and serves the page on which their clusters are named."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from depthg.data.errors import DataError, show
from depthg.data.folder import spread
from depthg.data.photos import find_photos
from depthg.data.ranges import resolved
from depthg.inference.segmenter import Maps, Segmenter
from depthg.inference.survey import Survey
from depthg.inference.windows import NetworkPhoto
from depthg.labelling.session import Session
from depthg.model.legend import checksum_of
from depthg.runtime.progress import ProgressBar


def survey(segmenter: Segmenter, photos: Sequence[tuple[Path, str]], colours: np.ndarray) -> tuple[Survey, list[str]]:
    """Looks at photos; returns what was found, and an error line for each photo that cannot be read.

    Args:
        photos: path and name of each.
        colours: uint8 [n_clusters, 3].
    """
    found, failed = Survey(colours), []
    names: dict[object, str] = dict(photos)
    segmenter.reading = resolved(segmenter.reading, [path for path, _ in photos], "the photos")

    def finish(photo: NetworkPhoto, maps: Maps) -> None:
        ids = segmenter.ids(photo, maps)
        found.offer(names[photo.source], maps.scores, ids, lambda: (photo.image, ids))

    with ProgressBar("looking at photos", len(names)) as bar:
        for outcome in segmenter.stream(names, finish):
            if isinstance(outcome, DataError):
                failed.append(str(outcome))
            bar.advance()
    return found, failed


def open_page(options: argparse.Namespace) -> None:
    """Looks at the photos and serves the page until it is stopped.

    Raises:
        ImportError: gradio is missing.
        ValueError, OSError: no photo can be read, or the port is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ImportError("the page needs gradio: python -m pip install 'depthg[app]' (--from LABELS needs it not)")
    if options.most < 1:
        raise ValueError(f"--most {options.most} must be at least 1")
    segmenter = Segmenter.load(options.run, checkpoint=options.checkpoint, device=options.device, legend=False)
    run = segmenter.run
    root = options.photos or run.config.data.root
    if not root:
        raise ValueError(f"{show(run.path)} was not trained on a folder of photos; give PHOTOS")
    photos, problems = find_photos([str(root)], run.path)
    if not photos:
        raise ValueError("; ".join(problems))
    shown = [photos[place] for place in spread(len(photos), options.most)]
    colours = segmenter.colours
    found, failed = survey(segmenter, shown, colours)
    print(*failed, sep="\n", end="\n" * bool(failed), file=sys.stderr)
    if len(failed) == len(shown):
        raise ValueError(f"none of the {len(shown)} photos below {show(root)} can be read")

    from depthg.labelling.page import CSS, LabelPage  # gradio takes seconds
    from depthg.labelling.server import serve

    session = Session(run.path, run.cluster_names, checksum_of(run.cluster.centroids), run.legend)

    def ready(address: str) -> None:
        print(f"open {address}\n(this machine alone; Ctrl-C ends it, what you name is kept at once)", flush=True)
        if not options.no_browser:
            webbrowser.open(address)

    serve(lambda: LabelPage(session, segmenter, found, colours).blocks, CSS, options.port, ready)
