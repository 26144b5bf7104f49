"""From folders to splits: which label map belongs to which photo, by name or by a list, and which list it was."""

import os
import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from depthg.data.base import FileSplit, Split, check_on_error, drop_unreadable, report_skipped
from depthg.data.files import DataError, list_files, show, tree_error
from depthg.data.kinds import IMAGE_SUFFIXES, is_photo
from depthg.data.text_lists import read_lines, spellings

T = TypeVar("T")
Pairs = list[tuple[Path, Path | None]]  # photo, label map


def find_files(
    folder: Path, root: Path, expected: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, recursive: bool = False
) -> list[Path]:
    """Files of a folder that a data set must have.

    Raises:
        FileNotFoundError: no such folder, or no such files in it; the message shows the expected and the actual tree.
        DataError: a folder cannot be listed.
    """
    files = list_files(folder, suffixes, recursive) if folder.is_dir() else []
    if not files:
        kinds = "images" if suffixes == IMAGE_SUFFIXES else f"files *{', *'.join(suffixes)}"
        problem = f"no {kinds} in" if folder.is_dir() else "no folder"
        raise tree_error(f"{problem} {show(folder)}", root, expected)
    return files


def make_split(
    pairs: Pairs,
    alone: Sequence[str],
    *,
    root: Path,
    table: np.ndarray,
    on_error: str,
    name: Callable[[Path], str] = lambda path: path.stem,
    kind: type[FileSplit] = FileSplit,
    fov: float | None = None,
) -> Split:
    """A split of the pairs that can be used, with a warning about what was left out.

    Args:
        pairs, alone: from `pair_files` or `pair_listed`.
        root: the data set's folder.
        table: label ids to classes.
        on_error: as `data.on_error`.
        name: unique name of a photo.
        kind: how its files are read.
        fov: horizontal field of view in degrees, None when unknown.

    Raises:
        DataError: no photo is left.
    """
    if not pairs:
        raise DataError(f"none of the photos below {show(root)} can be used; the first of {len(alone)}: {alone[0]}")
    if alone:
        report_skipped(alone, len(pairs) + len(alone))
    images, labels = zip(*pairs, strict=True)
    names = list(map(name, images))
    split = kind(images, root=root, names=names, labels=labels, table=table, skipped=alone, fov=fov)
    return drop_unreadable(split, on_error)


def training_split(open_it: Callable[[], T], none: T, needed: bool) -> T:
    """`open_it()`, or `none` where the training photos are not there and not `needed`, as for an evaluation.

    Raises:
        FileNotFoundError: they are needed and not there.
    """
    try:
        return open_it()
    except FileNotFoundError:
        if needed:
            raise
        return none


def no_photos(root: Path, table: np.ndarray) -> Split:
    """A split without photos."""
    return FileSplit([], root=root, names=[], labels=[], table=table)


def by_stem(files: Sequence[Path], key: Callable[[Path], str] = lambda path: path.stem) -> dict[str, Path]:
    """Files by their stem or other key (Unicode-normalised: archives from a Mac spell accents differently).

    Raises:
        DataError: two files share a key.
    """
    stems: dict[str, Path] = {}
    for path in files:
        stem = normal(key(path))
        if stem in stems:
            raise DataError(
                f"{show(stems[stem])} and {show(path)} have the same name but for the suffix, so it is unclear which "
                f"one belongs to its partner: rename or remove one of them"
            )
        stems[stem] = path
    return stems


def normal(text: str) -> str:
    """One spelling for every way to write a name."""
    return unicodedata.normalize("NFC", text)


def pair_files(
    images: Mapping[str, Path],
    labels: Mapping[str, Path],
    *,
    photo_path: Callable[[str], Path],
    label_path: Callable[[str], Path],
    on_error: str,
) -> tuple[Pairs, list[str]]:
    """Pair photos and label maps with the same key, in the order of the photos.

    Args:
        images, labels: the files found, from `by_stem`.
        photo_path, label_path: where the file of a key is expected, for messages.
        on_error: "raise", or "skip" to leave photos and label maps without a partner out.

    Returns:
        the pairs, and a line for everything left out.

    Raises:
        DataError: a photo without label map or a label map without photo (on_error="raise").
    """
    alone = [
        f"the photo {show(path)} has no label map {show(label_path(key))}"
        for key, path in images.items()
        if key not in labels
    ]
    alone += [
        f"the label map {show(path)} has no photo {show(photo_path(key))}"
        for key, path in labels.items()
        if key not in images
    ]
    check_alone(alone, on_error)
    return [(path, labels[key]) for key, path in images.items() if key in labels], alone


def pair_listed(
    entries: Sequence[str],
    images: Mapping[str, Path],
    labels: Mapping[str, Path],
    *,
    source: Path,
    photo_path: Callable[[str], Path],
    label_path: Callable[[str], Path],
    on_error: str,
    labelled: bool = True,
) -> tuple[Pairs, list[str]]:
    """The photos of a list with their label maps, in the list's order.

    Args:
        entries: names as in `images`, with or without a suffix.
        images, labels: the files found, from `by_stem`.
        source: the list file, for messages.
        photo_path, label_path: where the file of a key is expected, for messages.
        on_error: "raise", or "skip" to leave out what is missing.
        labelled: whether every photo needs a label map; else one without gets None.

    Returns:
        the pairs, and a line for everything left out.

    Raises:
        DataError: a photo or a needed label map is missing (on_error="raise").
    """
    pairs, alone = [], []
    for entry in entries:
        keys = [normal(spelling) for spelling in spellings(entry)]
        keys += [os.path.splitext(key)[0] for key in keys if is_photo(key)]
        key = next((key for key in keys if key in images), keys[-1])
        if key not in images:
            alone.append(f"{show(source)} names {show(entry)}, but there is no photo {show(photo_path(key))}")
        elif labelled and key not in labels:
            alone.append(f"the photo {show(images[key])} has no label map {show(label_path(key))}")
        else:
            pairs.append((images[key], labels.get(key)))
    check_alone(alone, on_error)
    return pairs, alone


def check_alone(alone: Sequence[str], on_error: str) -> None:
    """Raise DataError for the first of the lines about files without a partner, unless they are to be skipped."""
    check_on_error(on_error)
    if alone and on_error == "raise":
        more = f" ({len(alone)} such files in all)" if len(alone) > 1 else ""
        raise DataError(
            f"{alone[0]}{more}: add the missing file, remove the other, or pass data.on_error=skip to leave both out"
        )


# ---- list files


def find_list(given: str | Path | None, option: str, root: Path, usual: Path | None = None) -> Path | None:
    """The list file to use: the given one (as it stands, or below `root`), else the usual one if it exists.

    Raises:
        FileNotFoundError: the given one is no file.
    """
    if given is None:
        return usual if usual is not None and usual.is_file() else None
    places = [Path(given).expanduser(), root / given]
    for path in places:
        if path.is_file():
            return path
    looked = " nor ".join(dict.fromkeys(show(path) for path in places))
    raise FileNotFoundError(f"{option}: there is no file {looked}; it must be a text file with a photo name per line")


def read_list(path: Path) -> list[str]:
    """The names in a list file, one per line; empty lines and repeated names are left out (see `text_lists`).

    Names are keys for files that were found in the data set, never paths to open; what looks like a path out of the
    data set is refused all the same.

    Raises:
        DataError: no text, no names, or a name that is absolute or goes up a folder.
    """
    names: dict[str, None] = {}
    repeated = 0
    for number, name in enumerate(read_lines(path, "list of photos"), 1):
        if "\0" in name or re.match(r"[/\\~]|[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
            raise DataError(
                f"{show(path)}, line {number}: {show(name)!r} leads out of the data set; a list holds one photo name "
                f"per line, relative to the folder of photos"
            )
        repeated += name in names
        if name:
            names[name] = None
    if not names:
        raise DataError(f"{show(path)} holds no names; it must hold one photo name per line")
    if repeated:
        warnings.warn(f"{show(path)} names {repeated} photos more than once; each is used once", stacklevel=2)
    return list(names)


def count_note(part: str, source: str, count: int, usual: int, used: int | None = None) -> str:
    """The photos behind a metric, for the protocol line; warns if their count differs from the published list.

    Args:
        part: "train" or "val".
        source: name of the list or folder.
        count: photos in it.
        usual: photos in the published one.
        used: photos that are left after `data.on_error=skip`, `count` when None.
    """
    text = f"{part}: {source}, {count:,} photos"
    if count != usual:
        warnings.warn(
            f"{source} has {count:,} photos, usually {usual:,}: numbers are not comparable with published ones",
            stacklevel=3,
        )
        text += f" (usually {usual:,})"
    return text if used in (None, count) else f"{text}, {used:,} usable"
