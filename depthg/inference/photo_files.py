"""Output files of segmented photos: ids, overlays, probabilities, and a legend of the ids."""

from __future__ import annotations

import contextlib
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from depthg.data.files import DataError, pixel_count, show, without_setting
from depthg.data.geotiff import GEO_HINT, lost_place
from depthg.data.ranges import resolved
from depthg.data.raster_rows import kind_of
from depthg.inference.clear_crops import ClearCrops
from depthg.inference.exports.formats import Exports
from depthg.inference.overlays import PALETTE, pixels_of, with_palette
from depthg.inference.probability_files import ProbabilityRows, write_probabilities
from depthg.inference.raster_files import SmallRaster, is_small, no_data_id, predict_raster
from depthg.inference.segmenter import Maps, Segmenter
from depthg.inference.strips import ArraySource, segment
from depthg.inference.targets import OVERLAYS, Target, plan, write_overlay
from depthg.inference.windows import NetworkPhoto, as_rgb
from depthg.storage.whole_files import write_whole

__all__ = ["LEGEND", "OVERLAYS", "Target", "legend", "plan", "predict_files", "segmented"]

LEGEND = "legend.json"
RUN_LENGTHS = zlib.Z_RLE  # PNG of ids: six times faster than the default, files a quarter larger
LARGE = (2**25, 2**24)  # pixels of photos that are segmented one at a time: scaled ones, and those cut into windows


def write_outputs(
    segmenter: Segmenter,
    target: Target,
    image: np.ndarray,  # uint8 [H, W, 3]
    ids: np.ndarray,  # [H, W]
    probabilities: np.ndarray | ProbabilityRows | None,
    plain: bool = False,
) -> None:
    """Writes the files of one photo, each atomically; ``plain``: an overlay without outlines, names and legend."""
    wide = segmenter.merging.n > PALETTE  # then they are grey, without colours
    map_ = Image.fromarray(ids.astype(np.uint16)) if wide else with_palette(ids, segmenter.colours)
    write_whole(target.ids, lambda partial: map_.save(partial, format="PNG", compress_type=RUN_LENGTHS), flush=False)
    write_overlay(target, image, ids, segmenter.colours, segmenter.names, plain)
    if target.probabilities is not None:
        write_probabilities(target.probabilities, probabilities, segmenter.names)


def predict_files(
    segmenter: Segmenter,
    targets: Sequence[Target],
    crf: bool = False,
    advance: Callable[[], None] = lambda: None,
    *,
    plain: bool = False,
    crops: ClearCrops | None = None,
    exports: Exports | None = None,
) -> tuple[dict[Target, np.ndarray], list[str]]:
    """Segments photos and writes their files. A run of 8-bit photos alone has no range: deeper ones then get their own.

    Args:
        crf: refine by the dense CRF.
        advance: called after each photo.
        plain: overlays without outlines, names and legend.
        crops: collects the clearest crops of every cluster.
        exports: writes files for annotation tools.

    Returns:
        Pixels per cluster of every photo, and an error line for each photo that cannot be read.

    Raises:
        OSError: an output cannot be written.
        ImportError: the CRF needs the compiled code.
    """
    _tell_lost_places(targets)
    rasters = {target.photo: kind for target in targets if target.raster and (kind := kind_of(target.photo))}
    segmenter.reading = resolved(segmenter.reading, [target.photo for target in targets], "the photos", rasters)
    found: dict[Target, np.ndarray | DataError] = {}
    apart = [target for target in targets if is_large(segmenter, target)]
    by_photo: dict[object, Target] = {
        SmallRaster(target.photo) if target.raster else target.photo: target
        for target in targets
        if target not in apart
    }

    def finish(photo: NetworkPhoto, maps: Maps) -> np.ndarray:
        target = by_photo[photo.source]
        ids = segmenter.refined(photo, maps) if crf else segmenter.ids(photo, maps)
        probabilities = segmenter.probabilities(photo, maps) if target.probabilities else None
        if isinstance(photo.source, SmallRaster):
            ids, counts = photo.source.write(segmenter, target, photo.image, ids, probabilities, plain)
        else:
            write_outputs(segmenter, target, photo.image, ids, probabilities, plain)
            counts = pixels_of(ids, segmenter.merging.n)
        if crops is not None:
            crops.offer(target.name, segmenter.merging.scores(maps.scores), lambda: (photo.image, ids))
        if exports is not None:
            exports.add(target.photo, ids, segmenter.merging.scores(maps.scores))
        return counts

    for target, outcome in zip(by_photo.values(), segmenter.stream(by_photo, finish), strict=True):
        found[target] = outcome
        advance()
    for target in apart:
        try:
            one = predict_raster if target.raster else predict_large
            found[target] = one(segmenter, target, crf, plain, crops, exports)
        except DataError as error:
            found[target] = error
        advance()
    ordered = [(target, found[target]) for target in targets]
    counts = {target: pixels for target, pixels in ordered if not isinstance(pixels, DataError)}
    return counts, [_told(target.photo, error) for target, error in ordered if isinstance(error, DataError)]


def _told(photo: Path, error: DataError) -> str:
    """What is said about a photo that cannot be read."""
    text = without_setting(error, "--max-pixels N")
    large = isinstance(error.__cause__, (Image.DecompressionBombError, Image.DecompressionBombWarning))
    return f"{text}; with {GEO_HINT} GeoTIFFs of any size are read" if large and lost_place(photo) else text


def _tell_lost_places(targets: Sequence[Target]) -> None:
    """Warns that the ids of GeoTIFFs are written without their georeference, where rasterio is missing."""
    number = sum(lost_place(target.photo) for target in targets)
    if number:
        warnings.warn(
            f"{number:,} of {len(targets):,} photos are GeoTIFFs: their ids become PNGs and lose the georeference; "
            f"{GEO_HINT} keeps it",
            stacklevel=3,
        )


def is_large(segmenter: Segmenter, target: Target) -> bool:
    """Whether a photo is segmented in strips, on all cores, while no other one is worked on."""
    if target.raster:
        return not is_small(segmenter, target.photo)
    try:
        return pixel_count(target.photo, segmenter.reading) > LARGE[segmenter.window is not None]
    except DataError:  # told when it is read
        return False


def predict_large(
    segmenter: Segmenter, target: Target, crf: bool, plain: bool, crops: ClearCrops | None, exports: Exports | None
) -> np.ndarray:  # [n_clusters]
    """Segments a photo in strips, writes its files and returns the pixels per cluster.

    Raises:
        DataError: the photo cannot be read.
        OSError: an output cannot be written.
    """

    def read() -> np.ndarray:
        return as_rgb(target.photo, segmenter.reading)

    source = ArraySource(read(), read)
    height, width = source.size
    ids = np.empty((height, width), np.uint8 if segmenter.merging.n < 256 else np.uint16)
    scores: list[np.ndarray] = []

    def keep(start: int, block: np.ndarray) -> None:
        ids[start : start + len(block)] = block

    with contextlib.ExitStack() as files:
        rows, put = None, None
        if target.probabilities:
            shape = (segmenter.merging.n, height, width)
            rows = files.enter_context(ProbabilityRows(target.probabilities.parent, shape))
            put = rows.put
        segment(segmenter, source, keep, crf=crf, probabilities=put, scores=scores.append)
        write_outputs(segmenter, target, source.image, ids, rows, plain)
    if crops is not None:
        crops.offer(target.name, np.concatenate(scores, 1), lambda: (source.image, ids))
    if exports is not None:
        exports.add(target.photo, ids, np.concatenate(scores, 1))
    return pixels_of(ids, segmenter.merging.n)


def legend(segmenter: Segmenter, counts: dict[Target, np.ndarray], out: Path, failed: Sequence[str], **options) -> dict:
    """The content of ``legend.json``: name, clusters and colour of each id, and its share of pixels, also per photo."""
    run, assigned, named = segmenter.run, segmenter.run.assignment, segmenter.run.naming
    classes = [None] * run.n_clusters if named is None else [int(c) if c >= 0 else None for c in named]
    matched = [False] * run.n_clusters if assigned is None else (assigned >= 0).tolist()
    total = _shares(sum(counts.values(), np.zeros(segmenter.merging.n, np.int64)))
    members = [np.flatnonzero(segmenter.merging.table == i).tolist() for i in range(segmenter.merging.n)]
    ids = [
        {
            "id": i, "name": name, "clusters": own, "class": classes[own[0]], "matched": matched[own[0]],
            "colour": "#" + bytes(colour).hex(), "share": total[i],
        }
        for i, (name, own, colour) in enumerate(zip(segmenter.names, members, segmenter.colours, strict=True))
    ]  # fmt: skip
    photos = [
        {
            "photo": show(target.photo), "files": [file.relative_to(out).as_posix() for file in target.files],
            **({"no_data": no_data_id(segmenter.merging.n)} if target.raster else {}),
            "share": {str(i): share for i, share in enumerate(_shares(pixels)) if share},
        }
        for target, pixels in counts.items()
    ]  # fmt: skip
    return {
        "run": show(run.path), "checkpoint": run.checkpoint, "iteration": run.header.get("iteration"), **options,
        "named": assigned is not None or segmenter.legend is not None, "ids": ids, "photos": photos,
        "failed": list(failed),
    }  # fmt: skip


def segmented(legend: dict, total: int) -> str:
    """What was done, in a line; ``total``: photos that were asked for."""
    named = "" if legend["named"] else " (named by number: no matching to classes is stored for this checkpoint)"
    kind = "clusters" if all(len(entry["clusters"]) == 1 for entry in legend["ids"]) else "classes"
    return f"{len(legend['photos'])} of {total} photos segmented into {len(legend['ids'])} {kind}{named}"


def _shares(pixels: np.ndarray) -> list[float]:
    return [round(float(x), 6) for x in pixels / max(1, pixels.sum())]
