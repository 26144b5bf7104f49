"""``python -m depthg.predict RUN IMAGES... --out DIR``: segments any photos with a trained run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from depthg.data.files import show
from depthg.data.photos import find_photos
from depthg.inference.clear_crops import ClearCrops
from depthg.inference.crf import wanted
from depthg.inference.exports.formats import FORMATS, Exports, formats_of
from depthg.inference.photo_files import LEGEND, OVERLAYS, legend, plan, predict_files, segmented
from depthg.inference.segmenter import RESIZE, Segmentation, Segmenter, window_of
from depthg.model.loaded_run import CHECKPOINTS
from depthg.reporting.gallery import INDEX, write_gallery
from depthg.runtime import command
from depthg.runtime.progress import ProgressBar
from depthg.storage.outputs import named_folder, output_folder
from depthg.storage.whole_files import write_text

__all__ = ["Segmentation", "Segmenter", "main"]

SUMMARY = f"""Segments photos of any size with a trained run. DIR/ids holds one PNG per photo whose pixel values are
cluster ids (with a palette; 16-bit grey for more than 256 clusters; of a GeoTIFF one at the same place), DIR/overlay
the photo under their colours, DIR/{INDEX} a page with every cluster's clearest crops, DIR/{LEGEND} what the ids mean
(class names where the run was scored with labels), their colours and their share of the pixels."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser("python -m depthg.predict", description=SUMMARY)
    parser.add_argument("run", metavar="RUN", help="run folder of depthg.train or depthg.convert")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="photos, folders of photos, or quoted patterns")
    parser.add_argument("--out", required=True, type=command.argument(named_folder), metavar="DIR", help="results")
    parser.add_argument(
        "--window", default=RESIZE, type=command.argument(window_of), metavar="SIZE|resize",
        help="resize: scale photos to the run's evaluation size (default); SIZE: blend windows at full resolution",
    )  # fmt: skip
    parser.add_argument("--flip", action="store_true", help="average the codes of photo and mirror image")
    both = argparse.BooleanOptionalAction
    parser.add_argument("--crf", action=both, help="refine edges by a dense CRF (default if compiled; slower)")
    parser.add_argument("--probabilities", action="store_true", help="DIR/probabilities: float16 [clusters, H, W]")
    parser.add_argument("--overlay", choices=tuple(OVERLAYS), default="jpg", help="format of overlays (%(default)s)")
    parser.add_argument("--export", nargs="+", action="extend", default=[], type=command.argument(formats_of),
                        metavar="FORMAT", help=f"files for annotation tools: {' '.join(FORMATS)}")  # fmt: skip
    parser.add_argument("--plain", action="store_true", help="overlays without outlines, names and legend")
    parser.add_argument("--checkpoint", choices=CHECKPOINTS, default="last", help="weights of the run (%(default)s)")
    parser.add_argument("--weights", metavar="PATH", help="path of the backbone's weights, if it has changed")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="windows per forward pass (%(default)s)")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="refuse larger photos, not GeoTIFFs")
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Segments the photos of the command line; returns the number of inputs that could not be used.

    Raises:
        ValueError, OSError, ImportError: no photo can be segmented, or an output cannot be written.
    """
    found, problems = find_photos(options.images, options.out)
    if not found:
        raise ValueError("; ".join(problems) or "there is no photo to segment")
    targets = plan(found, options.out, options.overlay, options.probabilities)
    segmenter = Segmenter.load(
        options.run, checkpoint=options.checkpoint, device=options.device, window=options.window,
        batch=options.batch, flip=options.flip, weights=options.weights, max_pixels=options.max_pixels,
    )  # fmt: skip
    crf = wanted(options.crf)
    exports = Exports.of(segmenter, options.export, options.out, targets)
    files = exports.files + [file for target in targets for file in target.files]
    output_folder(options.out, (LEGEND, INDEX, *(f.relative_to(options.out) for f in files)), options.overwrite)
    crops = ClearCrops(segmenter.colours)
    with ProgressBar("predicting", len(targets)) as bar:
        more = {"plain": options.plain, "crops": crops, "exports": exports}
        counts, failed = predict_files(segmenter, targets, crf, bar.advance, **more)
    failed[:0], exported = problems, exports.finish()
    text = legend(segmenter, counts, options.out, failed, window=options.window, flip=options.flip, crf=crf)
    index = write_gallery(options.out, text, crops.all)
    write_text(options.out / LEGEND, json.dumps(text, indent=1))
    print(*failed, sep="\n", end="\n" * bool(failed), file=sys.stderr)
    print(segmented(text, len(targets)), *exported, sep="\n")
    print(f"ids: {show(options.out / 'ids')}, legend: {show(options.out / LEGEND)}, to look at: {show(index)}")
    return len(failed)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m depthg.predict``; returns 1 if an input could not be used."""
    options = parse(arguments)
    text = f"stopped; what is in {show(options.out)} is whole, but {LEGEND} is missing; start again with --overwrite"
    return command.run(lambda: min(1, run(options)), text)


if __name__ == "__main__":
    sys.exit(main())
