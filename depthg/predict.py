"""``python -m depthg.predict RUN IMAGES... --out DIR``: segments anybody's photos with a trained run."""

from __future__ import annotations

import argparse
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from depthg.cli import USER_ERRORS
from depthg.crf import check_available
from depthg.crf_pool import CrfPool
from depthg.data.base import unique_names
from depthg.data.files import DataError, show, without_setting
from depthg.depth_command import find_photos
from depthg.loaded_run import CHECKPOINTS
from depthg.outputs import output_folder
from depthg.progress import StageBar
from depthg.segmenter import RESIZE, Maps, Segmentation, Segmenter
from depthg.stopping import terminate_as_interrupt
from depthg.whole_files import write_text, write_whole
from depthg.windows import Photo

__all__ = ["Segmentation", "Segmenter", "main", "predict_files"]

LEGEND = "legend.json"
RUN_LENGTHS = zlib.Z_RLE  # PNG of ids: six times as fast as the default, files are a quarter larger
OVERLAYS = {"jpg": "JPEG", "png": "PNG", "none": None}
SUMMARY = f"""Segments photos of any size with a trained run. DIR/ids holds one PNG per photo whose pixel values are
cluster ids (with a palette), DIR/overlay the photo under their colours, DIR/{LEGEND} what the ids mean (class names
where the run was scored with labels), their colours and their share of the pixels."""


@dataclass(frozen=True)
class Target:
    """A photo and the files that are made of it; None where they are not asked for."""

    photo: Path
    name: str
    ids: Path
    overlay: Path | None
    probabilities: Path | None

    @property
    def files(self) -> list[Path]:
        return [path for path in (self.ids, self.overlay, self.probabilities) if path is not None]


def plan(photos: Sequence[tuple[Path, str]], out: Path, overlay: str, probabilities: bool) -> list[Target]:
    """Names of the outputs: those of the photos below what was given, with the folders where two would be equal.

    Raises:
        ValueError: an output would replace one of the photos.
    """
    counts = Counter(os.path.splitext(relative)[0].casefold() for _, relative in photos)
    clashing = [path for path, relative in photos if counts[os.path.splitext(relative)[0].casefold()] > 1]
    base = os.path.commonpath([path.absolute().parent for path in clashing]) if clashing else ""
    relative = [os.path.relpath(p.absolute(), base) if p in clashing else r for p, r in photos]
    targets = [
        Target(
            path,
            name,
            out / "ids" / f"{name}.png",
            None if OVERLAYS[overlay] is None else out / "overlay" / f"{name}.{overlay}",
            out / "probabilities" / f"{name}.npz" if probabilities else None,
        )
        for (path, _), name in zip(photos, unique_names(relative), strict=True)
    ]
    inputs = {os.path.realpath(path) for path, _ in photos}  # Path.resolve raises on a link to itself
    for file in (file for target in targets for file in target.files):
        if os.path.realpath(file) in inputs:
            raise ValueError(f"{show(file)} is one of the photos and would be replaced; choose another --out")
    return targets


def write_outputs(
    segmenter: Segmenter, target: Target, photo: Photo, ids: np.ndarray, probabilities: np.ndarray | None
) -> None:
    """Writes the files of one photo, each whole or not at all."""
    image = with_palette(ids, segmenter.colours)
    write_whole(target.ids, lambda partial: image.save(partial, format="PNG", compress_type=RUN_LENGTHS), flush=False)
    if target.overlay is not None:
        kind = OVERLAYS[target.overlay.suffix[1:]]
        drawn = Image.fromarray(overlay(photo.image, ids, segmenter.colours))
        write_whole(target.overlay, lambda partial: drawn.save(partial, format=kind, quality=90), flush=False)
    if target.probabilities is not None:
        half, names = probabilities.astype(np.float16), np.array(segmenter.names)
        write_whole(
            target.probabilities, lambda partial: _save_npz(partial, probabilities=half, names=names), flush=False
        )


def with_palette(ids: np.ndarray, colours: np.ndarray) -> Image.Image:  # [H, W] below 256, uint8 [n, 3]
    """Ids as a Pillow image that shows their colours."""
    image = Image.fromarray(ids.astype(np.uint8, copy=False))
    image.putpalette(colours.tobytes())
    return image


def overlay(image: np.ndarray, ids: np.ndarray, colours: np.ndarray) -> np.ndarray:  # uint8 [H, W, 3]
    """Mean of the photo and the colours of its clusters."""
    drawn = np.array(with_palette(ids, colours >> 1).convert("RGB"))
    drawn += image >> 1
    return drawn


def _save_npz(path: Path, **arrays: Any) -> None:
    with open(path, "wb") as file:  # numpy.savez adds a suffix to names
        np.savez(file, **arrays)


def predict_files(
    segmenter: Segmenter, targets: Sequence[Target], crf: bool = False, advance: Callable[[], None] = lambda: None
) -> tuple[dict[Target, np.ndarray], list[str]]:
    """Segments photos and writes their files.

    Returns:
        Pixels per cluster of every photo, and a line for each photo that cannot be read.

    Raises:
        OSError: an output cannot be written.
        ImportError: the CRF needs pydensecrf2.
    """
    counts: dict[Target, np.ndarray] = {}
    failed: list[str] = []
    by_photo: dict[object, Target] = {target.photo: target for target in targets}
    with CrfPool() if crf else nullcontext() as pool:

        def finish(photo: Photo, maps: Maps) -> tuple[Target, np.ndarray]:
            target = by_photo[photo.source]
            if pool is not None:
                ids = segmenter.refined(photo, maps, lambda image, unary: pool.submit(image, unary).result())
            else:
                ids = segmenter.ids(photo, maps)
            probabilities = segmenter.probabilities(photo, maps) if target.probabilities else None
            write_outputs(segmenter, target, photo, ids, probabilities)
            pixels = Image.fromarray(ids.astype(np.uint8, copy=False)).histogram()
            return target, np.array(pixels[: segmenter.run.n_clusters])

        for found in segmenter.stream(by_photo, finish):
            if isinstance(found, DataError):
                failed.append(without_setting(found))
            else:
                counts[found[0]] = found[1]
            advance()
    return counts, failed


def legend(segmenter: Segmenter, counts: dict[Target, np.ndarray], out: Path, failed: Sequence[str], **options) -> dict:
    """What the ids mean, and each one's share of the pixels of all photos and of each."""
    run, assigned = segmenter.run, segmenter.run.assignment
    classes = [None] * run.n_clusters if assigned is None else [int(c) if c >= 0 else None for c in assigned]
    total = _shares(sum(counts.values(), np.zeros(run.n_clusters, np.int64)))
    ids = [
        {"id": i, "name": name, "class": c, "colour": "#" + bytes(colour).hex(), "share": total[i]}
        for i, (name, c, colour) in enumerate(zip(segmenter.names, classes, segmenter.colours, strict=True))
    ]
    photos = [
        {
            "photo": show(target.photo), "files": [file.relative_to(out).as_posix() for file in target.files],
            "share": {str(i): share for i, share in enumerate(_shares(pixels)) if share},
        }
        for target, pixels in counts.items()
    ]  # fmt: skip
    return {
        "run": show(run.path), "checkpoint": run.checkpoint, "iteration": run.header.get("iteration"), **options,
        "named": assigned is not None, "ids": ids, "photos": photos, "failed": list(failed),
    }  # fmt: skip


def _shares(pixels: np.ndarray) -> list[float]:
    return [round(float(x), 6) for x in pixels / max(1, pixels.sum())]


# ---- the command


def folder_of(text: str) -> Path:
    """A folder's name; an empty one is most likely a variable that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("the folder has no name")
    return Path(text)


def window_of(text: str) -> int | str:
    """``resize``, or a number of pixels."""
    if text == RESIZE:
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither {RESIZE} nor a number of pixels")
    return int(text)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m depthg.predict", description=SUMMARY, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="run folder of depthg.train or depthg.convert")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="photos, folders of photos, or quoted patterns")
    parser.add_argument("--out", required=True, type=folder_of, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--window", default=RESIZE, type=window_of, metavar="SIZE|resize",
        help="resize: scale photos to the run's evaluation size (default); SIZE: blend overlapping windows of so many "
        "pixels, at the photos' own resolution",
    )  # fmt: skip
    parser.add_argument("--crf", action="store_true", help="refine with a dense CRF (the extra crf)")
    parser.add_argument("--probabilities", action="store_true", help="DIR/probabilities: float16 [clusters, H, W]")
    parser.add_argument("--overlay", choices=tuple(OVERLAYS), default="jpg", help="format of overlays (%(default)s)")
    parser.add_argument("--checkpoint", choices=CHECKPOINTS, default="last", help="weights of the run (%(default)s)")
    parser.add_argument("--weights", metavar="PATH", help="weights of the backbone, where they were moved")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="windows per forward pass (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    options = parser.parse_args(arguments)
    options.out = options.out.expanduser()
    return options


def run(options: argparse.Namespace) -> int:
    """Segments what the command line names; returns the number of inputs that could not be used.

    Raises:
        ValueError, OSError, ImportError: nothing can be done, or an output cannot be written.
    """
    found, problems = find_photos(options.images, options.out)
    if not found:
        raise ValueError("; ".join(problems) or "there is no photo to segment")
    targets = plan(found, options.out, options.overlay, options.probabilities)
    segmenter = Segmenter.load(
        options.run, checkpoint=options.checkpoint, device=options.device, window=options.window,
        batch=options.batch, weights=options.weights,
    )  # fmt: skip
    if segmenter.run.n_clusters > 256:
        raise ValueError(f"{segmenter.run.n_clusters} clusters do not fit the 256 colours of a PNG palette")
    if options.crf:
        check_available()
    names: list[str | Path] = [LEGEND, *(file.relative_to(options.out) for target in targets for file in target.files)]
    output_folder(options.out, names, options.overwrite)
    with StageBar("predicting", len(targets)) as bar:
        counts, failed = predict_files(segmenter, targets, options.crf, bar.advance)
    failed = problems + failed
    text = legend(segmenter, counts, options.out, failed, window=options.window, crf=options.crf)
    write_text(options.out / LEGEND, json.dumps(text, indent=1))
    print(*failed, sep="\n", end="\n" * bool(failed), file=sys.stderr)
    named = "" if text["named"] else " (named by number: no matching to classes is stored for this checkpoint)"
    print(f"{len(counts)} of {len(targets)} photos segmented into {segmenter.run.n_clusters} clusters{named}")
    print(f"ids: {show(options.out / 'ids')}, legend: {show(options.out / LEGEND)}")
    return len(failed)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m depthg.predict``; 1 when an input could not be used."""
    options = parse(arguments)
    try:
        with terminate_as_interrupt():
            return min(1, run(options))
    except KeyboardInterrupt:
        left = f"what is in {show(options.out)} is whole, but {LEGEND} is missing"
        print(f"stopped; {left}; start again with --overwrite", file=sys.stderr)
        return 130
    except (*USER_ERRORS, RuntimeError) as error:  # RuntimeError: a CRF process ended
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
