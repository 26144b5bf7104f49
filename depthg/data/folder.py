"""Your own photos: every image below a folder, in any mix of sizes and formats; label maps are optional."""

import os
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from depthg.data.base import Dataset, FileSplit, Subset, drop_unreadable, report_skipped
from depthg.data.classes import NO_CLASSES, Classes, read_classes
from depthg.data.files import DataError, list_files, show, tree_error
from depthg.data.kinds import IMAGE_SUFFIXES, is_photo, not_used
from depthg.data.pairing import by_stem, check_alone, find_files, find_list, normal, read_list
from depthg.data.ranges import resolved
from depthg.data.reading import DEFAULT, Reading
from depthg.data.text_lists import spellings

EXPECTED = f"""
photos, in subfolders if you like ({" ".join(IMAGE_SUFFIXES)})
"""
N_VAL = 60
Files = FileSplit | Subset
EXPECTED_LABELS = "label maps of ids or colours (.png) under the photos' relative paths"


class Folder(Dataset):
    """Every photo below `root`, sorted by path; nothing is written there.

    Without labels `train` is all photos and `val` at most `n_val` of them, evenly spread: nothing is scored, so the
    same photos serve for pictures. With labels `val` is at most `n_val` and at most half of the labelled photos,
    evenly spread, and `train` all others, those without a label map too (all void). Without `held_out` nothing is
    trained here: `val` is all labelled photos, or `n_val` of them, and `train` all photos. Lists say otherwise.

    Args:
        root: the folder.
        n_val: largest number of photos in `val`, unless a list names them; None: 60, no limit without `held_out`.
        on_error: "raise", or "skip" to leave out (and report) photos that cannot be read and label maps without photo.
        labels: folder of label maps of ids or colours, under the photos' relative paths.
        classes: text file that names the ids and colours, see `classes.read_classes`; needed with `labels`.
        list_train, list_val: text files with a photo per line, relative to `root`.
        held_out: keep photos out of `train` for scoring; needs labels to have an effect.
        reading: how the photo files are read.

    Raises:
        FileNotFoundError: a folder or file is missing, or holds no photo or label map.
        ValueError: n_val < 1, or only one of labels and classes.
        DataError: label maps that fit no photo, damaged lists, or nothing left to train on or to score.
    """

    def __init__(
        self,
        root: str | Path,
        n_val: int | None = None,
        on_error: str = "raise",
        *,
        labels: str | Path | None = None,
        classes: str | Path | None = None,
        list_train: str | Path | None = None,
        list_val: str | Path | None = None,
        held_out: bool = True,
        reading: Reading = DEFAULT,
    ):
        if n_val is not None and n_val < 1:
            raise ValueError(f"n_val={n_val} must be at least 1")
        if (labels is None) != (classes is None):
            raise ValueError(
                "data.labels=DIR and data.classes=FILE go together: label maps of ids, and the names of the ids"
            )
        root = Path(root).expanduser()
        folder = None if labels is None else Path(labels).expanduser()
        known = NO_CLASSES if classes is None else read_classes(classes)
        read_too = [Path(path).expanduser() for path in (classes, list_train, list_val) if path is not None]
        split, labelled = _photos(root, folder, known, on_error, read_too, reading)
        train = _listed(list_train, "data.list_train", root, split, on_error)
        val = _listed(list_val, "data.list_val", root, split, on_error)
        if folder is None:
            train = list(range(len(split))) if train is None else train
            val = [train[index] for index in spread(len(train), n_val or N_VAL)] if val is None else val
        elif held_out:
            train, val = _held_out(len(split), labelled, train, val, n_val or N_VAL)
        else:
            train, val = _all_scored(len(split), labelled, train, val, n_val)
        super().__init__(
            name="folder",
            classes=known.names,
            palette=known.palette,
            train=Subset(split, train, getattr(split, "skipped", ())),
            val=Subset(split, val),
            note="" if folder is None else f"labels for {len(labelled)} of {len(split)} photos, {len(val)} scored",
        )


def _photos(
    root: Path, folder: Path | None, known: Classes, on_error: str, read_too: Sequence[Path], reading: Reading
) -> tuple[Files, list[int]]:
    """All photos that can be used, and which of them have a label map; `read_too` are files that have another use."""
    there = list_files(root, ("",), recursive=True) if root.is_dir() else []
    inside = None if folder is None else os.path.relpath(folder.resolve(), root.resolve())
    if inside == os.curdir:
        raise ValueError(f"data.labels={show(folder)} is data.root itself; label maps need a folder of their own")
    if inside is not None and not inside.startswith(os.pardir):  # label maps below the photos
        there = [path for path in there if root / inside not in path.parents]
    images = [path for path in there if is_photo(path)]
    used = {os.path.realpath(path) for text in read_too for path in (text, root / text)}
    other = not_used(path for path in there if not is_photo(path) and os.path.realpath(path) not in used)
    if not images:
        raise tree_error(f"folder: no photos below {root}" + f" (but {other})" * bool(other), root, EXPECTED)
    if other:
        warnings.warn(f"{root}: {len(images):,} photos; not used: {other}", stacklevel=3)
    reading = resolved(reading, images, show(root))
    if folder is None:
        split = drop_unreadable(FileSplit(images, root=root, reading=reading), on_error)
        return split, []
    maps = by_stem(find_files(folder, folder, EXPECTED_LABELS, recursive=True), lambda path: _stem(path, folder))
    photos = by_stem(images, lambda path: _stem(path, root))
    alone = [
        f"the label map {show(path)} has no photo {show(root / key)}.*"
        for key, path in maps.items()
        if key not in photos
    ]
    check_alone(alone, on_error)
    if alone:
        report_skipped(alone, len(images))
    labels = [maps.get(key) for key in photos]
    files = FileSplit(
        images, root=root, labels=labels, table=known.table, skipped=alone, reading=reading, colours=known.colours
    )
    split = drop_unreadable(files, on_error)
    with_map = {show(path.relative_to(root).as_posix()) for path, label in zip(images, labels, strict=True) if label}
    return split, [index for index, relative in enumerate(split.relative) if show(relative) in with_map]


def _stem(path: Path, folder: Path) -> str:
    return os.path.splitext(path.relative_to(folder).as_posix())[0]


def _listed(given: str | Path | None, option: str, root: Path, split: Files, on_error: str) -> list[int] | None:
    """Photos of a list file, named with or without their suffix."""
    source = find_list(given, option, root)
    if source is None:
        return None
    found = defaultdict(list)
    for index, relative in enumerate(split.relative):
        for key in {normal(relative), normal(os.path.splitext(relative)[0])}:
            found[key].append(index)
    chosen, alone = [], []
    for entry in read_list(source):
        indices = next((found[normal(text)] for text in spellings(entry) if normal(text) in found), [])
        if len(indices) > 1:
            raise DataError(f"{show(source)} names {show(entry)}, which fits {len(indices)} photos: add the suffix")
        chosen += indices
        if not indices:
            alone.append(f"{show(source)} names {show(entry)}, but there is no such photo below {show(root)}")
    check_alone(alone, on_error)
    if alone:
        report_skipped(alone, len(chosen) + len(alone))
    if not chosen:
        raise DataError(f"{show(source)} names no photo below {show(root)}; the first of {len(alone)}: {alone[0]}")
    return chosen


def _held_out(
    total: int, labelled: Sequence[int], train: list[int] | None, val: list[int] | None, n_val: int
) -> tuple[list[int], list[int]]:
    """Train and val of labelled photos, no photo in both unless two lists say so."""
    if val is None:
        taken = set(train or ())
        free = [index for index in labelled if index not in taken]
        if not free:
            raise DataError("no photo with a label map is left to score; name some in data.list_val=FILE")
        most = len(free) if train is not None else max(1, len(free) // 2)
        val = [free[position] for position in spread(len(free), min(n_val, most))]
    scored = set(val)
    if train is None:
        train = [index for index in range(total) if index not in scored]
    if not train:
        raise DataError("every photo is scored, none is left to train on; name some in data.list_train=FILE")
    both = len(scored.intersection(train))
    if both:
        warnings.warn(f"{both} photos are in data.list_train and in data.list_val: scored and trained on", stacklevel=3)
    return train, val


def _all_scored(
    total: int, labelled: Sequence[int], train: list[int] | None, val: list[int] | None, n_val: int | None
) -> tuple[list[int], list[int]]:
    """Train and val where nothing is trained: all photos, and all labelled ones, at most n_val of them."""
    if val is None:
        val = [labelled[position] for position in spread(len(labelled), n_val or len(labelled))]
    return list(range(total)) if train is None else train, val


def spread(total: int, n: int) -> np.ndarray:  # int64 [min(n, total)]
    """`n` indices below `total`, evenly spread from the first to the last; all of them when there are fewer."""
    return np.linspace(0, total - 1, min(n, total)).round().astype(np.int64)
